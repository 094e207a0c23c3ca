//! What the monitor's results look like.

use std::io::{self, Write};

use control_protocol::{
    CheckState, Decision, DecisionsResult, Health, MirrorShare, MirrorState, MirrorsResult, Wish,
};

use crate::output::Output;
use crate::table::{Cell, Table};

/// Shows decisions, one line each: for people a sentence, for programs columns.
///
/// # Errors
/// The writer's.
pub fn decisions<W: Write>(output: &mut Output<W>, result: &DecisionsResult) -> io::Result<()> {
    let DecisionsResult { decisions } = result;
    if !output.for_people() {
        let rows: Vec<_> = decisions.iter().map(columns).collect();
        return Table::new(COLUMNS).rows(output, &rows);
    }
    if decisions.is_empty() {
        return writeln!(output, "no decisions");
    }
    decisions
        .iter()
        .try_for_each(|decision| writeln!(output, "{}", sentence(decision)))
}

const COLUMNS: [&str; 14] = [
    "NUMBER",
    "AT",
    "SERVICE",
    "CLIENTS",
    "KIND",
    "FROM",
    "TO",
    "COST BEFORE",
    "COST AFTER",
    "IMPROVEMENT",
    "MOVED",
    "REASON",
    "INSTRUCTIONS",
    "ERRORS",
];

fn columns(decision: &Decision) -> Vec<Cell> {
    vec![
        Cell::Count(decision.number),
        Cell::text(one_line(&decision.at)),
        Cell::optional(decision.service),
        Cell::text(one_line(&decision.clients)),
        Cell::text(one_line(&decision.kind)),
        Cell::optional(shares(&decision.from)),
        Cell::optional(shares(&decision.to)),
        Cell::Millis(decision.cost_before_ms),
        Cell::Millis(decision.cost_after_ms),
        Cell::Number(decision.improvement_percent),
        Cell::Count(decision.moved),
        Cell::text(one_line(&decision.reason)),
        Cell::optional(list(&decision.instructions, "; ")),
        Cell::optional(list(&decision.errors, "; ")),
    ]
}

/// A decision as a line of text, such as `#4 2026-11-24T15:04:05Z 10.1.0.1:80/tcp weights: a 50% b 50% →
/// a 25% b 75%: b is faster (12.5 ms → 9.25 ms, 26% less)`.
fn sentence(decision: &Decision) -> String {
    let mut line = format!("#{} {}", decision.number, one_line(&decision.at));
    if let Some(service) = decision.service {
        line.push_str(&format!(" {service}"));
    }
    if decision.clients != "everyone" {
        line.push_str(&format!(" for {}", one_line(&decision.clients)));
    }
    line.push_str(&format!(" {}: ", one_line(&decision.kind)));
    match (shares(&decision.from), shares(&decision.to)) {
        (Some(from), Some(to)) if from != to => line.push_str(&format!("{from} → {to}: ")),
        (None, Some(to)) => line.push_str(&format!("{to}: ")),
        _ => {}
    }
    line.push_str(&one_line(&decision.reason));
    let mut notes = Vec::new();
    if let (Some(before), Some(after)) = (decision.cost_before_ms, decision.cost_after_ms) {
        notes.push(format!("{before:.3} ms → {after:.3} ms"));
    }
    if let Some(improvement) = decision.improvement_percent {
        notes.push(format!("{improvement:.0}% less"));
    }
    if decision.moved > 0 {
        notes.push(format!("{} moved", decision.moved));
    }
    if !notes.is_empty() {
        line.push_str(&format!(" ({})", notes.join(", ")));
    }
    if let Some(errors) = list(&decision.errors, "; ") {
        line.push_str(&format!(" — failed: {errors}"));
    }
    line
}

/// Shares such as `a 25% b 75%`.
fn shares(shares: &[MirrorShare]) -> Option<String> {
    let shares: Vec<String> = shares
        .iter()
        .map(|MirrorShare { mirror, share }| format!("{} {:.0}%", one_line(mirror), share * 100.0))
        .collect();
    list(&shares, " ")
}

