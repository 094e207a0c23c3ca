//! What an operator may say of a check, and what he is told when it makes no sense.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::time::Duration;

use monitor::check::{CheckConfig, Checks, Combine, Kind, StartFault};
use support::{config, refusal, target};
use tokio::sync::mpsc;

#[test]
fn what_is_usual_is_filled_in() {
    let check = config("kind = 'tcp'");
    assert_eq!(check.interval, Duration::from_secs(2));
    assert_eq!(check.timeout, Duration::from_secs(1));
    assert_eq!((check.rise, check.fall, check.port), (2, 3, None));

    let check = config("kind = 'http'");
    let Kind::Http(http) = check.kind else {
        panic!("{check:?}")
    };
    assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/"));
    assert!(http.verify && !http.tls);
    for (status, good) in [
        (199, false),
        (200, true),
        (302, true),
        (399, true),
        (400, false),
    ] {
        assert_eq!(http.status.contains(status), good, "{status}");
    }

    // A short interval shortens the timeout with it.
    assert_eq!(
        config("kind = 'tcp'\ninterval = '200ms'").timeout,
        Duration::from_millis(200)
    );
    // An agent's word counts at once.
    let agent = config("kind = 'agent'\nport = 9000");
    assert_eq!((agent.rise, agent.fall), (1, 1));
    assert_eq!(CheckConfig::new(agent.kind.clone()).fall, 1);
}

#[test]
fn every_field_is_read() {
    let check = config(
        "kind = 'prometheus'\ninterval = '5s'\ntimeout = '500ms'\nrise = 4\nfall = 5\nport = 9100\n\
         path = '/m?x=1'\nmetric = 'node_load1'\nfull = 8\nmax = 12.5\ncombine = 'max'\n\
         labels = { cpu = '0', mode = 'idle' }\nhost = 'h:1'\ntls = true\nverify = false",
    );
    assert_eq!(check.interval, Duration::from_secs(5));
    assert_eq!(check.timeout, Duration::from_millis(500));
    assert_eq!((check.rise, check.fall, check.port), (4, 5, Some(9100)));
    let Kind::Prometheus(metric) = check.kind else {
        panic!("{check:?}")
    };
    assert_eq!(
        (metric.full, metric.max, metric.combine),
        (8.0, Some(12.5), Combine::Max)
    );
    assert_eq!(metric.labels.0["mode"], "idle");
    assert!(metric.tls && !metric.verify);
}

