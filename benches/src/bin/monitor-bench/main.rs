//! What the monitor is worth to clients: response times under steady load on mirrors whose capacity changes, and
//! what clients suffer when a mirror dies, is cut off, or gets slow; with the monitor and without, in turns.

mod picture;
mod report;
mod stage;
mod steady;
mod trouble;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use benches::in_one_piece;
use clap::{Parser, ValueEnum};

use report::{Report, SteadyCell, TroubleCell};
use stage::Watch;
use trouble::{Patience, Trouble};

/// Measures what the monitor is worth to clients, on a network of namespaces.
///
/// Needs root, the programs that scripts/bench.sh installs, and shuntd, shuntctl, shunt-monitor, busy-server and
/// load-generator beside this program or where SHUNTD, SHUNTCTL, SHUNT_MONITOR_BIN, BUSY_SERVER and LOAD_GENERATOR
/// say. The servers work by sleeping, so that the machine's own cores don't become the bottleneck. Everything
/// happens in network namespaces that are gone afterwards.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  monitor-bench                                     everything; some 25 minutes
  monitor-bench --measurement trouble --trouble cut --rounds 3
  monitor-bench --quick                             does everything work? the numbers mean nothing")]
struct Arguments {
    /// How many rounds under steady load.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// How many rounds of each trouble.
    #[arg(long, default_value_t = 5)]
    trouble_rounds: u64,
    /// Phases of the steady load. In each but the first, another mirror is slow.
    #[arg(long, default_value_t = 6)]
    phases: u64,
    /// How long a phase takes, in seconds.
    #[arg(long, default_value_t = 20)]
    phase_seconds: u64,
    /// Where the schedule of changes begins; each round has the next seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this measurement.
    #[arg(long, value_enum)]
    measurement: Option<Measurement>,
    /// Only these troubles.
    #[arg(long = "trouble", value_enum)]
    troubles: Vec<Trouble>,
    /// Only with these who watch.
    #[arg(long = "watch", value_enum)]
    watches: Vec<Watch>,
    /// Write monitor.md, monitor.json and monitor.svg into this folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// A short round of everything: does it work? The numbers mean nothing.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    Steady,
    Trouble,
}

impl Arguments {
    /// What is left to choose once `--quick` has had its say.
    fn settle(mut self) -> Self {
        if self.quick {
            (self.rounds, self.trouble_rounds) = (1, 1);
            (self.phases, self.phase_seconds) = (2, 3);
        }
        if self.troubles.is_empty() {
            self.troubles = Trouble::value_variants().to_vec();
        }
        if self.watches.is_empty() {
            self.watches = match self.quick {
                true => vec![Watch::Signs],
                false => Watch::value_variants().to_vec(),
            };
        }
        self
    }

    /// How long a mirror's trouble is watched, and what goes before.
    fn patience(&self) -> Patience {
        let (before, after) = if self.quick { (3, 5) } else { (8, 12) };
        Patience {
            before: Duration::from_secs(before),
            after: Duration::from_secs(after),
        }
    }

    fn wants(&self, measurement: Measurement) -> bool {
        self.measurement.is_none_or(|only| only == measurement)
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse().settle();
    let began = Instant::now();
    let (mut steady, mut troubles) = (Vec::new(), Vec::new());
    if arguments.wants(Measurement::Steady) {
        measure_steady(&arguments, began, &mut steady);
    }
    if arguments.wants(Measurement::Trouble) {
        measure_troubles(&arguments, began, &mut troubles);
    }
    let report = Report::new(
        arguments.rounds,
        arguments.trouble_rounds,
        arguments.phase_seconds,
        arguments.patience().after,
        &steady,
        &troubles,
    )?;
    if arguments.json {
        println!("{:#}", report.json());
    } else {
        println!("{}", report.table());
    }
    if let Some(folder) = &arguments.out {
        report
            .write(folder)
            .with_context(|| format!("can't write to {}", folder.display()))?;
    }
    let failures = report.failures();
    anyhow::ensure!(failures == 0, "{failures} measurements failed");
    let ended =
        |cell: &TroubleCell| matches!(&cell.outcome, Ok(suffering) if suffering.ms.is_some());
    anyhow::ensure!(
        !arguments.quick || troubles.iter().all(ended),
        "clients weren't well again while they were watched"
    );
    Ok(())
}

/// With the monitor at its best and without it, in alternating order.
fn measure_steady(arguments: &Arguments, began: Instant, cells: &mut Vec<SteadyCell>) {
    let phase = Duration::from_secs(arguments.phase_seconds);
    let time = phase * u32::try_from(arguments.phases).unwrap_or(u32::MAX);
    let watches: Vec<Watch> = [Watch::None, Watch::Signs]
        .into_iter()
        .filter(|watch| arguments.watches.contains(watch))
        .collect();
    for round in 0..arguments.rounds {
        let changes = steady::schedule(arguments.seed + round, arguments.phases, phase);
        for watch in in_turn(&watches, round) {
            progress(began, round, arguments.rounds, "steady load", watch);
            cells.push(SteadyCell {
                round,
                watch,
                changes: changes.clone(),
                outcome: in_one_piece(|| steady::run(watch, &changes, time)),
            });
        }
    }
}

fn measure_troubles(arguments: &Arguments, began: Instant, cells: &mut Vec<TroubleCell>) {
    let patience = arguments.patience();
    for round in 0..arguments.trouble_rounds {
        for trouble in &arguments.troubles {
            for watch in in_turn(&arguments.watches, round) {
                progress(
                    began,
                    round,
                    arguments.trouble_rounds,
                    trouble.title(),
                    watch,
                );
                cells.push(TroubleCell {
                    round,
                    watch,
                    trouble: *trouble,
                    outcome: in_one_piece(|| trouble::suffer(*trouble, watch, patience)),
                });
            }
        }
    }
}

/// All of them, beginning with another one each round.
fn in_turn(watches: &[Watch], round: u64) -> Vec<Watch> {
    let mut watches = watches.to_vec();
    let first = round as usize % watches.len().max(1);
    watches.rotate_left(first);
    watches
}

#[expect(
    clippy::print_stderr,
    reason = "progress, while the report goes to stdout"
)]
fn progress(began: Instant, round: u64, rounds: u64, what: &str, watch: Watch) {
    eprintln!(
        "{:>5} s: round {} of {rounds}: {what}, {}",
        began.elapsed().as_secs(),
        round + 1,
        watch.title()
    );
}
