//! The proxy addresses and ports that one worker may give out.
//!
//! A proxy port must be unique only for its (protocol, proxy address, mirror endpoint), so one proxy
//! address carries as many connections to *each* mirror endpoint as the range has ports. Worker `k`
//! of `n` gives out the ports congruent to `k` modulo `n`: the port of a reverse packet tells whose
//! it is.
//!
//! Ports are picked at random (RFC 6056, section 3.3.2: random ports until one is free, then in order).
//! A client keeps to one proxy address as long as that has ports (RFC 4787, REQ-2).
//!
//! The port of a connection that has ended *rests* as long as the connection is remembered: the mirror
//! may still be in TIME-WAIT, and segments on their way. When free ports are hard to find, the port
//! that has rested longest is given out again, but none before [`MIN_REST`], the time after which a
//! Linux host takes its own ports out of TIME-WAIT (`tcp_tw_reuse`, RFC 6191).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use control_protocol::Protocol;
use rand::Rng;
use thiserror::Error;

use super::slot_list::{SlotLinks, SlotList};
use super::{MirrorSide, Slot, Tick};
use crate::packet::{Address, Endpoint};

/// The least time for which the port of an ended connection rests.
const MIN_REST: Duration = Duration::from_secs(1);
/// Random ports that are tried before one that has rested is taken.
const PROBES: u32 = 32;

/// A port for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// This one is free, and taken now.
    Free(Endpoint),
    /// The port of this connection has rested: remove the connection and take its port with
    /// [`ProxyPool::take_same`].
    Rested(Slot),
}

/// No proxy address has a port left for this mirror, or none is of the mirror's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("every proxy port for this mirror is in use")]
pub struct Exhausted;

/// The proxy addresses and ports of one worker.
#[derive(Debug)]
pub struct ProxyPool {
    addresses: Vec<Address>,
    /// The same, to be searched.
    address_set: HashSet<Address, RandomState>,
    /// The same, to be shown.
    v4: Arc<[IpAddr]>,
    v6: Arc<[IpAddr]>,
    first_port: u16,
    /// How many ports this worker has at each address.
    ports: u32,
    /// The distance from one port of this worker's to the next: the number of workers.
    stride: u32,
    in_use: HashMap<(Protocol, Address, Endpoint), InUse, RandomState>,
    resting_links: SlotLinks,
    hasher: RandomState,
}

/// What is in use of one proxy address towards one mirror endpoint.
#[derive(Debug, Default)]
struct InUse {
    /// Ports, resting ones included.
    ports: u32,
    /// The connections whose ports are resting.
    resting: SlotList,
}

impl ProxyPool {
    /// The share of worker `worker` of `workers` in these addresses and ports. A range with fewer
    /// ports than workers leaves some workers without any.
    pub fn new(
        addresses: &[IpAddr],
        ports: &RangeInclusive<u16>,
        worker: u16,
        workers: u16,
    ) -> Self {
        let stride = u32::from(workers.max(1));
        let (start, end) = (u32::from(*ports.start()), u32::from(*ports.end()));
        let first = start + (u32::from(worker) + stride - start % stride) % stride;
        Self {
            addresses: addresses
                .iter()
                .map(|address| Address::from(*address))
                .collect(),
            v4: of_family(addresses, IpAddr::is_ipv4),
            v6: of_family(addresses, IpAddr::is_ipv6),
            address_set: addresses.iter().copied().map(Address::from).collect(),
            first_port: u16::try_from(first).unwrap_or(u16::MAX),
            ports: if first > end {
                0
            } else {
                (end - first) / stride + 1
            },
            stride,
            in_use: HashMap::default(),
            resting_links: SlotLinks::default(),
            hasher: RandomState::new(),
        }
    }

    /// Whether this is one of the proxy addresses.
    pub fn contains(&self, address: Address) -> bool {
        self.address_set.contains(&address)
    }

    /// The proxy addresses of the same family as this one.
    pub fn addresses_like(&self, address: Address) -> Arc<[IpAddr]> {
        let family = if address.is_v4() { &self.v4 } else { &self.v6 };
        family.clone()
    }

