//! Shunt beside what it is chosen against, on a network of namespaces: client ─ rewriter ─ server.
//!
//! In each round every system is set up in turn and does all the workloads; the order of the systems
//! changes from round to round. A figure counts by its ratio to that of nftables in the same round, so
//! that a slow minute of the machine slows both.

mod flood;
mod report;
mod system;
mod workload;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use benches::in_one_piece;
use clap::{Parser, ValueEnum};
use scenarios::Lab;

use report::{Cell, Report};
use system::{Family, System};
use workload::{Servers, Workload};

/// Compares Shunt with plain forwarding, nftables, HAProxy and nginx, side by side.
///
/// Needs root, the programs that scripts/bench.sh installs, and shuntd and shuntctl beside this program
/// or where SHUNTD and SHUNTCTL say. Everything happens in network namespaces that are gone afterwards.
/// Client, rewriter and server share the machine's cores, so a figure says how the systems compare,
/// not what a machine of each could do alone.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  shunt-bench                                   everything, five rounds
  shunt-bench --rounds 3 --workload udp-1 --system nftables --system shunt
  shunt-bench --quick                           does everything work? the numbers mean nothing")]
struct Arguments {
    /// How many rounds.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these systems.
    #[arg(long = "system", value_enum)]
    systems: Vec<System>,
    /// Only these workloads.
    #[arg(long = "workload", value_enum)]
    workloads: Vec<Workload>,
    /// IPv4, IPv6 or both.
    #[arg(long, default_value = "both")]
    family: Families,
    /// Write network.md, network.json and network.svg into this folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// One short round over IPv4, of what shows that each system works.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Families {
    #[value(name = "4")]
    V4,
    #[value(name = "6")]
    V6,
    Both,
}

impl Arguments {
    /// What is left to choose once `--quick` has had its say.
    fn settle(mut self) -> Self {
        if self.quick {
            self.rounds = 1;
            self.seconds = 0.3;
            self.family = Families::V4;
            if self.workloads.is_empty() {
                self.workloads = vec![Workload::Latency, Workload::Udp1, Workload::HttpNew];
            }
        }
        if self.systems.is_empty() {
            self.systems = System::value_variants().to_vec();
        }
        if self.workloads.is_empty() {
            self.workloads = Workload::value_variants().to_vec();
        }
        self
    }

    fn families(&self) -> &'static [Family] {
        match self.family {
            Families::V4 => &[Family::V4],
            Families::V6 => &[Family::V6],
            Families::Both => &[Family::V4, Family::V6],
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse().settle();
    let cells = measure(&arguments);
    let report = Report::new(&cells, arguments.rounds, arguments.seconds)?;
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
    let failed = cells.iter().filter(|cell| cell.outcome.is_err()).count();
    anyhow::ensure!(failed == 0, "{failed} measurements failed");
    Ok(())
}

fn measure(arguments: &Arguments) -> Vec<Cell> {
    let time = Duration::from_secs_f64(arguments.seconds);
    let systems = &arguments.systems;
    let mut cells = Vec::new();
    let began = Instant::now();
    for round in 0..arguments.rounds {
        for turn in 0..systems.len() {
            let done = round as usize * systems.len() + turn;
            let system = systems[(turn + round as usize) % systems.len()];
            progress(arguments, round, system, done, began.elapsed());
            // A network of its own: TIME-WAIT sockets that a proxy leaves on the rewriter's host keep
            // the kernel from forwarding packets of the same addresses and ports for a minute.
            let lab = Lab::with_offloads();
            let _servers = Servers::start(&lab);
            let running = in_one_piece(|| Ok(system.start(&lab)));
            for family in arguments.families() {
                for workload in &arguments.workloads {
                    if workload.is_udp() && !system.takes_udp() {
                        continue;
                    }
                    let outcome = match &running {
                        Ok(_) => in_one_piece(|| workload.run(&lab, system, *family, time)),
                        Err(reason) => Err(reason.clone()),
                    };
                    cells.push(Cell {
                        round,
                        system,
                        family: *family,
                        workload: *workload,
                        outcome,
                    });
                }
            }
        }
    }
    cells
}

#[expect(
    clippy::print_stderr,
    reason = "progress, while the report goes to stdout"
)]
fn progress(arguments: &Arguments, round: u32, system: System, done: usize, elapsed: Duration) {
    let all = arguments.rounds as usize * arguments.systems.len();
    let left = match done {
        0 => String::new(),
        done => {
            let left = elapsed.mul_f64((all - done) as f64 / done as f64);
            format!(", some {} s left", left.as_secs())
        }
    };
    eprintln!(
        "round {} of {}: {}{left}",
        round + 1,
        arguments.rounds,
        system.name()
    );
}
