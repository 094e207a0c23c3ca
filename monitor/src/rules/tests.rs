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

#[test]
fn a_rule_that_makes_no_sense_is_refused_with_a_sentence() {
    for (rule, expected) in [
        (
            "name = \"x\"\nmirrors = [\"lodnon\"]",
            "rule 1 (\"x\"): mirrors: the service has no mirror \"lodnon\"; did you mean \"london\"?",
        ),
        (
            "prefer = \"berlin\"",
            "rule 1: prefer: the service has no mirror \"berlin\"",
        ),
        (
            "prefer = \"paris\"\noverflow = \"berlin\"",
            "rule 1: overflow: the service has no mirror \"berlin\"",
        ),
        (
            "shares = { berlin = 1 }",
            "rule 1: shares: the service has no mirror \"berlin\"",
        ),
        (
            "mirrors = [\"paris\", \"paris\"]",
            "rule 1: mirrors: mirror \"paris\" is named twice",
        ),
        (
            "shares = { paris = 1 }\nprefer = \"paris\"",
            "rule 1: mirrors, shares and prefer exclude each other; choose one",
        ),
        (
            "mirrors = \"paris\"\nshares = { paris = 1 }",
            "rule 1: mirrors, shares and prefer exclude each other; choose one",
        ),
        (
            "overflow_at = 50",
            "rule 1: overflow and overflow_at mean nothing without prefer",
        ),
        (
            "mirrors = \"paris\"\noverflow = \"london\"",
            "rule 1: overflow and overflow_at mean nothing without prefer",
        ),
        (
            "prefer = \"paris\"\noverflow = [\"tokyo\", \"paris\"]",
            "rule 1: overflow: mirror \"paris\" is preferred already",
        ),
        (
            "prefer = \"paris\"\noverflow_at = 0",
            "rule 1: overflow_at: 0 is not a percentage above 0 and up to 100",
        ),
        (
            "prefer = \"paris\"\noverflow_at = nan",
            "rule 1: overflow_at: NaN is not a percentage above 0 and up to 100",
        ),
        (
            "shares = { paris = -1 }",
            "rule 1: shares: -1 for \"paris\" is no share; expected a number from 0 to 1e9",
        ),
        (
            "shares = { paris = inf }",
            "rule 1: shares: inf for \"paris\" is no share; expected a number from 0 to 1e9",
        ),
        (
            "shares = { paris = 0 }",
            "rule 1: shares: at least one must be more than 0",
        ),
        (
            "shares = {}",
            "rule 1: shares: at least one must be more than 0",
        ),
        (
            "when = { zone = \"Europe/London\" }",
            "rule 1: when: needs days or hours; leave it out for a rule that always holds",
        ),
        (
            "location = \"EU\"",
            "rule 1: location: needs a table of places; name it with locations = \"FILE\" at the top of \
             the file",
        ),
        (
            "name = \"everyone\"",
            "rule 1 (\"everyone\"): name: \"everyone\" is taken; rules need names of their own",
        ),
        (
            "name = \"rule 2\"\nfrom = \"10.0.0.0/8\"\n[[rule]]",
            "rule 1 (\"rule 2\"): name: \"rule 2\" is taken; rules need names of their own",
        ),
    ] {
        assert_eq!(refusal(&format!("[[rule]]\n{rule}")), expected);
    }
}

#[test]
fn a_word_that_makes_no_sense_is_refused_with_its_line() {
    for (rule, expected) in [
        (
            "from = \"10.1.0.5/8\"",
            "10.1.0.5/8 has bits set beyond its length; write 10.0.0.0/8, or 10.1.0.5 for that one client",
        ),
        (
            "from = [\"10.0.0.0/8\", \"office\"]",
            "\"office\" is not an IP address",
        ),
        ("from = []", "an empty list; leave it out instead"),
        ("mirrors = []", "an empty list; leave it out instead"),
        ("from = 10", "expected a text or a list of texts"),
        (
            "when = { days = \"mon-fry\" }",
            "\"mon-fry\" names no days; expected mon, tue, wed, thu, fri, sat or sun, or a range such as \
             mon-fri",
        ),
        (
            "when = { hours = \"8-18\" }",
            "\"8-18\" names no hours; expected a range such as 08:00-18:00",
        ),
        (
            "when = { hours = [\"08:00-12:00\", \"13:00-13:00\"] }",
            "\"13:00-13:00\" ends when it begins; write 00:00-24:00 for all day",
        ),
        (
            "when = { hours = \"08:00-18:00\", zone = \"Europe/Lodnon\" }",
            "there is no time zone \"Europe/Lodnon\"; did you mean \"Europe/London\"? (expected one such as \
             Europe/London or UTC)",
        ),
        ("form = \"10.0.0.0/8\"", "unknown field `form`"),
        ("when = { day = \"mon\" }", "unknown field `day`"),
    ] {
        let error = unreadable(&format!("[[rule]]\n{rule}"));
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("line 2"), "{error}");
    }
}

