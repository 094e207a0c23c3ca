//! What is printed does what is done: the commands and netlink leave the same listings behind.

use super::*;

const SERVICES: [&str; 3] = ["10.2.0.2", "10.2.0.3", "fd02::2"];

fn each_arrangement(test: impl Fn(&Settings, &str) + Sync) {
    let clients: Vec<_> = ["10.1.0.7/24", "fd01::/64", "fd03::/33"]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect();
    let everyone: Vec<_> = ["0.0.0.0/0", "::/0"]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect();
    for egress in [Egress::Tun, Egress::Raw { mark: 0x5348 }] {
        for clients in [&Vec::new(), &clients, &everyone] {
            for reverse_path in ["0", "1", "2"] {
                let settings = Settings {
                    mtu: 1400,
                    egress,
                    clients: clients.clone(),
                    enable_forwarding: true,
                    ..Settings::new("shunt0", vec![ip("10.9.9.9"), ip("fd09::9")])
                };
                in_namespace(|| {
                    make_wires(reverse_path);
                    test(&settings, reverse_path);
                });
            }
        }
    }
}

fn make_wires(reverse_path: &str) {
    run("ip link set dev lo up");
    run("ip link add wire1 type veth peer name wire2");
    for (wire, address) in [("wire1", "10.1.0.1/24"), ("wire2", "fd02::1/64")] {
        let option = if address.contains(':') { "nodad" } else { "" };
        set_parameter(&format!("net/ipv6/conf/{wire}/addr_gen_mode"), "1");
        run(&format!("ip link set dev {wire} up"));
        run(&format!("ip address add {address} dev {wire} {option}"));
    }
    run("ip route add default via 10.1.0.2");
    for interface in ["all", "default", "wire1", "wire2"] {
        set_parameter(
            &format!("net/ipv4/conf/{interface}/rp_filter"),
            reverse_path,
        );
    }
    run("ip tuntap add dev shunt0 mode tun");
}

/// Runs a printed command. Parameters are written here, so that procps isn't needed.
fn carry_out(command: &str) {
    match command.strip_prefix("sysctl -w ") {
        Some(assignment) => {
            let (name, value) = assignment.split_once('=').unwrap();
            set_parameter(&name.replace('.', "/"), value);
        }
        None => {
            run(command);
        }
    }
}

#[test]
fn commands_and_netlink_leave_the_same_behind() {
    each_arrangement(|settings, reverse_path| {
        // The thread's own namespace is set up over netlink, another one by the commands.
        let (by_netlink, after_netlink) = on_runtime(async {
            let mut routes = Routes::set_up(settings.clone()).await.unwrap();
            for service in SERVICES {
                routes.add_service(ip(service)).await.unwrap();
            }
            routes.remove_service(ip(SERVICES[1])).await.unwrap();
            let made = listing(settings);
            assert!(routes.remove_all().await.is_empty());
            (made, listing(settings))
        });
        in_namespace(|| {
            make_wires(reverse_path);
            let mut plan = on_runtime(Plan::prepare(settings.clone())).unwrap();
            plan.to_string().lines().for_each(carry_out);
            for service in SERVICES {
                let commands = plan.commands_for_add(ip(service)).unwrap();
                commands.iter().for_each(|it| carry_out(it));
            }
            let commands = plan.commands_for_remove(ip(SERVICES[1]));
            commands.iter().for_each(|it| carry_out(it));
            assert_eq!(by_netlink, listing(settings), "{plan}");

            plan.commands_for_removal()
                .iter()
                .for_each(|it| carry_out(it));
            assert_eq!(after_netlink, listing(settings), "{plan}");
        });
    });
}
