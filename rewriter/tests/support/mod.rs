//! What the engine's tests share: packets built and checked by an independent crate (etherparse), and
//! a daemon's engines without a daemon.

#![allow(dead_code, reason = "each test file uses its own part of it")]
#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

pub mod errors;
pub mod fragments;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use control_protocol::Protocol;
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, PacketBuilder,
    PacketBuilderStep, TransportSlice, ip_number,
};
use rewriter::engine::{
    Config, DropReason, Engine, HopLimit, Ownership, Redirect, RedirectOutcome, Sweep, Time,
    Timeouts, Verdict,
};
use rewriter::packet::{Packet, VnetHeader};
use rewriter::table::{ClientGroups, Diversion, DiversionId, Peek};

pub const CLIENT: &str = "1.2.3.4:3456";
pub const SERVICE: &str = "100.100.100.100:80";
pub const PROXY: &str = "10.10.10.10";
pub const MIRROR: &str = "123.45.67.89:80";

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A packet as it would be seen on a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
}

fn ip(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("one packet, one family"),
    }
}

pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip(source.ip(), destination.ip())
        .udp(source.port(), destination.port())
        .write(&mut packet, payload)
        .unwrap();
    packet
}

pub fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    numbers: (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let mut builder =
        ip(source.ip(), destination.ip()).tcp(source.port(), destination.port(), numbers.0, 1000);
    if flags & FIN != 0 {
        builder = builder.fin();
    }
    if flags & SYN != 0 {
        builder = builder.syn();
    }
    if flags & RST != 0 {
        builder = builder.rst();
    }
    if flags & PSH != 0 {
        builder = builder.psh();
    }
    if flags & ACK != 0 {
        builder = builder.ack(numbers.1);
    }
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    packet
}

pub fn echo(
    source: IpAddr,
    destination: IpAddr,
    request: bool,
    id: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header = IcmpEchoHeader { id, seq: 7 };
    let builder = ip(source, destination);
    let mut packet = Vec::new();
    match (source.is_ipv4(), request) {
        (true, true) => builder
            .icmpv4(Icmpv4Type::EchoRequest(header))
            .write(&mut packet, payload),
        (true, false) => builder
            .icmpv4(Icmpv4Type::EchoReply(header))
            .write(&mut packet, payload),
        (false, true) => builder
            .icmpv6(Icmpv6Type::EchoRequest(header))
            .write(&mut packet, payload),
        (false, false) => builder
            .icmpv6(Icmpv6Type::EchoReply(header))
            .write(&mut packet, payload),
    }
    .unwrap();
    packet
}

/// Any packet of a tracked protocol; the ports of an echo are its identifier at the sender.
pub fn packet_of(
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    reverse: bool,
) -> Vec<u8> {
    match protocol {
        Protocol::Tcp if reverse => tcp(source, destination, SYN | ACK, (9, 8), payload),
        Protocol::Tcp => tcp(source, destination, SYN, (7, 0), payload),
        Protocol::Udp => udp(source, destination, payload),
        Protocol::Icmp if reverse => echo(
            source.ip(),
            destination.ip(),
            false,
            destination.port(),
            payload,
        ),
        Protocol::Icmp => echo(source.ip(), destination.ip(), true, source.port(), payload),
        Protocol::Other(number) => panic!("protocol {number} has neither ports nor an identifier"),
    }
}

