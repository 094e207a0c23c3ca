//! What happens when a connection is spliced, segment by segment.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{Fallback, Release, TcpMove};
use etherparse::{LaxSlicedPacket, PacketBuilder, TcpOptionElement, TransportSlice};
use rewriter::engine::{Obstacle, Redirect, RedirectOutcome, SpliceOrders, Verdict};
use rewriter::table::Direction;
use support::errors::{V4, error, verify};
use support::*;

const OLD: &str = "10.2.0.2:80";
const NEW: &str = "10.2.0.3:80";

/// The client's next byte, and the old mirror's, once a request has been answered.
const CLIENTS: u32 = 1005;
const OLDS: u32 = 7007;
/// What the new mirror's SYN-ACK has.
const NEWS: u32 = 50;
/// What is added to the new mirror's numbers.
const DIFFERENCE: u32 = OLDS - (NEWS + 1);

/// A segment's numbers, and what it has besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Segment {
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    window: u16,
    timestamps: Option<(u32, u32)>,
    scale: Option<u8>,
    sack: Option<(u32, u32)>,
    payload: Vec<u8>,
}

impl Segment {
    fn new(flags: u8, sequence: u32, acknowledgement: u32) -> Self {
        Self {
            flags,
            sequence,
            acknowledgement,
            window: 1000,
            ..Self::default()
        }
    }

    fn data(self, payload: &[u8]) -> Self {
        let payload = payload.to_vec();
        Self { payload, ..self }
    }

    fn window(self, window: u16) -> Self {
        Self { window, ..self }
    }

    fn times(self, value: u32, echo: u32) -> Self {
        let timestamps = Some((value, echo));
        Self { timestamps, ..self }
    }

    fn scale(self, scale: u8) -> Self {
        let scale = Some(scale);
        Self { scale, ..self }
    }

    fn packet(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (source, destination) else {
            panic!("these tests are about numbers, not addresses");
        };
        let mut options = Vec::new();
        if let Some((value, echo)) = self.timestamps {
            options.push(TcpOptionElement::Timestamp(value, echo));
        }
        options.extend(self.scale.map(TcpOptionElement::WindowScale));
        if let Some(block) = self.sack {
            options.push(TcpOptionElement::SelectiveAcknowledgement(block, [None; 3]));
        }
        let mut header =
            etherparse::TcpHeader::new(from.port(), to.port(), self.sequence, self.window);
        header.fin = self.flags & FIN != 0;
        header.syn = self.flags & SYN != 0;
        header.rst = self.flags & RST != 0;
        header.ack = self.flags & ACK != 0;
        header.acknowledgment_number = self.acknowledgement;
        header.set_options(&options).unwrap();
        let mut packet = Vec::new();
        PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
            .tcp_header(header)
            .write(&mut packet, &self.payload)
            .unwrap();
        packet
    }

    /// Reads one, with its ends, and verifies its checksums.
    fn read(packet: &[u8]) -> (SocketAddr, SocketAddr, Self) {
        let seen = see(packet);
        let sliced = LaxSlicedPacket::from_ip(packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("not TCP");
        };
        let mut segment = Self {
            flags: seen.flags & (FIN | SYN | RST | ACK),
            sequence: seen.sequence,
            acknowledgement: seen.acknowledgement,
            window: tcp.window_size(),
            payload: tcp.payload().to_vec(),
            ..Self::default()
        };
        for option in tcp.options_iterator() {
            match option.unwrap() {
                TcpOptionElement::Timestamp(value, echo) => {
                    segment.timestamps = Some((value, echo))
                }
                TcpOptionElement::WindowScale(scale) => segment.scale = Some(scale),
                TcpOptionElement::SelectiveAcknowledgement(block, _) => segment.sack = Some(block),
                _ => {}
            }
        }
        (seen.source, seen.destination, segment)
    }
}

/// A connection that is to be moved from [`OLD`] to [`NEW`].
struct Story {
    world: World,
    proxy: SocketAddr,
    /// The client's timestamp and the old mirror's, if they have any.
    clocks: Option<(u32, u32)>,
}

impl Story {
    /// The client has asked and been answered.
    fn begin() -> Self {
        Self::begin_with(b"ask\n", None, None)
    }

