//! How many connections each client has, when there is a limit to them.

use std::collections::HashMap;

use ahash::RandomState;

use crate::packet::Address;

#[derive(Debug)]
pub(super) struct Clients {
    limit: u32,
    connections: HashMap<Address, u32, RandomState>,
}

impl Clients {
    pub(super) fn limited_to(limit: u32) -> Self {
        Self {
            limit,
            connections: HashMap::default(),
        }
    }

    pub(super) fn is_at_limit(&self, client: Address) -> bool {
        self.connections
            .get(&client)
            .is_some_and(|count| *count >= self.limit)
    }

    pub(super) fn add(&mut self, client: Address) {
        *self.connections.entry(client).or_default() += 1;
    }

    pub(super) fn remove(&mut self, client: Address) {
        if let Some(count) = self.connections.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.connections.remove(&client);
            }
        }
    }
}
