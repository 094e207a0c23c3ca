//! ICMP errors that the engine sends of its own accord: who gets them, and to the byte what they see.

mod support;

use std::net::{IpAddr, SocketAddr};

use control_protocol::Protocol;
use rewriter::engine::{DropReason, HopLimit, Verdict};
use support::errors::{Flow, Hosts, Message, PROTOCOLS, V4, V6, after_hops, error, verify};
use support::{World, address, echo, packet_of, udp};

const MTU: u16 = 1300;

/// A world that forwards by itself, and a connection in it.
fn open(hosts: Hosts, protocol: Protocol) -> (World, Flow) {
    let mut world = World::with(1, |config| config.hop_limit = HopLimit::Lower);
    let flow = Flow::open_in(&mut world, hosts, protocol, address(hosts.client));
    (world, flow)
}

/// The next packet of the engine's own.
fn own(world: &mut World) -> Option<Vec<u8>> {
    Some(world.engines[0].poll_transmit()?.packet)
}

/// What the engine wants to send, with the hop limit that the tests' own packets have.
fn told(world: &mut World) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| own(world))
        .map(|mut packet| {
            verify(&packet);
            packet = after_hops(&packet, 3);
            packet
        })
        .collect()
}

fn unspecified(hosts: Hosts) -> IpAddr {
    let any = if hosts.is_v4() { "0.0.0.0" } else { "::" };
    any.parse().expect("an address")
}

fn prohibited(hosts: Hosts) -> Message {
    let (kind, code) = if hosts.is_v4() { (3, 13) } else { (1, 1) };
    Message {
        kind,
        code,
        rest: [0; 4],
    }
}

/// A payload that doesn't fit into [`MTU`].
fn long() -> Vec<u8> {
    (0..=255).cycle().take(1400).collect()
}

/// How much of the packet an error quotes: as much as makes 576 bytes, or 1,280 of IPv6.
fn quoted(hosts: Hosts, packet: &[u8]) -> &[u8] {
    let most = if hosts.is_v4() { 576 - 28 } else { 1280 - 48 };
    &packet[..packet.len().min(most)]
}

#[test]
fn a_packet_whose_hop_limit_runs_out_is_reported_by_the_rewriter_itself() {
    for hosts in [V4, V6] {
        for protocol in PROTOCOLS {
            let (mut world, flow) = open(hosts, protocol);
            // To the mirror, nobody but the proxy is to be seen (RFC 5508, REQ-5 c).
            for (sent, from, teller) in [
                (&flow.request[0], flow.client, unspecified(hosts)),
                (&flow.reply[0], flow.mirror, flow.proxy.ip()),
            ] {
                let last = after_hops(sent, 63);
                let verdict = world.handle(&mut last.clone());
                assert_eq!(verdict, Verdict::Dropped(DropReason::HopLimitExceeded));
                let expected = error(
                    teller,
                    from.ip(),
                    hosts.time_exceeded(),
                    quoted(hosts, &last),
                );
                assert_eq!(told(&mut world), [expected], "{hosts:?} {protocol}");
            }
        }
    }
}

#[test]
fn an_undiverted_packet_whose_hop_limit_runs_out_is_reported_too() {
    for hosts in [V4, V6] {
        let (mut world, _) = open(hosts, Protocol::Udp);
        let elsewhere = SocketAddr::new(hosts.router(), 53);
        let last = after_hops(&udp(address(hosts.client), elsewhere, b"?"), 63);
        let verdict = world.handle(&mut last.clone());
        assert_eq!(verdict, Verdict::Dropped(DropReason::HopLimitExceeded));
        let client = address(hosts.client).ip();
        let expected = error(unspecified(hosts), client, hosts.time_exceeded(), &last);
        assert_eq!(told(&mut world), [expected]);
    }
}

#[test]
fn a_packet_too_long_for_the_next_link_is_reported_as_from_where_it_went() {
    for hosts in [V4, V6] {
        for protocol in PROTOCOLS {
            let (mut world, flow) = open(hosts, protocol);
            // As they come; they leave after one hop, and so they are quoted.
            let request = packet_of(protocol, flow.client, flow.service, &long(), false);
            let reply = packet_of(protocol, flow.mirror, flow.proxy, &long(), true);
            for (sent, from, to) in [
                (request, flow.client, flow.service),
                (reply, flow.mirror, flow.proxy),
            ] {
                let mut leaving = sent.clone();
                assert!(matches!(world.handle(&mut leaving), Verdict::Translated(_)));
                world.engines[0].handle_too_big(leaving, MTU, world.now);
                let quote = after_hops(&sent, 1);
                let expected = error(
                    to.ip(),
                    from.ip(),
                    hosts.too_big(MTU),
                    quoted(hosts, &quote),
                );
                assert_eq!(told(&mut world), [expected], "{hosts:?} {protocol}");
            }
        }
    }
}

