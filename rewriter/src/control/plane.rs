//! The methods of the control protocol, carried out over workers and routes.
//!
//! The plane holds the one list of diversions that counts; each engine has a copy. A change goes to
//! the workers first and to the routes second, so that packets that begin to arrive find the diversion
//! there, and is answered when both have it.
//!
//! A diversion that is restored while connections still follow it isn't forgotten at once: its route
//! stays, or the clients' packets would take the normal way in the middle of a connection. It is
//! listed as *restored* until [`Plane::tidy`] finds the last of them gone.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use control_protocol::{
    Answer, ClientPrefix, ConnectionsQuery, ConnectionsResult, Counters, Cursor, Daemon,
    DiversionState, Divert, DivertResult, DomainName, ErrorCode, GroupStats, Grouping, Hold,
    HoldResult, ListResult, LivenessResult, MAX_PAGE, MAX_PEEK_NAMES, Method, Mirror,
    MirrorAddress, PeekNames, PeekNamesResult, Redirect, RedirectInfo, RedirectResult,
    RedirectsQuery, RedirectsResult, ReleaseHold, Request, Restore, RestoreResult, Service, Stats,
    StatsResult, VersionResult, Watch, WatchResult,
};
use control_server::Handler;
use log::{info, warn};
use thiserror::Error;
use tokio::sync::Mutex;

use super::holds::{HoldRefusal, Holds};
use super::measured::Measured;
use super::routing::Routing;
use super::view;
use crate::engine::{self, MirrorSigns, Time};
use crate::io::routes::RoutesError;
use crate::packet::Endpoint;
use crate::table::{Diversion, DiversionId, Diversions, Peek, Refusal};
use crate::worker::{WorkerGone, Workers};

/// How many redirects are remembered.
const MAX_REDIRECTS: usize = 256;
/// How many aggregates a worker is asked for at once: at most a quarter of a megabyte, which it copies
/// between two batches of packets.
const AGGREGATES_AT_ONCE: usize = 16;

/// The control plane of one daemon. Its methods may be called at the same time; those that change
/// something wait for each other.
#[derive(Debug)]
pub struct Plane {
    workers: Workers,
    proxies: Vec<IpAddr>,
    about: VersionResult,
    started: Instant,
    rules: Mutex<Rules>,
}

#[derive(Debug)]
struct Rules {
    diversions: Diversions,
    /// Removed, but some connections may still follow them.
    restored: Vec<Diversion>,
    routing: Routing,
    holds: Holds,
    next_id: u32,
    /// The latest redirects, the oldest first.
    redirects: VecDeque<RedirectRecord>,
    next_redirect: u64,
    /// The names that peeking diversions have been told of lists whose last part is yet to come.
    peek_parts: HashMap<DiversionId, Vec<DomainName>>,
}

/// A redirect that was given.
#[derive(Debug, Clone)]
struct RedirectRecord {
    id: u64,
    service: Service,
    began: Instant,
}

/// What one client who watches has been told.
#[derive(Debug)]
pub struct Updates {
    by: Grouping,
    measured: Measured,
    /// When it was told last.
    until: Option<Instant>,
}

impl Updates {
    /// For a client who has been told nothing yet.
    fn new(params: Watch) -> Self {
        Self {
            by: params.by,
            measured: Measured::default(),
            until: None,
        }
    }
}

