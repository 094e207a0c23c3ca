//! The commands: each asks the daemon, and hands the result to its report.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use control_protocol::{
    Call, Client, DecisionsQuery, DomainName, List, Liveness, MAX_LINE, MAX_PEEK_NAMES, Mirrors,
    NameList, Outcome, RedirectsQuery, Stats, Version, Watch,
};
use serde::Serialize;

use crate::args::{
    Arguments, Command, DecisionsArguments, NameArguments, NameCommand, PeekNamesArguments,
    StatsArguments, WatchArguments,
};
use crate::names;
use crate::output::{Format, Output};
use crate::problem::Problem;
use crate::report;

/// How often the daemon is asked whether connections still wait.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often the monitor is asked whether it has decided something.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of the longest list of names, each with its line end. What is longer has too many names.
const MAX_NAMES_TEXT: usize = MAX_PEEK_NAMES * 256;

/// Does what the command line says.
///
/// # Errors
/// The daemon can't be asked, doesn't do it, or the result can't be shown.
pub fn run<W: Write>(arguments: &Arguments, output: &mut Output<W>) -> Result<(), Problem> {
    let (daemon, socket) = arguments.daemon();
    // Before anyone is asked to do anything with it. A longer one is refused as too long a request.
    let zone = match &arguments.command {
        Command::Name(NameArguments {
            command: NameCommand::Import(given),
            ..
        }) => read_text(&given.file, MAX_LINE)?,
        _ => String::new(),
    };
    let names = match &arguments.command {
        Command::PeekNames(PeekNamesArguments {
            file: Some(file), ..
        }) => read_names(file)?,
        _ => Vec::new(),
    };
    let mut client = Client::connect(socket).map_err(|error| Problem::Connect { daemon, error })?;
    match &arguments.command {
        Command::Name(given) => name(&mut client, &given.command, zone, output),
        Command::Divert(given) => {
            let request = given.request();
            show(&mut client, request.clone(), output, |output, result| {
                report::divert(output, &request, result)
            })
        }
        Command::Redirect(given) => {
            let request = given.request();
            let mut result = client.call(request.clone())?;
            if !given.no_wait {
                result.outcome = wait_for_splices(&mut client, result.id, result.outcome)?;
            }
            print(output, &result, |output, result| {
                report::redirect(output, &request, result)
            })
        }
        Command::Redirects(given) => show(&mut client, given.request(), output, report::redirects),
        Command::Restore(given) => {
            let request = given.request();
            show(&mut client, request.clone(), output, |output, result| {
                report::restore(output, &request, result)
            })
        }
        Command::PeekNames(given) => peek_names(&mut client, given, names, output),
        Command::Hold(given) => show(&mut client, given.hold(), output, |output, result| {
            report::hold(output, given.service, result)
        }),
        Command::Release(given) => show(&mut client, given.release(), output, |output, result| {
            report::release(output, given.service, result)
        }),
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
        Command::Stats(StatsArguments { by }) => {
            let request = Stats { by: *by };
            show(&mut client, request, output, |output, result| match by {
                Some(by) => {
                    report::groups(output, *by, result.groups.as_deref().unwrap_or_default())
                }
                None => report::stats(output, result),
            })
        }
        Command::Liveness => show(&mut client, Liveness {}, output, report::liveness),
        Command::Decisions(given) => decisions(&mut client, given, output),
        Command::Mirrors(_) => show(&mut client, Mirrors {}, output, report::mirrors),
        Command::Watch(given) => watch(&mut client, given, output),
        Command::Version => show(&mut client, Version {}, output, report::version),
    }
}

/// Does what the command line says about names.
fn name<W: Write>(
    client: &mut Client,
    command: &NameCommand,
    zone: String,
    output: &mut Output<W>,
) -> Result<(), Problem> {
    match command {
        NameCommand::Set(given) => {
            let request = given.request();
            show(client, request.clone(), output, |output, result| {
                names::set(output, &request, result)
            })
        }
        NameCommand::Unset(given) => {
            let request = given.request();
            show(client, request.clone(), output, |output, result| {
                names::unset(output, &request, result)
            })
        }
        NameCommand::List => {
            let mut report = names::Names::new();
            let mut request = NameList::default();
            loop {
                let page = client.call(request.clone())?;
                report.page(output, &page).map_err(Problem::Output)?;
                match page.next {
                    None => break,
                    next if next <= request.after => return Err(Problem::EndlessPages),
                    next => request.after = next,
                }
            }
            report.end(output).map_err(Problem::Output)
        }
        NameCommand::Import(given) => show(client, given.request(zone), output, names::import),
    }
}

