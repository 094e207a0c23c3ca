//! Splicing in a simulated network: a client, an engine and two servers, whose TCP is written here for
//! this purpose, in virtual time, over links that lose, repeat, delay and reorder.
//!
//! Each run is one connection: a number of requests, and redirects to the other server at random
//! moments. Whatever happens, the client must read, request by request, just what one server has
//! written, or see its connection reset. In every fourth run the mirrors are cut off now and then, and left
//! with `now`.
//!
//! `SHUNT_SIMULATIONS` is the number of runs, `SHUNT_SEED` that of the first one.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{Release, TcpMove};
use etherparse::{LaxSlicedPacket, PacketBuilder, TcpOptionElement, TransportSlice};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rewriter::engine::{Redirect, RedirectOutcome, Verdict};
use support::*;

const CLIENT_PORT: u16 = 4000;
const SITE: &str = "100.100.100.100:80";
const MIRRORS: [&str; 2] = ["10.2.0.2:80", "10.2.0.3:80"];
/// Bytes of data in a segment.
const SEGMENT: usize = 100;
/// Segments on their way at once.
const WINDOW: u32 = 10 * SEGMENT as u32;

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// What the network and the applications do.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Of 1,000 packets on a link.
    lost: u32,
    repeated: u32,
    /// At most so much later than others.
    jitter: Duration,
    requests: u32,
    redirects: u32,
    release: Release,
    quiet: bool,
    /// Mirrors are cut off now and then, in place of a redirect, and a while later one is given for it.
    deaths: bool,
}

/// A segment as an end sees it.
#[derive(Debug, Clone)]
struct Received {
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    timestamps: Option<(u32, u32)>,
    payload: Vec<u8>,
}

fn read(packet: &[u8]) -> Received {
    let seen = see(packet);
    let sliced = LaxSlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("not TCP");
    };
    let timestamps = tcp.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::Timestamp(value, echo)) => Some((value, echo)),
        _ => None,
    });
    Received {
        source: seen.source,
        destination: seen.destination,
        flags: seen.flags,
        sequence: seen.sequence,
        acknowledgement: seen.acknowledgement,
        timestamps,
        payload: tcp.payload().to_vec(),
    }
}

/// One end of a connection: go-back-N, with timestamps that are checked as RFC 7323 has it.
#[derive(Debug)]
struct End {
    local: SocketAddr,
    remote: SocketAddr,
    /// All that was ever to be sent, and the number of its first byte.
    stream: Vec<u8>,
    first: u32,
    acknowledged: u32,
    next: u32,
    received: u32,
    input: Vec<u8>,
    established: bool,
    is_client: bool,
    finishing: bool,
    finished: bool,
    reset: bool,
    repeat_at: Duration,
    /// Its clock is this far ahead.
    clock: u32,
    recent: u32,
}

impl End {
    fn new(local: SocketAddr, remote: SocketAddr, is_client: bool, random: &mut StdRng) -> Self {
        let first = random.random();
        Self {
            local,
            remote,
            stream: Vec::new(),
            first,
            acknowledged: first,
            next: first,
            received: 0,
            input: Vec::new(),
            established: false,
            is_client,
            finishing: false,
            finished: false,
            reset: false,
            repeat_at: Duration::ZERO,
            clock: random.random(),
            recent: 0,
        }
    }

