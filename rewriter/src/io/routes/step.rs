//! One change to the host's network as plain data.
//!
//! Every [`Step`] can be carried out over netlink ([`super::netlink`]) and printed as a command
//! ([`Step::command`]). Both read the same fields, and a test compares what they leave behind.
//! The commands are those of iproute2 and procps; protocol numbers are printed as numbers, since
//! the names need `/etc/protocols`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// What marks routes and rules as Shunt's: ASCII `S`.
///
/// Not assigned in `include/uapi/linux/rtnetlink.h` nor in iproute2's `rt_protos`. It changes
/// nothing in the kernel; it lets a later run recognise what a crashed one left behind.
pub const ROUTE_PROTOCOL: u8 = 83;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// The IP protocol number of this family's ICMP (IANA: 1 and 58).
    pub(super) fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }

    /// The network of all addresses.
    pub(super) fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Self::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }

    /// The kernel parameter, below `/proc/sys`, that says whether the host forwards packets
    /// (Documentation/networking/ip-sysctl.rst).
    pub(super) fn forwarding_path(self) -> &'static str {
        match self {
            Self::V4 => "net/ipv4/ip_forward",
            Self::V6 => "net/ipv6/conf/all/forwarding",
        }
    }

    fn ip_option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    /// What netlink calls it; never used twice while the host runs, short of wrapping around.
    pub index: u32,
    /// What people call it.
    pub name: String,
}

/// One change. Steps that name a TUN mean the daemon's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// The host forwards packets of this family. Not undone: by then others may rely on it.
    Forwarding(Family),
    /// A kernel parameter of the TUN. Not undone: the TUN goes with the daemon.
    Parameter {
        /// Below `/proc/sys`, for example `net/ipv4/conf/shunt0/rp_filter`.
        path: String,
        /// What to write there.
        value: u8,
    },
    /// A change of the TUN itself. Not undone: the TUN goes with the daemon.
    Link {
        /// The TUN's name.
        tun: String,
        /// What of it.
        change: LinkChange,
    },
    /// An address of the TUN, of host scope: never chosen as the source of a packet.
    Address {
        /// The TUN's name.
        tun: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// A route to the TUN.
    Route(Route),
    /// A rule about which table is looked up.
    Rule(Rule),
    /// The hook for filters on packets that come in: a `clsact` queueing discipline.
    Hook(Interface),
    /// A filter on packets that come in.
    Filter(Filter),
}

/// What changes of the TUN itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkChange {
    /// It goes down, and loses the flag that it carries multicast, and IPv6 with all groups that it
    /// has joined.
    ///
    /// An interface that is born while the host forwards IPv6 joins the group of all routers, and
    /// reports that when it goes up, and when it leaves the group (`net/ipv6/addrconf.c`, `mcast.c`):
    /// packets that nobody sent to a service. IPv6 is taken from an interface whose MTU becomes too
    /// small for it, and comes back with [`LinkChange::Mtu`]; without the flag in no such group.
    Mute,
    /// Its MTU in bytes.
    Mtu(u32),
    /// It goes up.
    Up,
}

impl LinkChange {
    /// An MTU that is too small for IPv6 (RFC 8200, section 5).
    const TOO_SMALL_FOR_IPV6: u32 = 1279;

    /// The MTU that it gives to the TUN, if any.
    pub(super) fn mtu(self) -> Option<u32> {
        match self {
            Self::Mute => Some(Self::TOO_SMALL_FOR_IPV6),
            Self::Mtu(mtu) => Some(mtu),
            Self::Up => None,
        }
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mute => write!(f, "down multicast off mtu {}", Self::TOO_SMALL_FOR_IPV6),
            Self::Mtu(mtu) => write!(f, "mtu {mtu}"),
            Self::Up => f.write_str("up"),
        }
    }
}

/// A route to the TUN.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Which packets.
    pub destination: IpNet,
    /// The TUN's name.
    pub tun: String,
    /// The table that the route is in.
    pub table: u32,
    /// The source that local processes' packets get if they have none yet; IPv4 only.
    pub source: Option<Ipv4Addr>,
}

/// A routing rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Whose packets.
    pub family: Family,
    /// Lower ones are consulted first.
    pub priority: u32,
    /// Which packets.
    pub selector: Selector,
    /// What with them.
    pub action: Action,
}

/// Which packets a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// All.
    All,
    /// Those that came in by this interface; `lo` stands for those of local processes.
    From(String),
    /// Those of local processes, and of this IP protocol.
    Local {
        /// The IP protocol's number.
        protocol: u8,
    },
    /// Those that carry this mark.
    Mark(u32),
    /// Those from this network.
    Source(IpNet),
    /// Those to this network.
    Destination(IpNet),
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Looks up this table; the next rule follows if it has no route.
    Lookup(u32),
    /// Goes on at the rule of this priority.
    Goto(u32),
    /// Nothing; a place for [`Action::Goto`] to go to.
    Nop,
}

/// A filter on packets that come in by an interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    /// The interface.
    pub interface: Interface,
    /// Lower ones are consulted first. Each filter has one of its own, by which it is removed.
    pub preference: u16,
    /// Which packets, and what with them.
    pub what: Match,
    /// The name of the TUN that packets are redirected to.
    pub tun: String,
}

/// Which packets a filter is about, and what it does with them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// Packets to this network stay where they are, and no later filter sees them.
    Pass(IpNet),
    /// Packets to this address are redirected.
    To(IpAddr),
    /// Packets from this network are redirected.
    From(IpNet),
}

