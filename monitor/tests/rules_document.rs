//! Keeps `docs/monitor-rules.md` true: its examples are read, and mean what it says.

use std::fs;

use monitor::rules::{
    Bounds, Locations, Maintenance, MaintenanceConfig, MaintenanceState, RuleConfig, Rules,
};
use serde::Deserialize;

const DOCUMENT: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/monitor-rules.md"
));

/// The code blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    DOCUMENT
        .split(&opening)
        .skip(1)
        .map(|rest| rest.split_once("```").expect("each block is closed").0)
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    locations: Option<String>,
    service: Option<Service>,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    rule: Vec<RuleConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    maintenance: Vec<MaintenanceConfig>,
}

fn read(block: &str) -> Example {
    toml::from_str(block).expect(block)
}

/// The rules of an example, with the table of places that the document shows.
fn rules(block: &str) -> Option<Rules> {
    let Example {
        locations, service, ..
    } = read(block);
    let service = service?;
    let directory = tempfile::tempdir().expect("a directory");
    let locations = locations.map(|name| {
        let path = directory.path().join(name);
        fs::write(&path, blocks("csv")[0]).expect("a file");
        let wanted = service.rule.iter().flat_map(|rule| &rule.location);
        Locations::read(&path, wanted.map(String::as_str)).expect("the document's table")
    });
    let mirrors = ["london", "paris", "tokyo"].map(str::to_owned);
    let rules = Rules::compile(&service.rule, &mirrors, locations.as_ref());
    Some(rules.unwrap_or_else(|error| panic!("{error} in\n{block}")))
}

/// The example with this text in it.
fn example(text: &str) -> &'static str {
    let mut found = blocks("toml").into_iter().filter(|b| b.contains(text));
    let block = found.next().expect(text);
    assert_eq!(found.next(), None, "only one example has {text}");
    block
}

/// What the first rule of the example with this text leaves to the optimiser, at some time.
fn bounds(text: &str, now: &str) -> Bounds {
    let rules = rules(example(text)).expect("rules");
    let now = now.parse().expect("a time");
    let group = rules.groups().last().expect("everyone");
    rules.bounds(group, now).bounds.clone()
}

const MONDAY_NOON: &str = "2026-11-30T12:00:00Z";

#[test]
fn every_example_is_taken_and_together_they_show_all_keys() {
    let mut shown = String::new();
    for block in blocks("toml") {
        assert!(rules(block).is_some() || !read(block).mirror.is_empty());
        shown.push_str(block);
    }
    for key in [
        "name",
        "when",
        "days",
        "hours",
        "zone",
        "from",
        "location",
        "mirrors",
        "shares",
        "prefer",
        "overflow",
        "overflow_at",
        "locations",
        "maintenance",
        "until",
        "drain",
    ] {
        assert!(shown.contains(&format!("{key} = ")), "{key}");
    }
}

#[test]
fn the_kinds_of_rule_mean_what_is_said() {
    assert_eq!(
        bounds("mirrors = [\"london\", \"paris\"]", MONDAY_NOON),
        Bounds::Free([0, 1].into())
    );
    assert_eq!(
        bounds("[[service.rule]]\nshares = { london = 70", MONDAY_NOON),
        Bounds::Shares(vec![0.7, 0.3, 0.0])
    );
    assert_eq!(
        bounds("overflow_at = 90", MONDAY_NOON),
        Bounds::Prefer {
            preferred: [0].into(),
            overflow: [1].into(),
            at: 0.9
        }
    );
    assert_eq!(
        bounds("anywhere", MONDAY_NOON),
        Bounds::Free([0, 1, 2].into())
    );
    assert_eq!(
        bounds("location = [", MONDAY_NOON),
        Bounds::Prefer {
            preferred: [0].into(),
            overflow: [1, 2].into(),
            at: 0.8
        }
    );
}

#[test]
fn the_times_mean_what_is_said() {
    let paris =
        |now| bounds("days = [\"mon-wed\", \"sat\"]", now) != Bounds::Free([0, 1, 2].into());
    assert!(paris("2026-11-30T11:59:59Z"));
    assert!(!paris(MONDAY_NOON));
    assert!(!paris("2026-12-03T11:00:00Z"), "a Thursday");
    let tokyo = |now| bounds("days = \"fri\"", now) == Bounds::Free([2].into());
    assert!(!tokyo("2026-12-04T21:59:59Z"));
    assert!(tokyo("2026-12-04T22:00:00Z"), "Friday at ten");
    assert!(tokyo("2026-12-05T05:59:59Z"));
    assert!(!tokyo("2026-12-05T06:00:00Z"), "Saturday at six");
}

#[test]
fn the_groups_are_those_of_the_table() {
    let rules = rules(example("name = \"tests\"")).expect("rules");
    let mut rows: Vec<String> = DOCUMENT
        .lines()
        .skip_while(|line| *line != "| group | clients |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(str::to_owned)
        .collect();
    rows.sort();
    let mut groups: Vec<String> = rules
        .groups()
        .iter()
        .map(|group| {
            let prefixes: Vec<String> = group.prefixes.iter().map(|p| p.to_string()).collect();
            let clients = match prefixes.as_slice() {
                [] => "all that are in no other group; there is always this one".to_owned(),
                prefixes => prefixes.join(" "),
            };
            format!("| `{}` | {clients} |", group.name)
        })
        .collect();
    groups.sort();
    assert_eq!(groups, rows);
}

#[test]
fn maintenance_drains_first() {
    let mirror = read(example("maintenance")).mirror.remove(0);
    let maintenance = Maintenance::compile(&mirror.maintenance).expect("maintenance");
    let state = |now: &str| maintenance.state(now.parse().expect("a time"));
    let at = |moment: &str| moment.parse().expect("a time");
    assert_eq!(
        state("2026-12-01T21:45:00Z"),
        MaintenanceState::Draining {
            deadline: at("2026-12-01T22:00:00Z")
        }
    );
    assert_eq!(
        state("2026-12-02T00:59:59Z"),
        MaintenanceState::Down {
            until: at("2026-12-02T01:00:00Z")
        }
    );
    assert_eq!(
        state("2026-12-02T01:00:00Z"),
        MaintenanceState::Planned {
            drains: at("2026-12-24T09:50:00Z"),
            begins: at("2026-12-24T10:00:00Z")
        }
    );
}
