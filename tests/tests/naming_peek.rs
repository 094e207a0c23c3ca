//! A peeking diversion: the rewriter sends the naming server only queries for names that it lists, and lets all others
//! go to the DNS with no address changed.

use std::fs;

use nix::sys::signal::Signal;
use scenarios::{
    CLIENT, Capture, Lab, MIRROR1, Naming, Protocol, SERVICE, Shuntd, Way, assert_only_between,
    assert_valid_checksums, servers, wait_until,
};

/// What the naming server is told in its file about the rewriter on the same machines.
fn naming_with_rewriter<'lab>(lab: &'lab Lab, shuntd: &Shuntd<'_>) -> Naming<'lab> {
    let config = lab.mirror1.file("naming.toml");
    let text = format!(
        "listen = [\"{MIRROR1}\"]
         upstream = [\"10.3.0.2\"]
         rate-limit-exempt = [\"10.10.10.10/32\"]
         [[rewriter]]
         socket = \"{}\"
         service = \"{SERVICE}:53/udp\"\n",
        shuntd.socket().display()
    );
    fs::write(&config, text).expect("a small file");
    Naming::start(&lab.mirror1, &format!("--config {}", config.display()))
}

/// The names that the rewriter says it peeks at, or none before it was told.
fn peeks_at(shuntd: &Shuntd<'_>) -> Option<u64> {
    shuntd.diversions()[0].peek.and_then(|peek| peek.names)
}

/// Listed names are answered by the naming server in the DNS server's name; the DNS server gets the other queries
/// from the clients themselves.
#[test]
fn only_queries_for_listed_names_are_sent_elsewhere() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let naming = naming_with_rewriter(&lab, &shuntd);
    naming.name("set www.bt.com 10.2.0.3").success();
    // ---- the diversion comes last, and is told the names nevertheless ----
    shuntd
        .ctl(&format!("divert {SERVICE}:53/udp {MIRROR1}:53 --peek"))
        .success();
    wait_until("the rewriter has the names", || {
        (peeks_at(&shuntd) == Some(1)).then_some(())
    });

    let dns_sees = Capture::start(&lab.origin, "eth0", Way::In, "port 53");
    let naming_sees = Capture::start(&lab.mirror1, "eth0", Way::In, "dst port 53");
    // dig says so when an answer comes from elsewhere, and waits for another.
    let dig = |words: &str| Naming::dig(&lab.client, &format!("@{SERVICE} {words}"));
    assert_eq!(dig("www.bt.com"), ["10.2.0.3"]);
    assert_eq!(dig("who.shunt.test"), ["192.0.2.100"], "the DNS's own");
    assert_eq!(dig("+tcp who.shunt.test"), ["192.0.2.100"]);
    assert_eq!(dig("+tcp www.bt.com"), [""; 0], "TCP isn't peeked at");
    assert_eq!(dig("a.www.bt.com"), [""; 0], "it isn't listed");

    // ---- both from one port ----
    let port = format!("-b {CLIENT}#4053");
    assert_eq!(dig(&format!("{port} who.shunt.test")), ["192.0.2.100"]);
    assert_eq!(dig(&format!("{port} WWW.BT.com")), ["10.2.0.3"]);
    assert_eq!(dig(&format!("{port} who.shunt.test")), ["192.0.2.100"]);
    assert_eq!(shuntd.connections().len(), 2, "one for each client's port");

    let (dns_saw, naming_saw) = (dns_sees.finish(), naming_sees.finish());
    assert_only_between(&dns_saw, CLIENT, SERVICE);
    assert_valid_checksums(&dns_saw);
    let queries = dns_saw
        .iter()
        .filter(|packet| packet.protocol() == Protocol::Udp)
        .count();
    assert_eq!(queries, 4, "{dns_saw:#?}");
    assert_only_between(&naming_saw, "10.10.10.10", MIRROR1);
    assert_eq!(naming_saw.len(), 2, "{naming_saw:#?}");
}

/// The list follows the names: what is set or unset, a rewriter that is started anew, and one whose naming server is
/// gone.
#[test]
fn the_list_follows_the_names() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let divert = format!("divert {SERVICE}:53/udp {MIRROR1}:53 --peek");
    let dig = |words: &str| Naming::dig(&lab.client, &format!("@{SERVICE} {words}"));
    // ---- without a list, nothing is taken ----
    shuntd.ctl(&divert).success();
    assert_eq!(peeks_at(&shuntd), None);
    assert_eq!(dig("who.shunt.test"), ["192.0.2.100"]);
    let naming = naming_with_rewriter(&lab, &shuntd);
    wait_until("there is a list without names", || {
        (peeks_at(&shuntd) == Some(0)).then_some(())
    });
    // ---- a wildcard, and a name that the DNS has as well ----
    naming.name("set *.bt.com 10.2.0.4").success();
    naming.name("set who.shunt.test 10.2.0.5").success();
    wait_until("the rewriter has both", || {
        (peeks_at(&shuntd) == Some(2)).then_some(())
    });
    assert_eq!(dig("ftp.bt.com"), ["10.2.0.4"]);
    assert_eq!(dig("who.shunt.test"), ["10.2.0.5"]);
    naming.name("unset who.shunt.test").success();
    wait_until("the DNS has its name back", || {
        (dig("who.shunt.test") == ["192.0.2.100"]).then_some(())
    });
    // ---- another rewriter in its place knows nothing, and is told ----
    let shuntd = shuntd.kill().restart("");
    shuntd.ctl(&divert).success();
    wait_until("it has the names", || {
        (peeks_at(&shuntd) == Some(1)).then_some(())
    });
    assert_eq!(dig("ftp.bt.com"), ["10.2.0.4"]);
    // ---- 2,500 names go in parts ----
    let zone = lab.mirror1.file("zone");
    let records: String = (0..2500)
        .map(|number| format!("n{number}.many.test. 5 IN A 10.2.0.9\n"))
        .collect();
    fs::write(&zone, records).unwrap();
    naming.name(&format!("import {}", zone.display())).success();
    wait_until("it has all names", || {
        (peeks_at(&shuntd) == Some(2501)).then_some(())
    });
    assert_eq!(dig("n2499.many.test"), ["10.2.0.9"]);
    // ---- all other names don't depend on the naming server ----
    naming.stop(Signal::SIGTERM);
    assert_eq!(dig("who.shunt.test"), ["192.0.2.100"]);
}

