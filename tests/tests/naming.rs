//! The naming server and its clients: names are answered over every transport, changes count at once and outlive
//! the server, and whoever abuses it gets nothing out of it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use control_protocol::NameListResult;
use nix::sys::signal::Signal;
use scenarios::{
    Host, Lab, MIRROR1, MIRROR1_6, MIRROR2, Naming, SERVICE, SERVICE6, servers, wait_until,
};

/// The naming server's flags: on the first mirror, with the origin as upstream.
const FLAGS: &str = "--listen 10.2.0.2 --listen fd00:2::2 --upstream 10.3.0.2";

/// Runs shell code on a host whose resolver asks `server`.
fn resolving(host: &Host, server: &str, code: &str) -> std::process::Command {
    let file = host.file("resolv.conf");
    fs::write(
        &file,
        format!("nameserver {server}\noptions timeout:2 attempts:2\n"),
    )
    .expect("a small file");
    let mut command = host.command("unshare");
    let code = format!("mount --bind {} /etc/resolv.conf\n{code}", file.display());
    command.args(["--mount", "bash", "-euc", &code]);
    command
}

#[test]
fn names_are_answered_over_every_transport_and_all_else_by_the_dns() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let naming = Naming::start(&lab.mirror1, FLAGS);
    naming
        .name("set www.bt.com 10.2.0.3 10.2.0.4 fd00::3 --ttl 7")
        .success();
    naming.name("set *.cdn.test --cname www.bt.com").success();
    naming
        .name("set away.test --cname who.shunt.test")
        .success();
    for server in [MIRROR1, MIRROR1_6] {
        for transport in ["+notcp", "+tcp"] {
            let dig =
                |words: &str| Naming::dig(&lab.client, &format!("@{server} {transport} {words}"));
            assert_eq!(dig("www.bt.com"), ["10.2.0.3", "10.2.0.4"]);
            assert_eq!(dig("www.bt.com AAAA"), ["fd00::3"]);
            assert_eq!(dig("www.bt.com MX"), [""; 0]);
            assert_eq!(dig("a.cdn.test AAAA"), ["fd00::3", "www.bt.com."]);
            assert_eq!(dig("who.shunt.test"), ["192.0.2.100"], "from the DNS");
            assert_eq!(dig("away.test"), ["192.0.2.100", "who.shunt.test."]);
            assert_eq!(dig("away.test AAAA"), ["who.shunt.test."]);
            let long = dig("long.shunt.test TXT");
            assert!(long[0].len() > 1000, "{long:?}");
        }
    }
    // The DNS's own words come back with a name that isn't there.
    let answer = lab
        .client
        .run(&format!("dig @{MIRROR1} nowhere.shunt.test"))
        .success();
    assert!(
        answer.contains("status: REFUSED"),
        "dnsmasq knows nobody to ask: {answer}"
    );
    // Over TCP, several questions on one connection.
    let dig = format!(
        "dig @{MIRROR1} +tcp +keepopen +short www.bt.com AAAA who.shunt.test A www.bt.com AAAA"
    );
    let answers = lab.client.run(&dig).success();
    assert_eq!(answers, "fd00::3\n192.0.2.100\nfd00::3\n");
}

