//! From bytes to meaning: one pass over the headers that checks every length.
//!
//! Offsets of the header fields stand in [`field`], named as in RFC 791 (IPv4), 8200 (IPv6), 9293
//! (TCP), 768 (UDP), 792 (ICMP) and 4443 (ICMPv6).

use thiserror::Error;

use super::{Address, fragment};

/// Where the fields lie: bytes from the start of the header that the module is named after.
pub(super) mod field {
    pub mod ipv4 {
        pub const TOS: usize = 1;
        pub const TOTAL_LENGTH: usize = 2;
        pub const IDENTIFICATION: usize = 4;
        pub const FRAGMENT: usize = 6;
        pub const TTL: usize = 8;
        pub const PROTOCOL: usize = 9;
        pub const CHECKSUM: usize = 10;
        pub const SOURCE: usize = 12;
        pub const DESTINATION: usize = 16;
        /// Length of the header without options.
        pub const LENGTH: usize = 20;
    }
    pub mod ipv6 {
        pub const PAYLOAD_LENGTH: usize = 4;
        pub const NEXT_HEADER: usize = 6;
        pub const HOP_LIMIT: usize = 7;
        pub const SOURCE: usize = 8;
        pub const DESTINATION: usize = 24;
        /// Length of the header without extension headers.
        pub const LENGTH: usize = 40;
    }
    pub mod fragment {
        pub const NEXT_HEADER: usize = 0;
        pub const OFFSET: usize = 2;
        pub const IDENTIFICATION: usize = 4;
        pub const LENGTH: usize = 8;
    }
    pub mod tcp {
        pub const SOURCE_PORT: usize = 0;
        pub const DESTINATION_PORT: usize = 2;
        pub const SEQUENCE: usize = 4;
        pub const ACKNOWLEDGEMENT: usize = 8;
        pub const DATA_OFFSET: usize = 12;
        pub const FLAGS: usize = 13;
        pub const WINDOW: usize = 14;
        pub const CHECKSUM: usize = 16;
        /// Length of the header without options.
        pub const LENGTH: usize = 20;
    }
    pub mod udp {
        pub const SOURCE_PORT: usize = 0;
        pub const DESTINATION_PORT: usize = 2;
        pub const DATAGRAM_LENGTH: usize = 4;
        pub const CHECKSUM: usize = 6;
        pub const LENGTH: usize = 8;
    }
    /// UDP-Lite and DCCP, which sum the pseudo-header as UDP does and keep it in the same place.
    pub mod like_udp {
        pub const CHECKSUM: usize = 6;
    }
    pub mod icmp {
        pub const TYPE: usize = 0;
        pub const CODE: usize = 1;
        pub const CHECKSUM: usize = 2;
        pub const IDENTIFIER: usize = 4;
        /// Length of the quoted packet in an ICMPv6 error (RFC 4884, section 4.4), in eights.
        pub const QUOTE_LENGTH_V6: usize = 4;
        /// Length of the quoted packet in an ICMP error (RFC 4884, sections 4.1 to 4.3), in fours.
        pub const QUOTE_LENGTH_V4: usize = 5;
        /// Length of an echo header, and of what goes before the quoted packet in an error.
        pub const LENGTH: usize = 8;
    }
}

/// IP protocol numbers (IANA, "Assigned Internet Protocol Numbers").
pub(super) mod number {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// RFC 4340.
    pub const DCCP: u8 = 33;
    /// RFC 3828.
    pub const UDP_LITE: u8 = 136;
}

/// Extension headers that one packet may carry. RFC 8200 gives each but one at most once.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Why some bytes are no packet that can be worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// No bytes at all.
    #[error("the packet is empty")]
    Empty,
    /// The first four bits are neither 4 nor 6.
    #[error("neither IPv4 nor IPv6")]
    NotIp,
    /// The IP header is cut off, or says it is shorter than it can be.
    #[error("the IP header is cut off or its length is impossible")]
    IpHeader,
    /// The packet says it is longer than the bytes there are, or shorter than its own header.
    #[error("the IP length field doesn't fit the bytes")]
    IpLength,
    /// A chain of extension headers that runs out of the packet or has too many links.
    #[error("the IPv6 extension headers run out of the packet or are too many")]
    ExtensionHeaders,
    /// The TCP, UDP or ICMP header is cut off or its length is impossible.
    #[error("the transport header is cut off or its length is impossible")]
    TransportHeader,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp(TcpSegment),
    /// A UDP datagram.
    Udp {
        /// Source port, host order.
        source_port: u16,
        /// Destination port, host order.
        destination_port: u16,
    },
    /// An ICMP or ICMPv6 echo request.
    EchoRequest {
        /// The identifier, host order.
        identifier: u16,
    },
    /// An ICMP or ICMPv6 echo reply.
    EchoReply {
        /// The identifier, host order.
        identifier: u16,
    },
    /// A piece of a packet; only the first one has a transport header.
    Fragment,
    /// An ICMP or ICMPv6 error, about a packet that it quotes ([`Packet::quote`]).
    IcmpError,
    /// Advice to send by another router (RFC 792; RFC 4861, section 4.5), which concerns none but
    /// the host that it was sent to.
    IcmpRedirect,
    /// Any other ICMP or ICMPv6 message.
    OtherIcmp,
    /// A transport that is neither TCP, UDP nor ICMP, by its IP protocol number.
    Other(u8),
}

