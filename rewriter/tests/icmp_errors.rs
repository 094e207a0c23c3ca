//! ICMP errors, both ways and in both families, as stories of packets.
//!
//! What an end gets is compared, byte for byte, with the error that it would have got had the packet
//! that it sent (or the one that it is thought to have sent) never been translated.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::{IpAddr, SocketAddr};

use control_protocol::Protocol;
use proptest::prelude::*;
use rewriter::engine::{DropReason, Verdict};
use rewriter::packet::Packet;
use rewriter::table::Direction;
use support::errors::*;
use support::*;

const FORWARD: Verdict = Verdict::Translated(Direction::Forward);
const REVERSE: Verdict = Verdict::Translated(Direction::Reverse);
const UNSOLICITED: Verdict = Verdict::Dropped(DropReason::UnsolicitedIcmpError);

// ---- Errors for the client -------------------------------------------------------------------

#[test]
fn a_closed_port_at_the_mirror_is_a_closed_port_at_the_service() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        let all = flow.request[0].len();
        // The mirror refuses.
        let mut packet = flow.reverse_error(flow.mirror.ip(), message, all);
        assert_eq!(world.handle(&mut packet), REVERSE);
        // The client hears it from the service, about its own packet.
        assert_eq!(packet, flow.at_client(flow.service.ip(), message, all));
        flow.check_for_client(&packet);
    }
}

#[test]
fn a_router_before_the_mirror_shows_itself_on_the_way_to_the_service() {
    for (mut world, flow) in flows() {
        let (message, router) = (flow.hosts.time_exceeded(), flow.hosts.router());
        let all = flow.request[0].len();
        let mut packet = flow.reverse_error(router, message, all);
        assert_eq!(world.handle(&mut packet), REVERSE);
        assert_eq!(packet, flow.at_client(router, message, all));
        flow.check_for_client(&packet);
    }
}

#[test]
fn a_router_that_speaks_as_the_proxy_shows_as_the_service() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.time_exceeded();
        let mut packet = flow.reverse_error(flow.proxy.ip(), message, 60);
        assert_eq!(world.handle(&mut packet), REVERSE);
        assert_eq!(packet, flow.at_client(flow.service.ip(), message, 60));
        flow.check_for_client(&packet);
    }
}

#[test]
fn the_client_learns_the_mtu_of_the_way_to_the_mirror() {
    for (mut world, flow) in flows() {
        let (message, router) = (flow.hosts.too_big(1280), flow.hosts.router());
        let mut packet = flow.reverse_error(router, message, 90);
        assert_eq!(world.handle(&mut packet), REVERSE);
        assert_eq!(packet, flow.at_client(router, message, 90));
        let icmp = &packet[flow.hosts.ip_header()..];
        assert_eq!(icmp[6..8], 1280_u16.to_be_bytes(), "the MTU is as it was");
        flow.check_for_client(&packet);
    }
}

// ---- Errors for the mirror -------------------------------------------------------------------

#[test]
fn a_closed_port_at_the_client_is_a_closed_port_at_the_proxy() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        let all = flow.reply[0].len();
        let mut packet = flow.forward_error(flow.client.ip(), message, all);
        assert_eq!(world.handle(&mut packet), FORWARD);
        assert_eq!(packet, flow.at_mirror(message, all));
        flow.check_for_mirror(&packet);
    }
}

#[test]
fn a_router_before_the_client_is_the_proxy_to_the_mirror() {
    for (mut world, flow) in flows() {
        for message in [flow.hosts.time_exceeded(), flow.hosts.parameter_problem()] {
            let mut packet = flow.forward_error(flow.hosts.router(), message, 90);
            assert_eq!(world.handle(&mut packet), FORWARD);
            assert_eq!(packet, flow.at_mirror(message, 90));
            flow.check_for_mirror(&packet);
        }
    }
}

#[test]
fn the_mirror_learns_the_mtu_of_the_way_to_the_client() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.too_big(1400);
        let mut packet = flow.forward_error(flow.hosts.router(), message, 90);
        assert_eq!(world.handle(&mut packet), FORWARD);
        assert_eq!(packet, flow.at_mirror(message, 90));
        flow.check_for_mirror(&packet);
    }
}

