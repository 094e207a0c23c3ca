//! The monitor over a rewriter and three mirrors: what clients notice when a mirror dies, is cut off, or is
//! overloaded; and when the monitor or the rewriter themselves go.

use std::thread;
use std::time::Duration;

use control_protocol::{Decision, Health, MirrorShare};
use nix::sys::signal::Signal;
use scenarios::analysis::{failed_after, left, recovered};
use scenarios::load::{Ending, Load, Request, monotonic_us};
use scenarios::monitor::configuration;
use scenarios::{
    BusyServer, CLIENTS, Lab, MIRROR1, MIRROR2, MIRROR3, SERVICE, ShuntMonitor, Shuntd, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(40);
/// Connections that stay open.
const CONNECTIONS: usize = 64;
/// A monitor that looks once a second, and may act every other one.
const EAGER: &str = "interval = \"1s\"
improvement = 10
settle = \"2s\"
slow-start = \"4s\"";
const CHECK: &str = "kind = \"http\"
path = \"/health\"
interval = \"500ms\"
timeout = \"300ms\"
rise = 2
fall = 2";

/// A server on each mirror.
fn servers<'lab>(lab: &'lab Lab, flags: &str) -> Vec<BusyServer<'lab>> {
    lab.mirrors()
        .into_iter()
        .map(|host| BusyServer::start(host, flags))
        .collect()
}

/// The diversion that an operator begins with.
fn divert(shuntd: &Shuntd<'_>) {
    let divert = format!("divert {SERVICE}:80/tcp {MIRROR1} {MIRROR2} {MIRROR3}");
    shuntd.ctl(&divert).success();
}

/// Clients of three networks on connections that stay open.
fn load(lab: &Lab, pace: &str) -> Load {
    let from = CLIENTS.join(" --from ");
    Load::start(
        &lab.client,
        &format!("--to {SERVICE}:80 --from {from} --connections {CONNECTIONS} {pace}"),
    )
}

/// Where the service's new connections go: clients, mirror and weight.
fn weights(shuntd: &Shuntd<'_>) -> Vec<String> {
    let mut weights: Vec<String> = shuntd
        .diversions()
        .iter()
        .flat_map(|diversion| {
            let used = diversion.mirrors.iter().filter(|mirror| mirror.weight > 0);
            used.map(|mirror| format!("{:?} {} {}", diversion.from, mirror.address, mirror.weight))
        })
        .collect();
    weights.sort();
    weights
}

/// A server that is killed resets what it has, and its host refuses the rest; one that is cut off says nothing
/// at all. Either way its clients are soon on the others, and when it is back, so are some of them.
fn a_mirror_is_lost(lose: impl FnOnce(&Lab, &mut Vec<BusyServer<'_>>), most: Suffering) {
    // Three can do what is asked; two are busy all the time, so that the third is wanted back.
    const SERVER: &str = "--workers 8 --service-time 10ms";
    let lab = Lab::with_offloads();
    let mut servers = servers(&lab, SERVER);
    let shuntd = Shuntd::start(&lab, "");
    divert(&shuntd);
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab, EAGER, CHECK, ""));
    wait_until("the checks have decided", || {
        let up = |name: &&str| monitor.mirror(name).state == Health::Up;
        ["m1", "m2", "m3"].iter().all(up).then_some(())
    });
    let load = load(&lab, "--think 20ms --duration 9s");
    thread::sleep(Duration::from_secs(3));
    let moment = monotonic_us();
    lose(&lab, &mut servers);
    let (summary, requests) = load.finish(PATIENCE);

    let moment = (moment - summary.began_us) as f64 / 1000.0;
    let on_first = |request: &&Request| request.server == "mirror 1";
    assert!(
        requests.iter().any(|request| on_first(&request)),
        "{summary:?}"
    );
    let failed = failed_after(&requests, moment);
    let recovered = recovered(&requests, moment);
    assert!(
        recovered.is_some_and(|ms| ms <= most.ms),
        "recovered after {recovered:?} ms, {failed} failed; {summary:?}\n{:#?}",
        monitor.decisions()
    );
    assert!(failed <= most.failed, "{failed} failed: {summary:?}");
    let late = requests
        .iter()
        .filter(|request| request.start_ms > moment + most.ms);
    for request in late {
        assert_eq!(request.ending, Ending::Answered, "{request:?}");
        assert_ne!(request.server, "mirror 1", "{request:?}");
    }
    let first = monitor.mirror("m1");
    assert_eq!(first.state, Health::Down, "{first:?}");
    let decisions = monitor.decisions();
    let failover = decisions
        .iter()
        .find(|decision| decision.kind == "failover")
        .unwrap_or_else(|| panic!("no failover: {decisions:#?}"));
    assert!(failover.reason.contains("m1"), "{failover:?}");
    assert!(!failover.instructions.is_empty(), "{failover:?}");

    // Back again.
    lab.mirror1.run("nft delete table inet cut");
    let _back = (servers.len() < 3).then(|| BusyServer::start(&lab.mirror1, SERVER));
    wait_until("the first mirror is up again", || {
        (monitor.mirror("m1").state == Health::Up).then_some(())
    });
    let load = self::load(
        &lab,
        "--think 20ms --requests-per-connection 20 --duration 8s",
    );
    let (summary, _) = load.finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert!(
        summary.servers.contains_key("mirror 1"),
        "{summary:?}\n{:#?}",
        monitor.decisions()
    );
}

