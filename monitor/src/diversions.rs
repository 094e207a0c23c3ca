//! The diversions that a rewriter lists, held against what the brain thinks.

use std::collections::HashSet;

use control_protocol::{DiversionInfo, DiversionState, ListResult, Service};

use crate::assign::{Shares, normalised};
use crate::brain::{Group, Mirror, Order, ServiceMind};

/// Whether a person has a service in hand.
pub fn is_held(list: &ListResult, service: &Service) -> bool {
    let has_hold = list.holds.iter().any(|hold| hold.covers(service));
    let is_marked = |diversion: &DiversionInfo| diversion.held && diversion.service == *service;
    has_hold || list.diversions.iter().any(is_marked)
}

/// Whether there is the diversion that an order would set.
pub fn is_in_force(list: &ListResult, order: &Order) -> bool {
    let wanted: HashSet<_> = order
        .mirrors
        .iter()
        .map(|mirror| (mirror.address, mirror.port, mirror.weight))
        .collect();
    active(list).any(|diversion| {
        let has: HashSet<_> = diversion
            .mirrors
            .iter()
            .filter(|mirror| mirror.weight > 0)
            .map(|mirror| (mirror.address, mirror.port, mirror.weight))
            .collect();
        diversion.service == order.service && diversion.from == order.from && has == wanted
    })
}

/// The shares that the diversions give a group; none where they aren't there for all its clients, or name others than
/// the service's mirrors.
pub fn shares(
    list: &ListResult,
    service: &ServiceMind,
    group: &Group,
    mirrors: &[Mirror],
) -> Option<Shares> {
    let mut found = None;
    for prefix in &group.prefixes {
        let diversion = active(list)
            .find(|diversion| diversion.service == service.address && diversion.from == *prefix)?;
        let mut weights = vec![0.0; mirrors.len()];
        for mirror in diversion.mirrors.iter().filter(|mirror| mirror.weight > 0) {
            let number = service.mirrors.iter().copied().find(|number| {
                let address = mirrors[*number].address();
                let port = |port: Option<u16>| port.or(service.address.port);
                address.address == mirror.address && port(address.port) == port(mirror.port)
            })?;
            weights[number] += f64::from(mirror.weight);
        }
        found = found.or(Some(normalised(&weights)?));
    }
    found
}

fn active(list: &ListResult) -> impl Iterator<Item = &DiversionInfo> {
    let diversions = list.diversions.iter();
    diversions.filter(|diversion| diversion.state == DiversionState::Active)
}
