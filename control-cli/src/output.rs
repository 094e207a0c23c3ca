//! Where the result goes, and the form it takes there.

use std::env;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// The form that a result takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people: aligned tables with a heading, sentences, rounded amounts.
    Terminal {
        /// Whether headings are bold.
        bold: bool,
    },
    /// For other programs: lines of columns with tabs between them, exact numbers.
    Plain,
    /// For other programs: one JSON object.
    Json,
}

impl Format {
    /// What suits standard output: [`Format::Terminal`] or [`Format::Plain`]. Bold unless `NO_COLOR`
    /// is set to something.
    pub fn of_stdout() -> Self {
        if io::stdout().is_terminal() {
            let bold = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            Self::Terminal { bold }
        } else {
            Self::Plain
        }
    }
}

/// A writer that knows which form is wanted.
#[derive(Debug)]
pub struct Output<W> {
    writer: W,
    format: Format,
}

impl<W: Write> Output<W> {
    /// An output of this form.
    pub fn new(writer: W, format: Format) -> Self {
        Self { writer, format }
    }

    /// The form that is wanted.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether people will read it: sentences are wanted, and rounded amounts.
    pub fn for_people(&self) -> bool {
        matches!(self.format, Format::Terminal { .. })
    }

    /// Writes a value as JSON on a line of its own.
    ///
    /// # Errors
    /// The writer's.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, value)?;
        writeln!(self.writer)
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
