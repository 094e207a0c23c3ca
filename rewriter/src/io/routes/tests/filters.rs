//! Raw egress: packets reach the TUN by traffic filters, though the host forwards nothing.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::socket::{setsockopt, sockopt};

use super::*;

const MARK: u32 = 0x5348;
const PROXY: &str = "10.9.9.9";
const SERVICE: &str = "10.2.0.2";
const SERVICE_V6: &str = "fd02::2";

fn settings() -> Settings {
    Settings {
        egress: Egress::Raw { mark: MARK },
        ..Settings::new("shunt0", vec![ip(PROXY), ip("fd09::9")])
    }
}

/// A client; the rewriter's host forwards nothing and has no way to the service.
fn client() -> super::Host {
    run("ip link set dev lo up");
    super::Host::new(
        "wire1",
        &["10.1.0.1/24", "fd01::1/64"],
        &["10.1.0.2/24", "fd01::2/64"],
    )
}

/// Sends one buffer as datagrams of at most `segment` bytes, cut as late as possible.
fn send_super_packet(target: &str, len: usize, segment: i32) {
    let target = SocketAddr::new(ip(target), 9);
    let socket = UdpSocket::bind(if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    })
    .unwrap();
    setsockopt(&socket, sockopt::UdpGsoSegment, &segment).unwrap();
    assert_eq!(socket.send_to(&vec![0x5a; len], target).unwrap(), len);
}

/// The destination and the payload's length of a complete UDP packet; panics if it isn't one.
fn complete_datagram(frame: &Frame) -> (IpAddr, usize) {
    let header = frame.header();
    assert_eq!(
        (header.flags, header.gso_type),
        (0, 0),
        "nothing is left undone: {header:?}"
    );
    let packet = SlicedPacket::from_ip(frame.packet()).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("not UDP: {packet:?}");
    };
    let carried = udp.checksum();
    let (destination, computed) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let computed = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
            (IpAddr::V4(header.destination.into()), computed)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let computed = udp.to_header().calc_checksum_ipv6(&header, udp.payload());
            (IpAddr::V6(header.destination.into()), computed)
        }
        other => panic!("not IP: {other:?}"),
    };
    assert_eq!(carried, computed.unwrap(), "the checksum is complete");
    (destination, udp.payload().len())
}

fn datagrams(queue: &mut TunQueue) -> Vec<(IpAddr, usize)> {
    receive_all(queue).iter().map(complete_datagram).collect()
}

/// Takes away what came so far.
fn drain(queue: &mut TunQueue) {
    receive_all(queue);
}

#[test]
fn packets_arrive_whole_cut_and_without_link_header_though_nothing_is_forwarded() {
    in_namespace(|| {
        let client = client();
        set_parameter("net/ipv4/ip_forward", "0");
        set_parameter("net/ipv6/conf/all/forwarding", "0");
        set_parameter("net/ipv4/conf/all/rp_filter", "1");
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(settings()).await.unwrap();
            for service in [SERVICE, SERVICE_V6] {
                client.run(|| send_super_packet(service, 100, 1000));
                assert_eq!(datagrams(&mut queue), [], "not before it is a service");

                routes.add_service(ip(service)).await.unwrap();
                client.run(|| send_super_packet(service, 100, 1000));
                assert_eq!(datagrams(&mut queue), [(ip(service), 100)]);

                // The TUN takes no super-packets, so the kernel cuts them.
                client.run(|| send_super_packet(service, 2500, 1000));
                let expected = [1000, 1000, 500].map(|len| (ip(service), len));
                assert_eq!(datagrams(&mut queue), expected);

                routes.remove_service(ip(service)).await.unwrap();
                client.run(|| send_super_packet(service, 100, 1000));
                assert_eq!(datagrams(&mut queue), []);
            }
            // What mirrors answer arrives the same way.
            client.run(|| send_super_packet(PROXY, 10, 1000));
            client.run(|| send_super_packet("fd09::9", 20, 1000));
            assert_eq!(
                datagrams(&mut queue),
                [(ip(PROXY), 10), (ip("fd09::9"), 20)]
            );
        });
    });
}

#[test]
fn local_processes_are_met_and_marked_packets_arent() {
    in_namespace(|| {
        let _client = client();
        run("ip route add default via 10.1.0.2");
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(settings()).await.unwrap();
            routes.add_service(ip(SERVICE)).await.unwrap();
            drain(&mut queue);
            ask(SERVICE, BRIEFLY);
            assert_eq!(datagrams(&mut queue).len(), 1);

            let route = |mark: u32| run(&format!("ip route get {SERVICE} ipproto udp mark {mark}"));
            assert!(route(0).contains("dev shunt0"), "{}", route(0));
            assert!(route(MARK).contains("dev wire1"), "{}", route(MARK));
        });
    });
}

