//! Decisions that can't wait: the first diversion, a dead mirror, one that is to be emptied, a rule that says
//! otherwise than before.
//!
//! They take mirrors out, and give what those had to the others; what the others have they keep. So they undo
//! nothing that was decided with more care.

use std::time::Duration;

use control_protocol::MirrorAddress;

use super::decision::weights;
use super::{Action, Brain, Change, Decision, Group, Kind, Order, Standing};
use crate::assign::{Problem, Shares, Want, distance, normalised};

/// How long a service may wait for its mirrors' first checks before it gets its first diversion without them.
const FIRST_CHECKS: Duration = Duration::from_secs(5);
/// How long connections of a mirror that drains without a deadline may wait to be spliced.
const DRAIN_WITHIN: Duration = Duration::from_secs(600);
/// How long those of a mirror whose time is over may.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Shares that differ by less are the same.
const SAME: f64 = 0.005;

impl Brain {
    /// What can't wait for a service, if anything can't.
    pub(super) fn urgent(&mut self, service: usize, now: Duration) -> Option<Decision> {
        self.services[service].met.get_or_insert(now);
        if self.services[service].is_held {
            return None;
        }
        if self.has_to_start(service) {
            return self.start(service, now);
        }
        let out = self.out(service);
        let leaving: Vec<usize> = out
            .iter()
            .copied()
            .filter(|mirror| self.services[service].uses(*mirror))
            .collect();
        if leaving.is_empty() {
            self.rule(service, now)
                .or_else(|| self.heed_agents(service, now))
        } else {
            self.take_out(service, &leaving, now)
        }
        .or_else(|| self.complain(service, now))
    }

    fn has_to_start(&self, service: usize) -> bool {
        let groups = &self.services[service].groups;
        groups.iter().any(|group| group.shares.is_none())
    }

    /// Gives a service its first diversions, as soon as its mirrors are known.
    fn start(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let mind = &self.services[service];
        let standings = || {
            mind.mirrors
                .iter()
                .map(|mirror| self.mirrors[*mirror].standing())
        };
        let is_known = standings().all(|standing| standing != Standing::Unknown);
        let has_waited = now.saturating_sub(mind.met.unwrap_or(now)) >= FIRST_CHECKS;
        let is_any_usable = standings().any(|standing| standing == Standing::Usable);
        let may_start = is_known || has_waited && is_any_usable;
        if !may_start {
            return None;
        }
        let mut problem = self.problem(service);
        // What isn't known has no share to keep, and gets none.
        let out: Vec<usize> = if is_any_usable {
            let is_usable = |mirror: &usize| self.mirrors[*mirror].standing() == Standing::Usable;
            let mirrors = mind.mirrors.iter().copied();
            mirrors.filter(|mirror| !is_usable(mirror)).collect()
        } else {
            Vec::new()
        };
        for demand in &mut problem.demands {
            for mirror in &mind.mirrors {
                demand.caps[*mirror] = if out.contains(mirror) { 0.0 } else { 1.0 };
            }
        }
        let mut changes = Vec::new();
        for (number, group) in mind.groups.iter().enumerate() {
            if group.shares.is_some() {
                continue;
            }
            let to = match &group.want {
                Want::Free(_) => {
                    let usable = problem.demands[number].usable();
                    self.by_capacity(&usable)
                }
                Want::Fixed(_) | Want::Prefer { .. } => {
                    let nothing = vec![vec![0.0; self.mirrors.len()]; problem.demands.len()];
                    problem.best(&crate::assign::Assignment(nothing)).0[number].clone()
                }
            };
            if to.iter().sum::<f64>() > 0.0 {
                changes.push(Change {
                    group: number,
                    from: vec![0.0; self.mirrors.len()],
                    to,
                });
            }
        }
        if changes.is_empty() {
            return self.complain(service, now);
        }
        let reason = format!("the first diversion: {}", self.shares_in_words(&changes));
        let stay = |_: &Brain, _: &Change| vec![Action::Stay];
        Some(self.decide_on(service, now, Kind::Start, reason, changes, None, stay))
    }

