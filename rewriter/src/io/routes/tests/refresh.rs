//! What is lost while the daemon runs, and is made up for.

use std::error::Error;

use super::*;

const PROXY: &str = "10.9.9.9";
const SERVICE: &str = "10.2.0.2";
const SERVICE_V6: &str = "fd02::2";

fn settings(egress: Egress) -> Settings {
    Settings {
        egress,
        enable_forwarding: true,
        ..Settings::new("shunt0", vec![ip(PROXY), ip("fd09::9")])
    }
}

const EGRESSES: [Egress; 2] = [Egress::Tun, Egress::Raw { mark: 7 }];

/// A wire to two subnets, and reverse-path filters that are all off.
fn make_wire() {
    run("ip link set dev lo up");
    run("ip link add wire1 type veth peer name wire2");
    for wire in ["wire1", "wire2"] {
        set_parameter(&format!("net/ipv6/conf/{wire}/addr_gen_mode"), "1");
        run(&format!("ip link set dev {wire} up"));
    }
    run("ip address add 10.1.0.1/24 dev wire1");
    run("ip address add fd01::1/64 dev wire1 nodad");
    reverse_path_filters("0");
}

fn reverse_path_filters(value: &str) {
    for interface in ["all", "default", "wire1", "wire2"] {
        set_parameter(&format!("net/ipv4/conf/{interface}/rp_filter"), value);
    }
}

async fn start(settings: &Settings) -> Routes {
    let mut routes = Routes::set_up(settings.clone()).await.unwrap();
    routes.add_service(ip(SERVICE)).await.unwrap();
    routes.add_service(ip(SERVICE_V6)).await.unwrap();
    routes
}

fn service(number: u32) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a02_0100 + number))
}

/// A listing that doesn't depend on the order of what is equal in rank, nor on numbers that the
/// kernel gives to what is made anew.
fn sorted(listing: &str) -> Vec<&str> {
    let mut lines: Vec<_> = listing
        .lines()
        .filter(|it| !it.contains("index ") && !it.contains(" fh "))
        .collect();
    lines.sort_unstable();
    lines
}

/// Whether the wanted arrangement is there once more after `damage` and one refresh.
fn heals(egress: Egress, damage: impl Fn() + Sync) {
    in_namespace(|| {
        make_wire();
        let _queue = open_tun("shunt0");
        let settings = settings(egress);
        on_runtime(async {
            let mut routes = start(&settings).await;
            let whole = listing(&settings);
            damage();
            assert_ne!(
                sorted(&listing(&settings)),
                sorted(&whole),
                "something is lost"
            );
            assert_eq!(messages(&routes.refresh().await), [""; 0]);
            assert_eq!(sorted(&listing(&settings)), sorted(&whole));

            // What is whole stays as it is, to the letter.
            let healed = listing(&settings);
            for _ in 0..3 {
                assert_eq!(messages(&routes.refresh().await), [""; 0]);
            }
            assert_eq!(listing(&settings), healed);
            assert!(routes.remove_all().await.is_empty());
            assert_eq!(run("ip -4 rule show").matches("3353").count(), 0);
            assert_eq!(run("ip -6 rule show").matches("3353").count(), 0);
        });
    });
}

