//! Resets that the engine sends of its own accord (RFC 9293, sections 3.5.2 and 3.10.7.1).

use super::segment::Segment;
use crate::packet::{Endpoint, Packet, Renumbering, TcpOffer, TcpSegment};
use crate::table::{ClientSide, Connection, MirrorSide, TcpProgress};

/// The resets that end an established connection at both ends.
///
/// A receiver believes a reset only if its sequence number is just the next one it expects (RFC
/// 5961, section 3.2). That is the receiver's last acknowledgement number, or, if segments are on
/// their way to it, one after them: so each end gets a reset for either case. `forward`: how what the
/// client sends is renumbered for the mirror.
pub(super) fn both_ends(
    connection: &Connection,
    forward: &Renumbering,
) -> impl Iterator<Item = Vec<u8>> {
    let ClientSide { client, service } = *connection.client_side();
    let MirrorSide { proxy, mirror } = *connection.mirror_side();
    let mut mirror_in_its_own_numbers = connection.mirror;
    mirror_in_its_own_numbers.sent = connection.mirror.sent.wrapping_add(forward.acknowledgement);
    to_end(service, client, &connection.mirror, &connection.client).chain(to_end(
        proxy,
        mirror,
        &connection.client,
        &mirror_in_its_own_numbers,
    ))
}

/// Resets to one end (`receiver`) in the name of the other (`sender`).
fn to_end(
    source: Endpoint,
    destination: Endpoint,
    sender: &TcpProgress,
    receiver: &TcpProgress,
) -> impl Iterator<Item = Vec<u8>> + use<> {
    let expected = receiver
        .has(TcpProgress::ACKNOWLEDGED)
        .then_some(receiver.acknowledged);
    let in_flight = (expected != Some(sender.sent)).then_some(sender.sent);
    let acknowledgement = receiver.sent;
    expected
        .into_iter()
        .chain(in_flight)
        .filter_map(move |sequence| build(source, destination, sequence, Some(acknowledgement)))
}

/// The answer to a segment from `source` to `destination` that belongs to no connection any more.
/// A reset isn't answered.
pub(super) fn answer(
    source: Endpoint,
    destination: Endpoint,
    segment: &TcpSegment,
) -> Option<Vec<u8>> {
    if segment.has(TcpSegment::RST) {
        None
    } else if segment.has(TcpSegment::ACK) {
        build(destination, source, segment.acknowledgement, None)
    } else {
        build(destination, source, 0, Some(segment.next_sequence()))
    }
}

/// A reset as a whole packet. `None` if the families differ, which those of one side never do.
fn build(
    source: Endpoint,
    destination: Endpoint,
    sequence: u32,
    acknowledgement: Option<u32>,
) -> Option<Vec<u8>> {
    Segment {
        source,
        destination,
        sequence,
        acknowledgement,
        flags: TcpSegment::RST,
        window: 0,
        offer: TcpOffer::default(),
    }
    .build()
}

/// The reset that answers a segment which belongs to no connection.
pub(super) fn refuse(packet: &Packet<'_>, segment: &TcpSegment) -> Option<Vec<u8>> {
    let flow = packet.flow()?;
    answer(flow.source, flow.destination, segment)
}
