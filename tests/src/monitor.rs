//! The network monitor on the host `rewriter`, beside the daemon that it instructs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use control_protocol::{Decision, DecisionsResult, MirrorState, MirrorsResult};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::lab::Lab;
use crate::process::{Background, Finished, report, wait_until};
use crate::shunt::{Shuntd, binary};
use crate::{MIRROR1, MIRROR2, MIRROR3, SERVICE};

/// How long it may take to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// The names that [`configuration`] gives the mirrors.
pub const MIRROR_NAMES: [&str; 3] = ["m1", "m2", "m3"];

/// What the monitor is to do in a scenario: it watches the three mirrors at port 80, and steers the
/// [service](SERVICE) at port 80, TCP.
///
/// `top` are lines that come first, such as `interval = "1s"`; `check` the keys of a check that every mirror
/// has, or nothing; `more` what follows in the service, such as rules.
pub fn configuration(lab: &Lab, top: &str, check: &str, more: &str) -> String {
    let mut text = format!(
        "{top}\n[[rewriter]]\nname = \"r1\"\nsocket = \"{}\"\n",
        Shuntd::default_socket(lab).display()
    );
    for (name, address) in MIRROR_NAMES.iter().zip([MIRROR1, MIRROR2, MIRROR3]) {
        text += &format!("[[mirror]]\nname = \"{name}\"\naddress = \"{address}:80\"\n");
        if !check.is_empty() {
            text += &format!("[[mirror.check]]\n{check}\n");
        }
    }
    text += &format!(
        "[[service]]\naddress = \"{SERVICE}:80/tcp\"\nmirrors = [\"{}\"]\n{more}\n",
        MIRROR_NAMES.join("\", \"")
    );
    text
}

/// A running `shunt-monitor` on the host `rewriter`.
///
/// Dropping it ends it as [`ShuntMonitor::stop`] does.
#[derive(Debug)]
pub struct ShuntMonitor<'lab> {
    lab: &'lab Lab,
    /// `None` once it has been ended.
    program: Option<Background>,
    socket: PathBuf,
}

impl<'lab> ShuntMonitor<'lab> {
    /// Starts it with this configuration, in which the socket isn't named yet, and waits until it answers.
    #[track_caller]
    pub fn start(lab: &'lab Lab, configuration: &str) -> Self {
        Self::start_with(lab, configuration, "")
    }

    /// Starts it with further flags, split at spaces, such as `--dry-run`.
    #[track_caller]
    pub fn start_with(lab: &'lab Lab, configuration: &str, flags: &str) -> Self {
        let mut command = lab.rewriter.command(&program());
        command
            .args(Self::arguments(lab, "run", configuration))
            .args(flags.split_whitespace());
        Self::start_command(lab, command)
    }

    /// Starts it at another time by the clock on the wall, such as `2026-11-27 17:59:50` (UTC).
    #[track_caller]
    pub fn start_at(lab: &'lab Lab, configuration: &str, time: &str) -> Self {
        // The wrapper `faketime` would take the signals; what it does is this.
        let library = lab
            .rewriter
            .shell("echo /usr/lib/*/faketime/libfaketime.so.1")
            .success();
        let mut command = lab.rewriter.command("env");
        command
            .arg("TZ=UTC")
            .arg("FAKETIME_DONT_FAKE_MONOTONIC=1")
            .arg(format!("FAKETIME=@{time}"))
            .arg(format!("LD_PRELOAD={}", library.trim()))
            .arg(program())
            .args(Self::arguments(lab, "run", configuration));
        Self::start_command(lab, command)
    }

    #[track_caller]
    fn start_command(lab: &'lab Lab, mut command: Command) -> Self {
        let program = lab.rewriter.spawn(&mut command, "shunt-monitor");
        let mut monitor = Self {
            lab,
            program: Some(program),
            socket: Self::default_socket(lab),
        };
        monitor.wait_until_ready();
        monitor
    }

    /// Runs `shunt-monitor plan` or `check` with this configuration to its end.
    #[track_caller]
    pub fn once(lab: &Lab, subcommand: &str, configuration: &str) -> Finished {
        let mut command = lab.rewriter.command(&program());
        Finished::of(command.args(Self::arguments(lab, subcommand, configuration)))
    }

    /// Where it listens.
    pub fn default_socket(lab: &Lab) -> PathBuf {
        lab.dir().join("monitor.sock")
    }

    /// Its command line behind the program's name; the configuration is written to a file.
    #[track_caller]
    fn arguments(lab: &Lab, subcommand: &str, configuration: &str) -> [String; 3] {
        let file = lab.dir().join("monitor.toml");
        let text = format!(
            "socket = \"{}\"\n{configuration}",
            Self::default_socket(lab).display()
        );
        fs::write(&file, text).expect("the scratch directory is ours");
        let file = file.display().to_string();
        [subcommand.to_owned(), "--config".to_owned(), file]
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        wait_until("shunt-monitor answers on its socket", || {
            let program = self.program.as_mut().expect("it was just started");
            if let Some(status) = program.status() {
                let log = program.log();
                self.program = None;
                panic!("shunt-monitor ended ({status}) instead of starting:\n{log}");
            }
            (self.socket.exists() && self.ctl("mirrors").code() == 0).then_some(())
        });
    }

    /// Runs `shuntctl` with these words, split at spaces, to its end; it asks the monitor.
    #[track_caller]
    pub fn ctl(&self, words: &str) -> Finished {
        let mut command = self.lab.rewriter.command("timeout");
        command
            .args(["--kill-after=1", "10"])
            .arg(binary("shuntctl"))
            .args(words.split_whitespace())
            .arg("--monitor")
            .arg(&self.socket);
        Finished::of(&mut command)
    }

    /// What `shuntctl --json` answers, as the documented type.
    #[track_caller]
    pub fn ask<T: DeserializeOwned>(&self, words: &str) -> T {
        let text = self.ctl(&format!("{words} --json")).success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
    }

    /// What it has decided, the earliest first.
    #[track_caller]
    pub fn decisions(&self) -> Vec<Decision> {
        self.ask::<DecisionsResult>("decisions --limit 1000")
            .decisions
    }

    /// What it thinks of a mirror.
    #[track_caller]
    pub fn mirror(&self, name: &str) -> MirrorState {
        let mirrors = self.ask::<MirrorsResult>("mirrors").mirrors;
        let found = mirrors.into_iter().find(|mirror| mirror.name == name);
        found.unwrap_or_else(|| panic!("the monitor knows no mirror {name}"))
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

    /// Ends it by `signal`: it must do so with the exit code 0, and take its socket with it. Gives its log.
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
            "after {signal} shunt-monitor ended with {status}:\n{log}"
        );
        assert!(!self.socket.exists(), "its socket is still there");
        log
    }

    /// Kills it, so that it can't take its leave. Gives its log.
    #[track_caller]
    pub fn kill(mut self) -> String {
        let program = self.program.take().expect("it was running");
        let (status, log) = program.stop(Signal::SIGKILL);
        assert!(!status.success());
        log
    }
}

/// The program's path.
#[track_caller]
fn program() -> String {
    binary("shunt-monitor").display().to_string()
}

impl Drop for ShuntMonitor<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            if let Some(program) = &self.program {
                report(&format!("━━ shunt-monitor's log:\n{}━━", program.log()));
            }
            return;
        }
        self.end(Signal::SIGTERM);
    }
}
