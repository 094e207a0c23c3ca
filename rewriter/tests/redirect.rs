//! Redirects as stories of packets.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::SocketAddr;

use control_protocol::{Protocol, TcpMove};
use rewriter::engine::{DropReason, Redirect, RedirectOutcome, Verdict};
use rewriter::table::{AggregateKey, Direction, DiversionId};
use support::*;

const OTHER: &str = "10.2.0.3:80";

fn redirect(diversion: DiversionId, tcp: TcpMove) -> Redirect {
    Redirect::new(0, diversion, tcp)
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::new(address(CLIENT).ip(), port)
}

/// A client opens a TCP connection through the engines; gives the proxy endpoint.
fn establish(world: &mut World, client: SocketAddr) -> SocketAddr {
    let service = address(SERVICE);
    let mut syn = tcp(client, service, SYN, (1000, 0), b"");
    world.handle(&mut syn);
    let syn = see(&syn);
    world.handle(&mut tcp(
        syn.destination,
        syn.source,
        SYN | ACK,
        (7000, 1001),
        b"",
    ));
    world.handle(&mut tcp(client, service, ACK, (1001, 7001), b""));
    syn.source
}

/// Where the next segment of the client's goes.
fn goes_to(world: &mut World, client: SocketAddr) -> Option<SocketAddr> {
    let mut segment = tcp(client, address(SERVICE), ACK, (1001, 7001), b"");
    match world.handle(&mut segment) {
        Verdict::Translated(Direction::Forward) => Some(see(&segment).destination),
        _ => None,
    }
}

#[test]
fn divert_leaves_existing_connections_where_they_are() {
    let mut world = World::new(2);
    world.divert(SERVICE, &[MIRROR]);
    establish(&mut world, client(1));
    world.divert(SERVICE, &[OTHER]);
    establish(&mut world, client(2));
    assert_eq!(goes_to(&mut world, client(1)), Some(address(MIRROR)));
    assert_eq!(goes_to(&mut world, client(2)), Some(address(OTHER)));
}

#[test]
fn rewrite_moves_a_tcp_connection_as_the_patent_does() {
    let mut world = World::new(2);
    world.divert(SERVICE, &[MIRROR]);
    let proxy = establish(&mut world, client(1));
    let id = world.divert(SERVICE, &[OTHER]);
    let outcome = world.redirect(redirect(id, TcpMove::Rewrite));
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: 1,
            reset: 0,
            kept: 0,
            ..RedirectOutcome::default()
        }
    );
    assert_eq!(goes_to(&mut world, client(1)), Some(address(OTHER)));
    // The new mirror may answer, the old one no longer.
    let mut answer = tcp(address(OTHER), proxy, ACK, (7001, 1001), b"new");
    assert_eq!(
        world.handle(&mut answer),
        Verdict::Translated(Direction::Reverse)
    );
    assert_eq!(see(&answer).source, address(SERVICE));
    let mut late = tcp(address(MIRROR), proxy, ACK, (7001, 1001), b"old");
    assert_eq!(
        world.handle(&mut late),
        Verdict::Dropped(DropReason::NoConnection)
    );
}

