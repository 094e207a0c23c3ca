//! Rules as operators write them, and what becomes of them.

use std::net::IpAddr;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    #[serde(default)]
    rule: Vec<RuleConfig>,
}

/// The rules of a service with the mirrors london, paris and tokyo.
fn compile(text: &str) -> Result<Rules, RuleError> {
    let service: Service = toml::from_str(text).expect(text);
    Rules::compile(&service.rule, &mirrors(), None)
}

fn mirrors() -> Vec<String> {
    ["london", "paris", "tokyo"].map(str::to_owned).into()
}

fn rules(text: &str) -> Rules {
    compile(text).expect(text)
}

fn refusal(text: &str) -> String {
    compile(text).expect_err(text).to_string()
}

/// What the file's reader says of a text that isn't one.
fn unreadable(text: &str) -> String {
    toml::from_str::<Service>(text)
        .err()
        .expect(text)
        .to_string()
}

fn at(text: &str) -> Timestamp {
    text.parse().expect(text)
}

/// The group of a client, as the rewriter finds it: by the longest prefix.
fn group_of(rules: &Rules, client: IpAddr) -> &ClientGroup {
    rules
        .groups()
        .iter()
        .flat_map(|group| group.prefixes.iter().map(move |prefix| (prefix, group)))
        .filter(|(prefix, _)| prefix.contains(client))
        .max_by_key(|(prefix, _)| prefix.network().prefix_len())
        .map_or(&rules.groups()[0], |(_, group)| group)
}

/// The number of the rule that counts for a client; 0: none.
fn counting(rules: &Rules, client: &str, now: &str) -> usize {
    let group = group_of(rules, client.parse().expect(client));
    let applied = rules.bounds(group, at(now));
    applied.rule.map_or(0, |rule| rule.number)
}

/// The groups as text: `name: prefixes`.
fn groups(rules: &Rules) -> Vec<String> {
    let line = |group: &ClientGroup| {
        let prefixes: Vec<String> = group.prefixes.iter().map(|p| p.to_string()).collect();
        format!("{}: {}", group.name, prefixes.join(" "))
    };
    rules.groups().iter().map(line).collect()
}

#[test]
fn without_rules_the_optimiser_is_free_for_everyone() {
    let rules = rules("");
    assert_eq!(groups(&rules), ["everyone: "]);
    let now = at("2026-12-01T12:00:00Z");
    assert_eq!(
        rules.bounds(&rules.groups()[0], now),
        Applied {
            bounds: &Bounds::Free([0, 1, 2].into()),
            rule: None,
            until: None
        }
    );
    assert_eq!(rules.next_change(now), None);
}

#[test]
fn the_kinds_of_rule_are_read() {
    let bounds = |rule: &str| {
        let rules = rules(&format!("[[rule]]\n{rule}"));
        rules.rules[0].bounds.clone()
    };
    assert_eq!(bounds("name = \"free\""), Bounds::Free([0, 1, 2].into()));
    assert_eq!(bounds("mirrors = \"paris\""), Bounds::Free([1].into()));
    assert_eq!(
        bounds("mirrors = [\"tokyo\", \"london\"]"),
        Bounds::Free([0, 2].into())
    );
    assert_eq!(
        bounds("shares = { london = 60, tokyo = 20.0, paris = 0 }"),
        Bounds::Shares(vec![0.75, 0.0, 0.25])
    );
    assert_eq!(
        bounds("prefer = \"paris\""),
        Bounds::Prefer {
            preferred: [1].into(),
            overflow: [0, 2].into(),
            at: 0.8
        }
    );
    assert_eq!(
        bounds("prefer = [\"paris\"]\noverflow = [\"tokyo\"]\noverflow_at = 50"),
        Bounds::Prefer {
            preferred: [1].into(),
            overflow: [2].into(),
            at: 0.5
        }
    );
}

#[test]
fn the_first_rule_that_holds_counts_and_says_until_when() {
    let rules = rules(
        r#"
        [[rule]]
        name = "office hours"
        when = { days = "mon-fri", hours = "08:00-18:00", zone = "Europe/London" }
        from = "10.1.0.0/16"
        mirrors = "london"

        [[rule]]
        from = ["10.0.0.0/8", "fd00::/8"]
        mirrors = "paris"

        [[rule]]
        when = { hours = "00:00-06:00" }
        shares = { tokyo = 1 }
        "#,
    );
    assert_eq!(
        groups(&rules),
        [
            "everyone: ",
            "office hours + rule 2: 10.1.0.0/16",
            "rule 2: 10.0.0.0/8 fd00::/8"
        ]
    );
    // Tuesday, in winter.
    assert_eq!(counting(&rules, "10.1.2.3", "2026-12-01T07:59:59Z"), 2);
    assert_eq!(counting(&rules, "10.1.2.3", "2026-12-01T08:00:00Z"), 1);
    assert_eq!(counting(&rules, "10.2.2.3", "2026-12-01T08:00:00Z"), 2);
    assert_eq!(counting(&rules, "fd00::1", "2026-12-01T08:00:00Z"), 2);
    assert_eq!(counting(&rules, "9.9.9.9", "2026-12-01T08:00:00Z"), 0);
    assert_eq!(counting(&rules, "9.9.9.9", "2026-12-01T05:59:59Z"), 3);
    assert_eq!(counting(&rules, "2001:db8::1", "2026-12-01T05:59:59Z"), 3);
    // Tuesday, in summer.
    assert_eq!(counting(&rules, "10.1.2.3", "2026-07-07T07:00:00Z"), 1);

    let until = |group: usize, now| rules.bounds(&rules.groups()[group], at(now)).until;
    assert_eq!(
        until(1, "2026-12-01T12:00:00Z"),
        Some(at("2026-12-01T18:00:00Z"))
    );
    assert_eq!(
        until(1, "2026-12-04T18:00:00Z"),
        Some(at("2026-12-07T08:00:00Z")),
        "over the weekend"
    );
    assert_eq!(until(2, "2026-12-01T12:00:00Z"), None);
    assert_eq!(
        until(0, "2026-12-01T12:00:00Z"),
        Some(at("2026-12-02T00:00:00Z"))
    );
    assert_eq!(
        rules.next_change(at("2026-12-01T12:00:00Z")),
        Some(at("2026-12-01T18:00:00Z"))
    );
}
