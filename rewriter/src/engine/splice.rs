//! Moving a live TCP connection to a mirror that has never heard of it.
//!
//! # Theory of operation
//!
//! A server answers a client whose connection it has accepted itself. So the engine opens a connection
//! of its own to the new mirror, in the client's name, and *joins* the two: what the client sends goes
//! on there, what the mirror sends comes to the client, and neither sees that the connection's two
//! halves have begun at different times. What differs between them is numbers, and those are
//! translated for the rest of the connection ([`Renumbering`]):
//!
//! - The engine's SYN has the sequence number just before the client's next byte, so the *client's*
//!   numbers need no translation, and neither do the mirror's acknowledgements of them.
//! - The *mirror's* numbers differ from its predecessor's by one amount: added to what comes from it,
//!   taken from what acknowledges it, selective acknowledgements included.
//! - Timestamps and windows likewise: a clock is another clock by an offset, and the mirror may scale
//!   its windows otherwise than its predecessor did.
//!
//! Numbers in the table are the client's, whatever mirror it is on, so a connection can be moved again
//! and again: each time the differences are computed afresh.
//!
//! A connection is moved at a *boundary*: nothing is on its way, neither data nor acknowledgement, and
//! the last to speak was the server. Surest is the moment when the client's next request comes in: the
//! segment is *held*, the mirror connected, the segment delivered there. A connection on which nothing
//! has happened for a while is moved as well. What has reached no boundary in time is left or reset.
//!
//! Until the new mirror has answered, the old one has the connection, and keeps it if anything goes
//! wrong. Afterwards it is released: told that the client has finished, or has gone.
//!
//! Only what the first bytes of a connection allow is moved: see [`Talk`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use ahash::RandomState;
use control_protocol::{Fallback, Protocol, Release};

use super::redirect::{Redirect, RedirectOutcome};
use super::segment::Segment;
use super::tcp::later;
use super::{Engine, Outgoing, Time, Verdict, is_taken, reset};
use crate::packet::{
    Flow, Packet, Renumbering, TcpOffer, TcpSegment, Timestamps, Transport, VnetHeader,
    WindowScales,
};
use crate::table::{
    Connection, Direction, DiversionId, MirrorSide, Slot, State, Talk, TcpProgress,
};

/// How long after each SYN to the new mirror the next is sent, or the mirror given up: 3 s altogether.
const SYN_INTERVALS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];
/// How long after each FIN to the old mirror the next is sent, or the mirror given up.
const FIN_INTERVALS: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(3200),
];
/// How long the old mirror is still answered, and the proxy port not given to another connection there.
const RELEASE_TIME: Duration = Duration::from_secs(60);
/// The most old mirrors' sides that are remembered; of more, the ports are free at once.
const MAX_RELEASED: usize = 1 << 18;
/// How many segments, and how many bytes, one connection's client may have held.
const MAX_HELD: (usize, usize) = (64, 256 * 1024);
/// How many connections are opened at the same time for clients that aren't waiting for an answer.
const MAX_CONNECTING: usize = 256;
/// How many redirects' outcomes are remembered.
const MAX_OUTCOMES: usize = 256;
/// How many timers are seen to at once.
const TIMERS_AT_ONCE: usize = 256;

macro_rules! obstacles {
    ($($(#[$doc:meta])+ $obstacle:ident = $name:literal,)+) => {
        /// Why a connection can't be spliced.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Obstacle {
            $($(#[$doc])+ $obstacle,)+
        }

        impl Obstacle {
            /// All of them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$obstacle,)+];

            /// Its name in results.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$obstacle => $name,)+
                }
            }
        }
    };
}

obstacles! {
    /// TLS: a new server doesn't know the keys.
    Tls = "tls",
    /// HTTP/2: a new server doesn't know the connection's state.
    Http2 = "http2",
    /// A WebSocket, or whatever else HTTP was upgraded to.
    Upgraded = "upgraded",
    /// The connection began with a PROXY header, which a new server would miss.
    ProxyHeader = "proxy_header",
    /// SSH: a new server doesn't know the keys.
    Ssh = "ssh",
    /// The server spoke first, and a new one would again: SMTP, FTP, MySQL.
    ServerFirst = "server_first",
    /// The beginning of the conversation wasn't seen.
    Unseen = "unseen",
    /// The new mirror doesn't take the TCP options that the connection has.
    Options = "options",
    /// The new mirror refused the connection.
    MirrorRefused = "mirror_refused",
    /// The new mirror didn't answer.
    NoAnswer = "no_answer",
    /// No proxy port was left for the new mirror.
    NoProxyPort = "no_proxy_port",
}

impl Obstacle {
    /// What stands in the way of a connection that is used for this.
    fn of(talk: Talk) -> Option<Self> {
        match talk {
            Talk::Silent | Talk::Plain => None,
            Talk::Unseen => Some(Self::Unseen),
            Talk::Tls => Some(Self::Tls),
            Talk::Http2 => Some(Self::Http2),
            Talk::Upgraded => Some(Self::Upgraded),
            Talk::ProxyHeader => Some(Self::ProxyHeader),
            Talk::Ssh => Some(Self::Ssh),
            Talk::ServerFirst => Some(Self::ServerFirst),
        }
    }
}

/// How connections are to be spliced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpliceOrders {
    /// How long to wait for a boundary.
    pub within: Duration,
    /// After how long without a packet a connection is moved without a request; none: never.
    pub quiet: Option<Duration>,
    /// What becomes of connections that have reached no boundary in time.
    pub then: Fallback,
    /// What becomes of connections that can't be spliced.
    pub otherwise: Fallback,
    /// How the old mirror is released.
    pub release: Release,
    /// Whether to splice whatever the first bytes say.
    pub force: bool,
    /// Whether the old mirror is dead: nothing is waited for, and what can't be spliced is reset.
    pub now: bool,
}

