//! What Shunt isn't asked to translate: it passes, or it is dropped for a reason with a name.

use std::net::SocketAddr;

use scenarios::servers::Nginx;
use scenarios::{
    CLIENT, Capture, Lab, MIRROR1, PROXY, Packet, PacketHost, SERVICE, Shuntd, Way,
    assert_valid_checksums, craft,
};

/// In client mode the whole of a client's traffic crosses the engine, and what no diversion is for
/// leaves it exactly as it came, whatever it is; only the hops are counted.
#[test]
fn unmatched_packets_pass_unchanged() {
    let lab = Lab::new();
    let host = |name, address| PacketHost::new(&lab.rewriter, name, address);
    let stories = [
        (
            "1.2.3.4",
            host("near4", "1.2.3.4"),
            "123.45.67.89",
            host("far4", "123.45.67.89"),
        ),
        (
            "2001:db8::1",
            host("near6", "2001:db8::1"),
            "2001:db8::2",
            host("far6", "2001:db8::2"),
        ),
    ];
    let shuntd = Shuntd::start(&lab, "--client 1.2.3.4/32 --client 2001:db8::1/128");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    for (client, near, other, far) in &stories {
        let here = SocketAddr::new(client.parse().expect("an address"), 3456).to_string();
        let there = SocketAddr::new(other.parse().expect("an address"), 80).to_string();
        let mut packets = vec![
            craft::tcp(&here, &there, |tcp| tcp.syn = true, b""),
            craft::tcp(
                &here,
                &there,
                |tcp| (tcp.ack, tcp.fin) = (true, true),
                b"odd",
            ),
            craft::udp(&here, &there, b"a datagram"),
            craft::echo_request(client, other, 7, 1, b"an echo"),
            // SCTP, GRE, and a protocol that doesn't exist.
            craft::any(client, other, 132, &[0x5c; 28]),
            craft::any(client, other, 47, &[0, 0, 8, 0, 1, 2, 3]),
            craft::any(client, other, 253, b""),
        ];
        if here.starts_with("1.2.3.4:") {
            packets.push(craft::fragment(client, other, 17, 0, &[1; 64]));
            packets.push(craft::fragment(client, other, 17, 8, &[2; 11]));
        }
        let passed = shuntd.counters().passed.packets;
        for packet in &packets {
            near.send(packet.bytes());
            assert_same_but_for_hops(&far.receive(), packet);
        }
        // At least: the kernel itself may speak on the TUN, about multicast.
        assert!(shuntd.counters().passed.packets - passed >= packets.len() as u64);
    }
}

/// Asserts that nothing but the time to live, and what sums it up, changed on the way.
#[track_caller]
fn assert_same_but_for_hops(arrived: &Packet, sent: &Packet) {
    let without_hops = |packet: &Packet| {
        let mut bytes = packet.bytes().to_vec();
        match bytes[0] >> 4 {
            4 => {
                bytes[8] = 0;
                bytes[10..12].fill(0);
            }
            _ => bytes[7] = 0,
        }
        bytes
    };
    assert_eq!(without_hops(arrived), without_hops(sent), "{sent:?}");
    assert_eq!(
        (sent.ttl(), arrived.ttl()),
        (64, 63),
        "the rewriter is one hop: {arrived:?}"
    );
}

/// Real programs in client mode: the undiverted port reaches the original service from the client's
/// own address, beside a diverted one.
#[test]
fn client_mode_diverts_only_what_it_is_told_to() {
    let lab = Lab::new();
    let at_origin = Nginx::start(&lab.origin);
    let at_mirror = Nginx::start(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "--client 10.1.0.0/24");
    let origin_sees = Capture::start(&lab.origin, "eth0", Way::In, "ip");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();

    let page = |port| {
        lab.client
            .run(&format!("curl -sS http://{SERVICE}:{port}/"))
            .success()
    };
    assert_eq!(page(8080), "origin\n");
    assert_eq!(page(80), "mirror 1\n");
    lab.client
        .run(&format!(
            "curl -sS -o /dev/null http://{SERVICE}:8080/large"
        ))
        .success();
    lab.client
        .run(&format!("ping -c 3 -i 0.01 -W 2 {SERVICE}"))
        .success();

    assert_eq!(at_origin.visits()[0].from.to_string(), CLIENT);
    assert_eq!(at_mirror.visits()[0].from.to_string(), PROXY);
    let counters = shuntd.counters();
    assert!(
        counters.passed.packets > 10,
        "the client's traffic crosses the engine: {counters:#?}"
    );
    assert_valid_checksums(&origin_sees.finish());
}