    /// The same with a first request, with the windows of client and mirror scaled, and with clocks.
    fn begin_with(request: &[u8; 4], scales: Option<(u8, u8)>, clocks: Option<(u32, u32)>) -> Self {
        let mut world = World::new(1);
        world.divert(SERVICE, &[OLD]);
        let mut story = Self {
            world,
            proxy: address("0.0.0.0:0"),
            clocks,
        };
        let with_scale = |segment: Segment, scale: Option<u8>| Segment { scale, ..segment };
        let syn = with_scale(Segment::new(SYN, 1000, 0), scales.map(|scales| scales.0));
        let (proxy, mirror, _) = story.client(syn).unwrap();
        assert_eq!(mirror, address(OLD));
        story.proxy = proxy;
        let answer = with_scale(
            Segment::new(SYN | ACK, 7000, 1001),
            scales.map(|scales| scales.1),
        );
        story.hear_old(answer);
        story.client(Segment::new(ACK, 1001, 7001));
        story.client(Segment::new(ACK, 1001, 7001).data(request));
        story.hear_old(Segment::new(ACK, 7001, CLIENTS).data(b"answer"));
        story.client(Segment::new(ACK, CLIENTS, OLDS));
        story
    }

    fn stamped(&self, segment: Segment, from_client: bool) -> Segment {
        match self.clocks {
            Some((client, mirror)) if segment.timestamps.is_none() => {
                let (value, echo) = if from_client {
                    (client, mirror)
                } else {
                    (mirror, client)
                };
                let echo = if segment.flags & ACK == 0 { 0 } else { echo };
                segment.times(value, echo)
            }
            _ => segment,
        }
    }

    /// The client sends; gives where it goes and what arrives there, unless it is held.
    fn client(&mut self, segment: Segment) -> Option<(SocketAddr, SocketAddr, Segment)> {
        let mut packet = self
            .stamped(segment, true)
            .packet(address(CLIENT), address(SERVICE));
        match self.world.handle(&mut packet) {
            Verdict::Translated(Direction::Forward) => Some(Segment::read(&packet)),
            Verdict::Held => None,
            verdict => panic!("{verdict:?}"),
        }
    }

    /// A mirror sends; gives what arrives at the client, if anything does.
    fn mirror(&mut self, mirror: &str, segment: Segment) -> Option<Segment> {
        let mut packet = segment.packet(address(mirror), self.proxy);
        match self.world.handle(&mut packet) {
            Verdict::Translated(Direction::Reverse) => {
                let (source, destination, segment) = Segment::read(&packet);
                assert_eq!((source, destination), (address(SERVICE), address(CLIENT)));
                Some(segment)
            }
            Verdict::Held => None,
            verdict => panic!("{verdict:?}"),
        }
    }

    fn hear_old(&mut self, segment: Segment) -> Option<Segment> {
        let segment = self.stamped(segment, false);
        self.mirror(OLD, segment)
    }

    fn hear_new(&mut self, segment: Segment) -> Option<Segment> {
        self.mirror(NEW, segment)
    }

    /// What was sent to an end by the engine itself, or after it was held.
    fn sent_to(&mut self, end: &str) -> Vec<Segment> {
        let engine = &mut self.world.engines[0];
        let sent: Vec<_> = std::iter::from_fn(|| engine.poll_transmit())
            .map(|outgoing| Segment::read(&outgoing.packet))
            .collect();
        sent.into_iter()
            .filter(|(_, destination, _)| *destination == address(end))
            .map(|(.., segment)| segment)
            .collect()
    }

    fn redirect(&mut self, splice: SpliceOrders) -> u64 {
        self.redirect_to(NEW, splice)
    }

    fn redirect_to(&mut self, mirror: &str, splice: SpliceOrders) -> u64 {
        let diversion = self.world.divert(SERVICE, &[mirror]);
        let mut redirect = Redirect::new(0, diversion, TcpMove::Splice);
        redirect.splice = splice;
        self.world.redirect(redirect);
        self.world.redirects
    }

    fn outcome(&self, redirect: u64) -> RedirectOutcome {
        self.world.engines[0].redirect_outcome(redirect).unwrap()
    }

    /// The client asks again, and that is held.
    fn ask(&mut self) {
        let next = Segment::new(ACK, CLIENTS, OLDS).data(b"next");
        assert_eq!(self.client(next), None, "it is held");
    }

    /// The new mirror takes the connection.
    fn accept(&mut self) {
        let syn = self.sent_to(NEW).pop().unwrap();
        assert_eq!((syn.flags, syn.sequence), (SYN, CLIENTS - 1));
        self.hear_new(Segment::new(SYN | ACK, NEWS, CLIENTS));
    }

