//! The address table (patent, figure 2b, 207), one shard of it for each worker.
//!
//! - [`Diversions`] (209): which service goes to which mirrors. Every worker has all of them.
//!   A [`Peek`] is the list of names that one may be limited to.
//! - [`Connections`] (211): the pair of pairs of each connection that this worker owns, found by
//!   either pair, with a [`TimerWheel`] beside it that tells which may have become idle.
//! - [`Aggregates`]: connections of one diversion, mirror and client prefix, taken together, with what
//!   has been measured of them.
//! - [`ProxyPool`]: the proxy addresses and ports that this worker may give out.

mod aggregates;
mod connection;
mod connections;
mod diversions;
mod flow_index;
mod latency;
mod peek;
mod proxy_pool;
mod slot_list;
mod timer_wheel;
mod totals;
mod vitals;

pub use aggregates::{
    Aggregate, AggregateId, AggregateKey, Aggregates, ClientGroups, MAX_AGGREGATES,
};
pub use connection::{
    ClientSide, Connection, Direction, MirrorSide, State, Talk, TcpProgress, Timing, TrafficCount,
};
pub use connections::{Connections, FETCHED_AT_ONCE, Slot};
pub use diversions::{Diversion, DiversionId, Diversions, Refusal, check_proxies};
pub use latency::Latency;
pub use peek::Peek;
pub use proxy_pool::{Exhausted, ProxyPool, Taken};
pub use timer_wheel::{Tick, TimerWheel};
pub use totals::{OneWay, SIZE_CLASSES, Timed, Totals};
pub use vitals::Vitals;
