//! What the operator says: the file `monitor.toml`, read and made sure of.
//!
//! Names in it (of mirrors, in services and rules) are indices from here on, and everything that can be found wrong
//! before the first packet is found wrong here, with the name of the thing that is wrong.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use control_protocol::{
    ClientPrefix, DEFAULT_MONITOR_SOCKET, DEFAULT_NAMING_SOCKET, DEFAULT_SOCKET, DomainName,
    MAX_TTL, MirrorAddress, Protocol, Service,
};
use serde::Deserialize;
use thiserror::Error;

use crate::brain::Settings;
use crate::check::{CheckConfig, CheckError, Kind, Tcp};
use crate::rules::suggestion::Suggestion;
use crate::rules::{
    Locations, LocationsError, Maintenance, MaintenanceConfig, MaintenanceError, RuleConfig,
    RuleError, Rules,
};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// The shortest of all intervals.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest.
const LONGEST: Duration = Duration::from_hours(24);

/// The file, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default = "usual_socket")]
    socket: PathBuf,
    metrics: Option<SocketAddr>,
    #[serde(default = "usual_interval", with = "humantime_serde")]
    interval: Duration,
    #[serde(default = "usual_improvement")]
    improvement: f64,
    #[serde(default = "usual_settle", with = "humantime_serde")]
    settle: Duration,
    #[serde(default = "one")]
    min_mirrors: usize,
    #[serde(default = "usual_settle", with = "humantime_serde")]
    slow_start: Duration,
    #[serde(default = "usual_overload")]
    overload: f64,
    locations: Option<PathBuf>,
    #[serde(default)]
    liveness: Liveness,
    #[serde(default)]
    rewriter: Vec<Rewriter>,
    #[serde(default)]
    naming: Vec<NamingServer>,
    #[serde(default)]
    mirror: Vec<MirrorFile>,
    #[serde(default)]
    service: Vec<ServiceFile>,
}

fn usual_socket() -> PathBuf {
    DEFAULT_MONITOR_SOCKET.into()
}

fn usual_interval() -> Duration {
    Duration::from_secs(5)
}

fn usual_improvement() -> f64 {
    10.0
}

fn usual_settle() -> Duration {
    Duration::from_secs(30)
}

fn usual_overload() -> f64 {
    90.0
}

fn one() -> usize {
    1
}

/// How the rewriters' own signs of a dead mirror are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Liveness {
    /// Whether at all.
    pub enabled: bool,
    /// How often.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// After how much silence a mirror is suspected, when something was sent to it.
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
    /// How long each check of a suspected mirror may take.
    #[serde(with = "humantime_serde")]
    pub confirm: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Duration::from_millis(50),
            silence: Duration::from_millis(100),
            confirm: Duration::from_millis(50),
        }
    }
}

/// A rewriter that is instructed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewriter {
    /// What people call it.
    pub name: String,
    /// Its control socket.
    #[serde(default = "rewriter_socket")]
    pub socket: PathBuf,
}

fn rewriter_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

/// A naming server that is kept up to date.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamingServer {
    /// What people call it.
    pub name: String,
    /// Its control socket.
    #[serde(default = "naming_socket")]
    pub socket: PathBuf,
}

