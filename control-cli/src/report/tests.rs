//! What people and programs see of each result.

use super::*;
use control_protocol::{
    DiversionInfo, DiversionState, MirrorInfo, MirrorLiveness, OneWayStats, PeekInfo, RedirectInfo,
    Traffic,
};

const TERMINAL: Format = Format::Terminal { bold: false };

fn written(
    format: Format,
    report: impl FnOnce(&mut Output<&mut Vec<u8>>) -> io::Result<()>,
) -> String {
    let mut bytes = Vec::new();
    report(&mut Output::new(&mut bytes, format)).expect("memory takes it");
    String::from_utf8(bytes).expect("text")
}

fn request() -> Redirect {
    Redirect {
        service: "10.1.0.1:80/tcp".parse().expect("a service"),
        mirrors: ["10.2.0.2:80", "10.2.0.3:80*3"]
            .map(|text| text.parse().expect(text))
            .into(),
        from: Some("10.0.0.0/8".parse().expect("a prefix")),
        tcp: control_protocol::TcpMove::Splice,
        splice: control_protocol::Splice::default(),
        from_mirror: None,
        share: None,
        automatic: false,
    }
}

#[test]
fn changes_are_told_in_sentences() {
    let Redirect {
        service,
        mirrors,
        from,
        ..
    } = request();
    let divert_request = Divert {
        service,
        mirrors,
        from: None,
        peek: None,
        automatic: false,
    };
    assert_eq!(
        written(TERMINAL, |output| divert(
            output,
            &divert_request,
            &DivertResult {
                replaced: false,
                held: true
            }
        )),
        "10.1.0.1:80/tcp: new connections go to 10.2.0.2:80, 10.2.0.3:80*3\n\
         10.1.0.1:80/tcp is held now: programs leave it alone until `shuntctl release \
         10.1.0.1:80/tcp`\n"
    );

    let result = RedirectResult {
        replaced: true,
        held: false,
        id: 7,
        outcome: Outcome {
            moved: 12,
            waiting: 2,
            reset: 3,
            kept: 1,
            refused: [("tls".to_owned(), 4)].into(),
            longest_hold_us: 1234,
            ..Outcome::default()
        },
    };
    assert_eq!(
        written(TERMINAL, |output| redirect(output, &request(), &result)),
        "10.1.0.1:80/tcp from 10.0.0.0/8: new connections go to 10.2.0.2:80, 10.2.0.3:80*3, in \
         place of the earlier mirrors\n\
         existing connections:\n  \
           moved                            12\n  \
           waiting                           2\n  \
           reset                             3\n  \
           kept                              1\n  \
           refused (tls)                     4\n\
         longest hold of a request: 1.2ms\n\
         see what becomes of them: shuntctl redirects 7\n"
    );
    assert_eq!(
        written(Format::Plain, |output| redirect(
            output,
            &request(),
            &result
        )),
        "replaced\ttrue\nheld\tfalse\nid\t7\nmoved\t12\nwaiting\t2\nleft\t0\nreset\t3\nkept\t1\n\
         refused (tls)\t4\nlongest_hold_us\t1234\n"
    );

    let restore_request = Restore {
        service,
        from,
        automatic: false,
    };
    for (remaining, rest) in [
        (0, "no connection is left on a mirror"),
        (1, "1 connection stays on its mirror until it ends"),
        (2, "2 connections stay on their mirror until they end"),
    ] {
        assert_eq!(
            written(TERMINAL, |output| restore(
                output,
                &restore_request,
                &RestoreResult {
                    remaining,
                    held: false
                }
            )),
            format!("10.1.0.1:80/tcp from 10.0.0.0/8: restored; {rest}\n")
        );
    }
}

