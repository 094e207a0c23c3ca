//! The methods: what a client can ask for, one parameter struct each.

use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::{Mirror, MirrorAddress, Service};
use crate::monitor::{DecisionsResult, MirrorsResult};
use crate::names::{
    NameImport, NameImportResult, NameList, NameListResult, NameSet, NameSetResult, NameUnset,
    NameUnsetResult,
};
use crate::peek::{PeekNames, PeekNamesResult};
use crate::percent::Percent;
use crate::prefix::ClientPrefix;
use crate::results::{
    ConnectionsResult, DivertResult, HoldResult, ListResult, LivenessResult, RedirectResult,
    RedirectsResult, RestoreResult, StatsResult, VersionResult, WatchResult,
};
use crate::text::{TextError, digits, excerpt, json_as_text, words};

/// The most connections in one answer, and how many there are when a query names no limit.
pub const MAX_PAGE: u32 = 1000;

/// The parameters of one method, paired with its name and its result.
pub trait Call: Into<Method> {
    /// The method's name on the socket.
    const METHOD: &'static str;
    /// What the daemon answers when it has done what was asked.
    type Result: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident($params:ident) => $name:literal, $result:ident;)+) => {
        /// What is asked of the daemon: a method with its parameters.
        ///
        /// Read by [`crate::read_request`] only, which also says what is wrong with a request.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(tag = "method", content = "params", rename_all = "snake_case")]
        pub enum Method {
            $($(#[$doc])* $variant($params),)+
        }

        impl Method {
            /// The names of all methods.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The method's name on the socket.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            /// Reads the parameters of the method with this name from a JSON object; `None` when
            /// there is no such method.
            pub(crate) fn read(name: &str, params: &str) -> Option<serde_json::Result<Self>> {
                match name {
                    $($name => Some(serde_json::from_str(params).map(Self::$variant)),)+
                    _ => None,
                }
            }
        }

        $(
            impl From<$params> for Method {
                fn from(params: $params) -> Self {
                    Self::$variant(params)
                }
            }

            impl Call for $params {
                const METHOD: &'static str = $name;
                type Result = $result;
            }
        )+
    };
}

methods! {
    /// Sets a diversion; existing connections stay where they are.
    Divert(Divert) => "divert", DivertResult;
    /// Sets a diversion and moves the existing connections too.
    Redirect(Redirect) => "redirect", RedirectResult;
    /// Asks what has become of redirects, or has one wait no longer.
    Redirects(RedirectsQuery) => "redirects", RedirectsResult;
    /// Removes a diversion; existing connections stay where they are until they end.
    Restore(Restore) => "restore", RestoreResult;
    /// Says which names a peeking diversion takes.
    PeekNames(PeekNames) => "peek_names", PeekNamesResult;
    /// Has programs that decide by themselves leave a service alone.
    Hold(Hold) => "hold", HoldResult;
    /// Lets programs decide about a service again.
    Release(ReleaseHold) => "release", HoldResult;
    /// Asks for all diversions.
    List(List) => "list", ListResult;
    /// Asks for one page of the connections.
    Connections(ConnectionsQuery) => "connections", ConnectionsResult;
    /// Asks for the counters.
    Stats(Stats) => "stats", StatsResult;
    /// Asks for what is measured from now on, an update a second.
    Watch(Watch) => "watch", WatchResult;
    /// Asks for the mirrors' vital signs.
    Liveness(Liveness) => "liveness", LivenessResult;
    /// Asks the monitor what it has decided lately.
    Decisions(DecisionsQuery) => "decisions", DecisionsResult;
    /// Asks the monitor what it thinks of the mirrors.
    Mirrors(Mirrors) => "mirrors", MirrorsResult;
    /// Lists a name, for the naming server to answer.
    NameSet(NameSet) => "name_set", NameSetResult;
    /// Lists a name no longer.
    NameUnset(NameUnset) => "name_unset", NameUnsetResult;
    /// Asks for one page of the names.
    NameList(NameList) => "name_list", NameListResult;
    /// Lists the names of a zone file.
    NameImport(NameImport) => "name_import", NameImportResult;
    /// Asks who is answering.
    Version(Version) => "version", VersionResult;
}

/// A daemon that speaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Daemon {
    /// `shuntd`, which rewrites packets.
    Rewriter,
    /// `shunt-monitor`, which decides where they should go.
    Monitor,
    /// `shunt-naming`, which answers names.
    Naming,
}

