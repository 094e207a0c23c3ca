//! Traffic between programs that no one here wrote, judged on the wire: iperf3 in all its ways, dig
//! and dnsmasq, ping, and datagrams in super-packets.

use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use scenarios::servers;
use scenarios::{
    CLIENT, CLIENT6, Capture, Lab, MIRROR1, MIRROR1_6, PROXY, PROXY6, Packet, Protocol, SERVICE,
    SERVICE6, Shuntd, Way, assert_only_between, assert_valid_checksums,
};
use serde_json::Value;

/// Runs iperf3 on the client, and gives the `end` of its report.
#[track_caller]
fn iperf3(lab: &Lab, words: &str) -> Value {
    let report = lab
        .client
        .run(&format!("iperf3 --json --client {words}"))
        .success();
    let report: Value = serde_json::from_str(&report).expect("iperf3 writes JSON");
    assert_eq!(report["error"], Value::Null, "{words}");
    report["end"].clone()
}

/// What iperf3 reported, and what was seen of it on the wire.
struct Seen {
    /// The `end` of the client's report.
    report: Value,
    /// What arrived at the client.
    client: Vec<Packet>,
    /// What arrived at the mirror.
    mirror: Vec<Packet>,
}

/// iperf3 from the client to a diverted service, with every packet caught that arrives at either
/// end: all of them between the right ends, and with valid checksums.
#[track_caller]
fn on_the_wire(lab: &Lab, words: &str) -> Seen {
    let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip or ip6");
    let mirror_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "ip or ip6");
    let report = iperf3(lab, words);
    let (client, mirror) = (client_sees.finish(), mirror_sees.finish());
    if words.starts_with(SERVICE) {
        assert_only_between(&client, CLIENT, SERVICE);
        assert_only_between(&mirror, PROXY, MIRROR1);
    } else {
        assert_only_between(&client, CLIENT6, SERVICE6);
        assert_only_between(&mirror, PROXY6, MIRROR1_6);
    }
    assert_valid_checksums(&client);
    assert_valid_checksums(&mirror);
    Seen {
        report,
        client,
        mirror,
    }
}

/// TCP over both families: to the mirror, from it, and four at a time. At 60 Mbit/s in all, so that every
/// packet can be looked at. (What iperf3 says that it received in a second depends on how busy the machine
/// is: nothing, at times.)
#[test]
fn iperf3_over_tcp() {
    over_tcp(
        "",
        &[
            ("--bitrate 60M", true, false),
            ("--bitrate 60M --reverse", false, true),
            ("--bitrate 15M --parallel 4", true, false),
            ("--bitrate 15M --parallel 4 --reverse", false, true),
        ],
    );
}

/// Both ways at once. iperf3's two ends agree on which connection goes which way by the order in which
/// the mirror accepts them, and two workers needn't keep that, as two queues of a card needn't. So there is
/// only one.
#[test]
fn iperf3_over_tcp_in_both_directions() {
    over_tcp("--workers 1", &[("--bitrate 30M --bidir", true, true)]);
}

/// iperf3 in these ways, and whether much is to arrive at the mirror, and at the client.
#[track_caller]
fn over_tcp(flags: &str, ways: &[(&str, bool, bool)]) {
    let lab = Lab::new();
    let _server = servers::iperf3(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, flags);
    for (service, mirror) in [(SERVICE, MIRROR1), (SERVICE6, MIRROR1_6)] {
        shuntd.ctl(&format!("divert {service} {mirror}")).success();
        for (way, goes_up, goes_down) in ways {
            let seen = on_the_wire(&lab, &format!("{service} --time 1 {way}"));
            for (arrived, is_wanted) in [(&seen.mirror, goes_up), (&seen.client, goes_down)] {
                let bytes: usize = arrived.iter().map(|packet| packet.payload().len()).sum();
                // A second's worth of at least 30 Mbit/s is 3.75 MB.
                assert!(
                    bytes > 2_000_000 || !is_wanted,
                    "{way}: {bytes} bytes of data arrived"
                );
            }
        }
    }
}

