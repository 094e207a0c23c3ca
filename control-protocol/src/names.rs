//! What is said to the naming server: which names it answers by itself, and with what.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::{Mirror, read_address};
use crate::method::{null_is_default, page_limit};
use crate::text::{TextError, digits, excerpt, json_as_text};

/// The longest time to live, in seconds: a week. Longer ones would be remembered long after what they said
/// has changed.
pub const MAX_TTL: u32 = 604_800;

/// A name in the DNS, in lower case and without a dot at its end, such as `www.bt.com`; or with `*.` before
/// it, which stands for all names below it that aren't named themselves.
///
/// Labels consist of letters, digits, hyphens and underscores. Names of other scripts have a form of that
/// kind, which begins with `xn--` (RFC 5890).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(String);

impl DomainName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let refused = |reason| TextError::NotAName {
            seen: excerpt(text),
            reason,
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        let labels = name.strip_prefix("*.").unwrap_or(name);
        // Each label has a byte before it, and the end one more: 255 in all (RFC 1035, section 3.1).
        if name.len() > 253 {
            return Err(refused("a name has at most 253 characters"));
        }
        for label in labels.split('.') {
            match label.len() {
                0 => return Err(refused("there must be something on both sides of each dot")),
                1..=63 => {}
                _ => return Err(refused("between two dots are at most 63 characters")),
            }
            if !label.is_ascii() {
                return Err(refused(
                    "names of other scripts are written in their xn-- form",
                ));
            }
            let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if !label.bytes().all(is_usual) {
                return Err(refused(
                    "expected letters, digits, hyphens and underscores, and perhaps *. at the beginning",
                ));
            }
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

json_as_text!(DomainName, "a name such as \"www.bt.com\" or \"*.bt.com\"");

/// An address that a name has.
///
/// Text: `IP[*WEIGHT]`, such as `10.2.0.3` or `10.2.0.3*3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameAddress {
    /// The address.
    pub address: IpAddr,
    /// How often it comes first, in proportion to the others of its family; 0: it isn't given out.
    pub weight: u16,
}

impl FromStr for NameAddress {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let (address, weight) = match text.split_once('*') {
            None => (text, Mirror::DEFAULT_WEIGHT),
            Some((address, weight)) => {
                let not_a_weight = || TextError::NotAWeight {
                    seen: excerpt(weight),
                };
                (address, digits(weight).ok_or_else(not_a_weight)?)
            }
        };
        Ok(Self {
            address: read_address(address)?,
            weight,
        })
    }
}

impl fmt::Display for NameAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight {
            Mirror::DEFAULT_WEIGHT => write!(f, "{}", self.address),
            weight => write!(f, "{}*{weight}", self.address),
        }
    }
}

json_as_text!(
    NameAddress,
    "an address such as \"10.2.0.3\" or \"10.2.0.3*3\""
);

/// Lists a name, or replaces all that was listed for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameSet {
    /// The name.
    pub name: DomainName,
    /// How long clients may remember the answers, in seconds, at most [`MAX_TTL`]; `None`: as long as the
    /// server's configuration says.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "ttl"
    )]
    pub ttl: Option<u32>,
    /// What it has.
    #[serde(flatten)]
    pub records: NameRecords,
}

/// The records of a name. There is at least one; with `cname` there is no other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NameRecords {
    /// Its addresses: A and AAAA records.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub addresses: Vec<NameAddress>,
    /// The name that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cname: Option<DomainName>,
    /// Its HTTPS records (RFC 9460), in the form of zone files, such as `1 . alpn=h2`.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub https: Vec<String>,
    /// Its SVCB records (RFC 9460), in the form of zone files.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub svcb: Vec<String>,
    /// Its SRV records (RFC 2782), in the form of zone files, such as `0 5 80 www.bt.com.`.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub srv: Vec<String>,
    /// Its TXT records, each a text.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub txt: Vec<String>,
}

/// Answer to [`NameSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameSetResult {
    /// Whether the name was listed before.
    pub replaced: bool,
}

