//! The packets of the self-test: what is sent, and what must come out of it.
//!
//! Each packet is made twice, as it is written to the one TUN and as it must be read from the other
//! after one hop of forwarding. The second differs from the first in its time to live, and for IPv4
//! in the header checksum that covers it. Everything else must be the same: the [`VnetHeader`], and
//! every byte of headers and payload.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};

use crate::io::Frame;
use crate::packet::VnetHeader;
use crate::packet::checksum::{self, Sum};

/// The version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a [`Probe`] tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A small and complete UDP datagram: is anything forwarded at all?
    Plain,
    /// A TCP super-packet.
    Tcp,
    /// A UDP super-packet.
    Udp,
}

/// One packet that the kernel is to forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// What it is.
    pub kind: Kind,
    /// What carries it.
    pub family: Family,
}

impl fmt::Display for Probe {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Plain => "an ordinary packet",
            Kind::Tcp => "a TCP super-packet",
            Kind::Udp => "a UDP super-packet",
        };
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        write!(out, "{kind} over {family}")
    }
}

/// How a packet came out wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Its [`VnetHeader`] is another; without a `gso_type`, the kernel has cut the packet itself.
    Header(VnetHeader),
    /// Its length is another: so many bytes from the IP header on.
    Length(usize),
    /// It is the wrong byte that comes first at this place, in bytes from the IP header on.
    Byte(usize),
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(header) => write!(out, "its virtio_net_hdr became {header:?}"),
            Self::Length(length) => write!(out, "its length became {length} bytes"),
            Self::Byte(at) => write!(out, "it was changed at byte {at}"),
        }
    }
}

/// The addresses that probes come from and go to, in different networks (RFC 2544, RFC 3849).
pub(super) const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
pub(super) const SERVER4: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
pub(super) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xDB8, 0xA, 0, 0, 0, 0, 2);
pub(super) const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xDB8, 0xB, 0, 0, 0, 0, 2);

impl Probe {
    /// Payload bytes of a super-packet, and of each segment that it may be cut into.
    const PAYLOAD: usize = 60_000;
    const SEGMENT: u16 = 1_400;
    const CLIENT_PORT: u16 = 40_000;
    const SERVER_PORT: u16 = 9;
    /// The time to live when it is sent.
    const TTL: u8 = 64;

    /// The packet as it is written to the first TUN.
    pub(super) fn sent(self) -> Frame {
        self.frame(Self::TTL)
    }

    /// Whether `frame` has this probe's protocol and addresses, be it whole, changed or cut. Others
    /// are the kernel's own (IPv6 router solicitations), or what is left of an earlier probe.
    pub(super) fn is_ancestor_of(self, frame: &Frame) -> bool {
        let (protocol, addresses) = match self.family {
            Family::V4 => (9, 12..20),
            Family::V6 => (6, 8..40),
        };
        let sent = self.sent();
        let (got, sent) = (frame.packet(), sent.packet());
        got.get(protocol) == sent.get(protocol) && got.get(addresses.clone()) == sent.get(addresses)
    }

    /// Compares what was read from the second TUN with what must be read there.
    ///
    /// # Errors
    /// The first difference.
    pub(super) fn compare(self, got: &Frame) -> Result<(), Change> {
        let expected = self.frame(Self::TTL - 1);
        if essence(&got.header()) != essence(&expected.header()) {
            return Err(Change::Header(got.header()));
        }
        let (got, expected) = (got.packet(), expected.packet());
        if got.len() != expected.len() {
            return Err(Change::Length(got.len()));
        }
        match got
            .iter()
            .zip(expected)
            .position(|(got, expected)| got != expected)
        {
            Some(at) => Err(Change::Byte(at)),
            None => Ok(()),
        }
    }

    fn frame(self, ttl: u8) -> Frame {
        let mut frame = Frame::new();
        frame.fill(&self.packet(ttl));
        frame.set_header(&self.header());
        frame
    }

