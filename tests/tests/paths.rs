//! Paths: links with a smaller MTU, routers that show themselves, a client that is the mirror, and
//! packets that are longer than any link.

use std::fs;
use std::io::ErrorKind;

use scenarios::servers::{self, Nginx};
use scenarios::{
    CLIENT, CLIENT6, Capture, Host, Lab, MIRROR1, MIRROR1_6, MIRROR2, MIRROR2_6, PROXY, PROXY6,
    Packet, SERVICE, SERVICE6, Shuntd, Way, assert_valid_checksums,
};
use serde_json::Value;

/// The flags of a matrix: one worker and two, with super-packets, without, and by raw sockets.
const MATRIX: [&str; 6] = [
    "--workers 1",
    "--workers 2",
    "--workers 1 --no-offload",
    "--workers 2 --no-offload",
    "--workers 1 --egress raw",
    "--workers 2 --egress raw",
];

/// Service and mirror, in both families.
const BOTH: [(&str, &str); 2] = [(SERVICE, MIRROR1), (SERVICE6, MIRROR1_6)];

/// How many bytes a transfer carries, each way.
const LENGTH: usize = 1_000_000;

/// The smallest MTU that IPv6 allows.
const SMALL: u32 = 1280;

/// What an MTU is that tells a sender to send less.
const TOO_BIG: &str = "(icmp and icmp[0] == 3 and icmp[1] == 4) or (icmp6 and ip6[40] == 2)";

/// An IPv6 address in brackets, as in a URL.
fn in_url(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// A link with an MTU of [`SMALL`], right between the rewriter and `host`, whose interface there is
/// called like the host. The host still announces segments for an MTU of 1500, as one does that
/// knows nothing of the link.
#[track_caller]
fn narrow_first_hop(lab: &Lab, host: &Host) {
    let gateways = match host.name() {
        "client" => ("10.1.0.1", "fd00:1::1"),
        _ => ("10.2.0.1", "fd00:2::1"),
    };
    let name = host.name();
    lab.rewriter
        .run(&format!("ip link set {name} mtu {SMALL}"))
        .success();
    host.shell(&format!(
        "ip link set eth0 mtu {SMALL}
         ip route replace default via {} advmss 1460
         ip -6 route del default
         ip -6 route add default via {} advmss 1440",
        gateways.0, gateways.1
    ))
    .success();
}

/// Moves `host`, which has these addresses, behind mirror 2, which becomes a router. The link between
/// the two has this MTU; again the host announces segments as if it were 1500.
#[track_caller]
fn move_behind_mirror2(lab: &Lab, host: &Host, [v4, v6]: [&str; 2], mtu: u32) {
    let router = &lab.mirror2;
    host.shell(&format!(
        "ip link del eth0
         ip link add eth0 mtu {mtu} type veth peer name behind mtu {mtu} netns {}
         ip link set eth0 up
         ip addr add {v4}/32 dev eth0
         ip addr add {v6}/128 dev eth0 nodad",
        router.namespace()
    ))
    .success();
    router.set("net/ipv4/ip_forward", "1");
    router.set("net/ipv6/conf/all/forwarding", "1");
    router
        .shell(&format!(
            "ip addr add fe80::1/64 dev behind nodad
             ip link set behind up
             ip route add {v4} dev behind
             ip -6 route add {v6} dev behind"
        ))
        .success();
    host.shell(&format!(
        "ip route add default via {MIRROR2} dev eth0 onlink advmss 1460
         ip -6 route add default via fe80::1 dev eth0 advmss 1440"
    ))
    .success();
    lab.rewriter
        .shell(&format!(
            "ip route replace {v4} via {MIRROR2} dev mirror2
             ip -6 route replace {v6} via {MIRROR2_6} dev mirror2"
        ))
        .success();
}

/// What a host has learned of a path's MTU, as `ip route get` says it.
#[track_caller]
fn mtu_towards(host: &Host, to: &str) -> Option<u32> {
    let route = host.run(&format!("ip route get {to}")).success();
    let mut words = route.split_whitespace();
    words.find(|word| *word == "mtu")?;
    words.next()?.parse().ok()
}

/// A download by curl from nginx, and an upload by socat to an echo server, which sends it all back:
/// every byte must be right.
#[track_caller]
fn transfer(lab: &Lab, service: &str) {
    let site = in_url(service);
    let curl = format!("curl -sS -m 25 -g -r 0-{} http://{site}/large", LENGTH - 1);
    let (file, got) = (lab.client.file("sent"), lab.client.file("got"));
    let sent: Vec<u8> = (0..=250).cycle().take(LENGTH).collect();
    fs::write(&file, &sent).expect("a file of our own");

    let output = format!("{curl} -o {}", got.display());
    lab.client.run(&output).success();
    // The server's file has the same pattern.
    assert!(
        fs::read(&got).expect("curl's file") == sent,
        "a download from {service}"
    );

    lab.client
        .shell(&format!(
            "timeout 25 socat -t 20 - TCP:{site}:7 <{} >{}",
            file.display(),
            got.display()
        ))
        .success();
    let echo = fs::read(&got).expect("socat's file");
    assert_eq!(echo.len(), sent.len() + b"mirror 1\n".len(), "{service}");
    assert!(echo.ends_with(&sent), "an upload to {service}");
}

/// Which side has the narrow link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Mirror,
}

