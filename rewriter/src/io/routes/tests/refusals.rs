//! What is refused, and with which words.

use super::*;

const PROXY: &str = "10.9.9.9";

fn settings() -> Settings {
    Settings::new("shunt0", vec![ip(PROXY)])
}

async fn refusal(settings: Settings) -> RoutesError {
    Routes::set_up(settings)
        .await
        .expect_err("this must be refused")
}

fn rules() -> String {
    run("ip -4 rule show") + &run("ip -6 rule show")
}

#[test]
fn impossible_settings() {
    let with = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        settings.validate()
    };
    assert!(with(|_| {}).is_ok());
    for name in [
        "",
        "sixteen-letters-",
        "eth0:1",
        "a b",
        "shunt.0",
        "$(reboot)",
    ] {
        let result = Settings::new(name, Vec::new()).validate();
        assert!(
            matches!(result, Err(RoutesError::TunName { .. })),
            "{name}: {result:?}"
        );
    }
    for table in [0, 252, 253, 254, 255, u32::MAX] {
        let result = Settings {
            table,
            ..settings()
        }
        .validate();
        assert!(
            matches!(result, Err(RoutesError::ReservedTable { .. })),
            "{table}: {result:?}"
        );
    }
    for priority in [0, 32_762, u32::MAX] {
        let result = Settings {
            priority,
            ..settings()
        }
        .validate();
        assert!(
            matches!(result, Err(RoutesError::PriorityRange { .. })),
            "{priority}: {result:?}"
        );
    }
    assert!(with(|s| s.priority = 32_761).is_ok());
    assert!(with(|s| s.filter_preference = 61_440).is_ok());
    assert!(matches!(
        with(|s| s.filter_preference = 61_441),
        Err(RoutesError::PreferenceRange { .. })
    ));
    assert!(matches!(
        with(|s| s.egress = Egress::Raw { mark: 0 }),
        Err(RoutesError::ZeroMark)
    ));
}

#[test]
fn the_messages_name_the_numbers_that_are_allowed() {
    let priority = RoutesError::PriorityRange { priority: 32_762 };
    assert!(
        priority.to_string().ends_with("from 1 to 32761"),
        "{priority}"
    );
    let preference = RoutesError::PreferenceRange { preference: 61_441 };
    assert!(
        preference.to_string().ends_with("from 1 to 61440"),
        "{preference}"
    );
}

/// The flags of `shuntd`, as messages may name them.
const FLAGS: [&str; 8] = [
    "--proxy",
    "--client",
    "--egress",
    "--tun",
    "--table",
    "--rule-priority",
    "--filter-preference",
    "--mark",
];

#[test]
fn the_messages_name_flags_that_there_are() {
    let by = || "shunt1".to_owned();
    let named = [
        (RoutesError::TunName { name: by() }, "--tun"),
        (RoutesError::ReservedTable { table: 0 }, "--table"),
        (
            RoutesError::PriorityRange { priority: 0 },
            "--rule-priority",
        ),
        (
            RoutesError::PreferenceRange { preference: 0 },
            "--filter-preference",
        ),
        (RoutesError::ZeroMark, "--mark"),
        (RoutesError::LocalProxy { address: ip(PROXY) }, "--proxy"),
        (RoutesError::TableInUse { table: 7, by: by() }, "--table"),
        (
            RoutesError::PriorityInUse {
                priority: 7,
                by: by(),
            },
            "--rule-priority",
        ),
        (
            RoutesError::PreferenceInUse {
                interface: "wire1".to_owned(),
                preference: 7,
                by: by(),
            },
            "--filter-preference",
        ),
        (RoutesError::TooManyFilters { limit: 7 }, "--client"),
    ];
    for (error, flag) in named {
        let message = error.to_string();
        let mut words = message.split([' ', ',', ';', ':']);
        assert!(words.clone().any(|word| word == flag), "{message}");
        assert!(
            words.all(|word| !word.starts_with("--") || FLAGS.contains(&word)),
            "{message}"
        );
    }
}

#[test]
fn a_tun_that_isnt_there() {
    in_namespace(|| {
        let refused = on_runtime(refusal(settings()));
        assert_eq!(refused.to_string(), "there is no interface shunt0");
    });
}

#[test]
fn a_proxy_address_of_the_host_itself() {
    in_namespace(|| {
        run("ip link set dev lo up");
        run("ip address add 10.9.9.9/32 dev lo");
        let _queue = open_tun("shunt0");
        let before = rules();
        let refused = on_runtime(refusal(settings()));
        assert!(
            matches!(refused, RoutesError::LocalProxy { .. }),
            "{refused}"
        );
        assert!(refused.to_string().starts_with(
            "the proxy address 10.9.9.9 belongs to this host, which would take the mirrors' \
             replies for itself"
        ));
        assert_eq!(rules(), before);
        let printed = on_runtime(Plan::prepare(settings()));
        assert!(matches!(printed, Err(RoutesError::LocalProxy { .. })));
    });
}

