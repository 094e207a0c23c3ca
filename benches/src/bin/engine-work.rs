//! One task of the engine's, a given number of times and nothing else: for profilers, and to count
//! instructions, of which a run of N and a run of 2 N differ by just those of N times the task.

use benches::load::Load;
use clap::{Parser, ValueEnum};

/// Does one task of the engine's a given number of times.
#[derive(Parser)]
struct Arguments {
    /// What to do.
    task: Task,
    /// How many packets (or rounds, of `create`).
    #[arg(default_value_t = 1_000_000)]
    times: usize,
    /// How many connections there are.
    #[arg(long, default_value_t = 1000)]
    connections: u32,
    /// How many diversions there are.
    #[arg(long, default_value_t = 10)]
    diversions: u32,
    /// How many packets are looked at together, 1 to 64.
    #[arg(long, default_value_t = 32)]
    batch: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Task {
    /// Translate packets of existing connections, in random order.
    Translate,
    /// Open all connections and let them expire.
    Create,
}

fn main() {
    let Arguments {
        task,
        times,
        connections,
        diversions,
        batch,
    } = Arguments::parse();
    match task {
        Task::Translate => {
            let mut load = Load::new(connections, diversions);
            load.batch = batch;
            load.translate(times);
        }
        Task::Create => {
            let mut load = Load::without_connections(connections, diversions);
            for _ in 0..times {
                load.create_and_expire();
            }
        }
    }
}
