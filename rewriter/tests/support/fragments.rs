//! Cutting datagrams and putting them together again, independently of what is tested: headers are
//! read and written by etherparse.

use std::collections::BTreeMap;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader};
use rewriter::engine::{DropReason, Verdict};
use rewriter::packet::VnetHeader;

use super::{PROXY, World, address};

/// Client, service, proxy and mirror of either family.
pub const FAMILIES: [[&str; 4]; 2] = [
    [
        "1.2.3.4:3456",
        "100.100.100.100:80",
        PROXY,
        "123.45.67.89:80",
    ],
    [
        "[2001:db8::1]:3456",
        "[2001:db8::100]:80",
        "fd00:10::10",
        "[fd00:2::2]:80",
    ],
];

pub const KEPT: Verdict = Verdict::Held;

pub fn world(workers: u16) -> World {
    let mut world = World::new(workers);
    for [_, service, _, mirror] in FAMILIES {
        let (service, mirror) = (address(service).ip(), address(mirror).ip());
        world.divert(&service.to_string(), &[&mirror.to_string()]);
    }
    world
}

/// Bytes of which no two pieces are alike.
pub fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 3 + at / 251) as u8).collect()
}

pub fn dropped(reason: DropReason) -> Verdict {
    Verdict::Dropped(reason)
}

/// The one packet that these pieces are.
pub fn only(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = join(pieces);
    assert_eq!(whole.len(), 1, "one datagram");
    whole.remove(0)
}

pub fn payload_of(packet: &[u8], length: usize) -> &[u8] {
    &packet[packet.len() - length..]
}

pub fn longest(pieces: &[Vec<u8>]) -> usize {
    pieces.iter().map(Vec::len).max().unwrap()
}

/// What comes of a packet that arrives at a worker.
#[derive(Debug)]
pub struct Arrival {
    /// What its owner decided.
    pub verdict: Verdict,
    /// What leaves on any worker, in order.
    pub sent: Vec<Vec<u8>>,
}

impl World {
    /// Lets a packet arrive at a worker, and takes all that comes of it to where it belongs.
    pub fn arrive(&mut self, worker: usize, packet: &[u8]) -> Arrival {
        let mut sent = Vec::new();
        let mut bytes = packet.to_vec();
        self.pass_the_kernel(&mut bytes);
        let before = bytes.clone();
        let mut header = VnetHeader::default();
        let mut verdict = self.engines[worker].handle(&mut bytes, &mut header, self.now);
        if let Verdict::HandOver { owner } = verdict {
            assert_eq!(bytes, before, "what is handed over is unchanged");
            verdict = self.engines[usize::from(owner)].handle(&mut bytes, &mut header, self.now);
            assert!(
                !matches!(verdict, Verdict::HandOver { .. }),
                "an owner owns"
            );
        }
        if matches!(verdict, Verdict::Translated(_) | Verdict::Passed) {
            sent.push(bytes);
        }
        let handed_over: Vec<_> = self
            .engines
            .iter_mut()
            .flat_map(|engine| std::iter::from_fn(|| engine.poll_hand_over()).collect::<Vec<_>>())
            .collect();
        for (owner, datagram) in handed_over {
            let owner = &mut self.engines[usize::from(owner)];
            owner.handle_datagram(datagram, self.now);
            assert_eq!(owner.poll_hand_over(), None, "an owner owns");
        }
        for engine in &mut self.engines {
            sent.extend(std::iter::from_fn(|| Some(engine.poll_transmit()?.packet)));
        }
        Arrival { verdict, sent }
    }

    /// Datagrams of which something is missing, and the memory they take in bytes.
    pub fn incomplete(&self) -> (usize, usize) {
        self.engines
            .iter()
            .fold((0, 0), |(datagrams, bytes), engine| {
                let (more, memory) = engine.incomplete_datagrams();
                (datagrams + more, bytes + memory)
            })
    }

    /// Lets packets arrive in order, each at the next worker; all that leaves.
    pub fn arrive_all<'a>(
        &mut self,
        packets: impl IntoIterator<Item = &'a Vec<u8>>,
    ) -> Vec<Vec<u8>> {
        let workers = self.engines.len();
        packets
            .into_iter()
            .enumerate()
            .flat_map(|(number, packet)| self.arrive(number % workers, packet).sent)
            .collect()
    }
}

/// Cuts a packet without options or extension headers before the given payload offsets, in units of
/// eight bytes.
pub fn cut_at(packet: &[u8], id: u32, eights: &[usize]) -> Vec<Vec<u8>> {
    let headers = if packet[0] >> 4 == 4 {
        usize::from(packet[0] & 0xF) * 4
    } else {
        40
    };
    let payload = &packet[headers..];
    let mut bounds: Vec<usize> = eights.iter().map(|at| at * 8).collect();
    bounds.retain(|at| *at > 0 && *at < payload.len());
    bounds.extend([0, payload.len()]);
    bounds.sort_unstable();
    bounds.dedup();
    bounds
        .windows(2)
        .map(|bounds| {
            let more = bounds[1] < payload.len();
            piece(
                &packet[..headers],
                id,
                bounds[0],
                more,
                &payload[bounds[0]..bounds[1]],
            )
        })
        .collect()
}

