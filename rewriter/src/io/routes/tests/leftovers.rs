//! A run that crashed, and other runs that are alive.

use super::*;

const PROXY: &str = "10.9.9.9";
const SERVICE: &str = "10.2.0.2";

fn settings(egress: Egress) -> Settings {
    Settings {
        egress,
        enable_forwarding: true,
        ..Settings::new("shunt0", vec![ip(PROXY), ip("fd09::9")])
    }
}

const EGRESSES: [Egress; 2] = [Egress::Tun, Egress::Raw { mark: 7 }];

fn make_wire() {
    run("ip link set dev lo up");
    run("ip link add wire1 type veth peer name wire2");
    run("ip link set dev wire1 up");
    run("ip link set dev wire2 up");
}

async fn start(settings: &Settings) -> Routes {
    let mut routes = Routes::set_up(settings.clone()).await.unwrap();
    routes.add_service(ip(SERVICE)).await.unwrap();
    routes.add_service(ip("fd02::2")).await.unwrap();
    routes
}

/// A listing without the numbers that the kernel gives to the TUN and to filters' actions.
fn without_numbers(listing: &str) -> String {
    let keep = |line: &str| match line.split_once(": shunt0") {
        Some((_, rest)) => Some(rest.to_owned()),
        None => (!line.contains("fh ") && !line.contains("index ")).then(|| line.to_owned()),
    };
    listing
        .lines()
        .filter_map(keep)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_crashed_runs_rules_and_filters_are_cleared_away() {
    for egress in EGRESSES {
        in_namespace(|| {
            make_wire();
            let settings = settings(egress);
            let clean = run("ip -4 rule show") + &run("ip -6 rule show");
            let tun = open_tun("shunt0");
            on_runtime(async {
                let routes = start(&settings).await;
                let fresh = listing(&settings);

                // The process dies: the TUN and its routes go, the rules and filters stay.
                drop(routes);
                drop(tun);
                let left = run("ip -4 rule show") + &run("ip -6 rule show");
                assert_ne!(left, clean);

                let _tun = open_tun("shunt0");
                let mut routes = start(&settings).await;
                assert_eq!(
                    without_numbers(&listing(&settings)),
                    without_numbers(&fresh)
                );
                assert!(routes.remove_all().await.is_empty());
                assert_eq!(run("ip -4 rule show") + &run("ip -6 rule show"), clean);
                let filters = run("tc filter show dev wire1 ingress");
                assert_eq!(filters, "", "no filter is left");
            });
        });
    }
}

#[test]
fn a_crashed_runs_numbers_of_another_mode_are_cleared_away_too() {
    in_namespace(|| {
        make_wire();
        let tun = open_tun("shunt0");
        on_runtime(async {
            let raw = Settings {
                clients: vec!["10.1.0.0/24".parse().unwrap()],
                ..settings(EGRESSES[1])
            };
            drop((start(&raw).await, tun));
            assert!(!run("tc filter show dev wire1 ingress").is_empty());
            let _tun = open_tun("shunt0");
            let _routes = start(&settings(Egress::Tun)).await;
            assert_eq!(run("tc filter show dev wire1 ingress"), "");
            let rules = run("ip -4 rule show");
            assert!(!rules.contains("fwmark"), "{rules}");
        });
    });
}

#[test]
fn another_living_daemons_numbers_are_refused_and_left_alone() {
    for egress in EGRESSES {
        in_namespace(|| {
            make_wire();
            let other = Settings {
                tun: "shunt1".to_owned(),
                ..settings(egress)
            };
            let _tuns = (open_tun("shunt0"), open_tun("shunt1"));
            on_runtime(async {
                let _others = start(&other).await;
                let before = listing(&other);
                let refused = Routes::set_up(settings(egress)).await.unwrap_err();
                assert_eq!(
                    refused.to_string(),
                    "table 3353 is in use by shunt1; choose --table"
                );

                let overlapping = Settings {
                    table: 4000,
                    ..settings(egress)
                };
                let refused = Routes::set_up(overlapping).await.unwrap_err();
                assert!(
                    matches!(refused, RoutesError::PriorityInUse { .. }),
                    "{refused}"
                );

                if egress != Egress::Tun {
                    let elsewhere = Settings {
                        table: 4000,
                        priority: 4000,
                        ..settings(egress)
                    };
                    let refused = Routes::set_up(elsewhere).await.unwrap_err();
                    // Whichever of the filtered interfaces is looked at first.
                    let refused = refused.to_string();
                    assert!(
                        refused.starts_with("filter preference 4377 on ")
                            && refused.ends_with(
                                " is in use by shunt1; choose --filter-preference, of which 4096 \
                                 numbers are used"
                            ),
                        "{refused}"
                    );
                }
                assert_eq!(
                    listing(&other),
                    before,
                    "the other's arrangement is untouched"
                );

                // With numbers of its own, the second daemon starts, and ends, beside the first.
                let beside = Settings {
                    table: 4000,
                    priority: 4000,
                    filter_preference: 10_000,
                    proxies: vec![ip("10.9.9.8")],
                    egress: match egress {
                        Egress::Raw { .. } => Egress::Raw { mark: 8 },
                        Egress::Tun => Egress::Tun,
                    },
                    ..settings(egress)
                };
                let mut second = Routes::set_up(beside).await.unwrap();
                assert!(second.remove_all().await.is_empty());
                assert_eq!(listing(&other), before);
            });
        });
    }
}

#[test]
fn another_living_daemons_filters_dont_concern_one_that_needs_none() {
    in_namespace(|| {
        make_wire();
        for family in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            set_parameter(family, "1");
        }
        // The other one lets some packets pass, by filters that don't say whose they are.
        let other = Settings {
            tun: "shunt1".to_owned(),
            clients: vec!["10.1.0.0/24".parse().unwrap()],
            ..settings(EGRESSES[1])
        };
        let ours = Settings {
            table: 4000,
            priority: 4000,
            ..settings(Egress::Tun)
        };
        let _tuns = (open_tun("shunt0"), open_tun("shunt1"));
        on_runtime(async {
            let _others = start(&other).await;
            let before = listing(&other);
            let mut routes = start(&ours).await;
            assert!(routes.refresh().await.is_empty());
            assert!(routes.remove_all().await.is_empty());
            assert_eq!(without_flags(&listing(&other)), without_flags(&before));
        });
    });
}

