//! Connections taken together: those of one diversion, on one mirror, of the clients of one prefix
//! (RFC 7015 speaks of an aggregated flow).
//!
//! Each connection belongs to one aggregate, which it names by number, so that what is measured of it
//! is added up without a search. Whoever asks for a mirror, a service or a prefix adds up aggregates.
//!
//! Clients choose their addresses, so the number of aggregates is bounded: beyond [`MAX_AGGREGATES`]
//! those make room that have no connections, and then clients are no longer told apart by their prefix.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use ahash::RandomState;

use super::{DiversionId, Totals};
use crate::packet::{Address, Endpoint};

/// From how many aggregates on no prefix gets one of its own.
pub const MAX_AGGREGATES: usize = 2048;

/// How many aggregates without connections are looked at to make room for a new one: a packet is waiting.
const DROPPED_AT_ONCE: usize = 4;

/// Which clients are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientGroups {
    /// Bits of an IPv4 client's address that tell its prefix: 0 to 32.
    pub v4: u8,
    /// Bits of an IPv6 client's address that tell its prefix: 0 to 128.
    pub v6: u8,
}

impl Default for ClientGroups {
    /// As large as the prefixes that sites usually have.
    fn default() -> Self {
        Self { v4: 24, v6: 48 }
    }
}

/// An aggregate's number: valid as long as it has connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AggregateId(u32);

/// Which connections an aggregate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AggregateKey {
    /// They follow this diversion.
    pub diversion: DiversionId,
    /// They are on this mirror.
    pub mirror: Endpoint,
    /// The first address of their clients' prefix; none: those of prefixes for which there was no room.
    pub clients: Option<Address>,
}

/// Connections taken together.
#[derive(Debug, Clone)]
pub struct Aggregate {
    /// Which they are.
    pub key: AggregateKey,
    /// How many there are now.
    pub connections: u64,
    /// What has been measured of them, those included that have ended or moved on.
    pub totals: Totals,
    /// It stands in the queue of those that make room.
    is_idle: bool,
}

/// The aggregates of one worker.
#[derive(Debug)]
pub struct Aggregates {
    groups: ClientGroups,
    slots: Vec<Option<Aggregate>>,
    free: Vec<u32>,
    by_key: HashMap<AggregateKey, AggregateId, RandomState>,
    /// Those that had no connections when they were put here, the first one first.
    idle: VecDeque<AggregateId>,
}

impl Aggregates {
    /// None yet.
    pub fn new(groups: ClientGroups) -> Self {
        Self {
            groups,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::default(),
            idle: VecDeque::new(),
        }
    }

