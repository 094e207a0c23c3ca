//! What an operator says of a check: its kind, what is particular to the kind, and how often.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use thiserror::Error;
use toml::{Table, Value};

use super::{Agent, Command, Dns, Http, Icmp, Prometheus, Tcp, Udp};

/// The shortest interval and timeout.
const SHORTEST: Duration = Duration::from_millis(10);

/// The longest interval: a check that is rarer is likely a typing error.
const LONGEST: Duration = Duration::from_hours(24);

/// The usual interval.
const USUAL_INTERVAL: Duration = Duration::from_secs(2);

/// The usual timeout, unless the interval is shorter.
const USUAL_TIMEOUT: Duration = Duration::from_secs(1);

/// One check of a mirror. Deserializing it checks it.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckConfig {
    /// What is asked.
    pub kind: Kind,
    /// From one asking to the next, give or take 10 %.
    pub interval: Duration,
    /// How long the mirror has to answer.
    pub timeout: Duration,
    /// How many good findings in a row make a mirror that was down up again.
    pub rise: u32,
    /// How many bad findings in a row make a mirror that was up down.
    pub fall: u32,
    /// The port to ask instead of the mirror's own.
    pub port: Option<u16>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// Whether it accepts a TCP connection.
    Tcp(Tcp),
    /// Whether it answers an HTTP(S) request as it should.
    Http(Http),
    /// Whether it answers a DNS query as it should.
    Dns(Dns),
    /// Whether it answers a datagram.
    Udp(Udp),
    /// Whether it answers an ICMP echo request.
    Icmp(Icmp),
    /// What an agent on the mirror says of it.
    Agent(Agent),
    /// What a metric on the mirror says of its load.
    Prometheus(Prometheus),
    /// What a command on this host says of it.
    Command(Command),
}

/// The words by which the configuration names the kinds.
const KINDS: [&str; 8] = [
    "tcp",
    "http",
    "dns",
    "udp",
    "icmp",
    "agent",
    "prometheus",
    "command",
];

impl Kind {
    /// The kind with this name, with what `own` says of it. Errors name the field.
    fn read<E: serde::de::Error>(name: &str, own: Table) -> Result<Self, E> {
        match name {
            "tcp" => read(own).map(Self::Tcp),
            "http" => read(own).map(Self::Http),
            "dns" => read(own).map(Self::Dns),
            "udp" => read(own).map(Self::Udp),
            "icmp" => read(own).map(Self::Icmp),
            "agent" => read(own).map(Self::Agent),
            "prometheus" => read(own).map(Self::Prometheus),
            "command" => read(own).map(Self::Command),
            other => Err(E::unknown_variant(other, &KINDS)),
        }
    }

    /// The word by which the configuration names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Http(_) => "http",
            Self::Dns(_) => "dns",
            Self::Udp(_) => "udp",
            Self::Icmp(_) => "icmp",
            Self::Agent(_) => "agent",
            Self::Prometheus(_) => "prometheus",
            Self::Command(_) => "command",
        }
    }

    /// Whether the check can only be made at a port.
    pub fn needs_port(&self) -> bool {
        !matches!(self, Self::Icmp(_) | Self::Command(_))
    }
}

/// Why a check makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The interval is out of bounds.
    #[error("`interval` is {}; it must be from 10ms to 24h", humantime::format_duration(*.seen))]
    Interval {
        /// What was given.
        seen: Duration,
    },
    /// The timeout is too short, or longer than the interval.
    #[error(
        "`timeout` is {}; it must be from 10ms to the interval, which is {}",
        humantime::format_duration(*.seen),
        humantime::format_duration(*.interval)
    )]
    Timeout {
        /// What was given.
        seen: Duration,
        /// The interval.
        interval: Duration,
    },
    /// Zero good findings are to make a mirror up.
    #[error("`rise` is 0; it must be at least 1")]
    Rise,
    /// Zero bad findings are to make a mirror down.
    #[error("`fall` is 0; it must be at least 1")]
    Fall,
    /// Port 0.
    #[error("`port` is 0; it must be from 1 to 65535")]
    Port,
    /// A port for a check that goes to none.
    #[error("`port` is given, but an {kind} check goes to no port")]
    UselessPort {
        /// The kind of check.
        kind: &'static str,
    },
    /// Two fields that exclude each other.
    #[error("`{one}` and `{other}` exclude each other")]
    Exclusive {
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A field that does nothing without another.
    #[error("`{field}` does nothing without `{needs}`")]
    Needs {
        /// The field that was given.
        field: &'static str,
        /// The one that is missing.
        needs: &'static str,
    },
    /// A field with a value that can't be used.
    #[error("`{field}`: {why}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it should be.
        why: &'static str,
    },
}