#[test]
fn with_client_networks_all_comes_but_what_is_for_the_host_itself() {
    in_namespace(|| {
        let client = client();
        let mut queue = open_tun("shunt0");
        let clients = vec!["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()];
        on_runtime(async {
            let mut routes = Routes::set_up(Settings {
                clients,
                ..settings()
            })
            .await
            .unwrap();
            drain(&mut queue);
            for target in [SERVICE, SERVICE_V6, "192.0.2.1", PROXY] {
                client.run(|| send_super_packet(target, 10, 1000));
                assert_eq!(datagrams(&mut queue), [(ip(target), 10)]);
            }

            // The host itself stays reachable, and neighbours can be asked for.
            let here = [UdpSocket::bind(("::", ECHO)).unwrap()];
            while_echoing(&here, || {
                client.forget_neighbours();
                assert_eq!(client.ask("10.1.0.1"), Some(ip("10.1.0.2")));
                assert_eq!(client.ask("fd01::1"), Some(ip("fd01::2")));
            });

            // So does an address that it gets later, once noticed.
            run("ip address add 10.5.5.5/32 dev wire1");
            client.run(|| send_super_packet("10.5.5.5", 10, 1000));
            assert_eq!(datagrams(&mut queue), [(ip("10.5.5.5"), 10)]);
            assert!(routes.refresh().await.is_empty());
            client.run(|| send_super_packet("10.5.5.5", 10, 1000));
            assert_eq!(datagrams(&mut queue), []);
            run("ip address del 10.5.5.5/32 dev wire1");
            assert!(routes.refresh().await.is_empty());
            client.run(|| send_super_packet("10.5.5.5", 10, 1000));
            assert_eq!(datagrams(&mut queue), [(ip("10.5.5.5"), 10)]);
        });
    });
}

#[test]
fn interfaces_that_appear_or_lose_their_hook_get_filters_at_the_next_refresh() {
    in_namespace(|| {
        let client = client();
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(settings()).await.unwrap();
            routes.add_service(ip(SERVICE)).await.unwrap();
            let later = super::Host::new("wire3", &["10.3.0.1/24"], &["10.3.0.2/24"]);
            later.run(|| send_super_packet(SERVICE, 10, 1000));
            assert_eq!(datagrams(&mut queue), []);
            assert!(routes.refresh().await.is_empty());
            later.run(|| send_super_packet(SERVICE, 10, 1000));
            assert_eq!(datagrams(&mut queue), [(ip(SERVICE), 10)]);

            run("tc qdisc del dev wire1 clsact");
            client.run(|| send_super_packet(SERVICE, 10, 1000));
            assert_eq!(datagrams(&mut queue), []);
            assert!(routes.refresh().await.is_empty());
            client.run(|| send_super_packet(SERVICE, 10, 1000));
            assert_eq!(datagrams(&mut queue), [(ip(SERVICE), 10)]);

            // When nothing has changed, nothing changes; interfaces that go are forgotten.
            let before = listing(&settings());
            assert!(routes.refresh().await.is_empty());
            assert_eq!(listing(&settings()), before);
            drop(later);
            assert!(routes.refresh().await.is_empty());
            assert!(routes.remove_all().await.is_empty());
            assert_eq!(run("tc qdisc show dev wire1").matches("clsact").count(), 0);
        });
    });
}

#[test]
fn a_hook_or_filters_of_others_stay() {
    for hook in ["clsact", "ingress"] {
        in_namespace(|| {
            let client = client();
            run(&format!("tc qdisc add dev wire1 {hook}"));
            run(
                "tc filter add dev wire1 ingress pref 7 protocol ip u32 match ip dst 192.0.2.9 \
                 classid ffff:1",
            );
            let mut queue = open_tun("shunt0");
            let before = listing(&settings());
            on_runtime(async {
                let mut routes = Routes::set_up(settings()).await.unwrap();
                client.run(|| send_super_packet(PROXY, 10, 1000));
                assert_eq!(
                    datagrams(&mut queue),
                    [(ip(PROXY), 10)],
                    "it works on {hook}"
                );
                assert!(routes.remove_all().await.is_empty());
            });
            let filters = |text: &str| text.lines().filter(|it| it.contains("pref")).count();
            assert_eq!(filters(&listing(&settings())), filters(&before));
            assert!(run("tc qdisc show dev wire1").contains(hook));
        });
    }
}

#[test]
fn a_hook_of_ours_stays_if_somebody_has_come_to_use_it() {
    in_namespace(|| {
        let _client = client();
        let _queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(settings()).await.unwrap();
            run(
                "tc filter add dev wire1 egress pref 7 protocol ip u32 match ip dst 192.0.2.9 \
                 classid ffff:1",
            );
            assert!(routes.remove_all().await.is_empty());
            assert!(run("tc filter show dev wire1 egress").contains("pref 7"));
            assert!(
                routes.remove_all().await.is_empty(),
                "a second time there is nothing to do"
            );
        });
    });
}

#[test]
fn ports_of_a_bridge_are_left_out_for_the_bridge() {
    in_namespace(|| {
        let client = client();
        let mut queue = open_tun("shunt0");
        on_runtime(async {
            let mut routes = Routes::set_up(settings()).await.unwrap();
            if let Err(complaint) = try_run("ip link add br0 type bridge") {
                println!("skipped: this kernel has no bridges ({complaint})");
                return;
            }
            run("ip link set dev br0 up");
            run("ip link set dev wire1 master br0");
            run("ip address flush dev wire1");
            run("ip address add 10.1.0.1/24 dev br0");
            assert!(routes.refresh().await.is_empty());
            assert_eq!(run("tc filter show dev wire1 ingress"), "");
            client.run(|| send_super_packet(PROXY, 10, 1000));
            assert_eq!(datagrams(&mut queue), [(ip(PROXY), 10)]);
        });
    });
}