fn naming_socket() -> PathBuf {
    DEFAULT_NAMING_SOCKET.into()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorFile {
    name: String,
    address: MirrorAddress,
    capacity: Option<f64>,
    #[serde(default)]
    maintenance: Vec<MaintenanceConfig>,
    #[serde(default)]
    check: Vec<CheckConfig>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceFile {
    address: Service,
    mirrors: Vec<String>,
    #[serde(default)]
    names: Vec<DomainName>,
    #[serde(default = "usual_ttl", with = "humantime_serde")]
    ttl: Duration,
    #[serde(default)]
    rule: Vec<RuleConfig>,
}

/// As long as a client may go on by what a name was.
fn usual_ttl() -> Duration {
    Duration::from_secs(5)
}

/// What the operator wants.
#[derive(Debug)]
pub struct Config {
    /// The monitor's own control socket.
    pub socket: PathBuf,
    /// Where metrics are served; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How often it decides.
    pub interval: Duration,
    /// How eager it is.
    pub settings: Settings,
    /// How the rewriters' signs are looked at; none: not at all.
    pub liveness: Option<Liveness>,
    /// Whom it instructs.
    pub rewriters: Vec<Rewriter>,
    /// The naming servers that it keeps up to date.
    pub naming: Vec<NamingServer>,
    /// The mirrors.
    pub mirrors: Vec<MirrorConfig>,
    /// The services.
    pub services: Vec<ServiceConfig>,
    /// What looks like a mistake and may be none, a sentence each.
    pub warnings: Vec<String>,
}

/// A mirror that is watched.
#[derive(Debug)]
pub struct MirrorConfig {
    /// What people call it.
    pub name: String,
    /// Where it is; without a port, it has each service's.
    pub address: MirrorAddress,
    /// The port that checks without one of their own go to; 0: there is none.
    pub check_port: u16,
    /// The most requests a second, as far as the operator knows.
    pub capacity: Option<f64>,
    /// When it isn't to be used.
    pub maintenance: Maintenance,
    /// How it is watched.
    pub checks: Vec<CheckConfig>,
}

/// A service that is looked after.
#[derive(Debug)]
pub struct ServiceConfig {
    /// What clients talk to.
    pub address: Service,
    /// Its mirrors, by index.
    pub mirrors: Vec<usize>,
    /// The names that have its mirrors' addresses.
    pub names: Vec<DomainName>,
    /// For how many seconds clients may remember them.
    pub ttl: u32,
    /// What bounds the optimiser.
    pub rules: Rules,
}

impl ServiceConfig {
    /// The prefixes of a group of clients, in the service's family; none: everybody else.
    pub fn prefixes(&self, group: usize) -> Vec<Option<ClientPrefix>> {
        let Some(group) = self.rules.groups().get(group) else {
            return Vec::new();
        };
        if group.prefixes.is_empty() {
            return vec![None];
        }
        let is_of_family = |prefix: &&ClientPrefix| {
            prefix.network().addr().is_ipv4() == self.address.address.is_ipv4()
        };
        let prefixes = group.prefixes.iter().filter(is_of_family);
        prefixes.map(|prefix| Some(*prefix)).collect()
    }
}

/// Why a configuration can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than any configuration is.
    #[error("{} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// It isn't TOML, or has other fields or values than there are.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// A number that is out of bounds.
    #[error("`{field}` is {seen}; it must be {bounds}")]
    OutOfBounds {
        /// Which field.
        field: &'static str,
        /// What was given.
        seen: String,
        /// What may be.
        bounds: &'static str,
    },
    /// Without any of these there is nothing to do.
    #[error("there is no [[{what}]]")]
    Missing {
        /// The table that is missing.
        what: &'static str,
    },
    /// Two things have one name, or one address.
    #[error("there are two [[{what}]] named \"{name}\"")]
    Twice {
        /// What there are two of.
        what: &'static str,
        /// What both are called.
        name: String,
    },
    /// A name is empty.
    #[error("a [[{what}]] has an empty name")]
    NoName {
        /// What has no name.
        what: &'static str,
    },
    /// A service has no mirrors.
    #[error("service {service}: `mirrors` is empty")]
    NoMirrors {
        /// Which service.
        service: Service,
    },
    /// A service names a mirror that isn't there.
    #[error("service {service}: there is no [[mirror]] named \"{mirror}\"{suggestion}")]
    UnknownMirror {
        /// Which service.
        service: Service,
        /// The mirror that it names.
        mirror: String,
        /// One that it may mean.
        suggestion: Suggestion,
    },
    /// IPv4 and IPv6 can't be mixed.
    #[error("service {service}: mirror \"{mirror}\" is of the other IP version")]
    OtherFamily {
        /// Which service.
        service: Service,
        /// Which mirror.
        mirror: String,
    },
    /// A mirror's checks can't be made.
    #[error("mirror \"{mirror}\", check {check}")]
    Check {
        /// Which mirror.
        mirror: String,
        /// Which check, from 1.
        check: usize,
        /// What is wrong with it.
        source: CheckError,
    },
    /// A mirror's maintenance makes no sense.
    #[error("mirror \"{mirror}\"")]
    Maintenance {
        /// Which mirror.
        mirror: String,
        /// What is wrong with it.
        source: MaintenanceError,
    },
    /// A service's rules make no sense.
    #[error("service {service}")]
    Rule {
        /// Which service.
        service: Service,
        /// What is wrong.
        source: RuleError,
    },
    /// The table of places can't be used.
    #[error("`locations`")]
    Locations(#[from] LocationsError),
}

impl Config {
    /// Reads a file. Other files that it names are looked for from its folder on.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
            });
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder)
    }

    /// Reads a configuration's text; files that it names are looked for from `folder` on.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)?;
        let settings = settings(&file)?;
        let liveness = liveness(&file.liveness)?;
        if file.rewriter.is_empty() {
            return Err(ConfigError::Missing { what: "rewriter" });
        }
        if file.service.is_empty() {
            return Err(ConfigError::Missing { what: "service" });
        }
        unique(
            "rewriter",
            file.rewriter.iter().map(|rewriter| &rewriter.name),
        )?;
        unique("naming", file.naming.iter().map(|server| &server.name))?;
        let names = file.service.iter().flat_map(|service| &service.names);
        let names: Vec<String> = names.map(ToString::to_string).collect();
        unique("service.names", &names)?;
        if !names.is_empty() && file.naming.is_empty() {
            return Err(ConfigError::Missing { what: "naming" });
        }
        unique("mirror", file.mirror.iter().map(|mirror| &mirror.name))?;
        let addresses: Vec<String> = file
            .service
            .iter()
            .map(|service| service.address.to_string())
            .collect();
        unique("service", &addresses)?;

        let by_name: HashMap<&str, usize> = file
            .mirror
            .iter()
            .enumerate()
            .map(|(number, mirror)| (mirror.name.as_str(), number))
            .collect();
        let locations = locations(&file, folder)?;
        let services = file
            .service
            .iter()
            .map(|service| read_service(service, &file.mirror, &by_name, locations.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let mirrors = file
            .mirror
            .iter()
            .enumerate()
            .map(|(number, mirror)| read_mirror(mirror, number, &services))
            .collect::<Result<Vec<_>, _>>()?;
        let warnings = warnings(&mirrors, &services);
        Ok(Self {
            socket: file.socket,
            metrics: file.metrics,
            interval: file.interval,
            settings,
            liveness,
            rewriters: file.rewriter,
            naming: file.naming,
            mirrors,
            services,
            warnings,
        })
    }
}