/// Why a method wasn't carried out.
#[derive(Debug, Error)]
enum PlaneError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Held(#[from] HoldRefusal),
    #[error(
        "{0} is an address of this machine, so packets to it never reach the rewriter; \
         run shuntd on a machine that the packets pass through"
    )]
    LocalService(IpAddr),
    #[error("{0}")]
    NotDiverted(String),
    #[error("the diversion of {0} doesn't peek; set it with `peek` first")]
    NotPeeking(Service),
    #[error("there is no part of a list of names that these could continue; begin anew")]
    NothingToContinue,
    #[error("a peeking diversion takes at most {MAX_PEEK_NAMES} names")]
    TooManyNames,
    #[error("a name can't be listed: {0}")]
    Name(#[from] dns_question::NameError),
    #[error("there is no redirect {0}, or it is long ago; `redirects` lists those that are known")]
    NoRedirect(u64),
    #[error("say which redirect to cancel: `id` is missing")]
    CancelWhich,
    #[error("say of which mirror's connections a share is to be moved: `from_mirror` is missing")]
    ShareOfWhich,
    #[error(
        "{0} is the only mirror that would get connections, so no share of its own can go elsewhere"
    )]
    NowhereElse(MirrorAddress),
    #[error(transparent)]
    Routes(#[from] RoutesError),
    #[error(transparent)]
    WorkerGone(#[from] WorkerGone),
}

impl PlaneError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Held(HoldRefusal::Held { .. }) => ErrorCode::Held,
            Self::Refused(_)
            | Self::Held(_)
            | Self::LocalService(_)
            | Self::NotDiverted(_)
            | Self::NotPeeking(_)
            | Self::NothingToContinue
            | Self::TooManyNames
            | Self::Name(_)
            | Self::NoRedirect(_)
            | Self::CancelWhich
            | Self::ShareOfWhich
            | Self::NowhereElse(_) => ErrorCode::Refused,
            Self::Routes(_) | Self::WorkerGone(_) => ErrorCode::Internal,
        }
    }
}

impl Plane {
    /// A plane without diversions. `about` is what `version` answers.
    pub fn new(
        workers: Workers,
        proxies: Vec<IpAddr>,
        routing: Routing,
        about: VersionResult,
    ) -> Self {
        Self {
            workers,
            proxies,
            about,
            started: Instant::now(),
            rules: Mutex::new(Rules {
                diversions: Diversions::default(),
                restored: Vec::new(),
                routing,
                holds: Holds::default(),
                next_id: 0,
                redirects: VecDeque::new(),
                next_redirect: 1,
                peek_parts: HashMap::new(),
            }),
        }
    }

    /// Forgets restored diversions that no connection follows any more, and looks after the routes.
    /// To be called now and then.
    pub async fn tidy(&self) {
        let mut rules = self.rules.lock().await;
        rules.routing.refresh().await;
        if rules.restored.is_empty() {
            return;
        }
        if let Err(error) = self.forget_unused(&mut rules).await {
            warn!("can't forget a restored diversion: {error}");
        }
    }

    /// Takes the routes away. The plane must not be used afterwards.
    pub async fn shut_down(&self) {
        self.rules.lock().await.routing.remove_all().await;
    }

    async fn divert(&self, params: Divert) -> Result<DivertResult, PlaneError> {
        let Divert {
            service,
            mirrors,
            from,
            peek,
            automatic,
        } = params;
        let mut rules = self.rules.lock().await;
        rules.holds.admit(&service, automatic)?;
        let (replaced, _) = self.set(&mut rules, service, mirrors, from, peek).await?;
        let held = rules.holds.instructed(service, automatic);
        Ok(DivertResult { replaced, held })
    }

    async fn redirect(&self, params: Redirect) -> Result<RedirectResult, PlaneError> {
        let Redirect {
            service,
            mirrors,
            from,
            tcp,
            splice,
            from_mirror,
            share,
            automatic,
        } = params;
        if share.is_some() {
            let from = from_mirror.ok_or(PlaneError::ShareOfWhich)?;
            let goes_elsewhere = |mirror: &Mirror| {
                let port = mirror.port.or(service.port);
                mirror.weight > 0
                    && (mirror.address != from.address
                        || from.port.is_some_and(|p| port != Some(p)))
            };
            if !mirrors.iter().any(goes_elsewhere) {
                return Err(PlaneError::NowhereElse(from));
            }
        }
        let mut rules = self.rules.lock().await;
        rules.holds.admit(&service, automatic)?;
        let (replaced, diversion) = self.set(&mut rules, service, mirrors, from, None).await?;
        let held = rules.holds.instructed(service, automatic);
        let id = rules.next_redirect;
        rules.next_redirect += 1;
        if rules.redirects.len() == MAX_REDIRECTS {
            rules.redirects.pop_front();
        }
        rules.redirects.push_back(RedirectRecord {
            id,
            service,
            began: Instant::now(),
        });
        let outcome = self
            .workers
            .redirect(engine::Redirect {
                id,
                diversion,
                tcp,
                splice: view::splice_orders(&splice),
                from_mirror,
                share,
            })
            .await?;
        info!(
            "redirected {service} (redirect {id}): {} moved, {} waiting, {} reset, {} kept",
            outcome.moved, outcome.waiting, outcome.reset, outcome.kept
        );
        Ok(RedirectResult {
            replaced,
            held,
            id,
            outcome: view::outcome(&outcome),
        })
    }

