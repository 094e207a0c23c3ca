//! What a run that crashed left behind, and whether anybody else uses our numbers.
//!
//! A TUN that isn't persistent vanishes with its process, and its routes go with it. Rules and
//! filters stay: the rules lead to empty tables, but the filters drop what they match, since their
//! target is gone. Ours are known by their numbers together with [`ROUTE_PROTOCOL`] (rules and
//! routes) or with a redirection to our TUN or to one that is gone (filters). Anything else under
//! our numbers belongs to somebody, so nothing at all is touched; others' filters are no hindrance
//! where we need none. A `clsact` without filters that
//! a crashed run made can't be told from another's, so it stays; it does nothing.

use std::collections::{BTreeSet, HashMap};

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::tc::TcMessage;

use super::filter::{self, Found};
use super::netlink::Kernel;
use super::step::{Family, ROUTE_PROTOCOL};
use super::{Egress, RoutesError, Settings};

/// Removes what an earlier run left under our numbers, and logs a line if there was anything.
///
/// # Errors
/// Somebody else uses our numbers, and nothing was removed; or the kernel refuses a removal.
pub(super) async fn clear(
    kernel: &Kernel,
    settings: &Settings,
    tun_index: u32,
) -> Result<(), RoutesError> {
    let links = kernel.links().await?;
    let names = links
        .into_iter()
        .map(|link| (link.interface.index, link.interface.name))
        .collect();
    let survey = Survey {
        settings,
        tun_index,
        names,
    };

    let (mut routes, mut rules) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        for table in [settings.table, settings.everything_table()] {
            for route in kernel.routes(family, table).await? {
                survey.claim_route(&route, table)?;
                routes.push(RouteNetlinkMessage::DelRoute(route));
            }
        }
        for rule in kernel.rules(family).await? {
            if survey.claim_rule(&rule)? {
                rules.push(RouteNetlinkMessage::DelRule(rule));
            }
        }
    }
    let mut filters = BTreeSet::new();
    for interface in kernel.hooked().await? {
        let found = kernel.filters(interface).await?;
        let ours = survey.claim_filters(interface, &found)?;
        filters.extend(ours.into_iter().map(|preference| (interface, preference)));
    }

    if !(routes.is_empty() && rules.is_empty() && filters.is_empty()) {
        log::info!(
            "removing what an earlier run left: {} rules and {} routes of tables {} and {}, \
             {} filters",
            rules.len(),
            routes.len(),
            settings.table,
            settings.everything_table(),
            filters.len(),
        );
    }
    let filters = filters.into_iter().map(|(interface, preference)| {
        RouteNetlinkMessage::DelTrafficFilter(filter::key_message(interface, preference))
    });
    for message in rules.into_iter().chain(routes).chain(filters) {
        kernel.delete(message).await?;
    }
    Ok(())
}

/// Decides whose a finding is.
struct Survey<'a> {
    settings: &'a Settings,
    tun_index: u32,
    /// All interfaces that there are.
    names: HashMap<u32, String>,
}

