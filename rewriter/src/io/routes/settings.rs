//! What the caller decides: names, numbers and addresses, checked before anything is touched.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{Family, RoutesError};

/// What [`Routes`](super::Routes) and [`Plan`](super::Plan) are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The TUN's name: 1 to 15 of ASCII letters, digits, `-` and `_`.
    pub tun: String,
    /// The TUN's MTU in bytes. Below 1,280 (RFC 8200, section 5) the kernel turns IPv6 off on it.
    pub mtu: u32,
    /// The routing table of services and proxy addresses; `table + 1` is used too.
    pub table: u32,
    /// Priority of the first rule; [`Settings::PRIORITIES`] numbers are used from here on.
    pub priority: u32,
    /// Preference of the first traffic filter ([`Egress::Raw`] only);
    /// [`Settings::PREFERENCES`] numbers are used from here on.
    pub filter_preference: u16,
    /// The rewriter's own addresses, towards mirrors. None may be assigned to an interface.
    pub proxies: Vec<IpAddr>,
    /// Every packet from these networks comes to the TUN. Empty: packets to services do.
    pub clients: Vec<IpNet>,
    /// How rewritten packets leave.
    pub egress: Egress,
    /// Turn forwarding on where it is off and needed. It isn't turned off at the end: by then
    /// others may rely on it. A host that forwards IPv6 no longer takes its own routes from router
    /// advertisements, unless `accept_ra` is 2 (Documentation/networking/ip-sysctl.rst).
    pub enable_forwarding: bool,
}

/// How rewritten packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Written back to the TUN, whence the kernel forwards them.
    Tun,
    /// Sent by raw sockets, as if the host itself had made them.
    Raw {
        /// The sockets' `SO_MARK`; not 0, which is what all other packets carry.
        mark: u32,
    },
}

impl Settings {
    /// [`Settings::table`], unless the operator chooses another.
    pub const DEFAULT_TABLE: u32 = 3353;
    /// [`Settings::priority`], unless the operator chooses another.
    pub const DEFAULT_PRIORITY: u32 = 3353;
    /// [`Settings::filter_preference`], unless the operator chooses another.
    pub const DEFAULT_FILTER_PREFERENCE: u16 = 3353;
    /// How many rule priorities are used.
    pub const PRIORITIES: u32 = 5;
    /// How many filter preferences are used: one a filter, as many as there may be filters.
    pub const PREFERENCES: u16 = 4096;

    /// The longest interface name in bytes: `IFNAMSIZ - 1` (`include/uapi/linux/if.h`).
    const MAX_NAME: usize = 15;
    /// IPv6's smallest MTU in bytes (RFC 8200, section 5).
    const MIN_IPV6_MTU: u32 = 1280;
    /// The tables `default`, `main` and `local` (`include/uapi/linux/rtnetlink.h`).
    const KERNEL_TABLES: RangeInclusive<u32> = 253..=255;
    /// The kernel's own rule for table `main` (`net/ipv4/fib_rules.c`).
    const MAIN_PRIORITY: u32 = 32_766;

    /// The settings of a TUN named `tun` with these proxy addresses, and the usual numbers for
    /// all else: packets to services come to a TUN of 1,500 bytes' MTU and leave by it.
    pub fn new(tun: impl Into<String>, proxies: Vec<IpAddr>) -> Self {
        Self {
            tun: tun.into(),
            mtu: 1500,
            table: Self::DEFAULT_TABLE,
            priority: Self::DEFAULT_PRIORITY,
            filter_preference: Self::DEFAULT_FILTER_PREFERENCE,
            proxies,
            clients: Vec::new(),
            egress: Egress::Tun,
            enable_forwarding: false,
        }
    }

    /// Whether the numbers and the name are possible ones.
    ///
    /// # Errors
    /// The first that isn't.
    pub fn validate(&self) -> Result<(), RoutesError> {
        let name_char = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if self.tun.is_empty()
            || self.tun.len() > Self::MAX_NAME
            || !self.tun.bytes().all(name_char)
        {
            return Err(RoutesError::TunName {
                name: self.tun.clone(),
            });
        }
        let tables = [Some(self.table), self.table.checked_add(1)];
        if tables
            .iter()
            .any(|table| table.is_none_or(|id| id == 0 || Self::KERNEL_TABLES.contains(&id)))
        {
            return Err(RoutesError::ReservedTable { table: self.table });
        }
        let last = self.priority.saturating_add(Self::PRIORITIES - 1);
        if self.priority == 0 || last >= Self::MAIN_PRIORITY {
            return Err(RoutesError::PriorityRange {
                priority: self.priority,
            });
        }
        let room = self.filter_preference.checked_add(Self::PREFERENCES - 1);
        if self.filter_preference == 0 || room.is_none() {
            return Err(RoutesError::PreferenceRange {
                preference: self.filter_preference,
            });
        }
        if self.egress == (Egress::Raw { mark: 0 }) {
            return Err(RoutesError::ZeroMark);
        }
        Ok(())
    }

    /// Whether the TUN's MTU leaves room for this family.
    pub(super) fn mtu_allows(&self, family: Family) -> bool {
        family == Family::V4 || self.mtu >= Self::MIN_IPV6_MTU
    }

    /// The families of the addresses given so far.
    pub(super) fn families(&self) -> Vec<Family> {
        let proxies = self.proxies.iter().copied().map(Family::of);
        let clients = self.clients.iter().map(|net| Family::of(net.addr()));
        let mut families: Vec<_> = proxies.chain(clients).collect();
        families.sort();
        families.dedup();
        families
    }

    /// The table whose only route leads everything to the TUN.
    pub(super) fn everything_table(&self) -> u32 {
        self.table + 1
    }

    /// The priorities of all rules.
    pub(super) fn priorities(&self) -> RangeInclusive<u32> {
        self.priority..=self.priority + Self::PRIORITIES - 1
    }

    /// The preferences of all filters.
    pub(super) fn preferences(&self) -> RangeInclusive<u16> {
        self.filter_preference..=self.filter_preference + (Self::PREFERENCES - 1)
    }
}