/// RFC 5508, REQ-7: a client that is the mirror itself hears of its own packets.
#[test]
fn a_client_that_is_the_mirror_gets_its_errors_too() {
    for hosts in [V4, V6] {
        let mut world = World::new(1);
        let client = SocketAddr::new(address(hosts.mirror).ip(), 3456);
        let flow = Flow::open_in(&mut world, hosts, Protocol::Udp, client);
        let message = hosts.port_unreachable();
        let mut packet = flow.reverse_error(flow.mirror.ip(), message, 90);
        assert_eq!(world.handle(&mut packet), REVERSE);
        assert_eq!(packet, flow.at_client(flow.service.ip(), message, 90));
        let mut packet = flow.forward_error(flow.client.ip(), message, 90);
        assert_eq!(world.handle(&mut packet), FORWARD);
        assert_eq!(packet, flow.at_mirror(message, 90));
    }
}

// ---- What is quoted --------------------------------------------------------------------------

/// RFC 792: the IP header and eight bytes. Any length from there on does; any shorter one, and the
/// error is about no connection. Of half a checksum there is no translation: it stays.
#[test]
fn a_quote_may_end_anywhere_after_eight_bytes() {
    for (mut world, flow) in flows() {
        let (message, router) = (flow.hosts.time_exceeded(), flow.hosts.router());
        let least = flow.hosts.ip_header() + 8;
        let is_tcp = see(&flow.request[0]).protocol == Protocol::Tcp;
        let has_half_a_checksum = |quoted| is_tcp && quoted == flow.hosts.ip_header() + 17;
        for quoted in 0..=flow.request[0].len() {
            let original = flow.reverse_error(router, message, quoted);
            let mut packet = original.clone();
            let verdict = world.handle(&mut packet);
            if quoted < least {
                assert_eq!((verdict, packet), (UNSOLICITED, original), "{quoted}");
            } else {
                assert_eq!(verdict, REVERSE, "{quoted}");
                if !has_half_a_checksum(quoted) {
                    assert_eq!(packet, flow.at_client(router, message, quoted), "{quoted}");
                }
                flow.check_for_client(&packet);
            }
        }
        for quoted in 0..=flow.reply[0].len() {
            let original = flow.forward_error(router, message, quoted);
            let mut packet = original.clone();
            let verdict = world.handle(&mut packet);
            if quoted < least {
                assert_eq!((verdict, packet), (Verdict::Passed, original), "{quoted}");
            } else {
                assert_eq!(verdict, FORWARD, "{quoted}");
                if !has_half_a_checksum(quoted) {
                    assert_eq!(packet, flow.at_mirror(message, quoted), "{quoted}");
                }
                flow.check_for_mirror(&packet);
            }
        }
    }
}

#[test]
fn an_error_cut_off_anywhere_is_dropped_by_name_and_unchanged() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        for whole in [
            flow.reverse_error(flow.mirror.ip(), message, 90),
            flow.forward_error(flow.client.ip(), message, 90),
        ] {
            for length in 0..whole.len() {
                let mut packet = whole[..length].to_vec();
                let verdict = world.handle(&mut packet);
                assert!(matches!(verdict, Verdict::Dropped(_)), "{length}");
                assert_eq!(packet, whole[..length]);
            }
        }
    }
}

#[test]
fn a_quoted_udp_checksum_of_none_stays_none() {
    for hosts in [V4, V6] {
        let (mut world, mut flow) = Flow::open(hosts, Protocol::Udp);
        let at = hosts.ip_header() + 6;
        for packet in flow.request.iter_mut().chain(&mut flow.reply) {
            packet[at..at + 2].fill(0);
        }
        let message = hosts.port_unreachable();
        let mut packet = flow.reverse_error(flow.mirror.ip(), message, 90);
        assert_eq!(world.handle(&mut packet), REVERSE);
        assert_eq!(packet, flow.at_client(flow.service.ip(), message, 90));
        let mut packet = flow.forward_error(flow.client.ip(), message, 90);
        assert_eq!(world.handle(&mut packet), FORWARD);
        assert_eq!(packet, flow.at_mirror(message, 90));
    }
}

