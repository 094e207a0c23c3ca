//! What each result looks like to people, and to programs that read lines.
//!
//! Sentences are for terminals. In a pipe, a result of a few single values is one line each: the
//! field's name as in JSON, a tab, and the value.

mod monitor;

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use control_protocol::{
    ConnectionInfo, Counters, Distribution, Divert, DivertResult, GroupStats, Grouping, HoldResult,
    ListResult, LivenessResult, Mirror, MirrorAddress, Outcome, PeekNamesResult, Redirect,
    RedirectResult, RedirectsResult, Restore, RestoreResult, Service, StatsResult, VersionResult,
    WatchResult,
};

use crate::output::{Format, Output};
use crate::table::{Cell, Table};
use crate::units;

pub use monitor::{decisions, mirrors};

/// Shows what became of a `divert`.
///
/// # Errors
/// The writer's.
pub fn divert<W: Write>(
    output: &mut Output<W>,
    request: &Divert,
    result: &DivertResult,
) -> io::Result<()> {
    if !output.for_people() {
        let DivertResult { replaced, held } = result;
        return fields(output, &[("replaced", replaced), ("held", held)]);
    }
    let target = target(&request.mirrors, result.replaced);
    writeln!(
        output,
        "{}{}: {target}",
        request.service,
        clients(request.from)
    )?;
    note_hold(output, &request.service, result.held)
}

/// Shows what became of a `redirect`.
///
/// # Errors
/// The writer's.
pub fn redirect<W: Write>(
    output: &mut Output<W>,
    request: &Redirect,
    result: &RedirectResult,
) -> io::Result<()> {
    let RedirectResult {
        replaced,
        held,
        id,
        outcome,
    } = result;
    if !output.for_people() {
        fields(
            output,
            &[("replaced", replaced), ("held", held), ("id", id)],
        )?;
        for (name, count) in named(outcome) {
            writeln!(output, "{name}\t{count}")?;
        }
        return fields(output, &[("longest_hold_us", &outcome.longest_hold_us)]);
    }
    let target = target(&request.mirrors, *replaced);
    writeln!(
        output,
        "{}{}: {target}",
        request.service,
        clients(request.from)
    )?;
    note_hold(output, &request.service, *held)?;
    writeln!(output, "existing connections:")?;
    for (name, count) in named(outcome) {
        let is_usual = ["moved", "reset", "kept"].contains(&&*name);
        if is_usual || count > 0 {
            writeln!(output, "  {name:<24} {count:>10}")?;
        }
    }
    if outcome.longest_hold_us > 0 {
        let hold = Duration::from_micros(outcome.longest_hold_us);
        writeln!(output, "longest hold of a request: {hold:.1?}")?;
    }
    if outcome.waiting > 0 {
        writeln!(output, "see what becomes of them: shuntctl redirects {id}")?;
    }
    Ok(())
}

/// The parts of an outcome by their names, those that can't be spliced by the reason as well.
fn named(outcome: &Outcome) -> Vec<(String, u64)> {
    let Outcome {
        moved,
        waiting,
        left,
        reset,
        kept,
        refused,
        longest_hold_us: _,
    } = outcome;
    let mut named: Vec<(String, u64)> = [
        ("moved", moved),
        ("waiting", waiting),
        ("left", left),
        ("reset", reset),
        ("kept", kept),
    ]
    .map(|(name, count)| (name.to_owned(), *count))
    .into();
    named.extend(
        refused
            .iter()
            .map(|(reason, count)| (format!("refused ({reason})"), *count)),
    );
    named
}

