//! Programs that run: to their end, or until the scenario has seen enough.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything in a lab may take that ought to be immediate. Generous, because two scenarios
/// may share two busy cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Looks again every few milliseconds until `seen` gives a value, and gives it on.
///
/// # Panics
/// After ten seconds, with `what` in the message.
#[track_caller]
pub fn wait_until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = seen() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain: {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// The one place where the lab itself speaks: on the standard error of a failing test.
#[expect(
    clippy::print_stderr,
    reason = "the test runner shows it for tests that failed"
)]
pub(crate) fn report(text: &str) {
    eprintln!("{text}");
}

/// What is left of a program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to its standard output.
    pub stdout: String,
    /// Everything it wrote to its standard error.
    pub stderr: String,
}

impl Finished {
    /// Runs `command` to its end.
    #[track_caller]
    pub(crate) fn of(command: &mut Command) -> Self {
        let shown = format!("{command:?}").replace('"', "");
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{shown} doesn't start: {error}"));
        Self {
            command: shown,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a program that must have succeeded.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.status.success(), "this failed: {self:#?}");
        self.stdout
    }

    /// The exit code, or minus the signal that ended the program.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| -self.status.signal().unwrap_or(0))
    }
}

/// A program that runs beside the scenario. Dropping it kills it.
#[derive(Debug)]
pub struct Background {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Starts `command`, whose output of both kinds goes to the file `log`.
    #[track_caller]
    pub(crate) fn start(name: &str, command: &mut Command, log: PathBuf) -> Self {
        let file = File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let twin = file.try_clone().expect("a second descriptor of a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(twin)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} doesn't start: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("(no log: {error})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Waits until it has written `text`.
    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str) {
        let what = format!("{} says {text:?}", self.name);
        wait_until(&what, || {
            // The status first: what a program wrote before it ended is then in the log.
            let ended = self.status();
            let log = self.log();
            if log.contains(text) {
                return Some(());
            }
            if let Some(status) = ended {
                panic!(
                    "{} ended ({status}) and never said {text:?}:\n{log}",
                    self.name
                );
            }
            None
        });
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("a child of ours can be waited for")
    }

    /// Waits until it ends by itself, and gives its status and all it wrote.
    #[track_caller]
    pub fn wait(mut self, patience: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.status() {
                return (status, self.log());
            }
            let late = Instant::now() >= deadline;
            assert!(
                !late,
                "{} hasn't ended after {patience:?}:\n{}",
                self.name,
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself; then there is nothing to tell it.
        let _ = kill(self.pid(), signal);
    }

    /// Sends `signal`, and waits until it has ended.
    #[track_caller]
    pub fn stop(self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        self.wait(PATIENCE)
    }

    /// Its process. (`ip netns exec` turns into the program that it runs.)
    pub fn pid(&self) -> Pid {
        Pid::from_raw(
            self.child
                .id()
                .try_into()
                .expect("a process id fits in an i32"),
        )
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