    /// Redirected and moved.
    fn moved(release: Release) -> Self {
        let mut story = Self::begin();
        let redirect = story.redirect(SpliceOrders {
            release,
            ..SpliceOrders::default()
        });
        story.ask();
        story.accept();
        assert_eq!(story.outcome(redirect).moved, 1);
        story
    }
}

#[test]
fn a_request_is_held_and_goes_to_the_new_mirror() {
    let mut story = Story::begin();
    let redirect = story.redirect(SpliceOrders::default());
    assert_eq!(story.outcome(redirect).waiting, 1);
    story.ask();
    let more = Segment::new(ACK, CLIENTS + 4, OLDS).data(b"more");
    assert_eq!(story.client(more), None);
    story.world.pass_time(Duration::from_millis(30));
    story.accept();
    let sent: Vec<_> = story
        .sent_to(NEW)
        .into_iter()
        .map(|segment| (segment.sequence, segment.acknowledgement, segment.payload))
        .collect();
    let ours = NEWS + 1;
    assert_eq!(
        sent,
        [
            (CLIENTS, ours, b"".to_vec()),
            (CLIENTS, ours, b"next".to_vec()),
            (CLIENTS + 4, ours, b"more".to_vec()),
        ]
    );
    let outcome = story.outcome(redirect);
    assert_eq!((outcome.moved, outcome.waiting), (1, 0));
    assert_eq!(outcome.longest_hold, Duration::from_millis(30));

    let answer = story
        .hear_new(Segment::new(ACK, ours, CLIENTS + 8).data(b"yes"))
        .unwrap();
    assert_eq!(
        (answer.sequence, answer.acknowledgement),
        (OLDS, CLIENTS + 8)
    );
    // The client misses something, and says what it has.
    let mut missing = Segment::new(ACK, CLIENTS + 8, OLDS + 3);
    missing.sack = Some((OLDS + 10, OLDS + 20));
    let (_, _, missing) = story.client(missing).unwrap();
    assert_eq!(missing.acknowledgement, ours + 3);
    assert_eq!(missing.sack, Some((ours + 10, ours + 20)));
}

#[test]
fn an_old_mirror_is_released_in_order() {
    let mut story = Story::moved(Release::Fin);
    let fins = story.sent_to(OLD);
    assert_eq!(fins.len(), 1);
    assert_eq!(
        (fins[0].flags, fins[0].sequence, fins[0].acknowledgement),
        (FIN | ACK, CLIENTS, OLDS)
    );
    // It repeats what was acknowledged long ago: then the acknowledgement was lost.
    story.hear_old(Segment::new(ACK, 7001, CLIENTS).data(b"answer"));
    let answers = story.sent_to(OLD);
    assert_eq!((answers[0].flags, answers[0].acknowledgement), (ACK, OLDS));
    // Unacknowledged, the FIN is repeated.
    story.world.pass_time(Duration::from_millis(250));
    assert_eq!(story.sent_to(OLD)[0].flags, FIN | ACK);
    // It ends its side, and does so twice.
    for _ in 0..2 {
        story.hear_old(Segment::new(FIN | ACK, OLDS, CLIENTS + 1));
        let answers = story.sent_to(OLD);
        assert_eq!(answers.len(), 1);
        assert_eq!(
            (
                answers[0].flags,
                answers[0].sequence,
                answers[0].acknowledgement
            ),
            (ACK, CLIENTS + 1, OLDS + 1)
        );
    }
    // Then there is silence, until the flow is forgotten.
    story.world.pass_time(Duration::from_secs(30));
    assert_eq!(story.sent_to(OLD), []);
    story.world.pass_time(Duration::from_secs(31));
    let mut late = Segment::new(ACK, OLDS + 1, CLIENTS + 1).packet(address(OLD), story.proxy);
    assert!(matches!(story.world.handle(&mut late), Verdict::Dropped(_)));
}

#[test]
fn an_old_mirror_that_has_more_to_say_is_reset() {
    let mut story = Story::moved(Release::Fin);
    story.sent_to(OLD);
    story.hear_old(Segment::new(ACK, OLDS, CLIENTS).data(b"news"));
    let answers = story.sent_to(OLD);
    assert_eq!((answers[0].flags, answers[0].sequence), (RST, CLIENTS));
}

