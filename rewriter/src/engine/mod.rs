//! The engine: a packet and the time go in, a verdict comes out.
//!
//! It does no I/O: no sockets, no clock, no threads, no logging. Time is an argument. What it wants
//! to send of its own accord (a reset, a datagram cut again) it queues, and the worker asks for it with
//! [`Engine::poll_transmit`]. So everything that matters runs in a test, a fuzzer and a bench.
//!
//! There is one engine for each worker, and each connection belongs to just one of them
//! ([`Ownership`]). A packet takes these steps (patent, figure 3):
//!
//! 1. Its headers are checked ([`crate::packet`]); a malformed packet is dropped.
//! 2. A datagram that a peeking diversion doesn't take passes unchanged, whatever else is known of it.
//!    If the packet belongs to a connection, that says which way it goes: *forward* or *reverse*.
//! 3. Otherwise, a packet to a proxy address is dropped. Any other is the first of a new connection,
//!    because a diversion wants it, or it passes unchanged.
//!    Fragments of either kind are first put together (`fragments.rs`).
//! 4. Both addresses, both ports and the checksums are rewritten where they lie.
//!
//! An ICMP error belongs to the connection of the packet that it quotes.

mod alert;
mod clients;
mod counters;
mod fragments;
mod icmp_error;
mod identification;
mod liveness;
mod measure;
mod notice;
mod ownership;
mod reassembly;
mod redirect;
mod reset;
mod retry;
mod segment;
mod splice;
mod talk;
mod tcp;
mod time;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use control_protocol::{ClientPrefix, Protocol, Service};
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use crate::table::FETCHED_AT_ONCE;
pub use alert::Alert;
pub use counters::{Counters, DropReason};
pub use liveness::MirrorSigns;
pub use ownership::Ownership;
pub use reassembly::{Limits, TIMEOUT_V4, TIMEOUT_V6};
pub use redirect::{Redirect, RedirectOutcome, Sweep};
pub use splice::{Obstacle, SpliceOrders};
pub use time::Time;

use clients::Clients;
use identification::Identifications;
use notice::Budget;
use reassembly::Reassembler;
use retry::Retries;
use splice::Splices;

use crate::packet::{
    Address, Datagram, Endpoint, Flow, GsoType, Packet, TcpSegment, Transport, VnetHeader,
};
use crate::table::{
    AggregateId, Aggregates, ClientGroups, ClientSide, Connection, Connections, Direction,
    Diversion, DiversionId, Diversions, MirrorSide, ProxyPool, Slot, State, Taken, Tick,
};

/// How many connections are looked at in one [`Engine::handle_timeout`].
const TIMEOUTS_AT_ONCE: usize = 256;
/// How many connections it takes for fetching ahead to be worth it: fewer are in the cache anyway.
const FETCHED_FROM: usize = 16_000;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was rewritten: send it.
    Translated(Direction),
    /// It is none of ours: send it as it came.
    Passed,
    /// Don't send it.
    Dropped(DropReason),
    /// Another worker owns it: give it to that worker's engine, unchanged.
    HandOver {
        /// The owner's number.
        owner: u16,
    },
    /// It was kept, or was meant for the engine itself: don't send it. The engine may now have something
    /// to send or to hand over: the datagram that it was the last missing fragment of, or what goes on
    /// between the engine and a mirror that a connection is being spliced to.
    Held,
}

/// A packet that the engine sends of its own accord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The packet, from its IP header on.
    pub packet: Vec<u8>,
    /// What is left for the kernel to do on it; only on a packet that came so.
    pub offload: VnetHeader,
}

impl From<Vec<u8>> for Outgoing {
    /// A packet that is complete.
    fn from(packet: Vec<u8>) -> Self {
        Self {
            packet,
            offload: VnetHeader::default(),
        }
    }
}

/// After how long without a packet a connection is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, handshake complete (RFC 5382, REQ-5: at least 2 h 4 min).
    pub tcp_established: Duration,
    /// TCP, opening, closing or closed (RFC 5382, REQ-5: at least 4 min).
    pub tcp_transitory: Duration,
    /// UDP (RFC 4787, REQ-5: 5 min or more is recommended), and protocols without ports.
    pub udp: Duration,
    /// Echo (RFC 5508, REQ-2: at least 60 s).
    pub echo: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(2 * 3600 + 4 * 60),
            tcp_transitory: Duration::from_secs(4 * 60),
            udp: Duration::from_secs(5 * 60),
            echo: Duration::from_secs(60),
        }
    }
}

