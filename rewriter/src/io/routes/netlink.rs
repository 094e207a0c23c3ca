//! Carries [`Step`]s out over netlink, and asks the kernel what is there.
//!
//! Messages are built here and sent as they are through rtnetlink's connection, in place of its
//! requests: those can neither delete a filter by preference nor take a table's routes from the
//! kernel without all others. The socket has `NETLINK_GET_STRICT_CHK`, without which a
//! dump of routes can't be limited to a table: a router may have a million of them.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::tc::TcMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::task::JoinHandle;

use super::step::{
    Action, Family, Filter, Interface, LinkChange, ROUTE_PROTOCOL, Route, Rule, Selector, Step,
};
use super::{RoutesError, filter, host};

/// How long the kernel may take for an answer. It takes microseconds, unless it is in trouble.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to the kernel's routing netlink, of the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Kernel {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

/// A network interface, as far as it matters here.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) interface: Interface,
    pub(super) loopback: bool,
    /// Port of a bridge, member of a bond or the like; of a VRF doesn't count.
    pub(super) enslaved: bool,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Kernel {
    /// Connects. Must be called on a tokio runtime, on which the connection then runs.
    pub(super) fn connect() -> Result<Self, RoutesError> {
        let failed = |error| RoutesError::Netlink {
            doing: "open netlink".to_owned(),
            error,
        };
        let (connection, handle, _unsolicited) =
            rtnetlink::new_connection_with_strict_check().map_err(failed)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Carries out a step. A route takes the place of one with the same destination; rules, hooks
    /// and filters must be new; of all else it doesn't matter if it is so already.
    pub(super) async fn make(&self, step: &Step, tun_index: u32) -> Result<(), RoutesError> {
        let new = NLM_F_CREATE | NLM_F_EXCL;
        let result = match step {
            Step::Forwarding(family) => {
                return host::write_number(family.forwarding_path(), 1).map(|_| ());
            }
            Step::Parameter { path, value } => {
                return host::write_number(path, *value).map(|_| ());
            }
            Step::Link { change, .. } => {
                let message = RouteNetlinkMessage::SetLink(link_message(tun_index, *change));
                self.acknowledged(message, 0).await
            }
            Step::Address { address, .. } => {
                let message = address_message(tun_index, (*address).into());
                match self
                    .acknowledged(RouteNetlinkMessage::NewAddress(message), new)
                    .await
                {
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                    other => other,
                }
            }
            Step::Route(route) => {
                let message = RouteNetlinkMessage::NewRoute(route_message(route, tun_index));
                self.acknowledged(message, NLM_F_CREATE | NLM_F_REPLACE)
                    .await
            }
            Step::Rule(rule) => {
                self.acknowledged(RouteNetlinkMessage::NewRule(rule_message(rule)), new)
                    .await
            }
            Step::Hook(interface) => {
                let message = filter::hook_message(interface.index);
                self.acknowledged(RouteNetlinkMessage::NewQueueDiscipline(message), new)
                    .await
            }
            Step::Filter(filter) => {
                let message = filter::message(filter, tun_index);
                self.acknowledged(RouteNetlinkMessage::NewTrafficFilter(message), new)
                    .await
            }
        };
        result.map_err(|error| explain(step, error))
    }

    /// Makes again a step that was made before, if its effect is gone; gives whether it was.
    ///
    /// To make it *is* the question, for the kernel refuses what is there already: one short
    /// message, however much else there is. (A dump of rules or of a table is as long as they are,
    /// and a single route of a table can't be asked for.) Filters are the exception: of one
    /// preference there can be many. Forwarding and the TUN's MTU and state are the operator's to
    /// change, and hooks are looked after with their interfaces.
    pub(super) async fn restore(&self, step: &Step, tun_index: u32) -> Result<bool, RoutesError> {
        let new = NLM_F_CREATE | NLM_F_EXCL;
        let message = match step {
            Step::Forwarding(_) | Step::Link { .. } | Step::Hook(_) => return Ok(false),
            Step::Parameter { path, value } => return host::write_number(path, *value),
            Step::Address { address, .. } => {
                RouteNetlinkMessage::NewAddress(address_message(tun_index, (*address).into()))
            }
            Step::Route(route) => RouteNetlinkMessage::NewRoute(route_message(route, tun_index)),
            Step::Rule(rule) => RouteNetlinkMessage::NewRule(rule_message(rule)),
            Step::Filter(Filter {
                interface,
                preference,
                ..
            }) => {
                let question = filter::key_message(interface.index, *preference);
                if !self.filters_at(question).await?.is_empty() {
                    return Ok(false);
                }
                return self.make(step, tun_index).await.map(|()| true);
            }
        };
        match self.acknowledged(message, new).await {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(explain(step, e)),
        }
    }

    /// Undoes a step. What is gone already counts as undone.
    pub(super) async fn undo(&self, step: &Step, tun_index: u32) -> Result<(), RoutesError> {
        let message = match step {
            Step::Forwarding(_) | Step::Parameter { .. } | Step::Link { .. } => return Ok(()),
            Step::Address { address, .. } => {
                RouteNetlinkMessage::DelAddress(address_message(tun_index, (*address).into()))
            }
            Step::Route(route) => RouteNetlinkMessage::DelRoute(route_message(route, tun_index)),
            Step::Rule(rule) => RouteNetlinkMessage::DelRule(rule_message(rule)),
            Step::Hook(interface) => {
                if self.hook_is_busy(interface.index).await? {
                    log::debug!(
                        "others have filters on {}: its clsact stays",
                        interface.name
                    );
                    return Ok(());
                }
                RouteNetlinkMessage::DelQueueDiscipline(filter::hook_message(interface.index))
            }
            Step::Filter(filter) => RouteNetlinkMessage::DelTrafficFilter(filter::key_message(
                filter.interface.index,
                filter.preference,
            )),
        };
        match self.acknowledged(message, 0).await {
            Err(e) if !is_gone(step, &e) => {
                let doing = step.undo_command().unwrap_or_default();
                Err(RoutesError::Netlink { doing, error: e })
            }
            _ => Ok(()),
        }
    }

    /// Deletes what a dump has shown: a rule, a route, or all filters of one preference.
    pub(super) async fn delete(&self, message: RouteNetlinkMessage) -> Result<(), RoutesError> {
        let doing = "remove what an earlier run left".to_owned();
        self.acknowledged(message, 0)
            .await
            .map_err(|error| RoutesError::Netlink { doing, error })
    }

    /// All interfaces.
    pub(super) async fn links(&self) -> Result<Vec<Link>, RoutesError> {
        let dump = self.dump(
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            "ip link show",
        );
        let links = dump.await?.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => parse_link(&link),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Whether an interface is up.
    pub(super) async fn is_up(&self, index: u32) -> Result<bool, RoutesError> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answers = self
            .exchange(RouteNetlinkMessage::GetLink(question), 0)
            .await
            .map_err(|error| RoutesError::Netlink {
                doing: "ip link show".to_owned(),
                error,
            })?;
        Ok(answers.iter().any(|answer| {
            matches!(answer, RouteNetlinkMessage::NewLink(link)
                if link.header.flags.contains(LinkFlags::Up))
        }))
    }

    /// The host's own addresses and IPv4's directed broadcast addresses, without those of `lo`.
    pub(super) async fn addresses(&self) -> Result<BTreeSet<IpNet>, RoutesError> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut addresses = BTreeSet::new();
        for message in self.dump(question, "ip address show").await? {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                continue;
            };
            // IPv4 has the host's own in `Local` and perhaps a peer's in `Address`.
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
            for attribute in &message.attributes {
                let address = match attribute {
                    AddressAttribute::Address(address) => local.unwrap_or(*address),
                    AddressAttribute::Broadcast(address) => IpAddr::V4(*address),
                    _ => continue,
                };
                if !address.is_loopback() {
                    addresses.insert(IpNet::from(address));
                }
            }
        }
        Ok(addresses)
    }

    /// The rules of one family.
    pub(super) async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, RoutesError> {
        let mut question = RuleMessage::default();
        question.header.family = address_family(family);
        let dump = self
            .dump(RouteNetlinkMessage::GetRule(question), "ip rule show")
            .await?;
        let rules = dump.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        });
        Ok(rules.collect())
    }

    /// The routes of one family in one table.
    pub(super) async fn routes(
        &self,
        family: Family,
        table: u32,
    ) -> Result<Vec<RouteMessage>, RoutesError> {
        let mut question = RouteMessage::default();
        question.header.address_family = address_family(family);
        question.attributes.push(RouteAttribute::Table(table));
        let doing = format!("ip route show table {table}");
        let routes = match self
            .dump(RouteNetlinkMessage::GetRoute(question), &doing)
            .await
        {
            // A table exists as long as there is a route in it or a rule that looks it up.
            Err(RoutesError::Netlink { error, .. })
                if error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Vec::new()
            }
            other => other?,
        };
        let routes = routes.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(routes.collect())
    }

    /// The interfaces, by index, that have a hook for filters on packets that come in.
    pub(super) async fn hooked(&self) -> Result<HashSet<u32>, RoutesError> {
        let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let dump = self.dump(question, "tc qdisc show").await?;
        let hooks = dump.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(qdisc) => filter::hooked_interface(&qdisc),
            _ => None,
        });
        Ok(hooks.collect())
    }

    /// The filters on packets that come in by an interface.
    pub(super) async fn filters(&self, interface: u32) -> Result<Vec<TcMessage>, RoutesError> {
        self.filters_at(filter::ingress_question(interface)).await
    }

    async fn hook_is_busy(&self, interface: u32) -> Result<bool, RoutesError> {
        let ingress = self.filters_at(filter::ingress_question(interface)).await?;
        let egress = self.filters_at(filter::egress_question(interface)).await?;
        Ok(!ingress.is_empty() || !egress.is_empty())
    }

    async fn filters_at(&self, question: TcMessage) -> Result<Vec<TcMessage>, RoutesError> {
        let question = RouteNetlinkMessage::GetTrafficFilter(question);
        let dump = match self.dump(question, "tc filter show").await {
            // The hook or the interface has gone.
            Err(RoutesError::Netlink { error, .. })
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) =>
            {
                Vec::new()
            }
            other => other?,
        };
        let filters = dump.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
            _ => None,
        });
        Ok(filters.collect())
    }

    /// Whether the host would take packets to this address for itself: it is assigned to an
    /// interface, or a route of type local, broadcast, anycast or multicast covers it.
    pub(super) async fn is_local(&self, address: IpAddr) -> Result<bool, RoutesError> {
        let mut question = RouteMessage::default();
        let net = IpNet::from(address);
        question.header.address_family = address_family(Family::of(address));
        question.header.destination_prefix_length = net.prefix_len();
        question
            .attributes
            .push(RouteAttribute::Destination(route_address(address)));
        match self
            .exchange(RouteNetlinkMessage::GetRoute(question), 0)
            .await
        {
            Ok(answers) => Ok(answers.into_iter().any(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => matches!(
                    route.header.kind,
                    RouteType::Local
                        | RouteType::Broadcast
                        | RouteType::Anycast
                        | RouteType::Multicast
                ),
                _ => false,
            })),
            // No route leads there, or one that forbids it; or there is no IPv6.
            Err(e) => match e.raw_os_error() {
                Some(
                    libc::ENETUNREACH
                    | libc::EHOSTUNREACH
                    | libc::EACCES
                    | libc::EINVAL
                    | libc::EOPNOTSUPP
                    | libc::EAFNOSUPPORT,
                ) => Ok(false),
                _ => {
                    let doing = format!("ip route get {address}");
                    Err(RoutesError::Netlink { doing, error: e })
                }
            },
        }
    }

    async fn dump(
        &self,
        question: RouteNetlinkMessage,
        doing: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, RoutesError> {
        let answers = self.exchange(question, NLM_F_DUMP).await;
        answers.map_err(|error| RoutesError::Netlink {
            doing: doing.to_owned(),
            error,
        })
    }

    async fn acknowledged(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags).await.map(|_| ())
    }

    /// Sends a message and collects what comes back, up to the last part or the acknowledgement.
    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let lost = || io::Error::new(io::ErrorKind::NotConnected, "the netlink socket is closed");
        let mut answers = self.handle.clone().request(request).map_err(|_| lost())?;
        let collect = async {
            let mut collected = Vec::new();
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => collected.push(inner),
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    _ => {}
                }
            }
            Ok(collected)
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the kernel doesn't answer");
        tokio::time::timeout(PATIENCE, collect)
            .await
            .map_err(|_| late())?
    }
}

