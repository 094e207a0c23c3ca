//! The loop: eyes, head and hands together.
//!
//! What the checks find, what the rewriters say and what the clock shows goes to the [`Brain`]; what that decides goes to
//! the rewriters, the log and the [`Board`]. Decisions about dead mirrors are made the moment a check says so, the
//! others at intervals.
//!
//! Each rewriter has the same diversions, those that the brain holds to be in force. Once a second each is asked for its
//! list, and what differs is set again, so one that was away or was started anew has them within a second; but for
//! services that a person has in hand.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control_protocol::{ListResult, LivenessResult};
use jiff::Timestamp;
use log::{info, warn};
use tokio::select;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::assign::Want;
use crate::board::Board;
use crate::brain::{
    self, Brain, Decision, Group, Kind, Mirror, Order, Planned, ServiceMind, Vitals,
};
use crate::check::{self, CheckState, Checks, Health, Report, Target};
use crate::config::Config;
use crate::diversions;
use crate::link::{Event, Link, OrderError, Outcome};
use crate::naming;
use crate::rules::{Bounds, MaintenanceState};
use crate::show;
use crate::suspicion::{Suspect, Suspicions};
use crate::wall_clock::WallClock;

/// Events that may wait.
const QUEUE: usize = 1024;
/// How long the rewriters are waited for before the first decision.
const FIRST_LISTS: Duration = Duration::from_secs(2);
/// What the monitor may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hands {
    /// Instruct the rewriters.
    Free,
    /// Say only what it would do.
    Tied,
}

/// The monitor at work.
#[derive(Debug)]
pub struct Monitor {
    config: Config,
    hands: Hands,
    brain: Brain,
    health: Vec<Health>,
    /// Why each mirror's state is what it is.
    reasons: Vec<String>,
    /// What the calendar says of each mirror.
    planned: Vec<Planned>,
    suspicions: Option<Suspicions>,
    checks: Checks,
    reports: mpsc::Receiver<Report>,
    rewriters: Vec<Rewriter>,
    naming: Vec<naming::Link>,
    events: mpsc::Receiver<(usize, Event)>,
    board: Board,
    began: Instant,
    clock: WallClock,
    /// Decisions may be made: what the rewriters have is known, as far as they say it.
    has_begun: bool,
    /// What would have been done, by service, so as not to say it again and again.
    would: HashMap<usize, String>,
}

/// A rewriter, as the loop knows it.
#[derive(Debug)]
struct Rewriter {
    link: Link,
    /// None: nothing has been heard of it yet.
    is_there: Option<bool>,
    /// It has said which diversions it has since it was last lost.
    has_listed: bool,
    /// Services that a person has in hand there.
    held: HashSet<usize>,
    /// It is being brought up to date, and that was said.
    is_behind: bool,
    /// Why that failed the last time, as it was said.
    failure: Option<String>,
}

impl Monitor {
    /// Begins to watch. Nothing is instructed before [`Monitor::run`].
    ///
    /// # Errors
    /// A check can't be made as it is configured, or the system gives no threads.
    pub fn start(config: Config, hands: Hands, board: Board) -> Result<Self> {
        let (report, reports) = mpsc::channel(QUEUE);
        let targets = config
            .mirrors
            .iter()
            .enumerate()
            .map(|(number, mirror)| Target {
                mirror: number,
                name: mirror.name.clone(),
                address: mirror.check_address(),
                checks: mirror.checks.clone(),
            });
        let checks = Checks::start(targets.collect(), report)?;
        let (event, events) = mpsc::channel(QUEUE);
        let liveness = config.liveness.map(|liveness| liveness.interval);
        let open = |(number, rewriter): (usize, &crate::config::Rewriter)| {
            Link::open(number, rewriter.socket.clone(), liveness, event.clone())
                .with_context(|| format!("rewriter \"{}\"", rewriter.name))
                .map(Rewriter::new)
        };
        let rewriters = config.rewriters.iter().enumerate().map(open);
        let naming = config.naming.iter().map(|server| {
            naming::Link::open(server.name.clone(), server.socket.clone())
                .with_context(|| format!("naming server \"{}\"", server.name))
        });
        Ok(Self {
            hands,
            brain: brain_of(&config),
            health: config
                .mirrors
                .iter()
                .map(|mirror| Health::new(&mirror.checks))
                .collect(),
            reasons: vec!["not checked yet".to_owned(); config.mirrors.len()],
            planned: vec![Planned::Nothing; config.mirrors.len()],
            has_begun: false,
            suspicions: config
                .liveness
                .map(|liveness| Suspicions::new(liveness, config.mirrors.len())),
            checks,
            reports,
            rewriters: rewriters.collect::<Result<_>>()?,
            naming: naming.collect::<Result<_>>()?,
            events,
            board,
            began: Instant::now(),
            clock: WallClock::default(),
            would: HashMap::new(),
            config,
        })
    }

