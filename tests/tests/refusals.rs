//! What is refused: with which exit code, and with a sentence that says why.

use std::fs;

use scenarios::servers::Nginx;
use scenarios::{Finished, Lab, MIRROR1, SERVICE, Shuntd, binary};

/// Asserts the exit code, an empty standard output, and that each of `words` is on stderr.
#[track_caller]
fn assert_refused(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code(), code, "{finished:#?}");
    assert_eq!(finished.stdout, "", "{finished:#?}");
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "{word:?} isn't said: {finished:#?}"
        );
    }
}

/// Diversions that make no sense on this host are refused by the daemon (1), and those that make no
/// sense at all by `shuntctl` (2). Neither leaves anything behind.
#[test]
fn diversions_that_make_no_sense() {
    let lab = Lab::new();
    let shuntd = Shuntd::start(&lab, "");
    for (words, code, said) in [
        // A loop: the mirror is a proxy address, or the service is.
        (
            "divert 100.100.100.100 10.10.10.10",
            1,
            &["10.10.10.10", "proxy"][..],
        ),
        ("divert 10.10.10.10 10.2.0.2", 1, &["10.10.10.10", "proxy"]),
        // Families that differ.
        (
            "divert 100.100.100.100 fd00:2::2",
            1,
            &["100.100.100.100", "fd00:2::2"],
        ),
        (
            "divert fd00:100::100 10.2.0.2",
            1,
            &["fd00:100::100", "10.2.0.2"],
        ),
        (
            "divert 100.100.100.100 10.2.0.2 --from fd00:1::/64",
            1,
            &["fd00:1::/64"],
        ),
        // Addresses that no one host has.
        ("divert 224.0.0.1 10.2.0.2", 1, &["224.0.0.1"]),
        (
            "divert 100.100.100.100 255.255.255.255",
            1,
            &["255.255.255.255"],
        ),
        ("divert 100.100.100.100 0.0.0.0", 1, &["0.0.0.0"]),
        ("divert ff02::1 fd00:2::2", 1, &["ff02::1"]),
        ("redirect 100.100.100.100 239.1.2.3", 1, &["239.1.2.3"]),
        // Nothing to restore.
        ("restore 100.100.100.100", 1, &["100.100.100.100"]),
        // Words that say nothing.
        ("divert 100.100.100.100:0 10.2.0.2", 2, &["0"]),
        ("divert 100.100.100.100:80 10.2.0.2:0", 2, &["0"]),
        ("divert 100.100.100.100:65536 10.2.0.2", 2, &["65536"]),
        ("divert 100.100.100.100:80/sctp 10.2.0.2", 2, &["sctp"]),
        ("divert 100.100.100.100:80/icmp 10.2.0.2", 2, &["icmp"]),
        ("divert 100.100.100 10.2.0.2", 2, &["100.100.100"]),
        ("divert 100.100.100.100 10.2.0.2*x", 2, &["x"]),
        (
            "divert 100.100.100.100 10.2.0.2 --from 10.0.0.1/8",
            2,
            &["10.0.0.0/8"],
        ),
        ("divert 100.100.100.100", 2, &["MIRROR"]),
        (
            "redirect 100.100.100.100 10.2.0.2 --tcp slice",
            2,
            &["splice", "rewrite", "reset"],
        ),
        ("diverge 100.100.100.100 10.2.0.2", 2, &["diverge"]),
    ] {
        assert_refused(&shuntd.ctl(words), code, said);
        assert_eq!(shuntd.diversions(), [], "after {words}");
    }
    // A chain that leads back, or on: the mirror of one is the service of another.
    shuntd.ctl("divert 100.100.100.100 10.2.0.2").success();
    assert_refused(
        &shuntd.ctl("divert 10.2.0.2 100.100.100.100"),
        1,
        &["100.100.100.100"],
    );
    assert_refused(
        &shuntd.ctl("divert 10.2.0.3 100.100.100.100"),
        1,
        &["100.100.100.100"],
    );
    assert_refused(&shuntd.ctl("divert 10.2.0.2 10.2.0.3"), 1, &["10.2.0.2"]);
    assert_eq!(shuntd.diversions().len(), 1);
}

