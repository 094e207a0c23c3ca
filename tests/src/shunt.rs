//! Shunt's own two programs, and what they must leave behind: nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use control_protocol::{ConnectionInfo, Counters, DiversionInfo, ListResult, StatsResult};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::lab::{Host, Lab};
use crate::process::{Background, Finished, report, wait_until};
use crate::{PROXY, PROXY6};

/// How long the daemon may take to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A running `shuntd` on the host `rewriter`.
///
/// Dropping it ends it as [`Shuntd::stop`] does, checks included.
#[derive(Debug)]
pub struct Shuntd<'lab> {
    lab: &'lab Lab,
    /// `None` once it has been ended.
    program: Option<Background>,
    socket: PathBuf,
    /// The host as it was before.
    before: HostState,
}

impl<'lab> Shuntd<'lab> {
    /// Starts it with these flags, and waits until it answers. It listens at
    /// [`default_socket`](Shuntd::default_socket) and has the proxy addresses [`PROXY`] and
    /// [`PROXY6`], unless the flags say otherwise.
    #[track_caller]
    pub fn start(lab: &'lab Lab, flags: &str) -> Self {
        Self::start_on(lab, flags, HostState::of(&lab.rewriter))
    }

    #[track_caller]
    fn start_on(lab: &'lab Lab, flags: &str, mut before: HostState) -> Self {
        // Forwarding, once enabled, stays so: others may have come to rely on it.
        if flag_is_there(flags, "--enable-forwarding") {
            before.may_change.extend(FORWARDING);
        }
        let mut command = Self::command(lab, flags);
        let program = lab.rewriter.spawn(&mut command, "shuntd");
        let socket = flag_value(flags, "--socket").unwrap_or_else(|| Self::default_socket(lab));
        let mut shuntd = Self {
            lab,
            program: Some(program),
            socket,
            before,
        };
        shuntd.wait_until_ready();
        shuntd
    }

    /// Runs it where it must refuse to start, and gives what it said. It must have changed nothing.
    #[track_caller]
    pub fn refused(lab: &Lab, flags: &str) -> Finished {
        let before = HostState::of(&lab.rewriter);
        let mut command = lab.rewriter.command("timeout");
        command
            .args(["--kill-after=1", "10"])
            .args(Self::words(lab, flags));
        let finished = Finished::of(&mut command);
        assert!(
            matches!(finished.code(), 1 | 2),
            "it must refuse with an exit code of 1, or 2 for usage: {finished:#?}"
        );
        before.assert_unchanged(&lab.rewriter);
        finished
    }

    /// Where it listens unless told otherwise.
    pub fn default_socket(lab: &Lab) -> PathBuf {
        lab.dir().join("control.sock")
    }

    fn command(lab: &Lab, flags: &str) -> Command {
        let words = Self::words(lab, flags);
        let mut command = lab.rewriter.command(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// The command line: the program, what every scenario needs, and the scenario's flags.
    fn words(lab: &Lab, flags: &str) -> Vec<String> {
        let mut words = vec![binary("shuntd").display().to_string()];
        if flag_value(flags, "--socket").is_none() {
            words.extend([
                "--socket".into(),
                Self::default_socket(lab).display().to_string(),
            ]);
        }
        if flag_value(flags, "--proxy").is_none() && flag_value(flags, "--config").is_none() {
            words.extend(["--proxy", PROXY, "--proxy", PROXY6].map(str::to_owned));
        }
        words.extend(flags.split_whitespace().map(str::to_owned));
        words
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        wait_until("shuntd answers on its socket", || {
            let program = self.program.as_mut().expect("it was just started");
            if let Some(status) = program.status() {
                let log = program.log();
                self.program = None;
                panic!("shuntd ended ({status}) instead of starting:\n{log}");
            }
            (self.socket.exists() && self.ctl("version").code() == 0).then_some(())
        });
    }

    /// Runs `shuntctl` with these words, split at spaces, to its end.
    #[track_caller]
    pub fn ctl(&self, words: &str) -> Finished {
        shuntctl(&self.lab.rewriter, &self.socket, words)
    }

    /// What `shuntctl --json` answers, as the documented type.
    #[track_caller]
    pub fn ask<T: DeserializeOwned>(&self, words: &str) -> T {
        let text = self.ctl(&format!("--json {words}")).success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
    }

    /// The counters, summed over the workers.
    #[track_caller]
    pub fn counters(&self) -> Counters {
        self.ask::<StatsResult>("stats").total
    }

    /// How many packets were dropped for this reason.
    #[track_caller]
    pub fn dropped(&self, reason: &str) -> u64 {
        let drops = self.counters().drops;
        *drops
            .get(reason)
            .unwrap_or_else(|| panic!("no drop reason {reason:?} in {drops:?}"))
    }

    /// The connections that there are.
    #[track_caller]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.ask::<control_protocol::ConnectionsResult>("connections")
            .connections
    }

    /// The diversions that there are.
    #[track_caller]
    pub fn diversions(&self) -> Vec<DiversionInfo> {
        self.ask::<ListResult>("list").diversions
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.program.as_ref().expect("it runs").pid()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.program
            .as_ref()
            .map_or_else(String::new, Background::log)
    }

    /// Ends it by `signal`: it must do so with the exit code 0, take its socket with it, and leave
    /// the host as it was. Gives its log.
    #[track_caller]
    pub fn stop(mut self, signal: Signal) -> String {
        self.end(signal)
    }

    #[track_caller]
    fn end(&mut self, signal: Signal) -> String {
        let Some(program) = self.program.take() else {
            return String::new();
        };
        program.signal(signal);
        let (status, log) = program.wait(FAREWELL);
        assert_eq!(
            status.code(),
            Some(0),
            "after {signal} shuntd ended with {status}:\n{log}"
        );
        assert!(!self.socket.exists(), "its socket is still there");
        self.before.assert_unchanged(&self.lab.rewriter);
        log
    }

    /// Kills it, so that it can't tidy up.
    #[track_caller]
    pub fn kill(mut self) -> Crashed<'lab> {
        let program = self.program.take().expect("it was running");
        let (status, _) = program.stop(Signal::SIGKILL);
        assert!(!status.success());
        let before = std::mem::take(&mut self.before);
        Crashed {
            lab: self.lab,
            before,
        }
    }
}

