//! The programs that the monitor is shown with, held against what queueing theory and HTTP say of them.

use std::time::Duration;

use scenarios::load::{Ending, Load, Request, monotonic_us};
use scenarios::{BusyServer, CLIENTS, Lab, MIRROR1, MIRROR2, MIRROR3, SERVICE, Shuntd};

const PATIENCE: Duration = Duration::from_secs(30);

/// Utilisation is the rate of arrivals times the time of service, for each worker; and what waits, waits as
/// long as it takes.
#[test]
fn a_busy_server_is_as_busy_as_it_must_be() {
    let lab = Lab::with_offloads();
    let server = BusyServer::start(&lab.mirror1, "--workers 2 --service-time 10ms");
    // 140 a second times 10 ms for 2 workers: utilisation 0.7.
    let load = Load::start(
        &lab.client,
        &format!("--to {MIRROR1}:80 --rate 140 --connections 200 --duration 8s --timeout 5s"),
    );
    let (summary, requests) = load.finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert_eq!(summary.requests, requests.len() as u64);
    // Poisson: within four deviations.
    assert!(
        (summary.requests as f64 - 1120.0).abs() < 4.0 * 1120.0_f64.sqrt(),
        "{summary:?}"
    );
    let served = server.metric("busy_server_served_seconds_total");
    let queued = server.metric("busy_server_queued_seconds_total");
    let count = server.metric("busy_server_requests_total");
    assert_eq!(count, summary.answered as f64);
    let utilisation = served / summary.seconds / 2.0;
    assert!((0.55..0.9).contains(&utilisation), "{utilisation}");
    // M/M/2 at 0.7 waits 9.6 ms on average, with a wide spread over so short a time.
    let wait_ms = queued / count * 1000.0;
    assert!((3.0..40.0).contains(&wait_ms), "{wait_ms}");
    // What clients see is what the server did, and the way.
    let seen = summary.latency_us.mean * count / 1e6;
    assert!(
        seen >= served + queued && seen < (served + queued) * 1.3,
        "{seen} s, of which {served} s served and {queued} s queued"
    );
    assert_eq!(server.metric("busy_server_queue_length"), 0.0);
    assert_eq!(server.metric("busy_server_busy_workers"), 0.0);
}

/// What a server that is overloaded does to latency shows in full, as latency counts from the moment that
/// was meant.
#[test]
fn an_overloaded_server_shows_in_full() {
    let lab = Lab::with_offloads();
    let server = BusyServer::start(
        &lab.mirror1,
        "--workers 1 --service-time 10ms --distribution constant",
    );
    // Half of it can be served: after 3 s the queue is 3 s long, though there are only 4 connections.
    let load = Load::start(
        &lab.client,
        &format!("--to {MIRROR1}:80 --rate 200 --connections 4 --duration 3s --timeout 20s"),
    );
    let (summary, _) = load.finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert!(
        (80.0..101.0).contains(&summary.throughput),
        "one worker does at most 100 a second: {summary:?}"
    );
    let longest = summary.latency_us.max as f64 / 1e6;
    let expected = summary.requests as f64 / summary.throughput - 3.0;
    assert!((longest / expected - 1.0).abs() < 0.1, "{summary:?}");
    // Clients that don't wait so long are told of those that no connection was free for, too.
    let load = Load::start(
        &lab.client,
        &format!("--to {MIRROR1}:80 --rate 200 --connections 4 --duration 2s --timeout 500ms"),
    );
    let (summary, _) = load.finish(PATIENCE);
    assert!(summary.count(Ending::NotSent) > 0, "{summary:?}");
    assert!(
        (500_000..700_000).contains(&summary.latency_us.max),
        "{summary:?}"
    );
    assert!(
        (summary.requests as f64 - 400.0).abs() < 80.0,
        "{summary:?}"
    );
    // The same, with three times the workers.
    server.set("workers=3");
    let load = Load::start(
        &lab.client,
        &format!("--to {MIRROR1}:80 --rate 200 --connections 50 --duration 2s --timeout 1s"),
    );
    let (summary, _) = load.finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert!(summary.latency_us.p50 < 50_000, "{summary:?}");
}

