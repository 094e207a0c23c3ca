//! Packets, time and commands in any order through the engines of a daemon with two workers.
//!
//! Whatever comes in, nothing panics, nothing is written behind a packet's end, what isn't sent isn't
//! changed, an owner doesn't hand on, and what was translated parses again.

#![no_main]

use std::net::IpAddr;
use std::time::Duration;

use control_protocol::{Percent, TcpMove};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rewriter::engine::{
    Config, Engine, HopLimit, Ownership, Redirect, Sweep, Time, Timeouts, Verdict,
};
use rewriter::packet::{Packet, VnetHeader};
use rewriter::table::{ClientGroups, Diversion, DiversionId, Peek};

const SERVICES: [&str; 4] =
    ["100.1.1.1:80", "100.1.1.1", "[2001:db8::100]:80/tcp", "2001:db8::100"];
/// A service of which only DNS queries for some names are diverted.
const PEEKED: &str = "100.1.1.1:53/udp";
const NAMES: [&str; 3] = ["a", "*.b", "*.a.b"];
const MIRRORS: [[&str; 2]; 2] = [["10.2.0.2", "10.2.0.3"], ["fd00:2::2", "fd00:2::3"]];
const PROXIES: [&str; 2] = ["10.10.10.10", "fd00:10::10"];

#[derive(Debug, Arbitrary)]
enum Step {
    /// Bytes as they are.
    Bytes { bytes: Vec<u8>, offload: Offload },
    /// Bytes behind a well-formed IP header, to or from addresses that mean something.
    Packet { v6: bool, reverse: bool, protocol: u8, rest: Vec<u8>, offload: Offload },
    /// An ICMP error about the packet that was last translated, more or less as it was.
    Error { kind: u8, says: [u8; 4], keep: u8, damage: Option<(u8, u8)>, offload: Offload },
    /// A DNS query, more or less, or several in a super-packet.
    Query { header: [u8; 12], plain: bool, name: Vec<u8>, times: u8, offload: Offload },
    Pass { seconds: u16 },
    Divert { service: u8, mirror: bool, both: bool },
    Redirect { service: u8, how: u8, force: bool },
    Restore { service: u8 },
}

#[derive(Debug, Arbitrary)]
struct Offload {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
}

struct World {
    engines: Vec<Engine>,
    /// The packet that was last translated.
    last: Vec<u8>,
    now: Time,
    redirects: u64,
}

