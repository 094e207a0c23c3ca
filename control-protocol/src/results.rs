//! The results: what the daemon answers when it has done what was asked.
//!
//! An absent value is `null`, never left out. Results may gain fields in later versions of the daemon;
//! reading them ignores those that are unknown.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::address::{Protocol, Service};
use crate::method::Cursor;
use crate::peek::PeekInfo;
use crate::prefix::ClientPrefix;
use crate::text::words;

/// Answer to [`crate::Divert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivertResult {
    /// Whether a diversion with the same service and clients was there before.
    pub replaced: bool,
    /// Whether the service is held because of this: a program had decided about it, and is to leave it
    /// alone from now on ([`crate::Hold`]).
    #[serde(default)]
    pub held: bool,
}

/// Answer to [`crate::Redirect`]: the diversion is set, and this has become of the connections that it
/// governs so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectResult {
    /// Whether a diversion with the same service and clients was there before.
    pub replaced: bool,
    /// As in [`DivertResult`].
    #[serde(default)]
    pub held: bool,
    /// The redirect's number, to ask for it again with while some wait ([`crate::RedirectsQuery`]).
    pub id: u64,
    /// What has become of the connections.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What has become of the connections that a redirect governs. Each of them is counted once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Connections that are on one of the new mirrors now, and were elsewhere before.
    pub moved: u64,
    /// TCP connections that wait for a moment at which they can be spliced.
    pub waiting: u64,
    /// TCP connections that could have been spliced but have stayed where they were: they ended, or
    /// waited too long, or the redirect was cancelled or followed by another.
    pub left: u64,
    /// TCP connections that were ended with a reset.
    pub reset: u64,
    /// Connections that stayed where they were: on one of the new mirrors already, on a mirror other
    /// than `from_mirror`, or not in the `share` of those to be moved.
    pub kept: u64,
    /// TCP connections that can't be spliced and have stayed where they were, by the reason; reasons
    /// without any are left out.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// The longest, in microseconds, that what a client sent was held while its connection was being
    /// spliced; 0 if nothing was.
    #[serde(default)]
    pub longest_hold_us: u64,
}

/// Answer to [`crate::RedirectsQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectsResult {
    /// The redirects, the latest one last.
    pub redirects: Vec<RedirectInfo>,
}

/// A redirect as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectInfo {
    /// Its number.
    pub id: u64,
    /// What was redirected.
    pub service: Service,
    /// Whole seconds since it began.
    pub age_seconds: u64,
    /// What has become of the connections.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Answer to [`crate::Restore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreResult {
    /// Connections that stay on their mirror until they end.
    pub remaining: u64,
    /// As in [`DivertResult`].
    #[serde(default)]
    pub held: bool,
}

/// Answer to [`crate::Hold`] and [`crate::ReleaseHold`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldResult {
    /// Whether it made a difference: the service wasn't held before, or was.
    pub changed: bool,
}

/// Answer to [`crate::List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResult {
    /// All diversions.
    pub diversions: Vec<DiversionInfo>,
    /// All services that are held, whether diverted or not.
    #[serde(default)]
    pub holds: Vec<Service>,
}

/// A diversion as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiversionInfo {
    /// What is diverted.
    pub service: Service,
    /// Only these clients; `None`: all.
    pub from: Option<ClientPrefix>,
    /// Its mirrors, and those that it had and that still have connections (with weight 0).
    pub mirrors: Vec<MirrorInfo>,
    /// Whether new connections follow it.
    pub state: DiversionState,
    /// Whether programs that decide by themselves leave it alone ([`crate::Hold`]).
    #[serde(default)]
    pub held: bool,
    /// Whether only DNS queries for certain names follow it ([`crate::Divert::peek`]); `None`: all that goes to
    /// the service does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peek: Option<PeekInfo>,
}

/// A mirror of a diversion as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorInfo {
    /// The mirror's address.
    pub address: IpAddr,
    /// The port at the mirror; `None`: the same as at the service.
    pub port: Option<u16>,
    /// Its share of the new connections; 0: it gets none.
    pub weight: u16,
    /// How many connections are on it now.
    pub connections: u64,
}

/// Whether new connections follow a diversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiversionState {
    /// New connections follow it.
    Active,
    /// It has been removed, but connections remain on its mirrors. It disappears with the last one.
    Restored,
}

words!(DiversionState, "state of a diversion", "active or restored", {
    Active => "active",
    Restored => "restored",
});

