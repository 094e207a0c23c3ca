//! A load generator for scenarios and benches: clients of several addresses that ask a web service on
//! connections that stay open, and a record of every request.
//!
//! wrk counts no failures by their kind and knows one client address; with an open loop, it is what the
//! *clients* would have seen that counts: latency begins at the moment for which a request was meant, whether
//! or not a connection was free to send it ("coordinated omission" otherwise).

mod connection;
mod pace;
mod source;
mod tally;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use hyper::Uri;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

use connection::{Connection, Plan};
use pace::{Arrivals, Pace, Thinking};
use source::{Source, share_out};
use tally::Tally;

/// Asks a web service on connections that stay open, and tells what became of it: a line of JSON in the end.
///
/// SIGINT and SIGTERM end it early.
#[derive(Debug, Parser)]
struct Arguments {
    /// Whom to ask.
    #[arg(long)]
    to: SocketAddr,
    /// For what.
    #[arg(long, default_value = "/")]
    path: Uri,
    /// How many connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// An address to ask from, or ADDRESS*WEIGHT; several share the connections.
    #[arg(long = "from")]
    from: Vec<Source>,
    /// Open loop: so many requests a second come at random (Poisson), and each takes the connection that has
    /// been free longest.
    #[arg(long, conflicts_with = "think", value_parser = rate)]
    rate: Option<f64>,
    /// With `--rate`: each connection has requests of its own, an equal part of the rate, as clients do that know
    /// nothing of each other. Otherwise they share them, as a proxy's or a program's pool does.
    #[arg(long, requires = "rate")]
    apart: bool,
    /// Closed loop: how long each connection thinks after an answer, in the mean (exponential).
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    think: Duration,
    /// How long.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long a request may take, from the moment for which it is meant.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long a connection waits after a failure.
    #[arg(long, default_value = "20ms", value_parser = humantime::parse_duration)]
    retry: Duration,
    /// After how many requests a connection is closed and another opened; never by default.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    requests_per_connection: Option<u64>,
    /// A file for a line about each request, tab-separated.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Where its random times begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A rate for which there are times between requests.
fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (0.001..=1e6).contains(&rate) {
        Ok(rate)
    } else {
        Err("from 0.001 to 1,000,000".into())
    }
}

#[tokio::main(flavor = "current_thread")]
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the summary is what this program is for; that it has begun goes to stderr"
)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let begin = Instant::now();
    let end = begin
        .checked_add(arguments.duration)
        .context("so long a duration can't be told")?;
    let tally = Rc::new(RefCell::new(Tally::new(arguments.log.as_deref())?));
    let plan = Rc::new(Plan {
        to: arguments.to,
        path: arguments.path,
        timeout: arguments.timeout,
        retry: arguments.retry,
        requests_per_connection: arguments.requests_per_connection,
    });
    let (mut interrupted, mut terminated) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );

    let tasks = LocalSet::new();
    let mut random = SmallRng::seed_from_u64(arguments.seed);
    let (mut pool, mut arriving) = (JoinSet::<anyhow::Result<()>>::new(), JoinSet::new());
    let mut arrive = |rate: f64| {
        let arrivals = Rc::new(Arrivals::new());
        let (coming, mut random) = (arrivals.clone(), SmallRng::from_rng(&mut random));
        arriving.spawn_local_on(
            async move { coming.arrive(rate, end, &mut random).await },
            &tasks,
        );
        Pace::Open(arrivals)
    };
    let count = arguments.connections;
    let paces: Vec<Pace> = match arguments.rate {
        None => vec![Pace::Closed(Rc::new(Thinking::new(arguments.think, end)))],
        Some(rate) if arguments.apart => (0..count).map(|_| arrive(rate / count as f64)).collect(),
        Some(rate) => vec![arrive(rate)],
    };
    let sources = share_out(&arguments.from, count);
    for ((number, source), pace) in sources.into_iter().enumerate().zip(paces.iter().cycle()) {
        let connection = Connection {
            plan: plan.clone(),
            number,
            source,
            pace: pace.clone(),
            tally: tally.clone(),
            random: SmallRng::from_rng(&mut random),
        };
        pool.spawn_local_on(connection.run(), &tasks);
    }
    eprintln!("begun");
    tasks
        .run_until(async {
            loop {
                tokio::select! {
                    ended = pool.join_next() => match ended {
                        Some(outcome) => outcome??,
                        None => return anyhow::Ok(()),
                    },
                    Some(ended) = arriving.join_next() => ended??,
                    _ = interrupted.recv() => paces.iter().for_each(Pace::end),
                    _ = terminated.recv() => paces.iter().for_each(Pace::end),
                }
            }
        })
        .await?;
    // What the connections shared is shared no more: their tasks have ended.
    let tally = Rc::into_inner(tally).context("a connection is still at work")?;
    let summary = tally.into_inner().finish(arguments.connections)?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}