#[test]
fn an_old_mirror_that_says_nothing_is_reset_in_the_end() {
    let mut story = Story::moved(Release::Fin);
    let mut flags = Vec::new();
    for _ in 0..100 {
        flags.extend(story.sent_to(OLD).into_iter().map(|segment| segment.flags));
        story.world.pass_time(Duration::from_millis(100));
    }
    assert_eq!(flags[..5], [FIN | ACK; 5]);
    assert_eq!(flags[5..], [RST | ACK]);
}

#[test]
fn an_old_mirror_can_be_released_by_a_reset() {
    let mut story = Story::moved(Release::Rst);
    let resets = story.sent_to(OLD);
    assert_eq!((resets[0].flags & RST, resets[0].sequence), (RST, CLIENTS));
    story.hear_old(Segment::new(ACK, 7001, CLIENTS).data(b"answer"));
    assert_eq!(story.sent_to(OLD)[0].flags, RST);
}

/// The acknowledgement of the new mirror's SYN was lost.
#[test]
fn a_repeated_syn_ack_is_acknowledged_again() {
    let mut story = Story::moved(Release::Fin);
    story.sent_to(NEW);
    assert_eq!(story.hear_new(Segment::new(SYN | ACK, NEWS, CLIENTS)), None);
    let answers = story.sent_to(NEW);
    assert_eq!(answers.len(), 1);
    assert_eq!(
        (answers[0].flags, answers[0].acknowledgement),
        (ACK, NEWS + 1)
    );
}

#[test]
fn syns_are_repeated_until_the_mirror_is_given_up() {
    let mut story = Story::begin();
    let redirect = story.redirect(SpliceOrders::default());
    story.ask();
    let mut syns = 0;
    while story.outcome(redirect).waiting == 1 {
        syns += story
            .sent_to(NEW)
            .iter()
            .filter(|segment| segment.flags == SYN)
            .count();
        story.world.pass_time(Duration::from_millis(100));
        assert!(syns < 10);
    }
    assert_eq!(syns, 4);
    assert_eq!(
        story.outcome(redirect).refused[Obstacle::NoAnswer as usize],
        1
    );
    // What was held has gone to the old mirror, which still has the connection.
    let sent = story.sent_to(OLD);
    assert_eq!(
        (sent[0].sequence, &sent[0].payload[..]),
        (CLIENTS, &b"next"[..])
    );
    let answer = story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 4).data(b"yes"));
    assert_eq!(answer.unwrap().sequence, OLDS);
}

#[test]
fn windows_are_rescaled() {
    let mut story = Story::begin_with(b"ask\n", Some((7, 3)), None);
    story.redirect(SpliceOrders::default());
    story.ask();
    let syn = story.sent_to(NEW).pop().unwrap();
    assert_eq!(syn.scale, Some(7), "the client's own");
    story.hear_new(Segment::new(SYN | ACK, NEWS, CLIENTS).scale(9).window(2000));
    let (_, _, there) = story
        .client(Segment::new(ACK, CLIENTS, OLDS).window(500))
        .unwrap();
    assert_eq!(there.window, 500, "scaled as the SYN said");
    for (window, seen) in [(10, 10 << 6), (1023, 1023 << 6), (5000, u16::MAX)] {
        let segment = Segment::new(ACK, NEWS + 1, CLIENTS).window(window);
        assert_eq!(story.hear_new(segment).unwrap().window, seen);
    }
}

#[test]
fn a_mirror_that_does_not_scale_gets_windows_as_they_are() {
    let mut story = Story::begin_with(b"ask\n", Some((7, 3)), None);
    story.redirect(SpliceOrders::default());
    story.ask();
    story.sent_to(NEW);
    story.hear_new(Segment::new(SYN | ACK, NEWS, CLIENTS).window(2000));
    for (window, seen) in [(3, 3 << 7), (600, u16::MAX)] {
        let segment = Segment::new(ACK, CLIENTS, OLDS).window(window);
        assert_eq!(story.client(segment).unwrap().2.window, seen);
    }
    let segment = Segment::new(ACK, NEWS + 1, CLIENTS).window(4001);
    assert_eq!(story.hear_new(segment).unwrap().window, 4001 >> 3);
}

