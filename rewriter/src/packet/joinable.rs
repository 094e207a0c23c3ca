//! UDP datagrams that could have been cut from one super-packet, and their joining.
//!
//! A super-packet ([`GsoType::Udp`](super::GsoType::Udp)) is cut by copying its headers before each
//! piece of its payload, so datagrams can be joined when their headers are alike and their payloads
//! equally long, but for the last, which may be shorter (Linux, `net/ipv4/udp_offload.c`,
//! `__udp_gso_segment`). Cutting gives each piece a checksum of its own; one that was wrong before
//! would come out right, so only datagrams whose checksum is right are joined. The pieces of an IPv4
//! super-packet are numbered by whoever cuts it: only datagrams that must not be fragmented are
//! joined, whose identification means nothing (RFC 6864, section 4.1).

use super::VnetHeader;
use super::checksum::{Sum, adjust_complete, adjust_partial};
use super::parse::{array_at, field, number, u16_at};

/// IPv4: don't fragment, and neither a fragment nor anything reserved.
const ONLY_DONT_FRAGMENT: u16 = 0x4000;

/// The shape of a UDP datagram that can be joined with others: no IPv4 options, no extension headers,
/// no fragment, with a checksum and some payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joinable {
    /// Where the UDP header starts, in bytes.
    udp_at: usize,
    /// Length of the payload in bytes; not zero.
    payload: usize,
    /// Whether the checksum is left to be completed, and so can't be wrong.
    partial: bool,
}

impl Joinable {
    /// The shape of `packet`, which came with `header`; none if it can't be joined with any other.
    pub fn of(packet: &[u8], header: &VnetHeader) -> Option<Self> {
        if header.gso_type != 0 {
            return None;
        }
        let udp_at = match packet.first()? {
            0x45 if packet.len() > field::ipv4::LENGTH + field::udp::LENGTH
                && packet[field::ipv4::PROTOCOL] == number::UDP
                && u16_at(packet, field::ipv4::FRAGMENT) == ONLY_DONT_FRAGMENT
                && usize::from(u16_at(packet, field::ipv4::TOTAL_LENGTH)) == packet.len() =>
            {
                field::ipv4::LENGTH
            }
            first
                if first >> 4 == 6
                    && packet.len() > field::ipv6::LENGTH + field::udp::LENGTH
                    && packet[field::ipv6::NEXT_HEADER] == number::UDP
                    && usize::from(u16_at(packet, field::ipv6::PAYLOAD_LENGTH))
                        == packet.len() - field::ipv6::LENGTH =>
            {
                field::ipv6::LENGTH
            }
            _ => return None,
        };
        let udp = &packet[udp_at..];
        if usize::from(u16_at(udp, field::udp::DATAGRAM_LENGTH)) != udp.len()
            || u16_at(udp, field::udp::CHECKSUM) == 0
        {
            return None;
        }
        Some(Self {
            udp_at,
            payload: udp.len() - field::udp::LENGTH,
            partial: header.needs_csum(),
        })
    }

    /// Where the payload starts, in bytes.
    pub fn payload_at(&self) -> usize {
        self.udp_at + field::udp::LENGTH
    }

    /// Length of the payload in bytes; not zero.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Whether the checksum of `packet`, which has this shape, is right, or left to be completed.
    pub fn checksum_is_right(&self, packet: &[u8]) -> bool {
        self.partial
            || self
                .pseudo_header(packet)
                .plus(Sum::of(&packet[self.udp_at..]))
                .is_zero()
    }

    /// Whether `packet`, of this shape, and `other`, of the shape `others`, have the same headers, apart
    /// from lengths, checksums and identification.
    pub fn has_headers_of(&self, packet: &[u8], others: &Self, other: &[u8]) -> bool {
        use field::ipv4::{SOURCE, TOS, TTL};
        if self.udp_at != others.udp_at {
            return false;
        }
        let same = |from: usize, to: usize| packet[from..to] == other[from..to];
        let ports_end = self.udp_at + field::udp::DATAGRAM_LENGTH;
        if self.udp_at == field::ipv4::LENGTH {
            same(0, TOS + 1) && packet[TTL] == other[TTL] && same(SOURCE, ports_end)
        } else {
            same(0, field::ipv6::PAYLOAD_LENGTH) && same(field::ipv6::NEXT_HEADER, ports_end)
        }
    }

    /// Makes `packet`, a datagram of this shape with payloads of others behind its own, a super-packet:
    /// lengths and checksums are brought up to date. Returns the header that it is to be sent with.
    pub fn finish(&self, packet: &mut [u8]) -> VnetHeader {
        let put = |packet: &mut [u8], at: usize, value: usize| {
            // An IP packet's lengths have 16 bits, and the caller keeps to them.
            packet[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
        };
        if self.udp_at == field::ipv4::LENGTH {
            use field::ipv4::{CHECKSUM, TOTAL_LENGTH};
            let before = Sum::word(u16_at(packet, TOTAL_LENGTH));
            put(packet, TOTAL_LENGTH, packet.len());
            let difference = Sum::word(u16_at(packet, TOTAL_LENGTH)).minus(before);
            let mut checksum = array_at(packet, CHECKSUM);
            adjust_complete(&mut checksum, difference);
            packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum);
        } else {
            put(
                packet,
                field::ipv6::PAYLOAD_LENGTH,
                packet.len() - self.udp_at,
            );
        }
        put(
            packet,
            self.udp_at + field::udp::DATAGRAM_LENGTH,
            packet.len() - self.udp_at,
        );
        let mut partial = [0, 0];
        adjust_partial(&mut partial, self.pseudo_header(packet));
        let checksum_at = self.udp_at + field::udp::CHECKSUM;
        packet[checksum_at..checksum_at + 2].copy_from_slice(&partial);
        VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_UDP_L4,
            // None of these is longer than a packet without options.
            hdr_len: self.payload_at() as u16,
            gso_size: self.payload as u16,
            csum_start: self.udp_at as u16,
            csum_offset: field::udp::CHECKSUM as u16,
        }
    }

    /// The sum of the pseudo-header (RFC 768; RFC 8200, section 8.1).
    fn pseudo_header(&self, packet: &[u8]) -> Sum {
        let addresses = match self.udp_at {
            field::ipv4::LENGTH => &packet[field::ipv4::SOURCE..field::ipv4::LENGTH],
            _ => &packet[field::ipv6::SOURCE..field::ipv6::LENGTH],
        };
        let length = u16_at(packet, self.udp_at + field::udp::DATAGRAM_LENGTH);
        Sum::of(addresses)
            .plus(Sum::word(number::UDP.into()))
            .plus(Sum::word(length))
    }
}
