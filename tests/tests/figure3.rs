//! The patent's figure 3, to the byte.
//!
//! The client and the mirror are made of packets that the scenario builds itself, so that every
//! byte is known at all seven events:
//!
//! ```text
//! event  client                rewriter                                mirror
//!   1    sends connect
//!   2                          receives connect
//!   3                          sends connect, both addresses exchanged
//!   4                                                                  receives it, replies
//!   5                          receives reply
//!   6                          sends reply, both addresses exchanged
//!   7    receives reply
//! ```
//!
//! Events 2, 3, 5 and 6 are what tcpdump sees on the TUN. (The patent gives the mirror the address
//! 123.456.789, which is none; here it is 123.45.67.89.)

use std::net::SocketAddr;

use etherparse::TcpHeader;
use scenarios::{
    Capture, Lab, Packet, PacketHost, SERVICE, SERVICE6, Shuntd, Way, assert_valid_checksums, craft,
};

/// The client's and the mirror's addresses of figure 3.
const CLIENT: &str = "1.2.3.4";
const MIRROR: &str = "123.45.67.89";
/// The same story's addresses over IPv6.
const CLIENT6: &str = "2001:db8:1:2:3:4:0:1";
const MIRROR6: &str = "2001:db8:123:45:67:89:0:1";

/// One exchange, seen at the seven events.
struct Story {
    events: [Packet; 7],
}

/// The two ends of the story.
struct Ends {
    client: PacketHost,
    mirror: PacketHost,
}

impl Ends {
    fn new(lab: &Lab, client: &str, mirror: &str) -> Self {
        Self {
            client: PacketHost::new(&lab.rewriter, "client0", client),
            mirror: PacketHost::new(&lab.rewriter, "mirror0", mirror),
        }
    }
}

/// The ends, and the rewriter's TUN between them.
struct Stage<'a> {
    ends: &'a Ends,
    tun: Capture,
    /// How many packets the TUN has seen in earlier exchanges.
    seen: usize,
}

impl<'a> Stage<'a> {
    fn new(lab: &Lab, ends: &'a Ends) -> Self {
        let translated = "tcp or udp or icmp or icmp6";
        let tun = Capture::start(&lab.rewriter, "shunt0", Way::Both, translated);
        Self { ends, tun, seen: 0 }
    }

    /// The client sends `request`; the mirror answers with what `reply` makes of what it received.
    fn exchange(&mut self, request: Packet, reply: impl FnOnce(&Packet) -> Packet) -> Story {
        self.ends.client.send(request.bytes());
        let received = self.ends.mirror.receive();
        let sent_back = reply(&received);
        self.ends.mirror.send(sent_back.bytes());
        let answered = self.ends.client.receive();

        let on_tun = self.tun.wait_for(self.seen + 4).split_off(self.seen);
        self.seen += 4;
        let [two, three, five, six] = <[Packet; 4]>::try_from(on_tun)
            .unwrap_or_else(|more| panic!("four packets pass the TUN, not these: {more:#?}"));
        // The mirror receives and replies in one event, 4; the reply is checked by event 5.
        assert_eq!(five.without_translation(), sent_back.without_translation());
        Story {
            events: [request, two, three, received, five, six, answered],
        }
    }
}

impl Story {
    /// The ends that each event's packet shows, and that nothing else was changed on the way.
    #[track_caller]
    fn assert_told(&self, ends: [&str; 7]) {
        assert_eq!(self.events.each_ref().map(Packet::ends), ends);
        assert_valid_checksums(&self.events);
        let (there, back) = self.events.split_at(4);
        for journey in [there, back] {
            for step in journey.windows(2) {
                assert_eq!(
                    step[0].without_translation(),
                    step[1].without_translation(),
                    "only addresses, ports, checksums and the TTL may differ"
                );
            }
        }
        // To both ends the rewriter is one hop, like any router, although its kernel forwards each
        // packet twice.
        let [sent, .., received] = there else {
            unreachable!("events 1 to 4");
        };
        assert_eq!((sent.ttl(), received.ttl()), (64, 63));
        assert_eq!(self.events[6].ttl(), 63);
    }
}