#[test]
fn a_change_counts_for_the_next_query() {
    let lab = Lab::new();
    let _mirrors = [&lab.mirror1, &lab.mirror2].map(servers::Nginx::start);
    let _dns = servers::dnsmasq(&lab.origin);
    let naming = Naming::start(&lab.mirror1, FLAGS);
    let curl = || {
        let curl = "curl -sS --max-time 5 http://www.bt.com/";
        let output = resolving(&lab.client, MIRROR1, curl).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (mirror, title) in [
        (MIRROR1, "mirror 1\n"),
        (MIRROR2, "mirror 2\n"),
        (MIRROR1, "mirror 1\n"),
    ] {
        naming.name(&format!("set www.bt.com {mirror}")).success();
        assert_eq!(
            Naming::dig(&lab.client, &format!("@{MIRROR1} www.bt.com")),
            [mirror]
        );
        assert_eq!(curl(), title);
    }
    // Another one's answer is the DNS's again.
    naming.name("set who.shunt.test 10.9.9.9").success();
    assert_eq!(
        Naming::dig(&lab.client, &format!("@{MIRROR1} who.shunt.test")),
        ["10.9.9.9"]
    );
    let unset = naming.name("unset who.shunt.test").success();
    assert_eq!(unset, "answered\t1\n");
    assert_eq!(
        Naming::dig(&lab.client, &format!("@{MIRROR1} who.shunt.test")),
        ["192.0.2.100"]
    );
    let again = naming.name("unset who.shunt.test");
    assert_eq!(again.code(), 1);
    assert!(
        again.stderr.contains("who.shunt.test is not listed"),
        "{again:?}"
    );
}

#[test]
fn clients_caches_obey_the_time_to_live() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let naming = Naming::start(&lab.mirror1, FLAGS);
    naming
        .name(&format!("set www.bt.com {MIRROR1} --ttl 2"))
        .success();
    // Every usual home router has dnsmasq as its cache.
    let _cache = lab.client.start(&format!(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file= \
         --log-facility=- --listen-address=127.0.0.1 --bind-interfaces --server={MIRROR1}"
    ));
    lab.client.wait_for_listener("udp", 53);
    // A Java program remembers names by itself, for as long as its settings say: here for three seconds.
    let program = lab.client.file("Resolve.java");
    fs::write(
        &program,
        r#"
        import java.net.InetAddress;
        class Resolve {
            public static void main(String[] names) throws Exception {
                java.security.Security.setProperty("networkaddress.cache.ttl", "3");
                while (true) {
                    System.out.println(InetAddress.getByName(names[0]).getHostAddress());
                    System.out.flush();
                    Thread.sleep(100);
                }
            }
        }
        "#,
    )
    .unwrap();
    let log = lab.client.file("java.log");
    let code = format!(
        "exec java {} www.bt.com >{}",
        program.display(),
        log.display()
    );
    let mut java = resolving(&lab.client, MIRROR1, &code).spawn().unwrap();
    let java_says = |text: &str| {
        let lines = fs::read_to_string(&log).unwrap_or_default();
        lines.lines().last().is_some_and(|line| line == text)
    };
    wait_until("Java knows the name", || java_says(MIRROR1).then_some(()));
    // Now all caches are full.
    let cached = || Naming::dig(&lab.client, "@127.0.0.1 www.bt.com");
    assert_eq!(cached(), [MIRROR1]);
    let changed = Instant::now();
    naming
        .name(&format!("set www.bt.com {MIRROR2} --ttl 2"))
        .success();
    assert_eq!(
        Naming::dig(&lab.client, &format!("@{MIRROR1} www.bt.com")),
        [MIRROR2]
    );
    if changed.elapsed() < Duration::from_millis(500) {
        assert_eq!(cached(), [MIRROR1], "it may be remembered for two seconds");
    }
    wait_until("dnsmasq asks again", || {
        (cached() == [MIRROR2]).then_some(())
    });
    let after = changed.elapsed();
    assert!(after < Duration::from_secs(4), "{after:?}");
    wait_until("Java asks again", || java_says(MIRROR2).then_some(()));
    let after = changed.elapsed();
    assert!(after < Duration::from_secs(6), "{after:?}");
    java.kill().unwrap();
    java.wait().unwrap();
}

