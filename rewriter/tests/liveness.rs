//! The mirrors' vital signs, as stories of packets.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use rewriter::engine::{MirrorSigns, Time, Verdict};
use rewriter::packet::Endpoint;
use rewriter::table::Direction;
use support::*;

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// Asks all engines, as the control plane does.
fn signs(world: &mut World) -> HashMap<SocketAddr, MirrorSigns> {
    let mut heard: HashMap<Endpoint, Time> = HashMap::new();
    for (mirror, at) in world.engines.iter().flat_map(|engine| engine.heard()) {
        let latest = heard.entry(mirror).or_default();
        *latest = (*latest).max(at);
    }
    let mut signs: HashMap<SocketAddr, MirrorSigns> = HashMap::new();
    for engine in &mut world.engines {
        for (mirror, of_engine) in engine.mirror_signs(&heard) {
            signs.entry(mirror.into()).or_default().add(&of_engine);
        }
    }
    signs
}

fn sign(world: &mut World) -> MirrorSigns {
    signs(world)[&address(MIRROR)]
}

/// How long ago the mirror was heard, how long it has left something unanswered, and how much.
fn silence(world: &mut World) -> (Option<Duration>, Option<Duration>, u64) {
    let (now, sign) = (world.now, sign(world));
    let ago = |at: Option<Time>| at.map(|at| now.since(at));
    (
        ago(sign.heard()),
        ago(sign.waiting_since()),
        sign.unanswered(),
    )
}

fn from_client(world: &mut World, client: SocketAddr, flags: u8, payload: &[u8]) -> SocketAddr {
    let number = if flags & SYN != 0 { 1000 } else { 1001 };
    let mut segment = tcp(client, address(SERVICE), flags, (number, 7001), payload);
    assert_eq!(
        world.handle(&mut segment),
        Verdict::Translated(Direction::Forward)
    );
    see(&segment).source
}

fn from_mirror(world: &mut World, proxy: SocketAddr, flags: u8, payload: &[u8]) {
    let number = if flags & SYN != 0 { 7000 } else { 7001 };
    let mut segment = tcp(address(MIRROR), proxy, flags, (number, 1001), payload);
    assert_eq!(
        world.handle(&mut segment),
        Verdict::Translated(Direction::Reverse)
    );
}

fn establish(world: &mut World, client: SocketAddr) -> SocketAddr {
    let proxy = from_client(world, client, SYN, b"");
    from_mirror(world, proxy, SYN | ACK, b"");
    from_client(world, client, ACK, b"");
    proxy
}

#[test]
fn a_mirror_whose_link_is_cut_leaves_what_is_sent_unanswered() {
    let mut world = World::new(2);
    world.divert(SERVICE, &[MIRROR]);
    let client = address(CLIENT);
    assert!(
        signs(&mut world).is_empty(),
        "no mirror has had connections"
    );

    // It answers, and then nobody asks: it isn't silent, however long that lasts.
    let proxy = establish(&mut world, client);
    world.pass_time(ms(5000));
    assert_eq!(silence(&mut world), (Some(ms(5000)), None, 0));

    // An acknowledgement wants no answer; a question does, and so does each repetition.
    from_client(&mut world, client, ACK, b"");
    assert_eq!(silence(&mut world), (Some(ms(5000)), None, 0));
    from_client(&mut world, client, ACK, b"question");
    world.pass_time(ms(200));
    from_client(&mut world, client, ACK, b"question");
    world.pass_time(ms(100));
    assert_eq!(silence(&mut world), (Some(ms(5300)), Some(ms(300)), 2));
    assert_eq!(sign(&mut world).connections, 1);

    // Whatever comes ends the silence.
    from_mirror(&mut world, proxy, ACK, b"");
    assert_eq!(silence(&mut world), (Some(ms(0)), None, 0));
}

#[test]
fn a_mirror_that_never_answered_is_waited_for() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    from_client(&mut world, address(CLIENT), SYN, b"");
    world.pass_time(ms(1000));
    from_client(&mut world, address(CLIENT), SYN, b"");
    assert_eq!(silence(&mut world), (None, Some(ms(1000)), 2));
}

#[test]
fn datagrams_want_no_answer_but_are_a_sign_of_life() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let mut question = udp(address(CLIENT), address(SERVICE), b"question");
    world.handle(&mut question);
    world.pass_time(ms(1000));
    assert_eq!(silence(&mut world), (None, None, 0));
    let mut answer = udp(address(MIRROR), see(&question).source, b"answer");
    world.handle(&mut answer);
    assert_eq!(silence(&mut world), (Some(ms(0)), None, 0));
}