/// What clients may have to suffer.
struct Suffering {
    /// Until the last connection has good answers again.
    ms: f64,
    failed: usize,
}

#[test]
fn a_killed_mirror() {
    // What was on its way when it died can't be helped, a third of 64; the others are refused at most once each.
    a_mirror_is_lost(
        |_, servers| servers.remove(0).kill(),
        Suffering {
            ms: 2000.0,
            failed: CONNECTIONS,
        },
    );
}

#[test]
fn a_mirror_that_is_cut_off() {
    a_mirror_is_lost(
        |lab, _| lab.mirror1.cut_off(),
        Suffering {
            ms: 3000.0,
            failed: CONNECTIONS,
        },
    );
}

/// A mirror on which everything takes ten times as long can't do its third any more: within two intervals its
/// connections begin to be moved, soon hardly any are left, and no request fails.
#[test]
fn an_overloaded_mirror() {
    let lab = Lab::with_offloads();
    let servers = servers(&lab, "--workers 8 --service-time 10ms");
    let shuntd = Shuntd::start(&lab, "");
    divert(&shuntd);
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab, EAGER, CHECK, ""));
    let load = load(&lab, "--rate 300 --apart --duration 18s");
    thread::sleep(Duration::from_secs(8));
    let slow_us = monotonic_us();
    servers[0].set("service_ms=100");
    let (summary, requests) = load.finish(PATIENCE);
    let decisions = monitor.decisions();
    let now_us = monotonic_us();
    assert_eq!(summary.failed, 0, "{summary:?}\n{decisions:#?}");

    let share = |shares: &[MirrorShare]| {
        let first = shares.iter().find(|share| share.mirror == "m1");
        first.map_or(0.0, |share| share.share)
    };
    let moves_away = |decision: &&Decision| {
        let at_us = now_us - decision.age_ms * 1000;
        at_us >= slow_us && share(&decision.to) < share(&decision.from)
    };
    let first = decisions.iter().find(moves_away);
    let first = first.unwrap_or_else(|| panic!("none moves away: {decisions:#?}"));
    let after_ms = (now_us - first.age_ms * 1000 - slow_us) / 1000;
    // Two intervals, and what it takes to tell the server and to write the decision down.
    assert!(after_ms <= 2500, "after {after_ms} ms: {decisions:#?}");
    let slow = (slow_us - summary.began_us) as f64 / 1000.0;
    let left = left(&requests, slow, "mirror 1");
    assert!(left.is_some(), "{summary:?}\n{decisions:#?}");
}

