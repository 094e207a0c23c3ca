//! The engines and a slow, obvious model take the same random steps: packets of clients and mirrors,
//! time, diverts, redirects and restores in any order.
//!
//! The model is a plain map from (protocol, client, service) to where the connection goes, with the
//! time of its last packet. It knows nothing of slots, hashes, workers, wheels or checksums.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{Protocol, TcpMove};
use proptest::prelude::*;
use rewriter::engine::{DropReason, Redirect, Verdict};
use rewriter::table::{Direction, DiversionId};
use support::*;

const SERVICES: [&str; 3] = ["100.0.0.1:53", "100.0.0.2:53", "[2001:db8::100]:53"];
const MIRRORS: [[&str; 2]; 3] = [
    ["10.2.0.2", "10.2.0.3"],
    ["10.2.0.4", "10.2.0.5"],
    ["fd00:2::2", "fd00:2::3"],
];
const CLIENTS: u16 = 40;

/// Seconds of the timeouts, in the order of the engine's defaults (RFC 4787 and RFC 5508).
fn timeout(protocol: Protocol) -> f64 {
    if protocol == Protocol::Udp {
        300.0
    } else {
        60.0
    }
}

#[derive(Debug, Clone)]
enum Step {
    Forward {
        protocol: Protocol,
        client: u16,
        service: usize,
    },
    /// The mirror answers what it last got of this connection.
    Reverse {
        protocol: Protocol,
        client: u16,
        service: usize,
    },
    Pass {
        seconds: u16,
    },
    Divert {
        service: usize,
        mirror: usize,
    },
    Redirect {
        service: usize,
        mirror: usize,
    },
    Restore {
        service: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let protocol = || prop_oneof![Just(Protocol::Udp), Just(Protocol::Icmp)];
    let service = 0..SERVICES.len();
    prop_oneof![
        12 => (protocol(), 0..CLIENTS, service.clone())
            .prop_map(|(protocol, client, service)| Step::Forward { protocol, client, service }),
        8 => (protocol(), 0..CLIENTS, service.clone())
            .prop_map(|(protocol, client, service)| Step::Reverse { protocol, client, service }),
        2 => (1..200_u16).prop_map(|seconds| Step::Pass { seconds }),
        1 => (service.clone(), 0..2_usize)
            .prop_map(|(service, mirror)| Step::Divert { service, mirror }),
        1 => (service.clone(), 0..2_usize)
            .prop_map(|(service, mirror)| Step::Redirect { service, mirror }),
        1 => service.prop_map(|service| Step::Restore { service }),
    ]
}

/// A connection in the model.
#[derive(Debug, Clone, Copy)]
struct Entry {
    mirror: usize,
    last: f64,
}

struct Model {
    world: World,
    now: f64,
    diversions: [Option<(usize, DiversionId)>; SERVICES.len()],
    connections: HashMap<(Protocol, u16, usize), Entry>,
    /// The proxy endpoint that the mirror saw, which the model can't foretell.
    proxies: HashMap<(Protocol, u16, usize), SocketAddr>,
}

impl Model {
    fn client(client: u16, service: usize) -> SocketAddr {
        let ip = if service == 2 {
            "[2001:db8::1]"
        } else {
            "1.2.3.4"
        };
        address(&format!("{ip}:{}", 5000 + client))
    }

    fn mirror(protocol: Protocol, service: usize, mirror: usize) -> SocketAddr {
        let port = if protocol == Protocol::Udp { 53 } else { 0 };
        SocketAddr::new(MIRRORS[service][mirror].parse().unwrap(), port)
    }

    /// The timer wheel looks at times in ticks, so near a timeout either answer is right.
    fn is_near_its_timeout(&self, protocol: Protocol, entry: Entry) -> bool {
        (self.now - entry.last - timeout(protocol)).abs() < 1.0
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Forward {
                protocol,
                client,
                service,
            } => self.forward(protocol, client, service),
            Step::Reverse {
                protocol,
                client,
                service,
            } => self.reverse(protocol, client, service),
            Step::Pass { seconds } => {
                self.now += f64::from(seconds);
                self.world.pass_time(Duration::from_secs(seconds.into()));
                let now = self.now;
                self.connections
                    .retain(|(protocol, ..), entry| now - entry.last < timeout(*protocol) + 1.0);
            }
            Step::Divert { service, mirror } => {
                let id = self
                    .world
                    .divert(&service_text(service), &[MIRRORS[service][mirror]]);
                self.diversions[service] = Some((mirror, id));
            }
            Step::Redirect { service, mirror } => {
                self.take(Step::Divert { service, mirror });
                let (_, diversion) = self.diversions[service].unwrap();
                let outcome = self
                    .world
                    .redirect(Redirect::new(0, diversion, TcpMove::Reset));
                let mut near = 0;
                let (mut moved, mut kept) = (0, 0);
                let now = self.now;
                for ((protocol, _, of), entry) in &mut self.connections {
                    if *of == service {
                        near += u64::from((now - entry.last - timeout(*protocol)).abs() < 1.0);
                        if entry.mirror == mirror {
                            kept += 1
                        } else {
                            moved += 1
                        }
                        entry.mirror = mirror;
                    }
                }
                assert!(
                    outcome.moved.abs_diff(moved) <= near,
                    "{outcome:?}, {moved} to be moved"
                );
                assert!(
                    outcome.kept.abs_diff(kept) <= near,
                    "{outcome:?}, {kept} to be kept"
                );
                assert_eq!(outcome.reset, 0);
                // Moved connections may have got another proxy port.
                self.proxies.retain(|(.., of), _| *of != service);
            }
            Step::Restore { service } => {
                self.world.restore(&service_text(service));
                self.diversions[service] = None;
            }
        }
    }

