//! Fragments: what one says about itself, how a datagram is made of them, and how it is cut again.
//!
//! IPv4 keeps these fields in its own header (RFC 791, section 3.2). IPv6 has an extension header for
//! them (RFC 8200, section 4.5); what goes before that, the *unfragmentable part*, is repeated in each
//! fragment. A fragment's payload belongs at its offset, in units of eight bytes, in the whole
//! datagram's. Only the first fragment carries the transport header, and with it the ports.
//!
//! An IPv6 fragment that is whole by itself, an *atomic* one (RFC 6946), never comes here:
//! [`Packet::parse`] steps over its fragment header like over any other.

use std::borrow::Cow;

use thiserror::Error;

use super::checksum::{Sum, adjust_complete};
use super::parse::{
    array_at, field, number, skip_extension_headers, transport_header_fits, u16_at,
};
use super::{Packet, Transport};

/// Bits of the IPv4 word that holds flags and offset (RFC 791).
mod flag {
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// In units of eight bytes.
    pub const OFFSET: u16 = 0x1FFF;
}

/// The lowest bit of an IPv6 fragment header's word of offset and flags; the offset's own three
/// lowest bits lie in those of the flags, so it reads as bytes (RFC 8200, section 4.5).
const MORE_FRAGMENTS_V6: u16 = 0x0001;
const OFFSET_V6: u16 = 0xFFF8;

/// The longest that a length field can say, in bytes.
const LONGEST: usize = 65_535;

/// Congestion experienced, as the two ECN bits of RFC 3168.
const CONGESTION_EXPERIENCED: u8 = 0b11;

/// Why a fragment can't be part of any datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadFragment {
    /// The IPv4 header's checksum is wrong. It is verified here, and only here, because new headers
    /// are made for the datagram: a damaged one would come out as if it were right.
    #[error("the IPv4 header's checksum is wrong")]
    HeaderChecksum,
    /// No payload, or another than the last whose payload isn't a multiple of eight bytes.
    #[error("a fragment of this length can't be")]
    Length,
    /// The first fragment ends before the transport header does (RFC 1858; RFC 8200, section 4.5).
    #[error("the first fragment doesn't hold the whole transport header")]
    Tiny,
    /// It ends where no datagram can reach.
    #[error("the datagram would be longer than its length field can say")]
    TooLong,
}

/// What a fragment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Which datagram of its sender it is a part of; 16 bits for IPv4.
    pub identification: u32,
    /// What the datagram carries: an IP protocol number. For IPv6 only the first fragment's counts.
    pub protocol: u8,
    /// Where its payload belongs, in bytes.
    pub offset: usize,
    /// Whether others come after it.
    pub more: bool,
    /// The two ECN bits (RFC 3168).
    pub ecn: u8,
    /// The length of the fragment as a packet, in bytes.
    pub length: usize,
    /// The IPv4 header with its options, or IPv6's unfragmentable part.
    headers: &'a [u8],
    /// Its piece of the datagram.
    pub payload: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Where its payload ends in the datagram, in bytes.
    pub fn end(&self) -> usize {
        self.offset + self.payload.len()
    }

    /// The headers of the whole datagram, if this is its first fragment; all but the length and the
    /// checksum are as they will be.
    pub fn whole_headers(&self) -> Vec<u8> {
        let mut headers = self.headers.to_vec();
        if headers[0] >> 4 == 4 {
            let word = u16_at(&headers, field::ipv4::FRAGMENT);
            let word = word & !(flag::MORE_FRAGMENTS | flag::OFFSET);
            put(&mut headers, field::ipv4::FRAGMENT, word);
        } else {
            let at = last_next_header_at(&headers);
            headers[at] = self.protocol;
        }
        headers
    }

    fn checked(self) -> Result<Self, BadFragment> {
        if self.payload.is_empty() || self.more && !self.payload.len().is_multiple_of(8) {
            return Err(BadFragment::Length);
        }
        if !fits(self.headers, self.end()) {
            return Err(BadFragment::TooLong);
        }
        if self.offset == 0 {
            let (protocol, transport_at) = if self.headers[0] >> 4 == 4 {
                (self.protocol, 0)
            } else {
                skip_extension_headers(self.payload, self.protocol, 0)
                    .map_err(|_| BadFragment::Tiny)?
            };
            if !transport_header_fits(protocol, &self.payload[transport_at..]) {
                return Err(BadFragment::Tiny);
            }
        }
        Ok(self)
    }
}