    fn segment(&self, flags: u8, sequence: u32, payload: &[u8], now: Duration) -> Vec<u8> {
        let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (self.local, self.remote) else {
            unreachable!()
        };
        let value = self.clock.wrapping_add(now.as_millis() as u32);
        let mut options = vec![
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(value, self.recent),
        ];
        if flags & SYN != 0 {
            options.push(TcpOptionElement::MaximumSegmentSize(SEGMENT as u16));
        }
        let mut builder = PacketBuilder::ipv4(local.ip().octets(), remote.ip().octets(), 64)
            .tcp(local.port(), remote.port(), sequence, WINDOW as u16)
            .options(&options)
            .unwrap();
        for (flag, set) in [(SYN, 0), (FIN, 1), (ACK, 2)] {
            if flags & flag != 0 {
                builder = match set {
                    0 => builder.syn(),
                    1 => builder.fin(),
                    _ => builder.ack(self.received),
                };
            }
        }
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    /// The number after the last byte that is to be sent, SYN counted.
    fn end(&self) -> u32 {
        self.first
            .wrapping_add(1)
            .wrapping_add(self.stream.len() as u32)
    }

    /// What it has to send now.
    fn send(&mut self, now: Duration) -> Vec<Vec<u8>> {
        if self.reset {
            return Vec::new();
        }
        let unacknowledged = self.next != self.acknowledged;
        if unacknowledged && now >= self.repeat_at {
            self.next = self.acknowledged;
        }
        let mut packets = Vec::new();
        if !self.established || self.next == self.first {
            if self.next == self.first {
                let flags = if self.is_client { SYN } else { SYN | ACK };
                packets.push(self.segment(flags, self.first, &[], now));
                self.next = self.first.wrapping_add(1);
                self.repeat_at = now + ms(300);
            }
            return packets;
        }
        while self.next != self.end() && self.next.wrapping_sub(self.acknowledged) < WINDOW {
            let from = self.next.wrapping_sub(self.first).wrapping_sub(1) as usize;
            let to = (from + SEGMENT).min(self.stream.len());
            if from >= to {
                break;
            }
            packets.push(self.segment(ACK, self.next, &self.stream[from..to], now));
            self.next = self.next.wrapping_add((to - from) as u32);
            self.repeat_at = now + ms(300);
        }
        if self.finishing && self.next == self.end() {
            packets.push(self.segment(FIN | ACK, self.next, &[], now));
            self.next = self.next.wrapping_add(1);
            self.repeat_at = now + ms(300);
        }
        packets
    }

    /// Takes a segment in; `true`: it is to be acknowledged.
    fn receive(&mut self, segment: &Received) -> bool {
        if segment.flags & RST != 0 {
            // RFC 5961, section 3.2.
            if segment.sequence == self.received {
                self.reset = true;
            }
            return false;
        }
        let is_syn = segment.flags & SYN != 0;
        if let Some((value, echo)) = segment.timestamps {
            let is_old = value.wrapping_sub(self.recent) >= 1 << 31;
            if !is_syn && is_old {
                // Acknowledgements aren't acknowledged: two ends whose packets overtake each other could
                // go on with that for ever (the concern of RFC 5961, section 7).
                return !segment.payload.is_empty() || segment.flags & FIN != 0;
            }
            if !is_syn || !self.established {
                self.recent = value;
            }
            if segment.flags & ACK != 0 {
                // What comes back is a time of ours, and not in the future.
                let age = self.clock.wrapping_add(u32::MAX / 2).wrapping_sub(echo);
                assert!(
                    age < u32::MAX / 2 + (1 << 24),
                    "echo {echo} of clock {}",
                    self.clock
                );
            }
        } else {
            panic!("a segment without timestamps: {segment:?}");
        }
        if is_syn {
            if !self.established {
                self.received = segment.sequence.wrapping_add(1);
                if self.is_client {
                    self.established = true;
                }
            }
            if self.is_client && segment.acknowledgement == self.first.wrapping_add(1) {
                self.acknowledged = segment.acknowledgement;
            }
            return self.is_client;
        }
        let is_new = segment.acknowledgement.wrapping_sub(self.acknowledged)
            <= self.next.wrapping_sub(self.acknowledged);
        if segment.flags & ACK != 0 && is_new {
            self.acknowledged = segment.acknowledgement;
            self.established = true;
        }
        let mut acknowledge = false;
        if !segment.payload.is_empty() {
            acknowledge = true;
            let already = self.received.wrapping_sub(segment.sequence);
            if (already as usize) < segment.payload.len() {
                self.input.extend(&segment.payload[already as usize..]);
                self.received = segment.sequence.wrapping_add(segment.payload.len() as u32);
            }
        }
        if segment.flags & FIN != 0 {
            acknowledge = true;
            let at = segment.sequence.wrapping_add(segment.payload.len() as u32);
            if at == self.received {
                self.received = self.received.wrapping_add(1);
                self.finished = true;
                self.finishing = true;
            }
        }
        acknowledge
    }
}

/// What server `mirror` answers to request `number`.
fn answer(mirror: usize, number: u32) -> Vec<u8> {
    let length = number.wrapping_mul(2_654_435_761) % 1500;
    let mut answer = format!("A{mirror}:{number}:").into_bytes();
    answer.extend((0..length).map(|at| b'a' + ((at ^ number ^ mirror as u32) % 26) as u8));
    answer.push(b'\n');
    answer
}

fn request(number: u32) -> Vec<u8> {
    // One in four is longer than what is on its way at once.
    let most = if number % 4 == 3 { 3000 } else { 250 };
    let length = number.wrapping_mul(40_503) % most;
    let mut request = format!("Q{number}:").into_bytes();
    request.extend((0..length).map(|at| b'A' + ((at ^ number) % 26) as u8));
    request.push(b'\n');
    request
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A packet comes to the rewriter.
    Arrive(Vec<u8>),
    /// A packet comes to an end.
    Deliver(Vec<u8>),
    Redirect,
    /// The mirror that is dead is left.
    Rescue,
    /// It is there again.
    Revive,
    Ask,
    /// The client sees whether anybody is there (RFC 9293, section 3.8.4): a reset may have been lost.
    Probe,
}

struct Simulation {
    world: World,
    random: StdRng,
    weather: Weather,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    count: u64,
    client: End,
    /// By the server, and who it talks to.
    servers: HashMap<(usize, SocketAddr), End>,
    asked: u32,
    answered: u32,
    waiting_for_answer: bool,
    target: usize,
    dead: Option<usize>,
    outcome: RedirectOutcome,
    packets: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let weather = Weather {
            lost: [0, 10, 50, 150][random.random_range(0..4)],
            repeated: [0, 20, 100][random.random_range(0..3)],
            jitter: ms([0, 2, 40][random.random_range(0..3)]),
            requests: random.random_range(3..25),
            redirects: random.random_range(1..8),
            release: [Release::Fin, Release::Rst][random.random_range(0..2)],
            quiet: random.random(),
            deaths: seed.is_multiple_of(4),
        };
        let mut world = World::new(1);
        world.divert(SITE, &[MIRRORS[0]]);
        let client = End::new(
            SocketAddr::new(address(CLIENT).ip(), CLIENT_PORT),
            address(SITE),
            true,
            &mut random,
        );
        let mut simulation = Self {
            world,
            random,
            weather,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            count: 0,
            client,
            servers: HashMap::new(),
            asked: 0,
            answered: 0,
            waiting_for_answer: false,
            target: 0,
            dead: None,
            outcome: RedirectOutcome::default(),
            packets: 0,
        };
        simulation.at(ms(0), Event::Ask);
        if weather.deaths {
            simulation.at(ms(10_000), Event::Probe);
        }
        for _ in 0..weather.redirects {
            let when = ms(simulation.random.random_range(1..3000));
            simulation.at(when, Event::Redirect);
        }
        simulation
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.count += 1;
        self.events
            .push(Reverse((self.now + after, self.count, event)));
    }