/// What comes to a proxy address without a connection is dropped and counted; nobody ever sees it.
#[test]
fn reverse_packets_without_a_connection_are_dropped() {
    let lab = Lab::new();
    let mirror = PacketHost::new(&lab.rewriter, "mirror0", "123.45.67.89");
    let shuntd = Shuntd::start(&lab, "");
    let everyone = ["client", "mirror1", "mirror2", "origin", "mirror0"];
    let leaving =
        everyone.map(|name| Capture::start(&lab.rewriter, name, Way::Out, "ip and not arp"));

    let stray = [
        craft::tcp(
            "123.45.67.89:80",
            "10.10.10.10:513",
            |tcp| tcp.syn = true,
            b"",
        ),
        craft::tcp(
            "123.45.67.89:80",
            "10.10.10.10:5130",
            |tcp| tcp.ack = true,
            b"data",
        ),
        craft::udp(
            "123.45.67.89:53",
            "10.10.10.10:4000",
            b"an answer to nothing",
        ),
        craft::echo_reply("123.45.67.89", PROXY, 4000, 1, b"nor this"),
        craft::any("123.45.67.89", PROXY, 47, &[0; 8]),
    ];
    for packet in &stray {
        mirror.send(packet.bytes());
    }
    scenarios::wait_until("the packets are counted", || {
        (shuntd.dropped("no_connection") == stray.len() as u64).then_some(())
    });
    // What no connection could ever be for has a reason of its own.
    mirror.send(craft::echo_request("123.45.67.89", PROXY, 4000, 1, b"a ping").bytes());
    scenarios::wait_until("the ping is counted", || {
        (shuntd.dropped("not_for_proxy") == 1).then_some(())
    });
    for capture in leaving {
        assert_eq!(capture.finish(), []);
    }
}

/// Broken packets to a diverted service are dropped, each for its own reason, and never forwarded.
#[test]
fn broken_packets_are_dropped_by_name() {
    let lab = Lab::new();
    let client = PacketHost::new(&lab.rewriter, "client0", "1.2.3.4");
    let mirror = PacketHost::new(&lab.rewriter, "mirror0", "123.45.67.89");
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl(&format!("divert {SERVICE} 123.45.67.89"))
        .success();

    let whole = craft::tcp(
        "1.2.3.4:3456",
        "100.100.100.100:80",
        |tcp| tcp.syn = true,
        b"",
    );
    let header = &whole.bytes()[20..];
    let cut_off = craft::any("1.2.3.4", SERVICE, 6, &header[..12]);
    let mut bad_offset = header.to_vec();
    bad_offset[12] = 0xf0; // sixty bytes of header, where there are forty
    let bad_offset = craft::any("1.2.3.4", SERVICE, 6, &bad_offset);
    let no_udp = craft::any("1.2.3.4", SERVICE, 17, &[0; 5]);
    for (number, packet) in [cut_off, bad_offset, no_udp].iter().enumerate() {
        client.send(packet.bytes());
        scenarios::wait_until("the packet is counted", || {
            (shuntd.dropped("bad_transport_header") == number as u64 + 1).then_some(())
        });
    }
    assert_eq!(mirror.received(), None);

    // It takes none of this amiss.
    client.send(whole.bytes());
    assert_eq!(mirror.receive().destination().to_string(), "123.45.67.89");
}
