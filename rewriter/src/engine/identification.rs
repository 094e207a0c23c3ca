//! New identifications for packets that may be in fragments (RFC 6864, RFC 7739).
//!
//! Each client numbers its own packets. Behind one proxy address the numbers of many clients would
//! meet, and a mirror would join fragments of different packets. So every translated packet that is,
//! or may yet be, cut into fragments gets a new number.
//!
//! A number must be unique for its source, destination and protocol as long as a fragment may live.
//! IPv4 has 16 bits, which at more than some thousand such packets a second can't last (RFC 6864,
//! section 4.3); counting makes the most of them. There is a counter for each of [`COUNTERS`] groups
//! of (source, destination, protocol), picked by a keyed hash, as Linux does it; so nothing is looked
//! up or kept for a pair. It starts at random (RFC 7739, section 5.1). Workers share the numbers out:
//! worker `k` of `n` uses those congruent to `k` modulo `n`.

use rand::Rng;

/// How many groups there are, as a power of two.
const COUNTERS_BITS: u32 = 10;
const COUNTERS: usize = 1 << COUNTERS_BITS;

/// The next identifications of one worker.
#[derive(Debug)]
pub(super) struct Identifications {
    counters: Box<[u64; COUNTERS]>,
    /// Odd, so that no bits are lost.
    key: u64,
    worker: u32,
    /// How many numbers this worker has of IPv4's and of IPv6's, and how far apart they are.
    share_v4: u32,
    share_v6: u64,
    workers: u32,
}

impl Identifications {
    /// The share of worker `worker` of `workers`.
    pub(super) fn new(worker: u16, workers: u16, random: &mut impl Rng) -> Self {
        let workers = u32::from(workers.max(1));
        Self {
            // The first 2^31 numbers don't wrap: there, some would be skipped or come again.
            counters: Box::new(std::array::from_fn(|_| {
                (random.random::<u32>() >> 1).into()
            })),
            key: random.random::<u64>() | 1,
            worker: worker.into(),
            share_v4: (1 << 16) / workers,
            share_v6: (1 << 32) / u64::from(workers),
            workers,
        }
    }

    /// The next for this source and destination, network order one after the other, and protocol of
    /// IPv4. Not 0: the kernel would take that for "none yet" on a raw socket (`raw(7)`), and give
    /// each fragment a number of its own.
    pub(super) fn next_v4(&mut self, addresses: &[u8], protocol: u8) -> u16 {
        let mut next = || {
            // The lower half of the count will do; brought into the worker's share, it has 16 bits.
            let number = self.count(addresses, protocol) as u32 % self.share_v4;
            (number * self.workers + self.worker) as u16
        };
        match next() {
            0 => next(),
            identification => identification,
        }
    }

    /// The next for this source and destination of IPv6.
    pub(super) fn next_v6(&mut self, addresses: &[u8]) -> u32 {
        let number = self.count(addresses, 0) % self.share_v6;
        // Brought into the worker's share, and so into 32 bits.
        (number * u64::from(self.workers)) as u32 + self.worker
    }

    fn count(&mut self, addresses: &[u8], protocol: u8) -> u64 {
        let (words, _) = addresses.as_chunks::<4>();
        let mix = words.iter().fold(u64::from(protocol), |mix, word| {
            let mix = (mix ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(self.key);
            // The high bits of a product are the best mixed ones.
            mix ^ mix >> 32
        });
        let group = mix.wrapping_mul(self.key) >> (u64::BITS - COUNTERS_BITS);
        let counter = &mut self.counters[group as usize];
        *counter += 1;
        *counter
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn three_workers_use_each_number_once() {
        let mut random = StdRng::seed_from_u64(7);
        let proxy_and_mirror = [10, 10, 10, 10, 123, 45, 67, 89];
        let mut used = HashSet::new();
        for worker in 0..3 {
            let mut identifications = Identifications::new(worker, 3, &mut random);
            // Worker 0 leaves out 0 itself.
            for _ in 0..65_536 / 3 - 1 {
                let identification = identifications.next_v4(&proxy_and_mirror, 17);
                assert_ne!(identification, 0);
                assert_eq!(identification % 3, worker);
                assert!(used.insert(identification), "{identification} twice");
            }
        }
    }
}