    /// Watches, decides and instructs until it is dropped.
    pub async fn run(&mut self) {
        let mut ticks = interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What each rewriter has is to be known before anything is decided.
        let patience = sleep(FIRST_LISTS);
        tokio::pin!(patience);
        while !self.has_heard_all() {
            select! {
                () = &mut patience => break,
                () = self.listen() => {}
            }
        }
        self.has_begun = true;
        ticks.reset_immediately();
        loop {
            select! {
                _ = ticks.tick() => self.tick(),
                () = self.listen() => {}
            }
        }
    }

    /// Only watches for some time, then tells what it would do now.
    pub async fn plan(&mut self, watch_for: Duration) -> Vec<Decision> {
        let patience = sleep(watch_for);
        tokio::pin!(patience);
        // Two looks: rates are known after the second.
        let mut looks = interval(watch_for / 4);
        loop {
            select! {
                () = &mut patience => break,
                _ = looks.tick() => self.brain.look(self.began.elapsed()),
                () = self.listen() => {}
            }
        }
        self.take_time();
        let decisions = self.brain.decide(self.began.elapsed());
        self.show();
        for decision in &decisions {
            let shown = self.shown(decision);
            self.board.lock().add(Instant::now(), shown);
        }
        decisions
    }

    /// Whether every rewriter has said what it has, or isn't there.
    fn has_heard_all(&self) -> bool {
        self.rewriters
            .iter()
            .all(|rewriter| rewriter.has_listed || rewriter.is_there == Some(false))
    }

    /// Takes the next thing that somebody says.
    async fn listen(&mut self) {
        select! {
            Some(report) = self.reports.recv() => self.take_report(report),
            Some((rewriter, event)) = self.events.recv() => self.take_event(rewriter, event),
        }
    }

    /// One look at everything.
    fn tick(&mut self) {
        self.take_time();
        let decisions = self.brain.decide(self.began.elapsed());
        self.carry_out(decisions);
        self.show();
    }

    /// What the calendar says, unless the clock has just jumped.
    fn take_time(&mut self) {
        let now = Timestamp::now();
        let Some(now) = self.clock.trusted(now, self.began.elapsed()) else {
            return;
        };
        for (number, service) in self.config.services.iter().enumerate() {
            for (group, clients) in service.rules.groups().iter().enumerate() {
                let applied = service.rules.bounds(clients, now);
                let want = want(applied.bounds, &service.mirrors, self.config.mirrors.len());
                let rule = applied.rule.map(ToString::to_string);
                self.brain.take_want(number, group, want, rule);
            }
        }
        for mirror in 0..self.config.mirrors.len() {
            self.planned[mirror] = match self.config.mirrors[mirror].maintenance.state(now) {
                MaintenanceState::Draining { deadline } => {
                    let left = Duration::try_from(deadline.duration_since(now));
                    Planned::Draining(left.unwrap_or_default())
                }
                MaintenanceState::Down { .. } => Planned::Down,
                _ => Planned::Nothing,
            };
            self.take_vitals(mirror);
        }
    }

