//! What is measured of a connection while its packets pass, and added to its aggregate's totals.
//!
//! Only headers are looked at, and nothing is sent. A round trip is timed from what one end sends to the
//! other end's acknowledgement of it, one at a time for each connection; a retransmission spoils it
//! (Karn's algorithm, RFC 6298, section 3). The rewriter stands in the middle, so it sees either half of
//! the way by itself: to the mirror and back, and to the client and back. What the acknowledging end
//! takes to acknowledge is in it, as it is in what the ends measure themselves.

use std::time::Duration;

use super::Time;
use super::tcp::{brings_news, later};
use crate::packet::TcpSegment;
use crate::table::{Connection, Direction, Latency, Timed, Timing, Totals};

/// Takes note of a TCP segment, before `tcp::follow` does.
pub(super) fn segment(
    connection: &mut Connection,
    totals: &mut Totals,
    direction: Direction,
    segment: &TcpSegment,
    now: Time,
) {
    // A reset answers nothing, and its numbers may be anything.
    if segment.has(TcpSegment::RST) {
        return;
    }
    let (sender, receiver) = match direction {
        Direction::Forward => (&mut connection.client, &connection.mirror),
        Direction::Reverse => (&mut connection.mirror, &connection.client),
    };
    let timing = &mut connection.timing;
    if timing.sampled == Some(direction.turned())
        && segment.has(TcpSegment::ACK)
        && later(timing.sample_end, segment.acknowledgement) == segment.acknowledgement
    {
        // Only a SYN ends where the data begins.
        let is_handshake = timing.sample_end == receiver.start;
        end_sample(timing, totals, direction, is_handshake, now);
    }
    let end = segment.next_sequence();
    if end == segment.sequence {
        return;
    }
    let is_new = brings_news(sender, segment);
    // A keep-alive probe may have an old byte in it (RFC 9293, section 3.8.4).
    let may_probe = segment.payload == 1 && end == segment.sequence.wrapping_add(1);
    if is_new {
        if timing.sampled.is_none() {
            timing.sampled = Some(direction);
            timing.sample_end = end;
            timing.sample_began = clock(now);
        }
    } else if !may_probe {
        sender.retransmissions = sender.retransmissions.saturating_add(1);
        totals.one_way(direction).retransmissions += 1;
        if timing.sampled == Some(direction) {
            timing.sampled = None;
        }
    }
    if segment.payload > 0 && is_new {
        data(connection, totals, direction, now);
    }
}

/// Begins to time the answer of another mirror to a SYN that the engine repeats.
pub(super) fn begin_handshake(connection: &mut Connection, now: Time) {
    let timing = &mut connection.timing;
    timing.sampled = Some(Direction::Forward);
    timing.sample_end = connection.client.start;
    timing.sample_began = clock(now);
}

/// Takes note of a datagram or an echo.
pub(super) fn datagram(
    connection: &mut Connection,
    totals: &mut Totals,
    direction: Direction,
    now: Time,
) {
    data(connection, totals, direction, now);
    connection.last_data = Some(direction);
}

/// Takes note of new data, before it counts as the last there was.
fn data(connection: &mut Connection, totals: &mut Totals, direction: Direction, now: Time) {
    match (direction, connection.last_data) {
        (Direction::Forward, _) => connection.timing.asked = clock(now),
        (Direction::Reverse, Some(Direction::Forward)) => {
            let time = elapsed(connection.timing.asked, now);
            connection.timing.first_byte = Some(Latency::new(time));
            totals.record(Timed::FirstByte, time);
        }
        (Direction::Reverse, _) => {}
    }
}

/// Ends the sample: what acknowledges it goes in `direction`.
fn end_sample(
    timing: &mut Timing,
    totals: &mut Totals,
    direction: Direction,
    is_handshake: bool,
    now: Time,
) {
    timing.sampled = None;
    let time = elapsed(timing.sample_began, now);
    let (handshake, average, timed) = match direction {
        Direction::Forward => (
            &mut timing.client_handshake,
            &mut timing.client_rtt,
            (Timed::ClientHandshake, Timed::ClientRtt),
        ),
        Direction::Reverse => (
            &mut timing.mirror_handshake,
            &mut timing.mirror_rtt,
            (Timed::MirrorHandshake, Timed::MirrorRtt),
        ),
    };
    if is_handshake {
        *handshake = Some(Latency::new(time));
        totals.record(timed.0, time);
    } else {
        totals.record(timed.1, time);
    }
    *average = Some(Latency::smoothed(*average, time));
}

/// A moment in the units of [`Timing`].
fn clock(now: Time) -> u32 {
    (now.nanos() >> Timing::SHIFT) as u32
}

/// How long it is since a moment.
fn elapsed(since: u32, now: Time) -> Duration {
    Duration::from_nanos(u64::from(clock(now).wrapping_sub(since)) << Timing::SHIFT)
}