    /// Puts a packet on a link.
    fn link(&mut self, packet: Vec<u8>, event: fn(Vec<u8>) -> Event) {
        self.packets += 1;
        if self.random.random_range(0..1000) < self.weather.lost {
            return;
        }
        let times = if self.random.random_range(0..1000) < self.weather.repeated {
            2
        } else {
            1
        };
        for _ in 0..times {
            let jitter = self.weather.jitter.as_micros() as u64;
            let delay = ms(1) + Duration::from_micros(self.random.random_range(0..=jitter));
            self.at(delay, event(packet.clone()));
        }
    }

    fn poll_ends(&mut self) {
        let now = self.now;
        let mut packets = self.client.send(now);
        for ((mirror, _), server) in &mut self.servers {
            if self.dead != Some(*mirror) {
                packets.extend(server.send(now));
            }
        }
        for packet in packets {
            self.link(packet, Event::Arrive);
        }
    }

    fn poll_engine(&mut self) {
        while let Some(own) = self.world.engines[0].poll_transmit() {
            self.link(own.packet, Event::Deliver);
        }
    }

    fn arrive(&mut self, mut packet: Vec<u8>) {
        match self.world.handle(&mut packet) {
            Verdict::Translated(_) => self.link(packet, Event::Deliver),
            Verdict::Held | Verdict::Dropped(_) => {}
            verdict => panic!("{verdict:?}"),
        }
    }

