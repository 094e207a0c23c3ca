//! The printed plan, read as an operator reads it.

use super::super::host::Host as Facts;
use super::*;

const RAW: Egress = Egress::Raw { mark: 0x5348 };

fn facts() -> Facts {
    Facts {
        ipv6: false,
        forwarding: [Family::V4].into(),
        strict_reverse_path: false,
        links: vec![Interface {
            index: 2,
            name: "eth0".to_owned(),
        }],
        addresses: ["10.1.0.1/32".parse().unwrap()].into(),
    }
}

fn settings() -> Settings {
    Settings::new("shunt0", vec![ip("10.9.9.9")])
}

fn plan(settings: Settings, facts: Facts) -> Plan {
    Plan::new(settings, facts).unwrap()
}

fn without_links() -> Facts {
    Facts {
        links: Vec::new(),
        ..facts()
    }
}

#[test]
fn services_over_a_tun() {
    let mut plan = plan(settings(), without_links());
    assert_eq!(
        plan.to_string(),
        "ip link set dev shunt0 mtu 1500\n\
         ip link set dev shunt0 up\n\
         sysctl -w net.ipv4.conf.shunt0.rp_filter=2\n\
         sysctl -w net.ipv4.conf.shunt0.accept_local=1\n\
         ip address add 192.0.0.8/32 dev shunt0 scope host\n\
         ip -4 route replace 10.9.9.9/32 dev shunt0 table 3353 protocol 83\n\
         ip -4 rule add priority 3357 nop protocol 83\n\
         ip -4 rule add priority 3353 iif shunt0 goto 3357 protocol 83\n\
         ip -4 rule add priority 3353 from 10.9.9.9/32 goto 3357 protocol 83\n\
         ip -4 rule add priority 3355 iif lo goto 3357 protocol 83\n\
         ip -4 rule add priority 3354 to 10.9.9.9/32 lookup 3353 protocol 83\n\
         ip -4 rule add priority 3354 iif lo ipproto 6 lookup 3353 protocol 83\n\
         ip -4 rule add priority 3354 iif lo ipproto 17 lookup 3353 protocol 83\n\
         ip -4 rule add priority 3354 iif lo ipproto 1 lookup 3353 protocol 83\n\
         ip -4 rule add priority 3356 lookup 3353 protocol 83\n"
    );
    let steps = plan
        .add_service(ip("10.2.0.2"), Some([10, 2, 0, 1].into()))
        .unwrap();
    assert_eq!(
        steps.iter().map(Step::command).collect::<Vec<_>>(),
        ["ip -4 route replace 10.2.0.2/32 dev shunt0 table 3353 protocol 83 src 10.2.0.1"]
    );
    assert_eq!(
        plan.commands_for_remove(ip("10.2.0.2")),
        ["ip -4 route del 10.2.0.2/32 dev shunt0 table 3353 protocol 83 src 10.2.0.1"]
    );
}

#[test]
fn where_there_is_ipv6_the_tun_is_kept_from_reporting_multicast_groups() {
    let facts = Facts {
        ipv6: true,
        ..without_links()
    };
    let printed = plan(settings(), facts).to_string();
    let link = "ip link set dev shunt0 down multicast off mtu 1279\n\
                ip link set dev shunt0 mtu 1500\n\
                sysctl -w net.ipv6.conf.shunt0.addr_gen_mode=1\n\
                ip link set dev shunt0 up\n";
    assert!(printed.starts_with(link), "{printed}");
}

#[test]
fn a_strict_reverse_path_filter_makes_answers_come_too() {
    let strict = Facts {
        strict_reverse_path: true,
        ..without_links()
    };
    let mut services = plan(settings(), strict.clone());
    assert!(
        services
            .to_string()
            .contains("ip -4 route replace default dev shunt0 table 3354 protocol 83\n")
    );
    let steps = services.add_service(ip("10.2.0.2"), None).unwrap();
    assert_eq!(
        steps.iter().map(Step::command).collect::<Vec<_>>(),
        [
            "ip -4 rule add priority 3356 from 10.2.0.2/32 lookup 3354 protocol 83",
            "ip -4 route replace 10.2.0.2/32 dev shunt0 table 3353 protocol 83",
        ]
    );
    let net = "10.1.0.0/24".parse().unwrap();
    let clients = plan(
        Settings {
            clients: vec![net],
            ..settings()
        },
        strict,
    );
    let printed = clients.to_string();
    let rules: Vec<_> = printed
        .lines()
        .filter(|line| line.contains("10.1.0.0/24"))
        .collect();
    assert_eq!(
        rules,
        [
            "ip -4 rule add priority 3356 from 10.1.0.0/24 lookup 3354 protocol 83",
            "ip -4 rule add priority 3356 to 10.1.0.0/24 lookup 3354 protocol 83",
        ]
    );
}

