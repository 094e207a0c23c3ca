//! Peeking diversions: which names' queries they take.

use serde::{Deserialize, Serialize};

use crate::address::Service;
use crate::names::DomainName;
use crate::prefix::ClientPrefix;

/// The most names that one peeking diversion takes: as many as a naming server lists.
pub const MAX_PEEK_NAMES: usize = 100_000;

/// Says which names' queries a peeking diversion ([`crate::Divert::peek`]) takes, in place of those that it
/// took before. A list that is too long for one request is told in parts, and counts when the last of them has
/// come: all but the last say `more`, all but the first say `continues`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeekNames {
    /// The diversion's service.
    pub service: Service,
    /// The diversion's clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ClientPrefix>,
    /// The names; at most [`MAX_PEEK_NAMES`] in all parts together.
    pub names: Vec<DomainName>,
    /// These names come after those of the part before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// Another part follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// Answer to [`PeekNames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeekNamesResult {
    /// How many names have been told; when that was the last part: how many the diversion takes.
    pub names: u64,
}

/// That a diversion peeks, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeekInfo {
    /// How many names' queries it takes; `None`: it was told none yet, and takes none.
    pub names: Option<u64>,
}