impl Packet<'_> {
    /// What the packet says about itself as a fragment; it must be one
    /// ([`Transport::Fragment`](super::Transport::Fragment)).
    ///
    /// # Errors
    /// It can't be part of any datagram.
    pub fn fragment(&self) -> Result<Fragment<'_>, BadFragment> {
        let (headers, rest) = self.bytes.split_at(self.transport_at);
        if self.is_v4() {
            if Sum::of(headers) != Sum::word(0xFFFF) {
                return Err(BadFragment::HeaderChecksum);
            }
            let word = u16_at(headers, field::ipv4::FRAGMENT);
            Fragment {
                identification: u16_at(headers, field::ipv4::IDENTIFICATION).into(),
                protocol: headers[field::ipv4::PROTOCOL],
                offset: usize::from(word & flag::OFFSET) * 8,
                more: word & flag::MORE_FRAGMENTS != 0,
                ecn: headers[field::ipv4::TOS] & 0b11,
                length: self.bytes.len(),
                headers,
                payload: rest,
            }
        } else {
            // Parsing has seen a whole fragment header.
            let (header, payload) = rest
                .split_first_chunk::<{ field::fragment::LENGTH }>()
                .ok_or(BadFragment::Length)?;
            let word = u16_at(header, field::fragment::OFFSET);
            Fragment {
                identification: u32::from_be_bytes(array_at(
                    header,
                    field::fragment::IDENTIFICATION,
                )),
                protocol: header[field::fragment::NEXT_HEADER],
                offset: usize::from(word & OFFSET_V6),
                more: word & MORE_FRAGMENTS_V6 != 0,
                ecn: headers[1] >> 4 & 0b11,
                length: self.bytes.len(),
                headers,
                payload,
            }
        }
        .checked()
    }

    /// Whether it is a fragment other than the first, which no ICMP error is sent about (RFC 1122,
    /// section 3.2.2).
    pub fn is_later_fragment(&self) -> bool {
        if self.is_v4() {
            u16_at(self.bytes, field::ipv4::FRAGMENT) & flag::OFFSET != 0
        } else {
            self.transport == Transport::Fragment
                && u16_at(self.bytes, self.transport_at + field::fragment::OFFSET) & OFFSET_V6 != 0
        }
    }

    /// Whether a router may cut this packet: IPv4 without "don't fragment". Only the identification of
    /// such a packet means anything (RFC 6864, section 4.1).
    pub fn may_be_fragmented(&self) -> bool {
        self.is_v4() && u16_at(self.bytes, field::ipv4::FRAGMENT) & flag::DONT_FRAGMENT == 0
    }

    /// What an identification must be unique for, as it now stands in the packet: source and
    /// destination, network order, and for IPv4 the IP protocol number.
    pub fn identification_scope(&self) -> (&[u8], u8) {
        if self.is_v4() {
            use field::ipv4::{LENGTH, PROTOCOL, SOURCE};
            (&self.bytes[SOURCE..LENGTH], self.bytes[PROTOCOL])
        } else {
            use field::ipv6::{LENGTH, SOURCE};
            (&self.bytes[SOURCE..LENGTH], 0)
        }
    }

    /// Replaces an IPv4 packet's identification; does nothing to IPv6, whose header has none.
    pub fn set_identification(&mut self, identification: u16) {
        if self.is_v4() {
            set_identification_v4(self.bytes, identification);
        }
    }
}

/// A datagram that was put together from its fragments, and is to be cut again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    bytes: Vec<u8>,
    /// The length of the headers that each fragment has, in bytes.
    headers_length: usize,
    /// IPv6 only; IPv4 has it in the header.
    identification: u32,
    largest: usize,
}

