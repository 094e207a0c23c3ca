//! The diversions: which service goes to which mirrors, for which clients.
//!
//! The most specific diversion wins: the longest client prefix first, then one with a port before one
//! without, then one with a protocol before one without.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ahash::RandomState;
use control_protocol::{ClientPrefix, Mirror, MirrorAddress, Protocol, Service};
use rand::Rng;
use thiserror::Error;

use super::Peek;
use crate::packet::{Address, Endpoint};

/// The number of a diversion. It keeps it when its mirrors change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiversionId(pub u32);

/// A rule: service, for these clients, to these mirrors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diversion {
    /// Its number.
    pub id: DiversionId,
    /// Whose traffic it diverts.
    pub service: Service,
    /// Only for these clients; none: for all.
    pub from: Option<ClientPrefix>,
    /// Where the traffic goes, shared by weight.
    pub mirrors: Vec<Mirror>,
    /// Only DNS queries for these names follow it; none: all packets do.
    pub peek: Option<Peek>,
}

/// Why a diversion isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No mirror was given.
    #[error("a diversion needs at least one mirror")]
    NoMirror,
    /// The same mirror was given twice.
    #[error("mirror {0} is named twice; give it a weight instead (for instance {0}*2)")]
    MirrorTwice(MirrorAddress),
    /// All the mirrors have weight 0.
    #[error("every mirror has weight 0, so new connections would have nowhere to go")]
    NoWeight,
    /// A service or mirror that isn't a unicast address that packets can be sent to.
    #[error("{address} is {kind}; a service, mirror or proxy must be a unicast address of a host")]
    NotUnicast {
        /// The address.
        address: IpAddr,
        /// What it is.
        kind: &'static str,
    },
    /// Service and mirror are of different families.
    #[error("{service} and {mirror} are of different families (IPv4 and IPv6)")]
    FamilyMismatch {
        /// The service's address.
        service: IpAddr,
        /// The mirror's address.
        mirror: IpAddr,
    },
    /// Service and client prefix are of different families.
    #[error("service {service} and client prefix {from} are of different families (IPv4 and IPv6)")]
    PrefixFamilyMismatch {
        /// The service's address.
        service: IpAddr,
        /// The client prefix.
        from: ClientPrefix,
    },
    /// The daemon has no proxy address of the mirror's family.
    #[error("there is no proxy address of {mirror}'s family; start shuntd with one more --proxy")]
    NoProxy {
        /// The mirror's address.
        mirror: IpAddr,
    },
    /// A mirror port for a service without one.
    #[error(
        "mirror {mirror} has a port but service {service} has none, so all its ports would be \
         merged into one; write the service as {}:PORT", service.address
    )]
    PortWithoutServicePort {
        /// The service.
        service: Service,
        /// The mirror.
        mirror: MirrorAddress,
    },
    /// A mirror port for a protocol that has none.
    #[error("mirror {mirror} has a port, but protocol {protocol} has none")]
    PortWithoutPorts {
        /// The mirror.
        mirror: MirrorAddress,
        /// The protocol.
        protocol: Protocol,
    },
    /// A diversion that is to look at DNS queries, of a service that may be something else.
    #[error(
        "{0} isn't a UDP port, so there are no DNS queries to peek at; write the service as \
         IP:PORT/udp, such as {address}:53/udp", address = .0.address
    )]
    PeekWithoutUdpPort(Service),
    /// A service or mirror that is one of the rewriter's own proxy addresses.
    #[error("{0} is a proxy address of this rewriter; traffic to it would loop")]
    IsProxy(IpAddr),
    /// A mirror that is a diverted service itself.
    #[error(
        "mirror {mirror} is itself diverted (diversion of {service}); traffic would be diverted \
             on; divert to the last mirror directly"
    )]
    MirrorIsDiverted {
        /// The mirror.
        mirror: MirrorAddress,
        /// The diversion of it that exists.
        service: Service,
    },
    /// A service that is a mirror of another diversion.
    #[error(
        "{service} is a mirror of the diversion of {other}, whose traffic would be diverted on; \
             redirect {other} first"
    )]
    ServiceIsMirror {
        /// The service.
        service: Service,
        /// The diversion that has it as a mirror.
        other: Service,
    },
}

