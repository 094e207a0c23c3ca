//! The control plane: changes come in over the socket, are kept in the state file, and then count.

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError};

use arc_swap::ArcSwap;
use control_protocol::{
    Answer, Daemon, ErrorCode, MAX_TTL, Method, NameImport, NameImportResult, NameList,
    NameListResult, NameSet, NameSetResult, NameUnset, NameUnsetResult, Request, VersionResult,
    Watch,
};
use control_server::Handler;
use log::info;
use thiserror::Error;
use tokio::sync::Mutex;

use crate::catalogue::{Catalogue, CatalogueError};
use crate::records::{ZoneError, read_zone};
use crate::state::{StateError, StateFile};
use crate::worker::Shared;

/// Why something is not done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The name can't be listed, or isn't.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The zone file is wrong.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// The change couldn't be kept, so it wasn't made.
    #[error(transparent)]
    State(#[from] StateError),
    /// A task has panicked.
    #[error("the change couldn't be kept: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// All that the control socket can change.
#[derive(Debug)]
pub struct Control {
    catalogue: Arc<ArcSwap<Catalogue>>,
    /// Who wants to know when the names change.
    waiting: std::sync::Mutex<Vec<SyncSender<()>>>,
    /// One change at a time.
    changing: Mutex<()>,
    state: Arc<StateFile>,
    shared: Arc<Shared>,
    /// What names live without a time of their own, in seconds.
    ttl: u32,
    about: VersionResult,
}

impl Control {
    /// A control plane with the names of the state file, which the workers have from now on.
    ///
    /// # Errors
    /// The state file can't be read, or has names that can't be listed.
    pub fn new(
        state: StateFile,
        shared: Arc<Shared>,
        ttl: u32,
        about: VersionResult,
    ) -> Result<Self, ControlError> {
        let mut catalogue = Catalogue::default();
        for NameSet {
            name,
            ttl: own,
            records,
        } in state.read()?
        {
            catalogue.set(name, own.unwrap_or(ttl), records)?;
        }
        shared.table.store(catalogue.table());
        Ok(Self {
            catalogue: Arc::new(ArcSwap::from_pointee(catalogue)),
            waiting: std::sync::Mutex::default(),
            changing: Mutex::new(()),
            state: Arc::new(state),
            shared,
            ttl,
            about,
        })
    }

    /// The names as they are.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.load_full()
    }

    /// The names as they are whenever they are looked at.
    pub fn shared_catalogue(&self) -> Arc<ArcSwap<Catalogue>> {
        Arc::clone(&self.catalogue)
    }

    /// Something comes out of this when the names have changed since the last time; it ends with the control plane.
    pub fn changes(&self) -> Receiver<()> {
        let (sender, receiver) = sync_channel(1);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(sender);
        receiver
    }

    async fn set(&self, params: NameSet) -> Result<NameSetResult, ControlError> {
        let NameSet { name, ttl, records } = params;
        let ttl = ttl.unwrap_or(self.ttl);
        let replaced = self
            .change(|catalogue| Ok(catalogue.set(name, ttl, records)?))
            .await?;
        Ok(NameSetResult { replaced })
    }

    async fn unset(&self, params: NameUnset) -> Result<NameUnsetResult, ControlError> {
        let answered = self
            .change(|catalogue| Ok(catalogue.unset(&params.name)?))
            .await?;
        Ok(NameUnsetResult { answered })
    }

    fn list(&self, params: &NameList) -> NameListResult {
        self.catalogue().page(params)
    }

    async fn import(&self, params: NameImport) -> Result<NameImportResult, ControlError> {
        // Reading a large file takes a while, and others are served by this thread as well.
        let zone = tokio::task::spawn_blocking(move || read_zone(&params)).await??;
        let (names, skipped) = (zone.names.len() as u64, zone.skipped);
        let replaced = self
            .change(|catalogue| {
                let mut replaced = 0;
                for (name, (ttl, records)) in zone.names {
                    replaced += u64::from(catalogue.set(name, ttl.min(MAX_TTL), records)?);
                }
                Ok(replaced)
            })
            .await?;
        info!("{names} name(s) of a zone file are listed");
        Ok(NameImportResult {
            names,
            replaced,
            skipped,
        })
    }

    /// Makes a change: first in a copy, then on the disk, then for the workers.
    async fn change<T>(
        &self,
        work: impl FnOnce(&mut Catalogue) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let _turn = self.changing.lock().await;
        let mut changed = (*self.catalogue()).clone();
        let result = work(&mut changed)?;
        let (state, sets) = (Arc::clone(&self.state), changed.to_sets());
        tokio::task::spawn_blocking(move || state.write(sets)).await??;
        self.shared.table.store(changed.table());
        self.catalogue.store(Arc::new(changed));
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in &*waiting {
            // One that is full says it already.
            let _ = sender.try_send(());
        }
        Ok(result)
    }
}

impl Handler for Control {
    type Updates = Infallible;

    async fn answer(&self, request: Request) -> Answer {
        let id = request.id;
        match request.method {
            Method::NameSet(params) => answer(id, self.set(params).await),
            Method::NameUnset(params) => answer(id, self.unset(params).await),
            Method::NameList(params) => Answer::ok(id, &self.list(&params)),
            Method::NameImport(params) => answer(id, self.import(params).await),
            Method::Version(_) => Answer::ok(id, &self.about),
            method => Answer::elsewhere(id, &method, Daemon::Naming),
        }
    }

    fn watch(&self, id: u64, params: Watch) -> Result<Infallible, Answer> {
        Err(Answer::elsewhere(id, &params.into(), Daemon::Naming))
    }

    async fn next_update(&self, _id: u64, updates: &mut Infallible) -> Answer {
        match *updates {}
    }
}

fn answer<T: serde::Serialize>(id: u64, result: Result<T, ControlError>) -> Answer {
    match result {
        Ok(result) => Answer::ok(id, &result),
        Err(error) => {
            let code = match &error {
                ControlError::Catalogue(CatalogueError::Record { .. }) | ControlError::Zone(_) => {
                    ErrorCode::InvalidParams
                }
                ControlError::Catalogue(_) => ErrorCode::Refused,
                ControlError::State(_) | ControlError::Task(_) => ErrorCode::Internal,
            };
            Answer::error(Some(id), code, error.to_string())
        }
    }
}
