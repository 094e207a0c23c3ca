//! What is known of a mirror: its health, what is wished of it, and what it is capable of.

use std::time::Duration;

use control_protocol::MirrorAddress;

use super::Settings;
use super::tally::Latest;
use crate::assign::Place;
use crate::check::{State, Wish};
use crate::model::{Learner, Queue, Sample};

/// Answers after which what was measured is worth a sample, and the time after which fewer will do.
const SAMPLE_COUNT: u64 = 8;
const SAMPLE_TIME: Duration = Duration::from_secs(10);
/// A mirror that has been asked and answers nothing for this long is stalled, if it would have given so many
/// answers in that time before. (An upload has no answer either for as long as it takes.)
const STALLED_AFTER: Duration = Duration::from_secs(1);
const STALLED_ANSWERS: f64 = 20.0;
/// The part of all requests that a mirror gets of which nothing is known at all.
const FIRST_SHARE: f64 = 0.1;
/// The part of its capacity that a mirror comes back to.
const SLOW_START_LOAD: f64 = 0.7;
/// How long a mirror that the model thinks ill of waits for its first trial, in settling times, and the longest
/// that any waits.
const FIRST_TRIAL: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(1800);

/// What the calendar says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Planned {
    /// Nothing.
    #[default]
    Nothing,
    /// It must be empty in so long.
    Draining(Duration),
    /// It isn't there.
    Down,
}

/// How a mirror is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vitals {
    /// By its checks.
    pub state: State,
    /// Why, in the middle of a sentence.
    pub reason: String,
    /// By its agent.
    pub wish: Wish,
    /// By the calendar.
    pub planned: Planned,
    /// The part of its usual load that it is to have, from 0 to 1.
    pub weight: f64,
    /// The part of its capacity that is in use, as the mirror says; none: it isn't known.
    pub load: Option<f64>,
    /// It usually says so, and doesn't now: it may be busier than it looks.
    pub is_load_missing: bool,
}

/// All of it in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can be used.
    Usable,
    /// It keeps what it has, and gets no more.
    Unknown,
    /// It gets nothing new; what it has leaves, within this time if there is one.
    Draining(Option<Duration>),
    /// It is gone because it was planned.
    Away,
    /// It is dead.
    Dead,
}

/// A mirror, as the monitor knows it.
#[derive(Debug, Clone)]
pub struct Mirror {
    name: String,
    address: MirrorAddress,
    learner: Learner,
    vitals: Vitals,
    /// Since when it has stood as it does.
    since: Duration,
    /// It has been out and comes back since then; how much of its share it has been given.
    pub(super) returning: Option<(Duration, f64)>,
    pending: Pending,
    rate: f64,
    response: Option<f64>,
    connections: u64,
    is_stalled: bool,
    /// When it was last measured under load.
    measured: Option<Duration>,
    trial: Trial,
}

/// What has been measured and not been learned from yet.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    answers: u64,
    response_sum: f64,
    time: Duration,
    /// For how long it has been asked and has answered nothing.
    silent: Duration,
    /// Answers a second before that.
    usual: f64,
}

/// When to look whether a mirror that is thought slow still is.
#[derive(Debug, Clone, Copy, Default)]
struct Trial {
    began: Option<Duration>,
    pauses: u32,
}

impl Mirror {
    /// A mirror of which nothing is known but perhaps its capacity, in requests a second.
    pub fn new(name: &str, address: MirrorAddress, capacity: Option<f64>) -> Self {
        Self {
            name: name.to_owned(),
            address,
            learner: Learner::new(capacity),
            vitals: Vitals {
                weight: 1.0,
                ..Vitals::default()
            },
            since: Duration::ZERO,
            returning: None,
            pending: Pending::default(),
            rate: 0.0,
            response: None,
            connections: 0,
            is_stalled: false,
            measured: None,
            trial: Trial::default(),
        }
    }

