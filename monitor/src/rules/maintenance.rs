//! Planned maintenance of a mirror: when it is not to be used, and is to be emptied before.

use std::str::FromStr;
use std::time::Duration;

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::Disambiguation;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use thiserror::Error;

use super::config::from_text;

/// How long before the maintenance its connections are begun to be moved, unless said otherwise.
const USUAL_DRAIN: Duration = Duration::from_secs(10 * 60);

/// One entry of `maintenance` in `[[mirror]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceConfig {
    /// From when on the mirror isn't used.
    #[serde(deserialize_with = "from_text")]
    pub from: Moment,
    /// Until when.
    #[serde(deserialize_with = "from_text")]
    pub until: Moment,
    /// How long before that its connections are begun to be moved.
    #[serde(default = "usual_drain", with = "humantime_serde")]
    pub drain: Duration,
}

fn usual_drain() -> Duration {
    USUAL_DRAIN
}

/// A moment, written by the clock of a zone (`2026-12-01T22:00[Europe/London]`, RFC 9557) or with an
/// offset (`2026-12-01T22:00:00Z`, RFC 3339).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub Timestamp);

/// Why a text is no [`Moment`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "\"{text}\" is no moment ({reason}); expected one such as 2026-12-01T22:00[Europe/London] or \
     2026-12-01T22:00:00Z"
)]
pub struct MomentError {
    text: String,
    reason: String,
}

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        // A time that the clock shows twice or never isn't guessed at.
        let parser = DateTimeParser::new().disambiguation(Disambiguation::Reject);
        let moment = if text.contains('[') {
            parser.parse_zoned(text).map(|zoned| zoned.timestamp())
        } else {
            parser.parse_timestamp(text)
        };
        moment.map(Self).map_err(|error| MomentError {
            text: text.to_owned(),
            reason: error.to_string(),
        })
    }
}

/// Why maintenance can't be planned so. Entries are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MaintenanceError {
    /// It ends before it begins.
    #[error("maintenance {number}: until {until} is not after from {from}")]
    Backwards {
        /// Which.
        number: usize,
        /// Its beginning.
        from: Timestamp,
        /// Its end.
        until: Timestamp,
    },
    /// The drain would have to begin before time does.
    #[error("maintenance {number}: drain {} is too long", humantime::format_duration(*.drain))]
    LongDrain {
        /// Which.
        number: usize,
        /// How long.
        drain: Duration,
    },
    /// Two of a mirror at the same time.
    #[error("maintenance {first} and {second} overlap; make one of them")]
    Overlap {
        /// The one that begins first.
        first: usize,
        /// The other.
        second: usize,
    },
}

/// A mirror's maintenance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// In order; none overlap, but a drain may begin before the last one ends.
    windows: Vec<Window>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    drain: Timestamp,
    from: Timestamp,
    until: Timestamp,
}

/// What maintenance means for a mirror at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaintenanceState {
    /// None, and none to come.
    None,
    /// None yet.
    Planned {
        /// When the mirror begins to be drained.
        drains: Timestamp,
        /// When the maintenance begins.
        begins: Timestamp,
    },
    /// New connections go elsewhere, and existing ones are moved.
    Draining {
        /// By when there are to be none; the maintenance begins then.
        deadline: Timestamp,
    },
    /// The mirror isn't used.
    Down {
        /// When it is used again.
        until: Timestamp,
    },
}

impl Maintenance {
    /// Makes sense of a mirror's entries, which may be in any order.
    ///
    /// # Errors
    /// The first entry that can't be, or two that overlap.
    pub fn compile(configs: &[MaintenanceConfig]) -> Result<Self, MaintenanceError> {
        let mut windows = Vec::new();
        for (number, config) in (1..).zip(configs) {
            let (from, until, drain) = (config.from.0, config.until.0, config.drain);
            if until <= from {
                return Err(MaintenanceError::Backwards {
                    number,
                    from,
                    until,
                });
            }
            let drain = SignedDuration::try_from(drain)
                .and_then(|drain| from.checked_sub(drain))
                .map_err(|_| MaintenanceError::LongDrain { number, drain })?;
            windows.push((Window { drain, from, until }, number));
        }
        windows.sort_by_key(|(window, _)| window.from);
        for ((earlier, first), (later, second)) in windows.iter().zip(windows.iter().skip(1)) {
            if later.from < earlier.until {
                return Err(MaintenanceError::Overlap {
                    first: *first,
                    second: *second,
                });
            }
        }
        Ok(Self {
            windows: windows.into_iter().map(|(window, _)| window).collect(),
        })
    }

    /// What it means now.
    pub fn state(&self, now: Timestamp) -> MaintenanceState {
        let Some(window) = self.windows.iter().find(|window| now < window.until) else {
            return MaintenanceState::None;
        };
        let Window { drain, from, until } = *window;
        if now < drain {
            MaintenanceState::Planned {
                drains: drain,
                begins: from,
            }
        } else if now < from {
            MaintenanceState::Draining { deadline: from }
        } else {
            MaintenanceState::Down { until }
        }
    }

    /// When [`Maintenance::state`] gives another answer than now; `None`: never.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        match self.state(now) {
            MaintenanceState::None => None,
            MaintenanceState::Planned { drains, .. } => Some(drains),
            MaintenanceState::Draining { deadline } => Some(deadline),
            MaintenanceState::Down { until } => Some(until),
        }
    }
}
