//! What findings amount to: stories of mirrors that come up, fall, wish and recover.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::time::{Duration, Instant};

use monitor::check::{AgentWords, CheckState, Finding, Health, Standing, State, Verdict, Wish};
use proptest::prelude::*;
use support::config;

fn health(checks: &[&str]) -> Health {
    let checks: Vec<_> = checks.iter().map(|check| config(check)).collect();
    Health::new(&checks)
}

fn good() -> Finding {
    Finding {
        latency: Some(Duration::from_millis(8)),
        ..Finding::new(Verdict::Good, "fine")
    }
}

fn bad() -> Finding {
    Finding::new(Verdict::Bad, "broken")
}

fn unknown() -> Finding {
    Finding::new(Verdict::Unknown, "no idea")
}

fn says(line: &str) -> Finding {
    let words: AgentWords = line.parse().unwrap();
    let verdict = match words.up {
        Some(true) => Verdict::Good,
        Some(false) => Verdict::Bad,
        None => Verdict::Same,
    };
    Finding {
        agent: words,
        ..Finding::new(verdict, line)
    }
}

fn load(load: Option<f64>) -> Finding {
    Finding {
        load,
        ..Finding::new(Verdict::Good, "load")
    }
}

#[test]
fn a_mirror_comes_up_falls_and_rises() {
    let mut health = health(&["kind = 'tcp'"]);
    let now = Instant::now();
    assert_eq!(
        health.standing(),
        Standing {
            state: State::Unknown,
            wish: Wish::None,
            weight: 1.0
        }
    );
    assert_eq!(health.checks()[0].state, CheckState::Waiting);

    // The first good finding is enough.
    let change = health.handle(0, good(), now).unwrap();
    assert_eq!(
        (change.before.state, change.after.state),
        (State::Unknown, State::Up)
    );
    assert_eq!(change.reason, "the tcp check is good at first: fine");

    // Two bad ones aren't enough, and a good one in between begins the row anew.
    for finding in [bad(), bad(), good(), bad(), bad()] {
        assert_eq!(health.handle(0, finding, now), None);
    }
    let later = now + Duration::from_secs(1);
    let change = health.handle(0, bad(), later).unwrap();
    assert_eq!(change.after.state, State::Down);
    assert_eq!(
        change.reason,
        "the tcp check is bad, 3 times in a row: broken"
    );
    assert_eq!(health.checks()[0].since, Some(later));

    // It takes two good ones in a row to come back.
    for finding in [good(), bad(), good()] {
        assert_eq!(health.handle(0, finding, later), None);
    }
    let change = health.handle(0, good(), later).unwrap();
    assert_eq!(change.after.state, State::Up);
    assert_eq!(
        change.reason,
        "the tcp check is good, 2 times in a row: fine"
    );
}

#[test]
fn the_first_bad_finding_is_enough() {
    let mut health = health(&["kind = 'tcp'"]);
    let change = health.handle(0, bad(), Instant::now()).unwrap();
    assert_eq!(change.after.state, State::Down);
    assert_eq!(change.reason, "the tcp check is bad at first: broken");
}

#[test]
fn all_checks_have_to_be_made_before_a_mirror_is_up_but_one_is_enough_to_be_down() {
    let now = Instant::now();
    let mut up = health(&["kind = 'tcp'", "kind = 'http'", "kind = 'icmp'"]);
    assert_eq!(up.handle(0, good(), now), None);
    assert_eq!(up.handle(1, good(), now), None);
    let change = up.handle(2, good(), now).unwrap();
    assert_eq!(change.after.state, State::Up);
    assert_eq!(change.reason, "check 3 (icmp) is good at first: fine");

    let mut down = health(&["kind = 'tcp'", "kind = 'http'"]);
    assert_eq!(down.handle(1, bad(), now).unwrap().after.state, State::Down);
    assert_eq!(down.handle(0, good(), now), None);
    assert_eq!(down.standing().state, State::Down);
}