/// Shows the latest redirects, one line each.
///
/// # Errors
/// The writer's.
pub fn redirects<W: Write>(output: &mut Output<W>, result: &RedirectsResult) -> io::Result<()> {
    let rows: Vec<_> = result
        .redirects
        .iter()
        .map(|redirect| {
            let outcome = &redirect.outcome;
            let refused: Vec<String> = outcome
                .refused
                .iter()
                .map(|(reason, count)| format!("{count} {reason}"))
                .collect();
            vec![
                Cell::text(redirect.id),
                Cell::text(redirect.service),
                Cell::Count(redirect.age_seconds),
                Cell::Count(outcome.moved),
                Cell::Count(outcome.waiting),
                Cell::Count(outcome.left),
                Cell::Count(outcome.reset),
                Cell::Count(outcome.kept),
                Cell::optional((!refused.is_empty()).then(|| refused.join(", "))),
            ]
        })
        .collect();
    if rows.is_empty() && output.for_people() {
        return writeln!(output, "no redirects");
    }
    Table::new([
        "ID", "SERVICE", "SECONDS", "MOVED", "WAITING", "LEFT", "RESET", "KEPT", "REFUSED",
    ])
    .rows(output, &rows)
}

/// Shows what became of a `restore`.
///
/// # Errors
/// The writer's.
pub fn restore<W: Write>(
    output: &mut Output<W>,
    request: &Restore,
    result: &RestoreResult,
) -> io::Result<()> {
    if !output.for_people() {
        let RestoreResult { remaining, held } = result;
        return fields(output, &[("remaining", remaining), ("held", held)]);
    }
    let rest = match result.remaining {
        0 => "no connection is left on a mirror".to_owned(),
        1 => "1 connection stays on its mirror until it ends".to_owned(),
        many => format!("{many} connections stay on their mirror until they end"),
    };
    writeln!(
        output,
        "{}{}: restored; {rest}",
        request.service,
        clients(request.from)
    )?;
    note_hold(output, &request.service, result.held)
}

/// Tells a person that a service has come to be held.
fn note_hold<W: Write>(output: &mut Output<W>, service: &Service, held: bool) -> io::Result<()> {
    if !held {
        return Ok(());
    }
    writeln!(
        output,
        "{service} is held now: programs leave it alone until `shuntctl release {service}`"
    )
}

/// Shows what became of a `peek-names`.
///
/// # Errors
/// The writer's.
pub fn peek_names<W: Write>(
    output: &mut Output<W>,
    service: Service,
    result: &PeekNamesResult,
) -> io::Result<()> {
    if !output.for_people() {
        return fields(output, &[("names", &result.names)]);
    }
    writeln!(
        output,
        "{service}: takes DNS queries for {} name(s), and lets all others go on",
        result.names
    )
}

/// Shows what became of a `hold`.
///
/// # Errors
/// The writer's.
pub fn hold<W: Write>(
    output: &mut Output<W>,
    service: Service,
    result: &HoldResult,
) -> io::Result<()> {
    changed(output, service, result, ["held", "held already"])
}

/// Shows what became of a `release`.
///
/// # Errors
/// The writer's.
pub fn release<W: Write>(
    output: &mut Output<W>,
    service: Service,
    result: &HoldResult,
) -> io::Result<()> {
    changed(output, service, result, ["released", "it wasn't held"])
}

fn changed<W: Write>(
    output: &mut Output<W>,
    service: Service,
    result: &HoldResult,
    [done, not_needed]: [&str; 2],
) -> io::Result<()> {
    if !output.for_people() {
        return fields(output, &[("changed", &result.changed)]);
    }
    let what = if result.changed { done } else { not_needed };
    writeln!(output, "{service}: {what}")
}

/// Shows the diversions, one line a mirror.
///
/// # Errors
/// The writer's.
pub fn list<W: Write>(output: &mut Output<W>, result: &ListResult) -> io::Result<()> {
    let rows: Vec<_> = result
        .diversions
        .iter()
        .flat_map(|diversion| {
            diversion.mirrors.iter().map(|mirror| {
                vec![
                    Cell::text(diversion.service),
                    Cell::optional(diversion.from),
                    Cell::text(MirrorAddress {
                        address: mirror.address,
                        port: mirror.port,
                    }),
                    Cell::Count(mirror.weight.into()),
                    Cell::Count(mirror.connections),
                    Cell::text(diversion.state),
                    Cell::optional(diversion.held.then_some("held")),
                    Cell::optional(diversion.peek.map(|peek| match peek.names {
                        Some(names) => format!("{names} names"),
                        None => "no names yet".to_owned(),
                    })),
                ]
            })
        })
        .collect();
    if rows.is_empty() && output.for_people() {
        writeln!(output, "no diversions")?;
    }
    Table::new([
        "SERVICE",
        "FROM",
        "MIRROR",
        "WEIGHT",
        "CONNECTIONS",
        "STATE",
        "HELD",
        "PEEK",
    ])
    .rows(output, &rows)?;
    if output.for_people() && !result.holds.is_empty() {
        let holds: Vec<String> = result.holds.iter().map(Service::to_string).collect();
        writeln!(output, "held: {}", holds.join(", "))?;
    }
    Ok(())
}