#[test]
fn timestamps_are_translated() {
    let mut story = Story::begin_with(b"ask\n", None, Some((100, 90_000)));
    story.redirect(SpliceOrders::default());
    story.ask();
    let syn = story.sent_to(NEW).pop().unwrap();
    assert_eq!(syn.timestamps, Some((100, 0)));
    story.hear_new(Segment::new(SYN | ACK, NEWS, CLIENTS).times(33, 100));
    let sent = story.sent_to(NEW);
    assert!(
        sent.iter()
            .all(|segment| segment.timestamps == Some((100, 33))),
        "{sent:?}"
    );
    let answer = story.hear_new(Segment::new(ACK, NEWS + 1, CLIENTS + 4).times(40, 100));
    assert_eq!(answer.unwrap().timestamps, Some((90_007, 100)));
    let thanks = Segment::new(ACK, CLIENTS + 4, OLDS).times(120, 90_007);
    assert_eq!(story.client(thanks).unwrap().2.timestamps, Some((120, 40)));
}

#[test]
fn a_mirror_without_timestamps_cannot_have_a_connection_with_them() {
    let mut story = Story::begin_with(b"ask\n", None, Some((100, 90_000)));
    let redirect = story.redirect(SpliceOrders::default());
    story.ask();
    story.sent_to(NEW);
    story.hear_new(Segment::new(SYN | ACK, NEWS, CLIENTS));
    assert_eq!(
        story.outcome(redirect).refused[Obstacle::Options as usize],
        1
    );
    let engine = &mut story.world.engines[0];
    let sent: Vec<_> = std::iter::from_fn(|| engine.poll_transmit())
        .map(|outgoing| Segment::read(&outgoing.packet))
        .collect();
    assert!(
        sent.iter()
            .any(|(_, to, segment)| *to == address(NEW) && segment.flags & RST != 0)
    );
    assert!(
        sent.iter()
            .any(|(_, to, segment)| *to == address(OLD) && segment.payload == b"next")
    );
}

/// A mirror that remembers an older connection of this proxy port answers with something else.
#[test]
fn a_mirror_with_an_older_connection_gets_a_reset_and_another_syn() {
    let mut story = Story::begin();
    let redirect = story.redirect(SpliceOrders::default());
    story.ask();
    story.sent_to(NEW);
    story.hear_new(Segment::new(ACK, 3, 4));
    let answers = story.sent_to(NEW);
    assert_eq!((answers[0].flags, answers[0].sequence), (RST, 4));
    story.world.pass_time(Duration::from_millis(250));
    story.accept();
    assert_eq!(story.outcome(redirect).moved, 1);
}

#[test]
fn an_old_mirror_that_speaks_after_all_keeps_the_connection() {
    let mut story = Story::begin();
    let redirect = story.redirect(SpliceOrders::default());
    story.ask();
    story.sent_to(NEW);
    let more = story.hear_old(Segment::new(ACK, OLDS, CLIENTS).data(b"more"));
    assert_eq!(more.unwrap().payload, b"more");
    let engine = &mut story.world.engines[0];
    let sent: Vec<_> = std::iter::from_fn(|| engine.poll_transmit())
        .map(|outgoing| Segment::read(&outgoing.packet))
        .collect();
    assert!(
        sent.iter()
            .any(|(_, to, segment)| *to == address(OLD) && segment.payload == b"next")
    );
    assert!(
        sent.iter()
            .any(|(_, to, segment)| *to == address(NEW) && segment.flags & RST != 0)
    );
    assert_eq!(story.outcome(redirect).waiting, 1);
    // The next boundary will do.
    story.hear_old(Segment::new(ACK, OLDS + 4, CLIENTS + 4).data(b"yes"));
    assert_eq!(
        story.client(Segment::new(ACK, CLIENTS + 4, OLDS + 7).data(b"more")),
        None
    );
    assert_eq!(story.sent_to(NEW)[0].sequence, CLIENTS + 3);
}

#[test]
fn redirected_back_while_connecting() {
    let mut story = Story::begin();
    let there = story.redirect(SpliceOrders::default());
    story.ask();
    story.sent_to(NEW);
    let back = story.redirect_to(OLD, SpliceOrders::default());
    assert_eq!(story.outcome(there).left, 1);
    assert_eq!(story.outcome(back).kept, 1);
    assert_eq!(story.sent_to(OLD)[0].payload, b"next", "what was held");
}

