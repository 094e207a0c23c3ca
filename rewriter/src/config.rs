//! What the daemon is told: by flags, by a file, by defaults, in this order of precedence.
//!
//! Every flag has its place in the file under its own name, so one struct, [`Options`], is read from
//! both; [`Settings`] is what comes out when the gaps are filled and the whole makes sense.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use nix::sys::sysinfo::sysinfo;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::engine::Timeouts;
use crate::table::{ClientGroups, Refusal, check_proxies};

/// As long as it takes to wake a thread, and more: what comes within it is not held up.
const USUAL_BUSY_POLL: Duration = Duration::from_micros(50);

/// Enough where two of three mirrors are down, and soon over where all are.
const USUAL_REFUSED_RETRIES: u8 = 2;

/// Options as they are given: each may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// Address that the rewriter sends from, towards the mirrors (repeatable, IPv4 and IPv6)
    ///
    /// It must not be assigned to any machine, this one included; the mirrors' routes to it must lead
    /// here.
    #[arg(long, value_name = "ADDR")]
    pub proxy: Vec<IpAddr>,
    /// Ports (and echo identifiers) that the rewriter sends from [default: 1024-65535]
    #[arg(long, value_name = "FIRST-LAST")]
    pub proxy_ports: Option<PortRange>,
    /// Route all traffic from these clients through the rewriter, diverted or not (repeatable)
    ///
    /// Without it, only traffic to diverted services and to the proxy addresses is routed here.
    #[arg(long, value_name = "CIDR")]
    pub client: Vec<IpNet>,
    /// How packets leave [default: tun]
    #[arg(long, value_name = "PORT")]
    pub egress: Option<EgressKind>,
    /// Number of workers, each with a thread and a TUN queue [default: one a core]
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,
    /// The most connections that are kept at once [default: by memory]
    ///
    /// By default as many as an eighth of the machine's memory holds, at 512 bytes each; the memory is
    /// used only as it is needed. When the table is full, connections that have ended or were never
    /// answered make room for new ones.
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// The most connections that one client address may have [default: no limit]
    ///
    /// Shared out evenly among the workers, as a client's connections are: with several workers a
    /// client may be stopped a little before the limit.
    #[arg(long, value_name = "N")]
    pub max_connections_per_client: Option<u32>,
    /// Bits of an IPv4 client's address that tell its prefix, by which clients are measured [default: 24]
    #[arg(long, value_name = "0-32")]
    pub client_prefix_v4: Option<u8>,
    /// Bits of an IPv6 client's address that tell its prefix, by which clients are measured [default: 48]
    #[arg(long, value_name = "0-128")]
    pub client_prefix_v6: Option<u8>,
    /// Forget an established TCP connection that is idle for this long [default: 2h4m]
    #[arg(long, value_name = "TIME")]
    pub tcp_established_timeout: Option<Timeout>,
    /// Forget a TCP connection that is opening, closing or closed after this long [default: 4m]
    #[arg(long, value_name = "TIME")]
    pub tcp_transitory_timeout: Option<Timeout>,
    /// Forget a UDP flow that is idle for this long [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub udp_timeout: Option<Timeout>,
    /// Forget an ICMP echo that is idle for this long [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub echo_timeout: Option<Timeout>,
    /// Try so many more mirrors for a TCP connection that its mirror refuses [default: 2]
    ///
    /// The client doesn't notice, unless they all refuse. 0: its mirror's answer is the client's.
    #[arg(long, value_name = "N")]
    pub refused_retries: Option<u8>,
    /// Lower the TCP segment size that clients and mirrors announce [default: auto]
    ///
    /// auto: to what fits the TUN's MTU; N: to what fits packets of N bytes; off: not at all.
    #[arg(long, value_name = "auto|N|off")]
    pub mss_clamp: Option<MssClamp>,
    /// Control socket [default: /run/shunt/control.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Name of the TUN interface [default: shunt0]
    #[arg(long, value_name = "NAME")]
    pub tun: Option<String>,
    /// MTU of the TUN interface, in bytes [default: 1500]
    ///
    /// That of the links which lead to clients and mirrors. Where a link behind them has a smaller
    /// one, path MTU discovery finds out.
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Number of the routing table that leads to the TUN [default: 3353]
    ///
    /// The next number is used as well, with --client or strict reverse-path filters.
    #[arg(long, value_name = "N")]
    pub table: Option<u32>,
    /// Priority of the routing rules [default: 3353]
    ///
    /// A few numbers after it are used as well.
    #[arg(long, value_name = "N")]
    pub rule_priority: Option<u32>,
    /// Preference of the traffic filters (--egress raw) [default: 3353]
    ///
    /// The 4095 numbers after it are used as well.
    #[arg(long, value_name = "N")]
    pub filter_preference: Option<u16>,
    /// Mark on packets that leave by raw sockets (--egress raw) [default: 3353]
    #[arg(long, value_name = "N")]
    pub mark: Option<u32>,
    /// Take plain packets only, no super-packets and no unfinished checksums
    #[arg(long)]
    pub no_offload: bool,
    /// Take no UDP super-packets
    #[arg(long)]
    pub no_uso: bool,
    /// Send each datagram by itself, even where the next one could go with it
    ///
    /// By default datagrams of one flow that come together are handed to the kernel as one super-packet,
    /// which is cut again where the next link needs it.
    #[arg(long)]
    pub no_coalesce: bool,
    /// Let the kernel choose the worker that a packet comes to
    ///
    /// By default an eBPF program brings each packet to the worker that has its connection.
    #[arg(long)]
    pub no_steering: bool,
    /// How long a worker with nothing to do looks for packets before it sleeps [default: 50us]
    ///
    /// Packets that follow each other closely are then not held up by waking it, at the price of some
    /// processor time; off: not at all.
    #[arg(long, value_name = "TIME|off")]
    pub busy_poll: Option<BusyPoll>,
    /// Leave routes and rules alone; print the commands that set them up instead
    #[arg(long)]
    pub no_routes: bool,
    /// Turn the kernel's IP forwarding on if it is off
    #[arg(long)]
    pub enable_forwarding: bool,
}

