//! What the benches' reports share: numbers, and what they were measured on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// Of one number in all rounds.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these numbers; none if there are none.
    pub fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        let middle = numbers.len() / 2;
        let median = if numbers.len() % 2 == 1 {
            numbers[middle]
        } else {
            f64::midpoint(numbers[middle - 1], numbers[middle])
        };
        Some(Self {
            median,
            least,
            most,
        })
    }
}

/// Three digits that count.
pub fn short(number: f64) -> String {
    match number {
        n if n >= 100_000.0 => format!("{:.0} k", n / 1000.0),
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// What it ran on: names and versions.
#[derive(Debug)]
pub struct Machine(BTreeMap<&'static str, String>);

impl Machine {
    /// Looks. `programs`: what to call the programs that matter, and how they are asked for their version.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn look(programs: &[(&'static str, &str)]) -> anyhow::Result<Self> {
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut about = BTreeMap::from([
            ("cpu", field(&cpu, "model name")),
            ("cores", cores.to_string()),
            ("memory", field(&memory, "MemTotal")),
            (
                "kernel",
                fs::read_to_string("/proc/sys/kernel/osrelease")?
                    .trim()
                    .to_owned(),
            ),
            ("shunt", env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        about.insert("commit", version("git rev-parse --short HEAD"));
        for (name, command) in programs {
            about.insert(name, version(command));
        }
        Ok(Self(about))
    }

    /// By their names.
    pub fn names(&self) -> &BTreeMap<&'static str, String> {
        &self.0
    }

    /// In one line.
    pub fn describe(&self) -> String {
        let words: Vec<String> = self
            .0
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        words.join("; ")
    }
}

/// The first line that a program says of itself, wherever it says it.
fn version(command: &str) -> String {
    let mut words = command.split(' ');
    let Some(output) = words
        .next()
        .and_then(|program| Command::new(program).args(words).output().ok())
    else {
        return String::new();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    said.lines().next().unwrap_or_default().trim().to_owned()
}
