//! Resets that the engine sends of its own accord (RFC 9293, sections 3.5.2 and 3.10.7.1).

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;

use crate::packet::{Endpoint, TcpSegment};
use crate::table::{ClientSide, Connection, MirrorSide, TcpProgress};

const HOP_LIMIT: u8 = 64;

/// The resets that end an established connection at both ends.
///
/// A receiver believes a reset only if its sequence number is just the next one it expects (RFC
/// 5961, section 3.2). That is the receiver's last acknowledgement number, or, if segments are on
/// their way to it, one after them: so each end gets a reset for either case.
pub(super) fn both_ends(connection: &Connection) -> impl Iterator<Item = Vec<u8>> {
    let ClientSide { client, service } = *connection.client_side();
    let MirrorSide { proxy, mirror } = *connection.mirror_side();
    to_end(service, client, &connection.mirror, &connection.client).chain(to_end(
        proxy,
        mirror,
        &connection.client,
        &connection.mirror,
    ))
}

/// Resets to one end (`receiver`) in the name of the other (`sender`).
fn to_end(
    source: Endpoint,
    destination: Endpoint,
    sender: &TcpProgress,
    receiver: &TcpProgress,
) -> impl Iterator<Item = Vec<u8>> {
    let expected = receiver.has_acknowledged.then_some(receiver.acknowledged);
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
    let ip = match (
        SocketAddr::from(source).ip(),
        SocketAddr::from(destination).ip(),
    ) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), HOP_LIMIT)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), HOP_LIMIT)
        }
        _ => return None,
    };
    let tcp = ip.tcp(source.port, destination.port, sequence, 0).rst();
    let tcp = match acknowledgement {
        Some(number) => tcp.ack(number),
        None => tcp,
    };
    let mut packet = Vec::with_capacity(tcp.size(0));
    // Writing to a vector doesn't fail.
    tcp.write(&mut packet, &[]).ok()?;
    Some(packet)
}
