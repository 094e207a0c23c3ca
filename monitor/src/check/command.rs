//! The check by a command on this host: a mirror is well if it exits with 0.
//!
//! It gets the mirror in its environment: `SHUNT_MIRROR_NAME`, `SHUNT_MIRROR_ADDRESS` and
//! `SHUNT_MIRROR_PORT` (empty without a port). The first line that it writes, to its standard output
//! or else to its standard error, is the detail. It runs in a process group of its own, which is
//! killed when its time is up, and also when it has ended: what it started must not outlive it.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::select;
use tokio::time::timeout;

use super::config::CheckError;
use super::text::first_line;
use super::{Asked, Finding, Verdict};

/// The most bytes of a command's output that are kept; the rest is read and thrown away.
const MAX_OUTPUT: usize = 4096;

/// How long the end of a command's output is waited for when the command has ended.
const GRACE: Duration = Duration::from_millis(50);

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Command {
    /// The program and its arguments. There is no shell unless it is named.
    pub command: Vec<String>,
}

impl Command {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(CheckError::Value {
                field: "command",
                why: "expected a program and its arguments, such as [\"/usr/bin/true\"]",
            });
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            return Err(CheckError::Value {
                field: "command",
                why: "no NUL characters",
            });
        }
        Ok(())
    }

    pub(super) async fn ask(&self, asked: &Asked) -> Finding {
        match self.run(asked).await {
            Ok(finding) => finding,
            Err(error) => Finding::unknown(format!(
                "can't run {}: {error}",
                self.command.first().map_or("", String::as_str)
            )),
        }
    }

    async fn run(&self, asked: &Asked) -> io::Result<Finding> {
        let [program, arguments @ ..] = self.command.as_slice() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let port = match asked.address.port() {
            0 => String::new(),
            port => port.to_string(),
        };
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .env("SHUNT_MIRROR_NAME", &asked.name)
            .env("SHUNT_MIRROR_ADDRESS", asked.address.ip().to_string())
            .env("SHUNT_MIRROR_PORT", port)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = ProcessGroup::of(child.id());
        let mut stdout = Output::new(child.stdout.take());
        let mut stderr = Output::new(child.stderr.take());
        let status = select! {
            status = child.wait() => status?,
            never = stdout.keep_reading() => match never {},
            never = stderr.keep_reading() => match never {},
        };
        drop(group);
        tokio::join!(stdout.read_the_rest(), stderr.read_the_rest());

        let said = match first_line(&stdout.kept) {
            line if line.is_empty() => first_line(&stderr.kept),
            line => line,
        };
        let ending = ending(status);
        let detail = match said.as_str() {
            "" => ending,
            said => format!("{ending}: {said}"),
        };
        Ok(match status.success() {
            // How long it took is no latency of the mirror's.
            true => Finding::new(Verdict::Good, detail),
            false => Finding::bad(detail),
        })
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A process group, killed when this is dropped.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    /// The group that the process `leader` leads.
    fn of(leader: Option<u32>) -> Self {
        // 0 and 1 would mean others: never.
        let leader = leader.and_then(|id| i32::try_from(id).ok());
        Self(leader.filter(|id| *id > 1).map(Pid::from_raw))
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Usually nobody is left in it.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// What a command writes, as far as it is kept.
struct Output<R> {
    pipe: Option<R>,
    kept: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Output<R> {
    fn new(pipe: Option<R>) -> Self {
        Self {
            pipe,
            kept: Vec::new(),
        }
    }

    /// Reads for ever, so that nobody has to wait who writes.
    async fn keep_reading(&mut self) -> Infallible {
        loop {
            self.read_once().await;
        }
    }

    /// Reads what is still on its way. Somebody who left the process group may hold the pipe open, so
    /// its end isn't waited for.
    async fn read_the_rest(&mut self) {
        let _ = timeout(GRACE, async {
            while self.pipe.is_some() {
                self.read_once().await;
            }
        })
        .await;
    }

    async fn read_once(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return pending().await;
        };
        let mut piece = [0; 4096];
        match pipe.read(&mut piece).await {
            Ok(count) if count > 0 => self.keep(&piece[..count]),
            _ => self.pipe = None,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
