//! A connection that its mirror refuses goes to another, as stories of packets.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use etherparse::{LaxSlicedPacket, PacketBuilder, TcpOptionElement, TransportSlice};
use rewriter::engine::{DropReason, Verdict};
use rewriter::table::{Direction, State, Timed};
use support::*;

const MIRRORS: [&str; 3] = ["10.2.0.2:80", "10.2.0.3:80", "10.2.0.4:80"];

fn world(retries: u8, mirrors: &[&str]) -> World {
    let mut world = World::with(1, |config| config.refused_retries = retries);
    world.divert(SERVICE, mirrors);
    world
}

/// The client's SYN; gives it as a mirror gets it.
fn syn(world: &mut World) -> Seen {
    let mut syn = tcp(address(CLIENT), address(SERVICE), SYN, (1000, 0), b"");
    assert_eq!(
        world.handle(&mut syn),
        Verdict::Translated(Direction::Forward)
    );
    see(&syn)
}

/// The mirror refuses a SYN that it got.
fn refuse(world: &mut World, syn: &Seen) -> Verdict {
    let mut reset = tcp(
        syn.destination,
        syn.source,
        RST | ACK,
        (0, syn.sequence + 1),
        b"",
    );
    world.handle(&mut reset)
}

/// The one segment that the engine sends of its own accord.
#[track_caller]
fn sent(world: &mut World) -> Seen {
    let sent = world.sent();
    let [one] = sent[..] else {
        panic!("one segment: {sent:?}");
    };
    one
}

#[test]
fn a_refused_connection_goes_to_another_mirror_and_the_client_does_not_notice() {
    let mut world = world(2, &MIRRORS[..2]);
    let first = syn(&mut world);
    world.pass_time(Duration::from_millis(3));
    assert_eq!(refuse(&mut world, &first), Verdict::Held);

    // The other mirror gets the client's SYN, with the client's number.
    let second = sent(&mut world);
    assert_eq!((second.flags, second.sequence), (SYN, 1000));
    assert_eq!(second.source.ip(), first.source.ip());
    let tried: HashSet<SocketAddr> = [first.destination, second.destination].into();
    assert_eq!(tried, MIRRORS[..2].iter().map(|m| address(m)).collect());

    // It takes the connection, which goes on as any other.
    world.pass_time(Duration::from_millis(5));
    let mut answer = tcp(
        second.destination,
        second.source,
        SYN | ACK,
        (7000, 1001),
        b"",
    );
    assert_eq!(
        world.handle(&mut answer),
        Verdict::Translated(Direction::Reverse)
    );
    let answer = see(&answer);
    assert_eq!(
        (answer.source, answer.destination),
        (address(SERVICE), address(CLIENT))
    );
    for payload in [&b""[..], b"question"] {
        let mut segment = tcp(
            address(CLIENT),
            address(SERVICE),
            ACK,
            (1001, 7001),
            payload,
        );
        world.handle(&mut segment);
        assert_eq!(see(&segment).destination, second.destination);
    }
    let engine = &world.engines[0];
    assert_eq!(engine.connections().len(), 1);
    let connection = engine.connections().get(0).unwrap();
    assert_eq!(connection.state, State::Established);
    let counters = engine.counters();
    assert_eq!(
        (counters.created, counters.retried, counters.moved),
        (1, 1, 0)
    );

    // Each mirror is credited with what it did.
    for aggregate in engine.aggregates().iter() {
        let is_first = SocketAddr::from(aggregate.key.mirror) == first.destination;
        let totals = &aggregate.totals;
        assert_eq!(totals.refused, u64::from(is_first));
        assert_eq!(totals.reverse.resets, u64::from(is_first));
        assert_eq!(aggregate.connections, u64::from(!is_first));
        let handshakes = totals
            .times(Timed::MirrorHandshake)
            .map(|times| times.max());
        if !is_first {
            // From the SYN that was sent to this mirror, not from the client's.
            assert!(
                (4900..=5200).contains(&handshakes.unwrap()),
                "{handshakes:?}"
            );
        }
    }
}

#[test]
fn each_mirror_is_tried_once_and_then_the_client_is_told() {
    for (retries, tries) in [(0, 1), (1, 2), (2, 3), (3, 3)] {
        let mut world = world(retries, &MIRRORS);
        let mut last = syn(&mut world);
        let mut tried = HashSet::from([last.destination]);
        for _ in 1..tries {
            assert_eq!(refuse(&mut world, &last), Verdict::Held);
            last = sent(&mut world);
            assert!(tried.insert(last.destination), "twice {}", last.destination);
        }
        assert_eq!(
            refuse(&mut world, &last),
            Verdict::Translated(Direction::Reverse),
            "{retries} retries"
        );
        assert!(world.sent().is_empty());
        let connection = world.engines[0].connections().get(0).unwrap();
        assert_eq!(connection.state, State::Closed);
        assert_eq!(world.engines[0].counters().retried, tries - 1);
        let aggregates = world.engines[0].aggregates();
        let refused = aggregates.iter().map(|aggregate| aggregate.totals.refused);
        assert_eq!(refused.sum::<u64>(), tries);
    }
}

