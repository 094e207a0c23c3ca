//! The other hands: naming servers, which steer clients before they connect (patent, figure 5).
//!
//! A service may have names. They have the addresses of its mirrors, with the shares of new connections as weights,
//! so clients that ask for the name follow the same decisions as those that come by the service's address. What is
//! wanted is one table; a thread for each naming server sees to it that it is so there, the moment it changes, and
//! looks again every second, in case the server was away or somebody else changed it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use control_protocol::{
    Client, ClientError, DomainName, NameAddress, NameList, NameRecords, NameSet,
};
use log::{info, warn};

/// How long a naming server may take over an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What names are to have: their addresses, by weight, and for how many seconds clients may remember them.
pub type Names = BTreeMap<DomainName, (Vec<NameAddress>, u32)>;

/// A naming server that is kept up to date.
#[derive(Debug)]
pub struct Link {
    wanted: Sender<Names>,
}

impl Link {
    /// Begins to keep a naming server up to date; `name` is what people call it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn open(name: String, socket: PathBuf) -> std::io::Result<Self> {
        let (wanted, changes) = channel();
        thread::Builder::new()
            .name(format!("naming {name}"))
            .spawn(move || keep(&name, &socket, &changes))?;
        Ok(Self { wanted })
    }

    /// Says what names are to have from now on. Names that are no longer wanted stay as they are.
    pub fn want(&self, names: Names) {
        // The thread only ends with the program.
        let _ = self.wanted.send(names);
    }
}

fn keep(server: &str, socket: &Path, changes: &Receiver<Names>) {
    let mut wanted = Names::new();
    let mut failure = None;
    loop {
        match changes.recv_timeout(LOOK_INTERVAL) {
            // Only the latest counts.
            Ok(names) => wanted = changes.try_iter().last().unwrap_or(names),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        match bring_up_to_date(socket, &wanted) {
            Ok(changed) => {
                failure = None;
                for name in changed {
                    info!("naming server {server}: {name} is up to date");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if failure.as_ref() != Some(&error) {
                    warn!("naming server {server}: {error}");
                }
                failure = Some(error);
            }
        }
    }
}

/// Sets the names that have something else than what is wanted. Gives them.
fn bring_up_to_date(socket: &Path, wanted: &Names) -> Result<Vec<DomainName>, ClientError> {
    let mut changed = Vec::new();
    if wanted.is_empty() {
        return Ok(changed);
    }
    let mut client = Client::connect_timeout(socket, PATIENCE)?;
    let mut listed = BTreeMap::new();
    let mut after = None;
    loop {
        let page = client.call(NameList { after, limit: None })?;
        listed.extend(
            page.names
                .into_iter()
                .map(|info| (info.name, (info.records, info.ttl))),
        );
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    for (name, (addresses, ttl)) in wanted {
        let records = NameRecords {
            addresses: addresses.clone(),
            ..NameRecords::default()
        };
        if listed.get(name) == Some(&(records.clone(), *ttl)) {
            continue;
        }
        client.call(NameSet {
            name: name.clone(),
            ttl: Some(*ttl),
            records,
        })?;
        changed.push(name.clone());
    }
    Ok(changed)
}
