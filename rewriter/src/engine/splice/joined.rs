//! The numbers in which a spliced connection's mirror differs from what the client knows.

use crate::engine::segment::Segment;
use crate::packet::{Renumbering, TcpOffer, TcpSegment, Timestamps, WindowScales};
use crate::table::{Connection, MirrorSide, TcpProgress};

/// By how much the numbers of a spliced connection's mirror differ from those the client knows.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::engine) struct Joined {
    /// For what the client sends.
    pub forward: Renumbering,
    /// For what the mirror sends.
    pub reverse: Renumbering,
}

impl Joined {
    /// For a connection that goes on at a mirror which has answered with this SYN-ACK.
    pub(super) fn between(connection: &Connection, syn: &TcpSegment, offer: &TcpOffer) -> Self {
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

/// Whether both ends scale their windows.
fn is_scaled(connection: &Connection) -> bool {
    connection.client.window_scale().is_some() && connection.mirror.window_scale().is_some()
}

/// How the client's windows are scaled, and how it takes the mirror's to be.
pub(super) fn scales(connection: &Connection) -> WindowScales {
    match (
        connection.client.window_scale(),
        connection.mirror.window_scale(),
    ) {
        (Some(from), Some(to)) => WindowScales { from, to },
        _ => WindowScales::default(),
    }
}

/// Whether the connection's segments have timestamps.
pub(super) fn has_timestamps(connection: &Connection) -> bool {
    connection.client.has(TcpProgress::TIMESTAMPS) && connection.mirror.has(TcpProgress::TIMESTAMPS)
}

/// An acknowledgement to a spliced connection's mirror, in the client's name.
pub(super) fn acknowledge(
    connection: &Connection,
    joined: &Joined,
    acknowledgement: u32,
) -> Segment {
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
