//! Clients that ask a web service at a set pace, and what became of every request: the program
//! `load-generator`, started by [`Load`], and what it reports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::lab::Host;
use crate::process::Background;
use crate::shunt::binary;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// An answer with a status of success.
    Answered,
    /// No connection could be opened: refused, reset, or no answer in time.
    NoConnection,
    /// It was sent, and then the connection broke before its answer was whole.
    InFlight,
    /// It was sent, and its answer wasn't whole in time. The connection is given up.
    Timeout,
    /// An answer that says that it failed: a status of 400 or more.
    BadStatus,
    /// In an open loop: no connection was free for it in time.
    NotSent,
}

/// One request: a line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// When it was meant to be sent, in milliseconds since the generator began.
    pub start_ms: f64,
    /// From that moment until its end, in microseconds.
    pub latency_us: u64,
    /// How it ended.
    pub ending: Ending,
    /// The first line of the answer's body, which tells the server. Empty without an answer.
    pub server: String,
    /// Which connection of the pool it was sent on, from 0. When one breaks, its successor has its number.
    pub connection: usize,
    /// The client's address, where it was set.
    pub source: Option<IpAddr>,
}

impl Request {
    /// When it ended, in milliseconds since the generator began.
    pub fn end_ms(&self) -> f64 {
        self.start_ms + self.latency_us as f64 / 1000.0
    }
}

/// All requests together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// When the generator began: microseconds of the machine's monotonic clock, as of [`monotonic_us`].
    pub began_us: u64,
    /// From then until the last request had ended.
    pub seconds: f64,
    /// Connections of the pool.
    pub connections: usize,
    /// Requests, however they ended.
    pub requests: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Those that weren't.
    pub failed: u64,
    /// `failed`, by the way they ended. What didn't happen isn't named.
    pub failures: BTreeMap<Ending, u64>,
    /// Answered requests a second.
    pub throughput: f64,
    /// Connections that were opened, those in place of others included.
    pub opened: u64,
    /// Connections that the server had closed before a request was sent on them. They are opened anew, and no
    /// request fails by it (RFC 9112, section 9.3.1).
    pub closed_idle: u64,
    /// Of answered requests, in microseconds.
    pub latency_us: Latencies,
    /// Answers by the server that gave them.
    pub servers: BTreeMap<String, u64>,
}

impl Summary {
    /// How many requests ended in this way.
    pub fn count(&self, ending: Ending) -> u64 {
        match ending {
            Ending::Answered => self.answered,
            failure => self.failures.get(&failure).copied().unwrap_or(0),
        }
    }
}

/// Latencies, right to a thousandth; all 0 if there were none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each name says it")]
pub struct Latencies {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// The machine's monotonic clock in microseconds, the same for all its processes.
pub fn monotonic_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| Duration::from(time).as_micros() as u64)
        .expect("the clock is always there")
}

/// A `load-generator` at work.
#[derive(Debug)]
pub struct Load {
    program: Background,
    log: PathBuf,
}

impl Load {
    /// Starts one on `host` with these flags, split at spaces (`load-generator --help` has them), and waits
    /// until it has begun.
    #[track_caller]
    pub fn start(host: &Host, flags: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = host.file(&format!("requests.{number}.tsv"));
        let generator = binary("load-generator");
        let mut command = host.command(&generator.display().to_string());
        command.args(flags.split_whitespace());
        command.arg("--log").arg(&log);
        let mut program = host.spawn(&mut command, "load-generator");
        program.wait_for_log("begun");
        Self { program, log }
    }

    /// Waits until its time is over, and gives what became of it all.
    ///
    /// # Panics
    /// It fails, or takes more than `patience`.
    #[track_caller]
    pub fn finish(self, patience: Duration) -> (Summary, Vec<Request>) {
        let (status, output) = self.program.wait(patience);
        assert!(status.success(), "load-generator, {status}: {output}");
        let summary = output.lines().rfind(|line| line.starts_with('{'));
        let summary = summary
            .and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or_else(|| panic!("no summary: {output}"));
        let mut log = csv::ReaderBuilder::new()
            .delimiter(b'\t')
            .from_path(&self.log)
            .expect("it was written");
        let requests = log
            .deserialize()
            .collect::<Result<_, _>>()
            .expect("as it was written");
        (summary, requests)
    }

    /// Has it end early: it sends nothing more, and waits for what it has sent.
    #[track_caller]
    pub fn end(self, patience: Duration) -> (Summary, Vec<Request>) {
        self.program.signal(Signal::SIGTERM);
        self.finish(patience)
    }
}
