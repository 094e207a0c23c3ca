//! What a rule leaves to the optimiser.

use std::collections::BTreeSet;

use super::config::RuleConfig;
use super::error::{MirrorList, RuleProblem};
use super::suggestion::Suggestion;

/// Percent of the preferred mirrors' capacity from which on they have no room, unless a rule says
/// otherwise.
const USUAL_OVERFLOW_AT: f64 = 80.0;

/// The greatest share, far from where a sum of them would be infinite.
const MAX_SHARE: f64 = 1e9;

/// What the optimiser may do for a group of clients. Mirrors are positions in the service's list.
#[derive(Debug, Clone, PartialEq)]
pub enum Bounds {
    /// Share the clients' traffic among these mirrors as it likes; at least one.
    Free(BTreeSet<usize>),
    /// Nothing: each of the service's mirrors gets this share of the traffic. They add up to 1.
    Shares(Vec<f64>),
    /// Use the preferred mirrors, and the others only for what these have no room for.
    Prefer {
        /// The mirrors to use first; at least one.
        preferred: BTreeSet<usize>,
        /// The mirrors for the rest: none of the preferred, and perhaps none at all.
        overflow: BTreeSet<usize>,
        /// Part of the preferred mirrors' capacity from which on they have no room; above 0, at most 1.
        at: f64,
    },
}

impl Bounds {
    /// All of a service's mirrors, as many as it has.
    pub(super) fn all(mirrors: usize) -> Self {
        Self::Free((0..mirrors).collect())
    }

    /// What a rule says.
    pub(super) fn read(rule: &RuleConfig, mirrors: &[String]) -> Result<Self, RuleProblem> {
        let prefers = !rule.prefer.is_empty();
        if !prefers && (!rule.overflow.is_empty() || rule.overflow_at.is_some()) {
            return Err(RuleProblem::OverflowWithoutPrefer);
        }
        match (!rule.mirrors.is_empty(), &rule.shares, prefers) {
            (false, None, false) => Ok(Self::all(mirrors.len())),
            (true, None, false) => Ok(Self::Free(find_all(
                &rule.mirrors,
                mirrors,
                MirrorList::Mirrors,
            )?)),
            (false, Some(_), false) => read_shares(rule, mirrors),
            (false, None, true) => read_preference(rule, mirrors),
            _ => Err(RuleProblem::SeveralKinds),
        }
    }
}

fn read_shares(rule: &RuleConfig, mirrors: &[String]) -> Result<Bounds, RuleProblem> {
    let mut shares = vec![0.0; mirrors.len()];
    for (name, share) in rule.shares.iter().flatten() {
        if !(0.0..=MAX_SHARE).contains(share) {
            return Err(RuleProblem::BadShare {
                mirror: name.clone(),
                share: *share,
            });
        }
        let mirror = find(name, mirrors, MirrorList::Shares)?;
        if let Some(place) = shares.get_mut(mirror) {
            *place = *share;
        }
    }
    let sum: f64 = shares.iter().sum();
    if sum <= 0.0 {
        return Err(RuleProblem::NoShares);
    }
    Ok(Bounds::Shares(
        shares.into_iter().map(|share| share / sum).collect(),
    ))
}

fn read_preference(rule: &RuleConfig, mirrors: &[String]) -> Result<Bounds, RuleProblem> {
    let preferred = find_all(&rule.prefer, mirrors, MirrorList::Prefer)?;
    let overflow = if rule.overflow.is_empty() {
        (0..mirrors.len())
            .filter(|mirror| !preferred.contains(mirror))
            .collect()
    } else {
        find_all(&rule.overflow, mirrors, MirrorList::Overflow)?
    };
    if let Some(both) = preferred.intersection(&overflow).next() {
        return Err(RuleProblem::PreferredOverflow {
            mirror: mirrors.get(*both).cloned().unwrap_or_default(),
        });
    }
    let percent = rule.overflow_at.unwrap_or(USUAL_OVERFLOW_AT);
    if !(percent > 0.0 && percent <= 100.0) {
        return Err(RuleProblem::BadOverflowAt { percent });
    }
    Ok(Bounds::Prefer {
        preferred,
        overflow,
        at: percent / 100.0,
    })
}

fn find_all(
    names: &[String],
    mirrors: &[String],
    list: MirrorList,
) -> Result<BTreeSet<usize>, RuleProblem> {
    let mut found = BTreeSet::new();
    for name in names {
        if !found.insert(find(name, mirrors, list)?) {
            return Err(RuleProblem::MirrorTwice {
                list,
                mirror: name.clone(),
            });
        }
    }
    Ok(found)
}

fn find(name: &str, mirrors: &[String], list: MirrorList) -> Result<usize, RuleProblem> {
    mirrors
        .iter()
        .position(|mirror| mirror == name)
        .ok_or_else(|| RuleProblem::UnknownMirror {
            list,
            mirror: name.to_owned(),
            suggestion: Suggestion::closest(name, mirrors.iter().map(String::as_str)),
        })
}
