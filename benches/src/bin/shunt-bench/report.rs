//! What came of it: medians, and ratios to nftables in the same round, as text, JSON and a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use benches::report::{Machine, Spread, short};
use serde_json::{Value, json};

use crate::system::{Family, System};
use crate::workload::{Figure, Workload};

/// What one workload gave on one system in one round.
#[derive(Debug)]
pub struct Cell {
    pub round: u32,
    pub system: System,
    pub family: Family,
    pub workload: Workload,
    /// The figures, or why there are none.
    pub outcome: Result<Vec<Figure>, String>,
}

/// All rounds together.
#[derive(Debug)]
pub struct Report {
    rounds: u32,
    seconds: f64,
    machine: Machine,
    rows: Vec<Row>,
    failures: Vec<String>,
}

/// One figure of one family on all systems.
#[derive(Debug)]
struct Row {
    figure: String,
    family: Family,
    unit: &'static str,
    less_is_better: bool,
    columns: Vec<Column>,
}

/// One figure on one system.
#[derive(Debug)]
struct Column {
    system: System,
    median: f64,
    /// To nftables in the same round; none if nftables wasn't measured.
    ratio: Option<Spread>,
}

/// One figure's key, in the order of the report, and its numbers by system and round.
type Numbers = BTreeMap<(Workload, usize, Family), (Figure, BTreeMap<System, BTreeMap<u32, f64>>)>;

impl Report {
    /// Puts the cells together.
    ///
    /// # Errors
    /// The machine doesn't say what it is.
    pub fn new(cells: &[Cell], rounds: u32, seconds: f64) -> anyhow::Result<Self> {
        let mut numbers = Numbers::new();
        let mut failures = Vec::new();
        for cell in cells {
            match &cell.outcome {
                Ok(figures) => {
                    for (place, figure) in figures.iter().enumerate() {
                        numbers
                            .entry((cell.workload, place, cell.family))
                            .or_insert_with(|| (figure.clone(), BTreeMap::new()))
                            .1
                            .entry(cell.system)
                            .or_default()
                            .insert(cell.round, figure.value);
                    }
                }
                Err(reason) => failures.push(format!(
                    "round {}, {}, {} over IPv{}: {reason}",
                    cell.round + 1,
                    cell.system.name(),
                    cell.workload.name(),
                    cell.family.number()
                )),
            }
        }
        let rows = numbers
            .into_iter()
            .map(|((_, _, family), (figure, by_system))| Row {
                columns: columns(&by_system),
                figure: figure.name,
                family,
                unit: figure.unit,
                less_is_better: figure.less_is_better,
            })
            .collect();
        Ok(Self {
            rounds,
            seconds,
            machine: Machine::look(&[
                ("nftables", "nft --version"),
                ("haproxy", "haproxy -v"),
                ("nginx", "nginx -v"),
                ("iperf3", "iperf3 --version"),
                ("wrk", "wrk --version"),
            ])?,
            rows,
            failures,
        })
    }

