//! What is measured of connections taken together.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Direction, Vitals};

/// Classes of packet sizes: class *n* has those of more than 2ⁿ⁺⁵ and at most 2ⁿ⁺⁶ bytes, but the first
/// and the last have all that are smaller and larger.
pub const SIZE_CLASSES: usize = 11;

/// The longest time that is told apart from longer ones, in microseconds.
const LONGEST: u64 = 60_000_000;

/// What is measured of connections taken together, since the first of them.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// From clients to mirrors.
    pub forward: OneWay,
    /// From mirrors to clients.
    pub reverse: OneWay,
    /// Connections that began here, or were moved here.
    pub opened: u64,
    /// TCP connections that the mirror refused: it answered the SYN with a reset.
    pub refused: u64,
    /// Connections that were forgotten without the mirror having sent anything.
    pub unanswered: u64,
    /// ICMP errors about their packets.
    pub icmp_errors: u64,
    /// What they show of the mirror's being alive.
    pub vitals: Vitals,
    /// Only once there is one: most connections of UDP have none.
    times: Option<Box<Times>>,
}

/// What is measured in one direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneWay {
    /// Bytes, IP headers included.
    pub bytes: u64,
    /// Packets by [size](SIZE_CLASSES); a super-packet counts as one.
    pub sizes: [u64; SIZE_CLASSES],
    /// TCP segments that brought nothing new.
    pub retransmissions: u64,
    /// Resets that can be believed.
    pub resets: u64,
}

/// Times in microseconds, to a sixteenth; longer ones than a minute count as a minute.
#[derive(Debug, Clone)]
pub struct Times {
    by_what: [Histogram<u64>; Timed::ALL.len()],
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// From a SYN to the mirror's answer.
    MirrorHandshake,
    /// From the mirror's SYN to the client's acknowledgement.
    ClientHandshake,
    /// From what the client sends to the mirror's acknowledgement.
    MirrorRtt,
    /// From what the mirror sends to the client's acknowledgement.
    ClientRtt,
    /// From the last that the client asks to the first that the mirror answers.
    FirstByte,
}

impl Timed {
    /// All that is.
    pub const ALL: [Self; 5] = [
        Self::MirrorHandshake,
        Self::ClientHandshake,
        Self::MirrorRtt,
        Self::ClientRtt,
        Self::FirstByte,
    ];
}

impl OneWay {
    /// Counts a packet of `bytes` bytes.
    pub fn add_packet(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.sizes[size_class(bytes)] += 1;
    }

    /// How many packets.
    pub fn packets(&self) -> u64 {
        self.sizes.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        for (sum, count) in self.sizes.iter_mut().zip(other.sizes) {
            *sum += count;
        }
        self.retransmissions += other.retransmissions;
        self.resets += other.resets;
    }

    fn subtract(&mut self, earlier: &Self) {
        less(&mut self.bytes, earlier.bytes);
        for (now, earlier) in self.sizes.iter_mut().zip(earlier.sizes) {
            less(now, earlier);
        }
        less(&mut self.retransmissions, earlier.retransmissions);
        less(&mut self.resets, earlier.resets);
    }
}

fn less(now: &mut u64, earlier: u64) {
    *now = now.saturating_sub(earlier);
}

fn size_class(bytes: usize) -> usize {
    let bits = usize::BITS - bytes.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(6) as usize).min(SIZE_CLASSES - 1)
}

impl Totals {
    /// What goes this way.
    pub fn one_way(&mut self, direction: Direction) -> &mut OneWay {
        match direction {
            Direction::Forward => &mut self.forward,
            Direction::Reverse => &mut self.reverse,
        }
    }

    /// Counts a time.
    pub fn record(&mut self, what: Timed, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.times.get_or_insert_default().by_what[what as usize].saturating_record(micros.max(1));
    }

    /// The times that were counted, if any was.
    pub fn times(&self, what: Timed) -> Option<&Histogram<u64>> {
        self.times
            .as_ref()
            .map(|times| &times.by_what[what as usize])
    }