#[test]
fn a_dead_mirrors_connections_are_moved_at_once_or_reset() {
    let orders = SpliceOrders {
        now: true,
        ..SpliceOrders::default()
    };
    // At a boundary: no request is waited for.
    let mut story = Story::begin();
    let redirect = story.redirect(orders);
    story.accept();
    assert_eq!(story.outcome(redirect).moved, 1);
    // A request that the dead mirror has acknowledged: nobody else has it.
    let mut story = Story::begin();
    story.client(Segment::new(ACK, CLIENTS, OLDS).data(b"next"));
    story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 4));
    let redirect = story.redirect(orders);
    assert_eq!(story.outcome(redirect).reset, 1);
    // Or a part of it.
    let mut story = Story::begin();
    story.client(Segment::new(ACK, CLIENTS, OLDS).data(b"next"));
    story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 2));
    let redirect = story.redirect(orders);
    assert_eq!(story.outcome(redirect).reset, 1);
    // An answer that it has begun, of which the client lacks some.
    let mut story = Story::begin();
    story.client(Segment::new(ACK, CLIENTS, OLDS).data(b"next"));
    story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 4).data(b"half"));
    story.client(Segment::new(ACK, CLIENTS + 4, OLDS).data(b"more"));
    let redirect = story.redirect(orders);
    assert_eq!(story.outcome(redirect).reset, 1);
    // TLS.
    let mut story = Story::begin_with(b"\x16\x03\x01\x00", None, None);
    let redirect = story.redirect(orders);
    assert_eq!(story.outcome(redirect).reset, 1);
}

#[test]
fn a_request_that_the_dead_mirror_never_acknowledged_is_sent_again_to_the_new_one() {
    let orders = SpliceOrders {
        now: true,
        ..SpliceOrders::default()
    };
    for clocks in [None, Some((500, 900))] {
        let mut story = Story::begin_with(b"ask\n", None, clocks);
        let next = || Segment::new(ACK, CLIENTS, OLDS).data(b"next");
        let more = || Segment::new(ACK, CLIENTS + 4, OLDS).data(b"more");
        assert!(story.client(next()).is_some(), "to the old one");
        assert!(story.client(more()).is_some(), "to the old one");
        let redirect = story.redirect(orders);
        let outcome = story.outcome(redirect);
        assert_eq!((outcome.waiting, outcome.reset), (1, 0));
        // The new mirror is told to expect what the old one hasn't acknowledged.
        let syn = story.sent_to(NEW).pop().unwrap();
        assert_eq!((syn.flags, syn.sequence), (SYN, CLIENTS - 1));
        // The client repeats itself while the mirror is being connected.
        assert_eq!(story.client(next()), None, "it is held");
        let mut answer = Segment::new(SYN | ACK, NEWS, CLIENTS);
        answer.timestamps = clocks.map(|(client, _)| (70, client));
        story.hear_new(answer);
        assert_eq!(story.outcome(redirect).moved, 1);
        let mut sent_to_new: Vec<Segment> = Vec::new();
        let mut sent_to_old: Vec<Segment> = Vec::new();
        let engine = &mut story.world.engines[0];
        while let Some(outgoing) = engine.poll_transmit() {
            let (_, destination, segment) = Segment::read(&outgoing.packet);
            if destination == address(NEW) {
                sent_to_new.push(segment);
            } else {
                sent_to_old.push(segment);
            }
        }
        let ours = NEWS + 1;
        let sent: Vec<_> = sent_to_new
            .iter()
            .map(|s| (s.sequence, s.acknowledgement, s.payload.clone()))
            .collect();
        assert_eq!(
            sent,
            [
                (CLIENTS, ours, b"".to_vec()),
                (CLIENTS, ours, b"next".to_vec())
            ]
        );
        // The rest of the request comes when the client repeats it.
        let (_, to, rest) = story.client(more()).unwrap();
        assert_eq!(to, address(NEW));
        assert_eq!((rest.sequence, rest.acknowledgement), (CLIENTS + 4, ours));
        let mut answer = Segment::new(ACK, ours, CLIENTS + 8).data(b"yes");
        answer.timestamps = clocks.map(|(client, _)| (71, client));
        let answer = story.hear_new(answer).unwrap();
        assert_eq!(
            (answer.sequence, answer.acknowledgement),
            (OLDS, CLIENTS + 8)
        );
        assert_eq!(answer.payload, b"yes");

        // Should the old one not be dead at all, it is told that nobody is there, by what it says itself.
        assert_eq!(sent_to_old.len(), 1);
        assert_eq!(
            (sent_to_old[0].flags, sent_to_old[0].sequence),
            (RST | ACK, CLIENTS)
        );
        story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 8).data(b"late"));
        let told = story.sent_to(OLD);
        assert_eq!((told[0].flags, told[0].sequence), (RST, CLIENTS + 8));
    }
}