impl Daemon {
    /// The program's name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Rewriter => "shuntd",
            Self::Monitor => "shunt-monitor",
            Self::Naming => "shunt-naming",
        }
    }

    /// Where it listens unless told otherwise.
    pub const fn default_socket(self) -> &'static str {
        match self {
            Self::Rewriter => crate::DEFAULT_SOCKET,
            Self::Monitor => crate::DEFAULT_MONITOR_SOCKET,
            Self::Naming => crate::DEFAULT_NAMING_SOCKET,
        }
    }

    /// Whether it answers a method.
    pub const fn answers(self, method: &Method) -> bool {
        match method {
            Method::Decisions(_) | Method::Mirrors(_) => matches!(self, Self::Monitor),
            Method::NameSet(_)
            | Method::NameUnset(_)
            | Method::NameList(_)
            | Method::NameImport(_) => matches!(self, Self::Naming),
            _ => matches!(self, Self::Rewriter),
        }
    }
}

/// Sets a diversion, or replaces the mirrors of the one with the same `service` and `from`: new
/// connections follow it, existing ones stay on their mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Divert {
    /// What is diverted.
    pub service: Service,
    /// Where it goes; at least one mirror.
    #[serde(deserialize_with = "some_mirrors")]
    pub mirrors: Vec<Mirror>,
    /// Only these clients; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ClientPrefix>,
    /// Whether only DNS queries for certain names follow it, which are told with [`PeekNames`]; all others
    /// go on as they are. Needs a `service` with a port and the protocol UDP. `None`: as it was before, and
    /// not for a new diversion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peek: Option<bool>,
    /// It is given by a program that decides by itself, which has to leave alone what is held ([`Hold`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
}

/// Sets a diversion as [`Divert`] does, and moves the existing connections that it governs to the
/// new mirrors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// What is redirected.
    pub service: Service,
    /// Where it goes; at least one mirror.
    #[serde(deserialize_with = "some_mirrors")]
    pub mirrors: Vec<Mirror>,
    /// Only these clients; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ClientPrefix>,
    /// What becomes of established TCP connections.
    #[serde(default, deserialize_with = "null_is_default")]
    pub tcp: TcpMove,
    /// How they are spliced, with [`TcpMove::Splice`].
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Splice::is_usual"
    )]
    pub splice: Splice,
    /// Move only the connections that are on this mirror now; `None`: those on any mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_mirror: Option<MirrorAddress>,
    /// Move only this share of the connections on `from_mirror`, which must be given, and move them
    /// although that mirror may be one of `mirrors` still: to another of these. `None`: all, but those
    /// that are on one of `mirrors` already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Percent>,
    /// As in [`Divert`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
}

/// What becomes of an established TCP connection that is redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TcpMove {
    /// It goes on at the new mirror, which needn't know of it, and neither end notices: when nothing is
    /// on its way and the server was the last to speak, the rewriter connects to the new mirror itself,
    /// and joins that connection to the client's.
    #[default]
    Splice,
    /// Its packets go to the new mirror from now on. Right only when the new mirror knows the
    /// connection already, as one of a pair that shares its state does.
    Rewrite,
    /// It is ended on both sides with a reset, and the client's next attempt reaches the new mirror.
    Reset,
}

words!(TcpMove, "way to move TCP", "splice, rewrite or reset", {
    Splice => "splice",
    Rewrite => "rewrite",
    Reset => "reset",
});

/// What becomes of a connection that isn't spliced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fallback {
    /// It stays on its old mirror.
    #[default]
    Leave,
    /// It is ended on both sides with a reset.
    Reset,
}

words!(Fallback, "fallback", "leave or reset", { Leave => "leave", Reset => "reset" });