    /// Adds other totals to these.
    pub fn add(&mut self, other: &Self) {
        self.forward.add(&other.forward);
        self.reverse.add(&other.reverse);
        self.opened += other.opened;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.icmp_errors += other.icmp_errors;
        self.vitals.add(&other.vitals);
        if let Some(times) = &other.times {
            let sums = &mut self.times.get_or_insert_default().by_what;
            for (sum, other) in sums.iter_mut().zip(&times.by_what) {
                // All histograms here have the same bounds, so that none is out of another's range.
                let added = sum.add(other);
                debug_assert!(added.is_ok(), "{added:?}");
            }
        }
    }

    /// Takes earlier totals of the same connections from these. What was counted earlier and is missing here
    /// counts as nothing.
    pub fn subtract(&mut self, earlier: &Self) {
        self.forward.subtract(&earlier.forward);
        self.reverse.subtract(&earlier.reverse);
        less(&mut self.opened, earlier.opened);
        less(&mut self.refused, earlier.refused);
        less(&mut self.unanswered, earlier.unanswered);
        less(&mut self.icmp_errors, earlier.icmp_errors);
        if let (Some(now), Some(earlier)) = (&mut self.times, &earlier.times) {
            for (now, earlier) in now.by_what.iter_mut().zip(&earlier.by_what) {
                // It is refused where the earlier one has more.
                if now.subtract(earlier).is_err() {
                    now.reset();
                }
            }
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        Self {
            by_what: std::array::from_fn(|_| histogram()),
        }
    }
}

/// An empty histogram of the form that all here have: one decimal digit, which takes 16 steps for each
/// doubling.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 1).expect("constant bounds, which it takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_classes_of_powers_of_two() {
        let classes = [0, 64, 65, 128, 129, 1500, 2048, 65_535, 100_000].map(size_class);
        assert_eq!(classes, [0, 0, 1, 1, 2, 5, 5, 10, 10]);
    }

    #[test]
    fn totals_add_up() {
        let mut a = Totals::default();
        a.forward.add_packet(100);
        a.record(Timed::FirstByte, Duration::from_millis(10));
        let mut b = Totals::default();
        b.forward.add_packet(1500);
        b.reverse.resets = 2;
        b.record(Timed::FirstByte, Duration::from_millis(20));
        b.record(Timed::ClientRtt, Duration::from_secs(3600));
        a.add(&b);
        assert_eq!((a.forward.packets(), a.forward.bytes), (2, 1600));
        assert_eq!(a.reverse.resets, 2);
        let times = a.times(Timed::FirstByte).unwrap();
        assert_eq!((times.len(), times.max() / 1000), (2, 20));
        // What takes longer than a minute counts as a minute, or what comes closest to it here.
        let longest = a.times(Timed::ClientRtt).unwrap().max();
        assert!((60_000_000..70_000_000).contains(&longest), "{longest}");
        assert_eq!(a.times(Timed::MirrorRtt).unwrap().len(), 0);
    }

    #[test]
    fn what_came_after_is_the_difference() {
        let mut earlier = Totals::default();
        earlier.forward.add_packet(100);
        earlier.record(Timed::FirstByte, Duration::from_millis(10));
        let mut now = earlier.clone();
        now.forward.add_packet(1500);
        now.record(Timed::FirstByte, Duration::from_millis(20));
        let mut since = now.clone();
        since.subtract(&earlier);
        assert_eq!((since.forward.packets(), since.forward.bytes), (1, 1500));
        assert_eq!(since.times(Timed::FirstByte).unwrap().len(), 1);
        // More earlier than now: somebody has forgotten some.
        earlier.subtract(&now);
        assert_eq!(earlier.forward.packets(), 0);
        assert_eq!(earlier.times(Timed::FirstByte).unwrap().len(), 0);
    }

    /// What the documents say of it.
    #[test]
    fn a_histogram_takes_three_kilobytes() {
        let bytes = histogram().distinct_values() * size_of::<u64>();
        assert!((2500..3500).contains(&bytes), "{bytes}");
    }
}