#[test]
fn the_first_request_of_a_connection_can_be_unheard_too() {
    let mut world = World::new(1);
    world.divert(SERVICE, &[OLD]);
    let mut story = Story {
        world,
        proxy: address("0.0.0.0:0"),
        clocks: None,
    };
    let (proxy, ..) = story.client(Segment::new(SYN, 1000, 0)).unwrap();
    story.proxy = proxy;
    story.hear_old(Segment::new(SYN | ACK, 7000, 1001));
    story.client(Segment::new(ACK, 1001, 7001));
    story.client(Segment::new(ACK, 1001, 7001).data(b"ask\n"));
    let redirect = story.redirect(SpliceOrders {
        now: true,
        ..SpliceOrders::default()
    });
    assert_eq!(story.outcome(redirect).waiting, 1);
    let syn = story.sent_to(NEW).pop().unwrap();
    assert_eq!((syn.flags, syn.sequence), (SYN, 1000));
}

#[test]
fn a_mirror_that_acknowledges_after_all_keeps_its_connection() {
    let mut story = Story::begin();
    let next = || Segment::new(ACK, CLIENTS, OLDS).data(b"next");
    story.client(next());
    let redirect = story.redirect(SpliceOrders {
        now: true,
        ..SpliceOrders::default()
    });
    assert_eq!(story.client(next()), None, "it is held");
    story.sent_to(NEW);
    let passed = story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 4));
    assert!(passed.is_some());
    assert_eq!(story.sent_to(OLD)[0].payload, b"next", "what was held");
    let outcome = story.outcome(redirect);
    assert_eq!((outcome.moved, outcome.reset, outcome.waiting), (0, 0, 1));
    let answer = story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 4).data(b"yes"));
    assert!(answer.is_some());
}

/// Without `--now` the mirror isn't dead: it is waited for, as ever.
#[test]
fn an_unheard_request_of_a_living_mirror_is_not_moved() {
    let mut story = Story::begin();
    story.client(Segment::new(ACK, CLIENTS, OLDS).data(b"next"));
    let redirect = story.redirect(SpliceOrders::default());
    story.world.pass_time(Duration::from_secs(6));
    assert!(story.sent_to(NEW).is_empty());
    assert_eq!(story.outcome(redirect).waiting, 1);
}

#[test]
fn what_would_be_refused_is_left_or_reset_or_forced() {
    for (orders, outcome) in [
        (SpliceOrders::default(), "refused"),
        (
            SpliceOrders {
                otherwise: Fallback::Reset,
                ..SpliceOrders::default()
            },
            "reset",
        ),
        (
            SpliceOrders {
                force: true,
                ..SpliceOrders::default()
            },
            "moved",
        ),
    ] {
        let mut story = Story::begin_with(b"\x16\x03\x01\x00", None, None);
        let redirect = story.redirect(orders);
        if orders.force {
            story.ask();
            story.accept();
        }
        let became = story.outcome(redirect);
        let expected = RedirectOutcome {
            moved: u64::from(outcome == "moved"),
            reset: u64::from(outcome == "reset"),
            refused: Obstacle::ALL.map(|o| u64::from(o == Obstacle::Tls && outcome == "refused")),
            ..RedirectOutcome::default()
        };
        assert_eq!(became, expected, "{outcome}");
    }
}

/// An interim answer isn't one: the server has more to say.
#[test]
fn a_continue_is_no_answer() {
    let mut story = Story::begin();
    let put = b"PUT";
    story.client(Segment::new(ACK, CLIENTS, OLDS).data(put));
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 3).data(go_on));
    let redirect = story.redirect(SpliceOrders::default());
    let body = Segment::new(ACK, CLIENTS + 3, OLDS + go_on.len() as u32).data(b"body");
    assert!(story.client(body).is_some(), "it goes to the old mirror");
    assert_eq!(story.outcome(redirect).waiting, 1);
}

/// A client that sends more than is held for it must send it again.
#[test]
fn what_is_held_is_bounded() {
    let mut story = Story::begin();
    story.redirect(SpliceOrders::default());
    for number in 0..100 {
        let segment = Segment::new(ACK, CLIENTS + 4 * number, OLDS).data(b"data");
        assert_eq!(story.client(segment), None);
    }
    story.accept();
    let data = story.sent_to(NEW);
    assert_eq!(
        data.iter()
            .filter(|segment| !segment.payload.is_empty())
            .count(),
        64
    );
}

