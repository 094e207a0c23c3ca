//! Queries written by hickory go in; what comes out is read by hickory.

use hickory_proto::op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;
use crate::catalogue::Catalogue;
use crate::records::read_zone;
use control_protocol::NameImport;

const ZONE: &str = "\
www 5 IN A 10.2.0.2\n\
www 5 IN A 10.2.0.3\n\
www 5 IN HTTPS 1 . alpn=h2\n\
* 5 IN A 10.2.0.9\n\
alias 5 IN CNAME www\n\
chain 5 IN CNAME alias\n\
out 5 IN CNAME www.elsewhere.test.\n\
loop 5 IN CNAME pool\n\
pool 5 IN CNAME loop\n\
_http._tcp 5 IN SRV 0 5 80 www\n\
text 5 IN TXT \"one\"\n";

fn table() -> std::sync::Arc<Table> {
    let mut zone = ZONE.to_owned();
    for number in 0..100 {
        zone += &format!("many 5 IN A 10.3.0.{number}\n");
    }
    let import = NameImport {
        zone,
        origin: Some("bt.com".parse().unwrap()),
        ttl: None,
    };
    let mut catalogue = Catalogue::default();
    for (name, (ttl, records)) in read_zone(&import).unwrap().names {
        catalogue.set(name, ttl, records).unwrap();
    }
    catalogue.table()
}

fn rules() -> Rules {
    Rules {
        max_udp_size: 1232,
        other_types: OtherTypes::Empty,
        clients: Vec::new(),
        cookies: Some(CookieSecret::random()),
    }
}

