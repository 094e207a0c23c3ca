//! The naming server on one of the lab's hosts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::Host;
use crate::process::{Background, Finished, report, wait_until};
use crate::shunt::{binary, shuntctl};

/// How long the server may take to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A running `shunt-naming`.
///
/// Dropping it ends it as [`Naming::stop`] does, checks included.
#[derive(Debug)]
pub struct Naming<'lab> {
    host: &'lab Host,
    /// `None` once it has been ended.
    program: Option<Background>,
}

impl<'lab> Naming<'lab> {
    /// Starts it on `host` with these flags, and waits until it answers. Its files are in the host's scratch
    /// directory.
    #[track_caller]
    pub fn start(host: &'lab Host, flags: &str) -> Self {
        let program = host.spawn(&mut Self::command(host, flags), "shunt-naming");
        let mut naming = Self {
            host,
            program: Some(program),
        };
        naming.wait_until_ready();
        naming
    }

    /// Runs it where it must refuse to start, and gives what it said.
    #[track_caller]
    pub fn refused(host: &Host, flags: &str) -> Finished {
        let mut command = host.command("timeout");
        command.args(["--kill-after=1", "10"]);
        let finished = Finished::of(command.args(Self::words(host, flags)));
        assert!(
            matches!(finished.code(), 1 | 2),
            "it must refuse with an exit code of 1, or 2 for usage: {finished:#?}"
        );
        finished
    }

    /// Where its control socket is.
    pub fn socket(host: &Host) -> PathBuf {
        host.file("naming.sock")
    }

    /// Where it keeps its names.
    pub fn state(host: &Host) -> PathBuf {
        host.file("naming.json")
    }

    fn command(host: &Host, flags: &str) -> Command {
        let words = Self::words(host, flags);
        let mut command = host.command(&words[0]);
        command.args(&words[1..]);
        command
    }

    fn words(host: &Host, flags: &str) -> Vec<String> {
        let mut words = vec![binary("shunt-naming").display().to_string()];
        for (flag, path) in [
            ("--socket", Self::socket(host)),
            ("--state", Self::state(host)),
        ] {
            if !flags.split_whitespace().any(|word| word == flag) {
                words.extend([flag.to_owned(), path.display().to_string()]);
            }
        }
        words.extend(flags.split_whitespace().map(str::to_owned));
        words
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        wait_until("shunt-naming is ready", || {
            let program = self.program.as_mut().expect("it was just started");
            if let Some(status) = program.status() {
                let log = program.log();
                self.program = None;
                panic!("shunt-naming ended ({status}) instead of starting:\n{log}");
            }
            program.log().contains("ready: ").then_some(())
        });
    }

    /// Runs `shuntctl name` with these words, split at spaces, to its end.
    #[track_caller]
    pub fn name(&self, words: &str) -> Finished {
        let socket = Self::socket(self.host);
        let words = format!("name --naming {} {words}", socket.display());
        shuntctl(self.host, Path::new("/nowhere"), &words)
    }

    /// What `dig` on `client` prints with `+short` for these words: the data of the answer, sorted.
    #[track_caller]
    pub fn dig(client: &Host, words: &str) -> Vec<String> {
        let line = format!("dig +short +tries=1 +time=3 {words}");
        let mut lines: Vec<String> = client
            .run(&line)
            .success()
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    }

    /// What its metrics say behind this name and these labels.
    #[track_caller]
    pub fn metric(&self, address: &str, name: &str) -> f64 {
        let url = format!("http://{address}/metrics");
        let text = self
            .host
            .run(&format!("curl -sS --max-time 5 {url}"))
            .success();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.parse().unwrap_or_else(|_| panic!("{name} is {line}"))
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

    /// Kills it, so that it can't tidy up.
    #[track_caller]
    pub fn kill(mut self) {
        let program = self.program.take().expect("it was running");
        let (status, _) = program.stop(Signal::SIGKILL);
        assert!(!status.success());
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
            "after {signal} shunt-naming ended with {status}:\n{log}"
        );
        assert!(
            !Self::socket(self.host).exists(),
            "its socket is still there"
        );
        log
    }
}

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(program) = &self.program {
                report(&format!("━━ shunt-naming's log:\n{}━━", program.log()));
            }
            return;
        }
        self.end(Signal::SIGTERM);
    }
}
