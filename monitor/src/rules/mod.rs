//! The rules of a service: they bound what the optimiser may do.
//!
//! Rules are optional, and in order. For a client, at any time, the first rule counts that has the client
//! and holds at that time; it leaves the optimiser some [`Bounds`]. Where no rule counts, the optimiser is
//! free among all of the service's mirrors.
//!
//! - [`RuleConfig`] is a rule as it stands in the file; [`Rules::compile`] makes sure that the rules
//!   make sense together;
//! - [`times`] knows when a rule holds, [`locations`] which clients are at a place, [`bounds`] what the
//!   optimiser may do then;
//! - `groups` sorts clients by the rules that they have into [`ClientGroup`]s;
//! - [`maintenance`] is about mirrors, not services: when one is not to be used.
//!
//! Nothing here looks at a clock: the time is an argument.

pub mod bounds;
pub mod config;
pub mod error;
mod groups;
pub mod locations;
pub mod maintenance;
mod prefixes;
pub mod suggestion;
pub mod times;

use std::collections::BTreeSet;

use control_protocol::ClientPrefix;
use ipnet::IpNet;
use jiff::Timestamp;

pub use bounds::Bounds;
pub use config::{RuleConfig, WhenConfig};
pub use error::{RuleError, RuleLabel, RuleProblem};
pub use locations::{Locations, LocationsError};
pub use maintenance::{Maintenance, MaintenanceConfig, MaintenanceError, MaintenanceState};

use times::WeeklyTimes;

/// The most prefixes that the clients of one rule may be. Each becomes a diversion.
pub const MAX_PREFIXES: usize = 4096;

/// The name of the clients that no rule with prefixes has.
pub const EVERYONE: &str = "everyone";

/// The rules of one service, and its clients in groups.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    /// Everyone first.
    groups: Vec<ClientGroup>,
    /// Where no rule counts.
    free: Bounds,
}

/// Clients for whom the same rules count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientGroup {
    /// What people call it: the rules that make it a group, or [`EVERYONE`]. No two of a service's groups
    /// have the same.
    pub name: String,
    /// Where they are, in order; none for everyone. A client belongs to the group with the longest
    /// prefix that contains it, and to everyone if there is none. None has length 0.
    pub prefixes: Vec<ClientPrefix>,
    /// The rules that may count for them, in order.
    candidates: Vec<usize>,
}

/// What counts for a group at some time.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied<'a> {
    /// What the optimiser may do.
    pub bounds: &'a Bounds,
    /// The rule that says so; `None`: no rule does.
    pub rule: Option<&'a RuleLabel>,
    /// When another rule begins to count, or this one ends to; `None`: never.
    pub until: Option<Timestamp>,
}

#[derive(Debug)]
struct Rule {
    label: RuleLabel,
    /// Whose clients it has, in order, none in another; `None`: everyone.
    clients: Option<Vec<IpNet>>,
    when: WeeklyTimes,
    bounds: Bounds,
}

impl Rules {
    /// Makes sense of a service's rules, in their order, given the names of its mirrors in theirs.
    ///
    /// # Errors
    /// The first rule that can't be taken, and why.
    pub fn compile(
        configs: &[RuleConfig],
        mirrors: &[String],
        locations: Option<&Locations>,
    ) -> Result<Self, RuleError> {
        let mut rules = Vec::new();
        for (config, label) in configs.iter().zip(labels(configs)?) {
            match Rule::read(config, &label, mirrors, locations) {
                Ok(rule) => rules.push(rule),
                Err(problem) => {
                    return Err(RuleError {
                        rule: label,
                        problem,
                    });
                }
            }
        }
        let sorted = groups::sort(&rules);
        let label = |rule: &usize| rules.get(*rule).map(|rule| rule.label.clone());
        if let Some((hidden, earlier)) = sorted.hidden.first_key_value()
            && let Some(rule) = label(hidden)
        {
            return Err(RuleError {
                rule,
                problem: RuleProblem::NeverApplies {
                    earlier: earlier.iter().filter_map(label).collect(),
                },
            });
        }
        let mut groups = vec![ClientGroup {
            name: EVERYONE.to_owned(),
            prefixes: Vec::new(),
            candidates: sorted.everyone,
        }];
        for (candidates, prefixes) in sorted.groups {
            groups.push(ClientGroup {
                name: group_name(candidates.iter().filter_map(|rule| rules.get(*rule))),
                prefixes: prefixes.into_iter().map(ClientPrefix::from).collect(),
                candidates,
            });
        }
        Ok(Self {
            rules,
            groups,
            free: Bounds::all(mirrors.len()),
        })
    }

