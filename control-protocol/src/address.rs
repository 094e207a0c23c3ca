//! Services and mirrors: an IP address with, perhaps, a port and more, in one text form each.
//!
//! All of them begin with an address part, `IP`, `IP:PORT`, `IPv6`, `[IPv6]` or `[IPv6]:PORT`. An
//! IPv6 address with a port needs its brackets: `fd00::1:80` is an address, not a port 80. After it,
//! a service may name a protocol (`/tcp`) and a mirror a weight (`*3`).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::text::{TextError, digits, excerpt, json_as_text};

/// A protocol whose connections Shunt can divert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests and replies of ICMP (for IPv4 services) and of ICMPv6 (for IPv6 services).
    Icmp,
    /// Any other, by its IP protocol number (IANA, "Assigned Internet Protocol Numbers"): never 1, 6,
    /// 17 or 58, which the others stand for. It is translated by its addresses alone.
    Other(u8),
}

impl Protocol {
    /// Whether its packets have ports; those of an echo have an identifier instead.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.pad("tcp"),
            Self::Udp => f.pad("udp"),
            Self::Icmp => f.pad("icmp"),
            Self::Other(number) => f.pad(&number.to_string()),
        }
    }
}

impl FromStr for Protocol {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "icmp" => Ok(Self::Icmp),
            number => match digits(number) {
                Some(number) if !matches!(number, 1 | 6 | 17 | 58) => Ok(Self::Other(number)),
                _ => Err(TextError::UnknownWord {
                    kind: "protocol",
                    seen: excerpt(text),
                    expected: "tcp, udp, icmp or the number of another IP protocol",
                }),
            },
        }
    }
}

json_as_text!(
    Protocol,
    "tcp, udp, icmp or the number of another IP protocol"
);

/// The address that clients think they talk to, or a part of what goes there.
///
/// Text: `IP[:PORT][/PROTOCOL]`, such as `10.1.0.1`, `10.1.0.1:80`, `10.1.0.1:80/tcp`,
/// `10.1.0.1/icmp` or `[fd00::1]:53/udp`. Written out, an IPv6 address has brackets only when a port
/// follows.
///
/// The fields are open, so a value can be put together that no text gives: a port with
/// a protocol that has none, port 0, or an IPv4-mapped address. Such a value writes a text that can't be
/// read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// The service's address.
    pub address: IpAddr,
    /// Only this port; `None`: every port.
    pub port: Option<u16>,
    /// Only this protocol; `None`: every protocol that fits (with a port: TCP and UDP).
    pub protocol: Option<Protocol>,
}

impl Service {
    /// Whether all that is `other` is this as well: the same address, and what this says of port and
    /// protocol the other says too.
    pub fn covers(&self, other: &Self) -> bool {
        self.address == other.address
            && self.port.is_none_or(|port| other.port == Some(port))
            && self
                .protocol
                .is_none_or(|protocol| other.protocol == Some(protocol))
    }
}

impl FromStr for Service {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let (endpoint, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((endpoint, word)) => (endpoint, Some(word.parse::<Protocol>()?)),
        };
        let (address, port) = read_endpoint(endpoint)?;
        match (port, protocol) {
            (Some(port), Some(protocol)) if !protocol.has_ports() => {
                Err(TextError::PortWithoutPorts { port, protocol })
            }
            _ => Ok(Self {
                address,
                port,
                protocol,
            }),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_endpoint(f, self.address, self.port)?;
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

json_as_text!(Service, "a service such as \"10.1.0.1:80/tcp\"");

/// A server that really answers, with its share of the new connections.
///
/// Text: `IP[:PORT][*WEIGHT]`, such as `10.2.0.2`, `10.2.0.2:8080`, `10.2.0.2:80*3` or
/// `[fd00::2]:80*0`. A weight of 1 is left out when written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mirror {
    /// The mirror's address.
    pub address: IpAddr,
    /// The port at the mirror; `None`: the same as at the service.
    pub port: Option<u16>,
    /// The mirror's share of the new connections, in proportion to the other mirrors' weights. With
    /// weight 0 it gets none, and keeps those it has: it is draining.
    pub weight: u16,
}

impl Mirror {
    /// The weight of a mirror whose text names none.
    pub const DEFAULT_WEIGHT: u16 = 1;
}

impl FromStr for Mirror {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let (endpoint, weight) = match text.split_once('*') {
            None => (text, Self::DEFAULT_WEIGHT),
            Some((endpoint, weight)) => (
                endpoint,
                digits(weight).ok_or_else(|| TextError::NotAWeight {
                    seen: excerpt(weight),
                })?,
            ),
        };
        let MirrorAddress { address, port } = endpoint.parse()?;
        Ok(Self {
            address,
            port,
            weight,
        })
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_endpoint(f, self.address, self.port)?;
        match self.weight {
            Self::DEFAULT_WEIGHT => Ok(()),
            weight => write!(f, "*{weight}"),
        }
    }
}