fn settings(file: &File) -> Result<Settings, ConfigError> {
    within("interval", file.interval)?;
    within("settle", file.settle)?;
    within("slow-start", file.slow_start)?;
    let percent = |field, value: f64, most: f64| {
        if value.is_finite() && value >= 0.0 && value <= most {
            return Ok(value / 100.0);
        }
        Err(ConfigError::OutOfBounds {
            field,
            seen: value.to_string(),
            bounds: "a percentage from 0 to 100",
        })
    };
    if file.min_mirrors == 0 {
        return Err(ConfigError::OutOfBounds {
            field: "min-mirrors",
            seen: "0".to_owned(),
            bounds: "at least 1",
        });
    }
    Ok(Settings {
        improvement: percent("improvement", file.improvement, 100.0)?,
        settle: file.settle,
        min_mirrors: file.min_mirrors,
        slow_start: file.slow_start,
        overload: percent("overload", file.overload, 100.0)?,
    })
}

fn liveness(liveness: &Liveness) -> Result<Option<Liveness>, ConfigError> {
    within("liveness.interval", liveness.interval)?;
    within("liveness.silence", liveness.silence)?;
    within("liveness.confirm", liveness.confirm)?;
    Ok(liveness.enabled.then_some(*liveness))
}

fn within(field: &'static str, time: Duration) -> Result<(), ConfigError> {
    if (SHORTEST..=LONGEST).contains(&time) {
        return Ok(());
    }
    Err(ConfigError::OutOfBounds {
        field,
        seen: humantime::format_duration(time).to_string(),
        bounds: "from 10ms to 24h",
    })
}

fn unique<'a>(
    what: &'static str,
    names: impl IntoIterator<Item = &'a String>,
) -> Result<(), ConfigError> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if name.trim().is_empty() {
            return Err(ConfigError::NoName { what });
        }
        if !seen.insert(name) {
            return Err(ConfigError::Twice {
                what,
                name: name.clone(),
            });
        }
    }
    Ok(())
}

fn locations(file: &File, folder: &Path) -> Result<Option<Locations>, ConfigError> {
    let Some(path) = &file.locations else {
        return Ok(None);
    };
    let rules = file.service.iter().flat_map(|service| &service.rule);
    let wanted = rules.flat_map(|rule| &rule.location).map(String::as_str);
    Ok(Some(Locations::read(&folder.join(path), wanted)?))
}

