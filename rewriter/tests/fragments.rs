//! Fragments through the engine: they arrive in pieces, and leave translated in pieces that a host
//! can put together.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::SocketAddr;

use control_protocol::Protocol;
use etherparse::{Ipv4Header, Ipv4Options};
use proptest::prelude::*;
use rewriter::engine::{DropReason, HopLimit, Verdict};
use rewriter::packet::VnetHeader;
use support::fragments::*;
use support::*;

// ---- Whole again, in any order -------------------------------------------------------------------

#[test]
fn a_ping_of_6000_bytes_goes_there_and_back() {
    for [client, service, proxy, mirror] in FAMILIES {
        let mut world = world(2);
        let [client, service, mirror] = [client, service, mirror].map(|text| address(text).ip());
        let request = echo(client, service, true, 77, &text(6000));
        let pieces = cut(&request, 9, 1500);
        assert_eq!(pieces.len(), 5);

        let sent = world.arrive_all(&pieces);
        assert_eq!(sent.len(), 5);
        assert_eq!(longest(&sent), longest(&pieces));
        let at_mirror = only(&sent);
        let seen = see(&at_mirror);
        assert_eq!(seen.source.ip().to_string(), proxy);
        assert_eq!(seen.destination.ip(), mirror);
        assert_eq!(payload_of(&at_mirror, 6000), text(6000));

        let reply = echo(
            mirror,
            seen.source.ip(),
            false,
            seen.source.port(),
            &text(6000),
        );
        let sent = world.arrive_all(&cut(&reply, 9, 1280));
        assert!(longest(&sent) <= 1280);
        let at_client = only(&sent);
        let seen = see(&at_client);
        assert_eq!(seen.source.ip(), service);
        assert_eq!(seen.destination, SocketAddr::new(client, 77));
        assert_eq!(payload_of(&at_client, 6000), text(6000));
    }
}

#[test]
fn a_udp_datagram_of_30000_bytes_arrives_in_whatever_order() {
    for [client, service, proxy, mirror] in FAMILIES {
        let mut world = world(3);
        let datagram = udp(address(client), address(service), &text(30_000));
        let in_order = cut(&datagram, 1, 1500);
        let reversed: Vec<_> = in_order.iter().rev().cloned().collect();
        let mut first_last = in_order.clone();
        first_last.rotate_left(1);
        let mut last_first = in_order.clone();
        last_first.rotate_right(1);
        for pieces in [in_order, reversed, first_last, last_first] {
            let (last, before) = pieces.split_last().unwrap();
            for (number, piece) in before.iter().enumerate() {
                let arrival = world.arrive(number % 3, piece);
                assert_eq!(arrival.verdict, KEPT);
                assert!(arrival.sent.is_empty(), "nothing leaves before it is whole");
            }
            let arrival = world.arrive(0, last);
            assert_eq!(arrival.verdict, KEPT);
            assert_eq!(longest(&arrival.sent), longest(&pieces));
            let at_mirror = only(&arrival.sent);
            assert_eq!(see(&at_mirror).source.ip().to_string(), proxy);
            assert_eq!(see(&at_mirror).destination, address(mirror));
            assert_eq!(payload_of(&at_mirror, 30_000), text(30_000));
        }
        assert_eq!(world.connections(), 1, "all of one connection");
        assert_eq!(world.incomplete(), (0, 0));
    }
}

#[test]
fn a_tcp_segment_in_pieces_is_one_segment() {
    let mut world = world(1);
    let syn = tcp(address(CLIENT), address(SERVICE), SYN, (1000, 0), b"");
    let at_mirror = world.arrive(0, &syn).sent.remove(0);
    let segment = tcp(
        address(CLIENT),
        address(SERVICE),
        ACK | PSH,
        (1001, 5),
        &text(2000),
    );
    let sent = world.arrive_all(&cut(&segment, 3, 600));
    let seen = see(&only(&sent));
    assert_eq!(seen.source, see(&at_mirror).source);
    assert_eq!((seen.sequence, seen.flags), (1001, ACK | PSH));
}

