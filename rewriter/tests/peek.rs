//! Peeking diversions: DNS queries for listed names follow them, everything else goes on as it came.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;
use rewriter::engine::Verdict;
use rewriter::packet::VnetHeader;
use rewriter::table::{Direction, Peek};
use support::fragments::cut;
use support::{MIRROR, World, address, see, tcp, udp};

const DNS: &str = "10.0.0.53:53";
const SERVICE: &str = "10.0.0.53:53/udp";
const NAMING: &str = "10.2.0.5:53";
const RESOLVER: &str = "1.2.3.4:3456";

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn peek(names: &[&str]) -> Peek {
    let names: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
    Peek::at(&names).unwrap()
}

/// A world whose rewriter sends queries for these names to the naming server.
fn peeking(names: &[&str]) -> World {
    let mut world = World::new(2);
    world.divert_peeking(SERVICE, &[NAMING], peek(names));
    world
}

/// What becomes of a datagram from the client to the DNS. One that passes must be as it was.
fn sent(world: &mut World, payload: &[u8]) -> Verdict {
    sent_with(world, payload, &mut VnetHeader::default())
}

fn sent_with(world: &mut World, payload: &[u8], offload: &mut VnetHeader) -> Verdict {
    let before = udp(address(RESOLVER), address(DNS), payload);
    let mut packet = before.clone();
    let verdict = world.handle_with(&mut packet, offload);
    if verdict == Verdict::Passed {
        assert_eq!(packet, before);
    }
    verdict
}

const TAKEN: Verdict = Verdict::Translated(Direction::Forward);

#[test]
fn listed_and_other_questions_from_one_port() {
    let mut world = peeking(&["www.bt.com", "*.shunt.test"]);
    // ---- an unlisted question first: no connection is made ----
    assert_eq!(
        sent(&mut world, &query("www.example.com.")),
        Verdict::Passed
    );
    assert_eq!(world.connections(), 0);
    // ---- listed ones, in any case, go to the naming server from the proxy address ----
    let mut packet = udp(address(RESOLVER), address(DNS), &query("WWW.bt.COM."));
    assert_eq!(world.handle(&mut packet), TAKEN);
    let forward = see(&packet);
    assert_eq!(forward.destination, address(NAMING));
    assert_eq!(world.connections(), 1);
    for name in ["a.shunt.test.", "a.b.SHUNT.test."] {
        assert_eq!(sent(&mut world, &query(name)), TAKEN, "{name}");
    }
    assert_eq!(world.connections(), 1);
    // ---- the answer comes from the DNS, as far as the client can see ----
    let mut answer = udp(address(NAMING), forward.source, b"answer");
    assert_eq!(
        world.handle(&mut answer),
        Verdict::Translated(Direction::Reverse)
    );
    assert_eq!(see(&answer).source, address(DNS));
    assert_eq!(see(&answer).destination, address(RESOLVER));
    // ---- unlisted ones go on untouched although the port has a connection now ----
    for name in [
        "bt.com.",
        "a.www.bt.com.",
        "shunt.test.",
        "xshunt.test.",
        ".",
    ] {
        assert_eq!(sent(&mut world, &query(name)), Verdict::Passed, "{name}");
    }
    let counted = |world: &World| -> u64 {
        let connections = world.engines.iter().map(|engine| engine.connections());
        connections
            .flat_map(|all| (0..all.slots()).filter_map(|slot| all.get(slot)))
            .map(|connection| connection.forward_traffic.packets)
            .sum()
    };
    assert_eq!(
        counted(&world),
        3,
        "what passes is none of the connection's"
    );
}

#[test]
fn all_that_is_no_plain_query_goes_on() {
    let mut world = peeking(&["www.bt.com"]);
    let plain = query("www.bt.com.");
    assert_eq!(sent(&mut world, &plain), TAKEN);
    let with = |at: usize, value: u8| {
        let mut message = plain.clone();
        message[at] = value;
        message
    };
    let compressed = [&plain[..12], b"\x03www\xC0\x0C\0\x01\0\x01"].concat();
    for (what, message) in [
        ("an answer", with(2, 0x80)),
        ("a notification", with(2, 4 << 3)),
        ("an update", with(2, 5 << 3)),
        ("no question", with(5, 0)),
        ("two questions", with(5, 2)),
        ("very many questions", with(4, 1)),
        ("a label that can't be", with(12, 0x40)),
        ("a compressed name", compressed),
        ("a name that runs out of the message", with(12, 63)),
        ("nothing", Vec::new()),
        ("no whole header", plain[..11].to_vec()),
        ("no class", plain[..plain.len() - 1].to_vec()),
    ] {
        assert_eq!(sent(&mut world, &message), Verdict::Passed, "{what}");
    }
}

#[test]
fn what_was_told_no_names_takes_nothing() {
    let mut world = World::new(2);
    world.divert_peeking(SERVICE, &[NAMING], Peek::default());
    assert_eq!(sent(&mut world, &query("www.bt.com.")), Verdict::Passed);
    // ---- the list comes, is replaced as a whole, and goes ----
    world.divert_peeking(SERVICE, &[NAMING], peek(&["www.bt.com"]));
    assert_eq!(sent(&mut world, &query("www.bt.com.")), TAKEN);
    world.divert_peeking(SERVICE, &[NAMING], peek(&["ftp.bt.com"]));
    assert_eq!(sent(&mut world, &query("www.bt.com.")), Verdict::Passed);
    assert_eq!(sent(&mut world, &query("ftp.bt.com.")), TAKEN);
    world.divert_peeking(SERVICE, &[NAMING], peek(&[]));
    assert_eq!(sent(&mut world, &query("ftp.bt.com.")), Verdict::Passed);
    // ---- without a list, everything follows the diversion again ----
    world.divert(SERVICE, &[NAMING]);
    assert_eq!(sent(&mut world, &query("www.example.com.")), TAKEN);
}

