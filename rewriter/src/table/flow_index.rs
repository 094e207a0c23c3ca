//! Where a flow's connection is: a hash table made for look-ups that miss the processor's caches.
//!
//! With a million connections nearly every look-up waits for memory, and what counts is how often.
//! Buckets are eight bytes in one array (open addressing, linear probing), so that a look-up reads one
//! cache line here and then the connection itself. A bucket holds a half of the hash, which is
//! compared before the connection is read. And where a hash would lead can be touched beforehand for
//! a whole batch of packets, all at once ([`FlowIndex::touch`]).

/// The hash of a flow. The better half of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FlowHash(u32);

impl From<u64> for FlowHash {
    fn from(hash: u64) -> Self {
        Self((hash >> 32) as u32)
    }
}

/// What a bucket holds: the hash in the high half; in the low half, a value and one. 0: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket(u64);

impl Bucket {
    const EMPTY: u64 = 0;

    fn new(hash: FlowHash, value: u32) -> Self {
        Self((u64::from(hash.0) << 32) | (u64::from(value) + 1))
    }

    fn hash(self) -> FlowHash {
        FlowHash((self.0 >> 32) as u32)
    }

    fn value(self) -> u32 {
        (self.0 as u32) - 1
    }
}

/// Values by the hashes of flows. Whoever asks compares the flows themselves.
#[derive(Debug)]
pub(super) struct FlowIndex {
    /// As plain numbers: zeroed memory that has never been written to costs nothing.
    buckets: Vec<u64>,
}

impl FlowIndex {
    /// An index with room for `capacity` values, all memory reserved.
    pub fn with_capacity(capacity: usize) -> Self {
        // Three buckets in four are taken at most; one is always empty, so that every search ends.
        Self {
            buckets: vec![Bucket::EMPTY; capacity + capacity / 3 + 1],
        }
    }

    /// The first value with this hash of which `is_meant` says that it is the one.
    pub fn find(&self, hash: FlowHash, is_meant: impl Fn(u32) -> bool) -> Option<u32> {
        self.probe(hash)
            .map(|at| Bucket(self.buckets[at]))
            .find(|bucket| bucket.hash() == hash && is_meant(bucket.value()))
            .map(Bucket::value)
    }

    /// Adds a value, less than 2^32 - 1, that is not in the index. No more may be added than there is
    /// room for.
    pub fn insert(&mut self, hash: FlowHash, value: u32) {
        let at = self.probe(hash).end_of_run();
        self.buckets[at] = Bucket::new(hash, value).0;
    }

    /// Takes a value out, if it is there.
    pub fn remove(&mut self, hash: FlowHash, value: u32) {
        let bucket = Bucket::new(hash, value).0;
        let Some(mut hole) = self.probe(hash).find(|at| self.buckets[*at] == bucket) else {
            return;
        };
        // What stands behind the hole and could stand in it moves up, so that no run is torn.
        let mut at = self.after(hole);
        while self.buckets[at] != Bucket::EMPTY {
            let home = self.home(Bucket(self.buckets[at]).hash());
            if self.distance(home, at) >= self.distance(hole, at) {
                self.buckets[hole] = self.buckets[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.buckets[hole] = Bucket::EMPTY;
    }

    /// Reads where the search for this hash begins, so that it is in the cache. The number means
    /// nothing; it is for the reading not to be optimised away.
    pub fn touch(&self, hash: FlowHash) -> u64 {
        self.buckets[self.home(hash)]
    }

    /// The buckets in which a value with this hash may be, up to the first empty one.
    fn probe(&self, hash: FlowHash) -> Probe<'_> {
        Probe {
            index: self,
            at: self.home(hash),
        }
    }

    fn home(&self, hash: FlowHash) -> usize {
        ((u64::from(hash.0) * self.buckets.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() {
            0
        } else {
            at + 1
        }
    }

    /// How many steps from one bucket on to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.buckets.len() - from
        }
    }
}

struct Probe<'a> {
    index: &'a FlowIndex,
    at: usize,
}

impl Probe<'_> {
    fn end_of_run(mut self) -> usize {
        while self.next().is_some() {}
        self.at
    }
}

impl Iterator for Probe<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let at = self.at;
        if self.index.buckets[at] == Bucket::EMPTY {
            return None;
        }
        self.at = self.index.after(at);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The index and a plain list take the same steps. With few hashes there are long runs, and
        /// they go round the end.
        #[test]
        fn the_index_agrees_with_a_plain_list(
            steps in prop::collection::vec((any::<bool>(), 0..24_u32), 1..400),
            few in 1..8_u32,
        ) {
            let hash = |value: u32| FlowHash((value % few).wrapping_mul(0x2000_0001).wrapping_sub(1));
            let mut index = FlowIndex::with_capacity(24);
            let mut model = Vec::new();
            for (is_insert, value) in steps {
                let position = model.iter().position(|other| *other == value);
                match (is_insert, position) {
                    (true, None) => {
                        index.insert(hash(value), value);
                        model.push(value);
                    }
                    (false, position) => {
                        index.remove(hash(value), value);
                        position.map(|at| model.swap_remove(at));
                    }
                    (true, Some(_)) => {}
                }
                for value in 0..24 {
                    let found = index.find(hash(value), |other| other == value);
                    prop_assert_eq!(found.is_some(), model.contains(&value));
                }
            }
        }
    }
}
