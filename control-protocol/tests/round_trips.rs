//! Properties: what is written is read back as it was, as text and as JSON, and no input whatever
//! makes reading panic.

use std::fmt::{Debug, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use control_protocol::{
    Answer, ClientPrefix, ConnectionState, ConnectionsQuery, Cursor, DecisionsQuery,
    DiversionState, Divert, DomainName, ErrorCode, Fallback, Grouping, Health, Hold, List,
    Liveness, MAX_PAGE, MAX_TTL, MAX_WITHIN_MS, Method, Mirror, MirrorAddress, Mirrors,
    NameAddress, NameImport, NameList, NameRecords, NameSet, NameUnset, PeekNames, Percent,
    Protocol, Redirect, RedirectsQuery, Release, ReleaseHold, Request, Restore, Service, Splice,
    Stats, TcpMove, TextError, Version, Watch, Wish, read_request,
};
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Every address that has only one spelling: IPv4-mapped ones are not among them.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<Ipv4Addr>().prop_map(IpAddr::V4),
        any::<Ipv6Addr>()
            .prop_filter("has an IPv4 spelling", |address| address
                .to_ipv4_mapped()
                .is_none())
            .prop_map(IpAddr::V6),
        // Addresses whose zeros can be shortened, which random ones hardly ever have.
        (any::<u16>(), any::<u16>(), 0..6_usize).prop_map(|(first, last, at)| {
            let mut segments = [first | 1, 0, 0, 0, 0, 0, 0, last];
            segments[at] |= 1;
            IpAddr::from(segments)
        }),
    ]
}

fn port() -> impl Strategy<Value = Option<u16>> {
    option::of(1..=u16::MAX)
}

fn service() -> impl Strategy<Value = Service> {
    let protocol = prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Icmp),
        Just(Protocol::Other(47))
    ];
    (address(), port(), option::of(protocol)).prop_map(|(address, port, protocol)| Service {
        address,
        port: port.filter(|_| protocol.is_none_or(Protocol::has_ports)),
        protocol,
    })
}

fn mirror() -> impl Strategy<Value = Mirror> {
    (address(), port(), any::<u16>()).prop_map(|(address, port, weight)| Mirror {
        address,
        port,
        weight,
    })
}

fn mirror_address() -> impl Strategy<Value = MirrorAddress> {
    (address(), port()).prop_map(|(address, port)| MirrorAddress { address, port })
}

fn prefix() -> impl Strategy<Value = ClientPrefix> {
    (address(), 0..=128_u8)
        .prop_map(|(address, length)| {
            let longest = IpNet::from(address).max_prefix_len();
            IpNet::new(address, length.min(longest)).expect("not longer than the longest")
        })
        // Cutting an address off can make a mapped one of it.
        .prop_map(ClientPrefix::from)
        .prop_filter("has an IPv4 spelling", |prefix| {
            match prefix.network().addr() {
                IpAddr::V4(_) => true,
                IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
            }
        })
}

fn cursor() -> impl Strategy<Value = Cursor> {
    (any::<u32>(), any::<u32>()).prop_map(|(worker, slot)| Cursor { worker, slot })
}

fn name() -> impl Strategy<Value = DomainName> {
    r"(\*\.)?([a-z0-9_-]{1,63}\.){0,3}[a-z]{1,10}".prop_map(|text| text.parse().expect("a name"))
}

fn name_address() -> impl Strategy<Value = NameAddress> {
    (address(), any::<u16>()).prop_map(|(address, weight)| NameAddress { address, weight })
}

fn name_set() -> impl Strategy<Value = NameSet> {
    let texts = || vec(".{0,20}", 0..3);
    (
        name(),
        option::of(0..=MAX_TTL),
        vec(name_address(), 0..4),
        option::of(name()),
        [texts(), texts(), texts(), texts()],
    )
        .prop_map(
            |(name, ttl, addresses, cname, [https, svcb, srv, txt])| NameSet {
                name,
                ttl,
                records: NameRecords {
                    addresses,
                    cname,
                    https,
                    svcb,
                    srv,
                    txt,
                },
            },
        )
}

fn percent() -> impl Strategy<Value = Percent> {
    (1..=100_u8).prop_map(|hundredths| Percent::new(hundredths).expect("in range"))
}