/// Answer to [`crate::ConnectionsQuery`]: one page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionsResult {
    /// The connections, in no particular order. A page may be empty although another one follows.
    pub connections: Vec<ConnectionInfo>,
    /// What to ask for the next page with; `None`: this was the last one.
    pub next: Option<Cursor>,
}

/// A connection as it stands: its pair of pairs `(client, service) ↔ (proxy, mirror)`.
///
/// For an echo, the ports of `client` and `proxy` are the echo identifiers on that side, and the
/// ports of `service` and `mirror` are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where the client thinks it goes.
    pub service: SocketAddr,
    /// Where the mirror thinks it comes from.
    pub proxy: SocketAddr,
    /// Where it really goes.
    pub mirror: SocketAddr,
    /// How far its life has come.
    pub state: ConnectionState,
    /// Whole seconds since its last packet in either direction.
    pub idle_seconds: u64,
    /// From the client to the mirror, since it began.
    pub forward: Traffic,
    /// From the mirror to the client, since it began.
    pub reverse: Traffic,
    /// Whole seconds since it began.
    #[serde(default)]
    pub age_seconds: u64,
    /// What has been measured of it.
    #[serde(default)]
    pub timing: Timing,
}

/// What has been measured of a connection. Times are in microseconds, right to one part in 2,000 and to
/// how often the rewriter looks at its clock; `None`: it hasn't come to that yet, or was spoilt by a
/// retransmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timing {
    /// TCP: from the SYN to the mirror's answer.
    pub mirror_handshake_us: Option<u64>,
    /// TCP: from the mirror's SYN to the client's acknowledgement.
    pub client_handshake_us: Option<u64>,
    /// TCP: the round trip to the mirror and back, a running average.
    pub mirror_rtt_us: Option<u64>,
    /// TCP: the round trip to the client and back, a running average.
    pub client_rtt_us: Option<u64>,
    /// From what the client last asked to the first of what the mirror answered.
    pub first_byte_us: Option<u64>,
    /// TCP: segments of the client's that brought nothing new; at most 65,535.
    pub client_retransmissions: u16,
    /// TCP: segments of the mirror's that brought nothing new; at most 65,535.
    pub mirror_retransmissions: u16,
    /// ICMP errors about its packets; at most 255.
    pub icmp_errors: u8,
    /// TCP: who has reset it.
    pub reset_by: Option<End>,
}

/// One of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// Who opened it.
    Client,
    /// Who answers.
    Mirror,
}

words!(End, "end of a connection", "client or mirror", { Client => "client", Mirror => "mirror" });

/// How far a connection's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// TCP: the handshake is under way.
    Opening,
    /// TCP: the handshake is done, and neither end has finished.
    Established,
    /// TCP: one end has finished, the other not yet.
    Closing,
    /// TCP: both ends have finished, or one has reset it. It is remembered for stragglers.
    Closed,
    /// UDP and echo, which have no stages: it was used lately.
    Active,
}

words!(
    ConnectionState,
    "state of a connection",
    "opening, established, closing, closed or active",
    {
        Opening => "opening",
        Established => "established",
        Closing => "closing",
        Closed => "closed",
        Active => "active",
    }
);

/// An amount of traffic. A super-packet counts as one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of these packets, from the IP header on.
    pub bytes: u64,
}

impl Traffic {
    /// Adds the other amount to this one; stops at the largest number.
    pub fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Answer to [`crate::Stats`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsResult {
    /// Whole seconds since the daemon started.
    pub uptime_seconds: u64,
    /// Each worker's counters, by the worker's number.
    pub workers: Vec<Counters>,
    /// The sum over the workers.
    pub total: Counters,
    /// What has been measured since the daemon started, taken together as was asked; `None`: nothing was
    /// asked.
    #[serde(default)]
    pub groups: Option<Vec<GroupStats>>,
}

/// Answer to [`crate::Watch`], again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchResult {
    /// How long this update is about, in milliseconds; of the first one it is since the daemon started.
    pub interval_ms: u64,
    /// What was measured in that time, taken together as was asked.
    pub groups: Vec<GroupStats>,
}

/// What has been measured of connections that are taken together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStats {
    /// They follow the diversion of this service; `None`: they are taken together by something else.
    pub service: Option<Service>,
    /// That diversion is for these clients only.
    pub from: Option<ClientPrefix>,
    /// They are on this mirror.
    pub mirror: Option<SocketAddr>,
    /// Their clients are of this prefix. `None` with none of the others: they are those of the clients
    /// that there was no room to tell apart.
    pub clients: Option<ClientPrefix>,
    /// How many there are now.
    pub connections: u64,
    /// Connections that began here, or were moved here.
    pub opened: u64,
    /// TCP connections that a mirror refused.
    pub refused: u64,
    /// Connections that were forgotten without an answer from the mirror.
    pub unanswered: u64,
    /// ICMP errors about their packets.
    pub icmp_errors: u64,
    /// From clients to mirrors.
    pub forward: OneWayStats,
    /// From mirrors to clients.
    pub reverse: OneWayStats,
    /// TCP: from a SYN to the mirror's answer.
    pub mirror_handshake: Distribution,
    /// TCP: from the mirror's SYN to the client's acknowledgement.
    pub client_handshake: Distribution,
    /// TCP: the round trip to the mirror and back.
    pub mirror_rtt: Distribution,
    /// TCP: the round trip to the client and back.
    pub client_rtt: Distribution,
    /// From the last that a client asked to the first that the mirror answered.
    pub first_byte: Distribution,
}

