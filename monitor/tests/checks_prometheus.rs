//! The check by a metric: the text format, and endpoints that are broken.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::collections::BTreeMap;

use monitor::check::{Combine, Labels, Reading, Scan, Selector, Verdict};
use proptest::prelude::*;
use support::{answers, closed, find, server, silent};
use tokio::io::AsyncWriteExt;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels(
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    )
}

fn read_with(text: &[u8], metric: &str, labels: &Labels, combine: Combine) -> Reading {
    let mut scan = Scan::new(Selector {
        metric,
        labels,
        combine,
    });
    scan.feed(text);
    scan.finish()
}

fn read(text: &str, pairs: &[(&str, &str)]) -> Reading {
    read_with(text.as_bytes(), "load", &labels(pairs), Combine::Sum)
}

/// From the description of the format, shortened, with what else occurs.
const EXAMPLE: &str = r#"
# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400"}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\""} 1.458255915e9
metric_without_timestamp_and_labels 12.47
something_weird{problem="division by zero"} +Inf -3982045
# A histogram
http_request_duration_seconds_bucket{le="+Inf"} 144320
http_request_duration_seconds_sum 53423
  spaced  { a = "1" , b="2", }  7
"#;

#[test]
fn the_example_of_the_format_is_read() {
    let read = |metric, pairs: &[(&str, &str)], combine| {
        read_with(EXAMPLE.as_bytes(), metric, &labels(pairs), combine)
    };
    let sum = Combine::Sum;
    assert_eq!(
        read("http_requests_total", &[], sum),
        Reading::Value(1030.0)
    );
    assert_eq!(
        read("http_requests_total", &[], Combine::Max),
        Reading::Value(1027.0)
    );
    assert_eq!(
        read("http_requests_total", &[("code", "400")], sum),
        Reading::Value(3.0)
    );
    assert_eq!(
        read("http_requests_total", &[("code", "500")], sum),
        Reading::Missing
    );
    assert_eq!(
        read("metric_without_timestamp_and_labels", &[], sum),
        Reading::Value(12.47)
    );
    assert_eq!(
        read("metric_without_timestamp_and_labels", &[("a", "")], sum),
        Reading::Missing
    );
    assert_eq!(
        read("http_request_duration_seconds", &[], sum),
        Reading::Missing
    );
    let path = [
        ("path", "C:\\DIR\\FILE.TXT"),
        ("error", "Cannot find file:\n\"FILE.TXT\""),
    ];
    assert_eq!(
        read("msdos_file_access_time_seconds", &path, sum),
        Reading::Value(1.458255915e9)
    );
    assert_eq!(read("spaced", &[("b", "2")], sum), Reading::Value(7.0));
    assert!(matches!(
        read("something_weird", &[], sum),
        Reading::Malformed(_)
    ));
}

#[test]
fn what_is_no_number_is_never_taken_for_one() {
    for line in [
        "load NaN\n",
        "load +Inf\n",
        "load -Inf\n",
        "load\n",
        "load{}\n",
        "load {a=\"b\"}\n",
        "load abc\n",
        "load 1e999\n",
        "load{a=\"b\" 1\n",
        "load{a=b} 1\n",
        "load{a} 1\n",
        "load{a=\"b\"c=\"d\"} 1\n",
        "load{a=\"b\\",
        // One of several.
        "load{a=\"1\"} 1\nload{a=\"2\"} NaN\n",
        "load{a=\"1\"} NaN\nload{a=\"2\"} 1\n",
        // The end is missing, so it may have been 12.5.
        "load 1",
    ] {
        assert!(
            matches!(read(line, &[]), Reading::Malformed(_)),
            "{line:?}: {:?}",
            read(line, &[])
        );
    }
    for line in [
        "",
        "\n",
        "# load 1\n",
        "load2 1\n",
        "my_load 1\n",
        "loa",
        "loads",
        "load_ 3\n",
    ] {
        assert_eq!(read(line, &[]), Reading::Missing, "{line:?}");
    }
}

#[test]
fn a_line_of_any_length_is_survived() {
    let mut text = format!("load{{a=\"{}\"}} 1\n", "x".repeat(1 << 20));
    text.push_str("load{a=\"1\"} 2\n");
    assert!(
        matches!(read(&text, &[]), Reading::Malformed(_)),
        "its value is beyond what is looked at"
    );
    let text = format!("other{{a=\"{}\"}} 1\nload 2\n", "x".repeat(1 << 20));
    assert_eq!(read(&text, &[]), Reading::Value(2.0));
}