impl Diversion {
    /// The mirror that a connection to `service` with this `mirror` rule has.
    pub fn endpoint(mirror: &Mirror, service: Endpoint) -> Endpoint {
        Endpoint::new(mirror.address, mirror.port.unwrap_or(service.port))
    }

    /// A mirror for a new connection to `service`, picked at random by weight. `None` when all
    /// weights are 0, which no diversion in a table is.
    pub fn pick(&self, service: Endpoint, random: &mut impl Rng) -> Option<Endpoint> {
        self.pick_but(service, |_| false, random)
    }

    /// A mirror as [`Diversion::pick`] gives, but none that `is_out`. `None` when there is no other.
    pub fn pick_but(
        &self,
        service: Endpoint,
        is_out: impl Fn(Endpoint) -> bool,
        random: &mut impl Rng,
    ) -> Option<Endpoint> {
        if let [only] = self.mirrors.as_slice() {
            return Some(Self::endpoint(only, service)).filter(|only| !is_out(*only));
        }
        let weight = |mirror: &Mirror| {
            if is_out(Self::endpoint(mirror, service)) {
                0
            } else {
                u32::from(mirror.weight)
            }
        };
        let total: u32 = self.mirrors.iter().map(weight).sum();
        if total == 0 {
            return None;
        }
        let mut left = random.random_range(0..total);
        let mirror = self.mirrors.iter().find(|mirror| {
            let weight = weight(mirror);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        })?;
        Some(Self::endpoint(mirror, service))
    }

    /// Whether new connections to `service` may go to `mirror`.
    pub fn has_mirror(&self, service: Endpoint, mirror: Endpoint) -> bool {
        self.mirrors
            .iter()
            .any(|m| m.weight > 0 && Self::endpoint(m, service) == mirror)
    }

    /// Whether the traffic goes to the very service that it is meant for.
    fn is_identity(&self) -> bool {
        self.mirrors.iter().all(|mirror| {
            mirror.address == self.service.address
                && (mirror.port.is_none() || mirror.port == self.service.port)
        })
    }

    /// Whether a packet of this protocol to this service from this client follows the diversion.
    fn matches(&self, client: IpAddr, service: Endpoint, protocol: Protocol) -> bool {
        self.service
            .port
            .is_none_or(|port| port == service.port && protocol.has_ports())
            && self.service.protocol.is_none_or(|p| p == protocol)
            && self.from.is_none_or(|from| from.contains(client))
    }

    /// The greater, the more specific.
    fn specificity(&self) -> (u8, bool, bool) {
        let prefix_length = self.from.map_or(0, |from| from.network().prefix_len());
        (
            prefix_length,
            self.service.port.is_some(),
            self.service.protocol.is_some(),
        )
    }
}

/// All diversions, as one worker knows them.
#[derive(Debug, Default)]
pub struct Diversions {
    /// By service address; the most specific first.
    by_service: HashMap<Address, Vec<Diversion>, RandomState>,
    /// How many of them peek.
    peeking: usize,
    /// Services without a diversion that may still have connections.
    remembered: HashSet<Address, RandomState>,
}

impl Diversions {
    /// Adds a diversion; one of the same service and client prefix is replaced.
    pub fn set(&mut self, diversion: Diversion) {
        let address = diversion.service.address.into();
        self.remembered.remove(&address);
        self.peeking += usize::from(diversion.peek.is_some());
        let same_service = self.by_service.entry(address).or_default();
        same_service.retain(|d| {
            let is_kept = (d.service, d.from) != (diversion.service, diversion.from);
            self.peeking -= usize::from(!is_kept && d.peek.is_some());
            is_kept
        });
        let at = same_service.partition_point(|d| d.specificity() > diversion.specificity());
        same_service.insert(at, diversion);
    }

    /// Removes a diversion. Its service is remembered until [`Diversions::forget`].
    pub fn remove(&mut self, service: &Service, from: Option<&ClientPrefix>) {
        let address = service.address.into();
        if let Some(same_service) = self.by_service.get_mut(&address) {
            same_service.retain(|d| {
                let is_kept = (&d.service, d.from.as_ref()) != (service, from);
                self.peeking -= usize::from(!is_kept && d.peek.is_some());
                is_kept
            });
            if same_service.is_empty() {
                self.by_service.remove(&address);
                self.remembered.insert(address);
            }
        }
    }

