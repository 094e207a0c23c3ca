//! How connections begin, live, end, and make room for others.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::Protocol;
use rewriter::engine::{DropReason, Verdict};
use rewriter::table::{Direction, State};
use support::*;

const FORWARD: Verdict = Verdict::Translated(Direction::Forward);
const REVERSE: Verdict = Verdict::Translated(Direction::Reverse);

#[test]
fn a_client_port_can_be_used_again_once_its_connection_has_ended() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let (client, service, mirror) = (address(CLIENT), address(SERVICE), address(MIRROR));
    let mut syn = tcp(client, service, SYN, (1000, 0), b"");
    world.handle(&mut syn);
    let first = see(&syn).source;
    for (source, destination, flags, numbers) in [
        (mirror, first, SYN | ACK, (7000, 1001)),
        (client, service, ACK, (1001, 7001)),
        (client, service, FIN | ACK, (1001, 7001)),
        (mirror, first, FIN | ACK, (7001, 1002)),
        (client, service, ACK, (1002, 7002)),
    ] {
        let mut packet = tcp(source, destination, flags, numbers, b"");
        assert!(matches!(world.handle(&mut packet), Verdict::Translated(_)));
    }
    // The old mirror is gone; the same client port must reach the new one.
    world.divert(SERVICE, &["10.2.0.3:80"]);
    let mut syn = tcp(client, service, SYN, (90_000, 0), b"");
    assert_eq!(world.handle(&mut syn), FORWARD);
    assert_eq!(see(&syn).destination, address("10.2.0.3:80"));
    assert_eq!(world.connections(), 1);
}

/// RFC 5961: a blind attacker's reset has a number that can't be right. It goes through, since the end
/// judges for itself, but the connection lives on here.
#[test]
fn a_reset_counts_only_when_its_number_can_be_right() {
    let state = |reset: &dyn Fn(SocketAddr) -> Vec<u8>| {
        let mut world = World::new(1);
        world.divert(SERVICE, &[MIRROR]);
        let mut syn = tcp(client(1), address(SERVICE), SYN, (1000, 0), b"");
        world.handle(&mut syn);
        let proxy = see(&syn).source;
        world.handle(&mut tcp(
            address(MIRROR),
            proxy,
            SYN | ACK,
            (7000, 1001),
            b"",
        ));
        world.handle(&mut tcp(
            client(1),
            address(SERVICE),
            ACK,
            (1001, 7001),
            b"",
        ));
        // 100 bytes are on their way to the client.
        world.handle(&mut tcp(
            address(MIRROR),
            proxy,
            ACK,
            (7001, 1001),
            &[1; 100],
        ));
        assert!(matches!(
            world.handle(&mut reset(proxy)),
            Verdict::Translated(_)
        ));
        world.engines[0].connections().get(0).unwrap().state
    };
    let from_mirror = |sequence| move |proxy| tcp(address(MIRROR), proxy, RST, (sequence, 0), b"");
    let from_client = |sequence| move |_| tcp(client(1), address(SERVICE), RST, (sequence, 0), b"");
    for sequence in [7001, 7050, 7101] {
        assert_eq!(state(&from_mirror(sequence)), State::Closed, "{sequence}");
    }
    for sequence in [0, 7000, 7102, 900_000] {
        assert_eq!(
            state(&from_mirror(sequence)),
            State::Established,
            "{sequence}"
        );
    }
    assert_eq!(state(&from_client(1001)), State::Closed);
    assert_eq!(state(&from_client(1002)), State::Established);
}

#[test]
fn a_refused_connection_is_closed() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let mut syn = tcp(client(1), address(SERVICE), SYN, (1000, 0), b"");
    world.handle(&mut syn);
    let proxy = see(&syn).source;
    world.handle(&mut tcp(address(MIRROR), proxy, RST | ACK, (0, 1001), b""));
    assert_eq!(
        world.engines[0].connections().get(0).unwrap().state,
        State::Closed
    );
}

