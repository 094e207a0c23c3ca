//! `shuntctl`: tells the daemon `shuntd` what to divert, and shows what it does.
//!
//! Each subcommand is one method of the control protocol. [`args`] reads the command line, [`command`]
//! asks the daemon, [`report`] shows the answer by way of [`output`] and [`table`], and [`problem`]
//! turns what went wrong into sentences and an exit code.

mod args;
mod command;
mod names;
mod output;
mod problem;
mod report;
mod table;
mod units;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::args::Arguments;
use crate::output::{Format, Output};
use crate::problem::Problem;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = if arguments.json {
        Format::Json
    } else {
        Format::of_stdout()
    };
    let mut output = Output::new(BufWriter::new(io::stdout().lock()), format);

    let outcome = command::run(&arguments, &mut output);
    // What came before a problem is shown too.
    let outcome = outcome.and(output.flush().map_err(Problem::Output));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough, as `head` does.
        Err(Problem::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(problem) => {
            let mut stderr = io::stderr().lock();
            for sentence in problem.sentences() {
                // Nothing is left to complain to when even this fails.
                let _ = writeln!(stderr, "shuntctl: {sentence}");
            }
            problem.exit_code()
        }
    }
}
