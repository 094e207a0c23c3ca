//! From whom a packet is and to whom: what a table is searched by.

use std::hash::{Hash, Hasher};

use control_protocol::Protocol;

use super::{Address, Endpoint, Packet, Transport};

/// The packets from one endpoint to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Their protocol.
    pub protocol: Protocol,
    /// From whom. Of an echo request the port is the identifier.
    pub source: Endpoint,
    /// To whom. Of an echo reply the port is the identifier.
    pub destination: Endpoint,
}

// Three whole words instead of some dozen small writes: this hash is on the packet path.
impl Hash for Flow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let number = match self.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmp => 1,
            Protocol::Other(number) => number,
        };
        self.source.address.hash(state);
        self.destination.address.hash(state);
        state.write_u64(
            u64::from(self.source.port) << 32
                | u64::from(self.destination.port) << 16
                | u64::from(number),
        );
    }
}

impl Packet<'_> {
    /// The flow that it belongs to. `None`: a fragment, or an ICMP message other than an echo.
    #[inline(always)]
    pub fn flow(&self) -> Option<Flow> {
        Flow::of(self.transport(), self.source(), self.destination())
    }
}

impl Flow {
    /// The packets the other way.
    pub fn turned(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            destination: self.source,
        }
    }

    #[inline(always)]
    pub(super) fn of(transport: Transport, source: Address, destination: Address) -> Option<Self> {
        let (protocol, source_port, destination_port) = match transport {
            Transport::Tcp(segment) => {
                (Protocol::Tcp, segment.source_port, segment.destination_port)
            }
            Transport::Udp {
                source_port,
                destination_port,
            } => (Protocol::Udp, source_port, destination_port),
            Transport::EchoRequest { identifier } => (Protocol::Icmp, identifier, 0),
            Transport::EchoReply { identifier } => (Protocol::Icmp, 0, identifier),
            Transport::Other(number) => (Protocol::Other(number), 0, 0),
            Transport::Fragment
            | Transport::IcmpError
            | Transport::IcmpRedirect
            | Transport::OtherIcmp => return None,
        };
        Some(Self {
            protocol,
            source: Endpoint {
                address: source,
                port: source_port,
            },
            destination: Endpoint {
                address: destination,
                port: destination_port,
            },
        })
    }
}
