//! Steady load from several networks on mirrors whose capacity differs, and changes every few seconds: with a
//! monitor and without.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use scenarios::analysis::Times;
use scenarios::load::{Load, Request};

use crate::stage::{Stage, TIMEOUT_MS, Watch};

/// The workers of each mirror.
pub const WORKERS: [u32; 3] = [8, 4, 2];
/// How long a request takes a worker that is well, and one that is slow, in the mean.
const WELL: Duration = Duration::from_millis(20);
pub const SLOWER: u32 = 5;
/// Requests a second: 36 % of what the mirrors can do when all are well, 700 a second.
pub const RATE: u32 = 250;
/// Connections that carry them. Each asks at moments of its own.
pub const CONNECTIONS: usize = 96;

/// When something changes, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub second: u64,
    /// Which mirror is slow from then on, from 0; the others are well.
    pub slow: usize,
}

/// The changes of a run of `phases` phases: all are well in the first, and in each other one is slow that
/// wasn't before.
pub fn schedule(seed: u64, phases: u64, phase: Duration) -> Vec<Change> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut changes: Vec<Change> = Vec::new();
    for number in 1..phases {
        let before = changes.last().map(|change| change.slow);
        let others: Vec<usize> = (0..WORKERS.len())
            .filter(|mirror| Some(*mirror) != before)
            .collect();
        let Some(slow) = others.choose(&mut random) else {
            continue;
        };
        changes.push(Change {
            second: phase.as_secs() * number,
            slow: *slow,
        });
    }
    changes
}

/// What one run came to.
#[derive(Debug, Clone)]
pub struct Run {
    /// Of all requests.
    pub times: Times,
    /// Answers a second.
    pub throughput: f64,
    /// How often the monitor has instructed the rewriter.
    pub decisions: usize,
    /// Of those that were meant for each second.
    pub seconds: Vec<Option<Times>>,
}

/// Runs the load for all phases.
///
/// # Errors
/// The load came to nothing.
pub fn run(watch: Watch, changes: &[Change], time: Duration) -> anyhow::Result<Run> {
    let flags =
        WORKERS.map(|workers| format!("--workers {workers} --service-time {}ms", WELL.as_millis()));
    Stage::set(watch, [&flags[0], &flags[1], &flags[2]], |stage| {
        let pace = format!("--rate {RATE} --apart --duration {}s", time.as_secs());
        let load = Load::start(&stage.lab.client, &Stage::load(CONNECTIONS, &pace));
        let began = Instant::now();
        let mut slow: Option<usize> = None;
        for change in changes {
            thread::sleep(Duration::from_secs(change.second).saturating_sub(began.elapsed()));
            if let Some(slow) = slow {
                let well = format!("service_ms={}", WELL.as_millis());
                stage.servers[slow].set(&well);
            }
            let slower = format!("service_ms={}", (WELL * SLOWER).as_millis());
            stage.servers[change.slow].set(&slower);
            slow = Some(change.slow);
        }
        let (_, requests) = load.finish(time + Duration::from_secs(20));
        let times = Times::of(&requests, TIMEOUT_MS).context("there were no requests")?;
        Ok(Run {
            times,
            // The last answers come when no more is asked, which isn't the servers' doing.
            throughput: (times.count - times.failed) as f64 / time.as_secs_f64(),
            decisions: stage.decisions(),
            seconds: by_second(&requests, time),
        })
    })
}

fn by_second(requests: &[Request], time: Duration) -> Vec<Option<Times>> {
    (0..time.as_secs())
        .map(|second| {
            let begin = second as f64 * 1000.0;
            let those = requests
                .iter()
                .filter(|request| request.start_ms >= begin && request.start_ms < begin + 1000.0);
            Times::of(those, TIMEOUT_MS)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_another_mirror_is_slow_and_a_seed_always_gives_the_same() {
        let phase = Duration::from_secs(20);
        let changes = schedule(7, 6, phase);
        assert_eq!(changes.len(), 5);
        assert_eq!(changes[0].second, 20);
        assert_eq!(changes[4].second, 100);
        assert!(changes.windows(2).all(|pair| pair[0].slow != pair[1].slow));
        assert_eq!(changes, schedule(7, 6, phase));
        assert!((0..10).any(|seed| schedule(seed, 6, phase) != changes));
    }
}
