//! What the brain knows and has decided, in the words of the control protocol.

use std::time::Duration;

use control_protocol::{CheckState, Decision, MirrorShare, MirrorState, NameAddress, Service};
use jiff::Timestamp;

use crate::brain::{self, Brain, Change, Mirror, Settings};
use crate::check::Health;
use crate::config::ServiceConfig;
use crate::monitor::check_health;
use crate::naming::Names;

/// A decision: one for each group of clients that it concerns, all with its number.
pub fn decision(decision: &brain::Decision, brain: &Brain, at: Timestamp) -> Vec<Decision> {
    let service = &brain.services()[decision.service];
    let of_group = |change: Option<&Change>| {
        let group = change.map(|change| &service.groups[change.group]);
        let shares = |shares: Option<&Vec<f64>>| {
            let shares = shares.into_iter().flatten().enumerate();
            shares
                .filter(|(_, share)| **share > 0.0)
                .map(|(mirror, share)| MirrorShare {
                    mirror: brain.mirrors()[mirror].name().to_owned(),
                    share: finite(*share).unwrap_or(0.0),
                })
                .collect()
        };
        let orders = decision
            .orders
            .iter()
            .filter(|order| group.is_none_or(|group| group.prefixes.contains(&order.from)));
        let cost = decision.cost;
        Decision {
            number: decision.number,
            at: format!("{at:.3}"),
            age_ms: 0,
            service: Some(service.address),
            clients: group.map_or("everyone", |group| &group.name).to_owned(),
            kind: decision.kind.to_string(),
            reason: decision.reason.clone(),
            from: shares(change.map(|change| &change.from)),
            to: shares(change.map(|change| &change.to)),
            cost_before_ms: cost.and_then(|(before, _)| finite(before * 1e3)),
            cost_after_ms: cost.and_then(|(_, after)| finite(after * 1e3)),
            improvement_percent: cost
                .and_then(|(before, after)| finite(100.0 * (before - after) / before)),
            moved: 0,
            instructions: orders.map(brain::Order::words).collect(),
            errors: Vec::new(),
        }
    };
    if decision.changes.is_empty() {
        return vec![of_group(None)];
    }
    decision.changes.iter().map(Some).map(of_group).collect()
}

/// What is thought of a mirror.
pub fn mirror(mirror: &Mirror, health: &Health, settings: &Settings, now: Duration) -> MirrorState {
    let (vitals, queue) = (mirror.vitals(), mirror.queue());
    let wish = match (vitals.wish, vitals.planned) {
        (brain::Wish::Maintenance, _) | (_, brain::Planned::Down) => {
            control_protocol::Wish::Maintenance
        }
        (brain::Wish::Drain, _) | (_, brain::Planned::Draining(_)) => control_protocol::Wish::Drain,
        (brain::Wish::None, brain::Planned::Nothing) => control_protocol::Wish::None,
    };
    let milliseconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e3);
    MirrorState {
        name: mirror.name().to_owned(),
        address: mirror.address().to_string(),
        state: match vitals.state {
            brain::State::Up => control_protocol::Health::Up,
            brain::State::Down => control_protocol::Health::Down,
            brain::State::Unknown => control_protocol::Health::Unknown,
        },
        wish,
        reason: vitals.reason.clone(),
        rate: finite(mirror.rate()).unwrap_or(0.0),
        response_ms: mirror
            .response()
            .and_then(|response| finite(response * 1e3)),
        capacity: queue.and_then(|queue| finite(queue.capacity())),
        service_time_ms: queue.and_then(|queue| finite(queue.service_time() * 1e3)),
        utilisation: mirror.utilisation().and_then(finite),
        model_error_percent: mirror.model_error().and_then(|error| finite(error * 100.0)),
        connections: mirror.connections(),
        share_cap: mirror.share_cap(settings, now),
        checks: health
            .checks()
            .iter()
            .map(|check| CheckState {
                kind: check.kind.to_owned(),
                state: check_health(check.state),
                detail: check.detail.clone(),
                latency_ms: milliseconds(check.latency),
            })
            .collect(),
    }
}

/// The share of new connections that each mirror has, by service, clients and mirror's name.
pub fn shares(brain: &Brain) -> Vec<(Service, String, String, f64)> {
    let mut all = Vec::new();
    for service in brain.services() {
        for group in &service.groups {
            for mirror in &service.mirrors {
                let share = group.shares.as_ref().map_or(0.0, |shares| shares[*mirror]);
                let name = brain.mirrors()[*mirror].name().to_owned();
                all.push((service.address, group.name.clone(), name, share));
            }
        }
    }
    all
}

/// What the services' names are to have: the addresses of the mirrors that get new connections of everybody, by
/// share. A service whose shares aren't known yet has no names yet, and one that a person has in hand none any more.
pub fn names(services: &[ServiceConfig], brain: &Brain) -> Names {
    let mut names = Names::new();
    for (config, service) in services.iter().zip(brain.services()) {
        let everyone = service.groups.iter().find(|group| group.prefixes == [None]);
        let Some(shares) = everyone.and_then(|group| group.shares.as_ref()) else {
            continue;
        };
        if service.is_held {
            continue;
        }
        let mirrors = config.mirrors.iter();
        let addresses: Vec<NameAddress> = mirrors
            .filter(|mirror| shares[**mirror] > 0.0)
            .map(|mirror| NameAddress {
                address: brain.mirrors()[*mirror].address().address,
                weight: (shares[*mirror] * 1000.0).round().clamp(1.0, 1000.0) as u16,
            })
            .collect();
        if addresses.is_empty() {
            continue;
        }
        for name in &config.names {
            names.insert(name.clone(), (addresses.clone(), config.ttl));
        }
    }
    names
}

fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}
