//! What an operator should know of. The engine only remembers the last; who logs it takes care not to
//! do so too often.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::packet::Endpoint;

/// Something that drops new connections until an operator does something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alert {
    /// All proxy ports towards a mirror are in use.
    ProxyPortsExhausted {
        /// The proxy addresses of the mirror's family.
        proxies: Arc<[IpAddr]>,
        /// The mirror.
        mirror: Endpoint,
    },
    /// The table is full, and every connection in it has been answered.
    TableFull {
        /// How many connections are in it.
        connections: usize,
    },
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProxyPortsExhausted { proxies, mirror } => write!(
                f,
                "every port of proxy address {} towards mirror {mirror} is in use, so new connections \
                 to it are dropped: add a --proxy address of its family, widen --proxy-ports, or \
                 divert to more mirrors",
                Listed(proxies)
            ),
            Self::TableFull { connections } => write!(
                f,
                "the table is full ({connections} connections of this worker), so new connections \
                 are dropped: raise --max-connections"
            ),
        }
    }
}

/// Addresses, the first few by name.
struct Listed<'a>(&'a [IpAddr]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 4;
        for (number, address) in self.0.iter().take(NAMED).enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            write!(f, "{separator}{address}")?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