#[test]
fn several_datagrams_may_be_under_way_at_a_time() {
    let mut world = world(2);
    let mut packets = Vec::new();
    for number in 0..8 {
        let [client, service, ..] = FAMILIES[number % 2];
        let client = SocketAddr::new(address(client).ip(), 5000 + (number / 4) as u16);
        let datagram = udp(client, address(service), &text(3000 + number));
        packets.extend(cut(&datagram, number as u32, 500).into_iter().enumerate());
    }
    // The first pieces of all, then the second ones of all, and so on.
    packets.sort_by_key(|(number, _)| *number);
    let sent = world.arrive_all(packets.iter().map(|(_, packet)| packet));
    let mut lengths: Vec<usize> = join(&sent)
        .iter()
        .map(|packet| {
            see(packet);
            let headers = if packet[0] >> 4 == 4 { 28 } else { 48 };
            packet.len() - headers
        })
        .collect();
    lengths.sort_unstable();
    assert_eq!(lengths, (3000..3008).collect::<Vec<_>>());
    assert_eq!(world.connections(), 4);
}

#[test]
fn a_copy_of_a_piece_is_ignored() {
    let mut world = world(1);
    let datagram = udp(address(CLIENT), address(SERVICE), &text(100));
    let pieces = cut_at(&datagram, 5, &[3, 6, 9]);
    let mut twice = Vec::new();
    for piece in &pieces[..3] {
        twice.extend([piece.clone(), piece.clone()]);
    }
    twice.push(pieces[3].clone());
    let sent = world.arrive_all(&twice);
    assert_eq!(payload_of(&only(&sent), 100), text(100));
    let counters = world.engines[0].counters();
    assert_eq!(counters.held.packets, 7);
    assert_eq!((counters.reassembled, counters.forward.packets), (1, 1));
}

#[test]
fn what_is_counted_adds_up() {
    let mut world = world(1);
    let datagram = udp(address(CLIENT), address(SERVICE), &text(2000));
    world.arrive_all(&cut(&datagram, 5, 700));
    let counters = world.engines[0].counters();
    assert_eq!(counters.received, counters.held);
    assert_eq!(counters.held.packets, 3);
    assert_eq!(counters.forward.packets, 1);
    assert_eq!(counters.forward.bytes, datagram.len() as u64);
    assert_eq!(counters.reassembled, 1);
}

// ---- Not ours -------------------------------------------------------------------------------------

#[test]
fn a_fragment_to_elsewhere_passes_as_it_came() {
    let mut world = world(2);
    let datagram = udp(address(CLIENT), address("9.9.9.9:53"), &text(100));
    for piece in cut_at(&datagram, 5, &[4]) {
        let arrival = world.arrive(0, &piece);
        assert_eq!(arrival.verdict, Verdict::Passed);
        assert_eq!(arrival.sent, [piece]);
    }
}

#[test]
fn a_datagram_that_no_diversion_wants_is_cut_again_just_as_it_was() {
    for workers in 1..4 {
        let mut world = World::new(workers);
        world.divert("100.100.100.100:80/tcp", &[MIRROR]);
        world.divert("[2001:db8::100]:80/tcp", &["[fd00:2::2]:80"]);
        for [client, service, ..] in FAMILIES {
            let datagram = udp(address(client), address(service), &text(5000));
            let pieces = cut(&datagram, 0xABCD, 1500);
            assert_eq!(world.arrive_all(&pieces), pieces);
        }
    }
}

#[test]
fn pieces_from_a_stranger_to_a_proxy_address_are_dropped_once_they_are_whole() {
    let mut world = world(1);
    for [_, _, proxy, mirror] in FAMILIES {
        let proxy = SocketAddr::new(proxy.parse().unwrap(), 4000);
        let datagram = udp(address(mirror), proxy, &text(3000));
        assert!(world.arrive_all(&cut(&datagram, 1, 1000)).is_empty());
    }
    assert_eq!(world.dropped(DropReason::NoConnection), 2);
}

// ---- Headers --------------------------------------------------------------------------------------

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let mut world = world(2);
    let [client, service, proxy, mirror] = FAMILIES[1];
    let datagram = udp(address(client), address(service), b"whole by itself");
    let atomic = piece(&datagram[..40], 99, 0, false, &datagram[40..]);
    let arrival = world.arrive(0, &atomic);
    assert!(matches!(arrival.verdict, Verdict::Translated(_)));
    let [sent] = &arrival.sent[..] else {
        panic!("one packet");
    };
    assert_eq!(sent.len(), atomic.len(), "it keeps its fragment header");
    let at_mirror = only(&arrival.sent);
    assert_eq!(see(&at_mirror).source.ip().to_string(), proxy);
    assert_eq!(see(&at_mirror).destination, address(mirror));
}