#[test]
fn services_with_raw_egress() {
    let mut plan = plan(
        Settings {
            egress: RAW,
            ..settings()
        },
        facts(),
    );
    let printed = plan.to_string();
    assert_eq!(
        printed.matches("rp_filter").count(),
        0,
        "nothing is written to the TUN"
    );
    let rules = "ip -4 rule add priority 3357 nop protocol 83\n\
                 ip -4 rule add priority 3353 fwmark 0x5348 goto 3357 protocol 83\n\
                 ip -4 rule add priority 3354 to 10.9.9.9/32 lookup 3353 protocol 83\n\
                 ip -4 rule add priority 3354 iif lo ipproto 6 lookup 3353 protocol 83\n\
                 ip -4 rule add priority 3354 iif lo ipproto 17 lookup 3353 protocol 83\n\
                 ip -4 rule add priority 3354 iif lo ipproto 1 lookup 3353 protocol 83\n\
                 tc qdisc add dev eth0 clsact\n\
                 tc filter add dev eth0 ingress pref 4377 protocol ip u32 match ip dst \
                 10.9.9.9/32 action mirred egress redirect dev shunt0\n";
    assert!(printed.ends_with(rules), "{printed}");

    let to_service = "tc filter add dev eth0 ingress pref 4378 protocol ip u32 match ip dst \
                      10.2.0.2/32 action mirred egress redirect dev shunt0";
    let steps = plan.add_service(ip("10.2.0.2"), None).unwrap();
    assert_eq!(steps.last().unwrap().command(), to_service);
    assert_eq!(
        plan.commands_for_remove(ip("10.2.0.2"))[0],
        "tc filter del dev eth0 ingress pref 4378 protocol ip u32"
    );
}

#[test]
fn client_networks_with_raw_egress() {
    let net = "10.1.0.0/24".parse().unwrap();
    let mut plan = plan(
        Settings {
            egress: RAW,
            clients: vec![net],
            ..settings()
        },
        facts(),
    );
    let printed = plan.to_string();
    let filters: Vec<_> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("tc filter add dev eth0 ingress pref "))
        .collect();
    assert_eq!(
        filters,
        [
            "3353 protocol ip u32 match ip dst 10.1.0.1/32 classid ffff:1",
            "3354 protocol ip u32 match ip dst 224.0.0.0/4 classid ffff:1",
            "3355 protocol ip u32 match ip dst 255.255.255.255/32 classid ffff:1",
            "4377 protocol ip u32 match ip dst 10.9.9.9/32 action mirred egress redirect dev shunt0",
            "4378 protocol ip u32 match ip src 10.1.0.0/24 action mirred egress redirect dev shunt0",
        ]
    );
    assert_eq!(
        plan.add_service(ip("10.2.0.2"), None).unwrap(),
        [],
        "it comes anyway"
    );
}

#[test]
fn preferences_are_kept_reused_and_limited() {
    let mut plan = plan(
        Settings {
            egress: RAW,
            ..settings()
        },
        facts(),
    );
    let preference = |steps: &[Step]| match steps.last() {
        Some(Step::Filter(filter)) => filter.preference,
        other => panic!("no filter: {other:?}"),
    };
    let service = |n: u32| IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a02_0000 + n));
    let room = u32::from(Settings::PREFERENCES) - 1024 - 1;
    for n in 0..room {
        let steps = plan.add_service(service(n), None).unwrap();
        assert_eq!(u32::from(preference(&steps)), 4378 + n);
    }
    let refused = plan.add_service(service(room), None);
    assert!(
        matches!(refused, Err(RoutesError::TooManyFilters { limit: 3072 })),
        "{refused:?}"
    );
    plan.remove_service(service(5));
    let steps = plan.add_service(service(room), None).unwrap();
    assert_eq!(preference(&steps), 4378 + 5);
}

#[test]
fn an_interfaces_name_is_one_word_of_the_shell() {
    let links = vec![Interface {
        index: 2,
        name: "a;b'c".to_owned(),
    }];
    let plan = plan(
        Settings {
            egress: RAW,
            ..settings()
        },
        Facts { links, ..facts() },
    );
    assert!(
        plan.to_string()
            .contains(r"tc qdisc add dev 'a;b'\''c' clsact")
    );
}

#[test]
fn repeated_and_untidy_addresses_count_once() {
    let tidy = Settings {
        clients: vec!["10.1.0.0/24".parse().unwrap()],
        ..settings()
    };
    let untidy = Settings {
        proxies: vec![ip("10.9.9.9"), ip("10.9.9.9")],
        clients: vec![
            "10.1.0.7/24".parse().unwrap(),
            "10.1.0.0/24".parse().unwrap(),
        ],
        ..settings()
    };
    assert_eq!(
        plan(untidy, facts()).to_string(),
        plan(tidy, facts()).to_string()
    );
}
