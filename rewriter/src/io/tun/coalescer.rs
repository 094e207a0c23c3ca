//! UDP datagrams of one flow that follow each other, written as one super-packet.
//!
//! A datagram's way through the kernel, from the TUN's `write` over routing to the next link's queue,
//! costs several times what it costs in here, and is the same for one of 64 bytes and for a
//! super-packet. So a datagram is *held* until the next one is there; if the two can be joined
//! ([`Joinable`]) they are, and so on until one can't, or there is none left to wait for. What leaves
//! on the wire is what would have left otherwise, in the same order: the next link that can't carry
//! super-packets cuts it again.

use std::io;

use crate::io::Frame;
use crate::packet::Joinable;

/// The most datagrams in one super-packet (Linux, `include/linux/udp.h`, `UDP_MAX_SEGMENTS`, as it
/// was before Linux 6.9).
const MAX_SEGMENTS: usize = 64;

/// The most bytes of a packet whose length has 16 bits.
const MAX_LENGTH: usize = 65_535;

/// At most one datagram, or several joined ones, waiting for more.
#[derive(Debug, Default)]
pub struct Coalescer {
    frame: Frame,
    held: Option<Held>,
}

/// What is held.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// The shape of the first datagram.
    first: Joinable,
    /// How many datagrams it is.
    segments: usize,
    /// Whether another may be joined.
    may_grow: bool,
}

impl Coalescer {
    /// Holds the packet in `frame`, joins it to what is held, or writes both. `write` writes one frame,
    /// and is told how many datagrams it is. Another frame may be left in place of `frame`.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn transmit(
        &mut self,
        frame: &mut Frame,
        mut write: impl FnMut(&Frame, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let shape = Joinable::of(frame.packet(), &frame.header());
        if let Some(shape) = &shape
            && self.join(frame, shape)
        {
            return Ok(());
        }
        self.flush(&mut write)?;
        let Some(first) = shape else {
            return write(frame, 1);
        };
        std::mem::swap(&mut self.frame, frame);
        self.held = Some(Held {
            first,
            segments: 1,
            may_grow: true,
        });
        Ok(())
    }

