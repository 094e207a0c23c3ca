//! The connections of one worker: records in a slab, two indices into it, and the timer wheel.
//!
//! All memory is reserved at the start, so that no packet ever waits for a table to grow. The
//! indices hold slots, not keys, and hash with a random key: clients choose what goes in.
//!
//! Connections that could be missed stand in a list of their own, the oldest first: those that have
//! not been answered yet, as a flood consists of, and those that have ended. When the table is full,
//! they make room for new ones, and established connections carry on.

use ahash::RandomState;
use control_protocol::Protocol;
use hashbrown::HashTable;

use super::slot_list::{SlotLinks, SlotList};
use super::{ClientSide, Connection, MirrorSide, Tick, TimerWheel};

/// Where a connection lies in its worker's slab.
pub type Slot = u32;

/// The connections of one worker.
#[derive(Debug)]
pub struct Connections {
    slab: Vec<Option<Connection>>,
    capacity: usize,
    free: Vec<Slot>,
    by_client_side: HashTable<Slot>,
    by_mirror_side: HashTable<Slot>,
    hasher: RandomState,
    timers: TimerWheel,
    expendable: SlotList,
    expendable_links: SlotLinks,
}

impl Connections {
    /// A table for at most `capacity` connections, less than 2^32, with memory for all of them
    /// reserved (the system hands it out only as it is used).
    pub fn with_capacity(capacity: usize, now: Tick) -> Self {
        let capacity = capacity.min(Slot::MAX as usize);
        Self {
            slab: Vec::with_capacity(capacity),
            capacity,
            free: Vec::new(),
            by_client_side: HashTable::with_capacity(capacity),
            by_mirror_side: HashTable::with_capacity(capacity),
            hasher: RandomState::new(),
            timers: TimerWheel::new(now),
            expendable: SlotList::default(),
            expendable_links: SlotLinks::default(),
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.by_client_side.len()
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

    /// Where the connection with this client side is.
    pub fn find_by_client_side(&self, protocol: Protocol, side: &ClientSide) -> Option<Slot> {
        self.by_client_side
            .find(self.hasher.hash_one((protocol, side)), |slot| {
                at(&self.slab, *slot)
                    .is_some_and(|c| c.client_side() == side && c.protocol() == protocol)
            })
            .copied()
    }

    /// Where the connection with this mirror side is.
    pub fn find_by_mirror_side(&self, protocol: Protocol, side: &MirrorSide) -> Option<Slot> {
        self.by_mirror_side
            .find(self.hasher.hash_one((protocol, side)), |slot| {
                at(&self.slab, *slot)
                    .is_some_and(|c| c.mirror_side() == side && c.protocol() == protocol)
            })
            .copied()
    }

    /// Whether no connection can be added until one has been removed.
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Adds a connection whose sides are both new to the table, to be looked at by
    /// [`Connections::pop_due`] at `due`. It is expendable. `None`: the table is full.
    pub fn insert(&mut self, connection: Connection, due: Tick) -> Option<Slot> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slab.len() < self.capacity => {
                self.slab.push(None);
                self.slots() - 1
            }
            None => return None,
        };
        debug_assert!(
            self.find_by_client_side(connection.protocol(), connection.client_side())
                .is_none()
        );
        self.slab[slot as usize] = Some(connection);
        let Self { slab, hasher, .. } = self;
        self.by_client_side
            .insert_unique(hash_client_side(hasher, &connection), slot, |slot| {
                at(slab, *slot).map_or(0, |c| hash_client_side(hasher, c))
            });
        self.by_mirror_side
            .insert_unique(hash_mirror_side(hasher, &connection), slot, |slot| {
                at(slab, *slot).map_or(0, |c| hash_mirror_side(hasher, c))
            });
        self.timers.insert(slot, due);
        self.set_expendable(slot, true, connection.last_activity);
        Some(slot)
    }

    /// Takes a connection out.
    pub fn remove(&mut self, slot: Slot) -> Option<Connection> {
        let connection = self.slab.get_mut(slot as usize)?.take()?;
        unindex(
            &mut self.by_client_side,
            hash_client_side(&self.hasher, &connection),
            slot,
        );
        unindex(
            &mut self.by_mirror_side,
            hash_mirror_side(&self.hasher, &connection),
            slot,
        );
        self.timers.remove(slot);
        self.expendable_links.remove(&mut self.expendable, slot);
        self.free.push(slot);
        Some(connection)
    }

    /// Gives a connection another mirror side, which must be new to the table.
    pub fn move_to(&mut self, slot: Slot, mirror_side: MirrorSide) {
        let Self { slab, hasher, .. } = self;
        let Some(connection) = slab.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        unindex(
            &mut self.by_mirror_side,
            hash_mirror_side(hasher, connection),
            slot,
        );
        connection.set_mirror_side(mirror_side);
        let hash = hash_mirror_side(hasher, connection);
        self.by_mirror_side.insert_unique(hash, slot, |slot| {
            at(slab, *slot).map_or(0, |c| hash_mirror_side(hasher, c))
        });
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
}

fn at(slab: &[Option<Connection>], slot: Slot) -> Option<&Connection> {
    slab.get(slot as usize)?.as_ref()
}

fn hash_client_side(hasher: &RandomState, connection: &Connection) -> u64 {
    hasher.hash_one((connection.protocol(), connection.client_side()))
}

fn hash_mirror_side(hasher: &RandomState, connection: &Connection) -> u64 {
    hasher.hash_one((connection.protocol(), connection.mirror_side()))
}

fn unindex(index: &mut HashTable<Slot>, hash: u64, slot: Slot) {
    if let Ok(entry) = index.find_entry(hash, |other| *other == slot) {
        entry.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::Endpoint;
    use crate::table::DiversionId;

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
            DiversionId(1),
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
                    table.find_by_client_side(Protocol::Tcp, connection(client, 0).client_side())
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
                    let by_mirror = table.find_by_mirror_side(
                        Protocol::Tcp, connection(0, *proxy).mirror_side());
                    prop_assert!(by_client.is_some());
                    prop_assert_eq!(by_client, by_mirror);
                }
            }
        }
    }
}
