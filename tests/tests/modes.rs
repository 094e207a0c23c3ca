//! The ways to run it: workers, offloads, egress.

use std::net::SocketAddr;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use scenarios::servers::{self, Nginx};
use scenarios::{
    Background, Capture, Lab, MIRROR1, MIRROR1_6, MIRROR2, MIRROR2_6, PROXY, Protocol, SERVICE,
    SERVICE6, Shuntd, Way, assert_valid_checksums, wait_until,
};

/// The story that must be the same however it runs: TCP, UDP and echo over both families are
/// diverted, and then redirected.
#[track_caller]
fn everything_is_diverted_and_redirected(lab: &Lab, shuntd: &Shuntd) {
    let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip or ip6");
    for (site, mirrors) in [
        (SERVICE, [MIRROR1, MIRROR2]),
        ("[fd00:100::100]", [MIRROR1_6, MIRROR2_6]),
    ] {
        let service = site.trim_matches(['[', ']']);
        for (mirror, host) in mirrors.into_iter().zip([&lab.mirror1, &lab.mirror2]) {
            shuntd
                .ctl(&format!("redirect {service} {mirror}"))
                .success();
            for _ in 0..10 {
                let page = lab
                    .client
                    .run(&format!("curl -sS http://{site}/"))
                    .success();
                assert_eq!(page.trim(), host.title());
            }
            let dig = format!("dig +short +tries=1 @{service} who.shunt.test");
            assert_eq!(
                lab.client.run(&dig).success().trim(),
                servers::dns_answer(host)
            );
            lab.client
                .run(&format!("ping -c 2 -i 0.01 -W 2 {service}"))
                .success();
            let file = lab.client.file("large");
            let curl = format!("curl -sS -o {} http://{site}/large", file.display());
            lab.client.run(&curl).success();
            let large = std::fs::read(host.file("nginx/html/large")).expect("nginx serves it");
            assert!(
                std::fs::read(&file).expect("curl wrote it") == large,
                "damaged on its way"
            );
        }
    }
    assert_valid_checksums(&client_sees.finish());
}

