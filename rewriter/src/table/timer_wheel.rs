//! A hierarchical timer wheel (Varghese and Lauck, 1987, scheme 7): constant time to set a timer,
//! to take it back, and, spread over all, to find those that are due.
//!
//! Three wheels of 256 buckets turn at 1, 256 and 65,536 ticks a step; a timer lies in the finest
//! wheel whose turn it is within, and comes down to a finer one as its time draws near. The buckets
//! are lists through one array of links, indexed by slot, so nothing is allocated for a timer.
//!
//! Timers aren't moved when a packet arrives. The table looks at a connection when its timer is due
//! and sets it again if there was traffic in the meantime.

/// A time in ticks of 2^27 ns (about 0.134 s) since the engine's epoch; a little under 2^32 of them
/// are 18 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u32);

impl Tick {
    /// Nanoseconds in a tick, as a power of two.
    pub const SHIFT: u32 = 27;

    /// This long after, rounded up; never less than one tick.
    pub fn after(self, duration: std::time::Duration) -> Self {
        let ticks = (duration.as_nanos() >> Self::SHIFT) + 1;
        Self(
            self.0
                .saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)),
        )
    }
}

const BUCKET_BITS: u32 = 8;
const BUCKETS: usize = 1 << BUCKET_BITS;
const LEVELS: usize = 3;
/// Ticks that the coarsest wheel spans; what is due later waits in its last bucket.
const SPAN: u32 = 1 << (BUCKET_BITS * LEVELS as u32);
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    due: Tick,
    /// Level and position of the list that it is in; `NONE` when it is in none.
    bucket: u32,
}

const UNLINKED: Link = Link {
    previous: NONE,
    next: NONE,
    due: Tick(0),
    bucket: NONE,
};

/// Timers for slots of a table.
#[derive(Debug)]
pub struct TimerWheel {
    heads: [u32; BUCKETS * LEVELS],
    links: Vec<Link>,
    /// All that was due before this has been handed out.
    now: Tick,
    set: usize,
}

impl TimerWheel {
    /// A wheel without timers that stands at `now`.
    pub fn new(now: Tick) -> Self {
        Self {
            heads: [NONE; BUCKETS * LEVELS],
            links: Vec::new(),
            now,
            set: 0,
        }
    }