fn grouping() -> impl Strategy<Value = Option<Grouping>> {
    option::of(prop_oneof![
        Just(Grouping::Mirror),
        Just(Grouping::Service),
        Just(Grouping::Client)
    ])
}

fn method() -> impl Strategy<Value = Method> {
    let tcp = prop_oneof![
        Just(TcpMove::Splice),
        Just(TcpMove::Rewrite),
        Just(TcpMove::Reset)
    ];
    let fallback = || prop_oneof![Just(Fallback::Leave), Just(Fallback::Reset)];
    let release = prop_oneof![Just(Release::Fin), Just(Release::Rst)];
    let splice = (
        (0..=MAX_WITHIN_MS, option::of(any::<u64>())),
        (fallback(), fallback(), release),
        any::<[bool; 2]>(),
    )
        .prop_map(
            |((within_ms, quiet_ms), (then, otherwise, release), [force, now])| Splice {
                within_ms,
                quiet_ms,
                then,
                otherwise,
                release,
                force,
                now,
            },
        );
    prop_oneof![
        (
            service(),
            vec(mirror(), 1..4),
            option::of(prefix()),
            option::of(any::<bool>()),
            any::<bool>()
        )
            .prop_map(|(service, mirrors, from, peek, automatic)| {
                Divert {
                    service,
                    mirrors,
                    from,
                    peek,
                    automatic,
                }
                .into()
            }),
        (
            service(),
            option::of(prefix()),
            vec(name(), 0..4),
            any::<bool>(),
            any::<bool>()
        )
            .prop_map(|(service, from, names, continues, more)| {
                PeekNames {
                    service,
                    from,
                    names,
                    continues,
                    more,
                }
                .into()
            }),
        (
            service(),
            vec(mirror(), 1..4),
            option::of(prefix()),
            (tcp, splice),
            (option::of(mirror_address()), option::of(percent())),
            any::<bool>()
        )
            .prop_map(
                |(service, mirrors, from, (tcp, splice), (from_mirror, share), automatic)| {
                    Redirect {
                        service,
                        mirrors,
                        from,
                        tcp,
                        splice,
                        from_mirror,
                        share,
                        automatic,
                    }
                    .into()
                }
            ),
        (service(), option::of(prefix()), any::<bool>()).prop_map(|(service, from, automatic)| {
            Restore {
                service,
                from,
                automatic,
            }
            .into()
        }),
        service().prop_map(|service| Hold { service }.into()),
        service().prop_map(|service| ReleaseHold { service }.into()),
        Just(Liveness {}.into()),
        (option::of(service()), option::of(1..=MAX_PAGE))
            .prop_map(|(service, limit)| DecisionsQuery { service, limit }.into()),
        Just(Mirrors {}.into()),
        (
            option::of(cursor()),
            option::of(1..=MAX_PAGE),
            option::of(service())
        )
            .prop_map(|(after, limit, service)| ConnectionsQuery {
                after,
                limit,
                service
            }
            .into()),
        (option::of(any::<u64>()), any::<bool>()).prop_map(|(id, cancel)| RedirectsQuery {
            id,
            cancel
        }
        .into()),
        Just(List {}.into()),
        grouping().prop_map(|by| Stats { by }.into()),
        grouping().prop_map(|by| Watch {
            by: by.unwrap_or_default()
        }
        .into()),
        name_set().prop_map(Method::from),
        name().prop_map(|name| NameUnset { name }.into()),
        (option::of(name()), option::of(1..=MAX_PAGE)).prop_map(|(after, limit)| NameList {
            after,
            limit
        }
        .into()),
        (".{0,40}", option::of(name()), option::of(0..=MAX_TTL))
            .prop_map(|(zone, origin, ttl)| NameImport { zone, origin, ttl }.into()),
        Just(Version {}.into()),
    ]
}

/// Checks that a value comes back from its text, and that JSON carries just that text.
fn round_trips<T>(value: &T)
where
    T: FromStr<Err = TextError> + Display + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let text = value.to_string();
    assert_eq!(text.parse().as_ref(), Ok(value), "{text}");
    let json = serde_json::to_string(value).expect("plain data");
    assert_eq!(json, format!("\"{text}\""));
    assert_eq!(
        &serde_json::from_str::<T>(&json).expect("what was written"),
        value
    );
}