    /// Takes a port for a connection of `client` to `mirror`; `is_taken` says which are in use.
    /// It may say so of more than were taken here.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn take(
        &mut self,
        protocol: Protocol,
        client: Address,
        mirror: Endpoint,
        now: Tick,
        random: &mut impl Rng,
        is_taken: impl Fn(&MirrorSide) -> bool,
    ) -> Result<Taken, Exhausted> {
        if self.ports == 0 {
            return Err(Exhausted);
        }
        let preferred = self.hasher.hash_one(client) as usize;
        for number in 0..self.addresses.len() {
            let address = self.addresses[preferred.wrapping_add(number) % self.addresses.len()];
            if address.is_v4() != mirror.address.is_v4() {
                continue;
            }
            let (first_port, stride) = (self.first_port, self.stride);
            // Without ports, an address carries one connection to each mirror.
            let ports = if matches!(protocol, Protocol::Other(_)) {
                1
            } else {
                self.ports
            };
            let free = |index: u32| {
                let port = match protocol {
                    Protocol::Other(_) => 0,
                    // The last port of the range is at most 65,535.
                    _ => first_port + (index % ports * stride) as u16,
                };
                let proxy = Endpoint { address, port };
                (!is_taken(&MirrorSide { proxy, mirror })).then_some(proxy)
            };
            let in_use = self.in_use.entry((protocol, address, mirror)).or_default();
            let has_free = in_use.ports < ports;
            let found = has_free
                .then(|| (0..PROBES).find_map(|_| free(random.random_range(0..ports))))
                .flatten();
            if let Some(proxy) = found {
                in_use.ports += 1;
                return Ok(Taken::Free(proxy));
            }
            if let Some((slot, since)) = self.resting_links.oldest(&in_use.resting)
                && since.after(MIN_REST) <= now
            {
                return Ok(Taken::Rested(slot));
            }
            if has_free {
                let start = random.random_range(0..ports);
                if let Some(proxy) = (start..start + ports).find_map(free) {
                    in_use.ports += 1;
                    return Ok(Taken::Free(proxy));
                }
            }
        }
        Err(Exhausted)
    }

    /// Takes just this port if it is free, for a connection that keeps its proxy port as it moves.
    pub fn take_same(
        &mut self,
        protocol: Protocol,
        side: &MirrorSide,
        is_taken: impl Fn(&MirrorSide) -> bool,
    ) -> bool {
        if is_taken(side) {
            return false;
        }
        self.in_use_mut(protocol, side).ports += 1;
        true
    }

    /// Says that a connection has ended: its port rests from now on.
    pub fn rest(&mut self, slot: Slot, protocol: Protocol, side: &MirrorSide, now: Tick) {
        let key = (protocol, side.proxy.address, side.mirror);
        if let Some(in_use) = self.in_use.get_mut(&key) {
            self.resting_links.add(&mut in_use.resting, slot, now);
        }
    }

    /// Gives the port of a connection back.
    pub fn give_back(&mut self, slot: Slot, protocol: Protocol, side: &MirrorSide) {
        let key = (protocol, side.proxy.address, side.mirror);
        if let Some(in_use) = self.in_use.get_mut(&key) {
            self.resting_links.remove(&mut in_use.resting, slot);
            in_use.ports = in_use.ports.saturating_sub(1);
            if in_use.ports == 0 {
                self.in_use.remove(&key);
            }
        }
    }

    fn in_use_mut(&mut self, protocol: Protocol, side: &MirrorSide) -> &mut InUse {
        self.in_use
            .entry((protocol, side.proxy.address, side.mirror))
            .or_default()
    }
}