    /// What is left undone on the packet.
    fn header(self) -> VnetHeader {
        let start = match self.family {
            Family::V4 => Ipv4Header::MIN_LEN,
            Family::V6 => Ipv6Header::LEN,
        };
        let (gso_type, length, csum_offset) = match (self.kind, self.family) {
            (Kind::Plain, _) => return VnetHeader::default(),
            (Kind::Tcp, Family::V4) => (VnetHeader::GSO_TCPV4, TcpHeader::MIN_LEN, 16),
            (Kind::Tcp, Family::V6) => (VnetHeader::GSO_TCPV6, TcpHeader::MIN_LEN, 16),
            (Kind::Udp, _) => (VnetHeader::GSO_UDP_L4, UdpHeader::LEN, 6),
        };
        VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: (start + length) as u16,
            gso_size: Self::SEGMENT,
            csum_start: start as u16,
            csum_offset,
        }
    }

    fn packet(self, ttl: u8) -> Vec<u8> {
        let (protocol, header) = match self.kind {
            // A protocol number for experiments (RFC 3692): no router looks any further.
            Kind::Plain => (IpNumber::EXPERIMENTAL_AND_TESTING_0, Vec::new()),
            Kind::Tcp => (IpNumber::TCP, self.tcp_header()),
            Kind::Udp => (IpNumber::UDP, self.udp_header()),
        };
        let length = header.len() + self.payload_len();
        let mut packet = self.ip_header(ttl, protocol, length);
        packet.extend(header);
        // A period of 251, which is prime: bytes that have moved show.
        packet.extend((0..251).cycle().take(self.payload_len()));
        packet
    }

    fn payload_len(self) -> usize {
        match self.kind {
            Kind::Plain => 64,
            Kind::Tcp | Kind::Udp => Self::PAYLOAD,
        }
    }

    fn ip_header(self, ttl: u8, protocol: IpNumber, length: usize) -> Vec<u8> {
        match self.family {
            Family::V4 => {
                let mut header = Ipv4Header {
                    total_len: (Ipv4Header::MIN_LEN + length) as u16,
                    dont_fragment: true,
                    time_to_live: ttl,
                    protocol,
                    source: CLIENT4.octets(),
                    destination: SERVER4.octets(),
                    ..Ipv4Header::default()
                };
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            Family::V6 => Ipv6Header {
                payload_length: length as u16,
                next_header: protocol,
                hop_limit: ttl,
                source: CLIENT6.octets(),
                destination: SERVER6.octets(),
                ..Ipv6Header::default()
            }
            .to_bytes()
            .to_vec(),
        }
    }

    fn tcp_header(self) -> Vec<u8> {
        let mut header = TcpHeader::new(Self::CLIENT_PORT, Self::SERVER_PORT, 1_000, 65_000);
        header.ack = true;
        header.acknowledgment_number = 2_000;
        header.checksum = self.partial_checksum(IpNumber::TCP, TcpHeader::MIN_LEN);
        header.to_bytes().to_vec()
    }

    fn udp_header(self) -> Vec<u8> {
        UdpHeader {
            source_port: Self::CLIENT_PORT,
            destination_port: Self::SERVER_PORT,
            length: (UdpHeader::LEN + self.payload_len()) as u16,
            checksum: self.partial_checksum(IpNumber::UDP, UdpHeader::LEN),
        }
        .to_bytes()
        .to_vec()
    }

    /// The sum of the pseudo-header, which stands in the checksum's place.
    fn partial_checksum(self, protocol: IpNumber, header_len: usize) -> u16 {
        let addresses = match self.family {
            Family::V4 => Sum::of(&CLIENT4.octets()).plus(Sum::of(&SERVER4.octets())),
            Family::V6 => Sum::of(&CLIENT6.octets()).plus(Sum::of(&SERVER6.octets())),
        };
        let length = (header_len + self.payload_len()) as u16;
        let sum = addresses
            .plus(Sum::word(protocol.0.into()))
            .plus(Sum::word(length));
        let mut field = [0; 2];
        checksum::adjust_partial(&mut field, sum);
        u16::from_be_bytes(field)
    }
}