/// Figure 3 itself, and then the rest of the connection's life.
#[test]
fn figure_3() {
    let lab = Lab::new();
    let ends = Ends::new(&lab, CLIENT, MIRROR);
    let shuntd = Shuntd::start(
        &lab,
        "--proxy 10.10.10.10 --proxy-ports 513-513 --workers 1",
    );
    shuntd
        .ctl("divert 100.100.100.100:80 123.45.67.89:80")
        .success();
    let mut stage = Stage::new(&lab, &ends);

    let connect = craft::tcp(
        "1.2.3.4:3456",
        "100.100.100.100:80",
        |tcp| {
            tcp.syn = true;
            tcp.ece = true;
            tcp.cwr = true;
        },
        b"",
    );
    let accept = |_: &Packet| {
        craft::tcp(
            "123.45.67.89:80",
            "10.10.10.10:513",
            |tcp| {
                tcp.syn = true;
                tcp.ack = true;
                tcp.acknowledgment_number = 0x1234_5679;
                tcp.sequence_number = 0xffff_fffe;
            },
            b"",
        )
    };
    let story = [
        "1.2.3.4:3456 to 100.100.100.100:80",
        "1.2.3.4:3456 to 100.100.100.100:80",
        "10.10.10.10:513 to 123.45.67.89:80",
        "10.10.10.10:513 to 123.45.67.89:80",
        "123.45.67.89:80 to 10.10.10.10:513",
        "100.100.100.100:80 to 1.2.3.4:3456",
        "100.100.100.100:80 to 1.2.3.4:3456",
    ];
    stage.exchange(connect, accept).assert_told(story);

    // The connection carries data, of odd length and with an urgent pointer, in both directions.
    let request = craft::tcp(
        "1.2.3.4:3456",
        "100.100.100.100:80",
        |tcp| {
            tcp.ack = true;
            tcp.psh = true;
            tcp.urg = true;
            tcp.urgent_pointer = 5;
            tcp.sequence_number = 0x1234_5679;
            tcp.acknowledgment_number = 0xffff_ffff;
        },
        b"GET / HTTP/1.1\r\nHost: 100.100.100.100\r\n\r\n",
    );
    let response = |_: &Packet| {
        craft::tcp(
            "123.45.67.89:80",
            "10.10.10.10:513",
            |tcp| {
                tcp.ack = true;
                tcp.fin = true;
                tcp.sequence_number = 0xffff_ffff;
                tcp.acknowledgment_number = 0x1234_56a3;
            },
            b"HTTP/1.1 200 OK\r\n\r\nI am 123.45.67.89:80\n\0\xff",
        )
    };
    stage.exchange(request, response).assert_told(story);

    let connections = shuntd.connections();
    let [connection] = connections.as_slice() else {
        panic!("one connection, not {connections:#?}");
    };
    assert_eq!(connection.client.to_string(), "1.2.3.4:3456");
    assert_eq!(connection.service.to_string(), "100.100.100.100:80");
    assert_eq!(connection.proxy.to_string(), "10.10.10.10:513");
    assert_eq!(connection.mirror.to_string(), "123.45.67.89:80");
    assert_eq!(
        (connection.forward.packets, connection.reverse.packets),
        (2, 2)
    );
}

/// The same for UDP and for an echo, whose identifier stands for the port.
#[test]
fn figure_3_with_udp_and_echo() {
    let lab = Lab::new();
    let ends = Ends::new(&lab, CLIENT, MIRROR);
    let shuntd = Shuntd::start(
        &lab,
        "--proxy 10.10.10.10 --proxy-ports 513-513 --workers 1",
    );
    shuntd.ctl("divert 100.100.100.100 123.45.67.89").success();
    let mut stage = Stage::new(&lab, &ends);

    let question = craft::udp("1.2.3.4:3456", "100.100.100.100:80", b"odd");
    let answer = |_: &Packet| craft::udp("123.45.67.89:80", "10.10.10.10:513", b"");
    stage.exchange(question, answer).assert_told([
        "1.2.3.4:3456 to 100.100.100.100:80",
        "1.2.3.4:3456 to 100.100.100.100:80",
        "10.10.10.10:513 to 123.45.67.89:80",
        "10.10.10.10:513 to 123.45.67.89:80",
        "123.45.67.89:80 to 10.10.10.10:513",
        "100.100.100.100:80 to 1.2.3.4:3456",
        "100.100.100.100:80 to 1.2.3.4:3456",
    ]);

    // RFC 768: a datagram may come without a checksum, and must then leave without one.
    let mut bytes = craft::udp("1.2.3.4:3456", "100.100.100.100:80", b"unsummed")
        .bytes()
        .to_vec();
    bytes[26..28].fill(0);
    let unsummed = |_: &Packet| {
        let mut bytes = craft::udp("123.45.67.89:80", "10.10.10.10:513", b"too")
            .bytes()
            .to_vec();
        bytes[26..28].fill(0);
        Packet::new(bytes)
    };
    let story = stage.exchange(Packet::new(bytes), unsummed);
    for event in &story.events {
        assert_eq!(event.bytes()[26..28], [0, 0], "{event:?} has a checksum");
    }

    let ping = craft::echo_request(CLIENT, SERVICE, 3456, 1, b"abcdefg");
    let pong = |_: &Packet| craft::echo_reply(MIRROR, "10.10.10.10", 513, 1, b"abcdefg");
    stage.exchange(ping, pong).assert_told([
        "1.2.3.4:3456 to 100.100.100.100:3456",
        "1.2.3.4:3456 to 100.100.100.100:3456",
        "10.10.10.10:513 to 123.45.67.89:513",
        "10.10.10.10:513 to 123.45.67.89:513",
        "123.45.67.89:513 to 10.10.10.10:513",
        "100.100.100.100:3456 to 1.2.3.4:3456",
        "100.100.100.100:3456 to 1.2.3.4:3456",
    ]);
}