/// UDP over both families, in both directions: every datagram that is sent arrives. (Whether iperf3
/// then finds the time to take it from its socket is not Shunt's business.)
#[test]
fn iperf3_over_udp() {
    const LENGTH: usize = 1201;
    let lab = Lab::new();
    let _server = servers::iperf3(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    for (service, mirror) in [(SERVICE, MIRROR1), (SERVICE6, MIRROR1_6)] {
        shuntd.ctl(&format!("divert {service} {mirror}")).success();
        for way in ["", "--reverse", "--parallel 2"] {
            let flags = format!("--udp --bitrate 8M --length {LENGTH} --time 1 {way}");
            let seen = on_the_wire(&lab, &format!("{service} {flags}"));
            let sent = seen.report["sum"]["packets"].as_u64().expect("a count");
            assert!(sent > 500, "{way}: {sent} datagrams in a second");
            let receiver = match way {
                "--reverse" => seen.client,
                _ => seen.mirror,
            };
            let data = |packet: &&Packet| packet.payload().len() == LENGTH;
            let arrived = receiver.iter().filter(data).count() as u64;
            assert!(
                arrived >= sent,
                "{way}: {arrived} of {sent} datagrams arrived"
            );
        }
    }
}

/// As fast as it goes, over links with all their offloads, by one worker and by two.
#[test]
fn iperf3_at_full_speed() {
    let lab = Lab::with_offloads();
    let _server = servers::iperf3(&lab.mirror1);
    for workers in [1, 2] {
        let shuntd = Shuntd::start(&lab, &format!("--workers {workers}"));
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR1}")).success();
        for way in ["--parallel 4", "--bidir"] {
            let end = iperf3(&lab, &format!("{SERVICE} --time 1 {way}"));
            let bits = end["sum_received"]["bits_per_second"]
                .as_f64()
                .expect("a rate");
            // Far below what it does, far above what a rewriter does that is stuck on something.
            assert!(bits > 100e6, "{workers} workers, {way}: {bits} bit/s");
        }
        let counters = shuntd.counters();
        assert!(counters.translated_forward.packets > 0, "{counters:#?}");
        assert!(counters.translated_reverse.packets > 0, "{counters:#?}");
    }
}

/// Names, over UDP and TCP and both families, short and longer than a datagram's old limit.
#[test]
fn dig_asks_a_diverted_dnsmasq() {
    let lab = Lab::new();
    let _server = servers::dnsmasq(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip or ip6");
    for (service, site, mirror) in [
        (SERVICE, "100.100.100.100:53", MIRROR1),
        (SERVICE6, "[fd00:100::100]:53", MIRROR1_6),
    ] {
        shuntd.ctl(&format!("divert {site} {mirror}")).success();
        for transport in ["+notcp", "+tcp"] {
            let dig = format!("dig {transport} +short +tries=1 @{service}");
            let who = lab.client.run(&format!("{dig} who.shunt.test")).success();
            assert_eq!(who.trim(), servers::dns_answer(&lab.mirror1), "{transport}");
            let long = lab
                .client
                .run(&format!("{dig} long.shunt.test TXT"))
                .success();
            assert_eq!(long.matches('x').count(), 1000, "{transport}: {long}");
        }
    }
    let seen = client_sees.finish();
    assert_valid_checksums(&seen);
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        assert!(
            seen.iter().any(|packet| packet.protocol() == protocol),
            "no {protocol:?}"
        );
    }
}