#[test]
fn nonsense_is_refused_and_its_field_is_named() {
    for (text, expected) in [
        // The shape.
        ("", "missing field `kind`"),
        (
            "kind = 'htp'",
            "unknown variant `htp`, expected one of `tcp`, `http`",
        ),
        (
            "kind = 'tcp'\nintervall = '1s'",
            "unknown field `intervall`",
        ),
        (
            "kind = 'tcp'\nintervall = '1s'",
            "any check's: `interval`, `timeout`",
        ),
        ("kind = 'tcp'\npath = '/'", "unknown field `path`"),
        (
            "kind = 'http'\npth = '/'",
            "unknown field `pth`, expected one of `method`, `path`",
        ),
        ("kind = 3", "`kind` must be a word"),
        ("kind = 'udp'", "`send`"),
        ("kind = 'dns'", "missing field `name`"),
        ("kind = 'prometheus'\nfull = 1", "missing field `metric`"),
        ("kind = 'prometheus'\nmetric = 'a'", "missing field `full`"),
        ("kind = 'command'", "missing field `command`"),
        // What any check has.
        ("kind = 'tcp'\ninterval = 2", "`interval`"),
        (
            "kind = 'tcp'\ninterval = '9ms'",
            "`interval` is 9ms; it must be from 10ms",
        ),
        ("kind = 'tcp'\ninterval = '25h'", "`interval` is 1day 1h"),
        ("kind = 'tcp'\ninterval = 'soon'", "`interval`"),
        (
            "kind = 'tcp'\ntimeout = '3s'",
            "`timeout` is 3s; it must be from 10ms to the interval, which is 2s",
        ),
        ("kind = 'tcp'\ntimeout = '0s'", "`timeout` is 0s"),
        ("kind = 'tcp'\nrise = 0", "`rise` is 0"),
        ("kind = 'tcp'\nfall = 0", "`fall` is 0"),
        ("kind = 'tcp'\nfall = -1", "`fall`"),
        ("kind = 'tcp'\nport = 0", "`port` is 0"),
        ("kind = 'tcp'\nport = 65536", "`port`"),
        (
            "kind = 'icmp'\nport = 7",
            "`port` is given, but an icmp check goes to no port",
        ),
        // HTTP.
        ("kind = 'http'\nmethod = 'GE T'", "`method`"),
        ("kind = 'http'\nmethod = 'CONNECT'", "`method`"),
        ("kind = 'http'\nmethod = 'HEAD'\nbody = 'x'", "`body`"),
        ("kind = 'http'\npath = '/a b'", "`path`"),
        ("kind = 'http'\nhost = 'a b'", "`host`"),
        ("kind = 'http'\nhost = 'user@name'", "`host`"),
        ("kind = 'http'\nhost = '-.-'", "`host`"),
        ("kind = 'http'\nmax-latency = '1s'", "`max-latency`"),
        ("kind = 'http'\nheaders = { 'a b' = '1' }", "`headers`"),
        (
            "kind = 'http'\nheaders = { a = \"1\\r\\nb: 2\" }",
            "`headers`",
        ),
        ("kind = 'http'\nheaders = { Host = 'h' }", "`headers`"),
        ("kind = 'http'\nstatus = 99", "status from 100 to 599"),
        ("kind = 'http'\nstatus = 600", "status from 100 to 599"),
        (
            "kind = 'http'\nstatus = '300-200'",
            "status from 100 to 599",
        ),
        ("kind = 'http'\nstatus = []", "status from 100 to 599"),
        ("kind = 'http'\nstatus = 'ok'", "status from 100 to 599"),
        (
            "kind = 'http'\nverify = false",
            "`verify` does nothing without `tls = true`",
        ),
        (
            "kind = 'http'\nca = 'x.pem'",
            "`ca` does nothing without `tls = true`",
        ),
        (
            "kind = 'http'\ntls = true\nverify = false\nca = 'x.pem'",
            "`ca` and `verify = false` exclude",
        ),
        // The others.
        ("kind = 'dns'\nname = 'a..b'", "`name`"),
        ("kind = 'dns'\nname = 'a'\ntype = 'XYZ'", "`type`"),
        (
            "kind = 'dns'\nname = 'a'\nrcode = 'FINE'",
            "expected one of NOERROR",
        ),
        (
            "kind = 'dns'\nname = 'a'\nrcode = 'NXDOMAIN'\nanswer = '1.2.3.4'",
            "`answer`",
        ),
        ("kind = 'udp'\nsend = ''", "`send`: from 1"),
        ("kind = 'udp'\nsend-hex = '0'", "two hexadecimal digits"),
        (
            "kind = 'udp'\nsend = 'a'\nsend-hex = '00'",
            "`send` and `send-hex` exclude",
        ),
        (
            "kind = 'udp'\nsend = 'a'\nexpect = 'a'\nexpect-hex = '00'",
            "`expect` and `expect-hex`",
        ),
        ("kind = 'prometheus'\nmetric = 'a b'\nfull = 1", "`metric`"),
        ("kind = 'prometheus'\nmetric = ''\nfull = 1", "`metric`"),
        ("kind = 'prometheus'\nmetric = 'a'\nfull = 0", "`full`"),
        ("kind = 'prometheus'\nmetric = 'a'\nfull = nan", "`full`"),
        (
            "kind = 'prometheus'\nmetric = 'a'\nfull = 1\nmax = -1",
            "`max`",
        ),
        (
            "kind = 'prometheus'\nmetric = 'a'\nfull = 1\nmax = inf",
            "`max`",
        ),
        ("kind = 'command'\ncommand = []", "`command`"),
        ("kind = 'command'\ncommand = ['']", "`command`"),
        ("kind = 'command'\ncommand = \"true\"", "`command`"),
        ("kind = 'command'\ncommand = [\"a\\u0000\"]", "`command`"),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{text:?} gave: {message}");
        assert!(!message.contains('\n'), "{text:?} gave: {message}");
    }
}

#[tokio::test]
async fn checks_that_cannot_be_made_are_not_started() {
    let (sender, _reports) = mpsc::channel(1);
    let start = |address: &str, text: &str| {
        let checks = vec![config("kind = 'icmp'"), config(text)];
        let error = Checks::start(
            vec![target(address.parse().unwrap(), checks)],
            sender.clone(),
        )
        .unwrap_err();
        assert_eq!((error.mirror.as_str(), error.check), ("one", 1));
        error
    };
    let error = start("127.0.0.1:0", "kind = 'tcp'");
    assert!(matches!(error.source, StartFault::NoPort), "{error:?}");
    assert_eq!(error.to_string(), "mirror one, check 1 (tcp)");

    let error = start(
        "127.0.0.1:1",
        "kind = 'http'\ntls = true\nca = '/nowhere.pem'",
    );
    assert!(
        error.source.to_string().contains("/nowhere.pem"),
        "{error:?}"
    );
    let empty = tempfile::NamedTempFile::new().unwrap();
    let path = empty.path().display();
    let error = start(
        "127.0.0.1:1",
        &format!("kind = 'http'\ntls = true\nca = '{path}'"),
    );
    assert!(
        error.source.to_string().contains("no usable certificate"),
        "{error:?}"
    );

    // A check's own port is enough, and some checks need none.
    let checks = vec![config("kind = 'tcp'\nport = 9"), config("kind = 'icmp'")];
    let watched =
        Checks::start(vec![target("127.0.0.1:0".parse().unwrap(), checks)], sender).unwrap();
    assert_eq!(watched.len(), 2);
}
