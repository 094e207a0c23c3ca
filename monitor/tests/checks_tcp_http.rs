//! The checks by TCP and HTTP, against servers that behave, misbehave, and hang.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::time::{Duration, Instant};

use monitor::check::Verdict;
use support::{answers, closed, find, server, silent};
use tokio::io::AsyncWriteExt;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn a_listener_is_good_and_a_closed_port_is_bad() {
    let finding = find(silent().await, "kind = 'tcp'").await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Good, "connected")
    );
    assert!(finding.latency.unwrap() < Duration::from_secs(1));

    let finding = find(closed().await, "kind = 'tcp'").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(finding.detail, "connect: Connection refused (os error 111)");
    assert_eq!(finding.latency, None);
}

#[tokio::test]
async fn the_right_status_and_text_are_good() {
    let address = answers("\r\n\r\n", OK).await;
    for good in [
        "",
        "status = 200",
        "status = [404, '200-299']",
        "body = 'ell'",
        "max-latency = '900ms'",
    ] {
        let finding = find(address, &format!("kind = 'http'\n{good}")).await;
        assert_eq!(finding.verdict, Verdict::Good, "{good}: {}", finding.detail);
        assert_eq!(finding.detail, "status 200");
        assert!(finding.latency.is_some());
    }
}

#[tokio::test]
async fn the_wrong_status_or_text_is_bad() {
    let address = answers("\r\n\r\n", OK).await;
    let finding = find(address, "kind = 'http'\nstatus = [204, '300-399']").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(finding.detail, "status 200, expected 204, 300-399");

    let finding = find(address, "kind = 'http'\nbody = 'goodbye'").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(
        finding.detail,
        "status 200, but the body has no \"goodbye\""
    );
}

#[tokio::test]
async fn the_request_is_what_was_configured() {
    for expected in [
        "POST /health?deep=1 HTTP/1.1\r\n",
        "host: www.example.org:8080\r\n",
        "x-check: 1\r\n",
        "connection: close\r\n",
    ] {
        let address = answers(expected, OK).await;
        let finding = find(
            address,
            "kind = 'http'\nmethod = 'POST'\npath = '/health?deep=1'\n\
             host = 'www.example.org:8080'\nheaders = { x-check = '1' }",
        )
        .await;
        assert_eq!(
            finding.verdict,
            Verdict::Good,
            "{expected}: {}",
            finding.detail
        );
    }
}

#[tokio::test]
async fn a_slow_answer_is_bad_beyond_the_greatest_latency() {
    let address = server(|mut stream| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _ = stream.write_all(OK.as_bytes()).await;
        support::receive(&mut stream, "never").await;
    })
    .await;
    let finding = find(address, "kind = 'http'\nmax-latency = '50ms'").await;
    assert_eq!(finding.verdict, Verdict::Bad, "{}", finding.detail);
    assert!(
        finding.detail.contains("expected within 50ms"),
        "{}",
        finding.detail
    );
}

#[tokio::test]
async fn a_server_that_never_answers_is_bad_when_the_time_is_up() {
    let began = Instant::now();
    let finding = find(silent().await, "kind = 'http'\ntimeout = '300ms'").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(finding.detail, "no answer within 300ms");
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_dribble_is_bad_when_the_time_is_up() {
    let address = server(|mut stream| async move {
        for byte in OK.as_bytes() {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let finding = find(address, "kind = 'http'\ntimeout = '400ms'").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(finding.detail, "no answer within 400ms");
}

#[tokio::test]
async fn garbage_and_a_short_answer_are_bad() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\0\0\0\0\0",
        "HTTP/1.1 200",
        "HTTP/1.1 99999 What\r\n\r\n",
        "",
    ] {
        let address = answers("\r\n\r\n", garbage).await;
        let finding = find(address, "kind = 'http'").await;
        assert_eq!(
            finding.verdict,
            Verdict::Bad,
            "{garbage:?}: {}",
            finding.detail
        );
        assert!(
            finding.detail.starts_with("HTTP: "),
            "{garbage:?}: {}",
            finding.detail
        );
    }
    // The body ends before its time.
    let address = answers(
        "\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
    )
    .await;
    let finding = find(address, "kind = 'http'\nbody = 'goodbye'").await;
    assert_eq!(finding.verdict, Verdict::Bad, "{}", finding.detail);
}

#[tokio::test]
async fn an_endless_body_is_looked_at_for_a_mebibyte() {
    let address = server(|mut stream| async move {
        support::receive(&mut stream, "\r\n\r\n").await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    // Where nobody wants the body it isn't read.
    let finding = find(address, "kind = 'http'").await;
    assert_eq!(finding.verdict, Verdict::Good, "{}", finding.detail);
    let finding = find(address, "kind = 'http'\nbody = 'y'").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(finding.detail, "status 200, but the body has no \"y\"");
}

#[tokio::test]
async fn an_endless_head_is_bad() {
    let address = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let finding = find(address, "kind = 'http'").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert!(finding.detail.starts_with("HTTP: "), "{}", finding.detail);
}
