//! The maximum segment size that the ends of a TCP connection announce in their SYNs, lowered to what
//! fits the path (RFC 9293, section 3.7.1; RFC 4459, section 3.2).

use std::ops::Range;

use super::checksum::{Sum, adjust_complete};
use super::parse::field;
use super::tcp_options::kind;
use super::{Packet, TcpSegment, Transport};

impl Packet<'_> {
    /// Lowers the announced maximum segment size so that a packet of such a segment, with IP and TCP
    /// headers without options, has at most `mtu` bytes. Does nothing to a packet that isn't a SYN or
    /// SYN-ACK, or that announces no more than that.
    ///
    /// `partial`: as for [`Packet::translate`].
    pub fn clamp_mss(&mut self, mtu: u16, partial: bool) {
        let Transport::Tcp(segment) = self.transport() else {
            return;
        };
        if !segment.has(TcpSegment::SYN) {
            return;
        }
        let ip_header = if self.is_v4() {
            field::ipv4::LENGTH
        } else {
            field::ipv6::LENGTH
        };
        let Some(limit) = usize::from(mtu).checked_sub(ip_header + field::tcp::LENGTH) else {
            return;
        };
        let size = self
            .tcp_options()
            .find(|(kind, value)| *kind == kind::MAXIMUM_SEGMENT_SIZE && value.len() == 2);
        let Some((_, Range { start: at, .. })) = size else {
            return;
        };
        let announced = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        // What is over the limit of 16 bits isn't announced by anyone.
        let limit = limit as u16;
        if announced <= limit {
            return;
        }
        self.bytes[at..at + 2].copy_from_slice(&limit.to_be_bytes());
        if partial {
            // The sum of the options is yet to be made.
            return;
        }
        // The option may begin at an odd byte, where its two bytes count for two words.
        let is_odd = (at - self.transport_at) % 2 == 1;
        let word = |value: u16| Sum::word(if is_odd { value.swap_bytes() } else { value });
        if let Some(checksum) = self.transport_field(field::tcp::CHECKSUM) {
            adjust_complete(checksum, word(limit).minus(word(announced)));
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpOptionElement, TcpSlice};
    use proptest::prelude::*;

    use super::*;

    fn syn(options: &[TcpOptionElement], v6: bool) -> Vec<u8> {
        let ip = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 64)
        } else {
            PacketBuilder::ipv4([1; 4], [2; 4], 64)
        };
        let builder = ip.tcp(1, 2, 3, 4).syn().options(options).unwrap();
        let mut packet = Vec::new();
        builder.write(&mut packet, &[]).unwrap();
        packet
    }

    /// The announced size, after the checksum was verified.
    fn announced(packet: &[u8]) -> Option<u16> {
        let v6 = packet[0] >> 4 == 6;
        let tcp = TcpSlice::from_slice(&packet[if v6 { 40 } else { 20 }..]).unwrap();
        let sum = if v6 {
            tcp.calc_checksum_ipv6([1; 16], [2; 16])
        } else {
            tcp.calc_checksum_ipv4([1; 4], [2; 4])
        };
        assert_eq!(tcp.checksum(), sum.unwrap());
        tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(size)) => Some(size),
            _ => None,
        })
    }

    #[test]
    fn a_size_that_is_too_great_is_lowered_wherever_it_stands() {
        use TcpOptionElement::{
            MaximumSegmentSize as Size, Noop, SelectiveAcknowledgementPermitted,
        };
        for v6 in [false, true] {
            for options in [
                &[Size(9000)][..],
                &[Noop, Size(9000)],
                &[SelectiveAcknowledgementPermitted, Noop, Size(9000)],
            ] {
                let mut packet = syn(options, v6);
                Packet::parse(&mut packet).unwrap().clamp_mss(1500, false);
                assert_eq!(announced(&packet), Some(if v6 { 1440 } else { 1460 }));
            }
        }
    }

    #[test]
    fn a_size_that_fits_and_a_syn_without_one_stay() {
        let mut packet = syn(&[TcpOptionElement::MaximumSegmentSize(536)], false);
        let before = packet.clone();
        Packet::parse(&mut packet).unwrap().clamp_mss(1500, false);
        assert_eq!(packet, before);
        let mut packet = syn(&[], false);
        Packet::parse(&mut packet).unwrap().clamp_mss(1500, false);
        assert_eq!(announced(&packet), None);
    }

    proptest! {
        #[test]
        fn no_options_panic(options in prop::collection::vec(any::<u8>(), 40..=40), mtu in any::<u16>()) {
            let filler = vec![TcpOptionElement::Noop; 40];
            let mut packet = syn(&filler, false);
            packet[40..80].copy_from_slice(&options);
            Packet::parse(&mut packet).unwrap().clamp_mss(mtu, false);
            prop_assert_eq!(packet.len(), 80);
        }
    }
}
