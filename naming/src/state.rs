//! The state file: the listed names, which outlive the server.
//!
//! It is written anew with each change, beside the old one, and takes its place once it is on the disk: whoever
//! reads it finds either all of a change or nothing. A file that can't be read is never replaced. A lock beside it
//! keeps a second server from it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use control_protocol::NameSet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version of the file's form.
const VERSION: u32 = 1;

/// Why the state can't be had or kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another server has it.
    #[error("another shunt-naming keeps its names in {0}: stop it, or choose another --state")]
    InUse(PathBuf),
    /// The system refused.
    #[error("can't {step} {path}: {error}")]
    System {
        /// What was being done: a verb phrase.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// The refusal.
        error: io::Error,
    },
    /// Something is wrong in the file.
    #[error(
        "{path} is damaged: {error}. Mend it, or move it away to begin without names; it was left as it is"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: serde_json::Error,
    },
    /// It is of a version that this program doesn't know.
    #[error("{path} is of version {version}; this program knows version {VERSION} only")]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// The state file, which no other server has as long as this lives.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    names: Vec<NameSet>,
}

impl StateFile {
    /// Takes the file at `path`, which need not exist; its folder is made if it is missing.
    ///
    /// # Errors
    /// Another server has it, or the system refuses.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let system = |step| system(step, path);
        if let Some(folder) = folder(path) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(system("create the folder of"))?;
        }
        // The lock file stays: were it removed, two servers could each lock a file of that name.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(beside(path, ".lock"))
            .map_err(system("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(system("lock")(error)),
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The names in the file; none if there is no file.
    ///
    /// # Errors
    /// The file can't be read, or isn't what was written.
    pub fn read(&self) -> Result<Vec<NameSet>, StateError> {
        Self::peek(&self.path)
    }

    /// The names in a file that may be another server's.
    ///
    /// # Errors
    /// As [`StateFile::read`].
    pub fn peek(path: &Path) -> Result<Vec<NameSet>, StateError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }

        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(system("read", path)(error)),
        };
        let damaged = |error| StateError::Damaged {
            path: path.to_owned(),
            error,
        };
        // First, as another version may have other fields.
        let Version { version } = serde_json::from_slice(&text).map_err(damaged)?;
        if version != VERSION {
            return Err(StateError::OtherVersion {
                path: path.to_owned(),
                version,
            });
        }
        let content: Content = serde_json::from_slice(&text).map_err(damaged)?;
        Ok(content.names)
    }

    /// Puts these names in place of those in the file, and returns when they are on the disk.
    ///
    /// # Errors
    /// The system refuses; the file is as it was.
    pub fn write(&self, names: Vec<NameSet>) -> Result<(), StateError> {
        let content = Content {
            version: VERSION,
            names,
        };
        let new = beside(&self.path, ".new");
        let write = || {
            let mut text = serde_json::to_vec_pretty(&content)?;
            text.push(b'\n');
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o644)
                .open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            // The name is on the disk when the folder is.
            File::open(folder(&self.path).unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(system("write", &self.path))
    }
}

fn system(step: &'static str, path: &Path) -> impl Fn(io::Error) -> StateError {
    move |error| StateError::System {
        step,
        path: path.to_owned(),
        error,
    }
}

fn folder(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_protocol::NameRecords;

    fn www() -> NameSet {
        NameSet {
            name: "www.bt.com".parse().unwrap(),
            ttl: Some(5),
            records: NameRecords {
                addresses: vec!["10.2.0.3*3".parse().unwrap()],
                ..NameRecords::default()
            },
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/naming.json");
        let state = StateFile::open(&path).unwrap();
        assert_eq!(state.read().unwrap(), []);
        state.write(vec![www()]).unwrap();
        state.write(vec![www(), www()]).unwrap();
        assert_eq!(state.read().unwrap(), [www(), www()]);
        let mut files: Vec<_> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        files.sort();
        assert_eq!(files, ["naming.json", "naming.json.lock"]);
    }

    #[test]
    fn one_server_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("naming.json");
        let first = StateFile::open(&path).unwrap();
        assert!(matches!(StateFile::open(&path), Err(StateError::InUse(_))));
        drop(first);
        StateFile::open(&path).unwrap();
    }

    #[test]
    fn a_damaged_file_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("naming.json");
        let state = StateFile::open(&path).unwrap();
        state.write(vec![www()]).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        for (text, expected) in [
            (&whole[..whole.len() / 2], "EOF while parsing"),
            (
                &*whole.replace("10.2.0.3", "10.2.0.300"),
                "is not an IP address",
            ),
            (&*whole.replace("ttl", "tll"), "unknown field `tll`"),
            (
                &*whole.replace("\"version\": 1", "\"version\": 2"),
                "of version 2",
            ),
            ("", "EOF while parsing"),
        ] {
            fs::write(&path, text).unwrap();
            let error = state.read().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("naming.json"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
