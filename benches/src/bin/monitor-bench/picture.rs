//! The picture: response time over the seconds of one round, with the monitor and without.

use std::fmt::Write as _;

use scenarios::analysis::Times;

use crate::report::SteadyCell;
use crate::stage::{TIMEOUT_MS, Watch};
use crate::steady::{Run, SLOWER};

const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const WIDTH: f64 = 840.0;
const HEIGHT: f64 = 320.0;
/// The least and the greatest time that is shown, in milliseconds.
const LEAST: f64 = 5.0;
const MOST: f64 = TIMEOUT_MS * 1.25;

/// Of the first round in which both were measured. None: there is none.
pub fn svg(cells: &[SteadyCell]) -> Option<String> {
    let run = |round: u64, watch: Watch| {
        let cell = cells
            .iter()
            .find(|cell| cell.round == round && cell.watch == watch)?;
        Some((cell, cell.outcome.as_ref().ok()?))
    };
    let (cell, without, with) = cells.iter().find_map(|cell| {
        let (_, without) = run(cell.round, Watch::None)?;
        let (cell, with) = run(cell.round, Watch::Signs)?;
        Some((cell, without, with))
    })?;
    let seconds = without.seconds.len().max(1) as f64;
    let x = |second: f64| LEFT + second / seconds * WIDTH;

    let mut body = String::new();
    // Writing to a string doesn't fail.
    for time in [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0] {
        let _ = writeln!(
            body,
            "<line x1='{LEFT}' x2='{0:.1}' y1='{1:.1}' y2='{1:.1}' stroke='#dddddd'/>\
             <text x='{2:.1}' y='{3:.1}' text-anchor='end'>{time} ms</text>",
            LEFT + WIDTH,
            y(time),
            LEFT - 6.0,
            y(time) + 4.0
        );
    }
    for change in &cell.changes {
        let at = x(change.second as f64);
        let _ = writeln!(
            body,
            "<line x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{:.1}' stroke='#999999' stroke-dasharray='4'/>\
             <text x='{:.1}' y='{:.1}'>{} s: mirror {} is {SLOWER} times slower</text>",
            TOP + HEIGHT,
            at + 3.0,
            TOP + HEIGHT + 16.0,
            change.second,
            change.slow + 1
        );
    }
    for (run, colour) in [(without, "#c06030"), (with, "#3060c0")] {
        let _ = writeln!(
            body,
            "{}{}",
            line(
                run,
                x,
                |times| times.p50,
                colour,
                "1.2' stroke-dasharray='3"
            ),
            line(run, x, |times| times.p99, colour, "2")
        );
    }
    Some(format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{}' height='{}' font-family='sans-serif' \
         font-size='10'>\n\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='{LEFT}' y='18' font-size='13'>Response time of the requests of each second, round {}: \
         p99 (solid) and p50 (dashed)</text>\n\
         <text x='{LEFT}' y='36' font-size='12'><tspan fill='#3060c0'>with the monitor</tspan>, \
         <tspan fill='#c06030'>without, equal weights</tspan>; a request that failed counts as {} s</text>\n\
         {body}</svg>\n",
        LEFT + WIDTH + 20.0,
        TOP + HEIGHT + 30.0,
        cell.round + 1,
        TIMEOUT_MS / 1000.0
    ))
}

/// Where a time is, on a logarithmic scale.
fn y(time: f64) -> f64 {
    let share = (time.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    TOP + HEIGHT * (1.0 - share)
}

fn line(
    run: &Run,
    x: impl Fn(f64) -> f64,
    figure: impl Fn(&Times) -> f64,
    colour: &str,
    width: &str,
) -> String {
    let points: Vec<String> = run
        .seconds
        .iter()
        .enumerate()
        .filter_map(|(second, times)| {
            let times = times.as_ref()?;
            Some(format!(
                "{:.1},{:.1}",
                x(second as f64 + 0.5),
                y(figure(times))
            ))
        })
        .collect();
    format!(
        "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='{width}'/>",
        points.join(" ")
    )
}