/// How packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressKind {
    /// Written back to the TUN and forwarded by the kernel
    Tun,
    /// By raw sockets; the kernel needs no forwarding and no FORWARD rule
    Raw,
}

/// A range of ports, written `FIRST-LAST` or `PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

/// Why a text is no range of ports.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected FIRST-LAST, two ports from 1 to 65535, the smaller one first")]
pub struct PortRangeError;

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| match text.trim().parse() {
            Ok(0) | Err(_) => Err(PortRangeError),
            Ok(port) => Ok(port),
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(PortRangeError);
        }
        Ok(Self(first..=last))
    }
}

/// A length of time such as `90s`, `4m` or `2h4m`; at least a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout(pub Duration);

/// Why a text is no timeout.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected a time of at least a second, such as 90s, 4m or 2h4m")]
pub struct TimeoutError;

impl FromStr for Timeout {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Self, TimeoutError> {
        match humantime::parse_duration(text) {
            Ok(duration) if duration >= Duration::from_secs(1) => Ok(Self(duration)),
            _ => Err(TimeoutError),
        }
    }
}

/// What the announced TCP segment size is lowered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MssClamp {
    /// What fits the TUN's MTU.
    Auto,
    /// What fits a packet of this many bytes.
    To(u16),
    /// It is left alone.
    Off,
}

/// Why a text is no [`MssClamp`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected auto, off, or a packet size from 576 to 65535 bytes")]
pub struct MssClampError;

impl FromStr for MssClamp {
    type Err = MssClampError;

    fn from_str(text: &str) -> Result<Self, MssClampError> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            // Every IPv4 host takes packets of 576 bytes (RFC 791, section 3.1).
            size => match size.parse() {
                Ok(size @ 576..) => Ok(Self::To(size)),
                _ => Err(MssClampError),
            },
        }
    }
}

/// How long a worker looks for packets before it sleeps; zero is written `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll(pub Duration);

/// Why a text is no [`BusyPoll`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected off, or a time of up to a second, such as 50us or 2ms")]
pub struct BusyPollError;

impl FromStr for BusyPoll {
    type Err = BusyPollError;

    fn from_str(text: &str) -> Result<Self, BusyPollError> {
        if text == "off" {
            return Ok(Self(Duration::ZERO));
        }
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= Duration::from_secs(1) => Ok(Self(duration)),
            _ => Err(BusyPollError),
        }
    }
}

/// Reads from the file what is written there as on the command line.
macro_rules! deserialize_from {
    ($form:ty: $($name:ty),+) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$form>::deserialize(deserializer)?
                    .to_string()
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        })+
    };
}