    async fn redirects(&self, query: RedirectsQuery) -> Result<RedirectsResult, PlaneError> {
        let RedirectsQuery { id, cancel } = query;
        let records: Vec<RedirectRecord> = {
            let rules = self.rules.lock().await;
            let asked_for = |record: &&RedirectRecord| id.is_none_or(|id| id == record.id);
            rules.redirects.iter().filter(asked_for).cloned().collect()
        };
        match id {
            Some(id) if records.is_empty() => return Err(PlaneError::NoRedirect(id)),
            None if cancel => return Err(PlaneError::CancelWhich),
            _ => {}
        }
        let mut redirects = Vec::new();
        for RedirectRecord { id, service, began } in records {
            let outcomes = self
                .workers
                .ask_all(move |engine| {
                    if cancel {
                        engine.cancel_redirect(id);
                    }
                    engine.redirect_outcome(id).unwrap_or_default()
                })
                .await?;
            let outcome = outcomes
                .into_iter()
                .fold(engine::RedirectOutcome::default(), |sum, outcome| {
                    sum.plus(outcome)
                });
            redirects.push(RedirectInfo {
                id,
                service,
                age_seconds: began.elapsed().as_secs(),
                outcome: view::outcome(&outcome),
            });
        }
        Ok(RedirectsResult { redirects })
    }

    async fn peek_names(&self, params: PeekNames) -> Result<PeekNamesResult, PlaneError> {
        let PeekNames {
            service,
            from,
            names: part,
            continues,
            more,
        } = params;
        let from = from.filter(|from| from.network().prefix_len() > 0);
        let mut rules = self.rules.lock().await;
        let Some(mut diversion) = rules.diversions.get(&service, from.as_ref()).cloned() else {
            return Err(PlaneError::NotDiverted(not_diverted(
                &rules.diversions,
                &service,
                from,
            )));
        };
        if diversion.peek.is_none() {
            return Err(PlaneError::NotPeeking(service));
        }
        let before = rules.peek_parts.remove(&diversion.id);
        let mut names = match continues {
            true => before.ok_or(PlaneError::NothingToContinue)?,
            false => Vec::new(),
        };
        names.extend(part);
        if names.len() > MAX_PEEK_NAMES {
            return Err(PlaneError::TooManyNames);
        }
        if more {
            let told = names.len() as u64;
            rules.peek_parts.insert(diversion.id, names);
            return Ok(PeekNamesResult { names: told });
        }
        let peek = Peek::at(&names)?;
        let listed = peek.names().unwrap_or_default();
        diversion.peek = Some(peek);
        let for_workers = diversion.clone();
        self.workers
            .ask_all(move |engine| engine.divert(for_workers.clone()))
            .await?;
        info!("{} peeks at {listed} name(s)", describe(&diversion));
        rules.diversions.set(diversion);
        Ok(PeekNamesResult {
            names: listed as u64,
        })
    }

