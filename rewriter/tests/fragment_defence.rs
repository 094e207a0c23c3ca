//! Fragments that can't be put together, aren't all there, or are meant to do harm.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::time::{Duration, Instant};

use control_protocol::Protocol;
use etherparse::{IpNumber, Ipv4Header, Ipv4Options};
use proptest::prelude::*;
use rewriter::engine::DropReason;
use rewriter::packet::{Packet, VnetHeader};
use support::fragments::*;
use support::*;

// ---- What can't be put together -------------------------------------------------------------------

#[test]
fn overlapping_pieces_spoil_their_datagram() {
    for [client, service, ..] in FAMILIES {
        let mut world = world(1);
        let datagram = udp(address(client), address(service), &text(100));
        let headers = if client == CLIENT { 20 } else { 40 };
        let (headers, payload) = datagram.split_at(headers);
        // The same place with other bytes; a part of another; one around another; an earlier end;
        // an end that isn't.
        for (id, (start, more, bytes)) in (0..).zip([
            (16, true, &payload[24..40]),
            (24, true, &payload[24..48]),
            (8, true, &payload[8..48]),
            (24, false, &payload[24..30]),
            (104, true, &payload[0..8]),
        ]) {
            let mut pieces = cut_at(&datagram, id, &[2, 4, 6]);
            let last = pieces.pop().unwrap();
            pieces.remove(0);
            for piece in pieces.iter().chain([&last]) {
                assert_eq!(world.arrive(0, piece).verdict, KEPT);
            }
            let overlap = piece(headers, id, start, more, bytes);
            let spoiled = dropped(DropReason::FragmentOverlap);
            assert_eq!(world.arrive(0, &overlap).verdict, spoiled);
            // What was missing comes too late.
            for piece in cut_at(&datagram, id, &[2, 4, 6]) {
                let arrival = world.arrive(0, &piece);
                assert_eq!(arrival.verdict, spoiled);
                assert!(arrival.sent.is_empty());
            }
        }
        // Others aren't touched by it.
        let sent = world.arrive_all(&cut_at(&datagram, 50, &[2, 4]));
        assert_eq!(payload_of(&only(&sent), 100), text(100));
        world.pass_time(Duration::from_secs(61));
        assert_eq!(world.incomplete(), (0, 0));
        assert_eq!(
            world.dropped(DropReason::FragmentExpired),
            0,
            "counted before"
        );
    }
}

#[test]
fn a_first_piece_without_the_whole_transport_header_is_dropped() {
    for [client, service, ..] in FAMILIES {
        let mut world = world(1);
        for (protocol, eights) in [(Protocol::Tcp, 1), (Protocol::Tcp, 2)] {
            let packet = packet_of(
                protocol,
                address(client),
                address(service),
                &text(100),
                false,
            );
            let pieces = cut_at(&packet, 5, &[eights]);
            let tiny = dropped(DropReason::FragmentTiny);
            assert_eq!(world.arrive(0, &pieces[0]).verdict, tiny);
        }
        // Eight bytes hold all of UDP's and ICMP's.
        for (id, protocol) in [(6, Protocol::Udp), (7, Protocol::Icmp)] {
            let packet = packet_of(
                protocol,
                address(client),
                address(service),
                &text(100),
                false,
            );
            let sent = world.arrive_all(&cut_at(&packet, id, &[1]));
            see(&only(&sent));
        }
    }
}

