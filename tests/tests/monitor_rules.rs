//! The monitor's rules, a scenario each: which clients go to which mirrors, as the clients see it.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use control_protocol::Health;
use scenarios::load::{Load, Request, Summary};
use scenarios::monitor::configuration;
use scenarios::{BusyServer, CLIENTS, Lab, SERVICE, ShuntMonitor, Shuntd, wait_until};

const PATIENCE: Duration = Duration::from_secs(40);
const SETTINGS: &str = "interval = \"500ms\"
settle = \"2s\"
slow-start = \"2s\"";
const CHECK: &str = "kind = \"http\"
path = \"/health\"
interval = \"500ms\"
timeout = \"400ms\"";

/// A lab whose mirrors have servers, and a rewriter that diverts nothing yet.
fn servers<'lab>(lab: &'lab Lab, flags: &str) -> Vec<BusyServer<'lab>> {
    lab.mirrors()
        .into_iter()
        .map(|host| BusyServer::start(host, flags))
        .collect()
}

/// Waits until the monitor has diverted the service.
fn wait_for_diversion(shuntd: &Shuntd<'_>) {
    wait_until("the monitor diverts the service", || {
        (!shuntd.diversions().is_empty()).then_some(())
    });
}

/// Requests of clients of three networks, at so many a second on connections of their own.
fn ask(lab: &Lab, rate: u32, seconds: u32) -> (Summary, Vec<Request>) {
    let from = CLIENTS.join(" --from ");
    let flags = format!(
        "--to {SERVICE}:80 --from {from} --connections 64 --rate {rate} --requests-per-connection 1 --duration {seconds}s"
    );
    let (summary, requests) = Load::start(&lab.client, &flags).finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    (summary, requests)
}

/// The servers that each client was answered by.
fn served(requests: &[Request]) -> BTreeMap<String, Vec<String>> {
    let mut served: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in requests {
        let source = request.source.map(|source: IpAddr| source.to_string());
        let servers = served.entry(source.expect("it was set")).or_default();
        if !servers.contains(&request.server) {
            servers.push(request.server.clone());
            servers.sort();
        }
    }
    served
}

/// The service's mirrors that get new connections of everyone, with their weights.
fn weights(shuntd: &Shuntd<'_>) -> Vec<(String, u16)> {
    let diversions = shuntd.diversions();
    let everyone = diversions.iter().find(|diversion| diversion.from.is_none());
    let mirrors = everyone.expect("it is diverted").mirrors.iter();
    let mut weights: Vec<(String, u16)> = mirrors
        .filter(|mirror| mirror.weight > 0)
        .map(|mirror| (mirror.address.to_string(), mirror.weight))
        .collect();
    weights.sort();
    weights
}

