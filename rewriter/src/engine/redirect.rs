//! Moving connections that exist to the mirrors of their diversion (patent, claims 5 and 10).
//!
//! A redirect looks at every connection, a slice at a time, so that packets needn't wait for all of
//! them: the worker calls [`Engine::sweep`] between its batches.

use std::time::Duration;

use control_protocol::{MirrorAddress, Percent, Protocol, TcpMove};

use super::splice::{Obstacle, SpliceOrders};
use super::{Engine, Time, is_taken, reset};
use crate::packet::Endpoint;
use crate::table::{Connection, DiversionId, MirrorSide, Slot, State, TcpProgress};

/// Which connections to move, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirect {
    /// Its number, by which [`Engine::redirect_outcome`] knows it.
    pub id: u64,
    /// The diversion whose mirrors they are to go to. Only connections are moved that it governs:
    /// those for which it is the most specific one.
    pub diversion: DiversionId,
    /// What becomes of an open TCP connection.
    pub tcp: TcpMove,
    /// How it is spliced, if it is to be.
    pub splice: SpliceOrders,
    /// Only connections on this mirror; none: on any.
    pub from_mirror: Option<MirrorAddress>,
    /// Only this share of the connections on that mirror, and these although it may be one of the
    /// diversion's still; none: all, but those that are on one of these already.
    pub share: Option<Percent>,
}

impl Redirect {
    /// Number `id`: of all connections of a diversion, spliced as usual if they are to be.
    pub fn new(id: u64, diversion: DiversionId, tcp: TcpMove) -> Self {
        Self {
            id,
            diversion,
            tcp,
            splice: SpliceOrders::default(),
            from_mirror: None,
            share: None,
        }
    }

    /// The mirror that connections are to leave although it may be one of the diversion's still.
    pub(super) fn leaves(&self) -> Option<MirrorAddress> {
        self.from_mirror.filter(|_| self.share.is_some())
    }
}

/// What a redirect did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RedirectOutcome {
    /// Connections that go to another mirror now.
    pub moved: u64,
    /// Connections that were reset at both ends.
    pub reset: u64,
    /// Connections that stayed: they were on one of the mirrors already, or on one that wasn't
    /// meant, or not in the share, or no proxy port was left for them at the new mirror.
    pub kept: u64,
    /// Connections that are yet to be spliced.
    pub waiting: u64,
    /// Connections that could have been spliced, but didn't come to it: they ended or were about to,
    /// waited too long, or were told otherwise.
    pub left: u64,
    /// Connections that can't be spliced, by [`Obstacle`].
    pub refused: [u64; Obstacle::ALL.len()],
    /// The longest that what a client sent was held while its connection was being spliced.
    pub longest_hold: Duration,
}

impl RedirectOutcome {
    /// This one and another together.
    pub fn plus(self, other: Self) -> Self {
        let mut refused = self.refused;
        for (sum, count) in refused.iter_mut().zip(other.refused) {
            *sum += count;
        }
        Self {
            moved: self.moved + other.moved,
            reset: self.reset + other.reset,
            kept: self.kept + other.kept,
            waiting: self.waiting + other.waiting,
            left: self.left + other.left,
            refused,
            longest_hold: self.longest_hold.max(other.longest_hold),
        }
    }
}

/// A redirect on its way through the table.
#[derive(Debug)]
pub struct Sweep {
    redirect: Redirect,
    next: Slot,
    share: Sharing,
}

impl Sweep {
    /// A redirect that is yet to begin.
    pub fn new(redirect: Redirect) -> Self {
        Self {
            redirect,
            next: 0,
            share: Sharing::default(),
        }
    }
}

/// Which of a number of connections are a share of them: as evenly spread as can be, and exact to one.
#[derive(Debug, Default)]
struct Sharing {
    /// How many have been asked about.
    seen: u64,
}

impl Sharing {
    /// Whether the next one is in the share.
    fn takes_next(&mut self, share: Percent) -> bool {
        let taken = |seen: u64| seen * u64::from(share.get()) / 100;
        self.seen += 1;
        taken(self.seen) > taken(self.seen - 1)
    }
}

enum Move {
    Moved,
    Reset,
    Kept,
    /// It is being spliced, and counted where that is done.
    Splicing,
    NotMeant,
}

impl Engine {
    /// Does the next `slots` slots of a redirect. Gives the outcome when there are no more; connections
    /// that wait to be spliced go on doing so ([`Engine::redirect_outcome`]).
    pub fn sweep(&mut self, sweep: &mut Sweep, slots: Slot, now: Time) -> Option<RedirectOutcome> {
        let all = self.connections.slots();
        let end = sweep.next.saturating_add(slots).min(all);
        for slot in sweep.next..end {
            let moved = self.redirect_one(slot, &sweep.redirect, &mut sweep.share, now);
            let outcome = self.outcome_mut(sweep.redirect.id);
            match moved {
                Move::Moved => outcome.moved += 1,
                Move::Reset => outcome.reset += 1,
                Move::Kept => outcome.kept += 1,
                Move::Splicing | Move::NotMeant => {}
            }
        }
        sweep.next = end;
        (end == all).then(|| *self.outcome_mut(sweep.redirect.id))
    }

