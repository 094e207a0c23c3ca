//! Whose an ICMP error is, what becomes of one that is nobody's, and what it does to a connection:
//! nothing.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{Protocol, TcpMove};
use rewriter::engine::{DropReason, Redirect, Verdict};
use rewriter::table::{Direction, State};
use support::errors::*;
use support::*;

const FORWARD: Verdict = Verdict::Translated(Direction::Forward);
const REVERSE: Verdict = Verdict::Translated(Direction::Reverse);
const UNSOLICITED: Verdict = Verdict::Dropped(DropReason::UnsolicitedIcmpError);

/// The connection's record as text: an error must not change a thing in it, but for being counted.
fn record(world: &World) -> String {
    let mut connection = *world.engines[0].connections().get(0).unwrap();
    connection.timing.icmp_errors = 0;
    format!("{connection:?}")
}

// ---- Whose it is -----------------------------------------------------------------------------

#[test]
fn whichever_worker_gets_it_the_owner_translates_it() {
    for hosts in [V4, V6] {
        for protocol in PROTOCOLS {
            let mut world = World::new(4);
            for port in 4000..4040 {
                let client = SocketAddr::new(address(hosts.client).ip(), port);
                let flow = Flow::open_in(&mut world, hosts, protocol, client);
                let message = hosts.port_unreachable();
                let mut packet = flow.reverse_error(flow.mirror.ip(), message, 68);
                assert_eq!(world.handle(&mut packet), REVERSE);
                assert_eq!(packet, flow.at_client(flow.service.ip(), message, 68));
                let mut packet = flow.forward_error(client.ip(), message, 68);
                assert_eq!(world.handle(&mut packet), FORWARD);
                assert_eq!(packet, flow.at_mirror(message, 68));
            }
            let forward: Vec<u64> = world
                .engines
                .iter()
                .map(|engine| engine.counters().forward.packets)
                .collect();
            assert_eq!(forward.iter().sum::<u64>(), 2 * 40, "requests and errors");
            assert!(forward.iter().all(|packets| *packets > 0), "{forward:?}");
            assert!(world.engines[0].counters().handed_over > 0);
        }
    }
}

#[test]
fn an_error_that_none_asked_for_is_dropped_at_the_proxy() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        let protocol = see(&flow.request[1]).protocol;
        let (router, proxy) = (flow.hosts.router(), flow.proxy);
        let next_port = SocketAddr::new(proxy.ip(), proxy.port() ^ 1);
        let stranger = SocketAddr::new(router, flow.mirror.port());
        let other = |source, destination| packet_of(protocol, source, destination, b"never", false);
        let quotes = [
            other(next_port, flow.mirror),
            other(proxy, stranger),
            // The mirror's own packet.
            other(flow.mirror, proxy),
            // What the client sent, untranslated.
            flow.request[0].clone(),
            // No packet at all.
            vec![0; 64],
            Vec::new(),
        ];
        let count = quotes.len() as u64;
        for quote in quotes {
            let original = error(flow.mirror.ip(), proxy.ip(), message, &quote);
            let mut packet = original.clone();
            assert_eq!(world.handle(&mut packet), UNSOLICITED);
            assert_eq!(packet, original);
        }
        assert_eq!(world.dropped(DropReason::UnsolicitedIcmpError), count);
    }
}

#[test]
fn an_error_to_the_service_about_a_packet_of_its_own_passes() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        let protocol = see(&flow.request[1]).protocol;
        let earlier = SocketAddr::new(flow.client.ip(), 9);
        let elsewhere = SocketAddr::new(flow.hosts.router(), 80);
        for (to, quote) in [
            // Of a connection that began before the diversion.
            (
                flow.service,
                packet_of(protocol, flow.service, earlier, b"x", true),
            ),
            // From the service, but sent to another address.
            (elsewhere, flow.reply[1].clone()),
            // Quoting what the client sent.
            (flow.service, flow.request[0].clone()),
        ] {
            let original = error(flow.client.ip(), to.ip(), message, &quote);
            let mut packet = original.clone();
            assert_eq!(world.handle(&mut packet), Verdict::Passed);
            assert_eq!(packet, original);
        }
    }
}

