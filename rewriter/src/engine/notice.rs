//! ICMP errors that the engine sends of its own accord, as a router does (RFC 1812, section 4.3; RFC
//! 4443, section 3; RFC 5508, REQ-8).
//!
//! An error is made about the packet as it was going to leave, and then takes the way of any error
//! that a router further on would have sent ([`super::icmp_error`]): so the sender sees its own packet
//! quoted, and nothing of proxy and mirror.
//!
//! From whom it comes: "time exceeded" from the rewriter, so that it is a hop in a `traceroute`. The
//! engine knows no address of the host that would do, so it leaves the source unspecified, for the
//! port to fill in. Other errors come from the packet's own destination, which every sender accepts
//! and every firewall lets back in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode as TimeExceededV4};
use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode as TimeExceededV6};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};

use super::{DropReason, Engine, Time, Verdict};
use crate::packet::{Packet, Transport, VnetHeader, cut_v4};

const HOP_LIMIT: u8 = 64;
/// The longest ICMP error, in bytes (RFC 1812, section 4.3.2.3).
const LONGEST_V4: usize = 576;
/// The longest ICMPv6 error: the least MTU there is (RFC 4443, section 2.4).
const LONGEST_V6: usize = 1280;
/// What every link takes, in bytes (RFC 791, section 3.2).
const LEAST_MTU_V4: u16 = 68;
const HEADERS_V4: usize = 20 + 8;
const HEADERS_V6: usize = 40 + 8;

/// How many errors an engine sends in a second, and how many at once, as Linux does by default
/// (`icmp_msgs_per_sec` and `icmp_msgs_burst`).
const PER_SECOND: u64 = 1000;
const BURST: u64 = 50;
const INTERVAL: u64 = 1_000_000_000 / PER_SECOND;

/// What the sender of a packet is to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    /// It was longer than the next link takes, in bytes.
    TooBig { mtu: u16 },
    /// Its TTL or hop limit has run out here.
    HopLimitExceeded,
    /// There can be no connection for it now.
    Prohibited,
}

/// How many errors may be sent now.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When the whole [`BURST`] may be sent again; before that, as much less as it is away.
    full_at: u64,
}

impl Budget {
    /// Whether one more may be sent; it is then taken as sent.
    fn take(&mut self, now: Time) -> bool {
        let full_at = self.full_at.max(now.nanos()) + INTERVAL;
        let may = full_at <= now.nanos() + BURST * INTERVAL;
        if may {
            self.full_at = full_at;
        }
        may
    }
}

impl Engine {
    /// Deals with a packet that was to leave and is longer than the next link takes (`mtu`, in bytes):
    /// cuts it, or tells its sender. What is to be sent is asked for with [`Engine::poll_transmit`].
    pub fn handle_too_big(&mut self, mut packet: Vec<u8>, mtu: u16, now: Time) {
        let mtu = mtu.max(LEAST_MTU_V4);
        if packet.len() <= mtu.into() {
            // The link has changed meanwhile.
            return;
        }
        let may_be_cut = Packet::parse(&mut packet).is_ok_and(|packet| packet.may_be_fragmented());
        if may_be_cut {
            self.outbox
                .extend(cut_v4(&packet, mtu.into()).into_iter().map(Into::into));
        } else {
            self.notify(Notice::TooBig { mtu }, &mut packet, now);
        }
    }

    /// Tells the sender of a packet, translated or not, that was dropped for this reason, if senders
    /// are told of that.
    #[cold]
    pub(super) fn notify_of_drop(&mut self, reason: DropReason, packet: &mut [u8], now: Time) {
        let notice = match reason {
            DropReason::HopLimitExceeded => Notice::HopLimitExceeded,
            DropReason::ProxyPortsExhausted | DropReason::ClientLimit | DropReason::TableFull => {
                Notice::Prohibited
            }
            _ => return,
        };
        self.notify(notice, packet, now);
    }

    fn notify(&mut self, notice: Notice, about: &mut [u8], now: Time) {
        if !self.budget.take(now) {
            return;
        }
        let Some(mut error) = build(notice, about) else {
            return;
        };
        let Ok(mut packet) = Packet::parse(&mut error) else {
            return;
        };
        let verdict = self.decide(&mut packet, &VnetHeader::default(), now);
        if matches!(verdict, Verdict::Translated(_) | Verdict::Passed) {
            self.outbox.push_back(error.into());
        }
    }
}

/// An error about this packet, to its sender. `None`: nobody may be told of such a packet (RFC 1122,
/// section 3.2.2; RFC 4443, section 2.4 e).
fn build(notice: Notice, about: &mut [u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(about).ok()?;
    let (sender, destination) = (packet.source().into(), packet.destination().into());
    if packet.transport() == Transport::IcmpError
        || packet.is_later_fragment()
        || !is_one_host(sender)
        || !is_one_host(destination)
    {
        return None;
    }
    let mut error = Vec::new();
    // Writing to a vector doesn't fail.
    match (destination, sender) {
        (IpAddr::V4(destination), IpAddr::V4(sender)) => {
            let source = notice.source(destination, Ipv4Addr::UNSPECIFIED);
            let quote = &about[..about.len().min(LONGEST_V4 - HEADERS_V4)];
            PacketBuilder::ipv4(source.octets(), sender.octets(), HOP_LIMIT)
                .icmpv4(notice.v4())
                .write(&mut error, quote)
                .ok()?;
        }
        (IpAddr::V6(destination), IpAddr::V6(sender)) => {
            let source = notice.source(destination, Ipv6Addr::UNSPECIFIED);
            let quote = &about[..about.len().min(LONGEST_V6 - HEADERS_V6)];
            PacketBuilder::ipv6(source.octets(), sender.octets(), HOP_LIMIT)
                .icmpv6(notice.v6())
                .write(&mut error, quote)
                .ok()?;
        }
        _ => return None,
    }
    Some(error)
}

impl Notice {
    fn source<A>(self, destination: A, own: A) -> A {
        match self {
            Self::HopLimitExceeded => own,
            Self::TooBig { .. } | Self::Prohibited => destination,
        }
    }

    fn v4(self) -> Icmpv4Type {
        use DestUnreachableHeader::{FilterProhibited, FragmentationNeeded};
        match self {
            Self::TooBig { mtu: next_hop_mtu } => {
                Icmpv4Type::DestinationUnreachable(FragmentationNeeded { next_hop_mtu })
            }
            Self::HopLimitExceeded => {
                Icmpv4Type::TimeExceeded(TimeExceededV4::TtlExceededInTransit)
            }
            Self::Prohibited => Icmpv4Type::DestinationUnreachable(FilterProhibited),
        }
    }

    fn v6(self) -> Icmpv6Type {
        match self {
            Self::TooBig { mtu } => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
            Self::HopLimitExceeded => Icmpv6Type::TimeExceeded(TimeExceededV6::HopLimitExceeded),
            Self::Prohibited => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Prohibited),
        }
    }
}

/// Whether this is an address of one host, as far as an address can tell.
fn is_one_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn errors_come_in_a_burst_and_then_by_and_by() {
        let mut budget = Budget::default();
        let taken = |budget: &mut Budget, now: Time| (0..1000).filter(|_| budget.take(now)).count();
        let start = Time::from_nanos(77);
        assert_eq!(taken(&mut budget, start), 50);
        assert_eq!(
            taken(&mut budget, start.after(Duration::from_millis(10))),
            10
        );
        assert_eq!(taken(&mut budget, start.after(Duration::from_secs(9))), 50);
    }
}
