//! Active checks: each mirror is asked, at intervals, whether it is well.
//!
//! A *check* is one way to ask ([`CheckConfig`]); what one asking finds is a [`Finding`]. [`Checks`]
//! asks, each check in a task of its own, and sends a [`Report`] for each finding; it decides nothing.
//! [`Health`] decides, from the findings of one mirror's checks, and does no I/O.
//!
//! A finding is about the mirror only if the mirror is the cause. Where this host is at fault (no
//! sockets left, a command that can't be started) or the answer makes no sense for a metric or an
//! agent, the verdict is [`Verdict::Unknown`], and nothing is concluded from it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio_rustls::TlsConnector;

mod agent;
mod command;
mod config;
mod dns;
mod fault;
mod health;
mod http;
mod icmp;
mod prometheus;
mod schedule;
mod tcp;
mod text;
mod tls;
mod udp;

pub use agent::{Agent, AgentWish, AgentWords};
pub use command::Command;
pub use config::{CheckConfig, CheckError, Kind};
pub use dns::{Dns, Rcode};
pub use health::{Change, CheckHealth, CheckState, Health, Standing, State, Wish};
pub use http::{Http, StatusRanges};
pub use icmp::Icmp;
pub use prometheus::{Combine, Labels, Prometheus, Reading, Scan, Selector};
pub use schedule::{Checks, Report, StartError, StartFault, Target};
pub use tcp::Tcp;
pub use text::HexBytes;
pub use tls::TlsError;
pub use udp::Udp;

/// What one asking has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What it says of the mirror.
    pub verdict: Verdict,
    /// How long the mirror took to answer, connecting included; only of an answer.
    pub latency: Option<Duration>,
    /// What was seen, in one printable line of at most 200 characters.
    pub detail: String,
    /// What an agent said beside up and down.
    pub agent: AgentWords,
    /// The mirror's load as a metric tells it: 0.0 is idle, 1.0 is full, and it may be more.
    pub load: Option<f64>,
}

/// What a finding says of the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is well.
    Good,
    /// It isn't, or can't be reached.
    Bad,
    /// An agent answered and said nothing of up or down: it is as it was before.
    Same,
    /// There is nothing to conclude.
    Unknown,
}

impl Finding {
    /// The mirror is well: it answered within `latency`.
    fn good(latency: Duration, detail: impl Into<String>) -> Self {
        Self {
            latency: Some(latency),
            ..Self::new(Verdict::Good, detail)
        }
    }

    /// The mirror isn't well.
    fn bad(detail: impl Into<String>) -> Self {
        Self::new(Verdict::Bad, detail)
    }

    /// Nothing can be said of the mirror.
    fn unknown(detail: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, detail)
    }

    /// A finding of `verdict` with nothing else to it.
    pub fn new(verdict: Verdict, detail: impl Into<String>) -> Self {
        Self {
            verdict,
            latency: None,
            detail: text::printable(&detail.into()),
            agent: AgentWords::default(),
            load: None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Same => "same",
            Self::Unknown => "unknown",
        })
    }
}

/// Whom a check asks.
#[derive(Clone)]
struct Asked {
    /// The mirror's name.
    name: String,
    /// Its address, with the port that this check goes to; 0 if it goes to none.
    address: SocketAddr,
    /// What makes TLS sessions with it, if the check is to.
    tls: Option<TlsConnector>,
}
