//! When checks are made, and that nothing outlives them.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use monitor::check::{Checks, Target, Verdict};
use support::{PATIENCE, closed, config, next, receive, server, silent, target};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// A server that counts its connections, and how many are open.
async fn counting() -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let all = Arc::new(AtomicUsize::new(0));
    let open = Arc::new(AtomicUsize::new(0));
    let (counted, opened) = (Arc::clone(&all), Arc::clone(&open));
    let address = server(move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        opened.fetch_add(1, Ordering::SeqCst);
        let opened = Arc::clone(&opened);
        async move {
            receive(&mut stream, "never").await;
            opened.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    (address, all, open)
}

async fn wait_until(mut reached: impl FnMut() -> bool) {
    let reached = async {
        while !reached() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap();
}

#[tokio::test]
async fn every_check_of_every_mirror_reports_at_its_interval() {
    let (sender, mut reports) = mpsc::channel(100);
    let good = silent().await;
    let bad = closed().await;
    let check = || config("kind = 'tcp'\ninterval = '200ms'");
    let targets = vec![
        Target {
            mirror: 7,
            ..target(good, vec![check(), check()])
        },
        Target {
            mirror: 3,
            ..target(bad, vec![check()])
        },
    ];
    let began = Instant::now();
    let _checks = Checks::start(targets, sender).unwrap();
    let mut seen = HashSet::new();
    for _ in 0..15 {
        let report = next(&mut reports).await;
        let expected = match report.mirror {
            7 => Verdict::Good,
            _ => Verdict::Bad,
        };
        assert_eq!(report.finding.verdict, expected);
        assert!(!report.hurried);
        seen.insert((report.mirror, report.check));
    }
    assert_eq!(seen, HashSet::from([(7, 0), (7, 1), (3, 0)]));
    // Fifteen of three checks: each five times, so four intervals, each shortened by 10 % at most
    // and the first by its offset.
    assert!(
        began.elapsed() >= Duration::from_millis(3 * 180),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn many_checks_do_not_beat_in_step() {
    let (sender, mut reports) = mpsc::channel(100);
    let address = silent().await;
    let targets = (0..60)
        .map(|mirror| Target {
            mirror,
            ..target(address, vec![config("kind = 'tcp'\ninterval = '1s'")])
        })
        .collect();
    let began = Instant::now();
    let _checks = Checks::start(targets, sender).unwrap();
    let mut tenths = HashSet::new();
    for _ in 0..60 {
        next(&mut reports).await;
        tenths.insert(began.elapsed().as_millis() / 100);
    }
    // That as many as 60 of them leave out five of the ten is less likely than one in 10^15.
    assert!(tenths.len() > 5, "{tenths:?}");
}

#[tokio::test]
async fn a_hurry_comes_at_once_and_ends_with_a_good_finding() {
    let (address, count, _) = counting().await;
    let (sender, mut reports) = mpsc::channel(10);
    let check = config("kind = 'tcp'\ninterval = '24h'");
    let checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    let began = Instant::now();
    checks.hurry(0, Duration::from_millis(500));
    let report = next(&mut reports).await;
    assert!(report.hurried);
    assert_eq!(report.finding.verdict, Verdict::Good);
    assert!(began.elapsed() < PATIENCE);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // Of a mirror that isn't there, nothing is asked.
    checks.hurry(1, Duration::from_millis(500));
    sleep(Duration::from_millis(200)).await;
    assert!(reports.try_recv().is_err());
}

#[tokio::test]
async fn a_hurry_repeats_what_is_bad_until_fall_and_no_faster_than_its_limit() {
    let address = closed().await;
    let (sender, mut reports) = mpsc::channel(10);
    let check = config("kind = 'tcp'\ninterval = '24h'\nfall = 4");
    let checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    let began = Instant::now();
    checks.hurry(0, Duration::from_millis(100));
    // To call again meanwhile changes nothing.
    checks.hurry(0, Duration::from_millis(100));
    for _ in 0..4 {
        let report = next(&mut reports).await;
        assert!(report.hurried);
        assert_eq!(report.finding.verdict, Verdict::Bad);
        checks.hurry(0, Duration::from_millis(100));
    }
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
    assert!(
        timeout(Duration::from_millis(300), reports.recv())
            .await
            .is_err()
    );
    // Once it has ended, it can be called again.
    checks.hurry(0, Duration::from_millis(100));
    assert!(next(&mut reports).await.hurried);
}

#[tokio::test]
async fn a_hurry_replaces_a_check_that_hangs_and_shortens_its_time() {
    let (address, count, _) = counting().await;
    let (sender, mut reports) = mpsc::channel(10);
    let check = config("kind = 'http'\ninterval = '10s'\ntimeout = '10s'\nfall = 1");
    let checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    // The usual one is under way, and would be for ten seconds.
    wait_until(|| count.load(Ordering::SeqCst) == 1).await;
    let began = Instant::now();
    checks.hurry(0, Duration::from_millis(150));
    let report = next(&mut reports).await;
    assert!(report.hurried);
    assert_eq!(report.finding.detail, "no answer within 150ms");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_time_for_an_answer_is_never_longer_than_the_checks_own() {
    let address = silent().await;
    let (sender, mut reports) = mpsc::channel(10);
    let check = config("kind = 'http'\ninterval = '24h'\ntimeout = '80ms'\nfall = 1");
    let checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    checks.hurry(0, Duration::from_secs(60));
    assert_eq!(
        next(&mut reports).await.finding.detail,
        "no answer within 80ms"
    );
}

#[tokio::test]
async fn dropping_the_handle_ends_all_checks_and_closes_their_connections() {
    let (address, count, open) = counting().await;
    let (sender, mut reports) = mpsc::channel(10);
    let check = config("kind = 'http'\ninterval = '24h'\ntimeout = '1h'");
    let checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    checks.hurry(0, Duration::from_secs(3600));
    wait_until(|| open.load(Ordering::SeqCst) == 1).await;
    drop(checks);
    // The tasks held the other ends of the channel.
    assert_eq!(timeout(PATIENCE, reports.recv()).await.unwrap(), None);
    wait_until(|| open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn checks_end_when_nobody_takes_their_reports() {
    let (address, count, _) = counting().await;
    let (sender, reports) = mpsc::channel(1);
    let check = config("kind = 'tcp'\ninterval = '20ms'");
    let _checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    drop(reports);
    sleep(Duration::from_millis(100)).await;
    let count_then = count.load(Ordering::SeqCst);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(count.load(Ordering::SeqCst), count_then);
    assert!(count_then <= 2, "{count_then}");
}

#[tokio::test]
async fn no_more_than_256_hurries_are_under_way_at_once() {
    let (address, count, open) = counting().await;
    let (sender, mut reports) = mpsc::channel(1000);
    let targets = (0..300)
        .map(|mirror| Target {
            mirror,
            ..target(
                address,
                vec![config(
                    "kind = 'http'\ninterval = '24h'\ntimeout = '1h'\nfall = 1",
                )],
            )
        })
        .collect();
    let checks = Checks::start(targets, sender).unwrap();
    for mirror in 0..300 {
        checks.hurry(mirror, Duration::from_secs(3));
    }
    wait_until(|| count.load(Ordering::SeqCst) == 256).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(open.load(Ordering::SeqCst), 256);
    // The others get their turn.
    let mut heard = HashSet::new();
    while heard.len() < 300 {
        heard.insert(next(&mut reports).await.mirror);
    }
}

#[tokio::test]
async fn a_mirror_that_comes_back_is_found() {
    let address = closed().await;
    let (sender, mut reports) = mpsc::channel(10);
    let check = config("kind = 'tcp'\ninterval = '50ms'");
    let _checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    assert_eq!(next(&mut reports).await.finding.verdict, Verdict::Bad);
    let _listener = TcpListener::bind(address).await.unwrap();
    let found = async { while next(&mut reports).await.finding.verdict != Verdict::Good {} };
    timeout(PATIENCE, found).await.unwrap();
}
