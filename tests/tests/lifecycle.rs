//! Starting, ending, and what lies between a crash and the next start.
//!
//! That a daemon leaves its host as it found it is asserted by [`Shuntd`] itself, in every scenario
//! of every file: rules, routes, links, filters, settings and the socket.

use std::fs;

use nix::sys::signal::Signal;
use scenarios::servers::Nginx;
use scenarios::{Lab, MIRROR1, MIRROR1_6, SERVICE, Shuntd, wait_until};

/// The page that the client gets from the service.
#[track_caller]
fn page(lab: &Lab) -> String {
    lab.client
        .run(&format!("curl -sS --max-time 5 http://{SERVICE}/"))
        .success()
}

/// SIGINT and SIGTERM end it in the middle of its work, with the exit code 0 and nothing left; the
/// service is then answered by its origin again.
#[test]
fn signals_end_it_tidily() {
    let lab = Lab::new();
    let _servers = [Nginx::start(&lab.origin), Nginx::start(&lab.mirror1)];
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let shuntd = Shuntd::start(&lab, "--client 10.1.0.0/24");
        shuntd
            .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
            .success();
        shuntd
            .ctl(&format!("divert [fd00:100::100]:80 {MIRROR1_6}"))
            .success();
        assert_eq!(page(&lab), "mirror 1\n");
        shuntd.stop(signal);
        assert_eq!(page(&lab), "origin\n");
    }
}

/// Killed by `kill -9` it leaves rules or filters behind that lead nowhere. The next start recognises
/// them, and ends with the host as it was before the crash.
#[test]
fn leftovers_of_a_crash_are_cleaned_at_the_next_start() {
    let lab = Lab::new();
    let _servers = [Nginx::start(&lab.origin), Nginx::start(&lab.mirror1)];
    let rules = || lab.rewriter.shell("ip -4 rule; ip -6 rule").success();
    let before = rules();
    for flags in ["", "--client 10.1.0.0/24", "--egress raw"] {
        let shuntd = Shuntd::start(&lab, flags);
        shuntd
            .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
            .success();
        let socket = shuntd.socket().to_owned();
        let crashed = shuntd.kill();
        assert_ne!(rules(), before, "a crash leaves something behind");
        assert!(socket.exists(), "a crash leaves the socket behind");

        // The next one has other flags, and so another use for what it finds.
        let shuntd = crashed.restart("--client 10.1.0.2/32");
        assert_eq!(page(&lab), "origin\n", "nothing is diverted yet");
        shuntd
            .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
            .success();
        assert_eq!(page(&lab), "mirror 1\n");
        shuntd.stop(Signal::SIGTERM);
        assert_eq!(rules(), before);
    }
}

/// A second daemon that would get in the first one's way is refused, says why, and changes nothing;
/// the first works on.
#[test]
fn a_second_daemon_is_refused_and_the_first_works_on() {
    let lab = Lab::new();
    let _servers = [Nginx::start(&lab.origin), Nginx::start(&lab.mirror1)];
    let first = Shuntd::start(&lab, "--tun shunt0 --table 5100 --rule-priority 5100");
    first
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    let other_socket = lab.dir().join("other.sock").display().to_string();
    let first_socket = first.socket().display().to_string();

    for (flags, named) in [
        (
            "--tun shunt1 --table 5200 --rule-priority 5200".to_owned(),
            first_socket.as_str(),
        ),
        (
            format!("--socket {other_socket} --table 5200 --rule-priority 5200"),
            "shunt0",
        ),
        (
            format!("--socket {other_socket} --tun shunt1 --table 5100"),
            "5100",
        ),
    ] {
        let refused = Shuntd::refused(&lab, &flags);
        assert!(
            refused.stderr.contains(named),
            "{flags}: {named} isn't named: {refused:#?}"
        );
        assert_eq!(page(&lab), "mirror 1\n", "after {flags}");
        assert_eq!(first.ctl("version").code(), 0, "after {flags}");
    }
    assert!(
        !fs::exists(&other_socket).expect("our directory"),
        "a refused daemon has no socket"
    );
}

