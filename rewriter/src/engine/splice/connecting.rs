//! From the SYN to the new mirror to the moment when the connection is its: or back, if it doesn't come to
//! that.

use std::time::Duration;

use control_protocol::Protocol;

use super::joined::{Joined, acknowledge, has_timestamps, scales};
use super::{Connecting, Held, Move, Obstacle, Phase, Stray, Timer};
use crate::engine::redirect::is_on;
use crate::engine::segment::Segment;
use crate::engine::{Engine, Outgoing, Time, Verdict, is_taken, reset};
use crate::packet::{Packet, TcpOffer, TcpSegment, Timestamps};
use crate::table::{Connection, MirrorSide, Slot, TcpProgress};

/// How long after each SYN to the new mirror the next is sent, or the mirror given up: 3 s altogether.
const SYN_INTERVALS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

impl Engine {
    /// Opens a connection to the mirror that this one is to be moved to. `false`: it stays.
    pub(super) fn connect(&mut self, slot: Slot, now: Time) -> bool {
        let Some(connection) = self.connections.get(slot).copied() else {
            return false;
        };
        let Some(mv) = self.splices.moves.get(&slot) else {
            return false;
        };
        let (force, leaves) = (mv.orders.force, mv.leaves);
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
            .filter(|diversion| {
                leaves.is_some() || !diversion.has_mirror(client_side.service, old.mirror)
            });
        let picked = diversion.and_then(|diversion| {
            let is_left = |mirror| leaves.is_some_and(|from| is_on(mirror, &from));
            let mirror = diversion.pick_but(client_side.service, is_left, &mut self.random)?;
            Some((diversion.id, mirror))
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
        let window = u32::from(client.window) << scales(connection).from;
        Segment {
            source: side.proxy,
            destination: side.mirror,
            // Just before what the new mirror gets first: the client's next byte, or the first that the old
            // one hasn't acknowledged.
            sequence: mirror.acknowledged.wrapping_sub(1),
            acknowledgement: None,
            flags: TcpSegment::SYN,
            window: window.min(u16::MAX.into()) as u16,
            offer: TcpOffer {
                segment_size: self.announced_size(client, side),
                window_scale: mirror.window_scale().and(client.window_scale()),
                sack: client.has(TcpProgress::SACK) && mirror.has(TcpProgress::SACK),
                timestamps: has_timestamps(connection).then_some(Timestamps {
                    value: client.timestamp,
                    echo: 0,
                }),
            },
        }
    }

    pub(super) fn repeat_syn(&mut self, slot: Slot, now: Time) {
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
    pub(super) fn handle_new_mirror(
        &mut self,
        slot: Slot,
        packet: &Packet<'_>,
        segment: &TcpSegment,
        now: Time,
    ) {
        let Some(connection) = self.connections.get(slot).copied() else {
            return;
        };
        let Some(Move {
            phase: Phase::Connecting(connecting),
            ..
        }) = self.splices.moves.get(&slot)
        else {
            return;
        };
        let first = connecting.syn.sequence.wrapping_add(1);
        let answers_syn = segment.has(TcpSegment::ACK) && segment.acknowledgement == first;
        if segment.has(TcpSegment::RST) {
            if answers_syn {
                self.fail(slot, Obstacle::MirrorRefused, now);
            }
            return;
        }
        if !answers_syn || !segment.has(TcpSegment::SYN) {
            // It has an older connection there: away with it, and the next SYN will do (RFC 9293,
            // section 3.5.1).
            self.outbox
                .extend(reset::refuse(packet, segment).map(Into::into));
            return;
        }
        let offer = packet.tcp_offer();
        if has_timestamps(&connection) != offer.timestamps.is_some() {
            self.outbox
                .extend(reset::refuse(packet, segment).map(Into::into));
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
    pub(super) fn deliver(&mut self, redirect: u64, held: Vec<Held>, now: Time) {
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
    pub(super) fn abandon(&mut self, slot: Slot, now: Time) {
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
    pub(super) fn stop_connecting(&mut self, slot: Slot) -> Vec<Held> {
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

    /// Answers a SYN-ACK that the mirror of a spliced connection repeats: the acknowledgement was lost.
    /// The client has had one long ago.
    pub(in crate::engine) fn answer_repeated_syn(&mut self, slot: Slot, segment: &TcpSegment) {
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        let joined = self.splices.joined(slot);
        let acknowledgement = segment.next_sequence();
        let segment = acknowledge(connection, &joined, acknowledgement);
        self.outbox.extend(segment.build().map(Into::into));
    }
}
