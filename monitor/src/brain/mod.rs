//! What to do: the head that the patent calls the network monitor (125 in figure 1), without its eyes and hands.
//!
//! It does no I/O and has no clock. What the checks say ([`Brain::take_vitals`]), what the rewriters measure
//! ([`Brain::measure`]) and what the rules want ([`Brain::take_want`]) goes in; [`Decision`]s with the orders that carry them
//! out come out of [`Brain::decide`]. Time is an argument, monotonic and from any beginning, so that weeks can be
//! lived through in a test.
//!
//! Decisions are of two sorts:
//!
//! - *Urgent* ones ([`Brain::decide_urgent`], `urgent`) are made at once: a mirror is dead, has to drain, or a rule
//!   says otherwise than before. They take mirrors out, and change nothing else.
//! - The others (`improve`) weigh: the cost of the best assignment against that of the present one. They are made
//!   at most once in [`Settings::settle`] for a service, and only for a gain above [`Settings::improvement`].
//!
//! What is unknown never counts as idle: a mirror whose checks haven't decided keeps what it has and gets no more,
//! and one that nobody has seen under load is given more of it only bit by bit.

mod decision;
mod improve;
mod mirror;
mod service;
mod tally;
mod urgent;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::{ClientPrefix, GroupStats, Service};

pub use crate::check::{State, Wish};
pub use decision::{Action, Change, Decision, Kind, Order};
pub use mirror::{Mirror, Planned, Standing, Vitals};
pub use service::{Group, ServiceMind};

use crate::assign::{Demand, Place, Problem, Shares, Want};

/// How eager the monitor is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The part of the cost that a change must save.
    pub improvement: f64,
    /// The least time between two changes of a service that aren't urgent.
    pub settle: Duration,
    /// As many mirrors of a service stay in use, whatever the checks say.
    pub min_mirrors: usize,
    /// How long it takes until a mirror that comes back has its full share.
    pub slow_start: Duration,
    /// A mirror that uses this part of its capacity is overloaded.
    pub overload: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            improvement: 0.1,
            settle: Duration::from_secs(30),
            min_mirrors: 1,
            slow_start: Duration::from_secs(30),
            overload: 0.9,
        }
    }
}

/// The head.
#[derive(Debug)]
pub struct Brain {
    settings: Settings,
    mirrors: Vec<Mirror>,
    services: Vec<ServiceMind>,
    /// Which service and group a diversion is of.
    groups: HashMap<(Service, Option<ClientPrefix>), (usize, usize)>,
    next_number: u64,
    learned: Option<Duration>,
}

impl Brain {
    /// Knows the mirrors and services by name only. Mirrors are named by their index from here on, and so are
    /// services, and the groups of a service.
    pub fn new(settings: Settings, mirrors: Vec<Mirror>, services: Vec<ServiceMind>) -> Self {
        let mut groups = HashMap::new();
        for (service, mind) in services.iter().enumerate() {
            for (group, of) in mind.groups.iter().enumerate() {
                for prefix in &of.prefixes {
                    groups.insert((mind.address, *prefix), (service, group));
                }
            }
        }
        Self {
            settings,
            mirrors,
            services,
            groups,
            next_number: 1,
            learned: None,
        }
    }

    /// The mirrors.
    pub fn mirrors(&self) -> &[Mirror] {
        &self.mirrors
    }

    /// How eager it is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The services.
    pub fn services(&self) -> &[ServiceMind] {
        &self.services
    }

    /// What the checks and the calendar say of a mirror now.
    pub fn take_vitals(&mut self, mirror: usize, vitals: Vitals, now: Duration) {
        if let Some(mirror) = self.mirrors.get_mut(mirror) {
            mirror.take_vitals(vitals, now);
        }
    }

    /// What the rules want of a group now, and the name of the rule.
    pub fn take_want(&mut self, service: usize, group: usize, want: Want, rule: Option<String>) {
        if let Some(group) = self.group_mut(service, group) {
            group.want = want;
            group.rule = rule;
        }
    }

    /// The shares that are in force for a group, as a rewriter says, by mirror; none: it isn't diverted, or to
    /// mirrors that aren't known here.
    pub fn take_shares(&mut self, service: usize, group: usize, shares: Option<Shares>) {
        if let Some(group) = self.group_mut(service, group) {
            group.shares = shares;
        }
    }

    /// Whether a service is in a person's hands, so that nothing is to be decided for it.
    pub fn take_hold(&mut self, service: usize, is_held: bool) {
        if let Some(service) = self.services.get_mut(service) {
            service.is_held = is_held;
        }
    }

    /// What a rewriter has measured in an interval, by mirror.
    pub fn measure(&mut self, rewriter: usize, interval: Duration, measured: &[GroupStats]) {
        for service in &mut self.services {
            for group in &mut service.groups {
                group.tally.begin_update(rewriter, interval);
            }
        }
        for stats in measured {
            let Some((service, group, mirror)) = self.whose(stats) else {
                continue;
            };
            if let Some(group) = self.group_mut(service, group) {
                group.tally.add(rewriter, mirror, stats);
            }
        }
    }

    /// Makes the decisions that are due: urgent ones and others. To be called at regular intervals.
    pub fn decide(&mut self, now: Duration) -> Vec<Decision> {
        self.learn(now);
        let mut decisions = self.decide_urgent(now);
        for service in 0..self.services.len() {
            decisions.extend(self.improve(service, now));
        }
        decisions
    }