/// An echo goes from the client to the mirror, its reply back: an error about the other way round is
/// about no connection, even where all numbers are the same.
#[test]
fn an_echo_has_a_direction() {
    for hosts in [V4, V6] {
        let mut world = World::new(1);
        let client = SocketAddr::new(address(hosts.client).ip(), 0);
        let flow = Flow::open_in(&mut world, hosts, Protocol::Icmp, client);
        let message = hosts.port_unreachable();
        let quote = echo(flow.service.ip(), client.ip(), true, 0, b"");
        let mut packet = error(client.ip(), flow.service.ip(), message, &quote);
        assert_eq!(world.handle(&mut packet), Verdict::Passed);
        let quote = echo(
            flow.proxy.ip(),
            flow.mirror.ip(),
            false,
            flow.proxy.port(),
            b"",
        );
        let mut packet = error(flow.mirror.ip(), flow.proxy.ip(), message, &quote);
        assert_eq!(world.handle(&mut packet), UNSOLICITED);
    }
}

#[test]
fn an_error_about_an_error_belongs_to_no_connection() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        let (proxy, mirror) = (flow.proxy.ip(), flow.mirror.ip());
        let quote = error(proxy, mirror, message, &flow.reply[0]);
        let original = error(mirror, proxy, message, &quote);
        let mut packet = original.clone();
        assert_eq!(world.handle(&mut packet), UNSOLICITED);
        assert_eq!(packet, original);

        let (client, service) = (flow.client.ip(), flow.service.ip());
        let quote = error(service, client, message, &flow.request[0]);
        let original = error(client, service, message, &quote);
        let mut packet = original.clone();
        assert_eq!(world.handle(&mut packet), Verdict::Passed);
        assert_eq!(packet, original);
    }
}

#[test]
fn a_quote_of_the_other_family_is_none() {
    let (mut world, v4) = Flow::open(V4, Protocol::Udp);
    let v6 = Flow::open_in(&mut world, V6, Protocol::Udp, address(V6.client));
    for (hosts, proxy, mirror, quote) in [
        (V4, v4.proxy, v4.mirror, &v6.request[1]),
        (V6, v6.proxy, v6.mirror, &v4.request[1]),
    ] {
        let message = hosts.port_unreachable();
        let mut packet = error(mirror.ip(), proxy.ip(), message, quote);
        assert_eq!(world.handle(&mut packet), UNSOLICITED);
    }
}

#[test]
fn advice_to_use_another_router_goes_no_further() {
    let advice = Message {
        kind: 5,
        code: 1,
        rest: [10, 0, 0, 1],
    };
    let (mut world, flow) = Flow::open(V4, Protocol::Udp);
    for (to, quote) in [
        (flow.proxy, &flow.request[1]),
        (flow.service, &flow.reply[1]),
    ] {
        let mut packet = error(V4.router(), to.ip(), advice, quote);
        assert_eq!(
            world.handle(&mut packet),
            Verdict::Dropped(DropReason::IcmpRedirect)
        );
    }
    let elsewhere = "9.9.9.9".parse().unwrap();
    let mut packet = error(V4.router(), elsewhere, advice, &flow.reply[1]);
    assert_eq!(world.handle(&mut packet), Verdict::Passed);
}

#[test]
fn source_quench_is_an_error_like_any_other() {
    let quench = Message {
        kind: 4,
        code: 0,
        rest: [0; 4],
    };
    let (mut world, flow) = Flow::open(V4, Protocol::Tcp);
    let mut packet = flow.reverse_error(V4.router(), quench, 28);
    assert_eq!(world.handle(&mut packet), REVERSE);
    assert_eq!(packet, flow.at_client(V4.router(), quench, 28));
}

// ---- What it does to a connection ------------------------------------------------------------

/// RFC 5508, REQ-6; RFC 4787, REQ-12; RFC 5382, REQ-10.
#[test]
fn an_error_neither_refreshes_a_connection_nor_ends_it() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        let before = record(&world);
        world.pass_time(Duration::from_secs(50));
        for _ in 0..3 {
            let mut packet = flow.reverse_error(flow.mirror.ip(), message, 90);
            assert_eq!(world.handle(&mut packet), REVERSE);
            let mut packet = flow.forward_error(flow.client.ip(), message, 90);
            assert_eq!(world.handle(&mut packet), FORWARD);
        }
        assert_eq!(record(&world), before);
        let counters = world.engines[0].counters();
        assert_eq!((counters.forward.packets, counters.reverse.packets), (4, 4));
        world.pass_time(Duration::from_secs(11));
        if see(&flow.request[0]).protocol == Protocol::Icmp {
            assert_eq!(world.connections(), 0, "60 s after the echo reply");
        } else {
            assert_eq!(record(&world), before);
        }
    }
}