/// How the old mirror of a spliced connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Release {
    /// The client has finished: an orderly end.
    #[default]
    Fin,
    /// The client has gone.
    Rst,
}

words!(Release, "way to release a mirror", "fin or rst", { Fin => "fin", Rst => "rst" });

/// How long a redirect waits for connections to become spliceable, in milliseconds, when it doesn't
/// say.
pub const DEFAULT_WITHIN_MS: u64 = 30_000;

/// After how many milliseconds without a packet a connection is moved without a request, when a
/// redirect doesn't say.
pub const DEFAULT_QUIET_MS: u64 = 5_000;

/// The longest that a redirect waits, in milliseconds: a day.
pub const MAX_WITHIN_MS: u64 = 86_400_000;

/// How connections are spliced. All of it may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Splice {
    /// How long to wait for a moment at which a connection can be spliced, in milliseconds; at most
    /// [`MAX_WITHIN_MS`].
    #[serde(deserialize_with = "within")]
    pub within_ms: u64,
    /// After how many milliseconds without a packet a connection is moved without waiting for the
    /// client's next request; `None`: never.
    pub quiet_ms: Option<u64>,
    /// What becomes of connections that have waited too long.
    pub then: Fallback,
    /// What becomes of connections that can't be spliced.
    pub otherwise: Fallback,
    /// How the old mirror is told.
    pub release: Release,
    /// Splice whatever the connection is used for.
    pub force: bool,
    /// The old mirror is dead: wait for nothing, and reset what can't be spliced at once.
    pub now: bool,
}

impl Default for Splice {
    fn default() -> Self {
        Self {
            within_ms: DEFAULT_WITHIN_MS,
            quiet_ms: Some(DEFAULT_QUIET_MS),
            then: Fallback::default(),
            otherwise: Fallback::default(),
            release: Release::default(),
            force: false,
            now: false,
        }
    }
}

/// Asks what has become of the latest redirects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedirectsQuery {
    /// Only this one; `None`: all that are remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Have the connections that still wait stay where they are. Needs `id`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
}

impl Splice {
    /// Whether it says nothing but what goes without saying.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Removes the diversion with exactly this `service` and `from`: new connections go where they would
/// without Shunt, existing ones stay on their mirror until they end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The diversion's service.
    pub service: Service,
    /// The diversion's clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ClientPrefix>,
    /// As in [`Divert`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
}

/// The most services that may be held.
pub const MAX_HOLDS: usize = 4096;

/// Has programs that decide by themselves leave alone whatever `service` [covers](Service::covers): their
/// instructions about it are refused ([`crate::ErrorCode::Held`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// What is to be left alone.
    pub service: Service,
}

/// Takes back a [`Hold`] of exactly this service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseHold {
    /// What was held.
    pub service: Service,
}

/// Asks for all diversions; takes no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {}

/// Asks for one page of the connections.
///
/// A connection that lives through the whole of a walk from page to page is seen once. One that begins
/// or ends meanwhile may or may not be seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionsQuery {
    /// Where the page begins: [`ConnectionsResult::next`] of the page before; `None`: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Cursor>,
    /// The most connections in the page, from 1 to [`MAX_PAGE`], which `None` stands for.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "page_limit"
    )]
    pub limit: Option<u32>,
    /// Only connections to this service; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
}

/// A place in the list of connections. Clients pass it on as it came.
///
/// Text: two numbers with a colon between them, such as `0:1234`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cursor {
    /// The worker whose connections are being listed.
    pub worker: u32,
    /// The first slot of that worker's table that is yet to be looked at.
    pub slot: u32,
}

impl FromStr for Cursor {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        text.split_once(':')
            .and_then(|(worker, slot)| {
                Some(Self {
                    worker: digits(worker)?,
                    slot: digits(slot)?,
                })
            })
            .ok_or_else(|| TextError::NotACursor {
                seen: excerpt(text),
            })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.worker, self.slot)
    }
}

json_as_text!(Cursor, "a cursor, the `next` of an earlier answer");

/// Asks for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// And for what has been measured of the connections, taken together by this; `None`: not for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Grouping>,
}

