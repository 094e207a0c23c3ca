//! Addresses in the form that the table stores: one size for both families.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP address in 16 bytes, network order; IPv4 as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2),
/// a form that never stands in a real IPv6 packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address([u8; 16]);

const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF];

impl Address {
    /// An IPv4 address from its bytes, network order.
    pub fn v4(bytes: [u8; 4]) -> Self {
        // One number rather than two copies, whose halves would have to meet in memory.
        Self((0xFFFF << 32 | u128::from(u32::from_be_bytes(bytes))).to_be_bytes())
    }

    /// An IPv6 address from its bytes, network order.
    pub fn v6(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Whether this is an IPv4 address.
    pub fn is_v4(&self) -> bool {
        self.0[..12] == V4_MAPPED
    }

    /// The first address of its prefix, which has this many bits of an IPv4 or of an IPv6 address; more
    /// than there are mean the address itself.
    pub fn network(&self, v4: u8, v6: u8) -> Self {
        let bits = if self.is_v4() {
            96 + u32::from(v4.min(32))
        } else {
            u32::from(v6.min(128))
        };
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        Self((u128::from_be_bytes(self.0) & mask).to_be_bytes())
    }

    /// The bytes that stand in a packet: 4 or 16, network order.
    pub fn wire(&self) -> &[u8] {
        if self.is_v4() { &self.0[12..] } else { &self.0 }
    }
}

// One 16-byte write instead of a length and a slice: this hash is on the packet path.
impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let [.., a, b, c, d] = address.0;
        if address.is_v4() {
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(address.0).into()
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address and a port. For an ICMP echo the client's and the proxy's port are the echo
/// identifier, the service's and the mirror's are 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port, or echo identifier, host order.
    pub port: u16,
}

impl Endpoint {
    /// An address and a port, host order.
    pub fn new(address: impl Into<Address>, port: u16) -> Self {
        Self {
            address: address.into(),
            port,
        }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        SocketAddr::new(endpoint.address.into(), endpoint.port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), address.port())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
