//! A rule as it stands in the file. What can be wrong with one word (a prefix, a day, a zone) is found
//! here, where the file's line is known; what can be wrong with a whole rule is found by
//! [`Rules::compile`](super::Rules::compile).

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use control_protocol::ClientPrefix;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::times::{Days, Hours, Zone};

/// One `[[service.rule]]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleConfig {
    /// What people call it.
    pub name: Option<String>,
    /// When it holds; none: always.
    pub when: Option<WhenConfig>,
    /// For which clients; empty: for all.
    #[serde(deserialize_with = "one_or_many")]
    pub from: Vec<ClientPrefix>,
    /// For clients at which places; empty: anywhere.
    #[serde(deserialize_with = "one_or_many")]
    pub location: Vec<String>,
    /// Only these mirrors; empty: any.
    #[serde(deserialize_with = "one_or_many")]
    pub mirrors: Vec<String>,
    /// Fixed shares by mirror; those not named get none.
    pub shares: Option<BTreeMap<String, f64>>,
    /// These mirrors first.
    #[serde(deserialize_with = "one_or_many")]
    pub prefer: Vec<String>,
    /// The mirrors for what the preferred ones have no room for; empty: all others.
    #[serde(deserialize_with = "one_or_many")]
    pub overflow: Vec<String>,
    /// From which percentage of the preferred mirrors' capacity on they have no room.
    pub overflow_at: Option<f64>,
}

/// The times at which a rule holds.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhenConfig {
    /// On which days; empty: on all.
    #[serde(deserialize_with = "one_or_many")]
    pub days: Vec<Days>,
    /// Between which hours of these days; empty: all day.
    #[serde(deserialize_with = "one_or_many")]
    pub hours: Vec<Hours>,
    /// Whose clock counts.
    #[serde(deserialize_with = "from_text")]
    pub zone: Zone,
}

/// Reads `"a"` or `["a", "b"]`, but not an empty list, which could mean all or nothing.
fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    deserializer.deserialize_any(OneOrMany(PhantomData))
}

struct OneOrMany<T>(PhantomData<T>);

impl<'de, T: FromStr<Err: Display>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![text.parse().map_err(E::custom)?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(text) = texts.next_element::<String>()? {
            values.push(text.parse().map_err(A::Error::custom)?);
        }
        if values.is_empty() {
            return Err(A::Error::custom("an empty list; leave it out instead"));
        }
        Ok(values)
    }
}

/// Reads what is written as a text.
fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    String::deserialize(deserializer)?
        .parse()
        .map_err(D::Error::custom)
}
