//! What the engine measures of connections, packet by packet, against times that are known.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{Protocol, TcpMove};
use rewriter::engine::{Redirect, Verdict};
use rewriter::table::{Aggregate, Connection, Latency, Timed, Totals};
use support::errors::{Flow, V4};
use support::*;

/// A client and a mirror with a connection, told in what it measures.
struct Story {
    world: World,
    proxy: SocketAddr,
}

impl Story {
    /// The handshake: the mirror answers after 3 ms, the client after 20 ms more.
    fn open() -> Self {
        let mut story = Self::with_syn();
        story.after(3, Self::from_mirror(SYN | ACK, (7000, 1001), b""));
        story.after(20, Self::from_client(ACK, (1001, 7001), b""));
        story
    }

    fn with_syn() -> Self {
        let mut world = World::new(1);
        world.divert(SERVICE, &[MIRROR]);
        let mut syn = tcp(address(CLIENT), address(SERVICE), SYN, (1000, 0), b"");
        world.handle(&mut syn);
        let proxy = see(&syn).source;
        Self { world, proxy }
    }

    fn from_client(
        flags: u8,
        numbers: (u32, u32),
        payload: &[u8],
    ) -> impl Fn(SocketAddr) -> Vec<u8> {
        move |_| tcp(address(CLIENT), address(SERVICE), flags, numbers, payload)
    }

    fn from_mirror(
        flags: u8,
        numbers: (u32, u32),
        payload: &[u8],
    ) -> impl Fn(SocketAddr) -> Vec<u8> {
        move |proxy| tcp(address(MIRROR), proxy, flags, numbers, payload)
    }

    /// Milliseconds later, a packet comes.
    #[track_caller]
    fn after(&mut self, milliseconds: u64, packet: impl Fn(SocketAddr) -> Vec<u8>) {
        self.world.pass_time(Duration::from_millis(milliseconds));
        let verdict = self.world.handle(&mut packet(self.proxy));
        assert!(matches!(verdict, Verdict::Translated(_)), "{verdict:?}");
    }

    fn connection(&self) -> Connection {
        *self.world.engines[0].connections().get(0).unwrap()
    }

    fn aggregates(&self) -> Vec<Aggregate> {
        self.world.engines[0].aggregates().iter().cloned().collect()
    }

    fn totals(&self) -> Totals {
        let [aggregate] = &self.aggregates()[..] else {
            panic!("one client, one mirror");
        };
        aggregate.totals.clone()
    }
}

/// In whole milliseconds: a stored time is a little less than the true one.
fn milliseconds(latency: Option<Latency>) -> Option<u128> {
    latency.map(|latency| (latency.duration().as_micros() + 500) / 1000)
}

fn recorded(totals: &Totals, what: Timed) -> u64 {
    totals.times(what).map_or(0, |times| times.len())
}

#[test]
fn a_handshake_shows_the_way_to_either_end() {
    let story = Story::open();
    let timing = story.connection().timing;
    assert_eq!(milliseconds(timing.mirror_handshake), Some(3));
    assert_eq!(milliseconds(timing.client_handshake), Some(20));
    let totals = story.totals();
    assert_eq!(totals.opened, 1);
    let times = totals.times(Timed::MirrorHandshake).unwrap();
    assert_eq!(times.len(), 1);
    // To a sixteenth.
    assert!((2800..=3200).contains(&times.max()), "{}", times.max());
    assert_eq!(recorded(&totals, Timed::MirrorRtt), 0);
}

#[test]
fn a_repeated_syn_spoils_the_handshakes_time() {
    let mut story = Story::with_syn();
    story.after(1000, Story::from_client(SYN, (1000, 0), b""));
    story.after(3, Story::from_mirror(SYN | ACK, (7000, 1001), b""));
    let connection = story.connection();
    assert_eq!(connection.timing.mirror_handshake, None);
    assert_eq!(connection.client.retransmissions, 1);
    // What comes later is no handshake.
    story.after(20, Story::from_client(ACK, (1001, 7001), b"request"));
    story.after(4, Story::from_mirror(ACK, (7001, 1008), b""));
    let timing = story.connection().timing;
    assert_eq!(timing.mirror_handshake, None);
    assert_eq!(milliseconds(timing.mirror_rtt), Some(4));
    let totals = story.totals();
    assert_eq!(recorded(&totals, Timed::MirrorHandshake), 0);
    assert_eq!(recorded(&totals, Timed::MirrorRtt), 1);
}

