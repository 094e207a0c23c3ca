//! The monitor over a rewriter and a naming server: clients are steered by name before they connect, and by redirect
//! afterwards, at once and by nobody.

use std::fs;
use std::thread;
use std::time::Duration;

use control_protocol::Health;
use scenarios::servers::{self, Nginx};
use scenarios::{Lab, MIRROR1, MIRROR2, Naming, ShuntMonitor, Shuntd, wait_until};

/// Two mirrors, of which the first is the service itself as long as it is well; and a name.
fn configuration(lab: &Lab) -> String {
    format!(
        "interval = \"500ms\"
        settle = \"2s\"
        slow-start = \"2s\"
        [[rewriter]]
        name = \"r1\"
        socket = \"{}\"
        [[naming]]
        name = \"ens\"
        socket = \"{}\"
        [[mirror]]
        name = \"m1\"
        address = \"{MIRROR1}\"
        [[mirror.check]]
        kind = \"http\"
        path = \"/\"
        interval = \"500ms\"
        timeout = \"400ms\"
        fall = 2
        [[mirror]]
        name = \"m2\"
        address = \"{MIRROR2}\"
        [[service]]
        address = \"{MIRROR1}:80/tcp\"
        mirrors = [\"m1\", \"m2\"]
        names = [\"www.bt.com\"]
        ttl = \"1s\"
        [[service.rule]]
        name = \"home\"
        prefer = [\"m1\"]",
        Shuntd::default_socket(lab).display(),
        Naming::socket(&lab.rewriter).display()
    )
}

#[test]
fn a_mirrors_death_costs_one_request_and_nobody_has_to_be_there() {
    let lab = Lab::new();
    let _mirrors = [&lab.mirror1, &lab.mirror2].map(Nginx::start);
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let _naming = Naming::start(&lab.rewriter, "--listen 10.1.0.1 --upstream 10.3.0.2");
    let monitor = ShuntMonitor::start(&lab, &configuration(&lab));
    let dig = || Naming::dig(&lab.client, "@10.1.0.1 www.bt.com");
    wait_until("the name has the first mirror's address", || {
        (dig() == [MIRROR1]).then_some(())
    });

    let resolver = lab.client.file("resolv.conf");
    fs::write(&resolver, "nameserver 10.1.0.1\n").expect("the scratch directory is ours");
    let log = lab.client.file("loop.log");
    let code = format!(
        "mount --bind {} /etc/resolv.conf
         while true; do
             curl -sS --max-time 3 http://www.bt.com/ || echo failed
         done >{} 2>&1",
        resolver.display(),
        log.display()
    );
    let mut command = lab.client.command("unshare");
    let flags = ["--mount", "--pid", "--fork", "--kill-child", "bash", "-euc"];
    command.args(flags).arg(&code);
    let mut client = command.spawn().expect("unshare is there");
    let said = |text: &str| {
        let lines = fs::read_to_string(&log).unwrap_or_default();
        lines.lines().filter(|line| line.contains(text)).count()
    };
    wait_until("the loop runs", || (said("mirror 1") > 20).then_some(()));
    assert_eq!(said("failed"), 0);

    lab.mirror1.cut_off();
    wait_until("the loop goes on", || (said("mirror 2") > 50).then_some(()));
    assert_eq!(dig(), [MIRROR2]);
    assert_eq!(monitor.mirror("m1").state, Health::Down);
    lab.mirror1.reconnect();
    wait_until("the mirror is back", || (dig() == [MIRROR1]).then_some(()));
    thread::sleep(Duration::from_millis(500));
    client.kill().expect("it runs");
    client.wait().expect("it is ours");
    let log = fs::read_to_string(&log).expect("it was written");
    let failed = log.lines().filter(|line| *line == "failed").count();
    assert!(failed <= 1, "{failed} failed:\n{}", monitor.log());
    drop(shuntd);
}

#[test]
fn what_somebody_else_sets_is_set_right_unless_the_service_is_held() {
    let lab = Lab::new();
    let _mirrors = [&lab.mirror1, &lab.mirror2].map(Nginx::start);
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let naming = Naming::start(&lab.rewriter, "--listen 10.1.0.1 --upstream 10.3.0.2");
    let _monitor = ShuntMonitor::start(&lab, &configuration(&lab));
    let dig = || Naming::dig(&lab.client, "@10.1.0.1 www.bt.com");
    let is_first = || (dig() == [MIRROR1]).then_some(());
    wait_until("the name is set", is_first);
    naming.name("set www.bt.com 192.0.2.9").success();
    wait_until("it is set right", is_first);
    shuntd.ctl(&format!("hold {MIRROR1}:80/tcp")).success();
    thread::sleep(Duration::from_millis(2500));
    naming.name("set www.bt.com 192.0.2.9").success();
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(dig(), ["192.0.2.9"]);
    shuntd.ctl(&format!("release {MIRROR1}:80/tcp")).success();
    wait_until("it is the monitor's again", is_first);
}
