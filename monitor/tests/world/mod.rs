//! A world in virtual time: mirrors that really are queues, clients who ask them, a rewriter that does as it is told
//! and measures. The brain sees of it what it would see of a real one.

#![allow(
    dead_code,
    reason = "shared by test programs that each use a part of it"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use control_protocol::{
    ClientPrefix, Distribution, GroupStats, MirrorAddress, OneWayStats, Service,
};
use monitor::assign::{Assignment, Demand, Place, Problem, Want, normalised};
use monitor::brain::{
    Action, Brain, Decision, Group, Mirror, ServiceMind, Settings, State, Vitals,
};
use monitor::model::Queue;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// How long a connection lives, in seconds, before its client opens another.
const CONNECTION_LIFE: f64 = 60.0;
/// Connections for each request a second.
const CONNECTIONS: f64 = 0.2;

/// Some clients.
pub struct Clients {
    pub prefix: Option<ClientPrefix>,
    /// Requests a second.
    pub rate: f64,
    /// Where new connections go, by mirror; empty: not diverted yet.
    pub weights: Vec<f64>,
    /// Where the connections are, by mirror; as parts of all.
    pub at: Vec<f64>,
}

/// A server.
pub struct Server {
    pub queue: Queue,
    pub is_alive: bool,
    /// What its checks say, or the calendar: what the monitor is told.
    pub vitals: Vitals,
    /// Requests that wait because it can't keep up.
    backlog: f64,
}

pub struct World {
    pub brain: Brain,
    pub clients: Vec<Clients>,
    pub servers: Vec<Server>,
    pub now: Duration,
    pub tick: Duration,
    pub decisions: Vec<Decision>,
    /// Requests that got no answer.
    pub failed: f64,
    random: SmallRng,
}

pub fn service() -> Service {
    "10.1.0.1:80/tcp".parse().expect("a service")
}

pub fn address(mirror: usize) -> IpAddr {
    Ipv4Addr::new(10, 2, 0, 2 + mirror as u8).into()
}

fn endpoint(mirror: usize) -> SocketAddr {
    SocketAddr::new(address(mirror), 80)
}

pub fn up() -> Vitals {
    Vitals {
        state: State::Up,
        reason: "the http check is good".to_owned(),
        weight: 1.0,
        ..Vitals::default()
    }
}

pub fn down() -> Vitals {
    Vitals {
        state: State::Down,
        reason: "the http check is bad".to_owned(),
        ..up()
    }
}

impl World {
    /// One service with these mirrors, and groups of clients with so many requests a second.
    pub fn new(settings: Settings, queues: &[Queue], rates: &[f64]) -> Self {
        let mirrors = queues.iter().enumerate().map(|(number, _)| {
            let address = MirrorAddress {
                address: address(number),
                port: None,
            };
            Mirror::new(&format!("m{}", number + 1), address, None)
        });
        let all: Vec<usize> = (0..queues.len()).collect();
        let prefix = |number: usize| -> Option<ClientPrefix> {
            let text = format!("10.0.{number}.0/24");
            (number > 0).then(|| text.parse().expect("a prefix"))
        };
        let groups = (0..rates.len()).map(|number| {
            let name = match number {
                0 => "everyone".to_owned(),
                number => format!("group {number}"),
            };
            Group::new(&name, vec![prefix(number)], Want::Free(all.clone()))
        });
        let mind = ServiceMind::new(service(), all.clone(), groups.collect());
        Self {
            brain: Brain::new(settings, mirrors.collect(), vec![mind]),
            clients: (0..rates.len())
                .map(|number| Clients {
                    prefix: prefix(number),
                    rate: rates[number],
                    weights: Vec::new(),
                    at: vec![0.0; queues.len()],
                })
                .collect(),
            servers: queues
                .iter()
                .map(|queue| Server {
                    queue: *queue,
                    is_alive: true,
                    vitals: up(),
                    backlog: 0.0,
                })
                .collect(),
            now: Duration::ZERO,
            tick: Duration::from_secs(1),
            decisions: Vec::new(),
            failed: 0.0,
            random: SmallRng::seed_from_u64(1),
        }
    }