/// RFC 5508, REQ-3 b, and its like in IPv6.
#[test]
fn options_and_extension_headers_in_a_quote_are_stepped_over() {
    for (mut world, mut flow) in flows() {
        for packet in flow.request.iter_mut().chain(&mut flow.reply) {
            *packet = with_options(packet);
        }
        let message = flow.hosts.time_exceeded();
        // As little as can be, and all of it.
        for quoted in [flow.hosts.ip_header() + 16, flow.reply[0].len()] {
            let mut packet = flow.reverse_error(flow.mirror.ip(), message, quoted);
            assert_eq!(world.handle(&mut packet), REVERSE);
            assert_eq!(packet, flow.at_client(flow.service.ip(), message, quoted));
            flow.check_for_client(&packet);
            let mut packet = flow.forward_error(flow.client.ip(), message, quoted);
            assert_eq!(world.handle(&mut packet), FORWARD);
            assert_eq!(packet, flow.at_mirror(message, quoted));
            flow.check_for_mirror(&packet);
        }
    }
}

#[test]
fn a_quoted_first_fragment_has_ports_and_a_later_one_has_none() {
    for (mut world, mut flow) in flows() {
        let whole = flow.request.clone();
        let (message, router) = (flow.hosts.time_exceeded(), flow.hosts.router());
        flow.request = whole.clone().map(|packet| as_fragment(&packet, 0));
        let mut packet = flow.reverse_error(router, message, 90);
        assert_eq!(world.handle(&mut packet), REVERSE);
        assert_eq!(packet, flow.at_client(router, message, 90));
        flow.check_for_client(&packet);

        // What lies where the ports would be looks like them, but isn't.
        flow.request = whole.map(|packet| as_fragment(&packet, 1));
        let original = flow.reverse_error(router, message, 90);
        let mut packet = original.clone();
        assert_eq!(world.handle(&mut packet), UNSOLICITED);
        assert_eq!(packet, original);
    }
}

/// RFC 4884: the quoted packet is padded with zeros to 128 bytes, an extension follows.
#[test]
fn what_follows_the_quoted_packet_stays_as_it_is() {
    // An extension header and an object of class 1 (an MPLS label, RFC 4950).
    let extension = [0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 0xDE, 0xAD, 0xBE, 0xEF];
    for (mut world, mut flow) in flows() {
        for packet in flow.request.iter_mut().chain(&mut flow.reply) {
            packet.resize(128.max(packet.len().next_multiple_of(8)), 0);
            packet.extend(extension);
        }
        let mut message = flow.hosts.time_exceeded();
        let quoted = flow.request[0].len();
        let padded = u8::try_from(quoted - extension.len()).unwrap();
        if flow.hosts.is_v4() {
            message.rest[1] = padded / 4;
        } else {
            message.rest[0] = padded / 8;
        }
        let router = flow.hosts.router();
        let mut packet = flow.reverse_error(router, message, quoted);
        assert_eq!(world.handle(&mut packet), REVERSE);
        assert_eq!(packet, flow.at_client(router, message, quoted));
        assert!(packet.ends_with(&extension));
        flow.check_for_client(&packet);
    }
}

/// The quoted packet says that it is shorter than a TCP header: what follows its end isn't its own.
#[test]
fn a_checksum_beyond_the_quoted_packets_end_is_none() {
    let (mut world, flow) = Flow::open(V4, Protocol::Tcp);
    let mut quote = flow.request[1][..36].to_vec();
    quote[2..4].copy_from_slice(&36_u16.to_be_bytes());
    quote.extend([0; 92]);
    let message = V4.time_exceeded();
    let mut packet = error(V4.router(), flow.proxy.ip(), message, &quote);
    assert_eq!(world.handle(&mut packet), REVERSE);
    assert_eq!(packet[28 + 36..], [0; 92]);
}

#[test]
fn wrong_checksums_stay_wrong() {
    for (mut world, flow) in flows() {
        let message = flow.hosts.port_unreachable();
        let all = flow.request[0].len();
        let right = flow.at_client(flow.service.ip(), message, all);
        let icmp_at = flow.hosts.ip_header();
        let quoted_at = icmp_at + 8;
        let mut places = vec![icmp_at + 2];
        if flow.hosts.is_v4() {
            places.extend([10, quoted_at + 10]);
        }
        for at in places {
            let mut packet = flow.reverse_error(flow.mirror.ip(), message, all);
            let wrong_by = u16::from_be_bytes([packet[at], packet[at + 1]]) ^ 0x0F0F;
            packet[at..at + 2].copy_from_slice(&wrong_by.to_be_bytes());
            assert_eq!(world.handle(&mut packet), REVERSE);
            assert_ne!(packet[at..at + 2], right[at..at + 2]);
            packet[at..at + 2].copy_from_slice(&right[at..at + 2]);
            assert_eq!(packet, right, "and nothing else is");
        }
    }
}