fn messages(errors: &[RoutesError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn routes_that_went_with_a_link_that_was_down_for_a_moment_come_back() {
    for egress in EGRESSES {
        heals(egress, || {
            run("ip link set dev shunt0 down");
            run("ip link set dev shunt0 up");
        });
    }
}

#[test]
fn routes_that_somebody_flushed_come_back() {
    for egress in EGRESSES {
        for flush in [
            "ip -4 route flush table 3353",
            "ip -6 route flush table 3353",
            "ip -6 route del fd02::2 table 3353",
        ] {
            heals(egress, || {
                run(flush);
            });
        }
    }
    // With the last IPv4 address go all IPv4 routes.
    heals(Egress::Tun, || {
        run("ip address flush dev shunt0");
    });
}

#[test]
fn rules_and_parameters_that_somebody_removed_come_back() {
    for egress in EGRESSES {
        heals(egress, || {
            run("ip -4 rule del priority 3357");
            run("ip -6 rule del priority 3354");
        });
        heals(egress, || {
            for (family, default) in [("-4", true), ("-6", false)] {
                run(&format!("ip {family} rule flush"));
                run(&format!("ip {family} rule add priority 32766 lookup main"));
                if default {
                    run(&format!(
                        "ip {family} rule add priority 32767 lookup default"
                    ));
                }
            }
        });
    }
    heals(Egress::Tun, || {
        set_parameter("net/ipv4/conf/shunt0/rp_filter", "1")
    });
}

#[test]
fn filters_that_somebody_removed_come_back() {
    heals(EGRESSES[1], || {
        run("tc filter del dev wire1 ingress");
    });
    heals(EGRESSES[1], || {
        run("tc filter del dev wire2 ingress pref 4378");
    });
}

#[test]
fn a_link_that_is_down_is_reported_once_and_left_down() {
    in_namespace(|| {
        make_wire();
        let _queue = open_tun("shunt0");
        let settings = settings(Egress::Tun);
        on_runtime(async {
            let mut routes = start(&settings).await;
            let whole = listing(&settings);
            for round in 0..2 {
                run("ip link set dev shunt0 down");
                let down = "shunt0 is down, so no packets come to it; to go on, run: \
                            ip link set dev shunt0 up";
                assert_eq!(messages(&routes.refresh().await), [down], "{round}");
                for _ in 0..3 {
                    assert_eq!(messages(&routes.refresh().await), [""; 0], "not again");
                }
                assert!(run("ip link show dev shunt0").contains("state DOWN"));
                let refused = routes.add_service(ip("10.2.0.7")).await.unwrap_err();
                assert_eq!(refused.to_string(), down);

                // Meanwhile a service goes and comes.
                routes.remove_service(ip(SERVICE)).await.unwrap();
                run("ip link set dev shunt0 up");
                assert!(routes.refresh().await.is_empty());
                routes.add_service(ip(SERVICE)).await.unwrap();
                assert_eq!(sorted(&listing(&settings)), sorted(&whole));
            }
        });
    });
}

#[test]
fn with_very_many_services_all_come_back_at_once_and_a_single_one_in_its_turn() {
    in_namespace(|| {
        make_wire();
        let _queue = open_tun("shunt0");
        let settings = settings(Egress::Tun);
        on_runtime(async {
            let mut routes = start(&settings).await;
            for number in 0..200 {
                routes.add_service(service(number)).await.unwrap();
            }
            let whole = listing(&settings);
            run("ip route flush table 3353");
            assert!(routes.refresh().await.is_empty());
            assert_eq!(sorted(&listing(&settings)), sorted(&whole));

            run(&format!("ip route del {} table 3353", service(150)));
            for _ in 0..10 {
                assert!(routes.refresh().await.is_empty());
            }
            assert_eq!(sorted(&listing(&settings)), sorted(&whole));
        });
    });
}

#[test]
fn answers_come_too_when_a_reverse_path_filter_becomes_strict() {
    let net = || vec!["10.1.0.0/24".parse().unwrap()];
    for clients in [Vec::new(), net()] {
        in_namespace(|| {
            make_wire();
            let _queue = open_tun("shunt0");
            let settings = Settings {
                clients: clients.clone(),
                ..settings(Egress::Tun)
            };
            on_runtime(async {
                let mut routes = start(&settings).await;
                let loose = listing(&settings);

                // What a start with strict filters would make.
                set_parameter("net/ipv4/conf/wire2/rp_filter", "1");
                assert!(routes.refresh().await.is_empty());
                let strict = listing(&settings);
                let answers = if clients.is_empty() {
                    "from 10.2.0.2 lookup 3354"
                } else {
                    "from all to 10.1.0.0/24 lookup 3354"
                };
                assert!(strict.contains(answers), "{strict}");
                assert!(strict.contains("default dev shunt0"), "{strict}");
                routes.add_service(ip("10.2.0.3")).await.unwrap();
                routes.remove_service(ip("10.2.0.3")).await.unwrap();
                assert_eq!(listing(&settings), strict);

                set_parameter("net/ipv4/conf/wire2/rp_filter", "2");
                assert!(routes.refresh().await.is_empty());
                assert_eq!(listing(&settings), loose);
                assert!(routes.remove_all().await.is_empty());

                set_parameter("net/ipv4/conf/wire2/rp_filter", "1");
                let _routes = start(&settings).await;
                assert_eq!(sorted(&listing(&settings)), sorted(&strict));
            });
        });
    }
}

#[test]
fn the_kernel_itself_sends_nothing_to_the_tun() {
    for egress in EGRESSES {
        in_namespace(|| {
            make_wire();
            // Routers report that they are routers, and hosts that become some, too.
            for forwards in ["1", "0"] {
                set_parameter("net/ipv6/conf/all/forwarding", forwards);
                let mut queue = open_tun("shunt0");
                on_runtime(async {
                    let mut routes = start(&settings(egress)).await;
                    // A report is repeated within a second (RFC 9777, section 9.11).
                    let patience = Duration::from_millis(1500);
                    assert!(receive(&mut queue, patience).is_none());
                    for forwards in ["0", "1"] {
                        set_parameter("net/ipv6/conf/all/forwarding", forwards);
                    }
                    run("ip link set dev shunt0 down");
                    run("ip link set dev shunt0 up");
                    assert!(routes.refresh().await.is_empty());
                    assert!(receive(&mut queue, patience).is_none());
                    routes.remove_all().await;
                });
            }
        });
    }
}

/// Each message includes its cause. It must not be there twice when a caller prints the whole
/// chain, as `{:#}` does with anyhow.
#[test]
fn a_message_includes_its_cause_once() {
    use crate::io::{raw::RawError, self_test::Skipped, tun::TunError};
    use nix::errno::Errno;
    use std::io;

    let kernel = || io::Error::from_raw_os_error(nix::libc::EPERM);
    let errors: [Box<dyn Error>; 12] = [
        Box::new(RoutesError::Netlink {
            doing: "ip rule add".to_owned(),
            error: kernel(),
        }),
        Box::new(RoutesError::Sysctl {
            path: "net/ipv4/ip_forward".into(),
            error: kernel(),
        }),
        Box::new(RoutesError::HookRefused {
            interface: "wire1".to_owned(),
            error: kernel(),
        }),
        Box::new(RoutesError::FiltersUnsupported {
            interface: "wire1".to_owned(),
            command: "tc filter add".to_owned(),
            error: kernel(),
        }),
        Box::new(TunError::NoDriver(Errno::EPERM)),
        Box::new(TunError::NotPermitted(Errno::EPERM)),
        Box::new(TunError::Kernel {
            step: "create",
            name: "shunt0".to_owned(),
            errno: Errno::EPERM,
        }),
        Box::new(RawError::NotPermitted(Errno::EPERM)),
        Box::new(RawError::Kernel {
            step: "mark",
            errno: Errno::EPERM,
        }),
        Box::new(Skipped::Namespace(kernel())),
        Box::new(Skipped::Tun(TunError::NotPermitted(Errno::EPERM))),
        Box::new(Skipped::Sysctl {
            name: "net/ipv4/ip_forward",
            error: kernel(),
        }),
    ];
    for error in errors {
        let message = error.to_string();
        let causes = message.matches("os error 1").count() + message.matches("EPERM").count();
        assert_eq!(causes, 1, "{message}");
        assert!(error.source().is_none(), "{message}");
    }
}
