//! A limit on how fast one part of the Internet is answered over UDP, where senders can be forged: whoever wants to
//! flood a victim with our answers gets little out of it.
//!
//! Clients are taken together by prefix. Each prefix has a bucket that fills at the limit's rate and holds one
//! second's worth; an answer takes one from it. There is a fixed number of buckets, and a keyed hash tells whose is
//! which. Two prefixes may have to share one, but nobody can choose whose, and no number of forged senders makes
//! the server forget what it has counted.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;

/// Buckets of one worker: 512 KiB.
const BUCKETS: usize = 1 << 16;

/// Bits of a client's address that tell its prefix.
const PREFIX_V4: u32 = 24;
/// The same for IPv6; whoever has an address there has as many as he likes.
const PREFIX_V6: u32 = 56;

/// How much an answer takes from its bucket, which is a second's worth shared out among the limit.
const SECOND: u64 = 1 << 20;

/// What may be answered.
#[derive(Debug)]
pub struct RateLimit {
    buckets: Box<[Bucket]>,
    hasher: ahash::RandomState,
    /// What one answer takes.
    price: u32,
    exempt: Vec<IpNet>,
    begun: Instant,
    /// How many were too many, to tell one from the next.
    refused: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Up to [`SECOND`].
    level: u32,
    /// Milliseconds since the beginning, when it was last looked at.
    at: u32,
}

/// Whether a query may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// Only that there is more over TCP, where no sender can be forged.
    Truncated,
    /// Not at all.
    Dropped,
}

impl RateLimit {
    /// A limit of so many answers a second for each prefix, from 1 to a million; those who are exempt have none.
    pub fn new(per_second: u32, exempt: Vec<IpNet>, now: Instant) -> Self {
        let full = Bucket {
            level: SECOND as u32,
            at: 0,
        };
        Self {
            buckets: vec![full; BUCKETS].into(),
            hasher: ahash::RandomState::new(),
            price: (SECOND as u32 / per_second.max(1)).max(1),
            exempt,
            begun: now,
            refused: 0,
        }
    }

    /// Asks for one answer. Of those that are too many, every other one may still say that it is truncated, so that
    /// whoever really is there can ask over TCP.
    pub fn take(&mut self, client: IpAddr, now: Instant) -> Verdict {
        let key = match client {
            IpAddr::V4(address) => u64::from(u32::from(address) >> (32 - PREFIX_V4)),
            IpAddr::V6(address) => (u128::from(address) >> (128 - PREFIX_V6)) as u64 | 1 << 63,
        };
        let place = self.hasher.hash_one(key) as usize % BUCKETS;
        // Modulo 49 days; whoever comes after as long just finds a bucket that isn't full.
        let milliseconds = now.saturating_duration_since(self.begun).as_millis() as u32;
        let bucket = &mut self.buckets[place];
        let passed = u64::from(milliseconds.wrapping_sub(bucket.at)).min(1000);
        let level = (u64::from(bucket.level) + passed * SECOND / 1000).min(SECOND) as u32;
        bucket.at = milliseconds;
        bucket.level = level;
        if level >= self.price {
            bucket.level = level - self.price;
            return Verdict::Allowed;
        }
        // Looked at last, as it takes longest.
        if self.exempt.iter().any(|net| net.contains(&client)) {
            return Verdict::Allowed;
        }
        self.refused += 1;
        if self.refused.is_multiple_of(2) {
            Verdict::Truncated
        } else {
            Verdict::Dropped
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_prefix_gets_its_rate_and_no_more() {
        let begun = Instant::now();
        let mut limit = RateLimit::new(100, vec!["10.9.0.0/16".parse().unwrap()], begun);
        let mut allowed_in = |prefix: &str, from: u64, milliseconds: u64| {
            // 2,000 queries a second, from changing addresses.
            (0..milliseconds * 2)
                .filter(|number| {
                    let now =
                        begun + Duration::from_millis(from) + Duration::from_micros(number * 500);
                    let client: IpAddr = format!("{prefix}.{}", number % 256).parse().unwrap();
                    limit.take(client, now) == Verdict::Allowed
                })
                .count()
        };
        let first = allowed_in("192.0.2", 0, 1000);
        assert!(
            (195..=205).contains(&first),
            "the bucket and a second's worth: {first}"
        );
        let second = allowed_in("192.0.2", 1000, 1000);
        assert!((95..=105).contains(&second), "{second}");
        let other = allowed_in("198.51.100", 2000, 50);
        assert!(other >= 95, "another prefix has its own: {other}");
        assert_eq!(allowed_in("10.9.0", 3000, 1000), 2000, "exempt");
    }

    #[test]
    fn every_other_one_is_sent_to_tcp() {
        let begun = Instant::now();
        let mut limit = RateLimit::new(1, Vec::new(), begun);
        let client: IpAddr = "2001:db8::1".parse().unwrap();
        let verdicts: Vec<_> = (0..5).map(|_| limit.take(client, begun)).collect();
        use Verdict::{Allowed, Dropped, Truncated};
        assert_eq!(verdicts, [Allowed, Dropped, Truncated, Dropped, Truncated]);
        let neighbour: IpAddr = "2001:db8:0:ff::1".parse().unwrap();
        assert_ne!(limit.take(neighbour, begun), Allowed, "the same /56");
        let later = begun + Duration::from_secs(2);
        assert_eq!(limit.take(client, later), Allowed);
    }
}
