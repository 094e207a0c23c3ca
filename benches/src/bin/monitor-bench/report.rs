//! What came of it, as text, JSON and a picture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use benches::report::{Machine, Spread, short};
use serde_json::{Value, json};

use crate::picture;
use crate::stage::{TIMEOUT_MS, Watch};
use crate::steady::{self, Change, Run};
use crate::trouble::{self, Suffering, Trouble};

/// One run under steady load.
#[derive(Debug)]
pub struct SteadyCell {
    pub round: u64,
    pub watch: Watch,
    pub changes: Vec<Change>,
    /// What it came to, or why to nothing.
    pub outcome: Result<Run, String>,
}

/// One trouble of one mirror.
#[derive(Debug)]
pub struct TroubleCell {
    pub round: u64,
    pub watch: Watch,
    pub trouble: Trouble,
    /// What came of it, or why nothing.
    pub outcome: Result<Suffering, String>,
}

/// All rounds together.
#[derive(Debug)]
pub struct Report<'a> {
    rounds: u64,
    trouble_rounds: u64,
    phase_seconds: u64,
    /// How long a trouble was watched.
    watched: Duration,
    machine: Machine,
    steady: Vec<SteadyRow>,
    troubles: Vec<TroubleRow>,
    cells: &'a [SteadyCell],
    failures: Vec<String>,
}

/// One figure under steady load.
#[derive(Debug)]
struct SteadyRow {
    name: &'static str,
    unit: &'static str,
    by_watch: Vec<(Watch, Spread)>,
    /// With the monitor to without, in the same round.
    ratio: Option<Spread>,
}

/// One trouble under one watch.
#[derive(Debug)]
struct TroubleRow {
    trouble: Trouble,
    watch: Watch,
    /// Of those rounds in which it was over before they were.
    ms: Option<Spread>,
    /// Rounds in which it wasn't.
    never: usize,
    failed: Spread,
}

/// A figure of a run.
type Figure = (&'static str, &'static str, fn(&Run) -> f64);

const FIGURES: [Figure; 7] = [
    ("response time, p50", "ms", |run| run.times.p50),
    ("response time, p90", "ms", |run| run.times.p90),
    ("response time, p99", "ms", |run| run.times.p99),
    ("response time, mean", "ms", |run| run.times.mean),
    ("answers", "/s", |run| run.throughput),
    ("failed requests", "%", |run| {
        100.0 * run.times.failed as f64 / run.times.count as f64
    }),
    ("decisions that changed something", "", |run| {
        run.decisions as f64
    }),
];

impl<'a> Report<'a> {
    /// Puts the cells together.
    ///
    /// # Errors
    /// The machine doesn't say what it is.
    pub fn new(
        rounds: u64,
        trouble_rounds: u64,
        phase_seconds: u64,
        watched: Duration,
        steady: &'a [SteadyCell],
        troubles: &[TroubleCell],
    ) -> anyhow::Result<Self> {
        let mut failures = Vec::new();
        for cell in steady {
            if let Err(reason) = &cell.outcome {
                let watch = cell.watch.title();
                failures.push(format!(
                    "round {}, steady load, {watch}: {reason}",
                    cell.round + 1
                ));
            }
        }
        for cell in troubles {
            if let Err(reason) = &cell.outcome {
                let (trouble, watch) = (cell.trouble.title(), cell.watch.title());
                failures.push(format!(
                    "round {}, {trouble}, {watch}: {reason}",
                    cell.round + 1
                ));
            }
        }
        Ok(Self {
            rounds,
            trouble_rounds,
            phase_seconds,
            watched,
            machine: Machine::look(&[])?,
            steady: FIGURES
                .iter()
                .map(|figure| steady_row(figure, steady))
                .filter(|row| !row.by_watch.is_empty())
                .collect(),
            troubles: trouble_rows(troubles),
            cells: steady,
            failures,
        })
    }

    /// How many measurements came to nothing.
    pub fn failures(&self) -> usize {
        self.failures.len()
    }

    /// For people: two tables in Markdown.
    pub fn table(&self) -> String {
        let mut text = self.machine.describe();
        // Writing to a string doesn't fail.
        if !self.steady.is_empty() {
            self.write_steady(&mut text);
        }
        if !self.troubles.is_empty() {
            self.write_troubles(&mut text);
        }
        for failure in &self.failures {
            let _ = write!(text, "\n- Failed: {failure}");
        }
        text
    }

    fn write_steady(&self, text: &mut String) {
        let [first, second, third] = steady::WORKERS;
        let _ = write!(
            text,
            "\n\n## Steady load, changing capacity\n\nThree mirrors with {first}, {second} and {third} workers; a \
             request takes 20 ms in the mean (exponential). Every {} s another mirror gets {} times slower, and the \
             last one recovers. {} requests a second (Poisson) on {} connections of three client networks, each with \
             moments of its own. Response time counts from the moment for which a request was meant; one that \
             failed counts as {} s. Median of {} rounds, with the least and the most; without a monitor all \
             mirrors have equal weights. The last column is the ratio within a round.\n\n|",
            self.phase_seconds,
            steady::SLOWER,
            steady::RATE,
            steady::CONNECTIONS,
            TIMEOUT_MS / 1000.0,
            self.rounds,
        );
        let watches: Vec<Watch> = [Watch::None, Watch::Signs]
            .into_iter()
            .filter(|watch| self.steady.iter().any(|row| row.spread(*watch).is_some()))
            .collect();
        for watch in &watches {
            let _ = write!(text, " | {}", watch.title());
        }
        *text += " | with ÷ without |\n|---|";
        *text += &"---|".repeat(watches.len() + 1);
        for row in &self.steady {
            let comma = if row.unit.is_empty() { "" } else { ", " };
            let _ = write!(text, "\n| {}{comma}{} |", row.name, row.unit);
            for watch in &watches {
                let _ = write!(text, " {} |", shown(row.spread(*watch)));
            }
            let _ = write!(text, " {} |", shown(row.ratio));
        }
        text.push('\n');
    }