#[test]
fn a_datagram_that_would_be_too_long_is_dropped() {
    for [client, service, ..] in FAMILIES {
        let mut world = world(1);
        let datagram = udp(address(client), address(service), &text(2000));
        let headers = if client == CLIENT { 20 } else { 40 };
        let beyond = piece(&datagram[..headers], 5, 65_528, false, &datagram[headers..]);
        let too_long = dropped(DropReason::FragmentTooLong);
        assert_eq!(world.arrive(0, &beyond).verdict, too_long);
    }
    // Long enough for any datagram, but not for this first piece's options.
    let mut world = world(1);
    let datagram = udp(address(CLIENT), address(SERVICE), &text(65_507));
    let (mut header, _) = Ipv4Header::from_slice(&datagram).unwrap();
    let mut pieces = cut(&datagram, 5, 1500);
    header.options = Ipv4Options::try_from(&[1; 40][..]).unwrap();
    pieces[0] = piece(&header.to_bytes(), 5, 0, true, &datagram[20..1500]);
    let (last, before) = pieces.split_last().unwrap();
    for piece in before {
        assert_eq!(world.arrive(0, piece).verdict, KEPT);
    }
    let too_long = dropped(DropReason::FragmentTooLong);
    assert_eq!(world.arrive(0, last).verdict, too_long);
    assert_eq!(world.incomplete(), (0, 0));
}

#[test]
fn the_longest_datagram_arrives() {
    for ([client, service, ..], length) in FAMILIES.into_iter().zip([65_507, 65_527]) {
        let mut world = world(2);
        let datagram = udp(address(client), address(service), &text(length));
        let sent = world.arrive_all(cut(&datagram, 5, 1500).iter().rev());
        assert_eq!(payload_of(&only(&sent), length), text(length));
    }
}

#[test]
fn what_the_kernel_left_undone_on_a_piece_can_not_be_done() {
    let mut world = world(1);
    let datagram = udp(address(CLIENT), address(SERVICE), &text(100));
    let mut piece = cut_at(&datagram, 5, &[4]).remove(0);
    let mut header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        ..VnetHeader::default()
    };
    let verdict = world.handle_with(&mut piece, &mut header);
    assert_eq!(verdict, dropped(DropReason::UnknownOffload));
}

#[test]
fn fragments_of_fragments_are_dropped() {
    let mut world = world(1);
    let [client, service, ..] = FAMILIES[1];
    let datagram = udp(address(client), address(service), &text(400));
    let inner = cut_at(&datagram, 5, &[40]).remove(0);
    assert!(world.arrive_all(&cut_at(&inner, 6, &[20])).is_empty());
    assert_eq!(world.dropped(DropReason::BadFragment), 1);
}

#[test]
fn what_stays_incomplete_is_given_up() {
    let seconds = Duration::from_secs;
    let mut world = world(1);
    for [client, service, ..] in FAMILIES {
        let datagram = udp(address(client), address(service), &text(100));
        world.arrive(0, &cut_at(&datagram, 5, &[4])[0]);
    }
    assert_eq!(world.incomplete().0, 2);
    world.pass_time(seconds(29));
    assert_eq!(world.incomplete().0, 2);
    world.pass_time(seconds(2));
    assert_eq!(world.incomplete().0, 1, "IPv4 after 30 s");
    world.pass_time(seconds(28));
    assert_eq!(world.incomplete().0, 1);
    world.pass_time(seconds(2));
    assert_eq!(world.incomplete(), (0, 0), "IPv6 after 60 s");
    assert_eq!(world.dropped(DropReason::FragmentExpired), 2);
    assert_eq!(world.engines[0].poll_timeout(), None);
}

// ---- Under attack ---------------------------------------------------------------------------------

#[test]
fn a_flood_takes_no_more_than_its_share_and_others_get_through() {
    for size in [8, 1400] {
        for family in [0, 1] {
            let [client, service, ..] = FAMILIES[family];
            let mut world = world(1);
            let flood = udp(address(client), address(service), &text(3000));
            let honest = udp(address("1.2.3.5:99"), address(SERVICE), &text(3000));
            let honest = cut(&honest, 0x4242, 1500);
            for id in 0..20_000 {
                let headers = if family == 0 { 20 } else { 40 };
                let lone = piece(&flood[..headers], id, 1600, true, &flood[40..40 + size]);
                world.arrive(0, &lone);
                let (datagrams, bytes) = world.incomplete();
                assert!(bytes <= 4 << 20 && datagrams <= 8192);
                // In the midst of it, an honest datagram.
                if id % 1000 < honest.len() as u32 {
                    let number = (id % 1000) as usize;
                    let sent = world.arrive(0, &honest[number]).sent;
                    assert_eq!(!sent.is_empty(), number + 1 == honest.len());
                }
            }
            assert!(world.dropped(DropReason::FragmentEvicted) > 10_000);
            world.pass_time(Duration::from_secs(61));
            assert_eq!(world.incomplete(), (0, 0));
            assert_eq!(world.arrive_all(&honest).len(), 3);
        }
    }
}

