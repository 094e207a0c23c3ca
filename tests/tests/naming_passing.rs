//! What the naming server passes on: the DNS's answers come back as they are, and a DNS that doesn't answer is
//! borne with.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use nix::sys::signal::Signal;
use scenarios::{Lab, MIRROR1, Naming, servers, wait_until};

/// A zone with a bit of everything that zones have, signed by [`servers::nsd`].
fn zone() -> String {
    let mut zone = String::from(
        "$ORIGIN shunt.test.\n$TTL 300\n\
         @ IN SOA ns hostmaster 2026112401 3600 600 86400 60\n\
         @ IN NS ns\n@ IN MX 10 mail\n@ IN CAA 0 issue \"ca.test\"\n\
         ns IN A 10.3.0.2\nns IN AAAA fd00:3::2\n\
         mail IN A 192.0.2.25\n\
         www IN A 192.0.2.80\nwww IN AAAA 2001:db8::80\nwww IN HTTPS 1 . alpn=h2,h3 ipv4hint=192.0.2.80\n\
         alias IN CNAME www\nchain IN CNAME alias\nout IN CNAME www.elsewhere.test.\n\
         *.wild IN A 192.0.2.99\n*.wild IN TXT \"any\"\n\
         _sip._tcp IN SRV 0 5 5060 www\n\
         naptr IN NAPTR 100 10 \"u\" \"E2U+sip\" \"!^.*$!sip:info@shunt.test!\" .\n\
         sshfp IN SSHFP 4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789\n\
         _443._tcp.www IN TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n\
         strange IN TYPE65280 \\# 5 0102030405\n\
         sub IN NS ns.sub\nns.sub IN A 192.0.2.53\n\
         bin IN TXT \"\\000\\255\\\"quoted\\\"\" \"\"\n\
         dname IN DNAME elsewhere.test.\n",
    );
    for number in 0..60 {
        zone += &format!(
            "many IN A 198.51.100.{number}\nlong IN TXT \"{number} {}\"\n",
            "x".repeat(100)
        );
    }
    for number in 0..200 {
        zone += &format!(
            "host{number} IN A 203.0.113.{number}\nhost{number} IN AAAA 2001:db8::{number:x}\n"
        );
    }
    zone
}

/// A thousand queries that differ in name, case, type, class, flags and EDNS.
fn queries() -> Vec<Vec<u8>> {
    let names = [
        "shunt.test.",
        "www.shunt.test.",
        "WwW.sHuNt.TeSt.",
        "alias.shunt.test.",
        "chain.shunt.test.",
        "out.shunt.test.",
        "a.wild.shunt.test.",
        "a.b.wild.shunt.test.",
        "_sip._tcp.shunt.test.",
        "naptr.shunt.test.",
        "sshfp.shunt.test.",
        "_443._tcp.www.shunt.test.",
        "strange.shunt.test.",
        "x.sub.shunt.test.",
        "bin.shunt.test.",
        "x.dname.shunt.test.",
        "many.shunt.test.",
        "long.shunt.test.",
        "nowhere.shunt.test.",
        "elsewhere.test.",
        ".",
    ];
    let types = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::MX,
        RecordType::TXT,
        RecordType::NS,
        RecordType::SOA,
        RecordType::ANY,
        RecordType::DNSKEY,
        RecordType::DS,
        RecordType::RRSIG,
        RecordType::NSEC,
        RecordType::CNAME,
        RecordType::SRV,
        RecordType::HTTPS,
        RecordType::NAPTR,
        RecordType::SSHFP,
        RecordType::TLSA,
        RecordType::CAA,
        RecordType::Unknown(65280),
        RecordType::PTR,
    ];
    (0..1000_usize)
        .map(|number| {
            let name = match number % 3 {
                _ if number % 13 == 5 => {
                    ["many.shunt.test.", "long.shunt.test."][number / 13 % 2].to_owned()
                }
                0 => format!("host{}.shunt.test.", number % 230),
                _ => names[number / 3 % names.len()].to_owned(),
            };
            let mut query = Query::query(
                Name::from_ascii(name).expect("a name"),
                match number % 13 {
                    5 => [RecordType::A, RecordType::TXT][number / 13 % 2],
                    _ => types[(number / 7 + number) % types.len()],
                },
            );
            if number % 97 == 0 {
                query.set_query_class(DNSClass::CH);
            }
            let mut message = Message::new(number as u16 + 1, MessageType::Query, OpCode::Query);
            message.metadata.recursion_desired = number % 2 == 0;
            message.metadata.checking_disabled = number % 5 == 0;
            message.metadata.authentic_data = number % 11 == 0;
            message.add_query(query);
            if number % 4 > 0 {
                let mut edns = Edns::new();
                edns.set_max_payload([512, 1232, 4096, 65_535][number / 4 % 4]);
                edns.set_dnssec_ok(number % 4 > 1);
                if number % 101 == 0 {
                    edns.set_version(1);
                }
                message.set_edns(edns);
            }
            message.to_vec().expect("a message")
        })
        .collect()
}

