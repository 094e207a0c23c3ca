//! Two weeks in virtual time: load that follows day and week, mirrors that become slow, die and come back. What the
//! monitor's assignment costs, beside the best that somebody could have chosen who knew all, and beside equal shares
//! with health checks; how often it moves anything; and that it undoes nothing before it has settled.
//!
//! `cargo test -p monitor --test fortnight -- --nocapture` prints the table of `docs/monitor.md`.

mod world;

use std::f64::consts::TAU;
use std::time::Duration;

use monitor::brain::{Decision, Kind, Settings};
use monitor::model::Queue;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use world::{World, down, up};

const DAY: u64 = 24 * 3600;
const TICK: u64 = 30;

/// What happens to a mirror, from a moment for some time.
struct Event {
    mirror: usize,
    from: u64,
    until: u64,
    what: What,
}

enum What {
    /// It takes so many times as long.
    Slow(f64),
    Dead,
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    cost: f64,
    best: f64,
    equal: f64,
    requests: f64,
    failed: f64,
    decisions: usize,
    undone: Vec<String>,
}

fn events(random: &mut SmallRng, mirrors: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for day in 0..14 {
        let mut at = |hours: std::ops::Range<u64>| {
            let from = day * DAY + random.random_range(0..DAY);
            (from, from + 3600 * random.random_range(hours))
        };
        let (slow, dead) = (at(1..4), at(1..2));
        // One at a time, or the rest couldn't carry the load whoever shares it out.
        if slow.0 < dead.1 && dead.0 < slow.1 {
            continue;
        }
        events.push(Event {
            mirror: random.random_range(0..mirrors),
            from: slow.0,
            until: slow.1,
            what: What::Slow(random.random_range(1.5..6.0)),
        });
        events.push(Event {
            mirror: random.random_range(0..mirrors),
            from: dead.0,
            until: dead.1,
            what: What::Dead,
        });
    }
    events
}

/// Requests a second at a moment: least at night and at weekends.
fn demand(second: u64) -> f64 {
    let time_of_day = (second % DAY) as f64 / DAY as f64;
    let is_weekend = (second / DAY) % 7 >= 5;
    let daily = 0.55 - 0.45 * (TAU * (time_of_day - 0.1)).cos();
    340.0 * daily * if is_weekend { 0.6 } else { 1.0 } + 20.0
}

fn live_through(seed: u64) -> Outcome {
    let settings = Settings {
        settle: Duration::from_secs(120),
        slow_start: Duration::from_secs(120),
        ..Settings::default()
    };
    let queues = [
        Queue::new(0.020, 6.0),
        Queue::new(0.025, 4.0),
        Queue::new(0.015, 2.0),
        Queue::new(0.040, 8.0),
    ];
    let mut world = World::new(settings, &queues, &[20.0, 10.0]);
    world.tick = Duration::from_secs(TICK);
    let mut random = SmallRng::seed_from_u64(seed);
    let events = events(&mut random, queues.len());
    let mut outcome = Outcome::default();
    for second in (0..14 * DAY).step_by(TICK as usize) {
        let noise = 1.0 + random.random_range(-0.1..0.1);
        world.clients[0].rate = 0.7 * demand(second) * noise;
        world.clients[1].rate = 0.3 * demand((second + 6 * 3600) % (14 * DAY)) * noise;
        for (number, queue) in queues.iter().enumerate() {
            let mut now = (*queue, true);
            for event in &events {
                if event.mirror == number && (event.from..event.until).contains(&second) {
                    match event.what {
                        What::Slow(times) => {
                            now.0 = Queue::new(queue.service_time() * times, queue.servers());
                        }
                        What::Dead => now.1 = false,
                    }
                }
            }
            let server = &mut world.servers[number];
            let has_changed = server.is_alive != now.1;
            (server.queue, server.is_alive) = now;
            if has_changed {
                // Its checks notice at once, seen from ticks of half a minute.
                world.tell(number, if now.1 { up() } else { down() });
            }
        }
        world.step();
        if second < 3600 {
            // It has to learn first.
            continue;
        }
        let requests: f64 = world.clients.iter().map(|clients| clients.rate).sum();
        outcome.requests += requests;
        outcome.cost += requests * world.cost();
        outcome.best += requests * world.best_cost();
        outcome.equal += requests * world.equal_cost();
    }
    outcome.failed = world.failed;
    outcome.decisions = world.decisions.len();
    outcome.undone = undone(&world.decisions, settings.settle);
    outcome
}

/// Changes that take back, within the settling time, what another that wasn't urgent had done.
fn undone(decisions: &[Decision], settle: Duration) -> Vec<String> {
    let weighed: Vec<&Decision> = decisions
        .iter()
        .filter(|decision| !decision.kind.is_urgent() && decision.kind != Kind::None)
        .collect();
    let mut undone = Vec::new();
    for (number, later) in weighed.iter().enumerate() {
        for earlier in weighed[..number].iter().rev() {
            if later.at - earlier.at >= settle {
                break;
            }
            for (a, b) in earlier.changes.iter().zip(&later.changes) {
                let is_undone = (0..a.to.len()).any(|mirror| {
                    let (first, second) =
                        (a.to[mirror] - a.from[mirror], b.to[mirror] - b.from[mirror]);
                    first * second < 0.0 && first.abs().min(second.abs()) > 0.05
                });
                if a.group == b.group && is_undone {
                    undone.push(format!(
                        "{:?} {} {} {:?}\n{:?} {} {} {:?}",
                        earlier.at,
                        earlier.kind,
                        earlier.reason,
                        a,
                        later.at,
                        later.kind,
                        later.reason,
                        b
                    ));
                }
            }
        }
    }
    undone
}

#[test]
fn two_weeks() {
    println!(
        "| seed | mean response | best in hindsight | equal shares | ÷ best | ÷ equal | moves an hour |"
    );
    println!("|---|---|---|---|---|---|---|");
    for seed in 1..=3 {
        let outcome = live_through(seed);
        let milliseconds = |sum: f64| 1e3 * sum / outcome.requests;
        let moves = outcome.decisions as f64 / (14.0 * 24.0);
        println!(
            "| {seed} | {:.1} ms | {:.1} ms | {:.1} ms | {:.2} | {:.2} | {moves:.1} |",
            milliseconds(outcome.cost),
            milliseconds(outcome.best),
            milliseconds(outcome.equal),
            outcome.cost / outcome.best,
            outcome.cost / outcome.equal,
        );
        assert!(outcome.undone.is_empty(), "{}", outcome.undone[0]);
        assert!(outcome.cost < 1.3 * outcome.best, "{outcome:?}");
        assert!(outcome.cost < 0.9 * outcome.equal, "{outcome:?}");
        assert!(moves < 6.0, "{moves} an hour");
    }
}
