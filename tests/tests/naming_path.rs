//! The naming server together with the rewriter: in the way of clients who know nothing of it, and both moving a
//! service at once.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use scenarios::{Lab, MIRROR1, MIRROR2, Naming, SERVICE, SERVICE6, Shuntd, servers, wait_until};

/// Clients keep asking their usual DNS server; the rewriter brings them to the naming server, and they see answers
/// from the server that they asked.
#[test]
fn it_stands_in_the_way_without_being_seen() {
    let lab = Lab::new();
    // The clients' DNS server, which has another address that the naming server asks it by.
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let naming = Naming::start(
        &lab.mirror1,
        "--listen 10.2.0.2 --listen fd00:2::2 --upstream 10.3.0.2 --rate-limit-exempt 10.10.10.10/32",
    );
    naming
        .name("set www.bt.com 10.2.0.3 fd00:2::3 --ttl 5")
        .success();
    let dig = |server: &str, words: &str| {
        // dig says so when an answer comes from elsewhere, and waits for another.
        Naming::dig(&lab.client, &format!("@{server} {words}"))
    };
    for server in [SERVICE, SERVICE6] {
        assert_eq!(
            dig(server, "www.bt.com"),
            [""; 0],
            "the DNS knows no such name"
        );
    }
    for (server, naming) in [(SERVICE, "10.2.0.2:53"), (SERVICE6, "[fd00:2::2]:53")] {
        let port = |address: &str| match address.contains(':') {
            true => format!("[{address}]:53"),
            false => format!("{address}:53"),
        };
        shuntd
            .ctl(&format!("divert {} {naming}", port(server)))
            .success();
        for transport in ["+notcp", "+tcp"] {
            let words = |name: &str| format!("{transport} {name}");
            assert_eq!(dig(server, &words("www.bt.com")), ["10.2.0.3"]);
            assert_eq!(dig(server, &words("www.bt.com AAAA")), ["fd00:2::3"]);
            assert_eq!(
                dig(server, &words("who.shunt.test")),
                ["192.0.2.100"],
                "the DNS's own"
            );
            let long = dig(server, &words("long.shunt.test TXT"));
            assert!(long[0].len() > 1000, "{long:?}");
        }
        // A client on another port of the same server isn't diverted: it is the DNS itself.
        let answer = lab
            .client
            .run(&format!("dig @{server} who.shunt.test"))
            .success();
        assert!(answer.contains(&format!("SERVER: {server}#53")), "{answer}");
    }
    shuntd.ctl(&format!("restore {SERVICE}:53")).success();
    wait_until("new queries go to the DNS", || {
        dig(SERVICE, "www.bt.com").is_empty().then_some(())
    });
    naming.stop(Signal::SIGTERM);
}

/// Many clients behind one proxy address: the rate limit has to know of it.
#[test]
fn clients_of_a_rewriter_have_no_limit_together() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let naming = Naming::start(
        &lab.mirror1,
        "--listen 10.2.0.2 --upstream 10.3.0.2 --rate-limit 5 --workers 1 --rate-limit-exempt 10.10.10.10/32",
    );
    naming.name("set www.bt.com 10.2.0.3").success();
    shuntd
        .ctl(&format!("divert {SERVICE}:53 10.2.0.2:53"))
        .success();
    for _ in 0..20 {
        assert_eq!(
            Naming::dig(&lab.client, &format!("@{SERVICE} +ignore www.bt.com")),
            ["10.2.0.3"]
        );
    }
    // Whoever comes directly has one.
    let answered = (0..20)
        .filter(|_| {
            let line =
                format!("dig +short +tries=1 +time=1 +ignore +nocookie @{MIRROR1} www.bt.com");
            lab.client.run(&line).stdout.contains("10.2.0.3")
        })
        .count();
    assert!((5..20).contains(&answered), "{answered}");
}

/// A service is moved by name and in the middle of its connections at once: a client that loops over
/// `curl http://www.bt.com/` while its mirror dies misses no more than the request that is under way.
#[test]
fn a_mirrors_death_costs_one_request() {
    let lab = Lab::new();
    let _mirrors = [&lab.mirror1, &lab.mirror2].map(servers::Nginx::start);
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let naming = Naming::start(&lab.rewriter, "--listen 10.1.0.1 --upstream 10.3.0.2");
    naming
        .name(&format!("set www.bt.com {MIRROR1} --ttl 1"))
        .success();
    // Manageable, though not moved yet: those who remember the old address will be.
    shuntd
        .ctl(&format!("divert {MIRROR1}:80 {MIRROR1}"))
        .success();

    let resolver = lab.client.file("resolv.conf");
    fs::write(&resolver, "nameserver 10.1.0.1\n").unwrap();
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
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "bash",
        "-euc",
        &code,
    ]);
    let mut client = command.spawn().unwrap();
    let said = |text: &str| {
        let lines = fs::read_to_string(&log).unwrap_or_default();
        lines.lines().filter(|line| line.contains(text)).count()
    };
    wait_until("the loop runs", || (said("mirror 1") > 20).then_some(()));
    assert_eq!(said("failed"), 0);

    // The mirror dies without a word, and whoever watches over it says so to both.
    lab.mirror1
        .shell(
            "nft add table inet dead
             nft add chain inet dead in '{ type filter hook prerouting priority -300; policy drop; }'
             nft add chain inet dead out '{ type filter hook output priority -300; policy drop; }'",
        )
        .success();
    naming
        .name(&format!("set www.bt.com {MIRROR2} --ttl 1"))
        .success();
    shuntd
        .ctl(&format!(
            "redirect {MIRROR1}:80 {MIRROR2} --now --otherwise reset"
        ))
        .success();
    let before = said("mirror 2");
    wait_until("the loop goes on", || {
        (said("mirror 2") > before + 50).then_some(())
    });
    thread::sleep(Duration::from_millis(200));
    client.kill().unwrap();
    client.wait().unwrap();
    let log = fs::read_to_string(&log).unwrap();
    let unusual: Vec<_> = log
        .lines()
        .filter(|line| !line.starts_with("mirror "))
        .collect();
    let failed = unusual.iter().filter(|line| **line == "failed").count();
    assert!(failed <= 1, "{unusual:#?}");
}
