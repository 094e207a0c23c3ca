//! What the server is told: by flags, by a file, by defaults, in this order of precedence.
//!
//! Every flag has its place in the file under its own name, so one struct, [`Options`], is read from both;
//! [`Settings`] is what comes out when the gaps are filled and the whole makes sense.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use control_protocol::{DEFAULT_NAMING_SOCKET, MAX_TTL};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::answer::{OtherTypes, Rules};
use crate::passing::MAX_UPSTREAMS;
use crate::tcp;

/// The port of the DNS.
const DNS_PORT: u16 = 53;

/// Options as they are given: each may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// Address to answer at, over UDP and TCP (repeatable) [default: 0.0.0.0 and ::]
    ///
    /// One that names an address of this machine is served faster than one that stands for all.
    #[arg(long, value_name = "IP[:PORT]")]
    pub listen: Vec<Endpoint>,
    /// DNS server that queries for all other names are passed to (repeatable)
    ///
    /// The first one that answers is asked; the others take its place when it doesn't.
    #[arg(long, value_name = "IP[:PORT]")]
    pub upstream: Vec<Endpoint>,
    /// Number of workers, each with a thread of its own [default: one a core]
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,
    /// How long clients may remember an answer, in seconds, for names that are set without it [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub ttl: Option<u32>,
    /// What a query for a listed name gets whose type isn't listed for it [default: empty]
    #[arg(long, value_name = "WHAT")]
    pub other_types: Option<OtherTypesKind>,
    /// How long an upstream's answer is waited for before another one is asked [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub upstream_timeout: Option<Time>,
    /// The most queries that wait for upstreams' answers [default: 8192]
    ///
    /// Shared out evenly among the workers. What is too much is answered with a failure (SERVFAIL).
    #[arg(long, value_name = "N")]
    pub max_in_flight: Option<usize>,
    /// The longest answer over UDP from the table, in bytes, whatever the client takes [default: 1232]
    #[arg(long, value_name = "BYTES")]
    pub max_udp_size: Option<u16>,
    /// The most TCP clients at a time [default: 256]
    #[arg(long, value_name = "N")]
    pub tcp_clients: Option<usize>,
    /// How long a TCP client may be silent [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub tcp_idle_timeout: Option<Time>,
    /// Control socket [default: /run/shunt/naming.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// File that keeps the listed names [default: /var/lib/shunt/naming.json]
    #[arg(long, value_name = "PATH")]
    pub state: Option<PathBuf>,
}

/// What becomes of types that a listed name hasn't got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherTypesKind {
    /// An empty answer
    Empty,
    /// The upstream's answer
    Pass,
}

/// An address with a port, which is the DNS's unless it is given: `IP` or `IP:PORT`, `[IPv6]:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint(pub SocketAddr);

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "expected an address, or an address and a port, such as 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:5353"
)]
pub struct EndpointError;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        let address = match bare.unwrap_or(text).parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, DNS_PORT),
            Err(_) => text.parse().map_err(|_| EndpointError)?,
        };
        match address {
            SocketAddr::V6(address) if address.ip().to_ipv4_mapped().is_some() => {
                Err(EndpointError)
            }
            address if address.port() == 0 => Err(EndpointError),
            address => Ok(Self(address)),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A length of time such as `500ms`, `1s` or `2m`; from a tenth of a second to an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

/// Why a text is no time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected a time from 100ms to 1h, such as 500ms, 1s or 2m")]
pub struct TimeError;

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        const POSSIBLE: std::ops::RangeInclusive<Duration> =
            Duration::from_millis(100)..=Duration::from_secs(3600);
        match humantime::parse_duration(text) {
            Ok(duration) if POSSIBLE.contains(&duration) => Ok(Self(duration)),
            _ => Err(TimeError),
        }
    }
}

/// Reads from the file what is written there as on the command line.
macro_rules! deserialize_from_text {
    ($($name:ty),+) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        })+
    };
}

deserialize_from_text!(Endpoint, Time);

/// What the server does, with every gap filled.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it answers; none twice.
    pub listen: Vec<SocketAddr>,
    /// Whom it asks; at least one, none twice, and not itself.
    pub upstreams: Vec<SocketAddr>,
    /// How many workers; at least one.
    pub workers: u16,
    /// What names live without a time of their own, in seconds.
    pub ttl: u32,
    /// How queries are answered.
    pub rules: Rules,
    /// How long an upstream's answer is waited for.
    pub upstream_timeout: Duration,
    /// The most queries under way, of all workers together.
    pub max_in_flight: usize,
    /// How TCP clients are served.
    pub tcp: tcp::Limits,
    /// Where the control socket is.
    pub socket: PathBuf,
    /// Where the names are kept.
    pub state: PathBuf,
}

/// What is wrong with the options.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file isn't TOML, or has an unknown key, or a value of the wrong kind.
    #[error("{path}: {error}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What and where.
        error: Box<toml::de::Error>,
    },
    /// There is no upstream.
    #[error(
        "a DNS server is needed that queries for all other names are passed to: --upstream IP[:PORT], or \
         upstream = [\"IP[:PORT]\"] in the file"
    )]
    NoUpstream,
    /// Too many upstreams.
    #[error("{0} upstreams are given; at most {MAX_UPSTREAMS} are possible")]
    TooManyUpstreams(usize),
    /// An address is given twice.
    #[error("{option} {address} is given twice")]
    Twice {
        /// The option.
        option: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The upstream is the server itself.
    #[error("upstream {0} is where this server itself listens: queries would go round in circles")]
    Itself(SocketAddr),
    /// The upstream's address stands for no machine.
    #[error("upstream {0} is the address of no machine")]
    NoMachine(SocketAddr),
    /// A number that can't be.
    #[error("{option} must be from {least} to {most}, not {given}")]
    OutOfRange {
        /// The option.
        option: &'static str,
        /// What was given.
        given: u64,
        /// The least possible.
        least: u64,
        /// The most possible.
        most: u64,
    },
}