/// Web and name servers on both mirrors.
fn servers(lab: &Lab) -> ([Nginx<'_>; 2], [Background; 2]) {
    let mirrors = [&lab.mirror1, &lab.mirror2];
    (mirrors.map(Nginx::start), mirrors.map(servers::dnsmasq))
}

/// One worker does everything; two share the work.
#[test]
fn workers() {
    let lab = Lab::new();
    let _servers = servers(&lab);
    for workers in [1, 2] {
        let shuntd = Shuntd::start(&lab, &format!("--workers {workers}"));
        everything_is_diverted_and_redirected(&lab, &shuntd);
        let stats: control_protocol::StatsResult = shuntd.ask("stats");
        assert_eq!(stats.workers.len(), workers);
        for worker in &stats.workers {
            // Forty connections and more: that all were another's has a chance of one in 2^40.
            assert!(worker.created > 0, "an idle worker: {stats:#?}");
        }
    }
}

/// By default a super-packet crosses the TUN whole, in and out. Without offloads none does, and with
/// `--no-uso` only those of TCP do.
#[test]
fn offloads_are_asked_for_and_can_be_declined() {
    for (flags, tcp_whole, udp_whole) in [
        ("", true, true),
        ("--no-uso", true, false),
        ("--no-offload", false, false),
    ] {
        let lab = Lab::new();
        let _servers = servers(&lab);
        let shuntd = Shuntd::start(&lab, flags);
        let super_packets = Capture::of_super_packets(
            &lab.rewriter,
            "shunt0",
            Way::Both,
            "(tcp or udp port 9) and greater 1600",
        );
        let arriving = Capture::start(&lab.mirror2, "eth0", Way::In, "udp port 9");
        everything_is_diverted_and_redirected(&lab, &shuntd);
        let sender = lab.client.udp("0.0.0.0:0", "100.100.100.100:9");
        setsockopt(&sender, UdpGsoSegment, &1000).expect("the kernel can segment datagrams");
        sender.send(&[7; 20_000]).expect("a super-packet");
        arriving.wait_for(20);

        let seen = super_packets.finish();
        for (protocol, whole) in [(Protocol::Tcp, tcp_whole), (Protocol::Udp, udp_whole)] {
            let count = seen
                .iter()
                .filter(|packet| packet.protocol() == protocol)
                .count();
            assert_eq!(
                count > 0,
                whole,
                "{flags}: {count} {protocol:?} super-packets"
            );
        }
    }
}

/// With `--egress raw` nothing is forwarded by the kernel: forwarding is off, the firewall drops
/// whatever would be, and everything works.
#[test]
fn raw_egress_needs_no_forwarding() {
    let lab = Lab::new();
    let _servers = servers(&lab);
    lab.rewriter.set("net/ipv4/ip_forward", "0");
    lab.rewriter.set("net/ipv6/conf/all/forwarding", "0");
    lab.rewriter.run("nft add table inet guard").success();
    lab.rewriter
        .shell("nft 'add chain inet guard forward { type filter hook forward priority 0; policy drop; }'")
        .success();
    let refused = lab.client.run(&format!("ping -c 1 -W 1 {MIRROR1}"));
    assert_ne!(
        refused.code(),
        0,
        "the guard lets nothing through: {refused:?}"
    );

    let shuntd = Shuntd::start(&lab, "--egress raw");
    everything_is_diverted_and_redirected(&lab, &shuntd);
    assert_eq!(lab.rewriter.setting("net/ipv4/ip_forward"), "0");
    assert_eq!(lab.rewriter.setting("net/ipv6/conf/all/forwarding"), "0");
}

/// Nothing goes round in circles, however packets leave: under an identity diversion, whose mirror is
/// the service itself, a page takes as many packets as it should.
#[test]
fn an_identity_diversion_does_not_loop() {
    let lab = Lab::new();
    let at_origin = Nginx::start(&lab.origin);
    for egress in ["tun", "raw"] {
        let shuntd = Shuntd::start(&lab, &format!("--egress {egress} --workers 2"));
        shuntd.ctl(&format!("divert {SERVICE} {SERVICE}")).success();
        let page = lab
            .client
            .run(&format!("curl -sS http://{SERVICE}/"))
            .success();
        assert_eq!(page, "origin\n");
        let visits = at_origin.visits();
        assert_eq!(visits.last().expect("curl came").from.to_string(), PROXY);
        // About a dozen; a packet in a loop would alone be seen sixty times.
        let seen = shuntd.counters().received.packets;
        assert!(
            (6..40).contains(&seen),
            "--egress {egress}: {seen} packets for one page"
        );
    }
}

/// `--egress raw` beside a host that does forward.
#[test]
fn raw_egress_beside_forwarding() {
    let lab = Lab::new();
    let _servers = servers(&lab);
    let shuntd = Shuntd::start(&lab, "--egress raw --workers 2");
    everything_is_diverted_and_redirected(&lab, &shuntd);
}

/// A client on the rewriter's own host is a client like any other, however packets leave: diverted,
/// and under an identity diversion as well.
#[test]
fn a_client_on_the_rewriters_own_host() {
    let lab = Lab::new();
    let at_origin = Nginx::start(&lab.origin);
    let at_mirror = Nginx::start(&lab.mirror1);
    for egress in ["tun", "raw"] {
        let shuntd = Shuntd::start(&lab, &format!("--egress {egress}"));
        let page = || {
            let curl = format!("curl -sS --max-time 5 http://{SERVICE}/");
            lab.rewriter.run(&curl).success()
        };
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        assert_eq!(page(), "mirror 1\n", "--egress {egress}");
        shuntd.ctl(&format!("divert {SERVICE} {SERVICE}")).success();
        assert_eq!(page(), "origin\n", "--egress {egress}");
        for nginx in [&at_origin, &at_mirror] {
            let visits = nginx.visits();
            assert_eq!(visits.last().expect("curl came").from.to_string(), PROXY);
        }
    }
}

/// Packets come to the worker that has their connection, unless `--no-steering` says otherwise; either way
/// all is answered.
#[test]
fn packets_are_steered_to_their_workers() {
    let lab = Lab::with_offloads();
    let _nginx = Nginx::start(&lab.mirror1);
    for (flags, is_steered) in [("--workers 2", true), ("--workers 2 --no-steering", false)] {
        let shuntd = Shuntd::start(&lab, flags);
        for (service, mirror) in [(SERVICE, MIRROR1), (SERVICE6, MIRROR1_6)] {
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            let site = match service {
                SERVICE => SERVICE.to_owned(),
                _ => format!("[{SERVICE6}]"),
            };
            for _ in 0..20 {
                let page = lab.client.run(&format!("curl -sS -m 10 -g http://{site}/"));
                assert_eq!(page.success(), "mirror 1\n", "{flags}");
            }
        }
        // Without steering, half of some 400 packets come to the wrong worker.
        let handed_over = shuntd.counters().handed_over;
        assert_eq!(handed_over < 20, is_steered, "{flags}: {handed_over}");
    }
}

/// Datagrams of one flow that come together leave the TUN as one super-packet, unless
/// `--no-coalesce` says otherwise, and arrive as they were sent.
#[test]
fn datagrams_that_come_together_leave_together() {
    const COUNT: usize = 100;
    for (family, service, mirror) in [("ip", SERVICE, MIRROR1), ("ip6", SERVICE6, MIRROR1_6)] {
        for (flags, together) in [("", true), ("--no-coalesce", false)] {
            let lab = Lab::new();
            let shuntd = Shuntd::start(&lab, flags);
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            let to = SocketAddr::new(service.parse().expect("an address"), 9).to_string();
            let from = if family == "ip" {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let filter = format!("{family} and udp port 9");
            let leaving = Capture::of_super_packets(
                &lab.rewriter,
                "shunt0",
                Way::In,
                &format!("{filter} and greater 1600"),
            );
            let arriving = Capture::start(&lab.mirror1, "eth0", Way::In, &filter);
            let client_sees = Capture::start(&lab.client, "eth0", Way::Out, &filter);
            let sender = lab.client.udp(from, &to);

            let pid = shuntd.pid();
            kill(pid, Signal::SIGSTOP).expect("shuntd runs");
            wait_until("its workers have stopped", || {
                let mut states =
                    threads_of_workers(&shuntd).map(|status| line_of(&status, "State:"));
                states.all(|state| state.starts_with('T')).then_some(())
            });
            let payload = |number: usize| vec![number as u8; 500];
            for number in 0..COUNT {
                sender.send(&payload(number)).expect("it is sent");
            }
            client_sees.wait_for(COUNT);
            kill(pid, Signal::SIGCONT).expect("shuntd runs");

            let arrived = arriving.wait_for(COUNT);
            assert_valid_checksums(&arrived);
            for (number, packet) in arrived.iter().enumerate() {
                assert_eq!(
                    packet.payload(),
                    payload(number),
                    "{flags}: datagram {number}"
                );
            }
            let count = leaving.finish().len();
            assert_eq!(
                count > 0,
                together,
                "{family} {flags}: {count} super-packets"
            );
        }
    }
}

/// Between packets a worker looks for more for as long as `--busy-poll` says; only then it sleeps.
#[test]
fn busy_workers_do_not_sleep() {
    const PINGS: u64 = 20;
    let lab = Lab::new();
    for (busy_poll, sleeps) in [("1s", false), ("off", true)] {
        let shuntd = Shuntd::start(&lab, &format!("--busy-poll {busy_poll}"));
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        let before = times_slept(&shuntd);
        let ping = format!("ping -c {PINGS} -i 0.02 -W 5 {SERVICE}");
        lab.client.run(&ping).success();
        let slept = times_slept(&shuntd) - before;
        assert_eq!(
            slept >= PINGS,
            sleeps,
            "--busy-poll {busy_poll}: slept {slept} times"
        );
    }
}

/// How often the workers have slept.
fn times_slept(shuntd: &Shuntd) -> u64 {
    threads_of_workers(shuntd)
        .map(|status| line_of(&status, "voluntary_ctxt_switches:"))
        .map(|switches| switches.parse::<u64>().expect("a number"))
        .sum()
}

/// The workers' threads, as the kernel describes them (proc(5), `/proc/pid/status`).
fn threads_of_workers(shuntd: &Shuntd) -> impl Iterator<Item = String> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", shuntd.pid())).expect("it runs");
    threads
        .map(|thread| {
            let status = thread.expect("a thread").path().join("status");
            std::fs::read_to_string(status).expect("a thread's status")
        })
        .filter(|status| line_of(status, "Name:").starts_with("worker-"))
}

fn line_of(status: &str, key: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.expect("a status has this line").trim().to_owned()
}
