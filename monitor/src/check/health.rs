//! What the findings of one mirror's checks amount to. No I/O, and no clock but an argument.
//!
//! Each check has a state of its own. Its first good or bad finding decides it; from then on it takes
//! `fall` bad findings in a row to take it down, and `rise` good ones to bring it up again. An unknown
//! finding doesn't break such a row. But `fall` unknown ones in a row take a check's voice away, unless
//! it was down: nobody has seen for long that the mirror is up.
//!
//! The mirror is down if any of its checks is, and unknown while any of them hasn't been made yet. A
//! check without a voice doesn't count; if none has one, the mirror is unknown.

use std::fmt;
use std::time::{Duration, Instant};

use super::agent::AgentWish;
use super::{CheckConfig, Finding, Verdict};

/// The share of a new latency in the smoothed one, as in RFC 6298's round trips.
const SMOOTHING: f64 = 1.0 / 8.0;

/// The health of one mirror.
#[derive(Debug, Clone)]
pub struct Health {
    checks: Vec<CheckHealth>,
    standing: Standing,
}

/// What is decided of a mirror.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Whether it is well.
    pub state: State,
    /// What its agents wish.
    pub wish: Wish,
    /// The share of its weight that its agents leave it, from 0.0 to 1.0.
    pub weight: f64,
}

/// Whether a mirror is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// Its checks say so.
    Up,
    /// At least one of its checks says that it isn't.
    Down,
    /// Nothing is known yet, or can be known.
    #[default]
    Unknown,
}

/// What a mirror's agents wish to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Wish {
    /// Nothing in particular.
    #[default]
    None,
    /// No new connections; the existing ones may stay.
    Drain,
    /// No connections.
    Maintenance,
}

/// How a mirror's standing has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What it was.
    pub before: Standing,
    /// What it is.
    pub after: Standing,
    /// Why, as a sentence without its full stop.
    pub reason: String,
}

/// One check of a mirror, as far as it is known.
#[derive(Debug, Clone)]
pub struct CheckHealth {
    /// The check's kind, as the configuration names it.
    pub kind: &'static str,
    /// Its state.
    pub state: CheckState,
    /// Since when it has this state; none if it has never been made.
    pub since: Option<Instant>,
    /// When it was last made.
    pub last: Option<Instant>,
    /// What its last finding saw; empty if it has never been made.
    pub detail: String,
    /// The latency of its last finding, if that had one.
    pub latency: Option<Duration>,
    /// The latency of its good findings, smoothed.
    pub smoothed_latency: Option<Duration>,
    rise: u32,
    fall: u32,
    /// How many findings in a row speak against the state.
    against: u32,
    /// How many of the last findings were unknown.
    unknown: u32,
    wish: Wish,
    weight: f64,
    load: Load,
}

/// What one check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckState {
    /// It hasn't been made yet.
    Waiting,
    /// It has been made, but could say nothing, so far or for long.
    Silent,
    /// The mirror is well.
    Up,
    /// The mirror isn't.
    Down,
}

/// The load that a check tells.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    /// It isn't one that tells a load.
    None,
    /// It should have told it, but hasn't.
    Unknown,
    Known(f64),
}

impl Health {
    /// A mirror of which nothing is known yet, watched by `checks`.
    pub fn new(checks: &[CheckConfig]) -> Self {
        Self {
            checks: checks.iter().map(CheckHealth::new).collect(),
            standing: Standing {
                state: State::Unknown,
                wish: Wish::None,
                weight: 1.0,
            },
        }
    }

    /// Takes a finding of the check at `check` in the list that [`new`](Self::new) was given (of no
    /// other: it is ignored), and tells what has changed by it.
    pub fn handle(&mut self, check: usize, finding: Finding, now: Instant) -> Option<Change> {
        let count = self.checks.len();
        let health = self.checks.get_mut(check)?;
        let cause = health.handle(finding, now);
        let name = match count {
            1 => format!("the {} check", health.kind),
            _ => format!("check {} ({})", check + 1, health.kind),
        };
        let detail = health.detail.clone();

        let before = self.standing;
        let after = self.decide();
        self.standing = after;
        (after != before).then(|| Change {
            before,
            after,
            reason: match detail.as_str() {
                "" => format!("{name} {cause}"),
                detail => format!("{name} {cause}: {detail}"),
            },
        })
    }

