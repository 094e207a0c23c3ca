//! Decisions that weigh: what would be better than what is, and by how much.

use std::time::Duration;

use super::{Action, Brain, Change, Decision, Kind, Standing};
use crate::assign::{Assignment, Problem, Want, distance, normalised};

/// How long connections may wait for a good moment to be moved.
const MOVE_WITHIN: Duration = Duration::from_secs(30);
/// Shares that differ by less aren't worth an order.
const WORTH_AN_ORDER: f64 = 0.01;
/// When more than this share goes elsewhere, existing connections are moved too: with less, new ones will do.
const LARGE: f64 = 0.1;
/// The least share of a mirror's connections that is worth moving.
const LEAST_PERCENT: f64 = 2.0;
/// A preference is followed when the load asks for at least so much of a change.
const PREFERENCE: f64 = 0.05;
/// What a mirror gets that is tried.
const TRIAL_SHARE: f64 = 0.05;
/// A mirror comes back in steps of this part of its share.
const RETURN_STEP: f64 = 0.25;
/// A mirror with less than this has no place in the assignment.
const NO_PLACE: f64 = 0.005;

impl Brain {
    /// What would be better for a service, if anything is enough so and it may be changed again.
    pub(super) fn improve(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let mind = &self.services[service];
        if mind.is_held || mind.groups.iter().any(|group| group.shares.is_none()) {
            return None;
        }
        let is_settled = mind
            .moved
            .is_none_or(|moved| now.saturating_sub(moved) >= self.settings.settle);
        if let Some(decision) = self.bring_back(service, is_settled, now) {
            return Some(decision);
        }
        if !is_settled {
            return None;
        }
        self.follow_preference(service, now)
            .or_else(|| self.optimise(service, now))
            .or_else(|| self.try_again(service, now))
    }

    /// Gives a mirror that has come back another step of its share. The first waits until the service has settled; the
    /// others only go on with it.
    fn bring_back(&mut self, service: usize, is_settled: bool, now: Duration) -> Option<Decision> {
        let mirrors = self.services[service].mirrors.clone();
        let back = mirrors.into_iter().find(|mirror| {
            let mirror = &self.mirrors[*mirror];
            let cap = mirror.share_cap(&self.settings, now);
            mirror.standing() == Standing::Usable
                && mirror.returning.is_some_and(|(_, given)| {
                    let is_begun = given > 0.0;
                    is_settled && !is_begun
                        || is_begun && (cap - given >= RETURN_STEP || cap >= 1.0)
                })
        })?;
        let cap = self.mirrors[back].share_cap(&self.settings, now);
        let problem = self.problem(service);
        let in_force = self.in_force(service, &problem);
        let best = problem.best(&in_force);
        let mut changes = Vec::new();
        for (number, group) in self.services[service].groups.iter().enumerate() {
            let Some(from) = &group.shares else { continue };
            let usable = problem.demands[number].usable();
            if !usable.contains(&back) {
                continue;
            }
            // At least what its capacity is of all: where nobody has to wait, the model sees no need of it.
            let capacity = |mirror: &usize| problem.places[*mirror].queue.capacity();
            let fair = capacity(&back) / usable.iter().map(capacity).sum::<f64>();
            let target = match &group.want {
                Want::Free(_) => cap * fair.max(best.0[number][back]),
                Want::Fixed(_) | Want::Prefer { .. } => cap * best.0[number][back],
            };
            if target - from[back] < WORTH_AN_ORDER {
                continue;
            }
            // The others give in proportion.
            let rest = (1.0 - target) / (1.0 - from[back]).max(1e-9);
            let mut to: Vec<f64> = from.iter().map(|share| share * rest).collect();
            to[back] = target;
            changes.push(Change {
                group: number,
                from: from.clone(),
                to,
            });
        }
        let is_whole = cap >= 1.0;
        let mirror = &mut self.mirrors[back];
        mirror.returning = match mirror.returning {
            Some(_) if is_whole => None,
            Some((since, _)) => Some((since, cap)),
            None => None,
        };
        if changes.is_empty() {
            return None;
        }
        mirror.end_trials();
        let reason = format!(
            "{} is back, at {:.0} % of its share: {}",
            self.mirrors[back].name(),
            cap * 100.0,
            self.shares_in_words(&changes)
        );
        let actions = move |brain: &Self, change: &Change| brain.even_out(service, change, false);
        Some(self.decide_on(service, now, Kind::Recover, reason, changes, None, actions))
    }