    /// Adds or replaces a diversion everywhere. Whether it peeks stays as it is unless that is said. Tells
    /// whether it replaced one, and its number.
    async fn set(
        &self,
        rules: &mut Rules,
        service: Service,
        mirrors: Vec<Mirror>,
        from: Option<ClientPrefix>,
        peek: Option<bool>,
    ) -> Result<(bool, DiversionId), PlaneError> {
        // A prefix that all clients lie in is the same as none.
        let from = from.filter(|from| from.network().prefix_len() > 0);
        let before = rules.diversions.get(&service, from.as_ref()).cloned();
        let restored_before = rules
            .restored
            .iter()
            .find(|d| (d.service, d.from) == (service, from))
            .cloned();
        let known = before.as_ref().or(restored_before.as_ref());
        let id = known.map_or(DiversionId(rules.next_id), |d| d.id);
        let peek_before = before.as_ref().and_then(|d| d.peek.clone());
        let diversion = Diversion {
            id,
            service,
            from,
            mirrors,
            peek: match peek {
                None => peek_before,
                Some(true) => Some(peek_before.unwrap_or_default()),
                Some(false) => None,
            },
        };
        rules.diversions.check(&diversion, &self.proxies)?;
        let address = service.address;
        if rules.routing.is_local(address).await? {
            return Err(PlaneError::LocalService(address));
        }
        let for_workers = diversion.clone();
        self.workers
            .ask_all(move |engine| engine.divert(for_workers.clone()))
            .await?;
        if let Err(error) = rules.routing.add(address).await {
            // As it was before: a diversion without its route would be a lie.
            self.workers
                .ask_all(move |engine| match &before {
                    Some(before) => engine.divert(before.clone()),
                    None => engine.restore(&service, from.as_ref()),
                })
                .await?;
            return Err(error.into());
        }
        info!("diverted {}", describe(&diversion));
        rules.next_id = rules.next_id.max(id.0 + 1);
        rules.restored.retain(|d| d.id != id);
        rules.diversions.set(diversion);
        Ok((before.is_some(), id))
    }

    async fn restore(&self, params: Restore) -> Result<RestoreResult, PlaneError> {
        let Restore {
            service,
            from,
            automatic,
        } = params;
        let from = from.filter(|from| from.network().prefix_len() > 0);
        let mut rules = self.rules.lock().await;
        rules.holds.admit(&service, automatic)?;
        let Some(diversion) = rules.diversions.get(&service, from.as_ref()).cloned() else {
            return Err(PlaneError::NotDiverted(not_diverted(
                &rules.diversions,
                &service,
                from,
            )));
        };
        self.workers
            .ask_all(move |engine| engine.restore(&service, from.as_ref()))
            .await?;
        rules.diversions.remove(&service, from.as_ref());
        rules.peek_parts.remove(&diversion.id);
        rules.restored.push(diversion.clone());
        let held = rules.holds.instructed(service, automatic);
        let usage = self.usage().await?;
        let remaining = usage
            .get(&diversion.id)
            .map_or(0, |mirrors| mirrors.values().sum());
        info!(
            "restored {}: {remaining} connections remain",
            describe(&diversion)
        );
        self.forget_unused(&mut rules).await?;
        Ok(RestoreResult { remaining, held })
    }

    async fn hold(&self, params: Hold) -> Result<HoldResult, PlaneError> {
        let changed = self.rules.lock().await.holds.hold(params.service)?;
        Ok(HoldResult { changed })
    }

    async fn release(&self, params: ReleaseHold) -> HoldResult {
        let changed = self.rules.lock().await.holds.release(&params.service);
        HoldResult { changed }
    }

    async fn list(&self) -> Result<ListResult, PlaneError> {
        let rules = self.rules.lock().await;
        let mut usage = self.usage().await?;
        let mut info = |diversion: &Diversion, state| {
            let usage = usage.remove(&diversion.id).unwrap_or_default();
            let held = rules.holds.concern(&diversion.service);
            view::diversion_info(diversion, state, held, &usage)
        };
        let mut active: Vec<&Diversion> = rules.diversions.iter().collect();
        active.sort_by_key(|d| (d.service, d.from.map(|from| from.network())));
        let mut diversions: Vec<_> = active
            .into_iter()
            .map(|d| info(d, DiversionState::Active))
            .collect();
        diversions.extend(
            rules
                .restored
                .iter()
                .map(|d| info(d, DiversionState::Restored)),
        );
        Ok(ListResult {
            diversions,
            holds: rules.holds.iter().collect(),
        })
    }

    async fn connections(&self, query: ConnectionsQuery) -> Result<ConnectionsResult, PlaneError> {
        let ConnectionsQuery {
            after,
            limit,
            service,
        } = query;
        let limit = limit.unwrap_or(MAX_PAGE) as usize;
        let Cursor { worker, slot } = after.unwrap_or(Cursor { worker: 0, slot: 0 });
        if worker >= self.workers.count() {
            return Ok(ConnectionsResult {
                connections: Vec::new(),
                next: None,
            });
        }
        let now = self.workers.now();
        let (connections, next) = self
            .workers
            .ask(worker, move |engine| {
                view::connections(engine, slot, limit, service.as_ref(), now)
            })
            .await?;
        let next = match next {
            Some(slot) => Some(Cursor { worker, slot }),
            None if worker + 1 < self.workers.count() => Some(Cursor {
                worker: worker + 1,
                slot: 0,
            }),
            None => None,
        };
        Ok(ConnectionsResult { connections, next })
    }

