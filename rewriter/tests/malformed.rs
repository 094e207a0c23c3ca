//! What an enemy sends: every header cut off at every byte, every length field wrong each way, chains
//! of extension headers, fragments of fragments, errors about errors; both families, both directions.
//!
//! Whatever leaves the engine is, to an independent reader, neither better nor worse than it came: what
//! was well-formed still is, a right checksum is still right and a wrong one wrong. It shows nothing of
//! the other side. And every drop is counted by its name.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use control_protocol::Protocol;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use rewriter::engine::{DropReason, Verdict};
use rewriter::packet::VnetHeader;
use rewriter::table::Direction;
use support::World;
use support::errors::{
    Flow, Hosts, PROTOCOLS, V4, V6, as_fragment, error, ones_complement, shows, with_options,
};

/// A connection, and what has become of the packets sent to it.
struct Ordeal {
    world: World,
    flow: Flow,
    dropped: u64,
    translated: u64,
}

impl Ordeal {
    fn new(hosts: Hosts, protocol: Protocol) -> Self {
        let (world, flow) = Flow::open(hosts, protocol);
        Self {
            world,
            flow,
            dropped: 0,
            translated: 0,
        }
    }

    /// Lets a packet arrive, and looks at what leaves.
    fn send(&mut self, packet: &[u8]) {
        let mut after = packet.to_vec();
        let now = self.world.now;
        let verdict = self.world.engines[0].handle(&mut after, &mut VnetHeader::default(), now);
        match verdict {
            Verdict::Dropped(_) => self.dropped += 1,
            Verdict::Translated(direction) => {
                self.translated += 1;
                self.check(packet, &after, direction);
            }
            Verdict::Passed => assert_eq!(condition(packet), condition(&after)),
            Verdict::Held => {}
            Verdict::HandOver { .. } => panic!("there is one worker only"),
        }
        while let Some(own) = self.world.engines[0].poll_transmit() {
            assert!(condition(&own.packet).is_some(), "{own:02x?}");
        }
    }

    fn check(&self, before: &[u8], after: &[u8], direction: Direction) {
        assert_eq!(
            condition(before),
            condition(after),
            "{direction:?}\n{before:02x?}\n{after:02x?}"
        );
        let hidden = match direction {
            Direction::Forward => [self.flow.client, self.flow.service],
            Direction::Reverse => [self.flow.proxy, self.flow.mirror],
        };
        let header = &after[..if after[0] >> 4 == 4 { 20 } else { 40 }];
        for end in hidden {
            assert!(!shows(header, end.ip()), "{direction:?}: {after:02x?}");
        }
    }

    /// Sends what `change` makes of a packet in either direction.
    fn send_both(&mut self, change: impl Fn(&[u8]) -> Vec<u8>) {
        for packet in [self.flow.request[0].clone(), self.flow.reply[0].clone()] {
            self.send(&change(&packet));
        }
    }
}

impl Drop for Ordeal {
    /// The engine has counted what was seen.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let by_name: u64 = DropReason::ALL
            .iter()
            .map(|reason| self.world.dropped(*reason))
            .sum();
        assert_eq!(by_name, self.dropped);
        let counters = self.world.engines[0].counters();
        // And the connection's own first packet each way.
        let translated = counters.forward.packets + counters.reverse.packets - 2;
        assert_eq!(translated, self.translated);
    }
}

/// All connections that there can be.
fn ordeals() -> impl Iterator<Item = (Hosts, Protocol, Ordeal)> {
    [V4, V6].into_iter().flat_map(|hosts| {
        PROTOCOLS
            .into_iter()
            .map(move |protocol| (hosts, protocol, Ordeal::new(hosts, protocol)))
    })
}

