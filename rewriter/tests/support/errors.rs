//! ICMP errors: built and verified byte by byte, apart from the code under test, and a connection
//! that errors can be about.

use std::net::{IpAddr, SocketAddr};

use control_protocol::Protocol;
use etherparse::PacketBuilder;
use rewriter::engine::Verdict;
use rewriter::table::Direction;

use super::{World, address, packet_of, see};

/// The hosts of one family.
#[derive(Debug, Clone, Copy)]
pub struct Hosts {
    pub client: &'static str,
    pub service: &'static str,
    pub proxy: &'static str,
    pub mirror: &'static str,
    /// A router, on whichever way.
    pub router: &'static str,
}

pub const V4: Hosts = Hosts {
    client: "1.2.3.4:3456",
    service: "100.100.100.100:80",
    proxy: "10.10.10.10",
    mirror: "123.45.67.89:8080",
    router: "172.31.254.253",
};

pub const V6: Hosts = Hosts {
    client: "[2001:db8:1::1234]:3456",
    service: "[2001:db8:64::100]:80",
    proxy: "fd00:10::10",
    mirror: "[fd00:2::4567]:8080",
    router: "2001:db8:ffff::254",
};

pub const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

/// What an error says, in the numbers of RFC 792 or RFC 4443.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
}

impl Hosts {
    pub fn router(&self) -> IpAddr {
        self.router.parse().unwrap()
    }

    pub fn is_v4(&self) -> bool {
        self.router().is_ipv4()
    }

    /// Length of an IP header without options.
    pub fn ip_header(&self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }

    pub fn port_unreachable(&self) -> Message {
        self.message((3, 3), (1, 4), [0; 4])
    }

    pub fn time_exceeded(&self) -> Message {
        self.message((11, 0), (3, 0), [0; 4])
    }

    /// Fragmentation needed (RFC 1191, section 4) or packet too big.
    pub fn too_big(&self, mtu: u16) -> Message {
        let [high, low] = mtu.to_be_bytes();
        self.message((3, 4), (2, 0), [0, 0, high, low])
    }

    pub fn parameter_problem(&self) -> Message {
        self.message((12, 0), (4, 1), [0, 0, 0, 0])
    }

    fn message(&self, v4: (u8, u8), v6: (u8, u8), rest: [u8; 4]) -> Message {
        let (kind, code) = if self.is_v4() { v4 } else { v6 };
        Message { kind, code, rest }
    }
}

/// An ICMP error in the family of its addresses.
pub fn error(source: IpAddr, destination: IpAddr, message: Message, quote: &[u8]) -> Vec<u8> {
    let Message { kind, code, rest } = message;
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 61)
                .icmpv4_raw(kind, code, rest)
                .write(&mut packet, quote)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 61)
                .icmpv6_raw(kind, code, rest)
                .write(&mut packet, quote)
        }
        _ => panic!("one packet, one family"),
    }
    .unwrap();
    packet
}

/// The packet after so many routers.
pub fn after_hops(packet: &[u8], hops: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= hops;
        put_ip_checksum(&mut packet);
    } else {
        packet[7] -= hops;
    }
    packet
}

/// The IPv4 packet with four bytes of options, or the IPv6 packet with a destination options header.
pub fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        let length = u16::from_be_bytes([packet[2], packet[3]]) + 4;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[0] += 1;
        // Router alert (RFC 2113).
        packet.splice(20..20, [0x94, 0x04, 0, 0]);
        put_ip_checksum(&mut packet);
    } else {
        insert_extension_header(&mut packet, 60, [0, 0, 1, 4, 0, 0, 0, 0]);
    }
    packet
}

/// The packet as the piece of a larger one that starts at `offset`, in eights of bytes.
pub fn as_fragment(packet: &[u8], offset: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[6..8].copy_from_slice(&(0x2000 | offset).to_be_bytes());
        put_ip_checksum(&mut packet);
    } else {
        let [high, low] = (offset << 3 | 1).to_be_bytes();
        insert_extension_header(&mut packet, 44, [0, 0, high, low, 1, 2, 3, 4]);
    }
    packet
}

fn insert_extension_header(packet: &mut Vec<u8>, number: u8, mut header: [u8; 8]) {
    let length = u16::from_be_bytes([packet[4], packet[5]]) + 8;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    header[0] = packet[6];
    packet[6] = number;
    packet.splice(40..40, header);
}

fn put_ip_checksum(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 0x0F) * 4;
    packet[10..12].fill(0);
    let sum = ones_complement(&packet[..length]);
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
}

/// RFC 1071, word by word; the tests' own, on purpose.
pub fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Sums up everything in an error that has a checksum: its own IP header, the message, the quoted IP
/// header, and if it is quoted whole, the quoted packet.
pub fn verify(packet: &[u8]) {
    let outer = verify_ip_header(packet);
    let message = &packet[outer..];
    let pseudo = if packet[0] >> 4 == 4 {
        Vec::new()
    } else {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&packet[8..40], &length, &[0, 0, 0, 58]].concat()
    };
    assert_eq!(
        ones_complement(&[&pseudo, message].concat()),
        0xFFFF,
        "the message's checksum"
    );
    let quote = &message[8..];
    let quoted_header = verify_ip_header(quote);
    let is_fragment = quote[0] >> 4 == 4 && quote[6] & 0x3F | quote[7] != 0
        || quote[0] >> 4 == 6 && quote[6] == 44;
    let total_length = if quote[0] >> 4 == 4 {
        usize::from(u16::from_be_bytes([quote[2], quote[3]]))
    } else {
        quoted_header + usize::from(u16::from_be_bytes([quote[4], quote[5]]))
    };
    if quote.len() >= total_length && !is_fragment {
        see(&quote[..total_length]);
    }
}