    async fn stats(&self, params: Stats) -> Result<StatsResult, PlaneError> {
        let groups = match params.by {
            Some(by) => {
                let measured = self.measured(by).await?;
                Some(self.report(&measured).await)
            }
            None => None,
        };
        let reports = self.workers.report().await?;
        let workers: Vec<Counters> = reports.iter().map(view::counters).collect();
        let mut total = Counters::default();
        for worker in &workers {
            total.add(worker);
        }
        Ok(StatsResult {
            uptime_seconds: self.started.elapsed().as_secs(),
            workers,
            total,
            groups,
        })
    }

    /// The mirrors' vital signs. The workers are asked twice, since what one has heard of a mirror answers
    /// what another has sent to it.
    async fn liveness(&self) -> Result<LivenessResult, PlaneError> {
        let mut heard: HashMap<Endpoint, Time> = HashMap::new();
        for worker in self.workers.ask_all(|engine| engine.heard()).await? {
            for (mirror, at) in worker {
                let latest = heard.entry(mirror).or_default();
                *latest = (*latest).max(at);
            }
        }
        let heard = Arc::new(heard);
        let signs = self
            .workers
            .ask_all(move |engine| engine.mirror_signs(&heard))
            .await?;
        let mut mirrors: BTreeMap<Endpoint, MirrorSigns> = BTreeMap::new();
        for (mirror, signs) in signs.into_iter().flatten() {
            mirrors.entry(mirror).or_default().add(&signs);
        }
        let now = self.workers.now();
        let mirrors = mirrors
            .iter()
            .map(|(mirror, signs)| view::mirror_liveness(*mirror, signs, now));
        Ok(LivenessResult {
            mirrors: mirrors.collect(),
        })
    }

    /// What has been measured since the last of these updates, or since the start.
    async fn update(&self, updates: &mut Updates) -> Result<WatchResult, PlaneError> {
        let measured = self.measured(updates.by).await?;
        let now = Instant::now();
        let since = updates.until.unwrap_or(self.started);
        let groups = self.report(&measured.since(&updates.measured)).await;
        updates.until = Some(now);
        updates.measured = measured;
        Ok(WatchResult {
            interval_ms: u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX),
            groups,
        })
    }

    /// What all workers have measured since the start. Each is asked for a little at a time, so that its
    /// packets needn't wait.
    async fn measured(&self, by: Grouping) -> Result<Measured, WorkerGone> {
        let mut measured = Measured::default();
        for worker in 0..self.workers.count() {
            let mut first = 0;
            loop {
                let (aggregates, groups, more) = self
                    .workers
                    .ask(worker, move |engine| {
                        let all = engine.aggregates();
                        let (slice, more) = all.slice(first..first + AGGREGATES_AT_ONCE);
                        (slice.cloned().collect::<Vec<_>>(), all.groups(), more)
                    })
                    .await?;
                for aggregate in &aggregates {
                    measured.add(aggregate, by, groups);
                }
                if !more {
                    break;
                }
                first += AGGREGATES_AT_ONCE;
            }
        }
        Ok(measured)
    }

    /// What was measured in the words of the protocol, but for diversions that are long gone.
    async fn report(&self, measured: &Measured) -> Vec<GroupStats> {
        let wanted = measured.diversions();
        let rules = self.rules.lock().await;
        let known: HashMap<DiversionId, &Diversion> = rules
            .diversions
            .iter()
            .chain(&rules.restored)
            .filter(|diversion| wanted.contains(&diversion.id))
            .map(|diversion| (diversion.id, diversion))
            .collect();
        measured.report(|id| known.get(&id).map(|d| (d.service, d.from)))
    }

    /// How many connections follow each diversion to each mirror, in all workers together.
    async fn usage(&self) -> Result<HashMap<DiversionId, BTreeMap<Endpoint, u64>>, WorkerGone> {
        let mut sum: HashMap<DiversionId, BTreeMap<Endpoint, u64>> = HashMap::new();
        for worker in self
            .workers
            .ask_all(|engine| {
                let used = engine.aggregates().iter().filter(|a| a.connections > 0);
                used.map(|a| (a.key, a.connections)).collect::<Vec<_>>()
            })
            .await?
        {
            for (key, count) in worker {
                let mirrors = sum.entry(key.diversion).or_default();
                *mirrors.entry(key.mirror).or_default() += count;
            }
        }
        Ok(sum)
    }

    /// Forgets the restored diversions that no connection follows any more, and their routes.
    async fn forget_unused(&self, rules: &mut Rules) -> Result<(), PlaneError> {
        let usage = self.usage().await?;
        let unused: Vec<Diversion> = rules
            .restored
            .extract_if(.., |d| !usage.contains_key(&d.id))
            .collect();
        for diversion in unused {
            let address = diversion.service.address;
            let is_needed = rules
                .diversions
                .iter()
                .chain(&rules.restored)
                .any(|other| other.service.address == address);
            if !is_needed {
                // The route first: once the engines have forgotten the service, they no longer hand
                // its packets to their owner.
                rules.routing.remove(address).await?;
                self.workers
                    .ask_all(move |engine| engine.forget(address))
                    .await?;
            }
        }
        Ok(())
    }
}