#[test]
fn an_operators_own_routes_and_rules_are_refused_and_left_alone() {
    in_namespace(|| {
        make_wire();
        let _tun = open_tun("shunt0");
        on_runtime(async {
            run("ip rule add from 192.0.2.1 lookup 3354");
            let refused = Routes::set_up(settings(Egress::Tun)).await.unwrap_err();
            assert_eq!(
                refused.to_string(),
                "table 3354 is in use by a rule that Shunt didn't make; choose --table"
            );
            run("ip rule del from 192.0.2.1 lookup 3354");

            run("ip route add blackhole 192.0.2.1 table 3353");
            let refused = Routes::set_up(settings(Egress::Tun)).await.unwrap_err();
            assert_eq!(
                refused.to_string(),
                "table 3353 is in use by a route that Shunt didn't make; choose --table"
            );
            assert!(run("ip route show table 3353").contains("blackhole"));
        });
    });
}

#[test]
fn a_set_up_that_fails_half_way_leaves_nothing() {
    in_namespace(|| {
        make_wire();
        let _tun = open_tun("shunt0");
        // No queueing discipline can be hooked where the root handle is taken: a `clsact` needs the
        // handle ffff:, which this one has.
        run("tc qdisc add dev wire2 root handle ffff: pfifo");
        let settings = settings(EGRESSES[1]);
        let before = listing(&settings);
        on_runtime(async {
            let refused = Routes::set_up(settings.clone()).await.unwrap_err();
            assert!(
                matches!(refused, RoutesError::HookRefused { .. }),
                "{refused}"
            );
            assert!(
                refused
                    .to_string()
                    .ends_with("see: tc qdisc show dev wire2"),
                "{refused}"
            );
        });
        assert_eq!(without_flags(&listing(&settings)), without_flags(&before));
    });
}

/// A listing without the flags of links, since the TUN has gone up, and stays up.
fn without_flags(listing: &str) -> String {
    let keep = |line: &&str| !line.contains("<") && !line.contains("addr_gen_mode");
    listing.lines().filter(keep).collect::<Vec<_>>().join("\n")
}
