//! The engines' state in the words of the control protocol.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{
    ConnectionInfo, ConnectionState, Counters, DiversionInfo, DiversionState, End, MirrorInfo,
    MirrorLiveness, Outcome, PeekInfo, Service, Splice, Timing, Traffic,
};

use crate::engine::{
    DropReason, Engine, MirrorSigns, Obstacle, RedirectOutcome, SpliceOrders, Time,
};
use crate::packet::Endpoint;
use crate::table::{Connection, Diversion, Latency, Slot, State, TcpProgress, TrafficCount};
use crate::worker::Report;

/// Slots that are looked at for one page: more would hold up the worker's packets.
const SLOTS_A_PAGE: Slot = 16_384;

/// Some of an engine's connections, from slot `first` on; and the slot to go on from.
pub(super) fn connections(
    engine: &Engine,
    first: Slot,
    limit: usize,
    service: Option<&Service>,
    now: Time,
) -> (Vec<ConnectionInfo>, Option<Slot>) {
    let table = engine.connections();
    let end = first.saturating_add(SLOTS_A_PAGE).min(table.slots());
    let mut found = Vec::new();
    for slot in first..end {
        if found.len() == limit {
            return (found, Some(slot));
        }
        if let Some(connection) = table.get(slot)
            && service.is_none_or(|service| is_to(connection, service))
        {
            found.push(connection_info(connection, now));
        }
    }
    (found, (end < table.slots()).then_some(end))
}

fn is_to(connection: &Connection, service: &Service) -> bool {
    let to = connection.client_side().service;
    to.address == service.address.into()
        && service.port.is_none_or(|port| port == to.port)
        && service
            .protocol
            .is_none_or(|protocol| protocol == connection.protocol())
}

fn connection_info(connection: &Connection, now: Time) -> ConnectionInfo {
    let client_side = connection.client_side();
    let mirror_side = connection.mirror_side();
    ConnectionInfo {
        protocol: connection.protocol(),
        client: client_side.client.into(),
        service: client_side.service.into(),
        proxy: mirror_side.proxy.into(),
        mirror: mirror_side.mirror.into(),
        state: match connection.state {
            State::Opening => ConnectionState::Opening,
            State::Established => ConnectionState::Established,
            State::Closing => ConnectionState::Closing,
            State::Closed | State::Reset => ConnectionState::Closed,
            State::Active => ConnectionState::Active,
        },
        idle_seconds: now.since(connection.last_activity.into()).as_secs(),
        forward: traffic(connection.forward_traffic),
        reverse: traffic(connection.reverse_traffic),
        age_seconds: now.since(connection.opened.into()).as_secs(),
        timing: timing(connection),
    }
}

fn timing(connection: &Connection) -> Timing {
    let measured = &connection.timing;
    let micros = |latency: Option<Latency>| {
        latency.map(|latency| u64::try_from(latency.duration().as_micros()).unwrap_or(u64::MAX))
    };
    let (client, mirror) = (&connection.client, &connection.mirror);
    Timing {
        mirror_handshake_us: micros(measured.mirror_handshake),
        client_handshake_us: micros(measured.client_handshake),
        mirror_rtt_us: micros(measured.mirror_rtt),
        client_rtt_us: micros(measured.client_rtt),
        first_byte_us: micros(measured.first_byte),
        client_retransmissions: client.retransmissions,
        mirror_retransmissions: mirror.retransmissions,
        icmp_errors: measured.icmp_errors,
        reset_by: [(client, End::Client), (mirror, End::Mirror)]
            .into_iter()
            .find_map(|(progress, end)| progress.has(TcpProgress::RESET).then_some(end)),
    }
}

fn traffic(count: TrafficCount) -> Traffic {
    Traffic {
        packets: count.packets,
        bytes: count.bytes,
    }
}