    /// Shares by what the mirrors are said or known to be capable of; equal ones, where that isn't known of all.
    fn by_capacity(&self, among: &[usize]) -> Shares {
        let is_known = among
            .iter()
            .all(|mirror| self.mirrors[*mirror].queue().is_some());
        let weight = |mirror: usize| match self.mirrors[mirror].queue() {
            _ if !among.contains(&mirror) => 0.0,
            Some(queue) if is_known => queue.capacity(),
            _ => 1.0,
        };
        let weights: Vec<f64> = (0..self.mirrors.len()).map(weight).collect();
        normalised(&weights).unwrap_or(weights)
    }

    /// Takes mirrors out that must not be used any more.
    fn take_out(&mut self, service: usize, leaving: &[usize], now: Duration) -> Option<Decision> {
        let problem = self.problem(service);
        let mut changes = Vec::new();
        for (number, group) in self.services[service].groups.iter().enumerate() {
            let Some(from) = &group.shares else { continue };
            if leaving.iter().all(|mirror| from[*mirror] <= 0.0) {
                continue;
            }
            let to = problem.without(number, from, leaving);
            // A rule may leave this group nowhere to go.
            if to.iter().sum::<f64>() > 0.0 {
                changes.push(Change {
                    group: number,
                    from: from.clone(),
                    to,
                });
            }
        }
        if changes.is_empty() {
            return None;
        }
        let is_dead = |mirror: &&usize| self.mirrors[**mirror].standing() == Standing::Dead;
        let kind = if leaving.iter().any(|mirror| is_dead(&mirror)) {
            Kind::Failover
        } else {
            Kind::Drain
        };
        let whose: Vec<String> = leaving.iter().map(|mirror| self.why_out(*mirror)).collect();
        let reason = format!(
            "{}; now {}",
            whose.join(", and "),
            self.shares_in_words(&changes)
        );
        let leaving = leaving.to_vec();
        let actions = move |brain: &Brain, change: &Change| {
            leaving
                .iter()
                .filter(|mirror| change.from[**mirror] > 0.0)
                .filter_map(|mirror| brain.leave(service, *mirror))
                .collect()
        };
        Some(self.decide_on(service, now, kind, reason, changes, None, actions))
    }

    /// How connections leave a mirror that must not be used any more.
    fn leave(&self, service: usize, mirror: usize) -> Option<Action> {
        let from = self.mirror_address(service, mirror)?;
        Some(match self.mirrors[mirror].standing() {
            Standing::Dead => Action::Flee(from),
            Standing::Away => Action::Leave {
                mirror: from,
                percent: None,
                within: LAST_MOMENT,
                or_reset: true,
            },
            Standing::Draining(left) => Action::Leave {
                mirror: from,
                percent: None,
                within: left.unwrap_or(DRAIN_WITHIN),
                or_reset: false,
            },
            Standing::Usable | Standing::Unknown => return None,
        })
    }

    /// Does as the rules say, where they now say otherwise than what is in force.
    fn rule(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let mut problem = self.problem(service);
        let mut changes = Vec::new();
        for (number, group) in self.services[service].groups.iter().enumerate() {
            let Some(from) = &group.shares else { continue };
            let to = match &group.want {
                Want::Fixed(_) => problem.best(&self.in_force(service, &problem)).0[number].clone(),
                Want::Free(_) | Want::Prefer { .. } => {
                    let forbidden = forbidden(group, from);
                    if forbidden.is_empty() {
                        continue;
                    }
                    for mirror in &forbidden {
                        problem.demands[number].caps[*mirror] = 0.0;
                    }
                    problem.without(number, from, &forbidden)
                }
            };
            if to.iter().sum::<f64>() > 0.0 && distance(from, &to) > SAME {
                changes.push(Change {
                    group: number,
                    from: from.clone(),
                    to,
                });
            }
        }
        if changes.is_empty() {
            return None;
        }
        let group = &self.services[service].groups[changes[0].group];
        let rule = match &group.rule {
            Some(rule) => format!("the rule {rule:?} applies"),
            None => "no rule applies any more".to_owned(),
        };
        let reason = format!("{rule}: {}", self.shares_in_words(&changes));
        let actions = move |brain: &Brain, change: &Change| brain.even_out(service, change, false);
        Some(self.decide_on(service, now, Kind::Rule, reason, changes, None, actions))
    }