/// Pings of every length from empty to a full packet, and past an odd one.
#[test]
fn ping_of_all_lengths() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    for (service, client, mirror, proxy) in [
        (SERVICE, CLIENT, MIRROR1, PROXY),
        (SERVICE6, CLIENT6, MIRROR1_6, PROXY6),
    ] {
        shuntd.ctl(&format!("divert {service} {mirror}")).success();
        let client_sees = Capture::start(&lab.client, "eth0", Way::In, "icmp or icmp6");
        let mirror_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "icmp or icmp6");
        for length in [0, 1, 56, 1001, 1452] {
            lab.client
                .run(&format!("ping -c 2 -i 0.01 -W 2 -s {length} {service}"))
                .success();
        }
        let (client_saw, mirror_saw) = (client_sees.finish(), mirror_sees.finish());
        assert_eq!((client_saw.len(), mirror_saw.len()), (10, 10));
        assert_only_between(&client_saw, client, service);
        assert_only_between(&mirror_saw, proxy, mirror);
        assert_valid_checksums(&client_saw);
        assert_valid_checksums(&mirror_saw);
    }
}

/// Pings that no packet can hold: both ends' kernels send them in fragments.
#[test]
fn ping_in_fragments() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    for (service, client, mirror, proxy) in [
        (SERVICE, CLIENT, MIRROR1, PROXY),
        (SERVICE6, CLIENT6, MIRROR1_6, PROXY6),
    ] {
        shuntd.ctl(&format!("divert {service} {mirror}")).success();
        let client_sees = Capture::start(&lab.client, "eth0", Way::In, "ip or ip6");
        let mirror_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "ip or ip6");
        // With a deadline, ping fails unless every echo comes back; it compares what they carry.
        let ping = format!("ping -c 5 -w 5 -i 0.01 -s 4000 -p 5ca1ab1e {service}");
        let report = lab.client.run(&ping).success();
        assert!(!report.contains("wrong data"), "{report}");
        for (seen, one, other) in [
            (client_sees.finish(), client, service),
            (mirror_sees.finish(), proxy, mirror),
        ] {
            assert!(seen.len() >= 15, "three fragments for each ping: {seen:?}");
            assert_only_between(&seen, one, other);
            assert_valid_checksums(&seen);
        }
    }
}

/// Forty datagrams that the client's kernel sends as one super-packet (UDP segmentation offload)
/// cross the rewriter as one, and reach the mirror as the forty that they are.
#[test]
fn datagrams_cross_in_one_super_packet() {
    const DATAGRAMS: usize = 40;
    const LENGTH: usize = 1400;
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    for (service, mirror, listen, any) in [
        ("100.100.100.100:9", "10.2.0.2", "10.2.0.2:9", "0.0.0.0:0"),
        ("[fd00:100::100]:9", "fd00:2::2", "[fd00:2::2]:9", "[::]:0"),
    ] {
        shuntd.ctl(&format!("divert {service} {mirror}")).success();
        let receiver = lab
            .mirror1
            .inside(|| std::net::UdpSocket::bind(listen))
            .expect("a socket");
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");
        let on_tun = Capture::of_super_packets(&lab.rewriter, "shunt0", Way::Both, "udp port 9");
        let mirror_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "udp port 9");

        let sender = lab.client.udp(any, service);
        let segment = i32::try_from(LENGTH).expect("small");
        setsockopt(&sender, UdpGsoSegment, &segment).expect("the kernel can segment datagrams");
        let sent: Vec<u8> = (0..DATAGRAMS)
            .flat_map(|number| vec![number as u8; LENGTH])
            .collect();
        sender.send(&sent).expect("a super-packet can be sent");

        let mut buffer = [0; 2 * LENGTH];
        for number in 0..DATAGRAMS {
            let length = receiver.recv(&mut buffer).expect("a datagram");
            assert_eq!(buffer[..length], [number as u8; LENGTH]);
        }
        let super_packets = on_tun.wait_for(2);
        let lengths: Vec<_> = super_packets
            .iter()
            .map(|packet| packet.payload().len())
            .collect();
        assert_eq!(lengths, [DATAGRAMS * LENGTH; 2], "one in, one out");
        let arrived: Vec<Packet> = mirror_sees.finish();
        assert_eq!(arrived.len(), DATAGRAMS);
        assert_valid_checksums(&arrived);
    }
}