#[test]
fn idle_connections_are_forgotten_in_their_own_time() {
    let minute = Duration::from_secs(60);
    let mut world = World::new(1);
    world.divert("100.100.100.100", &["123.45.67.89"]);
    let service = address(SERVICE);
    let open = |world: &mut World, protocol, port| {
        let client = SocketAddr::new(address(CLIENT).ip(), port);
        let mut packet = packet_of(protocol, client, service, b"", false);
        assert_eq!(world.handle(&mut packet), FORWARD);
        see(&packet)
    };
    open(&mut world, Protocol::Icmp, 1);
    open(&mut world, Protocol::Udp, 2);
    open(&mut world, Protocol::Tcp, 3);
    let syn = open(&mut world, Protocol::Tcp, 4);
    let mut reply = tcp(syn.destination, syn.source, SYN | ACK, (9, 8), b"");
    world.handle(&mut reply);
    let client = SocketAddr::new(address(CLIENT).ip(), 4);
    world.handle(&mut tcp(client, service, ACK, (8, 10), b""));
    assert_eq!(world.connections(), 4);

    world.pass_time(minute - Duration::from_secs(1));
    assert_eq!(world.connections(), 4, "RFC 5508: an echo lives for 60 s");
    world.pass_time(Duration::from_secs(2));
    assert_eq!(world.connections(), 3);
    world.pass_time(3 * minute);
    assert_eq!(world.connections(), 2, "RFC 5382: half open, 4 minutes");
    world.pass_time(minute);
    assert_eq!(world.connections(), 1, "RFC 4787: UDP, 5 minutes");
    world.pass_time(118 * minute);
    assert_eq!(world.connections(), 1, "RFC 5382: established, 2 h 4 min");
    world.pass_time(2 * minute);
    assert_eq!(world.connections(), 0);
    assert_eq!(world.engines[0].counters().expired, 4);
}

#[test]
fn traffic_keeps_a_connection_alive() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    for _ in 0..10 {
        let mut packet = udp(address(CLIENT), address(SERVICE), b"still here");
        world.handle(&mut packet);
        world.pass_time(Duration::from_secs(299));
    }
    assert_eq!(world.engines[0].counters().created, 1);
}

/// A UDP exchange through the engine; gives the proxy endpoint, or nothing if it was dropped.
fn exchange(world: &mut World, client: SocketAddr, service: SocketAddr) -> Option<SocketAddr> {
    let mut question = udp(client, service, b"question");
    if world.handle(&mut question) != FORWARD {
        return None;
    }
    let seen = see(&question);
    let mut answer = udp(seen.destination, seen.source, b"answer");
    assert_eq!(world.handle(&mut answer), REVERSE);
    Some(seen.source)
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::new(address(CLIENT).ip(), port)
}

#[test]
fn an_exhausted_pool_drops_new_connections_by_name_and_leaves_the_others_alone() {
    let mut world = World::with(1, |config| config.proxy_ports = 2000..=2001);
    world.divert(SERVICE, &[MIRROR]);
    for port in 1..=5 {
        exchange(&mut world, client(port), address(SERVICE));
    }
    assert_eq!(
        (
            world.connections(),
            world.dropped(DropReason::ProxyPortsExhausted)
        ),
        (2, 3)
    );
    assert!(exchange(&mut world, client(1), address(SERVICE)).is_some());
    // The same ports can be used towards another mirror.
    world.divert("100.100.100.100:81", &["123.45.67.89:81"]);
    assert!(exchange(&mut world, client(9), address("100.100.100.100:81")).is_some());
}

#[test]
fn a_full_table_drops_new_connections_by_name_when_all_have_been_answered() {
    let mut world = World::with(1, |config| config.max_connections = 3);
    world.divert(SERVICE, &[MIRROR]);
    for port in 1..=5 {
        exchange(&mut world, client(port), address(SERVICE));
    }
    assert_eq!(
        (world.connections(), world.dropped(DropReason::TableFull)),
        (3, 2)
    );
    assert!(exchange(&mut world, client(1), address(SERVICE)).is_some());
}

