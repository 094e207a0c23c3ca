//! The engine under load, in memory: connections of as many clients as one likes, and their packets.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use control_protocol::{Mirror, Protocol, Service, TcpMove};
use etherparse::PacketBuilder;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rewriter::engine::{
    Config, Engine, FETCHED_AT_ONCE, HopLimit, Ownership, Redirect, Sweep, Time, Timeouts, Verdict,
};
use rewriter::packet::VnetHeader;
use rewriter::table::{ClientGroups, Diversion, DiversionId};

/// UDP payload that makes a frame of 64 bytes on Ethernet, its checksum included.
const PAYLOAD: usize = 18;
/// The IPv4 packet in such a frame.
const LENGTH: usize = 46;
/// The diversions that have connections, if there are as many.
const DIVERSIONS_IN_USE: u32 = 1000;
/// The proxy addresses; each carries some 64,000 connections to each mirror.
const PROXIES: u32 = 256;

/// Packets of `connections` connections in random order, and the engine that knows them all.
pub struct Load {
    /// The engine.
    pub engine: Engine,
    packets: Vec<[u8; LENGTH]>,
    received: [[u8; LENGTH]; FETCHED_AT_ONCE],
    diversions: u32,
    now: Time,
    /// Packets in a batch, up to [`FETCHED_AT_ONCE`]; with 1, each is handled as it comes.
    pub batch: usize,
}

impl Load {
    /// An engine with `diversions` diversions and `connections` UDP connections, shared out evenly
    /// among the first thousand of the diversions.
    pub fn new(connections: u32, diversions: u32) -> Self {
        let mut load = Self::without_connections(connections, diversions);
        load.translate(load.packets.len());
        load.packets.shuffle(&mut SmallRng::seed_from_u64(1));
        load
    }

    /// The same, but none of the connections has been opened yet.
    pub fn without_connections(connections: u32, diversions: u32) -> Self {
        let mut engine = engine(connections as usize);
        for number in 0..diversions {
            engine.divert(diversion(number, mirror(number, 2)));
        }
        let services = diversions.min(DIVERSIONS_IN_USE);
        Self {
            engine,
            packets: (0..connections)
                .map(|number| packet(number, services))
                .collect(),
            received: [[0; LENGTH]; FETCHED_AT_ONCE],
            diversions,
            now: Time::default(),
            batch: FETCHED_AT_ONCE,
        }
    }

    /// Has the engine translate `count` packets, a connection each, round and round, in batches.
    pub fn translate(&mut self, count: usize) {
        let mut sent = 0;
        while sent < count {
            let round = self.packets.len().min(count - sent);
            for start in (0..round).step_by(self.batch) {
                let end = round.min(start + self.batch);
                self.translate_batch(start, end);
            }
            sent += round;
        }
    }

    fn translate_batch(&mut self, start: usize, end: usize) {
        let batch = &mut self.received[..end - start];
        batch.copy_from_slice(&self.packets[start..end]);
        if batch.len() > 1 {
            self.engine
                .fetch(batch.iter_mut().map(|packet| packet.as_mut_slice()));
        }
        for bytes in batch {
            send(&mut self.engine, bytes, self.now);
        }
    }

    /// Opens all connections with a packet each, then lets all expire.
    pub fn create_and_expire(&mut self) {
        self.translate(self.packets.len());
        self.now = self.now.after(Timeouts::default().udp * 2);
        while !self.engine.connections().is_empty() {
            self.engine.handle_timeout(self.now);
        }
    }

    /// Sends all connections to the mirrors in the network `10.NETWORK.0.0/16` (they begin in the
    /// second), `slice` slots at a time, and gives the longest time that one slice took.
    pub fn redirect(&mut self, network: u32, slice: u32) -> Duration {
        let mut longest = Duration::ZERO;
        for number in 0..self.diversions.min(DIVERSIONS_IN_USE) {
            self.engine
                .divert(diversion(number, mirror(number, network)));
            let mut sweep = Sweep::new(Redirect::new(
                u64::from(number),
                DiversionId(number),
                TcpMove::Rewrite,
            ));
            loop {
                let began = Instant::now();
                let outcome = self.engine.sweep(&mut sweep, slice, self.now);
                longest = longest.max(began.elapsed());
                if let Some(outcome) = outcome {
                    assert!(outcome.moved > 0, "{outcome:?}");
                    break;
                }
            }
        }
        longest
    }
}

fn send(engine: &mut Engine, bytes: &mut [u8], now: Time) {
    let verdict = engine.handle(bytes, &mut VnetHeader::default(), now);
    assert!(matches!(verdict, Verdict::Translated(_)), "{verdict:?}");
}

fn engine(connections: usize) -> Engine {
    let proxies = (0..PROXIES).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0A63_0000 + n)));
    let config = Config {
        worker: 0,
        ownership: Ownership::new(1, 1),
        proxies: proxies.collect(),
        proxy_ports: 1024..=65535,
        max_connections: connections,
        max_connections_per_client: None,
        client_groups: ClientGroups::default(),
        refused_retries: 2,
        timeouts: Timeouts::default(),
        mss_clamp: None,
        hop_limit: HopLimit::Raise,
    };
    Engine::new(&config, Time::default())
}

/// Service `number` of up to 16 million.
fn service(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x6400_0000 + number).into()
}

/// The mirror of service `number` in the network `10.NETWORK.0.0/16`.
fn mirror(number: u32, network: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0A00_0000 + (network << 16) + number % 1000).into()
}

fn diversion(number: u32, mirror: IpAddr) -> Diversion {
    Diversion {
        id: DiversionId(number),
        service: Service {
            address: service(number),
            port: Some(53),
            protocol: Some(Protocol::Udp),
        },
        from: None,
        mirrors: vec![Mirror {
            address: mirror,
            port: None,
            weight: 1,
        }],
        peek: None,
    }
}

/// A packet of connection `number`: of one of 200 clients for each 65,000 or so.
fn packet(number: u32, services: u32) -> [u8; LENGTH] {
    let client = Ipv4Addr::from_bits(0x0101_0000 + number / 60_000);
    let port = 1024 + number % 60_000;
    let IpAddr::V4(service) = service(number % services) else {
        unreachable!("services are IPv4")
    };
    let builder = PacketBuilder::ipv4(client.octets(), service.octets(), 64).udp(port as u16, 53);
    let mut bytes = Vec::with_capacity(LENGTH);
    builder
        .write(&mut bytes, &[0; PAYLOAD])
        .expect("a vector takes all");
    bytes.try_into().expect("all have one length")
}