/// What a worker has counted. Drops are those of the engine, of the port (`egress_…`) and of the way
/// between workers.
pub(super) fn counters(report: &Report) -> Counters {
    let counted = &report.counters;
    let losses = report.losses;
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (reason.name(), counted.dropped(*reason)))
        .chain([
            ("handover_full", report.handover_full),
            ("egress_refused", losses.refused),
            ("egress_no_room", losses.no_room),
            ("egress_link_down", losses.link_down),
            ("egress_no_route", losses.no_route),
            ("egress_too_big", losses.too_big),
            ("egress_forbidden", losses.forbidden),
            ("egress_other", losses.other),
        ])
        .map(|(name, count)| (name.to_owned(), count))
        .collect();
    Counters {
        received: traffic(counted.received),
        translated_forward: traffic(counted.forward),
        translated_reverse: traffic(counted.reverse),
        passed: traffic(counted.passed),
        handed_over: counted.handed_over,
        held: traffic(counted.held),
        reassembled: counted.reassembled,
        connections: report.connections,
        created: counted.created,
        expired: counted.expired,
        evicted: counted.evicted,
        retried: counted.retried,
        moved: counted.moved,
        reset: counted.reset,
        drops,
    }
}

/// How connections are to be spliced.
pub(super) fn splice_orders(splice: &Splice) -> SpliceOrders {
    let Splice {
        within_ms,
        quiet_ms,
        then,
        otherwise,
        release,
        force,
        now,
    } = *splice;
    SpliceOrders {
        within: Duration::from_millis(within_ms),
        quiet: quiet_ms.map(Duration::from_millis),
        then,
        otherwise,
        release,
        force,
        now,
    }
}

/// What has become of a redirect's connections.
pub(super) fn outcome(outcome: &RedirectOutcome) -> Outcome {
    let refused = Obstacle::ALL.iter().zip(outcome.refused);
    Outcome {
        moved: outcome.moved,
        waiting: outcome.waiting,
        left: outcome.left,
        reset: outcome.reset,
        kept: outcome.kept,
        refused: refused
            .filter(|(_, count)| *count > 0)
            .map(|(obstacle, count)| (obstacle.name().to_owned(), count))
            .collect(),
        longest_hold_us: u64::try_from(outcome.longest_hold.as_micros()).unwrap_or(u64::MAX),
    }
}

/// A mirror's vital signs.
pub(super) fn mirror_liveness(mirror: Endpoint, signs: &MirrorSigns, now: Time) -> MirrorLiveness {
    let ago = |at: Option<Time>| {
        at.map(|at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX))
    };
    MirrorLiveness {
        mirror: mirror.into(),
        connections: signs.connections,
        heard_ms: ago(signs.heard()),
        unanswered: signs.unanswered(),
        waiting_ms: ago(signs.waiting_since()),
        refused: signs.refused,
        resets: signs.resets,
        icmp_errors: signs.icmp_errors,
    }
}

/// A diversion with the connections that are on each mirror now.
pub(super) fn diversion_info(
    diversion: &Diversion,
    state: DiversionState,
    held: bool,
    usage: &BTreeMap<Endpoint, u64>,
) -> DiversionInfo {
    let mut left = usage.clone();
    let mut mirrors: Vec<MirrorInfo> = Vec::new();
    if state == DiversionState::Active {
        for mirror in &diversion.mirrors {
            let port = mirror.port.or(diversion.service.port);
            let is_here = |endpoint: &Endpoint| {
                endpoint.address == mirror.address.into()
                    && port.is_none_or(|port| port == endpoint.port)
            };
            let connections = left
                .extract_if(.., |endpoint, _| is_here(endpoint))
                .map(|(_, count)| count)
                .sum();
            mirrors.push(MirrorInfo {
                address: mirror.address,
                port: mirror.port,
                weight: mirror.weight,
                connections,
            });
        }
    }
    for (endpoint, connections) in left {
        let address = SocketAddr::from(endpoint);
        mirrors.push(MirrorInfo {
            address: address.ip(),
            port: (address.port() != 0).then_some(address.port()),
            weight: 0,
            connections,
        });
    }
    DiversionInfo {
        service: diversion.service,
        from: diversion.from,
        mirrors,
        state,
        held,
        peek: diversion.peek.as_ref().map(|peek| PeekInfo {
            names: peek.names().map(|names| names as u64),
        }),
    }
}
