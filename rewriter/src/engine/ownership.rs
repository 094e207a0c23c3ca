//! Who owns a connection: a pure function of each of its packets.
//!
//! A reverse packet belongs to the worker that gave out its proxy port, and a worker only gives out
//! ports congruent to its number. A forward packet belongs to a worker by its client's address and
//! port; one without ports, to the same worker as its answers. Both can be computed from one packet without any table, by
//! any worker, and by the kernel (`io/tun/steering.rs`). Fragments, most of which have no ports, first meet at a worker by what all of a datagram have in common.

use crate::packet::{Address, Endpoint};

/// Shares connections out among workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    workers: u16,
    key: u64,
}

impl Ownership {
    /// Ownership among `workers` workers (0 counts as 1). The `key` makes it hard for clients to
    /// choose their worker.
    pub fn new(workers: u16, key: u64) -> Self {
        // An odd factor loses no bits.
        Self {
            workers: workers.max(1),
            key: key | 1,
        }
    }

    /// The number of workers.
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// The key, made odd: what [`Ownership::of_client`] multiplies by.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The owner of what has no ports to go by, in either direction.
    pub fn of_portless(&self) -> u16 {
        self.of_proxy_port(0)
    }

    /// The owner of what a client sends.
    pub fn of_client(&self, client: Endpoint) -> u16 {
        self.share(self.mix(client.port.into(), client.address))
    }

    /// Where all fragments of a datagram meet. The whole one belongs to whoever owns its connection.
    pub fn of_fragments(&self, source: Address, destination: Address, identification: u32) -> u16 {
        self.share(self.mix(self.mix(identification.into(), source), destination))
    }

    /// The owner of what is sent to a proxy port or echo identifier.
    pub fn of_proxy_port(&self, port: u16) -> u16 {
        port % self.workers
    }

    fn mix(&self, start: u64, address: Address) -> u64 {
        address.wire().chunks(4).fold(start, |mix, word| {
            let word = word
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            (mix ^ word).wrapping_mul(self.key).rotate_left(29)
        })
    }

    fn share(&self, mix: u64) -> u16 {
        // The high bits of a product are the best mixed ones.
        ((mix >> 40) % u64::from(self.workers)) as u16
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn clients_are_shared_out_evenly() {
        let ownership = Ownership::new(4, 0x9E37_79B9_7F4A_7C15);
        let mut counts = [0; 4];
        for port in 32_768..60_768 {
            let client = Endpoint::new(IpAddr::from([10, 1, 0, 2]), port);
            counts[usize::from(ownership.of_client(client))] += 1;
        }
        assert!(
            counts.iter().all(|count| (6_000..8_000).contains(count)),
            "{counts:?}"
        );
    }
}