/// What has been measured in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OneWayStats {
    /// Packets; a super-packet counts as one.
    pub packets: u64,
    /// Bytes of these packets, from the IP header on.
    pub bytes: u64,
    /// TCP segments that brought nothing new: sent again, or overtaken on their way.
    pub retransmissions: u64,
    /// TCP resets that could be believed.
    pub resets: u64,
    /// Half of the packets have at most this many bytes: 64, 128 and so on to 65,536.
    pub size_p50: u64,
    /// Nine tenths of the packets have at most this many bytes.
    pub size_p90: u64,
    /// 99 of 100 packets have at most this many bytes.
    pub size_p99: u64,
}

/// How times are distributed, in microseconds, to a sixteenth. All 0 where nothing was measured; what took
/// longer than a minute counts as a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Distribution {
    /// How many were measured.
    pub count: u64,
    /// Half of them are at most this.
    pub p50_us: u64,
    /// Nine tenths are at most this.
    pub p90_us: u64,
    /// 99 of 100 are at most this.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
    /// The arithmetic mean.
    #[serde(default)]
    pub mean_us: u64,
}

/// What a worker, or all of them, have done since the daemon started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Decided on; a packet that is handed over counts at its owner only.
    pub received: Traffic,
    /// Translated on the way from a client to a mirror.
    pub translated_forward: Traffic,
    /// Translated on the way from a mirror to a client.
    pub translated_reverse: Traffic,
    /// Sent on untouched, for want of a diversion.
    pub passed: Traffic,
    /// Packets kept: fragments until their datagram is whole, and what passes between Shunt and a mirror
    /// while a TCP connection is spliced.
    pub held: Traffic,
    /// Packets given to the worker that owns their connection.
    pub handed_over: u64,
    /// Datagrams that were put together from their fragments.
    pub reassembled: u64,
    /// Connections that there are now.
    pub connections: u64,
    /// Connections that began.
    pub created: u64,
    /// Connections that were forgotten, having ended or fallen silent.
    pub expired: u64,
    /// Connections that were forgotten early to make room: ended ones, and ones that were never
    /// answered.
    pub evicted: u64,
    /// Connections that a mirror refused, and that were tried at another without the client's noticing.
    #[serde(default)]
    pub retried: u64,
    /// Connections that were moved to another mirror.
    pub moved: u64,
    /// Connections that were ended with a reset.
    pub reset: u64,
    /// Packets that were dropped, by the name of the reason. Reasons that never came up are there
    /// too, with 0.
    pub drops: BTreeMap<String, u64>,
}

