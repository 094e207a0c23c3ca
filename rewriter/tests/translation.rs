//! Packets through the engine and back: figure 3, its invariants for any packet, and bad input.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::{IpAddr, SocketAddr};

use control_protocol::Protocol;
use proptest::prelude::*;
use rewriter::engine::{DropReason, HopLimit, Verdict};
use rewriter::packet::VnetHeader;
use rewriter::table::Direction;
use support::*;

const FORWARD: Verdict = Verdict::Translated(Direction::Forward);
const REVERSE: Verdict = Verdict::Translated(Direction::Reverse);

#[test]
fn figure_3_to_the_byte() {
    let mut world = World::with(1, |config| config.proxy_ports = 513..=513);
    world.divert(SERVICE, &[MIRROR]);
    let proxy = address("10.10.10.10:513");

    // Events 1 to 3: the client's connect leaves as the proxy's.
    let mut packet = tcp(address(CLIENT), address(SERVICE), SYN, (1000, 0), b"");
    assert_eq!(world.handle(&mut packet), FORWARD);
    assert_eq!(packet, tcp(proxy, address(MIRROR), SYN, (1000, 0), b""));

    // Events 4 to 6: the mirror's reply leaves as the service's.
    let mut packet = tcp(address(MIRROR), proxy, SYN | ACK, (7000, 1001), b"");
    assert_eq!(world.handle(&mut packet), REVERSE);
    assert_eq!(
        packet,
        tcp(
            address(SERVICE),
            address(CLIENT),
            SYN | ACK,
            (7000, 1001),
            b""
        )
    );
}

/// RFC 4787, REQ-9: hairpinning. To itself the client looks like the proxy.
#[test]
fn a_client_that_is_the_mirror_itself_is_served() {
    for [client, service, mirror] in [
        ["10.2.0.2:5000", SERVICE, "10.2.0.2:80"],
        ["[fd00:2::2]:5000", "[fd00:100::100]:80", "[fd00:2::2]:80"],
    ]
    .map(|texts| texts.map(address))
    {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut world = World::new(2);
            world.divert(&service.to_string(), &[&mirror.to_string()]);
            let mut packet = packet_of(protocol, client, service, b"to myself", false);
            assert_eq!(world.handle(&mut packet), FORWARD);
            let seen = see(&packet);
            assert_eq!(seen.destination, mirror);
            assert_ne!(seen.source.ip(), client.ip());
            let mut packet = packet_of(protocol, mirror, seen.source, b"from myself", true);
            assert_eq!(world.handle(&mut packet), REVERSE);
            let seen = see(&packet);
            assert_eq!((seen.source, seen.destination), (service, client));
        }
    }
}

#[test]
fn what_no_diversion_wants_passes_as_it_came() {
    let mut world = World::new(2);
    world.divert("100.100.100.100:80/tcp", &[MIRROR]);
    for packet in [
        tcp(
            address(CLIENT),
            address("100.100.100.100:81"),
            SYN,
            (1, 0),
            b"",
        ),
        udp(address(CLIENT), address(SERVICE), b"not tcp"),
        udp(address(CLIENT), address("9.9.9.9:53"), b"elsewhere"),
        echo(
            address(CLIENT).ip(),
            address(SERVICE).ip(),
            true,
            9,
            b"ping",
        ),
    ] {
        let mut through = packet.clone();
        assert_eq!(world.handle(&mut through), Verdict::Passed);
        assert_eq!(through, packet);
    }
    assert_eq!(world.connections(), 0);
}

#[test]
fn a_tcp_connection_that_began_before_the_diversion_goes_on_unchanged() {
    let mut world = World::new(2);
    world.divert(SERVICE, &[MIRROR]);
    for flags in [ACK, ACK | PSH, FIN | ACK, RST, SYN | ACK] {
        let packet = tcp(address(CLIENT), address(SERVICE), flags, (5, 6), b"");
        let mut through = packet.clone();
        assert_eq!(world.handle(&mut through), Verdict::Passed);
        assert_eq!(through, packet);
    }
}