/// The same over IPv6: TCP, UDP and an echo.
#[test]
fn figure_3_over_ipv6() {
    let lab = Lab::new();
    let ends = Ends::new(&lab, CLIENT6, MIRROR6);
    let shuntd = Shuntd::start(
        &lab,
        "--proxy fd00:10::10 --proxy-ports 513-513 --workers 1",
    );
    shuntd
        .ctl(&format!("divert {SERVICE6} {MIRROR6}"))
        .success();
    let mut stage = Stage::new(&lab, &ends);
    let client = format!("[{CLIENT6}]:3456");
    let service = format!("[{SERVICE6}]:80");
    let mirror = format!("[{MIRROR6}]:80");
    let proxy = "[fd00:10::10]:513".to_owned();

    let asked = format!("{client} to {service}");
    let translated = format!("{proxy} to {mirror}");
    let answered = format!("{mirror} to {proxy}");
    let restored = format!("{service} to {client}");
    let story = [
        &asked,
        &asked,
        &translated,
        &translated,
        &answered,
        &restored,
        &restored,
    ]
    .map(|ends| &**ends);

    let connect = craft::tcp(&client, &service, |tcp| tcp.syn = true, b"");
    let accept = |_: &Packet| {
        let flags = |tcp: &mut TcpHeader| (tcp.syn, tcp.ack) = (true, true);
        craft::tcp(&mirror, &proxy, flags, b"")
    };
    stage.exchange(connect, accept).assert_told(story);

    let question = craft::udp(&client, &service, b"odd");
    let answer = |_: &Packet| craft::udp(&mirror, &proxy, b"longer and even");
    stage.exchange(question, answer).assert_told(story);

    let ping = craft::echo_request(CLIENT6, SERVICE6, 3456, 1, b"abcdefg");
    let pong = |_: &Packet| craft::echo_reply(MIRROR6, "fd00:10::10", 513, 1, b"abcdefg");
    let story = stage.exchange(ping, pong);
    assert_eq!(
        story.events[3].ends(),
        format!("[fd00:10::10]:513 to [{MIRROR6}]:513")
    );
    assert_eq!(
        story.events[6].ends(),
        format!("[{SERVICE6}]:3456 to [{CLIENT6}]:3456")
    );
    assert_valid_checksums(&story.events);
}

/// Addresses and ports full of ones, whose sums carry from one end to the other.
#[test]
fn figure_3_with_every_bit_set() {
    for [client, service, proxy, mirror] in [
        [
            "198.255.255.254",
            "100.255.255.255",
            "172.31.255.255",
            "203.255.255.253",
        ],
        [
            "2001:db8:ffff:ffff:ffff:ffff:ffff:fffe",
            "2001:db8:fffe:ffff:ffff:ffff:ffff:ffff",
            "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:fffd",
        ],
    ] {
        let lab = Lab::new();
        let ends = Ends::new(&lab, client, mirror);
        let flags = format!("--proxy {proxy} --proxy-ports 65535-65535 --workers 1");
        let shuntd = Shuntd::start(&lab, &flags);
        shuntd.ctl(&format!("divert {service} {mirror}")).success();
        let mut stage = Stage::new(&lab, &ends);
        let [client, service, proxy, mirror] = [client, service, proxy, mirror].map(|address| {
            SocketAddr::new(address.parse().expect("an address"), 65535).to_string()
        });

        let asked = format!("{client} to {service}");
        let translated = format!("{proxy} to {mirror}");
        let answered = format!("{mirror} to {proxy}");
        let restored = format!("{service} to {client}");
        let story = [
            &asked,
            &asked,
            &translated,
            &translated,
            &answered,
            &restored,
            &restored,
        ]
        .map(|ends| &**ends);
        for ones in 0..32 {
            let payload = [0xff; 32];
            let question = craft::udp(&client, &service, &payload[..ones]);
            let answer = |_: &Packet| craft::udp(&mirror, &proxy, &payload[ones..]);
            stage.exchange(question, answer).assert_told(story);
        }
        let connect = craft::tcp(&client, &service, |tcp| tcp.syn = true, b"");
        let accept = |_: &Packet| {
            let flags = |tcp: &mut TcpHeader| (tcp.syn, tcp.ack) = (true, true);
            craft::tcp(&mirror, &proxy, flags, b"")
        };
        stage.exchange(connect, accept).assert_told(story);
    }
}