impl Default for SpliceOrders {
    fn default() -> Self {
        Self {
            within: Duration::from_secs(30),
            quiet: Some(Duration::from_secs(5)),
            then: Fallback::Leave,
            otherwise: Fallback::Leave,
            release: Release::Fin,
            force: false,
            now: false,
        }
    }
}

/// What the engine keeps of connections that are being moved or have been.
#[derive(Debug, Default)]
pub(super) struct Splices {
    moves: HashMap<Slot, Move, RandomState>,
    joined: HashMap<Slot, Joined, RandomState>,
    /// Flows from mirrors that belong to no connection in the table: not yet, or no longer.
    strays: HashMap<Flow, Stray, RandomState>,
    timers: BinaryHeap<Reverse<(Time, Timer)>>,
    /// Connections that may be moved without waiting for a request, as soon as not too many are.
    ready: VecDeque<Slot>,
    connecting: usize,
    /// The flows of old mirrors, by the number that their timers have.
    released: HashMap<u64, Flow, RandomState>,
    next_number: u64,
    outcomes: BTreeMap<u64, RedirectOutcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A connection has waited long enough for this redirect.
    Deadline(Slot, u64),
    /// A connection may have been quiet for long enough.
    Quiet(Slot),
    /// The mirror may need another SYN.
    Syn(Slot),
    /// The old mirror with this number may need another FIN, or be forgotten.
    Released(u64),
}

/// A connection that is to be moved.
#[derive(Debug)]
struct Move {
    redirect: u64,
    orders: SpliceOrders,
    deadline: Time,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// For a boundary.
    Waiting,
    /// For the new mirror.
    Connecting(Box<Connecting>),
}

#[derive(Debug)]
struct Connecting {
    side: MirrorSide,
    diversion: DiversionId,
    syn: Segment,
    /// How many SYNs have been sent.
    syns: usize,
    next_syn: Time,
    held: Vec<Held>,
    held_bytes: usize,
}

/// A segment of the client's, as it came.
#[derive(Debug)]
struct Held {
    packet: Vec<u8>,
    offload: VnetHeader,
    since: Time,
}

/// By how much the numbers of a spliced connection's mirror differ from those the client knows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Joined {
    /// For what the client sends.
    pub forward: Renumbering,
    /// For what the mirror sends.
    pub reverse: Renumbering,
}

#[derive(Debug)]
enum Stray {
    /// What the new mirror of a connection sends before the two are joined.
    Joining(Slot),
    /// What the old mirror still sends.
    Released(Box<Released>),
}

/// The old mirror of a connection that has moved on.
#[derive(Debug)]
struct Released {
    side: MirrorSide,
    /// Our next sequence number, a FIN not counted.
    sequence: u32,
    /// What the mirror is to be told that it was acknowledged.
    acknowledgement: u32,
    window: u16,
    timestamps: Option<Timestamps>,
    how: Release,
    /// How many FINs have been sent.
    fins: usize,
    /// The FIN was acknowledged, or a reset took its place.
    is_done: bool,
    next_fin: Time,
    until: Time,
}

impl Splices {
    /// When there is next something to do.
    pub fn next_due(&self) -> Option<Time> {
        self.timers.peek().map(|Reverse((due, _))| *due)
    }

    /// The numbers of a spliced connection.
    pub fn joined(&self, slot: Slot) -> Joined {
        self.joined.get(&slot).copied().unwrap_or_default()
    }

    /// Whether packets of this flow come from a mirror that has no connection in the table.
    pub fn has_stray(&self, flow: &Flow) -> bool {
        self.strays.contains_key(flow)
    }

    fn set_timer(&mut self, due: Time, timer: Timer) {
        self.timers.push(Reverse((due, timer)));
    }

