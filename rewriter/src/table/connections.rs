//! The connections of one worker: records in a slab, an index into it, and the timer wheel.
//!
//! All memory is reserved at the start, so that no packet ever waits for a table to grow. Each
//! connection stands in the index twice, under the [`Flow`] of either direction, so that a packet of
//! a known connection needs one look-up, whichever way it goes. The index holds slots, not keys, and
//! hashes with a random key: clients choose what goes in.
//!
//! Connections that could be missed stand in a list of their own, the oldest first: those that have
//! not been answered yet, as a flood consists of, and those that have ended. When the table is full,
//! they make room for new ones, and established connections carry on.

use std::hint;

use ahash::RandomState;

use super::flow_index::{FlowHash, FlowIndex};
use super::slot_list::{SlotLinks, SlotList};
use super::{Connection, Direction, MirrorSide, Tick, TimerWheel};
use crate::packet::Flow;

/// Where a connection lies in its worker's slab: less than 2^30.
pub type Slot = u32;

/// The most connections that one worker can have.
const MAX_CAPACITY: usize = 1 << 30;

/// How many flows [`Connections::fetch`] looks at, at most.
pub const FETCHED_AT_ONCE: usize = 64;

/// The connections of one worker.
#[derive(Debug)]
pub struct Connections {
    slab: Vec<Option<Connection>>,
    capacity: usize,
    free: Vec<Slot>,
    index: FlowIndex,
    hasher: RandomState,
    timers: TimerWheel,
    expendable: SlotList,
    expendable_links: SlotLinks,
}

/// What the index holds: a slot, and in the lowest bit, the direction of the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(u32);

impl Entry {
    fn new(slot: Slot, direction: Direction) -> Self {
        Self(slot << 1 | u32::from(direction == Direction::Reverse))
    }

    fn slot(self) -> Slot {
        self.0 >> 1
    }

    fn direction(self) -> Direction {
        if self.0 & 1 == 0 {
            Direction::Forward
        } else {
            Direction::Reverse
        }
    }
}