#[test]
fn a_check_that_can_say_nothing_has_no_voice() {
    let now = Instant::now();
    let mut health = health(&["kind = 'tcp'", "kind = 'icmp'"]);
    assert_eq!(health.handle(1, unknown(), now), None);
    assert_eq!(health.checks()[1].state, CheckState::Silent);
    assert_eq!(
        health.handle(0, good(), now).unwrap().after.state,
        State::Up
    );
    // Its first word decides it, though.
    assert_eq!(
        health.handle(1, bad(), now).unwrap().after.state,
        State::Down
    );

    // If none can say anything, nothing is known.
    let mut silent = self::health(&["kind = 'tcp'", "kind = 'icmp'"]);
    assert_eq!(silent.handle(0, unknown(), now), None);
    assert_eq!(silent.handle(1, unknown(), now), None);
    assert_eq!(silent.standing().state, State::Unknown);
}

#[test]
fn an_unknown_finding_changes_no_state_and_breaks_no_row() {
    let now = Instant::now();
    let mut health = health(&["kind = 'tcp'"]);
    health.handle(0, good(), now);
    for finding in [bad(), unknown(), bad(), unknown()] {
        assert_eq!(health.handle(0, finding, now), None);
    }
    assert_eq!(
        health.handle(0, bad(), now).unwrap().after.state,
        State::Down
    );
    assert_eq!(health.handle(0, unknown(), now), None);
    assert_eq!(health.standing().state, State::Down);
}

#[test]
fn a_check_that_can_say_nothing_for_long_loses_its_voice_unless_it_was_down() {
    let now = Instant::now();
    let metric = "kind = 'prometheus'\nmetric = 'a'\nfull = 1";
    let mut alone = health(&[metric]);
    let mut beside = health(&[metric, "kind = 'tcp'"]);
    beside.handle(1, good(), now);
    for health in [&mut alone, &mut beside] {
        assert_eq!(
            health.handle(0, load(Some(0.1)), now).unwrap().after.state,
            State::Up
        );
        for finding in [unknown(), unknown(), load(Some(0.1)), unknown(), unknown()] {
            assert_eq!(health.handle(0, finding, now), None);
        }
    }
    let change = alone.handle(0, unknown(), now).unwrap();
    assert_eq!(change.after.state, State::Unknown);
    assert_eq!(
        change.reason,
        "the prometheus check can say nothing, 3 times in a row: no idea"
    );
    // Another check that is up speaks for the mirror.
    assert_eq!(beside.handle(0, unknown(), now), None);
    assert_eq!(beside.checks()[0].state, CheckState::Silent);
    assert_eq!(beside.standing().state, State::Up);
    // Its first word decides it again.
    assert_eq!(
        alone.handle(0, load(Some(0.1)), now).unwrap().after.state,
        State::Up
    );

    for _ in 0..3 {
        alone.handle(0, bad(), now);
    }
    for _ in 0..10 {
        assert_eq!(alone.handle(0, unknown(), now), None);
    }
    assert_eq!(alone.standing().state, State::Down);
}

#[test]
fn an_agent_says_up_and_down_at_once_and_what_it_does_not_say_stays() {
    let now = Instant::now();
    let mut health = health(&["kind = 'agent'"]);
    // An agent that never speaks of up or down is believed to be up, as HAProxy believes it.
    let change = health.handle(0, says("50%"), now).unwrap();
    assert_eq!(
        change.after,
        Standing {
            state: State::Up,
            wish: Wish::None,
            weight: 0.5
        }
    );

    let change = health.handle(0, says("drain"), now).unwrap();
    assert_eq!(
        change.after,
        Standing {
            state: State::Up,
            wish: Wish::Drain,
            weight: 0.5
        }
    );
    assert_eq!(change.reason, "the agent check says: drain");
    let change = health
        .handle(0, says("down maint # disk full"), now)
        .unwrap();
    assert_eq!(
        change.after,
        Standing {
            state: State::Down,
            wish: Wish::Maintenance,
            weight: 0.5
        }
    );

    // Neither silence nor other words bring it back, only the opposite words do.
    assert_eq!(health.handle(0, unknown(), now), None);
    let change = health.handle(0, says("ready 200%"), now).unwrap();
    assert_eq!(
        change.after,
        Standing {
            state: State::Down,
            wish: Wish::None,
            weight: 1.0
        }
    );
    let change = health.handle(0, says("up"), now).unwrap();
    assert_eq!(
        change.after,
        Standing {
            state: State::Up,
            wish: Wish::None,
            weight: 1.0
        }
    );
}

