use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};

use super::*;
use crate::io::namespace::testing::in_namespace;
use crate::io::namespace::{self, Links};
use crate::io::poll::receive_within;
use crate::io::tun::{Offload, TunDevice};
use crate::packet::VnetHeader;

const MARK: u32 = 0x5348;
const MTU: usize = 1_500;
const PORT: u16 = 5_555;
const PATIENCE: Duration = Duration::from_millis(500);

/// Addresses of nobody in the namespace: packets are sent in the name of strangers.
const STRANGER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xDB8, 0xFF, 0, 0, 0, 0, 7);
/// A server behind the other TUN.
const SERVER4: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xDB8, 0xB, 0, 0, 0, 0, 2);
/// Destinations without a route.
const NOWHERE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xDB8, 0xDEAD, 0, 0, 0, 0, 1);

/// The port that is tested, the TUN that it reads from, and the TUN behind which the servers are.
struct Net {
    links: Links,
    port: RawPort,
    servers: TunDevice,
}

impl Net {
    /// Sets up the calling thread's namespace, without forwarding.
    fn set_up() -> Self {
        let links = Links::connect().unwrap();
        let servers = TunDevice::open("servers", 1, Offload::NONE).unwrap();
        for (address, prefix) in [
            (IpAddr::from(Ipv4Addr::new(198, 19, 0, 1)), 16),
            (
                IpAddr::from(Ipv6Addr::new(0x2001, 0xDB8, 0xB, 0, 0, 0, 0, 1)),
                64,
            ),
        ] {
            links.add_address(servers.index, address, prefix).unwrap();
        }
        links.set_up(servers.index).unwrap();
        wait_for_ipv6_source();
        namespace::set_sysctl("net/ipv4/ip_forward", "0").unwrap();

        let mut shunt = TunDevice::open("shunt0", 1, Offload::NONE).unwrap();
        let port = RawPort::open(shunt.queues.pop().unwrap(), MARK).unwrap();
        Self {
            links,
            port,
            servers,
        }
    }

    /// The packets for [`PORT`] that reach the servers.
    fn arrivals(&mut self, count: usize) -> Vec<Vec<u8>> {
        let queue = &mut self.servers.queues[0];
        let mut next = || receive_within(queue, PATIENCE, is_ours).unwrap();
        let packets = (0..count)
            .map(|number| next().unwrap_or_else(|| panic!("only {number} of {count} arrive")))
            .inspect(|frame| assert_eq!(frame.header(), VnetHeader::default(), "it is complete"))
            .map(|frame| frame.packet().to_vec())
            .collect();
        assert!(
            receive_within(queue, Duration::ZERO, is_ours)
                .unwrap()
                .is_none(),
            "no more"
        );
        packets
    }
}