/// The fields of a TCP header that a translator cares for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSegment {
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Sequence number of the first byte, host order.
    pub sequence: u32,
    /// Acknowledgement number, host order; means something only with [`TcpSegment::ACK`].
    pub acknowledgement: u32,
    /// The flags, as they lie in the header.
    pub flags: u8,
    /// The window as it lies in the header, host order.
    pub window: u16,
    /// Bytes of payload. Up to a super-packet's worth.
    pub payload: u32,
}

impl TcpSegment {
    /// Flag: no more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Flag: a connection begins.
    pub const SYN: u8 = 0x02;
    /// Flag: the connection is void.
    pub const RST: u8 = 0x04;
    /// Flag: the acknowledgement number counts.
    pub const ACK: u8 = 0x10;

    /// Whether all the flags in `mask` are set.
    pub fn has(&self, mask: u8) -> bool {
        self.flags & mask == mask
    }

    /// Whether this segment asks for a new connection: SYN, and neither ACK nor RST.
    pub fn opens(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// The sequence number after this segment: payload, SYN and FIN count (RFC 9293, section 3.4).
    pub fn next_sequence(&self) -> u32 {
        let controls = u32::from(self.has(Self::SYN)) + u32::from(self.has(Self::FIN));
        self.sequence
            .wrapping_add(self.payload)
            .wrapping_add(controls)
    }
}

/// One packet whose headers have been checked: it can be rewritten in place.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The packet without what may follow its end.
    pub(super) bytes: &'a mut [u8],
    /// Where the transport header starts, bytes from the IP header's first.
    pub(super) transport_at: usize,
    pub(super) transport: Transport,
}

