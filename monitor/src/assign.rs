//! Which share of whose requests goes to which mirror: the model of the network that is held against the network as
//! it is (patent, page 1: "a model of the network that is optimised at regular intervals").
//!
//! An [`Assignment`] gives each group of clients its shares of the mirrors. Its *cost* is the mean response time
//! over all requests that the mirrors' queues promise, and some more for each request beyond what a mirror is trusted with.
//! Every mirror's part of it is convex in the mirror's rate, so the best assignment is found by moving
//! requests from the mirror at which one more costs most to the one at which it costs least, until no move helps:
//! there are no other valleys to be caught in.

use crate::model::Queue;

/// What a request beyond a mirror's limit costs: so many service times for each limit's worth that is beyond it.
const BEYOND_LIMIT: f64 = 20.0;
/// Moves after which it is good enough.
const MAX_MOVES: usize = 1000;
/// Halvings in the search for the length of a move.
const HALVINGS: usize = 40;
/// Marginal costs that differ by less than this part are the same.
const TOLERANCE: f64 = 1e-3;
/// The same, where something has to go elsewhere at once: what the models differ by for no reason is more than this.
const ROUGH: f64 = 0.2;
/// How much of the best assignment's gain is enough, and how near to its cost: the last of it takes the most moving.
const ENOUGH_GAIN: f64 = 0.9;
const NEAR: f64 = 1.1;

/// What requests are assigned to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// How it answers.
    pub queue: Queue,
    /// The most requests a second that it is trusted with.
    pub limit: f64,
}

/// Clients whose requests are assigned together.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Requests a second, all of them.
    pub rate: f64,
    /// Where they may go.
    pub want: Want,
    /// The largest share of each place; 0 keeps them away from it.
    pub caps: Vec<f64>,
}

/// What the rules say of a group of clients. Places are named by their index.
#[derive(Debug, Clone, PartialEq)]
pub enum Want {
    /// Whatever is best among these.
    Free(Vec<usize>),
    /// These shares, by place; those of places with a cap of 0 are shared out among the others.
    Fixed(Vec<f64>),
    /// The first ones, up to a part of their capacity; beyond that the others.
    Prefer {
        /// Who comes first.
        first: Vec<usize>,
        /// Who takes what is left.
        overflow: Vec<usize>,
        /// The part of the first ones' capacity that may be used, 1 being all of it.
        at: f64,
    },
}

/// What is to be assigned, and to what.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The places.
    pub places: Vec<Place>,
    /// The groups of clients.
    pub demands: Vec<Demand>,
}

/// For each group its shares of the places, which add up to 1, or to 0 where no place may be used.
pub type Shares = Vec<f64>;

/// Everybody's shares, by the groups' order.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment(pub Vec<Shares>);

impl Problem {
    /// The mean response time in seconds, and what loads beyond the limits add to it.
    pub fn cost(&self, assignment: &Assignment) -> f64 {
        let rates = self.rates(assignment);
        let all: f64 = self.demands.iter().map(|demand| demand.rate).sum();
        if all <= 0.0 {
            return 0.0;
        }
        let costs = self.places.iter().zip(&rates).map(|(place, rate)| {
            let beyond = (rate - place.limit).max(0.0);
            let penalty = if beyond > 0.0 {
                0.5 * BEYOND_LIMIT * place.queue.service_time() * beyond * beyond
                    / place.limit.max(1.0)
            } else {
                0.0
            };
            rate * place.queue.response(*rate) + penalty
        });
        costs.sum::<f64>() / all
    }

    /// Requests a second at each place.
    pub fn rates(&self, assignment: &Assignment) -> Vec<f64> {
        let mut rates = vec![0.0; self.places.len()];
        for (demand, shares) in self.demands.iter().zip(&assignment.0) {
            for (rate, share) in rates.iter_mut().zip(shares) {
                *rate += demand.rate * share;
            }
        }
        rates
    }

    /// The best assignment that can be come to from `present`.
    pub fn best(&self, present: &Assignment) -> Assignment {
        // Preferences depend on what the others leave, so they are seen to last and twice.
        let mut assignment = Assignment(
            self.demands
                .iter()
                .zip(&present.0)
                .map(|(demand, shares)| self.admitted(demand, shares))
                .collect(),
        );
        for _ in 0..2 {
            self.descend(&mut assignment);
            for (number, demand) in self.demands.iter().enumerate() {
                if let Want::Prefer {
                    first,
                    overflow,
                    at,
                } = &demand.want
                {
                    let shares = self.preferred(&assignment, number, first, overflow, *at);
                    assignment.0[number] = shares;
                }
            }
        }
        assignment
    }

