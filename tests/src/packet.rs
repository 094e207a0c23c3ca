//! A caught packet, read by etherparse.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpSlice, NetSlice, SlicedPacket, TransportSlice};

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, or ICMPv6 but for what neighbours say to each other on a link.
    Icmp,
    /// Anything else.
    Other(u8),
}

/// One IP packet, from its first header byte on.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    bytes: Vec<u8>,
}

/// The link types of a capture file that the lab meets.
mod link_type {
    pub(super) const ETHERNET: u32 = 1;
    pub(super) const RAW_IP: u32 = 101;
}

impl Packet {
    /// A packet made of these bytes.
    ///
    /// # Panics
    /// Unless they are a whole IP packet.
    #[track_caller]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        if let Err(error) = IpSlice::from_slice(&bytes) {
            panic!("not an IP packet ({error}): {bytes:02x?}");
        }
        Self { bytes }
    }

    /// The IP packets of a capture file, without what neighbours say to each other on a link. A
    /// record that is still being written is left out.
    #[track_caller]
    pub(crate) fn from_pcap(file: &[u8]) -> Vec<Self> {
        const FILE_HEADER: usize = 24;
        const RECORD_HEADER: usize = 16;
        let word = |offset: usize| {
            let bytes = file.get(offset..offset + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let Some(link_type) = word(20) else {
            return Vec::new();
        };
        assert_eq!(
            word(0),
            Some(0xa1b2_c3d4),
            "a capture file of this machine's byte order"
        );

        let mut packets = Vec::new();
        let mut offset = FILE_HEADER;
        while let (Some(caught), Some(on_wire)) = (word(offset + 8), word(offset + 12)) {
            assert_eq!(
                caught, on_wire,
                "a packet longer than the capture was told to expect"
            );
            offset += RECORD_HEADER;
            let Some(frame) = file.get(offset..offset + caught as usize) else {
                break;
            };
            offset += frame.len();
            let sliced = match link_type {
                link_type::ETHERNET => SlicedPacket::from_ethernet(frame),
                link_type::RAW_IP => SlicedPacket::from_ip(frame),
                other => panic!("a capture of the link type {other}"),
            };
            let sliced = sliced.unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
            let length = match &sliced.net {
                Some(NetSlice::Ipv4(ip)) => usize::from(ip.header().total_len()),
                Some(NetSlice::Ipv6(ip)) => 40 + usize::from(ip.header().payload_length()),
                Some(NetSlice::Arp(_)) | None => continue,
            };
            let start = if link_type == link_type::ETHERNET {
                14
            } else {
                0
            };
            let packet = Self::new(&frame[start..start + length]);
            if !packet.is_between_neighbours() {
                packets.push(packet);
            }
        }
        packets
    }

    /// The packet, from its first header byte on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where it says it comes from.
    pub fn source(&self) -> IpAddr {
        self.ip().source_addr()
    }

    /// Where it goes.
    pub fn destination(&self) -> IpAddr {
        self.ip().destination_addr()
    }

    /// Its time to live, or hop limit.
    pub fn ttl(&self) -> u8 {
        match self.ip() {
            IpSlice::Ipv4(ip) => ip.header().ttl(),
            IpSlice::Ipv6(ip) => ip.header().hop_limit(),
        }
    }

    /// What it carries.
    pub fn protocol(&self) -> Protocol {
        match self.transport() {
            Some(TransportSlice::Tcp(_)) => Protocol::Tcp,
            Some(TransportSlice::Udp(_)) => Protocol::Udp,
            Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => Protocol::Icmp,
            _ => Protocol::Other(self.ip().payload_ip_number().0),
        }
    }

    /// Source and destination port of TCP or UDP; the identifier, twice, of an ICMP echo.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport()? {
            TransportSlice::Tcp(tcp) => Some((tcp.source_port(), tcp.destination_port())),
            TransportSlice::Udp(udp) => Some((udp.source_port(), udp.destination_port())),
            TransportSlice::Icmpv4(icmp) if matches!(icmp.type_u8(), 0 | 8) => {
                let [high, low, ..] = icmp.bytes5to8();
                Some((
                    u16::from_be_bytes([high, low]),
                    u16::from_be_bytes([high, low]),
                ))
            }
            TransportSlice::Icmpv6(icmp) if matches!(icmp.type_u8(), 128 | 129) => {
                let [high, low, ..] = icmp.bytes5to8();
                Some((
                    u16::from_be_bytes([high, low]),
                    u16::from_be_bytes([high, low]),
                ))
            }
            _ => None,
        }
    }

    /// Its ends as figure 3 writes them: `1.2.3.4:3456 to 100.100.100.100:80`.
    pub fn ends(&self) -> String {
        match self.ports() {
            Some((from, to)) => format!(
                "{} to {}",
                SocketAddr::new(self.source(), from),
                SocketAddr::new(self.destination(), to)
            ),
            None => format!("{} to {}", self.source(), self.destination()),
        }
    }

    /// Is it a TCP segment that resets?
    pub fn is_reset(&self) -> bool {
        matches!(self.transport(), Some(TransportSlice::Tcp(tcp)) if tcp.rst())
    }

    /// What TCP or UDP carries, or an echo after its identifier and sequence number.
    pub fn payload(&self) -> &[u8] {
        let length = match self.transport() {
            Some(TransportSlice::Tcp(tcp)) => tcp.payload().len(),
            Some(TransportSlice::Udp(udp)) => udp.payload().len(),
            Some(TransportSlice::Icmpv4(icmp)) => icmp.payload().len(),
            Some(TransportSlice::Icmpv6(icmp)) => icmp.payload().len(),
            _ => 0,
        };
        &self.bytes[self.bytes.len() - length..]
    }

    /// The packet without what a translation may change: addresses, ports (or the echo
    /// identifier), the checksums that cover them, and the time to live. Two packets that are
    /// equal after this differ in nothing else.
    pub fn without_translation(&self) -> Vec<u8> {
        let mut rest = self.bytes.clone();
        let header = match self.ip() {
            IpSlice::Ipv4(ip) => {
                rest[8] = 0; // time to live
                rest[10..20].fill(0); // checksum, source, destination
                ip.header().slice().len()
            }
            IpSlice::Ipv6(_) => {
                rest[7..40].fill(0); // hop limit, source, destination
                40
            }
        };
        let (ports, sum) = match self.protocol() {
            Protocol::Tcp => (0..4, 16..18),
            Protocol::Udp => (0..4, 6..8),
            Protocol::Icmp => (4..6, 2..4),
            Protocol::Other(_) => (0..0, 0..0),
        };
        rest[header..][ports].fill(0);
        rest[header..][sum].fill(0);
        rest
    }

    /// What is wrong with its checksums, each computed anew over the whole packet by etherparse;
    /// `None` when nothing is.
    pub fn bad_checksum(&self) -> Option<String> {
        // In one's complement 0xffff is zero as well, and to a receiver as good (RFC 1624, section
        // 3); where the kernel sums a TCP segment up to zero, it writes 0xffff.
        let number = |sum: u16| if sum == 0xffff { 0 } else { sum };
        let complain = |layer: &str, found: u16, computed: u16| {
            (number(found) != number(computed))
                .then(|| format!("{self:?}: {layer} checksum {found:#06x}, not {computed:#06x}"))
        };
        let ip = self.ip();
        if let IpSlice::Ipv4(ip) = &ip {
            let header = ip.header();
            let computed = header.to_header().calc_header_checksum();
            if let Some(complaint) = complain("IP header", header.header_checksum(), computed) {
                return Some(complaint);
            }
        }
        if ip.is_fragmenting_payload() {
            // Only the whole datagram has a checksum.
            return None;
        }
        let too_long = "an IP packet is never too long for its own checksum";
        match (ip, self.transport()?) {
            (IpSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                complain(
                    "TCP",
                    tcp.checksum(),
                    tcp.calc_checksum_ipv4(from, to).expect(too_long),
                )
            }
            (IpSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                complain(
                    "TCP",
                    tcp.checksum(),
                    tcp.calc_checksum_ipv6(from, to).expect(too_long),
                )
            }
            // "No checksum" is a choice in IPv4, and none in IPv6 (RFC 8200, section 8.1).
            (IpSlice::Ipv4(_), TransportSlice::Udp(udp)) if udp.checksum() == 0 => None,
            (IpSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                let header = udp.to_header();
                let computed = header.calc_checksum_ipv4_raw(from, to, udp.payload());
                complain("UDP", udp.checksum(), computed.expect(too_long))
            }
            (IpSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                let header = udp.to_header();
                let computed = header.calc_checksum_ipv6_raw(from, to, udp.payload());
                complain("UDP", udp.checksum(), computed.expect(too_long))
            }
            (_, TransportSlice::Icmpv4(icmp)) => {
                let computed = icmp.icmp_type().calc_checksum(icmp.payload());
                complain("ICMP", icmp.checksum(), computed)
            }
            (IpSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                let computed = icmp.icmp_type().calc_checksum(from, to, icmp.payload());
                complain("ICMPv6", icmp.checksum(), computed.expect(too_long))
            }
            (_, other) => Some(format!("{self:?}: no checksum known for {other:?}")),
        }
    }

    /// Neighbour discovery and multicast listener reports: a link's own business.
    pub(crate) fn is_between_neighbours(&self) -> bool {
        match self.transport() {
            Some(TransportSlice::Icmpv6(icmp)) => matches!(icmp.type_u8(), 130..=137 | 143),
            Some(TransportSlice::Igmp(_)) => true,
            // MLDv2 reports wear a hop-by-hop header that etherparse reads through.
            _ => self.destination().is_multicast(),
        }
    }

    fn ip(&self) -> IpSlice<'_> {
        IpSlice::from_slice(&self.bytes).expect("checked when it was made")
    }

    fn transport(&self) -> Option<TransportSlice<'_>> {
        SlicedPacket::from_ip(&self.bytes).ok()?.transport
    }
}

/// Asserts that there are packets, and that each passes between these two addresses.
#[track_caller]
pub fn assert_only_between(packets: &[Packet], one: &str, other: &str) {
    assert!(!packets.is_empty(), "no packets at all");
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let (one, other) = (address(one), address(other));
    for packet in packets {
        let ends = (packet.source(), packet.destination());
        assert!(
            ends == (one, other) || ends == (other, one),
            "{packet:?} is not between {one} and {other}"
        );
    }
}

/// Asserts that there are packets, and that each carries valid checksums.
#[track_caller]
pub fn assert_valid_checksums(packets: &[Packet]) {
    assert!(!packets.is_empty(), "no packets at all");
    let bad: Vec<_> = packets.iter().filter_map(Packet::bad_checksum).collect();
    let examples = &bad[..bad.len().min(5)];
    assert!(
        bad.is_empty(),
        "{} of {} are bad: {examples:#?}",
        bad.len(),
        packets.len()
    );
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {} ({} bytes)",
            self.protocol(),
            self.ends(),
            self.bytes.len()
        )
    }
}
