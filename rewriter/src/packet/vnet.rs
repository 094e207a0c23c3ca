//! The `virtio_net_hdr` that goes before every packet on a TUN opened with `IFF_VNET_HDR`.
//!
//! It says what the kernel has left undone: a checksum to be completed (`NEEDS_CSUM`), or a
//! super-packet to be cut into segments (`gso_type`, `gso_size`). Source: virtio 1.2, section 5.1.6,
//! and `include/uapi/linux/virtio_net.h`. A TUN uses the byte order of the machine unless told
//! otherwise (`TUNSETVNETLE`), and so does this.

/// What the kernel left undone on a packet, or may leave undone on one that is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// Bits as the kernel sent them: [`VnetHeader::NEEDS_CSUM`] and others.
    pub flags: u8,
    /// How a super-packet is to be cut; bits as the kernel sent them, see [`VnetHeader::gso`].
    pub gso_type: u8,
    /// Length of all headers in bytes. A hint; not to be trusted on a forwarded packet.
    pub hdr_len: u16,
    /// Payload bytes of each segment that a super-packet is cut into.
    pub gso_size: u16,
    /// With `NEEDS_CSUM`: where the checksum starts to sum, in bytes from the IP header's first.
    pub csum_start: u16,
    /// With `NEEDS_CSUM`: where the checksum lies, in bytes from `csum_start`.
    pub csum_offset: u16,
}

/// What a super-packet is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoType {
    /// Not a super-packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams (USO), IPv4 or IPv6.
    Udp,
    /// A kind that Shunt never asks the kernel for.
    Unknown,
}

impl VnetHeader {
    /// The header's length in bytes.
    pub const LEN: usize = 10;
    /// Flag: the layer-4 checksum field holds only the folded pseudo-header sum, un-complemented.
    pub const NEEDS_CSUM: u8 = 1;
    /// `gso_type` bit: the first segment carries the ECN echo rules of RFC 3168.
    pub const GSO_ECN: u8 = 0x80;
    /// `gso_type`: TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// `gso_type`: TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// `gso_type`: UDP segmentation (USO).
    pub const GSO_UDP_L4: u8 = 5;

    /// Reads the header from its ten bytes.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        }
    }

    /// The header's ten bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    /// Whether the layer-4 checksum is left to be completed.
    pub fn needs_csum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }

    /// What the packet is to be cut into.
    pub fn gso(&self) -> GsoType {
        match self.gso_type & !Self::GSO_ECN {
            0 => GsoType::None,
            Self::GSO_TCPV4 => GsoType::Tcp4,
            Self::GSO_TCPV6 => GsoType::Tcp6,
            Self::GSO_UDP_L4 => GsoType::Udp,
            _ => GsoType::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_way_through_its_bytes() {
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN,
            hdr_len: 52,
            gso_size: 1448,
            csum_start: 20,
            csum_offset: 16,
        };
        assert_eq!(VnetHeader::decode(&header.encode()), header);
        assert_eq!(header.gso(), GsoType::Tcp4);
        assert!(header.needs_csum());
    }
}