    /// For people: a table in Markdown, in which each number is the median, and in brackets its ratio
    /// to nftables with the least and the most.
    pub fn table(&self) -> String {
        let mut systems: Vec<System> = self
            .rows
            .iter()
            .flat_map(|row| row.columns.iter().map(|column| column.system))
            .collect();
        systems.sort_unstable();
        systems.dedup();

        let mut text = format!(
            "{}\n\nMedian of {} rounds of {} s each; in brackets the ratio to nftables in the same \
             round: median, least to most.\n\n| |",
            self.machine.describe(),
            self.rounds,
            self.seconds
        );
        // Writing to a string doesn't fail.
        for system in &systems {
            let _ = write!(text, " {} |", system.name());
        }
        text += "\n|---|";
        text += &"---|".repeat(systems.len());
        for row in &self.rows {
            let better = if row.less_is_better {
                "less is better"
            } else {
                "more is better"
            };
            let _ = write!(
                text,
                "\n| {}, IPv{}, {} ({better}) |",
                row.figure,
                row.family.number(),
                row.unit
            );
            for system in &systems {
                let column = row.columns.iter().find(|column| column.system == *system);
                let _ = match column {
                    None => write!(text, " – |"),
                    Some(Column { median, ratio, .. }) => match ratio {
                        None => write!(text, " {} |", short(*median)),
                        Some(ratio) => write!(
                            text,
                            " {} ({:.2}, {:.2}–{:.2}) |",
                            short(*median),
                            ratio.median,
                            ratio.least,
                            ratio.most
                        ),
                    },
                };
            }
        }
        text.push('\n');
        for failure in &self.failures {
            let _ = write!(text, "\n- Failed: {failure}");
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let systems: Vec<Value> = row
                    .columns
                    .iter()
                    .map(|column| {
                        let ratio = column.ratio.map(|ratio| {
                            json!({"median": ratio.median, "least": ratio.least, "most": ratio.most})
                        });
                        json!({
                            "system": column.system.name(),
                            "median": column.median,
                            "ratio_to_nftables": ratio,
                        })
                    })
                    .collect();
                json!({
                    "figure": row.figure,
                    "family": row.family.number(),
                    "unit": row.unit,
                    "less_is_better": row.less_is_better,
                    "systems": systems,
                })
            })
            .collect();
        json!({
            "rounds": self.rounds,
            "seconds": self.seconds,
            "machine": self.machine.names(),
            "figures": rows,
            "failures": self.failures,
        })
    }

    /// Writes all forms of the report into a folder.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let table = format!("# Results on a network\n\n{}\n", self.table());
        fs::write(folder.join("network.md"), table)?;
        fs::write(folder.join("network.json"), format!("{:#}\n", self.json()))?;
        fs::write(folder.join("network.svg"), self.svg())
    }

    /// A picture: for each figure a bar for each system, as long as its ratio to nftables, and a line
    /// from the least to the most.
    fn svg(&self) -> String {
        const BAR: usize = 12;
        const LABELS: usize = 300;
        const UNIT: f64 = 160.0;
        const MOST: f64 = 3.0;
        let mut body = String::new();
        let mut y = 40;
        let x = |ratio: f64| LABELS as f64 + ratio.min(MOST) * UNIT;
        for row in &self.rows {
            let _ = writeln!(
                body,
                "<text x='0' y='{}' font-weight='bold'>{}, IPv{} ({})</text>",
                y + 10,
                row.figure,
                row.family.number(),
                row.unit
            );
            y += BAR + 4;
            for column in &row.columns {
                let Some(ratio) = column.ratio else { continue };
                let _ = writeln!(
                    body,
                    "<text x='16' y='{0}'>{1}: {2}</text>\
                     <rect x='{LABELS}' y='{y}' width='{3:.1}' height='{4}' fill='{5}'/>\
                     <line x1='{6:.1}' x2='{7:.1}' y1='{8}' y2='{8}' stroke='black'/>\
                     <text x='{9:.1}' y='{0}'>{10:.2}</text>",
                    y + 10,
                    column.system.name(),
                    short(column.median),
                    x(ratio.median) - LABELS as f64,
                    BAR - 2,
                    colour(column.system),
                    x(ratio.least),
                    x(ratio.most),
                    y + BAR / 2,
                    x(ratio.most) + 6.0,
                    ratio.median,
                );
                y += BAR;
            }
            y += 8;
        }
        let one = x(1.0);
        let width = LABELS as f64 + MOST * UNIT + 60.0;
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{}' \
             font-family='sans-serif' font-size='10'>\n\
             <rect width='100%' height='100%' fill='white'/>\n\
             <text x='0' y='14' font-size='13'>Ratio to nftables in the same round: median, least to \
             most of {} rounds. CPU and latency: less is better.</text>\n\
             <line x1='{one}' x2='{one}' y1='24' y2='{}' stroke='grey' stroke-dasharray='4'/>\n\
             {body}</svg>\n",
            y + 10,
            self.rounds,
            y
        )
    }
}

fn columns(by_system: &BTreeMap<System, BTreeMap<u32, f64>>) -> Vec<Column> {
    let reference = by_system.get(&System::Nftables);
    by_system
        .iter()
        .filter_map(|(system, by_round)| {
            let ratios = by_round
                .iter()
                .filter_map(|(round, value)| Some(value / reference?.get(round)?))
                .collect();
            Some(Column {
                system: *system,
                median: Spread::of(by_round.values().copied().collect())?.median,
                ratio: Spread::of(ratios),
            })
        })
        .collect()
}

fn colour(system: System) -> &'static str {
    match system {
        System::Plain => "#bbbbbb",
        System::Nftables => "#888888",
        System::Haproxy => "#e0b050",
        System::NginxStream => "#80b060",
        System::Shunt => "#3060c0",
        System::ShuntNoOffload => "#80a0e0",
    }
}