    fn forward(&mut self, protocol: Protocol, client: u16, service: usize) {
        let key = (protocol, client, service);
        let source = Self::client(client, service);
        let mut packet = packet_of(protocol, source, address(SERVICES[service]), b"q", false);
        let verdict = self.world.handle(&mut packet);
        let known = self.connections.get(&key).copied();
        if known.is_some_and(|entry| self.is_near_its_timeout(protocol, entry)) {
            // Believe the engine.
            self.connections.remove(&key);
            if verdict == Verdict::Translated(Direction::Forward) {
                let to = see(&packet).destination;
                let mirror = (0..2)
                    .find(|m| Self::mirror(protocol, service, *m) == to)
                    .unwrap();
                self.connections.insert(
                    key,
                    Entry {
                        mirror,
                        last: self.now,
                    },
                );
                self.proxies.insert(key, see(&packet).source);
            }
            return;
        }
        let mirror = known
            .map(|entry| entry.mirror)
            .or(self.diversions[service].map(|(m, _)| m));
        let Some(mirror) = mirror else {
            assert_eq!(verdict, Verdict::Passed, "{key:?}");
            return;
        };
        assert_eq!(verdict, Verdict::Translated(Direction::Forward), "{key:?}");
        let seen = see(&packet);
        assert_eq!(
            seen.destination,
            Self::mirror(protocol, service, mirror),
            "{key:?}"
        );
        self.connections.insert(
            key,
            Entry {
                mirror,
                last: self.now,
            },
        );
        self.proxies.insert(key, seen.source);
    }

    fn reverse(&mut self, protocol: Protocol, client: u16, service: usize) {
        let key = (protocol, client, service);
        let (Some(entry), Some(proxy)) = (
            self.connections.get(&key).copied(),
            self.proxies.get(&key).copied(),
        ) else {
            return;
        };
        if self.is_near_its_timeout(protocol, entry) {
            return;
        }
        let from = Self::mirror(protocol, service, entry.mirror);
        let mut packet = packet_of(protocol, from, proxy, b"a", true);
        assert_eq!(
            self.world.handle(&mut packet),
            Verdict::Translated(Direction::Reverse),
            "{key:?}"
        );
        let seen = see(&packet);
        assert_eq!(seen.source.ip(), address(SERVICES[service]).ip());
        assert_eq!(seen.destination, Self::client(client, service));
        self.connections.insert(
            key,
            Entry {
                last: self.now,
                ..entry
            },
        );
    }

    /// What must always hold.
    fn check(&self) {
        let near = self
            .connections
            .iter()
            .filter(|((protocol, ..), entry)| self.is_near_its_timeout(*protocol, **entry))
            .count();
        assert!(
            self.world.connections().abs_diff(self.connections.len()) <= near,
            "{} connections, the model has {}",
            self.world.connections(),
            self.connections.len()
        );
        let mut sides = HashSet::new();
        for engine in &self.world.engines {
            let table = engine.connections();
            for slot in 0..table.slots() {
                if let Some(c) = table.get(slot) {
                    assert!(
                        sides.insert((c.protocol(), *c.mirror_side())),
                        "two share a port"
                    );
                }
            }
        }
        assert_eq!(self.world.dropped(DropReason::NoConnection), 0);
    }
}

/// The service as a diversion names it: all its ports, so that echoes follow it too.
fn service_text(service: usize) -> String {
    address(SERVICES[service]).ip().to_string()
}

proptest! {
    // 6,000 runs of some 500 steps: three million.
    #![proptest_config(ProptestConfig::with_cases(6_000))]

    #[test]
    fn the_engines_agree_with_the_model(
        workers in 1..4_u16,
        steps in prop::collection::vec(step(), 400..600),
    ) {
        let mut model = Model {
            world: World::new(workers),
            now: 0.0,
            diversions: [None; SERVICES.len()],
            connections: HashMap::new(),
            proxies: HashMap::new(),
        };
        for step in steps {
            model.take(step);
        }
        model.check();
    }
}
