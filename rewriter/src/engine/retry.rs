//! Another mirror for a connection that its mirror has refused.
//!
//! A mirror whose service isn't running answers a SYN with a reset. Nothing has happened then that another
//! mirror would have to know of, and what the SYN said is known: so the engine gives the connection
//! another mirror of its diversion, and sends the SYN there itself. The client learns of it only if
//! that one refuses too, and so on: each mirror is tried once, and so many at most.

use std::collections::HashMap;

use ahash::RandomState;
use control_protocol::Protocol;

use super::segment::Segment;
use super::{Engine, Time, Verdict, measure, tcp};
use crate::packet::{Endpoint, TcpOffer, TcpSegment, Timestamps};
use crate::table::{Connection, Direction, MirrorSide, Slot, TcpProgress};

/// The connections that have been refused, and by whom.
#[derive(Debug)]
pub(super) struct Retries {
    /// How many mirrors are tried after the first.
    limit: usize,
    /// By connections whose present mirror hasn't answered yet.
    refused: HashMap<Slot, Vec<Endpoint>, RandomState>,
}

impl Retries {
    /// At most so many more mirrors for each connection.
    pub(super) fn limited_to(limit: u8) -> Self {
        Self {
            limit: limit.into(),
            refused: HashMap::default(),
        }
    }

    /// A connection has come further, or is gone.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.refused.remove(&slot);
    }

    fn of(&self, slot: Slot) -> &[Endpoint] {
        self.refused.get(&slot).map_or(&[], Vec::as_slice)
    }
}

impl Engine {
    /// Looks at a reset from the mirror of a connection whose handshake isn't complete, `length` bytes
    /// long. `Some`: the connection goes to another mirror, and the client needn't know.
    pub(super) fn retry_elsewhere(
        &mut self,
        slot: Slot,
        reset: &TcpSegment,
        length: usize,
        now: Time,
    ) -> Option<Verdict> {
        let connection = *self.connections.get(slot)?;
        let (client, mirror) = (&connection.client, &connection.mirror);
        // What a SYN brought of data (RFC 7413) isn't kept, so that it can't be sent again.
        let can_be_sent_again = client.has(TcpProgress::BEGUN) && client.sent == client.start;
        if mirror.has(TcpProgress::BEGUN)
            || !can_be_sent_again
            || !tcp::can_be_right(reset, mirror, client)
        {
            return None;
        }
        let old = connection.mirror_side().mirror;
        let refused = self.retries.of(slot);
        if refused.len() >= self.retries.limit {
            return None;
        }
        let client_side = *connection.client_side();
        let diversion = self.diversions.find(
            client_side.client.address,
            client_side.service,
            Protocol::Tcp,
        )?;
        let is_out = |mirror| mirror == old || refused.contains(&mirror);
        let mirror = diversion.pick_but(client_side.service, is_out, &mut self.random)?;
        let diversion = diversion.id;
        let side = self.take_side(&connection, mirror, now)?;
        if let Some(totals) = self.aggregates.totals_mut(connection.aggregate) {
            totals.refused += 1;
            let reverse = totals.one_way(Direction::Reverse);
            reverse.resets += 1;
            reverse.add_packet(length);
            totals.vitals.hear(now.nanos());
        }
        self.switch(slot, &connection, side, diversion);
        self.retries.refused.entry(slot).or_default().push(old);
        self.counters.retried += 1;
        let connection = self.connections.get_mut(slot)?;
        connection.last_activity = now.tick();
        measure::begin_handshake(connection, now);
        if let Some(totals) = self.aggregates.totals_mut(connection.aggregate) {
            totals.vitals.ask(now.nanos());
        }
        let connection = *connection;
        let syn = self.repetition(&connection, &side);
        self.outbox.extend(syn.build().map(Into::into));
        Some(Verdict::Held)
    }

    /// The client's SYN as it came, to another mirror.
    fn repetition(&self, connection: &Connection, side: &MirrorSide) -> Segment {
        let client = &connection.client;
        Segment {
            source: side.proxy,
            destination: side.mirror,
            sequence: client.start.wrapping_sub(1),
            acknowledgement: None,
            flags: TcpSegment::SYN,
            window: client.window,
            offer: TcpOffer {
                segment_size: self.announced_size(client, side),
                window_scale: client.window_scale(),
                sack: client.has(TcpProgress::SACK),
                timestamps: client.has(TcpProgress::TIMESTAMPS).then_some(Timestamps {
                    value: client.timestamp,
                    echo: 0,
                }),
            },
        }
    }

    /// The segment size that a mirror is told for a client: what the client's SYN said, lowered as far as that
    /// of any SYN. None: it said nothing.
    pub(super) fn announced_size(&self, client: &TcpProgress, side: &MirrorSide) -> Option<u16> {
        // What a segment has besides its data, without options.
        let headers = if side.proxy.address.is_v4() { 40 } else { 60 };
        let limit = self.mss_clamp.map(|mtu| mtu.saturating_sub(headers));
        (client.segment_size > 0)
            .then(|| limit.map_or(client.segment_size, |limit| limit.min(client.segment_size)))
    }
}