/// The kernel takes an IPv6 address into use a moment after it was added: it asks a thread of its
/// own whether somebody else has it, even on a link without neighbours.
fn wait_for_ipv6_source() {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let started = Instant::now();
    while let Err(error) = socket.connect((SERVER6, PORT)) {
        assert!(started.elapsed() < PATIENCE, "no source address: {error}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A UDP packet from a stranger with `payload` bytes.
fn udp(destination: impl Into<IpAddr>, payload: &[u8]) -> Vec<u8> {
    let ip = match destination.into() {
        IpAddr::V4(address) => PacketBuilder::ipv4(STRANGER4.octets(), address.octets(), 63),
        IpAddr::V6(address) => PacketBuilder::ipv6(STRANGER6.octets(), address.octets(), 63),
    };
    let mut packet = Vec::new();
    ip.udp(40_000, PORT).write(&mut packet, payload).unwrap();
    packet
}

/// Whether it is a UDP packet for [`PORT`], not one of the kernel's own.
fn is_ours(frame: &Frame) -> bool {
    PacketHeaders::from_ip_slice(frame.packet()).is_ok_and(|headers| {
        matches!(headers.transport, Some(TransportHeader::Udp(udp)) if udp.destination_port == PORT)
    })
}

fn assert_checksums_are_right(packet: &[u8]) {
    let headers = PacketHeaders::from_ip_slice(packet).unwrap();
    let payload = headers.payload.slice();
    let Some(TransportHeader::Udp(udp)) = headers.transport else {
        panic!("not UDP")
    };
    let expected = match headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            assert_eq!(
                ip.header_checksum,
                ip.calc_header_checksum(),
                "of the IPv4 header"
            );
            udp.calc_checksum_ipv4(&ip, payload)
        }
        Some(NetHeaders::Ipv6(ip, _)) => udp.calc_checksum_ipv6(&ip, payload),
        other => panic!("not IP: {other:?}"),
    };
    assert_eq!(udp.checksum, expected.unwrap(), "of UDP");
}

fn frame(packet: &[u8]) -> Frame {
    let mut frame = Frame::new();
    frame.fill(packet);
    frame
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_of_the_batch_goes_on() {
    in_namespace(|| {
        let mut net = Net::set_up();
        let too_big = vec![0; MTU];

        // Both versions of IP, interleaved; the first, a middle and the last of IPv4 can't be sent.
        let batch = [
            udp(NOWHERE4, b"no route"),
            udp(SERVER6, b"first"),
            udp(SERVER4, b"first"),
            udp(SERVER4, &too_big),
            udp(SERVER6, &too_big),
            udp(NOWHERE6, b"no route"),
            udp(SERVER4, b"second"),
            udp(SERVER6, b"second"),
            udp(SERVER4, &vec![1; MTU - 28]),
            udp(NOWHERE4, b"no route"),
        ];
        for packet in &batch {
            net.port.transmit(&mut frame(packet)).unwrap();
        }
        assert_eq!(
            net.port.losses(),
            Losses::default(),
            "nothing is sent before the flush"
        );
        net.port.flush().unwrap();

        let losses = Losses {
            no_route: 3,
            too_big: 2,
            ..Losses::default()
        };
        assert_eq!(net.port.losses(), losses);
        // Per version of IP they arrive in order: IPv4 is sent first.
        let arrived = net.arrivals(5);
        for (arrived, sent) in arrived.iter().zip([2, 6, 8, 1, 7]) {
            assert_checksums_are_right(arrived);
            assert_same_but_for_identification(arrived, &batch[sent]);
        }

        net.port.flush().unwrap();
        assert_eq!(net.arrivals(0).len(), 0, "nothing is sent twice");
        assert_eq!(net.port.losses(), losses);
    });
}

/// The kernel gives an identification to an IPv4 packet that has none, and sums the header anew.
fn assert_same_but_for_identification(arrived: &[u8], sent: &[u8]) {
    let blank = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        if version(&packet) == 4 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        packet
    };
    assert_eq!(blank(arrived), blank(sent));
}

#[test]
fn an_identification_is_kept_and_a_wrong_header_checksum_repaired() {
    in_namespace(|| {
        let mut net = Net::set_up();
        let mut packet = udp(SERVER4, b"identified");
        packet[4..6].copy_from_slice(&[0xAB, 0xCD]);
        packet[10..12].fill(0);
        net.port.transmit(&mut frame(&packet)).unwrap();
        net.port.flush().unwrap();

        let arrived = net.arrivals(1);
        assert_eq!(arrived[0][4..6], [0xAB, 0xCD]);
        assert_checksums_are_right(&arrived[0]);
    });
}

#[test]
fn a_full_batch_is_sent_without_a_flush() {
    in_namespace(|| {
        let mut net = Net::set_up();
        let mut frame = Frame::new();
        for number in 0..=BATCH {
            frame.fill(&udp(SERVER4, &number.to_be_bytes()));
            net.port.transmit(&mut frame).unwrap();
        }
        let arrived = net.arrivals(BATCH);
        for (number, packet) in arrived.iter().enumerate() {
            assert_eq!(packet[28..], number.to_be_bytes(), "in order");
        }

        net.port.flush().unwrap();
        assert_eq!(net.arrivals(1)[0][28..], BATCH.to_be_bytes());
        assert_eq!(net.port.losses(), Losses::default());
    });
}

#[test]
fn packets_carry_the_mark() {
    in_namespace(|| {
        let mut net = Net::set_up();
        net.port
            .transmit(&mut frame(&udp(NOWHERE4, b"before")))
            .unwrap();
        net.port.flush().unwrap();
        assert_eq!(
            net.port.losses(),
            Losses {
                no_route: 1,
                ..Losses::default()
            }
        );

        // Now there is a route, but only for what carries the mark.
        net.links
            .route_marked(MARK, NOWHERE4, net.servers.index)
            .unwrap();
        net.port
            .transmit(&mut frame(&udp(NOWHERE4, b"after")))
            .unwrap();
        net.port.flush().unwrap();
        assert_eq!(net.arrivals(1)[0][28..], *b"after");
        assert_eq!(
            net.port.losses(),
            Losses {
                no_route: 1,
                ..Losses::default()
            }
        );
    });
}

#[test]
fn what_is_unfinished_or_no_packet_is_refused() {
    in_namespace(|| {
        let mut net = Net::set_up();
        let whole = udp(SERVER4, b"whole");

        let mut unsummed = frame(&whole);
        unsummed.set_header(&VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: 20,
            csum_offset: 6,
            ..VnetHeader::default()
        });
        let mut uncut = frame(&whole);
        uncut.set_header(&VnetHeader {
            gso_type: VnetHeader::GSO_UDP_L4,
            gso_size: 2,
            ..VnetHeader::default()
        });
        let mut refused = vec![unsummed, uncut, Frame::new(), frame(&[0x50; 60])];
        refused.push(frame(&whole[..19]));
        refused.push(frame(&udp(SERVER6, b"short")[..39]));
        let count = refused.len() as u64;
        for mut frame in refused {
            net.port.transmit(&mut frame).unwrap();
        }
        net.port.flush().unwrap();
        assert_eq!(
            net.port.losses(),
            Losses {
                refused: count,
                ..Losses::default()
            }
        );
        assert_eq!(net.arrivals(0).len(), 0);
    });
}

#[test]
fn packets_are_received_from_the_queue() {
    in_namespace(|| {
        let mut net = Net::set_up();
        // The kernel says something by itself when a link comes up: an IPv6 router solicitation.
        let shunt = nix::net::if_::if_nametoindex("shunt0").unwrap();
        net.links.set_up(shunt).unwrap();
        let got = receive_within(&mut net.port, PATIENCE, |frame| {
            version(frame.packet()) == 6
        });
        assert!(got.unwrap().is_some());
    });
}
