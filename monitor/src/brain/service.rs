//! What is known of a service: its groups of clients, and where they go.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{ClientPrefix, Service};

use super::Mirror;
use super::tally::Tally;
use crate::assign::{Shares, Want, normalised};

/// Requests a second below which it is by chance where they went.
const TELLING_RATE: f64 = 5.0;

/// A service, as the monitor knows it.
#[derive(Debug, Clone)]
pub struct ServiceMind {
    /// The address that clients talk to.
    pub address: Service,
    /// Its mirrors, by index.
    pub mirrors: Vec<usize>,
    /// Its clients. Each is in one group.
    pub groups: Vec<Group>,
    /// A person has it in hand.
    pub is_held: bool,
    /// The parts of their usual load that mirrors have, as their agents wanted, where it isn't all.
    pub(super) parts: HashMap<usize, f64>,
    /// When something was last decided for it that wasn't urgent.
    pub(super) moved: Option<Duration>,
    /// When it was first looked at.
    pub(super) met: Option<Duration>,
    /// What was last said of it without doing anything, so as not to say it again.
    pub(super) said: Option<String>,
}

/// Clients who are treated alike.
#[derive(Debug, Clone)]
pub struct Group {
    /// For people.
    pub name: String,
    /// Whose diversions they are; none: everybody who is in no other group.
    pub prefixes: Vec<Option<ClientPrefix>>,
    /// What the rules want.
    pub want: Want,
    /// The rule's name, if there is one.
    pub rule: Option<String>,
    /// The shares of new connections that are in force, by mirror; none: no diversion yet.
    pub shares: Option<Shares>,
    /// What was measured.
    pub tally: Tally,
}

impl ServiceMind {
    /// A service that nothing is known of.
    pub fn new(address: Service, mirrors: Vec<usize>, groups: Vec<Group>) -> Self {
        Self {
            address,
            mirrors,
            groups,
            is_held: false,
            parts: HashMap::new(),
            moved: None,
            met: None,
            said: None,
        }
    }

    /// Whether any group sends new connections to a mirror.
    pub fn uses(&self, mirror: usize) -> bool {
        self.groups
            .iter()
            .filter_map(|group| group.shares.as_ref())
            .any(|shares| shares[mirror] > 0.0)
    }

    /// Where connections to this service really go at a mirror; none where neither has a port.
    pub(super) fn address_of(&self, mirror: &Mirror) -> Option<SocketAddr> {
        let address = mirror.address();
        let port = address.port.or(self.address.port)?;
        Some(SocketAddr::new(address.address, port))
    }

    /// The mirror that has this address.
    pub(super) fn mirror_at(&self, mirrors: &[Mirror], address: SocketAddr) -> Option<usize> {
        self.mirrors.iter().copied().find(|number| {
            let mirror = mirrors[*number].address();
            let port = mirror.port.or(self.address.port);
            mirror.address == address.ip() && port.is_none_or(|port| port == address.port())
        })
    }
}

impl Group {
    /// A group that nothing is known of.
    pub fn new(name: &str, prefixes: Vec<Option<ClientPrefix>>, want: Want) -> Self {
        Self {
            name: name.to_owned(),
            prefixes,
            want,
            rule: None,
            shares: None,
            tally: Tally::default(),
        }
    }

    /// Where its requests go: as measured, where there are enough of them, `rate` being how many; otherwise as
    /// was ordered.
    pub(super) fn present(&self, rate: f64) -> Option<Shares> {
        let ordered = self.shares.as_ref()?;
        if rate < TELLING_RATE {
            return Some(ordered.clone());
        }
        let rates: Vec<f64> = (0..ordered.len())
            .map(|mirror| self.tally.latest(mirror).wanted)
            .collect();
        Some(normalised(&rates).unwrap_or_else(|| ordered.clone()))
    }

    /// Where its connections are; none: it has none.
    pub(super) fn connections(&self) -> Option<Shares> {
        let mirrors = self.shares.as_ref()?.len();
        let connections: Vec<f64> = (0..mirrors)
            .map(|mirror| self.tally.latest(mirror).connections as f64)
            .collect();
        normalised(&connections)
    }
}
