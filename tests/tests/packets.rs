//! Packets to the byte, through the real daemon: errors that quote as little as they may, and fragments
//! in every order. Client, mirror and router are made of packets that the scenario builds itself.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use scenarios::{
    Lab, Packet, PacketHost, SERVICE, SERVICE6, Shuntd, assert_valid_checksums, craft, wait_until,
};

/// The flags of a matrix: one worker and two, with super-packets, without, and by raw sockets.
const MATRIX: [&str; 6] = [
    "--workers 1",
    "--workers 2",
    "--workers 1 --no-offload",
    "--workers 2 --no-offload",
    "--workers 1 --egress raw",
    "--workers 2 --egress raw",
];

const CLIENT: &str = "1.2.3.4";
const MIRROR: &str = "123.45.67.89";
const ROUTER: &str = "172.31.254.253";
const CLIENT6: &str = "2001:db8:1:2:3:4:0:1";
const MIRROR6: &str = "2001:db8:123:45:67:89:0:1";
const ROUTER6: &str = "2001:db8:ffff::254";

/// "Time exceeded" from `from` to `to`, about a packet of which this much is quoted.
fn time_exceeded(from: &str, to: &str, quote: &[u8]) -> Packet {
    let address = |text: &str| text.parse().expect("an address");
    let mut bytes = Vec::new();
    match (address(from), address(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .icmpv4_raw(11, 0, [0; 4])
            .write(&mut bytes, quote),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6_raw(3, 0, [0; 4])
            .write(&mut bytes, quote),
        _ => panic!("one packet, one family"),
    }
    .expect("a vector takes all");
    Packet::new(bytes)
}

/// A packet as it looks after one router.
fn after_a_hop(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes().to_vec();
    if bytes[0] >> 4 == 6 {
        bytes[7] -= 1;
    } else {
        bytes[8] -= 1;
        put_header_checksum(&mut bytes);
    }
    bytes
}

/// Writes the checksum of an IPv4 header (RFC 791, section 3.1).
fn put_header_checksum(bytes: &mut [u8]) {
    let length = usize::from(bytes[0] & 0x0F) * 4;
    bytes[10..12].fill(0);
    let sum: u32 = bytes[..length]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    bytes[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// A router behind the rewriter, on either side, reports a packet and quotes no more than it must: an IP
/// header and eight bytes. Its sender finds its own packet quoted, down to the checksums.
#[test]
fn an_error_that_quotes_eight_bytes_is_the_senders_own() {
    let lab = Lab::new();
    for [client, service, mirror, router] in [
        [CLIENT, SERVICE, MIRROR, ROUTER],
        [CLIENT6, SERVICE6, MIRROR6, ROUTER6],
    ] {
        let quoted = if client == CLIENT { 28 } else { 48 };
        let header = quoted - 8;
        let hosts = [
            ("client0", client),
            ("mirror0", mirror),
            ("router0", router),
        ];
        let [client_host, mirror_host, router_host] =
            hosts.map(|(name, address)| PacketHost::new(&lab.rewriter, name, address));
        let endpoint = |address: &str, port: u16| match client {
            CLIENT => format!("{address}:{port}"),
            _ => format!("[{address}]:{port}"),
        };
        for flags in MATRIX {
            let shuntd = Shuntd::start(&lab, flags);
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            let question = craft::udp(&endpoint(client, 3456), &endpoint(service, 80), b"question");
            client_host.send(question.bytes());
            let arrived = mirror_host.receive();
            let proxy = arrived.source().to_string();

            // About the question, for the client.
            let error = time_exceeded(router, &proxy, &arrived.bytes()[..quoted]);
            router_host.send(error.bytes());
            let told = client_host.receive();
            let expected = time_exceeded(router, client, &after_a_hop(&question)[..quoted]);
            assert_eq!(
                told.bytes()[header..],
                expected.bytes()[header..],
                "{flags}"
            );
            assert_eq!(
                (told.source(), told.destination()),
                (expected.source(), expected.destination()),
                "{flags}"
            );

            // And about the answer, for the mirror, which sees nobody but the proxy.
            let (port, _) = arrived.ports().expect("it is UDP");
            let answer = craft::udp(&endpoint(mirror, 80), &endpoint(&proxy, port), b"answer");
            mirror_host.send(answer.bytes());
            let arrived = client_host.receive();
            let error = time_exceeded(router, service, &arrived.bytes()[..quoted]);
            router_host.send(error.bytes());
            let told_mirror = mirror_host.receive();
            let expected = time_exceeded(&proxy, mirror, &after_a_hop(&answer)[..quoted]);
            assert_eq!(told_mirror.bytes()[header..], expected.bytes()[header..]);
            assert_eq!(
                (told_mirror.source(), told_mirror.destination()),
                (expected.source(), expected.destination()),
                "{flags}"
            );
            assert_valid_checksums(&[told, told_mirror]);
        }
    }
}

/// A datagram in pieces of `length` bytes (of the UDP header and payload), with this identification.
fn pieces(datagram: &Packet, length: usize, identification: u16) -> Vec<Packet> {
    let (header, payload) = datagram.bytes().split_at(20);
    let last = payload.len().div_ceil(length) - 1;
    payload
        .chunks(length)
        .enumerate()
        .map(|(number, piece)| {
            let mut bytes = [header, piece].concat();
            let total = u16::try_from(bytes.len()).expect("it was a packet");
            let more = if number < last { 0x2000 } else { 0 };
            let offset = u16::try_from(number * length / 8).expect("it was a packet");
            bytes[2..4].copy_from_slice(&total.to_be_bytes());
            bytes[4..6].copy_from_slice(&identification.to_be_bytes());
            bytes[6..8].copy_from_slice(&(more | offset).to_be_bytes());
            put_header_checksum(&mut bytes);
            Packet::new(bytes)
        })
        .collect()
}

/// Fragments in order, out of order, the first one last, and two datagrams interleaved: the mirror gets
/// each datagram whole, in pieces as they were cut. A datagram whose pieces overlap doesn't arrive.
#[test]
fn fragments_in_every_order() {
    let lab = Lab::new();
    let client = PacketHost::new(&lab.rewriter, "client0", CLIENT);
    let mirror = PacketHost::new(&lab.rewriter, "mirror0", MIRROR);
    let text: Vec<u8> = (0..=255).collect();
    let datagram = |number: u8| {
        let payload = [&[number], &text[..]].concat();
        craft::udp(
            &format!("{CLIENT}:3456"),
            &format!("{SERVICE}:80"),
            &payload,
        )
    };
    let receive = || -> Vec<u8> {
        let mut payload = Vec::new();
        while payload.len() < 8 + 1 + text.len() {
            let piece = mirror.receive();
            assert_valid_checksums(std::slice::from_ref(&piece));
            payload.extend_from_slice(&piece.bytes()[20..]);
        }
        payload.split_off(8)
    };
    for flags in MATRIX {
        let shuntd = Shuntd::start(&lab, flags);
        shuntd.ctl(&format!("divert {SERVICE} {MIRROR}")).success();
        for order in [[0, 1, 2], [1, 2, 0], [2, 1, 0], [0, 2, 1]] {
            let cut = pieces(&datagram(1), 104, 7);
            for number in order {
                client.send(cut[number].bytes());
            }
            assert_eq!(receive(), [&[1], &text[..]].concat(), "{flags} {order:?}");
        }
        // Two at a time, the pieces of the one between those of the other.
        for (one, other) in pieces(&datagram(1), 104, 8)
            .iter()
            .zip(pieces(&datagram(2), 104, 9).iter().rev())
        {
            client.send(one.bytes());
            client.send(other.bytes());
        }
        let mut arrived = [receive()[0], receive()[0]];
        arrived.sort_unstable();
        assert_eq!(arrived, [1, 2], "{flags}");

        let cut = pieces(&datagram(3), 104, 10);
        let overlapping = &pieces(&datagram(3), 56, 10)[2];
        for piece in [&cut[0], &cut[1], overlapping, &cut[2]] {
            client.send(piece.bytes());
        }
        wait_until("the overlap is counted", || {
            (shuntd.counters().drops.get("fragment_overlap") >= Some(&1)).then_some(())
        });
        client.send(datagram(4).bytes());
        assert_eq!(
            mirror.receive().payload()[0],
            4,
            "{flags}: the third didn't arrive"
        );
    }
}

/// Options and extension headers are stepped over, and stay as they are.
#[test]
fn options_and_extension_headers_are_stepped_over() {
    let lab = Lab::new();
    for [client, service, mirror] in [[CLIENT, SERVICE, MIRROR], [CLIENT6, SERVICE6, MIRROR6]] {
        let client_host = PacketHost::new(&lab.rewriter, "client0", client);
        let mirror_host = PacketHost::new(&lab.rewriter, "mirror0", mirror);
        let (question, at) = match client {
            CLIENT => {
                let plain = craft::udp(&format!("{client}:9"), &format!("{service}:80"), b"?");
                let mut bytes = plain.bytes().to_vec();
                // Four options of one byte each, of which three do nothing and one ends the list.
                bytes.splice(20..20, [1, 1, 1, 0]);
                bytes[0] += 1;
                bytes[3] += 4;
                put_header_checksum(&mut bytes);
                (bytes, 24)
            }
            _ => {
                let plain = craft::udp(&format!("[{client}]:9"), &format!("[{service}]:80"), b"?");
                let mut bytes = plain.bytes().to_vec();
                // Destination options: one of padding (RFC 8200, section 4.2).
                bytes.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
                bytes[6] = 60;
                bytes[5] += 8;
                (bytes, 48)
            }
        };
        for flags in MATRIX {
            let shuntd = Shuntd::start(&lab, flags);
            shuntd.ctl(&format!("divert {service} {mirror}")).success();
            client_host.send(&question);
            let arrived = mirror_host.receive();
            assert_eq!(arrived.destination().to_string(), mirror, "{flags}");
            let bytes = arrived.bytes();
            assert_eq!(bytes.len(), question.len());
            let options = if client == CLIENT { 20..24 } else { 40..48 };
            assert_eq!(bytes[options.clone()], question[options]);
            assert_eq!(bytes[at + 8..], *b"?");
            assert_valid_checksums(&[arrived]);
        }
    }
}