impl Match {
    /// The packets' family.
    pub fn family(&self) -> Family {
        match self {
            Self::To(address) => Family::of(*address),
            Self::Pass(net) | Self::From(net) => Family::of(net.addr()),
        }
    }
}

impl Step {
    /// Whether the step may become due, or superfluous, while the daemon runs.
    pub(super) fn comes_and_goes(&self) -> bool {
        match self {
            Self::Forwarding(_)
            | Self::Parameter { .. }
            | Self::Link { .. }
            | Self::Address { .. } => false,
            Self::Route(_) | Self::Rule(_) | Self::Hook(_) | Self::Filter(_) => true,
        }
    }

    /// The interface whose filters the step is about, if it is about any.
    pub fn filtered_interface(&self) -> Option<&Interface> {
        match self {
            Self::Hook(interface) => Some(interface),
            Self::Filter(filter) => Some(&filter.interface),
            _ => None,
        }
    }

    /// The command that does the same.
    pub fn command(&self) -> String {
        match self {
            Self::Forwarding(family) => sysctl_command(family.forwarding_path(), 1),
            Self::Parameter { path, value } => sysctl_command(path, *value),
            Self::Link { tun, change } => format!("ip link set dev {tun} {change}"),
            Self::Address { tun, address } => {
                format!("ip address add {address}/32 dev {tun} scope host")
            }
            Self::Route(route) => route.command("replace"),
            Self::Rule(rule) => rule.command("add"),
            Self::Hook(interface) => format!("tc qdisc add dev {} clsact", word(&interface.name)),
            Self::Filter(filter) => filter.add_command(),
        }
    }

    /// The command that undoes it, if anything does.
    pub fn undo_command(&self) -> Option<String> {
        Some(match self {
            Self::Forwarding(_) | Self::Parameter { .. } | Self::Link { .. } => return None,
            Self::Address { tun, address } => format!("ip address del {address}/32 dev {tun}"),
            Self::Route(route) => route.command("del"),
            Self::Rule(rule) => rule.command("del"),
            Self::Hook(interface) => format!("tc qdisc del dev {} clsact", word(&interface.name)),
            Self::Filter(filter) => filter.remove_command(),
        })
    }
}

impl Route {
    fn command(&self, verb: &str) -> String {
        let family = Family::of(self.destination.addr()).ip_option();
        let destination = match self.destination.prefix_len() {
            0 => "default".to_owned(),
            _ => self.destination.to_string(),
        };
        let (tun, table) = (&self.tun, self.table);
        let source = self
            .source
            .map(|address| format!(" src {address}"))
            .unwrap_or_default();
        format!(
            "ip {family} route {verb} {destination} dev {tun} table {table} protocol \
             {ROUTE_PROTOCOL}{source}"
        )
    }
}

impl Rule {
    fn command(&self, verb: &str) -> String {
        let selector = match &self.selector {
            Selector::All => String::new(),
            Selector::From(interface) => format!("iif {interface} "),
            Selector::Local { protocol } => format!("iif lo ipproto {protocol} "),
            Selector::Mark(mark) => format!("fwmark {mark:#x} "),
            Selector::Source(net) => format!("from {net} "),
            Selector::Destination(net) => format!("to {net} "),
        };
        let action = match self.action {
            Action::Lookup(table) => format!("lookup {table}"),
            Action::Goto(priority) => format!("goto {priority}"),
            Action::Nop => "nop".to_owned(),
        };
        let (family, priority) = (self.family.ip_option(), self.priority);
        format!(
            "ip {family} rule {verb} priority {priority} {selector}{action} protocol \
             {ROUTE_PROTOCOL}"
        )
    }
}

impl Filter {
    /// Where packets that [`Match::Pass`] is about are classified to. `clsact` has no classes: the
    /// number only makes the filter a final one.
    pub(super) const PASS_CLASS: (u16, u16) = (0xffff, 1);

    fn protocol(&self) -> &'static str {
        match self.what.family() {
            Family::V4 => "ip",
            Family::V6 => "ipv6",
        }
    }

    fn add_command(&self) -> String {
        let ip = match self.what.family() {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let redirect = format!("action mirred egress redirect dev {}", self.tun);
        let (selector, action) = match &self.what {
            Match::Pass(net) => {
                let (major, minor) = Self::PASS_CLASS;
                (
                    format!("{ip} dst {net}"),
                    format!("classid {major:x}:{minor:x}"),
                )
            }
            Match::To(address) => (format!("{ip} dst {}", IpNet::from(*address)), redirect),
            Match::From(net) => (format!("{ip} src {net}"), redirect),
        };
        let (interface, preference) = (word(&self.interface.name), self.preference);
        let protocol = self.protocol();
        format!(
            "tc filter add dev {interface} ingress pref {preference} protocol {protocol} u32 \
             match {selector} {action}"
        )
    }

    fn remove_command(&self) -> String {
        let (interface, preference) = (word(&self.interface.name), self.preference);
        let protocol = self.protocol();
        format!("tc filter del dev {interface} ingress pref {preference} protocol {protocol} u32")
    }
}

fn sysctl_command(path: &str, value: u8) -> String {
    format!("sysctl -w {}={value}", path.replace('/', "."))
}

/// An interface's name as one word of a shell's command line.
fn word(name: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.:@".contains(&c);
    if name.bytes().all(plain) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', r"'\''"))
    }
}