    /// What the operator calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn address(&self) -> MirrorAddress {
        self.address
    }

    /// How it is.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// What its model says; none before anything was measured.
    pub fn queue(&self) -> Option<Queue> {
        self.learner.queue()
    }

    /// How wrong the model was lately, as a part of the response time.
    pub fn model_error(&self) -> Option<f64> {
        self.learner.error()
    }

    /// Requests a second, over all services and rewriters.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Mean response time in seconds, as last measured.
    pub fn response(&self) -> Option<f64> {
        self.response
    }

    /// Connections that are on it.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// The part of its capacity that it uses, as far as is known.
    pub fn utilisation(&self) -> Option<f64> {
        let by_model = self.queue().map(|queue| queue.utilisation(self.rate));
        match (by_model, self.vitals.load) {
            (Some(by_model), Some(load)) => Some(by_model.max(load)),
            (by_model, load) => by_model.or(load),
        }
    }

    /// Whether it has more to do than it is good for.
    pub fn is_overloaded(&self, settings: &Settings) -> bool {
        self.is_stalled
            || self
                .utilisation()
                .is_some_and(|utilisation| utilisation >= settings.overload)
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let Vitals {
            state,
            wish,
            planned,
            weight,
            ..
        } = &self.vitals;
        match (state, wish, planned) {
            (State::Down, ..) => Standing::Dead,
            (_, Wish::Maintenance, _) | (_, _, Planned::Down) => Standing::Away,
            (_, _, Planned::Draining(left)) => Standing::Draining(Some(*left)),
            (_, Wish::Drain, _) => Standing::Draining(None),
            _ if *weight <= 0.0 => Standing::Draining(None),
            (State::Unknown, ..) => Standing::Unknown,
            (State::Up, ..) => Standing::Usable,
        }
    }

    /// Whether it may be in use.
    pub fn is_fit(&self) -> bool {
        matches!(self.standing(), Standing::Usable | Standing::Unknown)
    }

    /// Since when it has stood as it does.
    pub(super) fn since(&self) -> Duration {
        self.since
    }

    /// The part of its share that it may have, in its slow start; 1 otherwise.
    pub fn share_cap(&self, settings: &Settings, now: Duration) -> f64 {
        let Some((since, _)) = self.returning else {
            return 1.0;
        };
        let passed = now.saturating_sub(since).as_secs_f64();
        let part = passed / settings.slow_start.as_secs_f64().max(1e-3);
        part.clamp(0.1, 1.0)
    }

    pub(super) fn take_vitals(&mut self, vitals: Vitals, now: Duration) {
        let (was_fit, before) = (self.is_fit(), self.standing());
        self.vitals = vitals;
        // What isn't a number says nothing.
        self.vitals.load = self.vitals.load.filter(|load| load.is_finite());
        self.vitals.weight = if self.vitals.weight.is_finite() {
            self.vitals.weight.clamp(0.0, 1.0)
        } else {
            1.0
        };
        let standing = self.standing();
        if std::mem::discriminant(&standing) != std::mem::discriminant(&before) {
            self.since = now;
        }
        match (was_fit, self.is_fit()) {
            (false, true) => self.returning = Some((now, 0.0)),
            (true, false) => self.returning = None,
            _ => {}
        }
    }

    /// Takes what was measured in the time that has passed, over all groups.
    pub(super) fn learn(&mut self, latest: Latest, passed: Duration, now: Duration) {
        self.connections = latest.connections;
        self.rate = latest.rate;
        let pending = &mut self.pending;
        pending.answers += latest.answers;
        pending.response_sum += latest.response_sum;
        pending.time += passed;
        let is_waited_for = pending.silent > Duration::ZERO && latest.connections > 0;
        if latest.answers > 0 {
            pending.silent = Duration::ZERO;
            pending.usual = latest.rate;
        } else if latest.asked > 0 || is_waited_for {
            pending.silent += passed;
        } else {
            pending.silent = Duration::ZERO;
        }
        let missed = pending.usual * pending.silent.as_secs_f64();
        self.is_stalled = pending.silent >= STALLED_AFTER && missed >= STALLED_ANSWERS;
        if self.is_stalled {
            // It takes at least this long for as many as are waiting (Little's law); how long nobody knows.
            let waiting = latest.connections.max(1);
            let sample = Sample {
                rate: waiting as f64 / pending.silent.as_secs_f64(),
                response: pending.silent.as_secs_f64(),
                count: waiting,
            };
            self.response = Some(sample.response);
            self.learner.take(sample, now);
            return;
        }
        if let Some(load) = self.vitals.load {
            self.learner.take_utilisation(self.rate, load);
        }
        let is_worth_it = pending.answers >= SAMPLE_COUNT || pending.time >= SAMPLE_TIME;
        if !is_worth_it {
            return;
        }
        let Pending {
            answers,
            response_sum,
            time,
            silent,
            usual,
        } = std::mem::take(pending);
        (self.pending.silent, self.pending.usual) = (silent, usual);
        if answers == 0 {
            self.response = None;
            return;
        }
        let sample = Sample {
            rate: answers as f64 / time.as_secs_f64(),
            response: response_sum / answers as f64,
            count: answers,
        };
        self.response = Some(sample.response);
        self.measured = Some(now);
        self.learner.take(sample, now);
    }

    /// What it is to the optimiser, `usual` being a mirror of which nothing is known, and `all` the requests a second
    /// that are to be assigned.
    pub(super) fn place(&self, usual: Queue, all: f64) -> Place {
        let queue = self.queue().unwrap_or(usual);
        let proven = self.learner.trusted_rate();
        let trusted = if self.queue().is_none() && proven == 0.0 {
            FIRST_SHARE * all
        } else {
            proven
        };
        let limit = match self.standing() {
            Standing::Unknown => self.rate,
            _ if self.vitals.is_load_missing => self.rate,
            _ if self.returning.is_some() => SLOW_START_LOAD * queue.capacity(),
            _ if self.vitals.weight < 1.0 => {
                self.vitals.weight * trusted.max(self.rate).min(queue.capacity())
            }
            _ => trusted.max(self.rate),
        };
        Place { queue, limit }
    }

    /// Whether it is time to see whether a mirror that gets nothing still deserves that.
    pub(super) fn is_due_for_trial(&self, settings: &Settings, now: Duration) -> bool {
        if self.standing() != Standing::Usable || self.returning.is_some() {
            return false;
        }
        let idle_since = self
            .measured
            .max(self.trial.began)
            .unwrap_or(Duration::ZERO);
        let pause = settings.settle * FIRST_TRIAL * (1 << self.trial.pauses.min(10));
        now.saturating_sub(idle_since) >= pause.min(LONGEST_PAUSE)
    }

    /// It is tried; the next trial is to wait longer.
    pub(super) fn begin_trial(&mut self, now: Duration) {
        self.trial = Trial {
            began: Some(now),
            pauses: self.trial.pauses + 1,
        };
    }

    /// It has a place in the assignment again.
    pub(super) fn end_trials(&mut self) {
        self.trial = Trial::default();
    }
}

/// What a mirror is taken for of which nothing has been measured: the middle one of the others, or failing those a
/// queue of no account.
pub(super) fn usual(mirrors: &[Mirror]) -> Queue {
    let mut known: Vec<Queue> = mirrors.iter().filter_map(Mirror::queue).collect();
    known.sort_by(|a, b| a.capacity().total_cmp(&b.capacity()));
    known
        .get(known.len() / 2)
        .copied()
        .unwrap_or_else(|| Queue::new(0.01, 4.0))
}