impl World {
    fn new() -> Self {
        let now = Time::default();
        let engines = (0..2)
            .map(|worker| {
                let config = Config {
                    worker,
                    ownership: Ownership::new(2, 0x9E37_79B9_7F4A_7C15),
                    proxies: PROXIES.iter().map(|proxy| proxy.parse().unwrap()).collect(),
                    proxy_ports: 80..=95,
                    max_connections: 20,
                    max_connections_per_client: Some(8),
                    client_groups: ClientGroups::default(),
                    refused_retries: 2,
                    timeouts: Timeouts::default(),
                    mss_clamp: Some(1400),
                    hop_limit: if worker == 1 { HopLimit::Lower } else { HopLimit::Raise },
                };
                let mut engine = Engine::new(&config, now);
                let names = NAMES.map(|name| name.parse().unwrap());
                engine.divert(Diversion {
                    id: DiversionId(SERVICES.len() as u32),
                    service: PEEKED.parse().unwrap(),
                    from: None,
                    mirrors: vec!["10.2.0.5:53".parse().unwrap()],
                    peek: Some(Peek::at(&names).unwrap()),
                });
                engine
            })
            .collect();
        Self { engines, last: Vec::new(), now, redirects: 0 }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Bytes { bytes, offload } => self.handle(bytes, &offload),
            Step::Packet { v6, reverse, protocol, rest, offload } => {
                self.handle(packet(v6, reverse, protocol, &rest), &offload);
            }
            Step::Error { kind, says, keep, damage, offload } => {
                let mut quote = self.last.clone();
                quote.truncate(keep.into());
                if let Some((at, value)) = damage
                    && let Some(byte) = quote.get_mut(usize::from(at))
                {
                    *byte = value;
                }
                self.handle(error(kind, says, &self.last, &quote), &offload);
            }
            Step::Query { mut header, plain, name, times, offload } => {
                if plain {
                    header[2..6].copy_from_slice(&[1, 0, 0, 1]);
                }
                // Letters that names in the list have come up by themselves too rarely.
                let name: Vec<u8> = name.iter().map(|byte| match byte {
                    0..=0x1F => 1,
                    0x20..=0x3F => b'a',
                    0x40..=0x5F => b'B',
                    0x60..=0x7F => 0,
                    other => *other,
                }).take(300).collect();
                let message = [&header[..], &name, &[0, 0, 1, 0, 1]].concat();
                let payload = message.repeat(usize::from(times % 4) + 1);
                let length = (payload.len() as u16 + 8).to_be_bytes();
                let udp = [&[4, 0, 0, 53][..], &length, &[0, 0], &payload].concat();
                self.handle(packet(false, false, 2, &udp), &offload);
            }
            Step::Pass { seconds } => {
                self.now = self.now.after(Duration::from_secs(seconds.into()));
                for engine in &mut self.engines {
                    engine.handle_timeout(self.now);
                }
            }
            Step::Divert { service, mirror, both } => {
                let number = usize::from(service) % SERVICES.len();
                let mirrors = MIRRORS[number / 2];
                let mirrors = if both { &mirrors[..] } else { &mirrors[usize::from(mirror)..][..1] };
                let diversion = Diversion {
                    id: DiversionId(number as u32),
                    service: SERVICES[number].parse().unwrap(),
                    from: None,
                    mirrors: mirrors.iter().map(|mirror| mirror.parse().unwrap()).collect(),
                    peek: None,
                };
                for engine in &mut self.engines {
                    engine.divert(diversion.clone());
                }
            }
            Step::Redirect { service, how, force } => {
                self.redirects += 1;
                let diversion = DiversionId(u32::from(service) % SERVICES.len() as u32);
                let tcp = [TcpMove::Splice, TcpMove::Rewrite, TcpMove::Reset][usize::from(how) % 3];
                let mut redirect = Redirect::new(self.redirects, diversion, tcp);
                redirect.splice.force = force;
                redirect.splice.now = how > 200;
                if how % 5 == 0 {
                    redirect.from_mirror = MIRRORS[usize::from(service) % SERVICES.len() / 2][0].parse().ok();
                    redirect.share = Percent::new(how % 100);
                }
                for engine in &mut self.engines {
                    let mut sweep = Sweep::new(redirect);
                    while engine.sweep(&mut sweep, 7, self.now).is_none() {}
                }
            }
            Step::Restore { service } => {
                let service = SERVICES[usize::from(service) % SERVICES.len()].parse().unwrap();
                for engine in &mut self.engines {
                    engine.restore(&service, None);
                }
            }
        }
        for engine in &mut self.engines {
            while let Some(mut sent) = engine.poll_transmit() {
                Packet::parse(&mut sent.packet).expect("what the engine builds is well-formed");
            }
            let used: u64 = engine.aggregates().iter().map(|a| a.connections).sum();
            assert_eq!(used, engine.connections().len() as u64, "each connection belongs to one aggregate");
        }
    }

    fn handle(&mut self, mut bytes: Vec<u8>, offload: &Offload) {
        let before = bytes.clone();
        let mut header = VnetHeader {
            flags: offload.flags,
            gso_type: offload.gso_type,
            gso_size: offload.gso_size,
            ..VnetHeader::default()
        };
        let end = Packet::parse(&mut bytes).map(|packet| packet.length());
        let mut verdict = self.engines[0].handle(&mut bytes, &mut header, self.now);
        if let Verdict::HandOver { owner } = verdict {
            assert_eq!(bytes, before);
            verdict = self.engines[usize::from(owner)].handle(&mut bytes, &mut header, self.now);
            assert!(!matches!(verdict, Verdict::HandOver { .. }), "an owner doesn't hand on");
        }
        for engine in 0..self.engines.len() {
            while let Some((owner, datagram)) = self.engines[engine].poll_hand_over() {
                assert_ne!(usize::from(owner), engine, "an owner doesn't hand on");
                self.engines[usize::from(owner)].handle_datagram(datagram, self.now);
            }
        }
        match verdict {
            Verdict::Translated(_) => {
                let end = end.expect("what is translated was well-formed");
                assert_eq!(bytes[end..], before[end..], "nothing behind the end is written");
                Packet::parse(&mut bytes).expect("what was translated is well-formed");
                bytes.truncate(end);
                self.last = bytes;
            }
            Verdict::Passed | Verdict::Dropped(_) => assert_eq!(bytes.len(), before.len()),
            Verdict::Held => assert_eq!(bytes, before, "what is kept isn't changed"),
            Verdict::HandOver { .. } => unreachable!(),
        }
    }
}

/// An IP header with right lengths before `rest`.
fn packet(v6: bool, reverse: bool, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let rest = &rest[..rest.len().min(2000)];
    let text = match (v6, reverse) {
        (false, false) => ["1.2.3.4", "100.1.1.1"],
        (false, true) => ["10.2.0.2", PROXIES[0]],
        (true, false) => ["2001:db8::1", "2001:db8::100"],
        (true, true) => ["fd00:2::2", PROXIES[1]],
    };
    let protocol = [protocol, 6, 17, if v6 { 58 } else { 1 }][usize::from(protocol) % 4];
    let mut packet = Vec::new();
    for address in text.map(|text| text.parse::<IpAddr>().unwrap()) {
        match address {
            IpAddr::V4(v4) => packet.extend(v4.octets()),
            IpAddr::V6(v6) => packet.extend(v6.octets()),
        }
    }
    let header = if v6 {
        let [high, low] = (rest.len() as u16).to_be_bytes();
        vec![0x60, 0, 0, 0, high, low, protocol, 64]
    } else {
        let [high, low] = (rest.len() as u16 + 20).to_be_bytes();
        vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0]
    };
    [&header, &packet[..], rest].concat()
}

/// An error to the sender of `about`, from where it went.
fn error(kind: u8, says: [u8; 4], about: &[u8], quote: &[u8]) -> Vec<u8> {
    let v6 = about.first().is_some_and(|byte| byte >> 4 == 6);
    let kinds = if v6 { [1, 2, 3, 4] } else { [3, 4, 11, 12] };
    let start = [kinds[usize::from(kind) % 4], kind / 4, 0, 0];
    let mut error = packet(v6, false, 3, &[&start, &says, quote].concat());
    let (at, length) = if v6 { (8, 16) } else { (12, 4) };
    if let Some(addresses) = about.get(at..at + 2 * length) {
        let (source, destination) = addresses.split_at(length);
        error[at..at + 2 * length].copy_from_slice(&[destination, source].concat());
    }
    error
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for service in 0..4 {
        world.take(Step::Divert { service, mirror: false, both: false });
    }
    for step in steps {
        world.take(step);
    }
});
