//! Why a connection can't be spliced.

use crate::table::Talk;

macro_rules! obstacles {
    ($($(#[$doc:meta])+ $obstacle:ident = $name:literal,)+) => {
        /// Why a connection can't be spliced.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Obstacle {
            $($(#[$doc])+ $obstacle,)+
        }

        impl Obstacle {
            /// All of them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$obstacle,)+];

            /// Its name in results.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$obstacle => $name,)+
                }
            }
        }
    };
}

obstacles! {
    /// TLS: a new server doesn't know the keys.
    Tls = "tls",
    /// HTTP/2: a new server doesn't know the connection's state.
    Http2 = "http2",
    /// A WebSocket, or whatever else HTTP was upgraded to.
    Upgraded = "upgraded",
    /// The connection began with a PROXY header, which a new server would miss.
    ProxyHeader = "proxy_header",
    /// SSH: a new server doesn't know the keys.
    Ssh = "ssh",
    /// The server spoke first, and a new one would again: SMTP, FTP, MySQL.
    ServerFirst = "server_first",
    /// The beginning of the conversation wasn't seen.
    Unseen = "unseen",
    /// The new mirror doesn't take the TCP options that the connection has.
    Options = "options",
    /// The new mirror refused the connection.
    MirrorRefused = "mirror_refused",
    /// The new mirror didn't answer.
    NoAnswer = "no_answer",
    /// No proxy port was left for the new mirror.
    NoProxyPort = "no_proxy_port",
}

impl Obstacle {
    /// What stands in the way of a connection that is used for this.
    pub(super) fn of(talk: Talk) -> Option<Self> {
        match talk {
            Talk::Silent | Talk::Plain => None,
            Talk::Unseen => Some(Self::Unseen),
            Talk::Tls => Some(Self::Tls),
            Talk::Http2 => Some(Self::Http2),
            Talk::Upgraded => Some(Self::Upgraded),
            Talk::ProxyHeader => Some(Self::ProxyHeader),
            Talk::Ssh => Some(Self::Ssh),
            Talk::ServerFirst => Some(Self::ServerFirst),
        }
    }
}
