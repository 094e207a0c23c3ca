//! The rewriting itself: both addresses, both ports and the checksums, where the packet lies.

use super::checksum::{Sum, adjust_complete, adjust_partial, adjust_udp};
use super::parse::{field, number};
use super::{Address, Endpoint, Packet, Transport};

/// What is written into a packet of one connection in one direction: plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The new source.
    pub source: Endpoint,
    /// The new destination.
    pub destination: Endpoint,
    /// By how much this changes the sums.
    pub differences: Differences,
}

/// By how much a translation changes the sums that checksums are made of; the same for every packet
/// of a connection in one direction, and just the opposite in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differences {
    addresses: Sum,
    /// Of the ports or of the echo identifier.
    ports: Sum,
}

impl Differences {
    /// Of the way from one pair of source and destination to another. All four are of one address
    /// family.
    pub fn between(from: (Endpoint, Endpoint), to: (Endpoint, Endpoint)) -> Self {
        let addresses = |pair: (Endpoint, Endpoint)| {
            Sum::of(pair.0.address.wire()).plus(Sum::of(pair.1.address.wire()))
        };
        let ports =
            |pair: (Endpoint, Endpoint)| Sum::word(pair.0.port).plus(Sum::word(pair.1.port));
        Self {
            addresses: addresses(to).minus(addresses(from)),
            ports: ports(to).minus(ports(from)),
        }
    }

    /// Of the way back.
    pub fn reversed(self) -> Self {
        Self {
            addresses: self.addresses.negated(),
            ports: self.ports.negated(),
        }
    }
}

impl Translation {
    /// Of a packet that goes the other way: both pairs of addresses turned round. It changes the
    /// sums by just as much.
    pub fn turned(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            differences: self.differences,
        }
    }
}

impl Packet<'_> {
    /// Rewrites the packet: TCP, UDP and echoes by addresses and ports, other protocols by their
    /// addresses alone. Fragments and other ICMP messages are left as they are.
    ///
    /// `partial`: the layer-4 checksum is one that the kernel left to be completed
    /// ([`super::VnetHeader::needs_csum`]).
    pub fn translate(&mut self, translation: &Translation, partial: bool) {
        let Translation {
            source,
            destination,
            differences: Differences { addresses, ports },
        } = *translation;
        match self.transport() {
            Transport::Tcp(_) => {
                self.adjust(
                    field::tcp::CHECKSUM,
                    adjust_complete,
                    addresses,
                    ports,
                    partial,
                );
                self.put(field::tcp::SOURCE_PORT, source.port);
                self.put(field::tcp::DESTINATION_PORT, destination.port);
            }
            Transport::Udp { .. } => {
                self.adjust(field::udp::CHECKSUM, adjust_udp, addresses, ports, partial);
                self.put(field::udp::SOURCE_PORT, source.port);
                self.put(field::udp::DESTINATION_PORT, destination.port);
            }
            Transport::EchoRequest { .. } | Transport::EchoReply { .. } => {
                // ICMP sums no pseudo-header (RFC 792), ICMPv6 does (RFC 4443, section 2.3).
                let addresses = if self.is_v4() {
                    Sum::default()
                } else {
                    addresses
                };
                self.adjust(
                    field::icmp::CHECKSUM,
                    adjust_complete,
                    addresses,
                    ports,
                    partial,
                );
                let identifier = match self.transport() {
                    Transport::EchoRequest { .. } => source.port,
                    _ => destination.port,
                };
                self.put(field::icmp::IDENTIFIER, identifier);
            }
            // Their checksum has a pseudo-header's sum in it; of what is unknown, nothing is known.
            Transport::Other(number::DCCP | number::UDP_LITE) => {
                let at = field::like_udp::CHECKSUM;
                self.adjust(at, adjust_complete, addresses, Sum::default(), partial);
            }
            Transport::Other(_) => {}
            Transport::Fragment
            | Transport::IcmpError
            | Transport::IcmpRedirect
            | Transport::OtherIcmp => return,
        }
        self.put_addresses(source.address, destination.address, addresses);
    }

    /// Lowers the TTL or hop limit by one, as every router does (RFC 1812, section 5.3.1).
    /// `false`: it has run out, and the packet must not be sent.
    pub fn lower_hop_limit(&mut self) -> bool {
        if self.is_v4() {
            use field::ipv4::{CHECKSUM, TTL};
            if self.bytes[TTL] <= 1 {
                return false;
            }
            self.bytes[TTL] -= 1;
            if let Some(field) = self.bytes[CHECKSUM..].first_chunk_mut() {
                // The TTL is the high half of its word.
                adjust_complete(field, Sum::word(0x0100).negated());
            }
        } else {
            use field::ipv6::HOP_LIMIT;
            if self.bytes[HOP_LIMIT] <= 1 {
                return false;
            }
            self.bytes[HOP_LIMIT] -= 1;
        }
        true
    }

    /// Raises the TTL or hop limit by one, unless it is the greatest there is.
    #[inline(always)]
    pub fn raise_hop_limit(&mut self) {
        if self.is_v4() {
            use field::ipv4::{CHECKSUM, TTL};
            if self.bytes[TTL] < u8::MAX {
                self.bytes[TTL] += 1;
                if let Some(field) = self.bytes[CHECKSUM..].first_chunk_mut() {
                    adjust_complete(field, Sum::word(0x0100));
                }
            }
        } else {
            use field::ipv6::HOP_LIMIT;
            self.bytes[HOP_LIMIT] = self.bytes[HOP_LIMIT].saturating_add(1);
        }
    }

    pub(super) fn is_v4(&self) -> bool {
        self.bytes[0] >> 4 == 4
    }

    fn adjust(
        &mut self,
        checksum_at: usize,
        adjust_complete: fn(&mut [u8; 2], Sum),
        addresses: Sum,
        ports: Sum,
        partial: bool,
    ) {
        let Some(field) = self.transport_field(checksum_at) else {
            return;
        };
        if partial {
            adjust_partial(field, addresses);
        } else {
            adjust_complete(field, addresses.plus(ports));
        }
    }

    fn put(&mut self, at: usize, value: u16) {
        if let Some(field) = self.transport_field(at) {
            *field = value.to_be_bytes();
        }
    }

    /// Two bytes of the transport header. They are there, as parsing has seen the whole header, but
    /// for a packet that is itself only a quoted beginning.
    pub(super) fn transport_field(&mut self, at: usize) -> Option<&mut [u8; 2]> {
        self.bytes
            .get_mut(self.transport_at + at..)?
            .first_chunk_mut()
    }

    pub(super) fn put_addresses(&mut self, source: Address, destination: Address, difference: Sum) {
        if self.is_v4() {
            use field::ipv4::{CHECKSUM, DESTINATION, SOURCE};
            copy(&mut self.bytes[SOURCE..SOURCE + 4], source.wire());
            copy(
                &mut self.bytes[DESTINATION..DESTINATION + 4],
                destination.wire(),
            );
            if let Some(field) = self.bytes[CHECKSUM..].first_chunk_mut() {
                adjust_complete(field, difference);
            }
        } else {
            use field::ipv6::{DESTINATION, SOURCE};
            copy(&mut self.bytes[SOURCE..SOURCE + 16], source.wire());
            copy(
                &mut self.bytes[DESTINATION..DESTINATION + 16],
                destination.wire(),
            );
        }
    }
}

/// Copies as much as both have; they are of one length, as a translation keeps the family.
fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