/// Asks for what is measured from now on: the one method that is answered more than once. The first answer
/// comes at once, the others a second after the one before, as long as the client reads them; a client that
/// is slow gets fewer, which are about more time each. No other request can follow on the same
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// What connections are taken together by.
    #[serde(default, deserialize_with = "null_is_default")]
    pub by: Grouping,
}

/// What connections are taken together by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Grouping {
    /// By the diversion that they follow and the mirror that they are on.
    #[default]
    Mirror,
    /// By the diversion that they follow.
    Service,
    /// By their clients' prefix.
    Client,
}

words!(Grouping, "grouping", "mirror, service or client", {
    Mirror => "mirror",
    Service => "service",
    Client => "client",
});

/// Asks for the mirrors' vital signs; takes no parameters. Cheap enough to be asked ten times a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Liveness {}

/// Asks the monitor for its latest decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionsQuery {
    /// Only those about this service; `None`: about any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// The most decisions in the answer, from 1 to [`MAX_PAGE`], which `None` stands for.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "page_limit"
    )]
    pub limit: Option<u32>,
}

/// Asks the monitor what it thinks of the mirrors; takes no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirrors {}

/// Asks who is answering; takes no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {}

fn some_mirrors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Mirror>, D::Error> {
    let mirrors = Vec::deserialize(deserializer)?;
    if mirrors.is_empty() {
        return Err(D::Error::custom(
            "`mirrors` is empty; expected at least one mirror",
        ));
    }
    Ok(mirrors)
}

pub(crate) fn null_is_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn within<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        within_ms if within_ms > MAX_WITHIN_MS => Err(D::Error::custom(format!(
            "`within_ms` is {within_ms}; expected at most {MAX_WITHIN_MS}, which is a day"
        ))),
        within_ms => Ok(within_ms),
    }
}

pub(crate) fn page_limit<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    match Option::deserialize(deserializer)? {
        Some(limit) if !(1..=MAX_PAGE).contains(&limit) => Err(D::Error::custom(format!(
            "`limit` is {limit}; expected a number from 1 to {MAX_PAGE}"
        ))),
        limit => Ok(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_name_of_its_method() {
        fn check<C: Call + Default>() {
            let method: Method = C::default().into();
            assert_eq!(method.name(), C::METHOD);
            assert!(Method::NAMES.contains(&C::METHOD));
        }
        check::<List>();
        check::<ConnectionsQuery>();
        check::<Stats>();
        check::<Liveness>();
        check::<DecisionsQuery>();
        check::<Mirrors>();
        check::<Version>();
    }

    #[test]
    fn each_method_has_a_daemon_that_answers_it() {
        for (method, daemons) in [
            (Method::from(List {}), [true, false, false]),
            (Liveness {}.into(), [true, false, false]),
            (DecisionsQuery::default().into(), [false, true, false]),
            (Mirrors {}.into(), [false, true, false]),
            (NameList::default().into(), [false, false, true]),
            (Version {}.into(), [true, false, false]),
        ] {
            let all = [Daemon::Rewriter, Daemon::Monitor, Daemon::Naming];
            let answers = all.map(|daemon| daemon.answers(&method));
            assert_eq!(answers, daemons, "{}", method.name());
        }
    }

    #[test]
    fn cursors_are_two_numbers() {
        let cursor: Cursor = "1:4294967295".parse().expect("a cursor");
        assert_eq!(
            cursor,
            Cursor {
                worker: 1,
                slot: u32::MAX
            }
        );
        for text in ["", "1", ":", "1:", "1:2:3", "-1:2", "1:4294967296"] {
            assert_eq!(
                text.parse::<Cursor>().expect_err(text).to_string(),
                format!(
                    "\"{text}\" is not a cursor; pass on the `next` of an earlier answer as it came"
                )
            );
        }
    }

    #[test]
    fn tcp_connections_are_spliced_unless_told_otherwise() {
        assert_eq!(TcpMove::default().as_str(), "splice");
        assert_eq!(
            "move".parse::<TcpMove>().expect_err("unknown").to_string(),
            "\"move\" is not a way to move TCP; expected splice, rewrite or reset"
        );
    }
}
