//! How far a TCP connection has come, as seen from the middle.

use super::talk;
use crate::packet::{Packet, TcpSegment};
use crate::table::{Connection, Direction, State, TcpProgress, Totals};

/// Takes note of a segment that passes.
pub(super) fn follow(
    connection: &mut Connection,
    totals: &mut Totals,
    direction: Direction,
    packet: &Packet<'_>,
    segment: &TcpSegment,
) {
    let is_question = begins_question(connection, direction, segment);
    if segment.payload > 0 {
        talk::listen(connection, direction, segment, packet.payload());
    }
    if is_question {
        let all_heard = connection.mirror.acknowledged == connection.client.sent;
        connection.client.set(TcpProgress::HEARD, !all_heard);
    }
    let acknowledged_before = connection.mirror.acknowledged;
    let (sender, receiver) = match direction {
        Direction::Forward => (&mut connection.client, &connection.mirror),
        Direction::Reverse => (&mut connection.mirror, &connection.client),
    };
    let receiver_has_begun = receiver.has(TcpProgress::BEGUN);
    let is_reset = segment.has(TcpSegment::RST) && can_be_right(segment, sender, receiver);
    if is_reset {
        sender.set(TcpProgress::RESET, true);
        totals.one_way(direction).resets += 1;
        let is_answer_to_syn = !sender.has(TcpProgress::BEGUN) && direction == Direction::Reverse;
        totals.refused += u64::from(is_answer_to_syn);
    }
    note(sender, packet, segment);
    if connection.mirror.acknowledged != acknowledged_before
        && connection.last_data == Some(Direction::Forward)
    {
        connection.client.set(TcpProgress::HEARD, true);
    }
    let (client, mirror) = (&connection.client, &connection.mirror);
    let has_finished = |end: &TcpProgress| end.has(TcpProgress::FINISHED);
    let both_finished = has_finished(client) && has_finished(mirror);
    let one_finished = has_finished(client) || has_finished(mirror);
    connection.state = match connection.state {
        _ if is_reset || both_finished => State::Closed,
        State::Closed | State::Reset => connection.state,
        _ if one_finished => State::Closing,
        State::Opening
            if direction == Direction::Forward
                && receiver_has_begun
                && segment.has(TcpSegment::ACK)
                && !segment.has(TcpSegment::SYN) =>
        {
            State::Established
        }
        state => state,
    };
}

/// Whether with this segment the client asks something, having been answered or having asked nothing before.
fn begins_question(connection: &Connection, direction: Direction, segment: &TcpSegment) -> bool {
    direction == Direction::Forward
        && segment.payload > 0
        && connection.last_data != Some(Direction::Forward)
        && brings_news(&connection.client, segment)
}

/// Whether the receiver may believe this reset. One that it can't believe goes through to it all the
/// same, but says nothing about the connection (the concern of RFC 5961, section 3).
pub(super) fn can_be_right(
    reset: &TcpSegment,
    sender: &TcpProgress,
    receiver: &TcpProgress,
) -> bool {
    if !sender.has(TcpProgress::BEGUN) {
        // The answer to a SYN (RFC 9293, section 3.10.7.3): it must acknowledge just that.
        return reset.has(TcpSegment::ACK) && reset.acknowledgement == receiver.sent;
    }
    // What the receiver expects next lies between what it has acknowledged and what was sent to it.
    let expected_from = if receiver.has(TcpProgress::ACKNOWLEDGED) {
        receiver.acknowledged
    } else {
        sender.sent
    };
    let expected_to = later(expected_from, sender.sent);
    reset.sequence.wrapping_sub(expected_from) <= expected_to.wrapping_sub(expected_from)
}

fn note(sender: &mut TcpProgress, packet: &Packet<'_>, segment: &TcpSegment) {
    if segment.has(TcpSegment::RST) {
        // A reset's numbers may be anything.
        return;
    }
    if segment.has(TcpSegment::SYN) {
        let offer = packet.tcp_offer();
        sender.set(TcpProgress::BEGUN, true);
        sender.sent = segment.next_sequence();
        sender.start = segment.sequence.wrapping_add(1);
        sender.segment_size = offer.segment_size.unwrap_or(0);
        sender.set_window_scale(offer.window_scale);
        sender.set(TcpProgress::SACK, offer.sack);
        sender.set(TcpProgress::TIMESTAMPS, offer.timestamps.is_some());
        sender.timestamp = offer.timestamps.map_or(0, |timestamps| timestamps.value);
        sender.window = segment.window;
    } else {
        sender.sent = later(sender.sent, segment.next_sequence());
        if sender.has(TcpProgress::TIMESTAMPS)
            && let Some(timestamps) = packet.timestamps()
        {
            sender.timestamp = later(sender.timestamp, timestamps.value);
        }
    }
    if segment.has(TcpSegment::ACK) {
        let acknowledged = if sender.has(TcpProgress::ACKNOWLEDGED) {
            later(sender.acknowledged, segment.acknowledgement)
        } else {
            segment.acknowledgement
        };
        if acknowledged == segment.acknowledgement {
            sender.window = segment.window;
        }
        sender.acknowledged = acknowledged;
        sender.set(TcpProgress::ACKNOWLEDGED, true);
    }
    if segment.has(TcpSegment::FIN) {
        sender.set(TcpProgress::FINISHED, true);
    }
}

/// Whether a segment brings something that its sender hasn't sent before, as far as was seen.
pub(super) fn brings_news(sender: &TcpProgress, segment: &TcpSegment) -> bool {
    !sender.has(TcpProgress::BEGUN) || later(sender.sent, segment.next_sequence()) != sender.sent
}

/// The later of two sequence numbers (RFC 9293, section 3.4: they go round).
pub(super) fn later(a: u32, b: u32) -> u32 {
    if b.wrapping_sub(a) < 1 << 31 { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_go_round() {
        assert_eq!(later(5, 9), 9);
        assert_eq!(later(9, 5), 9);
        assert_eq!(later(0xFFFF_FFF0, 4), 4);
        assert_eq!(later(4, 0xFFFF_FFF0), 4);
    }
}
