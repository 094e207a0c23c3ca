//! From settings and what the host is like to the list of [`Step`]s: pure, no system calls.
//!
//! [`Plan::steps`] is the whole arrangement as it should be now, in an order in which each step
//! may be made; undoing goes backwards. A change of services or of the host changes the list, and
//! what differs is to be made or undone. The daemon carries that out ([`super::Routes`]); with
//! `--no-routes` it is printed. Why the rules are these is told in [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::libc::{IPPROTO_TCP, IPPROTO_UDP};

use super::host::{self, Host};
use super::netlink::Kernel;
use super::step::{
    Action, Family, Filter, Interface, LinkChange, Match, Route, Rule, Selector, Step,
};
use super::{Egress, RoutesError, Settings};

/// The TUN's own address: the "IPv4 dummy address" of RFC 7600, never seen on any wire.
///
/// An interface with no address at all fails even a loose reverse-path check
/// (`no_addr` in `net/ipv4/fib_frontend.c`), so passed packets would be dropped.
pub(super) const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Rule priorities, counted from [`Settings::priority`].
mod order {
    /// What the rewriter has sent skips all that follows.
    pub const REWRITTEN: u32 = 0;
    /// Packets to proxy addresses; and local processes' packets to services.
    pub const PROXIES_AND_LOCAL: u32 = 1;
    /// All else that is local skips what follows.
    pub const LOCAL_END: u32 = 2;
    /// Packets that came in from elsewhere.
    pub const FORWARDED: u32 = 3;
    /// Where those that skip go to.
    pub const END: u32 = 4;
}

/// All that has to be arranged, as data.
#[derive(Debug, Clone)]
pub struct Plan {
    settings: Settings,
    host: Host,
    /// With the source that local processes use towards each.
    services: BTreeMap<IpAddr, Option<Ipv4Addr>>,
    preferences: Preferences,
}

impl Plan {
    /// Plans for this host, as `--no-routes` needs it; asks the kernel but changes nothing.
    ///
    /// Forwarding that is off is among the printed commands, whatever
    /// [`Settings::enable_forwarding`] says. The TUN need not exist.
    ///
    /// # Errors
    /// The settings are impossible, a proxy address is the host's own, or the kernel doesn't answer.
    pub async fn prepare(settings: Settings) -> Result<Self, RoutesError> {
        settings.validate()?;
        let kernel = Kernel::connect()?;
        super::refuse_local_proxies(&kernel, &settings).await?;
        let host = Host::inspect(&kernel, &settings).await?;
        Self::new(settings, host)
    }

    pub(super) fn new(mut settings: Settings, host: Host) -> Result<Self, RoutesError> {
        let (mut proxies, mut clients) = (BTreeSet::new(), BTreeSet::new());
        settings.proxies.retain(|proxy| proxies.insert(*proxy));
        settings
            .clients
            .iter_mut()
            .for_each(|net| *net = net.trunc());
        settings.clients.retain(|net| clients.insert(*net));
        for family in settings.families() {
            if !host.has(family) {
                return Err(RoutesError::FamilyUnavailable {
                    family,
                    tun: settings.tun,
                });
            }
        }
        let preferences = Preferences::starting_at(settings.filter_preference);
        let services = BTreeMap::new();
        let mut plan = Self {
            settings,
            host,
            services,
            preferences,
        };
        plan.assign_preferences()?;
        Ok(plan)
    }

    /// The settings that it was made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes note of a service, and gives the commands that it needs. None, if it was noted
    /// already, or if all packets of client networks come to the TUN anyway.
    ///
    /// # Errors
    /// Its family isn't available, it is a proxy address, or there are too many filters.
    pub fn commands_for_add(&mut self, service: IpAddr) -> Result<Vec<String>, RoutesError> {
        let source = host::source_to(service);
        Ok(self
            .add_service(service, source)?
            .iter()
            .map(Step::command)
            .collect())
    }

