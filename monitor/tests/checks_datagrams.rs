//! The checks by datagrams: UDP and DNS servers that misbehave.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::net::SocketAddr;

use monitor::check::Verdict;
use support::{closed, find};
use tokio::net::UdpSocket;

/// A server that answers each datagram with what `answer` makes of it.
async fn answering<A>(answer: A) -> SocketAddr
where
    A: Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
{
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65535];
        while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
            for datagram in answer(&buffer[..count]) {
                let _ = socket.send_to(&datagram, from).await;
            }
        }
    });
    address
}

#[tokio::test]
async fn any_answer_is_good_unless_a_certain_one_is_expected() {
    let echo = answering(|datagram| vec![datagram.to_vec()]).await;
    for (check, verdict, detail) in [
        ("send = 'ping'", Verdict::Good, "4 bytes"),
        ("send = 'ping'\nexpect = 'in'", Verdict::Good, "4 bytes"),
        (
            "send = 'ping'\nexpect = 'pong'",
            Verdict::Bad,
            "4 bytes, without what is expected",
        ),
        (
            "send-hex = '00 01'\nexpect-hex = '0001'",
            Verdict::Good,
            "2 bytes",
        ),
        (
            "send-hex = '00 01'\nexpect-hex = '0002'",
            Verdict::Bad,
            "2 bytes, without what is expected",
        ),
    ] {
        let finding = find(echo, &format!("kind = 'udp'\n{check}")).await;
        assert_eq!(
            (finding.verdict, finding.detail.as_str()),
            (verdict, detail),
            "{check}"
        );
    }
    // An answer may be empty, and as long as datagrams can be.
    let empty = answering(|_| vec![vec![]]).await;
    assert_eq!(
        find(empty, "kind = 'udp'\nsend = 'a'").await.verdict,
        Verdict::Good
    );
    let long = answering(|_| vec![vec![b'x'; 65507]]).await;
    assert_eq!(
        find(long, "kind = 'udp'\nsend = 'a'").await.detail,
        "65507 bytes"
    );
}

#[tokio::test]
async fn a_closed_port_is_bad_at_once_and_silence_when_the_time_is_up() {
    let finding = find(closed().await, "kind = 'udp'\nsend = 'a'").await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(finding.detail, "receive: Connection refused (os error 111)");
    let silent = answering(|_| vec![]).await;
    let finding = find(silent, "kind = 'udp'\nsend = 'a'\ntimeout = '200ms'").await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Bad, "no answer within 200ms")
    );
}

#[tokio::test]
async fn dns_garbage_is_bad_and_anothers_answer_is_not_taken() {
    let check = "kind = 'dns'\nname = 'mirror.test'";
    let briefly = "kind = 'dns'\nname = 'mirror.test'\ntimeout = '300ms'";
    let garbage = answering(|_| vec![b"garbage".to_vec()]).await;
    let finding = find(garbage, check).await;
    assert_eq!(finding.verdict, Verdict::Bad);
    assert_eq!(finding.detail, "7 bytes that are no DNS message");

    // The query itself is no answer.
    let echo = answering(|query| vec![query.to_vec()]).await;
    assert_eq!(find(echo, briefly).await.detail, "no answer within 300ms");

    // With a wrong identifier, or to another question.
    let response = |query: &[u8]| {
        let mut response = query.to_vec();
        response[2] |= 0x80;
        response
    };
    let wrong_id = answering(move |query| {
        let mut wrong = response(query);
        wrong[0] ^= 1;
        vec![wrong]
    })
    .await;
    assert_eq!(
        find(wrong_id, briefly).await.detail,
        "no answer within 300ms"
    );
    let wrong_then_right = answering(move |query| {
        let mut other = response(query);
        other[13] ^= 1;
        vec![other, response(query)]
    })
    .await;
    let finding = find(wrong_then_right, check).await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Good, "NOERROR, no records")
    );
    // Every cut of an answer is survived.
    for length in 0..30 {
        let cut =
            answering(move |query| vec![response(query)[..length.min(query.len())].to_vec()]).await;
        let finding = find(cut, briefly).await;
        assert!(
            finding.verdict == Verdict::Bad || length >= 29,
            "{length}: {finding:?}"
        );
    }
}