    /// The smallest step from `present` towards `best` that gives most of the gain.
    pub fn enough(&self, present: &Assignment, best: &Assignment) -> Assignment {
        let (before, after) = (self.cost(present), self.cost(best));
        let enough = (before - ENOUGH_GAIN * (before - after)).min(NEAR * after);
        (1..10)
            .map(|tenths| present.towards(best, f64::from(tenths) / 10.0))
            .find(|step| self.cost(step) <= enough)
            .unwrap_or_else(|| best.clone())
    }

    /// A group's shares when it has to leave some places: what it had there goes to the others as is best, and what it
    /// has elsewhere stays. All 0 where there is no other place.
    pub fn without(&self, number: usize, from: &[f64], leaving: &[usize]) -> Shares {
        let demand = &self.demands[number];
        let is_left = |place: &usize| !leaving.contains(place);
        let mut among: Vec<usize> = demand.usable().into_iter().filter(is_left).collect();
        // Those that may have any share rather than those that may only keep what they have.
        let has_room = |place: &usize| demand.caps[*place] >= 1.0;
        if among.iter().any(has_room) {
            among.retain(has_room);
        }
        if among.is_empty() {
            return vec![0.0; self.places.len()];
        }
        let kept = |(place, share): (usize, &f64)| if is_left(&place) { *share } else { 0.0 };
        let mut shares: Shares = from.iter().enumerate().map(kept).collect();
        let part = (1.0 - shares.iter().sum::<f64>()).max(0.0);
        let more = match &demand.want {
            Want::Fixed(fixed) => {
                let among = (0..fixed.len()).map(|place| match among.contains(&place) {
                    true => fixed[place],
                    false => 0.0,
                });
                normalised(&among.collect::<Vec<f64>>()).unwrap_or_else(|| shares.clone())
            }
            Want::Free(_) | Want::Prefer { .. } => {
                let mut others = vec![0.0; self.places.len()];
                for (rate, share) in others.iter_mut().zip(&shares) {
                    *rate = demand.rate * share;
                }
                for (other, shares) in self.demands.iter().zip(self.fixed(0)) {
                    for (rate, share) in others.iter_mut().zip(shares) {
                        *rate += other.rate * share;
                    }
                }
                // In proportion to what they have, unless that is plainly worse.
                let kept: Vec<f64> = (0..shares.len())
                    .map(|place| {
                        if among.contains(&place) {
                            shares[place]
                        } else {
                            0.0
                        }
                    })
                    .collect();
                self.spread(demand, part, among, &others, normalised(&kept), ROUGH)
            }
        };
        for (share, more) in shares.iter_mut().zip(more) {
            *share += part * more;
        }
        shares
    }

    /// The shares of the groups from `skipped` on that have fixed ones; 0 for those that haven't.
    pub fn fixed(&self, skipped: usize) -> impl Iterator<Item = Shares> {
        self.demands[skipped..]
            .iter()
            .map(|demand| match &demand.want {
                Want::Fixed(shares) => shares.clone(),
                Want::Free(_) | Want::Prefer { .. } => vec![0.0; self.places.len()],
            })
    }

    /// Shares that break no rule: those of places that may not be used go to the others.
    fn admitted(&self, demand: &Demand, shares: &[f64]) -> Shares {
        let wanted: Vec<f64> = match &demand.want {
            Want::Fixed(fixed) => fixed.clone(),
            Want::Free(among) => (0..self.places.len())
                .map(|place| {
                    if among.contains(&place) {
                        shares[place]
                    } else {
                        0.0
                    }
                })
                .collect(),
            // It is worked out afresh by `preferred`.
            Want::Prefer { .. } => shares.to_vec(),
        };
        let among = demand.usable();
        let kept: Vec<f64> = wanted
            .iter()
            .zip(&demand.caps)
            .map(|(share, cap)| if *cap > 0.0 { *share } else { 0.0 })
            .collect();
        if let Some(shares) = normalised(&kept) {
            return within_caps(shares, &demand.caps, &among);
        }
        // None of what was wanted is left: whoever may be used, by capacity.
        let by_capacity = self.by_capacity(&among);
        match normalised(&by_capacity) {
            Some(shares) => within_caps(shares, &demand.caps, &among),
            None => vec![0.0; self.places.len()],
        }
    }

    /// The capacities of some places; 0 for the others.
    fn by_capacity(&self, among: &[usize]) -> Vec<f64> {
        let capacity = |(place, of): (usize, &Place)| match among.contains(&place) {
            true => of.queue.capacity(),
            false => 0.0,
        };
        self.places.iter().enumerate().map(capacity).collect()
    }