    /// Does what groups with preferred mirrors want at today's load.
    fn follow_preference(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let is_preference = |want: &Want| matches!(want, Want::Prefer { .. });
        if !self.services[service]
            .groups
            .iter()
            .any(|group| is_preference(&group.want))
        {
            return None;
        }
        let problem = self.problem(service);
        let best = problem.best(&self.in_force(service, &problem));
        let mut changes = Vec::new();
        for (number, group) in self.services[service].groups.iter().enumerate() {
            let Some(from) = &group.shares else { continue };
            let to = &best.0[number];
            let is_to_change = is_preference(&group.want)
                && to.iter().sum::<f64>() > 0.0
                && distance(from, to) > PREFERENCE;
            if is_to_change {
                changes.push(Change {
                    group: number,
                    from: from.clone(),
                    to: to.clone(),
                });
            }
        }
        if changes.is_empty() {
            return None;
        }
        let group = &self.services[service].groups[changes[0].group];
        let reason = format!(
            "at {:.0} requests a second the preferred mirrors are given what they have room for: {}",
            group.tally.rate(),
            self.shares_in_words(&changes)
        );
        let actions = move |brain: &Self, change: &Change| brain.even_out(service, change, false);
        Some(self.decide_on(
            service,
            now,
            Kind::Preference,
            reason,
            changes,
            None,
            actions,
        ))
    }

    /// The assignment that the model promises to be better by more than the operator asks.
    fn optimise(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let problem = self.problem(service);
        let groups = self.services[service].groups.len();
        let present = self.present(service, &problem);
        let best = problem.best(&present);
        let overloaded: Vec<usize> = self.services[service]
            .mirrors
            .iter()
            .copied()
            .filter(|mirror| self.mirrors[*mirror].is_overloaded(&self.settings))
            .collect();
        let loses = |mirror: &usize| {
            let groups = present.0.iter().zip(&best.0);
            groups
                .take(self.services[service].groups.len())
                .any(|(from, to)| to[*mirror] < from[*mirror])
        };
        // Whoever is overloaded is relieved at once, not bit by bit.
        let is_relief = overloaded.iter().any(loses);
        let step = if is_relief {
            best
        } else {
            problem.enough(&present, &best)
        };
        let own = own_cost(&problem, &present, groups);
        let saved = total(&problem, &present) - total(&problem, &step);
        if own <= 0.0 || saved <= self.settings.improvement * own {
            return None;
        }
        let mut changes = Vec::new();
        for (number, group) in self.services[service].groups.iter().enumerate() {
            let (from, to) = (&present.0[number], &step.0[number]);
            let is_free = matches!(group.want, Want::Free(_));
            if is_free && to.iter().sum::<f64>() > 0.0 && distance(from, to) > WORTH_AN_ORDER {
                changes.push(Change {
                    group: number,
                    from: from.clone(),
                    to: rounded(to),
                });
            }
        }
        if changes.is_empty() {
            return None;
        }
        // New connections go where they should already, and that isn't enough.
        let is_in_force = changes.iter().all(|change| {
            let shares = &self.services[service].groups[change.group].shares;
            shares
                .as_ref()
                .is_some_and(|shares| distance(shares, &change.to) < 2.0 * WORTH_AN_ORDER)
        });
        let is_large = changes
            .iter()
            .any(|change| distance(&change.from, &change.to) > LARGE);
        let kind = if is_relief || is_large || is_in_force {
            Kind::Redirect
        } else {
            Kind::Weights
        };
        for mirror in &self.services[service].mirrors {
            if changes.iter().any(|change| change.to[*mirror] > NO_PLACE) {
                self.mirrors[*mirror].end_trials();
            }
        }
        let rate: f64 = problem.demands[..groups]
            .iter()
            .map(|demand| demand.rate)
            .sum();
        let cost = (own / rate, (own - saved) / rate);
        let why = match overloaded.first() {
            Some(mirror) if is_relief => format!("{} is overloaded", self.mirrors[*mirror].name()),
            _ => "it is better shared out otherwise".to_owned(),
        };
        let reason = format!(
            "{why}: at {rate:.0} requests a second {} promises {} instead of {}",
            self.shares_in_words(&changes),
            milliseconds(cost.1),
            milliseconds(cost.0),
        );
        let is_redirect = kind == Kind::Redirect;
        let actions = move |brain: &Self, change: &Change| {
            if is_redirect {
                brain.even_out(service, change, true)
            } else {
                Vec::new()
            }
        };
        Some(self.decide_on(service, now, kind, reason, changes, Some(cost), actions))
    }