/// Shows the mirrors' vital signs, one line a mirror.
///
/// # Errors
/// The writer's.
pub fn liveness<W: Write>(output: &mut Output<W>, result: &LivenessResult) -> io::Result<()> {
    let rows: Vec<_> = result
        .mirrors
        .iter()
        .map(|mirror| {
            vec![
                Cell::text(mirror.mirror),
                Cell::Count(mirror.connections),
                Cell::Millis(mirror.heard_ms.map(|ms| ms as f64)),
                Cell::Count(mirror.unanswered),
                Cell::Millis(mirror.waiting_ms.map(|ms| ms as f64)),
                Cell::Count(mirror.refused),
                Cell::Count(mirror.resets),
                Cell::Count(mirror.icmp_errors),
            ]
        })
        .collect();
    if rows.is_empty() && output.for_people() {
        return writeln!(output, "no mirror has had connections");
    }
    Table::new([
        "MIRROR",
        "CONNECTIONS",
        "HEARD",
        "UNANSWERED",
        "WAITING",
        "REFUSED",
        "RESETS",
        "ICMP ERRORS",
    ])
    .rows(output, &rows)
}

/// The list of connections, shown page by page: a table, or one JSON object whatever the number of
/// pages.
#[derive(Debug)]
pub struct Connections {
    table: Table,
    begun: bool,
    shown: u64,
}

impl Connections {
    /// A list of which nothing has been shown.
    pub fn new() -> Self {
        let table = Table::new([
            "PROTOCOL",
            "CLIENT",
            "SERVICE",
            "PROXY",
            "MIRROR",
            "STATE",
            "IDLE",
            "FWD PACKETS",
            "FWD BYTES",
            "REV PACKETS",
            "REV BYTES",
            "AGE",
            "CLIENT RTT",
            "MIRROR RTT",
            "FIRST BYTE",
            "RETRANSMISSIONS",
        ]);
        Self {
            table,
            begun: false,
            shown: 0,
        }
    }

    /// Shows one page, at once. Every list has at least one.
    ///
    /// # Errors
    /// The writer's.
    pub fn page<W: Write>(
        &mut self,
        output: &mut Output<W>,
        connections: &[ConnectionInfo],
    ) -> io::Result<()> {
        if output.format() == Format::Json {
            if !self.begun {
                write!(output, "{{\"connections\":[")?;
            }
            for (number, connection) in (self.shown..).zip(connections) {
                if number > 0 {
                    write!(output, ",")?;
                }
                serde_json::to_writer(&mut *output, connection)?;
            }
        } else {
            let rows: Vec<_> = connections.iter().map(connection).collect();
            self.table.rows(output, &rows)?;
        }
        self.begun = true;
        self.shown += connections.len() as u64;
        output.flush()
    }

    /// Ends the list.
    ///
    /// # Errors
    /// The writer's.
    pub fn end<W: Write>(self, output: &mut Output<W>) -> io::Result<()> {
        match output.format() {
            Format::Json => writeln!(output, "]}}"),
            Format::Terminal { .. } if self.shown == 0 => writeln!(output, "no connections"),
            Format::Terminal { .. } | Format::Plain => Ok(()),
        }
    }
}