/// Reads a packet with etherparse and verifies every checksum in it by a full recomputation.
pub fn see(packet: &[u8]) -> Seen {
    let sliced = LaxSlicedPacket::from_ip(packet).unwrap();
    assert!(sliced.stop_err.is_none(), "{:?}", sliced.stop_err);
    let (source, destination): (IpAddr, IpAddr) = match sliced.net.as_ref().unwrap() {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "the IP header's checksum"
            );
            (header.source.into(), header.destination.into())
        }
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source().into(),
            ip.header().destination().into(),
        ),
        other => panic!("not IP: {other:?}"),
    };
    let pseudo = |protocol, checksum: u16, expected: u16| {
        // The two zeros of one's complement are equal, but in UDP, where 0 would mean "none".
        let same = checksum == expected
            || protocol != Protocol::Udp
                && checksum.is_multiple_of(0xFFFF)
                && expected.is_multiple_of(0xFFFF);
        assert!(
            same,
            "{protocol} checksum {checksum:#06x}, expected {expected:#06x}"
        );
    };
    match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let expected = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => {
                    tcp.calc_checksum_ipv4(s.octets(), d.octets()).unwrap()
                }
                (IpAddr::V6(s), IpAddr::V6(d)) => {
                    tcp.calc_checksum_ipv6(s.octets(), d.octets()).unwrap()
                }
                _ => unreachable!(),
            };
            pseudo(Protocol::Tcp, tcp.checksum(), expected);
            Seen {
                protocol: Protocol::Tcp,
                source: SocketAddr::new(source, tcp.source_port()),
                destination: SocketAddr::new(destination, tcp.destination_port()),
                flags: packet[packet.len() - tcp.slice().len() + 13],
                sequence: tcp.sequence_number(),
                acknowledgement: tcp.acknowledgment_number(),
            }
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let expected = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => header
                    .calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload())
                    .unwrap(),
                (IpAddr::V6(s), IpAddr::V6(d)) => header
                    .calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload())
                    .unwrap(),
                _ => unreachable!(),
            };
            if udp.checksum() != 0 {
                pseudo(Protocol::Udp, udp.checksum(), expected);
            }
            seen(
                Protocol::Udp,
                source,
                udp.source_port(),
                destination,
                udp.destination_port(),
            )
        }
        TransportSlice::Icmpv4(icmp) => {
            let header = icmp.header();
            let expected = header.icmp_type.calc_checksum(icmp.payload());
            pseudo(Protocol::Icmp, header.checksum, expected);
            match header.icmp_type {
                Icmpv4Type::EchoRequest(echo) => {
                    seen(Protocol::Icmp, source, echo.id, destination, 0)
                }
                Icmpv4Type::EchoReply(echo) => {
                    seen(Protocol::Icmp, source, 0, destination, echo.id)
                }
                other => panic!("{other:?}"),
            }
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(s), IpAddr::V6(d)) = (source, destination) else {
                unreachable!()
            };
            assert!(
                icmp.is_checksum_valid(s.octets(), d.octets()),
                "ICMPv6 checksum"
            );
            match icmp.header().icmp_type {
                Icmpv6Type::EchoRequest(echo) => {
                    seen(Protocol::Icmp, source, echo.id, destination, 0)
                }
                Icmpv6Type::EchoReply(echo) => {
                    seen(Protocol::Icmp, source, 0, destination, echo.id)
                }
                other => panic!("{other:?}"),
            }
        }
        other @ TransportSlice::Igmp(_) => panic!("{other:?}"),
    }
}

fn seen(protocol: Protocol, source: IpAddr, from: u16, destination: IpAddr, to: u16) -> Seen {
    Seen {
        protocol,
        source: SocketAddr::new(source, from),
        destination: SocketAddr::new(destination, to),
        flags: 0,
        sequence: 0,
        acknowledgement: 0,
    }
}

/// The IP protocol number of what a packet carries, for packets without extension headers.
pub fn ip_protocol(packet: &[u8]) -> etherparse::IpNumber {
    let number = if packet[0] >> 4 == 4 {
        packet[9]
    } else {
        packet[6]
    };
    if number == 58 {
        ip_number::IPV6_ICMP
    } else {
        etherparse::IpNumber(number)
    }
}

/// The engines of one daemon, and the time.
pub struct World {
    pub engines: Vec<Engine>,
    pub now: Time,
    hop_limit: HopLimit,
    next_id: u32,
    /// How many redirects there have been; the number of the last one.
    pub redirects: u64,
}

impl World {
    pub fn new(workers: u16) -> Self {
        Self::with(workers, |_| {})
    }

    pub fn with(workers: u16, change: impl Fn(&mut Config)) -> Self {
        let now = Time::default();
        let mut hop_limit = HopLimit::Raise;
        let engines = (0..workers)
            .map(|worker| {
                let mut config = Config {
                    worker,
                    ownership: Ownership::new(workers, 0x1234_5678_9ABC_DEF1),
                    proxies: vec![PROXY.parse().unwrap(), "fd00:10::10".parse().unwrap()],
                    proxy_ports: 1024..=65535,
                    max_connections: 1000,
                    max_connections_per_client: None,
                    client_groups: ClientGroups::default(),
                    timeouts: Timeouts::default(),
                    refused_retries: 0,
                    mss_clamp: None,
                    hop_limit: HopLimit::Raise,
                };
                change(&mut config);
                hop_limit = config.hop_limit;
                Engine::new(&config, now)
            })
            .collect();
        Self {
            engines,
            now,
            hop_limit,
            next_id: 1,
            redirects: 0,
        }
    }