#[test]
fn a_mirror_of_weight_0_is_not_tried() {
    let mut world = world(2, &[MIRRORS[0], "10.2.0.3:80*0"]);
    let first = syn(&mut world);
    assert_eq!(
        refuse(&mut world, &first),
        Verdict::Translated(Direction::Reverse)
    );
    assert!(world.sent().is_empty());
}

#[test]
fn a_refusal_that_cannot_be_right_changes_nothing() {
    let mut world = world(2, &MIRRORS[..2]);
    let first = syn(&mut world);
    let forged = Seen {
        sequence: 5555,
        ..first
    };
    assert_eq!(
        refuse(&mut world, &forged),
        Verdict::Translated(Direction::Reverse),
        "the client won't believe it either"
    );
    assert!(world.sent().is_empty());
    assert_eq!(world.engines[0].counters().retried, 0);
}

#[test]
fn what_a_mirror_says_once_it_has_taken_the_connection_is_the_client_s() {
    let mut world = world(2, &MIRRORS[..2]);
    let first = syn(&mut world);
    let mut answer = tcp(
        first.destination,
        first.source,
        SYN | ACK,
        (7000, 1001),
        b"",
    );
    world.handle(&mut answer);
    let mut reset = tcp(
        first.destination,
        first.source,
        RST | ACK,
        (7001, 1001),
        b"",
    );
    assert_eq!(
        world.handle(&mut reset),
        Verdict::Translated(Direction::Reverse)
    );
    assert!(world.sent().is_empty());
}

#[test]
fn what_the_mirror_that_refused_says_later_is_nobody_s() {
    let mut world = world(2, &MIRRORS[..2]);
    let first = syn(&mut world);
    refuse(&mut world, &first);
    let second = sent(&mut world);
    // It had got the client's SYN twice.
    assert_eq!(
        refuse(&mut world, &first),
        Verdict::Dropped(DropReason::NoConnection)
    );
    // The client repeats its SYN too: it goes where the connection is now.
    let repeated = syn(&mut world);
    assert_eq!(
        (repeated.destination, repeated.source),
        (second.destination, second.source)
    );
}

#[test]
fn a_restored_service_s_refusals_are_the_client_s() {
    let mut world = world(2, &MIRRORS[..2]);
    let first = syn(&mut world);
    world.restore(SERVICE);
    assert_eq!(
        refuse(&mut world, &first),
        Verdict::Translated(Direction::Reverse)
    );
}

#[test]
fn data_in_a_syn_cannot_be_sent_again_so_it_is_not_retried() {
    let mut world = world(2, &MIRRORS[..2]);
    let mut syn = tcp(address(CLIENT), address(SERVICE), SYN, (1000, 0), b"early");
    world.handle(&mut syn);
    let first = see(&syn);
    let mut reset = tcp(first.destination, first.source, RST | ACK, (0, 1006), b"");
    assert_eq!(
        world.handle(&mut reset),
        Verdict::Translated(Direction::Reverse)
    );
    assert!(world.sent().is_empty());
}

/// The port of a connection that was refused and has ended is the client's to use again, with all
/// mirrors to be tried anew.
#[test]
fn a_new_connection_from_the_same_port_has_all_its_tries() {
    let mut world = world(1, &MIRRORS[..2]);
    for round in 1..=3 {
        let first = syn(&mut world);
        assert_eq!(refuse(&mut world, &first), Verdict::Held, "{round}");
        let second = sent(&mut world);
        assert_eq!(
            refuse(&mut world, &second),
            Verdict::Translated(Direction::Reverse)
        );
    }
    assert_eq!(world.engines[0].counters().retried, 3);
}

#[test]
fn the_options_of_the_syn_are_the_client_s() {
    let mut world = World::with(1, |config| {
        config.refused_retries = 2;
        config.mss_clamp = Some(1400);
    });
    world.divert(SERVICE, &MIRRORS[..2]);
    let options = [
        TcpOptionElement::MaximumSegmentSize(1460),
        TcpOptionElement::SelectiveAcknowledgementPermitted,
        TcpOptionElement::Timestamp(123_456, 0),
        TcpOptionElement::Noop,
        TcpOptionElement::WindowScale(7),
    ];
    let mut syn = Vec::new();
    PacketBuilder::ipv4([1, 2, 3, 4], [100, 100, 100, 100], 64)
        .tcp(3456, 80, 1000, 64_240)
        .options(&options)
        .unwrap()
        .syn()
        .write(&mut syn, &[])
        .unwrap();
    world.handle(&mut syn);
    let first = see(&syn);
    refuse(&mut world, &first);
    let again = world.engines[0].poll_transmit().unwrap().packet;
    see(&again);
    let read = |packet: &[u8]| {
        let sliced = LaxSlicedPacket::from_ip(packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("not TCP");
        };
        let mut options: Vec<String> = tcp
            .options_iterator()
            .map(|option| format!("{:?}", option.unwrap()))
            .filter(|option| option != "Noop")
            .collect();
        options.sort();
        (tcp.window_size(), tcp.sequence_number(), options)
    };
    // As the first mirror got it: with the segment size lowered.
    assert_eq!(read(&again), read(&syn));
    assert!(
        read(&again)
            .2
            .contains(&"MaximumSegmentSize(1360)".to_owned())
    );
}