fn connection(connection: &ConnectionInfo) -> Vec<Cell> {
    let timing = &connection.timing;
    vec![
        Cell::text(connection.protocol),
        Cell::text(connection.client),
        Cell::text(connection.service),
        Cell::text(connection.proxy),
        Cell::text(connection.mirror),
        Cell::text(connection.state),
        Cell::Seconds(connection.idle_seconds),
        Cell::Count(connection.forward.packets),
        Cell::Bytes(connection.forward.bytes),
        Cell::Count(connection.reverse.packets),
        Cell::Bytes(connection.reverse.bytes),
        Cell::Seconds(connection.age_seconds),
        Cell::Micros(timing.client_rtt_us),
        Cell::Micros(timing.mirror_rtt_us),
        Cell::Micros(timing.first_byte_us),
        Cell::Count(
            u64::from(timing.client_retransmissions) + u64::from(timing.mirror_retransmissions),
        ),
    ]
}

/// Shows what has been measured since the start, or in one update: a line for each group.
///
/// # Errors
/// The writer's.
pub fn groups<W: Write>(
    output: &mut Output<W>,
    by: Grouping,
    groups: &[GroupStats],
) -> io::Result<()> {
    let mut headings = match by {
        Grouping::Mirror => vec!["SERVICE", "FROM", "MIRROR"],
        Grouping::Service => vec!["SERVICE", "FROM"],
        Grouping::Client => vec!["CLIENTS"],
    };
    headings.extend([
        "CONNECTIONS",
        "OPENED",
        "REFUSED",
        "UNANSWERED",
        "RESETS",
        "ICMP ERRORS",
        "FWD PACKETS",
        "FWD BYTES",
        "REV PACKETS",
        "REV BYTES",
        "RETRANSMISSIONS",
        "ANSWERS",
        "P50",
        "P90",
        "P99",
        "CLIENT RTT",
        "MIRROR RTT",
    ]);
    let median = |times: &Distribution| Cell::Micros((times.count > 0).then_some(times.p50_us));
    let rows: Vec<_> = groups
        .iter()
        .map(|group| {
            let mut row = match by {
                Grouping::Mirror => vec![
                    Cell::optional(group.service),
                    Cell::optional(group.from),
                    Cell::optional(group.mirror),
                ],
                Grouping::Service => {
                    vec![Cell::optional(group.service), Cell::optional(group.from)]
                }
                Grouping::Client => {
                    let others = || "others".to_owned();
                    vec![Cell::text(
                        group.clients.map_or_else(others, |c| c.to_string()),
                    )]
                }
            };
            let (forward, reverse) = (&group.forward, &group.reverse);
            let times = &group.first_byte;
            let at = |time| Cell::Micros((times.count > 0).then_some(time));
            row.extend([
                Cell::Count(group.connections),
                Cell::Count(group.opened),
                Cell::Count(group.refused),
                Cell::Count(group.unanswered),
                Cell::Count(forward.resets + reverse.resets),
                Cell::Count(group.icmp_errors),
                Cell::Count(forward.packets),
                Cell::Bytes(forward.bytes),
                Cell::Count(reverse.packets),
                Cell::Bytes(reverse.bytes),
                Cell::Count(forward.retransmissions + reverse.retransmissions),
                Cell::Count(times.count),
                at(times.p50_us),
                at(times.p90_us),
                at(times.p99_us),
                median(&group.client_rtt),
                median(&group.mirror_rtt),
            ]);
            row
        })
        .collect();
    if rows.is_empty() && output.for_people() {
        return writeln!(output, "nothing has been measured");
    }
    Table::new(headings).rows(output, &rows)
}

/// Shows one update for who watches.
///
/// # Errors
/// The writer's.
pub fn update<W: Write>(
    output: &mut Output<W>,
    by: Grouping,
    result: &WatchResult,
) -> io::Result<()> {
    if output.for_people() {
        let seconds = result.interval_ms as f64 / 1000.0;
        writeln!(output, "in {seconds:.1} s:")?;
    } else {
        fields(output, &[("interval_ms", &result.interval_ms)])?;
    }
    groups(output, by, &result.groups)
}