fn moment() -> Moment {
    Moment {
        now: Instant::now(),
        seconds: 1_800_000_000,
        random: 0,
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = HickoryEdns::new();
    edns.set_max_payload(size).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn asked(message: &[u8], transport: Transport) -> Asked<'_> {
    Asked {
        message,
        client: "192.0.2.1:5353".parse().unwrap(),
        transport,
    }
}

fn handle_by(rules: &Rules, message: &[u8], transport: Transport) -> (Outcome, Vec<u8>) {
    // What is in the buffer already must stay.
    let mut out = b"before".to_vec();
    let asked = asked(message, transport);
    let outcome = rules.handle(&asked, &table(), moment(), None, &mut out);
    assert_eq!(&out[..6], b"before");
    (outcome, out.split_off(6))
}

fn handle(message: &Message) -> (Outcome, Vec<u8>) {
    handle_by(&rules(), &message.to_vec().unwrap(), Transport::Udp)
}

/// The answer, which must be one.
fn answer(message: &Message) -> (Answered, Message) {
    let (outcome, bytes) = handle(message);
    let Outcome::Answered(answered) = outcome else {
        panic!("{outcome:?}");
    };
    (answered, Message::from_vec(&bytes).unwrap())
}

fn data(message: &Message) -> Vec<String> {
    let text =
        |record: &Record| format!("{} {} {}", record.name, record.record_type(), record.data);
    message.answers.iter().map(text).collect()
}

#[test]
fn a_listed_name_is_answered_with_the_question_as_it_was_asked() {
    let asked = query("wWw.Bt.CoM.", RecordType::A);
    let (answered, message) = answer(&asked);
    assert_eq!(answered, Answered::Own);
    assert_eq!(message.metadata.id, 0x1234);
    let metadata = message.metadata;
    assert!(metadata.authoritative && metadata.recursion_available && metadata.recursion_desired);
    assert!(!metadata.truncation && !metadata.authentic_data);
    assert!(message.queries[0].name().eq_case(asked.queries[0].name()));
    assert_eq!(
        data(&message),
        ["wWw.Bt.CoM. A 10.2.0.2", "wWw.Bt.CoM. A 10.2.0.3"]
    );
    assert!(message.answers.iter().all(|record| record.ttl == 5));
    assert!(message.edns.is_none());
}

#[test]
fn each_type_has_its_own_records() {
    for (name, kind, expected) in [
        (
            "www.bt.com.",
            RecordType::HTTPS,
            "www.bt.com. HTTPS 1 . alpn=h2,",
        ),
        (
            "any.where.bt.com.",
            RecordType::A,
            "any.where.bt.com. A 10.2.0.9",
        ),
        ("text.bt.com.", RecordType::TXT, "text.bt.com. TXT one"),
        (
            "_http._tcp.bt.com.",
            RecordType::SRV,
            "_http._tcp.bt.com. SRV 0 5 80 www.bt.com.",
        ),
        ("www.bt.com.", RecordType::ANY, "www.bt.com. HINFO RFC8482 "),
        (
            "alias.bt.com.",
            RecordType::CNAME,
            "alias.bt.com. CNAME www.bt.com.",
        ),
    ] {
        let (answered, message) = answer(&query(name, kind));
        assert_eq!(answered, Answered::Own, "{name}");
        assert_eq!(data(&message), [expected]);
    }
}

#[test]
fn a_type_that_isnt_there_gets_an_empty_answer_that_may_be_remembered() {
    for kind in [
        RecordType::AAAA,
        RecordType::MX,
        RecordType::SOA,
        RecordType::DS,
    ] {
        let (answered, message) = answer(&query("www.bt.com.", kind));
        assert_eq!(answered, Answered::Empty);
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(message.answers.is_empty());
        let [soa] = &message.authorities[..] else {
            panic!("{message:?}")
        };
        assert_eq!(
            (soa.name.to_ascii(), soa.ttl),
            ("www.bt.com.".to_owned(), 5)
        );
        let RData::SOA(soa) = &soa.data else {
            panic!("{soa:?}")
        };
        assert_eq!(soa.minimum, 5);
    }
    let pass = Rules {
        other_types: OtherTypes::Pass,
        ..rules()
    };
    let message = query("www.bt.com.", RecordType::MX).to_vec().unwrap();
    let (outcome, bytes) = handle_by(&pass, &message, Transport::Udp);
    assert_eq!((outcome, bytes.len()), (Outcome::Pass, 0));
}

#[test]
fn what_isnt_listed_is_passed_on() {
    let chaos = {
        let mut message = query("www.bt.com.", RecordType::TXT);
        message.queries[0].set_query_class(DNSClass::CH);
        message
    };
    for message in [
        query("bt.com.", RecordType::A),
        query("a.www.bt.com.", RecordType::A),
        query("www.elsewhere.test.", RecordType::A),
        chaos,
    ] {
        let (outcome, bytes) = handle(&message);
        assert_eq!((outcome, bytes.len()), (Outcome::Pass, 0));
    }
}

#[test]
fn an_answer_for_all_classes_is_nobodys() {
    let mut message = query("www.bt.com.", RecordType::A);
    message.queries[0].set_query_class(DNSClass::ANY);
    let (_, message) = answer(&message);
    assert_eq!(message.answers.len(), 2);
    assert!(!message.metadata.authoritative);
}

#[test]
fn aliases_are_followed_within_the_table() {
    let (answered, message) = answer(&query("chain.bt.com.", RecordType::A));
    assert_eq!(answered, Answered::Own);
    assert_eq!(
        data(&message),
        [
            "chain.bt.com. CNAME alias.bt.com.",
            "alias.bt.com. CNAME www.bt.com.",
            "www.bt.com. A 10.2.0.2",
            "www.bt.com. A 10.2.0.3",
        ]
    );
    let (answered, message) = answer(&query("alias.bt.com.", RecordType::AAAA));
    assert_eq!(answered, Answered::Empty);
    assert_eq!(data(&message), ["alias.bt.com. CNAME www.bt.com."]);
    assert_eq!(message.authorities[0].name.to_ascii(), "www.bt.com.");
    let (_, message) = answer(&query("loop.bt.com.", RecordType::A));
    assert_eq!(message.answers.len(), MAX_ALIASES, "a circle has an end");
}

#[test]
fn an_alias_that_leads_away_is_followed_in_the_dns() {
    let asked = with_edns(query("OUT.bt.com.", RecordType::A), 4096);
    let (outcome, bytes) = handle(&asked);
    let Outcome::Follow(follow) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(bytes.is_empty(), "nothing is said yet");
    let passed = Message::from_vec(&follow.query).unwrap();
    assert_eq!(passed.queries[0].name().to_ascii(), "www.elsewhere.test.");
    assert_eq!(passed.queries[0].query_type(), RecordType::A);
    assert!(passed.metadata.recursion_desired);
    let edns = passed.edns.clone().unwrap();
    assert!(edns.flags().dnssec_ok && edns.max_payload() == 1232);

    // The DNS answers.
    let mut second = passed.clone().into_response();
    let address = RData::try_from_str(RecordType::A, "192.0.2.80").unwrap();
    second.add_answer(Record::from_rdata(
        passed.queries[0].name().clone(),
        60,
        address,
    ));
    let mut out = b"before".to_vec();
    follow.join(&second.to_vec().unwrap(), &mut out);
    let joined = Message::from_vec(&out[6..]).unwrap();
    assert_eq!(joined.metadata.id, 0x1234);
    assert!(joined.queries[0].name().eq_case(asked.queries[0].name()));
    assert_eq!(
        data(&joined),
        [
            "OUT.bt.com. CNAME www.elsewhere.test.",
            "www.elsewhere.test. A 192.0.2.80"
        ]
    );
    assert!(joined.edns.unwrap().flags().dnssec_ok);

    // There is no such name.
    second.answers.clear();
    second.metadata.response_code = ResponseCode::NXDomain;
    let mut out = Vec::new();
    follow.join(&second.to_vec().unwrap(), &mut out);
    let joined = Message::from_vec(&out).unwrap();
    assert_eq!(joined.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(joined.answers.len(), 1);

    // It doesn't fit.
    second.metadata.truncation = true;
    let mut out = Vec::new();
    follow.join(&second.to_vec().unwrap(), &mut out);
    let joined = Message::from_vec(&out).unwrap();
    assert!(joined.metadata.truncation && joined.answers.is_empty());

    // It isn't to be read, or never came.
    for bytes in [&[][..], &[0; 11], &[0xFF; 40]] {
        let mut out = Vec::new();
        follow.join(bytes, &mut out);
        let joined = Message::from_vec(&out).unwrap();
        assert_eq!(joined.metadata.response_code, ResponseCode::ServFail);
    }
}

#[test]
fn what_doesnt_fit_is_asked_for_over_tcp() {
    let size = |message: &Message| handle(message).1.len();
    for (asked, limit) in [
        (query("many.bt.com.", RecordType::A), 512),
        (with_edns(query("many.bt.com.", RecordType::A), 100), 512),
        (
            with_edns(query("many.bt.com.", RecordType::A), 65_535),
            1232,
        ),
    ] {
        let (answered, message) = answer(&asked);
        assert_eq!(answered, Answered::Truncated);
        assert!(message.metadata.truncation && message.answers.is_empty());
        assert_eq!(message.edns.is_some(), asked.edns.is_some());
        assert!(size(&asked) <= limit);
    }
    let message = query("many.bt.com.", RecordType::A).to_vec().unwrap();
    let (outcome, bytes) = handle_by(&rules(), &message, Transport::Tcp);
    assert_eq!(outcome, Outcome::Answered(Answered::Own));
    assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 100);
    // To the byte: 100 records of 16 bytes don't fit 1,599 bytes less, but 1,600 more.
    let roomy = Rules {
        max_udp_size: 4096,
        ..rules()
    };
    let whole = bytes.len() + 11;
    for (size, answered) in [(whole, Answered::Own), (whole - 1, Answered::Truncated)] {
        let asked = with_edns(query("many.bt.com.", RecordType::A), size as u16);
        let (outcome, _) = handle_by(&roomy, &asked.to_vec().unwrap(), Transport::Udp);
        assert_eq!(outcome, Outcome::Answered(answered), "{size}");
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let (_, message) = answer(&with_edns(query("www.bt.com.", RecordType::A), 4096));
    let edns = message.edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
    assert!(edns.flags().dnssec_ok);

    let mut newer = with_edns(query("www.bt.com.", RecordType::A), 4096);
    if let Some(edns) = &mut newer.edns {
        edns.set_version(1);
    }
    let (answered, message) = answer(&newer);
    assert_eq!(answered, Answered::UnknownEdns);
    // hickory knows 16 as BADSIG, which is the same number in TSIG records.
    assert_eq!(u16::from(message.metadata.response_code), 16);
    assert!(message.answers.is_empty());
}

#[test]
fn an_answer_is_never_answered() {
    let mut message = query("www.bt.com.", RecordType::A).into_response();
    for opcode in [OpCode::Query, OpCode::Notify] {
        message.metadata.op_code = opcode;
        let (outcome, bytes) = handle(&message);
        assert_eq!(outcome, Outcome::Dropped(DropReason::IsAnswer));
        assert!(bytes.is_empty());
    }
    let message = query("www.bt.com.", RecordType::A).to_vec().unwrap();
    for length in 0..12 {
        let (outcome, _) = handle_by(&rules(), &message[..length], Transport::Udp);
        assert_eq!(outcome, Outcome::Dropped(DropReason::TooShort));
    }
    let from_nowhere = Asked {
        client: "192.0.2.1:0".parse().unwrap(),
        ..asked(&message, Transport::Udp)
    };
    let outcome = rules().handle(&from_nowhere, &table(), moment(), None, &mut Vec::new());
    assert_eq!(outcome, Outcome::Dropped(DropReason::NoPort));
}

#[test]
fn what_cant_be_understood_is_told_so_without_records() {
    let whole = with_edns(query("www.bt.com.", RecordType::A), 4096)
        .to_vec()
        .unwrap();
    let mut cases = Vec::new();
    for length in 12..whole.len() {
        cases.push((whole[..length].to_vec(), Answered::Malformed));
    }
    cases.push(([&whole[..], &[0]].concat(), Answered::Malformed));
    let mut two_questions = whole.clone();
    two_questions[5] = 2;
    cases.push((two_questions, Answered::Malformed));
    let mut update = whole.clone();
    update[2] = 5 << 3;
    cases.push((update, Answered::NotImplemented));
    for (message, expected) in cases {
        let (outcome, bytes) = handle_by(&rules(), &message, Transport::Udp);
        assert_eq!(outcome, Outcome::Answered(expected), "{message:?}");
        let answer = Message::from_vec(&bytes).unwrap();
        let code = answer.metadata.response_code;
        assert!(matches!(code, ResponseCode::FormErr | ResponseCode::NotImp));
        assert!(bytes.len() <= message.len() && answer.answers.is_empty());
    }
}

#[test]
fn zones_are_not_handed_through() {
    let message = query("elsewhere.test.", RecordType::AXFR).to_vec().unwrap();
    let (outcome, bytes) = handle_by(&rules(), &message, Transport::Tcp);
    assert_eq!(outcome, Outcome::Answered(Answered::Zone));
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let (outcome, _) = handle_by(&rules(), &message, Transport::Udp);
    assert_eq!(outcome, Outcome::Pass, "over UDP an answer is one message");
}

#[test]
fn only_clients_are_answered() {
    let rules = Rules {
        clients: vec![
            "10.1.0.0/24".parse().unwrap(),
            "192.0.2.0/30".parse().unwrap(),
        ],
        ..rules()
    };
    for (client, is_answered) in [
        ("10.1.0.7:53", true),
        ("192.0.2.3:53", true),
        ("192.0.2.4:53", false),
    ] {
        for name in ["www.bt.com.", "www.elsewhere.test."] {
            let message = query(name, RecordType::A).to_vec().unwrap();
            let asked = Asked {
                client: client.parse().unwrap(),
                ..asked(&message, Transport::Udp)
            };
            let mut out = Vec::new();
            let outcome = rules.handle(&asked, &table(), moment(), None, &mut out);
            assert_eq!(
                outcome != Outcome::Answered(Answered::Refused),
                is_answered,
                "{client}"
            );
        }
    }
}

/// A query with a cookie of these parts.
fn with_cookie(message: Message, cookie: &[u8]) -> Message {
    let mut message = with_edns(message, 1232);
    if let Some(edns) = &mut message.edns {
        let option = EdnsOption::Unknown(10, cookie.to_vec());
        edns.options_mut().insert(option);
    }
    message
}

fn cookie_of(message: &Message) -> Vec<u8> {
    let edns = message.edns.as_ref().unwrap();
    match edns.option(EdnsCode::Cookie).unwrap() {
        EdnsOption::Unknown(10, cookie) => cookie.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cookie_frees_from_the_limit_and_only_whom_it_was_given() {
    let rules = rules();
    let mut limit = RateLimit::new(1, Vec::new(), Instant::now());
    let moment = moment();
    let mut ask = |message: &Message, client: &str| {
        let message = message.to_vec().unwrap();
        let asked = Asked {
            client: client.parse().unwrap(),
            ..asked(&message, Transport::Udp)
        };
        let mut out = Vec::new();
        let outcome = rules.handle(&asked, &table(), moment, Some(&mut limit), &mut out);
        (outcome, out, message.len())
    };
    let plain = query("www.bt.com.", RecordType::A);
    let first = with_cookie(plain.clone(), b"client's");
    let (outcome, bytes, _) = ask(&first, "192.0.2.1:53");
    assert_eq!(outcome, Outcome::Answered(Answered::Own));
    let cookie = cookie_of(&Message::from_vec(&bytes).unwrap());
    assert_eq!((&cookie[..8], cookie.len()), (b"client's".as_slice(), 24));

    // The limit is reached: nothing, or the advice to ask over TCP, and never more than was asked.
    for expected in [
        Outcome::Dropped(DropReason::Limited),
        Outcome::Answered(Answered::Limited),
        Outcome::Dropped(DropReason::Limited),
    ] {
        let (outcome, bytes, length) = ask(&plain, "192.0.2.1:53");
        assert_eq!(outcome, expected);
        assert!(bytes.len() <= length);
        if !bytes.is_empty() {
            assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
        }
    }
    // With the cookie, everything is answered; from elsewhere it is worth nothing.
    let proven = with_cookie(plain.clone(), &cookie);
    for _ in 0..10 {
        let (outcome, ..) = ask(&proven, "192.0.2.1:53");
        assert_eq!(outcome, Outcome::Answered(Answered::Own));
    }
    let (outcome, ..) = ask(&proven, "192.0.2.2:53");
    assert_ne!(outcome, Outcome::Answered(Answered::Own));
}

#[test]
fn a_cookie_can_be_asked_for_alone() {
    let mut message = with_cookie(
        Message::new(7, MessageType::Query, OpCode::Query),
        b"client's",
    );
    let (answered, answer) = answer(&message);
    assert_eq!(answered, Answered::CookieOnly);
    assert!(answer.queries.is_empty());
    assert_eq!(cookie_of(&answer).len(), 24);
    for length in [1, 7, 9, 15, 41] {
        message = with_cookie(query("www.bt.com.", RecordType::A), &vec![1; length]);
        let (outcome, _) = handle(&message);
        assert_eq!(outcome, Outcome::Answered(Answered::Malformed), "{length}");
    }
}

proptest! {
    /// Whatever comes, an answer is one to it, can be read, and is no longer than it may be.
    #[test]
    fn any_query_is_handled(
        name in prop::sample::select(vec!["www.bt.com.", "many.bt.com.", "out.bt.com.", "chain.bt.com.", "x.test."]),
        kind in any::<u16>(),
        size in any::<u16>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut message = with_edns(query(name, RecordType::from(kind)), size).to_vec().unwrap();
        for (at, byte) in damage {
            let at = at.index(message.len());
            message[at] = byte;
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            let (outcome, bytes) = handle_by(&rules(), &message, transport);
            match outcome {
                Outcome::Answered(_) => {
                    prop_assert_eq!(&bytes[..2], &message[..2]);
                    prop_assert!(bytes[2] & 0x80 != 0);
                    prop_assert!(transport == Transport::Tcp || bytes.len() <= 1232);
                    prop_assert!(Message::from_vec(&bytes).is_ok(), "{:?}", bytes);
                }
                _ => prop_assert!(bytes.is_empty()),
            }
        }
    }
}