deserialize_from!(String: Timeout, BusyPoll);
// A number needs no quotes.
deserialize_from!(TextOrNumber: PortRange, MssClamp);

/// A value in the file.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a number")]
enum TextOrNumber {
    Text(String),
    Number(i64),
}

impl fmt::Display for TextOrNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// What the daemon does, with every gap filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The proxy addresses; at least one, all unicast, none twice.
    pub proxies: Vec<IpAddr>,
    /// The proxy ports; at least one for each worker.
    pub proxy_ports: RangeInclusive<u16>,
    /// Subnets whose traffic all comes here.
    pub clients: Vec<IpNet>,
    /// How packets leave.
    pub egress: EgressKind,
    /// How many workers; at least one.
    pub workers: u16,
    /// The most connections of all workers together.
    pub max_connections: usize,
    /// The most connections of one client; none: no limit.
    pub max_connections_per_client: Option<u32>,
    /// When idle connections are forgotten.
    pub timeouts: Timeouts,
    /// Whose connections are taken together when they are measured.
    pub client_groups: ClientGroups,
    /// How many more mirrors a connection is tried at that its mirror refuses.
    pub refused_retries: u8,
    /// The packet size in bytes that announced TCP segment sizes are lowered to; none: they aren't.
    pub mss_clamp: Option<u16>,
    /// Where the control socket is.
    pub socket: PathBuf,
    /// The TUN's name.
    pub tun: String,
    /// The TUN's MTU in bytes.
    pub mtu: u32,
    /// The routing table.
    pub table: u32,
    /// The routing rules' priority.
    pub rule_priority: u32,
    /// The traffic filters' preference.
    pub filter_preference: u16,
    /// The mark of packets that leave by raw sockets.
    pub mark: u32,
    /// Whether to ask for super-packets at all.
    pub offload: bool,
    /// Whether to ask for UDP super-packets.
    pub uso: bool,
    /// Whether to send datagrams that come together as one super-packet, where those are carried.
    pub coalesce: bool,
    /// Whether the kernel is to bring packets to their owners.
    pub steering: bool,
    /// How long a worker looks for packets before it sleeps.
    pub busy_poll: Duration,
    /// Whether to set up routes and rules.
    pub routes: bool,
    /// Whether to turn forwarding on.
    pub enable_forwarding: bool,
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
    /// There is no proxy address.
    #[error(
        "a proxy address is needed: --proxy ADDR, an address that belongs to no machine and whose \
         traffic the mirrors' routes lead here"
    )]
    NoProxy,
    /// A proxy address can't be one.
    #[error(transparent)]
    Proxy(#[from] Refusal),
    /// A proxy address is given twice.
    #[error("proxy address {0} is given twice")]
    ProxyTwice(IpAddr),
    /// No workers, or too many.
    #[error("the number of workers must be from 1 to 256, not {0}")]
    Workers(u16),
    /// Some workers would have no proxy port.
    #[error(
        "{workers} workers need at least {workers} proxy ports to share, but {}-{} are only {}: \
         use --workers {} or a wider --proxy-ports",
        ports.start(), ports.end(), ports.len(), ports.len()
    )]
    TooFewPorts {
        /// The number of workers.
        workers: u16,
        /// The ports.
        ports: RangeInclusive<u16>,
    },
    /// A table or MTU that can't be.
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
    /// The client prefix has bits set behind its length.
    #[error("{given} has host bits set; did you mean {meant}?")]
    HostBits {
        /// What was given.
        given: IpNet,
        /// The prefix that it lies in.
        meant: IpNet,
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
            proxy: or_list(self.proxy, other.proxy),
            proxy_ports: self.proxy_ports.or(other.proxy_ports),
            client: or_list(self.client, other.client),
            egress: self.egress.or(other.egress),
            workers: self.workers.or(other.workers),
            max_connections: self.max_connections.or(other.max_connections),
            max_connections_per_client: self
                .max_connections_per_client
                .or(other.max_connections_per_client),
            client_prefix_v4: self.client_prefix_v4.or(other.client_prefix_v4),
            client_prefix_v6: self.client_prefix_v6.or(other.client_prefix_v6),
            tcp_established_timeout: self
                .tcp_established_timeout
                .or(other.tcp_established_timeout),
            tcp_transitory_timeout: self.tcp_transitory_timeout.or(other.tcp_transitory_timeout),
            udp_timeout: self.udp_timeout.or(other.udp_timeout),
            echo_timeout: self.echo_timeout.or(other.echo_timeout),
            refused_retries: self.refused_retries.or(other.refused_retries),
            mss_clamp: self.mss_clamp.or(other.mss_clamp),
            socket: self.socket.or(other.socket),
            tun: self.tun.or(other.tun),
            mtu: self.mtu.or(other.mtu),
            table: self.table.or(other.table),
            rule_priority: self.rule_priority.or(other.rule_priority),
            filter_preference: self.filter_preference.or(other.filter_preference),
            mark: self.mark.or(other.mark),
            no_offload: self.no_offload || other.no_offload,
            no_uso: self.no_uso || other.no_uso,
            no_coalesce: self.no_coalesce || other.no_coalesce,
            no_steering: self.no_steering || other.no_steering,
            busy_poll: self.busy_poll.or(other.busy_poll),
            no_routes: self.no_routes || other.no_routes,
            enable_forwarding: self.enable_forwarding || other.enable_forwarding,
        }
    }

    /// Fills the gaps with defaults and checks that the whole makes sense.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn settle(self) -> Result<Settings, ConfigError> {
        if self.proxy.is_empty() {
            return Err(ConfigError::NoProxy);
        }
        check_proxies(&self.proxy)?;
        for (number, proxy) in self.proxy.iter().enumerate() {
            if self.proxy[..number].contains(proxy) {
                return Err(ConfigError::ProxyTwice(*proxy));
            }
        }
        for client in &self.client {
            if client.trunc() != *client {
                return Err(ConfigError::HostBits {
                    given: *client,
                    meant: client.trunc(),
                });
            }
        }
        let proxy_ports = self.proxy_ports.map_or(1024..=65535, |range| range.0);
        let workers = self.workers.unwrap_or_else(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            // One a core, as far as there are ports for them.
            cores.min(proxy_ports.len()).clamp(1, 256) as u16
        });
        if !(1..=256).contains(&workers) {
            return Err(ConfigError::Workers(workers));
        }
        if proxy_ports.len() < usize::from(workers) {
            return Err(ConfigError::TooFewPorts {
                workers,
                ports: proxy_ports,
            });
        }
        let max_connections = self.max_connections.unwrap_or_else(connections_by_memory);
        within("max-connections", max_connections as u64, 1, 1 << 30)?;
        let per_client = self.max_connections_per_client;
        within(
            "max-connections-per-client",
            per_client.unwrap_or(1).into(),
            1,
            1 << 30,
        )?;
        let mtu = self.mtu.unwrap_or(1500);
        // IPv6 needs 1280 (RFC 8200, section 5); a TUN takes no more than 65,535.
        within("mtu", mtu.into(), 1280, 65_535)?;
        let table = self.table.unwrap_or(3353);
        // 253 to 255 are the kernel's own tables, and --client needs one more.
        within("table", table.into(), 256, u64::from(u32::MAX) - 1)?;
        let rule_priority = self.rule_priority.unwrap_or(3353);
        // The local table comes first at 0, the main one at 32,766.
        within("rule-priority", rule_priority.into(), 1, 32_700)?;
        let filter_preference = self.filter_preference.unwrap_or(3353);
        // Preferences have 16 bits, and 4096 of them are needed.
        within("filter-preference", filter_preference.into(), 1, 61_440)?;
        let mark = self.mark.unwrap_or(3353);
        within("mark", mark.into(), 1, u64::from(u32::MAX))?;
        let usual_groups = ClientGroups::default();
        let client_groups = ClientGroups {
            v4: self.client_prefix_v4.unwrap_or(usual_groups.v4),
            v6: self.client_prefix_v6.unwrap_or(usual_groups.v6),
        };
        within("client-prefix-v4", client_groups.v4.into(), 0, 32)?;
        within("client-prefix-v6", client_groups.v6.into(), 0, 128)?;
        let refused_retries = self.refused_retries.unwrap_or(USUAL_REFUSED_RETRIES);
        within("refused-retries", refused_retries.into(), 0, 16)?;
        let usual = Timeouts::default();
        let timeout = |given: Option<Timeout>, usual| given.map_or(usual, |timeout| timeout.0);
        Ok(Settings {
            proxies: self.proxy,
            proxy_ports,
            clients: self.client,
            egress: self.egress.unwrap_or(EgressKind::Tun),
            workers,
            max_connections,
            max_connections_per_client: per_client,
            client_groups,
            timeouts: Timeouts {
                tcp_established: timeout(self.tcp_established_timeout, usual.tcp_established),
                tcp_transitory: timeout(self.tcp_transitory_timeout, usual.tcp_transitory),
                udp: timeout(self.udp_timeout, usual.udp),
                echo: timeout(self.echo_timeout, usual.echo),
            },
            refused_retries,
            mss_clamp: match self.mss_clamp.unwrap_or(MssClamp::Auto) {
                MssClamp::Auto => u16::try_from(mtu).ok(),
                MssClamp::To(size) => Some(size),
                MssClamp::Off => None,
            },
            socket: self
                .socket
                .unwrap_or_else(|| PathBuf::from(control_protocol::DEFAULT_SOCKET)),
            tun: self.tun.unwrap_or_else(|| "shunt0".to_owned()),
            mtu,
            table,
            rule_priority,
            filter_preference,
            mark,
            offload: !self.no_offload,
            uso: !self.no_offload && !self.no_uso,
            coalesce: !self.no_coalesce,
            steering: !self.no_steering,
            busy_poll: self
                .busy_poll
                .map_or(USUAL_BUSY_POLL, |busy_poll| busy_poll.0),
            routes: !self.no_routes,
            enable_forwarding: self.enable_forwarding,
        })
    }
}

