//! What one worker, or the TCP side, has counted. Each has counters of its own, which others only read, so that no
//! two processors wait for each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::answer::{Answered, DropReason, Outcome};
use crate::passing::{Stray, UpstreamId};

macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident => $family:literal, $label:literal;)+) => {
        /// Something that is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Count {
            $($(#[$doc])* $variant,)+
        }

        impl Count {
            /// Everything that is counted.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The family that it belongs to, and its name there, as metrics have them.
            pub const fn name(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$variant => ($family, $label),)+
                }
            }
        }
    };
}

counts! {
    /// Answered with records from the table.
    Own => "answers", "own";
    /// Answered that the listed name has no such type.
    Empty => "answers", "empty";
    /// Answered that there is more over TCP, as it doesn't fit.
    Truncated => "answers", "truncated";
    /// Answered that there is more over TCP, as there are too many.
    Limited => "answers", "limited";
    /// Answered with a cookie, which was all that was asked for.
    CookieOnly => "answers", "cookie_only";
    /// Answered that it can't be understood.
    Malformed => "answers", "malformed";
    /// Answered that it is no query.
    NotImplemented => "answers", "not_implemented";
    /// Answered that there is no such version of EDNS.
    UnknownEdns => "answers", "unknown_edns";
    /// Answered that the client may not ask.
    Refused => "answers", "refused";
    /// Answered that zones can't be had here.
    Zone => "answers", "zone";
    /// Passed on as it came.
    Passed => "passed", "whole";
    /// Passed on for the name that an alias stands for.
    Followed => "passed", "alias";
    /// The upstream's answer was handed back.
    Returned => "returned", "answered";
    /// None of the upstreams answered.
    Unanswered => "returned", "unanswered";
    /// Too many queries were under way.
    Overloaded => "returned", "overloaded";
    /// Sent to an upstream once more, as no answer came.
    Repeated => "repeated", "unanswered";
    /// Dropped: too short for a header.
    TooShort => "dropped", "too_short";
    /// Dropped: an answer.
    IsAnswer => "dropped", "is_answer";
    /// Dropped: from port 0.
    NoPort => "dropped", "no_port";
    /// Dropped: too many.
    OverLimit => "dropped", "over_limit";
    /// From an upstream: no answer.
    StrayNoAnswer => "strays", "no_answer";
    /// From an upstream: an answer with an id that nobody waits for.
    StrayId => "strays", "unknown_id";
    /// From an upstream: an answer to another question.
    StrayQuestion => "strays", "other_question";
    /// The kernel didn't take an answer.
    Unsent => "unsent", "refused_by_kernel";
    /// A query isn't in the query log, as that couldn't keep up.
    Unlogged => "unlogged", "log_full";
}

impl From<&Outcome> for Count {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Answered(answered) => (*answered).into(),
            Outcome::Pass => Self::Passed,
            Outcome::Follow(_) => Self::Followed,
            Outcome::Dropped(reason) => (*reason).into(),
        }
    }
}

impl From<Answered> for Count {
    fn from(answered: Answered) -> Self {
        match answered {
            Answered::Own => Self::Own,
            Answered::Empty => Self::Empty,
            Answered::Truncated => Self::Truncated,
            Answered::Limited => Self::Limited,
            Answered::CookieOnly => Self::CookieOnly,
            Answered::Malformed => Self::Malformed,
            Answered::NotImplemented => Self::NotImplemented,
            Answered::UnknownEdns => Self::UnknownEdns,
            Answered::Refused => Self::Refused,
            Answered::Zone => Self::Zone,
        }
    }
}

impl From<DropReason> for Count {
    fn from(reason: DropReason) -> Self {
        match reason {
            DropReason::TooShort => Self::TooShort,
            DropReason::IsAnswer => Self::IsAnswer,
            DropReason::NoPort => Self::NoPort,
            DropReason::Limited => Self::OverLimit,
        }
    }
}

impl From<Stray> for Count {
    fn from(stray: Stray) -> Self {
        match stray {
            Stray::NotAnAnswer => Self::StrayNoAnswer,
            Stray::UnknownId => Self::StrayId,
            Stray::OtherQuestion => Self::StrayQuestion,
        }
    }
}

/// Upper ends of the classes of latencies, in microseconds. The last class has none.
pub const LATENCY_BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000,
];

/// One worker's counters.
#[derive(Debug)]
pub struct Counters {
    counts: [AtomicU64; Count::ALL.len()],
    /// By upstream.
    latencies: Vec<Latencies>,
}

/// How long an upstream took.
#[derive(Debug, Default)]
struct Latencies {
    classes: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    /// In microseconds.
    sum: AtomicU64,
}

/// How long an upstream took, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LatencyCounts {
    /// How many in each class.
    pub classes: [u64; LATENCY_BOUNDS.len() + 1],
    /// All together, in microseconds.
    pub sum: u64,
}

impl Counters {
    /// Nothing is counted yet.
    pub fn new(upstreams: usize) -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; Count::ALL.len()],
            latencies: (0..upstreams).map(|_| Latencies::default()).collect(),
        }
    }

    /// Counts one.
    pub fn count(&self, count: impl Into<Count>) {
        self.add(count, 1);
    }

    /// Counts several.
    pub fn add(&self, count: impl Into<Count>, number: u64) {
        self.counts[count.into() as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn read(&self, count: Count) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }

    /// Counts how long an upstream took.
    pub fn measure(&self, upstream: UpstreamId, latency: Duration) {
        let Some(latencies) = self.latencies.get(upstream.0) else {
            return;
        };
        let latency = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let class = LATENCY_BOUNDS.partition_point(|bound| *bound < latency);
        latencies.classes[class].fetch_add(1, Ordering::Relaxed);
        latencies.sum.fetch_add(latency, Ordering::Relaxed);
    }

    /// How long an upstream took so far.
    pub fn latencies(&self, upstream: UpstreamId) -> LatencyCounts {
        let Some(latencies) = self.latencies.get(upstream.0) else {
            return LatencyCounts::default();
        };
        LatencyCounts {
            classes: std::array::from_fn(|class| latencies.classes[class].load(Ordering::Relaxed)),
            sum: latencies.sum.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_has_a_place_and_a_name_of_its_own() {
        let counters = Counters::new(1);
        let mut names = std::collections::BTreeSet::new();
        for (number, count) in (1..).zip(Count::ALL) {
            counters.add(*count, number);
            assert_eq!(counters.read(*count), number);
            assert!(names.insert(count.name()), "{count:?}");
        }
    }

    #[test]
    fn latencies_fall_into_their_classes() {
        let counters = Counters::new(2);
        let upstream = UpstreamId(1);
        for micros in [99, 100, 101, 2_500_001] {
            counters.measure(upstream, Duration::from_micros(micros));
        }
        let LatencyCounts { classes, sum } = counters.latencies(upstream);
        assert_eq!((classes[0], classes[1], classes[14]), (2, 1, 1));
        assert_eq!(sum, 2_500_301);
        assert_eq!(counters.latencies(UpstreamId(0)), LatencyCounts::default());
        counters.measure(UpstreamId(2), Duration::ZERO);
    }
}