    /// Forgets a service, and gives the commands that take its routes away.
    pub fn commands_for_remove(&mut self, service: IpAddr) -> Vec<String> {
        self.remove_service(service)
            .iter()
            .rev()
            .filter_map(Step::undo_command)
            .collect()
    }

    /// The commands that take everything away again.
    pub fn commands_for_removal(&self) -> Vec<String> {
        self.steps()
            .iter()
            .rev()
            .filter_map(Step::undo_command)
            .collect()
    }

    /// Takes note of a service, and of the source that local processes use towards it; the steps
    /// to be made.
    pub(super) fn add_service(
        &mut self,
        service: IpAddr,
        source: Option<Ipv4Addr>,
    ) -> Result<Vec<Step>, RoutesError> {
        let family = Family::of(service);
        if !self.host.has(family) {
            return Err(RoutesError::FamilyUnavailable {
                family,
                tun: self.settings.tun.clone(),
            });
        }
        if self.settings.proxies.contains(&service) {
            return Err(RoutesError::ServiceIsProxy { address: service });
        }
        if self.services.contains_key(&service) {
            return Ok(Vec::new());
        }
        self.services.insert(service, source);
        if let Err(e) = self.assign_preferences() {
            self.services.remove(&service);
            return Err(e);
        }
        Ok(self.service_steps(service))
    }

    /// Forgets a service; the steps to be undone, last one first.
    pub(super) fn remove_service(&mut self, service: IpAddr) -> Vec<Step> {
        if !self.services.contains_key(&service) {
            return Vec::new();
        }
        let steps = self.service_steps(service);
        self.services.remove(&service);
        self.preferences.retain(&self.matches());
        steps
    }

    /// Takes note of the source that local processes now use towards a service. If that is another
    /// one, and the service has a route: that route as it was, and as it should be.
    pub(super) fn change_source(
        &mut self,
        service: IpAddr,
        source: Option<Ipv4Addr>,
    ) -> Option<(Route, Route)> {
        let before = self.service_route(service)?;
        *self.services.get_mut(&service)? = source;
        let after = self.service_route(service)?;
        (before != after).then_some((before, after))
    }

    /// The services, in no particular order.
    pub(super) fn services(&self) -> Vec<IpAddr> {
        self.services.keys().copied().collect()
    }

    /// The host's addresses, as last taken note of.
    pub(super) fn addresses(&self) -> &BTreeSet<IpNet> {
        &self.host.addresses
    }

    /// Takes note of which families the host forwards now.
    pub(super) fn adopt_forwarding(&mut self, families: BTreeSet<Family>) {
        self.host.forwarding = families;
    }

    /// Takes note of the interfaces and addresses that the host has now. Gives whether they are
    /// others than before.
    ///
    /// # Errors
    /// There would be too many filters. Nothing has changed then.
    pub(super) fn adopt_links(
        &mut self,
        links: Vec<Interface>,
        addresses: BTreeSet<IpNet>,
    ) -> Result<bool, RoutesError> {
        if self.host.links == links && self.host.addresses == addresses {
            return Ok(false);
        }
        let links = std::mem::replace(&mut self.host.links, links);
        let addresses = std::mem::replace(&mut self.host.addresses, addresses);
        if let Err(e) = self.assign_preferences() {
            (self.host.links, self.host.addresses) = (links, addresses);
            return Err(e);
        }
        Ok(true)
    }

    /// Takes note of whether an interface's reverse-path filter is strict now. Gives whether that
    /// has changed.
    pub(super) fn adopt_reverse_path(&mut self, strict: bool) -> bool {
        std::mem::replace(&mut self.host.strict_reverse_path, strict) != strict
    }

