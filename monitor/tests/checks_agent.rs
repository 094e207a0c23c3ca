//! The check by an agent: its words, and agents that talk nonsense, too much, or not at all.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use monitor::check::{AgentWish, AgentWords, Verdict};
use proptest::prelude::*;
use support::{answers, closed, find, server, silent};
use tokio::io::AsyncWriteExt;

fn words(line: &str) -> Option<AgentWords> {
    line.parse().ok()
}

#[test]
fn the_words_of_haproxys_agents_are_understood() {
    use AgentWish::{Drain, Maintenance, Ready};
    let said = |up, wish, weight_percent, max_connections| {
        Some(AgentWords {
            up,
            wish,
            weight_percent,
            max_connections,
        })
    };
    for (line, expected) in [
        ("75%", said(None, None, Some(75), None)),
        ("up", said(Some(true), None, None, None)),
        ("down", said(Some(false), None, None, None)),
        ("failed", said(Some(false), None, None, None)),
        ("fail", said(Some(false), None, None, None)),
        ("stopped", said(Some(false), None, None, None)),
        ("ready", said(None, Some(Ready), None, None)),
        ("drain", said(None, Some(Drain), None, None)),
        ("maint", said(None, Some(Maintenance), None, None)),
        ("maxconn:30", said(None, None, None, Some(30))),
        (
            "up ready 50%,maxconn:100",
            said(Some(true), Some(Ready), Some(50), Some(100)),
        ),
        ("UP\tReady\r", said(Some(true), Some(Ready), None, None)),
        ("down # up 50%", said(Some(false), None, None, None)),
        ("stopped#at night", said(Some(false), None, None, None)),
        ("up 0%", said(Some(true), None, Some(0), None)),
        // What contradicts itself.
        ("up down", said(Some(false), None, None, None)),
        ("down up", said(Some(false), None, None, None)),
        (
            "ready maint drain",
            said(None, Some(Maintenance), None, None),
        ),
        ("80% 20% 50%", said(None, None, Some(20), None)),
        // Words of a later version.
        ("up sleepy", said(Some(true), None, None, None)),
    ] {
        assert_eq!(words(line), expected, "{line}");
    }
    for nonsense in [
        "",
        " ",
        "hello",
        "%",
        "-5%",
        "+5%",
        "5 %",
        "7.5%",
        "99999999999%",
        "maxconn:",
        "maxconn:-1",
        "# up",
        "upp",
        "HTTP/1.1 400 Bad Request",
        "\u{1F600}",
    ] {
        assert_eq!(words(nonsense), None, "{nonsense}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(line in any::<String>()) {
        let _ = words(&line);
    }

    /// A line put together from known words says what they say.
    #[test]
    fn lines_put_together_from_words_say_what_they_say(
        up in any::<Option<bool>>(),
        wish in prop::option::of(0..3_usize),
        percent in prop::option::of(0..=256_u32),
        connections in any::<Option<u32>>(),
        separator in prop::sample::select(vec![" ", ",", "\t", ", ", "  "]),
        order in Just(vec![0, 1, 2, 3]).prop_shuffle(),
        upper in any::<bool>(),
        description in prop::option::of("[^#\r\n]{0,20}"),
    ) {
        let wishes = [
            ("ready", AgentWish::Ready),
            ("drain", AgentWish::Drain),
            ("maint", AgentWish::Maintenance),
        ];
        let parts = [
            up.map(|up| if up { "up" } else { "down" }.to_owned()),
            wish.map(|wish| wishes[wish].0.to_owned()),
            percent.map(|percent| format!("{percent}%")),
            connections.map(|most| format!("maxconn:{most}")),
        ];
        let said: Vec<String> = order.iter().filter_map(|part| parts[*part].clone()).collect();
        let mut line = said.join(separator);
        if upper {
            line = line.to_uppercase();
        }
        if let Some(description) = description {
            line = format!("{line} #{description}");
        }
        let expected = AgentWords {
            up,
            wish: wish.map(|wish| wishes[wish].1),
            weight_percent: percent,
            max_connections: connections,
        };
        prop_assert_eq!(words(&line), (!said.is_empty()).then_some(expected));
    }
}

#[tokio::test]
async fn an_agents_line_becomes_a_finding() {
    let finding = find(answers("", "up 75%\r\nmore\r\n").await, "kind = 'agent'").await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Good, "up 75%")
    );
    assert_eq!(finding.agent.weight_percent, Some(75));
    assert!(finding.latency.is_some());

    let finding = find(answers("", "maint # for a while\n").await, "kind = 'agent'").await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Same, "maint # for a while")
    );
    assert_eq!(finding.agent.wish, Some(AgentWish::Maintenance));

    // The end of the line may be that of the connection.
    let finding = find(answers("", "down #disk full").await, "kind = 'agent'").await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Bad, "down #disk full")
    );
}

#[tokio::test]
async fn an_agent_gets_what_it_is_to_be_sent() {
    let address = answers("state\n", "up\n").await;
    let finding = find(address, "kind = 'agent'\nsend = \"state\\n\"").await;
    assert_eq!(finding.verdict, Verdict::Good, "{}", finding.detail);
}

#[tokio::test]
async fn an_agent_that_keeps_the_connection_open_is_heard_at_the_end_of_its_line() {
    let address = server(|mut stream| async move {
        let _ = stream.write_all(b"up\n").await;
        support::receive(&mut stream, "never").await;
    })
    .await;
    let finding = find(address, "kind = 'agent'").await;
    assert_eq!(finding.verdict, Verdict::Good, "{}", finding.detail);
}

#[tokio::test]
async fn nothing_is_concluded_from_nonsense_silence_or_absence() {
    let endless =
        server(|mut stream| async move { while stream.write_all(&[b'u'; 65536]).await.is_ok() {} })
            .await;
    for (address, expected) in [
        (
            answers("", b"\x00\xff\x01 nonsense\n").await,
            "the agent said nothing known: ",
        ),
        (answers("", "\r\n").await, "the agent said nothing"),
        (answers("", "").await, "the agent said nothing"),
        (endless, "the agent's line has no end within 4096 bytes"),
        (closed().await, "connect: Connection refused"),
    ] {
        let finding = find(address, "kind = 'agent'").await;
        assert_eq!(finding.verdict, Verdict::Unknown, "{expected}");
        assert!(finding.detail.starts_with(expected), "{}", finding.detail);
        assert_eq!(finding.agent, AgentWords::default());
    }
    let finding = find(silent().await, "kind = 'agent'\ntimeout = '200ms'").await;
    assert_eq!(finding.verdict, Verdict::Unknown);
    assert_eq!(finding.detail, "no answer within 200ms");
}