impl<'a> Packet<'a> {
    /// Checks the headers of the packet that starts at the first of `bytes`. What follows the
    /// packet's own end isn't looked at and won't be written to.
    ///
    /// # Errors
    /// The first thing found wrong. The IP header's checksum isn't verified: it is updated by a
    /// difference, so a wrong one stays wrong and the next host will drop the packet.
    // Inlined, with what it calls for IPv4, for the reason that is given at `Transport::parse`: it takes a
    // sixth off the whole way through the engine.
    #[inline(always)]
    pub fn parse(bytes: &'a mut [u8]) -> Result<Self, Malformed> {
        match bytes.first().ok_or(Malformed::Empty)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(Malformed::NotIp),
        }
    }

    #[inline(always)]
    fn parse_v4(bytes: &'a mut [u8]) -> Result<Self, Malformed> {
        use field::ipv4::{FRAGMENT, LENGTH, PROTOCOL, TOTAL_LENGTH};
        if bytes.len() < LENGTH {
            return Err(Malformed::IpHeader);
        }
        let header_length = usize::from(bytes[0] & 0x0F) * 4;
        let total_length = usize::from(u16_at(bytes, TOTAL_LENGTH));
        if header_length < LENGTH || header_length > bytes.len() {
            return Err(Malformed::IpHeader);
        }
        if total_length < header_length || total_length > bytes.len() {
            return Err(Malformed::IpLength);
        }
        let bytes = &mut bytes[..total_length];
        let more_fragments_or_offset = u16_at(bytes, FRAGMENT) & 0x3FFF;
        let transport = if more_fragments_or_offset != 0 {
            Transport::Fragment
        } else {
            Transport::parse(bytes[PROTOCOL], &bytes[header_length..], &IcmpTypes::V4)?
        };
        Ok(Self {
            transport_at: header_length,
            transport,
            bytes,
        })
    }

    fn parse_v6(bytes: &'a mut [u8]) -> Result<Self, Malformed> {
        use field::ipv6::{LENGTH, NEXT_HEADER, PAYLOAD_LENGTH};
        if bytes.len() < LENGTH {
            return Err(Malformed::IpHeader);
        }
        let total_length = LENGTH + usize::from(u16_at(bytes, PAYLOAD_LENGTH));
        // A length of zero would be a jumbogram (RFC 2675), which no TUN carries.
        if total_length == LENGTH && bytes[NEXT_HEADER] == number::HOP_BY_HOP
            || total_length > bytes.len()
        {
            return Err(Malformed::IpLength);
        }
        let bytes = &mut bytes[..total_length];
        let (next_header, transport_at) =
            skip_extension_headers(bytes, bytes[NEXT_HEADER], LENGTH)?;
        let transport = match next_header {
            number::FRAGMENT => Transport::Fragment,
            next_header => Transport::parse(next_header, &bytes[transport_at..], &IcmpTypes::V6)?,
        };
        Ok(Self {
            transport_at,
            transport,
            bytes,
        })
    }

    /// Where it comes from.
    pub fn source(&self) -> Address {
        self.address_at(field::ipv4::SOURCE, field::ipv6::SOURCE)
    }

    /// Where it goes.
    pub fn destination(&self) -> Address {
        self.address_at(field::ipv4::DESTINATION, field::ipv6::DESTINATION)
    }

    fn address_at(&self, at_v4: usize, at_v6: usize) -> Address {
        if self.is_v4() {
            Address::v4(array_at(self.bytes, at_v4))
        } else {
            Address::v6(array_at(self.bytes, at_v6))
        }
    }

    /// What it carries.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// All of its bytes, from the IP header's first on.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// What follows all its headers.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.headers_length()..]
    }

    /// Its length in bytes, IP header included.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Length of all its headers up to the payload, in bytes.
    pub fn headers_length(&self) -> usize {
        let transport_length = match self.transport {
            Transport::Tcp(_) => tcp_header_length(&self.bytes[self.transport_at..]),
            Transport::Udp { .. } => field::udp::LENGTH,
            Transport::EchoRequest { .. } | Transport::EchoReply { .. } => field::icmp::LENGTH,
            Transport::IcmpError => field::icmp::LENGTH,
            Transport::Fragment
            | Transport::IcmpRedirect
            | Transport::OtherIcmp
            | Transport::Other(_) => 0,
        };
        self.transport_at + transport_length
    }
}

impl Transport {
    // Inlined, as it would otherwise be copied twice on its way into the packet, by words that straddle
    // the fields just written, for which the processor has to wait.
    #[inline(always)]
    fn parse(protocol: u8, bytes: &[u8], icmp: &IcmpTypes) -> Result<Self, Malformed> {
        match protocol {
            number::TCP => Self::parse_tcp(bytes),
            number::UDP => Self::parse_udp(bytes),
            // The ICMP of the other family is no more than any other protocol.
            protocol if protocol == icmp.protocol => Self::parse_icmp(bytes, icmp),
            other => Ok(Self::Other(other)),
        }
    }

    fn parse_tcp(bytes: &[u8]) -> Result<Self, Malformed> {
        use field::tcp::{
            ACKNOWLEDGEMENT, DESTINATION_PORT, FLAGS, LENGTH, SEQUENCE, SOURCE_PORT, WINDOW,
        };
        if bytes.len() < LENGTH {
            return Err(Malformed::TransportHeader);
        }
        let header_length = tcp_header_length(bytes);
        if header_length < LENGTH || header_length > bytes.len() {
            return Err(Malformed::TransportHeader);
        }
        Ok(Self::Tcp(TcpSegment {
            source_port: u16_at(bytes, SOURCE_PORT),
            destination_port: u16_at(bytes, DESTINATION_PORT),
            sequence: u32::from_be_bytes(array_at(bytes, SEQUENCE)),
            acknowledgement: u32::from_be_bytes(array_at(bytes, ACKNOWLEDGEMENT)),
            flags: bytes[FLAGS],
            window: u16_at(bytes, WINDOW),
            // An IP packet is shorter than 2^17 bytes.
            payload: (bytes.len() - header_length) as u32,
        }))
    }