    /// The families that there are addresses of and whose packets the kernel doesn't forward,
    /// though it would have to.
    pub(super) fn forwarding_missing(&self) -> Vec<Family> {
        let mut families = self.settings.families();
        // IPv4's come before IPv6's.
        let services = &self.services;
        let ends = services
            .keys()
            .next()
            .into_iter()
            .chain(services.keys().next_back());
        families.extend(ends.copied().map(Family::of));
        families.sort();
        families.dedup();
        families.retain(|family| {
            self.settings.egress == Egress::Tun && !self.host.forwarding.contains(family)
        });
        families
    }

    /// The whole arrangement, in the order in which it can be made.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = self.link_steps();
        steps.extend(self.forwarding_missing().into_iter().map(Step::Forwarding));
        let families = Family::ALL
            .into_iter()
            .filter(|family| self.host.has(*family));
        for family in families {
            steps.extend(self.static_routes(family).into_iter().map(Step::Route));
            steps.extend(self.static_rules(family).into_iter().map(Step::Rule));
        }
        for service in self.services.keys() {
            steps.extend(self.service_rule(*service).map(Step::Rule));
            steps.extend(self.service_route(*service).map(Step::Route));
        }
        let matches = self.matches();
        for link in &self.host.links {
            if !matches.is_empty() {
                steps.push(Step::Hook(link.clone()));
            }
            steps.extend(matches.iter().map(|what| self.filter(link, what)));
        }
        steps
    }

    /// The steps of one service.
    fn service_steps(&self, service: IpAddr) -> Vec<Step> {
        let mut steps: Vec<_> = self
            .service_rule(service)
            .map(Step::Rule)
            .into_iter()
            .collect();
        steps.extend(self.service_route(service).map(Step::Route));
        let what = Match::To(service);
        if self.redirects(&what) {
            steps.extend(self.host.links.iter().map(|link| self.filter(link, &what)));
        }
        steps
    }

    fn by_clients(&self) -> bool {
        !self.settings.clients.is_empty()
    }

    /// Client networks of one family.
    fn clients(&self, family: Family) -> impl Iterator<Item = IpNet> {
        let of_family = move |net: &IpNet| Family::of(net.addr()) == family;
        self.settings.clients.iter().copied().filter(of_family)
    }

    /// Whether answers have to come back through the TUN, or be dropped by a strict check.
    fn answers_come_too(&self, family: Family) -> bool {
        family == Family::V4 && self.host.strict_reverse_path && self.settings.egress == Egress::Tun
    }

    fn link_steps(&self) -> Vec<Step> {
        let tun = &self.settings.tun;
        let of_tun = |family: &str, name: &str, value| Step::Parameter {
            path: format!("net/{family}/conf/{tun}/{name}"),
            value,
        };
        let link = |change| Step::Link {
            tun: tun.clone(),
            change,
        };
        let mtu = link(LinkChange::Mtu(self.settings.mtu));
        let mut steps = if self.host.has(Family::V6) {
            // IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h): no link-local address, and so
            // no router solicitations among the packets.
            let no_address = of_tun("ipv6", "addr_gen_mode", 1);
            vec![link(LinkChange::Mute), mtu, no_address]
        } else {
            vec![mtu]
        };
        steps.push(link(LinkChange::Up));
        if self.settings.egress == Egress::Tun {
            steps.push(of_tun("ipv4", "rp_filter", 2));
            steps.push(of_tun("ipv4", "accept_local", 1));
            steps.push(Step::Address {
                tun: tun.clone(),
                address: DUMMY_ADDRESS,
            });
        }
        steps
    }

    fn route(&self, destination: IpNet, table: u32) -> Route {
        Route {
            destination,
            tun: self.settings.tun.clone(),
            table,
            source: None,
        }
    }

    fn static_routes(&self, family: Family) -> Vec<Route> {
        let to_proxy = |proxy| self.route(proxy, self.settings.table);
        let mut routes: Vec<_> = self.proxies(family).map(to_proxy).collect();
        let by_clients =
            self.settings.egress == Egress::Tun && self.clients(family).next().is_some();
        if by_clients || self.answers_come_too(family) {
            routes.push(self.route(family.everything(), self.settings.everything_table()));
        }
        routes
    }

    fn proxies(&self, family: Family) -> impl Iterator<Item = IpNet> {
        let of_family = move |proxy: &IpAddr| Family::of(*proxy) == family;
        self.settings
            .proxies
            .iter()
            .copied()
            .filter(of_family)
            .map(IpNet::from)
    }

    fn static_rules(&self, family: Family) -> Vec<Rule> {
        let Settings {
            table,
            priority,
            egress,
            ..
        } = &self.settings;
        let rule = |place, selector, action| Rule {
            family,
            priority: priority + place,
            selector,
            action,
        };
        let skip = Action::Goto(priority + order::END);
        let mut rules = vec![rule(order::END, Selector::All, Action::Nop)];
        match egress {
            Egress::Raw { mark } => rules.push(rule(order::REWRITTEN, Selector::Mark(*mark), skip)),
            Egress::Tun => {
                let from_tun = Selector::From(self.settings.tun.clone());
                rules.push(rule(order::REWRITTEN, from_tun, skip));
                for proxy in self.proxies(family) {
                    rules.push(rule(order::REWRITTEN, Selector::Source(proxy), skip));
                }
                rules.push(rule(
                    order::LOCAL_END,
                    Selector::From("lo".to_owned()),
                    skip,
                ));
            }
        }
        for proxy in self.proxies(family) {
            let to_proxy = Selector::Destination(proxy);
            rules.push(rule(
                order::PROXIES_AND_LOCAL,
                to_proxy,
                Action::Lookup(*table),
            ));
        }
        if !self.by_clients() {
            for protocol in [IPPROTO_TCP as u8, IPPROTO_UDP as u8, family.icmp()] {
                let local = Selector::Local { protocol };
                rules.push(rule(
                    order::PROXIES_AND_LOCAL,
                    local,
                    Action::Lookup(*table),
                ));
            }
        }
        if *egress == Egress::Tun {
            let forwarded = self.forwarded(family).into_iter();
            rules.extend(
                forwarded.map(|(selector, table)| {
                    rule(order::FORWARDED, selector, Action::Lookup(table))
                }),
            );
        }
        rules
    }

    /// Which packets from elsewhere are looked up in which table.
    fn forwarded(&self, family: Family) -> Vec<(Selector, u32)> {
        if !self.by_clients() {
            return vec![(Selector::All, self.settings.table)];
        }
        let everything = self.settings.everything_table();
        let mut selected = Vec::new();
        for net in self.clients(family) {
            selected.push((Selector::Source(net), everything));
            // The network of all addresses holds the answers already.
            if self.answers_come_too(family) && net.prefix_len() != 0 {
                selected.push((Selector::Destination(net), everything));
            }
        }
        selected
    }

    fn service_route(&self, service: IpAddr) -> Option<Route> {
        let source = self.services.get(&service).copied().flatten();
        let route = || self.route(IpNet::from(service), self.settings.table);
        (!self.by_clients()).then(|| Route { source, ..route() })
    }

    /// The rule that brings what the service sends.
    fn service_rule(&self, service: IpAddr) -> Option<Rule> {
        let family = Family::of(service);
        (!self.by_clients() && self.answers_come_too(family)).then(|| Rule {
            family,
            priority: self.settings.priority + order::FORWARDED,
            selector: Selector::Source(IpNet::from(service)),
            action: Action::Lookup(self.settings.everything_table()),
        })
    }

    /// Whether a filter is needed at all for these packets.
    fn redirects(&self, what: &Match) -> bool {
        let is_service = matches!(what, Match::To(a) if !self.settings.proxies.contains(a));
        matches!(self.settings.egress, Egress::Raw { .. }) && !(is_service && self.by_clients())
    }

    /// What filters there should be on every interface: none, unless egress is raw.
    fn matches(&self) -> Vec<Match> {
        if self.settings.egress == Egress::Tun {
            return Vec::new();
        }
        let passed = if self.by_clients() {
            self.host_destinations()
        } else {
            Vec::new()
        };
        let clients = self.settings.clients.iter().map(|net| Match::From(*net));
        let proxies = self.settings.proxies.iter().map(|proxy| Match::To(*proxy));
        let services = self.services.keys().map(|service| Match::To(*service));
        let all = passed
            .into_iter()
            .map(Match::Pass)
            .chain(proxies)
            .chain(clients)
            .chain(services);
        all.filter(|what| self.redirects(what)).collect()
    }

    /// Where packets go that are the host's own business, though a client sent them.
    fn host_destinations(&self) -> Vec<IpNet> {
        // Multicast, and IPv4's limited broadcast; then IPv6's multicast and link-local unicast.
        let v4 = [(Ipv4Addr::new(224, 0, 0, 0), 4), (Ipv4Addr::BROADCAST, 32)];
        let v6 = [(0xff00, 8), (0xfe80, 10)];
        let v4 = v4
            .into_iter()
            .filter_map(|(net, len)| Ipv4Net::new(net, len).ok().map(IpNet::V4));
        let v6 = v6.into_iter().filter_map(|(first, len)| {
            Ipv6Net::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), len)
                .ok()
                .map(IpNet::V6)
        });
        let clients = self
            .settings
            .clients
            .iter()
            .map(|net| Family::of(net.addr()));
        let families: BTreeSet<_> = clients.collect();
        let mut all: BTreeSet<_> = v4.chain(v6).collect();
        all.extend(&self.host.addresses);
        all.into_iter()
            .filter(|net| families.contains(&Family::of(net.addr())))
            .collect()
    }

    fn filter(&self, link: &Interface, what: &Match) -> Step {
        Step::Filter(Filter {
            interface: link.clone(),
            preference: self.preferences.of(what),
            what: what.clone(),
            tun: self.settings.tun.clone(),
        })
    }

    fn assign_preferences(&mut self) -> Result<(), RoutesError> {
        let matches = self.matches();
        self.preferences.retain(&matches);
        self.preferences.assign(&matches)
    }
}