    fn write_troubles(&self, text: &mut String) {
        let _ = write!(
            text,
            "\n\n## A mirror in trouble\n\nOne of three mirrors, {} connections that stay open. Killed or cut off: each \
             connection thinks for 20 ms between requests of 10 ms. Slower: 300 requests a second, of which the \
             mirror's third is a quarter more than it can still do. Checks are HTTP requests every 500 ms, of which two \
             in a row must fail. Median of {} rounds, with the least and the most; watched for {} s.\n\n\
             | trouble | watched by | time, ms | failed requests |\n|---|---|---|---|",
            trouble::CONNECTIONS,
            self.trouble_rounds,
            self.watched.as_secs()
        );
        for row in &self.troubles {
            let never = match row.never {
                0 => String::new(),
                times => format!("; not at all in {times} rounds"),
            };
            let _ = write!(
                text,
                "\n| {}: {} | {} | {}{never} | {} |",
                row.trouble.title(),
                row.trouble.measure(),
                row.watch.title(),
                shown(row.ms),
                shown(Some(row.failed))
            );
        }
        text.push('\n');
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let steady: Vec<Value> = self
            .steady
            .iter()
            .map(|row| {
                let watches: Vec<Value> = row
                    .by_watch
                    .iter()
                    .map(|(watch, spread)| json!({"watch": watch.title(), "value": told(*spread)}))
                    .collect();
                json!({
                    "figure": row.name,
                    "unit": row.unit,
                    "watches": watches,
                    "ratio": row.ratio.map(told),
                })
            })
            .collect();
        let troubles: Vec<Value> = self
            .troubles
            .iter()
            .map(|row| {
                json!({
                    "trouble": row.trouble.title(),
                    "measure": row.trouble.measure(),
                    "watch": row.watch.title(),
                    "ms": row.ms.map(told),
                    "rounds_without_end": row.never,
                    "failed_requests": told(row.failed),
                })
            })
            .collect();
        json!({
            "rounds": self.rounds,
            "trouble_rounds": self.trouble_rounds,
            "phase_seconds": self.phase_seconds,
            "machine": self.machine.names(),
            "steady": steady,
            "troubles": troubles,
            "failures": self.failures,
        })
    }

    /// Writes all forms of the report into a folder.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let table = format!("# The monitor, measured\n\n{}\n", self.table());
        fs::write(folder.join("monitor.md"), table)?;
        fs::write(folder.join("monitor.json"), format!("{:#}\n", self.json()))?;
        match picture::svg(self.cells) {
            Some(picture) => fs::write(folder.join("monitor.svg"), picture),
            None => Ok(()),
        }
    }
}

impl SteadyRow {
    fn spread(&self, watch: Watch) -> Option<Spread> {
        let found = self.by_watch.iter().find(|(of, _)| *of == watch);
        found.map(|(_, spread)| *spread)
    }
}

fn steady_row((name, unit, figure): &Figure, cells: &[SteadyCell]) -> SteadyRow {
    let value = |round: u64, watch: Watch| {
        let cell = cells
            .iter()
            .find(|cell| cell.round == round && cell.watch == watch)?;
        cell.outcome.as_ref().ok().map(figure)
    };
    let rounds = cells
        .iter()
        .map(|cell| cell.round)
        .max()
        .map_or(0, |last| last + 1);
    let by_watch = [Watch::None, Watch::Signs]
        .into_iter()
        .filter_map(|watch| {
            let values = (0..rounds)
                .filter_map(|round| value(round, watch))
                .collect();
            Some((watch, Spread::of(values)?))
        })
        .collect();
    let ratios = (0..rounds)
        .filter_map(|round| Some(value(round, Watch::Signs)? / value(round, Watch::None)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    SteadyRow {
        name,
        unit,
        by_watch,
        ratio: Spread::of(ratios),
    }
}

fn trouble_rows(cells: &[TroubleCell]) -> Vec<TroubleRow> {
    let mut kinds: Vec<(Trouble, Watch)> = cells
        .iter()
        .map(|cell| (cell.trouble, cell.watch))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
        .into_iter()
        .filter_map(|(trouble, watch)| {
            let those: Vec<&Suffering> = cells
                .iter()
                .filter(|cell| cell.trouble == trouble && cell.watch == watch)
                .filter_map(|cell| cell.outcome.as_ref().ok())
                .collect();
            let times: Vec<f64> = those.iter().filter_map(|suffering| suffering.ms).collect();
            Some(TroubleRow {
                trouble,
                watch,
                never: those.len() - times.len(),
                ms: Spread::of(times),
                failed: Spread::of(
                    those
                        .iter()
                        .map(|suffering| suffering.failed as f64)
                        .collect(),
                )?,
            })
        })
        .collect()
}

fn shown(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || "–".into(),
        |spread| {
            format!(
                "{} ({}–{})",
                short(spread.median),
                short(spread.least),
                short(spread.most)
            )
        },
    )
}

fn told(spread: Spread) -> Value {
    json!({"median": spread.median, "least": spread.least, "most": spread.most})
}
