//! A client prefix: which clients a diversion is for.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::address::read_address;
use crate::text::{TextError, digits, excerpt, json_as_text};

/// The clients that a diversion is for, as a prefix of their addresses.
///
/// Text: `IP/LENGTH`, such as `10.0.0.0/8` or `fd00::/8`. When read, a bare `IP` means that one
/// client; it is written with its length of 32 or 128. No bit beyond the length is ever set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientPrefix(IpNet);

impl ClientPrefix {
    /// The prefix, with no bit set beyond its length.
    pub fn network(self) -> IpNet {
        self.0
    }

    /// Whether this client is meant. An address of the other family never is.
    pub fn contains(self, client: IpAddr) -> bool {
        self.0.contains(&client)
    }
}

impl From<IpNet> for ClientPrefix {
    /// Clears the bits beyond the prefix length.
    fn from(network: IpNet) -> Self {
        Self(network.trunc())
    }
}

impl From<IpAddr> for ClientPrefix {
    /// That one client.
    fn from(client: IpAddr) -> Self {
        Self(IpNet::from(client))
    }
}

impl FromStr for ClientPrefix {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let Some((address, length)) = text.split_once('/') else {
            return Ok(Self::from(read_address(text)?));
        };
        let address = read_address(address)?;
        let longest = IpNet::from(address).max_prefix_len();
        let network = digits(length)
            .and_then(|length| IpNet::new(address, length).ok())
            .ok_or_else(|| TextError::NotAPrefixLength {
                seen: excerpt(length),
                longest,
            })?;
        if network != network.trunc() {
            return Err(TextError::HostBits {
                address,
                network: network.trunc(),
            });
        }
        Ok(Self(network))
    }
}

impl fmt::Display for ClientPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

json_as_text!(
    ClientPrefix,
    "a prefix of client addresses such as \"10.0.0.0/8\""
);

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<ClientPrefix>().expect_err(text).to_string()
    }

    #[test]
    fn prefixes_are_written_with_their_length() {
        for (text, canonical) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.0.5", "10.1.0.5/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("fd00::5", "fd00::5/128"),
        ] {
            assert_eq!(
                text.parse::<ClientPrefix>().expect(text).to_string(),
                canonical
            );
        }
    }

    #[test]
    fn a_prefix_contains_its_clients_and_nobody_of_the_other_family() {
        let prefix: ClientPrefix = "10.0.0.0/8".parse().expect("a prefix");
        assert!(prefix.contains(IpAddr::from([10, 255, 0, 1])));
        assert!(!prefix.contains(IpAddr::from([11, 0, 0, 1])));
        let everybody: ClientPrefix = "::/0".parse().expect("a prefix");
        assert!(!everybody.contains(IpAddr::from([10, 0, 0, 1])));
    }

    #[test]
    fn a_network_loses_the_bits_beyond_its_length() {
        let network: IpNet = "10.1.0.5/8".parse().expect("a network");
        assert_eq!(ClientPrefix::from(network).to_string(), "10.0.0.0/8");
    }

    #[test]
    fn bits_beyond_the_length_are_refused_with_what_was_probably_meant() {
        assert_eq!(
            refusal("10.1.0.5/8"),
            "10.1.0.5/8 has bits set beyond its length; write 10.0.0.0/8, or 10.1.0.5 for that \
             one client"
        );
    }

    #[test]
    fn other_refusals_say_what_is_expected() {
        for (text, seen, longest) in [
            ("10.0.0.0/33", "33", 32),
            ("10.0.0.0/", "", 32),
            ("fd00::/129", "129", 128),
        ] {
            assert_eq!(
                refusal(text),
                format!("\"{seen}\" is not a prefix length; expected a number from 0 to {longest}")
            );
        }
        assert_eq!(
            refusal("::ffff:10.0.0.0/104"),
            "\"::ffff:10.0.0.0\" is an IPv4-mapped IPv6 address; write 10.0.0.0"
        );
        assert_eq!(
            refusal("office/24"),
            "\"office\" is not an IP address; expected one such as 10.1.0.1 or fd00::1 (names are \
             not looked up)"
        );
    }
}
