//! The monitor as its operator meets it: plans, metrics, several rewriters, and the day on which everything looks dead.

use std::thread;
use std::time::Duration;

use control_protocol::{DiversionInfo, Health, ListResult};
use nix::sys::signal::Signal;
use scenarios::load::Load;
use scenarios::monitor::configuration;
use scenarios::{
    Background, BusyServer, Lab, MIRROR1, MIRROR2, MIRROR3, SERVICE, ShuntMonitor, Shuntd, binary,
    shuntctl, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(40);
const SETTINGS: &str = "interval = \"500ms\"
settle = \"2s\"
slow-start = \"2s\"";
const CHECK: &str = "kind = \"tcp\"
interval = \"300ms\"
timeout = \"300ms\"
fall = 2";

fn servers<'lab>(lab: &'lab Lab, flags: &str) -> Vec<BusyServer<'lab>> {
    lab.mirrors()
        .into_iter()
        .map(|host| BusyServer::start(host, flags))
        .collect()
}

fn mirrors(diversions: &[DiversionInfo]) -> Vec<String> {
    let mirrors = diversions.iter().flat_map(|diversion| &diversion.mirrors);
    let mut used: Vec<String> = mirrors
        .filter(|mirror| mirror.weight > 0)
        .map(|mirror| mirror.address.to_string())
        .collect();
    used.sort();
    used
}