impl Options {
    /// Reads options from a TOML file.
    ///
    /// # Errors
    /// The file can't be read, or doesn't say what it may say; the error names key and line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            error,
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            error: Box::new(error),
        })
    }

    /// These options, with those of `other` where these are absent.
    pub fn or(self, other: Self) -> Self {
        fn or_list<T>(list: Vec<T>, other: Vec<T>) -> Vec<T> {
            if list.is_empty() { other } else { list }
        }
        Self {
            listen: or_list(self.listen, other.listen),
            upstream: or_list(self.upstream, other.upstream),
            workers: self.workers.or(other.workers),
            ttl: self.ttl.or(other.ttl),
            other_types: self.other_types.or(other.other_types),
            upstream_timeout: self.upstream_timeout.or(other.upstream_timeout),
            max_in_flight: self.max_in_flight.or(other.max_in_flight),
            max_udp_size: self.max_udp_size.or(other.max_udp_size),
            tcp_clients: self.tcp_clients.or(other.tcp_clients),
            tcp_idle_timeout: self.tcp_idle_timeout.or(other.tcp_idle_timeout),
            socket: self.socket.or(other.socket),
            state: self.state.or(other.state),
        }
    }

    /// Fills the gaps with defaults and checks that the whole makes sense.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn settle(self) -> Result<Settings, ConfigError> {
        let mut listen: Vec<SocketAddr> = self.listen.iter().map(|endpoint| endpoint.0).collect();
        if listen.is_empty() {
            listen = vec![
                SocketAddr::from(([0; 4], DNS_PORT)),
                SocketAddr::from(([0; 16], DNS_PORT)),
            ];
        }
        none_twice("listen", &listen)?;
        let upstreams: Vec<SocketAddr> = self.upstream.iter().map(|endpoint| endpoint.0).collect();
        match upstreams.len() {
            0 => return Err(ConfigError::NoUpstream),
            1..=MAX_UPSTREAMS => {}
            number => return Err(ConfigError::TooManyUpstreams(number)),
        }
        none_twice("upstream", &upstreams)?;
        for upstream in &upstreams {
            let address = upstream.ip();
            if address.is_unspecified() || address.is_multicast() {
                return Err(ConfigError::NoMachine(*upstream));
            }
            if listen.iter().any(|listen| leads_to(*upstream, *listen)) {
                return Err(ConfigError::Itself(*upstream));
            }
        }
        let workers = self.workers.unwrap_or_else(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            cores.clamp(1, 256) as u16
        });
        within("workers", workers.into(), 1, 256)?;
        let ttl = self.ttl.unwrap_or(5);
        within("ttl", ttl.into(), 0, MAX_TTL.into())?;
        let max_in_flight = self.max_in_flight.unwrap_or(8192);
        within("max-in-flight", max_in_flight as u64, 1, 1 << 20)?;
        let max_udp_size = self.max_udp_size.unwrap_or(1232);
        // Every client takes 512 bytes (RFC 1035); beyond 4096 fragments get lost too often to be of use.
        within("max-udp-size", max_udp_size.into(), 512, 4096)?;
        let tcp_clients = self.tcp_clients.unwrap_or(256);
        within("tcp-clients", tcp_clients as u64, 1, 1 << 16)?;
        let time = |given: Option<Time>, usual| given.map_or(usual, |time| time.0);
        Ok(Settings {
            listen,
            upstreams,
            workers,
            ttl,
            rules: Rules {
                max_udp_size,
                other_types: match self.other_types {
                    Some(OtherTypesKind::Empty) | None => OtherTypes::Empty,
                    Some(OtherTypesKind::Pass) => OtherTypes::Pass,
                },
            },
            upstream_timeout: time(self.upstream_timeout, Duration::from_secs(1)),
            max_in_flight,
            tcp: tcp::Limits {
                max_clients: tcp_clients,
                idle_timeout: time(self.tcp_idle_timeout, Duration::from_secs(10)),
            },
            socket: self.socket.unwrap_or_else(|| DEFAULT_NAMING_SOCKET.into()),
            state: self
                .state
                .unwrap_or_else(|| "/var/lib/shunt/naming.json".into()),
        })
    }
}

/// Whether what is sent to `upstream` comes to whoever listens at `listen`.
fn leads_to(upstream: SocketAddr, listen: SocketAddr) -> bool {
    if upstream.port() != listen.port() || upstream.is_ipv4() != listen.is_ipv4() {
        return false;
    }
    // Only this machine's own addresses can be bound.
    let is_own = || UdpSocket::bind((upstream.ip(), 0)).is_ok();
    upstream.ip() == listen.ip() || listen.ip().is_unspecified() && is_own()
}

fn none_twice(option: &'static str, addresses: &[SocketAddr]) -> Result<(), ConfigError> {
    for (number, address) in addresses.iter().enumerate() {
        if addresses[..number].contains(address) {
            return Err(ConfigError::Twice {
                option,
                address: *address,
            });
        }
    }
    Ok(())
}

fn within(option: &'static str, given: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&given) {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange {
            option,
            given,
            least,
            most,
        })
    }
}