/// Lists a name no longer: from now on, queries for it go to the DNS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameUnset {
    /// The name.
    pub name: DomainName,
}

/// Answer to [`NameUnset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameUnsetResult {
    /// How many queries have been answered with what was listed for it since the server started.
    pub answered: u64,
}

/// Asks for one page of the names, which are in the order of their texts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameList {
    /// The page begins behind this name; `None`: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DomainName>,
    /// The most names in the page, from 1 to [`crate::MAX_PAGE`], which `None` stands for.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "page_limit"
    )]
    pub limit: Option<u32>,
}

/// Answer to [`NameList`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameListResult {
    /// Grows with each change, and is the same as long as nothing changes; starts anew with the server.
    pub version: u64,
    /// The names.
    pub names: Vec<NameInfo>,
    /// What to ask for the next page with; `None`: this was the last one.
    pub next: Option<DomainName>,
}

/// A name as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameInfo {
    /// The name.
    pub name: DomainName,
    /// How long clients may remember the answers, in seconds.
    pub ttl: u32,
    /// How many queries have been answered with it since the server started.
    pub answered: u64,
    /// What it has.
    #[serde(flatten)]
    pub records: NameRecords,
}

/// Lists all names of a zone file (RFC 1035, section 5), each with all its records, in place of what was
/// listed for them before. Either all are listed, or none. Records of types that can't be listed are left
/// out; names that have no other are not listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameImport {
    /// The file's text. It can't include other files.
    pub zone: String,
    /// What names without a dot at their end are below of, unless the text says so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<DomainName>,
    /// The time to live of every name, in seconds; `None`: the shortest of each name's records.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "ttl"
    )]
    pub ttl: Option<u32>,
}

/// Answer to [`NameImport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameImportResult {
    /// How many names the text had.
    pub names: u64,
    /// How many of them were listed before.
    pub replaced: u64,
    /// How many records were left out, by their type.
    pub skipped: BTreeMap<String, u64>,
}

fn ttl<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match Option::deserialize(deserializer)? {
        Some(ttl) if ttl > MAX_TTL => Err(D::Error::custom(format!(
            "`ttl` is {ttl}; expected a number from 0 to {MAX_TTL}, which is a week"
        ))),
        ttl => Ok(ttl),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_leniently_and_written_in_one_way() {
        for (text, name) in [
            ("www.bt.com", "www.bt.com"),
            ("WWW.bt.com.", "www.bt.com"),
            ("*.bt.com", "*.bt.com"),
            ("_sip._tcp.bt.com", "_sip._tcp.bt.com"),
            ("localhost", "localhost"),
        ] {
            let read: DomainName = text.parse().expect(text);
            assert_eq!(read.to_string(), name);
        }
        let long = format!("{}.com", "x".repeat(64));
        for (text, reason) in [
            ("", "on both sides of each dot"),
            (".", "on both sides of each dot"),
            ("a..b", "on both sides of each dot"),
            ("*", "perhaps *. at the beginning"),
            ("a.*.b", "perhaps *. at the beginning"),
            ("w w", "perhaps *. at the beginning"),
            ("münchen.de", "xn-- form"),
            (&long, "at most 63 characters"),
            (&"a.".repeat(127), "at most 253 characters"),
        ] {
            match text.parse::<DomainName>() {
                Err(error) => assert!(error.to_string().contains(reason), "{error}"),
                // 253 characters and a dot at the end are just right.
                Ok(name) => assert_eq!(name.as_str().len(), 253, "{text}"),
            }
        }
    }

    #[test]
    fn addresses_may_have_weights() {
        for text in ["10.2.0.3", "10.2.0.3*3", "fd00::1*0"] {
            let address: NameAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        for text in ["10.2.0.3*", "10.2.0.3*x", "10.2.0.3:80", "www.bt.com"] {
            assert!(text.parse::<NameAddress>().is_err(), "{text}");
        }
    }
}