#[test]
fn a_plan_says_what_would_be_done_and_does_nothing() {
    let lab = Lab::with_offloads();
    let mut servers = servers(&lab, "--workers 8 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let configuration = configuration(&lab, SETTINGS, CHECK, "");
    let plan = ShuntMonitor::once(&lab, "plan", &configuration).success();
    assert!(plan.contains("the first diversion"), "{plan}");
    let order = format!("shuntctl divert {SERVICE}:80/tcp {MIRROR1}:80*333");
    assert!(plan.contains(&order), "{plan}");
    assert!(shuntd.diversions().is_empty());

    shuntd
        .ctl(&format!(
            "divert {SERVICE}:80/tcp {MIRROR1} {MIRROR2} {MIRROR3}"
        ))
        .success();
    let plan = ShuntMonitor::once(&lab, "plan", &configuration).success();
    assert!(plan.contains("nothing would be done"), "{plan}");
    servers.remove(0).kill();
    let plan = ShuntMonitor::once(&lab, "plan", &configuration).success();
    assert!(plan.contains("failover"), "{plan}");
    assert!(
        plan.contains(&format!("--from-mirror {MIRROR1}:80 --now")),
        "{plan}"
    );
    assert_eq!(mirrors(&shuntd.diversions()).len(), 3);
}

#[test]
fn its_metrics_say_how_the_mirrors_are() {
    let lab = Lab::with_offloads();
    let mut servers = servers(&lab, "--workers 8 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let top = format!("metrics = \"127.0.0.1:9477\"\n{SETTINGS}");
    let _monitor = ShuntMonitor::start(&lab, &configuration(&lab, &top, CHECK, ""));
    wait_until("the service is diverted", || {
        (!shuntd.diversions().is_empty()).then_some(())
    });
    let load = format!("--to {SERVICE}:80 --connections 30 --think 20ms --duration 4s");
    let (summary, _) = Load::start(&lab.client, &load).finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    let metrics = || {
        let curl = "curl -sS --fail --max-time 5 http://127.0.0.1:9477/metrics";
        lab.rewriter.run(curl).success()
    };
    let number = |name: &str| -> f64 {
        let metrics = metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|number| number.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {metrics}"))
    };
    assert_eq!(number("shunt_monitor_mirror_up{mirror=\"m1\"}"), 1.0);
    assert!(number("shunt_monitor_mirror_service_seconds{mirror=\"m1\"}") > 0.002);
    assert_eq!(number("shunt_monitor_rewriter_up{rewriter=\"r1\"}"), 1.0);
    assert_eq!(number("shunt_monitor_decisions_total{kind=\"start\"}"), 1.0);
    servers.remove(0).kill();
    wait_until("the metrics know that it is dead", || {
        (number("shunt_monitor_mirror_up{mirror=\"m1\"}") == 0.0).then_some(())
    });
    assert!(metrics().ends_with("# EOF\n"));
    let elsewhere = lab
        .rewriter
        .run("curl -sS -o /dev/null -w %{http_code} http://127.0.0.1:9477/other");
    assert_eq!(elsewhere.success(), "404");
}

#[test]
fn when_all_mirrors_look_dead_everything_stays_as_it_was() {
    let lab = Lab::with_offloads();
    let servers = servers(&lab, "--workers 8 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab, SETTINGS, CHECK, ""));
    wait_until("the service is diverted", || {
        (!shuntd.diversions().is_empty()).then_some(())
    });
    for server in servers {
        server.kill();
    }
    wait_until("all are down", || {
        let is_down = |name: &&str| monitor.mirror(name).state == Health::Down;
        ["m1", "m2", "m3"].iter().all(is_down).then_some(())
    });
    thread::sleep(Duration::from_secs(2));
    assert!(
        !mirrors(&shuntd.diversions()).is_empty(),
        "{}",
        monitor.log()
    );
    assert!(
        monitor.log().contains("all mirrors look dead"),
        "{}",
        monitor.log()
    );
    // One of them comes back, and has the traffic within moments.
    let _back = BusyServer::start(&lab.mirror2, "--workers 8 --service-time 5ms");
    wait_until("the one that is alive is in use alone", || {
        (mirrors(&shuntd.diversions()) == [MIRROR2]).then_some(())
    });
    let load = format!("--to {SERVICE}:80 --connections 10 --think 20ms --duration 2s");
    let (summary, _) = Load::start(&lab.client, &load).finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}\n{}", monitor.log());
}

/// A second rewriter, on a host of its own where no traffic passes.
fn second_rewriter(lab: &Lab) -> Background {
    let socket = lab.dir().join("second.sock");
    let program = binary("shuntd");
    let mut shuntd = lab.mirror3.start(&format!(
        "{} --socket {} --proxy 10.9.9.9 --enable-forwarding",
        program.display(),
        socket.display()
    ));
    shuntd.wait_for_log("ready");
    shuntd
}

#[test]
fn several_rewriters_are_told_the_same_and_one_that_is_lost_holds_up_nobody() {
    let lab = Lab::with_offloads();
    let mut servers = servers(&lab, "--workers 8 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let socket = lab.dir().join("second.sock");
    let second = second_rewriter(&lab);
    let text = format!(
        "{}\n[[rewriter]]\nname = \"r2\"\nsocket = \"{}\"\n",
        configuration(&lab, SETTINGS, CHECK, ""),
        socket.display()
    );
    let monitor = ShuntMonitor::start(&lab, &text);
    let list = || -> Vec<DiversionInfo> {
        let answer = shuntctl(&lab.mirror3, &socket, "--json list").success();
        let list: ListResult = serde_json::from_str(&answer).expect("what is documented");
        list.diversions
    };
    wait_until("both have the diversion", || {
        (mirrors(&shuntd.diversions()).len() == 3 && mirrors(&list()).len() == 3).then_some(())
    });
    // It stands still, as if its machine did: the other one is told all the same.
    second.signal(Signal::SIGSTOP);
    servers.remove(0).kill();
    wait_until("the first one is told of the dead mirror", || {
        (mirrors(&shuntd.diversions()).len() == 2).then_some(())
    });
    second.signal(Signal::SIGCONT);
    wait_until("the second one is told when it goes on", || {
        (mirrors(&list()).len() == 2).then_some(())
    });
    // It is started anew, and knows nothing any more.
    second.stop(Signal::SIGTERM);
    let _second = second_rewriter(&lab);
    wait_until("it is brought up to date", || {
        (mirrors(&list()).len() == 2).then_some(())
    });
    assert!(
        monitor.log().contains("rewriter r2 is brought up to date"),
        "{}",
        monitor.log()
    );
}