fn of_family(addresses: &[IpAddr], is_of_it: fn(&IpAddr) -> bool) -> Arc<[IpAddr]> {
    addresses.iter().copied().filter(is_of_it).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn mirror(last: u8) -> Endpoint {
        Endpoint::new(IpAddr::from([10, 2, 0, last]), 80)
    }

    fn client() -> Address {
        Address::v4([10, 1, 0, 2])
    }

    fn take_all(pool: &mut ProxyPool, mirror: Endpoint) -> Vec<Endpoint> {
        let taken = RefCell::new(HashSet::new());
        let mut random = StdRng::seed_from_u64(1);
        std::iter::from_fn(|| {
            let is_taken = |side: &MirrorSide| taken.borrow().contains(side);
            let found = pool.take(
                Protocol::Tcp,
                client(),
                mirror,
                Tick(0),
                &mut random,
                is_taken,
            );
            let Taken::Free(proxy) = found.ok()? else {
                panic!("no port is resting")
            };
            assert!(
                taken.borrow_mut().insert(MirrorSide { proxy, mirror }),
                "given out twice"
            );
            Some(proxy)
        })
        .collect()
    }

    #[test]
    fn every_port_of_the_worker_is_given_out_once_for_each_mirror() {
        let mut pool = ProxyPool::new(&[IpAddr::from([10, 10, 10, 10])], &(1024..=65535), 1, 2);
        for last in [2, 3] {
            let taken = take_all(&mut pool, mirror(last));
            assert_eq!(taken.len(), (65536 - 1024) / 2);
            assert!(
                taken
                    .iter()
                    .all(|proxy| proxy.port % 2 == 1 && proxy.port >= 1024)
            );
        }
    }

    #[test]
    fn a_range_of_one_port_belongs_to_one_worker() {
        let ports = 513..=513;
        let shares: Vec<usize> = (0..4)
            .map(|worker| {
                let mut pool = ProxyPool::new(&[IpAddr::from([10, 10, 10, 10])], &ports, worker, 4);
                take_all(&mut pool, mirror(2)).len()
            })
            .collect();
        assert_eq!(shares, [0, 1, 0, 0]);
    }

    fn one_port() -> (ProxyPool, MirrorSide) {
        let mut pool = ProxyPool::new(&[IpAddr::from([10, 10, 10, 10])], &(513..=513), 0, 1);
        let Ok(Taken::Free(proxy)) = take_one(&mut pool, 0) else {
            panic!("the only port is free")
        };
        let mirror = mirror(2);
        (pool, MirrorSide { proxy, mirror })
    }

    fn take_one(pool: &mut ProxyPool, now: u32) -> Result<Taken, Exhausted> {
        let mut random = StdRng::seed_from_u64(1);
        pool.take(
            Protocol::Tcp,
            client(),
            mirror(2),
            Tick(now),
            &mut random,
            |_| false,
        )
    }

    #[test]
    fn a_port_that_was_given_back_can_be_taken_again() {
        let (mut pool, side) = one_port();
        assert_eq!(take_one(&mut pool, 0), Err(Exhausted));
        pool.give_back(7, Protocol::Tcp, &side);
        assert_eq!(take_one(&mut pool, 0), Ok(Taken::Free(side.proxy)));
    }

    #[test]
    fn a_closed_connections_port_is_offered_after_a_rest_and_not_before() {
        let (mut pool, side) = one_port();
        pool.rest(7, Protocol::Tcp, &side, Tick(100));
        assert_eq!(take_one(&mut pool, 100), Err(Exhausted));
        let rested = Tick(100).after(MIN_REST);
        assert_eq!(take_one(&mut pool, rested.0 - 1), Err(Exhausted));
        assert_eq!(take_one(&mut pool, rested.0), Ok(Taken::Rested(7)));
        pool.give_back(7, Protocol::Tcp, &side);
        assert_eq!(take_one(&mut pool, rested.0), Ok(Taken::Free(side.proxy)));
        assert_eq!(
            take_one(&mut pool, u32::MAX),
            Err(Exhausted),
            "it isn't resting any more"
        );
    }

    #[test]
    fn the_next_address_is_used_when_one_is_exhausted_and_the_family_must_fit() {
        let addresses: [IpAddr; 3] = [
            [10, 10, 10, 10].into(),
            "fd00::1".parse().unwrap(),
            [10, 10, 10, 11].into(),
        ];
        let mut pool = ProxyPool::new(&addresses, &(2000..=2001), 0, 1);
        assert_eq!(take_all(&mut pool, mirror(2)).len(), 4);
        let v6 = Endpoint::new("fd00::2".parse::<IpAddr>().unwrap(), 80);
        assert_eq!(take_all(&mut pool, v6).len(), 2);
    }

    /// RFC 4787, REQ-2: "IP address pooling" behaviour of "Paired".
    #[test]
    fn a_client_keeps_to_one_proxy_address_and_clients_are_shared_out() {
        let addresses = [[10, 10, 10, 10].into(), [10, 10, 10, 11].into()];
        let mut pool = ProxyPool::new(&addresses, &(1024..=65535), 0, 1);
        let mut random = StdRng::seed_from_u64(1);
        let mut used = HashSet::new();
        for last in 0..=255 {
            let client = Address::v4([10, 1, 0, last]);
            let mut take = |mirror| match pool.take(
                Protocol::Udp,
                client,
                mirror,
                Tick(0),
                &mut random,
                |_| false,
            ) {
                Ok(Taken::Free(proxy)) => proxy.address,
                other => panic!("{other:?}"),
            };
            let first = take(mirror(2));
            for number in 2..20 {
                assert_eq!(take(mirror(number)), first);
            }
            used.insert(first);
        }
        assert_eq!(used.len(), 2, "256 clients use both addresses");
    }

    #[test]
    fn ports_are_not_given_out_in_order() {
        let mut pool = ProxyPool::new(&[IpAddr::from([10, 10, 10, 10])], &(1024..=65535), 0, 1);
        let taken = take_all(&mut pool, mirror(2));
        let in_order = taken
            .windows(2)
            .filter(|pair| pair[1].port.wrapping_sub(pair[0].port) == 1)
            .count();
        assert!(
            in_order < taken.len() / 2,
            "{in_order} of {} follow each other",
            taken.len()
        );
    }
}
