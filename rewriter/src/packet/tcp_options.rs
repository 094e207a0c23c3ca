//! The options of a TCP header: where they lie and what they say.

use super::parse::{array_at, field};
use super::{Packet, TcpSegment, Transport};

/// Option kinds (RFC 9293, section 3.1; RFC 2018; RFC 7323).
pub(super) mod kind {
    pub const END: u8 = 0;
    pub const NO_OPERATION: u8 = 1;
    pub const MAXIMUM_SEGMENT_SIZE: u8 = 2;
    pub const WINDOW_SCALE: u8 = 3;
    pub const SACK_PERMITTED: u8 = 4;
    pub const SACK: u8 = 5;
    pub const TIMESTAMPS: u8 = 8;
}

/// What most segments with timestamps begin their options with (RFC 7323, appendix A).
const USUAL_TIMESTAMPS: [u8; 4] = [kind::NO_OPERATION, kind::NO_OPERATION, kind::TIMESTAMPS, 10];

/// The two numbers of a timestamps option (RFC 7323, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamps {
    /// The sender's clock (`TSval`).
    pub value: u32,
    /// The receiver's clock, as the sender has last seen it (`TSecr`).
    pub echo: u32,
}

/// What a SYN or SYN-ACK offers in its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpOffer {
    /// The maximum segment size in bytes (RFC 9293, section 3.7.1).
    pub segment_size: Option<u16>,
    /// By how many bits windows are shifted; at most 14 (RFC 7323, section 2.3).
    pub window_scale: Option<u8>,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Timestamps (RFC 7323, section 3).
    pub timestamps: Option<Timestamps>,
}

impl Packet<'_> {
    /// What a segment with SYN offers. Options that are malformed end the list, as they do for Linux.
    pub fn tcp_offer(&self) -> TcpOffer {
        let mut offer = TcpOffer::default();
        for (kind, value) in self.tcp_options() {
            let value = &self.bytes[value];
            match (kind, value) {
                (kind::MAXIMUM_SEGMENT_SIZE, [high, low]) => {
                    offer.segment_size = Some(u16::from_be_bytes([*high, *low]));
                }
                (kind::WINDOW_SCALE, [shift]) => offer.window_scale = Some((*shift).min(14)),
                (kind::SACK_PERMITTED, []) => offer.sack = true,
                (kind::TIMESTAMPS, value) if value.len() == 8 => {
                    offer.timestamps = Some(timestamps(value));
                }
                _ => {}
            }
        }
        offer
    }

    /// The timestamps of a TCP segment.
    pub fn timestamps(&self) -> Option<Timestamps> {
        let at = self.timestamps_at()?;
        Some(timestamps(&self.bytes[at..at + 8]))
    }

    /// Where the timestamps lie, in bytes from the IP header's first.
    pub(super) fn timestamps_at(&self) -> Option<usize> {
        let Transport::Tcp(_) = self.transport() else {
            return None;
        };
        let options_at = self.transport_at + field::tcp::LENGTH;
        let end = self.headers_length();
        if end >= options_at + 12 && self.bytes[options_at..].starts_with(&USUAL_TIMESTAMPS) {
            return Some(options_at + 4);
        }
        self.tcp_options()
            .find(|(kind, value)| *kind == kind::TIMESTAMPS && value.len() == 8)
            .map(|(_, value)| value.start)
    }

    /// The options of a TCP segment, each with its kind and where its value lies, in bytes from the IP
    /// header's first; as far as they are well-formed.
    pub(super) fn tcp_options(&self) -> impl Iterator<Item = (u8, std::ops::Range<usize>)> {
        let is_tcp = matches!(self.transport(), Transport::Tcp(TcpSegment { .. }));
        let end = if is_tcp { self.headers_length() } else { 0 };
        let mut at = self.transport_at + field::tcp::LENGTH;
        std::iter::from_fn(move || {
            loop {
                let bytes = self.bytes.get(at..end)?;
                match *bytes.first()? {
                    kind::END => return None,
                    kind::NO_OPERATION => at += 1,
                    kind => {
                        let length = usize::from(*bytes.get(1)?);
                        if length < 2 || length > bytes.len() {
                            return None;
                        }
                        let value = at + 2..at + length;
                        at += length;
                        return Some((kind, value));
                    }
                }
            }
        })
    }
}

/// The two numbers in eight bytes.
fn timestamps(value: &[u8]) -> Timestamps {
    Timestamps {
        value: u32::from_be_bytes(array_at(value, 0)),
        echo: u32::from_be_bytes(array_at(value, 4)),
    }
}