// ---- Any error about any packet --------------------------------------------------------------

fn ends() -> impl Strategy<Value = (Hosts, SocketAddr)> {
    let port = 1..=u16::MAX;
    prop_oneof![
        (any::<[u8; 4]>(), port.clone()).prop_map(|(mut client, port)| {
            client[0] = client[0] % 80 + 11;
            (V4, SocketAddr::new(IpAddr::from(client), port))
        }),
        (any::<[u8; 16]>(), port).prop_map(|(mut client, port)| {
            client[0] = 0x24;
            (V6, SocketAddr::new(IpAddr::from(client), port))
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Translated, quoted, and the error translated back: the quote is what was sent.
    #[test]
    fn any_packet_is_quoted_back_as_it_was_sent(
        (hosts, client) in ends(),
        protocol in prop::sample::select(&PROTOCOLS[..]),
        payload in prop::collection::vec(any::<u8>(), 0..100),
        workers in 1..4_u16,
        least in any::<bool>(),
        reverse in any::<bool>(),
        options in any::<bool>(),
    ) {
        let mut world = World::new(workers);
        let mut flow = Flow::open_in(&mut world, hosts, protocol, client);
        // Another packet of the same connection.
        let (sent, translated, source, destination) = if reverse {
            (&mut flow.request, FORWARD, client, flow.service)
        } else {
            (&mut flow.reply, REVERSE, flow.mirror, flow.proxy)
        };
        let original = packet_of(protocol, source, destination, &payload, !reverse);
        let mut packet = original.clone();
        prop_assert_eq!(world.handle(&mut packet), translated);
        *sent = [original, packet];
        if options {
            *sent = sent.clone().map(|packet| with_options(&packet));
        }
        let whole = sent[0].len();
        let quoted = if least { whole.min(hosts.ip_header() + 16) } else { whole };
        let message = hosts.time_exceeded();
        if reverse {
            let mut packet = flow.reverse_error(hosts.router(), message, quoted);
            prop_assert_eq!(world.handle(&mut packet), REVERSE);
            prop_assert_eq!(&packet, &flow.at_client(hosts.router(), message, quoted));
            verify(&packet);
        } else {
            let mut packet = flow.forward_error(hosts.router(), message, quoted);
            prop_assert_eq!(world.handle(&mut packet), FORWARD);
            prop_assert_eq!(&packet, &flow.at_mirror(message, quoted));
            verify(&packet);
        }
    }

    /// An error with some bytes changed: refused and unchanged, or sent with the length it had, and
    /// what follows its end is never touched.
    #[test]
    fn damaged_errors_do_no_harm(
        hosts in prop::sample::select(&[V4, V6][..]),
        protocol in prop::sample::select(&PROTOCOLS[..]),
        forward in any::<bool>(),
        options in any::<bool>(),
        damage in prop::collection::vec((0..120_usize, any::<u8>()), 1..5),
        quoted in 20..108_usize,
    ) {
        let (mut world, mut flow) = Flow::open(hosts, protocol);
        if options {
            flow.request = flow.request.map(|packet| as_fragment(&with_options(&packet), 0));
            flow.reply = flow.reply.map(|packet| as_fragment(&with_options(&packet), 0));
        }
        let message = hosts.time_exceeded();
        let mut packet = if forward {
            flow.forward_error(hosts.router(), message, quoted)
        } else {
            flow.reverse_error(hosts.router(), message, quoted)
        };
        for (at, value) in damage {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        packet.extend([0xEE; 30]);
        let before = packet.clone();
        let end = Packet::parse(&mut packet).map_or(0, |packet| packet.length());
        let verdict = world.handle(&mut packet);
        prop_assert_eq!(&packet[end..], &before[end..]);
        if matches!(verdict, Verdict::Dropped(_) | Verdict::Passed) {
            prop_assert_eq!(&packet, &before);
        }
    }
}