    /// The groups of clients; everyone is the first.
    pub fn groups(&self) -> &[ClientGroup] {
        &self.groups
    }

    /// What counts for one of these groups.
    pub fn bounds(&self, group: &ClientGroup, now: Timestamp) -> Applied<'_> {
        let mut until: Option<Timestamp> = None;
        for rule in group.candidates.iter().filter_map(|c| self.rules.get(*c)) {
            // A rule before the one that counts changes that by beginning to hold, and the one that counts
            // by ending to; the rules after it change nothing.
            until = earliest(until, rule.when.next_change(now));
            if rule.when.hold(now) {
                return Applied {
                    bounds: &rule.bounds,
                    rule: Some(&rule.label),
                    until,
                };
            }
        }
        Applied {
            bounds: &self.free,
            rule: None,
            until,
        }
    }

    /// When another rule counts for one of the groups; `None`: never.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.groups
            .iter()
            .filter_map(|group| self.bounds(group, now).until)
            .min()
    }
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}

/// The rules' labels, of which no two look the same.
fn labels(configs: &[RuleConfig]) -> Result<Vec<RuleLabel>, RuleError> {
    let labels: Vec<RuleLabel> = (1..)
        .zip(configs)
        .map(|(number, config)| RuleLabel {
            number,
            name: config.name.clone(),
        })
        .collect();
    let unnamed = labels.iter().filter(|label| label.name.is_none());
    let mut taken: BTreeSet<String> = unnamed.map(RuleLabel::short).collect();
    taken.extend([String::new(), EVERYONE.to_owned()]);
    for label in &labels {
        if let Some(name) = &label.name
            && !taken.insert(name.clone())
        {
            return Err(RuleError {
                rule: label.clone(),
                problem: RuleProblem::NameTaken { name: name.clone() },
            });
        }
    }
    Ok(labels)
}

/// The rules that have prefixes make a group what it is.
fn group_name<'a>(candidates: impl Iterator<Item = &'a Rule>) -> String {
    let names: Vec<String> = candidates
        .filter(|rule| rule.clients.is_some())
        .map(|rule| rule.label.short())
        .collect();
    names.join(" + ")
}

impl Rule {
    /// What one rule says by itself.
    fn read(
        config: &RuleConfig,
        label: &RuleLabel,
        mirrors: &[String],
        locations: Option<&Locations>,
    ) -> Result<Self, RuleProblem> {
        let when = match &config.when {
            None => WeeklyTimes::always(),
            Some(when) if when.days.is_empty() && when.hours.is_empty() => {
                return Err(RuleProblem::EmptyWhen);
            }
            Some(when) => WeeklyTimes::new(&when.days, &when.hours, when.zone.clone()),
        };
        Ok(Self {
            label: label.clone(),
            clients: clients(config, locations)?,
            when,
            bounds: Bounds::read(config, mirrors)?,
        })
    }
}

/// The clients that a rule has: those in its prefixes *and* at its places.
fn clients(
    config: &RuleConfig,
    locations: Option<&Locations>,
) -> Result<Option<Vec<IpNet>>, RuleProblem> {
    let from = (!config.from.is_empty()).then(|| {
        let prefixes = config.from.iter().map(|prefix| prefix.network()).collect();
        IpNet::aggregate(&prefixes)
    });
    let located = if config.location.is_empty() {
        None
    } else {
        let locations = locations.ok_or(RuleProblem::NoLocations)?;
        let mut prefixes = Vec::new();
        for location in &config.location {
            prefixes.extend(locations.find(location)?);
        }
        Some(IpNet::aggregate(&prefixes))
    };
    let clients = match (from, located) {
        (None, None) => return Ok(None),
        (Some(prefixes), None) | (None, Some(prefixes)) => prefixes,
        (Some(from), Some(located)) => prefixes::intersection(&from, &located),
    };
    let clients = prefixes::without_whole_families(clients);
    match clients.len() {
        0 => Err(RuleProblem::NoClients),
        found if found > MAX_PREFIXES => Err(RuleProblem::TooManyPrefixes {
            found,
            most: MAX_PREFIXES,
        }),
        _ => Ok(Some(clients)),
    }
}

#[cfg(test)]
mod tests;
