//! The mirrors' vital signs, as one engine sees them.
//!
//! Whether a mirror is silent can be said only by all engines together: what one has heard answers what
//! another has sent. So they are asked twice, first for when they have heard each mirror
//! ([`Engine::heard`]), then for the rest in the light of that ([`Engine::mirror_signs`]).

use std::collections::HashMap;

use super::{Engine, Time};
use crate::packet::{Endpoint, TcpSegment};
use crate::table::{Aggregate, Direction, Totals, Vitals};

/// A mirror's vital signs, in one engine or in several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MirrorSigns {
    /// How many connections are on it now.
    pub connections: u64,
    /// TCP connections that it refused.
    pub refused: u64,
    /// TCP connections that it reset, refused ones not counted.
    pub resets: u64,
    /// ICMP errors about packets of its connections.
    pub icmp_errors: u64,
    vitals: Vitals,
}

impl MirrorSigns {
    /// When anything last came from it.
    pub fn heard(&self) -> Option<Time> {
        self.vitals.heard().map(Time::from_nanos)
    }

    /// TCP segments that want an answer and were sent to it since anything came from it.
    pub fn unanswered(&self) -> u64 {
        self.vitals.unanswered()
    }

    /// When the first of these was sent.
    pub fn waiting_since(&self) -> Option<Time> {
        self.vitals.waiting_since().map(Time::from_nanos)
    }

    /// Adds another engine's to these.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.refused += other.refused;
        self.resets += other.resets;
        self.icmp_errors += other.icmp_errors;
        self.vitals.add(&other.vitals);
    }
}

impl From<&Aggregate> for MirrorSigns {
    fn from(aggregate: &Aggregate) -> Self {
        let Totals {
            reverse,
            refused,
            icmp_errors,
            vitals,
            ..
        } = &aggregate.totals;
        Self {
            connections: aggregate.connections,
            refused: *refused,
            resets: reverse.resets.saturating_sub(*refused),
            icmp_errors: *icmp_errors,
            vitals: *vitals,
        }
    }
}

impl Engine {
    /// When this engine has last heard each mirror.
    pub fn heard(&self) -> HashMap<Endpoint, Time> {
        let mut mirrors = HashMap::new();
        for aggregate in self.aggregates.iter() {
            if let Some(heard) = aggregate.totals.vitals.heard() {
                let latest: &mut Time = mirrors.entry(aggregate.key.mirror).or_default();
                *latest = (*latest).max(Time::from_nanos(heard));
            }
        }
        mirrors
    }

    /// The vital signs of each mirror, which the engines together have last `heard` then.
    pub fn mirror_signs(
        &mut self,
        heard: &HashMap<Endpoint, Time>,
    ) -> HashMap<Endpoint, MirrorSigns> {
        let mut mirrors: HashMap<Endpoint, MirrorSigns> = HashMap::new();
        for aggregate in self.aggregates.iter_mut() {
            let mirror = aggregate.key.mirror;
            if let Some(heard) = heard.get(&mirror) {
                aggregate.totals.vitals.settle(heard.nanos());
            }
            mirrors
                .entry(mirror)
                .or_default()
                .add(&(&*aggregate).into());
        }
        mirrors
    }
}

/// Takes note of a packet to or from a mirror.
pub(super) fn note(
    totals: &mut Totals,
    direction: Direction,
    segment: Option<&TcpSegment>,
    now: Time,
) {
    match direction {
        Direction::Reverse => totals.vitals.hear(now.nanos()),
        Direction::Forward => {
            // Data, SYN and FIN are acknowledged; nobody need answer anything else.
            let wants_answer =
                segment.is_some_and(|segment| segment.next_sequence() != segment.sequence);
            if wants_answer {
                totals.vitals.ask(now.nanos());
            }
        }
    }
}