/// Both ends are reset in their own numbers.
#[test]
fn a_spliced_connection_is_reset() {
    let mut story = Story::moved(Release::Fin);
    story.hear_new(Segment::new(ACK, NEWS + 1, CLIENTS + 4).data(b"yes"));
    story.client(Segment::new(ACK, CLIENTS + 4, OLDS + 3));
    story.sent_to(NEW);
    let diversion = story.world.divert(SERVICE, &[OLD]);
    story
        .world
        .redirect(Redirect::new(0, diversion, TcpMove::Reset));
    let engine = &mut story.world.engines[0];
    let resets: Vec<_> = std::iter::from_fn(|| engine.poll_transmit())
        .map(|outgoing| Segment::read(&outgoing.packet))
        .map(|(_, to, segment)| (to, segment.flags, segment.sequence, segment.acknowledgement))
        .collect();
    assert_eq!(
        resets,
        [
            (address(CLIENT), RST | ACK, OLDS + 3, CLIENTS + 4),
            (address(NEW), RST | ACK, CLIENTS + 4, NEWS + 4),
        ]
    );
}

/// A router's error quotes a segment as it passed there; its sender hears of it in its own numbers.
#[test]
fn errors_quote_the_numbers_that_their_receiver_knows() {
    let mut story = Story::moved(Release::Fin);
    let mut passed = Segment::new(ACK, NEWS + 1, CLIENTS + 4)
        .data(b"yes")
        .packet(address(NEW), story.proxy);
    story.world.handle(&mut passed);
    assert_eq!(Segment::read(&passed).2.sequence, NEWS + 1 + DIFFERENCE);
    // From the client's side, about what the mirror sent.
    for quoted in [&passed[..], &passed[..28]] {
        let mut packet = error(V4.router(), address(SERVICE).ip(), V4.too_big(1200), quoted);
        assert_eq!(
            story.world.handle(&mut packet),
            Verdict::Translated(Direction::Forward)
        );
        verify(&packet);
        let quote = &packet[28..];
        assert_eq!(
            quote[12..16],
            [10, 2, 0, 3],
            "the mirror is told of its own packet"
        );
        assert_eq!(quote[24..28], (NEWS + 1).to_be_bytes());
    }
    // From the mirror's side, about what the client sent, whose numbers are the same everywhere.
    let sent = Segment::new(ACK, CLIENTS + 4, OLDS + 3).data(b"and");
    let mut packet = sent.packet(address(CLIENT), address(SERVICE));
    story.world.handle(&mut packet);
    let mut packet = error(
        V4.router(),
        story.proxy.ip(),
        V4.too_big(1200),
        &packet[..28],
    );
    assert_eq!(
        story.world.handle(&mut packet),
        Verdict::Translated(Direction::Reverse)
    );
    verify(&packet);
    assert_eq!(packet[28 + 24..28 + 28], (CLIENTS + 4).to_be_bytes());
}

/// The client hasn't had all of the answer when it asks again: that is no boundary.
#[test]
fn a_request_before_the_answers_end_goes_to_the_old_mirror() {
    let mut story = Story::begin();
    let redirect = story.redirect(SpliceOrders::default());
    story.hear_old(Segment::new(ACK, OLDS, CLIENTS).data(b"and more"));
    let early = Segment::new(ACK, CLIENTS, OLDS).data(b"next");
    assert!(story.client(early).is_some());
    assert_eq!(story.outcome(redirect).waiting, 1);
    assert_eq!(story.sent_to(NEW), []);
}

/// The old mirror repeats its last answer while the client is in the middle of its next request: that isn't
/// an answer to it.
#[test]
fn a_repeated_answer_is_no_answer() {
    let mut story = Story::begin();
    story.client(Segment::new(ACK, CLIENTS, OLDS).data(b"half"));
    story.hear_old(Segment::new(ACK, OLDS, CLIENTS + 4));
    story.hear_old(Segment::new(ACK, 7001, CLIENTS + 4).data(b"answer"));
    let redirect = story.redirect(SpliceOrders::default());
    let rest = Segment::new(ACK, CLIENTS + 4, OLDS).data(b"rest");
    assert!(story.client(rest).is_some(), "it goes to the old mirror");
    assert_eq!(story.outcome(redirect).waiting, 1);
}