    fn take_report(&mut self, report: Report) {
        let mirror = report.mirror;
        let Some(health) = self.health.get_mut(mirror) else {
            return;
        };
        let change = health.handle(report.check, report.finding, Instant::now());
        let name = &self.config.mirrors[mirror].name;
        if let Some(change) = &change {
            if change.after.state == change.before.state {
                info!("{name}: {}", change.reason);
            } else {
                info!("{name} is {}: {}", change.after.state, change.reason);
            }
            self.reasons[mirror].clone_from(&change.reason);
        }
        self.take_vitals(mirror);
        if change.is_some() && self.has_begun {
            let decisions = self.brain.decide_urgent(self.began.elapsed());
            self.carry_out(decisions);
            self.show();
        }
    }

    /// Tells the brain how a mirror is.
    fn take_vitals(&mut self, mirror: usize) {
        let (config, health) = (&self.config.mirrors[mirror], &self.health[mirror]);
        let standing = health.standing();
        let state = if config.checks.is_empty() {
            brain::State::Up
        } else {
            standing.state
        };
        let says_load =
            |check: &check::CheckConfig| matches!(check.kind, check::Kind::Prometheus(_));
        let load = health.load();
        let vitals = Vitals {
            state,
            reason: self.reasons[mirror].clone(),
            wish: standing.wish,
            planned: self.planned[mirror],
            weight: standing.weight,
            load,
            is_load_missing: load.is_none() && config.checks.iter().any(says_load),
        };
        self.brain.take_vitals(mirror, vitals, self.began.elapsed());
    }

    fn take_event(&mut self, rewriter: usize, event: Event) {
        let name = &self.config.rewriters[rewriter].name;
        let known = &mut self.rewriters[rewriter];
        match event {
            Event::Connected => {
                if known.is_there != Some(true) {
                    info!("rewriter {name} is there");
                }
                known.is_there = Some(true);
            }
            Event::Lost(why) => {
                if known.is_there != Some(false) {
                    warn!("rewriter {name} can't be reached: {why}");
                }
                known.is_there = Some(false);
                known.has_listed = false;
            }
            Event::Measured(update) => {
                let interval = Duration::from_millis(update.interval_ms);
                self.brain.measure(rewriter, interval, &update.groups);
            }
            Event::Signs(signs) => self.take_signs(rewriter, &signs),
            Event::Diversions(done, list) => self.take_list(rewriter, done, &list),
            Event::Done(outcome) => self.take_outcome(rewriter, &outcome),
        }
    }

    /// Looks for signs that a mirror is dead, and has its checks made at once where there are.
    fn take_signs(&mut self, rewriter: usize, signs: &LivenessResult) {
        let Some(suspicions) = &mut self.suspicions else {
            return;
        };
        let mirrors = &self.config.mirrors;
        let suspects = suspicions.look(rewriter, signs, mirrors, &self.health, Instant::now());
        for Suspect { mirror, limit } in suspects {
            self.checks.hurry(mirror, limit);
        }
    }