/// Path MTU discovery through the rewriter, for all flags: TCP announces segments that don't fit,
/// so somebody must be told. `--mss-clamp off` and the default make no difference here, as the
/// rewriter itself knows of no small link.
#[track_caller]
fn discovery(lab: &Lab, side: Side) {
    let _servers = (Nginx::start(&lab.mirror1), servers::echo_tcp(&lab.mirror1));
    for flags in MATRIX {
        for clamp in ["--mss-clamp off", ""] {
            let shuntd = Shuntd::start(lab, &format!("{flags} {clamp}"));
            for (service, mirror) in BOTH {
                let story = format!("{side:?}, {flags} {clamp}, {service}");
                shuntd.ctl(&format!("divert {service} {mirror}")).success();
                for host in [&lab.client, &lab.mirror1] {
                    host.shell("ip route flush cache; ip -6 route flush cache")
                        .success();
                }
                // Who sends too much, to whom.
                let (teller, to) = match (side, service) {
                    (Side::Mirror, _) => (&lab.client, service),
                    (Side::Client, SERVICE) => (&lab.mirror1, PROXY),
                    (Side::Client, _) => (&lab.mirror1, PROXY6),
                };
                assert_eq!(mtu_towards(teller, to), None, "{story}: too early");
                let told = Capture::start(teller, "eth0", Way::In, TOO_BIG);
                transfer(lab, service);
                let told = told.finish();
                assert!(!told.is_empty(), "{story}: nobody was told");
                assert_valid_checksums(&told);
                assert_eq!(mtu_towards(teller, to), Some(SMALL), "{story}");
                // The error speaks of the sender's own packet.
                for error in &told {
                    assert_quotes(error, teller, to, &story);
                }
            }
        }
    }
}

/// Does this error quote a packet to `to`, which is whom the host `teller` talks to?
#[track_caller]
fn assert_quotes(error: &Packet, teller: &Host, to: &str, story: &str) {
    let bytes = error.bytes();
    let (sender, destination) = match bytes[0] >> 4 {
        4 => (&bytes[28 + 12..28 + 16], &bytes[28 + 16..28 + 20]),
        _ => (&bytes[48 + 8..48 + 24], &bytes[48 + 24..48 + 40]),
    };
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(four) => std::net::IpAddr::from(four),
        Err(_) => <[u8; 16]>::try_from(bytes).expect("sixteen").into(),
    };
    let from = match (teller.name(), bytes[0] >> 4) {
        ("client", 4) => CLIENT,
        ("client", _) => CLIENT6,
        (_, 4) => MIRROR1,
        _ => MIRROR1_6,
    };
    assert_eq!(address(sender).to_string(), from, "{story}");
    assert_eq!(address(destination).to_string(), to, "{story}");
}

