//! The rewriters in the way of clients: each is told which names are listed here, so that it sends only queries
//! for those.
//!
//! Each has a thread of its own with the blocking client of the protocol crate, so that one that hangs holds up
//! nobody. It looks once a second whether the rewriter is there, peeks, and has a list; when the names change, at
//! once. Nothing here depends on it: a query that comes is answered, whoever sent it this way.
//!
//! The threads end when the control plane is gone.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use control_protocol::{
    Client, ClientError, ClientPrefix, DEFAULT_SOCKET, DiversionState, DomainName, List, PeekNames,
    Service,
};
use log::{info, warn};
use serde::Deserialize;

use crate::catalogue::Catalogue;
use crate::control::Control;

/// How long a rewriter may take over an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether a rewriter has the names.
const INTERVAL: Duration = Duration::from_secs(1);
/// Names in one request, which are at most a quarter of the longest request.
const NAMES_AT_ONCE: usize = 1000;

/// A peeking diversion that is to have the names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rewriter {
    /// The control socket of the rewriter's daemon.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// The diversion's service.
    pub service: Service,
    /// The diversion's clients; none: all.
    pub from: Option<ClientPrefix>,
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

impl fmt::Display for Rewriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the diversion of {}", self.service)?;
        if let Some(from) = &self.from {
            write!(f, " from {from}")?;
        }
        write!(f, " at {}", self.socket.display())
    }
}

/// Begins to tell these rewriters the names.
///
/// # Errors
/// The system gives no thread.
pub fn start(rewriters: &[Rewriter], control: &Control) -> std::io::Result<()> {
    for rewriter in rewriters {
        let mut teller = Teller {
            rewriter: rewriter.clone(),
            names: control.shared_catalogue(),
            client: None,
            told: None,
            said: String::new(),
        };
        let changes = control.changes();
        thread::Builder::new()
            .name("rewriter".to_owned())
            .spawn(move || teller.keep_telling(&changes))?;
    }
    Ok(())
}

/// What there is to say of a rewriter.
#[derive(Debug)]
enum Standing {
    /// It has the names.
    Told,
    /// There is no such diversion, or it doesn't peek.
    NotPeeking,
}

struct Teller {
    rewriter: Rewriter,
    names: Arc<ArcSwap<Catalogue>>,
    client: Option<Client>,
    /// The version of the names that the rewriter was told last.
    told: Option<u64>,
    /// What was logged last.
    said: String,
}

impl Teller {
    fn keep_telling(&mut self, changes: &Receiver<()>) {
        loop {
            match self.tell() {
                Ok(Standing::Told) => self.said.clear(),
                Ok(Standing::NotPeeking) => {
                    self.say(
                        "it isn't set, or without --peek; it will be told the names when it is",
                    );
                }
                Err(error) => self.say(&error.to_string()),
            }
            match changes.recv_timeout(INTERVAL) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Logs what is wrong, once.
    fn say(&mut self, what: &str) {
        if self.said != what {
            warn!("{} has no list of the names: {what}", self.rewriter);
            what.clone_into(&mut self.said);
        }
    }

    /// Tells the names unless the rewriter has them. A conversation that has failed is begun anew the next time.
    fn tell(&mut self) -> Result<Standing, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                // It may have been started anew.
                self.told = None;
                Client::connect_timeout(&self.rewriter.socket, PATIENCE)?
            }
        };
        let answer = self.tell_with(&mut client);
        if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) {
            self.client = Some(client);
        }
        answer
    }

    fn tell_with(&mut self, client: &mut Client) -> Result<Standing, ClientError> {
        let Rewriter { service, from, .. } = self.rewriter;
        let list = client.call(List {})?;
        let peek = list
            .diversions
            .iter()
            .filter(|diversion| diversion.state == DiversionState::Active)
            .find(|diversion| (diversion.service, diversion.from) == (service, from))
            .and_then(|diversion| diversion.peek);
        let Some(peek) = peek else {
            self.told = None;
            return Ok(Standing::NotPeeking);
        };
        let catalogue = self.names.load_full();
        if peek.names.is_some() && self.told == Some(catalogue.version()) {
            return Ok(Standing::Told);
        }
        let names: Vec<DomainName> = catalogue.names().cloned().collect();
        let mut left = names.as_slice();
        let mut continues = false;
        loop {
            let (part, rest) = left.split_at(left.len().min(NAMES_AT_ONCE));
            client.call(PeekNames {
                service,
                from,
                names: part.to_vec(),
                continues,
                more: !rest.is_empty(),
            })?;
            if rest.is_empty() {
                break;
            }
            left = rest;
            continues = true;
        }
        self.told = Some(catalogue.version());
        info!("{} has {} name(s)", self.rewriter, names.len());
        Ok(Standing::Told)
    }
}