#[test]
fn other_traffic_of_the_service_is_nobodys_business() {
    let mut world = peeking(&["www.bt.com"]);
    let syn = tcp(address(RESOLVER), address(DNS), support::SYN, (1, 0), &[]);
    let mut packet = syn.clone();
    assert_eq!(world.handle(&mut packet), Verdict::Passed);
    assert_eq!(packet, syn);
    let other_port = address("10.0.0.53:5353");
    let mut packet = udp(address(RESOLVER), other_port, &query("www.bt.com."));
    assert_eq!(world.handle(&mut packet), Verdict::Passed);
    // ---- another diversion isn't looked into ----
    world.divert("100.100.100.100:80", &[MIRROR]);
    let mut packet = udp(address(RESOLVER), address(support::SERVICE), b"no query");
    assert_eq!(world.handle(&mut packet), TAKEN);
}

#[test]
fn a_query_in_fragments_is_looked_at_whole() {
    for (name, goes_to) in [("www.bt.com.", NAMING), ("www.example.com.", DNS)] {
        let mut world = peeking(&["www.bt.com"]);
        // What makes it long is behind the question.
        let long = [query(name), vec![0; 600]].concat();
        let packet = udp(address(RESOLVER), address(DNS), &long);
        let fragments = cut(&packet, 7, 300);
        assert!(fragments.len() > 1);
        let sent = world.arrive_all(&fragments);
        let whole = support::fragments::only(&sent);
        let seen = see(&whole);
        assert_eq!(seen.destination, address(goes_to), "{name}");
        let passes = goes_to == DNS;
        assert_eq!(seen.source == address(RESOLVER), passes, "{name}");
        assert_eq!(world.connections(), usize::from(!passes));
        assert!(support::fragments::payload_of(&whole, long.len()) == long);
    }
}

#[test]
fn a_super_packet_goes_with_any_of_its_datagrams_that_is_listed() {
    let datagram = |name: &str| {
        let mut message = query(name);
        message.resize(64, 0);
        message
    };
    let (listed, other) = (datagram("www.bt.com."), datagram("www.example.com."));
    let uso = |gso_size| VnetHeader {
        gso_type: VnetHeader::GSO_UDP_L4,
        gso_size,
        ..VnetHeader::default()
    };
    for (datagrams, verdict) in [
        ([&other, &other, &other], Verdict::Passed),
        ([&listed, &other, &other], TAKEN),
        ([&other, &other, &listed], TAKEN),
        ([&listed, &listed, &listed], TAKEN),
    ] {
        let mut world = peeking(&["www.bt.com"]);
        let payload: Vec<u8> = datagrams.into_iter().flatten().copied().collect();
        assert_eq!(sent_with(&mut world, &payload, &mut uso(64)), verdict);
        // ---- the last one may be shorter ----
        let mut world = peeking(&["www.bt.com"]);
        let shorter = &payload[..payload.len() - 20];
        assert_eq!(sent_with(&mut world, shorter, &mut uso(64)), verdict);
    }
    // ---- a header that doesn't say how long each is: there is but one ----
    let mut world = peeking(&["www.bt.com"]);
    assert_eq!(sent_with(&mut world, &listed, &mut uso(0)), TAKEN);
    assert_eq!(sent_with(&mut world, &other, &mut uso(0)), Verdict::Passed);
}

/// Whether a message is a plain query for a listed name, as hickory reads it.
fn oracle(message: &[u8]) -> Option<bool> {
    let message = Message::from_vec(message).ok()?;
    let listed = |name: &Name| {
        let name = name.to_ascii().to_ascii_lowercase();
        name == "www.bt.com." || name.ends_with(".shunt.test.") && name != ".shunt.test."
    };
    Some(
        message.metadata.message_type == MessageType::Query
            && message.metadata.op_code == OpCode::Query
            && matches!(message.queries.as_slice(), [query] if listed(query.name())),
    )
}

proptest! {
    /// Queries with a few bytes damaged: what hickory can read, peeking sees as it does.
    #[test]
    fn hickory_sees_the_same(
        name in prop::sample::select(&[
            "www.bt.com.", "WwW.Bt.cOm.", "a.www.bt.com.", "bt.com.", "shunt.test.", "x.y.shunt.test.",
            "www.bt.com.shunt.test.", "www.example.com.", ".",
        ][..]),
        damage in prop::collection::vec((0_usize..40, any::<u8>()), 0..3),
        cut in 0_usize..4,
    ) {
        let mut message = query(name);
        for (at, value) in damage {
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
        }
        message.truncate(message.len() - cut);
        let taken = peek(&["www.bt.com", "*.shunt.test"]).takes(&message, None);
        if let Some(expected) = oracle(&message) {
            prop_assert_eq!(taken, expected, "{:?}", message);
        }
    }

    /// Any bytes at all, in datagrams of any length: nothing panics, and what passes is untouched.
    #[test]
    fn nothing_is_changed_that_isnt_taken(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        gso_size in any::<u16>(),
    ) {
        let mut world = peeking(&["www.bt.com", "*.shunt.test"]);
        let mut offload = VnetHeader {
            gso_type: VnetHeader::GSO_UDP_L4,
            gso_size,
            ..VnetHeader::default()
        };
        sent_with(&mut world, &payload, &mut offload);
    }
}