impl Datagram {
    /// Puts a datagram together: the headers of its first fragment ([`Fragment::whole_headers`]) and
    /// the payloads in their order. `ecn` is a mask of the ECN values that were seen, each as a bit.
    /// `largest` is the length of the largest fragment, in bytes.
    ///
    /// # Errors
    /// It would be longer than its length field can say.
    pub fn assemble<'a>(
        headers: &[u8],
        identification: u32,
        payloads: impl Iterator<Item = &'a [u8]>,
        length: usize,
        ecn: u8,
        largest: usize,
    ) -> Result<Self, BadFragment> {
        if !fits(headers, length) {
            return Err(BadFragment::TooLong);
        }
        let mut bytes = Vec::with_capacity(headers.len() + length);
        bytes.extend_from_slice(headers);
        for payload in payloads {
            bytes.extend_from_slice(payload);
        }
        let congested = ecn & 1 << CONGESTION_EXPERIENCED != 0;
        if bytes[0] >> 4 == 4 {
            if congested {
                bytes[field::ipv4::TOS] |= CONGESTION_EXPERIENCED;
            }
        } else if congested {
            bytes[1] |= CONGESTION_EXPERIENCED << 4;
        }
        finish(&mut bytes, headers.len());
        Ok(Self {
            bytes,
            headers_length: headers.len(),
            identification,
            largest,
        })
    }

    /// The whole packet, to be rewritten where it lies; its length stays.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The length of the whole packet in bytes.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Gives the datagram another identification; IPv4 takes the lower 16 bits.
    pub fn set_identification(&mut self, identification: u32) {
        self.identification = identification;
        if self.bytes[0] >> 4 == 4 {
            // The lower half is meant.
            set_identification_v4(&mut self.bytes, identification as u16);
        }
    }

    /// The datagram in fragments none of which is longer than the largest that it came in. "Don't
    /// fragment" is kept as it was in the first one.
    pub fn cut(&self) -> impl Iterator<Item = Vec<u8>> {
        let (headers, payload) = self.bytes.split_at(self.headers_length);
        let v4 = headers[0] >> 4 == 4;
        let (first, following): (Cow<'_, [u8]>, Cow<'_, [u8]>) = if v4 {
            (headers.into(), following_header_v4(headers).into())
        } else {
            let headers = self.with_fragment_header(headers);
            (headers.clone().into(), headers.into())
        };
        let whole = self.bytes.len() <= self.largest;
        let mut offset = 0;
        std::iter::from_fn(move || {
            let rest = payload.get(offset..).filter(|rest| !rest.is_empty())?;
            if whole {
                offset = payload.len();
                return Some(self.bytes.clone());
            }
            let headers = if offset == 0 { &first } else { &following };
            let room = self.largest.saturating_sub(headers.len());
            let more = rest.len() > room;
            // The first fragment had at least eight bytes of payload; see `Fragment::checked`.
            let length = if more { (room & !7).max(8) } else { rest.len() };
            let piece = &rest[..length.min(rest.len())];
            let mut fragment = [headers, piece].concat();
            // An IP payload is shorter than 2^16 bytes.
            let bytes = offset as u16;
            if v4 {
                let word = u16_at(&fragment, field::ipv4::FRAGMENT) & !flag::OFFSET;
                let more = if more { flag::MORE_FRAGMENTS } else { 0 };
                put(
                    &mut fragment,
                    field::ipv4::FRAGMENT,
                    word | more | (bytes / 8),
                );
            } else {
                let more = if more { MORE_FRAGMENTS_V6 } else { 0 };
                let at = self.headers_length + field::fragment::OFFSET;
                put(&mut fragment, at, bytes | more);
            }
            finish(&mut fragment, headers.len());
            offset += piece.len();
            Some(fragment)
        })
    }

    /// IPv6's unfragmentable part with a fragment header after it.
    fn with_fragment_header(&self, unfragmentable: &[u8]) -> Vec<u8> {
        let mut headers = Vec::with_capacity(unfragmentable.len() + field::fragment::LENGTH);
        headers.extend_from_slice(unfragmentable);
        let at = last_next_header_at(unfragmentable);
        let next_header = std::mem::replace(&mut headers[at], number::FRAGMENT);
        headers.extend_from_slice(&[next_header, 0, 0, 0]);
        headers.extend_from_slice(&self.identification.to_be_bytes());
        headers
    }
}