/// A narrow link beyond a router behind either side: the router's error is translated, and whoever
/// sent too much finds out and sends less.
#[test]
fn a_smaller_mtu_behind_either_side_works() {
    let lab = Lab::with_offloads();
    move_behind_mirror2(&lab, &lab.mirror1, [MIRROR1, MIRROR1_6], SMALL);
    discovery(&lab, Side::Mirror);
    drop(lab);
    let lab = Lab::with_offloads();
    move_behind_mirror2(&lab, &lab.client, [CLIENT, CLIENT6], SMALL);
    discovery(&lab, Side::Client);
}

/// The same where the narrow link is the rewriter's own, so that its kernel makes the error.
#[test]
fn a_smaller_mtu_of_the_rewriters_own_link_works() {
    let lab = Lab::with_offloads();
    narrow_first_hop(&lab, &lab.mirror1);
    discovery(&lab, Side::Mirror);
    drop(lab);
    let lab = Lab::with_offloads();
    narrow_first_hop(&lab, &lab.client);
    discovery(&lab, Side::Client);
}

/// With `--mtu` the rewriter knows of the narrow link, and by its clamp TCP never tries: nobody needs
/// to be told anything.
#[test]
fn a_clamped_segment_size_needs_no_discovery() {
    for side in [Side::Mirror, Side::Client] {
        let lab = Lab::with_offloads();
        match side {
            Side::Mirror => {
                move_behind_mirror2(&lab, &lab.mirror1, [MIRROR1, MIRROR1_6], SMALL);
            }
            Side::Client => move_behind_mirror2(&lab, &lab.client, [CLIENT, CLIENT6], SMALL),
        }
        let _servers = (Nginx::start(&lab.mirror1), servers::echo_tcp(&lab.mirror1));
        let shuntd = Shuntd::start(&lab, &format!("--mtu {SMALL}"));
        let captures =
            [&lab.client, &lab.mirror1].map(|host| Capture::start(host, "eth0", Way::In, TOO_BIG));
        for (service, mirror) in BOTH {
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            transfer(&lab, service);
        }
        for capture in captures {
            let told = capture.finish();
            assert!(told.is_empty(), "{side:?}: {told:?}");
        }
    }
}

/// A mirror that is its own service's client: what it sends comes back to it, as from the proxy.
#[test]
fn a_client_that_is_the_mirror_itself_is_served() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.mirror1);
    let _dnsmasq = servers::dnsmasq(&lab.mirror1);
    for workers in [1, 2] {
        let shuntd = Shuntd::start(&lab, &format!("--workers {workers}"));
        for ((service, mirror), proxy) in BOTH.into_iter().zip([PROXY, PROXY6]) {
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            let site = in_url(service);
            let curl = "curl -sS -m 25 -g";
            let page = lab.mirror1.run(&format!("{curl} http://{site}/"));
            assert_eq!(page.success(), "mirror 1\n", "{service}");
            let visit = nginx.visits().pop().expect("a visit");
            assert_eq!(
                (visit.from.to_string(), visit.to.to_string()),
                (proxy.to_owned(), mirror.to_owned())
            );
            let file = lab.mirror1.file("got");
            lab.mirror1
                .run(&format!("{curl} http://{site}/large -o {}", file.display()))
                .success();
            assert!(
                fs::read(&file).expect("curl's file") == nginx.large(),
                "{service}: another file"
            );
            let dig = format!("dig +notcp +short +tries=3 +time=5 @{service} who.shunt.test");
            let answer = lab.mirror1.run(&dig).success();
            assert_eq!(answer.trim(), servers::dns_answer(&lab.mirror1));
            for length in [56, 4000] {
                lab.mirror1
                    .run(&format!("ping -c 3 -w 15 -i 0.05 -s {length} {service}"))
                    .success();
            }
        }
    }
}