#[test]
fn reset_ends_both_ends_at_once_with_numbers_they_believe() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let proxy = establish(&mut world, client(1));
    let id = world.divert(SERVICE, &[OTHER]);
    let outcome = world.redirect(redirect(id, TcpMove::Reset));
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: 0,
            reset: 1,
            kept: 0,
            ..RedirectOutcome::default()
        }
    );

    let sent = world.sent();
    let to_client = sent.iter().find(|s| s.destination == client(1)).unwrap();
    assert_eq!(to_client.source, address(SERVICE));
    assert_eq!(
        (to_client.flags, to_client.sequence),
        (RST | ACK, 7001),
        "what the client expects next"
    );
    let to_mirror = sent
        .iter()
        .find(|s| s.destination == address(MIRROR))
        .unwrap();
    assert_eq!(to_mirror.source, proxy);
    assert_eq!(
        (to_mirror.flags, to_mirror.sequence),
        (RST | ACK, 1001),
        "what the mirror expects next"
    );
    assert_eq!(sent.len(), 2);

    // If the reset was lost, the next segment of either end is answered with one more.
    let mut segment = tcp(client(1), address(SERVICE), ACK, (1001, 7001), b"hello?");
    assert_eq!(
        world.handle(&mut segment),
        Verdict::Dropped(DropReason::ConnectionWasReset)
    );
    let sent = world.sent();
    assert_eq!(
        (sent[0].destination, sent[0].flags, sent[0].sequence),
        (client(1), RST, 7001)
    );
    let mut segment = tcp(address(MIRROR), proxy, ACK, (7001, 1001), b"hello?");
    assert_eq!(
        world.handle(&mut segment),
        Verdict::Dropped(DropReason::ConnectionWasReset)
    );
    let sent = world.sent();
    assert_eq!(
        (sent[0].destination, sent[0].flags, sent[0].sequence),
        (address(MIRROR), RST, 1001)
    );
    // A reset isn't answered.
    world.handle(&mut tcp(client(1), address(SERVICE), RST, (1001, 0), b""));
    assert_eq!(world.sent(), []);

    // The client connects again at once, from the same port even.
    let mut syn = tcp(client(1), address(SERVICE), SYN, (5000, 0), b"");
    assert_eq!(
        world.handle(&mut syn),
        Verdict::Translated(Direction::Forward)
    );
    assert_eq!(see(&syn).destination, address(OTHER));
}

#[test]
fn a_reset_reaches_an_end_with_data_on_its_way() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let proxy = establish(&mut world, client(1));
    // The mirror has sent 100 bytes that the client has yet to acknowledge.
    world.handle(&mut tcp(
        address(MIRROR),
        proxy,
        ACK,
        (7001, 1001),
        &[1; 100],
    ));
    let id = world.divert(SERVICE, &[OTHER]);
    world.redirect(redirect(id, TcpMove::Reset));
    let mut numbers: Vec<u32> = world
        .sent()
        .iter()
        .filter(|s| s.destination == client(1))
        .map(|s| s.sequence)
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [7001, 7101], "one for either case");
}

#[test]
fn a_connection_whose_syn_was_not_answered_is_moved_rather_than_reset() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let syn = tcp(client(1), address(SERVICE), SYN, (1000, 0), b"");
    world.handle(&mut syn.clone());
    let id = world.divert(SERVICE, &[OTHER]);
    let outcome = world.redirect(redirect(id, TcpMove::Reset));
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: 1,
            reset: 0,
            kept: 0,
            ..RedirectOutcome::default()
        }
    );
    let mut again = syn.clone();
    world.handle(&mut again);
    assert_eq!(see(&again).destination, address(OTHER));
}

#[test]
fn udp_and_echo_move_at_once() {
    let mut world = World::new(3);
    world.divert("100.100.100.100", &["10.2.0.2"]);
    let packets: Vec<_> = (1..50)
        .flat_map(|port| {
            [Protocol::Udp, Protocol::Icmp]
                .map(|protocol| packet_of(protocol, client(port), address(SERVICE), b"x", false))
        })
        .collect();
    for packet in &packets {
        world.handle(&mut packet.clone());
    }
    let id = world.divert("100.100.100.100", &["10.2.0.3"]);
    let outcome = world.redirect(redirect(id, TcpMove::Reset));
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: 98,
            reset: 0,
            kept: 0,
            ..RedirectOutcome::default()
        }
    );
    for packet in &packets {
        let mut packet = packet.clone();
        world.handle(&mut packet);
        assert_eq!(see(&packet).destination.ip(), address(OTHER).ip());
    }
    assert_eq!(world.connections(), 98);
}