    /// Lives for some time. Gives the decisions that were made in it.
    pub fn live(&mut self, seconds: u64) -> Vec<Decision> {
        let before = self.decisions.len();
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.step();
        }
        self.decisions[before..].to_vec()
    }

    /// One tick: the world goes on, the rewriter tells, the brain decides, the rewriter does it.
    pub fn step(&mut self) {
        self.now += self.tick;
        self.drift();
        let measured = self.measure();
        self.brain.measure(0, self.tick, &measured);
        for number in 0..self.servers.len() {
            let vitals = self.servers[number].vitals.clone();
            self.brain.take_vitals(number, vitals, self.now);
        }
        let decisions = self.brain.decide(self.now);
        self.carry_out(&decisions);
        self.decisions.extend(decisions);
    }

    /// What the brain sees of a mirror's health changes at once, as it does between two ticks.
    pub fn tell(&mut self, mirror: usize, vitals: Vitals) -> Vec<Decision> {
        self.servers[mirror].vitals = vitals.clone();
        self.brain.take_vitals(mirror, vitals, self.now);
        let decisions = self.brain.decide_urgent(self.now);
        self.carry_out(&decisions);
        self.decisions.extend(decisions.clone());
        decisions
    }

    /// The mean response time now, over all clients, if the servers are as they are.
    pub fn cost(&self) -> f64 {
        let problem = self.truth();
        problem.cost(&Assignment(
            self.clients
                .iter()
                .map(|clients| clients.at.clone())
                .collect(),
        ))
    }

    /// What the best assignment would cost: that of somebody who knows all.
    pub fn best_cost(&self) -> f64 {
        let problem = self.truth();
        let fair = normalised(
            &self
                .servers
                .iter()
                .map(|server| match server.is_alive {
                    true => server.queue.capacity(),
                    false => 0.0,
                })
                .collect::<Vec<f64>>(),
        );
        let fair = fair.unwrap_or_else(|| vec![0.0; self.servers.len()]);
        problem.cost(&problem.best(&Assignment(vec![fair; self.clients.len()])))
    }

    /// What equal shares among the living would cost: what there would be without a monitor, but with health checks.
    pub fn equal_cost(&self) -> f64 {
        let shares: Vec<f64> = self
            .servers
            .iter()
            .map(|server| f64::from(u8::from(server.is_alive)))
            .collect();
        let shares = normalised(&shares).unwrap_or(shares);
        self.truth()
            .cost(&Assignment(vec![shares; self.clients.len()]))
    }

    fn truth(&self) -> Problem {
        Problem {
            places: self
                .servers
                .iter()
                .map(|server| Place {
                    queue: server.queue,
                    limit: f64::INFINITY,
                })
                .collect(),
            demands: self
                .clients
                .iter()
                .map(|clients| Demand {
                    rate: clients.rate,
                    want: Want::Free((0..self.servers.len()).collect()),
                    caps: self
                        .servers
                        .iter()
                        .map(|server| f64::from(u8::from(server.is_alive)))
                        .collect(),
                })
                .collect(),
        }
    }

    /// Old connections end, new ones follow the weights.
    fn drift(&mut self) {
        let part = 1.0 - (-self.tick.as_secs_f64() / CONNECTION_LIFE).exp();
        for clients in &mut self.clients {
            if let Some(weights) = normalised(&clients.weights) {
                for (at, weight) in clients.at.iter_mut().zip(weights) {
                    *at += part * (weight - *at);
                }
            }
        }
    }

    /// Requests a second at a mirror.
    pub fn rate_at(&self, mirror: usize) -> f64 {
        self.clients
            .iter()
            .map(|clients| clients.rate * clients.at[mirror])
            .sum()
    }

    fn measure(&mut self) -> Vec<GroupStats> {
        let tick = self.tick.as_secs_f64();
        let mut responses = Vec::new();
        // Of what is asked of each mirror, the part that it answers in this time.
        let mut answered = Vec::new();
        for mirror in 0..self.servers.len() {
            let rate = self.rate_at(mirror);
            let server = &mut self.servers[mirror];
            // What comes beyond the capacity waits, and is made up for later.
            let spare = server.queue.capacity() - rate;
            let backlog = (server.backlog - spare * tick).max(0.0);
            let done = rate * tick + server.backlog - backlog;
            answered.push(if rate > 0.0 {
                done / (rate * tick)
            } else {
                0.0
            });
            server.backlog = backlog;
            let waiting = server.backlog / server.queue.capacity();
            responses.push(
                server
                    .queue
                    .response(rate.min(0.98 * server.queue.capacity()))
                    + waiting,
            );
        }
        let mut measured = Vec::new();
        for number in 0..self.clients.len() {
            for (mirror, response) in responses.iter().enumerate() {
                let clients = &self.clients[number];
                let (prefix, rate) = (clients.prefix, clients.rate * clients.at[mirror]);
                let asked = self.poisson(rate * tick);
                let connections = (rate * CONNECTIONS).round() as u64;
                let is_alive = self.servers[mirror].is_alive;
                let answers = match is_alive {
                    true => (asked as f64 * answered[mirror]).round() as u64,
                    false => 0,
                };
                self.failed += if is_alive { 0.0 } else { asked as f64 };
                if asked + connections == 0 {
                    continue;
                }
                measured.push(self.stats(prefix, mirror, asked, answers, *response, connections));
            }
        }
        measured
    }

    fn stats(
        &mut self,
        prefix: Option<ClientPrefix>,
        mirror: usize,
        asked: u64,
        answers: u64,
        response: f64,
        connections: u64,
    ) -> GroupStats {
        // The mean of so many times of which each is all but random.
        let spread = 1.0 / (answers.max(1) as f64).sqrt();
        let noise = (1.0 + spread * self.random.random_range(-1.5..1.5_f64)).max(0.1);
        let first_byte = Distribution {
            count: answers,
            mean_us: (response * noise * 1e6) as u64,
            ..Distribution::default()
        };
        GroupStats {
            service: Some(service()),
            from: prefix,
            mirror: Some(endpoint(mirror)),
            clients: None,
            connections,
            opened: 0,
            refused: 0,
            unanswered: 0,
            icmp_errors: 0,
            forward: OneWayStats {
                packets: asked,
                bytes: asked * 200,
                ..OneWayStats::default()
            },
            reverse: OneWayStats {
                packets: answers,
                bytes: answers * 1000,
                ..OneWayStats::default()
            },
            mirror_handshake: Distribution::default(),
            client_handshake: Distribution::default(),
            mirror_rtt: Distribution::default(),
            client_rtt: Distribution::default(),
            first_byte,
        }
    }

    /// A number of events of which there are so many on average.
    fn poisson(&mut self, mean: f64) -> u64 {
        // Close enough to normal above this.
        if mean > 50.0 {
            let sum: f64 = (0..12).map(|_| self.random.random::<f64>()).sum();
            return (mean + (sum - 6.0) * mean.sqrt()).max(0.0).round() as u64;
        }
        let limit = (-mean).exp();
        let mut product = 1.0;
        let mut count = 0;
        loop {
            product *= self.random.random::<f64>();
            if product <= limit {
                return count;
            }
            count += 1;
        }
    }

    fn carry_out(&mut self, decisions: &[Decision]) {
        for order in decisions.iter().flat_map(|decision| &decision.orders) {
            let clients = self
                .clients
                .iter_mut()
                .find(|clients| clients.prefix == order.from)
                .expect("clients that there are");
            let mut weights = vec![0.0; self.servers.len()];
            for mirror in &order.mirrors {
                let number = (0..self.servers.len())
                    .find(|number| address(*number) == mirror.address)
                    .expect("a mirror that there is");
                weights[number] = f64::from(mirror.weight);
            }
            let weights = normalised(&weights).expect("a diversion has a mirror");
            if clients.weights.is_empty() {
                clients.at.clone_from(&weights);
            }
            clients.weights.clone_from(&weights);
            let (from, part) = match &order.action {
                Action::Stay => continue,
                Action::Leave {
                    mirror, percent, ..
                } => (mirror, f64::from(percent.unwrap_or(100)) / 100.0),
                Action::Flee(mirror) => (mirror, 1.0),
            };
            let from = (0..self.servers.len())
                .find(|number| address(*number) == from.address)
                .expect("a mirror that there is");
            let mut to = weights;
            to[from] = 0.0;
            let Some(to) = normalised(&to) else { continue };
            let moved = clients.at[from] * part;
            clients.at[from] -= moved;
            for (at, share) in clients.at.iter_mut().zip(to) {
                *at += moved * share;
            }
        }
    }
}
