//! Tables: aligned under a heading on a terminal, tab-separated in a pipe.
//!
//! Rows come in batches, so that a long list is shown while it arrives. Columns only ever grow, so
//! later batches stay in line with earlier ones as long as they have nothing wider. (Table crates such
//! as `tabled` lay out all rows at once, which is why this is done here.)

use std::io::{self, Write};

use crate::output::{Format, Output};
use crate::units;

/// One field of a table: people see it rounded, programs as it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A text; stands at the left of its column, and numbers at the right.
    Text(String),
    /// A number of things.
    Count(u64),
    /// A number of bytes.
    Bytes(u64),
    /// A number of seconds.
    Seconds(u64),
    /// A number of microseconds, or a dash in place of nothing.
    Micros(Option<u64>),
    /// A number of milliseconds, or a dash in place of nothing.
    Millis(Option<f64>),
    /// Any number, or a dash in place of nothing.
    Number(Option<f64>),
}

impl Cell {
    /// A text cell of anything that can be written.
    pub fn text(value: impl ToString) -> Self {
        Self::Text(value.to_string())
    }

    /// A text cell, or a dash in place of nothing, so that columns can always be counted.
    pub fn optional(value: Option<impl ToString>) -> Self {
        value.map_or_else(|| Self::text('-'), Self::text)
    }

    fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(number) | Self::Bytes(number) | Self::Seconds(number) => number.to_string(),
            Self::Micros(time) => time.map_or_else(|| "-".to_owned(), |time| time.to_string()),
            Self::Millis(number) | Self::Number(number) => {
                number.map_or_else(|| "-".to_owned(), |number| number.to_string())
            }
        }
    }

    fn readable(&self) -> String {
        match self {
            Self::Text(_) | Self::Count(_) => self.plain(),
            Self::Bytes(number) => units::bytes(*number),
            Self::Seconds(number) => units::duration(*number),
            Self::Micros(time) => time.map_or_else(|| "-".to_owned(), units::micros),
            Self::Millis(time) => time.map_or_else(
                || "-".to_owned(),
                // A negative time would show as 0.
                |time| units::micros((time * 1000.0).round() as u64),
            ),
            Self::Number(number) => {
                number.map_or_else(|| "-".to_owned(), |number| format!("{number:.1}"))
            }
        }
    }
}

/// A table that is being written.
#[derive(Debug)]
pub struct Table {
    headings: Vec<String>,
    /// Width of each column in characters, the widest so far.
    widths: Vec<usize>,
    headed: bool,
}

impl Table {
    /// A table with these columns.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Self {
        let headings: Vec<String> = headings.into_iter().map(Into::into).collect();
        let widths = headings
            .iter()
            .map(|heading| heading.chars().count())
            .collect();
        Self {
            headings,
            widths,
            headed: false,
        }
    }

    /// Writes rows, each with a cell for every column; before the first of all, the heading. Without
    /// rows it writes nothing.
    ///
    /// # Errors
    /// The writer's.
    pub fn rows<W: Write>(&mut self, output: &mut Output<W>, rows: &[Vec<Cell>]) -> io::Result<()> {
        match output.format() {
            Format::Terminal { bold } => self.aligned(output, rows, bold),
            Format::Plain | Format::Json => rows.iter().try_for_each(|row| {
                let cells: Vec<String> = row.iter().map(Cell::plain).collect();
                writeln!(output, "{}", cells.join("\t"))
            }),
        }
    }

    fn aligned(&mut self, out: &mut impl Write, rows: &[Vec<Cell>], bold: bool) -> io::Result<()> {
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let texts: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(Cell::readable).collect())
            .collect();
        for row in &texts {
            for (width, text) in self.widths.iter_mut().zip(row) {
                *width = text.chars().count().max(*width);
            }
        }
        if !self.headed {
            self.headed = true;
            // A heading stands where its column's cells do.
            let heading = self.line(first, &self.headings);
            if bold {
                writeln!(out, "\u{1b}[1m{heading}\u{1b}[0m")?;
            } else {
                writeln!(out, "{heading}")?;
            }
        }
        for (row, texts) in rows.iter().zip(&texts) {
            writeln!(out, "{}", self.line(row, texts))?;
        }
        Ok(())
    }

    /// Texts in their columns, each on the side where the cell of this row stands.
    fn line(&self, row: &[Cell], texts: &[String]) -> String {
        let columns: Vec<String> = row
            .iter()
            .zip(texts)
            .zip(&self.widths)
            .map(|((cell, text), width)| match cell {
                Cell::Text(_) => format!("{text:<width$}"),
                _ => format!("{text:>width$}"),
            })
            .collect();
        columns.join("  ").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mirror: &str, idle: u64, bytes: u64) -> Vec<Cell> {
        vec![
            Cell::text(mirror),
            Cell::Seconds(idle),
            Cell::Bytes(bytes),
            Cell::optional(None::<u8>),
        ]
    }

    fn written(format: Format, batches: &[&[Vec<Cell>]]) -> String {
        let mut bytes = Vec::new();
        let mut output = Output::new(&mut bytes, format);
        let mut table = Table::new(["MIRROR", "IDLE", "BYTES", "FROM"]);
        for batch in batches {
            table.rows(&mut output, batch).expect("memory takes it");
        }
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn on_a_terminal_columns_are_aligned_and_amounts_rounded() {
        let rows = [row("10.2.0.2:80", 5, 1_234_567), row("10.2.0.2", 3700, 12)];
        assert_eq!(
            written(Format::Terminal { bold: false }, &[&rows]),
            "MIRROR        IDLE   BYTES  FROM\n\
             10.2.0.2:80     5s  1.2 MB  -\n\
             10.2.0.2     1h 1m    12 B  -\n"
        );
    }

    #[test]
    fn the_heading_comes_once_and_bold_where_it_may() {
        let rows = [row("10.2.0.2", 5, 0)];
        assert_eq!(
            written(Format::Terminal { bold: true }, &[&[], &rows, &rows]),
            "\u{1b}[1mMIRROR    IDLE  BYTES  FROM\u{1b}[0m\n\
             10.2.0.2    5s    0 B  -\n\
             10.2.0.2    5s    0 B  -\n"
        );
    }

    #[test]
    fn columns_keep_the_width_that_they_have_grown_to() {
        let batches: [&[_]; 2] = [&[row("10.2.0.2:65535", 5, 0)], &[row("10.2.0.2", 5, 0)]];
        assert_eq!(
            written(Format::Terminal { bold: false }, &batches),
            "MIRROR          IDLE  BYTES  FROM\n\
             10.2.0.2:65535    5s    0 B  -\n\
             10.2.0.2          5s    0 B  -\n"
        );
    }

    #[test]
    fn in_a_pipe_tabs_part_exact_numbers() {
        let rows = [row("10.2.0.2:80", 5, 1_234_567), row("10.2.0.2", 3700, 12)];
        assert_eq!(
            written(Format::Plain, &[&rows]),
            "10.2.0.2:80\t5\t1234567\t-\n10.2.0.2\t3700\t12\t-\n"
        );
    }
}