    fn redirect_one(
        &mut self,
        slot: Slot,
        redirect: &Redirect,
        sharing: &mut Sharing,
        now: Time,
    ) -> Move {
        let Some(connection) = self.connections.get(slot).copied() else {
            return Move::NotMeant;
        };
        let protocol = connection.protocol();
        let service = connection.client_side().service;
        let client = connection.client_side().client.address;
        let mirror = connection.mirror_side().mirror;
        let Some(diversion) = self.diversions.find(client, service, protocol) else {
            return Move::NotMeant;
        };
        if diversion.id != redirect.diversion
            || matches!(connection.state, State::Closed | State::Reset)
        {
            return Move::NotMeant;
        }
        if redirect
            .from_mirror
            .is_some_and(|from| !is_on(mirror, &from))
        {
            return Move::Kept;
        }
        let stays = match redirect.share {
            Some(share) => !sharing.takes_next(share),
            None => diversion.has_mirror(service, mirror),
        };
        if stays {
            // Whatever an earlier redirect had in mind for it.
            self.call_off(slot, now);
            return Move::Kept;
        }
        // Until the mirror has answered the SYN there is nothing that another mirror wouldn't know.
        let is_open = protocol == Protocol::Tcp && connection.mirror.has(TcpProgress::BEGUN);
        if is_open && redirect.tcp == TcpMove::Splice {
            self.begin_move(slot, &connection, redirect, now);
            return Move::Splicing;
        }
        self.call_off(slot, now);
        if is_open && redirect.tcp == TcpMove::Reset {
            self.reset(slot, &connection, now);
            return Move::Reset;
        }
        let diversion = self.diversions.find(client, service, protocol);
        let Some((diversion, to)) = diversion.and_then(|diversion| {
            let is_left = |mirror| redirect.leaves().is_some_and(|from| is_on(mirror, &from));
            let to = diversion.pick_but(service, is_left, &mut self.random)?;
            Some((diversion.id, to))
        }) else {
            return Move::Kept;
        };
        if self.move_one(slot, &connection, to, diversion, now) {
            Move::Moved
        } else {
            Move::Kept
        }
    }

    pub(super) fn reset(&mut self, slot: Slot, connection: &Connection, now: Time) {
        let numbers = self.splices.joined(slot);
        self.outbox
            .extend(reset::both_ends(connection, &numbers.forward).map(Into::into));
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.state = State::Reset;
            connection.last_activity = now.tick();
        }
        self.enter(slot, State::Reset, now);
        self.counters.reset += 1;
    }

    /// Gives a connection another mirror. `false`: no proxy port is left there.
    fn move_one(
        &mut self,
        slot: Slot,
        connection: &Connection,
        mirror: Endpoint,
        diversion: DiversionId,
        now: Time,
    ) -> bool {
        let Some(side) = self.take_side(connection, mirror, now) else {
            return false;
        };
        self.switch(slot, connection, side, diversion);
        self.counters.moved += 1;
        true
    }

    /// Takes a place at another mirror for a connection: with the proxy port that it has, or with another
    /// if that is taken there. `None`: none is left.
    pub(super) fn take_side(
        &mut self,
        connection: &Connection,
        mirror: Endpoint,
        now: Time,
    ) -> Option<MirrorSide> {
        let protocol = connection.protocol();
        let old = *connection.mirror_side();
        let is_taken =
            |side: &MirrorSide| is_taken(&self.connections, &self.splices, &side.flow(protocol));
        let same_port = MirrorSide {
            proxy: old.proxy,
            mirror,
        };
        if self.pool.take_same(protocol, &same_port, is_taken) {
            return Some(same_port);
        }
        let client = connection.client_side().client;
        self.take_proxy(protocol, client, mirror, now).ok()
    }

    /// Moves a connection to a place at another mirror that was taken for it.
    pub(super) fn switch(
        &mut self,
        slot: Slot,
        connection: &Connection,
        side: MirrorSide,
        diversion: DiversionId,
    ) {
        let old = *connection.mirror_side();
        self.connections.move_to(slot, side);
        self.pool.give_back(slot, connection.protocol(), &old);
        let aggregate = self.change_aggregate(connection, diversion, side.mirror);
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.aggregate = aggregate;
        }
    }
}

/// Whether a connection's mirror is the one that is named; a name without a port means any port.
pub(super) fn is_on(mirror: Endpoint, named: &MirrorAddress) -> bool {
    mirror.address == named.address.into() && named.port.is_none_or(|port| port == mirror.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_exact_to_one_whatever_the_number() {
        for hundredths in 1..=100 {
            let share = Percent::new(hundredths).unwrap();
            let mut sharing = Sharing::default();
            let mut taken = 0;
            for seen in 1..=1000_u64 {
                taken += u64::from(sharing.takes_next(share));
                assert_eq!(
                    taken,
                    seen * u64::from(hundredths) / 100,
                    "{share} of {seen}"
                );
            }
        }
    }
}
