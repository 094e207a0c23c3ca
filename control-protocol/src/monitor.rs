//! What the monitor answers: its decisions, and what it thinks of the mirrors.
//!
//! Numbers are finite, or `null` where they aren't known. JSON has no others, so whoever puts a result
//! together has to see to that.

use serde::{Deserialize, Serialize};

use crate::address::Service;
use crate::text::words;

/// Answer to [`crate::DecisionsQuery`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionsResult {
    /// The decisions, the latest one last.
    pub decisions: Vec<Decision>,
}

/// Something that the monitor has decided, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Its number, from 1 on since the monitor started; later ones have greater ones.
    pub number: u64,
    /// When it was taken, by the wall clock (RFC 3339).
    pub at: String,
    /// How long ago that is, in milliseconds.
    pub age_ms: u64,
    /// What it is about; `None`: about no service in particular.
    pub service: Option<Service>,
    /// For which clients: `everyone`, or the name of a group of clients.
    pub clients: String,
    /// What was decided, in a word such as `weights`, `redirect`, `failover`, `recover`, `drain`,
    /// `rule`, `start` or `none`. There may be more in later versions.
    pub kind: String,
    /// Why, in a sentence for people.
    pub reason: String,
    /// The mirrors' shares of new connections before.
    pub from: Vec<MirrorShare>,
    /// Their shares from then on.
    pub to: Vec<MirrorShare>,
    /// What a request cost before, by the model, in milliseconds.
    pub cost_before_ms: Option<f64>,
    /// What it was to cost afterwards.
    pub cost_after_ms: Option<f64>,
    /// By how much less that is, in hundredths.
    pub improvement_percent: Option<f64>,
    /// Existing connections that were moved.
    pub moved: u64,
    /// What the rewriters were told, as one would tell them with `shuntctl`.
    pub instructions: Vec<String>,
    /// What went wrong with that.
    pub errors: Vec<String>,
}

/// A mirror's share of the new connections of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorShare {
    /// The mirror's name.
    pub mirror: String,
    /// Its share, from 0 to 1.
    pub share: f64,
}

/// Answer to [`crate::Mirrors`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorsResult {
    /// Every mirror that the monitor was told of.
    pub mirrors: Vec<MirrorState>,
}

/// What the monitor thinks of a mirror.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorState {
    /// Its name.
    pub name: String,
    /// Its address, with or without a port.
    pub address: String,
    /// Whether it can be given requests.
    pub state: Health,
    /// What an operator wishes for it.
    pub wish: Wish,
    /// Why its state is what it is, in a sentence for people.
    pub reason: String,
    /// Requests a second that it is given.
    pub rate: f64,
    /// From a request to the beginning of its answer, in milliseconds.
    pub response_ms: Option<f64>,
    /// Requests a second that it can answer, by the model.
    pub capacity: Option<f64>,
    /// What one request takes it when there is no other, in milliseconds, by the model.
    pub service_time_ms: Option<f64>,
    /// The part of its capacity that is used: 0 to 1, or more while it falls behind.
    pub utilisation: Option<f64>,
    /// By how much the model is wrong about its response time, in hundredths of it.
    pub model_error_percent: Option<f64>,
    /// Connections that are on it.
    pub connections: u64,
    /// The most that it may be given of what it would otherwise get, from 0 to 1: less than 1 for a while
    /// after it has recovered.
    pub share_cap: f64,
    /// What each of its checks says.
    pub checks: Vec<CheckState>,
}

/// What a check of a mirror says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckState {
    /// What kind of check it is, such as `tcp` or `http`.
    pub kind: String,
    /// What it says.
    pub state: Health,
    /// What it saw, in words for people.
    pub detail: String,
    /// How long the last one took, in milliseconds.
    pub latency_ms: Option<f64>,
}

/// Whether a mirror can be given requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// It answers.
    Up,
    /// It doesn't.
    Down,
    /// It isn't known yet.
    #[default]
    Unknown,
}

words!(Health, "state of a mirror", "up, down or unknown", {
    Up => "up",
    Down => "down",
    Unknown => "unknown",
});

/// What an operator wishes for a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Wish {
    /// Nothing in particular.
    #[default]
    None,
    /// No new connections; those that it has may end in their own time.
    Drain,
    /// No connections at all.
    Maintenance,
}

words!(Wish, "wish for a mirror", "none, drain or maintenance", {
    None => "none",
    Drain => "drain",
    Maintenance => "maintenance",
});
