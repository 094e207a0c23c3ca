//! What there is to be seen: the last decisions, and what is thought of the mirrors. The loop writes it, the control
//! socket and the metrics read it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use control_protocol::{Decision, MirrorState, Service};

/// How many decisions are remembered.
const MAX_DECISIONS: usize = 1000;
/// How many things that went wrong with one decision are remembered.
const MAX_ERRORS: usize = 100;

/// The board. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Shown>>);

/// What stands on it.
#[derive(Debug, Default)]
pub struct Shown {
    decisions: VecDeque<(Instant, Decision)>,
    /// How many decisions there were of each kind.
    pub made: BTreeMap<String, u64>,
    /// The mirrors.
    pub mirrors: Vec<MirrorState>,
    /// The share of new connections that each mirror has, by service, clients and mirror's name.
    pub shares: Vec<(Service, String, String, f64)>,
    /// Which rewriters are there, by name.
    pub rewriters: Vec<(String, bool)>,
    /// Orders that weren't carried out.
    pub failed_orders: u64,
}

impl Board {
    /// To be looked at or written on, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Shown> {
        // Whoever panicked while writing left it as right as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    /// Adds decisions, which may make the oldest fall off: those of one decision for each group of clients have one
    /// number.
    pub fn add(&mut self, at: Instant, decisions: Vec<Decision>) {
        if let Some(first) = decisions.first() {
            *self.made.entry(first.kind.clone()).or_default() += 1;
        }
        self.decisions
            .extend(decisions.into_iter().map(|decision| (at, decision)));
        let surplus = self.decisions.len().saturating_sub(MAX_DECISIONS);
        self.decisions.drain(..surplus);
    }

    /// Notes what became of an order that was part of a decision.
    pub fn note(&mut self, number: u64, moved: u64, error: Option<String>) {
        self.failed_orders += u64::from(error.is_some());
        let of = |(_, decision): &&mut (Instant, Decision)| decision.number == number;
        let Some((_, decision)) = self.decisions.iter_mut().rev().find(of) else {
            return;
        };
        decision.moved += moved;
        if let Some(error) = error
            && decision.errors.len() < MAX_ERRORS
        {
            decision.errors.push(error);
        }
    }

    /// The last decisions, at most so many, of one service or of all; the latest last.
    pub fn decisions(
        &self,
        service: Option<&Service>,
        limit: usize,
        now: Instant,
    ) -> Vec<Decision> {
        let of_service = |(_, decision): &&(Instant, Decision)| {
            service.is_none_or(|service| decision.service.as_ref() == Some(service))
        };
        let mut last: Vec<Decision> = self
            .decisions
            .iter()
            .rev()
            .filter(of_service)
            .take(limit)
            .map(|(at, decision)| Decision {
                age_ms: u64::try_from(now.saturating_duration_since(*at).as_millis())
                    .unwrap_or(u64::MAX),
                ..decision.clone()
            })
            .collect();
        last.reverse();
        last
    }
}