impl Timeouts {
    fn of(&self, connection: &Connection) -> Duration {
        match (connection.protocol(), connection.state) {
            (Protocol::Tcp, State::Established) => self.tcp_established,
            (Protocol::Tcp, _) => self.tcp_transitory,
            (Protocol::Udp | Protocol::Other(_), _) => self.udp,
            (Protocol::Icmp, _) => self.echo,
        }
    }
}

/// What the engine does with the TTL or hop limit, so that the machine looks like one router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HopLimit {
    /// The kernel forwards each packet twice, to the TUN and from it, and lowers it each time: raise it
    /// by one.
    Raise,
    /// The kernel doesn't forward the packet: lower it by one.
    Lower,
}

/// What an engine is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// This engine's number, from 0.
    pub worker: u16,
    /// Who owns what; the same for all engines of one daemon.
    pub ownership: Ownership,
    /// The proxy addresses, of either family.
    pub proxies: Vec<IpAddr>,
    /// The proxy ports of all workers together.
    pub proxy_ports: RangeInclusive<u16>,
    /// How many connections this engine keeps at most.
    pub max_connections: usize,
    /// How many connections one client address may have in this engine; none: as many as it likes.
    pub max_connections_per_client: Option<u32>,
    /// Whose connections are taken together when they are measured.
    pub client_groups: ClientGroups,
    /// When idle connections are forgotten.
    pub timeouts: Timeouts,
    /// How many more mirrors a connection is tried at that its mirror refuses.
    pub refused_retries: u8,
    /// The packet size in bytes that the segment size in a SYN is lowered to; none: it is left alone.
    pub mss_clamp: Option<u16>,
    /// What to do so that the TTL or hop limit falls by one on the way through the machine.
    pub hop_limit: HopLimit,
}

/// The engine of one worker.
#[derive(Debug)]
pub struct Engine {
    worker: u16,
    ownership: Ownership,
    timeouts: Timeouts,
    mss_clamp: Option<u16>,
    hop_limit: HopLimit,
    diversions: Diversions,
    connections: Connections,
    pool: ProxyPool,
    aggregates: Aggregates,
    /// How many connections each client has, if there is a limit.
    clients: Option<Clients>,
    counters: Counters,
    alert: Option<Alert>,
    outbox: VecDeque<Outgoing>,
    splices: Splices,
    retries: Retries,
    reassembler: Reassembler,
    identifications: Identifications,
    /// For errors of its own accord.
    budget: Budget,
    /// Whole datagrams that belong to other workers, and to which.
    hand_overs: VecDeque<(u16, Datagram)>,
    random: StdRng,
}

impl Engine {
    /// An engine without diversions and connections.
    pub fn new(config: &Config, now: Time) -> Self {
        let workers = config.ownership.workers();
        let mut random = StdRng::from_os_rng();
        Self {
            worker: config.worker,
            ownership: config.ownership,
            timeouts: config.timeouts,
            mss_clamp: config.mss_clamp,
            hop_limit: config.hop_limit,
            diversions: Diversions::default(),
            connections: Connections::with_capacity(config.max_connections, now.tick()),
            pool: ProxyPool::new(&config.proxies, &config.proxy_ports, config.worker, workers),
            aggregates: Aggregates::new(config.client_groups),
            clients: config.max_connections_per_client.map(Clients::limited_to),
            counters: Counters::default(),
            alert: None,
            outbox: VecDeque::new(),
            splices: Splices::default(),
            retries: Retries::limited_to(config.refused_retries),
            reassembler: Reassembler::new(Limits::default()),
            identifications: Identifications::new(config.worker, workers, &mut random),
            hand_overs: VecDeque::new(),
            budget: Budget::default(),
            random,
        }
    }