    /// Says that a service without a diversion has no connections any more.
    pub fn forget(&mut self, service: Address) {
        self.remembered.remove(&service);
    }

    /// Whether packets to this address may belong to a diversion or to a connection.
    pub fn concern(&self, address: Address) -> bool {
        self.by_service.contains_key(&address) || self.remembered.contains(&address)
    }

    /// The most specific diversion for a packet.
    pub fn find(
        &self,
        client: Address,
        service: Endpoint,
        protocol: Protocol,
    ) -> Option<&Diversion> {
        let client = IpAddr::from(client);
        self.by_service
            .get(&service.address)?
            .iter()
            .find(|diversion| diversion.matches(client, service, protocol))
    }

    /// The names that the diversion for a packet is limited to, if it is.
    pub fn peek(&self, client: Address, service: Endpoint, protocol: Protocol) -> Option<&Peek> {
        if self.peeking == 0 || protocol != Protocol::Udp {
            return None;
        }
        self.find(client, service, protocol)?.peek.as_ref()
    }

    /// The diversion with just this service and client prefix.
    pub fn get(&self, service: &Service, from: Option<&ClientPrefix>) -> Option<&Diversion> {
        self.by_service
            .get(&service.address.into())?
            .iter()
            .find(|d| (&d.service, d.from.as_ref()) == (service, from))
    }

    /// All of them, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Diversion> {
        self.by_service.values().flatten()
    }

    /// Whether `diversion` may be added to (or replace its like in) this table.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self, diversion: &Diversion, proxies: &[IpAddr]) -> Result<(), Refusal> {
        check_alone(diversion, proxies)?;
        let others = || {
            self.iter()
                .filter(|d| (d.service, d.from) != (diversion.service, diversion.from))
        };
        for mirror in &diversion.mirrors {
            // A service that goes to itself isn't diverted on.
            if let Some(other) = others().find(|other| {
                !other.is_identity() && mirror_meets(mirror, diversion, &other.service)
            }) && mirror.address != diversion.service.address
            {
                return Err(Refusal::MirrorIsDiverted {
                    mirror: mirror_address(mirror),
                    service: other.service,
                });
            }
        }
        if !diversion.is_identity()
            && let Some(other) = others().find(|other| {
                other.service.address != diversion.service.address
                    && other
                        .mirrors
                        .iter()
                        .any(|m| mirror_meets(m, other, &diversion.service))
            })
        {
            return Err(Refusal::ServiceIsMirror {
                service: diversion.service,
                other: other.service,
            });
        }
        Ok(())
    }
}

/// What can be said of a diversion without knowing the others.
fn check_alone(diversion: &Diversion, proxies: &[IpAddr]) -> Result<(), Refusal> {
    let Diversion {
        service,
        mirrors,
        from,
        ..
    } = diversion;
    if mirrors.is_empty() {
        return Err(Refusal::NoMirror);
    }
    if mirrors.iter().all(|mirror| mirror.weight == 0) {
        return Err(Refusal::NoWeight);
    }
    if diversion.peek.is_some()
        && (service.port.is_none() || service.protocol != Some(Protocol::Udp))
    {
        return Err(Refusal::PeekWithoutUdpPort(*service));
    }
    check_host(service.address, proxies)?;
    if let Some(from) = from
        && from.network().addr().is_ipv4() != service.address.is_ipv4()
    {
        return Err(Refusal::PrefixFamilyMismatch {
            service: service.address,
            from: *from,
        });
    }
    for (number, mirror) in mirrors.iter().enumerate() {
        check_host(mirror.address, proxies)?;
        let address = mirror_address(mirror);
        if mirrors[..number]
            .iter()
            .any(|other| mirror_address(other) == address)
        {
            return Err(Refusal::MirrorTwice(address));
        }
        if mirror.address.is_ipv4() != service.address.is_ipv4() {
            return Err(Refusal::FamilyMismatch {
                service: service.address,
                mirror: mirror.address,
            });
        }
        if !proxies
            .iter()
            .any(|proxy| proxy.is_ipv4() == mirror.address.is_ipv4())
        {
            return Err(Refusal::NoProxy {
                mirror: mirror.address,
            });
        }
        match (service.port, service.protocol, mirror.port) {
            (_, _, None) | (Some(_), _, Some(_)) => {}
            (None, Some(protocol), Some(_)) if !protocol.has_ports() => {
                return Err(Refusal::PortWithoutPorts {
                    mirror: address,
                    protocol,
                });
            }
            (None, _, Some(_)) => {
                return Err(Refusal::PortWithoutServicePort {
                    service: *service,
                    mirror: address,
                });
            }
        }
    }
    Ok(())
}