/// Shows the mirrors, one line each.
///
/// # Errors
/// The writer's.
pub fn mirrors<W: Write>(output: &mut Output<W>, result: &MirrorsResult) -> io::Result<()> {
    let rows: Vec<_> = result.mirrors.iter().map(mirror).collect();
    if rows.is_empty() && output.for_people() {
        return writeln!(output, "no mirrors");
    }
    Table::new([
        "MIRROR",
        "ADDRESS",
        "STATE",
        "WISH",
        "RATE",
        "RESPONSE",
        "CAPACITY",
        "SERVICE TIME",
        "UTILISATION %",
        "MODEL ERROR %",
        "CONNECTIONS",
        "SHARE CAP %",
        "CHECKS",
        "REASON",
    ])
    .rows(output, &rows)
}

fn mirror(mirror: &MirrorState) -> Vec<Cell> {
    let wish = Some(mirror.wish).filter(|wish| *wish != Wish::None);
    let checks: Vec<String> = mirror.checks.iter().map(check).collect();
    vec![
        Cell::text(one_line(&mirror.name)),
        Cell::text(one_line(&mirror.address)),
        Cell::text(mirror.state),
        Cell::optional(wish),
        Cell::Number(Some(mirror.rate)),
        Cell::Millis(mirror.response_ms),
        Cell::Number(mirror.capacity),
        Cell::Millis(mirror.service_time_ms),
        Cell::Number(mirror.utilisation.map(|part| part * 100.0)),
        Cell::Number(mirror.model_error_percent),
        Cell::Count(mirror.connections),
        Cell::Number(Some(mirror.share_cap * 100.0)),
        Cell::optional(list(&checks, ", ")),
        Cell::text(one_line(&mirror.reason)),
    ]
}

/// A check such as `tcp up`, or `http down (503)`.
fn check(check: &CheckState) -> String {
    let CheckState {
        kind,
        state,
        detail,
        latency_ms: _,
    } = check;
    let kind = one_line(kind);
    if *state == Health::Up || detail.is_empty() {
        format!("{kind} {state}")
    } else {
        format!("{kind} {state} ({})", one_line(detail))
    }
}

fn list(texts: &[String], between: &str) -> Option<String> {
    let texts: Vec<String> = texts.iter().map(|text| one_line(text)).collect();
    (!texts.is_empty()).then(|| texts.join(between))
}