    /// Holds a rewriter's diversions against those that are in force.
    fn take_list(&mut self, rewriter: usize, done: u64, list: &ListResult) {
        let services = self.config.services.iter().enumerate();
        let held: HashSet<usize> = services
            .filter(|(_, service)| diversions::is_held(list, &service.address))
            .map(|(number, _)| number)
            .collect();
        for service in &held {
            if !self.rewriters[rewriter].held.contains(service) {
                let address = &self.config.services[*service].address;
                info!(
                    "{address} is held by a person and left alone until `shuntctl release {address}`"
                );
            }
        }
        self.rewriters[rewriter].held = held;
        self.rewriters[rewriter].has_listed = true;
        let has_changed = self.take_holds();
        if self.adopt(list) || has_changed {
            self.tell_names();
        }
        if self.hands == Hands::Tied || done != self.rewriters[rewriter].link.given() {
            return;
        }
        let orders: Vec<Order> = self
            .brain
            .standing_orders()
            .into_iter()
            .filter(|(service, order)| {
                !self.rewriters[rewriter].held.contains(service)
                    && !diversions::is_in_force(list, order)
            })
            .map(|(_, order)| order)
            .collect();
        if orders.is_empty() {
            self.rewriters[rewriter].is_behind = false;
            self.rewriters[rewriter].failure = None;
            return;
        }
        if !self.rewriters[rewriter].is_behind {
            let name = &self.config.rewriters[rewriter].name;
            info!(
                "rewriter {name} is brought up to date: {} diversions",
                orders.len()
            );
            self.rewriters[rewriter].is_behind = true;
        }
        for order in orders {
            self.rewriters[rewriter].link.give(None, order);
        }
    }

    /// A service is in a person's hands where every rewriter that is there says so. Tells whether that has changed for
    /// any.
    fn take_holds(&mut self) -> bool {
        let mut has_changed = false;
        for service in 0..self.config.services.len() {
            let mut there = self
                .rewriters
                .iter()
                .filter(|rewriter| rewriter.has_listed)
                .peekable();
            let is_held =
                there.peek().is_some() && there.all(|rewriter| rewriter.held.contains(&service));
            has_changed |= self.brain.services()[service].is_held != is_held;
            self.brain.take_hold(service, is_held);
        }
        has_changed
    }

    /// Takes over the diversions that there are already. Tells whether there were any that weren't known.
    fn adopt(&mut self, list: &ListResult) -> bool {
        let mut is_new = false;
        for service in 0..self.config.services.len() {
            for group in 0..self.brain.services()[service].groups.len() {
                let known = &self.brain.services()[service].groups[group];
                if known.shares.is_some() && self.hands == Hands::Free {
                    continue;
                }
                let mind = &self.brain.services()[service];
                let shares = diversions::shares(list, mind, known, self.brain.mirrors());
                if shares.is_some() {
                    is_new |= known.shares.is_none();
                    self.brain.take_shares(service, group, shares);
                }
            }
        }
        is_new
    }

    fn take_outcome(&mut self, rewriter: usize, outcome: &Outcome) {
        let name = &self.config.rewriters[rewriter].name;
        let error = outcome.error.as_ref().map(|error| match error {
            OrderError::Held => format!("{name}: held by a person"),
            OrderError::Failed(why) => format!("{name}: {why}"),
        });
        if let Some(error) = &error {
            // It is tried again every second: once is enough to be told why it fails.
            let failure = &mut self.rewriters[rewriter].failure;
            if outcome.decision.is_some() || failure.as_ref() != Some(error) {
                warn!("an order wasn't carried out: {error}");
            }
            *failure = Some(error.clone());
        }
        if let Some(decision) = outcome.decision {
            self.board.lock().note(decision, outcome.moved, error);
        }
    }

    /// Has the naming servers say what is in force.
    fn tell_names(&self) {
        if self.hands == Hands::Tied || self.naming.is_empty() {
            return;
        }
        let names = show::names(&self.config.services, &self.brain);
        for server in &self.naming {
            server.want(names.clone());
        }
    }

    /// Says what was decided, and has it done.
    fn carry_out(&mut self, decisions: Vec<Decision>) {
        if !decisions.is_empty() {
            // Before the orders: whoever asks for a name meanwhile is to be right at once.
            self.tell_names();
        }
        for decision in decisions {
            let service = self.config.services[decision.service].address;
            if self.hands == Hands::Tied {
                let would = self.would.insert(decision.service, decision.reason.clone());
                if would.as_ref() == Some(&decision.reason) {
                    continue;
                }
                info!("would {}: {service}: {}", decision.kind, decision.reason);
            } else if decision.kind == Kind::None {
                warn!("{service}: {}", decision.reason);
            } else {
                info!("{}: {service}: {}", decision.kind, decision.reason);
            }
            let shown = self.shown(&decision);
            self.board.lock().add(Instant::now(), shown);
            if self.hands == Hands::Tied {
                continue;
            }
            for rewriter in &mut self.rewriters {
                // One that isn't there is brought up to date when it comes back.
                if rewriter.is_there == Some(false) || rewriter.held.contains(&decision.service) {
                    continue;
                }
                for order in &decision.orders {
                    rewriter.link.give(Some(decision.number), order.clone());
                }
            }
        }
    }