#[test]
fn diversions_have_a_line_for_each_mirror() {
    let mirror = |last, weight, connections| MirrorInfo {
        address: [10, 2, 0, last].into(),
        port: Some(80),
        weight,
        connections,
    };
    let result = ListResult {
        diversions: vec![
            DiversionInfo {
                service: "10.1.0.1:80/tcp".parse().expect("a service"),
                from: None,
                mirrors: vec![mirror(2, 1, 12), mirror(3, 0, 1)],
                state: DiversionState::Active,
                held: true,
                peek: None,
            },
            DiversionInfo {
                service: "10.1.0.9".parse().expect("a service"),
                from: Some("10.0.0.0/8".parse().expect("a prefix")),
                mirrors: vec![MirrorInfo {
                    port: None,
                    ..mirror(4, 0, 7)
                }],
                state: DiversionState::Restored,
                held: false,
                peek: Some(PeekInfo { names: Some(2) }),
            },
        ],
        holds: vec![
            "10.1.0.1".parse().expect("a service"),
            "10.1.0.2:25".parse().expect("a service"),
        ],
    };
    insta::assert_snapshot!(written(TERMINAL, |output| list(output, &result)), @r"
    SERVICE          FROM        MIRROR       WEIGHT  CONNECTIONS  STATE     HELD  PEEK
    10.1.0.1:80/tcp  -           10.2.0.2:80       1           12  active    held  -
    10.1.0.1:80/tcp  -           10.2.0.3:80       0            1  active    held  -
    10.1.0.9         10.0.0.0/8  10.2.0.4          0            7  restored  -     2 names
    held: 10.1.0.1, 10.1.0.2:25
    ");
    insta::assert_snapshot!(written(Format::Plain, |output| list(output, &result)), @r"
    10.1.0.1:80/tcp	-	10.2.0.2:80	1	12	active	held	-
    10.1.0.1:80/tcp	-	10.2.0.3:80	0	1	active	held	-
    10.1.0.9	10.0.0.0/8	10.2.0.4	0	7	restored	-	2 names
    ");
}

#[test]
fn holds_are_told_in_sentences() {
    let service: Service = "10.1.0.1:80/tcp".parse().expect("a service");
    for (changed, texts) in [
        (true, ["held", "released"]),
        (false, ["held already", "it wasn't held"]),
    ] {
        let result = HoldResult { changed };
        assert_eq!(
            [
                written(TERMINAL, |output| hold(output, service, &result)),
                written(TERMINAL, |output| release(output, service, &result)),
            ],
            texts.map(|text| format!("10.1.0.1:80/tcp: {text}\n"))
        );
        assert_eq!(
            written(Format::Plain, |output| hold(output, service, &result)),
            format!("changed\t{changed}\n")
        );
    }
}

#[test]
fn vital_signs_have_a_line_for_each_mirror() {
    let alive = MirrorLiveness {
        mirror: ([10, 2, 0, 2], 80).into(),
        connections: 40,
        heard_ms: Some(3),
        unanswered: 0,
        waiting_ms: None,
        refused: 1,
        resets: 2,
        icmp_errors: 3,
    };
    let silent = MirrorLiveness {
        mirror: ([10, 2, 0, 3], 80).into(),
        heard_ms: Some(1412),
        unanswered: 57,
        waiting_ms: Some(1409),
        ..alive
    };
    let result = LivenessResult {
        mirrors: vec![alive, silent],
    };
    insta::assert_snapshot!(written(TERMINAL, |output| liveness(output, &result)), @r"
    MIRROR       CONNECTIONS    HEARD  UNANSWERED  WAITING  REFUSED  RESETS  ICMP ERRORS
    10.2.0.2:80           40  3.00 ms           0        -        1       2            3
    10.2.0.3:80           40   1.41 s          57   1.41 s        1       2            3
    ");
    insta::assert_snapshot!(written(Format::Plain, |output| liveness(output, &result)), @r"
    10.2.0.2:80	40	3	0	-	1	2	3
    10.2.0.3:80	40	1412	57	1409	1	2	3
    ");
}

#[test]
fn redirects_have_a_line_each() {
    let outcome = Outcome {
        moved: 12,
        waiting: 2,
        left: 1,
        refused: [("ssh".to_owned(), 1), ("tls".to_owned(), 4)].into(),
        ..Outcome::default()
    };
    let result = RedirectsResult {
        redirects: vec![
            RedirectInfo {
                id: 6,
                service: "10.1.0.9".parse().expect("a service"),
                age_seconds: 70,
                outcome: Outcome::default(),
            },
            RedirectInfo {
                id: 7,
                service: "10.1.0.1:80/tcp".parse().expect("a service"),
                age_seconds: 3,
                outcome,
            },
        ],
    };
    insta::assert_snapshot!(written(TERMINAL, |output| redirects(output, &result)), @r"
    ID  SERVICE          SECONDS  MOVED  WAITING  LEFT  RESET  KEPT  REFUSED
    6   10.1.0.9              70      0        0     0      0     0  -
    7   10.1.0.1:80/tcp        3     12        2     1      0     0  1 ssh, 4 tls
    ");
    insta::assert_snapshot!(written(Format::Plain, |output| redirects(output, &result)), @r"
    6	10.1.0.9	70	0	0	0	0	0	-
    7	10.1.0.1:80/tcp	3	12	2	1	0	0	1 ssh, 4 tls
    ");
}

#[test]
fn a_person_is_told_when_a_list_is_empty() {
    let result = ListResult {
        diversions: Vec::new(),
        holds: Vec::new(),
    };
    assert_eq!(
        written(TERMINAL, |output| list(output, &result)),
        "no diversions\n"
    );
    assert_eq!(written(Format::Plain, |output| list(output, &result)), "");

    let empty = |format| {
        written(format, |output| {
            let mut report = Connections::new();
            report.page(output, &[])?;
            report.end(output)
        })
    };
    assert_eq!(empty(TERMINAL), "no connections\n");
    assert_eq!(empty(Format::Plain), "");
    assert_eq!(empty(Format::Json), "{\"connections\":[]}\n");
}

#[test]
fn counters_have_a_column_for_each_worker() {
    let worker = |packets, no_route| Counters {
        received: Traffic {
            packets,
            bytes: packets * 1000,
        },
        created: packets / 10,
        drops: [("malformed", 0), ("no_route", no_route)]
            .map(|(reason, count)| (reason.to_owned(), count))
            .into(),
        ..Counters::default()
    };
    let workers = vec![worker(70, 0), worker(50_000, 2)];
    let mut total = Counters::default();
    workers.iter().for_each(|counters| total.add(counters));
    let result = StatsResult {
        uptime_seconds: 3700,
        workers,
        total,
        groups: None,
    };

    insta::assert_snapshot!(written(TERMINAL, |output| stats(output, &result)), @r"
    up for 1h 1m
    COUNTER                       TOTAL  WORKER 0  WORKER 1
    received.packets              50070        70     50000
    received.bytes              50.1 MB   70.0 kB   50.0 MB
    translated_forward.packets        0         0         0
    translated_forward.bytes        0 B       0 B       0 B
    translated_reverse.packets        0         0         0
    translated_reverse.bytes        0 B       0 B       0 B
    passed.packets                    0         0         0
    passed.bytes                    0 B       0 B       0 B
    held.packets                      0         0         0
    held.bytes                      0 B       0 B       0 B
    handed_over                       0         0         0
    reassembled                       0         0         0
    connections                       0         0         0
    created                        5007         7      5000
    expired                           0         0         0
    evicted                           0         0         0
    retried                           0         0         0
    moved                             0         0         0
    reset                             0         0         0
    drops.no_route                    2         0         2
    ");
    let plain = written(Format::Plain, |output| stats(output, &result));
    assert!(plain.starts_with("uptime_seconds\t3700\nreceived.packets\t50070\t70\t50000\n"));
    assert!(plain.ends_with("drops.malformed\t0\t0\t0\ndrops.no_route\t2\t0\t2\n"));
}

#[test]
fn groups_have_a_line_each_by_what_they_are_taken_together_by() {
    let group = GroupStats {
        service: Some("10.1.0.1:80/tcp".parse().expect("a service")),
        from: None,
        mirror: Some(([10, 2, 0, 2], 80).into()),
        clients: None,
        connections: 12,
        opened: 40,
        refused: 1,
        unanswered: 2,
        icmp_errors: 3,
        forward: OneWayStats {
            packets: 1000,
            bytes: 123_456,
            retransmissions: 4,
            resets: 5,
            ..OneWayStats::default()
        },
        reverse: OneWayStats {
            packets: 900,
            bytes: 7_654_321,
            retransmissions: 6,
            ..OneWayStats::default()
        },
        mirror_handshake: Distribution::default(),
        client_handshake: Distribution::default(),
        mirror_rtt: Distribution::default(),
        client_rtt: Distribution::default(),
        first_byte: Distribution {
            count: 400,
            p50_us: 850,
            p90_us: 1_200,
            p99_us: 45_000,
            max_us: 60_000,
            mean_us: 2_000,
        },
    };
    let rest = GroupStats {
        service: None,
        mirror: None,
        first_byte: Distribution::default(),
        ..group.clone()
    };
    insta::assert_snapshot!(
        written(TERMINAL, |output| groups(output, Grouping::Mirror, std::slice::from_ref(&group))), @r"
    SERVICE          FROM  MIRROR       CONNECTIONS  OPENED  REFUSED  UNANSWERED  RESETS  ICMP ERRORS  FWD PACKETS  FWD BYTES  REV PACKETS  REV BYTES  RETRANSMISSIONS  ANSWERS     P50      P90      P99  CLIENT RTT  MIRROR RTT
    10.1.0.1:80/tcp  -     10.2.0.2:80           12      40        1           2       5            3         1000   123.5 kB          900     7.7 MB               10      400  850 µs  1.20 ms  45.0 ms           -           -
    ");
    insta::assert_snapshot!(
        written(TERMINAL, |output| groups(output, Grouping::Client, &[rest])), @r"
    CLIENTS  CONNECTIONS  OPENED  REFUSED  UNANSWERED  RESETS  ICMP ERRORS  FWD PACKETS  FWD BYTES  REV PACKETS  REV BYTES  RETRANSMISSIONS  ANSWERS  P50  P90  P99  CLIENT RTT  MIRROR RTT
    others            12      40        1           2       5            3         1000   123.5 kB          900     7.7 MB               10        0    -    -    -           -           -
    ");
    let update = WatchResult {
        interval_ms: 1003,
        groups: vec![group],
    };
    insta::assert_snapshot!(
        written(Format::Plain, |output| super::update(output, Grouping::Service, &update)), @r"
    interval_ms	1003
    10.1.0.1:80/tcp	-	12	40	1	2	5	3	1000	123456	900	7654321	10	400	850	1200	45000	-	-
    ");
    assert_eq!(
        written(TERMINAL, |output| groups(output, Grouping::Mirror, &[])),
        "nothing has been measured\n"
    );
}