    /// Counts a connection in. Gives the aggregate that it belongs to.
    pub fn enter(
        &mut self,
        diversion: DiversionId,
        mirror: Endpoint,
        client: Address,
    ) -> AggregateId {
        let key = AggregateKey {
            diversion,
            mirror,
            clients: Some(client.network(self.groups.v4, self.groups.v6)),
        };
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => self.add(key),
        };
        if let Some(aggregate) = self.get_mut(id) {
            aggregate.connections += 1;
        }
        id
    }

    /// Counts a connection out.
    pub fn leave(&mut self, id: AggregateId) {
        let Some(aggregate) = self.get_mut(id) else {
            return;
        };
        aggregate.connections = aggregate.connections.saturating_sub(1);
        self.queue_if_idle(id);
    }

    /// An aggregate that has connections.
    pub fn get(&self, id: AggregateId) -> Option<&Aggregate> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// An aggregate that has connections, to be changed.
    pub fn get_mut(&mut self, id: AggregateId) -> Option<&mut Aggregate> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// What has been measured of an aggregate that has connections, to be added to.
    pub fn totals_mut(&mut self, id: AggregateId) -> Option<&mut Totals> {
        Some(&mut self.get_mut(id)?.totals)
    }

    /// All aggregates, those without connections included.
    pub fn iter(&self) -> impl Iterator<Item = &Aggregate> {
        self.slots.iter().flatten()
    }

    /// All aggregates, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Aggregate> {
        self.slots.iter_mut().flatten()
    }

    /// Those of some slots, and whether there are slots after them.
    pub fn slice(&self, slots: Range<usize>) -> (impl Iterator<Item = &Aggregate>, bool) {
        let end = slots.end.min(self.slots.len());
        let slice = &self.slots[slots.start.min(end)..end];
        (slice.iter().flatten(), end < self.slots.len())
    }

    /// How clients are taken together.
    pub fn groups(&self) -> ClientGroups {
        self.groups
    }

    fn add(&mut self, key: AggregateKey) -> AggregateId {
        for _ in 0..DROPPED_AT_ONCE {
            if self.by_key.len() >= MAX_AGGREGATES
                && let Some(id) = self.idle.pop_front()
            {
                self.drop_idle(id);
            }
        }
        if self.by_key.len() < MAX_AGGREGATES {
            return self.put(key);
        }
        self.of_the_rest(key)
    }

    /// The aggregate of the clients that have none for their prefix.
    fn of_the_rest(&mut self, key: AggregateKey) -> AggregateId {
        let key = AggregateKey {
            clients: None,
            ..key
        };
        match self.by_key.get(&key) {
            Some(id) => *id,
            None => self.put(key),
        }
    }

    fn put(&mut self, key: AggregateKey) -> AggregateId {
        let aggregate = Some(Aggregate {
            key,
            connections: 0,
            totals: Totals::default(),
            is_idle: false,
        });
        let id = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = aggregate;
                AggregateId(slot)
            }
            None => {
                self.slots.push(aggregate);
                AggregateId(self.slots.len() as u32 - 1)
            }
        };
        self.by_key.insert(key, id);
        id
    }

    /// Takes an aggregate out, if it has still no connections. What was measured of a prefix goes on
    /// counting for its mirror.
    fn drop_idle(&mut self, id: AggregateId) {
        let Some(aggregate) = self.get_mut(id) else {
            return;
        };
        aggregate.is_idle = false;
        if aggregate.connections > 0 {
            return;
        }
        let Some(dropped) = self.slots[id.0 as usize].take() else {
            return;
        };
        self.by_key.remove(&dropped.key);
        self.free.push(id.0);
        if dropped.key.clients.is_none() {
            return;
        }
        let rest = self.of_the_rest(dropped.key);
        if let Some(aggregate) = self.get_mut(rest) {
            aggregate.totals.add(&dropped.totals);
            self.queue_if_idle(rest);
        }
    }

    /// Has an aggregate make room when it comes to that, if it has no connections.
    fn queue_if_idle(&mut self, id: AggregateId) {
        if let Some(aggregate) = self.get_mut(id)
            && aggregate.connections == 0
            && !aggregate.is_idle
        {
            aggregate.is_idle = true;
            self.idle.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn mirror(port: u16) -> Endpoint {
        Endpoint::new(IpAddr::from(Ipv4Addr::new(10, 2, 0, 2)), port)
    }

    fn client(number: u32) -> Address {
        IpAddr::from(Ipv4Addr::from(number)).into()
    }

    fn enter(aggregates: &mut Aggregates, number: u32) -> AggregateId {
        aggregates.enter(DiversionId(1), mirror(80), client(number))
    }

    #[test]
    fn clients_of_a_prefix_are_together_and_others_apart() {
        let mut aggregates = Aggregates::new(ClientGroups::default());
        let first = enter(&mut aggregates, 0x0A00_0001);
        assert_eq!(enter(&mut aggregates, 0x0A00_00FF), first);
        assert_ne!(enter(&mut aggregates, 0x0A00_0101), first);
        assert_ne!(
            aggregates.enter(DiversionId(1), mirror(81), client(0x0A00_0001)),
            first
        );
        let aggregate = aggregates.get(first).unwrap();
        assert_eq!(aggregate.connections, 2);
        assert_eq!(aggregate.key.clients, Some(client(0x0A00_0000)));
    }

    #[test]
    fn an_aggregate_outlives_its_connections() {
        let mut aggregates = Aggregates::new(ClientGroups::default());
        let first = enter(&mut aggregates, 1);
        aggregates.get_mut(first).unwrap().totals.opened = 7;
        aggregates.leave(first);
        let again = enter(&mut aggregates, 2);
        assert_eq!(aggregates.get(again).unwrap().totals.opened, 7);
    }

    #[test]
    fn a_flood_of_prefixes_is_bounded_and_counted_together() {
        let mut aggregates = Aggregates::new(ClientGroups { v4: 32, v6: 128 });
        let mut count = |number| {
            let id = enter(&mut aggregates, number);
            aggregates.get_mut(id).unwrap().totals.opened += 1;
            id
        };
        let ids: Vec<AggregateId> = (0..5000).map(&mut count).collect();
        let rest = aggregates.get(ids[4999]).unwrap();
        assert_eq!(rest.key.clients, None);
        assert_eq!(rest.connections, 5000 - MAX_AGGREGATES as u64);
        assert_eq!(aggregates.iter().count(), MAX_AGGREGATES + 1);

        // Those without connections make room, and their mirror's sum stays what it was.
        for id in ids {
            aggregates.leave(id);
        }
        for number in 10_000..10_005 {
            let id = enter(&mut aggregates, number);
            assert!(aggregates.get(id).unwrap().key.clients.is_some());
        }
        let opened = aggregates.iter().map(|a| a.totals.opened);
        assert_eq!(opened.sum::<u64>(), 5000);
    }

    #[test]
    fn however_many_are_idle_a_new_one_waits_for_few_of_them() {
        let mut aggregates = Aggregates::new(ClientGroups::default());
        let ids: Vec<AggregateId> = (0..10 * MAX_AGGREGATES as u32)
            .map(|diversion| aggregates.enter(DiversionId(diversion), mirror(80), client(1)))
            .collect();
        ids.into_iter().for_each(|id| aggregates.leave(id));
        // First they become those of all clients, then they go.
        for number in 0..10 * MAX_AGGREGATES as u32 {
            let before = aggregates.iter().count();
            let id = aggregates.enter(DiversionId(u32::MAX - number), mirror(80), client(1));
            aggregates.leave(id);
            let after = aggregates.iter().count();
            assert!(
                before.abs_diff(after) <= DROPPED_AT_ONCE,
                "{before}, {after}"
            );
        }
        assert!(aggregates.iter().count() <= MAX_AGGREGATES);
    }
}