/// Hosts answer every probe, however many come at once.
#[track_caller]
fn lift_icmp_limits(lab: &Lab) {
    for host in [&lab.client, &lab.rewriter, &lab.mirror1, &lab.mirror2] {
        host.set("net/ipv4/icmp_ratelimit", "0");
        host.set("net/ipv6/icmp/ratelimit", "0");
    }
}

/// Asserts what the tracer `command` said: hop by hop these addresses, and nowhere a hidden one.
#[track_caller]
fn assert_hops(output: &str, command: &str, hops: &[&str], hidden: &[&str]) {
    // "1.2.3.4" isn't in "11.2.3.4": compare words, without what tools put around them.
    let words = || {
        output
            .split(|c: char| c.is_whitespace() || "(),[]".contains(c))
            .map(|word| word.trim_start_matches("|--"))
    };
    for address in hidden {
        assert!(
            !words().any(|word| word == *address),
            "{command} shows {address}:\n{output}"
        );
    }
    // The lines of hops begin with their number; tracepath's may come twice.
    let mut seen: Vec<(u32, &str)> = Vec::new();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        let number = words.next().unwrap_or_default();
        let digits = number.trim_end_matches([':', '?', '.', '|', '-']);
        let Ok(number) = digits.parse() else {
            continue;
        };
        let Some(address) = words
            .map(|word| word.trim_start_matches("|--"))
            .find(|word| word.parse::<std::net::IpAddr>().is_ok())
        else {
            continue;
        };
        seen.push((number, address));
    }
    seen.dedup();
    let expected: Vec<(u32, &str)> = (1..).zip(hops.iter().copied()).collect();
    assert_eq!(seen, expected, "{command}:\n{output}");
}

/// Whatever the tracer and its probes, the service is the last hop, and neither the proxy nor the
/// mirror is to be seen; routers on the way are themselves.
#[test]
fn traceroute_never_shows_proxy_or_mirror() {
    for behind in [false, true] {
        let lab = Lab::new();
        if behind {
            move_behind_mirror2(&lab, &lab.mirror1, [MIRROR1, MIRROR1_6], 1500);
        }
        lift_icmp_limits(&lab);
        let _nginx = Nginx::start(&lab.mirror1);
        for flags in ["", "--egress raw"] {
            let shuntd = Shuntd::start(&lab, flags);
            for ((service, mirror), (rewriter, router, proxy)) in BOTH.into_iter().zip([
                ("10.1.0.1", MIRROR2, PROXY),
                ("fd00:1::1", MIRROR2_6, PROXY6),
            ]) {
                shuntd.ctl(&format!("divert {service} {mirror}")).success();
                let hops = match behind {
                    false => &[rewriter, service][..],
                    true => &[rewriter, router, service],
                };
                for command in [
                    "traceroute -n -q 1 -N 1 -w 5 -m 6",
                    "traceroute -n -q 1 -N 1 -w 5 -m 6 -I",
                    "traceroute -n -q 1 -N 1 -w 5 -m 6 -T -p 80",
                    "tracepath -n -m 6",
                    "mtr -n --report -c 1 -G 2 -m 6",
                    "mtr -n --report -c 1 -G 2 -m 6 --udp",
                    "mtr -n --report -c 1 -G 2 -m 6 --tcp -P 80",
                ] {
                    let output = lab.client.run(&format!("{command} {service}")).success();
                    let story = format!("{flags}: {command}");
                    assert_hops(&output, &story, hops, &[mirror, proxy]);
                }
            }
        }
    }
}

/// tracepath finds the narrow link behind the rewriter, by UDP.
#[test]
fn tracepath_finds_a_smaller_mtu_behind_the_mirror() {
    let lab = Lab::new();
    move_behind_mirror2(&lab, &lab.mirror1, [MIRROR1, MIRROR1_6], SMALL);
    lift_icmp_limits(&lab);
    for flags in MATRIX {
        let shuntd = Shuntd::start(&lab, flags);
        for (service, mirror) in BOTH {
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            lab.client
                .shell("ip route flush cache; ip -6 route flush cache")
                .success();
            let output = lab
                .client
                .run(&format!("tracepath -n -m 6 {service}"))
                .success();
            assert!(
                output.contains(&format!("Resume: pmtu {SMALL} hops 3")),
                "{flags}: {output}"
            );
        }
    }
}