/// An IPv4 packet, or a fragment, in fragments of at most `mtu` bytes, as a router cuts it (RFC 791,
/// section 3.2). Its header has been [parsed](Packet::parse); each fragment has some payload, however
/// small `mtu` is.
pub fn cut_v4(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let headers_length = usize::from(packet[0] & 0x0F) * 4;
    let (headers, payload) = packet.split_at(headers_length);
    let following = following_header_v4(headers);
    let word = u16_at(packet, field::ipv4::FRAGMENT);
    let room = (mtu.saturating_sub(headers_length) & !7).max(8);
    let last = payload.len().saturating_sub(1) / room;
    payload
        .chunks(room)
        .enumerate()
        .map(|(number, piece)| {
            let headers = if number == 0 { headers } else { &following };
            let more = if number < last {
                flag::MORE_FRAGMENTS
            } else {
                0
            };
            let mut fragment = [headers, piece].concat();
            // The offset that it had itself is counted on; it stays below 2^13, as its end does.
            let offset = (number * room / 8) as u16;
            put(
                &mut fragment,
                field::ipv4::FRAGMENT,
                (word | more).wrapping_add(offset),
            );
            finish(&mut fragment, headers.len());
            fragment
        })
        .collect()
}

/// Whether an IPv6 fragment header says that the packet is whole (RFC 6946).
pub(super) fn is_atomic(header: &[u8; field::fragment::LENGTH]) -> bool {
    u16_at(header, field::fragment::OFFSET) & (OFFSET_V6 | MORE_FRAGMENTS_V6) == 0
}

/// Whether the length field of a packet with these headers can say this much payload.
fn fits(headers: &[u8], payload: usize) -> bool {
    let uncounted = if headers[0] >> 4 == 4 {
        0
    } else {
        field::ipv6::LENGTH
    };
    headers.len() - uncounted + payload <= LONGEST
}

/// Writes the length of a packet, and its IPv4 header's length and checksum.
fn finish(bytes: &mut [u8], headers_length: usize) {
    // `fits` has seen that the length has room in 16 bits.
    if bytes[0] >> 4 == 4 {
        let length = bytes.len() as u16;
        put(bytes, field::ipv4::TOTAL_LENGTH, length);
        bytes[0] = 0x40 | (headers_length / 4) as u8;
        // A checksum of all ones is the complement of a sum of zero.
        put(bytes, field::ipv4::CHECKSUM, 0);
        let sum = Sum::of(&bytes[..headers_length]);
        put(bytes, field::ipv4::CHECKSUM, 0xFFFF);
        adjust(bytes, sum);
    } else {
        let length = (bytes.len() - field::ipv6::LENGTH) as u16;
        put(bytes, field::ipv6::PAYLOAD_LENGTH, length);
    }
}

/// The IPv4 header of every fragment but the first: of the options only those that say so are
/// copied (RFC 791, section 3.1: the highest bit of an option's type).
fn following_header_v4(header: &[u8]) -> Vec<u8> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let (fixed, mut options) = header.split_at(field::ipv4::LENGTH);
    let mut copied = fixed.to_vec();
    while let [kind, rest @ ..] = options {
        options = match *kind {
            END => break,
            NO_OPERATION => rest,
            kind => {
                // An option whose length can't be ends the list.
                let length = rest.first().map_or(0, |length| usize::from(*length));
                let (Some(option), true) = (options.get(..length), length >= 2) else {
                    break;
                };
                if kind & COPIED != 0 {
                    copied.extend_from_slice(option);
                }
                &options[length..]
            }
        };
    }
    copied.resize(copied.len().next_multiple_of(4), END);
    copied
}

/// Where the number of what follows an unfragmentable part stands: in the last of its headers.
fn last_next_header_at(unfragmentable: &[u8]) -> usize {
    let mut at = field::ipv6::NEXT_HEADER;
    let mut next = field::ipv6::LENGTH;
    while let Some(length_in_eights) = unfragmentable.get(next + 1) {
        at = next;
        next += 8 + usize::from(*length_in_eights) * 8;
    }
    at
}

fn set_identification_v4(bytes: &mut [u8], identification: u16) {
    let old = u16_at(bytes, field::ipv4::IDENTIFICATION);
    put(bytes, field::ipv4::IDENTIFICATION, identification);
    adjust(bytes, Sum::word(identification).minus(Sum::word(old)));
}

/// Applies a difference to the checksum of an IPv4 header.
fn adjust(bytes: &mut [u8], difference: Sum) {
    if let Some(field) = bytes[field::ipv4::CHECKSUM..].first_chunk_mut() {
        adjust_complete(field, difference);
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes[at..].first_chunk_mut() {
        *field = value.to_be_bytes();
    }
}