    /// Has what is held written; see [`Coalescer::transmit`].
    ///
    /// # Errors
    /// Those of `write`.
    pub fn flush(
        &mut self,
        mut write: impl FnMut(&Frame, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(held) = self.held.take() else {
            return Ok(());
        };
        if held.segments > 1 {
            let header = held.first.finish(self.frame.packet_mut());
            self.frame.set_header(&header);
        }
        write(&self.frame, held.segments)
    }

    /// Joins the datagram in `frame`, of this shape, to what is held, if that can be done.
    fn join(&mut self, frame: &Frame, shape: &Joinable) -> bool {
        let Some(held) = &mut self.held else {
            return false;
        };
        let packet = frame.packet();
        let length = self.frame.packet().len() + shape.payload();
        if !held.may_grow
            || length > MAX_LENGTH
            || shape.payload() > held.first.payload()
            || !shape.has_headers_of(packet, &held.first, self.frame.packet())
            || !shape.checksum_is_right(packet)
        {
            return false;
        }
        if held.segments == 1 && !held.first.checksum_is_right(self.frame.packet()) {
            held.may_grow = false;
            return false;
        }
        self.frame.extend(&packet[shape.payload_at()..]);
        held.segments += 1;
        // Only the last one may be shorter.
        held.may_grow = shape.payload() == held.first.payload() && held.segments < MAX_SEGMENTS;
        true
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{
        IpHeaders, Ipv4Extensions, Ipv6Extensions, NetSlice, PacketBuilder, SlicedPacket,
        TransportSlice,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::packet::GsoType;

    /// What a datagram is made of.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Datagram {
        v6: bool,
        flow: u8,
        hops: u8,
        payload: Vec<u8>,
        /// What is wrong with it, or unusual.
        oddity: Oddity,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Oddity {
        None,
        WrongChecksum,
        NoChecksum,
        MayBeFragmented,
        Empty,
    }

    impl Datagram {
        fn bytes(&self) -> Vec<u8> {
            let builder = if self.v6 {
                PacketBuilder::ipv6([self.flow; 16], [9; 16], self.hops)
            } else {
                PacketBuilder::ipv4([10, 0, 0, self.flow], [10, 9, 9, 9], self.hops)
            };
            let payload: &[u8] = match self.oddity {
                Oddity::Empty => &[],
                _ => &self.payload,
            };
            let mut bytes = Vec::new();
            builder
                .udp(1000 + u16::from(self.flow), 53)
                .write(&mut bytes, payload)
                .unwrap();
            let udp_at = if self.v6 { 40 } else { 20 };
            match self.oddity {
                Oddity::WrongChecksum => bytes[udp_at + 6] ^= 0x40,
                Oddity::NoChecksum => bytes[udp_at + 6..udp_at + 8].fill(0),
                Oddity::MayBeFragmented if !self.v6 => {
                    // The builder sets "don't fragment": its bit is 2^14, taken from the sum again.
                    bytes[6] &= !0x40;
                    let checksum = u16::from_be_bytes([bytes[10], bytes[11]]);
                    let (sum, carry) = checksum.overflowing_add(0x4000);
                    bytes[10..12].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
                }
                _ => {}
            }
            bytes
        }
    }

    fn datagrams() -> impl Strategy<Value = Vec<Datagram>> {
        let oddity = prop_oneof![
            20 => Just(Oddity::None),
            1 => Just(Oddity::WrongChecksum),
            1 => Just(Oddity::NoChecksum),
            1 => Just(Oddity::MayBeFragmented),
            1 => Just(Oddity::Empty),
        ];
        let length = prop_oneof![4 => Just(64), 1 => 1..70usize, 1 => Just(1400)];
        let datagram = (
            prop::bool::weighted(0.3),
            0..2u8,
            prop_oneof![9 => Just(64), 1 => Just(63)],
            length.prop_flat_map(|length| prop::collection::vec(any::<u8>(), length)),
            oddity,
        )
            .prop_map(|(v6, flow, hops, payload, oddity)| Datagram {
                v6,
                flow,
                hops,
                payload,
                oddity,
            });
        // Runs of equal flows, as they come from real senders.
        let run = (datagram, 1..90usize, any::<u8>()).prop_map(|(datagram, times, salt)| {
            (0..times).map(move |number| Datagram {
                payload: datagram
                    .payload
                    .iter()
                    .map(|byte| byte ^ salt.wrapping_mul(number as u8))
                    .collect(),
                ..datagram.clone()
            })
        });
        prop::collection::vec(run, 1..6).prop_map(|runs| runs.into_iter().flatten().collect())
    }

    /// What is written when these packets are transmitted, and how many datagrams each is.
    fn written(packets: &[Vec<u8>]) -> Vec<(Frame, usize)> {
        let mut coalescer = Coalescer::default();
        let mut written = Vec::new();
        for packet in packets {
            let mut frame = Frame::new();
            frame.fill(packet);
            coalescer
                .transmit(&mut frame, |frame, segments| {
                    written.push((frame.clone(), segments));
                    Ok(())
                })
                .unwrap();
        }
        coalescer
            .flush(|frame, segments| {
                written.push((frame.clone(), segments));
                Ok(())
            })
            .unwrap();
        written
    }

    /// Cuts a super-packet as the kernel does, by an encoder and a decoder that aren't ours.
    fn cut(frame: &Frame) -> Vec<Vec<u8>> {
        let header = frame.header();
        if header.gso() == GsoType::None {
            return vec![frame.packet().to_vec()];
        }
        let packet = SlicedPacket::from_ip(frame.packet()).expect("its lengths are right");
        let (Some(net), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport) else {
            panic!("no UDP datagram");
        };
        let udp_at = frame.packet().len() - 8 - udp.payload().len();
        assert_eq!(header.gso(), GsoType::Udp);
        assert!(header.needs_csum());
        assert_eq!(
            (usize::from(header.csum_start), header.csum_offset),
            (udp_at, 6)
        );
        assert_eq!(usize::from(header.hdr_len), udp_at + 8);
        assert_eq!(usize::from(udp.length()), udp.payload().len() + 8);
        if let NetSlice::Ipv4(ip) = &net {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
        }
        // The partial checksum with the sum of the rest is a right one.
        let (mut udp_header, payload) = (udp.to_header(), udp.payload());
        let partial = udp_header.checksum;
        let mut sum = u32::from(partial);
        for half in [
            udp_header.source_port,
            udp_header.destination_port,
            udp_header.length,
        ] {
            sum += u32::from(half);
        }
        for pair in payload.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        let right = match &net {
            NetSlice::Ipv4(ip) => udp_header
                .calc_checksum_ipv4(&ip.header().to_header(), payload)
                .unwrap(),
            NetSlice::Ipv6(ip) => udp_header
                .calc_checksum_ipv6(&ip.header().to_header(), payload)
                .unwrap(),
            NetSlice::Arp(_) => panic!("not IP"),
        };
        assert_eq!(!(sum as u16), right, "the partial checksum is right");

        payload
            .chunks(header.gso_size.into())
            .map(|payload| {
                let builder = match &net {
                    NetSlice::Ipv4(ip) => PacketBuilder::ip(IpHeaders::Ipv4(
                        ip.header().to_header(),
                        Ipv4Extensions::default(),
                    )),
                    NetSlice::Ipv6(ip) => PacketBuilder::ip(IpHeaders::Ipv6(
                        ip.header().to_header(),
                        Ipv6Extensions::default(),
                    )),
                    NetSlice::Arp(_) => panic!("not IP"),
                };
                udp_header.length = 0;
                let mut bytes = Vec::new();
                builder
                    .udp(udp_header.source_port, udp_header.destination_port)
                    .write(&mut bytes, payload)
                    .unwrap();
                bytes
            })
            .collect()
    }

    proptest! {
        /// Cut again, what is written is what was transmitted, byte by byte and in the same order.
        #[test]
        fn what_is_joined_can_be_cut_again(datagrams in datagrams()) {
            let packets: Vec<_> = datagrams.iter().map(Datagram::bytes).collect();
            let written = written(&packets);
            let mut number = 0;
            for (frame, segments) in &written {
                let pieces = cut(frame);
                prop_assert_eq!(pieces.len(), *segments);
                for piece in pieces {
                    prop_assert_eq!(&piece, &packets[number], "packet {}", number);
                    number += 1;
                }
            }
            prop_assert_eq!(number, packets.len());
        }
    }

    fn plain(length: usize) -> Datagram {
        Datagram {
            v6: false,
            flow: 1,
            hops: 64,
            payload: vec![7; length],
            oddity: Oddity::None,
        }
    }

    /// How many datagrams each written frame is, when these are transmitted.
    fn segments(datagrams: &[Datagram]) -> Vec<usize> {
        let packets: Vec<_> = datagrams.iter().map(Datagram::bytes).collect();
        written(&packets)
            .into_iter()
            .map(|(_, segments)| segments)
            .collect()
    }

    #[test]
    fn a_shorter_one_is_the_last() {
        let lengths = [64, 64, 10, 64, 64, 65].map(plain);
        assert_eq!(segments(&lengths), [3, 2, 1]);
    }

    #[test]
    fn as_many_as_the_kernel_cuts() {
        assert_eq!(segments(&vec![plain(64); 100]), [64, 36]);
        // 46 of 1,400 bytes fit an IPv4 packet.
        assert_eq!(segments(&vec![plain(1400); 50]), [46, 4]);
    }

    #[test]
    fn a_wrong_checksum_stays_alone_and_wrong() {
        let wrong = Datagram {
            oddity: Oddity::WrongChecksum,
            ..plain(64)
        };
        let datagrams = [wrong.clone(), plain(64), plain(64), wrong, plain(64)];
        assert_eq!(segments(&datagrams), [1, 2, 1, 1]);
    }

    #[test]
    fn other_headers_are_not_joined() {
        for other in [
            Datagram {
                v6: true,
                ..plain(64)
            },
            Datagram {
                flow: 2,
                ..plain(64)
            },
            Datagram {
                hops: 63,
                ..plain(64)
            },
            Datagram {
                oddity: Oddity::NoChecksum,
                ..plain(64)
            },
            Datagram {
                oddity: Oddity::MayBeFragmented,
                ..plain(64)
            },
            Datagram {
                oddity: Oddity::Empty,
                ..plain(64)
            },
        ] {
            let datagrams = [plain(64), other.clone(), plain(64)];
            assert_eq!(segments(&datagrams), [1, 1, 1], "{other:?}");
        }
    }
}