#[test]
fn by_client_prefix_and_by_place() {
    let lab = Lab::with_offloads();
    let _servers = servers(&lab, "--workers 16 --service-time 5ms");
    fs::write(
        lab.dir().join("places.csv"),
        "# prefix,location\n10.1.2.0/24,branch\n",
    )
    .expect("the scratch directory is ours");
    let shuntd = Shuntd::start(&lab, "");
    let top = format!("locations = \"places.csv\"\n{SETTINGS}");
    let rules = "[[service.rule]]
        name = \"second network\"
        from = \"10.1.1.0/24\"
        mirrors = [\"m2\"]
        [[service.rule]]
        name = \"branch\"
        location = \"branch\"
        mirrors = [\"m3\"]
        [[service.rule]]
        mirrors = [\"m1\"]";
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab, &top, CHECK, rules));
    wait_for_diversion(&shuntd);
    wait_until("all three groups are diverted", || {
        (shuntd.diversions().len() == 3).then_some(())
    });
    let (_, requests) = ask(&lab, 100, 2);
    let served = served(&requests);
    let by = |client: &str| served[client].join(", ");
    assert_eq!(by(CLIENTS[0]), "mirror 1", "{}", monitor.log());
    assert_eq!(by(CLIENTS[1]), "mirror 2");
    assert_eq!(by(CLIENTS[2]), "mirror 3");
}

#[test]
fn by_time_of_day_and_day_of_the_week_in_a_time_zone() {
    let lab = Lab::with_offloads();
    let _servers = servers(&lab, "--workers 16 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let rules = "[[service.rule]]
        name = \"office hours\"
        when = { days = \"mon-fri\", hours = \"08:00-18:00\", zone = \"Europe/Berlin\" }
        mirrors = [\"m1\"]
        [[service.rule]]
        name = \"evening\"
        mirrors = [\"m2\", \"m3\"]";
    let configuration = configuration(&lab, SETTINGS, CHECK, rules);
    // A Friday in winter, six seconds before six in Berlin.
    let monitor = ShuntMonitor::start_at(&lab, &configuration, "2026-11-27 16:59:54");
    wait_for_diversion(&shuntd);
    assert_eq!(weights(&shuntd), [("10.2.0.2".to_owned(), 1000)]);
    wait_until("the evening begins", || {
        (weights(&shuntd).len() == 2).then_some(())
    });
    let decisions = monitor.decisions();
    let last = decisions.last().expect("one that was just made");
    assert_eq!(last.kind, "rule", "{decisions:#?}");
    assert!(last.reason.contains("evening"), "{}", last.reason);
    let (summary, _) = ask(&lab, 100, 2);
    assert!(!summary.servers.contains_key("mirror 1"), "{summary:?}");
    drop(monitor);

    // The same hour on the next day is a Saturday's.
    let monitor = ShuntMonitor::start_at(&lab, &configuration, "2026-11-28 09:00:00");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(weights(&shuntd).len(), 2, "{}", monitor.log());
}

#[test]
fn by_fixed_shares() {
    let lab = Lab::with_offloads();
    let _servers = servers(&lab, "--workers 16 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let rules = "[[service.rule]]
        shares = { m1 = 70, m2 = 30 }";
    let _monitor = ShuntMonitor::start(&lab, &configuration(&lab, SETTINGS, CHECK, rules));
    wait_for_diversion(&shuntd);
    let expected = [("10.2.0.2".to_owned(), 700), ("10.2.0.3".to_owned(), 300)];
    assert_eq!(weights(&shuntd), expected);
    let (summary, _) = ask(&lab, 300, 3);
    let first = summary.servers["mirror 1"] as f64 / summary.answered as f64;
    // Of 900 choices: four standard deviations.
    assert!((0.64..0.76).contains(&first), "{summary:?}");
    assert!(!summary.servers.contains_key("mirror 3"), "{summary:?}");
    assert_eq!(weights(&shuntd), expected);
}

#[test]
fn by_preference_with_overflow() {
    let lab = Lab::with_offloads();
    // 200 requests a second each.
    let _servers = servers(&lab, "--workers 4 --service-time 20ms");
    let shuntd = Shuntd::start(&lab, "");
    let rules = "[[service.rule]]
        name = \"near\"
        prefer = [\"m1\"]
        overflow-at = 80";
    let text = configuration(&lab, SETTINGS, CHECK, rules).replace(
        "address = \"10.2.0.2:80\"",
        "address = \"10.2.0.2:80\"\ncapacity = 200",
    );
    let monitor = ShuntMonitor::start(&lab, &text);
    wait_for_diversion(&shuntd);
    let (summary, _) = ask(&lab, 60, 4);
    assert_eq!(summary.servers.len(), 1, "{summary:?}");
    ask(&lab, 140, 4);
    let (summary, _) = ask(&lab, 240, 10);
    let others = summary.answered - summary.servers["mirror 1"];
    assert!(
        others > summary.answered / 10 && summary.servers["mirror 1"] > summary.answered / 4,
        "{summary:?}\n{:#?}",
        monitor.decisions()
    );
    let decisions = monitor.decisions();
    let preference = |decision: &&control_protocol::Decision| decision.kind == "preference";
    assert!(
        decisions.iter().any(|decision| preference(&decision)),
        "{decisions:#?}"
    );
}

#[test]
fn by_maintenance_that_is_planned() {
    let lab = Lab::with_offloads();
    let _servers = servers(&lab, "--workers 16 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let maintenance = "name = \"m1\"
        maintenance = [{ from = \"2026-12-01T22:00:15Z\", until = \"2026-12-01T23:00:00Z\", drain = \"10s\" }]";
    let text = configuration(&lab, SETTINGS, CHECK, "").replacen("name = \"m1\"", maintenance, 1);
    let monitor = ShuntMonitor::start_at(&lab, &text, "2026-12-01 22:00:00");
    wait_for_diversion(&shuntd);
    assert_eq!(weights(&shuntd).len(), 3);
    // On connections that stay open: they have to be moved.
    let load = Load::start(
        &lab.client,
        &format!("--to {SERVICE}:80 --connections 30 --think 20ms --duration 15s"),
    );
    wait_until("the mirror is to be emptied", || {
        (weights(&shuntd).len() == 2).then_some(())
    });
    assert_eq!(monitor.mirror("m1").wish, control_protocol::Wish::Drain);
    wait_until("it is empty", || {
        let on_first = |connection: &control_protocol::ConnectionInfo| {
            connection.mirror.ip().to_string() == "10.2.0.2"
                && connection.state == control_protocol::ConnectionState::Established
        };
        (!shuntd.connections().iter().any(on_first)).then_some(())
    });
    let (summary, requests) = load.finish(PATIENCE);
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert!(requests.iter().any(|request| request.server == "mirror 1"));
    assert_eq!(
        monitor.mirror("m1").wish,
        control_protocol::Wish::Maintenance
    );
    let drained = |decision: &control_protocol::Decision| decision.kind == "drain";
    assert!(monitor.decisions().iter().any(drained));
}

#[test]
fn an_agent_is_listened_to_and_nonsense_changes_nothing() {
    let lab = Lab::with_offloads();
    let servers = servers(&lab, "--workers 16 --service-time 5ms");
    let shuntd = Shuntd::start(&lab, "");
    let agent = format!(
        "{CHECK}\n[[mirror.check]]\nkind = \"agent\"\nport = {}\ninterval = \"500ms\"",
        BusyServer::AGENT_PORT
    );
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab, SETTINGS, &agent, ""));
    wait_for_diversion(&shuntd);
    for nonsense in ["!!!", "120%25%20of%20what", "-5%25", "%00"] {
        servers[0].set(&format!("agent={nonsense}"));
        thread::sleep(Duration::from_millis(1200));
        assert_eq!(weights(&shuntd).len(), 3, "{nonsense}: {}", monitor.log());
    }
    servers[0].set("agent=drain");
    wait_until("it is drained", || {
        (weights(&shuntd).len() == 2).then_some(())
    });
    servers[0].set("agent=ready");
    wait_until("it is back", || (weights(&shuntd).len() == 3).then_some(()));
    assert_eq!(monitor.mirror("m1").state, Health::Up);
}