fn read_service(
    service: &ServiceFile,
    files: &[MirrorFile],
    by_name: &HashMap<&str, usize>,
    locations: Option<&Locations>,
) -> Result<ServiceConfig, ConfigError> {
    let address = service.address;
    if service.mirrors.is_empty() {
        return Err(ConfigError::NoMirrors { service: address });
    }
    let mut mirrors = Vec::new();
    for name in &service.mirrors {
        let Some(number) = by_name.get(name.as_str()).copied() else {
            return Err(ConfigError::UnknownMirror {
                service: address,
                mirror: name.clone(),
                suggestion: Suggestion::closest(name, by_name.keys().copied()),
            });
        };
        if mirrors.contains(&number) {
            return Err(ConfigError::Twice {
                what: "service.mirrors",
                name: name.clone(),
            });
        }
        if files[number].address.address.is_ipv4() != address.address.is_ipv4() {
            return Err(ConfigError::OtherFamily {
                service: address,
                mirror: name.clone(),
            });
        }
        mirrors.push(number);
    }
    let rules = Rules::compile(&service.rule, &service.mirrors, locations).map_err(|source| {
        ConfigError::Rule {
            service: address,
            source,
        }
    })?;
    if service.ttl > Duration::from_secs(MAX_TTL.into()) {
        return Err(ConfigError::OutOfBounds {
            field: "ttl",
            seen: humantime::format_duration(service.ttl).to_string(),
            bounds: "at most 7 days",
        });
    }
    Ok(ServiceConfig {
        address,
        mirrors,
        names: service.names.clone(),
        ttl: u32::try_from(service.ttl.as_secs()).unwrap_or(MAX_TTL),
        rules,
    })
}

fn read_mirror(
    mirror: &MirrorFile,
    number: usize,
    services: &[ServiceConfig],
) -> Result<MirrorConfig, ConfigError> {
    let name = &mirror.name;
    if let Some(capacity) = mirror.capacity
        && !(capacity.is_finite() && capacity > 0.0)
    {
        return Err(ConfigError::OutOfBounds {
            field: "capacity",
            seen: capacity.to_string(),
            bounds: "a number of requests a second above 0",
        });
    }
    for (check, config) in mirror.check.iter().enumerate() {
        config.validate().map_err(|source| ConfigError::Check {
            mirror: name.clone(),
            check: check + 1,
            source,
        })?;
    }
    let maintenance =
        Maintenance::compile(&mirror.maintenance).map_err(|source| ConfigError::Maintenance {
            mirror: name.clone(),
            source,
        })?;
    let of = || {
        services
            .iter()
            .filter(|service| service.mirrors.contains(&number))
    };
    let check_port = mirror
        .address
        .port
        .or_else(|| of().find_map(|service| service.address.port));
    let mut checks = mirror.check.clone();
    // Whoever says nothing of checks will be glad of one; a port that nobody has can't be asked.
    let is_tcp = of().any(|service| service.address.protocol.is_none_or(|p| p == Protocol::Tcp));
    if checks.is_empty() && check_port.is_some() && is_tcp {
        checks.push(CheckConfig::new(Kind::Tcp(Tcp {})));
    }
    Ok(MirrorConfig {
        name: name.clone(),
        address: mirror.address,
        check_port: check_port.unwrap_or(0),
        capacity: mirror.capacity,
        maintenance,
        checks,
    })
}

/// What is odd, but may be meant.
fn warnings(mirrors: &[MirrorConfig], services: &[ServiceConfig]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (number, mirror) in mirrors.iter().enumerate() {
        let name = &mirror.name;
        if !services
            .iter()
            .any(|service| service.mirrors.contains(&number))
        {
            warnings.push(format!("mirror \"{name}\" is a mirror of no service"));
        } else if mirror.checks.is_empty() {
            warnings.push(format!(
                "mirror \"{name}\" has no check, so it always counts as up"
            ));
        }
    }
    for service in services {
        for (number, group) in service.rules.groups().iter().enumerate() {
            if service.prefixes(number).is_empty() {
                warnings.push(format!(
                    "service {}: no client of {} has its IP version",
                    service.address, group.name
                ));
            }
        }
        if let [only] = service.mirrors.as_slice() {
            warnings.push(format!(
                "service {} has one mirror only, {}: there is nothing to decide",
                service.address, mirrors[*only].name
            ));
        }
    }
    warnings
}

impl MirrorConfig {
    /// Where its checks go.
    pub fn check_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.check_port)
    }

    /// Its IP address.
    pub fn ip(&self) -> IpAddr {
        self.address.address
    }
}