/// The fields that a router must keep: `hdr_len` is a hint and depends on how the kernel has laid
/// the packet out, and flags other than `NEEDS_CSUM` are what it says of a packet that it received.
fn essence(header: &VnetHeader) -> VnetHeader {
    VnetHeader {
        flags: header.flags & VnetHeader::NEEDS_CSUM,
        hdr_len: 0,
        ..*header
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    const SUPER_PACKETS: [Probe; 4] = [
        Probe {
            kind: Kind::Tcp,
            family: Family::V4,
        },
        Probe {
            kind: Kind::Tcp,
            family: Family::V6,
        },
        Probe {
            kind: Kind::Udp,
            family: Family::V4,
        },
        Probe {
            kind: Kind::Udp,
            family: Family::V6,
        },
    ];

    /// What completes a partial checksum: adding up from `csum_start`, and the complement.
    fn completed_checksum(frame: &Frame) -> u16 {
        let mut sum = [0; 2];
        let start = usize::from(frame.header().csum_start);
        checksum::adjust_partial(&mut sum, Sum::of(&frame.packet()[start..]));
        !u16::from_be_bytes(sum)
    }

    #[test]
    fn completing_the_partial_checksum_gives_the_one_that_etherparse_computes() {
        for probe in SUPER_PACKETS {
            let frame = probe.sent();
            let headers = PacketHeaders::from_ip_slice(frame.packet()).unwrap();
            let payload = headers.payload.slice();
            let expected = match (headers.net, headers.transport) {
                (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Tcp(tcp))) => {
                    tcp.calc_checksum_ipv4(&ip, payload)
                }
                (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Tcp(tcp))) => {
                    tcp.calc_checksum_ipv6(&ip, payload)
                }
                (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Udp(udp))) => {
                    udp.calc_checksum_ipv4(&ip, payload)
                }
                (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Udp(udp))) => {
                    udp.calc_checksum_ipv6(&ip, payload)
                }
                other => panic!("{probe} isn't what it says: {other:?}"),
            };
            assert_eq!(completed_checksum(&frame), expected.unwrap(), "{probe}");
            assert_eq!(payload.len(), Probe::PAYLOAD, "{probe}");
        }
    }

    #[test]
    fn what_a_router_must_change_is_expected_and_nothing_else() {
        for probe in SUPER_PACKETS {
            let arrived = probe.frame(Probe::TTL - 1);
            assert!(probe.is_ancestor_of(&arrived));
            assert_eq!(probe.compare(&arrived), Ok(()), "{probe}");

            let mut header = arrived.header();
            header.hdr_len = 0;
            let mut relaid = arrived.clone();
            relaid.set_header(&header);
            assert_eq!(probe.compare(&relaid), Ok(()), "hdr_len is a hint");

            assert!(
                matches!(probe.compare(&probe.sent()), Err(Change::Byte(7 | 8))),
                "{probe} that wasn't forwarded keeps its time to live"
            );

            let last = arrived.packet().len() - 1;
            let mut corrupt = arrived.clone();
            corrupt.packet_mut()[last] ^= 1;
            assert_eq!(probe.compare(&corrupt), Err(Change::Byte(last)), "{probe}");

            let mut shorter = arrived.clone();
            shorter.set_wire_len(shorter.wire().len() - 1);
            assert_eq!(
                probe.compare(&shorter),
                Err(Change::Length(last)),
                "{probe}"
            );

            let mut cut = arrived.clone();
            cut.set_header(&VnetHeader::default());
            let change = probe.compare(&cut);
            assert_eq!(
                change,
                Err(Change::Header(VnetHeader::default())),
                "{probe}"
            );
        }
    }

    #[test]
    fn no_probe_is_taken_for_another() {
        for probe in SUPER_PACKETS {
            assert!(!probe.is_ancestor_of(&Frame::new()), "{probe}");
            for other in SUPER_PACKETS {
                let taken = probe.is_ancestor_of(&other.sent());
                assert_eq!(taken, probe == other, "{probe}, {other}");
            }
        }
    }
}