#[test]
fn a_reverse_packet_without_a_connection_is_dropped_and_counted() {
    let mut world = World::new(2);
    world.divert(SERVICE, &[MIRROR]);
    for port in [2000, 2001] {
        let proxy = SocketAddr::new(PROXY.parse().unwrap(), port);
        let mut packet = udp(address(MIRROR), proxy, b"stray");
        assert_eq!(
            world.handle(&mut packet),
            Verdict::Dropped(DropReason::NoConnection)
        );
    }
    assert_eq!(world.dropped(DropReason::NoConnection), 2);
}

#[test]
fn only_the_mirror_itself_can_answer() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let mut packet = udp(address(CLIENT), address(SERVICE), b"question");
    assert_eq!(world.handle(&mut packet), FORWARD);
    let proxy = see(&packet).source;
    for stranger in ["123.45.67.89:81", "123.45.67.90:80"] {
        let mut packet = udp(address(stranger), proxy, b"forged");
        assert_eq!(
            world.handle(&mut packet),
            Verdict::Dropped(DropReason::NoConnection)
        );
    }
}

#[test]
fn the_hop_limit_is_lowered_when_the_kernel_does_not() {
    for (client, service) in [(CLIENT, SERVICE), ("[fd00:1::2]:9", "[fd00:100::100]:80")] {
        let mut world = World::with(1, |config| config.hop_limit = HopLimit::Lower);
        world.divert("fd00:100::100", &["fd00:2::2"]);
        let mut packet = udp(address(client), address(service), b"x");
        let is_v4 = address(client).is_ipv4();
        let at = if is_v4 { 8 } else { 7 };
        assert_ne!(
            world.handle(&mut packet),
            Verdict::Dropped(DropReason::HopLimitExceeded)
        );
        assert_eq!(packet[at], 63);
        see(&packet);
        packet[at] = 1;
        assert_eq!(
            world.handle(&mut packet),
            Verdict::Dropped(DropReason::HopLimitExceeded)
        );
    }
}

/// A packet of a protocol that Shunt knows nothing of.
fn other(number: u8, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = udp(address(source), address(destination), payload);
    let is_v4 = packet[0] >> 4 == 4;
    packet.drain(if is_v4 { 20..28 } else { 40..48 });
    let length = u16::try_from(packet.len()).unwrap();
    if is_v4 {
        packet[9] = number;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        let sum = !ones_complement(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[6] = number;
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    }
    packet
}

#[test]
fn an_address_only_diversion_takes_other_protocols_by_their_addresses() {
    const GRE: u8 = 47;
    for (client, other_client, service, mirror, proxy) in [
        (
            "1.2.3.4:0",
            "1.2.3.5:0",
            "100.100.100.100:0",
            "10.2.0.2:0",
            "10.10.10.10:0",
        ),
        (
            "[fd00:1::2]:0",
            "[fd00:1::3]:0",
            "[fd00:100::100]:0",
            "[fd00:2::2]:0",
            "[fd00:10::10]:0",
        ),
    ] {
        let mut world = World::new(3);
        let ip = |text: &str| address(text).ip().to_string();
        // One with a port is not meant for them.
        world.divert(
            &format!("{}", address(&service.replace(":0", ":80"))),
            &[&ip(mirror)],
        );
        let mut packet = other(GRE, client, service, b"tunnelled");
        assert_eq!(world.handle(&mut packet), Verdict::Passed);

        world.divert(&ip(service), &[&ip(mirror)]);
        let mut packet = other(GRE, client, service, b"tunnelled");
        assert_eq!(world.handle(&mut packet), FORWARD);
        assert_eq!(packet, other(GRE, proxy, mirror, b"tunnelled"));
        let mut answer = other(GRE, mirror, proxy, b"back");
        assert_eq!(world.handle(&mut answer), REVERSE);
        assert_eq!(answer, other(GRE, service, client, b"back"));

        // There is one proxy address, so one such connection to this mirror; another protocol's is
        // another.
        let mut packet = other(GRE, other_client, service, b"me too");
        assert_eq!(
            world.handle(&mut packet),
            Verdict::Dropped(DropReason::ProxyPortsExhausted)
        );
        let mut packet = other(50, other_client, service, b"sealed");
        assert_eq!(world.handle(&mut packet), FORWARD);
        let mut stray = other(GRE, "9.9.9.9:0", "10.10.10.10:0", b"stray");
        assert_eq!(
            world.handle(&mut stray),
            Verdict::Dropped(DropReason::NoConnection)
        );
    }
}

#[test]
fn dscp_ecn_and_flow_label_stay_as_they_are() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    world.divert("fd00:100::100", &["fd00:2::2"]);
    let mut packet = udp(address(CLIENT), address(SERVICE), b"marked");
    packet[1] = 0xBB;
    assert_eq!(world.handle(&mut packet), FORWARD);
    assert_eq!(packet[1], 0xBB, "DSCP and ECN");

    let service = address("[fd00:100::100]:80");
    let mut packet = udp(address("[fd00:1::2]:9"), service, b"marked");
    packet[..4].copy_from_slice(&[0x6B, 0xB5, 0x43, 0x21]);
    assert_eq!(world.handle(&mut packet), FORWARD);
    assert_eq!(
        packet[..4],
        [0x6B, 0xB5, 0x43, 0x21],
        "traffic class and flow label"
    );
}