/// A value of a label in the text format.
fn quoted(value: &str) -> String {
    let escaped = value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{escaped}\"")
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        tail in "load[ {]?[a-z=\",} \\\\]{0,20}[0-9.eE+-]{0,8}\n?",
    ) {
        let _ = read_with(&bytes, "load", &labels(&[]), Combine::Sum);
        let _ = read(&tail, &[("a", "b")]);
    }

    /// Series that are written out are read again, whatever their labels are, and however they are
    /// cut into pieces.
    #[test]
    fn what_is_written_is_read_again(
        series in prop::collection::vec(
            (prop::sample::select(vec!["load", "loads", "other"]),
             prop::collection::btree_map("[a-c]", "[xy\\\\\"\n}{,= #\u{e4}]{0,4}", 0..4),
             -1.0e6..1.0e6_f64,
             any::<Option<i64>>()),
            0..12),
        wanted in prop::collection::btree_map("[a-c]", "[xy]{0,1}", 0..2),
        cut in 1..50_usize,
    ) {
        let mut text = String::from("# TYPE load gauge\n");
        for (name, labels, value, timestamp) in &series {
            let labels: Vec<_> =
                labels.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
            text.push_str(name);
            if !labels.is_empty() {
                text.push_str(&format!("{{{}}}", labels.join(",")));
            }
            text.push_str(&format!(" {value}"));
            if let Some(timestamp) = timestamp {
                text.push_str(&format!(" {timestamp}"));
            }
            text.push('\n');
        }
        let has = |labels: &BTreeMap<String, String>| {
            wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
        };
        let values: Vec<f64> = series
            .iter()
            .filter(|(name, labels, ..)| *name == "load" && has(labels))
            .map(|(_, _, value, _)| *value)
            .collect();
        let wanted = Labels(wanted.clone());
        for combine in [Combine::Sum, Combine::Max] {
            let mut scan = Scan::new(Selector { metric: "load", labels: &wanted, combine });
            for piece in text.as_bytes().chunks(cut) {
                scan.feed(piece);
            }
            let expected = match combine {
                Combine::Sum => values.iter().copied().reduce(|a, b| a + b),
                Combine::Max => values.iter().copied().reduce(f64::max),
            };
            prop_assert_eq!(scan.finish(), expected.map_or(Reading::Missing, Reading::Value));
        }
    }
}

fn metrics(text: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

const CHECK: &str = "kind = 'prometheus'\nmetric = 'load'\nfull = 8\nmax = 12";

#[tokio::test]
async fn a_metric_tells_the_load() {
    let address = answers("GET /metrics HTTP/1.1\r\n", metrics("load 2\n")).await;
    let finding = find(address, CHECK).await;
    assert_eq!((finding.verdict, finding.load), (Verdict::Good, Some(0.25)));
    assert_eq!(finding.detail, "load is 2; load 0.25");

    let address = answers("\r\n\r\n", metrics("load 13\n")).await;
    let finding = find(address, CHECK).await;
    assert_eq!((finding.verdict, finding.load), (Verdict::Bad, Some(1.625)));
    assert_eq!(finding.detail, "load is 13, more than 12; load 1.62");
}

#[tokio::test]
async fn an_unknown_load_is_not_an_idle_mirror() {
    let endless = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nload 1\n").await;
        let comment = format!("#{}\n", "x".repeat(1000)).repeat(64);
        while stream.write_all(comment.as_bytes()).await.is_ok() {}
    })
    .await;
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nload 1\n";
    for (address, expected) in [
        (answers("\r\n\r\n", metrics("")).await, "load is missing"),
        (
            answers("\r\n\r\n", metrics("load NaN\n")).await,
            "load has no number: load NaN",
        ),
        (
            answers("\r\n\r\n", metrics("load -1\n")).await,
            "load is -1, which is no load",
        ),
        (
            answers("\r\n\r\n", metrics("<html>load 1</html>\n")).await,
            "load is missing",
        ),
        (
            answers(
                "\r\n\r\n",
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            )
            .await,
            "status 404 instead of metrics",
        ),
        (answers("\r\n\r\n", short).await, "HTTP: "),
        (answers("\r\n\r\n", "garbage").await, "HTTP: "),
        (closed().await, "connect: "),
        (endless, "more than 16 MiB of metrics"),
    ] {
        let finding = find(address, CHECK).await;
        assert_eq!(
            (finding.verdict, finding.load),
            (Verdict::Unknown, None),
            "{expected}"
        );
        assert!(
            finding.detail.starts_with(expected),
            "{} {expected}",
            finding.detail
        );
    }
    let finding = find(silent().await, &format!("{CHECK}\ntimeout = '200ms'")).await;
    assert_eq!((finding.verdict, finding.load), (Verdict::Unknown, None));
    assert_eq!(finding.detail, "no answer within 200ms");
}
