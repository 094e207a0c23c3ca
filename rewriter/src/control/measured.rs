//! What the engines have measured, added up by what was asked for.

use std::collections::{HashMap, HashSet};

use control_protocol::{ClientPrefix, Distribution, GroupStats, Grouping, OneWayStats};
use hdrhistogram::Histogram;
use ipnet::IpNet;

use crate::packet::Endpoint;
use crate::table::{
    Aggregate, AggregateKey, ClientGroups, DiversionId, OneWay, SIZE_CLASSES, Timed, Totals,
};

/// What connections are taken together by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum GroupKey {
    Mirror(DiversionId, Endpoint),
    Service(DiversionId),
    /// `None`: the clients that there was no room to tell apart.
    Client(Option<IpNet>),
}

impl GroupKey {
    fn of(key: &AggregateKey, by: Grouping, groups: ClientGroups) -> Self {
        match by {
            Grouping::Mirror => Self::Mirror(key.diversion, key.mirror),
            Grouping::Service => Self::Service(key.diversion),
            Grouping::Client => Self::Client(key.clients.and_then(|clients| {
                let length = if clients.is_v4() {
                    groups.v4
                } else {
                    groups.v6
                };
                IpNet::new(clients.into(), length).ok()
            })),
        }
    }

    /// The diversion that it is about, if it is about one.
    fn diversion(&self) -> Option<DiversionId> {
        match self {
            Self::Mirror(diversion, _) | Self::Service(diversion) => Some(*diversion),
            Self::Client(_) => None,
        }
    }

    fn mirror(&self) -> Option<Endpoint> {
        match self {
            Self::Mirror(_, mirror) => Some(*mirror),
            Self::Service(_) | Self::Client(_) => None,
        }
    }

    fn clients(&self) -> Option<ClientPrefix> {
        match self {
            Self::Client(clients) => clients.map(Into::into),
            Self::Mirror(..) | Self::Service(_) => None,
        }
    }
}

/// Connections taken together.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    connections: u64,
    totals: Totals,
}

/// What has been measured since the start.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    groups: HashMap<GroupKey, Group>,
}

impl Measured {
    /// Adds what one worker has measured of some connections.
    pub(super) fn add(&mut self, aggregate: &Aggregate, by: Grouping, groups: ClientGroups) {
        let key = GroupKey::of(&aggregate.key, by, groups);
        let group = self.groups.entry(key).or_default();
        group.connections += aggregate.connections;
        group.totals.add(&aggregate.totals);
    }

    /// What was measured after `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let groups = self.groups.iter().map(|(key, group)| {
            let mut group = group.clone();
            if let Some(earlier) = earlier.groups.get(key) {
                group.totals.subtract(&earlier.totals);
            }
            (*key, group)
        });
        Self {
            groups: groups.collect(),
        }
    }

    /// The diversions that groups are about.
    pub(super) fn diversions(&self) -> HashSet<DiversionId> {
        self.groups.keys().filter_map(GroupKey::diversion).collect()
    }

    /// The groups in their order, those left out that `about` knows nothing of: the service that a group is
    /// about, and for which clients.
    pub(super) fn report(
        &self,
        about: impl Fn(DiversionId) -> Option<(control_protocol::Service, Option<ClientPrefix>)>,
    ) -> Vec<GroupStats> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(key, _)| **key);
        let stats = groups.into_iter().filter_map(|(key, group)| {
            let (service, from) = match key.diversion() {
                Some(diversion) => {
                    let (service, from) = about(diversion)?;
                    (Some(service), from)
                }
                None => (None, None),
            };
            let Group {
                connections,
                totals,
            } = group;
            let times = |what| distribution(totals.times(what));
            Some(GroupStats {
                service,
                from,
                mirror: key.mirror().map(Into::into),
                clients: key.clients(),
                connections: *connections,
                opened: totals.opened,
                refused: totals.refused,
                unanswered: totals.unanswered,
                icmp_errors: totals.icmp_errors,
                forward: one_way(&totals.forward),
                reverse: one_way(&totals.reverse),
                mirror_handshake: times(Timed::MirrorHandshake),
                client_handshake: times(Timed::ClientHandshake),
                mirror_rtt: times(Timed::MirrorRtt),
                client_rtt: times(Timed::ClientRtt),
                first_byte: times(Timed::FirstByte),
            })
        });
        stats.collect()
    }
}

fn one_way(one_way: &OneWay) -> OneWayStats {
    let [size_p50, size_p90, size_p99] = [50, 90, 99].map(|part| size_at(&one_way.sizes, part));
    OneWayStats {
        packets: one_way.packets(),
        bytes: one_way.bytes,
        retransmissions: one_way.retransmissions,
        resets: one_way.resets,
        size_p50,
        size_p90,
        size_p99,
    }
}

/// The largest size of the class in which this part of all packets, in hundredths, is reached; 0: there
/// were none.
fn size_at(sizes: &[u64; SIZE_CLASSES], part: u128) -> u64 {
    let all: u64 = sizes.iter().sum();
    let mut below = 0;
    let class = sizes.iter().position(|count| {
        below += *count;
        below > 0 && u128::from(below) * 100 >= u128::from(all) * part
    });
    class.map_or(0, |class| 64 << class)
}

fn distribution(times: Option<&Histogram<u64>>) -> Distribution {
    let Some(times) = times.filter(|times| !times.is_empty()) else {
        return Distribution::default();
    };
    Distribution {
        count: times.len(),
        p50_us: times.value_at_quantile(0.5),
        p90_us: times.value_at_quantile(0.9),
        p99_us: times.value_at_quantile(0.99),
        max_us: times.max(),
        mean_us: times.mean().round() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_at_parts() {
        let mut sizes = [0; SIZE_CLASSES];
        assert_eq!(size_at(&sizes, 50), 0);
        sizes[0] = 90;
        sizes[5] = 10;
        assert_eq!(
            [50, 90, 91, 99].map(|part| size_at(&sizes, part)),
            [64, 64, 2048, 2048]
        );
    }
}
