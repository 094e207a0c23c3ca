//! The check by a command: its exit, its output, and that nothing of it is left behind.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use monitor::check::{Checks, Verdict};
use support::programs::wait_until;
use support::{config, find, next, target};
use tokio::sync::mpsc;

fn shell(script: &str) -> String {
    format!(
        "kind = 'command'\ninterval = '20s'\ntimeout = '20s'\ncommand = ['/bin/sh', '-c', '''{script}''']"
    )
}

/// Whether a process of this id runs; one that has ended but wasn't waited for doesn't.
fn runs(id: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", id.trim())).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z')
    })
}

fn ids_in(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_exit_status_decides_and_the_first_line_is_the_detail() {
    for (script, verdict, detail) in [
        ("exit 0", Verdict::Good, "exit status 0"),
        ("echo fine; echo more", Verdict::Good, "exit status 0: fine"),
        (
            "echo worse >&2; exit 2",
            Verdict::Bad,
            "exit status 2: worse",
        ),
        (
            "echo first; echo second >&2; exit 3",
            Verdict::Bad,
            "exit status 3: first",
        ),
        ("kill -9 $$", Verdict::Bad, "killed by signal 9"),
        ("cat", Verdict::Good, "exit status 0"),
    ] {
        let finding = find("127.0.0.1:80".parse().unwrap(), &shell(script)).await;
        assert_eq!(
            (finding.verdict, finding.detail.as_str()),
            (verdict, detail),
            "{script}"
        );
        assert_eq!(finding.latency, None);
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_run_says_nothing_of_the_mirror() {
    for command in ["/nowhere/check", "/etc/passwd", "/"] {
        let text = format!("kind = 'command'\ncommand = ['{command}']");
        let finding = find("127.0.0.1:80".parse().unwrap(), &text).await;
        assert_eq!(finding.verdict, Verdict::Unknown, "{}", finding.detail);
        let expected = format!("can't run {command}: ");
        assert!(finding.detail.starts_with(&expected), "{}", finding.detail);
    }
}

#[tokio::test]
async fn the_mirror_is_in_the_environment() {
    let script = "echo $SHUNT_MIRROR_NAME,$SHUNT_MIRROR_ADDRESS,$SHUNT_MIRROR_PORT,";
    for (address, more, expected) in [
        ("10.0.0.7:80", "", "one,10.0.0.7,80,"),
        ("[fd00::7]:80", "port = 8080", "one,fd00::7,8080,"),
        ("10.0.0.7:0", "", "one,10.0.0.7,,"),
    ] {
        let text = format!("{}\n{more}", shell(script));
        let finding = find(address.parse().unwrap(), &text).await;
        assert_eq!(finding.detail, format!("exit status 0: {expected}"));
    }
}

#[tokio::test]
async fn output_of_any_length_is_read_and_little_of_it_kept() {
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero >&2";
    let finding = find("127.0.0.1:80".parse().unwrap(), &shell(script)).await;
    assert_eq!(finding.verdict, Verdict::Good, "{}", finding.detail);
    assert!(finding.detail.chars().count() <= 201);
}

#[tokio::test]
async fn a_command_that_ignores_signals_is_killed_with_its_children_when_its_time_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids");
    // The child holds the pipe, and both ignore what can be ignored.
    let script = format!(
        "trap \"\" TERM INT HUP; sleep 600 & echo $! >> {0}; echo $$ >> {0}; wait; sleep 600",
        file.display()
    );
    let text = shell(&script).replace("timeout = '20s'", "timeout = '1s'");
    let began = Instant::now();
    let finding = find("127.0.0.1:80".parse().unwrap(), &text).await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Bad, "no answer within 1s")
    );
    assert!(began.elapsed() < Duration::from_secs(15));
    let ids = ids_in(&file);
    assert_eq!(ids.len(), 2, "{ids:?}");
    wait_until(|| !ids.iter().any(|id| runs(id)));
}

#[tokio::test]
async fn a_child_left_behind_does_not_hold_the_check_up_and_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids");
    let script = format!("echo done; sleep 600 & echo $! >> {}", file.display());
    let began = Instant::now();
    let finding = find("127.0.0.1:80".parse().unwrap(), &shell(&script)).await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Good, "exit status 0: done")
    );
    assert!(began.elapsed() < Duration::from_secs(15));
    let ids = ids_in(&file);
    assert_eq!(ids.len(), 1);
    wait_until(|| !runs(&ids[0]));
}

#[tokio::test]
async fn a_child_that_left_the_group_does_not_hold_the_check_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids");
    let script = format!(
        "echo done; setsid sh -c \"echo \\$\\$ >> {0}; exec sleep 30\" & while ! test -s {0}; do sleep 0.01; done",
        file.display()
    );
    let began = Instant::now();
    let finding = find("127.0.0.1:80".parse().unwrap(), &shell(&script)).await;
    assert_eq!(
        (finding.verdict, finding.detail.as_str()),
        (Verdict::Good, "exit status 0: done")
    );
    assert!(began.elapsed() < Duration::from_secs(15));
    // That one is ours to end.
    for id in ids_in(&file) {
        let id = nix::unistd::Pid::from_raw(id.trim().parse().unwrap());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

#[tokio::test]
async fn dropping_the_handle_kills_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids");
    let script = format!(
        "trap \"\" TERM; echo $$ >> {}; sleep 600; sleep 600",
        file.display()
    );
    let (sender, mut reports) = mpsc::channel(1);
    let check = config(&shell(&script));
    let address = "127.0.0.1:80".parse().unwrap();
    let checks = Checks::start(vec![target(address, vec![check])], sender).unwrap();
    checks.hurry(0, Duration::from_secs(20));
    while ids_in(&file).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(checks);
    assert_eq!(
        tokio::time::timeout(support::PATIENCE, reports.recv())
            .await
            .unwrap(),
        None
    );
    let ids = ids_in(&file);
    let deadline = Instant::now() + support::PATIENCE;
    while runs(&ids[0]) {
        assert!(Instant::now() < deadline, "it still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn many_commands_leave_no_descriptor_behind() {
    let (sender, mut reports) = mpsc::channel(10);
    let check = "kind = 'command'\ncommand = ['/bin/true']\ninterval = '10ms'";
    let address = "127.0.0.1:80".parse().unwrap();
    let checks = Checks::start(vec![target(address, vec![config(check)])], sender).unwrap();
    next(&mut reports).await;
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..50 {
        assert_eq!(next(&mut reports).await.finding.verdict, Verdict::Good);
    }
    // Other tests of this process have some open too.
    assert!(open() < before + 40, "{before} before, {} after", open());
    drop(checks);
}
