//! ICMP and ICMPv6 errors: what they quote, and how they are rewritten.
//!
//! An error tells which packet it is about by quoting its beginning: the IP header and at least eight
//! bytes of what follows it (RFC 792), or as much as fits (RFC 1812, section 4.3.2.3; RFC 4443,
//! section 2.4). The receiver looks for the quoted packet among those that it has sent, so to be
//! believed, the error must quote it as it was before it was translated, down to the checksums.
//!
//! A [`Quote`] is read with the same suspicion as a packet, but more of it may be missing: of TCP,
//! eight bytes hold the ports and the sequence number; the checksum may lie behind the end, and then
//! there is none to be kept right (of half a checksum there is no translation, it stays). What lies
//! behind the quoted headers (payload, the padding and extensions of RFC 4884) is never touched.

use super::checksum::{Sum, adjust_complete};
use super::parse::{
    IcmpTypes, TcpSegment, array_at, field, number, skip_extension_headers, u16_at,
};
use super::{Address, Flow, Packet, Translation, Transport};

/// How much of a transport header every error quotes, in bytes (RFC 792).
const LEAST_TRANSPORT: usize = 8;

/// With extensions behind it, a quoted packet is padded to at least this many bytes (RFC 4884,
/// section 4). A length field that says less is an old sender's "unused" field.
const LEAST_PADDED: usize = 128;

/// The packet that an ICMP error is about, as far as it is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    source: Address,
    destination: Address,
    transport: Transport,
    /// Where its transport header starts, bytes from its IP header's first.
    transport_at: usize,
    /// How many bytes of it there are, less if an extension follows.
    length: usize,
}

impl Quote {
    /// Who sent the quoted packet.
    pub fn source(&self) -> Address {
        self.source
    }

    /// Where it went.
    pub fn destination(&self) -> Address {
        self.destination
    }

    /// What it carried: TCP, UDP or an echo. Of a TCP segment only the ports and the sequence number
    /// are known; the other fields are 0.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The flow that it belonged to.
    pub fn flow(&self) -> Option<Flow> {
        Flow::of(self.transport, self.source, self.destination)
    }

