//! Keeps `docs/monitor-checks.md` true: its examples are read, and its defaults are the ones there are.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::collections::BTreeSet;

use support::config;

const DOCUMENT: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/monitor-checks.md"
));

#[test]
fn every_example_is_a_check_and_there_is_one_of_each_kind() {
    let mut shown = BTreeSet::new();
    for block in DOCUMENT.split("```toml\n").skip(1) {
        let (example, _) = block.split_once("```").unwrap();
        shown.insert(config(example).kind.name());
    }
    let listed: BTreeSet<&str> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| [")?.split_once("](#"))
        .map(|(kind, _)| kind)
        .collect();
    assert_eq!(listed.len(), 8);
    assert_eq!(shown, listed);
}

#[test]
fn the_defaults_are_the_ones_there_are() {
    let check = config("kind = 'tcp'");
    for row in [
        format!(
            "| `interval` | `\"{}\"` |",
            humantime::format_duration(check.interval)
        ),
        format!(
            "| `timeout` | `\"{}\"`, or ",
            humantime::format_duration(check.timeout)
        ),
        format!(
            "| `rise` | {} (agent: {}) |",
            check.rise,
            config("kind = 'agent'").rise
        ),
        format!(
            "| `fall` | {} (agent: {}) |",
            check.fall,
            config("kind = 'agent'").fall
        ),
    ] {
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}