/// Cuts a packet into fragments of at most `size` bytes.
pub fn cut(packet: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let headers = if packet[0] >> 4 == 4 {
        usize::from(packet[0] & 0xF) * 4
    } else {
        48
    };
    let step = (size - headers) / 8;
    let bounds: Vec<usize> = (0..packet.len() / 8).step_by(step).collect();
    cut_at(packet, id, &bounds)
}

/// One fragment, whatever sense it makes.
pub fn piece(headers: &[u8], id: u32, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let fragment_offset = IpFragOffset::try_new((offset / 8) as u16).unwrap();
    if headers[0] >> 4 == 4 {
        let (mut header, _) = Ipv4Header::from_slice(headers).unwrap();
        header.identification = id as u16;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = fragment_offset;
        header.set_payload_len(payload.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes(), payload].concat()
    } else {
        let next_header = IpNumber(headers[6]);
        let header = Ipv6FragmentHeader::new(next_header, fragment_offset, more, id);
        let mut bytes = [headers, &header.to_bytes(), payload].concat();
        bytes[6] = 44;
        bytes[4..6].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        bytes
    }
}

/// The identification of a fragment.
pub fn identification(fragment: &[u8]) -> u32 {
    if fragment[0] >> 4 == 4 {
        Ipv4Header::from_slice(fragment)
            .unwrap()
            .0
            .identification
            .into()
    } else {
        fragment_header(fragment).1.identification
    }
}

/// Where a packet's fragment header starts, and what it says.
fn fragment_header(packet: &[u8]) -> (usize, Ipv6FragmentHeader) {
    let (mut next, mut at) = (packet[6], 40);
    while next != 44 {
        assert!([0, 43, 60].contains(&next), "no fragment");
        next = packet[at];
        at += 8 + usize::from(packet[at + 1]) * 8;
    }
    (at, Ipv6FragmentHeader::from_slice(&packet[at..]).unwrap().0)
}

/// What a host would keep of a fragment.
struct Piece<'a> {
    offset: usize,
    more: bool,
    headers: Vec<u8>,
    payload: &'a [u8],
}

/// Puts together what a host would receive: whole packets as they are, and fragments by source,
/// destination, protocol and identification. Every IPv4 header's checksum is verified.
///
/// # Panics
/// Something is missing, is there twice, or overlaps.
pub fn join(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    let mut datagrams: BTreeMap<Vec<u8>, Vec<Piece<'_>>> = BTreeMap::new();
    for packet in packets {
        if packet[0] >> 4 == 4 {
            let (mut header, _) = Ipv4Header::from_slice(packet).unwrap();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(usize::from(header.total_len), packet.len());
            if !header.is_fragmenting_payload() {
                whole.push(packet.clone());
                continue;
            }
            let key = [
                &header.source[..],
                &header.destination,
                &packet[4..6],
                &[packet[9]],
            ]
            .concat();
            let (offset, more) = (header.fragment_offset, header.more_fragments);
            header.fragment_offset = IpFragOffset::ZERO;
            header.more_fragments = false;
            let payload = &packet[header.header_len()..];
            datagrams.entry(key).or_default().push(Piece {
                offset: offset.byte_offset().into(),
                more,
                headers: header.to_bytes().to_vec(),
                payload,
            });
        } else {
            let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            assert_eq!(length + 40, packet.len());
            if packet[6] != 44 && packet[6] != 0 && packet[6] != 60 {
                whole.push(packet.clone());
                continue;
            }
            let (at, header) = fragment_header(packet);
            let key = [&packet[8..40], &header.identification.to_be_bytes()].concat();
            let mut headers = packet[..at].to_vec();
            let mut last = 6;
            let mut next = 40;
            while next < at {
                last = next;
                next += 8 + usize::from(headers[next + 1]) * 8;
            }
            headers[last] = header.next_header.0;
            datagrams.entry(key).or_default().push(Piece {
                offset: header.fragment_offset.byte_offset().into(),
                more: header.more_fragments,
                headers,
                payload: &packet[at + 8..],
            });
        }
    }
    for mut pieces in datagrams.into_values() {
        pieces.sort_by_key(|piece| piece.offset);
        let mut packet = pieces[0].headers.clone();
        let headers = packet.len();
        let count = pieces.len();
        for (number, piece) in pieces.into_iter().enumerate() {
            assert_eq!(
                piece.offset,
                packet.len() - headers,
                "nothing missing, nothing twice"
            );
            assert_eq!(piece.more, number + 1 < count);
            assert!(!piece.more || piece.payload.len().is_multiple_of(8));
            packet.extend(piece.payload);
        }
        if packet[0] >> 4 == 4 {
            let (mut header, _) = Ipv4Header::from_slice(&packet).unwrap();
            header.set_payload_len(packet.len() - headers).unwrap();
            header.header_checksum = header.calc_header_checksum();
            packet[..headers].copy_from_slice(&header.to_bytes());
        } else {
            let length = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&length.to_be_bytes());
        }
        whole.push(packet);
    }
    whole
}