    /// Replaces by (service, from) as the control plane does; gives the diversion's number.
    pub fn divert(&mut self, service: &str, mirrors: &[&str]) -> DiversionId {
        self.divert_from(service, mirrors, None)
    }

    pub fn divert_from(
        &mut self,
        service: &str,
        mirrors: &[&str],
        from: Option<&str>,
    ) -> DiversionId {
        self.set(service, mirrors, from, None)
    }

    /// A diversion of DNS queries for certain names only.
    pub fn divert_peeking(&mut self, service: &str, mirrors: &[&str], peek: Peek) -> DiversionId {
        self.set(service, mirrors, None, Some(peek))
    }

    fn set(
        &mut self,
        service: &str,
        mirrors: &[&str],
        from: Option<&str>,
        peek: Option<Peek>,
    ) -> DiversionId {
        let id = DiversionId(self.next_id);
        self.next_id += 1;
        let diversion = Diversion {
            id,
            service: service.parse().unwrap(),
            from: from.map(|from| from.parse().unwrap()),
            mirrors: mirrors
                .iter()
                .map(|mirror| mirror.parse().unwrap())
                .collect(),
            peek,
        };
        for engine in &mut self.engines {
            engine.divert(diversion.clone());
        }
        id
    }

    pub fn restore(&mut self, service: &str) {
        for engine in &mut self.engines {
            engine.restore(&service.parse().unwrap(), None);
        }
    }

    /// Carries out a redirect, under a number of its own.
    pub fn redirect(&mut self, mut redirect: Redirect) -> RedirectOutcome {
        self.redirects += 1;
        redirect.id = self.redirects;
        let now = self.now;
        self.engines
            .iter_mut()
            .fold(RedirectOutcome::default(), |sum, engine| {
                let mut sweep = Sweep::new(redirect);
                // A few slots at a time, to see that slices fit together.
                let outcome = std::iter::repeat_with(|| engine.sweep(&mut sweep, 3, now))
                    .flatten()
                    .next();
                sum.plus(outcome.unwrap())
            })
    }

    pub fn pass_time(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        let now = self.now;
        for engine in &mut self.engines {
            while engine.poll_timeout().is_some_and(|due| due <= now) {
                engine.handle_timeout(now);
            }
        }
    }

    /// Lets a packet arrive at worker 0 and follows it to its owner.
    pub fn handle(&mut self, packet: &mut [u8]) -> Verdict {
        self.handle_with(packet, &mut VnetHeader::default())
    }

    pub fn handle_with(&mut self, packet: &mut [u8], header: &mut VnetHeader) -> Verdict {
        if !self.pass_the_kernel(packet) {
            return Verdict::Dropped(DropReason::HopLimitExceeded);
        }
        let verdict = self.decide(packet, header);
        if matches!(verdict, Verdict::Dropped(_))
            && self.hop_limit == HopLimit::Raise
            && let Ok(mut packet) = Packet::parse(packet)
        {
            packet.raise_hop_limit();
        }
        verdict
    }

    /// Does what the kernel does on the way to the TUN, and the engine undoes. `false`: it wouldn't
    /// have come here.
    pub fn pass_the_kernel(&self, packet: &mut [u8]) -> bool {
        self.hop_limit == HopLimit::Lower
            || !Packet::parse(packet).is_ok_and(|mut packet| !packet.lower_hop_limit())
    }

    fn decide(&mut self, packet: &mut [u8], header: &mut VnetHeader) -> Verdict {
        let before = packet.to_vec();
        match self.engines[0].handle(packet, header, self.now) {
            Verdict::HandOver { owner } => {
                assert_eq!(packet, before, "what is handed over is unchanged");
                let verdict = self.engines[usize::from(owner)].handle(packet, header, self.now);
                assert!(
                    !matches!(verdict, Verdict::HandOver { .. }),
                    "an owner owns"
                );
                verdict
            }
            verdict => verdict,
        }
    }

    /// What the engines want to send of their own accord.
    pub fn sent(&mut self) -> Vec<Seen> {
        self.engines
            .iter_mut()
            .flat_map(|engine| std::iter::from_fn(|| engine.poll_transmit()).collect::<Vec<_>>())
            .map(|outgoing| see(&outgoing.packet))
            .collect()
    }

    pub fn connections(&self) -> usize {
        self.engines
            .iter()
            .map(|engine| engine.connections().len())
            .sum()
    }

    pub fn dropped(&self, reason: rewriter::engine::DropReason) -> u64 {
        self.engines
            .iter()
            .map(|engine| engine.counters().dropped(reason))
            .sum()
    }
}