impl Survey<'_> {
    fn name(&self, index: u32) -> String {
        self.names
            .get(&index)
            .cloned()
            .unwrap_or_else(|| format!("interface {index}"))
    }

    /// A route in one of our tables: ours, or an error.
    fn claim_route(&self, route: &RouteMessage, table: u32) -> Result<(), RoutesError> {
        let interface = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
        let by = match interface {
            Some(index) if index != self.tun_index => self.name(index),
            _ if route.header.protocol != RouteProtocol::from(ROUTE_PROTOCOL) => {
                "a route that Shunt didn't make".to_owned()
            }
            _ => return Ok(()),
        };
        Err(RoutesError::TableInUse { table, by })
    }

    /// Whether a rule is one of ours; an error, if it is another's that has our numbers.
    fn claim_rule(&self, rule: &RuleMessage) -> Result<bool, RoutesError> {
        let found = RuleFound::of(rule);
        let tables = [self.settings.table, self.settings.everything_table()];
        let our_table = found.table.filter(|table| tables.contains(table));
        let our_priority = self.settings.priorities().contains(&found.priority);
        if !found.by_shunt {
            let by = "a rule that Shunt didn't make".to_owned();
            return our_table.map_or(Ok(false), |table| {
                Err(RoutesError::TableInUse { table, by })
            });
        }
        let our_tun = found.incoming == Some(self.settings.tun.as_str());
        if !our_priority && !our_tun && our_table.is_none() {
            return Ok(false);
        }
        let alive = |name: &&str| {
            *name != "lo" && *name != self.settings.tun && self.names.values().any(|it| it == name)
        };
        if let Some(name) = found.incoming.filter(alive) {
            let by = name.to_owned();
            let priority = found.priority;
            return Err(RoutesError::PriorityInUse { priority, by });
        }
        if let (Some(table), None) = (found.table, our_table) {
            let (priority, by) = (found.priority, format!("the rules of table {table}"));
            return Err(RoutesError::PriorityInUse { priority, by });
        }
        Ok(true)
    }

    /// The preferences of those filters of an interface that are ours; an error, if there are
    /// another's that have our numbers and we need them. With [`Egress::Tun`] we don't.
    fn claim_filters(&self, interface: u32, found: &[TcMessage]) -> Result<Vec<u16>, RoutesError> {
        let owned: Vec<_> = found
            .iter()
            .filter_map(|it| self.filter_owner(it))
            .collect();
        let other = owned.iter().find_map(|(preference, owner)| match owner {
            Owner::Other(by) => Some((*preference, by.clone())),
            Owner::Us | Owner::Unknown => None,
        });
        if let (Egress::Raw { .. }, Some((preference, by))) = (self.settings.egress, &other) {
            return Err(RoutesError::PreferenceInUse {
                interface: self.name(interface),
                preference: *preference,
                by: by.clone(),
            });
        }
        let is_ours = |owner: &Owner| match owner {
            Owner::Us => true,
            Owner::Unknown => other.is_none(),
            Owner::Other(_) => false,
        };
        Ok(owned
            .into_iter()
            .filter_map(|(preference, owner)| is_ours(&owner).then_some(preference))
            .collect())
    }

    /// Whose a filter is that has one of our preferences.
    fn filter_owner(&self, message: &TcMessage) -> Option<(u16, Owner)> {
        let (preference, found) = filter::recognise(message);
        if !self.settings.preferences().contains(&preference) {
            return None;
        }
        let owner = match found {
            Found::Frame => return None,
            Found::Pass => Owner::Unknown,
            Found::Redirect(target) if target == self.tun_index => Owner::Us,
            Found::Redirect(target) => match self.names.get(&target) {
                Some(name) => Owner::Other(name.clone()),
                None => Owner::Us,
            },
            Found::Foreign => Owner::Other("a filter that Shunt didn't make".to_owned()),
        };
        Some((preference, owner))
    }
}

/// Who made a filter.
enum Owner {
    Us,
    /// Whoever made those that redirect packets from the same interface.
    Unknown,
    /// An interface's name, or what sort of filter it is.
    Other(String),
}

/// What a rule says about who made it.
struct RuleFound<'a> {
    priority: u32,
    /// The table that it looks up.
    table: Option<u32>,
    /// The interface that its packets came in by.
    incoming: Option<&'a str>,
    by_shunt: bool,
}

impl<'a> RuleFound<'a> {
    fn of(rule: &'a RuleMessage) -> Self {
        let looks_up = rule.header.action == RuleAction::ToTable;
        let table = looks_up.then(|| u32::from(rule.header.table));
        let mut found = Self {
            priority: 0,
            table,
            incoming: None,
            by_shunt: false,
        };
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => found.priority = *priority,
                RuleAttribute::Table(table) if looks_up => found.table = Some(*table),
                RuleAttribute::Iifname(name) => found.incoming = Some(name),
                RuleAttribute::Protocol(protocol) => {
                    found.by_shunt = *protocol == RouteProtocol::from(ROUTE_PROTOCOL);
                }
                _ => {}
            }
        }
        found
    }
}
