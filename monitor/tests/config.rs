//! What the configuration file may say, and how it is told what it may not.

use std::path::Path;
use std::time::Duration;

use monitor::config::Config;

const RIGHT: &str = r#"
[[rewriter]]
name = "edge"
[[mirror]]
name = "london"
address = "10.2.0.2"
[[mirror.check]]
kind = "http"
path = "/health"
[[mirror]]
name = "paris"
address = "10.2.0.3:8080"
[[service]]
address = "100.100.100.100:80/tcp"
mirrors = ["london", "paris"]
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("")).map_err(|error| {
        let mut words = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            words = format!("{words}: {cause}");
            source = cause.source();
        }
        words
    })
}

#[test]
fn what_is_not_said_is_as_usual() {
    let config = parse(RIGHT).expect("it is right");
    assert_eq!(config.interval, Duration::from_secs(5));
    assert_eq!(config.settings.improvement, 0.1);
    assert_eq!(config.settings.min_mirrors, 1);
    assert!(config.liveness.is_some());
    assert_eq!(
        config.rewriters[0].socket,
        Path::new("/run/shunt/control.sock")
    );
    assert_eq!(config.services[0].mirrors, [0, 1]);
    // Whoever has no check is connected to, where the service says or the mirror itself.
    assert_eq!(config.mirrors[0].check_address().to_string(), "10.2.0.2:80");
    assert_eq!(
        config.mirrors[1].check_address().to_string(),
        "10.2.0.3:8080"
    );
    assert_eq!(config.mirrors[1].checks.len(), 1);
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn what_is_wrong_is_named() {
    let replaced = |what: &str, with: &str| {
        assert!(RIGHT.contains(what), "{what}");
        parse(&RIGHT.replacen(what, with, 1)).expect_err(with)
    };
    let before = |line: &str| parse(&format!("{line}\n{RIGHT}")).expect_err(line);
    for (refusal, named) in [
        (
            replaced("\"paris\"]", "\"pariss\"]"),
            "no [[mirror]] named \"pariss\"",
        ),
        (replaced("\"paris\"]", "\"pariss\"]"), "\"paris\""),
        (
            replaced("[\"london\", \"paris\"]", "[]"),
            "`mirrors` is empty",
        ),
        (
            replaced("\"paris\"]", "\"london\"]"),
            "two [[service.mirrors]] named \"london\"",
        ),
        (
            replaced("\"paris\"", "\"london\""),
            "two [[mirror]] named \"london\"",
        ),
        (
            replaced("\"10.2.0.2\"", "\"fd00::2\""),
            "is of the other IP version",
        ),
        (
            replaced("\"10.2.0.2\"", "\"london.example\""),
            "london.example",
        ),
        (replaced("kind = \"http\"", "kind = \"htp\""), "htp"),
        (replaced("path = \"/health\"", "pth = \"/health\""), "pth"),
        (
            replaced("[[rewriter]]\nname = \"edge\"", ""),
            "no [[rewriter]]",
        ),
        (replaced("name = \"edge\"", "name = \"\""), "empty name"),
        (before("improvement = 101"), "`improvement` is 101"),
        (before("improvement = nan"), "`improvement` is NaN"),
        (before("interval = \"0s\""), "`interval` is 0s"),
        (before("interval = \"2 days\""), "`interval` is 2days"),
        (before("interval = 5"), "interval"),
        (before("settle = \"soon\""), "settle"),
        (before("min-mirrors = 0"), "`min-mirrors` is 0"),
        (before("min_mirrors = 1"), "min_mirrors"),
        (
            before("locations = \"/nowhere/places.csv\""),
            "/nowhere/places.csv",
        ),
        (before("metrics = \"localhost\""), "metrics"),
    ] {
        assert!(refusal.contains(named), "{named}: {refusal}");
    }
    let capacity = RIGHT.replacen("\"10.2.0.2\"", "\"10.2.0.2\"\ncapacity = -1.0", 1);
    assert!(
        parse(&capacity)
            .expect_err("negative")
            .contains("`capacity` is -1")
    );
}

#[test]
fn rules_that_contradict_each_other_are_refused_by_name() {
    let rules = "[[service.rule]]
        name = \"all to london\"
        mirrors = [\"london\"]
        [[service.rule]]
        name = \"all to paris\"
        mirrors = [\"paris\"]";
    let refusal = parse(&format!("{RIGHT}\n{rules}")).expect_err("the second never applies");
    assert!(
        refusal.contains("all to london") && refusal.contains("all to paris"),
        "{refusal}"
    );
}

#[test]
fn what_is_odd_is_said() {
    let lonely = format!("{RIGHT}\n[[mirror]]\nname = \"rome\"\naddress = \"10.2.0.4\"\n");
    let config = parse(&lonely).expect("it may be meant");
    assert_eq!(
        config.warnings,
        ["mirror \"rome\" is a mirror of no service"]
    );
}

/// The examples of the guide.
#[test]
fn the_documents_examples_are_right() {
    let document = include_str!("../../docs/monitor.md");
    let examples: Vec<&str> = document
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        parse(example).expect(example);
    }
    for key in [
        "socket",
        "metrics",
        "interval",
        "improvement",
        "settle",
        "min-mirrors",
        "slow-start",
        "overload",
        "locations",
    ] {
        assert!(document.contains(&format!("| `{key}` |")), "{key}");
    }
}