/// Flags that make no sense end the daemon before it touches anything.
#[test]
fn flags_that_make_no_sense() {
    let lab = Lab::new();
    for (flags, said) in [
        ("--proxy 10.10.10.10 --proxy-ports 0-100", "0"),
        ("--proxy 10.10.10.10 --proxy-ports 2000-1000", "2000"),
        ("--proxy 10.10.10.10 --proxy-ports 1000-70000", "70000"),
        ("--proxy 224.0.0.1", "224.0.0.1"),
        ("--proxy 127.0.0.1", "127.0.0.1"),
        ("--proxy mirror1", "mirror1"),
        ("--workers 0", "0"),
        ("--mtu 10", "10"),
        ("--egress carrier-pigeon", "carrier-pigeon"),
        ("--client 10.1.0.0/33", "33"),
        ("--tun a-name-that-is-too-long", "a-name-that-is-too-long"),
        ("--config /nonexistent.toml", "/nonexistent.toml"),
        ("--frobnicate", "--frobnicate"),
    ] {
        let refused = Shuntd::refused(&lab, flags);
        assert!(
            refused.stderr.contains(said),
            "{flags}: {said:?} isn't said: {refused:#?}"
        );
    }
}

/// Every flag has its place in a configuration file, flags win, and a key that doesn't exist is
/// named together with its line.
#[test]
fn the_configuration_file() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.mirror1);
    let file = lab.dir().join("shunt.toml");
    let flags = format!("--config {}", file.display());
    fs::write(
        &file,
        "proxy = [\"10.10.10.10\", \"fd00:10::10\"]\nproxy-ports = \"5000-5009\"\nworkers = 1\n\
         tun = \"conf0\"\n",
    )
    .expect("our directory");
    let shuntd = Shuntd::start(&lab, &flags);
    shuntd
        .ctl(&format!("divert {SERVICE}:80 {MIRROR1}"))
        .success();
    let _stream = lab.client.connect(&format!("{SERVICE}:80"));
    assert!((5000..=5009).contains(&shuntd.connections()[0].proxy.port()));
    let version: control_protocol::VersionResult = shuntd.ask("version");
    assert_eq!((version.tun.as_str(), version.workers), ("conf0", 1));
    drop(shuntd);

    let shuntd = Shuntd::start(&lab, &format!("{flags} --tun flag0 --workers 2"));
    let version: control_protocol::VersionResult = shuntd.ask("version");
    assert_eq!((version.tun.as_str(), version.workers), ("flag0", 2));
    drop(shuntd);

    for (text, key, line) in [
        ("proxy = [\"10.10.10.10\"]\n\nworker = 1\n", "worker", "3"),
        (
            "proxy = [\"10.10.10.10\"]\nworkers = \"many\"\n",
            "workers",
            "2",
        ),
        ("proxy = [\"10.10.10.10\"\n", "shunt.toml", "2"),
    ] {
        fs::write(&file, text).expect("our directory");
        let refused = Shuntd::refused(&lab, &flags);
        assert!(
            refused.stderr.contains(key),
            "{key} isn't named: {refused:#?}"
        );
        assert!(
            refused.stderr.contains(line),
            "line {line} isn't named: {refused:#?}"
        );
    }
}

/// Both programs explain themselves, on stdout and with the exit code 0.
#[test]
fn help_and_version() {
    let lab = Lab::new();
    let shuntd = binary("shuntd").display().to_string();
    let shuntctl = binary("shuntctl").display().to_string();
    for (line, said) in [
        (
            format!("{shuntd} --help"),
            &["--proxy", "--egress", "--no-routes"][..],
        ),
        (
            format!("{shuntctl} --help"),
            &["divert", "redirect", "restore", "--json"],
        ),
        (
            format!("{shuntctl} redirect --help"),
            &["--from-mirror", "--tcp", "--from"],
        ),
        (format!("{shuntd} --version"), &["shuntd"]),
        (format!("{shuntctl} --version"), &["shuntctl"]),
    ] {
        let text = lab.rewriter.run(&line).success();
        for word in said {
            assert!(text.contains(word), "{line} doesn't say {word}:\n{text}");
        }
    }
}

/// Output for programs has no colours and no frames; `--json` is JSON on every command.
#[test]
fn output_for_programs() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.mirror1);
    let shuntd = Shuntd::start(&lab, "");
    for command in [
        "version",
        "divert 100.100.100.100:80 10.2.0.2",
        "list",
        "redirect 100.100.100.100:80 10.2.0.2",
        "connections",
        "stats",
        "restore 100.100.100.100:80",
    ] {
        let plain = shuntd.ctl(command).success();
        assert!(
            !plain.contains('\u{1b}'),
            "{command} is coloured: {plain:?}"
        );
        let _: serde_json::Value = shuntd.ask(match command {
            // There is nothing left to restore.
            "restore 100.100.100.100:80" => "list",
            other => other,
        });
    }
}