    /// Gives mirrors the part of their share that their agents want.
    fn heed_agents(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let mind = &self.services[service];
        let part = |mirror: usize| self.mirrors[mirror].vitals().weight;
        let before = |mirror: usize| mind.parts.get(&mirror).copied().unwrap_or(1.0);
        let changed: Vec<(usize, f64, f64)> = mind
            .mirrors
            .iter()
            .copied()
            .filter(|mirror| self.mirrors[*mirror].standing() == Standing::Usable)
            .map(|mirror| (mirror, before(mirror), part(mirror)))
            .filter(|(_, before, part)| (before - part).abs() > SAME)
            .collect();
        if changed.is_empty() {
            return None;
        }
        let mut changes = Vec::new();
        for (number, group) in mind.groups.iter().enumerate() {
            let Some(from) = &group.shares else { continue };
            // What a rule fixes an agent doesn't change.
            if matches!(group.want, Want::Fixed(_)) {
                continue;
            }
            let mut to = from.clone();
            for (mirror, before, part) in &changed {
                to[*mirror] *= part / before;
            }
            if let Some(to) = normalised(&to)
                && distance(from, &to) > SAME
            {
                changes.push(Change {
                    group: number,
                    from: from.clone(),
                    to,
                });
            }
        }
        let wishes: Vec<String> = changed
            .iter()
            .map(|(mirror, _, part)| {
                let name = self.mirrors[*mirror].name();
                format!("{name}'s agent wants {:.0} % of its load", part * 100.0)
            })
            .collect();
        for (mirror, _, part) in changed {
            self.services[service].parts.insert(mirror, part);
        }
        if changes.is_empty() {
            return None;
        }
        let reason = format!(
            "{}: {}",
            wishes.join(", and "),
            self.shares_in_words(&changes)
        );
        let actions = move |brain: &Self, change: &Change| brain.even_out(service, change, false);
        Some(self.decide_on(service, now, Kind::Agent, reason, changes, None, actions))
    }

    /// Says, once, that mirrors are kept that should be out.
    fn complain(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let mind = &self.services[service];
        let kept: Vec<&str> = mind
            .mirrors
            .iter()
            .filter(|mirror| !self.mirrors[**mirror].is_fit() && mind.uses(**mirror))
            .map(|mirror| self.mirrors[*mirror].name())
            .collect();
        if kept.is_empty() {
            self.services[service].said = None;
            return None;
        }
        let fit = mind
            .mirrors
            .iter()
            .filter(|mirror| self.mirrors[**mirror].is_fit());
        let reason = match fit.count() {
            0 => "all mirrors look dead, so everything stays as it was".to_owned(),
            fit if fit < self.settings.min_mirrors => format!(
                "{} should be out of use, but at least {} mirrors have to stay",
                kept.join(" and "),
                self.settings.min_mirrors
            ),
            _ => format!(
                "{} should be out of use, but the rules leave some clients no other mirror",
                kept.join(" and ")
            ),
        };
        if self.services[service].said.as_ref() == Some(&reason) {
            return None;
        }
        self.services[service].said = Some(reason.clone());
        let stay = |_: &Brain, _: &Change| Vec::new();
        Some(self.decide_on(service, now, Kind::None, reason, Vec::new(), None, stay))
    }

    fn why_out(&self, mirror: usize) -> String {
        let mirror = &self.mirrors[mirror];
        let name = mirror.name();
        match mirror.standing() {
            Standing::Dead => format!("{name} is down ({})", mirror.vitals().reason),
            Standing::Away => format!("{name} is under maintenance"),
            Standing::Draining(Some(left)) => format!(
                "{name} is to be empty in {}",
                humantime::format_duration(Duration::from_secs(left.as_secs()))
            ),
            Standing::Draining(None) => format!("{name} asks to be drained"),
            Standing::Usable | Standing::Unknown => format!("{name} is in use"),
        }
    }

