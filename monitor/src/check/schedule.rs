//! When checks are made: a task for each, at intervals that don't beat in step.
//!
//! The first asking comes after a random part of the interval, and each further one after the
//! interval give or take 10 %, so that many mirrors, or many monitors of one mirror, aren't asked all
//! at once. Whatever a check does, it ends when its time is up: what it was doing is dropped, and with
//! it its sockets and processes.
//!
//! In a *hurry* a mirror is asked right now, and again while it is bad, up to the `fall` of each
//! check: so that [`Health`](super::Health) can decide soon, and by the rules it always goes by. The
//! schedule stays as it was.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use thiserror::Error;
use tokio::select;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::config::{CheckConfig, CheckError, Kind};
use super::tls::{self, TlsError};
use super::{Asked, Finding, Verdict};

/// The most checks that are under way at once, and so the most sockets (and commands) of them all:
/// this many of the schedule's, and as many that were hurried, which mustn't wait for those that hang.
const AT_ONCE: usize = 256;

/// A mirror to watch.
#[derive(Debug, Clone)]
pub struct Target {
    /// The caller's number for the mirror, which its reports carry.
    pub mirror: usize,
    /// Its name, for commands.
    pub name: String,
    /// Its address. The port is that of the checks which have none of their own; 0 if it has none.
    pub address: SocketAddr,
    /// How it is watched.
    pub checks: Vec<CheckConfig>,
}

/// A finding, and whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The mirror's number.
    pub mirror: usize,
    /// The check's place in [`Target::checks`].
    pub check: usize,
    /// Whether it was found in a hurry.
    pub hurried: bool,
    /// What was found.
    pub finding: Finding,
}

/// Why checks can't be started.
#[derive(Debug, Error)]
#[error("mirror {mirror}, check {check} ({kind})")]
pub struct StartError {
    /// The mirror's name.
    pub mirror: String,
    /// The check's place, from 0.
    pub check: usize,
    /// The check's kind.
    pub kind: &'static str,
    /// What is wrong with it.
    pub source: StartFault,
}