    fn parse_udp(bytes: &[u8]) -> Result<Self, Malformed> {
        use field::udp::{DATAGRAM_LENGTH, DESTINATION_PORT, LENGTH, SOURCE_PORT};
        if bytes.len() < LENGTH {
            return Err(Malformed::TransportHeader);
        }
        let datagram_length = usize::from(u16_at(bytes, DATAGRAM_LENGTH));
        if datagram_length < LENGTH || datagram_length > bytes.len() {
            return Err(Malformed::TransportHeader);
        }
        Ok(Self::Udp {
            source_port: u16_at(bytes, SOURCE_PORT),
            destination_port: u16_at(bytes, DESTINATION_PORT),
        })
    }

    fn parse_icmp(bytes: &[u8], icmp: &IcmpTypes) -> Result<Self, Malformed> {
        use field::icmp::{CODE, IDENTIFIER, LENGTH, TYPE};
        if bytes.len() < LENGTH {
            return Err(Malformed::TransportHeader);
        }
        let identifier = u16_at(bytes, IDENTIFIER);
        Ok(match (bytes[TYPE], bytes[CODE]) {
            (kind, 0) if kind == icmp.echo_request => Self::EchoRequest { identifier },
            (kind, 0) if kind == icmp.echo_reply => Self::EchoReply { identifier },
            (kind, _) if icmp.errors.contains(&kind) => Self::IcmpError,
            (kind, _) if kind == icmp.redirect => Self::IcmpRedirect,
            _ => Self::OtherIcmp,
        })
    }
}

/// The types of one family's ICMP messages; in all else that matters here, RFC 792 and RFC 4443 are
/// alike.
pub(super) struct IcmpTypes {
    pub(super) protocol: u8,
    pub(super) echo_request: u8,
    pub(super) echo_reply: u8,
    errors: &'static [u8],
    redirect: u8,
}

impl IcmpTypes {
    /// RFC 792. Errors: destination unreachable, source quench (which no-one should send any more,
    /// RFC 6633, but which quotes a packet all the same), time exceeded, parameter problem.
    pub(super) const V4: Self = Self {
        protocol: number::ICMP,
        echo_request: 8,
        echo_reply: 0,
        errors: &[3, 4, 11, 12],
        redirect: 5,
    };
    /// RFC 4443. Errors: destination unreachable, packet too big, time exceeded, parameter problem.
    pub(super) const V6: Self = Self {
        protocol: number::ICMPV6,
        echo_request: 128,
        echo_reply: 129,
        errors: &[1, 2, 3, 4],
        redirect: 137,
    };
}

/// Walks the extension headers (RFC 8200, section 4) from `at` on, where a header with the number
/// `next_header` starts. Returns the number of what follows them and where it starts; the fragment
/// header of a real fragment ends the walk, that of an atomic one (RFC 6946) doesn't.
pub(super) fn skip_extension_headers(
    bytes: &[u8],
    mut next_header: u8,
    mut at: usize,
) -> Result<(u8, usize), Malformed> {
    let mut fragment_headers = 0;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match next_header {
            number::HOP_BY_HOP | number::ROUTING | number::DESTINATION_OPTIONS => {
                let [following, length_in_eights, ..] = bytes[at..] else {
                    return Err(Malformed::ExtensionHeaders);
                };
                next_header = following;
                at += 8 + usize::from(length_in_eights) * 8;
                if at > bytes.len() {
                    return Err(Malformed::ExtensionHeaders);
                }
            }
            number::FRAGMENT => {
                let header = bytes[at..]
                    .first_chunk()
                    .ok_or(Malformed::ExtensionHeaders)?;
                fragment_headers += 1;
                if fragment_headers > 1 {
                    return Err(Malformed::ExtensionHeaders);
                }
                if !fragment::is_atomic(header) {
                    return Ok((next_header, at));
                }
                next_header = header[field::fragment::NEXT_HEADER];
                at += field::fragment::LENGTH;
            }
            _ => return Ok((next_header, at)),
        }
    }
    Err(Malformed::ExtensionHeaders)
}

/// Whether `bytes` hold the whole transport header that they start with.
pub(super) fn transport_header_fits(protocol: u8, bytes: &[u8]) -> bool {
    match protocol {
        number::TCP => bytes.len() >= field::tcp::LENGTH && bytes.len() >= tcp_header_length(bytes),
        number::UDP => bytes.len() >= field::udp::LENGTH,
        number::ICMP | number::ICMPV6 => bytes.len() >= field::icmp::LENGTH,
        _ => true,
    }
}

fn tcp_header_length(bytes: &[u8]) -> usize {
    usize::from(bytes[field::tcp::DATA_OFFSET] >> 4) * 4
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(bytes, at))
}

pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
