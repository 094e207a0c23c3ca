//! The check by an ICMP echo, over both families and both kinds of socket, each in a network
//! namespace of its own. Needs root, or a user namespace.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::fs;
use std::process::Command;
use std::thread;

use monitor::check::{Checks, Verdict};
use nix::sched::{CloneFlags, unshare};
use support::programs::wait_until;
use support::{config, find, next, target};
use tokio::runtime;
use tokio::sync::mpsc;

/// Runs `story` in a thread with a network namespace of its own, whose loopback is up, and where the
/// groups of `unprivileged` may open ICMP sockets.
fn in_namespace(unprivileged: &'static str, story: impl AsyncFnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        fs::write("/proc/sys/net/ipv4/ping_group_range", unprivileged).unwrap();
        // One thread only: another would be in another namespace.
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(story());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[track_caller]
fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// How many sockets the files `names` of this thread's network namespace list.
fn sockets(names: [&str; 2]) -> usize {
    names
        .iter()
        .map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap())
        .map(|table| table.lines().count() - 1)
        .sum()
}

async fn loopback_answers() {
    for address in ["127.0.0.1:0", "127.0.0.2:80", "[::1]:0"] {
        let finding = find(address.parse().unwrap(), "kind = 'icmp'").await;
        assert_eq!(
            (finding.verdict, finding.detail.as_str()),
            (Verdict::Good, "echo"),
            "{address}"
        );
        assert!(finding.latency.is_some());
    }
}

#[test]
fn loopback_answers_an_unprivileged_socket() {
    in_namespace("0 0", loopback_answers);
}

#[test]
fn loopback_answers_a_raw_socket() {
    in_namespace("1 0", loopback_answers);
}

/// An address that is routed to where nobody answers.
const NOBODY: &str = "192.0.2.1:0";

async fn silence_is_bad(unprivileged: usize, raw: usize) {
    ip("route add 192.0.2.0/24 dev lo");
    let (sender, mut reports) = mpsc::channel(1);
    let check = config("kind = 'icmp'\ninterval = '24h'\ntimeout = '1s'\nfall = 1");
    let limit = check.timeout;
    let checks = Checks::start(vec![target(NOBODY.parse().unwrap(), vec![check])], sender).unwrap();
    checks.hurry(0, limit);
    tokio::time::sleep(limit / 2).await;
    // While it waits, its socket can be seen.
    assert_eq!(sockets(["icmp", "icmp6"]), unprivileged);
    assert_eq!(sockets(["raw", "raw6"]), raw);
    let finding = next(&mut reports).await.finding;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Bad, "no answer within 1s")
    );
    wait_until(|| sockets(["icmp", "raw"]) == 0);
}

#[test]
fn silence_is_bad_with_an_unprivileged_socket() {
    in_namespace("0 0", async || silence_is_bad(1, 0).await);
}

#[test]
fn silence_is_bad_with_a_raw_socket() {
    in_namespace("1 0", async || silence_is_bad(0, 1).await);
}

#[test]
fn a_mirror_that_cannot_be_reached_is_bad() {
    in_namespace("0 0", async || {
        ip("route add unreachable 198.51.100.0/24");
        for (address, expected) in [
            ("198.51.100.1:0", "No route to host"),
            ("203.0.113.1:0", "Network is unreachable"),
            ("[2001:db8::1]:0", "Network is unreachable"),
        ] {
            let finding = find(address.parse().unwrap(), "kind = 'icmp'").await;
            assert_eq!(finding.verdict, Verdict::Bad);
            assert!(
                finding.detail.contains(expected),
                "{address}: {}",
                finding.detail
            );
        }
        // A rule of this host's own says nothing of the mirror.
        ip("route add prohibit 198.18.0.0/15");
        let finding = find("198.18.0.1:0".parse().unwrap(), "kind = 'icmp'").await;
        assert_eq!(finding.verdict, Verdict::Unknown, "{}", finding.detail);
        let finding = find("198.18.0.1:80".parse().unwrap(), "kind = 'tcp'").await;
        assert_eq!(finding.verdict, Verdict::Unknown, "{}", finding.detail);
    });
}