/// A text of the daemon's, fit for one column of one line, and for a terminal.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    const TERMINAL: Format = Format::Terminal { bold: false };

    fn written(
        format: Format,
        report: impl FnOnce(&mut Output<&mut Vec<u8>>) -> io::Result<()>,
    ) -> String {
        let mut bytes = Vec::new();
        report(&mut Output::new(&mut bytes, format)).expect("memory takes it");
        String::from_utf8(bytes).expect("text")
    }

    fn share(mirror: &str, share: f64) -> MirrorShare {
        MirrorShare {
            mirror: mirror.to_owned(),
            share,
        }
    }

    fn decision() -> Decision {
        Decision {
            number: 4,
            at: "2026-11-24T15:04:05Z".to_owned(),
            age_ms: 5210,
            service: Some("10.1.0.1:80/tcp".parse().expect("a service")),
            clients: "everyone".to_owned(),
            kind: "weights".to_owned(),
            reason: "b answers in half the time of a".to_owned(),
            from: vec![share("a", 0.5), share("b", 0.5)],
            to: vec![share("a", 0.25), share("b", 0.75)],
            cost_before_ms: Some(12.5),
            cost_after_ms: Some(9.25),
            improvement_percent: Some(26.0),
            moved: 3,
            instructions: vec!["divert 10.1.0.1:80/tcp 10.2.0.2*1 10.2.0.3*3".to_owned()],
            errors: Vec::new(),
        }
    }

    #[test]
    fn a_decision_is_a_line() {
        let start = Decision {
            number: 5,
            service: None,
            clients: "office".to_owned(),
            kind: "start".to_owned(),
            reason: "nothing\tis known\nyet".to_owned(),
            from: Vec::new(),
            to: Vec::new(),
            cost_before_ms: None,
            cost_after_ms: None,
            improvement_percent: None,
            moved: 0,
            instructions: Vec::new(),
            errors: vec!["nobody listens".to_owned()],
            ..decision()
        };
        let result = DecisionsResult {
            decisions: vec![decision(), start],
        };
        insta::assert_snapshot!(written(TERMINAL, |output| decisions(output, &result)), @r"
        #4 2026-11-24T15:04:05Z 10.1.0.1:80/tcp weights: a 50% b 50% → a 25% b 75%: b answers in half the time of a (12.500 ms → 9.250 ms, 26% less, 3 moved)
        #5 2026-11-24T15:04:05Z for office start: nothing is known yet — failed: nobody listens
        ");
        insta::assert_snapshot!(written(Format::Plain, |output| decisions(output, &result)), @r"
        4	2026-11-24T15:04:05Z	10.1.0.1:80/tcp	everyone	weights	a 50% b 50%	a 25% b 75%	12.5	9.25	26	3	b answers in half the time of a	divert 10.1.0.1:80/tcp 10.2.0.2*1 10.2.0.3*3	-
        5	2026-11-24T15:04:05Z	-	office	start	-	-	-	-	-	0	nothing is known yet	-	nobody listens
        ");
        let none = DecisionsResult {
            decisions: Vec::new(),
        };
        assert_eq!(
            written(TERMINAL, |output| decisions(output, &none)),
            "no decisions\n"
        );
    }

    #[test]
    fn mirrors_have_a_line_each() {
        let up = MirrorState {
            name: "a".to_owned(),
            address: "10.2.0.2:80".to_owned(),
            state: Health::Up,
            wish: Wish::None,
            reason: "every check says so".to_owned(),
            rate: 412.53,
            response_ms: Some(3.2),
            capacity: Some(1300.0),
            service_time_ms: Some(1.9),
            utilisation: Some(0.317),
            model_error_percent: Some(4.1),
            connections: 40,
            share_cap: 1.0,
            checks: vec![CheckState {
                kind: "http".to_owned(),
                state: Health::Up,
                detail: "200 OK".to_owned(),
                latency_ms: Some(1.1),
            }],
        };
        let down = MirrorState {
            name: "b".to_owned(),
            state: Health::Down,
            wish: Wish::Drain,
            response_ms: None,
            capacity: None,
            service_time_ms: None,
            utilisation: None,
            model_error_percent: None,
            checks: vec![CheckState {
                kind: "http".to_owned(),
                state: Health::Down,
                detail: "503".to_owned(),
                latency_ms: None,
            }],
            ..up.clone()
        };
        let result = MirrorsResult {
            mirrors: vec![up, down],
        };
        insta::assert_snapshot!(written(TERMINAL, |output| mirrors(output, &result)), @r"
        MIRROR  ADDRESS      STATE  WISH    RATE  RESPONSE  CAPACITY  SERVICE TIME  UTILISATION %  MODEL ERROR %  CONNECTIONS  SHARE CAP %  CHECKS           REASON
        a       10.2.0.2:80  up     -      412.5   3.20 ms    1300.0       1.90 ms           31.7            4.1           40        100.0  http up          every check says so
        b       10.2.0.2:80  down   drain  412.5         -         -             -              -              -           40        100.0  http down (503)  every check says so
        ");
        insta::assert_snapshot!(written(Format::Plain, |output| mirrors(output, &result)), @r"
        a	10.2.0.2:80	up	-	412.53	3.2	1300	1.9	31.7	4.1	40	100	http up	every check says so
        b	10.2.0.2:80	down	drain	412.53	-	-	-	-	-	40	100	http down (503)	every check says so
        ");
    }
}