/// Two daemons that share nothing get along.
#[test]
fn two_daemons_side_by_side() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.mirror1);
    let first = Shuntd::start(&lab, "--proxy 10.10.10.10");
    first
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    let socket = lab.dir().join("other.sock").display().to_string();
    let flags = "--proxy 10.10.10.11 --tun shunt1 --table 5200 --rule-priority 5200";
    let second = Shuntd::start(&lab, &format!("--socket {socket} {flags}"));
    first
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    second
        .ctl(&format!("divert 100.100.100.101:80 {MIRROR1}"))
        .success();
    for service in [SERVICE, "100.100.100.101"] {
        let curl = format!("curl -sS --max-time 5 http://{service}/");
        assert_eq!(lab.client.run(&curl).success(), "mirror 1\n");
    }
    // The one that started last goes first, so that each finds the host as it had left it.
    second.stop(Signal::SIGTERM);
    assert_eq!(page(&lab), "mirror 1\n");
    first.stop(Signal::SIGTERM);
}

/// Where the host doesn't forward, it says which command turns that on, and that command does.
#[test]
fn without_forwarding_it_names_the_command() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.mirror1);
    for (setting, command) in [
        ("net/ipv4/ip_forward", "sysctl -w net.ipv4.ip_forward=1"),
        (
            "net/ipv6/conf/all/forwarding",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
    ] {
        lab.rewriter.set(setting, "0");
        let refused = Shuntd::refused(&lab, "");
        assert!(
            refused.stderr.contains(command),
            "{command} isn't there: {refused:#?}"
        );
        lab.rewriter.run(command).success();
    }
    let shuntd = Shuntd::start(&lab, "");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    assert_eq!(page(&lab), "mirror 1\n");
}

/// It can turn forwarding on itself.
#[test]
fn enable_forwarding() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.mirror1);
    lab.rewriter.set("net/ipv4/ip_forward", "0");
    lab.rewriter.set("net/ipv6/conf/all/forwarding", "0");
    let shuntd = Shuntd::start(&lab, "--enable-forwarding");
    assert_eq!(lab.rewriter.setting("net/ipv4/ip_forward"), "1");
    assert_eq!(lab.rewriter.setting("net/ipv6/conf/all/forwarding"), "1");
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    shuntd
        .ctl(&format!("divert [fd00:100::100]:80 {MIRROR1_6}"))
        .success();
    assert_eq!(page(&lab), "mirror 1\n");
    let page6 = lab
        .client
        .run("curl -sS --max-time 5 http://[fd00:100::100]/")
        .success();
    assert_eq!(page6, "mirror 1\n");
}

/// With `--no-routes` it touches neither rules nor routes, and prints the `ip` commands that do the
/// same. Run as printed, they make it work.
#[test]
fn no_routes_prints_commands_that_work() {
    let lab = Lab::new();
    let _servers = [Nginx::start(&lab.origin), Nginx::start(&lab.mirror1)];
    let state = || {
        let listing = "for f in -4 -6; do ip $f rule; ip $f route show table all; done";
        lab.rewriter.shell(listing).success()
    };
    let shuntd = Shuntd::start(&lab, "--no-routes");
    let before = state();
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    assert_eq!(state(), before, "it leaves rules and routes alone");
    assert_eq!(page(&lab), "origin\n", "and so no packet reaches it");

    let printed = wait_until("the commands for the service are printed", || {
        Some(shuntd.log()).filter(|log| log.contains(SERVICE))
    });
    let commands: Vec<&str> = printed
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("ip "))
        .collect();
    for command in &commands {
        lab.rewriter.run(command).success();
    }
    assert_eq!(page(&lab), "mirror 1\n", "after {commands:#?}");

    // Each rule and route is taken away again by its own command's opposite.
    for command in commands
        .iter()
        .rev()
        .filter(|command| command.contains(" add "))
    {
        // The routes by way of the TUN go with it.
        lab.rewriter
            .run(&command.replacen(" add ", " del ", 1))
            .success();
    }
}