    fn outcome(&mut self, redirect: u64) -> &mut RedirectOutcome {
        if self.outcomes.len() >= MAX_OUTCOMES
            && !self.outcomes.contains_key(&redirect)
            && let Some(oldest) = self
                .outcomes
                .iter()
                .find_map(|(id, outcome)| (outcome.waiting == 0).then_some(*id))
        {
            self.outcomes.remove(&oldest);
        }
        self.outcomes.entry(redirect).or_default()
    }
}

/// Whether nothing is on its way and the server was the last to speak.
fn is_at_boundary(connection: &Connection) -> bool {
    is_answered(connection) && connection.client.acknowledged == connection.mirror.sent
}

/// Whether the server has acknowledged all that the client sent and was the last to speak.
fn is_answered(connection: &Connection) -> bool {
    connection.state == State::Established
        && connection.mirror.has(TcpProgress::ACKNOWLEDGED)
        && connection.client.has(TcpProgress::ACKNOWLEDGED)
        && connection.mirror.acknowledged == connection.client.sent
        && connection.last_data != Some(Direction::Forward)
}

impl Engine {
    /// What has become of the connections of a redirect so far; none: it isn't known, or no longer.
    pub fn redirect_outcome(&self, redirect: u64) -> Option<RedirectOutcome> {
        self.splices.outcomes.get(&redirect).copied()
    }

    /// Has the connections that still wait for a boundary stay where they are.
    pub fn cancel_redirect(&mut self, redirect: u64) {
        let waiting: Vec<Slot> = self
            .splices
            .moves
            .iter()
            .filter(|(_, mv)| mv.redirect == redirect && matches!(mv.phase, Phase::Waiting))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in waiting {
            self.leave(slot);
        }
    }

    /// Where the outcome of a redirect is counted.
    pub(super) fn outcome_mut(&mut self, redirect: u64) -> &mut RedirectOutcome {
        self.splices.outcome(redirect)
    }

