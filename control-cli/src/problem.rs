//! What can go wrong: the sentences for it on standard error, and the exit code.

use std::error::Error;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use control_protocol::{ClientError, Daemon};
use nix::unistd::{Gid, Group, Uid, User};

/// Why a command did not end well.
#[derive(Debug)]
pub enum Problem {
    /// There is no way to the daemon.
    Connect {
        /// Which it is.
        daemon: Daemon,
        /// What is in the way.
        error: ClientError,
    },
    /// The daemon didn't do it, or its answer got lost.
    Client(ClientError),
    /// A file can't be read.
    Input {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The daemon hands out a page that it has handed out before.
    EndlessPages,
    /// The result couldn't be written to standard output.
    Output(io::Error),
}

impl Problem {
    /// What the shell gets; the help of `shuntctl` lists the codes.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Client(ClientError::Refused(_)) => 1,
            Self::Input { .. } => 2,
            Self::Connect {
                error:
                    ClientError::NobodyListens { .. }
                    | ClientError::PermissionDenied { .. }
                    | ClientError::Connect { .. },
                ..
            } => 3,
            Self::Connect { .. } | Self::Client(_) | Self::EndlessPages | Self::Output(_) => 4,
        })
    }

    /// What happened, and what can be done about it, a line each.
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Client(ClientError::Refused(failure)) => vec![failure.message.clone()],
            Self::Connect {
                daemon,
                error: error @ ClientError::NobodyListens { .. },
            } => vec![with_sources(error), how_to_start(*daemon).to_owned()],
            Self::Connect {
                error: error @ ClientError::PermissionDenied { path, .. },
                ..
            } => vec![with_sources(error), who_may_connect(path)],
            Self::Connect {
                error: error @ ClientError::Connect { .. },
                ..
            } => vec![with_sources(error)],
            Self::Connect { error, .. } | Self::Client(error) => vec![
                with_sources(error),
                "what was asked may or may not have been done".to_owned(),
            ],
            Self::Input { path, error } => {
                vec![format!("can't read {}: {error}", path.display())]
            }
            Self::EndlessPages => vec!["the daemon's list has no end".to_owned()],
            Self::Output(error) => vec![format!("can't write the result: {error}")],
        }
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// What to do when a daemon isn't there.
fn how_to_start(daemon: Daemon) -> &'static str {
    match daemon {
        Daemon::Rewriter => {
            "start the daemon as root with `shuntd --proxy ADDR`, or say where it listens with \
             --socket PATH or SHUNT_SOCKET"
        }
        Daemon::Monitor => {
            "start shunt-monitor, or say where it listens with --monitor PATH or SHUNT_MONITOR"
        }
        Daemon::Naming => {
            "start the naming server as root with `shunt-naming --upstream ADDR`, or say where it \
             listens with --naming PATH or SHUNT_NAMING"
        }
    }
}

/// The error and all that it comes from.
fn with_sources(error: &ClientError) -> String {
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        sentence.push_str(&format!(": {error}"));
        source = error.source();
    }
    sentence
}

/// Who could connect to the socket, as far as its owner and mode tell.
fn who_may_connect(socket: &Path) -> String {
    /// Connecting takes the right to write (unix(7)).
    const GROUP_MAY_WRITE: u32 = 0o020;

    let Ok(metadata) = socket.metadata() else {
        return "a directory on the way to it is closed to you; run shuntctl as root".to_owned();
    };
    let user = match User::from_uid(Uid::from_raw(metadata.uid())) {
        Ok(Some(user)) => user.name,
        _ => metadata.uid().to_string(),
    };
    let group = match Group::from_gid(Gid::from_raw(metadata.gid())) {
        Ok(Some(group)) => group.name,
        _ => metadata.gid().to_string(),
    };
    if metadata.mode() & GROUP_MAY_WRITE == 0 {
        format!("run shuntctl as user {user}, whose the socket is")
    } else {
        format!("run shuntctl as user {user}, or as a member of group {group}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn the_owner_and_perhaps_the_group_may_connect() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let owner = User::from_uid(Uid::current())
            .expect("an answer")
            .expect("a user")
            .name;
        let group = Group::from_gid(Gid::current())
            .expect("an answer")
            .expect("a group")
            .name;

        std::fs::set_permissions(file.path(), Permissions::from_mode(0o600)).expect("our own");
        assert_eq!(
            who_may_connect(file.path()),
            format!("run shuntctl as user {owner}, whose the socket is")
        );
        std::fs::set_permissions(file.path(), Permissions::from_mode(0o660)).expect("our own");
        assert_eq!(
            who_may_connect(file.path()),
            format!("run shuntctl as user {owner}, or as a member of group {group}")
        );
        assert_eq!(
            who_may_connect(&file.path().join("inside")),
            "a directory on the way to it is closed to you; run shuntctl as root"
        );
    }

    #[test]
    fn a_lost_answer_is_told_from_a_refusal() {
        let problem = Problem::from(ClientError::Timeout {
            after: Duration::from_secs(30),
        });
        assert_eq!(
            problem.sentences(),
            [
                "no answer within 30 seconds",
                "what was asked may or may not have been done"
            ]
        );
        let problem = Problem::from(ClientError::Io(io::Error::other("the wire broke")));
        assert_eq!(
            problem.sentences()[0],
            "the connection to the daemon failed: the wire broke"
        );
    }
}