fn verify_ip_header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 {
        let length = usize::from(packet[0] & 0x0F) * 4;
        let sum = ones_complement(&packet[..length]);
        assert_eq!(sum, 0xFFFF, "an IP header's checksum");
        length
    } else {
        40
    }
}

/// Whether the address stands anywhere in the packet.
pub fn shows(packet: &[u8], address: IpAddr) -> bool {
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    packet.windows(bytes.len()).any(|window| window == bytes)
}

/// A connection through the engines, with one packet each way.
#[derive(Debug)]
pub struct Flow {
    pub hosts: Hosts,
    pub client: SocketAddr,
    pub service: SocketAddr,
    pub proxy: SocketAddr,
    pub mirror: SocketAddr,
    /// What the client sent, and what the mirror got of it.
    pub request: [Vec<u8>; 2],
    /// What the mirror sent, and what the client got of it.
    pub reply: [Vec<u8>; 2],
}

impl Flow {
    /// Opens it in a world of one worker.
    pub fn open(hosts: Hosts, protocol: Protocol) -> (World, Self) {
        let mut world = World::new(1);
        let flow = Self::open_in(&mut world, hosts, protocol, address(hosts.client));
        (world, flow)
    }

    pub fn open_in(
        world: &mut World,
        hosts: Hosts,
        protocol: Protocol,
        client: SocketAddr,
    ) -> Self {
        let mirror = address(hosts.mirror);
        let service = address(hosts.service);
        world.divert(hosts.service, &[hosts.mirror]);
        // Echoes go to a service as a whole.
        let (bare_service, bare_mirror) = (service.ip().to_string(), mirror.ip().to_string());
        if protocol == Protocol::Icmp {
            world.divert(&bare_service, &[&bare_mirror]);
        }
        let payload = [0xA5; 100];
        let sent = packet_of(protocol, client, service, &payload, false);
        let mut got = sent.clone();
        assert_eq!(
            world.handle(&mut got),
            Verdict::Translated(Direction::Forward)
        );
        let proxy = see(&got).source;
        let request = [sent, got];
        let sent = packet_of(protocol, mirror, proxy, &payload, true);
        let mut got = sent.clone();
        assert_eq!(
            world.handle(&mut got),
            Verdict::Translated(Direction::Reverse)
        );
        let reply = [sent, got];
        Self {
            hosts,
            client,
            service,
            proxy,
            mirror,
            request,
            reply,
        }
    }

    /// An error from `sender` about what the proxy sent to the mirror, `quoted` bytes of it.
    pub fn reverse_error(&self, sender: IpAddr, message: Message, quoted: usize) -> Vec<u8> {
        error(
            sender,
            self.proxy.ip(),
            message,
            &after_hops(&self.request[1], 3)[..quoted],
        )
    }

    /// What the client is to see of it.
    pub fn at_client(&self, sender: IpAddr, message: Message, quoted: usize) -> Vec<u8> {
        error(
            sender,
            self.client.ip(),
            message,
            &after_hops(&self.request[0], 3)[..quoted],
        )
    }

    /// An error from `sender` about what the service is thought to have sent to the client.
    pub fn forward_error(&self, sender: IpAddr, message: Message, quoted: usize) -> Vec<u8> {
        error(
            sender,
            self.service.ip(),
            message,
            &after_hops(&self.reply[1], 3)[..quoted],
        )
    }

    /// What the mirror is to see of it.
    pub fn at_mirror(&self, message: Message, quoted: usize) -> Vec<u8> {
        error(
            self.proxy.ip(),
            self.mirror.ip(),
            message,
            &after_hops(&self.reply[0], 3)[..quoted],
        )
    }

    /// That neither proxy nor mirror stands in what the client gets.
    pub fn check_for_client(&self, packet: &[u8]) {
        verify(packet);
        assert!(!shows(packet, self.proxy.ip()), "shows the proxy");
        assert!(!shows(packet, self.mirror.ip()), "shows the mirror");
    }

    /// That neither client, service nor router stands in what the mirror gets.
    pub fn check_for_mirror(&self, packet: &[u8]) {
        verify(packet);
        assert!(!shows(packet, self.client.ip()), "shows the client");
        assert!(!shows(packet, self.service.ip()), "shows the service");
        assert!(!shows(packet, self.hosts.router()), "shows a router");
    }
}

/// Every flow there is: both families, all protocols.
pub fn flows() -> impl Iterator<Item = (World, Flow)> {
    [V4, V6]
        .into_iter()
        .flat_map(|hosts| PROTOCOLS.map(|protocol| Flow::open(hosts, protocol)))
}