#[test]
fn requests_and_answers_are_timed() {
    let mut story = Story::open();
    story.after(5, Story::from_client(ACK, (1001, 7001), b"request"));
    // The mirror acknowledges after 4 ms and answers after 60.
    story.after(4, Story::from_mirror(ACK, (7001, 1008), b""));
    story.after(56, Story::from_mirror(ACK, (7001, 1008), b"answer"));
    // More of the answer is no first byte.
    story.after(9, Story::from_mirror(ACK, (7007, 1008), b"more"));
    // The client acknowledges the first part after 30 ms.
    story.after(21, Story::from_client(ACK, (1008, 7007), b""));
    let timing = story.connection().timing;
    assert_eq!(milliseconds(timing.first_byte), Some(60));
    // An eighth of what is new: (7 · 3 + 4) / 8, (7 · 20 + 30) / 8.
    let micros = |latency: Option<Latency>| latency.unwrap().duration().as_micros();
    assert!(
        (3120..=3130).contains(&micros(timing.mirror_rtt)),
        "{timing:?}"
    );
    assert!(
        (21_220..=21_260).contains(&micros(timing.client_rtt)),
        "{timing:?}"
    );
    let totals = story.totals();
    assert_eq!(recorded(&totals, Timed::FirstByte), 1);
    assert_eq!(recorded(&totals, Timed::MirrorRtt), 1);
    assert_eq!(recorded(&totals, Timed::ClientRtt), 1);
}

#[test]
fn a_retransmission_is_counted_and_spoils_the_sample() {
    let mut story = Story::open();
    story.after(5, Story::from_client(ACK, (1001, 7001), b"request"));
    story.after(300, Story::from_client(ACK, (1001, 7001), b"request"));
    story.after(4, Story::from_mirror(ACK, (7001, 1008), b""));
    let connection = story.connection();
    assert_eq!(connection.client.retransmissions, 1);
    assert_eq!(connection.mirror.retransmissions, 0);
    assert_eq!(milliseconds(connection.timing.mirror_rtt), Some(3));
    assert_eq!(story.totals().forward.retransmissions, 1);
    // The next one is timed again.
    story.after(5, Story::from_client(ACK, (1008, 7001), b"request"));
    story.after(11, Story::from_mirror(ACK, (7001, 1015), b""));
    assert_eq!(milliseconds(story.connection().timing.mirror_rtt), Some(4));
}

#[test]
fn a_keep_alive_probe_is_no_retransmission() {
    let mut story = Story::open();
    story.after(5, Story::from_client(ACK, (1001, 7001), b"request"));
    story.after(4, Story::from_mirror(ACK, (7001, 1008), b""));
    // RFC 9293, section 3.8.4: with and without a byte that is old.
    story.after(75_000, Story::from_client(ACK, (1007, 7001), b"t"));
    story.after(75_000, Story::from_client(ACK, (1007, 7001), b""));
    assert_eq!(story.connection().client.retransmissions, 0);
}

#[test]
fn refusals_resets_and_silence_are_told_apart() {
    let mut refused = Story::with_syn();
    refused.after(1, Story::from_mirror(RST | ACK, (0, 1001), b""));
    let totals = refused.totals();
    assert_eq!((totals.refused, totals.reverse.resets), (1, 1));
    assert_eq!(
        recorded(&totals, Timed::MirrorHandshake),
        0,
        "a refusal is none"
    );

    let mut reset = Story::open();
    reset.after(1, Story::from_mirror(RST, (7001, 0), b""));
    let totals = reset.totals();
    assert_eq!((totals.refused, totals.reverse.resets), (0, 1));
    assert_eq!(totals.unanswered, 0);

    let mut silent = Story::with_syn();
    silent.world.pass_time(Duration::from_secs(600));
    let totals = silent.totals();
    assert_eq!((totals.unanswered, totals.reverse.packets()), (1, 0));

    // A blind attacker's reset counts for nothing.
    let mut attacked = Story::open();
    attacked.after(1, Story::from_mirror(RST, (9_007_001, 0), b""));
    assert_eq!(attacked.totals().reverse.resets, 0);
}

