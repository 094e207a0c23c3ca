//! What each result looks like to people, and to programs that read lines.
//!
//! Sentences are for terminals. In a pipe, a result of a few single values is one line each: the
//! field's name as in JSON, a tab, and the value.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use control_protocol::{
    ConnectionInfo, Counters, Distribution, Divert, DivertResult, GroupStats, Grouping, ListResult,
    Mirror, MirrorAddress, Outcome, Redirect, RedirectResult, RedirectsResult, Restore,
    RestoreResult, StatsResult, VersionResult, WatchResult,
};

use crate::output::{Format, Output};
use crate::table::{Cell, Table};
use crate::units;

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
        return fields(output, &[("replaced", &result.replaced)]);
    }
    let target = target(&request.mirrors, result.replaced);
    writeln!(
        output,
        "{}{}: {target}",
        request.service,
        clients(request.from)
    )
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
        id,
        outcome,
    } = result;
    if !output.for_people() {
        fields(output, &[("replaced", replaced), ("id", id)])?;
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
        return fields(output, &[("remaining", &result.remaining)]);
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
    )
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
                ]
            })
        })
        .collect();
    if rows.is_empty() && output.for_people() {
        return writeln!(output, "no diversions");
    }
    Table::new([
        "SERVICE",
        "FROM",
        "MIRROR",
        "WEIGHT",
        "CONNECTIONS",
        "STATE",
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
mod tests {
    use super::*;
    use control_protocol::{
        DiversionInfo, DiversionState, MirrorInfo, OneWayStats, RedirectInfo, Traffic,
    };

    const TERMINAL: Format = Format::Terminal { bold: false };

    fn written(
        format: Format,
        report: impl FnOnce(&mut Output<&mut Vec<u8>>) -> io::Result<()>,
    ) -> String {
        let mut bytes = Vec::new();
        report(&mut Output::new(&mut bytes, format)).expect("memory takes it");
        String::from_utf8(bytes).expect("text")
    }

    fn request() -> Redirect {
        Redirect {
            service: "10.1.0.1:80/tcp".parse().expect("a service"),
            mirrors: ["10.2.0.2:80", "10.2.0.3:80*3"]
                .map(|text| text.parse().expect(text))
                .into(),
            from: Some("10.0.0.0/8".parse().expect("a prefix")),
            tcp: control_protocol::TcpMove::Splice,
            splice: control_protocol::Splice::default(),
            from_mirror: None,
        }
    }

    #[test]
    fn changes_are_told_in_sentences() {
        let Redirect {
            service,
            mirrors,
            from,
            ..
        } = request();
        let divert_request = Divert {
            service,
            mirrors,
            from: None,
        };
        assert_eq!(
            written(TERMINAL, |output| divert(
                output,
                &divert_request,
                &DivertResult { replaced: false }
            )),
            "10.1.0.1:80/tcp: new connections go to 10.2.0.2:80, 10.2.0.3:80*3\n"
        );

        let result = RedirectResult {
            replaced: true,
            id: 7,
            outcome: Outcome {
                moved: 12,
                waiting: 2,
                reset: 3,
                kept: 1,
                refused: [("tls".to_owned(), 4)].into(),
                longest_hold_us: 1234,
                ..Outcome::default()
            },
        };
        assert_eq!(
            written(TERMINAL, |output| redirect(output, &request(), &result)),
            "10.1.0.1:80/tcp from 10.0.0.0/8: new connections go to 10.2.0.2:80, 10.2.0.3:80*3, in \
             place of the earlier mirrors\n\
             existing connections:\n  \
               moved                            12\n  \
               waiting                           2\n  \
               reset                             3\n  \
               kept                              1\n  \
               refused (tls)                     4\n\
             longest hold of a request: 1.2ms\n\
             see what becomes of them: shuntctl redirects 7\n"
        );
        assert_eq!(
            written(Format::Plain, |output| redirect(
                output,
                &request(),
                &result
            )),
            "replaced\ttrue\nid\t7\nmoved\t12\nwaiting\t2\nleft\t0\nreset\t3\nkept\t1\n\
             refused (tls)\t4\nlongest_hold_us\t1234\n"
        );

        let restore_request = Restore { service, from };
        for (remaining, rest) in [
            (0, "no connection is left on a mirror"),
            (1, "1 connection stays on its mirror until it ends"),
            (2, "2 connections stay on their mirror until they end"),
        ] {
            assert_eq!(
                written(TERMINAL, |output| restore(
                    output,
                    &restore_request,
                    &RestoreResult { remaining }
                )),
                format!("10.1.0.1:80/tcp from 10.0.0.0/8: restored; {rest}\n")
            );
        }
    }

    #[test]
    fn diversions_have_a_line_for_each_mirror() {
        let mirror = |last, weight, connections| MirrorInfo {
            address: [10, 2, 0, last].into(),
            port: Some(80),
            weight,
            connections,
        };
        let result = ListResult {
            diversions: vec![
                DiversionInfo {
                    service: "10.1.0.1:80/tcp".parse().expect("a service"),
                    from: None,
                    mirrors: vec![mirror(2, 1, 12), mirror(3, 0, 1)],
                    state: DiversionState::Active,
                },
                DiversionInfo {
                    service: "10.1.0.9".parse().expect("a service"),
                    from: Some("10.0.0.0/8".parse().expect("a prefix")),
                    mirrors: vec![MirrorInfo {
                        port: None,
                        ..mirror(4, 0, 7)
                    }],
                    state: DiversionState::Restored,
                },
            ],
        };
        insta::assert_snapshot!(written(TERMINAL, |output| list(output, &result)), @r"
        SERVICE          FROM        MIRROR       WEIGHT  CONNECTIONS  STATE
        10.1.0.1:80/tcp  -           10.2.0.2:80       1           12  active
        10.1.0.1:80/tcp  -           10.2.0.3:80       0            1  active
        10.1.0.9         10.0.0.0/8  10.2.0.4          0            7  restored
        ");
        insta::assert_snapshot!(written(Format::Plain, |output| list(output, &result)), @r"
        10.1.0.1:80/tcp	-	10.2.0.2:80	1	12	active
        10.1.0.1:80/tcp	-	10.2.0.3:80	0	1	active
        10.1.0.9	10.0.0.0/8	10.2.0.4	0	7	restored
        ");
    }

    #[test]
    fn redirects_have_a_line_each() {
        let outcome = Outcome {
            moved: 12,
            waiting: 2,
            left: 1,
            refused: [("ssh".to_owned(), 1), ("tls".to_owned(), 4)].into(),
            ..Outcome::default()
        };
        let result = RedirectsResult {
            redirects: vec![
                RedirectInfo {
                    id: 6,
                    service: "10.1.0.9".parse().expect("a service"),
                    age_seconds: 70,
                    outcome: Outcome::default(),
                },
                RedirectInfo {
                    id: 7,
                    service: "10.1.0.1:80/tcp".parse().expect("a service"),
                    age_seconds: 3,
                    outcome,
                },
            ],
        };
        insta::assert_snapshot!(written(TERMINAL, |output| redirects(output, &result)), @r"
        ID  SERVICE          SECONDS  MOVED  WAITING  LEFT  RESET  KEPT  REFUSED
        6   10.1.0.9              70      0        0     0      0     0  -
        7   10.1.0.1:80/tcp        3     12        2     1      0     0  1 ssh, 4 tls
        ");
        insta::assert_snapshot!(written(Format::Plain, |output| redirects(output, &result)), @r"
        6	10.1.0.9	70	0	0	0	0	0	-
        7	10.1.0.1:80/tcp	3	12	2	1	0	0	1 ssh, 4 tls
        ");
    }

    #[test]
    fn a_person_is_told_when_a_list_is_empty() {
        let result = ListResult {
            diversions: Vec::new(),
        };
        assert_eq!(
            written(TERMINAL, |output| list(output, &result)),
            "no diversions\n"
        );
        assert_eq!(written(Format::Plain, |output| list(output, &result)), "");

        let empty = |format| {
            written(format, |output| {
                let mut report = Connections::new();
                report.page(output, &[])?;
                report.end(output)
            })
        };
        assert_eq!(empty(TERMINAL), "no connections\n");
        assert_eq!(empty(Format::Plain), "");
        assert_eq!(empty(Format::Json), "{\"connections\":[]}\n");
    }

    #[test]
    fn counters_have_a_column_for_each_worker() {
        let worker = |packets, no_route| Counters {
            received: Traffic {
                packets,
                bytes: packets * 1000,
            },
            created: packets / 10,
            drops: [("malformed", 0), ("no_route", no_route)]
                .map(|(reason, count)| (reason.to_owned(), count))
                .into(),
            ..Counters::default()
        };
        let workers = vec![worker(70, 0), worker(50_000, 2)];
        let mut total = Counters::default();
        workers.iter().for_each(|counters| total.add(counters));
        let result = StatsResult {
            uptime_seconds: 3700,
            workers,
            total,
            groups: None,
        };

        insta::assert_snapshot!(written(TERMINAL, |output| stats(output, &result)), @r"
        up for 1h 1m
        COUNTER                       TOTAL  WORKER 0  WORKER 1
        received.packets              50070        70     50000
        received.bytes              50.1 MB   70.0 kB   50.0 MB
        translated_forward.packets        0         0         0
        translated_forward.bytes        0 B       0 B       0 B
        translated_reverse.packets        0         0         0
        translated_reverse.bytes        0 B       0 B       0 B
        passed.packets                    0         0         0
        passed.bytes                    0 B       0 B       0 B
        held.packets                      0         0         0
        held.bytes                      0 B       0 B       0 B
        handed_over                       0         0         0
        reassembled                       0         0         0
        connections                       0         0         0
        created                        5007         7      5000
        expired                           0         0         0
        evicted                           0         0         0
        moved                             0         0         0
        reset                             0         0         0
        drops.no_route                    2         0         2
        ");
        let plain = written(Format::Plain, |output| stats(output, &result));
        assert!(plain.starts_with("uptime_seconds\t3700\nreceived.packets\t50070\t70\t50000\n"));
        assert!(plain.ends_with("drops.malformed\t0\t0\t0\ndrops.no_route\t2\t0\t2\n"));
    }

    #[test]
    fn groups_have_a_line_each_by_what_they_are_taken_together_by() {
        let group = GroupStats {
            service: Some("10.1.0.1:80/tcp".parse().expect("a service")),
            from: None,
            mirror: Some(([10, 2, 0, 2], 80).into()),
            clients: None,
            connections: 12,
            opened: 40,
            refused: 1,
            unanswered: 2,
            icmp_errors: 3,
            forward: OneWayStats {
                packets: 1000,
                bytes: 123_456,
                retransmissions: 4,
                resets: 5,
                ..OneWayStats::default()
            },
            reverse: OneWayStats {
                packets: 900,
                bytes: 7_654_321,
                retransmissions: 6,
                ..OneWayStats::default()
            },
            mirror_handshake: Distribution::default(),
            client_handshake: Distribution::default(),
            mirror_rtt: Distribution::default(),
            client_rtt: Distribution::default(),
            first_byte: Distribution {
                count: 400,
                p50_us: 850,
                p90_us: 1_200,
                p99_us: 45_000,
                max_us: 60_000,
            },
        };
        let rest = GroupStats {
            service: None,
            mirror: None,
            first_byte: Distribution::default(),
            ..group.clone()
        };
        insta::assert_snapshot!(
            written(TERMINAL, |output| groups(output, Grouping::Mirror, std::slice::from_ref(&group))), @r"
        SERVICE          FROM  MIRROR       CONNECTIONS  OPENED  REFUSED  UNANSWERED  RESETS  ICMP ERRORS  FWD PACKETS  FWD BYTES  REV PACKETS  REV BYTES  RETRANSMISSIONS  ANSWERS     P50      P90      P99  CLIENT RTT  MIRROR RTT
        10.1.0.1:80/tcp  -     10.2.0.2:80           12      40        1           2       5            3         1000   123.5 kB          900     7.7 MB               10      400  850 µs  1.20 ms  45.0 ms           -           -
        ");
        insta::assert_snapshot!(
            written(TERMINAL, |output| groups(output, Grouping::Client, &[rest])), @r"
        CLIENTS  CONNECTIONS  OPENED  REFUSED  UNANSWERED  RESETS  ICMP ERRORS  FWD PACKETS  FWD BYTES  REV PACKETS  REV BYTES  RETRANSMISSIONS  ANSWERS  P50  P90  P99  CLIENT RTT  MIRROR RTT
        others            12      40        1           2       5            3         1000   123.5 kB          900     7.7 MB               10        0    -    -    -           -           -
        ");
        let update = WatchResult {
            interval_ms: 1003,
            groups: vec![group],
        };
        insta::assert_snapshot!(
            written(Format::Plain, |output| super::update(output, Grouping::Service, &update)), @r"
        interval_ms	1003
        10.1.0.1:80/tcp	-	12	40	1	2	5	3	1000	123456	900	7654321	10	400	850	1200	45000	-	-
        ");
        assert_eq!(
            written(TERMINAL, |output| groups(output, Grouping::Mirror, &[])),
            "nothing has been measured\n"
        );
    }
}
