//! One mirror gets into trouble: how long its clients suffer, and how many of their requests fail.

use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use scenarios::analysis::{failed_after, left, recovered};
use scenarios::load::{Load, monotonic_us};

use crate::stage::{Stage, Watch};

/// Connections that stay open.
pub const CONNECTIONS: usize = 64;
/// How long a request takes a worker, in milliseconds.
const SERVICE_MS: u32 = 10;
/// How many times slower a mirror gets.
pub const SLOWER: u32 = 10;
/// Requests a second, where they come at moments of their own. A third of them is a quarter more than a mirror
/// that is slow can do.
const RATE: u32 = 300;
/// Workers of a mirror in that case.
const WORKERS: u32 = 8;

/// What happens to the first mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Trouble {
    /// Its server is killed: connections are reset, and new ones refused.
    Killed,
    /// Its link is cut: nothing answers any more.
    Cut,
    /// Every request takes ten times as long.
    Slow,
}

impl Trouble {
    /// For tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Killed => "server killed",
            Self::Cut => "link cut",
            Self::Slow => "10 times slower",
        }
    }

    /// What is timed.
    pub fn measure(self) -> &'static str {
        match self {
            Self::Killed | Self::Cut => "until the last connection has good answers again",
            Self::Slow => "until less than a fifth of its requests go there",
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suffering {
    /// [`Trouble::measure`], in milliseconds; none if not while it was watched.
    pub ms: Option<f64>,
    /// Requests that failed since.
    pub failed: usize,
}

/// How long before the trouble the load runs, and after it.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub before: Duration,
    pub after: Duration,
}

/// Lets it happen.
///
/// # Errors
/// The load came to nothing.
pub fn suffer(trouble: Trouble, watch: Watch, patience: Patience) -> anyhow::Result<Suffering> {
    let (workers, pace) = match trouble {
        Trouble::Killed | Trouble::Cut => (CONNECTIONS as u32, "--think 20ms".to_owned()),
        Trouble::Slow => (WORKERS, format!("--rate {RATE} --apart")),
    };
    let flags = format!("--workers {workers} --service-time {SERVICE_MS}ms");
    Stage::set(watch, [flags.as_str(); 3], |stage| {
        let time = patience.before + patience.after;
        let pace = format!("{pace} --duration {}ms", time.as_millis());
        let load = Load::start(&stage.lab.client, &Stage::load(CONNECTIONS, &pace));
        thread::sleep(patience.before);
        let moment = match trouble {
            Trouble::Killed => {
                let server = stage.servers.remove(0);
                let moment = monotonic_us();
                server.kill();
                moment
            }
            Trouble::Cut => {
                let moment = monotonic_us();
                stage.lab.mirror1.cut_off();
                moment
            }
            Trouble::Slow => {
                let moment = monotonic_us();
                stage.servers[0].set(&format!("service_ms={}", SERVICE_MS * SLOWER));
                moment
            }
        };
        let (summary, requests) = load.finish(patience.after + Duration::from_secs(20));
        let moment = moment
            .checked_sub(summary.began_us)
            .context("the load began too late")? as f64
            / 1000.0;
        let first = stage.lab.mirror1.title();
        anyhow::ensure!(
            requests
                .iter()
                .any(|request| request.server == first && request.end_ms() < moment),
            "nobody was on {first}"
        );
        let ms = match trouble {
            Trouble::Killed | Trouble::Cut => recovered(&requests, moment),
            Trouble::Slow => left(&requests, moment, &first),
        };
        Ok(Suffering {
            ms,
            failed: failed_after(&requests, moment),
        })
    })
}
