//! What the rewriters have measured of a group of clients at each mirror, between two looks at it.

use std::collections::HashMap;
use std::iter::Sum;
use std::time::Duration;

use control_protocol::GroupStats;

/// How much a new rate counts against those before it.
const NEW: f64 = 0.5;

/// Bytes of a packet that acknowledges, and brings nothing.
const ACKNOWLEDGEMENT: u64 = 100;

/// What a group of clients has been measured to ask and be answered.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// By rewriter and mirror. A rewriter that has been lost keeps its last rates: its traffic goes on.
    of: HashMap<(usize, usize), Count>,
    /// How much of the time since the last look a rewriter has told about.
    covered: HashMap<usize, Duration>,
    rates: HashMap<usize, (f64, f64)>,
    latest: HashMap<usize, Latest>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    asked: u64,
    answers: u64,
    opened: u64,
    response_sum: f64,
    connections: u64,
    rate: f64,
    wanted: f64,
}

/// What was measured of a mirror since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latest {
    /// Packets that went to it, if nothing but acknowledgements came from it.
    pub asked: u64,
    /// Answers that came from it.
    pub answers: u64,
    /// What they took, in seconds, added up.
    pub response_sum: f64,
    /// Connections that are on it now.
    pub connections: u64,
    /// Requests a second that are answered, evened out.
    pub rate: f64,
    /// Requests a second that clients would like to be answered, as far as that can be told.
    pub wanted: f64,
}

impl Sum for Latest {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            asked: sum.asked + part.asked,
            answers: sum.answers + part.answers,
            response_sum: sum.response_sum + part.response_sum,
            connections: sum.connections + part.connections,
            rate: sum.rate + part.rate,
            wanted: sum.wanted + part.wanted,
        })
    }
}

impl Tally {
    /// A rewriter tells about so much time.
    pub(super) fn begin_update(&mut self, rewriter: usize, interval: Duration) {
        *self.covered.entry(rewriter).or_default() += interval;
        for ((of, _), count) in &mut self.of {
            if *of == rewriter {
                count.connections = 0;
            }
        }
    }

    /// What it has measured of a mirror in this time.
    pub(super) fn add(&mut self, rewriter: usize, mirror: usize, stats: &GroupStats) {
        let count = self.of.entry((rewriter, mirror)).or_default();
        let first_byte = &stats.first_byte;
        // A download goes on without there being a new answer.
        if stats.reverse.bytes <= ACKNOWLEDGEMENT * stats.reverse.packets {
            count.asked += stats.forward.packets;
        }
        count.answers += first_byte.count;
        count.opened += stats.opened;
        count.response_sum += first_byte.mean_us as f64 * 1e-6 * first_byte.count as f64;
        count.connections += stats.connections;
    }

    /// Works out the rates, and begins anew.
    pub(super) fn close(&mut self) {
        let mut latest: HashMap<usize, Latest> = HashMap::new();
        for ((rewriter, mirror), count) in &mut self.of {
            if let Some(covered) = self.covered.get(rewriter).filter(|time| !time.is_zero()) {
                count.rate = count.answers as f64 / covered.as_secs_f64();
                // Each connection asks at least once, whether it has been answered or not.
                let wanted = count.answers.max(count.opened);
                count.wanted = wanted as f64 / covered.as_secs_f64();
            }
            let sum = latest.entry(*mirror).or_default();
            sum.asked += count.asked;
            sum.answers += count.answers;
            sum.response_sum += count.response_sum;
            sum.connections += count.connections;
            sum.rate += count.rate;
            sum.wanted += count.wanted;
            (count.asked, count.answers, count.opened, count.response_sum) = (0, 0, 0, 0.0);
        }
        self.covered.clear();
        for (mirror, latest) in &mut latest {
            let (rate, wanted) = self
                .rates
                .entry(*mirror)
                .or_insert((latest.rate, latest.wanted));
            *rate += NEW * (latest.rate - *rate);
            *wanted += NEW * (latest.wanted - *wanted);
            (latest.rate, latest.wanted) = (*rate, *wanted);
        }
        self.latest = latest;
    }

    /// What was measured of a mirror before the last look.
    pub fn latest(&self, mirror: usize) -> Latest {
        self.latest.get(&mirror).copied().unwrap_or_default()
    }

    /// Requests a second that clients would like to be answered, at all mirrors.
    pub fn rate(&self) -> f64 {
        self.latest.values().map(|latest| latest.wanted).sum()
    }
}