/// Tells a peeking diversion its names, and shows what became of it.
fn peek_names<W: Write>(
    client: &mut Client,
    given: &PeekNamesArguments,
    names: Vec<DomainName>,
    output: &mut Output<W>,
) -> Result<(), Problem> {
    let mut result = None;
    for request in given.requests(names) {
        result = Some(client.call(request)?);
    }
    match result {
        Some(result) => print(output, &result, |output, result| {
            report::peek_names(output, given.service, result)
        }),
        None => Ok(()),
    }
}

/// The names in a file, one a line.
fn read_names(path: &Path) -> Result<Vec<DomainName>, Problem> {
    let text = read_text(path, MAX_NAMES_TEXT)?;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if !line.is_empty() && !line.starts_with('#') {
            let name = line.parse().map_err(|error| Problem::Input {
                path: path.to_owned(),
                error: io::Error::new(io::ErrorKind::InvalidData, error),
            })?;
            names.push(name);
        }
    }
    Ok(names)
}

/// The text of a file, or of the standard input, up to this many bytes and one.
fn read_text(path: &Path, most: usize) -> Result<String, Problem> {
    let unreadable = |error| Problem::Input {
        path: path.to_owned(),
        error,
    };
    let read = |reader: &mut dyn Read| {
        let mut text = String::new();
        reader.take(most as u64 + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    if path.as_os_str() == "-" {
        return read(&mut io::stdin().lock()).map_err(unreadable);
    }
    File::open(path)
        .and_then(|mut file| read(&mut file))
        .map_err(unreadable)
}

/// Shows updates as they come, until as many as were asked for have come, or for ever.
fn watch<W: Write>(
    client: &mut Client,
    given: &WatchArguments,
    output: &mut Output<W>,
) -> Result<(), Problem> {
    let request = Watch { by: given.by };
    // The first update is about all the time before: the second is the first of what is measured now.
    client.call(request)?;
    for _ in 0..given.count.unwrap_or(u64::MAX) {
        let update = client.next_update()?;
        print(output, &update, |output, update| {
            report::update(output, given.by, update)
        })?;
        output.flush().map_err(Problem::Output)?;
    }
    Ok(())
}

/// Shows the monitor's latest decisions, and perhaps those that follow.
fn decisions<W: Write>(
    client: &mut Client,
    given: &DecisionsArguments,
    output: &mut Output<W>,
) -> Result<(), Problem> {
    let request = given.request();
    let mut result = client.call(request)?;
    if !given.follow {
        return print(output, &result, report::decisions);
    }
    let later = DecisionsQuery {
        limit: None,
        ..request
    };
    let mut last = 0;
    loop {
        result.decisions.retain(|decision| decision.number > last);
        if let Some(decision) = result.decisions.last() {
            last = decision.number;
            print(output, &result, report::decisions)?;
            output.flush().map_err(Problem::Output)?;
        }
        thread::sleep(FOLLOW_INTERVAL);
        result = client.call(later)?;
    }
}

/// Waits until no connection waits to be spliced any more, and tells a person how many still do.
fn wait_for_splices(
    client: &mut Client,
    id: u64,
    mut outcome: Outcome,
) -> Result<Outcome, Problem> {
    let mut stderr = io::stderr();
    let for_people = stderr.is_terminal();
    let query = RedirectsQuery {
        id: Some(id),
        cancel: false,
    };
    while outcome.waiting > 0 {
        if for_people {
            let line = format!(
                "\r{} moved, {} waiting (Ctrl-C leaves them waiting: shuntctl redirects {id}) ",
                outcome.moved, outcome.waiting
            );
            // Whoever can't be told how it goes may still want to know how it ends.
            let _ = stderr.write_all(line.as_bytes());
        }
        thread::sleep(POLL_INTERVAL);
        let result = client.call(query)?;
        let Some(redirect) = result.redirects.into_iter().next() else {
            break;
        };
        outcome = redirect.outcome;
        if for_people && outcome.waiting == 0 {
            let _ = stderr.write_all(b"\r\x1b[K");
        }
    }
    Ok(outcome)
}

/// Asks the daemon once, and shows the result: with `--json` as it is, otherwise by `report`.
fn show<W: Write, C: Call>(
    client: &mut Client,
    request: C,
    output: &mut Output<W>,
    report: impl FnOnce(&mut Output<W>, &C::Result) -> io::Result<()>,
) -> Result<(), Problem>
where
    C::Result: Serialize,
{
    let result = client.call(request)?;
    print(output, &result, report)
}

/// Shows a result.
fn print<W: Write, R: Serialize>(
    output: &mut Output<W>,
    result: &R,
    report: impl FnOnce(&mut Output<W>, &R) -> io::Result<()>,
) -> Result<(), Problem> {
    let shown = match output.format() {
        Format::Json => output.json(result),
        Format::Plain | Format::Terminal { .. } => report(output, result),
    };
    shown.map_err(Problem::Output)
}