    /// Sets the timer of a slot that has none.
    pub fn insert(&mut self, slot: u32, due: Tick) {
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, UNLINKED);
        }
        debug_assert_eq!(self.links[index].bucket, NONE, "a slot has one timer");
        let due = Tick(due.0.max(self.now.0));
        let bucket = self.bucket_for(due);
        let head = self.heads[bucket];
        self.links[index] = Link {
            previous: NONE,
            next: head,
            due,
            bucket: bucket as u32,
        };
        if head != NONE {
            self.links[head as usize].previous = slot;
        }
        self.heads[bucket] = slot;
        self.set += 1;
    }

    /// Takes back the timer of a slot; does nothing if it has none.
    pub fn remove(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else {
            return;
        };
        let Link {
            previous,
            next,
            bucket,
            ..
        } = std::mem::replace(link, UNLINKED);
        if bucket == NONE {
            return;
        }
        match previous {
            NONE => self.heads[bucket as usize] = next,
            previous => self.links[previous as usize].next = next,
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        self.set -= 1;
    }

    /// Takes a timer that is due at or before `now` off the wheel and gives its slot.
    pub fn pop_due(&mut self, now: Tick) -> Option<u32> {
        if self.set == 0 {
            self.now = self.now.max(now);
            return None;
        }
        while self.now <= now {
            let head = self.heads[self.now.0 as usize % BUCKETS];
            if head != NONE {
                self.remove(head);
                return Some(head);
            }
            if self.now == now {
                break;
            }
            self.now.0 += 1;
            self.bring_down();
        }
        None
    }

    /// No timer is due before this: exact within the finest wheel's turn, early beyond it.
    pub fn next_due(&self) -> Option<Tick> {
        if self.set == 0 {
            return None;
        }
        let turn_ends = (self.now.0 | (BUCKETS as u32 - 1)).saturating_add(1);
        let due = (self.now.0..turn_ends).find(|tick| self.heads[*tick as usize % BUCKETS] != NONE);
        Some(Tick(due.unwrap_or(turn_ends)))
    }

    /// At the start of a finer wheel's turn, hands out the coarser wheels' current bucket anew.
    fn bring_down(&mut self) {
        for level in 1..LEVELS {
            let below = BUCKET_BITS * level as u32;
            if !self.now.0.is_multiple_of(1 << below) {
                return;
            }
            let position = (self.now.0 >> below) as usize % BUCKETS;
            let mut slot = std::mem::replace(&mut self.heads[level * BUCKETS + position], NONE);
            while slot != NONE {
                let Link { next, due, .. } = self.links[slot as usize];
                self.links[slot as usize] = UNLINKED;
                self.set -= 1;
                self.insert(slot, due);
                slot = next;
            }
        }
    }

    fn bucket_for(&self, due: Tick) -> usize {
        let due = due
            .0
            .min(self.now.0.saturating_add(SPAN - SPAN / BUCKETS as u32 - 1));
        // The finest level at which `due` and `now` lie in the same turn.
        let differing_bits = u32::BITS - (due ^ self.now.0).leading_zeros();
        let level = (differing_bits.saturating_sub(1) / BUCKET_BITS).min(LEVELS as u32 - 1);
        let position = (due >> (BUCKET_BITS * level)) as usize % BUCKETS;
        level as usize * BUCKETS + position
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn all_due(wheel: &mut TimerWheel, now: u32) -> Vec<u32> {
        let mut due: Vec<u32> = std::iter::from_fn(|| wheel.pop_due(Tick(now))).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn a_timer_is_due_at_its_time_and_not_before() {
        for due in [1, 255, 256, 257, 65_535, 65_536, 65_537, 1_000_000] {
            let mut wheel = TimerWheel::new(Tick(0));
            wheel.insert(7, Tick(due));
            assert_eq!(all_due(&mut wheel, due - 1), [0; 0], "due at {due}");
            assert_eq!(all_due(&mut wheel, due), [7], "due at {due}");
        }
    }

    #[test]
    fn a_timer_beyond_the_span_still_comes() {
        let mut wheel = TimerWheel::new(Tick(5));
        wheel.insert(1, Tick(SPAN * 2));
        assert_eq!(all_due(&mut wheel, SPAN * 2 - 1), [0; 0]);
        assert_eq!(all_due(&mut wheel, SPAN * 2), [1]);
    }

    #[test]
    fn a_duration_is_rounded_up() {
        assert_eq!(Tick(3).after(Duration::ZERO), Tick(4));
        assert_eq!(
            Tick(0).after(Duration::from_secs(7440)).0,
            ((7440_u64 * 1_000_000_000) >> 27) as u32 + 1
        );
    }

    proptest! {
        /// The wheel and a plain list of times take the same steps.
        #[test]
        fn the_wheel_agrees_with_a_plain_list(
            start in 0..u32::MAX / 2,
            steps in prop::collection::vec((0..3_u8, 0..50_u32, 0..200_000_u32), 1..200),
        ) {
            let mut wheel = TimerWheel::new(Tick(start));
            let mut model = std::collections::BTreeMap::new();
            let mut now = start;
            for (kind, slot, ticks) in steps {
                match kind {
                    0 => {
                        wheel.remove(slot);
                        wheel.insert(slot, Tick(now + ticks));
                        model.insert(slot, now + ticks);
                    }
                    1 => {
                        wheel.remove(slot);
                        model.remove(&slot);
                    }
                    _ => {
                        if let Some(next) = wheel.next_due() {
                            prop_assert!(model.values().all(|due| *due >= next.0));
                        }
                        now += ticks / 10;
                        let expected: Vec<u32> =
                            model.iter().filter(|(_, due)| **due <= now).map(|(slot, _)| *slot).collect();
                        prop_assert_eq!(all_due(&mut wheel, now), expected);
                        model.retain(|_, due| *due > now);
                    }
                }
            }
        }
    }
}