#[test]
fn many_small_pieces_cost_no_more_than_their_number() {
    let datagram = udp(address(CLIENT), address(SERVICE), &text(65_507));
    // The smallest that IPv4 allows a link to ask for.
    let mut world = world(1);
    let pieces = cut(&datagram, 5, 68);
    assert_eq!(pieces.len(), 1365);
    let sent = world.arrive_all(pieces.iter().rev());
    assert_eq!(payload_of(&only(&sent), 65_507), text(65_507));

    // Smaller ones come from no link.
    let pieces = cut(&datagram, 5, 28);
    assert!(world.arrive_all(&pieces).is_empty());
    assert_eq!(world.dropped(DropReason::FragmentTooMany), 8190 - 1500);
    assert!(
        world.incomplete().1 < 1000,
        "a spoiled datagram keeps no pieces"
    );

    // A hundred such datagrams, backwards: far longer if each piece were compared with all others.
    let start = Instant::now();
    for id in 0..100 {
        for piece in cut(&datagram, id, 68).iter().rev() {
            world.arrive(0, piece);
        }
    }
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

/// Every byte of every header, set to what it shouldn't be, and every length.
#[test]
fn no_field_of_a_fragment_can_do_harm() {
    for [client, service, ..] in FAMILIES {
        let datagram = tcp(address(client), address(service), SYN, (1, 0), &text(200));
        let pieces = cut_at(&datagram, 5, &[8, 16]);
        for (number, piece) in pieces.iter().enumerate() {
            let mut broken = Vec::new();
            for at in 0..76 {
                for value in [
                    0, 1, 2, 7, 8, 0x20, 0x2C, 0x3C, 0x40, 0x7F, 0x80, 0xF8, 0xFF,
                ] {
                    let mut bytes = piece.clone();
                    bytes[at] = value;
                    // Once with the header's checksum as it should be.
                    if let (4, Ok((mut header, rest))) =
                        (bytes[0] >> 4, Ipv4Header::from_slice(&bytes))
                    {
                        header.header_checksum = header.calc_header_checksum();
                        broken.push([&header.to_bytes(), rest].concat());
                    }
                    broken.push(bytes);
                }
            }
            broken.extend((0..piece.len()).map(|length| piece[..length].to_vec()));
            for bytes in broken {
                let mut world = world(2);
                for (other, whole) in pieces.iter().enumerate() {
                    let packet = if other == number { &bytes } else { whole };
                    for mut sent in world.arrive(other % 2, packet).sent {
                        Packet::parse(&mut sent).expect("what leaves is well-formed");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Pieces that make any sense or none, of a few datagrams that they may belong to.
    #[test]
    fn no_mix_of_pieces_can_do_harm(
        pieces in prop::collection::vec(
            (any::<bool>(), 0..3_u32, 0..40_usize, any::<bool>(), 0..80_usize, any::<u8>()), 1..60),
    ) {
        let mut world = world(2);
        for (v6, id, eights, more, length, protocol) in pieces {
            let [client, service, ..] = FAMILIES[usize::from(v6)];
            let datagram = udp(address(client), address(service), &text(80));
            let mut headers = datagram[..if v6 { 40 } else { 20 }].to_vec();
            let protocol = IpNumber([6, 17, 1, 58, 44, 60, 0, protocol][usize::from(protocol) % 8]);
            headers[if v6 { 6 } else { 9 }] = protocol.0;
            let packet = piece(&headers, id, eights * 8, more, &datagram[28..][..length]);
            for mut sent in world.arrive(usize::from(more), &packet).sent {
                Packet::parse(&mut sent).expect("what leaves is well-formed");
            }
        }
    }
}