/// The commands that set everything up, one a line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps()
            .iter()
            .try_for_each(|step| writeln!(f, "{}", step.command()))
    }
}

/// Which filter has which preference. A filter keeps its number as long as it exists.
#[derive(Debug, Clone)]
struct Preferences {
    first: u16,
    assigned: BTreeMap<Match, u16>,
}

impl Preferences {
    /// Preferences for [`Match::Pass`], counted from the first; the others follow them.
    const PASSING: Range<u16> = 0..1024;
    const REDIRECTING: Range<u16> = 1024..Settings::PREFERENCES;

    fn starting_at(first: u16) -> Self {
        Self {
            first,
            assigned: BTreeMap::new(),
        }
    }

    fn of(&self, what: &Match) -> u16 {
        self.assigned.get(what).copied().unwrap_or(self.first)
    }

    fn retain(&mut self, wanted: &[Match]) {
        let wanted: BTreeSet<_> = wanted.iter().collect();
        self.assigned.retain(|what, _| wanted.contains(what));
    }

    fn assign(&mut self, wanted: &[Match]) -> Result<(), RoutesError> {
        let mut taken: BTreeSet<_> = self.assigned.values().copied().collect();
        for what in wanted {
            if self.assigned.contains_key(what) {
                continue;
            }
            let range = match what {
                Match::Pass(_) => Self::PASSING,
                Match::To(_) | Match::From(_) => Self::REDIRECTING,
            };
            let limit = range.end - range.start;
            let mut numbers = range.map(|offset| self.first + offset);
            let Some(free) = numbers.find(|number| !taken.contains(number)) else {
                return Err(RoutesError::TooManyFilters { limit });
            };
            taken.insert(free);
            self.assigned.insert(what.clone(), free);
        }
        Ok(())
    }
}
