//! Why a check came to nothing, and whose fault it is.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

use nix::errno::Errno;
use thiserror::Error;

use super::{Finding, Verdict};

/// Why a check came to nothing. Running out of time isn't among them: the scheduler sees to that.
#[derive(Debug, Error)]
pub(super) enum Fault {
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, such as "connect".
        doing: &'static str,
        /// What the kernel, or a TLS session, said.
        source: io::Error,
    },
    /// The mirror's HTTP couldn't be understood, or ended early.
    #[error("HTTP: {0}")]
    Http(hyper::Error),
    /// A request that HTTP has no way to say.
    #[error("can't make the request: {0}")]
    Request(#[from] hyper::http::Error),
    /// A DNS message couldn't be made.
    #[error("can't make the query: {0}")]
    Query(hickory_proto::ProtoError),
}

impl Fault {
    /// For `map_err`: a system call failed while `doing` something.
    pub(super) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// Bad if the mirror or the way to it is at fault, unknown if this host is.
    fn verdict(&self) -> Verdict {
        match self {
            Self::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(
                    Errno::EMFILE
                    | Errno::ENFILE
                    | Errno::ENOMEM
                    | Errno::ENOBUFS
                    | Errno::EADDRNOTAVAIL
                    | Errno::EAFNOSUPPORT
                    | Errno::EPROTONOSUPPORT
                    | Errno::EPERM
                    | Errno::EACCES,
                ) => Verdict::Unknown,
                _ => Verdict::Bad,
            },
            Self::Http(_) => Verdict::Bad,
            Self::Request(_) | Self::Query(_) => Verdict::Unknown,
        }
    }
}

impl From<Fault> for Finding {
    fn from(fault: Fault) -> Self {
        let mut detail = fault.to_string();
        // hyper keeps what it has seen in the source of its error.
        if let Fault::Http(error) = &fault
            && let Some(cause) = error.source()
        {
            let _ = write!(detail, ": {cause}");
        }
        Self::new(fault.verdict(), detail)
    }
}