json_as_text!(
    Mirror,
    "a mirror such as \"10.2.0.2:80\" or \"10.2.0.2:80*3\""
);

/// Where a connection's mirror is, when connections are picked by their mirror.
///
/// Text: `IP[:PORT]`, such as `10.2.0.2`, `10.2.0.2:80` or `[fd00::2]:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MirrorAddress {
    /// The mirror's address.
    pub address: IpAddr,
    /// Only this port; `None`: any port on that address.
    pub port: Option<u16>,
}

impl FromStr for MirrorAddress {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if let Some((_, protocol)) = text.split_once('/') {
            return Err(TextError::ProtocolWithMirror {
                seen: excerpt(protocol),
            });
        }
        if let Some((_, weight)) = text.split_once('*') {
            return Err(TextError::WeightWithAddress {
                seen: excerpt(weight),
            });
        }
        let (address, port) = read_endpoint(text)?;
        Ok(Self { address, port })
    }
}

impl fmt::Display for MirrorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_endpoint(f, self.address, self.port)
    }
}

json_as_text!(
    MirrorAddress,
    "a mirror's address such as \"10.2.0.2\" or \"10.2.0.2:80\""
);

/// Reads an address with or without a port.
fn read_endpoint(text: &str) -> Result<(IpAddr, Option<u16>), TextError> {
    if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner
            .split_once(']')
            .ok_or_else(|| TextError::UnclosedBracket {
                seen: excerpt(text),
            })?;
        if address.parse::<Ipv6Addr>().is_err() {
            return Err(TextError::NotAnIpv6Address {
                seen: excerpt(address),
            });
        }
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(read_port(port)?),
            None if rest.is_empty() => None,
            None => {
                return Err(TextError::AfterBracket {
                    seen: excerpt(rest),
                });
            }
        };
        return Ok((read_address(address)?, port));
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 address without brackets, hence without a port.
        Some((_, rest)) if rest.contains(':') => Ok((read_address(text)?, None)),
        Some((address, port)) => Ok((read_address(address)?, Some(read_port(port)?))),
        None => Ok((read_address(text)?, None)),
    }
}

/// Reads an address without brackets; refuses the second spelling of an IPv4 address.
pub(crate) fn read_address(text: &str) -> Result<IpAddr, TextError> {
    match text.parse() {
        Ok(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(ipv4) => Err(TextError::MappedAddress {
                seen: excerpt(text),
                ipv4,
            }),
            None => Ok(IpAddr::V6(address)),
        },
        Ok(address) => Ok(address),
        Err(_) => Err(TextError::NotAnAddress {
            seen: excerpt(text),
        }),
    }
}

fn read_port(text: &str) -> Result<u16, TextError> {
    match digits(text) {
        Some(0) | None => Err(TextError::NotAPort {
            seen: excerpt(text),
        }),
        Some(port) => Ok(port),
    }
}