/// What etherparse thinks of a packet: nothing, if it doesn't take it for one; else whether the
/// checksums of its IP header and of its transport are right.
fn condition(packet: &[u8]) -> Option<(bool, bool)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (header_is_right, pseudo, payload) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().slice();
            let payload = ip.payload();
            let length = u16::try_from(payload.payload.len()).ok()?.to_be_bytes();
            let number = payload.ip_number.0;
            let pseudo = [&header[12..20], &[0, number], &length].concat();
            (ones_complement(header) == 0xFFFF, pseudo, payload)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().slice();
            let payload = ip.payload();
            let length = u32::try_from(payload.payload.len()).ok()?.to_be_bytes();
            let number = payload.ip_number.0;
            let pseudo = [&header[8..40], &length, &[0, 0, 0, number]].concat();
            (true, pseudo, payload)
        }
        NetSlice::Arp(_) => return None,
    };
    let pseudo = match sliced.transport {
        Some(TransportSlice::Icmpv4(_)) => Vec::new(),
        Some(_) => pseudo,
        None => return Some((header_is_right, true)),
    };
    let sum = ones_complement(&[&pseudo, payload.payload].concat());
    Some((header_is_right, sum == 0xFFFF))
}

/// Writes the IPv4 header's checksum, as far as there is such a header; IPv6 has none.
fn put_header_checksum(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 0x0F) * 4;
    if packet[0] >> 4 == 4 && length >= 20 && packet.len() >= length {
        packet[10..12].fill(0);
        let sum = ones_complement(&packet[..length]);
        packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    }
}

/// The packet with this number in a field of two bytes.
fn with_word(packet: &[u8], at: usize, word: usize) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let word = u16::try_from(word).unwrap_or(u16::MAX);
    packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
    put_header_checksum(&mut packet);
    packet
}

#[test]
fn cut_off_at_every_byte() {
    for (_, _, mut ordeal) in ordeals() {
        for length in 0..ordeal.flow.request[0].len() {
            ordeal.send_both(|packet| packet[..length].to_vec());
            // And with options or an extension header.
            ordeal.send_both(|packet| with_options(packet)[..length].to_vec());
        }
        assert_eq!(ordeal.translated, 0);
    }
}

#[test]
fn ip_lengths_wrong_each_way() {
    for (hosts, _, mut ordeal) in ordeals() {
        let (at, counted_from) = if hosts.is_v4() { (2, 0) } else { (4, 40) };
        let whole = ordeal.flow.request[0].len() - counted_from;
        let lengths = (0..=whole + 40).chain([0x7FFF, 0x8000, 0xFFFF]);
        for length in lengths {
            ordeal.send_both(|packet| with_word(packet, at, length));
        }
        // Only lengths that hold all headers got through.
        assert!(ordeal.translated > 0 && ordeal.dropped > 0);
        for first in 0..=255 {
            ordeal.send_both(|packet| {
                let mut packet = packet.to_vec();
                packet[0] = first;
                put_header_checksum(&mut packet);
                packet
            });
        }
    }
}

#[test]
fn transport_lengths_wrong_each_way() {
    for (hosts, protocol, mut ordeal) in ordeals() {
        let transport = hosts.ip_header();
        match protocol {
            Protocol::Tcp => {
                for offset in 0..=255 {
                    ordeal.send_both(|packet| {
                        let mut packet = packet.to_vec();
                        packet[transport + 12] = offset;
                        packet
                    });
                }
            }
            Protocol::Udp => {
                let whole = ordeal.flow.request[0].len() - transport;
                for length in (0..=whole + 40).chain([0x7FFF, 0x8000, 0xFFFF]) {
                    ordeal.send_both(|packet| with_word(packet, transport + 4, length));
                }
            }
            // An echo has no length of its own; but types and codes of all kinds.
            _ => {
                for kind in 0..=255 {
                    for code in [0, 1, 255] {
                        ordeal.send_both(|packet| {
                            let mut packet = packet.to_vec();
                            packet[transport..transport + 2].copy_from_slice(&[kind, code]);
                            packet
                        });
                    }
                }
            }
        }
        assert!(ordeal.translated > 0 && ordeal.dropped > 0);
    }
}

