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
use control_protocol::{DEFAULT_NAMING_SOCKET, MAX_TTL, Protocol, Service};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::answer::{CookieSecret, OtherTypes, Rules};
use crate::passing::MAX_UPSTREAMS;
use crate::rewriters::Rewriter;
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
    /// Answer only these clients (repeatable) [default: all]
    #[arg(long, value_name = "CIDR")]
    pub client: Vec<IpNet>,
    /// The most answers a second over UDP to clients of one prefix (/24, /56), or off [default: 1000]
    ///
    /// So that the server is of no use for flooding others in their name. What is too much gets nothing, or the
    /// advice to ask over TCP. Clients with a cookie (RFC 7873) prove that they are who they say, and have no limit.
    #[arg(long, value_name = "N|off")]
    pub rate_limit: Option<Rate>,
    /// Clients whom the rate limit doesn't concern (repeatable)
    ///
    /// A rewriter's proxy addresses, for instance, from which all of its clients come.
    #[arg(long, value_name = "CIDR")]
    pub rate_limit_exempt: Vec<IpNet>,
    /// Give no cookies (RFC 7873) with answers from the table
    #[arg(long)]
    pub no_cookies: bool,
    /// Write each query into this file [default: no]
    #[arg(long, value_name = "PATH")]
    pub query_log: Option<PathBuf>,
    /// The size in bytes at which the query log is put aside, in place of the one before [default: 67108864]
    #[arg(long, value_name = "BYTES")]
    pub query_log_size: Option<u64>,
    /// Serve metrics for Prometheus at this address [default: no]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Control socket [default: /run/shunt/naming.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// File that keeps the listed names [default: /var/lib/shunt/naming.json]
    #[arg(long, value_name = "PATH")]
    pub state: Option<PathBuf>,
    /// Peeking diversions that are told the names; in the file only, as tables `[[rewriter]]`.
    #[arg(skip)]
    pub rewriter: Vec<Rewriter>,
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

/// A number of answers a second, or none: written `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<u32>);