/// Whether an address can be a service or a mirror.
fn check_host(address: IpAddr, proxies: &[IpAddr]) -> Result<(), Refusal> {
    if let Some(kind) = not_unicast(address) {
        return Err(Refusal::NotUnicast { address, kind });
    }
    if proxies.contains(&address) {
        return Err(Refusal::IsProxy(address));
    }
    Ok(())
}

/// Whether every one of these addresses can be a proxy address.
///
/// # Errors
/// The first that can't.
pub fn check_proxies(addresses: &[IpAddr]) -> Result<(), Refusal> {
    addresses
        .iter()
        .try_for_each(|address| check_host(*address, &[]))
}

/// What an address is when it isn't a host's unicast address.
fn not_unicast(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of \"this network\" (0.0.0.0/8)"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

fn mirror_address(mirror: &Mirror) -> MirrorAddress {
    MirrorAddress {
        address: mirror.address,
        port: mirror.port,
    }
}

/// Whether traffic that `diversion` sends to its `mirror` could be traffic for `service`.
fn mirror_meets(mirror: &Mirror, diversion: &Diversion, service: &Service) -> bool {
    let port = mirror.port.or(diversion.service.port);
    mirror.address == service.address
        && (port.is_none() || service.port.is_none() || port == service.port)
        && match (diversion.service.protocol, service.protocol) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn diversion(id: u32, service: &str, mirrors: &[&str], from: Option<&str>) -> Diversion {
        Diversion {
            id: DiversionId(id),
            service: service.parse().unwrap(),
            from: from.map(|from| from.parse().unwrap()),
            mirrors: mirrors
                .iter()
                .map(|mirror| mirror.parse().unwrap())
                .collect(),
            peek: None,
        }
    }

    fn proxies() -> Vec<IpAddr> {
        vec![
            "10.10.10.10".parse().unwrap(),
            "fd00:10::10".parse().unwrap(),
        ]
    }

    #[test]
    fn peeking_diversions_are_counted_as_they_come_and_go() {
        let peeking = |id| Diversion {
            peek: Some(Peek::default()),
            ..diversion(id, "10.0.0.53:53/udp", &["10.1.0.1"], None)
        };
        let service = peeking(0).service;
        let mut table = Diversions::default();
        table.set(diversion(1, "10.0.0.54", &["10.1.0.1"], None));
        assert_eq!(table.peeking, 0);
        table.set(peeking(0));
        table.set(peeking(0));
        assert_eq!(table.peeking, 1);
        table.set(diversion(0, "10.0.0.53:53/udp", &["10.1.0.1"], None));
        assert_eq!(table.peeking, 0);
        table.set(peeking(0));
        table.remove(&service, None);
        table.remove(&service, None);
        assert_eq!(table.peeking, 0);
    }

    fn refusal(existing: &[Diversion], new: &Diversion) -> String {
        let mut table = Diversions::default();
        for diversion in existing {
            table.check(diversion, &proxies()).unwrap();
            table.set(diversion.clone());
        }
        table
            .check(new, &proxies())
            .map_or_else(|e| e.to_string(), |()| "taken".to_owned())
    }

    #[test]
    fn the_most_specific_diversion_wins() {
        let mut table = Diversions::default();
        for (id, service, from) in [
            (1, "100.100.100.100", None),
            (2, "100.100.100.100/udp", None),
            (3, "100.100.100.100:80", None),
            (4, "100.100.100.100:80/tcp", None),
            (5, "100.100.100.100", Some("10.1.0.0/16")),
            (6, "100.100.100.100", Some("10.1.2.0/24")),
            (7, "100.100.100.100:80", Some("10.1.2.0/24")),
        ] {
            table.set(diversion(id, service, &["10.2.0.2"], from));
        }
        let find = |client: &str, port, protocol| {
            let client: IpAddr = client.parse().unwrap();
            let service = Endpoint::new(IpAddr::from([100, 100, 100, 100]), port);
            table.find(client.into(), service, protocol).unwrap().id.0
        };
        assert_eq!(find("9.9.9.9", 22, Protocol::Tcp), 1);
        assert_eq!(find("9.9.9.9", 22, Protocol::Udp), 2);
        assert_eq!(
            find("9.9.9.9", 80, Protocol::Udp),
            3,
            "port before protocol"
        );
        assert_eq!(find("9.9.9.9", 80, Protocol::Tcp), 4);
        assert_eq!(find("10.1.1.1", 80, Protocol::Tcp), 5, "prefix before port");
        assert_eq!(find("10.1.2.1", 22, Protocol::Tcp), 6, "the longer prefix");
        assert_eq!(find("10.1.2.1", 80, Protocol::Tcp), 7);
        assert_eq!(find("9.9.9.9", 0, Protocol::Icmp), 1);
    }

    #[test]
    fn a_service_with_a_port_does_not_catch_echoes() {
        let mut table = Diversions::default();
        table.set(diversion(1, "100.100.100.100:80", &["10.2.0.2"], None));
        let service = Endpoint::new(IpAddr::from([100, 100, 100, 100]), 0);
        assert_eq!(
            table.find(Address::v4([9, 9, 9, 9]), service, Protocol::Icmp),
            None
        );
    }

    #[test]
    fn weights_share_new_connections() {
        let diversion = diversion(
            1,
            "100.100.100.100:80",
            &["10.2.0.2*3", "10.2.0.3", "10.2.0.4*0"],
            None,
        );
        let service = Endpoint::new(IpAddr::from([100, 100, 100, 100]), 80);
        let mut random = StdRng::seed_from_u64(3);
        let mut counts = HashMap::new();
        for _ in 0..4000 {
            *counts
                .entry(diversion.pick(service, &mut random).unwrap())
                .or_insert(0) += 1;
        }
        let count = |last| {
            counts
                .get(&Endpoint::new(IpAddr::from([10, 2, 0, last]), 80))
                .copied()
                .unwrap_or(0)
        };
        assert!((2800..3200).contains(&count(2)), "{}", count(2));
        assert_eq!(count(2) + count(3), 4000);
        assert_eq!(count(4), 0, "weight 0 gets no new connections");
    }

    #[test]
    fn a_mirror_that_is_out_is_never_picked() {
        let mut random = StdRng::seed_from_u64(3);
        let service = Endpoint::new(IpAddr::from([100, 100, 100, 100]), 80);
        let mirror = |last| Endpoint::new(IpAddr::from([10, 2, 0, last]), 80);
        let mut pick = |mirrors: &[&str]| {
            let diversion = diversion(1, "100.100.100.100:80", mirrors, None);
            diversion.pick_but(service, |other| other == mirror(2), &mut random)
        };
        for _ in 0..100 {
            let picked = pick(&["10.2.0.2*99", "10.2.0.3", "10.2.0.4"]);
            assert!(picked == Some(mirror(3)) || picked == Some(mirror(4)));
            assert_eq!(
                pick(&["10.2.0.2*99", "10.2.0.3", "10.2.0.4*0"]),
                Some(mirror(3))
            );
        }
        assert_eq!(pick(&["10.2.0.2"]), None);
        assert_eq!(pick(&["10.2.0.2", "10.2.0.3*0"]), None);
    }

    #[test]
    fn a_removed_service_is_remembered_until_it_is_forgotten() {
        let mut table = Diversions::default();
        let diversion = diversion(1, "100.100.100.100:80", &["10.2.0.2"], None);
        let address = Address::v4([100, 100, 100, 100]);
        table.set(diversion.clone());
        table.remove(&diversion.service, None);
        assert_eq!(table.iter().count(), 0);
        assert!(table.concern(address));
        table.forget(address);
        assert!(!table.concern(address));
    }

    #[test]
    fn what_would_loop_is_refused() {
        let a_to_b = || diversion(1, "100.0.0.1:80", &["10.2.0.2"], None);
        let cases = [
            (
                vec![],
                diversion(2, "100.0.0.1:80", &["10.10.10.10"], None),
                "10.10.10.10 is a proxy address of this rewriter; traffic to it would loop",
            ),
            (
                vec![],
                diversion(2, "10.10.10.10:80", &["10.2.0.2"], None),
                "10.10.10.10 is a proxy address of this rewriter; traffic to it would loop",
            ),
            (
                vec![a_to_b()],
                diversion(2, "100.0.0.2:80", &["100.0.0.1"], None),
                "mirror 100.0.0.1 is itself diverted (diversion of 100.0.0.1:80); traffic would be \
              diverted on; divert to the last mirror directly",
            ),
            (
                vec![a_to_b()],
                diversion(2, "10.2.0.2", &["10.2.0.3"], None),
                "10.2.0.2 is a mirror of the diversion of 100.0.0.1:80, whose traffic would be diverted \
              on; redirect 100.0.0.1:80 first",
            ),
            (
                vec![a_to_b()],
                diversion(2, "10.2.0.2:443", &["10.2.0.3"], None),
                "taken",
            ),
            (
                vec![a_to_b()],
                diversion(2, "10.2.0.2", &["10.2.0.2"], None),
                "taken",
            ),
            (
                vec![diversion(1, "10.2.0.2", &["10.2.0.2"], None)],
                diversion(2, "100.0.0.1:80", &["10.2.0.2"], None),
                "taken",
            ),
            (
                vec![a_to_b()],
                diversion(2, "100.0.0.1:80", &["10.2.0.3"], None),
                "taken",
            ),
        ];
        for (existing, new, expected) in cases {
            assert_eq!(refusal(&existing, &new), expected);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_sentence() {
        let cases = [
            (
                "100.0.0.1:80",
                &["fd00::1"][..],
                None,
                "100.0.0.1 and fd00::1 are of different families (IPv4 and IPv6)",
            ),
            (
                "100.0.0.1:80",
                &["10.2.0.2"],
                Some("fd00::/64"),
                "service 100.0.0.1 and client prefix fd00::/64 are of different families (IPv4 and IPv6)",
            ),
            (
                "224.0.0.1:80",
                &["10.2.0.2"],
                None,
                "224.0.0.1 is a multicast address; a service, mirror or proxy must be a unicast address of a host",
            ),
            (
                "100.0.0.1:80",
                &["255.255.255.255"],
                None,
                "255.255.255.255 is the broadcast address; a service, mirror or proxy must be a unicast address \
              of a host",
            ),
            (
                "100.0.0.1:80",
                &["127.0.0.1"],
                None,
                "127.0.0.1 is a loopback address; a service, mirror or proxy must be a unicast address of a host",
            ),
            (
                "fd00::1",
                &["fe80::1"],
                None,
                "fe80::1 is a link-local address; a service, mirror or proxy must be a unicast address of a host",
            ),
            (
                "0.0.0.0:80",
                &["10.2.0.2"],
                None,
                "0.0.0.0 is the unspecified address; a service, mirror or proxy must be a unicast address of a host",
            ),
            (
                "100.0.0.1",
                &["10.2.0.2:80"],
                None,
                "mirror 10.2.0.2:80 has a port but service 100.0.0.1 has none, so all its ports would be \
              merged into one; write the service as 100.0.0.1:PORT",
            ),
            (
                "100.0.0.1/icmp",
                &["10.2.0.2:80"],
                None,
                "mirror 10.2.0.2:80 has a port, but protocol icmp has none",
            ),
            (
                "100.0.0.1:80",
                &["10.2.0.2*0"],
                None,
                "every mirror has weight 0, so new connections would have nowhere to go",
            ),
            (
                "100.0.0.1:80",
                &["10.2.0.2", "10.2.0.2*2"],
                None,
                "mirror 10.2.0.2 is named twice; give it a weight instead (for instance 10.2.0.2*2)",
            ),
            (
                "100.0.0.1:80",
                &[],
                None,
                "a diversion needs at least one mirror",
            ),
        ];
        for (service, mirrors, from, expected) in cases {
            assert_eq!(
                refusal(&[], &diversion(1, service, mirrors, from)),
                expected
            );
        }
        let v6_only = ["fd00:10::10".parse().unwrap()];
        assert_eq!(
            Diversions::default()
                .check(&diversion(1, "100.0.0.1", &["10.2.0.2"], None), &v6_only)
                .unwrap_err()
                .to_string(),
            "there is no proxy address of 10.2.0.2's family; start shuntd with one more --proxy"
        );
    }
}