/// What a killed daemon leaves: its rules, its routes, its socket.
#[derive(Debug)]
pub struct Crashed<'lab> {
    lab: &'lab Lab,
    /// The host as it was before the daemon that was killed.
    before: HostState,
}

impl<'lab> Crashed<'lab> {
    /// Starts the next daemon, which must in the end leave the host as it was before the crash.
    #[track_caller]
    pub fn restart(mut self, flags: &str) -> Shuntd<'lab> {
        self.before.may_change.push(EMPTY_HOOK);
        Shuntd::start_on(self.lab, flags, self.before)
    }
}

impl Drop for Shuntd<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            if let Some(program) = &self.program {
                report(&format!("━━ shuntd's log:\n{}━━", program.log()));
            }
            return;
        }
        self.end(Signal::SIGTERM);
    }
}

/// Runs `shuntctl` on `host` with these words, split at spaces, to its end.
#[track_caller]
pub fn shuntctl(host: &Host, socket: &Path, words: &str) -> Finished {
    let mut command = host.command("timeout");
    command
        .args(["--kill-after=1", "10"])
        .arg(binary("shuntctl"));
    command
        .arg("--socket")
        .arg(socket)
        .args(words.split_whitespace());
    Finished::of(&mut command)
}

/// One of Shunt's programs: what the environment names, or what cargo built beside this test.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let variable = variable(name);
    if let Some(path) = std::env::var_os(&variable) {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "{variable} names {}, which is no file",
            path.display()
        );
        return path;
    }
    // A program runs from TARGET/PROFILE, a test from TARGET/PROFILE/deps.
    let program = std::env::current_exe().expect("this program has a path");
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no {name} beside {}: run `cargo build -p rewriter -p control-cli -p monitor -p naming`, set \
                 {variable}, or use `scripts/test.sh scenarios`",
                program.display()
            )
        })
}

/// The environment variable that names a program's path: its name in capitals, but for the one that names
/// the monitor's socket to `shuntctl`.
fn variable(name: &str) -> String {
    match name {
        "shunt-monitor" => "SHUNT_MONITOR_BIN".into(),
        _ => name.to_uppercase().replace('-', "_"),
    }
}

/// The word after `flag`.
fn flag_value(flags: &str, flag: &str) -> Option<PathBuf> {
    let mut words = flags.split_whitespace();
    words.find(|word| *word == flag)?;
    words.next().map(PathBuf::from)
}

/// Is `flag` among the words?
fn flag_is_there(flags: &str, flag: &str) -> bool {
    flags.split_whitespace().any(|word| word == flag)
}

/// What shuntd may change on a host while it runs, a line each.
#[derive(Debug, Default)]
struct HostState {
    lines: Vec<String>,
    /// Lines that have one of these in them don't count.
    may_change: Vec<&'static str>,
}

/// The forwarding settings, and what the kernel derives of them: an IPv6 router has anycast addresses.
const FORWARDING: [&str; 3] = ["ip_forward:", "/forwarding:", "anycast "];

/// The hook for filters, without the filters. One that a killed daemon made can't be told from
/// anybody else's; it does nothing.
const EMPTY_HOOK: &str = "qdisc clsact ";

impl HostState {
    #[track_caller]
    fn of(host: &Host) -> Self {
        let listing = host.shell(
            "for family in -4 -6; do ip $family rule; ip $family route show table all; done
             ip -o link
             for link in /sys/class/net/*; do tc filter show dev ${link##*/} ingress; done
             tc qdisc
             nft list ruleset
             cd /proc/sys/net
             grep . ipv4/ip_forward ipv4/conf/*/rp_filter ipv6/conf/*/forwarding",
        );
        let lines = listing.success().lines().map(str::to_owned).collect();
        Self {
            lines,
            may_change: Vec::new(),
        }
    }

    /// Compares with how `host` is now; the kernel may need a moment to take a link away.
    #[track_caller]
    fn assert_unchanged(&self, host: &Host) {
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        for _ in 0..50 {
            let now = Self::of(host);
            new = self.missing_from(&now.lines, &self.lines);
            gone = self.missing_from(&self.lines, &now.lines);
            if new.is_empty() && gone.is_empty() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "shuntd left {} changed.\nnew: {new:#?}\ngone: {gone:#?}",
            host.name()
        );
    }

    /// The lines of `these` that are missing from `those`.
    fn missing_from(&self, these: &[String], those: &[String]) -> Vec<String> {
        let counts = |line: &String| !self.may_change.iter().any(|word| line.contains(word));
        these
            .iter()
            .filter(|line| counts(line) && !those.contains(line))
            .cloned()
            .collect()
    }
}
