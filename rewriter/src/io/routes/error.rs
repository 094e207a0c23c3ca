//! What can go wrong with routes, and what the operator can do about it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use nix::libc;

use super::{Family, Settings};

/// Why the routes can't be set up or changed. Each message says what to do, where there is
/// something to be done; what the kernel said is part of it, and so isn't a
/// [`source`](std::error::Error::source) as well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoutesError {
    /// The TUN's name is empty, too long, or has characters that would need quoting somewhere.
    #[error("{name:?} can't name the TUN: choose a --tun of 1 to 15 letters, digits, '-' and '_'")]
    TunName {
        /// The name given.
        name: String,
    },
    /// The table or the one after it is the kernel's own.
    #[error(
        "table {table} won't do: neither it nor the next may be 0, 253, 254 or 255; choose --table"
    )]
    ReservedTable {
        /// The table given.
        table: u32,
    },
    /// The rules wouldn't all come before table `main`.
    #[error(
        "rule priority {priority} won't do: choose a --rule-priority from 1 to {}",
        32_766 - Settings::PRIORITIES
    )]
    PriorityRange {
        /// The priority given.
        priority: u32,
    },
    /// The filters' preferences wouldn't fit in 16 bits.
    #[error(
        "filter preference {preference} won't do: choose a --filter-preference from 1 to {}",
        u16::MAX - Settings::PREFERENCES + 1
    )]
    PreferenceRange {
        /// The preference given.
        preference: u16,
    },
    /// Mark 0 is what every other packet carries.
    #[error("mark 0 can't tell rewritten packets from others; choose another --mark")]
    ZeroMark,
    /// The TUN isn't there. It has to be opened first.
    #[error("there is no interface {name}")]
    NoSuchLink {
        /// The TUN's name.
        name: String,
    },
    /// The TUN is down, so no route can lead to it. Somebody has set it down.
    #[error("{tun} is down, so no packets come to it; to go on, run: ip link set dev {tun} up")]
    LinkDown {
        /// The TUN's name.
        tun: String,
    },
    /// Replies to this proxy address would be delivered to the host itself.
    #[error(
        "the proxy address {address} belongs to this host, which would take the mirrors' replies \
         for itself; choose a --proxy address that no interface here has"
    )]
    LocalProxy {
        /// The proxy address.
        address: IpAddr,
    },
    /// A proxy address can't be a service as well.
    #[error("{address} is a proxy address, so it can't be a service")]
    ServiceIsProxy {
        /// The address.
        address: IpAddr,
    },
    /// IPv6 is asked for, but the kernel lacks it, it is disabled, or the TUN's MTU is too small.
    #[error("{family} isn't available on {tun}: check disable_ipv6, and an --mtu of at least 1280")]
    FamilyUnavailable {
        /// The family.
        family: Family,
        /// The TUN's name.
        tun: String,
    },
    /// The host doesn't forward packets, so none would reach the TUN or leave it.
    #[error(
        "this host doesn't forward {family} packets: use --enable-forwarding or --egress raw, \
         or run: {command}"
    )]
    ForwardingOff {
        /// The family.
        family: Family,
        /// What turns it on.
        command: String,
    },
    /// Another daemon or the operator uses the routing table.
    #[error("table {table} is in use by {by}; choose --table")]
    TableInUse {
        /// The table.
        table: u32,
        /// An interface's name, or what sort of thing was found.
        by: String,
    },
    /// Another daemon uses the rule priorities.
    #[error("rule priority {priority} is in use by {by}; choose --rule-priority")]
    PriorityInUse {
        /// The priority.
        priority: u32,
        /// An interface's name, or which table the rule looks up.
        by: String,
    },
    /// Another daemon or the operator uses the filter preferences.
    #[error(
        "filter preference {preference} on {interface} is in use by {by}; \
         choose --filter-preference, of which {} numbers are used",
        Settings::PREFERENCES
    )]
    PreferenceInUse {
        /// The interface.
        interface: String,
        /// The preference.
        preference: u16,
        /// An interface's name, or what sort of filter was found.
        by: String,
    },
    /// The kernel lacks `clsact`, `u32` or `mirred`, or refuses them on this interface.
    #[error(
        "packets can't be taken from {interface}: this kernel lacks the clsact queueing \
         discipline, the u32 filter or the mirred action ({error}, on: {command}); use --egress tun"
    )]
    FiltersUnsupported {
        /// The interface.
        interface: String,
        /// The equivalent command.
        command: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something on this interface is in the way of a `clsact` queueing discipline.
    #[error(
        "packets can't be taken from {interface}: something is in the way of clsact ({error}); \
         see: tc qdisc show dev {interface}"
    )]
    HookRefused {
        /// The interface.
        interface: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// More filters than [`Settings::PREFERENCES`] allows.
    #[error("there can't be more than {limit} filters of one sort; use --client or --egress tun")]
    TooManyFilters {
        /// How many there may be.
        limit: u16,
    },
    /// The kernel refused a change or a question over netlink, or didn't answer in time.
    #[error("{doing}: {error}")]
    Netlink {
        /// The equivalent command.
        doing: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// A file under `/proc/sys` couldn't be read or written.
    #[error("{}: {error}", path.display())]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

impl RoutesError {
    /// Whether the kernel said that there is no such interface.
    pub(super) fn is_no_device(&self) -> bool {
        matches!(self, Self::Netlink { error, .. } if error.raw_os_error() == Some(libc::ENODEV))
    }
}