impl Handler for Plane {
    type Updates = Updates;

    async fn answer(&self, request: Request) -> Answer {
        let id = request.id;
        match request.method {
            Method::Divert(params) => answer(id, self.divert(params).await),
            Method::Redirect(params) => answer(id, self.redirect(params).await),
            Method::Redirects(params) => answer(id, self.redirects(params).await),
            Method::Restore(params) => answer(id, self.restore(params).await),
            Method::PeekNames(params) => answer(id, self.peek_names(params).await),
            Method::Hold(params) => answer(id, self.hold(params).await),
            Method::Release(params) => Answer::ok(id, &self.release(params).await),
            Method::List(_) => answer(id, self.list().await),
            Method::Connections(params) => answer(id, self.connections(params).await),
            Method::Stats(params) => answer(id, self.stats(params).await),
            // The first of its answers; the server asks for the others.
            Method::Watch(params) => answer(id, self.update(&mut Updates::new(params)).await),
            Method::Liveness(_) => answer(id, self.liveness().await),
            Method::Version(_) => Answer::ok(id, &self.about),
            method => Answer::elsewhere(id, &method, Daemon::Rewriter),
        }
    }

    fn watch(&self, _id: u64, params: Watch) -> Result<Updates, Answer> {
        Ok(Updates::new(params))
    }

    async fn next_update(&self, id: u64, updates: &mut Updates) -> Answer {
        answer(id, self.update(updates).await)
    }
}

fn answer<T: serde::Serialize>(id: u64, result: Result<T, PlaneError>) -> Answer {
    match result {
        Ok(result) => Answer::ok(id, &result),
        Err(error) => Answer::error(Some(id), error.code(), error.to_string()),
    }
}

/// Why nothing was restored, with the closest thing that could have been meant.
fn not_diverted(diversions: &Diversions, service: &Service, from: Option<ClientPrefix>) -> String {
    let from = from.map_or(String::new(), |from| format!(" from {from}"));
    let mut similar: Vec<String> = diversions
        .iter()
        .filter(|d| d.service.address == service.address)
        .map(|d| {
            let from = d
                .from
                .map_or(String::new(), |from| format!(" --from {from}"));
            format!("{}{from}", d.service)
        })
        .collect();
    similar.sort();
    if similar.is_empty() {
        format!("{service}{from} is not diverted")
    } else {
        format!(
            "{service}{from} is not diverted; diverted at this address: {}",
            similar.join(", ")
        )
    }
}

fn describe(diversion: &Diversion) -> String {
    let mirrors: Vec<String> = diversion.mirrors.iter().map(ToString::to_string).collect();
    let from = diversion
        .from
        .map_or(String::new(), |from| format!(" (from {from})"));
    format!("{}{from} to {}", diversion.service, mirrors.join(" "))
}