#[test]
fn a_proxy_port_that_is_taken_at_the_new_mirror_is_exchanged() {
    let mut world = World::with(1, |config| config.proxy_ports = 2000..=2001);
    world.divert(SERVICE, &[MIRROR]);
    world.divert("100.100.100.101:80", &[OTHER]);
    let mut first = udp(client(1), address(SERVICE), b"");
    world.handle(&mut first);
    // Fill the port of the first at the other mirror as well.
    let mut proxies = vec![];
    for port in [2, 3] {
        let mut other = udp(client(port), address("100.100.100.101:80"), b"");
        world.handle(&mut other);
        proxies.push(see(&other).source);
    }
    let id = world.divert(SERVICE, &[OTHER]);
    let outcome = world.redirect(redirect(id, TcpMove::Reset));
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: 0,
            reset: 0,
            kept: 1,
            ..RedirectOutcome::default()
        },
        "no port is left there"
    );

    let mut world = World::with(1, |config| config.proxy_ports = 2000..=2001);
    world.divert(SERVICE, &[MIRROR]);
    world.divert("100.100.100.101:80", &[OTHER]);
    let mut first = udp(client(1), address(SERVICE), b"");
    world.handle(&mut first);
    let mut other = udp(client(2), address("100.100.100.101:80"), b"");
    world.handle(&mut other);
    let id = world.divert(SERVICE, &[OTHER]);
    assert_eq!(world.redirect(redirect(id, TcpMove::Reset)).moved, 1);
    let mut moved = udp(client(1), address(SERVICE), b"");
    world.handle(&mut moved);
    assert_ne!(see(&moved).source, see(&other).source);
    assert_eq!(see(&moved).destination, see(&other).destination);
}

#[test]
fn from_mirror_moves_only_what_is_there() {
    let mut world = World::new(2);
    world.divert(SERVICE, &["10.2.0.2", "10.2.0.4"]);
    for port in 1..=40 {
        establish(&mut world, client(port));
    }
    let on = |world: &mut World, mirror: &str| {
        (1..=40)
            .filter(|port| goes_to(world, client(*port)) == Some(address(mirror)))
            .count() as u64
    };
    let (first, second) = (on(&mut world, "10.2.0.2:80"), on(&mut world, "10.2.0.4:80"));
    assert!(first > 0 && second > 0 && first + second == 40);
    let diversion = world.divert(SERVICE, &[OTHER]);
    let outcome = world.redirect(Redirect {
        from_mirror: Some("10.2.0.2".parse().unwrap()),
        ..redirect(diversion, TcpMove::Rewrite)
    });
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: first,
            reset: 0,
            kept: second,
            ..RedirectOutcome::default()
        }
    );
    assert_eq!(on(&mut world, OTHER), first);
    assert_eq!(on(&mut world, "10.2.0.4:80"), second);
}

#[test]
fn a_redirect_moves_only_what_its_diversion_governs() {
    let mut world = World::new(2);
    world.divert("100.100.100.100", &["10.2.0.2"]);
    world.divert(SERVICE, &["10.2.0.4"]);
    establish(&mut world, client(1));
    world.handle(&mut udp(client(2), address("100.100.100.100:53"), b""));
    // The wider diversion's redirect leaves port 80 alone.
    let id = world.divert("100.100.100.100", &["10.2.0.3"]);
    let outcome = world.redirect(redirect(id, TcpMove::Rewrite));
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: 1,
            reset: 0,
            kept: 0,
            ..RedirectOutcome::default()
        }
    );
    assert_eq!(goes_to(&mut world, client(1)), Some(address("10.2.0.4:80")));
}

#[test]
fn a_connection_on_one_of_the_new_mirrors_stays() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    establish(&mut world, client(1));
    let id = world.divert(SERVICE, &[MIRROR, OTHER]);
    let outcome = world.redirect(redirect(id, TcpMove::Reset));
    assert_eq!(
        outcome,
        RedirectOutcome {
            moved: 0,
            reset: 0,
            kept: 1,
            ..RedirectOutcome::default()
        }
    );
    assert_eq!(world.sent(), []);
}

#[test]
fn usage_follows_connections_as_they_come_move_and_go() {
    let mut world = World::new(1);
    let id = world.divert(SERVICE, &[MIRROR]);
    for port in 1..=3 {
        world.handle(&mut udp(client(port), address(SERVICE), b""));
    }
    let usage = |world: &World| {
        world.engines[0]
            .aggregates()
            .iter()
            .filter(|aggregate| aggregate.connections > 0)
            .map(|aggregate| {
                let AggregateKey {
                    diversion, mirror, ..
                } = aggregate.key;
                (diversion, SocketAddr::from(mirror), aggregate.connections)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(usage(&world), [(id, address(MIRROR), 3)]);
    let id = world.divert(SERVICE, &[OTHER]);
    world.redirect(redirect(id, TcpMove::Reset));
    assert_eq!(usage(&world), [(id, address(OTHER), 3)]);
    world.pass_time(std::time::Duration::from_secs(400));
    assert_eq!(usage(&world), []);
}