/// Two clients of different prefixes and, with some luck, of different workers: each of many pairs.
#[test]
fn what_one_client_hears_answers_for_the_mirror_what_another_has_sent_before() {
    for last in 0..20 {
        let mut world = World::new(4);
        world.divert(SERVICE, &[MIRROR]);
        let stuck = SocketAddr::from(([1, 2, 3, last], 4000));
        let other = SocketAddr::from(([1, 2, 4, last], 4000));
        establish(&mut world, stuck);
        let proxy = establish(&mut world, other);

        // One client's question is lost. The mirror is alive, as another hears.
        world.pass_time(ms(10));
        from_client(&mut world, stuck, ACK, b"lost");
        world.pass_time(ms(10));
        from_client(&mut world, other, ACK, b"question");
        world.pass_time(ms(10));
        from_mirror(&mut world, proxy, ACK, b"answer");
        world.pass_time(ms(500));
        assert_eq!(silence(&mut world), (Some(ms(500)), None, 0));

        // Now its link is cut. What is sent from now on counts, whoever sends it.
        from_client(&mut world, stuck, ACK, b"lost");
        world.pass_time(ms(100));
        assert_eq!(silence(&mut world), (Some(ms(600)), Some(ms(100)), 1));
        from_client(&mut world, other, ACK, b"more");
        world.pass_time(ms(100));
        assert_eq!(silence(&mut world), (Some(ms(700)), Some(ms(200)), 2));
    }
}

/// Nobody has asked for the signs between the last sign of life and the cut: the silence is
/// taken for shorter than it is, never for longer, and grows from the first time that somebody asks.
#[test]
fn a_silence_is_never_taken_for_longer_than_it_is() {
    let mut world = World::new(4);
    world.divert(SERVICE, &[MIRROR]);
    let stuck = SocketAddr::from(([1, 2, 3, 1], 4000));
    let other = SocketAddr::from(([1, 2, 4, 1], 4000));
    establish(&mut world, stuck);
    let proxy = establish(&mut world, other);
    from_client(&mut world, stuck, ACK, b"lost");
    world.pass_time(ms(10));
    from_mirror(&mut world, proxy, ACK, b"a sign of life");
    world.pass_time(ms(10));
    from_client(&mut world, stuck, ACK, b"lost");
    world.pass_time(ms(200));
    from_client(&mut world, stuck, ACK, b"lost");
    world.pass_time(ms(50));
    assert_eq!(silence(&mut world), (Some(ms(260)), Some(ms(50)), 1));
    world.pass_time(ms(400));
    from_client(&mut world, stuck, ACK, b"lost");
    assert_eq!(silence(&mut world), (Some(ms(660)), Some(ms(450)), 2));
}

#[test]
fn a_mirror_whose_process_was_killed_resets_and_refuses() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[MIRROR]);
    let (old, new) = (address(CLIENT), address("1.2.3.4:5000"));
    let proxy = establish(&mut world, old);
    from_client(&mut world, old, ACK, b"question");
    let mut reset = tcp(address(MIRROR), proxy, RST | ACK, (7001, 1009), b"");
    world.handle(&mut reset);
    let proxy = from_client(&mut world, new, SYN, b"");
    let mut refusal = tcp(address(MIRROR), proxy, RST | ACK, (0, 1001), b"");
    world.handle(&mut refusal);
    let sign = sign(&mut world);
    assert_eq!((sign.resets, sign.refused), (1, 1));
    // That is an answer, too.
    assert_eq!(silence(&mut world), (Some(ms(0)), None, 0));
}

#[test]
fn each_mirror_has_signs_of_its_own() {
    let mut world = World::new(1);
    let other = "10.2.0.3:80";
    world.divert(SERVICE, &[MIRROR]);
    establish(&mut world, address(CLIENT));
    world.divert(SERVICE, &[other]);
    from_client(&mut world, address("1.2.3.4:5000"), SYN, b"");
    world.pass_time(ms(300));
    let signs = signs(&mut world);
    assert_eq!(signs.len(), 2);
    assert_eq!(signs[&address(MIRROR)].waiting_since(), None);
    assert!(signs[&address(other)].waiting_since().is_some());
    assert_eq!(signs[&address(other)].heard(), None);
}