    fn shown(&self, decision: &Decision) -> Vec<control_protocol::Decision> {
        let at = self.clock.wall(decision.at);
        show::decision(decision, &self.brain, at)
    }

    /// Writes on the board how things are.
    fn show(&self) {
        let now = self.began.elapsed();
        let mirrors = self
            .brain
            .mirrors()
            .iter()
            .zip(&self.health)
            .map(|(mirror, health)| show::mirror(mirror, health, self.brain.settings(), now));
        let mirrors = mirrors.collect();
        let rewriters = self
            .config
            .rewriters
            .iter()
            .zip(&self.rewriters)
            .map(|(config, rewriter)| (config.name.clone(), rewriter.is_there == Some(true)))
            .collect();
        let shares = show::shares(&self.brain);
        let mut board = self.board.lock();
        board.mirrors = mirrors;
        board.rewriters = rewriters;
        board.shares = shares;
    }
}

impl Rewriter {
    fn new(link: Link) -> Self {
        Self {
            link,
            is_there: None,
            has_listed: false,
            held: HashSet::new(),
            is_behind: false,
            failure: None,
        }
    }
}

/// Reads a configuration file; what looks odd in it goes to the log.
///
/// # Errors
/// It can't be used.
pub fn read_config(path: &Path) -> Result<Config> {
    let config = Config::read(path).with_context(|| path.display().to_string())?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    Ok(config)
}

fn brain_of(config: &Config) -> Brain {
    let mirrors = config
        .mirrors
        .iter()
        .map(|mirror| Mirror::new(&mirror.name, mirror.address, mirror.capacity));
    let services = config.services.iter().map(|service| {
        let groups = service.rules.groups().iter().enumerate();
        let groups = groups.map(|(number, group)| {
            Group::new(
                &group.name,
                service.prefixes(number),
                Want::Free(service.mirrors.clone()),
            )
        });
        ServiceMind::new(service.address, service.mirrors.clone(), groups.collect())
    });
    Brain::new(config.settings, mirrors.collect(), services.collect())
}

/// What a rule leaves, in the words of the optimiser: rules name a service's mirrors by their place, the optimiser
/// names all mirrors by their index.
fn want(bounds: &Bounds, mirrors: &[usize], all: usize) -> Want {
    let index = |places: &std::collections::BTreeSet<usize>| -> Vec<usize> {
        places
            .iter()
            .filter_map(|place| mirrors.get(*place).copied())
            .collect()
    };
    match bounds {
        Bounds::Free(among) => Want::Free(index(among)),
        Bounds::Shares(shares) => {
            let mut fixed = vec![0.0; all];
            for (mirror, share) in mirrors.iter().zip(shares) {
                fixed[*mirror] = *share;
            }
            Want::Fixed(fixed)
        }
        Bounds::Prefer {
            preferred,
            overflow,
            at,
        } => Want::Prefer {
            first: index(preferred),
            overflow: index(overflow),
            at: *at,
        },
    }
}

/// The kinds of check and what they say, for people.
pub(crate) fn check_health(state: CheckState) -> control_protocol::Health {
    match state {
        CheckState::Up => control_protocol::Health::Up,
        CheckState::Down => control_protocol::Health::Down,
        CheckState::Waiting | CheckState::Silent => control_protocol::Health::Unknown,
    }
}