/// The rewriter goes on without the monitor as it was told last; and the next monitor begins with what it finds.
#[test]
fn a_killed_monitor_changes_nothing() {
    let lab = Lab::with_offloads();
    let _servers = [
        BusyServer::start(&lab.mirror1, "--workers 16 --service-time 10ms"),
        BusyServer::start(&lab.mirror2, "--workers 1 --service-time 10ms"),
        BusyServer::start(&lab.mirror3, "--workers 1 --service-time 10ms"),
    ];
    let shuntd = Shuntd::start(&lab, "");
    divert(&shuntd);
    let configuration = configuration(&lab, EAGER, CHECK, "");
    let monitor = ShuntMonitor::start(&lab, &configuration);
    let load = load(&lab, "--rate 200 --apart --duration 14s");
    wait_until("the monitor is heard", || {
        (!monitor.decisions().is_empty()).then_some(())
    });
    let killed = monitor.kill();
    let before = weights(&shuntd);
    thread::sleep(Duration::from_secs(4));
    assert_eq!(weights(&shuntd), before);
    let monitor = ShuntMonitor::start(&lab, &configuration);
    let (summary, _) = load.finish(PATIENCE);
    assert_eq!(
        summary.failed,
        0,
        "{summary:?}\nbefore:\n{killed}\nafter:\n{}",
        monitor.log()
    );
}

/// A rewriter that has forgotten everything is told it again, by itself.
#[test]
fn a_rewriter_that_comes_back_is_brought_up_to_date() {
    let lab = Lab::with_offloads();
    let _servers = servers(&lab, "--workers 8 --service-time 10ms");
    let shuntd = Shuntd::start(&lab, "");
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab, EAGER, CHECK, ""));
    let served = |shuntd: &Shuntd<'_>| {
        wait_until("the service is diverted", || {
            (!shuntd.diversions().is_empty()).then_some(())
        });
    };
    served(&shuntd);
    shuntd.stop(Signal::SIGTERM);
    thread::sleep(Duration::from_secs(1));
    let shuntd = Shuntd::start(&lab, "");
    served(&shuntd);
    let load = load(&lab, "--think 50ms --duration 2s");
    let (summary, _) = load.finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}\n{}", monitor.log());
    assert_eq!(summary.servers.len(), 3, "{summary:?}");
}

/// With `--dry-run` it decides, and tells nobody but those who ask.
#[test]
fn a_dry_run_changes_nothing() {
    let lab = Lab::with_offloads();
    let mut servers = servers(&lab, "--workers 8 --service-time 10ms");
    let shuntd = Shuntd::start(&lab, "");
    divert(&shuntd);
    let before = weights(&shuntd);
    let monitor =
        ShuntMonitor::start_with(&lab, &configuration(&lab, EAGER, CHECK, ""), "--dry-run");
    servers.remove(0).kill();
    wait_until("it would fail over", || {
        let decisions = monitor.decisions();
        decisions
            .iter()
            .any(|decision| decision.kind == "failover")
            .then_some(())
    });
    assert_eq!(weights(&shuntd), before);
}

/// What a person instructs stands, until that person says otherwise.
#[test]
fn what_a_person_instructs_stands() {
    let lab = Lab::with_offloads();
    let mut servers = servers(&lab, "--workers 8 --service-time 10ms");
    let shuntd = Shuntd::start(&lab, "");
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab, EAGER, CHECK, ""));
    wait_until("the monitor diverts the service", || {
        (!shuntd.diversions().is_empty()).then_some(())
    });
    shuntd
        .ctl(&format!("divert {SERVICE}:80/tcp {MIRROR2} {MIRROR3}"))
        .success();
    let before = weights(&shuntd);
    servers.remove(1).kill();
    wait_until("the monitor knows that it is dead", || {
        (monitor.mirror("m2").state == Health::Down).then_some(())
    });
    thread::sleep(Duration::from_secs(3));
    assert_eq!(weights(&shuntd), before);
    shuntd.ctl(&format!("release {SERVICE}:80/tcp")).success();
    wait_until("the monitor acts again", || {
        (weights(&shuntd) != before).then_some(())
    });
}

/// A configuration that can't be right is refused with a sentence that names what is wrong.
#[test]
fn a_wrong_configuration_is_refused() {
    let lab = Lab::with_offloads();
    let right = configuration(&lab, EAGER, CHECK, "");
    ShuntMonitor::once(&lab, "check", &right).success();
    for (wrong, named) in [
        (right.replace("improvement", "improvment"), "improvment"),
        (right.replace("\"m2\", ", "\"m4\", "), "m4"),
        (right.replace("fall = 2", "fall = 0"), "fall"),
    ] {
        let refused = ShuntMonitor::once(&lab, "check", &wrong);
        assert_ne!(refused.code(), 0, "{refused:#?}");
        assert!(refused.stderr.contains(named), "{named}: {refused:#?}");
    }
}