#[test]
fn an_ipv4_packet_that_may_be_cut_is_cut() {
    let (mut world, flow) = open(V4, Protocol::Udp);
    let mut packet = udp(flow.client, flow.service, &long());
    // No "don't fragment"; the checksum is wrong by just that.
    packet[6] = 0;
    packet[10..12].fill(0);
    let sum = support::errors::ones_complement(&packet[..20]);
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    assert!(matches!(world.handle(&mut packet), Verdict::Translated(_)));
    for mtu in [0, 68, 576, MTU, 1427] {
        world.engines[0].handle_too_big(packet.clone(), mtu, world.now);
        let pieces: Vec<Vec<u8>> = std::iter::from_fn(|| own(&mut world)).collect();
        let mut whole = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            assert!(piece.len() <= usize::from(mtu.max(68)));
            assert_eq!(support::errors::ones_complement(&piece[..20]), 0xFFFF);
            assert_eq!(piece[4..6], packet[4..6], "one identification");
            let word = u16::from_be_bytes([piece[6], piece[7]]);
            assert_eq!(usize::from(word & 0x1FFF) * 8, whole.len());
            assert_eq!(word & 0x2000 != 0, number + 1 < pieces.len());
            whole.extend_from_slice(&piece[20..]);
        }
        assert_eq!(whole, packet[20..], "MTU {mtu}");
    }
    // A piece may be cut again, wherever it belongs.
    world.engines[0].handle_too_big(packet.clone(), 576, world.now);
    let second = std::iter::from_fn(|| own(&mut world)).nth(1);
    let second = second.expect("a second piece");
    while own(&mut world).is_some() {}
    world.engines[0].handle_too_big(second.clone(), 300, world.now);
    let mut at = 552;
    let mut again = Vec::new();
    while let Some(piece) = own(&mut world) {
        let word = u16::from_be_bytes([piece[6], piece[7]]);
        assert_eq!(word & 0x2000, 0x2000, "the last piece comes later");
        assert_eq!(usize::from(word & 0x1FFF) * 8, at);
        at += piece.len() - 20;
        again.extend_from_slice(&piece[20..]);
    }
    assert_eq!(again, second[20..]);
}

#[test]
fn a_client_that_can_have_no_connection_is_told() {
    for hosts in [V4, V6] {
        let mut world = World::with(1, |config| config.max_connections_per_client = Some(1));
        world.divert(hosts.service, &[hosts.mirror]);
        let (client, service) = (address(hosts.client), address(hosts.service));
        let mut packet = udp(client, service, b"first");
        assert!(matches!(world.handle(&mut packet), Verdict::Translated(_)));
        let second = udp(SocketAddr::new(client.ip(), 9), service, b"second");
        let verdict = world.handle(&mut second.clone());
        assert_eq!(verdict, Verdict::Dropped(DropReason::ClientLimit));
        let expected = error(
            service.ip(),
            client.ip(),
            prohibited(hosts),
            &after_hops(&second, 1),
        );
        assert_eq!(told(&mut world), [expected], "{hosts:?}");
    }
}

#[test]
fn nobody_is_told_of_an_error_or_of_what_no_host_has_sent() {
    let (mut world, flow) = open(V4, Protocol::Udp);
    let about = flow.reverse_error(V4.router(), V4.port_unreachable(), 40);
    let lost = after_hops(&about, 60);
    let verdict = world.handle(&mut lost.clone());
    assert_eq!(verdict, Verdict::Dropped(DropReason::HopLimitExceeded));
    for source in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1"] {
        let source = source.parse().expect("an address");
        let packet = echo(source, "9.9.9.9".parse().expect("one"), true, 1, b"?");
        let verdict = world.handle(&mut after_hops(&packet, 63));
        assert_eq!(verdict, Verdict::Dropped(DropReason::HopLimitExceeded));
    }
    let (group, client) = ("224.0.0.9".parse().expect("one"), flow.client.ip());
    let packet = echo(client, group, true, 1, b"?");
    world.handle(&mut after_hops(&packet, 63));
    assert!(told(&mut world).is_empty());
}

#[test]
fn errors_are_limited() {
    let (mut world, flow) = open(V4, Protocol::Udp);
    let last = after_hops(&flow.request[0], 63);
    for _ in 0..1000 {
        world.handle(&mut last.clone());
    }
    assert_eq!(told(&mut world).len(), 50);
}