/// Why a step couldn't be made.
fn explain(step: &Step, error: io::Error) -> RoutesError {
    let command = step.command();
    match (step, error.raw_os_error()) {
        // No such sort of queueing discipline, filter or action.
        (Step::Hook(interface), Some(libc::ENOENT | libc::EOPNOTSUPP))
        | (Step::Filter(Filter { interface, .. }), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            RoutesError::FiltersUnsupported {
                interface: interface.name.clone(),
                command,
                error,
            }
        }
        (Step::Hook(interface), Some(libc::EEXIST | libc::EINVAL | libc::EBUSY)) => {
            RoutesError::HookRefused {
                interface: interface.name.clone(),
                error,
            }
        }
        (Step::Route(route), Some(libc::ENETDOWN)) => RoutesError::LinkDown {
            tun: route.tun.clone(),
        },
        _ => RoutesError::Netlink {
            doing: command,
            error,
        },
    }
}

/// Whether the kernel refuses to remove something because it isn't there.
fn is_gone(step: &Step, e: &io::Error) -> bool {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL) => true,
        // A filter or a hook whose queueing discipline somebody else removed.
        Some(libc::EINVAL) => step.filtered_interface().is_some(),
        _ => false,
    }
}

fn parse_link(message: &LinkMessage) -> Option<Link> {
    let mut name = None;
    let (mut has_controller, mut of_vrf) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(it) => name = Some(it.clone()),
            LinkAttribute::Controller(index) => has_controller = *index != 0,
            LinkAttribute::LinkInfo(infos) => {
                of_vrf = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
            _ => {}
        }
    }
    Some(Link {
        interface: Interface {
            index: message.header.index,
            name: name?,
        },
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        enslaved: has_controller && !of_vrf,
    })
}