/// The answer over UDP, without its id.
fn ask(socket: &UdpSocket, query: &[u8]) -> Vec<u8> {
    socket.send(query).expect("it can be sent");
    let mut buffer = vec![0; 65_535];
    let length = socket
        .recv(&mut buffer)
        .unwrap_or_else(|error| panic!("{query:?}: {error}"));
    assert_eq!(buffer[..2], query[..2], "the id");
    buffer[2..length].to_vec()
}

/// The same over a TCP connection.
fn ask_stream(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    let length = u16::try_from(query.len())
        .expect("it is short")
        .to_be_bytes();
    stream
        .write_all(&[&length, query].concat())
        .expect("it can be sent");
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream
        .read_exact(&mut answer)
        .unwrap_or_else(|error| panic!("{query:?}: {error}"));
    assert_eq!(answer[..2], query[..2], "the id");
    answer[2..].to_vec()
}

#[test]
fn a_thousand_answers_are_the_dnss_own_to_the_byte() {
    let lab = Lab::new();
    let _dns = servers::nsd(&lab.origin, &["10.3.0.2", "fd00:3::2"], &zone());
    let queries = queries();
    for (upstream, listen, from) in [
        ("10.3.0.2", "10.2.0.2:53", "10.1.0.2:0"),
        ("fd00:3::2", "[fd00:2::2]:53", "[fd00:1::2]:0"),
    ] {
        let flags = format!("--listen {listen} --upstream {upstream} --rate-limit off");
        let naming = Naming::start(&lab.mirror1, &flags);
        naming.name("set www.bt.com 10.2.0.3").success();
        let direct_to = match upstream {
            "10.3.0.2" => "10.3.0.2:53",
            _ => "[fd00:3::2]:53",
        };
        let direct = lab.client.udp(from, direct_to);
        let passed = lab.client.udp(from, listen);
        let mut codes = BTreeMap::new();
        let mut truncated = 0;
        for query in &queries {
            let expected = ask(&direct, query);
            assert_eq!(ask(&passed, query), expected, "{query:?}");
            *codes.entry(expected[1] & 0x0F).or_insert(0) += 1;
            truncated += usize::from(expected[0] & 0x02 != 0);
        }
        // The queries were varied indeed: found, not found, refused, and too long.
        assert!(
            codes[&0] > 300 && codes[&3] > 20 && codes[&5] > 20,
            "{codes:?}"
        );
        assert!(truncated > 10, "{truncated}");

        let mut direct = lab.client.connect(direct_to);
        let mut passed = lab.client.connect(listen);
        for query in queries.iter().step_by(4) {
            let expected = ask_stream(&mut direct, query);
            assert_eq!(ask_stream(&mut passed, query), expected, "{query:?}");
        }
    }
}

/// dnsmasq as the DNS: with DNSSEC bits and without, over both transports.
#[test]
fn dnsmasqs_answers_come_back_too() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let naming = Naming::start(&lab.mirror1, "--listen 10.2.0.2 --upstream 10.3.0.2");
    let without_time = |text: String| -> Vec<String> {
        let varies = [
            ";; Query time",
            ";; WHEN",
            ";; SERVER",
            "; <<>>",
            ";; ->>HEADER",
        ];
        let stays = |line: &&str| !varies.iter().any(|start| line.starts_with(start));
        text.lines().filter(stays).map(str::to_owned).collect()
    };
    for words in [
        "who.shunt.test",
        "who.shunt.test +dnssec",
        "who.shunt.test AAAA",
        "who.shunt.test +tcp",
        "long.shunt.test TXT +ignore +noedns",
        "long.shunt.test TXT +bufsize=4096",
        "version.bind CH TXT",
        "who.shunt.test TYPE65280",
        "nowhere.shunt.test",
    ] {
        let dig = |server: &str| {
            without_time(lab.client.run(&format!("dig @{server} {words}")).success())
        };
        assert_eq!(dig(MIRROR1), dig("10.3.0.2"), "{words}");
    }
    naming.stop(Signal::SIGTERM);
}