proptest! {
    #[test]
    fn services(value in service()) { round_trips(&value) }

    #[test]
    fn mirrors(value in mirror()) { round_trips(&value) }

    /// A hold on all of an address covers all there; one on a service covers that service.
    #[test]
    fn a_service_is_covered_by_itself_and_by_its_address(value in service()) {
        prop_assert!(value.covers(&value));
        let whole = Service { port: None, protocol: None, ..value };
        prop_assert!(whole.covers(&value));
        prop_assert_eq!(value.covers(&whole), value == whole);
    }

    #[test]
    fn mirror_addresses(value in mirror_address()) { round_trips(&value) }

    #[test]
    fn prefixes(value in prefix()) { round_trips(&value) }

    #[test]
    fn cursors(value in cursor()) { round_trips(&value) }

    #[test]
    fn names(value in name()) { round_trips(&value) }

    #[test]
    fn name_addresses(value in name_address()) { round_trips(&value) }

    #[test]
    fn requests(id in any::<u64>(), method in method()) {
        let request = Request { id, method };
        prop_assert_eq!(read_request(request.to_line().as_bytes()), Ok(request));
    }

    #[test]
    fn answers(id in option::of(any::<u64>()), message in ".{0,40}") {
        let answer = Answer::error(id, ErrorCode::Refused, message);
        let line = answer.to_line();
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert_eq!(Answer::from_line(line.as_bytes()).expect("an answer"), answer);
    }

    /// Whatever reads as a text form is written in its canonical form, and that reads as the same.
    #[test]
    fn texts_near_the_right_ones(text in r"(\[?([0-9a-f]{0,4}:|[0-9]{1,3}\.){0,7}[0-9a-f]{0,4}\]?)(:[0-9]{0,6})?([/*][a-z0-9]{0,6})?") {
        fn check<T: FromStr<Err = TextError> + Display + PartialEq + Debug>(text: &str) {
            match text.parse::<T>() {
                Ok(value) => assert_eq!(value.to_string().parse(), Ok(value)),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        check::<Service>(&text);
        check::<Mirror>(&text);
        check::<MirrorAddress>(&text);
        check::<ClientPrefix>(&text);
        check::<Cursor>(&text);
        check::<DomainName>(&text);
        check::<NameAddress>(&text);
    }

    /// Any bytes are either a request or get an answer that fits in a line.
    #[test]
    fn any_bytes_are_answered(line in vec(any::<u8>(), 0..300)) {
        if let Err(answer) = read_request(&line) {
            prop_assert!(answer.to_line().ends_with('\n'));
        }
    }

    /// The same, for lines that differ from a right one in a few bytes.
    #[test]
    fn damaged_requests_are_answered(
        method in method(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut line = Request { id: 7, method }.to_line().into_bytes();
        for (at, byte) in damage {
            let at = at.index(line.len());
            line[at] = byte;
        }
        if let Err(answer) = read_request(&line) {
            prop_assert!(answer.id.is_none() || answer.id.is_some_and(|id| id < 1000));
            prop_assert!(Answer::from_line(answer.to_line().as_bytes()).is_ok());
        }
    }
}

#[test]
fn words() {
    for protocol in [
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Icmp,
        Protocol::Other(47),
    ] {
        round_trips(&protocol);
    }
    for tcp in [TcpMove::Rewrite, TcpMove::Reset] {
        round_trips(&tcp);
    }
    for health in [Health::Up, Health::Down, Health::Unknown] {
        round_trips(&health);
    }
    for wish in [Wish::None, Wish::Drain, Wish::Maintenance] {
        round_trips(&wish);
    }
    for state in [DiversionState::Active, DiversionState::Restored] {
        round_trips(&state);
    }
    for state in [
        ConnectionState::Opening,
        ConnectionState::Established,
        ConnectionState::Closing,
        ConnectionState::Closed,
        ConnectionState::Active,
    ] {
        round_trips(&state);
    }
    for code in [
        ErrorCode::Malformed,
        ErrorCode::TooLarge,
        ErrorCode::UnsupportedVersion,
        ErrorCode::UnknownMethod,
        ErrorCode::InvalidParams,
        ErrorCode::Refused,
        ErrorCode::Held,
        ErrorCode::Internal,
    ] {
        round_trips(&code);
    }
}