/// As many connections as an eighth of the machine's memory holds, within reason.
fn connections_by_memory() -> usize {
    const BYTES_A_CONNECTION: u64 = 512;
    let memory = sysinfo().map_or(0, |info| info.ram_total());
    (memory / 8 / BYTES_A_CONNECTION).clamp(1 << 16, 1 << 22) as usize
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

    fn minimal() -> Options {
        Options {
            proxy: vec!["10.10.10.10".parse().unwrap()],
            ..Options::default()
        }
    }

    #[test]
    fn the_file_has_a_place_for_every_flag() {
        let options = from_toml(
            r#"
            proxy = ["10.10.10.10", "fd00:10::10"]
            proxy-ports = "2000-3000"
            client = ["10.1.0.0/24"]
            egress = "raw"
            workers = 1
            max-connections = 1000
            max-connections-per-client = 10
            client-prefix-v4 = 16
            client-prefix-v6 = 56
            tcp-established-timeout = "1h"
            tcp-transitory-timeout = "90s"
            udp-timeout = "30s"
            echo-timeout = "5s"
            refused-retries = 5
            mss-clamp = "1400"
            socket = "/tmp/s"
            tun = "shunt7"
            mtu = 9000
            table = 300
            rule-priority = 300
            filter-preference = 300
            mark = 7
            no-offload = true
            no-uso = true
            no-coalesce = true
            no-steering = true
            busy-poll = "20us"
            no-routes = true
            enable-forwarding = true
            "#,
        )
        .unwrap();
        let settings = options.settle().unwrap();
        assert_eq!(settings.proxies.len(), 2);
        assert_eq!(settings.proxy_ports, 2000..=3000);
        assert_eq!(settings.egress, EgressKind::Raw);
        assert_eq!(
            (settings.table, settings.rule_priority, settings.mark),
            (300, 300, 7)
        );
        assert_eq!(settings.filter_preference, 300);
        assert_eq!(
            (
                settings.max_connections,
                settings.max_connections_per_client
            ),
            (1000, Some(10))
        );
        assert_eq!(settings.client_groups, ClientGroups { v4: 16, v6: 56 });
        assert_eq!(settings.timeouts.tcp_established, Duration::from_secs(3600));
        assert_eq!(settings.timeouts.tcp_transitory, Duration::from_secs(90));
        assert_eq!(settings.timeouts.udp, Duration::from_secs(30));
        assert_eq!(settings.timeouts.echo, Duration::from_secs(5));
        assert_eq!(settings.refused_retries, 5);
        assert_eq!(settings.mss_clamp, Some(1400));
        assert!(!settings.offload && !settings.uso && !settings.routes);
        assert!(!settings.coalesce && !settings.steering);
        assert_eq!(settings.busy_poll, Duration::from_micros(20));
        // As many keys as the command line has flags, so none has been forgotten above.
        let command = Options::augment_args(clap::Command::new("shuntd"));
        assert_eq!(command.get_arguments().count(), 29);
    }

    #[test]
    fn a_number_needs_no_quotes() {
        let options = from_toml("mss-clamp = 1400\nproxy-ports = 513").unwrap();
        assert_eq!(options.mss_clamp, Some(MssClamp::To(1400)));
        assert_eq!(options.proxy_ports, Some(PortRange(513..=513)));
        assert!(from_toml("mss-clamp = -1").is_err());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = from_toml("proxy = [\"10.10.10.10\"]\nprxoy-ports = \"1-2\"\n").unwrap_err();
        assert!(
            error.contains("line 2") && error.contains("prxoy-ports"),
            "{error}"
        );
    }

    #[test]
    fn a_flag_comes_before_the_file() {
        let flags = Options {
            mtu: Some(1400),
            ..Options::default()
        };
        let file = Options {
            mtu: Some(9000),
            workers: Some(3),
            ..minimal()
        };
        let settings = flags.or(file).settle().unwrap();
        assert_eq!((settings.mtu, settings.workers), (1400, 3));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let error = |options: Options| options.settle().unwrap_err().to_string();
        assert!(error(Options::default()).contains("--proxy ADDR"));
        assert_eq!(
            error(Options {
                workers: Some(2),
                proxy_ports: Some("513".parse().unwrap()),
                ..minimal()
            }),
            "2 workers need at least 2 proxy ports to share, but 513-513 are only 1: \
             use --workers 1 or a wider --proxy-ports"
        );
        assert!(
            error(Options {
                workers: Some(0),
                ..minimal()
            })
            .contains("not 0")
        );
        assert!(
            error(Options {
                mtu: Some(500),
                ..minimal()
            })
            .contains("1280")
        );
        assert!(
            error(Options {
                table: Some(254),
                ..minimal()
            })
            .contains("table")
        );
        assert_eq!(
            error(Options {
                filter_preference: Some(61_441),
                ..minimal()
            }),
            "filter-preference must be from 1 to 61440, not 61441"
        );
        let client = vec!["10.1.0.5/24".parse().unwrap()];
        assert!(
            error(Options {
                client,
                ..minimal()
            })
            .contains("did you mean 10.1.0.0/24?")
        );
        let twice = vec!["10.10.10.10".parse().unwrap(); 2];
        assert!(
            error(Options {
                proxy: twice,
                ..minimal()
            })
            .contains("twice")
        );
    }

    #[test]
    fn ranges_of_ports() {
        assert_eq!("513-513".parse(), Ok(PortRange(513..=513)));
        assert_eq!("513".parse(), Ok(PortRange(513..=513)));
        for wrong in ["", "0-5", "5-4", "a-b", "1-65536", "1-2-3"] {
            assert_eq!(wrong.parse::<PortRange>(), Err(PortRangeError), "{wrong}");
        }
    }

    #[test]
    fn times_and_segment_sizes() {
        assert_eq!("2h4m".parse(), Ok(Timeout(Duration::from_secs(7440))));
        for wrong in ["", "5", "0s", "10ms", "-1s", "soon"] {
            assert_eq!(wrong.parse::<Timeout>(), Err(TimeoutError), "{wrong}");
        }
        assert_eq!("off".parse(), Ok(BusyPoll(Duration::ZERO)));
        assert_eq!("50us".parse(), Ok(BusyPoll(Duration::from_micros(50))));
        for wrong in ["", "50", "2s", "-1us", "on"] {
            assert_eq!(wrong.parse::<BusyPoll>(), Err(BusyPollError), "{wrong}");
        }
        assert_eq!("576".parse(), Ok(MssClamp::To(576)));
        for wrong in ["", "575", "65536", "on"] {
            assert_eq!(wrong.parse::<MssClamp>(), Err(MssClampError), "{wrong}");
        }
        assert_eq!(
            minimal().settle().unwrap().mss_clamp,
            Some(1500),
            "auto is the MTU"
        );
        let off = Options {
            mss_clamp: Some(MssClamp::Off),
            ..minimal()
        };
        assert_eq!(off.settle().unwrap().mss_clamp, None);
    }

    #[test]
    fn one_port_means_one_worker_by_default() {
        let one = Options {
            proxy_ports: Some("513".parse().unwrap()),
            ..minimal()
        };
        assert_eq!(one.settle().unwrap().workers, 1);
    }
}
