//! Any bytes as a query to the naming server, as an answer of the DNS, and as a zone file: an answer is one to the
//! query, no longer than it may be, and can be read by a DNS library; an answer is never answered.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use control_protocol::NameImport;
use hickory_proto::op::Message;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use naming::answer::{Asked, CookieSecret, Moment, OtherTypes, Outcome, Rules, Transport};
use naming::catalogue::Catalogue;
use naming::limit::RateLimit;
use naming::passing::{LaneId, Limits, Passing};
use naming::records::read_zone;
use naming::table::Table;
use rand::SeedableRng;
use rand::rngs::StdRng;

const ZONE: &str = "\
$ORIGIN t.\n\
a 5 IN A 10.2.0.2\n\
a 5 IN AAAA fd00::2\n\
a 5 IN HTTPS 1 . alpn=h2\n\
a 5 IN TXT \"text\"\n\
*.a 5 IN A 10.2.0.3\n\
c 5 IN CNAME a\n\
o 5 IN CNAME elsewhere.\n\
l 5 IN CNAME m\n\
m 5 IN CNAME l\n\
s 5 IN SRV 0 5 80 a\n";

static TABLE: LazyLock<Arc<Table>> = LazyLock::new(|| {
    let mut zone = ZONE.to_owned();
    for number in 0..=255 {
        zone += &format!("b.t. 5 IN A 10.3.0.{number}\n");
    }
    let import = NameImport { zone, origin: None, ttl: None };
    let mut catalogue = Catalogue::default();
    for (name, (ttl, records)) in read_zone(&import).expect("a zone").names {
        catalogue.set(name, ttl, records).expect("it can be listed");
    }
    catalogue.table()
});

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    tcp: bool,
    pass: bool,
    random: u64,
    /// Whether the name is one of the table's, as bytes hardly ever make one.
    name: Option<u8>,
    query: &'a [u8],
    answer: &'a [u8],
    zone: &'a str,
}

const NAMES: [&[u8]; 8] = [
    b"\x01a\x01t\0", b"\x01b\x01t\0", b"\x01c\x01t\0", b"\x01o\x01t\0", b"\x01l\x01t\0", b"\x01s\x01t\0",
    b"\x01x\x01A\x01T\0", b"\x01x\0",
];

fuzz_target!(|input: Input<'_>| {
    let query = match (input.name, input.query.split_at_checked(12)) {
        (Some(name), Some((header, rest))) => {
            [header, NAMES[usize::from(name) % NAMES.len()], rest].concat()
        }
        _ => input.query.to_vec(),
    };
    let rules = Rules {
        max_udp_size: 1232,
        other_types: if input.pass { OtherTypes::Pass } else { OtherTypes::Empty },
        clients: Vec::new(),
        cookies: Some(CookieSecret::random()),
    };
    let now = Instant::now();
    let asked = Asked {
        message: &query,
        client: "192.0.2.1:5353".parse().expect("an address"),
        transport: if input.tcp { Transport::Tcp } else { Transport::Udp },
    };
    let moment = Moment { now, seconds: 1_800_000_000, random: input.random };
    let mut limit = RateLimit::new(1, Vec::new(), now);
    for _ in 0..3 {
        let mut out = Vec::new();
        let outcome = rules.handle(&asked, &TABLE, moment, Some(&mut limit), &mut out);
        let is_answer = query.get(2).is_some_and(|flags| flags & 0x80 != 0);
        let check = |out: &[u8]| {
            assert!(!is_answer, "an answer was answered");
            assert_eq!(out[..2], query[..2]);
            assert!(out[2] & 0x80 != 0);
            assert!(input.tcp && out.len() <= 65_535 || out.len() <= 1232, "{}", out.len());
            Message::from_vec(out).expect("an answer can be read");
        };
        match outcome {
            Outcome::Answered(_) => check(&out),
            Outcome::Follow(follow) => {
                assert!(out.is_empty());
                Message::from_vec(&follow.query).expect("a query can be read");
                // What the DNS says may be anything.
                follow.join(input.answer, &mut out);
                check(&out);
                let mut joined = Vec::new();
                let answered = [&follow.query[..2], &[0x80, 0], &follow.query[4..], input.answer].concat();
                follow.join(&answered, &mut joined);
                check(&joined);
            }
            Outcome::Pass | Outcome::Dropped(_) => assert!(out.is_empty()),
        }
    }

    // As an answer to a query that was passed on.
    let mut passing = Passing::new(Limits {
        upstreams: 2,
        timeout: std::time::Duration::from_secs(1),
        max_flights: 4,
    });
    if query.len() >= 12 {
        let mut random = StdRng::seed_from_u64(input.random);
        let (id, _) = passing.begin(query.clone(), (), now).expect("there is room");
        let mut sent = Vec::new();
        passing.send(id, Some(LaneId(1)), now, &mut random, &mut sent);
        assert_eq!(sent.len(), query.len());
        let forged = [&sent[..2], input.answer].concat();
        let _ = passing.answer(LaneId(1), input.answer, now);
        let _ = passing.answer(LaneId(1), &forged, now);
    }

    // As a zone file: what is read can be listed, or is refused.
    let import = NameImport {
        zone: input.zone.to_owned(),
        origin: None,
        ttl: None,
    };
    if let Ok(zone) = read_zone(&import) {
        let mut catalogue = Catalogue::default();
        for (name, (ttl, records)) in zone.names {
            let _ = catalogue.set(name, ttl, records);
        }
    }
});