#[test]
fn a_flood_that_nobody_answers_makes_room_for_itself_only() {
    let mut world = World::with(1, |config| config.max_connections = 100);
    world.divert(SERVICE, &[MIRROR]);
    let syn = |client| tcp(client, address(SERVICE), SYN, (1, 0), b"");
    // 50 clients complete their handshakes.
    for port in 1..=50 {
        let mut packet = syn(client(port));
        world.handle(&mut packet);
        let seen = see(&packet);
        world.handle(&mut tcp(
            seen.destination,
            seen.source,
            SYN | ACK,
            (9, 2),
            b"",
        ));
        world.handle(&mut tcp(client(port), address(SERVICE), ACK, (2, 10), b""));
    }
    // 10,000 SYNs come from addresses that never answer.
    for number in 0..10_000_u16 {
        let [high, low] = number.to_be_bytes();
        let stranger = SocketAddr::new([11, 0, high, low].into(), 1000);
        assert_eq!(world.handle(&mut syn(stranger)), FORWARD);
    }
    assert_eq!(world.connections(), 100, "memory stays flat");
    assert_eq!(world.engines[0].counters().evicted, 10_000 - 50);
    for port in 1..=50 {
        let mut packet = tcp(client(port), address(SERVICE), ACK, (2, 10), b"still here");
        assert_eq!(
            world.handle(&mut packet),
            FORWARD,
            "established connections carry on"
        );
    }
}

#[test]
fn one_client_cannot_have_more_than_its_share() {
    let mut world = World::with(2, |config| config.max_connections_per_client = Some(2));
    world.divert(SERVICE, &[MIRROR]);
    for port in 1..=20 {
        exchange(&mut world, client(port), address(SERVICE));
    }
    assert_eq!(world.connections(), 4, "two in each of the workers");
    assert_eq!(world.dropped(DropReason::ClientLimit), 16);
    let other = address("1.2.3.5:1");
    assert!(exchange(&mut world, other, address(SERVICE)).is_some());
    world.pass_time(Duration::from_secs(400));
    assert!(exchange(&mut world, client(1), address(SERVICE)).is_some());
}

#[test]
fn the_port_of_an_ended_connection_rests_and_is_then_used_again_under_pressure() {
    let mut world = World::with(1, |config| config.proxy_ports = 513..=513);
    world.divert(SERVICE, &[MIRROR]);
    let mut packet = tcp(client(1), address(SERVICE), SYN, (1, 0), b"");
    world.handle(&mut packet);
    let seen = see(&packet);
    world.handle(&mut tcp(
        seen.destination,
        seen.source,
        SYN | ACK,
        (9, 2),
        b"",
    ));
    world.handle(&mut tcp(
        client(1),
        address(SERVICE),
        FIN | ACK,
        (2, 10),
        b"",
    ));
    let second = tcp(client(2), address(SERVICE), SYN, (1, 0), b"");
    let exhausted = Verdict::Dropped(DropReason::ProxyPortsExhausted);
    assert_eq!(
        world.handle(&mut second.clone()),
        exhausted,
        "half closed is in use"
    );
    world.handle(&mut tcp(
        seen.destination,
        seen.source,
        FIN | ACK,
        (10, 3),
        b"",
    ));
    assert_eq!(
        world.handle(&mut second.clone()),
        exhausted,
        "it has to rest"
    );
    world.pass_time(Duration::from_secs(2));
    assert_eq!(world.handle(&mut second.clone()), FORWARD);
    assert_eq!(world.connections(), 1);
}

#[test]
fn a_restored_service_keeps_its_connections_and_gets_no_new_ones() {
    let mut world = World::new(2);
    world.divert(SERVICE, &[MIRROR]);
    assert_eq!(
        world.handle(&mut udp(address(CLIENT), address(SERVICE), b"")),
        FORWARD
    );
    world.restore(SERVICE);
    assert_eq!(
        world.handle(&mut udp(address(CLIENT), address(SERVICE), b"")),
        FORWARD
    );
    let other = address("1.2.3.4:9999");
    assert_eq!(
        world.handle(&mut udp(other, address(SERVICE), b"")),
        Verdict::Passed
    );
}