#[test]
fn a_udp_packet_without_a_checksum_keeps_none() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let mut packet = udp(address(CLIENT), address(SERVICE), b"unchecked");
    packet[26..28].fill(0);
    assert_eq!(world.handle(&mut packet), FORWARD);
    assert_eq!(packet[26..28], [0, 0]);
}

fn pair() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let port = 1..=u16::MAX;
    prop_oneof![
        (any::<[u8; 4]>(), port.clone(), port.clone()).prop_map(|(mut client, a, b)| {
            client[0] = client[0] % 100 + 11;
            (
                SocketAddr::new(IpAddr::from(client), a),
                SocketAddr::new([100, 1, 2, 3].into(), b),
            )
        }),
        (any::<[u8; 16]>(), port.clone(), port).prop_map(|(mut client, a, b)| {
            client[0] = 0x20;
            let service: IpAddr = "2001:db8::100".parse().unwrap();
            (
                SocketAddr::new(IpAddr::from(client), a),
                SocketAddr::new(service, b),
            )
        }),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Icmp)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The mirror sees only the proxy, the client only the service, every checksum is right, and
    /// nothing else in a packet changes.
    #[test]
    fn any_packet_goes_there_and_back(
        protocol in protocol(),
        (client, service) in pair(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
        workers in 1..4_u16,
    ) {
        let mut world = World::new(workers);
        world.divert("100.1.2.3", &["10.2.0.2"]);
        world.divert("2001:db8::100", &["fd00:2::2"]);
        let service_port = if protocol == Protocol::Icmp { 0 } else { service.port() };
        let mirror_ip: IpAddr =
            if client.is_ipv4() { [10, 2, 0, 2].into() } else { "fd00:2::2".parse().unwrap() };

        let original = packet_of(protocol, client, service, &payload, false);
        let mut packet = original.clone();
        prop_assert_eq!(world.handle(&mut packet), FORWARD);
        let at_mirror = see(&packet);
        prop_assert_eq!(at_mirror.destination, SocketAddr::new(mirror_ip, service_port));
        let proxy_ip: IpAddr =
            if client.is_ipv4() { PROXY.parse().unwrap() } else { "fd00:10::10".parse().unwrap() };
        prop_assert_eq!(at_mirror.source.ip(), proxy_ip);

        // Written back with the client's addresses it is the original again.
        let rebuilt = packet_of(protocol, client, service, &payload, false);
        prop_assert_eq!(&rebuilt, &original);
        let expected = packet_of(protocol, at_mirror.source,
            SocketAddr::new(mirror_ip, service.port()), &payload, false);
        prop_assert_eq!(&packet, &expected);

        let mirror = SocketAddr::new(mirror_ip, service_port);
        let mut packet = packet_of(protocol, mirror, at_mirror.source, &payload, true);
        prop_assert_eq!(world.handle(&mut packet), REVERSE);
        let at_client = see(&packet);
        prop_assert_eq!(at_client.source, SocketAddr::new(service.ip(), service_port));
        prop_assert_eq!(at_client.destination, client);
        let expected = packet_of(protocol, SocketAddr::new(service.ip(), service_port), client, &payload, true);
        prop_assert_eq!(&packet, &expected);
    }

    /// A checksum that the kernel left to be completed is right once it has been completed.
    #[test]
    fn a_partial_checksum_is_right_when_completed(
        tcp in any::<bool>(),
        (client, service) in pair(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let mut world = World::new(1);
        world.divert("100.1.2.3", &["10.2.0.2"]);
        world.divert("2001:db8::100", &["fd00:2::2"]);
        let mut packet = packet_of(protocol, client, service, &payload, false);
        let start = if client.is_ipv4() { 20 } else { 40 };
        let offset = if tcp { 16 } else { 6 };
        let mut header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: start,
            csum_offset: offset,
            ..VnetHeader::default()
        };
        let at = usize::from(start + offset);
        put_partial(&mut packet, at);
        prop_assert_eq!(world.handle_with(&mut packet, &mut header), FORWARD);
        // What the kernel or a network card does with such a packet.
        let sum = ones_complement(&packet[usize::from(start)..]);
        packet[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
        if !tcp && packet[at..at + 2] == [0, 0] {
            packet[at..at + 2].fill(0xFF);
        }
        see(&packet);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), first in prop_oneof![Just(0x45_u8), Just(0x46), Just(0x4F), Just(0x60), any::<u8>()]) {
        let mut world = World::new(2);
        world.divert("100.1.2.3", &["10.2.0.2"]);
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        let length = bytes.len();
        world.handle(&mut bytes);
        prop_assert_eq!(bytes.len(), length);
    }

    /// A good packet with some bytes changed or cut off: either it is refused and unchanged, or it
    /// is sent with the length it had. What follows its end is never touched.
    #[test]
    fn damaged_packets_do_no_harm(
        protocol in protocol(),
        (client, service) in pair(),
        damage in prop::collection::vec((0..60_usize, any::<u8>()), 0..4),
        cut in 0..80_usize,
    ) {
        let mut world = World::new(1);
        world.divert("100.1.2.3", &["10.2.0.2"]);
        world.divert("2001:db8::100", &["fd00:2::2"]);
        let mut packet = packet_of(protocol, client, service, &[0x5A; 40], false);
        for (at, value) in damage {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        packet.truncate(packet.len().saturating_sub(cut.saturating_sub(40)));
        let before = packet.clone();
        packet.extend([0xEE; 30]);
        let verdict = world.handle(&mut packet);
        prop_assert_eq!(&packet[before.len()..], &[0xEE; 30]);
        if matches!(verdict, Verdict::Dropped(_) | Verdict::Passed) {
            prop_assert_eq!(&packet[..before.len()], &before[..]);
        }
    }
}

/// Puts the folded pseudo-header sum where the checksum is, as the kernel does.
fn put_partial(packet: &mut [u8], at: usize) {
    let (addresses, payload_length) = if packet[0] >> 4 == 4 {
        (packet[12..20].to_vec(), packet.len() - 20)
    } else {
        (packet[8..40].to_vec(), packet.len() - 40)
    };
    let protocol = u8::from(ip_protocol(packet));
    let pseudo = [
        addresses.as_slice(),
        &[0, protocol],
        &u16::try_from(payload_length).unwrap().to_be_bytes(),
    ]
    .concat();
    packet[at..at + 2].copy_from_slice(&ones_complement(&pseudo).to_be_bytes());
}

/// RFC 1071, word by word; the tests' own, on purpose.
fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