/// What a person says with `shuntctl`.
#[test]
fn names_are_told_by_hand() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let shuntd = Shuntd::start(&lab, "");
    let naming = Naming::start(
        &lab.mirror1,
        &format!("--listen {MIRROR1} --upstream 10.3.0.2 --rate-limit-exempt 10.10.10.10/32"),
    );
    naming.name("set www.bt.com 10.2.0.3").success();
    let service = format!("{SERVICE}:53/udp");
    // ---- only a UDP port has DNS queries ----
    for other in [
        SERVICE.to_owned(),
        format!("{SERVICE}:53"),
        format!("{SERVICE}:53/tcp"),
    ] {
        let refused = shuntd.ctl(&format!("divert {other} {MIRROR1} --peek"));
        assert_eq!(refused.code(), 1);
        assert!(refused.stderr.contains("isn't a UDP port"), "{refused:#?}");
    }
    // ---- only a peeking diversion has names ----
    let refused = shuntd.ctl(&format!("peek-names {service} www.bt.com"));
    assert!(refused.stderr.contains("is not diverted"), "{refused:#?}");
    shuntd
        .ctl(&format!("divert {service} {MIRROR1}:53"))
        .success();
    let refused = shuntd.ctl(&format!("peek-names {service} www.bt.com"));
    assert!(refused.stderr.contains("doesn't peek"), "{refused:#?}");
    // ---- a file, and names beside it ----
    shuntd
        .ctl(&format!("divert {service} {MIRROR1}:53 --peek"))
        .success();
    let file = lab.rewriter.file("names");
    fs::write(&file, "# by hand\n\n*.shunt.test\nftp.bt.com\n").unwrap();
    let told = shuntd.ctl(&format!(
        "peek-names {service} www.bt.com --file {}",
        file.display()
    ));
    assert_eq!(told.success(), "names\t3\n");
    assert!(shuntd.ctl("list").success().contains("3 names"));
    let dig = |words: &str| Naming::dig(&lab.client, &format!("@{SERVICE} {words}"));
    assert_eq!(dig("www.bt.com"), ["10.2.0.3"]);
    // ---- they stay when the diversion is set again, and when it is redirected ----
    shuntd
        .ctl(&format!("divert {service} {MIRROR1}:53"))
        .success();
    shuntd
        .ctl(&format!("redirect {service} {MIRROR1}:53"))
        .success();
    assert_eq!(peeks_at(&shuntd), Some(3));
    shuntd
        .ctl(&format!("divert {service} {MIRROR1}:53 --no-peek"))
        .success();
    assert!(shuntd.diversions()[0].peek.is_none());
}