impl Counters {
    /// Adds the other's counts to these, reason by reason; stops at the largest number.
    pub fn add(&mut self, other: &Self) {
        self.received.add(other.received);
        self.translated_forward.add(other.translated_forward);
        self.translated_reverse.add(other.translated_reverse);
        self.passed.add(other.passed);
        self.handed_over = self.handed_over.saturating_add(other.handed_over);
        self.held.add(other.held);
        self.reassembled = self.reassembled.saturating_add(other.reassembled);
        self.connections = self.connections.saturating_add(other.connections);
        self.created = self.created.saturating_add(other.created);
        self.expired = self.expired.saturating_add(other.expired);
        self.evicted = self.evicted.saturating_add(other.evicted);
        self.retried = self.retried.saturating_add(other.retried);
        self.moved = self.moved.saturating_add(other.moved);
        self.reset = self.reset.saturating_add(other.reset);
        for (reason, count) in &other.drops {
            let sum = self.drops.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
}

/// Answer to [`crate::Liveness`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivenessResult {
    /// Every mirror that has had connections, by address and port.
    pub mirrors: Vec<MirrorLiveness>,
}

/// A mirror's vital signs, as its packets show them: over all diversions and clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorLiveness {
    /// The mirror.
    pub mirror: SocketAddr,
    /// How many connections are on it now.
    pub connections: u64,
    /// Milliseconds since anything came from it; `None`: nothing has yet.
    pub heard_ms: Option<u64>,
    /// TCP segments that want an answer (data, SYN, FIN) and were sent to it since anything came from
    /// it. Never too many; too few at most until the next time this is asked.
    pub unanswered: u64,
    /// Milliseconds since the first of these was sent; `None`: there is none.
    pub waiting_ms: Option<u64>,
    /// TCP connections that it refused since the daemon started.
    pub refused: u64,
    /// TCP connections that it reset since the daemon started, refused ones not counted.
    pub resets: u64,
    /// ICMP errors about packets of its connections since the daemon started.
    pub icmp_errors: u64,
}

/// Answer to [`crate::Version`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionResult {
    /// The daemon's version, such as `0.1.0`.
    pub version: String,
    /// The newest version of this protocol that the daemon speaks.
    pub protocol: u32,
    /// How packets leave: `tun` or `raw`.
    pub egress: String,
    /// Which super-packets the TUN takes and gives, in the daemon's words.
    pub offload: String,
    /// How many workers there are.
    pub workers: u32,
    /// The name of the TUN interface.
    pub tun: String,
    /// The daemon's process id.
    pub pid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters that are all different: `base`, `base` + 1, and so on in the order of the fields.
    fn counters(base: u64, drops: &[(&str, u64)]) -> Counters {
        let traffic = |at| Traffic {
            packets: base + at,
            bytes: base + at + 1,
        };
        Counters {
            received: traffic(0),
            translated_forward: traffic(2),
            translated_reverse: traffic(4),
            passed: traffic(6),
            held: traffic(8),
            handed_over: base + 10,
            reassembled: base + 11,
            connections: base + 12,
            created: base + 13,
            expired: base + 14,
            evicted: base + 15,
            retried: base + 16,
            moved: base + 17,
            reset: base + 18,
            drops: drops
                .iter()
                .map(|(reason, count)| ((*reason).to_owned(), *count))
                .collect(),
        }
    }

    #[test]
    fn counters_add_up_field_by_field() {
        let mut sum = counters(0, &[("malformed", 1), ("no_room", 0)]);
        sum.add(&counters(100, &[("malformed", 2), ("expired", 5)]));

        let traffic = |at: u64| Traffic {
            packets: 100 + 2 * at,
            bytes: 102 + 2 * at,
        };
        assert_eq!(
            sum,
            Counters {
                received: traffic(0),
                translated_forward: traffic(2),
                translated_reverse: traffic(4),
                passed: traffic(6),
                held: traffic(8),
                handed_over: 120,
                reassembled: 122,
                connections: 124,
                created: 126,
                expired: 128,
                evicted: 130,
                retried: 132,
                moved: 134,
                reset: 136,
                drops: [("malformed", 3), ("no_room", 0), ("expired", 5)]
                    .map(|(reason, count)| (reason.to_owned(), count))
                    .into(),
            }
        );
    }

    #[test]
    fn counters_stop_at_the_largest_number() {
        let mut sum = Traffic {
            packets: u64::MAX,
            bytes: 1,
        };
        sum.add(Traffic {
            packets: 1,
            bytes: 2,
        });
        assert_eq!(
            sum,
            Traffic {
                packets: u64::MAX,
                bytes: 3
            }
        );
    }

    #[test]
    fn results_ignore_fields_they_do_not_know() {
        let result: RestoreResult =
            serde_json::from_str(r#"{"remaining":3,"since":"yesterday"}"#).expect("a result");
        let expected = RestoreResult {
            remaining: 3,
            held: false,
        };
        assert_eq!(result, expected);
    }

    #[test]
    fn absent_values_are_null() {
        let page = ConnectionsResult {
            connections: Vec::new(),
            next: None,
        };
        let json = serde_json::to_string(&page).expect("plain data");
        assert_eq!(json, r#"{"connections":[],"next":null}"#);
    }
}