    /// Decides how an open TCP connection that a redirect has come to is moved.
    pub(super) fn begin_move(
        &mut self,
        slot: Slot,
        connection: &Connection,
        redirect: &Redirect,
        now: Time,
    ) {
        self.call_off(slot, now);
        let orders = redirect.splice;
        if matches!(connection.state, State::Closing) {
            self.outcome_mut(redirect.id).left += 1;
            return;
        }
        if let Some(obstacle) = Obstacle::of(connection.talk).filter(|_| !orders.force) {
            self.give_up(slot, connection, obstacle, redirect.id, &orders, now);
            return;
        }
        if orders.now && !is_at_boundary(connection) {
            self.outcome_mut(redirect.id).reset += 1;
            self.reset(slot, connection, now);
            return;
        }
        let deadline = now.after(orders.within);
        self.splices.moves.insert(
            slot,
            Move {
                redirect: redirect.id,
                orders,
                deadline,
                phase: Phase::Waiting,
            },
        );
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.is_moving = true;
        }
        self.outcome_mut(redirect.id).waiting += 1;
        self.splices
            .set_timer(deadline, Timer::Deadline(slot, redirect.id));
        if orders.now {
            self.splices.ready.push_back(slot);
            self.connect_ready(now);
        } else {
            self.see_whether_quiet(slot, now);
        }
    }

    /// Looks at a packet of a connection that is to be moved, before it is noted otherwise. `Some`: it
    /// was held.
    pub(super) fn move_along(
        &mut self,
        slot: Slot,
        direction: Direction,
        packet: &Packet<'_>,
        offload: &VnetHeader,
        now: Time,
    ) -> Option<Verdict> {
        let Transport::Tcp(segment) = packet.transport() else {
            return None;
        };
        let connection = *self.connections.get(slot)?;
        let mv = self.splices.moves.get_mut(&slot)?;
        let ends = segment.flags & (TcpSegment::RST | TcpSegment::FIN | TcpSegment::SYN) != 0;
        match (&mut mv.phase, direction) {
            (Phase::Waiting, Direction::Forward) => {
                let is_next_request = segment.payload > 0
                    && !segment.has(TcpSegment::RST)
                    && !segment.has(TcpSegment::SYN)
                    && is_answered(&connection)
                    && segment.sequence == connection.client.sent
                    && segment.acknowledgement == connection.mirror.sent;
                if !is_next_request {
                    return None;
                }
                if let Some(connection) = self.connections.get_mut(slot) {
                    connection.client.acknowledged = segment.acknowledgement;
                    connection.client.window = segment.window;
                }
                self.connect(slot, now)
                    .then(|| self.hold_segment(slot, packet, offload, now))
            }
            (Phase::Waiting, Direction::Reverse) => None,
            (Phase::Connecting(_), Direction::Forward) => {
                if segment.has(TcpSegment::RST) || segment.has(TcpSegment::SYN) {
                    self.abandon(slot, now);
                    None
                } else if segment.payload > 0 || segment.has(TcpSegment::FIN) {
                    Some(self.hold_segment(slot, packet, offload, now))
                } else {
                    // The old mirror may want to know.
                    None
                }
            }
            (Phase::Connecting(_), Direction::Reverse) => {
                let is_new =
                    segment.payload > 0 && segment.next_sequence() != connection.mirror.sent;
                if ends || is_new {
                    // It wasn't a boundary: the old mirror goes on.
                    self.abandon(slot, now);
                }
                None
            }
        }
    }

    /// Keeps a segment of the client's until the mirror is there. One too many is lost, as on any link,
    /// and the client will send it again.
    fn hold_segment(
        &mut self,
        slot: Slot,
        packet: &Packet<'_>,
        offload: &VnetHeader,
        now: Time,
    ) -> Verdict {
        if let Some(Move {
            phase: Phase::Connecting(connecting),
            ..
        }) = self.splices.moves.get_mut(&slot)
            && connecting.held.len() < MAX_HELD.0
            && connecting.held_bytes + packet.length() <= MAX_HELD.1
        {
            connecting.held_bytes += packet.length();
            connecting.held.push(Held {
                packet: packet.bytes().to_vec(),
                offload: *offload,
                since: now,
            });
        }
        Verdict::Held
    }

    /// Decides on a segment from a mirror that has no connection in the table.
    pub(super) fn handle_stray(&mut self, flow: &Flow, packet: &Packet<'_>, now: Time) -> Verdict {
        let Transport::Tcp(segment) = packet.transport() else {
            return Verdict::Held;
        };
        match self.splices.strays.get_mut(flow) {
            Some(Stray::Joining(slot)) => {
                let slot = *slot;
                self.handle_new_mirror(slot, packet, &segment, now);
            }
            Some(Stray::Released(released)) => {
                self.outbox
                    .extend(released.answer(packet, &segment).map(Into::into));
            }
            None => {}
        }
        Verdict::Held
    }

    /// Answers a SYN-ACK that the mirror of a spliced connection repeats: the acknowledgement was lost.
    /// The client has had one long ago.
    pub(super) fn answer_repeated_syn(&mut self, slot: Slot, segment: &TcpSegment) {
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        let joined = self.splices.joined(slot);
        let acknowledgement = segment.next_sequence();
        let segment = acknowledge(connection, &joined, acknowledgement);
        self.outbox.extend(segment.build().map(Into::into));
    }

    /// Sees to what is due.
    pub(super) fn handle_splice_timeout(&mut self, now: Time) {
        for _ in 0..TIMERS_AT_ONCE {
            match self.splices.timers.peek() {
                Some(Reverse((due, _))) if *due <= now => {}
                _ => break,
            }
            let Some(Reverse((_, timer))) = self.splices.timers.pop() else {
                break;
            };
            match timer {
                Timer::Deadline(slot, redirect) => self.end_waiting(slot, redirect, now),
                Timer::Quiet(slot) => self.see_whether_quiet(slot, now),
                Timer::Syn(slot) => self.repeat_syn(slot, now),
                Timer::Released(number) => self.see_to_released(number, now),
            }
        }
        self.connect_ready(now);
    }

    /// What an earlier redirect has begun is over: the connection stays where it is.
    pub(super) fn call_off(&mut self, slot: Slot, now: Time) {
        self.abandon(slot, now);
        self.leave(slot);
    }

    /// A connection ends: nobody need wait for it.
    pub(super) fn stop_moving(&mut self, slot: Slot) {
        self.stop_connecting(slot);
        self.leave(slot);
    }

    /// Forgets what there is about a connection that is removed.
    pub(super) fn forget_splice(&mut self, slot: Slot) {
        self.stop_moving(slot);
        self.splices.joined.remove(&slot);
    }

    /// A connection that still waits stays where it is.
    fn leave(&mut self, slot: Slot) {
        if let Some(mv) = self.splices.moves.remove(&slot) {
            let outcome = self.splices.outcome(mv.redirect);
            outcome.waiting -= 1;
            outcome.left += 1;
        }
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.is_moving = false;
        }
    }

    fn end_waiting(&mut self, slot: Slot, redirect: u64, now: Time) {
        let Some(mv) = self.splices.moves.get(&slot) else {
            return;
        };
        if mv.redirect != redirect || mv.deadline > now || !matches!(mv.phase, Phase::Waiting) {
            return;
        }
        let then = mv.orders.then;
        self.leave(slot);
        if then == Fallback::Reset
            && let Some(connection) = self.connections.get(slot).copied()
        {
            let outcome = self.splices.outcome(redirect);
            outcome.left -= 1;
            outcome.reset += 1;
            self.reset(slot, &connection, now);
        }
    }

    /// Has a connection moved without a request if nothing has happened on it for long enough.
    fn see_whether_quiet(&mut self, slot: Slot, now: Time) {
        let (Some(mv), Some(connection)) =
            (self.splices.moves.get(&slot), self.connections.get(slot))
        else {
            return;
        };
        let (Some(quiet), Phase::Waiting) = (mv.orders.quiet, &mv.phase) else {
            return;
        };
        let due = Time::from(connection.last_activity).after(quiet);
        if due > now {
            self.splices.set_timer(due, Timer::Quiet(slot));
        } else if is_at_boundary(connection) && has_room(connection) {
            self.splices.ready.push_back(slot);
            self.connect_ready(now);
        } else {
            self.splices.set_timer(now.after(quiet), Timer::Quiet(slot));
        }
    }

    /// Connects for those that may be moved without a request, as many as may be at once.
    fn connect_ready(&mut self, now: Time) {
        while self.splices.connecting < MAX_CONNECTING
            && let Some(slot) = self.splices.ready.pop_front()
        {
            let is_waiting = self
                .splices
                .moves
                .get(&slot)
                .is_some_and(|mv| matches!(mv.phase, Phase::Waiting));
            if is_waiting && self.connections.get(slot).is_some_and(is_at_boundary) {
                self.connect(slot, now);
            }
        }
    }

    /// Opens a connection to the mirror that this one is to be moved to. `false`: it stays.
    fn connect(&mut self, slot: Slot, now: Time) -> bool {
        let Some(connection) = self.connections.get(slot).copied() else {
            return false;
        };
        let force = self
            .splices
            .moves
            .get(&slot)
            .is_some_and(|mv| mv.orders.force);
        if let Some(obstacle) = Obstacle::of(connection.talk).filter(|_| !force) {
            self.refuse_move(slot, &connection, obstacle, now);
            return false;
        }
        let client_side = *connection.client_side();
        let old = *connection.mirror_side();
        let diversion = self
            .diversions
            .find(
                client_side.client.address,
                client_side.service,
                Protocol::Tcp,
            )
            .filter(|diversion| !diversion.has_mirror(client_side.service, old.mirror));
        let picked = diversion.and_then(|diversion| {
            Some((
                diversion.id,
                diversion.pick(client_side.service, &mut self.random)?,
            ))
        });
        let Some((diversion, mirror)) = picked else {
            // It was diverted otherwise meanwhile.
            self.leave(slot);
            return false;
        };
        let side = MirrorSide {
            proxy: old.proxy,
            mirror,
        };
        let is_taken = |side: &MirrorSide| {
            is_taken(&self.connections, &self.splices, &side.flow(Protocol::Tcp))
        };
        let side = if self.pool.take_same(Protocol::Tcp, &side, is_taken) {
            side
        } else {
            match self.take_proxy(Protocol::Tcp, client_side.client, mirror, now) {
                Ok(side) => side,
                Err(_) => {
                    self.fail(slot, Obstacle::NoProxyPort, now);
                    return false;
                }
            }
        };
        let syn = self.introduction(&connection, &side);
        let Some(mv) = self.splices.moves.get_mut(&slot) else {
            self.pool.give_back(Slot::MAX, Protocol::Tcp, &side);
            return false;
        };
        let next_syn = now.after(SYN_INTERVALS[0]);
        mv.phase = Phase::Connecting(Box::new(Connecting {
            side,
            diversion,
            syn,
            syns: 1,
            next_syn,
            held: Vec::new(),
            held_bytes: 0,
        }));
        self.splices.connecting += 1;
        self.splices
            .strays
            .insert(side.flow(Protocol::Tcp), Stray::Joining(slot));
        self.splices.set_timer(next_syn, Timer::Syn(slot));
        self.outbox.extend(syn.build().map(Into::into));
        true
    }

    /// The SYN that introduces the client to a new mirror, with the options that the connection has.
    fn introduction(&self, connection: &Connection, side: &MirrorSide) -> Segment {
        let (client, mirror) = (&connection.client, &connection.mirror);
        // What a segment has besides its data, without options.
        let headers = if side.proxy.address.is_v4() { 40 } else { 60 };
        let limit = self.mss_clamp.map(|mtu| mtu.saturating_sub(headers));
        let window = u32::from(client.window) << scales(connection).from;
        Segment {
            source: side.proxy,
            destination: side.mirror,
            sequence: client.sent.wrapping_sub(1),
            acknowledgement: None,
            flags: TcpSegment::SYN,
            window: window.min(u16::MAX.into()) as u16,
            offer: TcpOffer {
                segment_size: (client.segment_size > 0).then(|| {
                    limit.map_or(client.segment_size, |limit| limit.min(client.segment_size))
                }),
                window_scale: mirror.window_scale().and(client.window_scale()),
                sack: client.has(TcpProgress::SACK) && mirror.has(TcpProgress::SACK),
                timestamps: has_timestamps(connection).then_some(Timestamps {
                    value: client.timestamp,
                    echo: 0,
                }),
            },
        }
    }

    fn repeat_syn(&mut self, slot: Slot, now: Time) {
        let Some(Move {
            phase: Phase::Connecting(connecting),
            ..
        }) = self.splices.moves.get_mut(&slot)
        else {
            return;
        };
        if connecting.next_syn > now {
            return;
        }
        let Some(interval) = SYN_INTERVALS.get(connecting.syns) else {
            self.fail(slot, Obstacle::NoAnswer, now);
            return;
        };
        connecting.syns += 1;
        connecting.next_syn = now.after(*interval);
        let due = connecting.next_syn;
        self.outbox.extend(connecting.syn.build().map(Into::into));
        self.splices.set_timer(due, Timer::Syn(slot));
    }

    /// Looks at what the new mirror says to the SYN.
    fn handle_new_mirror(
        &mut self,
        slot: Slot,
        packet: &Packet<'_>,
        segment: &TcpSegment,
        now: Time,
    ) {
        let Some(connection) = self.connections.get(slot).copied() else {
            return;
        };
        let answers_syn =
            segment.has(TcpSegment::ACK) && segment.acknowledgement == connection.client.sent;
        if segment.has(TcpSegment::RST) {
            if answers_syn {
                self.fail(slot, Obstacle::MirrorRefused, now);
            }
            return;
        }
        if !answers_syn || !segment.has(TcpSegment::SYN) {
            // It has an older connection there: away with it, and the next SYN will do (RFC 9293,
            // section 3.5.1).
            self.outbox.extend(refuse(packet, segment).map(Into::into));
            return;
        }
        let offer = packet.tcp_offer();
        if has_timestamps(&connection) != offer.timestamps.is_some() {
            self.outbox.extend(refuse(packet, segment).map(Into::into));
            self.fail(slot, Obstacle::Options, now);
            return;
        }
        self.join(slot, &connection, segment, &offer, now);
    }

    /// The new mirror is there: the connection is its from now on.
    fn join(
        &mut self,
        slot: Slot,
        before: &Connection,
        syn: &TcpSegment,
        offer: &TcpOffer,
        now: Time,
    ) {
        let Some(Move {
            redirect,
            orders,
            phase: Phase::Connecting(connecting),
            ..
        }) = self.splices.moves.remove(&slot)
        else {
            return;
        };
        self.splices.connecting -= 1;
        let Connecting {
            side,
            diversion,
            held,
            ..
        } = *connecting;
        self.splices.strays.remove(&side.flow(Protocol::Tcp));
        let old_numbers = self.splices.joined(slot);
        let joined = Joined::between(before, syn, offer);
        self.splices.joined.insert(slot, joined);
        self.connections.move_to(slot, side);
        let aggregate = self.change_aggregate(before, diversion, side.mirror);
        self.counters.moved += 1;
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.aggregate = aggregate;
            connection.is_moving = false;
            connection.is_spliced = true;
            connection.last_activity = now.tick();
            let segment = acknowledge(connection, &joined, syn.next_sequence());
            self.outbox.extend(segment.build().map(Into::into));
        }
        self.deliver(redirect, held, now);
        self.release(before, &old_numbers, orders.release, now);
        let outcome = self.splices.outcome(redirect);
        outcome.waiting -= 1;
        outcome.moved += 1;
        self.connect_ready(now);
    }

    /// Takes the client's segments, which were held for a redirect, where the connection goes now.
    fn deliver(&mut self, redirect: u64, held: Vec<Held>, now: Time) {
        if let Some(first) = held.first() {
            let outcome = self.splices.outcome(redirect);
            outcome.longest_hold = outcome.longest_hold.max(now.since(first.since));
        }
        for Held {
            mut packet,
            mut offload,
            since: _,
        } in held
        {
            let verdict = self.handle(&mut packet, &mut offload, now);
            if let Verdict::Translated(_) = verdict {
                self.outbox.push_back(Outgoing { packet, offload });
            }
        }
    }

    /// Stops connecting, if that has begun: the connection waits again, and the old mirror gets what was
    /// held.
    fn abandon(&mut self, slot: Slot, now: Time) {
        let Some(redirect) = self.splices.moves.get(&slot).map(|mv| mv.redirect) else {
            return;
        };
        let held = self.stop_connecting(slot);
        // So that nothing is held a second time.
        self.set_moving(slot, false);
        self.deliver(redirect, held, now);
        let waits = self.splices.moves.contains_key(&slot);
        self.set_moving(slot, waits);
    }

    /// Stops connecting, if that has begun. Gives what was held.
    fn stop_connecting(&mut self, slot: Slot) -> Vec<Held> {
        let Some(mv) = self.splices.moves.get_mut(&slot) else {
            return Vec::new();
        };
        let Phase::Connecting(connecting) = std::mem::replace(&mut mv.phase, Phase::Waiting) else {
            return Vec::new();
        };
        let Connecting {
            side, syn, held, ..
        } = *connecting;
        self.splices.connecting -= 1;
        self.splices.strays.remove(&side.flow(Protocol::Tcp));
        self.pool.give_back(Slot::MAX, Protocol::Tcp, &side);
        // The mirror may have accepted it already.
        let reset = Segment {
            sequence: syn.sequence.wrapping_add(1),
            flags: TcpSegment::RST,
            offer: TcpOffer::default(),
            ..syn
        };
        self.outbox.extend(reset.build().map(Into::into));
        held
    }

    fn set_moving(&mut self, slot: Slot, is_moving: bool) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.is_moving = is_moving;
        }
    }

    /// The new mirror can't be had: the connection stays with the old one, unless that is dead.
    fn fail(&mut self, slot: Slot, obstacle: Obstacle, now: Time) {
        self.abandon(slot, now);
        let Some(mv) = self.splices.moves.remove(&slot) else {
            return;
        };
        self.set_moving(slot, false);
        let outcome = self.splices.outcome(mv.redirect);
        outcome.waiting -= 1;
        let connection = self.connections.get(slot).copied();
        match connection.filter(|_| mv.orders.now) {
            Some(connection) => {
                outcome.reset += 1;
                self.reset(slot, &connection, now);
            }
            None => outcome.refused[obstacle as usize] += 1,
        }
        self.connect_ready(now);
    }

    /// A connection can't be spliced for what it is.
    fn give_up(
        &mut self,
        slot: Slot,
        connection: &Connection,
        obstacle: Obstacle,
        redirect: u64,
        orders: &SpliceOrders,
        now: Time,
    ) {
        if orders.now || orders.otherwise == Fallback::Reset {
            self.outcome_mut(redirect).reset += 1;
            self.reset(slot, connection, now);
        } else {
            self.outcome_mut(redirect).refused[obstacle as usize] += 1;
        }
    }

    /// A connection that waited can't be spliced for what it has turned out to be.
    fn refuse_move(&mut self, slot: Slot, connection: &Connection, obstacle: Obstacle, now: Time) {
        let Some(mv) = self.splices.moves.remove(&slot) else {
            return;
        };
        self.set_moving(slot, false);
        self.splices.outcome(mv.redirect).waiting -= 1;
        self.give_up(slot, connection, obstacle, mv.redirect, &mv.orders, now);
    }

    /// Ends the connection at the mirror that it has left. `before`: as it was there.
    fn release(&mut self, before: &Connection, numbers: &Joined, how: Release, now: Time) {
        let side = *before.mirror_side();
        let mut released = Released {
            side,
            sequence: before.client.sent,
            acknowledgement: before
                .mirror
                .sent
                .wrapping_add(numbers.forward.acknowledgement),
            window: numbers.forward.window.apply(before.client.window),
            timestamps: has_timestamps(before).then_some(Timestamps {
                value: before.client.timestamp,
                echo: before.mirror.timestamp.wrapping_add(numbers.forward.echo),
            }),
            how,
            fins: 0,
            is_done: false,
            next_fin: now,
            until: now.after(RELEASE_TIME),
        };
        self.outbox.extend(released.end(now).map(Into::into));
        let splices = &mut self.splices;
        if splices.released.len() >= MAX_RELEASED {
            self.pool.give_back(Slot::MAX, Protocol::Tcp, &side);
            return;
        }
        let (number, flow) = (splices.next_number, side.flow(Protocol::Tcp));
        splices.next_number += 1;
        splices.set_timer(released.next_due(), Timer::Released(number));
        splices.released.insert(number, flow);
        splices
            .strays
            .insert(flow, Stray::Released(Box::new(released)));
    }

    fn see_to_released(&mut self, number: u64, now: Time) {
        let splices = &mut self.splices;
        let Some(flow) = splices.released.get(&number).copied() else {
            return;
        };
        let Some(Stray::Released(released)) = splices.strays.get_mut(&flow) else {
            return;
        };
        if released.until <= now {
            let side = released.side;
            splices.released.remove(&number);
            splices.strays.remove(&flow);
            self.pool.give_back(Slot::MAX, Protocol::Tcp, &side);
            return;
        }
        if !released.is_done && released.next_fin <= now {
            self.outbox.extend(released.end(now).map(Into::into));
        }
        let due = released.next_due();
        splices.set_timer(due, Timer::Released(number));
    }
}