fn write_endpoint(f: &mut fmt::Formatter<'_>, address: IpAddr, port: Option<u16>) -> fmt::Result {
    match (address, port) {
        (IpAddr::V6(address), Some(port)) => write!(f, "[{address}]:{port}"),
        (address, Some(port)) => write!(f, "{address}:{port}"),
        (address, None) => write!(f, "{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<T: FromStr<Err = TextError> + fmt::Debug>(text: &str) -> String {
        text.parse::<T>().expect_err(text).to_string()
    }

    #[test]
    fn services_are_read_and_written_in_their_canonical_form() {
        for (text, canonical) in [
            ("10.1.0.1", "10.1.0.1"),
            ("10.1.0.1:80", "10.1.0.1:80"),
            ("10.1.0.1:080/tcp", "10.1.0.1:80/tcp"),
            ("10.1.0.1/udp", "10.1.0.1/udp"),
            ("10.1.0.1/icmp", "10.1.0.1/icmp"),
            ("fd00::1", "fd00::1"),
            ("fd00::1:80", "fd00::1:80"),
            ("FD00:0::1/icmp", "fd00::1/icmp"),
            ("[fd00::1]", "fd00::1"),
            ("[fd00::1]/tcp", "fd00::1/tcp"),
            ("[fd00::1]:53/udp", "[fd00::1]:53/udp"),
        ] {
            assert_eq!(text.parse::<Service>().expect(text).to_string(), canonical);
        }
    }

    #[test]
    fn a_service_without_port_and_protocol_is_the_whole_address() {
        let service: Service = "fd00::1:80".parse().expect("an IPv6 address");
        assert_eq!(
            service.address,
            "fd00::1:80".parse::<IpAddr>().expect("an address")
        );
        assert_eq!((service.port, service.protocol), (None, None));
    }

    #[test]
    fn mirrors_are_read_and_written_in_their_canonical_form() {
        for (text, canonical, weight) in [
            ("10.2.0.2", "10.2.0.2", 1),
            ("10.2.0.2:80*3", "10.2.0.2:80*3", 3),
            ("10.2.0.2*1", "10.2.0.2", 1),
            ("10.2.0.2*0", "10.2.0.2*0", 0),
            ("fd00::2*65535", "fd00::2*65535", 65_535),
            ("[fd00::2]:80*07", "[fd00::2]:80*7", 7),
        ] {
            let mirror = text.parse::<Mirror>().expect(text);
            assert_eq!(
                (mirror.to_string().as_str(), mirror.weight),
                (canonical, weight)
            );
        }
    }

    #[test]
    fn refusals_of_addresses_say_what_was_seen_and_what_is_expected() {
        for (text, sentence) in [
            (
                "www.example.org:80",
                "\"www.example.org\" is not an IP address; expected one such as 10.1.0.1 or \
                 fd00::1 (names are not looked up)",
            ),
            (
                "",
                "\"\" is not an IP address; expected one such as 10.1.0.1 or fd00::1 (names are \
                 not looked up)",
            ),
            (
                "[::ffff:10.1.0.1]:80",
                "\"::ffff:10.1.0.1\" is an IPv4-mapped IPv6 address; write 10.1.0.1",
            ),
            (
                "::ffff:a01:1",
                "\"::ffff:a01:1\" is an IPv4-mapped IPv6 address; write 10.1.0.1",
            ),
            (
                "[10.1.0.1]:80",
                "\"10.1.0.1\" in brackets is not an IPv6 address; expected one such as [fd00::1]",
            ),
            (
                "[fd00::1",
                "\"[fd00::1\" has no closing bracket; expected [IPv6] or [IPv6]:PORT",
            ),
            (
                "[fd00::1]80",
                "\"80\" follows the closing bracket; expected :PORT or nothing",
            ),
            (
                "10.1.0.1:0",
                "\"0\" is not a port; expected a number from 1 to 65535",
            ),
            (
                "10.1.0.1:65536",
                "\"65536\" is not a port; expected a number from 1 to 65535",
            ),
            (
                "[fd00::1]:",
                "\"\" is not a port; expected a number from 1 to 65535",
            ),
        ] {
            assert_eq!(refusal::<Service>(text), sentence);
            assert_eq!(refusal::<Mirror>(text), sentence);
            assert_eq!(refusal::<MirrorAddress>(text), sentence);
        }
    }

    #[test]
    fn refusals_of_protocols_say_where_they_belong() {
        assert_eq!(
            refusal::<Service>("10.1.0.1:80/icmp"),
            "protocol icmp has no ports, but port 80 was given with /icmp; leave out the one or the other"
        );
        assert_eq!(
            refusal::<Service>("10.1.0.1:80/sctp"),
            "\"sctp\" is not a protocol; expected tcp, udp, icmp or the number of another IP protocol"
        );
        let sentence = "a mirror has no protocol of its own, but \"/tcp\" was given; write it \
                        after the service";
        assert_eq!(refusal::<Mirror>("10.2.0.2:80/tcp"), sentence);
        assert_eq!(refusal::<MirrorAddress>("10.2.0.2:80/tcp"), sentence);
    }

    #[test]
    fn refusals_of_weights_say_what_a_weight_is() {
        for weight in ["", "-1", "65536", "3*4"] {
            assert_eq!(
                refusal::<Mirror>(&format!("10.2.0.2:80*{weight}")),
                format!("\"{weight}\" is not a weight; expected a number from 0 to 65535")
            );
        }
        assert_eq!(
            refusal::<MirrorAddress>("10.2.0.2*3"),
            "a weight has no meaning here, but \"*3\" was given; expected IP or IP:PORT"
        );
    }
}
