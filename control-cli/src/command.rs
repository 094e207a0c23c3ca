//! The commands: each asks the daemon, and hands the result to its report.

use std::io::Write;

use control_protocol::{Call, Client, List, Stats, Version};
use serde::Serialize;

use crate::args::{Arguments, Command};
use crate::output::{Format, Output};
use crate::problem::Problem;
use crate::report;

/// Does what the command line says.
///
/// # Errors
/// The daemon can't be asked, doesn't do it, or the result can't be shown.
pub fn run<W: Write>(arguments: &Arguments, output: &mut Output<W>) -> Result<(), Problem> {
    let mut client = Client::connect(&arguments.socket)?;
    match &arguments.command {
        Command::Divert(given) => {
            let request = given.request();
            show(&mut client, request.clone(), output, |output, result| {
                report::divert(output, &request, result)
            })
        }
        Command::Redirect(given) => {
            let request = given.request();
            show(&mut client, request.clone(), output, |output, result| {
                report::redirect(output, &request, result)
            })
        }
        Command::Restore(given) => {
            let request = given.request();
            show(&mut client, request.clone(), output, |output, result| {
                report::restore(output, &request, result)
            })
        }
        Command::List => show(&mut client, List {}, output, report::list),
        Command::Connections(given) => {
            let mut report = report::Connections::new();
            let mut request = given.request();
            loop {
                let page = client.call(request.clone())?;
                report
                    .page(output, &page.connections)
                    .map_err(Problem::Output)?;
                match page.next {
                    None => break,
                    next if next == request.after => return Err(Problem::EndlessPages),
                    next => request.after = next,
                }
            }
            report.end(output).map_err(Problem::Output)
        }
        Command::Stats => show(&mut client, Stats {}, output, report::stats),
        Command::Version => show(&mut client, Version {}, output, report::version),
    }
}

/// Asks the daemon once, and shows the result: with `--json` as it is, otherwise by `report`.
fn show<W: Write, C: Call>(
    client: &mut Client,
    request: C,
    output: &mut Output<W>,
    report: impl FnOnce(&mut Output<W>, &C::Result) -> std::io::Result<()>,
) -> Result<(), Problem>
where
    C::Result: Serialize,
{
    let result = client.call(request)?;
    let shown = match output.format() {
        Format::Json => output.json(&result),
        Format::Plain | Format::Terminal { .. } => report(output, &result),
    };
    shown.map_err(Problem::Output)
}