impl CheckConfig {
    /// A check of `kind` with what is usual otherwise.
    pub fn new(kind: Kind) -> Self {
        Self::with(kind, Common::default())
    }

    fn with(kind: Kind, common: Common) -> Self {
        // An agent's word counts at once, as it does in HAProxy: it has seen more than we have.
        let (rise, fall) = match kind {
            Kind::Agent(_) => (1, 1),
            _ => (2, 3),
        };
        let interval = common.interval.unwrap_or(USUAL_INTERVAL);
        Self {
            kind,
            interval,
            timeout: common.timeout.unwrap_or(USUAL_TIMEOUT.min(interval)),
            rise: common.rise.unwrap_or(rise),
            fall: common.fall.unwrap_or(fall),
            port: common.port,
        }
    }

    /// Whether it makes sense; deserializing asks this too.
    ///
    /// # Errors
    /// The first field that doesn't.
    pub fn validate(&self) -> Result<(), CheckError> {
        if !(SHORTEST..=LONGEST).contains(&self.interval) {
            return Err(CheckError::Interval {
                seen: self.interval,
            });
        }
        if !(SHORTEST..=self.interval).contains(&self.timeout) {
            return Err(CheckError::Timeout {
                seen: self.timeout,
                interval: self.interval,
            });
        }
        if self.rise == 0 {
            return Err(CheckError::Rise);
        }
        if self.fall == 0 {
            return Err(CheckError::Fall);
        }
        if self.port == Some(0) {
            return Err(CheckError::Port);
        }
        match &self.kind {
            Kind::Tcp(_) => Ok(()),
            // A command may want the port in its environment.
            Kind::Command(command) => command.validate(),
            Kind::Icmp(_) if self.port.is_some() => Err(CheckError::UselessPort { kind: "icmp" }),
            Kind::Icmp(_) => Ok(()),
            Kind::Http(http) if http.max_latency.is_some_and(|most| most >= self.timeout) => {
                Err(CheckError::Value {
                    field: "max-latency",
                    why: "must be shorter than the timeout",
                })
            }
            Kind::Http(http) => http.validate(),
            Kind::Dns(dns) => dns.validate(),
            Kind::Udp(udp) => udp.validate(),
            Kind::Agent(agent) => agent.validate(),
            Kind::Prometheus(prometheus) => prometheus.validate(),
        }
    }
}

/// What any kind of check may be given.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    #[serde(default, with = "humantime_serde")]
    interval: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    timeout: Option<Duration>,
    rise: Option<u32>,
    fall: Option<u32>,
    port: Option<u16>,
}

/// The fields of [`Common`].
const COMMON: [&str; 5] = ["interval", "timeout", "rise", "fall", "port"];

// serde can't reject unknown fields of a struct that is flattened into another, so the fields are
// told apart here, and both structs then reject what they don't know.
impl<'de> Deserialize<'de> for CheckConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;

        let (common, mut own): (Table, Table) = Table::deserialize(deserializer)?
            .into_iter()
            .partition(|(field, _)| COMMON.contains(&field.as_str()));
        let common: Common = read(common)?;
        let kind = match own.remove("kind") {
            Some(Value::String(name)) => Kind::read(&name, own)?,
            Some(_) => return Err(D::Error::custom("`kind` must be a word in quotes")),
            None => return Err(D::Error::missing_field("kind")),
        };
        let config = Self::with(kind, common);
        config.validate().map_err(D::Error::custom)?;
        Ok(config)
    }
}

/// `table` as a `T`.
fn read<'de, T: Deserialize<'de>, E: serde::de::Error>(table: Table) -> Result<T, E> {
    Value::Table(table).try_into().map_err(|error| {
        // Its second line names the field.
        let message = error.to_string().trim().replace('\n', " ");
        E::custom(match message.contains("unknown field") {
            true => format!(
                "{message}; or one of any check's: `{}`",
                COMMON.join("`, `")
            ),
            false => message,
        })
    })
}