#[test]
fn of_several_agents_the_most_cautious_counts() {
    let now = Instant::now();
    let mut health = health(&["kind = 'agent'", "kind = 'agent'"]);
    health.handle(0, says("up ready 80%"), now);
    health.handle(1, says("up drain 30%"), now);
    let wanted = Standing {
        state: State::Up,
        wish: Wish::Drain,
        weight: 0.3,
    };
    assert_eq!(health.standing(), wanted);
}

#[test]
fn a_load_is_known_or_unknown_but_never_idle_by_default() {
    let now = Instant::now();
    let metric = "kind = 'prometheus'\nmetric = 'a'\nfull = 1";
    let mut health = health(&[metric, metric, "kind = 'tcp'"]);
    assert_eq!(health.load(), None);
    health.handle(0, load(Some(0.5)), now);
    assert_eq!(health.load(), None, "the other isn't known");
    health.handle(1, load(Some(0.2)), now);
    health.handle(2, good(), now);
    assert_eq!(health.load(), Some(0.5));
    health.handle(1, load(Some(1.7)), now);
    assert_eq!(health.load(), Some(1.7));
    health.handle(0, unknown(), now);
    assert_eq!(health.load(), None);
    for nonsense in [f64::NAN, f64::INFINITY] {
        health.handle(0, load(Some(nonsense)), now);
        assert_eq!(health.load(), None);
    }
}

#[test]
fn latency_is_smoothed_and_only_of_good_findings() {
    let now = Instant::now();
    let mut health = health(&["kind = 'tcp'", "kind = 'http'"]);
    assert_eq!(health.latency(), None);
    health.handle(0, good(), now);
    assert_eq!(health.latency(), Some(Duration::from_millis(8)));
    health.handle(
        0,
        Finding {
            latency: Some(Duration::from_millis(16)),
            ..good()
        },
        now,
    );
    assert_eq!(health.latency(), Some(Duration::from_millis(9)));
    health.handle(0, bad(), now);
    assert_eq!(health.latency(), Some(Duration::from_millis(9)));
    assert_eq!(health.checks()[0].latency, None);
    health.handle(
        1,
        Finding {
            latency: Some(Duration::from_millis(20)),
            ..good()
        },
        now,
    );
    assert_eq!(
        health.latency(),
        Some(Duration::from_millis(20)),
        "of the slowest check"
    );
}

#[test]
fn a_check_that_is_not_there_is_ignored() {
    let mut health = health(&["kind = 'tcp'"]);
    assert_eq!(health.handle(1, bad(), Instant::now()), None);
    assert_eq!(health.standing().state, State::Unknown);
}

proptest! {
    /// The slow, obvious way to say what one check is: look back over all of its findings.
    #[test]
    fn rise_and_fall_are_what_the_history_says(
        verdicts in prop::collection::vec(
            prop::sample::select(vec![Verdict::Good, Verdict::Bad, Verdict::Unknown]), 0..60),
        rise in 1_u32..5,
        fall in 1_u32..5,
    ) {
        let mut health = health(&[&format!("kind = 'tcp'\nrise = {rise}\nfall = {fall}")]);
        let mut state = State::Unknown;
        let mut all: Vec<Verdict> = Vec::new();
        let mut telling: Vec<Verdict> = Vec::new();
        for verdict in verdicts {
            let change = health.handle(0, Finding::new(verdict, ""), Instant::now());
            let before = state;
            all.push(verdict);
            if verdict == Verdict::Unknown {
                let row = all.iter().rev().take_while(|last| **last == verdict).count();
                if state == State::Up && row >= fall as usize {
                    state = State::Unknown;
                    telling.clear();
                }
            } else {
                telling.push(verdict);
                let row = telling.iter().rev().take_while(|last| **last == verdict).count();
                let (next, needed) = match verdict {
                    Verdict::Good => (State::Up, rise),
                    _ => (State::Down, fall),
                };
                if telling.len() == 1 || row >= needed as usize {
                    state = next;
                }
            }
            prop_assert_eq!(health.standing().state, state);
            prop_assert_eq!(change.is_some(), state != before);
        }
    }
}