#[test]
fn ipv4_options_go_where_they_say() {
    // A router alert, which is copied, and a time stamp, which isn't (RFC 2113, RFC 791).
    let options = [0x94, 4, 0, 0, 0x44, 8, 5, 0, 0, 0, 0, 0];
    let mut world = world(1);
    let datagram = udp(address(CLIENT), address(SERVICE), &text(400));
    let (mut header, _) = Ipv4Header::from_slice(&datagram).unwrap();
    header.options = Ipv4Options::try_from(&options[..]).unwrap();
    let first = piece(&header.to_bytes(), 7, 0, true, &datagram[20..220]);
    header.options = Ipv4Options::try_from(&options[..4]).unwrap();
    let second = piece(&header.to_bytes(), 7, 200, false, &datagram[220..]);
    let sent = world.arrive_all([&second, &first]);
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0][20..32], options);
    assert_eq!(sent[1][20..24], options[..4]);
    assert_eq!(sent[1][0] & 0xF, 6);
    let at_mirror = only(&sent);
    assert_eq!(see(&at_mirror).destination, address(MIRROR));
    assert_eq!(payload_of(&at_mirror, 400), text(400));
}

#[test]
fn ipv6s_unfragmentable_part_is_in_every_piece() {
    let mut world = world(2);
    let [client, service, _, mirror] = FAMILIES[1];
    let datagram = udp(address(client), address(service), &text(3000));
    // Destination options of padding only, after the IPv6 header (RFC 8200, section 4.2).
    let mut headers = datagram[..40].to_vec();
    headers[6] = 60;
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    let pieces: Vec<_> = cut(&datagram, 1, 1000)
        .into_iter()
        .map(|piece| {
            let mut piece = [&piece[..40], &options, &piece[40..]].concat();
            let length = (piece.len() - 40) as u16;
            piece[4..6].copy_from_slice(&length.to_be_bytes());
            (piece[6], piece[40]) = (60, 44);
            piece
        })
        .collect();
    let sent = world.arrive_all(pieces.iter().rev());
    assert_eq!(longest(&sent), longest(&pieces));
    assert!(sent.iter().all(|piece| piece[6] == 60 && piece[40] == 44));
    let at_mirror = only(&sent);
    assert_eq!(at_mirror[40..48], options);
    assert_eq!(see(&at_mirror).destination, address(mirror));
}

#[test]
fn congestion_met_by_one_piece_is_told_of_the_whole() {
    for [client, service, ..] in FAMILIES {
        let mut world = world(1);
        let datagram = udp(address(client), address(service), &text(100));
        let pieces = |marks: [u8; 2]| {
            let mut pieces = cut_at(&datagram, 5, &[8]);
            for (piece, mark) in pieces.iter_mut().zip(marks) {
                if piece[0] >> 4 == 4 {
                    let (mut header, rest) = Ipv4Header::from_slice(piece).unwrap();
                    header.ecn = etherparse::IpEcn::try_new(mark).unwrap();
                    header.header_checksum = header.calc_header_checksum();
                    *piece = [&header.to_bytes(), rest].concat();
                } else {
                    piece[1] |= mark << 4;
                }
            }
            pieces
        };
        let mark = |packet: &[u8]| {
            if packet[0] >> 4 == 4 {
                packet[1] & 3
            } else {
                packet[1] >> 4 & 3
            }
        };
        let sent = world.arrive_all(&pieces([2, 3]));
        assert!(sent.iter().all(|piece| mark(piece) == 3));
        let sent = world.arrive_all(&pieces([2, 2]));
        assert!(sent.iter().all(|piece| mark(piece) == 2));
        assert!(world.arrive_all(&pieces([0, 3])).is_empty());
        assert_eq!(world.dropped(DropReason::FragmentMixedEcn), 1);
    }
}

#[test]
fn the_hop_limit_is_lowered_once() {
    for [client, service, ..] in FAMILIES {
        let mut world = World::with(2, |config| config.hop_limit = HopLimit::Lower);
        world.divert(
            &address(service).ip().to_string(),
            &[if client == CLIENT {
                "10.2.0.2"
            } else {
                "fd00:2::2"
            }],
        );
        let mut datagram = udp(address(client), address(service), &text(100));
        let at = if client == CLIENT { 8 } else { 7 };
        let sent = world.arrive_all(&cut_at(&datagram, 5, &[8]));
        assert_eq!(sent.len(), 2);
        assert!(sent.iter().all(|piece| piece[at] == 63));
        join(&sent);
        datagram[at] = 1;
        let told = world.arrive_all(&cut_at(&datagram, 6, &[8]));
        assert_eq!(world.dropped(DropReason::HopLimitExceeded), 1);
        // "Time exceeded", once.
        let (at, kind) = if client == CLIENT { (20, 11) } else { (40, 3) };
        assert_eq!(told.len(), 1);
        assert_eq!(told[0][at], kind);
    }
}