#[test]
fn names_outlive_the_server_however_it_ends() {
    let lab = Lab::new();
    let zone = lab.dir().join("zone");
    fs::write(&zone, "$ORIGIN bt.com.\n$TTL 60\n@ IN NS ns\nwww IN A 10.2.0.3\n* IN A 10.2.0.4\n_x._tcp IN SRV 0 5 80 www\n").unwrap();
    let listed = |naming: &Naming| naming.name("list").success();
    let naming = Naming::start(&lab.mirror1, FLAGS);
    naming.name("set a.test 10.2.0.3*7 --ttl 9").success();
    let imported = naming.name(&format!("import {}", zone.display())).success();
    assert_eq!(imported, "names\t3\nreplaced\t0\nskipped (NS)\t1\n");
    let before = listed(&naming);
    assert_eq!(
        before,
        "*.bt.com\t60\tA\t10.2.0.4\t1\t0\n\
         _x._tcp.bt.com\t60\tSRV\t0 5 80 www.bt.com.\t-\t0\n\
         a.test\t9\tA\t10.2.0.3\t7\t0\n\
         www.bt.com\t60\tA\t10.2.0.3\t1\t0\n"
    );
    // Half of an import is none.
    fs::write(
        &zone,
        "b.test. 60 IN A 10.2.0.3\nc.test. 60 IN CNAME b.test.\nc.test. 60 IN A 10.2.0.3\n",
    )
    .unwrap();
    let refused = naming.name(&format!("import {}", zone.display()));
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert_eq!(listed(&naming), before);

    let second = Naming::refused(
        &lab.mirror1,
        &format!("{FLAGS} --socket {}", lab.dir().join("other").display()),
    );
    assert!(second.stderr.contains("keeps its names in"), "{second:?}");
    let second = Naming::refused(&lab.mirror1, FLAGS);
    assert!(second.stderr.contains("is listening at"), "{second:?}");

    naming.kill();
    let naming = Naming::start(&lab.mirror1, FLAGS);
    assert_eq!(listed(&naming), before);
    let names: NameListResult =
        serde_json::from_str(&naming.name("list --json").success()).unwrap();
    assert_eq!(names.names.len(), 4);
    naming.stop(Signal::SIGTERM);
    let naming = Naming::start(&lab.mirror1, FLAGS);
    assert_eq!(listed(&naming), before);
    naming.stop(Signal::SIGINT);

    // A damaged file is named, and left as it is.
    let state = Naming::state(&lab.mirror1);
    let text = fs::read_to_string(&state)
        .unwrap()
        .replace("10.2.0.4", "10.2.0.400");
    fs::write(&state, &text).unwrap();
    for flags in [FLAGS.to_owned(), format!("{FLAGS} --check")] {
        let refused = Naming::refused(&lab.mirror1, &flags);
        assert!(
            refused.stderr.contains("naming.json is damaged"),
            "{refused:?}"
        );
        assert!(refused.stderr.contains("line "), "{refused:?}");
    }
    assert_eq!(fs::read_to_string(&state).unwrap(), text);
}

/// Without addresses it answers at all of them, from the one that was asked.
#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.mirror2);
    let naming = Naming::start(&lab.origin, "--upstream 10.2.0.3");
    naming.name("set www.bt.com 10.2.0.3 --ttl 5").success();
    for server in ["10.3.0.2", SERVICE, "fd00:3::2", SERVICE6] {
        for transport in ["+notcp", "+tcp"] {
            let dig =
                |name: &str| Naming::dig(&lab.client, &format!("@{server} {transport} {name}"));
            // dig believes no answer from elsewhere.
            assert_eq!(dig("www.bt.com"), ["10.2.0.3"], "{server}");
            assert_eq!(dig("who.shunt.test"), ["192.0.2.2"], "{server}");
        }
    }
}

#[test]
fn a_wrong_start_is_explained() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.mirror1);
    for (flags, expected) in [
        ("", "--upstream IP[:PORT]"),
        ("--upstream 10.3.0.2", "can't listen at 0.0.0.0:53"),
        (
            "--listen 10.2.0.2:5353 --upstream 10.2.0.2:5353",
            "in circles",
        ),
        (
            "--listen 10.99.0.1 --upstream 10.3.0.2",
            "can't listen at 10.99.0.1:53",
        ),
        (
            "--config /nowhere/naming.toml",
            "can't read /nowhere/naming.toml",
        ),
        (
            "--listen 10.2.0.2:5353 --upstream 10.3.0.2 --query-log /nowhere/log",
            "can't write the query log",
        ),
    ] {
        let refused = Naming::refused(&lab.mirror1, flags);
        assert!(refused.stderr.contains(expected), "{flags}: {refused:?}");
    }
    let file = lab.dir().join("naming.toml");
    fs::write(
        &file,
        "listen = [\"10.2.0.2:5353\"]\nupstream = [\"10.3.0.2\"]\nttl = 3\n",
    )
    .unwrap();
    let naming = Naming::start(&lab.mirror1, &format!("--config {}", file.display()));
    naming.name("set a.test 10.2.0.3").success();
    assert_eq!(
        naming.name("list").success(),
        "a.test\t3\tA\t10.2.0.3\t1\t0\n"
    );
}