fn link_message(tun_index: u32, change: LinkChange) -> LinkMessage {
    let mut message = LinkMessage::default();
    let header = &mut message.header;
    header.index = tun_index;
    match change {
        LinkChange::Mute => header.change_mask = LinkFlags::Up | LinkFlags::Multicast,
        LinkChange::Mtu(_) => {}
        LinkChange::Up => (header.flags, header.change_mask) = (LinkFlags::Up, LinkFlags::Up),
    }
    message
        .attributes
        .extend(change.mtu().map(LinkAttribute::Mtu));
    message
}

fn address_message(tun_index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    let net = IpNet::from(address);
    message.header.family = address_family(Family::of(address));
    message.header.index = tun_index;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Host;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    message
}

fn route_message(route: &Route, tun_index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let family = Family::of(route.destination.addr());
    let header = &mut message.header;
    header.address_family = address_family(family);
    header.destination_prefix_length = route.destination.prefix_len();
    header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    header.kind = RouteType::Unicast;
    // As `ip route` does: a route without a gateway is of link scope. IPv6 has no scopes.
    header.scope = if family == Family::V4 {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    if route.destination.prefix_len() != 0 {
        let destination = route_address(route.destination.addr());
        message
            .attributes
            .push(RouteAttribute::Destination(destination));
    }
    message.attributes.push(RouteAttribute::Oif(tun_index));
    message.attributes.push(RouteAttribute::Table(route.table));
    if let Some(source) = route.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    }
    message
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    let attributes = &mut message.attributes;
    header.family = address_family(rule.family);
    attributes.push(RuleAttribute::Priority(rule.priority));
    match &rule.selector {
        Selector::All => {}
        Selector::From(interface) => attributes.push(RuleAttribute::Iifname(interface.clone())),
        Selector::Local { protocol } => {
            attributes.push(RuleAttribute::Iifname("lo".to_owned()));
            attributes.push(RuleAttribute::IpProtocol((*protocol).into()));
        }
        Selector::Mark(mark) => attributes.push(RuleAttribute::FwMark(*mark)),
        Selector::Source(net) => {
            header.src_len = net.prefix_len();
            attributes.push(RuleAttribute::Source(net.addr()));
        }
        Selector::Destination(net) => {
            header.dst_len = net.prefix_len();
            attributes.push(RuleAttribute::Destination(net.addr()));
        }
    }
    match rule.action {
        Action::Lookup(table) => {
            header.action = RuleAction::ToTable;
            attributes.push(RuleAttribute::Table(table));
        }
        Action::Goto(priority) => {
            header.action = RuleAction::Goto;
            attributes.push(RuleAttribute::Goto(priority));
        }
        Action::Nop => header.action = RuleAction::Nop,
    }
    attributes.push(RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)));
    message
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}
