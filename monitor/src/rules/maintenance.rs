//! Planned maintenance of a mirror: when it is not to be used, and is to be emptied before.

use std::str::FromStr;
use std::time::Duration;

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::Disambiguation;
use jiff::{SignedDuration, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use thiserror::Error;
use toml::value::Datetime;

/// How long before the maintenance its connections are begun to be moved, unless said otherwise.
const USUAL_DRAIN: Duration = Duration::from_secs(10 * 60);

/// One entry of `maintenance` in `[[mirror]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceConfig {
    /// From when on the mirror isn't used.
    pub from: Moment,
    /// Until when.
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

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// TOML has moments of its own, which need no quotes.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a moment such as 2026-12-01T22:00:00Z")]
        enum Written {
            Text(String),
            Datetime(Datetime),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Text(text) => text,
            Written::Datetime(datetime) => datetime.to_string(),
        };
        text.parse().map_err(D::Error::custom)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Mirror {
        maintenance: Vec<MaintenanceConfig>,
    }

    fn configs(text: &str) -> Result<Vec<MaintenanceConfig>, String> {
        toml::from_str::<Mirror>(text)
            .map(|mirror| mirror.maintenance)
            .map_err(|error| error.to_string())
    }

    fn maintenance(text: &str) -> Maintenance {
        Maintenance::compile(&configs(text).expect(text)).expect(text)
    }

    fn refusal(text: &str) -> String {
        Maintenance::compile(&configs(text).expect(text))
            .expect_err(text)
            .to_string()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    #[test]
    fn a_mirror_is_drained_before_it_is_down() {
        let maintenance = maintenance(
            r#"maintenance = [
                { from = "2026-12-02T01:00Z", until = "2026-12-02T02:00Z" },
                { from = "2026-12-01T22:00[Europe/Berlin]", until = 2026-12-01T23:00:00Z, drain = "15m" },
            ]"#,
        );
        let drains = at("2026-12-01T20:45:00Z");
        let begins = at("2026-12-01T21:00:00Z");
        let second = at("2026-12-02T01:00:00Z");
        for (now, state) in [
            (
                "2026-12-01T20:44:59Z",
                MaintenanceState::Planned { drains, begins },
            ),
            (
                "2026-12-01T20:45:00Z",
                MaintenanceState::Draining { deadline: begins },
            ),
            (
                "2026-12-01T20:59:59Z",
                MaintenanceState::Draining { deadline: begins },
            ),
            (
                "2026-12-01T21:00:00Z",
                MaintenanceState::Down {
                    until: at("2026-12-01T23:00:00Z"),
                },
            ),
            (
                "2026-12-01T23:00:00Z",
                MaintenanceState::Planned {
                    drains: at("2026-12-02T00:50:00Z"),
                    begins: second,
                },
            ),
            (
                "2026-12-02T00:50:00Z",
                MaintenanceState::Draining { deadline: second },
            ),
            (
                "2026-12-02T01:59:59Z",
                MaintenanceState::Down {
                    until: at("2026-12-02T02:00:00Z"),
                },
            ),
            ("2026-12-02T02:00:00Z", MaintenanceState::None),
        ] {
            assert_eq!(maintenance.state(at(now)), state, "{now}");
        }
        let next = |now: &Timestamp| maintenance.next_change(*now);
        let changes = std::iter::successors(Some(at("2026-12-01T00:00:00Z")), next).skip(1);
        let changes: Vec<String> = changes.map(|moment| moment.to_string()).collect();
        assert_eq!(
            changes,
            [
                "2026-12-01T20:45:00Z",
                "2026-12-01T21:00:00Z",
                "2026-12-01T23:00:00Z",
                "2026-12-02T00:50:00Z",
                "2026-12-02T01:00:00Z",
                "2026-12-02T02:00:00Z"
            ]
        );
    }

    #[test]
    fn a_mirror_that_is_down_is_not_drained() {
        let maintenance = maintenance(
            r#"maintenance = [
                { from = "2026-12-01T10:00Z", until = "2026-12-01T11:00Z", drain = "0s" },
                { from = "2026-12-01T11:00Z", until = "2026-12-01T12:00Z", drain = "30m" },
            ]"#,
        );
        let down = |until| MaintenanceState::Down { until: at(until) };
        assert_eq!(
            maintenance.state(at("2026-12-01T10:00:00Z")),
            down("2026-12-01T11:00:00Z")
        );
        assert_eq!(
            maintenance.state(at("2026-12-01T10:45:00Z")),
            down("2026-12-01T11:00:00Z")
        );
        assert_eq!(
            maintenance.state(at("2026-12-01T11:00:00Z")),
            down("2026-12-01T12:00:00Z")
        );
    }

    #[test]
    fn summer_time_is_known() {
        let maintenance = maintenance(
            r#"maintenance = [
                { from = "2026-07-01T22:00[Europe/London]", until = "2026-07-01T22:30Z" },
            ]"#,
        );
        assert_eq!(
            maintenance.state(at("2026-07-01T21:00:00Z")),
            MaintenanceState::Down {
                until: at("2026-07-01T22:30:00Z")
            }
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(
            refusal(
                r#"maintenance = [{ from = "2026-12-01T10:00Z", until = "2026-12-01T10:00Z" }]"#
            ),
            "maintenance 1: until 2026-12-01T10:00:00Z is not after from 2026-12-01T10:00:00Z"
        );
        assert_eq!(
            refusal(
                r#"maintenance = [
                    { from = "2026-12-01T10:00Z", until = "2026-12-01T12:00Z" },
                    { from = "2026-12-01T09:00Z", until = "2026-12-01T10:00:01Z" },
                ]"#
            ),
            "maintenance 2 and 1 overlap; make one of them"
        );
        assert_eq!(
            refusal(
                r#"maintenance = [
                    { from = "2026-12-01T10:00Z", until = "2026-12-01T12:00Z", drain = "20000years" },
                ]"#
            ),
            "maintenance 1: drain 20000years is too long"
        );
    }

    #[test]
    fn of_a_time_that_the_clock_shows_twice_the_offset_tells_which() {
        let maintenance = maintenance(
            r#"maintenance = [
                { from = "2026-10-25T01:30+00:00[Europe/London]", until = "2026-10-25T02:00Z" },
            ]"#,
        );
        assert_eq!(
            maintenance.state(at("2026-10-25T01:29:59Z")),
            MaintenanceState::Draining {
                deadline: at("2026-10-25T01:30:00Z")
            }
        );
    }

    #[test]
    fn what_is_no_moment_is_refused_with_its_line() {
        for (from, expected) in [
            ("\"2026-12-01T22:00\"", "\"2026-12-01T22:00\" is no moment"),
            (
                "2026-12-01T22:00:00",
                "\"2026-12-01T22:00:00\" is no moment",
            ),
            ("\"2026-12-01T22:00[Europe/Lodnon]\"", "Europe/Lodnon"),
            ("\"2026-03-29T01:30[Europe/London]\"", "is no moment"),
            ("\"2026-10-25T01:30[Europe/London]\"", "is no moment"),
            ("\"2026-12-01T22:00+05:00[Europe/London]\"", "is no moment"),
            ("\"2026-02-29T22:00Z\"", "is no moment"),
            ("10", "expected"),
        ] {
            let text =
                format!("maintenance = [\n{{ from = {from}, until = \"2030-01-01T00:00Z\" }} ]");
            let error = configs(&text).expect_err(&text);
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("line 2"), "{error}");
        }
    }
}