/// RFC 5927, section 4.1.
#[test]
fn an_error_about_a_segment_that_was_never_sent_is_not_believed() {
    for hosts in [V4, V6] {
        let (mut world, flow) = Flow::open(hosts, Protocol::Tcp);
        let message = hosts.port_unreachable();
        // The client sent a SYN with sequence number 7 and 100 bytes, the mirror a SYN with 9.
        let (client_next, mirror_next) = (108_u32, 110_u32);
        for (offset, believed) in [
            (0, true),
            (-1, true),
            (-(1 << 30), true),
            (1, false),
            (-(1 << 30) - 1, false),
            (i32::MIN, false),
        ] {
            let expected = |verdict| {
                if believed {
                    verdict
                } else {
                    Verdict::Dropped(DropReason::ImplausibleIcmpError)
                }
            };
            let sequence = client_next.wrapping_add_signed(offset);
            let quote = tcp(flow.proxy, flow.mirror, ACK, (sequence, 10), b"");
            let mut packet = error(flow.mirror.ip(), flow.proxy.ip(), message, &quote);
            assert_eq!(world.handle(&mut packet), expected(REVERSE), "{offset}");
            let sequence = mirror_next.wrapping_add_signed(offset);
            let quote = tcp(flow.service, flow.client, ACK, (sequence, 8), b"");
            let mut packet = error(flow.client.ip(), flow.service.ip(), message, &quote);
            assert_eq!(world.handle(&mut packet), expected(FORWARD), "{offset}");
        }
        assert_eq!(world.dropped(DropReason::ImplausibleIcmpError), 6);
    }
}

/// Before the mirror's SYN none of its numbers is known: a reset's, to begin with, may be anything.
#[test]
fn of_an_end_that_has_not_begun_any_number_is_believed() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let (client, service) = (address(CLIENT), address(SERVICE));
    world.handle(&mut tcp(client, service, SYN, (1000, 0), b""));
    let quote = tcp(service, client, RST | ACK, (0xDEAD_BEEF, 1001), b"");
    let mut packet = error(client.ip(), service.ip(), V4.port_unreachable(), &quote);
    assert_eq!(world.handle(&mut packet), FORWARD);
}

#[test]
fn once_a_connection_was_moved_or_reset_old_errors_are_void() {
    for hosts in [V4, V6] {
        let message = hosts.port_unreachable();
        let other = SocketAddr::new(hosts.router(), 8080).to_string();
        for (tcp_move, reverse, forward) in [
            (TcpMove::Rewrite, UNSOLICITED, FORWARD),
            (
                TcpMove::Reset,
                Verdict::Dropped(DropReason::ConnectionWasReset),
                Verdict::Dropped(DropReason::ConnectionWasReset),
            ),
        ] {
            let (mut world, flow) = Flow::open(hosts, Protocol::Tcp);
            let diversion = world.divert(hosts.service, &[&other]);
            world.redirect(Redirect::new(0, diversion, tcp_move));
            let mut packet = flow.reverse_error(flow.mirror.ip(), message, 90);
            assert_eq!(world.handle(&mut packet), reverse);
            let mut packet = flow.forward_error(flow.client.ip(), message, 90);
            assert_eq!(world.handle(&mut packet), forward);
        }
    }
}

#[test]
fn errors_of_a_restored_services_connections_are_still_translated() {
    for hosts in [V4, V6] {
        let (mut world, flow) = Flow::open(hosts, Protocol::Tcp);
        world.restore(hosts.service);
        let message = hosts.time_exceeded();
        let mut packet = flow.forward_error(hosts.router(), message, 90);
        assert_eq!(world.handle(&mut packet), FORWARD);
        let state = world.engines[0].connections().get(0).map(|c| c.state);
        assert_eq!(state, Some(State::Opening), "as before");
    }
}