    fn deliver(&mut self, packet: &[u8]) {
        let segment = read(packet);
        if segment.destination == self.client.local {
            assert_eq!(
                segment.source, self.client.remote,
                "the client knows the service only"
            );
            if self.client.receive(&segment) && !self.client.reset {
                let acknowledgement = self.client.segment(ACK, self.client.next, &[], self.now);
                self.link(acknowledgement, Event::Arrive);
            }
            return;
        }
        let mirror = MIRRORS
            .iter()
            .position(|mirror| address(mirror) == segment.destination)
            .unwrap();
        if self.dead == Some(mirror) {
            return;
        }
        let key = (mirror, segment.source);
        if segment.flags & SYN != 0 {
            // A new connection takes the place of one that has ended.
            let is_over = self
                .servers
                .get(&key)
                .is_none_or(|end| end.reset || end.finished);
            if is_over {
                let end = End::new(segment.destination, segment.source, false, &mut self.random);
                self.servers.insert(key, end);
            }
        }
        let Some(end) = self.servers.get_mut(&key) else {
            return;
        };
        if end.reset {
            return;
        }
        let acknowledge = end.receive(&segment);
        // The application: an answer for each whole request.
        while let Some(length) = end.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = end.input.drain(..=length).collect();
            let number = String::from_utf8_lossy(&line[1..])
                .split(':')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(line, request(number), "the request was corrupted");
            end.stream.extend(answer(mirror, number));
        }
        if acknowledge {
            let acknowledgement = end.segment(ACK, end.next, &[], self.now);
            self.link(acknowledgement, Event::Arrive);
        }
    }

    /// A mirror is cut off, which takes a while to be noticed.
    fn die(&mut self) {
        if self.dead.is_some() {
            return;
        }
        self.dead = Some(self.target);
        let noticed = ms(self.random.random_range(0..800));
        self.at(noticed, Event::Rescue);
        self.at(noticed + ms(5000), Event::Revive);
    }

    fn redirect(&mut self, now: bool) {
        self.target = 1 - self.target;
        let diversion = self.world.divert(SITE, &[MIRRORS[self.target]]);
        let mut redirect = Redirect::new(0, diversion, TcpMove::Splice);
        redirect.splice.release = self.weather.release;
        redirect.splice.within = ms(2000);
        redirect.splice.now = now;
        redirect.splice.quiet = self.weather.quiet.then_some(ms(400));
        self.world.redirect(redirect);
    }

    /// The client reads answers and asks on.
    fn client_application(&mut self) {
        while let Some(length) = self.client.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.client.input.drain(..=length).collect();
            assert!(self.waiting_for_answer, "an answer that nobody asked for");
            let whole = [0, 1].map(|mirror| answer(mirror, self.answered));
            assert!(
                whole.contains(&line),
                "answer {} was corrupted: {:?}",
                self.answered,
                String::from_utf8_lossy(&line)
            );
            self.answered += 1;
            self.waiting_for_answer = false;
            let pause = ms(self.random.random_range(0..600));
            self.at(pause, Event::Ask);
        }
    }

    fn run(mut self) -> (RedirectOutcome, bool, u64, bool) {
        while self.answered < self.weather.requests && !self.client.reset {
            // A mirror that died in the middle of an answer, when the client had acknowledged all there was
            // of it, looks as if it had said all that it had to say.
            let is_cut_short = self.weather.deaths && !self.client.input.is_empty();
            if self.now > Duration::from_secs(300) && is_cut_short {
                self.client.reset = true;
                break;
            }
            assert!(
                self.now < Duration::from_secs(600),
                "stuck after {} of {} answers",
                self.answered,
                self.weather.requests
            );
            assert!(self.packets < 1_000_000, "a storm of packets");
            self.poll_ends();
            self.poll_engine();
            // Ends look at their clocks often.
            let next = self.events.peek().map(|Reverse((time, ..))| *time);
            let tick = self.now + ms(20);
            match next {
                Some(time) if time <= tick => {
                    let Some(Reverse((time, _, event))) = self.events.pop() else {
                        break;
                    };
                    self.advance(time);
                    match event {
                        Event::Arrive(packet) => self.arrive(packet),
                        Event::Deliver(packet) => self.deliver(&packet),
                        Event::Redirect if self.weather.deaths => self.die(),
                        Event::Redirect => self.redirect(false),
                        Event::Rescue => self.redirect(true),
                        Event::Revive => self.dead = None,
                        Event::Probe => {
                            let number = self.client.next.wrapping_sub(1);
                            let probe = self.client.segment(ACK, number, &[], self.now);
                            self.link(probe, Event::Arrive);
                            self.at(ms(10_000), Event::Probe);
                        }
                        Event::Ask => {
                            self.client.stream.extend(request(self.asked));
                            self.asked += 1;
                            self.waiting_for_answer = true;
                        }
                    }
                }
                _ => self.advance(tick),
            }
            self.client_application();
        }
        for redirect in 1..=self.world.redirects {
            if let Some(outcome) = self.world.engines[0].redirect_outcome(redirect) {
                self.outcome = self.outcome.plus(outcome);
            }
        }
        (
            self.outcome,
            self.client.reset,
            self.packets,
            self.weather.deaths,
        )
    }

    fn advance(&mut self, time: Duration) {
        let passed = time.saturating_sub(self.now);
        self.now = self.now.max(time);
        self.world.pass_time(passed);
    }
}

