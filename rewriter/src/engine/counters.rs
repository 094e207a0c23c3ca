//! What an engine counts.

use super::Verdict;
use crate::packet::Malformed;
use crate::table::{Direction, TrafficCount};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])+ $reason:ident = $name:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[$doc])+ $reason,)+
        }

        impl DropReason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$reason,)+];

            /// The reason's name in statistics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// No bytes at all.
    Empty = "empty",
    /// Neither IPv4 nor IPv6.
    NotIp = "not_ip",
    /// The IP header is cut off or its length is impossible.
    BadIpHeader = "bad_ip_header",
    /// The IP length field doesn't fit the bytes.
    BadIpLength = "bad_ip_length",
    /// IPv6 extension headers that run out of the packet or are too many.
    BadExtensionHeaders = "bad_extension_headers",
    /// The transport header is cut off or its length is impossible.
    BadTransportHeader = "bad_transport_header",
    /// A super-packet of a kind that was never asked for.
    UnknownOffload = "unknown_offload",
    /// A fragment whose own fields can't be; or a datagram that is itself a fragment.
    BadFragment = "bad_fragment",
    /// A first fragment that doesn't hold the whole transport header.
    FragmentTiny = "fragment_tiny",
    /// A fragment that overlaps another, or disagrees with it on where the datagram ends; and all
    /// that come of the same datagram after it.
    FragmentOverlap = "fragment_overlap",
    /// A fragment that would make its datagram longer than any can be.
    FragmentTooLong = "fragment_too_long",
    /// A fragment of a datagram that comes in too many.
    FragmentTooMany = "fragment_too_many",
    /// A fragment that says "not ECN-capable" while another says "congestion experienced".
    FragmentMixedEcn = "fragment_mixed_ecn",
    /// A datagram, counted once, of which something was missing for too long.
    FragmentExpired = "fragment_expired",
    /// A datagram, counted once, that was given up unfinished to make room for others.
    FragmentEvicted = "fragment_evicted",
    /// To a proxy address, from an address or to a port that has no connection.
    NoConnection = "no_connection",
    /// To a proxy address, of a protocol or ICMP type that no connection has.
    NotForProxy = "not_for_proxy",
    /// An ICMP error to a proxy address about a packet of no connection.
    UnsolicitedIcmpError = "unsolicited_icmp_error",
    /// An ICMP error about a TCP segment that its sender can't have sent lately.
    ImplausibleIcmpError = "implausible_icmp_error",
    /// Advice to use another router, to a proxy address or a diverted service.
    IcmpRedirect = "icmp_redirect",
    /// To a connection that a redirect has reset; the sender was told so.
    ConnectionWasReset = "connection_was_reset",
    /// A new connection for which no proxy port was left.
    ProxyPortsExhausted = "proxy_ports_exhausted",
    /// A new connection of a client that has as many as one client may have.
    ClientLimit = "client_limit",
    /// A new connection for which the table had no room.
    TableFull = "table_full",
    /// Its TTL or hop limit has run out.
    HopLimitExceeded = "hop_limit_exceeded",
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Empty => Self::Empty,
            Malformed::NotIp => Self::NotIp,
            Malformed::IpHeader => Self::BadIpHeader,
            Malformed::IpLength => Self::BadIpLength,
            Malformed::ExtensionHeaders => Self::BadExtensionHeaders,
            Malformed::TransportHeader => Self::BadTransportHeader,
        }
    }
}

/// What one engine has counted since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that this engine decided on, malformed ones included.
    pub received: TrafficCount,
    /// Rewritten from client to mirror.
    pub forward: TrafficCount,
    /// Rewritten from mirror to client.
    pub reverse: TrafficCount,
    /// Sent on as they came.
    pub passed: TrafficCount,
    /// Packets kept: fragments until their datagram is whole, and what passes between the engine and a
    /// mirror while a connection is spliced.
    pub held: TrafficCount,
    /// Datagrams put together from fragments. What becomes of one is counted like a packet, by the
    /// owner of its connection; but in `received` are its fragments.
    pub reassembled: u64,
    /// Packets that belonged to another worker; that one counts what becomes of them.
    pub handed_over: u64,
    /// Connections opened.
    pub created: u64,
    /// Connections forgotten because they were idle.
    pub expired: u64,
    /// Connections forgotten to make room: ended ones, and ones that were never answered.
    pub evicted: u64,
    /// Connections that a mirror refused, and that were tried at another.
    pub retried: u64,
    /// Connections that a redirect moved.
    pub moved: u64,
    /// Connections that a redirect reset.
    pub reset: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Packets dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    pub(super) fn count(&mut self, verdict: Verdict, length: usize) {
        if !matches!(verdict, Verdict::HandOver { .. }) {
            self.received.add(length);
        }
        self.count_datagram(verdict, length);
    }

    /// Counts a whole datagram, whose fragments were counted when they were received.
    pub(super) fn count_datagram(&mut self, verdict: Verdict, length: usize) {
        match verdict {
            Verdict::Translated(Direction::Forward) => self.forward.add(length),
            Verdict::Translated(Direction::Reverse) => self.reverse.add(length),
            Verdict::Passed => self.passed.add(length),
            Verdict::Dropped(reason) => self.drops[reason as usize] += 1,
            Verdict::Held => self.held.add(length),
            Verdict::HandOver { .. } => self.handed_over += 1,
        }
    }

    /// Counts datagrams that were dropped some time after their fragments were received.
    pub(super) fn count_datagrams_dropped(&mut self, reason: DropReason, datagrams: u64) {
        self.drops[reason as usize] += datagrams;
    }
}