#[test]
fn what_is_local() {
    in_namespace(|| {
        run("ip link set dev lo up");
        let _host = super::Host::new("wire1", &["10.1.0.1/24", "fd01::1/64"], &[]);
        run("ip address add 10.1.0.1/24 dev wire1");
        run("ip address add fd01::1/64 dev wire1 nodad");
        run("ip route add local 10.6.0.0/16 dev lo");
        on_runtime(async {
            for address in [
                "10.1.0.1",
                "127.0.0.1",
                "10.6.1.2",
                "10.1.0.255",
                "fd01::1",
                "::1",
            ] {
                assert!(is_local(ip(address)).await.unwrap(), "{address}");
            }
            for address in ["10.1.0.2", "192.0.2.1", "fd01::2", "2001:db8::1"] {
                assert!(!is_local(ip(address)).await.unwrap(), "{address}");
            }
        });
    });
}

#[test]
fn a_host_that_doesnt_forward_unless_it_may_be_told_to() {
    in_namespace(|| {
        set_parameter("net/ipv4/ip_forward", "0");
        set_parameter("net/ipv6/conf/all/forwarding", "0");
        let _queue = open_tun("shunt0");
        on_runtime(async {
            let before = rules();
            let refused = refusal(settings()).await;
            assert_eq!(
                refused.to_string(),
                "this host doesn't forward IPv4 packets: use --enable-forwarding or --egress raw, or \
                 run: sysctl -w net.ipv4.ip_forward=1"
            );
            assert_eq!(rules(), before, "nothing was changed");

            // The operator follows the advice. IPv6 isn't asked for until there is a service.
            set_parameter("net/ipv4/ip_forward", "1");
            let mut routes = Routes::set_up(settings()).await.unwrap();
            let refused = routes.add_service(ip("fd02::2")).await.unwrap_err();
            assert_eq!(
                refused.to_string(),
                "this host doesn't forward IPv6 packets: use --enable-forwarding or --egress raw, or \
                 run: sysctl -w \
                 net.ipv6.conf.all.forwarding=1"
            );
            set_parameter("net/ipv6/conf/all/forwarding", "1");
            routes.add_service(ip("fd02::2")).await.unwrap();
            routes.remove_all().await;

            set_parameter("net/ipv4/ip_forward", "0");
            let may = Settings {
                enable_forwarding: true,
                ..settings()
            };
            let mut routes = Routes::set_up(may).await.unwrap();
            assert_eq!(parameter("net/ipv4/ip_forward"), "1");
            routes.remove_all().await;
            assert_eq!(parameter("net/ipv4/ip_forward"), "1", "it stays on");
        });
    });
}

#[test]
fn a_service_that_is_a_proxy_address() {
    in_namespace(|| {
        let _queue = open_tun("shunt0");
        let may = Settings {
            enable_forwarding: true,
            ..settings()
        };
        on_runtime(async {
            let mut routes = Routes::set_up(may).await.unwrap();
            let refused = routes.add_service(ip(PROXY)).await.unwrap_err();
            assert_eq!(
                refused.to_string(),
                "10.9.9.9 is a proxy address, so it can't be a service"
            );
        });
    });
}

#[test]
fn ipv6_where_there_is_none() {
    in_namespace(|| {
        let _queue = open_tun("shunt0");
        set_parameter("net/ipv6/conf/all/disable_ipv6", "1");
        let may = Settings {
            enable_forwarding: true,
            ..settings()
        };
        on_runtime(async {
            let wants_ipv6 = Settings {
                proxies: vec![ip("fd09::9")],
                ..may.clone()
            };
            let refused = refusal(wants_ipv6).await;
            assert!(
                matches!(refused, RoutesError::FamilyUnavailable { .. }),
                "{refused}"
            );

            // IPv4 works without it.
            let before = run("ip -6 rule show");
            let mut routes = Routes::set_up(may).await.unwrap();
            assert_eq!(run("ip -6 rule show"), before);
            routes.add_service(ip("10.2.0.2")).await.unwrap();
            let refused = routes.add_service(ip("fd02::2")).await.unwrap_err();
            assert!(
                matches!(refused, RoutesError::FamilyUnavailable { .. }),
                "{refused}"
            );
        });
    });
}