    fn parse_v4(bytes: &[u8]) -> Option<Self> {
        use field::ipv4::{DESTINATION, FRAGMENT, LENGTH, PROTOCOL, SOURCE, TOTAL_LENGTH};
        if bytes.len() < LENGTH || bytes[0] >> 4 != 4 {
            return None;
        }
        let transport_at = usize::from(bytes[0] & 0x0F) * 4;
        let offset = u16_at(bytes, FRAGMENT) & 0x1FFF;
        if transport_at < LENGTH || offset != 0 {
            return None;
        }
        let length = quoted_length(bytes, u16_at(bytes, TOTAL_LENGTH).into(), transport_at);
        Some(Self {
            source: Address::v4(array_at(bytes, SOURCE)),
            destination: Address::v4(array_at(bytes, DESTINATION)),
            transport: parse_transport(
                bytes[PROTOCOL],
                bytes.get(transport_at..length)?,
                &IcmpTypes::V4,
            )?,
            transport_at,
            length,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Option<Self> {
        use field::ipv6::{DESTINATION, LENGTH, NEXT_HEADER, PAYLOAD_LENGTH, SOURCE};
        if bytes.len() < LENGTH || bytes[0] >> 4 != 6 {
            return None;
        }
        let (mut protocol, mut transport_at) =
            skip_extension_headers(bytes, bytes[NEXT_HEADER], LENGTH).ok()?;
        if protocol == number::FRAGMENT {
            // RFC 8200, section 4.5: next header, a reserved byte, 13 bits of offset, flags and
            // identification.
            let [next_header, _, high, low, ..] = *bytes[transport_at..].first_chunk::<8>()?;
            if u16::from_be_bytes([high, low]) >> 3 != 0 {
                return None;
            }
            (protocol, transport_at) =
                skip_extension_headers(bytes, next_header, transport_at + 8).ok()?;
        }
        let total_length = LENGTH + usize::from(u16_at(bytes, PAYLOAD_LENGTH));
        let length = quoted_length(bytes, total_length, transport_at);
        Some(Self {
            source: Address::v6(array_at(bytes, SOURCE)),
            destination: Address::v6(array_at(bytes, DESTINATION)),
            transport: parse_transport(protocol, bytes.get(transport_at..length)?, &IcmpTypes::V6)?,
            transport_at,
            length,
        })
    }
}

/// How many of the bytes are the quoted packet's. Its own length is most often more than what is
/// quoted, and may be less, when padding follows; one that has no room for its headers says nothing
/// (a super-packet of the kernel's own, larger than the field can tell, has 0 there).
fn quoted_length(bytes: &[u8], total_length: usize, transport_at: usize) -> usize {
    if total_length < transport_at + LEAST_TRANSPORT {
        bytes.len()
    } else {
        total_length.min(bytes.len())
    }
}

/// `None`: cut off too early, or no packet that a translation could have made. In particular an error
/// about an error, which must not be sent (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
fn parse_transport(protocol: u8, bytes: &[u8], icmp: &IcmpTypes) -> Option<Transport> {
    if bytes.len() < LEAST_TRANSPORT {
        return None;
    }
    match protocol {
        number::TCP => Some(Transport::Tcp(TcpSegment {
            source_port: u16_at(bytes, field::tcp::SOURCE_PORT),
            destination_port: u16_at(bytes, field::tcp::DESTINATION_PORT),
            sequence: u32::from_be_bytes(array_at(bytes, field::tcp::SEQUENCE)),
            acknowledgement: 0,
            flags: 0,
            window: 0,
            payload: 0,
        })),
        number::UDP => Some(Transport::Udp {
            source_port: u16_at(bytes, field::udp::SOURCE_PORT),
            destination_port: u16_at(bytes, field::udp::DESTINATION_PORT),
        }),
        protocol if protocol == icmp.protocol => {
            let identifier = u16_at(bytes, field::icmp::IDENTIFIER);
            match (bytes[field::icmp::TYPE], bytes[field::icmp::CODE]) {
                (kind, 0) if kind == icmp.echo_request => {
                    Some(Transport::EchoRequest { identifier })
                }
                (kind, 0) if kind == icmp.echo_reply => Some(Transport::EchoReply { identifier }),
                _ => None,
            }
        }
        _ => None,
    }
}

impl Packet<'_> {
    /// The packet that this one, an ICMP error, is about. `None` if this is no error, or if too
    /// little is quoted to tell which connection it belonged to.
    pub fn quote(&self) -> Option<Quote> {
        use field::icmp::{LENGTH, QUOTE_LENGTH_V4, QUOTE_LENGTH_V6, TYPE};
        if self.transport() != Transport::IcmpError {
            return None;
        }
        let message = &self.bytes[self.transport_at..];
        let quoted = message.get(LENGTH..)?;
        // RFC 4884 gives a length to some types only; the others use the byte otherwise.
        let padded = match (self.is_v4(), message[TYPE]) {
            (true, 3 | 11 | 12) => usize::from(message[QUOTE_LENGTH_V4]) * 4,
            (false, 1 | 3) => usize::from(message[QUOTE_LENGTH_V6]) * 8,
            _ => 0,
        };
        let quoted = if padded < LEAST_PADDED {
            quoted
        } else {
            quoted.get(..padded).unwrap_or(quoted)
        };
        if self.is_v4() {
            Quote::parse_v4(quoted)
        } else {
            Quote::parse_v6(quoted)
        }
    }

    /// Rewrites an ICMP error: its own addresses to these, the quoted packet by `quoted`, and all
    /// checksums by differences, so that a wrong one stays wrong (RFC 5508, REQ-3 to REQ-5). Type,
    /// code and what else the message says (the path's MTU) stay as they are.
    ///
    /// `sequence` is added to the sequence number of a quoted TCP segment.
    ///
    /// Without a [quote](Packet::quote) the packet is left as it is. Its checksum must be a complete
    /// one: nothing leaves the checksum of an error to be completed.
    pub fn translate_error(
        &mut self,
        source: Address,
        destination: Address,
        quoted: &Translation,
        sequence: u32,
    ) {
        let Some(quote) = self.quote() else {
            return;
        };
        let start = self.transport_at + field::icmp::LENGTH;
        // As far as anything changes; longer than any other header here, TCP's holds its checksum.
        let end = start + quote.length.min(quote.transport_at + field::tcp::LENGTH);
        let Some(bytes) = self.bytes.get_mut(start..end) else {
            return;
        };
        let before = Sum::of(bytes);
        let mut inner = Packet {
            transport_at: quote.transport_at,
            transport: quote.transport,
            bytes,
        };
        inner.translate(quoted, false);
        inner.add_to_quoted_sequence(sequence);
        let inner = Sum::of(&self.bytes[start..end]).minus(before);
        let sum = |source: Address, destination: Address| {
            Sum::of(source.wire()).plus(Sum::of(destination.wire()))
        };
        let outer = sum(source, destination).minus(sum(self.source(), self.destination()));
        // ICMP sums no pseudo-header (RFC 792), ICMPv6 does (RFC 4443, section 2.3).
        let difference = if self.is_v4() {
            inner
        } else {
            inner.plus(outer)
        };
        if let Some(field) = self.transport_field(field::icmp::CHECKSUM) {
            adjust_complete(field, difference);
        }
        self.put_addresses(source, destination, outer);
    }

    /// Adds to the sequence number of a quoted TCP segment, of which the first eight bytes are there.
    fn add_to_quoted_sequence(&mut self, number: u32) {
        use field::tcp::{CHECKSUM, SEQUENCE};
        let (Transport::Tcp(segment), true) = (self.transport, number != 0) else {
            return;
        };
        let at = self.transport_at + SEQUENCE;
        let (before, after) = (
            segment.sequence.to_be_bytes(),
            segment.sequence.wrapping_add(number).to_be_bytes(),
        );
        if let Some(field) = self.bytes.get_mut(at..at + 4) {
            field.copy_from_slice(&after);
        }
        if let Some(field) = self.transport_field(CHECKSUM) {
            adjust_complete(field, Sum::of(&after).minus(Sum::of(&before)));
        }
    }
}