    /// Gives a mirror that gets nothing, because it was slow, a few requests, to see whether it still is.
    fn try_again(&mut self, service: usize, now: Duration) -> Option<Decision> {
        let mind = &self.services[service];
        let has_no_place = |mirror: usize| {
            mind.groups
                .iter()
                .filter_map(|group| group.shares.as_ref())
                .all(|shares| shares[mirror] < NO_PLACE)
        };
        let idle = mind.mirrors.iter().copied().find(|mirror| {
            has_no_place(*mirror) && self.mirrors[*mirror].is_due_for_trial(&self.settings, now)
        })?;
        let changes: Vec<Change> = mind
            .groups
            .iter()
            .enumerate()
            .filter(|(_, group)| matches!(&group.want, Want::Free(among) if among.contains(&idle)))
            .filter_map(|(number, group)| {
                let from = group.shares.clone()?;
                let mut to: Vec<f64> = from
                    .iter()
                    .map(|share| share * (1.0 - TRIAL_SHARE))
                    .collect();
                to[idle] = TRIAL_SHARE;
                Some(Change {
                    group: number,
                    from,
                    to,
                })
            })
            .collect();
        if changes.is_empty() {
            return None;
        }
        self.mirrors[idle].begin_trial(now);
        let reason = format!(
            "{} has had nothing to do for a while: is it still slow?",
            self.mirrors[idle].name()
        );
        let actions = move |brain: &Self, change: &Change| brain.even_out(service, change, true);
        Some(self.decide_on(service, now, Kind::Trial, reason, changes, None, actions))
    }

    /// Where a service's requests go, and those that a problem has beside them.
    fn present(&self, service: usize, problem: &Problem) -> Assignment {
        let groups = &self.services[service].groups;
        let own = groups.iter().zip(&problem.demands).map(|(group, demand)| {
            let nowhere = || vec![0.0; self.mirrors.len()];
            let shares = group.present(demand.rate).unwrap_or_else(nowhere);
            // What was measured at a mirror that is out by now is history.
            let usable: Vec<f64> = shares
                .iter()
                .zip(&demand.caps)
                .map(|(share, cap)| if *cap > 0.0 { *share } else { 0.0 })
                .collect();
            normalised(&usable).unwrap_or(shares)
        });
        Assignment(own.chain(problem.fixed(groups.len())).collect())
    }

    /// What moves a group's existing connections to where its requests are to go: each mirror that has more than it
    /// is to have gives up that part. Little is left to new connections, unless `whatever` it is.
    pub(super) fn even_out(&self, service: usize, change: &Change, whatever: bool) -> Vec<Action> {
        let group = &self.services[service].groups[change.group];
        let Some(connections) = group.connections() else {
            return Vec::new();
        };
        if !whatever && distance(&connections, &change.to) < LARGE {
            return Vec::new();
        }
        let leaving = (0..self.mirrors.len()).filter_map(|mirror| {
            let (has, gets) = (connections[mirror], change.to[mirror]);
            let percent = if has > 0.0 {
                100.0 * (has - gets) / has
            } else {
                0.0
            };
            // A dead mirror's connections aren't moved like this.
            if percent < LEAST_PERCENT || !self.mirrors[mirror].is_fit() {
                return None;
            }
            Some(Action::Leave {
                mirror: self.mirror_address(service, mirror)?,
                percent: (percent < 99.5).then(|| percent.round().clamp(1.0, 100.0) as u8),
                within: MOVE_WITHIN,
                or_reset: false,
            })
        });
        leaving.collect()
    }
}

/// What the first groups' requests cost all together, in seconds a second; loads beyond limits included.
fn own_cost(problem: &Problem, assignment: &Assignment, groups: usize) -> f64 {
    let rates = problem.rates(assignment);
    let mut cost = 0.0;
    for (demand, shares) in problem.demands[..groups].iter().zip(&assignment.0) {
        for ((share, place), rate) in shares.iter().zip(&problem.places).zip(&rates) {
            cost += demand.rate * share * place.queue.response(*rate);
        }
    }
    cost
}

/// What all requests cost together, in seconds a second.
fn total(problem: &Problem, assignment: &Assignment) -> f64 {
    let rate: f64 = problem.demands.iter().map(|demand| demand.rate).sum();
    problem.cost(assignment) * rate
}

/// Without shares so small that they are no use.
fn rounded(shares: &[f64]) -> Vec<f64> {
    let kept: Vec<f64> = shares
        .iter()
        .map(|share| if *share < NO_PLACE { 0.0 } else { *share })
        .collect();
    normalised(&kept).unwrap_or(kept)
}

fn milliseconds(seconds: f64) -> String {
    let milliseconds = seconds * 1e3;
    if milliseconds < 10.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}