/// Clients of three networks, whose connections to three mirrors go through the rewriter, one of which is
/// killed and another cut off.
#[test]
fn every_failure_is_counted_once_and_by_its_kind() {
    let lab = Lab::with_offloads();
    let mut servers: Vec<_> = lab
        .mirrors()
        .map(|host| BusyServer::start(host, "--workers 50 --service-time 10ms"))
        .into_iter()
        .collect();
    // Otherwise the rewriter would spare clients the refusals.
    let shuntd = Shuntd::start(&lab, "--refused-retries 0");
    let divert = format!("divert {SERVICE}:80/tcp {MIRROR1} {MIRROR2} {MIRROR3}");
    shuntd.ctl(&divert).success();
    let from = CLIENTS.join(" --from ");
    let load = Load::start(
        &lab.client,
        &format!(
            "--to {SERVICE}:80 --from {from} --connections 30 --think 10ms --timeout 500ms \
             --duration 8s"
        ),
    );
    std::thread::sleep(Duration::from_secs(1));
    servers.remove(0).kill();
    let killed_us = monotonic_us();
    std::thread::sleep(Duration::from_secs(1));
    lab.mirror2.cut_off();
    let cut_us = monotonic_us();
    std::thread::sleep(Duration::from_secs(2));
    lab.mirror2.reconnect();
    shuntd
        .ctl(&format!("redirect {SERVICE}:80/tcp {MIRROR3} --now"))
        .success();
    let mended_us = monotonic_us();
    let (summary, requests) = load.finish(PATIENCE);

    let since = |moment: u64| (moment - summary.began_us) as f64 / 1000.0;
    let of = |from_us: u64, to_us: u64, ending: Ending| {
        let (from, to) = (since(from_us) - 20.0, since(to_us));
        let those =
            |request: &&Request| request.ending == ending && (from..to).contains(&request.end_ms());
        requests.iter().filter(those).count() as u64
    };
    // Each connection of the killed server had at most one request on its way.
    let broken = of(killed_us, cut_us, Ending::InFlight);
    assert!((1..=30).contains(&broken), "{broken}");
    assert!(of(killed_us, cut_us, Ending::NoConnection) > 0);
    assert!(of(cut_us, mended_us, Ending::Timeout) > 0);
    assert_eq!(summary.count(Ending::NotSent), 0);
    assert_eq!(summary.count(Ending::BadStatus), 0);

    let settled = since(mended_us) + 1000.0;
    let late: Vec<&Request> = requests
        .iter()
        .filter(|request| request.start_ms > settled)
        .collect();
    assert!(late.len() > 100, "{}", late.len());
    for request in &late {
        assert_eq!(request.ending, Ending::Answered, "{request:?}");
        assert_eq!(request.server, "mirror 3", "{request:?}");
    }
    for client in CLIENTS {
        let source = Some(client.parse().expect("an address"));
        let connections = late.iter().filter(|request| request.source == source);
        assert!(connections.count() > 20, "{client}");
    }
    let by_kind: u64 = summary.failures.values().sum();
    assert_eq!(by_kind, summary.failed);
    assert_eq!(summary.failed + summary.answered, requests.len() as u64);
}

/// A server that says that it is ill answers so at once, however busy it is; and its agent what it was told.
#[test]
fn health_and_agent_say_what_they_were_told() {
    let lab = Lab::with_offloads();
    let server = BusyServer::start(&lab.mirror1, "--workers 0");
    let health =
        format!("curl -sS -o /dev/null -w %{{http_code}} --max-time 5 http://{MIRROR1}/health");
    assert_eq!(lab.client.run(&health).success(), "200");
    server.set("health=bad&agent=drain");
    assert_eq!(lab.client.run(&health).success(), "503");
    let agent = format!("socat -u TCP:{MIRROR1}:{} -", BusyServer::AGENT_PORT);
    assert_eq!(lab.client.run(&agent).success(), "drain\n");
    // Nobody serves, and nobody is served.
    let load = Load::start(
        &lab.client,
        &format!("--to {MIRROR1}:80 --connections 2 --timeout 200ms --duration 500ms"),
    );
    let (summary, _) = load.finish(PATIENCE);
    assert_eq!(summary.answered, 0);
    assert_eq!(summary.count(Ending::Timeout), summary.failed);
    // They gave up, and so they wait no more.
    assert_eq!(server.metric("busy_server_queue_length"), 0.0);
    assert_eq!(server.metric("busy_server_utilization"), 1.0);
    server.set("workers=1");
    let load = Load::start(
        &lab.client,
        &format!("--to {MIRROR1}:80 --connections 2 --requests-per-connection 1 --duration 300ms"),
    );
    let (summary, requests) = load.end(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert_eq!(summary.opened, requests.len() as u64);
}