    /// Takes note of what was measured, and decides nothing.
    pub fn look(&mut self, now: Duration) {
        self.learn(now);
    }

    /// Makes the urgent decisions. To be called when a mirror's vitals have changed.
    pub fn decide_urgent(&mut self, now: Duration) -> Vec<Decision> {
        (0..self.services.len())
            .filter_map(|service| self.urgent(service, now))
            .collect()
    }

    /// The diversions that are in force, as orders that set them and move nothing; by service.
    pub fn standing_orders(&self) -> Vec<(usize, Order)> {
        let addresses: Vec<_> = self.mirrors.iter().map(|m| Some(m.address())).collect();
        let mut orders = Vec::new();
        for (number, service) in self.services.iter().enumerate() {
            for group in &service.groups {
                let Some(shares) = &group.shares else {
                    continue;
                };
                orders.extend(group.prefixes.iter().map(|prefix| {
                    let order = Order {
                        service: service.address,
                        from: *prefix,
                        mirrors: decision::weights(shares, &addresses),
                        action: Action::Stay,
                    };
                    (number, order)
                }));
            }
        }
        orders
    }

    /// Which diversion's group and mirror a measurement is about, if they are known here.
    fn whose(&self, stats: &GroupStats) -> Option<(usize, usize, usize)> {
        let (service, group) = *self.groups.get(&(stats.service?, stats.from))?;
        let mirror = self.services[service].mirror_at(&self.mirrors, stats.mirror?)?;
        Some((service, group, mirror))
    }

    fn group_mut(&mut self, service: usize, group: usize) -> Option<&mut Group> {
        self.services.get_mut(service)?.groups.get_mut(group)
    }

    /// Takes what was measured since the last time, teaches the mirrors' models, and keeps the rates.
    fn learn(&mut self, now: Duration) {
        let began = self.learned.replace(now).unwrap_or(now);
        let passed = now.saturating_sub(began);
        for service in &mut self.services {
            for group in &mut service.groups {
                group.tally.close();
            }
        }
        for (number, mirror) in self.mirrors.iter_mut().enumerate() {
            let groups = self.services.iter().flat_map(|service| &service.groups);
            let latest = groups.map(|group| group.tally.latest(number));
            mirror.learn(latest.sum(), passed, now);
        }
    }

    /// The problem of a service: its groups' demands, and beside them what the other services send.
    fn problem(&self, service: usize) -> Problem {
        let others = self
            .services
            .iter()
            .enumerate()
            .filter(|(number, _)| *number != service)
            .flat_map(|(_, other)| &other.groups)
            .filter_map(|group| {
                let rate = group.tally.rate();
                Some(Demand {
                    rate,
                    want: Want::Fixed(group.present(rate)?),
                    caps: vec![1.0; self.mirrors.len()],
                })
            });
        let out = self.out(service);
        let own = self.services[service].groups.iter().map(|group| {
            let caps = self.caps(service, group, &out);
            Demand {
                rate: group.tally.rate(),
                want: group.want.clone(),
                caps,
            }
        });
        let mut demands: Vec<Demand> = own.collect();
        demands.extend(others);
        Problem {
            places: self.places(service),
            demands,
        }
    }

    /// The mirrors as the problem sees them.
    fn places(&self, service: usize) -> Vec<Place> {
        let all: f64 = self.services[service]
            .groups
            .iter()
            .map(|group| group.tally.rate())
            .sum();
        let usual = mirror::usual(&self.mirrors);
        self.mirrors
            .iter()
            .map(|mirror| mirror.place(usual, all))
            .collect()
    }

    /// The largest share of each mirror that a group may have.
    fn caps(&self, service: usize, group: &Group, out: &[usize]) -> Vec<f64> {
        (0..self.mirrors.len())
            .map(|number| {
                let share = group.shares.as_ref().map_or(0.0, |shares| shares[number]);
                if !self.services[service].mirrors.contains(&number) || out.contains(&number) {
                    0.0
                } else if self.mirrors[number].standing() == Standing::Unknown {
                    share
                } else {
                    1.0
                }
            })
            .collect()
    }

    /// The mirrors of a service that must not be used. Never all of them, and never so many that fewer than
    /// [`Settings::min_mirrors`] are left: those that have been down the longest go first, and where all are
    /// down, nothing changes.
    fn out(&self, service: usize) -> Vec<usize> {
        let mirrors = &self.services[service].mirrors;
        let mut unfit: Vec<usize> = mirrors
            .iter()
            .copied()
            .filter(|mirror| !self.mirrors[*mirror].is_fit())
            .collect();
        let fit = mirrors.len() - unfit.len();
        let least = self.settings.min_mirrors.clamp(1, mirrors.len().max(1));
        if fit >= least {
            return unfit;
        }
        if fit == 0 {
            // Those that are out already stay out.
            unfit.retain(|mirror| !self.services[service].uses(*mirror));
            return unfit;
        }
        unfit.sort_by_key(|mirror| self.mirrors[*mirror].since());
        unfit.truncate(mirrors.len() - least);
        unfit
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// A mirror's address for a service.
    fn address(&self, service: usize, mirror: usize) -> Option<SocketAddr> {
        self.services[service].address_of(&self.mirrors[mirror])
    }
}
