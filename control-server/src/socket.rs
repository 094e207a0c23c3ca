//! The socket file: created for this daemon alone, removed with it.
//!
//! A file beside it (`.lock`) is locked as long as the daemon lives, so that of two that start at
//! the same time one gives way; the kernel unlocks it however the daemon ends. A socket file that
//! nobody listens on is a dead daemon's, and is removed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::{info, warn};
use nix::sys::stat::{Mode, umask};
use thiserror::Error;

/// Permissions of the socket file: the owner and the group may ask.
const MODE: Mode = Mode::from_bits_truncate(0o660);

/// Why there is no control socket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another daemon is alive there.
    #[error("another daemon is listening at {0}: stop it, or choose another --socket")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0} exists and is no socket: remove it, or choose another --socket")]
    NotASocket(PathBuf),
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
}

/// The control socket. The file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl ControlSocket {
    /// Creates the socket at `path`, and its folder if it's missing, and listens.
    ///
    /// # Errors
    /// Another daemon has it, or the system refuses.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let system = |step| {
            move |error| SocketError::System {
                step,
                path: path.to_owned(),
                error,
            }
        };
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(system("create the folder of"))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock(&lock_path)
            .map_err(system("lock"))?
            .ok_or_else(|| SocketError::InUse(path.to_owned()))?;
        remove_dead(path)?;
        let before = umask(!MODE);
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(system("listen at"))?;
        listener
            .set_nonblocking(true)
            .map_err(system("listen at"))?;
        let socket = Self {
            path: path.to_owned(),
            lock_path,
            _lock: lock,
        };
        Ok((socket, listener))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        for path in [&self.path, &self.lock_path] {
            if let Err(error) = fs::remove_file(path) {
                warn!("can't remove {}: {error}", path.display());
            }
        }
    }
}

/// Opens and locks the file. `None`: another process has locked it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Its last owner may have removed it after we opened it; then the lock locks nothing.
        let is_same = fs::metadata(path)
            .and_then(|there| Ok(there.ino() == file.metadata()?.ino()))
            .unwrap_or(false);
        if is_same {
            return Ok(Some(file));
        }
    }
}

/// Removes a socket file that nobody listens on.
fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            info!("removing {}, left by a daemon that died", path.display());
            fs::remove_file(path).map_err(|error| SocketError::System {
                step: "remove",
                path: path.to_owned(),
                error,
            })
        }
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_socket_is_for_owner_and_group_and_goes_with_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/control.sock");
        let (socket, _listener) = ControlSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(socket);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_living_daemons_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = ControlSocket::bind(&path).unwrap();
        assert!(matches!(
            ControlSocket::bind(&path),
            Err(SocketError::InUse(_))
        ));
        // Not even when the lock file has been removed by somebody.
        fs::remove_file(folder.path().join("control.sock.lock")).unwrap();
        assert!(matches!(
            ControlSocket::bind(&path),
            Err(SocketError::InUse(_))
        ));
        assert!(UnixStream::connect(&path).is_ok());
        drop(first);
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        // As kill -9 leaves it: the file is there, nobody listens, the lock is free.
        drop(UnixListener::bind(&path).unwrap());
        ControlSocket::bind(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            ControlSocket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
