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
//! Only what the first bytes of a connection allow is moved: see [`Talk`](crate::table::Talk).
//!
//! Here is what connections wait for, and what becomes of those that don't come to it. Then:
//!
//! - `connecting`: from the SYN to the new mirror to the joining of the two;
//! - `joined`: the numbers;
//! - `released`: the old mirror;
//! - `obstacle`: why a connection can't be spliced.

mod connecting;
mod joined;
mod obstacle;
mod released;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use ahash::RandomState;
use control_protocol::{Fallback, MirrorAddress, Release};

pub use obstacle::Obstacle;

use joined::{Joined, scales};
use released::Released;

use super::redirect::{Redirect, RedirectOutcome};
use super::segment::Segment;
use super::{Engine, Time, Verdict};
use crate::packet::{Flow, Packet, TcpSegment, Transport, VnetHeader};
use crate::table::{Connection, Direction, DiversionId, MirrorSide, Slot, State, TcpProgress};

/// How many segments, and how many bytes, one connection's client may have held.
const MAX_HELD: (usize, usize) = (64, 256 * 1024);
/// How many connections are opened at the same time for clients that aren't waiting for an answer.
const MAX_CONNECTING: usize = 256;
/// How many redirects' outcomes are remembered.
const MAX_OUTCOMES: usize = 256;
/// How many timers are seen to at once.
const TIMERS_AT_ONCE: usize = 256;

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
    /// It leaves this mirror although that may be one of the diversion's still.
    leaves: Option<MirrorAddress>,
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

#[derive(Debug)]
enum Stray {
    /// What the new mirror of a connection sends before the two are joined.
    Joining(Slot),
    /// What the old mirror still sends.
    Released(Box<Released>),
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

/// Whether the client has asked something of which the server has acknowledged nothing, and nothing else is on
/// its way. If the server is dead, the client will send all of it again.
fn is_unheard(connection: &Connection) -> bool {
    connection.state == State::Established
        && connection.mirror.has(TcpProgress::ACKNOWLEDGED)
        && connection.client.has(TcpProgress::ACKNOWLEDGED)
        && connection.client.acknowledged == connection.mirror.sent
        && connection.last_data == Some(Direction::Forward)
        && !connection.client.has(TcpProgress::HEARD)
        && connection.mirror.acknowledged != connection.client.sent
}

/// Whether a connection whose mirror is dead can go on at another.
fn can_leave_the_dead(connection: &Connection) -> bool {
    is_at_boundary(connection) || is_unheard(connection)
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
        if orders.now && !can_leave_the_dead(connection) {
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
                leaves: redirect.leaves(),
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
                // Of something that was on its way to it when it was taken for dead.
                let acknowledges = is_unheard(&connection)
                    && segment.has(TcpSegment::ACK)
                    && segment.acknowledgement != connection.mirror.acknowledged;
                if ends || is_new || acknowledges {
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
            let waiting = self
                .splices
                .moves
                .get(&slot)
                .filter(|mv| matches!(mv.phase, Phase::Waiting));
            let may_leave = match waiting {
                Some(mv) if mv.orders.now => can_leave_the_dead,
                Some(_) => is_at_boundary,
                None => continue,
            };
            if self.connections.get(slot).is_some_and(may_leave) {
                self.connect(slot, now);
            }
        }
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
}

/// Whether the client takes another segment. Otherwise the server may have more to say and wait for that
/// (RFC 9293, section 3.8.6.2.1).
fn has_room(connection: &Connection) -> bool {
    let window = u32::from(connection.client.window) << scales(connection).from;
    window >= 2 * u32::from(connection.client.segment_size.max(536))
}