/// Shows the counters, one line each: its name as in JSON, the sum, and each worker's share. People
/// don't see the reasons for drops that never came up.
///
/// # Errors
/// The writer's.
pub fn stats<W: Write>(output: &mut Output<W>, result: &StatsResult) -> io::Result<()> {
    let mut reasons: Vec<&str> = result.total.drops.keys().map(String::as_str).collect();
    if output.for_people() {
        writeln!(output, "up for {}", units::duration(result.uptime_seconds))?;
        reasons.retain(|reason| result.total.drops[*reason] > 0);
    } else {
        fields(output, &[("uptime_seconds", &result.uptime_seconds)])?;
    }

    let mut headings = vec!["COUNTER".to_owned(), "TOTAL".to_owned()];
    let mut rows: Vec<Vec<Cell>> = counts(&result.total, &reasons)
        .into_iter()
        .map(|(name, cell)| vec![Cell::Text(name), cell])
        .collect();
    for (number, worker) in result.workers.iter().enumerate() {
        headings.push(format!("WORKER {number}"));
        for (row, (_, cell)) in rows.iter_mut().zip(counts(worker, &reasons)) {
            row.push(cell);
        }
    }
    Table::new(headings).rows(output, &rows)
}

/// The counts with their names as in JSON; those of drops for these reasons only.
fn counts(counters: &Counters, reasons: &[&str]) -> Vec<(String, Cell)> {
    let mut counts = Vec::new();
    for (name, traffic) in [
        ("received", counters.received),
        ("translated_forward", counters.translated_forward),
        ("translated_reverse", counters.translated_reverse),
        ("passed", counters.passed),
        ("held", counters.held),
    ] {
        counts.push((format!("{name}.packets"), Cell::Count(traffic.packets)));
        counts.push((format!("{name}.bytes"), Cell::Bytes(traffic.bytes)));
    }
    for (name, count) in [
        ("handed_over", counters.handed_over),
        ("reassembled", counters.reassembled),
        ("connections", counters.connections),
        ("created", counters.created),
        ("expired", counters.expired),
        ("evicted", counters.evicted),
        ("retried", counters.retried),
        ("moved", counters.moved),
        ("reset", counters.reset),
    ] {
        counts.push((name.to_owned(), Cell::Count(count)));
    }
    for reason in reasons {
        let count = counters.drops.get(*reason).copied().unwrap_or(0);
        counts.push((format!("drops.{reason}"), Cell::Count(count)));
    }
    counts
}

/// Shows who answers.
///
/// # Errors
/// The writer's.
pub fn version<W: Write>(output: &mut Output<W>, result: &VersionResult) -> io::Result<()> {
    let rows = [
        ("version", Cell::text(&result.version)),
        ("protocol", Cell::text(result.protocol)),
        ("egress", Cell::text(&result.egress)),
        ("offload", Cell::text(&result.offload)),
        ("workers", Cell::text(result.workers)),
        ("tun", Cell::text(&result.tun)),
        ("pid", Cell::text(result.pid)),
    ];
    let rows = rows.map(|(name, value)| vec![Cell::text(name), value]);
    Table::new(["SHUNTD", ""]).rows(output, &rows)
}

/// One line a field: its name, a tab, its value.
fn fields<W: Write>(output: &mut Output<W>, fields: &[(&str, &dyn Display)]) -> io::Result<()> {
    fields
        .iter()
        .try_for_each(|(name, value)| writeln!(output, "{name}\t{value}"))
}

/// Which clients a diversion is for, as a part of a sentence.
fn clients(from: Option<impl Display>) -> String {
    from.map(|from| format!(" from {from}")).unwrap_or_default()
}

/// Where new connections go, as a part of a sentence.
fn target(mirrors: &[Mirror], replaced: bool) -> String {
    let mirrors: Vec<String> = mirrors.iter().map(Mirror::to_string).collect();
    let before = if replaced {
        ", in place of the earlier mirrors"
    } else {
        ""
    };
    format!("new connections go to {}{before}", mirrors.join(", "))
}

#[cfg(test)]
mod tests;
