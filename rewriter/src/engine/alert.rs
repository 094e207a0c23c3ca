//! What an operator should know of. The engine only remembers the last; who logs it takes care not to
//! do so too often.

use std::fmt;

use crate::packet::Endpoint;

/// Something that drops new connections until an operator does something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// All proxy ports towards a mirror are in use.
    ProxyPortsExhausted {
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
            Self::ProxyPortsExhausted { mirror } => write!(
                f,
                "every proxy port towards mirror {mirror} is in use, so new connections to it are \
                 dropped: add a --proxy address of its family, widen --proxy-ports, or divert to more \
                 mirrors"
            ),
            Self::TableFull { connections } => write!(
                f,
                "the table is full ({connections} connections of this worker), so new connections \
                 are dropped: raise --max-connections"
            ),
        }
    }
}