#[test]
fn what_the_client_reads_is_what_the_servers_wrote() {
    let number = |name: &str, usual: u64| {
        std::env::var(name).map_or(usual, |value| value.parse().expect("a number"))
    };
    let (first, count) = (number("SHUNT_SEED", 1), number("SHUNT_SIMULATIONS", 400));
    let mut sum = RedirectOutcome::default();
    let mut rescued = RedirectOutcome::default();
    let (mut resets, mut lost, mut packets) = (0, 0, 0);
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| Simulation::new(seed).run());
        let (outcome, reset, sent, deaths) = result.unwrap_or_else(|panic| {
            println!("SHUNT_SEED={seed} SHUNT_SIMULATIONS=1 shows it again");
            std::panic::resume_unwind(panic)
        });
        packets += sent;
        if deaths {
            rescued = rescued.plus(outcome);
            lost += u64::from(reset);
        } else {
            sum = sum.plus(outcome);
            resets += u64::from(reset);
        }
    }
    println!("{count} connections, {packets} packets, {resets} reset: {sum:?}");
    println!("with mirrors that die, {lost} reset or cut short: {rescued:?}");
    assert_eq!(resets, 0, "nothing was to be reset");
    if count >= 100 {
        assert!(sum.moved > count * 3 / 4, "{sum:?}");
        // What the dead mirror had acknowledged nobody else has, so some connections can't be saved.
        assert!(rescued.moved > rescued.reset, "{rescued:?}");
    }
}