#[test]
fn packets_are_counted_by_size() {
    let mut story = Story::open();
    story.after(5, Story::from_client(ACK, (1001, 7001), &[1; 1000]));
    let totals = story.totals();
    assert_eq!(totals.forward.packets(), 3);
    // The SYN and the ACK are 40 bytes long, the request 1040.
    assert_eq!(totals.forward.bytes, 1120);
    assert_eq!((totals.forward.sizes[0], totals.forward.sizes[5]), (2, 1));
}

#[test]
fn datagrams_and_echoes_have_first_bytes_too() {
    let mut world = World::new(1);
    world.divert("100.100.100.100", &["10.2.0.2"]);
    let mut question = udp(address(CLIENT), address("100.100.100.100:53"), b"?");
    world.handle(&mut question);
    world.pass_time(Duration::from_millis(8));
    let proxy = see(&question).source;
    world.handle(&mut udp(address("10.2.0.2:53"), proxy, b"!"));
    world.handle(&mut udp(address("10.2.0.2:53"), proxy, b"!"));
    let connection = world.engines[0].connections().get(0).unwrap();
    assert_eq!(milliseconds(connection.timing.first_byte), Some(8));
    let aggregate = world.engines[0].aggregates().iter().next().unwrap();
    assert_eq!(recorded(&aggregate.totals, Timed::FirstByte), 1);
}

#[test]
fn a_moved_connection_counts_where_it_is() {
    let mut story = Story::open();
    let id = story.world.divert(SERVICE, &["10.2.0.3:80"]);
    story.world.redirect(Redirect::new(0, id, TcpMove::Rewrite));
    let aggregates = story.aggregates();
    let connections: Vec<u64> = aggregates.iter().map(|a| a.connections).collect();
    assert_eq!(connections, [0, 1]);
    assert_eq!(aggregates[0].totals.forward.packets(), 2);
    assert_eq!(aggregates[1].totals.forward.packets(), 0);
    // The other mirror's times are nothing that this one could be judged by.
    let timing = story.connection().timing;
    assert_eq!((timing.mirror_handshake, timing.mirror_rtt), (None, None));
    assert_eq!(milliseconds(timing.client_handshake), Some(20));

    // And the first round trip to this mirror is no handshake.
    story.after(5, Story::from_client(ACK, (1001, 7001), b"request"));
    story.world.pass_time(Duration::from_millis(4));
    let proxy = story.connection().mirror_side().proxy.into();
    let mut answer = tcp(address("10.2.0.3:80"), proxy, ACK, (7001, 1008), b"");
    story.world.handle(&mut answer);
    let timing = story.connection().timing;
    assert_eq!(timing.mirror_handshake, None);
    assert_eq!(milliseconds(timing.mirror_rtt), Some(4));
    assert_eq!(
        recorded(&story.aggregates()[1].totals, Timed::MirrorHandshake),
        0
    );
}

#[test]
fn an_icmp_error_is_counted_for_its_connection() {
    let (mut world, flow) = Flow::open(V4, Protocol::Udp);
    let mut error = flow.reverse_error(V4.router(), V4.port_unreachable(), 28);
    assert!(matches!(world.handle(&mut error), Verdict::Translated(_)));
    assert_eq!(
        world.engines[0]
            .connections()
            .get(0)
            .unwrap()
            .timing
            .icmp_errors,
        1
    );
    let aggregate = world.engines[0].aggregates().iter().next().unwrap();
    assert_eq!(aggregate.totals.icmp_errors, 1);
}