#[test]
fn a_rule_that_an_earlier_one_hides_is_refused_and_both_are_named() {
    let hidden = |first: &str, second: &str| {
        compile(&format!(
            "[[rule]]\nname = \"a\"\n{first}\n[[rule]]\n{second}"
        ))
        .map_or_else(|error| error.to_string(), |_| "taken".to_owned())
    };
    let never = "rule 2: it would never apply, since rule 1 (\"a\") always comes first; put it \
                 before, or remove it";
    let office = "when = { days = \"mon-fri\", hours = \"08:00-18:00\" }";
    for (first, second, expected) in [
        ("", "", never),
        ("", "from = \"10.0.0.0/8\"", never),
        ("from = \"10.0.0.0/8\"", "from = \"10.0.0.0/8\"", never),
        (
            "from = \"10.0.0.0/8\"",
            "from = [\"10.1.0.0/16\", \"10.2.0.0/16\"]",
            never,
        ),
        (
            "from = \"10.0.0.0/8\"",
            "from = [\"10.1.0.0/16\", \"11.2.0.0/16\"]",
            "taken",
        ),
        ("from = \"10.1.0.0/16\"", "from = \"10.0.0.0/8\"", "taken"),
        ("from = \"10.0.0.0/8\"", "from = \"fd00::/8\"", "taken"),
        ("from = \"10.0.0.0/8\"", "", "taken"),
        (
            "from = [\"10.0.0.0/9\", \"10.128.0.0/9\"]",
            "from = \"10.0.0.0/8\"",
            never,
        ),
        (office, "", "taken"),
        (office, office, never),
        ("", office, never),
        (
            office,
            "when = { days = \"tue\", hours = [\"09:00-10:00\", \"17:00-18:00\"] }",
            never,
        ),
        (
            office,
            "when = { days = \"tue\", hours = \"17:00-18:01\" }",
            "taken",
        ),
        (
            office,
            "when = { days = \"sat\", hours = \"09:00-10:00\" }",
            "taken",
        ),
        (
            office,
            "when = { days = \"tue\", hours = \"09:00-10:00\", zone = \"Asia/Tokyo\" }",
            "taken",
        ),
        (
            "when = { days = [\"mon-wed\", \"thu-sun\"], zone = \"Asia/Tokyo\" }",
            "when = { days = \"tue\" }",
            never,
        ),
    ] {
        assert_eq!(
            hidden(first, second),
            expected,
            "{first:?} before {second:?}"
        );
    }
    assert_eq!(
        refusal(
            "[[rule]]\nfrom = \"10.0.0.0/9\"\n[[rule]]\nfrom = \"10.128.0.0/9\"\n
             [[rule]]\nfrom = [\"10.1.0.0/16\", \"10.200.0.0/16\"]"
        ),
        "rule 3: it would never apply, since rule 1 or rule 2 always comes first; put it before, or \
         remove it"
    );
}

#[test]
fn a_prefix_that_changes_nothing_becomes_no_diversion() {
    let rules = rules(
        "[[rule]]\nfrom = \"10.0.0.0/8\"\n
         [[rule]]\nfrom = [\"10.1.0.0/16\", \"11.0.0.0/8\"]",
    );
    assert_eq!(
        groups(&rules),
        ["everyone: ", "rule 1: 10.0.0.0/8", "rule 2: 11.0.0.0/8"]
    );
}

#[test]
fn all_addresses_of_a_family_are_more_specific_than_everyone() {
    let rules = rules(
        "[[rule]]\nfrom = [\"0.0.0.0/1\", \"fd00::/8\"]\nmirrors = \"paris\"\n
         [[rule]]\nfrom = [\"0.0.0.0/0\", \"::/0\"]",
    );
    assert_eq!(
        groups(&rules),
        [
            "everyone: ",
            "rule 1: 0.0.0.0/1 fd00::/8",
            "rule 2: 128.0.0.0/1 ::/1 8000::/1"
        ]
    );
}

#[test]
fn too_many_prefixes_are_refused() {
    // Every other address, so that no two can be joined.
    let from = |count: u32| RuleConfig {
        from: (0..count)
            .map(|n| ClientPrefix::from(IpAddr::from((0x0a00_0000 + 2 * n).to_be_bytes())))
            .collect(),
        ..RuleConfig::default()
    };
    let most = Rules::compile(&[from(4096)], &mirrors(), None).expect("as many as allowed");
    assert_eq!(most.groups()[1].prefixes.len(), 4096);
    assert_eq!(
        Rules::compile(&[from(4097)], &mirrors(), None)
            .expect_err("one more")
            .to_string(),
        "rule 1: its clients are 4097 prefixes; 4096 are the most for one rule"
    );
}

/// The grouping against direct evaluation of the rules, for every client of a small world.
mod every_client {
    use std::io::Write;

    use jiff::civil::Weekday;
    use proptest::prelude::*;

    use super::*;

    /// 10.0.0.0/25 and fd00::/121.
    fn world() -> impl Iterator<Item = IpAddr> {
        (0..128).flat_map(|last| {
            [
                IpAddr::from([10, 0, 0, last]),
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
            ]
        })
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (0u8..128, 0u8..=7, any::<bool>()).prop_map(|(last, shorter, v4)| {
            let network = if v4 {
                IpNet::new(IpAddr::from([10, 0, 0, last]), 32 - shorter)
            } else {
                let address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]);
                IpNet::new(address, 128 - shorter)
            };
            network.unwrap().trunc()
        })
    }

    /// A rule as the oracle sees it.
    #[derive(Debug, Clone)]
    struct Plain {
        from: Vec<IpNet>,
        places: Vec<char>,
        /// Hours of the day, in UTC, not over midnight; days.
        when: Option<(u32, u32, bool)>,
    }

    fn rule() -> impl Strategy<Value = Plain> {
        (
            prop::collection::vec(prefix(), 0..4),
            prop::collection::vec(prop::sample::select(vec!['a', 'b']), 0..3),
            prop::option::of((0u32..12, 12u32..=24, any::<bool>())),
        )
            .prop_map(|(from, places, when)| Plain { from, places, when })
    }

    impl Plain {
        fn config(&self) -> RuleConfig {
            RuleConfig {
                from: self.from.iter().map(|n| ClientPrefix::from(*n)).collect(),
                location: self.places.iter().map(char::to_string).collect(),
                when: self.when.map(|(start, end, workdays)| WhenConfig {
                    days: vec![
                        if workdays { "mon-fri" } else { "mon-sun" }
                            .parse()
                            .unwrap(),
                    ],
                    hours: vec![format!("{start}:00-{end}:00").parse().unwrap()],
                    ..WhenConfig::default()
                }),
                ..RuleConfig::default()
            }
        }

        fn has(&self, client: IpAddr, table: &[(IpNet, char)]) -> bool {
            let place = table
                .iter()
                .filter(|(prefix, _)| prefix.contains(&client))
                .max_by_key(|(prefix, _)| prefix.prefix_len())
                .map(|(_, place)| *place);
            (self.from.is_empty() || self.from.iter().any(|prefix| prefix.contains(&client)))
                && (self.places.is_empty() || place.is_some_and(|p| self.places.contains(&p)))
        }

        fn holds(&self, now: Timestamp) -> bool {
            let now = now.to_zoned(jiff::tz::TimeZone::UTC);
            let hour = u32::from(now.hour().unsigned_abs());
            let weekend = matches!(now.weekday(), Weekday::Saturday | Weekday::Sunday);
            self.when.is_none_or(|(start, end, workdays)| {
                (start..end).contains(&hour) && !(workdays && weekend)
            })
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn has_the_rule_that_direct_evaluation_gives_it(
            plain in prop::collection::vec(rule(), 0..6),
            table in prop::collection::btree_map(
                prefix(), prop::sample::select(vec!['a', 'b', 'c']), 0..8),
        ) {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            for (prefix, place) in &table {
                writeln!(file, "{prefix},{place}").unwrap();
            }
            let locations = Locations::read(file.path(), ["a", "b"]).unwrap();
            let table: Vec<(IpNet, char)> = table.into_iter().collect();
            let configs: Vec<RuleConfig> = plain.iter().map(Plain::config).collect();
            // Two days, one of them of a weekend, hour by hour.
            let times: Vec<Timestamp> = (0..48)
                .map(|hour| at("2026-12-04T00:00:00Z") + jiff::SignedDuration::from_hours(hour))
                .collect();
            let first = |client, now| {
                plain.iter().position(|rule| rule.has(client, &table) && rule.holds(now))
            };
            match Rules::compile(&configs, &mirrors(), Some(&locations)) {
                Ok(rules) => {
                    for client in world() {
                        let group = group_of(&rules, client);
                        for now in &times {
                            let rule = rules.bounds(group, *now).rule.map(|r| r.number - 1);
                            prop_assert_eq!(rule, first(client, *now), "{} at {}", client, now);
                        }
                    }
                    for (i, group) in rules.groups().iter().enumerate() {
                        for pair in times.windows(2) {
                            let (now, then) = (rules.bounds(group, pair[0]), rules.bounds(group, pair[1]));
                            prop_assert_eq!(now.rule != then.rule, now.until == Some(pair[1]));
                        }
                        prop_assert_eq!(group.prefixes.is_empty(), i == 0);
                        for other in &rules.groups()[..i] {
                            prop_assert!(group.name != other.name, "{} twice", group.name);
                            prop_assert!(group.prefixes.iter().all(|p| !other.prefixes.contains(p)));
                        }
                    }
                }
                Err(RuleError { rule, problem: RuleProblem::NeverApplies { .. } }) => {
                    for client in world() {
                        for now in &times {
                            prop_assert_ne!(first(client, *now), Some(rule.number - 1));
                        }
                    }
                }
                Err(RuleError { rule, problem: RuleProblem::NoClients }) => {
                    let rule = &plain[rule.number - 1];
                    prop_assert!(world().all(|client| !rule.has(client, &table)));
                }
                Err(RuleError { rule, problem: RuleProblem::UnknownLocation { location, .. } }) => {
                    let place = location.chars().next().unwrap();
                    prop_assert!(plain[rule.number - 1].places.contains(&place));
                    let nobody = Plain { from: vec![], places: vec![place], when: None };
                    prop_assert!(world().all(|client| !nobody.has(client, &table)));
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
