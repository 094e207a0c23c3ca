//! What all text forms share: the error that says what is wrong with a text, and the glue that makes
//! JSON carry a value as its text.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// A text that is not what was expected in its place.
///
/// Each message is a sentence that shows what was seen and says what would have been right. What was
/// seen is escaped and cut to its first 64 characters, so that a message can go to a terminal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// Neither an IPv4 nor an IPv6 address; often a host name or a typing error.
    #[error(
        "\"{seen}\" is not an IP address; expected one such as 10.1.0.1 or fd00::1 (names are not \
         looked up)"
    )]
    NotAnAddress {
        /// The part of the text where the address should be.
        seen: String,
    },
    /// An IPv6 address of the form `::ffff:a.b.c.d`. One address must have one spelling, or a
    /// diversion and a packet could miss each other.
    #[error("\"{seen}\" is an IPv4-mapped IPv6 address; write {ipv4}")]
    MappedAddress {
        /// The address as it was written.
        seen: String,
        /// The IPv4 address that it stands for.
        ipv4: Ipv4Addr,
    },
    /// Square brackets around something other than an IPv6 address.
    #[error("\"{seen}\" in brackets is not an IPv6 address; expected one such as [fd00::1]")]
    NotAnIpv6Address {
        /// What stands between the brackets.
        seen: String,
    },
    /// An opening bracket without its partner.
    #[error("\"{seen}\" has no closing bracket; expected [IPv6] or [IPv6]:PORT")]
    UnclosedBracket {
        /// The text from the opening bracket on.
        seen: String,
    },
    /// Something other than a port after `[IPv6]`.
    #[error("\"{seen}\" follows the closing bracket; expected :PORT or nothing")]
    AfterBracket {
        /// What follows the bracket.
        seen: String,
    },
    /// Not a number, zero, or too large a number.
    #[error("\"{seen}\" is not a port; expected a number from 1 to 65535")]
    NotAPort {
        /// The part of the text where the port should be.
        seen: String,
    },
    /// A port together with `/icmp`. An echo has an identifier, which belongs to one connection, but
    /// no port.
    #[error(
        "protocol {protocol} has no ports, but port {port} was given with /{protocol}; leave out the \
         one or the other"
    )]
    PortWithoutPorts {
        /// The port that was written.
        port: u16,
        /// The protocol that has none.
        protocol: crate::Protocol,
    },
    /// A protocol after a mirror. A connection keeps its protocol, so only the service names one.
    #[error(
        "a mirror has no protocol of its own, but \"/{seen}\" was given; write it after the service"
    )]
    ProtocolWithMirror {
        /// What follows the slash.
        seen: String,
    },
    /// A weight where a mirror is only looked for.
    #[error("a weight has no meaning here, but \"*{seen}\" was given; expected IP or IP:PORT")]
    WeightWithAddress {
        /// What follows the star.
        seen: String,
    },
    /// Not a number, or too large a number.
    #[error("\"{seen}\" is not a weight; expected a number from 0 to 65535")]
    NotAWeight {
        /// What follows the star.
        seen: String,
    },
    /// Not a number, or more bits than the address has.
    #[error("\"{seen}\" is not a prefix length; expected a number from 0 to {longest}")]
    NotAPrefixLength {
        /// What follows the slash.
        seen: String,
        /// Bits of an address of this family: 32 or 128.
        longest: u8,
    },
    /// A prefix whose address has bits set beyond its length.
    #[error("{address}/{} has bits set beyond its length; write {network}, or {address} for that one client", network.prefix_len())]
    HostBits {
        /// The address as it was written.
        address: IpAddr,
        /// The prefix that was probably meant.
        network: IpNet,
    },
    /// Not a name that can be in the DNS.
    #[error("\"{seen}\" is not a name: {reason}")]
    NotAName {
        /// The whole text.
        seen: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not a number, 0, or more than 100.
    #[error("\"{seen}\" is not a percentage; expected a number from 1 to 100")]
    NotAPercent {
        /// The whole text.
        seen: String,
    },
    /// Not a place in the list of connections as the daemon hands it out.
    #[error("\"{seen}\" is not a cursor; pass on the `next` of an earlier answer as it came")]
    NotACursor {
        /// The whole text.
        seen: String,
    },
    /// A word that isn't one of a fixed list.
    #[error("\"{seen}\" is not a {kind}; expected {expected}")]
    UnknownWord {
        /// What the word stands for, such as "protocol".
        kind: &'static str,
        /// The word.
        seen: String,
        /// The words that are known, as an enumeration to be read.
        expected: &'static str,
    },
}

/// The beginning of a text from outside, escaped, for use in a message.
pub(crate) fn excerpt(text: &str) -> String {
    /// Characters of the text that are shown before it is cut.
    const SHOWN: usize = 64;
    let mut shown: String = text
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// A number of decimal digits only: no sign, no space, not empty.
pub(crate) fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// Makes JSON carry a type with `FromStr` and `Display` as a string; the second argument says what is
/// expected when something other than a string comes.
macro_rules! json_as_text {
    ($type:ty, $expected:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use json_as_text;

/// Gives an enum of plain variants one word each: `as_str`, `Display`, `FromStr`, and JSON.
macro_rules! words {
    ($type:ident, $kind:literal, $expected:literal, { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word that stands for this value in text and in JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::TextError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::TextError::UnknownWord {
                        kind: $kind,
                        seen: $crate::text::excerpt(text),
                        expected: $expected,
                    }),
                }
            }
        }

        $crate::text::json_as_text!($type, $expected);
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_escaped_and_cut() {
        assert_eq!(excerpt("plain"), "plain");
        assert_eq!(excerpt("\u{1b}[31m\"\n"), "\\u{1b}[31m\\\"\\n");
        assert_eq!(excerpt(&"é".repeat(65)), format!("{}…", "é".repeat(64)));
    }

    #[test]
    fn digits_take_no_sign_and_no_space() {
        assert_eq!(digits::<u16>("80"), Some(80));
        for text in ["", "+80", "-1", " 80", "80 ", "65536", "8o"] {
            assert_eq!(digits::<u16>(text), None, "{text:?}");
        }
    }
}