    /// The shares that are in force in a service's groups, and those that a problem has beside them.
    pub(super) fn in_force(&self, service: usize, problem: &Problem) -> crate::assign::Assignment {
        let groups = &self.services[service].groups;
        let own = groups.iter().map(|group| {
            let nowhere = || vec![0.0; self.mirrors.len()];
            group.shares.clone().unwrap_or_else(nowhere)
        });
        crate::assign::Assignment(own.chain(problem.fixed(groups.len())).collect())
    }

    /// A mirror as orders for a service name it.
    pub(super) fn mirror_address(&self, service: usize, mirror: usize) -> Option<MirrorAddress> {
        let address = self.mirrors[mirror].address();
        let port = self.address(service, mirror).map(|address| address.port());
        Some(MirrorAddress { port, ..address })
    }

    /// Puts changes in force, and makes the decision and its orders of them. `actions` tells what becomes of a group's
    /// existing connections; where it has nothing to say, they stay.
    #[expect(clippy::too_many_arguments, reason = "each is a part of a decision")]
    pub(super) fn decide_on(
        &mut self,
        service: usize,
        now: Duration,
        kind: Kind,
        reason: String,
        changes: Vec<Change>,
        cost: Option<(f64, f64)>,
        actions: impl Fn(&Self, &Change) -> Vec<Action>,
    ) -> Decision {
        let mut orders = Vec::new();
        for change in &changes {
            let addresses: Vec<Option<MirrorAddress>> = (0..self.mirrors.len())
                .map(|mirror| Some(self.mirrors[mirror].address()))
                .collect();
            let mirrors = weights(&change.to, &addresses);
            let mut actions = actions(self, change);
            if actions.is_empty() {
                actions.push(Action::Stay);
            }
            for prefix in &self.services[service].groups[change.group].prefixes {
                orders.extend(actions.iter().map(|action| Order {
                    service: self.services[service].address,
                    from: *prefix,
                    mirrors: mirrors.clone(),
                    action: *action,
                }));
            }
        }
        for change in &changes {
            self.services[service].groups[change.group].shares = Some(change.to.clone());
        }
        if !changes.is_empty() {
            self.services[service].said = None;
            if !kind.is_urgent() {
                self.services[service].moved = Some(now);
            }
        }
        Decision {
            number: self.number(),
            at: now,
            service,
            kind,
            reason,
            changes,
            cost,
            orders,
        }
    }

    /// What changes, for people: "everyone: m1 60 %, m2 40 %".
    pub(super) fn shares_in_words(&self, changes: &[Change]) -> String {
        let shares = |to: &Shares| -> String {
            let named = to.iter().enumerate().filter(|(_, share)| **share > 0.0);
            let words: Vec<String> = named
                .map(|(mirror, share)| {
                    format!("{} {:.0} %", self.mirrors[mirror].name(), share * 100.0)
                })
                .collect();
            words.join(", ")
        };
        match changes {
            [only] => shares(&only.to),
            // Many groups have their numbers in the decision itself.
            [first, ..] => format!("{} and so on", shares(&first.to)),
            [] => String::new(),
        }
    }
}

/// The mirrors that a group uses, and its rule doesn't allow.
fn forbidden(group: &Group, shares: &[f64]) -> Vec<usize> {
    let is_allowed = |mirror: &usize| match &group.want {
        Want::Free(among) => among.contains(mirror),
        Want::Fixed(shares) => shares[*mirror] > 0.0,
        Want::Prefer {
            first, overflow, ..
        } => first.contains(mirror) || overflow.contains(mirror),
    };
    (0..shares.len())
        .filter(|mirror| shares[*mirror] > 0.0 && !is_allowed(mirror))
        .collect()
}