    /// Prepares for the packets that are to be [handled](Engine::handle) next, at most
    /// [`FETCHED_AT_ONCE`]: brings their connections into the processor's cache, if there are so many
    /// that they aren't there already. Changes nothing but how long that takes.
    pub fn fetch<'a>(&self, packets: impl Iterator<Item = &'a mut [u8]>) {
        if self.connections.len() < FETCHED_FROM {
            return;
        }
        self.connections
            .fetch(packets.filter_map(|bytes| Packet::parse(bytes).ok()?.flow()));
    }

    /// Decides on the packet that starts at the first of `bytes`, and rewrites it where it lies.
    /// `offload` says what the kernel left undone on it, and is brought up to date with it.
    pub fn handle(&mut self, bytes: &mut [u8], offload: &mut VnetHeader, now: Time) -> Verdict {
        let length = bytes.len();
        let verdict = match Packet::parse(bytes) {
            Ok(mut packet) => {
                let verdict = self.decide(&mut packet, offload, now);
                match verdict {
                    Verdict::Translated(_) => {
                        self.renew_identification(&mut packet, offload);
                        self.prepare_to_leave(&mut packet, offload, verdict)
                    }
                    Verdict::Passed => self.prepare_to_leave(&mut packet, offload, verdict),
                    Verdict::Dropped(_) | Verdict::HandOver { .. } | Verdict::Held => verdict,
                }
            }
            Err(malformed) => Verdict::Dropped(malformed.into()),
        };
        self.counters.count(verdict, length);
        if let Verdict::Dropped(reason) = verdict {
            self.notify_of_drop(reason, bytes, now);
        }
        verdict
    }

    /// Forgets idle connections, some at a time, and incomplete datagrams. To be called at or after
    /// [`Engine::poll_timeout`]; costs next to nothing before.
    pub fn handle_timeout(&mut self, now: Time) {
        self.expire_fragments(now);
        self.handle_splice_timeout(now);
        for _ in 0..TIMEOUTS_AT_ONCE {
            let Some(slot) = self.connections.pop_due(now.tick()) else {
                return;
            };
            let Some(connection) = self.connections.get(slot) else {
                continue;
            };
            let due = connection.last_activity.after(self.timeouts.of(connection));
            if due > now.tick() {
                self.connections.set_due(slot, due);
            } else {
                self.remove(slot);
                self.counters.expired += 1;
            }
        }
    }

    /// When [`Engine::handle_timeout`] next has something to do, at the earliest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let connections = self.connections.next_due().map(Time::from);
        connections
            .into_iter()
            .chain(self.reassembler.next_due())
            .chain(self.splices.next_due())
            .min()
    }

    /// The next packet that the engine wants to send of its own accord: a reset, an ICMP error, a
    /// fragment of a datagram that has been translated, or what it takes to splice a connection. The
    /// source of an error may be unspecified, and is then to be the host's own.
    pub fn poll_transmit(&mut self) -> Option<Outgoing> {
        self.outbox.pop_front()
    }

    /// What an operator should know of, if something has come up since the last time this was asked.
    pub fn poll_alert(&mut self) -> Option<Alert> {
        self.alert.take()
    }

    /// Adds a diversion or replaces its like: new connections follow it, existing ones stay.
    pub fn divert(&mut self, diversion: Diversion) {
        self.diversions.set(diversion);
    }

    /// Removes a diversion; connections stay on their mirror until they end.
    pub fn restore(&mut self, service: &Service, from: Option<&ClientPrefix>) {
        self.diversions.remove(service, from);
    }

    /// Says that no worker has a connection to a restored service any more.
    pub fn forget(&mut self, service: IpAddr) {
        self.diversions.forget(service.into());
    }

    /// What was counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The connections.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// What has been measured, by diversion, mirror and client prefix.
    pub fn aggregates(&self) -> &Aggregates {
        &self.aggregates
    }

    fn decide(&mut self, packet: &mut Packet<'_>, offload: &VnetHeader, now: Time) -> Verdict {
        if offload.gso() == GsoType::Unknown {
            return Verdict::Dropped(DropReason::UnknownOffload);
        }
        let Some(flow) = packet.flow() else {
            return self.decide_without_flow(packet, offload, now);
        };
        if self.is_let_by(&flow, packet, offload) {
            return Verdict::Passed;
        }
        match self.connections.find(&flow) {
            Some((slot, direction)) if agree(packet.transport(), direction) => {
                if direction == Direction::Forward && opens(packet) && self.has_ended(slot) {
                    // A client may use its port again for a new connection as soon as the old one
                    // has ended.
                    self.remove(slot);
                    self.decide_new(&flow, packet, offload, now)
                } else {
                    self.carry(slot, direction, packet, offload, now)
                }
            }
            _ => self.decide_new(&flow, packet, offload, now),
        }
    }

    /// Whether the diversion for this packet peeks, and doesn't take it.
    fn is_let_by(&self, flow: &Flow, packet: &Packet<'_>, offload: &VnetHeader) -> bool {
        let (client, service) = (flow.source.address, flow.destination);
        self.diversions
            .peek(client, service, flow.protocol)
            .is_some_and(|peek| {
                let segment_length = (offload.gso() == GsoType::Udp).then_some(offload.gso_size);
                !peek.takes(packet.payload(), segment_length)
            })
    }

    /// Decides on a packet of no connection that this worker has.
    fn decide_new(
        &mut self,
        flow: &Flow,
        packet: &mut Packet<'_>,
        offload: &VnetHeader,
        now: Time,
    ) -> Verdict {
        if self.pool.contains(flow.destination.address) {
            return self.decide_new_reverse(flow, packet, now);
        }
        if let Transport::EchoReply { .. } = packet.transport() {
            return Verdict::Passed;
        }
        let owner = match flow.protocol {
            Protocol::Other(_) => self.ownership.of_portless(),
            _ => self.ownership.of_client(flow.source),
        };
        if owner != self.worker {
            return if self.diversions.concern(flow.destination.address) {
                Verdict::HandOver { owner }
            } else {
                Verdict::Passed
            };
        }
        // A TCP connection that began before the diversion goes on as it was.
        if flow.protocol == Protocol::Tcp && !opens(packet) {
            return Verdict::Passed;
        }
        let side = ClientSide {
            client: flow.source,
            service: flow.destination,
        };
        match self.open(flow.protocol, side, now) {
            Ok(Some(slot)) => self.carry(slot, Direction::Forward, packet, offload, now),
            Ok(None) => Verdict::Passed,
            Err(reason) => Verdict::Dropped(reason),
        }
    }

    /// Decides on a packet to a proxy address, of no connection that this worker has.
    fn decide_new_reverse(&mut self, flow: &Flow, packet: &Packet<'_>, now: Time) -> Verdict {
        if self.splices.has_stray(flow) {
            return self.handle_stray(flow, packet, now);
        }
        if let Transport::EchoRequest { .. } = packet.transport() {
            return Verdict::Dropped(DropReason::NotForProxy);
        }
        let owner = self.ownership.of_proxy_port(flow.destination.port);
        if owner == self.worker {
            Verdict::Dropped(DropReason::NoConnection)
        } else {
            Verdict::HandOver { owner }
        }
    }

    /// Decides on a fragment, or an ICMP message other than an echo.
    fn decide_without_flow(
        &mut self,
        packet: &mut Packet<'_>,
        offload: &VnetHeader,
        now: Time,
    ) -> Verdict {
        let is_reverse = self.pool.contains(packet.destination());
        let concerns = is_reverse || self.diversions.concern(packet.destination());
        match packet.transport() {
            Transport::Fragment if concerns => self.hold(packet, offload, now),
            Transport::IcmpRedirect if concerns => Verdict::Dropped(DropReason::IcmpRedirect),
            Transport::IcmpError if is_reverse => self.decide_reverse_error(packet),
            Transport::IcmpError => self.decide_forward_error(packet),
            _ if is_reverse => Verdict::Dropped(DropReason::NotForProxy),
            _ => Verdict::Passed,
        }
    }

    /// Makes a connection for its first packet. `None`: no diversion wants it.
    fn open(
        &mut self,
        protocol: Protocol,
        client_side: ClientSide,
        now: Time,
    ) -> Result<Option<Slot>, DropReason> {
        let ClientSide { client, service } = client_side;
        let Some(diversion) = self.diversions.find(client.address, service, protocol) else {
            return Ok(None);
        };
        let Some(mirror) = diversion.pick(service, &mut self.random) else {
            return Ok(None);
        };
        let diversion = diversion.id;
        if self
            .clients
            .as_ref()
            .is_some_and(|clients| clients.is_at_limit(client.address))
        {
            return Err(DropReason::ClientLimit);
        }
        let mirror_side = self.take_proxy(protocol, client, mirror, now)?;
        if self.connections.is_full()
            && let Some(slot) = self.connections.most_expendable()
        {
            self.evict(slot);
        }
        let aggregate = self.join_aggregate(diversion, mirror, client.address);
        let connection = Connection::new(protocol, client_side, mirror_side, aggregate, now.tick());
        let due = now.tick().after(self.timeouts.of(&connection));
        let Some(slot) = self.connections.insert(connection, due) else {
            self.pool.give_back(Slot::MAX, protocol, &mirror_side);
            self.aggregates.leave(aggregate);
            self.alert = Some(Alert::TableFull {
                connections: self.connections.len(),
            });
            return Err(DropReason::TableFull);
        };
        if let Some(clients) = &mut self.clients {
            clients.add(client.address);
        }
        self.counters.created += 1;
        Ok(Some(slot))
    }

    /// Takes a proxy port for a connection of `client` to `mirror`: a free one, or one that has rested.
    fn take_proxy(
        &mut self,
        protocol: Protocol,
        client: Endpoint,
        mirror: Endpoint,
        now: Time,
    ) -> Result<MirrorSide, DropReason> {
        let is_taken =
            |side: &MirrorSide| is_taken(&self.connections, &self.splices, &side.flow(protocol));
        let (now, random) = (now.tick(), &mut self.random);
        match self
            .pool
            .take(protocol, client.address, mirror, now, random, is_taken)
        {
            Ok(Taken::Free(proxy)) => Ok(MirrorSide { proxy, mirror }),
            Ok(Taken::Rested(slot)) => {
                let side = self.connections.get(slot).map(|c| *c.mirror_side());
                self.evict(slot);
                side.filter(|side| self.pool.take_same(protocol, side, |_| false))
                    .ok_or(DropReason::ProxyPortsExhausted)
            }
            Err(_) => {
                self.alert = Some(Alert::ProxyPortsExhausted {
                    proxies: self.pool.addresses_like(mirror.address),
                    mirror,
                });
                Err(DropReason::ProxyPortsExhausted)
            }
        }
    }

    /// Forgets a connection to make room.
    fn evict(&mut self, slot: Slot) {
        self.remove(slot);
        self.counters.evicted += 1;
    }

    /// Takes a packet of a connection to its other side.
    fn carry(
        &mut self,
        slot: Slot,
        direction: Direction,
        packet: &mut Packet<'_>,
        offload: &VnetHeader,
        now: Time,
    ) -> Verdict {
        let Some(connection) = self.connections.get_mut(slot) else {
            return Verdict::Dropped(DropReason::NoConnection);
        };
        let (is_moving, is_spliced) = (connection.is_moving, connection.is_spliced);
        let is_opening = connection.state == State::Opening;
        let mut tcp = None;
        if let Transport::Tcp(mut segment) = packet.transport() {
            if connection.state == State::Reset {
                let source = Endpoint {
                    address: packet.source(),
                    port: segment.source_port,
                };
                let destination = Endpoint {
                    address: packet.destination(),
                    port: segment.destination_port,
                };
                self.outbox
                    .extend(reset::answer(source, destination, &segment).map(Into::into));
                return Verdict::Dropped(DropReason::ConnectionWasReset);
            }
            if is_opening
                && direction == Direction::Reverse
                && segment.has(TcpSegment::RST)
                && let Some(verdict) = self.retry_elsewhere(slot, &segment, packet.length(), now)
            {
                return verdict;
            }
            if is_spliced && direction == Direction::Reverse {
                if segment.has(TcpSegment::SYN) {
                    self.answer_repeated_syn(slot, &segment);
                    return Verdict::Held;
                }
                let numbers = self.splices.joined(slot).reverse;
                packet.renumber(&numbers, offload.needs_csum());
                if let Transport::Tcp(renumbered) = packet.transport() {
                    segment = renumbered;
                }
            }
            if is_moving
                && let Some(verdict) = self.move_along(slot, direction, packet, offload, now)
            {
                return verdict;
            }
            tcp = Some(segment);
        }
        let Some(connection) = self.connections.get_mut(slot) else {
            return Verdict::Dropped(DropReason::NoConnection);
        };
        let Some(totals) = self.aggregates.totals_mut(connection.aggregate) else {
            return Verdict::Dropped(DropReason::NoConnection);
        };
        let before = connection.state;
        liveness::note(totals, direction, tcp.as_ref(), now);
        match &tcp {
            Some(segment) => {
                measure::segment(connection, totals, direction, segment, now);
                tcp::follow(connection, totals, direction, packet, segment);
            }
            None => measure::datagram(connection, totals, direction, now),
        }
        let after = connection.state;
        let is_answer = direction == Direction::Reverse && connection.reverse_traffic.packets == 0;
        connection.last_activity = now.tick();
        let traffic = match direction {
            Direction::Forward => &mut connection.forward_traffic,
            Direction::Reverse => &mut connection.reverse_traffic,
        };
        traffic.add(packet.length());
        totals.one_way(direction).add_packet(packet.length());
        packet.translate(&connection.translation(direction), offload.needs_csum());
        if is_spliced && direction == Direction::Forward {
            let numbers = self.splices.joined(slot).forward;
            packet.renumber(&numbers, offload.needs_csum());
        }
        if let Some(mtu) = self.mss_clamp {
            packet.clamp_mss(mtu, offload.needs_csum());
        }
        if after != before {
            self.enter(slot, after, now);
        } else if is_answer && tcp.is_none() {
            // The mirror has answered, so this is no part of a flood.
            self.connections.set_expendable(slot, false, now.tick());
        }
        Verdict::Translated(direction)
    }

    /// Does what goes with a TCP connection's new state.
    fn enter(&mut self, slot: Slot, state: State, now: Time) {
        self.retries.forget(slot);
        if matches!(state, State::Closing | State::Closed | State::Reset) {
            self.stop_moving(slot);
        }
        let now = now.tick();
        match state {
            State::Established => self.connections.set_expendable(slot, false, now),
            State::Closing => {}
            State::Closed | State::Reset => {
                self.connections.set_expendable(slot, true, now);
                if let Some(connection) = self.connections.get(slot) {
                    let side = connection.mirror_side();
                    self.pool.rest(slot, connection.protocol(), side, now);
                }
            }
            State::Opening | State::Active => return,
        }
        if state != State::Established {
            let due = now.after(self.timeouts.tcp_transitory);
            self.connections.set_due(slot, due);
        }
    }

    /// What a packet needs before it is sent: what a router does to it, and a header that is true.
    fn prepare_to_leave(
        &self,
        packet: &mut Packet<'_>,
        offload: &mut VnetHeader,
        verdict: Verdict,
    ) -> Verdict {
        match self.hop_limit {
            HopLimit::Raise => packet.raise_hop_limit(),
            HopLimit::Lower if packet.lower_hop_limit() => {}
            HopLimit::Lower => return Verdict::Dropped(DropReason::HopLimitExceeded),
        }
        if offload.gso() != GsoType::None {
            // The kernel's own value can't be trusted on a forwarded packet. All headers together
            // are shorter than a packet, so their length has room in 16 bits.
            offload.hdr_len = packet.headers_length() as u16;
        }
        verdict
    }

    fn has_ended(&self, slot: Slot) -> bool {
        self.connections
            .get(slot)
            .is_some_and(|c| matches!(c.state, State::Closed | State::Reset))
    }

    fn remove(&mut self, slot: Slot) {
        self.forget_splice(slot);
        self.retries.forget(slot);
        if let Some(connection) = self.connections.remove(slot) {
            self.pool
                .give_back(slot, connection.protocol(), connection.mirror_side());
            if connection.reverse_traffic.packets == 0
                && let Some(totals) = self.aggregates.totals_mut(connection.aggregate)
            {
                totals.unanswered += 1;
            }
            self.aggregates.leave(connection.aggregate);
            if let Some(clients) = &mut self.clients {
                clients.remove(connection.client_side().client.address);
            }
        }
    }

    /// Counts a connection of `client` among those that follow this diversion to this mirror.
    fn join_aggregate(
        &mut self,
        diversion: DiversionId,
        mirror: Endpoint,
        client: Address,
    ) -> AggregateId {
        let aggregate = self.aggregates.enter(diversion, mirror, client);
        if let Some(totals) = self.aggregates.totals_mut(aggregate) {
            totals.opened += 1;
        }
        aggregate
    }

    /// Counts a connection among others than before.
    fn change_aggregate(
        &mut self,
        before: &Connection,
        diversion: DiversionId,
        mirror: Endpoint,
    ) -> AggregateId {
        self.aggregates.leave(before.aggregate);
        self.join_aggregate(diversion, mirror, before.client_side().client.address)
    }
}

/// Whether a mirror's flow belongs to a connection, or to one that is being spliced or was.
fn is_taken(connections: &Connections, splices: &Splices, flow: &Flow) -> bool {
    connections.find(flow).is_some() || splices.has_stray(flow)
}

/// Whether a packet like this can go this way: requests go to a mirror, replies come from it.
fn agree(transport: Transport, direction: Direction) -> bool {
    match transport {
        Transport::EchoRequest { .. } => direction == Direction::Forward,
        Transport::EchoReply { .. } => direction == Direction::Reverse,
        _ => true,
    }
}

/// Whether it asks for a new TCP connection.
fn opens(packet: &Packet<'_>) -> bool {
    matches!(packet.transport(), Transport::Tcp(segment) if segment.opens())
}

impl Time {
    fn tick(self) -> Tick {
        Tick(u32::try_from(self.nanos() >> Tick::SHIFT).unwrap_or(u32::MAX))
    }
}

impl From<Tick> for Time {
    fn from(tick: Tick) -> Self {
        Self::from_nanos(u64::from(tick.0) << Tick::SHIFT)
    }
}
