//! TCP segments that the engine sends of its own accord.

use std::net::{IpAddr, SocketAddr};

use etherparse::{PacketBuilder, TcpOptionElement};

use crate::packet::{Endpoint, TcpOffer, TcpSegment};

const HOP_LIMIT: u8 = 64;

/// A segment without data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub source: Endpoint,
    pub destination: Endpoint,
    pub sequence: u32,
    /// With ACK, whatever `flags` say.
    pub acknowledgement: Option<u32>,
    /// Of FIN, SYN and RST.
    pub flags: u8,
    /// As it lies in the header.
    pub window: u16,
    /// Its options.
    pub offer: TcpOffer,
}

impl Segment {
    /// The segment as a whole packet. `None` if the families differ, which those of one side of a
    /// connection never do.
    pub fn build(&self) -> Option<Vec<u8>> {
        let ip = match (
            SocketAddr::from(self.source).ip(),
            SocketAddr::from(self.destination).ip(),
        ) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.octets(), destination.octets(), HOP_LIMIT)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.octets(), destination.octets(), HOP_LIMIT)
            }
            _ => return None,
        };
        let mut tcp = ip.tcp(
            self.source.port,
            self.destination.port,
            self.sequence,
            self.window,
        );
        if self.flags & TcpSegment::FIN != 0 {
            tcp = tcp.fin();
        }
        if self.flags & TcpSegment::SYN != 0 {
            tcp = tcp.syn();
        }
        if self.flags & TcpSegment::RST != 0 {
            tcp = tcp.rst();
        }
        if let Some(acknowledgement) = self.acknowledgement {
            tcp = tcp.ack(acknowledgement);
        }
        // At most 19 bytes of the 40 that there is room for.
        let tcp = tcp.options(&self.options()).ok()?;
        let mut packet = Vec::with_capacity(tcp.size(0));
        // Writing to a vector doesn't fail.
        tcp.write(&mut packet, &[]).ok()?;
        Some(packet)
    }

    fn options(&self) -> Vec<TcpOptionElement> {
        let TcpOffer {
            segment_size,
            window_scale,
            sack,
            timestamps,
        } = self.offer;
        let mut options = Vec::new();
        options.extend(segment_size.map(TcpOptionElement::MaximumSegmentSize));
        if sack {
            options.push(TcpOptionElement::SelectiveAcknowledgementPermitted);
        }
        if let Some(timestamps) = timestamps {
            // On words of their own, as most receivers like them best (RFC 7323, appendix A).
            if !sack {
                options.extend([TcpOptionElement::Noop, TcpOptionElement::Noop]);
            }
            options.push(TcpOptionElement::Timestamp(
                timestamps.value,
                timestamps.echo,
            ));
        }
        if let Some(shift) = window_scale {
            options.extend([TcpOptionElement::Noop, TcpOptionElement::WindowScale(shift)]);
        }
        options
    }
}