impl Joined {
    /// For a connection that goes on at a mirror which has answered with this SYN-ACK.
    fn between(connection: &Connection, syn: &TcpSegment, offer: &TcpOffer) -> Self {
        let sequence = connection.mirror.sent.wrapping_sub(syn.next_sequence());
        // The new clock goes on where the old one was last seen.
        let timestamp = offer.timestamps.map_or(0, |timestamps| {
            connection.mirror.timestamp.wrapping_sub(timestamps.value)
        });
        let known = scales(connection);
        // Windows are scaled if both say so (RFC 7323, section 2.2); ours did if the client's and the old
        // mirror's were.
        let now = match offer.window_scale {
            Some(mirrors) if is_scaled(connection) => WindowScales {
                from: known.from,
                to: mirrors,
            },
            _ => WindowScales::default(),
        };
        Self {
            forward: Renumbering {
                acknowledgement: sequence.wrapping_neg(),
                echo: timestamp.wrapping_neg(),
                window: WindowScales {
                    from: known.from,
                    to: now.from,
                },
                ..Renumbering::default()
            },
            reverse: Renumbering {
                sequence,
                timestamp,
                window: WindowScales {
                    from: now.to,
                    to: known.to,
                },
                ..Renumbering::default()
            },
        }
    }
}

impl Released {
    /// The segment that ends the connection: a FIN, again and again, and at last, or at once, a reset.
    fn end(&mut self, now: Time) -> Option<Vec<u8>> {
        let flags = match (self.how, FIN_INTERVALS.get(self.fins)) {
            (Release::Fin, Some(interval)) => {
                self.fins += 1;
                self.next_fin = now.after(*interval);
                TcpSegment::FIN
            }
            _ => {
                self.is_done = true;
                TcpSegment::RST
            }
        };
        self.segment(self.sequence, flags).build()
    }

