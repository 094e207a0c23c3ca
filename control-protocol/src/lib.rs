//! The control protocol of Shunt: what `shuntctl`, the monitor and the naming server say to the
//! daemon `shuntd`, and what it answers. The monitor, `shunt-monitor`, answers in it as well, about what
//! it has decided and why.
//!
//! The two ends speak over a Unix stream socket, one JSON object a line. A client sends a
//! [`Request`], which carries a number of the client's choice and a [`Method`]; the daemon sends one
//! [`Answer`] for each request (to [`Watch`] one after the other), in order, with the same number and either a result or a [`Failure`].
//! `docs/control-protocol.md` describes the same from the outside, for clients in other languages.
//!
//! From the bottom to the top:
//! - [`Service`], [`Mirror`], [`MirrorAddress`], [`ClientPrefix`], [`Cursor`] and the words
//!   ([`Protocol`], [`TcpMove`], …) are values with one text form, read by [`std::str::FromStr`] and
//!   written by [`std::fmt::Display`]. A person types that form on the command line, and JSON carries
//!   it as a string. What is wrong with a text is said in a sentence by [`TextError`].
//! - [`Divert`], [`Redirect`], [`RedirectsQuery`], [`Restore`], [`PeekNames`], [`Hold`], [`ReleaseHold`], [`List`],
//!   [`ConnectionsQuery`], [`Stats`], [`Watch`], [`Liveness`] and [`Version`] are the parameters of one
//!   method each, [`DecisionsQuery`] and [`Mirrors`] of those that the monitor answers,
//!   [`NameSet`], [`NameUnset`], [`NameList`] and [`NameImport`] of those that the naming server answers. The trait
//!   [`Call`] pairs them with their results ([`DivertResult`], …), so that no end can mix them up.
//! - [`read_request`] takes a line to a [`Request`] or to the [`Answer`] that refuses it;
//!   [`Request::to_line`] and [`Answer::to_line`] write lines. They are pure functions: a server
//!   brings its own sockets.
//! - [`Client`] joins it all for blocking programs:
//!
//! ```no_run
//! use control_protocol::{Client, DEFAULT_SOCKET, Divert};
//!
//! let mut client = Client::connect(DEFAULT_SOCKET)?;
//! let result = client.call(Divert {
//!     service: "10.1.0.1:80/tcp".parse()?,
//!     mirrors: vec!["10.2.0.2:8080".parse()?, "10.2.0.3:8080*3".parse()?],
//!     from: None,
//!     peek: None,
//!     automatic: false,
//! })?;
//! assert!(!result.replaced);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What this crate does not do: decide who may ask (the daemon does, by the socket's permissions and
//! the peer's credentials), look up host names, or check whether a diversion makes sense on this host.

mod address;
mod answer;
mod client;
mod line;
mod method;
mod monitor;
mod names;
mod peek;
mod percent;
mod prefix;
mod request;
mod results;
mod text;

pub use address::{Mirror, MirrorAddress, Protocol, Service};
pub use answer::{Answer, ErrorCode, Failure};
pub use client::{Client, ClientError, DEFAULT_TIMEOUT, ProtocolViolation};
pub use line::{MAX_ANSWER_LINE, MAX_LINE, MAX_MESSAGE, PROTOCOL_VERSION};
pub use method::{
    Call, ConnectionsQuery, Cursor, DEFAULT_QUIET_MS, DEFAULT_WITHIN_MS, Daemon, DecisionsQuery,
    Divert, Fallback, Grouping, Hold, List, Liveness, MAX_HOLDS, MAX_PAGE, MAX_WITHIN_MS, Method,
    Mirrors, Redirect, RedirectsQuery, Release, ReleaseHold, Restore, Splice, Stats, TcpMove,
    Version, Watch,
};
pub use monitor::{
    CheckState, Decision, DecisionsResult, Health, MirrorShare, MirrorState, MirrorsResult, Wish,
};
pub use names::{
    DomainName, MAX_TTL, NameAddress, NameImport, NameImportResult, NameInfo, NameList,
    NameListResult, NameRecords, NameSet, NameSetResult, NameUnset, NameUnsetResult,
};
pub use peek::{MAX_PEEK_NAMES, PeekInfo, PeekNames, PeekNamesResult};
pub use percent::Percent;
pub use prefix::ClientPrefix;
pub use request::{Request, read_request};
pub use results::{
    ConnectionInfo, ConnectionState, ConnectionsResult, Counters, Distribution, DiversionInfo,
    DiversionState, DivertResult, End, GroupStats, HoldResult, ListResult, LivenessResult,
    MirrorInfo, MirrorLiveness, OneWayStats, Outcome, RedirectInfo, RedirectResult,
    RedirectsResult, RestoreResult, StatsResult, Timing, Traffic, VersionResult, WatchResult,
};
pub use text::TextError;

/// Where `shuntd` listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/shunt/control.sock";

/// Where `shunt-monitor` listens unless told otherwise.
pub const DEFAULT_MONITOR_SOCKET: &str = "/run/shunt/monitor.sock";

/// Where `shunt-naming` listens unless told otherwise.
pub const DEFAULT_NAMING_SOCKET: &str = "/run/shunt/naming.sock";