    /// Moves requests of the free groups downhill as long as that helps.
    fn descend(&self, assignment: &mut Assignment) {
        let mut rates = self.rates(assignment);
        for _ in 0..MAX_MOVES {
            let mut has_moved = false;
            for (demand, shares) in self.demands.iter().zip(&mut assignment.0) {
                let Want::Free(among) = &demand.want else {
                    continue;
                };
                has_moved |= self.move_one(demand, among, shares, &mut rates, TOLERANCE);
            }
            if !has_moved {
                return;
            }
        }
    }

    /// The best move of one group from one place to another. Tells whether there was one.
    fn move_one(
        &self,
        demand: &Demand,
        among: &[usize],
        shares: &mut [f64],
        rates: &mut [f64],
        tolerance: f64,
    ) -> bool {
        if demand.rate <= 0.0 {
            return false;
        }
        let marginal = |place: usize, rate: f64| self.places[place].marginal(rate);
        let dearest = among
            .iter()
            .copied()
            .filter(|place| shares[*place] > 1e-9)
            .max_by(|a, b| marginal(*a, rates[*a]).total_cmp(&marginal(*b, rates[*b])));
        let cheapest = among
            .iter()
            .copied()
            .filter(|place| demand.caps[*place] - shares[*place] > 1e-9)
            .min_by(|a, b| marginal(*a, rates[*a]).total_cmp(&marginal(*b, rates[*b])));
        let (Some(from), Some(to)) = (dearest, cheapest) else {
            return false;
        };
        let is_worthwhile = |from_rate, to_rate| {
            marginal(from, from_rate) > marginal(to, to_rate) * (1.0 + tolerance)
        };
        if from == to || !is_worthwhile(rates[from], rates[to]) {
            return false;
        }
        let most = shares[from].min(demand.caps[to] - shares[to]) * demand.rate;
        let mut step = most;
        if !is_worthwhile(rates[from] - most, rates[to] + most) {
            let (mut low, mut high) = (0.0, most);
            for _ in 0..HALVINGS {
                let middle = 0.5 * (low + high);
                if is_worthwhile(rates[from] - middle, rates[to] + middle) {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            step = high;
        }
        if step <= 1e-9 * demand.rate {
            return false;
        }
        rates[from] -= step;
        rates[to] += step;
        shares[from] = (shares[from] - step / demand.rate).max(0.0);
        shares[to] += step / demand.rate;
        true
    }

    /// The shares of a group that prefers some places, given what the others send there.
    fn preferred(
        &self,
        assignment: &Assignment,
        number: usize,
        first: &[usize],
        overflow: &[usize],
        at: f64,
    ) -> Shares {
        let demand = &self.demands[number];
        let mut others = self.rates(assignment);
        for (rate, share) in others.iter_mut().zip(&assignment.0[number]) {
            *rate -= demand.rate * share;
        }
        let usable = demand.usable();
        let among = |places: &[usize]| -> Vec<usize> {
            places
                .iter()
                .copied()
                .filter(|place| usable.contains(place))
                .collect()
        };
        let (first, overflow) = (among(first), among(overflow));
        let room: f64 = first
            .iter()
            .map(|place| {
                let place_of = &self.places[*place];
                let most = (at * place_of.queue.capacity()).min(place_of.limit);
                let cap = demand.caps[*place] * demand.rate;
                (most - others[*place]).clamp(0.0, cap)
            })
            .sum();
        let stay = match () {
            () if first.is_empty() => 0.0,
            () if overflow.is_empty() || demand.rate <= 0.0 => 1.0,
            () => (room / demand.rate).min(1.0),
        };
        let mut shares = vec![0.0; self.places.len()];
        for (part, places) in [(stay, first), (1.0 - stay, overflow)] {
            if part <= 0.0 || places.is_empty() {
                continue;
            }
            for (share, more) in shares
                .iter_mut()
                .zip(self.spread(demand, part, places, &others, None, TOLERANCE))
            {
                *share += part * more;
            }
        }
        normalised(&shares).unwrap_or(shares)
    }

    /// The best shares of `part` of a group's requests among some places, beside what others send there; begun at
    /// `start`, or in proportion to capacity.
    fn spread(
        &self,
        demand: &Demand,
        part: f64,
        among: Vec<usize>,
        others: &[f64],
        start: Option<Shares>,
        tolerance: f64,
    ) -> Shares {
        let by_capacity = self.by_capacity(&among);
        let mut shares = start
            .or_else(|| normalised(&by_capacity))
            .unwrap_or(by_capacity);
        let portion = Demand {
            rate: demand.rate * part,
            want: Want::Free(among.clone()),
            caps: vec![1.0; self.places.len()],
        };
        let mut rates: Vec<f64> = others
            .iter()
            .zip(&shares)
            .map(|(rate, share)| rate + portion.rate * share)
            .collect();
        for _ in 0..MAX_MOVES {
            if !self.move_one(&portion, &among, &mut shares, &mut rates, tolerance) {
                break;
            }
        }
        shares
    }
}

impl Place {
    /// What one more request a second costs.
    fn marginal(&self, rate: f64) -> f64 {
        let beyond = (rate - self.limit).max(0.0);
        let penalty = if beyond > 0.0 {
            BEYOND_LIMIT * self.queue.service_time() * beyond / self.limit.max(1.0)
        } else {
            0.0
        };
        self.queue.marginal(rate) + penalty
    }
}

impl Demand {
    /// The places that its rules and caps leave.
    pub fn usable(&self) -> Vec<usize> {
        let is_wanted = |place: &usize| match &self.want {
            Want::Free(among) => among.contains(place),
            Want::Fixed(shares) => shares[*place] > 0.0,
            Want::Prefer {
                first, overflow, ..
            } => first.contains(place) || overflow.contains(place),
        };
        (0..self.caps.len())
            .filter(|place| self.caps[*place] > 0.0 && is_wanted(place))
            .collect()
    }
}

impl Assignment {
    /// A part of the way from this one to another.
    pub fn towards(&self, other: &Self, part: f64) -> Self {
        let groups = self.0.iter().zip(&other.0);
        let shares = |(from, to): (&Shares, &Shares)| {
            from.iter()
                .zip(to)
                .map(|(from, to)| from + part * (to - from))
                .collect()
        };
        Self(groups.map(shares).collect())
    }
}

/// How much goes elsewhere: half of what the shares differ by, from 0 to 1.
pub fn distance(from: &[f64], to: &[f64]) -> f64 {
    from.iter().zip(to).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
}

/// The same proportions, adding up to 1; none where there is nothing.
pub fn normalised(shares: &[f64]) -> Option<Shares> {
    let sum: f64 = shares.iter().filter(|share| share.is_finite()).sum();
    (sum > 0.0).then(|| shares.iter().map(|share| share / sum).collect())
}

/// Shares of which none is above its cap, as far as the others have room.
fn within_caps(mut shares: Shares, caps: &[f64], among: &[usize]) -> Shares {
    for _ in 0..among.len() {
        let mut spare = 0.0;
        for (share, cap) in shares.iter_mut().zip(caps) {
            if *share > *cap {
                spare += *share - *cap;
                *share = *cap;
            }
        }
        let room: f64 = among
            .iter()
            .map(|place| caps[*place] - shares[*place])
            .sum();
        if spare <= 1e-12 || room <= 1e-12 {
            break;
        }
        for place in among {
            shares[*place] += spare * (caps[*place] - shares[*place]) / room;
        }
    }
    // No room for all of them: somebody has to take them.
    normalised(&shares).unwrap_or(shares)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(service_time: f64, servers: f64) -> Place {
        Place {
            queue: Queue::new(service_time, servers),
            limit: f64::INFINITY,
        }
    }

    fn free(rate: f64, places: usize) -> Demand {
        Demand {
            rate,
            want: Want::Free((0..places).collect()),
            caps: vec![1.0; places],
        }
    }

    fn equal(problem: &Problem) -> Assignment {
        let places = problem.places.len();
        Assignment(vec![
            vec![1.0 / places as f64; places];
            problem.demands.len()
        ])
    }

    #[test]
    fn equal_mirrors_get_equal_shares() {
        let problem = Problem {
            places: vec![place(0.02, 4.0); 3],
            demands: vec![free(300.0, 3)],
        };
        let lopsided = Assignment(vec![vec![0.8, 0.1, 0.1]]);
        let best = problem.best(&lopsided);
        for share in &best.0[0] {
            assert!((share - 1.0 / 3.0).abs() < 0.01, "{best:?}");
        }
        assert!(problem.cost(&best) < problem.cost(&lopsided));
    }

    #[test]
    fn nothing_goes_beyond_limits_or_caps_without_need() {
        let mut problem = Problem {
            places: vec![place(0.02, 8.0), place(0.02, 8.0), place(0.02, 8.0)],
            demands: vec![free(350.0, 3)],
        };
        problem.places[1].limit = 50.0;
        problem.demands[0].caps[2] = 0.1;
        let best = problem.best(&equal(&problem));
        let rates = problem.rates(&best);
        assert!(rates[1] < 70.0, "{rates:?}");
        assert!(rates[2] < 35.1, "{rates:?}");
        // With nowhere else to go, the limit gives way and the cap holds.
        problem.demands[0].caps[0] = 0.0;
        let rates = problem.rates(&problem.best(&equal(&problem)));
        assert_eq!(rates[0], 0.0);
        assert!((rates.iter().sum::<f64>() - 350.0).abs() < 1e-6);
    }

    #[test]
    fn fixed_shares_stay_but_the_dead_ones_part_is_shared_out() {
        let mut problem = Problem {
            places: vec![place(0.02, 4.0); 3],
            demands: vec![Demand {
                want: Want::Fixed(vec![0.7, 0.2, 0.1]),
                ..free(100.0, 3)
            }],
        };
        let best = problem.best(&equal(&problem));
        assert!(distance(&best.0[0], &[0.7, 0.2, 0.1]) < 1e-9);
        problem.demands[0].caps[0] = 0.0;
        let best = problem.best(&equal(&problem));
        assert!(distance(&best.0[0], &[0.0, 2.0 / 3.0, 1.0 / 3.0]) < 1e-9);
    }

    #[test]
    fn the_preferred_mirror_fills_up_first() {
        let demand = |rate| Demand {
            want: Want::Prefer {
                first: vec![0],
                overflow: vec![1, 2],
                at: 0.8,
            },
            ..free(rate, 3)
        };
        let of = |rate| {
            let problem = Problem {
                places: vec![place(0.02, 4.0); 3],
                demands: vec![demand(rate)],
            };
            problem.rates(&problem.best(&equal(&problem)))
        };
        // It is capable of 200 a second, and may be used up to 160.
        assert!((of(100.0)[0] - 100.0).abs() < 1e-6);
        let rates = of(240.0);
        assert!((rates[0] - 160.0).abs() < 0.1, "{rates:?}");
        assert!((rates[1] - 40.0).abs() < 1.0, "{rates:?}");
    }

    #[test]
    fn a_group_that_may_not_choose_leaves_room_for_itself() {
        let problem = Problem {
            places: vec![place(0.02, 4.0); 2],
            demands: vec![
                Demand {
                    want: Want::Free(vec![0]),
                    ..free(120.0, 2)
                },
                free(120.0, 2),
            ],
        };
        let best = problem.best(&equal(&problem));
        assert!(best.0[0][0] > 0.999);
        assert!(best.0[1][1] > 0.9, "{best:?}");
    }

    #[test]
    fn no_more_is_moved_than_is_needed() {
        let problem = Problem {
            places: vec![place(0.02, 4.0); 2],
            demands: vec![free(260.0, 2)],
        };
        let present = Assignment(vec![vec![0.75, 0.25]]);
        let best = problem.best(&present);
        let step = problem.enough(&present, &best);
        assert!(distance(&present.0[0], &step.0[0]) < distance(&present.0[0], &best.0[0]));
        let gained = problem.cost(&present) - problem.cost(&step);
        assert!(gained >= 0.9 * (problem.cost(&present) - problem.cost(&best)));
    }

    #[test]
    fn nowhere_to_go_is_nothing_not_a_crash() {
        let problem = Problem {
            places: vec![place(0.02, 4.0); 2],
            demands: vec![Demand {
                caps: vec![0.0, 0.0],
                ..free(100.0, 2)
            }],
        };
        assert_eq!(problem.best(&equal(&problem)).0[0], [0.0, 0.0]);
    }

    proptest! {
        /// No assignment on a grid is better than the one that was found.
        #[test]
        fn the_best_is_the_best(
            service in prop::array::uniform3(0.001..0.2_f64),
            servers in prop::array::uniform3(1.0..16.0_f64),
            part in 0.05..1.2_f64,
        ) {
            let places: Vec<Place> = (0..3).map(|n| place(service[n], servers[n])).collect();
            let capacity: f64 = places.iter().map(|place| place.queue.capacity()).sum();
            let problem = Problem { places, demands: vec![free(part * capacity, 3)] };
            let best = problem.best(&equal(&problem));
            let sum: f64 = best.0[0].iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-6);
            let cost = problem.cost(&best);
            for a in 0..=20 {
                for b in 0..=20 - a {
                    let shares = [a, b, 20 - a - b].map(|twentieths| f64::from(twentieths) / 20.0);
                    let other = problem.cost(&Assignment(vec![shares.to_vec()]));
                    prop_assert!(cost <= other * (1.0 + 1e-3), "{cost} {other} {shares:?} {best:?}");
                }
            }
        }
    }
}
