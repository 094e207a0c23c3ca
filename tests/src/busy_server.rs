//! The program `busy-server` on a mirror: a web server whose capacity a scenario chooses and changes.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::lab::Host;
use crate::process::Background;
use crate::shunt::binary;

/// A running `busy-server` at port 80, over both families, which says its host's title.
#[derive(Debug)]
pub struct BusyServer<'lab> {
    host: &'lab Host,
    program: Background,
}

impl<'lab> BusyServer<'lab> {
    /// Its port.
    pub const PORT: u16 = 80;
    /// The port of its agent, which says how it is to whoever connects.
    pub const AGENT_PORT: u16 = 8123;

    /// Starts it on `host` with these flags, split at spaces (`busy-server --help` has them), and waits until it
    /// listens.
    #[track_caller]
    pub fn start(host: &'lab Host, flags: &str) -> Self {
        let mut command: Command = host.command(&binary("busy-server").display().to_string());
        command
            .args(["--listen", "[::]:80", "--agent", "8123", "--title"])
            .arg(host.title())
            .args(flags.split_whitespace());
        let program = host.spawn(&mut command, "busy-server");
        host.wait_for_listener("tcp", Self::PORT);
        Self { host, program }
    }

    /// The host it is on.
    pub fn host(&self) -> &'lab Host {
        self.host
    }

    /// Changes it from the next request on, e.g. `workers=2&service_ms=200`, `health=bad` or `agent=drain`.
    #[track_caller]
    pub fn set(&self, changes: &str) {
        let url = format!("http://127.0.0.1/set?{changes}");
        self.host
            .run(&format!(
                "curl -sS --fail-with-body --max-time 5 -X POST {url}"
            ))
            .success();
    }

    /// One of the figures at its `/metrics`, by its name there.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let page = self
            .host
            .run("curl -sS --fail --max-time 5 http://127.0.0.1/metrics")
            .success();
        page.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// Kills it: its host then resets its connections, and refuses others.
    #[track_caller]
    pub fn kill(self) {
        self.program.stop(Signal::SIGKILL);
    }
}
