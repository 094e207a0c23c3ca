//! Other numbers in a TCP segment: for a connection that goes on at a server which has begun its own
//! numbers.

use super::checksum::{Sum, adjust_complete};
use super::parse::{array_at, field};
use super::tcp_options::kind;
use super::{Packet, TcpSegment, Transport};

/// What is added to the numbers of the segments of one direction, modulo 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Renumbering {
    /// To the sequence number.
    pub sequence: u32,
    /// To the acknowledgement number and the edges of selectively acknowledged blocks (RFC 2018).
    pub acknowledgement: u32,
    /// To the timestamp's value (RFC 7323).
    pub timestamp: u32,
    /// To the timestamp's echo.
    pub echo: u32,
    /// How the window is to be read and written.
    pub window: WindowScales,
}

/// By how many bits a window is shifted, for whom it comes from and for whom it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowScales {
    /// What the sender means, at most 14.
    pub from: u8,
    /// What the receiver takes it for, at most 14.
    pub to: u8,
}

impl WindowScales {
    /// The window field for the receiver: the same number of bytes, or as close below as can be said.
    pub fn apply(self, window: u16) -> u16 {
        let bytes = u32::from(window) << self.from;
        (bytes >> self.to).min(u16::MAX.into()) as u16
    }
}

impl Packet<'_> {
    /// Renumbers a TCP segment; anything else is left as it is. A window in a segment with SYN isn't
    /// scaled (RFC 7323, section 2.2) and stays.
    ///
    /// `partial`: as for [`Packet::translate`].
    pub fn renumber(&mut self, renumbering: &Renumbering, partial: bool) {
        use field::tcp::{ACKNOWLEDGEMENT, CHECKSUM, SEQUENCE, WINDOW};
        let Transport::Tcp(mut segment) = self.transport() else {
            return;
        };
        // The header's bytes lie in its own words: the sum changes by as much as that of its words.
        let (start, end) = (self.transport_at, self.headers_length());
        let checksum_at = start + CHECKSUM;
        let sum = |bytes: &[u8]| {
            Sum::of(&bytes[start..end]).minus(Sum::of(&bytes[checksum_at..checksum_at + 2]))
        };
        let before = sum(self.bytes);

        segment.sequence = self.add(start + SEQUENCE, renumbering.sequence);
        if segment.has(TcpSegment::ACK) {
            segment.acknowledgement =
                self.add(start + ACKNOWLEDGEMENT, renumbering.acknowledgement);
        }
        if !segment.has(TcpSegment::SYN) {
            segment.window = renumbering.window.apply(segment.window);
            self.bytes[start + WINDOW..start + WINDOW + 2]
                .copy_from_slice(&segment.window.to_be_bytes());
        }
        if (renumbering.timestamp != 0 || renumbering.echo != 0)
            && let Some(at) = self.timestamps_at()
        {
            self.add(at, renumbering.timestamp);
            if segment.has(TcpSegment::ACK) {
                self.add(at + 4, renumbering.echo);
            }
        }
        if renumbering.acknowledgement != 0 {
            let sack = self.tcp_options().find(|(kind, _)| *kind == kind::SACK);
            if let Some((_, blocks)) = sack {
                for at in blocks.step_by(4) {
                    self.add(at, renumbering.acknowledgement);
                }
            }
        }

        self.transport = Transport::Tcp(segment);
        let difference = sum(self.bytes).minus(before);
        if !partial && let Some(field) = self.transport_field(CHECKSUM) {
            adjust_complete(field, difference);
        }
    }

    /// Adds to the 32-bit number at `at`, if there are as many bytes; gives what it is then.
    fn add(&mut self, at: usize, number: u32) -> u32 {
        if at + 4 > self.headers_length() {
            return 0;
        }
        let sum = u32::from_be_bytes(array_at(self.bytes, at)).wrapping_add(number);
        self.bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        sum
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpOptionElement, TcpSlice};
    use proptest::prelude::*;

    use super::*;

    fn numbers() -> impl Strategy<Value = Renumbering> {
        let scales = (0..=14u8, 0..=14u8).prop_map(|(from, to)| WindowScales { from, to });
        (any::<[u32; 4]>(), scales).prop_map(
            |([sequence, acknowledgement, timestamp, echo], window)| Renumbering {
                sequence,
                acknowledgement,
                timestamp,
                echo,
                window,
            },
        )
    }

    proptest! {
        /// The numbers change as they should, the checksum stays right, and all else stays.
        #[test]
        fn a_segment_is_renumbered(
            numbers in numbers(),
            segment in any::<(u32, u32, u16, u32, u32)>(),
            blocks in prop::collection::vec(any::<(u32, u32)>(), 0..3),
            odd in any::<bool>(),
            flags in 0..4u8,
            payload in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let (sequence, acknowledgement, window, value, echo) = segment;
            let (syn, ack) = (flags & 1 != 0, flags & 2 != 0);
            let build = |r: Renumbering| {
                let mut options = vec![TcpOptionElement::Noop; if odd { 1 } else { 2 }];
                let add = |number: u32, to: u32, if_this: bool| {
                    if if_this { number.wrapping_add(to) } else { number }
                };
                options.push(TcpOptionElement::Timestamp(
                    add(value, r.timestamp, true), add(echo, r.echo, ack)));
                let mut sacked = blocks.iter().map(|(from, to)| {
                    (add(*from, r.acknowledgement, true), add(*to, r.acknowledgement, true))
                });
                if let Some(first) = sacked.next() {
                    options.push(TcpOptionElement::SelectiveAcknowledgement(
                        first, [sacked.next(), None, None]));
                }
                let window = if syn { window } else { r.window.apply(window) };
                let mut builder = PacketBuilder::ipv4([1; 4], [2; 4], 64)
                    .tcp(1, 2, add(sequence, r.sequence, true), window)
                    .options(&options)
                    .unwrap();
                if syn {
                    builder = builder.syn();
                }
                builder = if ack {
                    builder.ack(add(acknowledgement, r.acknowledgement, true))
                } else {
                    builder
                };
                let mut packet = Vec::new();
                builder.write(&mut packet, &payload).unwrap();
                packet
            };
            let identity = Renumbering::default();
            let mut packet = build(identity);
            let mut parsed = Packet::parse(&mut packet).unwrap();
            parsed.renumber(&numbers, false);
            let transport = parsed.transport();
            let expected = build(numbers);
            let mut again = packet.clone();
            prop_assert_eq!(Packet::parse(&mut again).unwrap().transport(), transport);
            let tcp = TcpSlice::from_slice(&packet[20..]).unwrap();
            let sum = tcp.calc_checksum_ipv4([1; 4], [2; 4]).unwrap();
            let both_zeros = [tcp.checksum(), sum].iter().all(|sum| sum.is_multiple_of(0xFFFF));
            prop_assert!(tcp.checksum() == sum || both_zeros);
            packet[36..38].fill(0);
            let mut expected = expected;
            expected[36..38].fill(0);
            prop_assert_eq!(packet, expected);
        }

        /// A window is never more than was meant, and less by no more than must be.
        #[test]
        fn a_window_is_rescaled(window in any::<u16>(), from in 0..=14u8, to in 0..=14u8) {
            let scales = WindowScales { from, to };
            let meant = u64::from(window) << from;
            let said = u64::from(scales.apply(window)) << to;
            prop_assert!(said <= meant);
            prop_assert!(meant - said < 1 << to || scales.apply(window) == u16::MAX);
        }

        #[test]
        fn no_options_panic(options in prop::collection::vec(any::<u8>(), 40..=40), numbers in numbers()) {
            let mut packet = Vec::new();
            PacketBuilder::ipv4([1; 4], [2; 4], 64)
                .tcp(1, 2, 3, 4)
                .options(&vec![TcpOptionElement::Noop; 40])
                .unwrap()
                .write(&mut packet, &[])
                .unwrap();
            packet[40..80].copy_from_slice(&options);
            let mut packet = Packet::parse(&mut packet).unwrap();
            packet.tcp_offer();
            packet.timestamps();
            packet.renumber(&numbers, false);
        }
    }
}