    fn decide(&self) -> Standing {
        let any = |state| self.checks.iter().any(|check| check.state == state);
        let state = if any(CheckState::Down) {
            State::Down
        } else if any(CheckState::Waiting) || !any(CheckState::Up) {
            State::Unknown
        } else {
            State::Up
        };
        let wishes = self.checks.iter().map(|check| check.wish);
        let weights = self.checks.iter().map(|check| check.weight);
        Standing {
            state,
            wish: wishes.max().unwrap_or(Wish::None),
            weight: weights.fold(1.0, f64::min),
        }
    }

    /// What is decided of the mirror.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Its load, that of the fullest of its metrics: 0.0 is idle, 1.0 is full, and it may be more.
    /// None if it has no metric, or one of them isn't known.
    pub fn load(&self) -> Option<f64> {
        let mut fullest: Option<f64> = None;
        for check in &self.checks {
            match check.load {
                Load::None => {}
                Load::Unknown => return None,
                Load::Known(load) => fullest = Some(fullest.map_or(load, |most| most.max(load))),
            }
        }
        fullest
    }

    /// Its latency, smoothed, that of the slowest of its checks; of good findings only.
    pub fn latency(&self) -> Option<Duration> {
        self.checks
            .iter()
            .filter_map(|check| check.smoothed_latency)
            .max()
    }

    /// Its checks, in the order of their list.
    pub fn checks(&self) -> &[CheckHealth] {
        &self.checks
    }
}

impl CheckHealth {
    fn new(config: &CheckConfig) -> Self {
        Self {
            kind: config.kind.name(),
            state: CheckState::Waiting,
            since: None,
            last: None,
            detail: String::new(),
            latency: None,
            smoothed_latency: None,
            rise: config.rise,
            fall: config.fall,
            against: 0,
            unknown: 0,
            wish: Wish::None,
            weight: 1.0,
            load: match config.kind {
                super::Kind::Prometheus(_) => Load::Unknown,
                _ => Load::None,
            },
        }
    }

    /// Takes a finding, and tells what it amounts to, as the rest of a sentence about the check.
    fn handle(&mut self, finding: Finding, now: Instant) -> String {
        self.last = Some(now);
        self.latency = finding.latency;
        self.detail = finding.detail;
        if finding.verdict == Verdict::Good
            && let Some(latency) = finding.latency
        {
            self.smoothed_latency = Some(match self.smoothed_latency {
                None => latency,
                Some(smoothed) => smoothed.mul_f64(1.0 - SMOOTHING) + latency.mul_f64(SMOOTHING),
            });
        }
        match finding.agent.wish {
            None => {}
            Some(AgentWish::Ready) => self.wish = Wish::None,
            Some(AgentWish::Drain) => self.wish = Wish::Drain,
            Some(AgentWish::Maintenance) => self.wish = Wish::Maintenance,
        }
        if let Some(percent) = finding.agent.weight_percent {
            self.weight = (f64::from(percent) / 100.0).min(1.0);
        }
        if self.load != Load::None {
            self.load = finding
                .load
                .filter(|load| load.is_finite())
                .map_or(Load::Unknown, Load::Known);
        }
        self.judge(finding.verdict, now)
    }

    fn judge(&mut self, verdict: Verdict, now: Instant) -> String {
        self.unknown = match verdict {
            Verdict::Unknown => self.unknown.saturating_add(1),
            _ => 0,
        };
        let undecided = matches!(self.state, CheckState::Waiting | CheckState::Silent);
        let (state, needed, word) = match verdict {
            Verdict::Good => (CheckState::Up, self.rise, "good"),
            Verdict::Bad => (CheckState::Down, self.fall, "bad"),
            Verdict::Same if undecided => (CheckState::Up, self.rise, "good"),
            Verdict::Same => return "says".to_owned(),
            Verdict::Unknown => {
                match self.state {
                    CheckState::Waiting => self.turn(CheckState::Silent, now),
                    CheckState::Up if self.unknown >= self.fall => {
                        self.turn(CheckState::Silent, now);
                    }
                    _ => {}
                }
                return in_a_row("can say nothing", self.unknown);
            }
        };
        if undecided {
            self.turn(state, now);
            return format!("is {word} at first");
        }
        if state == self.state {
            self.against = 0;
            return format!("is {word}");
        }
        self.against = self.against.saturating_add(1);
        let against = self.against;
        if against >= needed {
            self.turn(state, now);
        }
        in_a_row(&format!("is {word}"), against)
    }

    fn turn(&mut self, state: CheckState, now: Instant) {
        self.state = state;
        self.since = Some(now);
        self.against = 0;
    }
}

fn in_a_row(what: &str, count: u32) -> String {
    match count {
        1 => what.to_owned(),
        _ => format!("{what}, {count} times in a row"),
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
        })
    }
}

impl fmt::Display for CheckState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Silent => "silent",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}