#[test]
fn it_is_no_use_as_an_amplifier() {
    let lab = Lab::new();
    let _dns = servers::dnsmasq(&lab.origin);
    let flags = format!("{FLAGS} --rate-limit 20 --workers 1 --metrics 10.2.0.2:9353 --query-log");
    let log = lab.dir().join("queries");
    let naming = Naming::start(&lab.mirror1, &format!("{flags} {}", log.display()));
    naming
        .name("set www.bt.com 10.2.0.3 10.2.0.4 10.2.0.5")
        .success();
    let socket = lab.client.udp("10.1.0.2:0", "10.2.0.2:53");
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x02bt\x03com\0\0\x01\0\x01";
    let mut buffer = [0; 2048];

    // An answer isn't answered, whatever it says.
    let mut answer = query.to_vec();
    for flags in [0x80, 0x81, 0xA0, 0xFF] {
        answer[2] = flags;
        socket.send(&answer).unwrap();
    }
    assert!(socket.recv(&mut buffer).is_err(), "an answer was answered");

    // A second's worth is answered, and then hardly more than comes in.
    let (mut sent, mut received, mut whole) = (0, 0, 0);
    for _ in 0..400 {
        socket.send(query).unwrap();
        sent += query.len();
        while let Ok(length) = {
            socket.set_nonblocking(true).unwrap();
            socket.recv(&mut buffer)
        } {
            received += length;
            whole += usize::from(length > query.len());
        }
        thread::sleep(Duration::from_micros(200));
    }
    assert!(
        (15..60).contains(&whole),
        "{whole} of 400 were answered in full"
    );
    assert!(received < sent, "{received} bytes for {sent}");
    // Whoever really is there gets his answer over TCP.
    socket.set_nonblocking(false).unwrap();
    let dig = Naming::dig(&lab.client, &format!("@{MIRROR1} +tcp www.bt.com"));
    assert_eq!(dig.len(), 3);

    let metric = |name: &str| naming.metric("10.2.0.2:9353", name);
    assert_eq!(
        metric("shunt_naming_dropped_total{what=\"is_answer\"}"),
        4.0
    );
    assert!(metric("shunt_naming_dropped_total{what=\"over_limit\"}") > 100.0);
    assert!(metric("shunt_naming_answers_total{what=\"limited\"}") > 100.0);
    assert_eq!(metric("shunt_naming_names"), 1.0);
    let own = metric("shunt_naming_name_answers_total{name=\"www.bt.com\"}");
    assert_eq!(own, (whole + 1) as f64);

    Naming::dig(&lab.client, &format!("@{MIRROR1} +tcp who.shunt.test"));
    assert_eq!(metric("shunt_naming_passed_total{what=\"whole\"}"), 1.0);
    assert_eq!(
        metric("shunt_naming_returned_total{what=\"answered\"}"),
        1.0
    );
    assert_eq!(
        metric("shunt_naming_upstream_seconds_count{upstream=\"10.3.0.2:53\"}"),
        1.0
    );
    naming.stop(Signal::SIGTERM);
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 406, "four answers, 400 queries, two over TCP");
    let last: Vec<_> = lines[405].split('\t').collect();
    assert_eq!(last[2], "tcp");
    assert_eq!(last[4..], ["who.shunt.test", "A", "1", "passed", "whole"]);
}