impl Connections {
    /// A table for at most `capacity` connections, or 2^30, with memory for all of them reserved (the
    /// system hands it out only as it is used).
    pub fn with_capacity(capacity: usize, now: Tick) -> Self {
        let capacity = capacity.min(MAX_CAPACITY);
        Self {
            slab: Vec::with_capacity(capacity),
            capacity,
            free: Vec::new(),
            index: FlowIndex::with_capacity(2 * capacity),
            hasher: RandomState::new(),
            timers: TimerWheel::new(now),
            expendable: SlotList::default(),
            expendable_links: SlotLinks::default(),
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.slab.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots that have ever been in use: all connections lie below.
    pub fn slots(&self) -> Slot {
        self.slab.len() as Slot
    }

    /// The connection in a slot.
    pub fn get(&self, slot: Slot) -> Option<&Connection> {
        self.slab.get(slot as usize)?.as_ref()
    }

    /// The connection in a slot, to be changed.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Connection> {
        self.slab.get_mut(slot as usize)?.as_mut()
    }

    /// The connection that packets of this flow belong to, and which way they go.
    pub fn find(&self, flow: &Flow) -> Option<(Slot, Direction)> {
        let found = self.index.find(self.hash(flow), |value| {
            let entry = Entry(value);
            self.get(entry.slot())
                .is_some_and(|connection| connection.has_flow(entry.direction(), flow))
        });
        found.map(|value| (Entry(value).slot(), Entry(value).direction()))
    }

    /// Brings what [`Connections::find`] needs for these flows, and their connections, into the
    /// processor's cache. Changes nothing but how long that takes.
    ///
    /// The loops are short so that the processor runs ahead and waits for many memory accesses at
    /// once, where a look-up after the other would wait for each.
    pub fn fetch(&self, flows: impl Iterator<Item = Flow>) {
        let mut hashes = [FlowHash::default(); FETCHED_AT_ONCE];
        let mut count = 0;
        for (hash, flow) in hashes.iter_mut().zip(flows) {
            *hash = self.hash(&flow);
            count += 1;
        }
        let hashes = &hashes[..count];
        let mut touched = 0;
        for hash in hashes {
            touched ^= self.index.touch(*hash);
        }
        let mut slots = [0; FETCHED_AT_ONCE];
        for (slot, hash) in slots.iter_mut().zip(hashes) {
            let found = self.index.find(*hash, |_| true);
            *slot = found.map_or(0, |value| Entry(value).slot());
        }
        for slot in &slots[..count] {
            touched ^= self.get(*slot).map_or(0, Connection::touch);
        }
        hint::black_box(touched);
    }

    /// Whether no connection can be added until one has been removed.
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Adds a connection whose flows are both new to the table, to be looked at by
    /// [`Connections::pop_due`] at `due`. It is expendable. `None`: the table is full.
    pub fn insert(&mut self, connection: Connection, due: Tick) -> Option<Slot> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slab.len() < self.capacity => {
                self.slab.push(None);
                self.slab.len() as Slot - 1
            }
            None => return None,
        };
        self.slab[slot as usize] = Some(connection);
        self.add_to_index(Entry::new(slot, Direction::Forward));
        self.add_to_index(Entry::new(slot, Direction::Reverse));
        self.timers.insert(slot, due);
        self.set_expendable(slot, true, connection.last_activity);
        Some(slot)
    }

    /// Takes a connection out.
    pub fn remove(&mut self, slot: Slot) -> Option<Connection> {
        self.remove_from_index(Entry::new(slot, Direction::Forward));
        self.remove_from_index(Entry::new(slot, Direction::Reverse));
        let connection = self.slab.get_mut(slot as usize)?.take()?;
        self.timers.remove(slot);
        self.expendable_links.remove(&mut self.expendable, slot);
        self.free.push(slot);
        Some(connection)
    }

    /// Gives a connection another mirror side, which must be new to the table.
    pub fn move_to(&mut self, slot: Slot, mirror_side: MirrorSide) {
        let reverse = Entry::new(slot, Direction::Reverse);
        self.remove_from_index(reverse);
        if let Some(connection) = self.get_mut(slot) {
            connection.set_mirror_side(mirror_side);
            self.add_to_index(reverse);
        }
    }

    /// Says whether a connection could be missed.
    pub fn set_expendable(&mut self, slot: Slot, is_expendable: bool, now: Tick) {
        if is_expendable {
            self.expendable_links.add(&mut self.expendable, slot, now);
        } else {
            self.expendable_links.remove(&mut self.expendable, slot);
        }
    }

    /// The connection that could be missed best: the one that has been expendable for longest.
    pub fn most_expendable(&self) -> Option<Slot> {
        Some(self.expendable_links.oldest(&self.expendable)?.0)
    }

    /// A connection whose time has come; it is no longer on the timer wheel, and must be
    /// [removed](Connections::remove) or [put back](Connections::set_due).
    pub fn pop_due(&mut self, now: Tick) -> Option<Slot> {
        self.timers.pop_due(now)
    }

    /// Sets the time at which to look at a connection.
    pub fn set_due(&mut self, slot: Slot, due: Tick) {
        self.timers.remove(slot);
        self.timers.insert(slot, due);
    }

    /// No connection is due before this. `None`: there is none.
    pub fn next_due(&self) -> Option<Tick> {
        self.timers.next_due()
    }

    fn add_to_index(&mut self, entry: Entry) {
        if let Some(flow) = self.flow(entry) {
            self.index.insert(self.hash(&flow), entry.0);
        }
    }

    fn remove_from_index(&mut self, entry: Entry) {
        if let Some(flow) = self.flow(entry) {
            self.index.remove(self.hash(&flow), entry.0);
        }
    }

    /// The flow that an entry stands for.
    fn flow(&self, entry: Entry) -> Option<Flow> {
        Some(self.get(entry.slot())?.flow(entry.direction()))
    }

    fn hash(&self, flow: &Flow) -> FlowHash {
        self.hasher.hash_one(flow).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use control_protocol::Protocol;
    use proptest::prelude::*;

    use super::*;
    use crate::packet::Endpoint;
    use crate::table::{AggregateId, ClientSide};

    fn endpoint(last: u8, port: u16) -> Endpoint {
        Endpoint::new(std::net::IpAddr::from(Ipv4Addr::new(10, 0, 0, last)), port)
    }

    fn connection(client: u16, proxy: u16) -> Connection {
        Connection::new(
            Protocol::Tcp,
            ClientSide {
                client: endpoint(1, client),
                service: endpoint(2, 80),
            },
            MirrorSide {
                proxy: endpoint(3, proxy),
                mirror: endpoint(4, 80),
            },
            AggregateId::default(),
            Tick(0),
        )
    }

    #[test]
    fn a_full_table_takes_no_more_and_a_freed_slot_is_used_again() {
        let mut table = Connections::with_capacity(2, Tick(0));
        let first = table.insert(connection(1, 1), Tick(9)).unwrap();
        table.insert(connection(2, 2), Tick(9)).unwrap();
        assert_eq!(table.insert(connection(3, 3), Tick(9)), None);
        table.remove(first).unwrap();
        assert_eq!(table.insert(connection(3, 3), Tick(9)), Some(first));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16),
        Remove(u16),
        Move(u16, u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_u16).prop_map(Step::Insert),
            (0..40_u16).prop_map(Step::Remove),
            (0..40_u16, 100..200_u16).prop_map(|(client, proxy)| Step::Move(client, proxy)),
        ]
    }

    proptest! {
        /// The table and a plain map from client port to proxy port take the same steps.
        #[test]
        fn the_table_agrees_with_a_plain_map(steps in prop::collection::vec(step(), 1..300)) {
            let mut table = Connections::with_capacity(32, Tick(0));
            let mut model: HashMap<u16, u16> = HashMap::new();
            for step in steps {
                let find = |table: &Connections, client| {
                    table
                        .find(&connection(client, 0).flow(Direction::Forward))
                        .map(|(slot, _)| slot)
                };
                match step {
                    Step::Insert(client) => {
                        let taken = model.contains_key(&client) || model.values().any(|p| *p == client);
                        if !taken {
                            let slot = table.insert(connection(client, client), Tick(5));
                            prop_assert_eq!(slot.is_some(), model.len() < 32);
                            if slot.is_some() {
                                model.insert(client, client);
                            }
                        }
                    }
                    Step::Remove(client) => {
                        let removed = find(&table, client).and_then(|slot| table.remove(slot));
                        prop_assert_eq!(
                            removed.map(|c| c.mirror_side().proxy.port), model.remove(&client));
                    }
                    Step::Move(client, proxy) => {
                        if let Some(slot) = find(&table, client)
                            && !model.values().any(|p| *p == proxy)
                        {
                            table.move_to(slot, *connection(client, proxy).mirror_side());
                            model.insert(client, proxy);
                        }
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                for (client, proxy) in &model {
                    let by_client = find(&table, *client);
                    let by_mirror = table.find(&connection(0, *proxy).flow(Direction::Reverse));
                    prop_assert!(by_client.is_some());
                    prop_assert_eq!(by_client.map(|slot| (slot, Direction::Reverse)), by_mirror);
                }
            }
        }
    }
}
