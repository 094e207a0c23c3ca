//! The lab itself: plain forwarding works, captures tell the truth, and dead runs leave no trace.

use std::fs;
use std::path::Path;
use std::process::Command;

use scenarios::servers::{self, Conversation, Nginx};
use scenarios::{
    CLIENT, CLIENT6, Capture, Lab, MIRROR1, MIRROR1_6, MIRROR2, MIRROR2_6, Packet, PacketHost,
    Protocol, SERVICE, SERVICE6, Way,
};

/// Without a rewriter program, the rewriter's host is a router, and everyone sees everyone.
#[test]
fn plain_forwarding_shows_each_end_the_other() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.origin);
    let at_origin = Capture::start(&lab.origin, "eth0", Way::In, "tcp port 80");

    for url in [
        format!("http://{SERVICE}/"),
        format!("http://[{SERVICE6}]/"),
    ] {
        assert_eq!(
            lab.client.run(&format!("curl -sS {url}")).success(),
            "origin\n"
        );
    }
    let from: Vec<_> = nginx
        .visits()
        .iter()
        .map(|visit| visit.from.to_string())
        .collect();
    assert_eq!(from, [CLIENT, CLIENT6]);

    let caught = at_origin.finish();
    assert!(
        caught.len() >= 8,
        "two handshakes, requests and farewells: {caught:?}"
    );
    for packet in &caught {
        assert_eq!(packet.protocol(), Protocol::Tcp);
        assert_eq!(packet.bad_checksum(), None);
    }
    for mirror in [MIRROR1, MIRROR2_6] {
        lab.client
            .run(&format!("ping -c 1 -W 2 {mirror}"))
            .success();
    }
}

/// Each server says where it is, over both families.
#[test]
fn every_server_says_its_name() {
    let lab = Lab::new();
    let _servers = [
        servers::echo_tcp(&lab.mirror1),
        servers::dnsmasq(&lab.mirror2),
        servers::iperf3(&lab.mirror2),
    ];
    for mirror in [MIRROR1, MIRROR1_6] {
        let mut conversation = Conversation::open(&lab.client, mirror);
        assert_eq!(conversation.greeting, "mirror 1");
        assert_eq!(conversation.say("hello").expect("an echo"), "hello");
    }
    for mirror in [MIRROR2, MIRROR2_6] {
        let dig = lab
            .client
            .run(&format!("dig +short @{mirror} who.shunt.test"))
            .success();
        assert_eq!(dig.trim(), servers::dns_answer(&lab.mirror2));
    }
    lab.client
        .run("iperf3 --client 10.2.0.3 --bytes 1M")
        .success();
}

/// Hosts send super-packets, and yet what arrives is cut and summed: so a capture at a receiver
/// judges the sums that the rewriter's host put in.
#[test]
fn super_packets_arrive_cut_and_summed() {
    let lab = Lab::new();
    let _nginx = Nginx::start(&lab.mirror1);
    let sent = Capture::of_super_packets(&lab.mirror1, "eth0", Way::Out, "tcp port 80");
    let arrived = Capture::start(&lab.client, "eth0", Way::In, "tcp port 80");
    lab.client
        .run(&format!("curl -sS -o /dev/null http://{MIRROR1}/large"))
        .success();

    let longest = |packets: &[Packet]| packets.iter().map(|packet| packet.bytes().len()).max();
    assert!(
        longest(&sent.finish()) > Some(20_000),
        "the server's kernel sends super-packets"
    );
    let arrived = arrived.finish();
    assert!(
        longest(&arrived) <= Some(1500),
        "none arrives at the client"
    );
    assert_eq!(arrived.iter().find_map(Packet::bad_checksum), None);
}

/// A packet whose checksum is wrong by one bit, anywhere, is found out.
#[test]
fn a_wrong_checksum_is_found() {
    let lab = Lab::new();
    let caught = Capture::start(&lab.mirror1, "eth0", Way::In, "udp or tcp or icmp or icmp6");
    let packets = {
        lab.client
            .udp("0.0.0.0:0", "10.2.0.2:7")
            .send(b"odd")
            .expect("sent");
        lab.client
            .udp("[::]:0", "[fd00:2::2]:7")
            .send(b"even")
            .expect("sent");
        lab.client.run("ping -c 1 10.2.0.2").success();
        lab.client.run("ping -c 1 fd00:2::2").success();
        lab.client.run("curl -sS http://10.2.0.2:99/"); // refused, but asked for
        lab.client.run("curl -sS http://[fd00:2::2]:99/");
        caught.wait_for(6)
    };
    for packet in packets {
        assert_eq!(packet.bad_checksum(), None);
        // The last byte is covered by the transport's checksum, whatever the transport.
        let mut bytes = packet.bytes().to_vec();
        *bytes.last_mut().expect("a packet isn't empty") ^= 1;
        assert!(
            Packet::new(bytes).bad_checksum().is_some(),
            "{packet:?} with a flipped bit"
        );
    }
}

/// A host made of a TUN takes the place of a real one, in both directions.
#[test]
fn a_packet_host_speaks_for_itself() {
    let lab = Lab::new();
    let client = PacketHost::new(&lab.rewriter, "client0", "1.2.3.4");
    let mut question = Vec::new();
    etherparse::PacketBuilder::ipv4([1, 2, 3, 4], [10, 2, 0, 2], 64)
        .icmpv4_echo_request(3456, 1)
        .write(&mut question, b"who?")
        .expect("a vector takes what it is given");
    client.send(&question);
    let answer = client.receive();
    assert_eq!(answer.ends(), "10.2.0.2:3456 to 1.2.3.4:3456");
    assert_eq!(answer.payload(), b"who?");
}

/// A run that was killed leaves namespaces with processes in them; the next run removes both, and
/// leaves those of living runs alone.
#[test]
fn what_a_dead_run_left_is_removed() {
    let alive = Lab::new();
    // Process 1 never has the start time 1, so this run is dead.
    let dead = "shunttest-1.1-0";
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/topology.sh");
    let topology = |arguments: &[&str]| {
        let output = Command::new(&script)
            .args(arguments)
            .output()
            .expect("the script runs");
        assert!(output.status.success(), "{output:?}");
    };
    topology(&["up", dead]);
    let scratch = std::env::temp_dir().join(dead);
    fs::create_dir(&scratch).expect("a scratch directory");
    let mut orphan = Command::new("ip")
        .args(["netns", "exec", &format!("{dead}-mirror2"), "sleep", "600"])
        .spawn()
        .expect("sleep starts");

    topology(&["sweep"]);
    assert!(
        !Path::new("/run/netns")
            .join(format!("{dead}-mirror2"))
            .exists()
    );
    assert!(
        !Path::new("/run/netns")
            .join(format!("{dead}-client"))
            .exists()
    );
    assert!(!scratch.exists());
    let status = orphan.wait().expect("it is our child");
    assert!(!status.success(), "the orphan was killed: {status}");
    alive.client.run(&format!("ping -c 1 {MIRROR1}")).success();
}