/// What is wrong with a check that can't be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartFault {
    /// Its configuration makes no sense.
    #[error(transparent)]
    Config(#[from] CheckError),
    /// It goes to a port, but neither it nor the mirror has one.
    #[error("the mirror has no port; the check needs a `port`")]
    NoPort,
    /// It can't speak TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Checks that are under way. Dropping it ends them all.
#[derive(Debug)]
pub struct Checks {
    /// For each mirror, how each of its checks is told to hurry.
    hurries: HashMap<usize, Vec<mpsc::Sender<Duration>>>,
    tasks: JoinSet<()>,
}

impl Checks {
    /// Starts to watch `targets`; each finding goes to `reports`. Checks wait while it is full, and
    /// end when its other end is gone.
    ///
    /// Must be called within a tokio runtime that has time and I/O.
    ///
    /// # Errors
    /// When a check can't be made as it is configured. Nothing is started then.
    pub fn start(targets: Vec<Target>, reports: mpsc::Sender<Report>) -> Result<Self, StartError> {
        let turns = Turns {
            usual: Arc::new(Semaphore::new(AT_ONCE)),
            hurried: Arc::new(Semaphore::new(AT_ONCE)),
        };
        let mut watches = Vec::new();
        let mut hurries: HashMap<usize, Vec<_>> = HashMap::new();
        for target in &targets {
            for (check, config) in target.checks.iter().enumerate() {
                let asked = prepare(target, config).map_err(|source| StartError {
                    mirror: target.name.clone(),
                    check,
                    kind: config.kind.name(),
                    source,
                })?;
                let (hurry, hurried) = mpsc::channel(1);
                hurries.entry(target.mirror).or_default().push(hurry);
                watches.push(Watch {
                    mirror: target.mirror,
                    check,
                    config: config.clone(),
                    asked,
                    hurried,
                    reports: reports.clone(),
                    turns: turns.clone(),
                });
            }
        }
        let mut tasks = JoinSet::new();
        for watch in watches {
            tasks.spawn(watch.run());
        }
        Ok(Self { hurries, tasks })
    }

    /// Has the checks of `mirror` made right now, each with at most `limit` to answer, and its own
    /// timeout if that is shorter. A check that is under way is begun anew.
    ///
    /// While it is bad a check is made again, `limit` after it began, until it has been made `fall`
    /// times. To call it again meanwhile changes nothing.
    pub fn hurry(&self, mirror: usize, limit: Duration) {
        for hurry in self.hurries.get(&mirror).into_iter().flatten() {
            // One that waits to be taken up is as good as this one.
            let _ = hurry.try_send(limit);
        }
    }

    /// How many checks are watched.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

fn prepare(target: &Target, config: &CheckConfig) -> Result<Asked, StartFault> {
    config.validate()?;
    let mut address = target.address;
    address.set_port(config.port.unwrap_or(address.port()));
    if config.kind.needs_port() && address.port() == 0 {
        return Err(StartFault::NoPort);
    }
    let tls = match &config.kind {
        Kind::Http(http) if http.tls => Some(tls::connector(http.verify, http.ca.as_deref())?),
        Kind::Prometheus(metric) if metric.tls => {
            Some(tls::connector(metric.verify, metric.ca.as_deref())?)
        }
        _ => None,
    };
    Ok(Asked {
        name: target.name.clone(),
        address,
        tls,
    })
}

/// One check of one mirror, over and over.
struct Watch {
    mirror: usize,
    check: usize,
    config: CheckConfig,
    asked: Asked,
    hurried: mpsc::Receiver<Duration>,
    reports: mpsc::Sender<Report>,
    turns: Turns,
}

/// Whose turn it is to have a socket.
#[derive(Clone)]
struct Turns {
    usual: Arc<Semaphore>,
    hurried: Arc<Semaphore>,
}

/// What comes first while a check waits or is under way.
enum Event<T> {
    Hurry(Duration),
    Usual(T),
}

/// Nobody takes reports any more.
struct Abandoned;

impl Watch {
    async fn run(mut self) {
        // The end of the reports is the end of the watch.
        let Err(Abandoned) = self.watch().await;
    }

    async fn watch(&mut self) -> Result<std::convert::Infallible, Abandoned> {
        let mut next = Instant::now() + self.config.interval.mul_f64(rand::rng().random());
        loop {
            let limit = match or_hurry(&mut self.hurried, sleep_until(next)).await {
                Event::Hurry(limit) => Some(limit),
                Event::Usual(()) => {
                    let pause = self
                        .config
                        .interval
                        .mul_f64(rand::rng().random_range(0.9..1.1));
                    // What was missed, as in a machine that slept, isn't made up for.
                    next = (next + pause).max(Instant::now());
                    let asking = ask(
                        &self.config,
                        &self.asked,
                        &self.turns.usual,
                        self.config.timeout,
                    );
                    match or_hurry(&mut self.hurried, asking).await {
                        Event::Hurry(limit) => Some(limit),
                        Event::Usual(finding) => {
                            self.report(finding, false).await?;
                            None
                        }
                    }
                }
            };
            if let Some(limit) = limit {
                self.hurry(limit.min(self.config.timeout)).await?;
            }
        }
    }

    async fn hurry(&mut self, limit: Duration) -> Result<(), Abandoned> {
        for _ in 0..self.config.fall {
            let again = Instant::now() + limit;
            let finding = ask(&self.config, &self.asked, &self.turns.hurried, limit).await;
            let bad = finding.verdict == Verdict::Bad;
            self.report(finding, true).await?;
            if !bad {
                break;
            }
            sleep_until(again).await;
        }
        // Who called meanwhile has the answer.
        let _ = self.hurried.try_recv();
        Ok(())
    }

    async fn report(&self, finding: Finding, hurried: bool) -> Result<(), Abandoned> {
        let report = Report {
            mirror: self.mirror,
            check: self.check,
            hurried,
            finding,
        };
        self.reports.send(report).await.map_err(|_| Abandoned)
    }
}

/// Waits for `usual`, unless told to hurry first.
async fn or_hurry<T>(
    hurried: &mut mpsc::Receiver<Duration>,
    usual: impl Future<Output = T>,
) -> Event<T> {
    select! {
        Some(limit) = hurried.recv() => Event::Hurry(limit),
        outcome = usual => Event::Usual(outcome),
    }
}

/// Asks once, with at most `limit` to answer.
async fn ask(config: &CheckConfig, asked: &Asked, turns: &Semaphore, limit: Duration) -> Finding {
    // It is never closed. The time runs from when it is this check's turn.
    let _turn = turns.acquire().await;
    let asking = async {
        match &config.kind {
            Kind::Tcp(tcp) => tcp.ask(asked).await,
            Kind::Http(http) => http.ask(asked).await,
            Kind::Dns(dns) => dns.ask(asked).await,
            Kind::Udp(udp) => udp.ask(asked).await,
            Kind::Icmp(icmp) => icmp.ask(asked).await,
            Kind::Agent(agent) => agent.ask(asked).await,
            Kind::Prometheus(prometheus) => prometheus.ask(asked).await,
            Kind::Command(command) => Ok(command.ask(asked).await),
        }
    };
    match timeout(limit, asking).await {
        Ok(Ok(finding)) => finding,
        Ok(Err(fault)) => config.kind.judge(fault.into()),
        Err(_) => config
            .kind
            .judge(Finding::bad(format!("no answer within {limit:?}"))),
    }
}

impl Kind {
    /// What an asking that came to nothing says: of a metric or an agent that can't be had, nothing,
    /// since other checks tell whether the mirror is there.
    fn judge(&self, finding: Finding) -> Finding {
        match self {
            Self::Agent(_) | Self::Prometheus(_) => Finding {
                verdict: Verdict::Unknown,
                ..finding
            },
            _ => finding,
        }
    }
}