    /// What the mirror is answered.
    fn answer(&mut self, packet: &Packet<'_>, segment: &TcpSegment) -> Option<Vec<u8>> {
        if segment.has(TcpSegment::RST) {
            self.is_done = true;
            return None;
        }
        let is_in_order = segment.sequence == self.acknowledgement;
        // Its acknowledgement was lost.
        let is_repeated =
            later(self.acknowledgement, segment.next_sequence()) == self.acknowledgement;
        let has_more = segment.payload > 0 && !is_repeated;
        if self.how == Release::Rst || segment.has(TcpSegment::SYN) || has_more {
            // Nobody listens any more.
            self.is_done = true;
            return refuse(packet, segment);
        }
        if segment.has(TcpSegment::ACK) && segment.acknowledgement == self.sequence.wrapping_add(1)
        {
            self.is_done = true;
        }
        if !segment.has(TcpSegment::FIN) && segment.payload == 0 {
            return None;
        }
        if let (Some(ours), Some(theirs)) = (&mut self.timestamps, packet.timestamps()) {
            ours.echo = theirs.value;
        }
        if is_in_order && segment.has(TcpSegment::FIN) {
            self.acknowledgement = segment.next_sequence();
        }
        self.segment(self.sequence.wrapping_add(1), 0).build()
    }