/// The IPv6 packet with so many extension headers of these kinds before its transport, each of which
/// says that it is `length` times eight bytes longer than it is.
fn with_extension_headers(packet: &[u8], kinds: &[u8], count: usize, length: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    for kind in kinds.iter().cycle().take(count) {
        let next = std::mem::replace(&mut packet[6], *kind);
        packet.splice(40..40, [next, length, 1, 4, 0, 0, 0, 0]);
    }
    let payload = packet.len() - 40;
    with_word(&packet, 4, payload)
}

#[test]
fn chains_of_extension_headers() {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;
    for (hosts, _, mut ordeal) in ordeals() {
        if hosts.is_v4() {
            continue;
        }
        for kinds in [
            &[DESTINATION_OPTIONS][..],
            &[HOP_BY_HOP],
            &[ROUTING],
            &[FRAGMENT],
            &[DESTINATION_OPTIONS, ROUTING],
            &[FRAGMENT, DESTINATION_OPTIONS],
            &[HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT],
        ] {
            for count in [1, 2, 3, 7, 8, 9, 40, 200] {
                for length in [0, 1, 2, 127, 255] {
                    ordeal.send_both(|packet| with_extension_headers(packet, kinds, count, length));
                }
            }
        }
        assert!(ordeal.translated > 0 && ordeal.dropped > 0);
    }
}

#[test]
fn ipv4_options_of_every_kind_and_length() {
    for (hosts, _, mut ordeal) in ordeals() {
        if !hosts.is_v4() {
            continue;
        }
        for kind in 0..=255 {
            for length in [0, 1, 2, 4, 40, 255] {
                ordeal.send_both(|packet| {
                    let mut packet = with_options(packet);
                    packet[20..22].copy_from_slice(&[kind, length]);
                    put_header_checksum(&mut packet);
                    packet
                });
            }
        }
        assert_eq!(ordeal.dropped, 0, "options are stepped over");
    }
}

#[test]
fn fragments_of_fragments() {
    for (_, _, mut ordeal) in ordeals() {
        for outer in [0, 1, 2, 100, 0x1FFF] {
            for inner in [0, 1, 2, 100, 0x1FFF] {
                ordeal.send_both(|packet| as_fragment(&as_fragment(packet, inner), outer));
            }
        }
        // Whatever is still held is given up in the end; of what was spoiled, that is known already.
        ordeal.world.pass_time(Duration::from_secs(120));
        assert_eq!(ordeal.world.engines[0].incomplete_datagrams(), (0, 0));
        ordeal.dropped += ordeal.world.dropped(DropReason::FragmentExpired);
        assert_eq!(ordeal.translated, 0);
    }
}

#[test]
fn errors_about_errors() {
    for (hosts, _, mut ordeal) in ordeals() {
        let request = ordeal.flow.request[1].clone();
        let reply = ordeal.flow.reply[1].clone();
        let (proxy, service) = (ordeal.flow.proxy, ordeal.flow.service);
        for (to, mut about) in [(proxy, request), (service, reply)] {
            for _depth in 1..5 {
                let told = |end: SocketAddr| {
                    error(hosts.router(), end.ip(), hosts.port_unreachable(), &about)
                };
                let nested = told(to);
                for length in 0..=nested.len() {
                    ordeal.send(&nested[..length]);
                }
                // With the length that it says, but less of the quote.
                for length in hosts.ip_header() + 8..nested.len() {
                    let quoted = length - hosts.ip_header() - 8;
                    let message = hosts.time_exceeded();
                    ordeal.send(&error(
                        hosts.router(),
                        to.ip(),
                        message,
                        &about[..quoted.min(about.len())],
                    ));
                }
                about = nested;
            }
        }
        assert!(ordeal.translated > 0 && ordeal.dropped > 0);
    }
}