/// Why a text is no rate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected off, or a number of answers a second from 1 to 1000000")]
pub struct RateError;

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        match text.parse() {
            Ok(rate @ 1..=1_000_000) => Ok(Self(Some(rate))),
            _ if text == "off" => Ok(Self(None)),
            _ => Err(RateError),
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

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A number needs no quotes.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a text or a number")]
        enum TextOrNumber {
            Text(String),
            Number(i64),
        }

        match TextOrNumber::deserialize(deserializer)? {
            TextOrNumber::Text(text) => text.parse(),
            TextOrNumber::Number(number) => number.to_string().parse(),
        }
        .map_err(serde::de::Error::custom)
    }
}

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
    /// The most answers a second for one prefix; none: no limit.
    pub rate_limit: Option<u32>,
    /// Whom that doesn't concern.
    pub rate_limit_exempt: Vec<IpNet>,
    /// Where queries are written down, and how large that file gets, in bytes.
    pub query_log: Option<(PathBuf, u64)>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where the control socket is.
    pub socket: PathBuf,
    /// Where the names are kept.
    pub state: PathBuf,
    /// Who is told the names; none twice.
    pub rewriters: Vec<Rewriter>,
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
    /// A rewriter's service that can't be of a peeking diversion.
    #[error(
        "service {0} of a rewriter isn't a UDP port; only a diversion of one peeks, such as {address}:53/udp",
        address = .0.address
    )]
    NotUdpPort(Service),
    /// A rewriter is given twice.
    #[error("{0} is given twice")]
    RewriterTwice(Rewriter),
    /// A prefix has bits set behind its length.
    #[error("{given} has host bits set; did you mean {meant}?")]
    HostBits {
        /// What was given.
        given: IpNet,
        /// The prefix that it lies in.
        meant: IpNet,
    },
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
            client: or_list(self.client, other.client),
            rate_limit: self.rate_limit.or(other.rate_limit),
            rate_limit_exempt: or_list(self.rate_limit_exempt, other.rate_limit_exempt),
            no_cookies: self.no_cookies || other.no_cookies,
            query_log: self.query_log.or(other.query_log),
            query_log_size: self.query_log_size.or(other.query_log_size),
            metrics: self.metrics.or(other.metrics),
            socket: self.socket.or(other.socket),
            state: self.state.or(other.state),
            rewriter: or_list(self.rewriter, other.rewriter),
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
        for net in self.client.iter().chain(&self.rate_limit_exempt) {
            if net.trunc() != *net {
                return Err(ConfigError::HostBits {
                    given: *net,
                    meant: net.trunc(),
                });
            }
        }
        let mut rewriters: Vec<Rewriter> = Vec::new();
        for mut rewriter in self.rewriter {
            let service = rewriter.service;
            if service.port.is_none() || service.protocol != Some(Protocol::Udp) {
                return Err(ConfigError::NotUdpPort(service));
            }
            // A prefix that all clients lie in is the same as none.
            rewriter.from = rewriter.from.filter(|from| from.network().prefix_len() > 0);
            if rewriters.contains(&rewriter) {
                return Err(ConfigError::RewriterTwice(rewriter));
            }
            rewriters.push(rewriter);
        }
        let query_log_size = self.query_log_size.unwrap_or(64 << 20);
        within("query-log-size", query_log_size, 1 << 12, 1 << 40)?;
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
                clients: self.client,
                cookies: (!self.no_cookies).then(CookieSecret::random),
            },
            upstream_timeout: time(self.upstream_timeout, Duration::from_secs(1)),
            max_in_flight,
            tcp: tcp::Limits {
                max_clients: tcp_clients,
                idle_timeout: time(self.tcp_idle_timeout, Duration::from_secs(10)),
            },
            rate_limit: self.rate_limit.map_or(Some(1000), |rate| rate.0),
            rate_limit_exempt: self.rate_limit_exempt,
            query_log: self.query_log.map(|path| (path, query_log_size)),
            metrics: self.metrics,
            socket: self.socket.unwrap_or_else(|| DEFAULT_NAMING_SOCKET.into()),
            state: self
                .state
                .unwrap_or_else(|| "/var/lib/shunt/naming.json".into()),
            rewriters,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn from_toml(text: &str) -> Result<Options, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Options::read(file.path()).map_err(|error| error.to_string())
    }

    fn settled(text: &str) -> Result<Settings, String> {
        from_toml(text)?.settle().map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_has_a_place_for_every_flag() {
        let settings = settled(
            r#"
            listen = ["192.0.2.5", "[2001:db8::5]:5353"]
            upstream = ["192.0.2.53", "2001:db8::53"]
            workers = 3
            ttl = 30
            other-types = "pass"
            upstream-timeout = "500ms"
            max-in-flight = 100
            max-udp-size = 1400
            tcp-clients = 10
            tcp-idle-timeout = "2s"
            client = ["10.1.0.0/24"]
            rate-limit = 50
            rate-limit-exempt = ["10.10.10.10/32"]
            no-cookies = true
            query-log = "/tmp/q"
            query-log-size = 10000
            metrics = "127.0.0.1:9353"
            socket = "/tmp/s"
            state = "/tmp/n"

            [[rewriter]]
            service = "10.0.0.53:53/udp"
            [[rewriter]]
            socket = "/tmp/c"
            service = "10.0.0.53:53/udp"
            from = "10.1.0.0/24"
            "#,
        )
        .unwrap();
        let addresses =
            |list: &[SocketAddr]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        assert_eq!(
            addresses(&settings.listen),
            ["192.0.2.5:53", "[2001:db8::5]:5353"]
        );
        assert_eq!(
            addresses(&settings.upstreams),
            ["192.0.2.53:53", "[2001:db8::53]:53"]
        );
        assert_eq!(
            (settings.workers, settings.ttl, settings.max_in_flight),
            (3, 30, 100)
        );
        assert_eq!(settings.rules.other_types, OtherTypes::Pass);
        assert_eq!(settings.rules.max_udp_size, 1400);
        assert!(settings.rules.cookies.is_none());
        assert_eq!(settings.rules.clients.len(), 1);
        assert_eq!(settings.upstream_timeout, Duration::from_millis(500));
        assert_eq!(
            (
                settings.tcp.max_clients,
                settings.tcp.idle_timeout.as_secs()
            ),
            (10, 2)
        );
        assert_eq!(
            (settings.rate_limit, settings.rate_limit_exempt.len()),
            (Some(50), 1)
        );
        assert_eq!(settings.query_log, Some(("/tmp/q".into(), 10_000)));
        assert!(settings.metrics.is_some());
        let rewriters: Vec<String> = settings.rewriters.iter().map(ToString::to_string).collect();
        assert_eq!(
            rewriters,
            [
                "the diversion of 10.0.0.53:53/udp at /run/shunt/control.sock",
                "the diversion of 10.0.0.53:53/udp from 10.1.0.0/24 at /tmp/c"
            ]
        );
        // As many keys as the command line has flags, so none has been forgotten above.
        let command = Options::augment_args(clap::Command::new("shunt-naming"));
        assert_eq!(command.get_arguments().count(), 19);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let error = |text: &str| settled(text).unwrap_err();
        assert!(error("").contains("--upstream IP[:PORT]"));
        assert!(error("upsteam = [\"192.0.2.53\"]").contains("upsteam"));
        let with_upstream = |line: &str| error(&format!("upstream = [\"192.0.2.53\"]\n{line}"));
        assert_eq!(
            with_upstream("max-udp-size = 511"),
            "max-udp-size must be from 512 to 4096, not 511"
        );
        assert!(with_upstream("rate-limit = 0").contains("expected off, or a number"));
        assert!(with_upstream("upstream-timeout = \"1ms\"").contains("from 100ms to 1h"));
        assert!(with_upstream("client = [\"10.1.0.5/24\"]").contains("did you mean 10.1.0.0/24?"));
        assert_eq!(
            error("upstream = [\"192.0.2.53\", \"192.0.2.53:53\"]"),
            "upstream 192.0.2.53:53 is given twice"
        );
        assert!(
            with_upstream("[[rewriter]]\nservice = \"10.0.0.53:53\"").contains("isn't a UDP port")
        );
        let twice = "[[rewriter]]\nservice = \"10.0.0.53:53/udp\"\n".repeat(2);
        assert!(with_upstream(&twice).contains("given twice"));
        assert!(error("upstream = [\"0.0.0.0\"]").contains("no machine"));
        for itself in ["127.0.0.1", "::1"] {
            assert!(
                error(&format!("upstream = [\"{itself}\"]")).contains("in circles"),
                "{itself}"
            );
        }
        assert!(
            settled("upstream = [\"127.0.0.1:5353\"]").is_ok(),
            "another port is another server"
        );
    }

    #[test]
    fn endpoints() {
        for (text, endpoint) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), endpoint);
        }
        for wrong in [
            "",
            "dns.test",
            "192.0.2.1:0",
            "192.0.2.1:x",
            "::ffff:192.0.2.1",
        ] {
            assert_eq!(wrong.parse::<Endpoint>(), Err(EndpointError), "{wrong}");
        }
    }
}