    fn segment(&self, sequence: u32, flags: u8) -> Segment {
        Segment {
            source: self.side.proxy,
            destination: self.side.mirror,
            sequence,
            acknowledgement: Some(self.acknowledgement),
            flags,
            window: self.window,
            offer: TcpOffer {
                timestamps: self.timestamps,
                ..TcpOffer::default()
            },
        }
    }

    fn next_due(&self) -> Time {
        if self.is_done {
            self.until
        } else {
            self.next_fin
        }
    }
}

/// Whether both ends scale their windows.
fn is_scaled(connection: &Connection) -> bool {
    connection.client.window_scale().is_some() && connection.mirror.window_scale().is_some()
}

/// Whether the client takes another segment. Otherwise the server may have more to say and wait for that
/// (RFC 9293, section 3.8.6.2.1).
fn has_room(connection: &Connection) -> bool {
    let window = u32::from(connection.client.window) << scales(connection).from;
    window >= 2 * u32::from(connection.client.segment_size.max(536))
}

/// How the client's windows are scaled, and how it takes the mirror's to be.
fn scales(connection: &Connection) -> WindowScales {
    match (
        connection.client.window_scale(),
        connection.mirror.window_scale(),
    ) {
        (Some(from), Some(to)) => WindowScales { from, to },
        _ => WindowScales::default(),
    }
}

/// Whether the connection's segments have timestamps.
fn has_timestamps(connection: &Connection) -> bool {
    connection.client.has(TcpProgress::TIMESTAMPS) && connection.mirror.has(TcpProgress::TIMESTAMPS)
}

/// An acknowledgement to a spliced connection's mirror, in the client's name.
fn acknowledge(connection: &Connection, joined: &Joined, acknowledgement: u32) -> Segment {
    let MirrorSide { proxy, mirror } = *connection.mirror_side();
    Segment {
        source: proxy,
        destination: mirror,
        sequence: connection.mirror.acknowledged,
        acknowledgement: Some(acknowledgement),
        flags: 0,
        window: joined.forward.window.apply(connection.client.window),
        offer: TcpOffer {
            timestamps: has_timestamps(connection).then_some(Timestamps {
                value: connection.client.timestamp,
                echo: connection
                    .mirror
                    .timestamp
                    .wrapping_add(joined.forward.echo),
            }),
            ..TcpOffer::default()
        },
    }
}

/// The reset that answers a segment which belongs to no connection.
fn refuse(packet: &Packet<'_>, segment: &TcpSegment) -> Option<Vec<u8>> {
    let flow = packet.flow()?;
    reset::answer(flow.source, flow.destination, segment)
}
