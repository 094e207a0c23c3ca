//! The old mirror of a connection that has moved on: it is told so, and answered for a while.

use std::time::Duration;

use control_protocol::{Protocol, Release};

use super::joined::{Joined, has_timestamps};
use super::{Stray, Timer, is_unheard};
use crate::engine::segment::Segment;
use crate::engine::tcp::later;
use crate::engine::{Engine, Time, reset};
use crate::packet::{Packet, TcpOffer, TcpSegment, Timestamps};
use crate::table::{Connection, MirrorSide, Slot};

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

/// The old mirror of a connection that has moved on.
#[derive(Debug)]
pub(super) struct Released {
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

impl Engine {
    /// Ends the connection at the mirror that it has left. `before`: as it was there.
    pub(super) fn release(
        &mut self,
        before: &Connection,
        numbers: &Joined,
        how: Release,
        now: Time,
    ) {
        let side = *before.mirror_side();
        // What the client last asked it may or may not have: only a reset is right in either case, since
        // its answer tells what it expects.
        let how = if is_unheard(before) {
            Release::Rst
        } else {
            how
        };
        let mut released = Released {
            side,
            sequence: before.mirror.acknowledged,
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

    pub(super) fn see_to_released(&mut self, number: u64, now: Time) {
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
    pub(super) fn answer(&mut self, packet: &Packet<'_>, segment: &TcpSegment) -> Option<Vec<u8>> {
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
            return reset::refuse(packet, segment);
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
