//! Packets made by hand, with something in every field that a translation must leave alone.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpDscp, IpEcn, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader, TcpOptionElement,
};

use crate::packet::Packet;

/// What time to live crafted packets start with.
const TTL: u8 = 64;

const FITS: &str = "a crafted packet has room for what is put into it";

/// A TCP segment with the options of today's segments. `flags` sets the flags and numbers.
pub fn tcp(from: &str, to: &str, flags: impl FnOnce(&mut TcpHeader), payload: &[u8]) -> Packet {
    let (from, to) = (end(from), end(to));
    let mut header = TcpHeader::new(from.port(), to.port(), 0x1234_5678, 64_240);
    flags(&mut header);
    let options: &[TcpOptionElement] = if header.syn {
        &[
            TcpOptionElement::MaximumSegmentSize(1440),
            TcpOptionElement::SelectiveAcknowledgementPermitted,
            TcpOptionElement::Timestamp(0xdead_beef, 7),
            TcpOptionElement::Noop,
            TcpOptionElement::WindowScale(7),
        ]
    } else {
        &[
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(0xdead_beef, 7),
        ]
    };
    header.set_options(options).expect(FITS);
    let mut bytes = Vec::new();
    ip(from.ip(), to.ip())
        .tcp_header(header)
        .write(&mut bytes, payload)
        .expect(FITS);
    Packet::new(bytes)
}

/// A UDP datagram.
pub fn udp(from: &str, to: &str, payload: &[u8]) -> Packet {
    let (from, to) = (end(from), end(to));
    let mut bytes = Vec::new();
    ip(from.ip(), to.ip())
        .udp(from.port(), to.port())
        .write(&mut bytes, payload)
        .expect(FITS);
    Packet::new(bytes)
}

/// An ICMP or ICMPv6 echo request with this identifier and sequence number.
pub fn echo_request(from: &str, to: &str, id: u16, sequence: u16, payload: &[u8]) -> Packet {
    let (from, to) = (address(from), address(to));
    let mut bytes = Vec::new();
    let step = ip(from, to);
    if from.is_ipv4() {
        step.icmpv4_echo_request(id, sequence)
            .write(&mut bytes, payload)
            .expect(FITS);
    } else {
        step.icmpv6_echo_request(id, sequence)
            .write(&mut bytes, payload)
            .expect(FITS);
    }
    Packet::new(bytes)
}

/// The answer to an echo request.
pub fn echo_reply(from: &str, to: &str, id: u16, sequence: u16, payload: &[u8]) -> Packet {
    let (from, to) = (address(from), address(to));
    let mut bytes = Vec::new();
    let step = ip(from, to);
    if from.is_ipv4() {
        step.icmpv4_echo_reply(id, sequence)
            .write(&mut bytes, payload)
            .expect(FITS);
    } else {
        step.icmpv6_echo_reply(id, sequence)
            .write(&mut bytes, payload)
            .expect(FITS);
    }
    Packet::new(bytes)
}

/// A packet of any protocol, whose `payload` begins right after the IP header.
pub fn any(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Packet {
    let mut bytes = Vec::new();
    ip(address(from), address(to))
        .write(&mut bytes, IpNumber(protocol), payload)
        .expect(FITS);
    Packet::new(bytes)
}

/// The first or a later fragment of an IPv4 datagram; `offset` counts eight bytes.
pub fn fragment(from: &str, to: &str, protocol: u8, offset: u16, payload: &[u8]) -> Packet {
    let IpHeaders::Ipv4(mut header, _) = headers(address(from), address(to)) else {
        panic!("{from} isn't an IPv4 address");
    };
    header.dont_fragment = false;
    header.more_fragments = offset == 0;
    header.fragment_offset = IpFragOffset::try_new(offset).expect(FITS);
    let mut bytes = Vec::new();
    PacketBuilder::ip(IpHeaders::Ipv4(header, Default::default()))
        .write(&mut bytes, IpNumber(protocol), payload)
        .expect(FITS);
    Packet::new(bytes)
}

fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ip(headers(from, to))
}

fn headers(from: IpAddr, to: IpAddr) -> IpHeaders {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header {
                dscp: IpDscp::AF41,
                ecn: IpEcn::Ect0,
                identification: 0x1d05,
                dont_fragment: true,
                time_to_live: TTL,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // AF41 and ECT(0), as above.
            let header = Ipv6Header {
                traffic_class: (IpDscp::AF41.value() << 2) | IpEcn::Ect0.value(),
                flow_label: 0xc_afe5.try_into().expect(FITS),
                hop_limit: TTL,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("{from} and {to} are of different families"),
    }
}

#[track_caller]
fn end(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[track_caller]
fn address(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}