/// Nobody listens at the mirror's port: the client's program hears so at once, from the service.
#[test]
fn a_closed_udp_port_is_reported() {
    let lab = Lab::new();
    lift_icmp_limits(&lab);
    for workers in [1, 2] {
        let shuntd = Shuntd::start(&lab, &format!("--workers {workers}"));
        for ((service, mirror), any) in BOTH.into_iter().zip(["0.0.0.0:0", "[::]:0"]) {
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            let client_sees = Capture::start(&lab.client, "eth0", Way::In, "icmp or icmp6");
            let socket = lab.client.udp(any, &format!("{}:9999", in_url(service)));
            socket.send(b"is anybody there?").expect("it is sent");
            let error = socket.recv(&mut [0; 64]).expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            // IPv6's kernels also look for their neighbours.
            let mut seen = client_sees.finish();
            seen.retain(|packet| {
                matches!(
                    (
                        packet.bytes()[0] >> 4,
                        packet.bytes()[20],
                        packet.bytes()[40]
                    ),
                    (4, 3, _) | (6, _, 1)
                )
            });
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert_eq!(seen[0].source().to_string(), service);
            assert_valid_checksums(&seen);
        }
    }
}

/// Pings of several fragments, up to the longest that ping sends: none is lost, and the rewriter
/// put them together.
#[test]
fn ping_of_6000_bytes() {
    let lab = Lab::new();
    for flags in MATRIX {
        let shuntd = Shuntd::start(&lab, flags);
        for (service, mirror) in BOTH {
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
        }
        for (service, length) in [(SERVICE, 6000), (SERVICE6, 6000), (SERVICE, 65_000)] {
            let before = shuntd.counters().reassembled;
            // With a deadline, ping fails unless every echo comes back; it compares what they carry.
            let ping = format!("ping -c 5 -w 20 -i 0.05 -s {length} -p 5ca1ab1e {service}");
            let report = lab.client.run(&ping).success();
            assert!(report.contains(" 0% packet loss"), "{flags}: {report}");
            assert!(!report.contains("wrong data"), "{flags}: {report}");
            let reassembled = shuntd.counters().reassembled - before;
            assert!(
                reassembled >= 10,
                "{flags}, {length} to {service}: {reassembled}, of five requests and five replies"
            );
        }
    }
}

/// Datagrams of 21 fragments each, both ways, at a rate that leaves everyone time.
#[test]
fn iperf3_with_datagrams_of_30000_bytes() {
    let lab = Lab::new();
    let _server = servers::iperf3(&lab.mirror1);
    for flags in MATRIX {
        let shuntd = Shuntd::start(&lab, flags);
        for (service, mirror) in BOTH {
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            for way in ["", "--reverse"] {
                let story = format!("{flags}, {service} {way}");
                let before = shuntd.counters().reassembled;
                let iperf3 = format!(
                    "iperf3 --json --client {service} --udp --length 30000 --bitrate 8M --time 1 {way}"
                );
                let report = lab.client.run(&iperf3).success();
                let report: Value = serde_json::from_str(&report).expect("iperf3 writes JSON");
                assert_eq!(report["error"], Value::Null, "{story}");
                let sum = &report["end"]["sum"];
                let count = |name: &str| sum[name].as_i64().expect("a count");
                let (sent, lost) = (count("packets"), count("lost_packets"));
                assert!(sent >= 10, "{story}: {sent} were sent");
                // iperf3 itself may not find the time to take them all from its socket.
                assert!(lost <= sent / 2, "{story}: {lost} of {sent} were lost");
                let reassembled = shuntd.counters().reassembled - before;
                assert!(
                    reassembled >= (sent - lost).unsigned_abs(),
                    "{story}: {reassembled} of {sent} were reassembled"
                );
            }
        }
    }
}