// ---- Identification -------------------------------------------------------------------------------

#[test]
fn two_clients_with_one_identification_do_not_meet_at_the_mirror() {
    for family in [0, 1] {
        let [client, service, ..] = FAMILIES[family];
        let mut world = world(4);
        let mut sent = Vec::new();
        for number in 0..200_u16 {
            let client = SocketAddr::new(address(client).ip(), 2000 + number);
            let datagram = udp(client, address(service), &text(200));
            sent.extend(world.arrive_all(&cut_at(&datagram, u32::from(number / 2), &[10])));
        }
        // Joining fails where two have the same.
        assert_eq!(join(&sent).len(), 200);
    }
}

#[test]
fn what_may_yet_be_cut_gets_an_identification_and_an_atomic_packet_keeps_its_own() {
    let mut world = world(2);
    let packet = |client: &str, dont_fragment| {
        let mut packet = udp(address(client), address(SERVICE), b"short");
        let (mut header, _) = Ipv4Header::from_slice(&packet).unwrap();
        header.identification = 0x1111;
        header.dont_fragment = dont_fragment;
        header.header_checksum = header.calc_header_checksum();
        packet[..20].copy_from_slice(&header.to_bytes());
        packet
    };
    let mut identifications = Vec::new();
    for client in ["1.2.3.4:1", "1.2.3.4:2", "1.2.3.5:1"] {
        let sent = world.arrive(0, &packet(client, false)).sent;
        see(&sent[0]);
        identifications.push(identification(&sent[0]));
        let sent = world.arrive(0, &packet(client, true)).sent;
        assert_eq!(identification(&sent[0]), 0x1111);
    }
    identifications.sort_unstable();
    identifications.dedup();
    assert_eq!(identifications.len(), 3);

    // The kernel numbers the segments of a super-packet from its own number on.
    let mut super_packet = packet("1.2.3.4:1", false);
    let mut header = VnetHeader {
        gso_type: VnetHeader::GSO_UDP_L4,
        gso_size: 2,
        ..VnetHeader::default()
    };
    world.handle_with(&mut super_packet, &mut header);
    assert_eq!(identification(&super_packet), 0x1111);
}

fn order() -> impl Strategy<Value = Vec<usize>> {
    Just((0..64).collect::<Vec<_>>()).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// However a datagram is cut, and in whatever order and at whatever workers it arrives, some
    /// pieces twice, it leaves translated and whole, in pieces no longer than those.
    #[test]
    fn any_datagram_arrives(
        v6 in any::<bool>(),
        protocol in prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)],
        length in 100..9000_usize,
        cuts in prop::collection::vec(3..1200_usize, 1..20),
        order in order(),
        copies in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        workers in 1..5_u16,
        id in any::<u32>(),
    ) {
        let [client, service, proxy, mirror] = FAMILIES[usize::from(v6)];
        let mut world = world(workers);
        let datagram = packet_of(protocol, address(client), address(service), &text(length), false);
        let pieces = cut_at(&datagram, id, &cuts);
        prop_assume!(pieces.len() > 1);
        let order: Vec<_> = order.into_iter().filter(|at| *at < pieces.len()).collect();
        let mut sent = Vec::new();
        for (number, at) in order.iter().enumerate() {
            let worker = number % usize::from(workers);
            sent.extend(world.arrive(worker, &pieces[*at]).sent);
            if let Some(copy) = copies.get(number).filter(|_| number + 1 < pieces.len()) {
                let copy = order[..=number][copy.index(number + 1)];
                sent.extend(world.arrive(worker, &pieces[copy]).sent);
            }
        }
        prop_assert!(longest(&sent) <= longest(&pieces));
        let at_mirror = only(&sent);
        let seen = see(&at_mirror);
        prop_assert_eq!(seen.source.ip().to_string(), proxy);
        prop_assert_eq!(seen.destination.ip(), address(mirror).ip());
        prop_assert_eq!(payload_of(&at_mirror, length), text(length));
        prop_assert_eq!(world.incomplete(), (0, 0));
    }
}