#[test]
fn an_upstream_that_dies_is_replaced_and_found_again() {
    let lab = Lab::new();
    let dns = servers::dnsmasq(&lab.origin);
    let _second = servers::dnsmasq(&lab.mirror2);
    // On the rewriter's host, which reaches both.
    let _naming = Naming::start(
        &lab.rewriter,
        "--listen 10.1.0.1 --upstream 10.3.0.2 --upstream 10.2.0.3 --upstream-timeout 200ms --workers 1",
    );
    let who = |transport: &str| {
        Naming::dig(
            &lab.client,
            &format!("@10.1.0.1 {transport} who.shunt.test"),
        )
        .join(" ")
    };
    let is_found_again = |transport: &str| {
        wait_until("the first one is asked again", || {
            (who(transport) == "192.0.2.100").then_some(())
        });
    };
    assert_eq!(who("+notcp"), "192.0.2.100", "the first one answers");
    // Nobody listens: that is told at once, and nobody waits.
    dns.stop(Signal::SIGKILL);
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(who("+notcp"), "192.0.2.2");
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(190), "{took:?}");
    }
    let _dns = servers::dnsmasq(&lab.origin);
    for transport in ["+notcp", "+tcp"] {
        is_found_again(transport);
    }
    // It doesn't even say that: the first ones wait, the others no longer.
    lab.rewriter
        .shell(
            "nft add table inet dead
             nft add chain inet dead f '{ type filter hook output priority 0; }'
             nft add rule inet dead f ip daddr 10.3.0.2 drop",
        )
        .success();
    for transport in ["+notcp", "+tcp"] {
        for _ in 0..5 {
            assert_eq!(who(transport), "192.0.2.2");
        }
        let begun = Instant::now();
        assert_eq!(who(transport), "192.0.2.2");
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(190), "{took:?}");
    }
    lab.rewriter.shell("nft delete table inet dead").success();
    for transport in ["+notcp", "+tcp"] {
        is_found_again(transport);
    }
}

#[test]
fn a_silent_dns_holds_up_nothing_else_and_fills_nothing() {
    let lab = Lab::new();
    // Takes everything, and says nothing.
    let silence = lab
        .origin
        .inside(|| UdpSocket::bind("10.3.0.2:53"))
        .unwrap();
    let naming = Naming::start(
        &lab.mirror1,
        "--listen 10.2.0.2 --upstream 10.3.0.2 --upstream-timeout 500ms --max-in-flight 10 --workers 1 \
         --rate-limit off --metrics 10.2.0.2:9353",
    );
    naming.name("set www.bt.com 10.2.0.3").success();
    let socket = lab.client.udp("10.1.0.2:0", "10.2.0.2:53");
    let mut query = Message::new(1, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(
        Name::from_ascii("x.test.").unwrap(),
        RecordType::A,
    ));
    let begun = Instant::now();
    for id in 0..50_u16 {
        query.metadata.id = id;
        socket.send(&query.to_vec().unwrap()).unwrap();
    }
    // Forty of them are too many, and told so at once. Own names are answered meanwhile.
    let mut failures = BTreeMap::new();
    let mut buffer = [0; 512];
    while failures.len() < 40 {
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[3] & 0x0F, 2, "SERVFAIL: {:?}", &buffer[..length]);
        failures.insert(buffer[1], begun.elapsed());
    }
    assert!(begun.elapsed() < Duration::from_millis(450), "{failures:?}");
    assert_eq!(
        Naming::dig(&lab.client, &format!("@{MIRROR1} www.bt.com")),
        ["10.2.0.3"]
    );
    // The ten that were passed on fail after two attempts.
    while failures.len() < 50 {
        socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[3] & 0x0F, 2, "SERVFAIL");
        failures.insert(buffer[1], begun.elapsed());
    }
    let took = begun.elapsed();
    assert!((900..3000).contains(&took.as_millis()), "{took:?}");
    let metric = |name: &str| naming.metric("10.2.0.2:9353", name);
    assert_eq!(
        metric("shunt_naming_returned_total{what=\"overloaded\"}"),
        40.0
    );
    assert_eq!(
        metric("shunt_naming_returned_total{what=\"unanswered\"}"),
        10.0
    );
    assert_eq!(
        metric("shunt_naming_repeated_total{what=\"unanswered\"}"),
        10.0
    );

    // Each attempt has an id and a port of its own, and what was passed on is the query.
    let mut seen = BTreeMap::new();
    silence.set_nonblocking(true).unwrap();
    while let Ok((length, from)) = silence.recv_from(&mut buffer) {
        assert_eq!(buffer[2..length], query.to_vec().unwrap()[2..]);
        *seen.entry((from, [buffer[0], buffer[1]])).or_insert(0) += 1;
    }
    assert_eq!(seen.values().sum::<i32>(), 20);
    assert!(seen.len() >= 19, "hardly any is there twice: {seen:?}");

    // A forged answer, from the right address and port but with another id, counts for nothing.
    query.metadata.id = 77;
    socket.send(&query.to_vec().unwrap()).unwrap();
    silence.set_nonblocking(false).unwrap();
    silence
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let (length, lane) = silence.recv_from(&mut buffer).unwrap();
    let mut answer = buffer[..length].to_vec();
    answer[2] |= 0x80;
    let id = u16::from_be_bytes([answer[0], answer[1]]);
    for forged in [id.wrapping_add(1), id.wrapping_sub(1), id ^ 0x8000] {
        answer[..2].copy_from_slice(&forged.to_be_bytes());
        silence.send_to(&answer, lane).unwrap();
    }
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    assert!(
        socket.recv(&mut buffer).is_err(),
        "a forged answer was handed on"
    );
    answer[..2].copy_from_slice(&id.to_be_bytes());
    silence.send_to(&answer, lane).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!((buffer[..2].to_vec(), length), (vec![0, 77], answer.len()));
    assert_eq!(
        metric("shunt_naming_strays_total{what=\"unknown_id\"}"),
        3.0
    );
}
