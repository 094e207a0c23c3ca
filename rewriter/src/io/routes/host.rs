//! What the host is like: the facts that decide which [`Step`](super::Step)s are needed.
//!
//! Kernel parameters are read below `/proc/sys/net`, which shows the network namespace of the
//! thread that opens the file; links and addresses come over netlink.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn};

use super::netlink::{Kernel, Link};
use super::plan::DUMMY_ADDRESS;
use super::{Egress, Family, Interface, RoutesError, Settings};

const SYSCTL: &str = "/proc/sys";

/// The facts.
#[derive(Debug, Clone, Default)]
pub(super) struct Host {
    /// Whether the TUN can carry IPv6. IPv4 is always there.
    pub(super) ipv6: bool,
    /// The families whose packets the kernel forwards.
    pub(super) forwarding: BTreeSet<Family>,
    /// Whether an interface checks strictly that a packet's source is reached through itself.
    pub(super) strict_reverse_path: bool,
    /// The interfaces to put filters on; empty, unless egress is raw.
    pub(super) links: Vec<Interface>,
    /// The host's own addresses and broadcast addresses, without the TUN's.
    pub(super) addresses: BTreeSet<IpNet>,
}

impl Host {
    /// Asks the kernel.
    pub(super) async fn inspect(kernel: &Kernel, settings: &Settings) -> Result<Self, RoutesError> {
        let (links, addresses) = Self::links_and_addresses(kernel, settings).await?;
        let ipv6 = settings.mtu_allows(Family::V6) && ipv6_enabled(&settings.tun)?;
        if !ipv6 {
            log::debug!("no IPv6 on {}: only IPv4 routes are set up", settings.tun);
        }
        let forwarding = forwarding()?;
        let strict_reverse_path = strict_reverse_path(&settings.tun)?;
        Ok(Self {
            ipv6,
            forwarding,
            strict_reverse_path,
            links,
            addresses,
        })
    }

    /// The part that changes while the host runs.
    pub(super) async fn links_and_addresses(
        kernel: &Kernel,
        settings: &Settings,
    ) -> Result<(Vec<Interface>, BTreeSet<IpNet>), RoutesError> {
        let mut addresses = kernel.addresses().await?;
        addresses.remove(&IpNet::from(IpAddr::V4(DUMMY_ADDRESS)));
        if settings.egress == Egress::Tun {
            return Ok((Vec::new(), addresses));
        }
        let mut links = kernel.links().await?;
        links.retain(|link| receives(link) && link.interface.name != settings.tun);
        Ok((
            links.into_iter().map(|link| link.interface).collect(),
            addresses,
        ))
    }

    pub(super) fn has(&self, family: Family) -> bool {
        family == Family::V4 || self.ipv6
    }
}

/// Whether packets that other hosts send to this one can be met on the link's own hook.
///
/// Ports of a bridge and members of a bond are left out: packets on a bridge's port may be for any
/// host behind it, and all that concern this one are met again on the bridge or the bond itself.
fn receives(link: &Link) -> bool {
    !link.loopback && !link.enslaved
}

fn ipv6_enabled(tun: &str) -> Result<bool, RoutesError> {
    let of = |name: &str| read_number(&format!("net/ipv6/conf/{name}/disable_ipv6"));
    // Before the TUN exists, what it would be born with counts.
    let disabled = match of(tun)? {
        Some(value) => Some(value),
        None => of("default")?,
    };
    Ok(disabled == Some(0))
}

/// The families whose packets the kernel forwards.
pub(super) fn forwarding() -> Result<BTreeSet<Family>, RoutesError> {
    let mut families = BTreeSet::new();
    for family in Family::ALL {
        if read_number(family.forwarding_path())?.is_some_and(|value| value != 0) {
            families.insert(family);
        }
    }
    Ok(families)
}

/// An interface's own value counts, or that of `all` if it is greater: 0 off, 1 strict, 2 loose
/// (Documentation/networking/ip-sysctl.rst, `rp_filter`). `default` is for those yet to come.
///
/// Takes some microseconds for each interface.
pub(super) fn strict_reverse_path(tun: &str) -> Result<bool, RoutesError> {
    let directory = Path::new(SYSCTL).join("net/ipv4/conf");
    let failed = |error| RoutesError::Sysctl {
        path: directory.clone(),
        error,
    };
    let of = |name: &str| read_number(&format!("net/ipv4/conf/{name}/rp_filter"));
    let all = of("all")?.unwrap_or(0);
    if all > 1 {
        return Ok(false);
    }
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let name = entry
            .map_err(failed)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let counts = !["all", "lo", tun].contains(&name.as_str());
        if counts && of(&name)?.is_some_and(|own| own.max(all) == 1) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A kernel parameter's value; none, if the kernel hasn't the parameter.
fn read_number(path: &str) -> Result<Option<u32>, RoutesError> {
    let path = Path::new(SYSCTL).join(path);
    match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| RoutesError::Sysctl {
                path,
                error: io::Error::new(io::ErrorKind::InvalidData, "not a number"),
            }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RoutesError::Sysctl { path, error }),
    }
}

/// Sets a kernel parameter, unless it has the value already: in a container `/proc/sys` may be
/// read-only, and the parameters set from outside. Gives whether it had another value.
pub(super) fn write_number(path: &str, value: u8) -> Result<bool, RoutesError> {
    if read_number(path)? == Some(value.into()) {
        return Ok(false);
    }
    let path: PathBuf = Path::new(SYSCTL).join(path);
    match fs::write(&path, value.to_string()) {
        Ok(()) => Ok(true),
        Err(error) => Err(RoutesError::Sysctl { path, error }),
    }
}

/// The source that local processes' packets to an IPv4 address have, as the normal tables say; none
/// if there is no way to it, or if the address is IPv6's.
///
/// The rules about local processes name the protocols that they bring to the TUN. A raw socket of
/// another protocol isn't meant by them, so it shows what a socket would do without Shunt. It only
/// connects, which sends nothing.
pub(super) fn source_to(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    let (family, kind) = (AddressFamily::Inet, SockType::Raw);
    let probe = || {
        let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        socket::connect(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(address, 0)),
        )?;
        socket::getsockname::<SockaddrIn>(socket.as_raw_fd())
    };
    match probe() {
        Ok(source) => Some(source.ip()),
        Err(e) => {
            log::debug!("no source address towards {address}: {e}");
            None
        }
    }
}
