//! The lab: real programs in network namespaces, with a rewriter in the middle.
//!
//! A scenario reads like a story of packets, because the lab keeps the rest out of its sight:
//!
//! - [`Lab`] is a network of six [`Host`]s, made by `scripts/topology.sh` (its picture is there)
//!   and gone without a trace when the value is dropped;
//! - [`Shuntd`] is the daemon on the host `rewriter`; it answers to [`Shuntd::ctl`], which runs
//!   `shuntctl`. When it ends, it must have left the host as it found it;
//! - [`ShuntMonitor`] is the monitor that instructs it, beside it;
//! - [`Naming`] is the naming server, on whichever host;
//! - [`servers`] are programs that no one here wrote, each of which says its host's name;
//! - [`BusyServer`] is a web server of set capacity, and [`Load`](load::Load) clients that ask it and count
//!   what fails: what the monitor is shown with;
//! - [`Capture`] is tcpdump; what it caught are [`Packet`]s, whose checksums are verified by
//!   etherparse and not by any code of Shunt's;
//! - [`PacketHost`] is a host made of a TUN, for scenarios that want to choose every byte.
//!
//! # Failure
//!
//! The lab serves tests only, so whatever doesn't work panics with a sentence and what the
//! program in question had to say.
//!
//! # What it needs
//!
//! Root (or root of a user namespace) and the programs that `scripts/test.sh` installs. The daemons
//! and the CLI are found by the environment variables `SHUNTD`, `SHUNTCTL`, `SHUNT_MONITOR_BIN` and
//! `SHUNT_NAMING_SERVER`, or where cargo puts them beside the running test.

pub mod analysis;
mod busy_server;
mod capture;
pub mod craft;
mod lab;
pub mod load;
pub mod monitor;
mod naming;
mod packet;
mod packet_host;
mod process;
pub mod servers;
mod shunt;
pub mod timer;

pub use busy_server::BusyServer;
pub use capture::{Capture, Way};
pub use lab::{Host, Lab};
pub use monitor::ShuntMonitor;
pub use naming::Naming;
pub use packet::{Packet, Protocol, assert_only_between, assert_valid_checksums};
pub use packet_host::PacketHost;
pub use process::{Background, Finished, wait_until};
pub use shunt::{Crashed, Shuntd, binary, shuntctl};

/// The service of the patent's figure 3, on the host `origin`.
pub const SERVICE: &str = "100.100.100.100";
/// The same service over IPv6.
pub const SERVICE6: &str = "fd00:100::100";
/// The rewriter's own address of figure 3.
pub const PROXY: &str = "10.10.10.10";
/// The same over IPv6.
pub const PROXY6: &str = "fd00:10::10";
/// The client's usual address.
pub const CLIENT: &str = "10.1.0.2";
/// The client's second address, for diversions that concern only some clients.
pub const CLIENT_B: &str = "10.1.0.3";
/// Addresses of the client in networks of their own, the usual one first.
pub const CLIENTS: [&str; 3] = [CLIENT, "10.1.1.2", "10.1.2.2"];
/// The client's usual IPv6 address.
pub const CLIENT6: &str = "fd00:1::2";
/// The first mirror.
pub const MIRROR1: &str = "10.2.0.2";
/// The second mirror.
pub const MIRROR2: &str = "10.2.0.3";
/// The third mirror.
pub const MIRROR3: &str = "10.2.0.4";
/// The first mirror over IPv6.
pub const MIRROR1_6: &str = "fd00:2::2";
/// The second mirror over IPv6.
pub const MIRROR2_6: &str = "fd00:2::3";
/// The third mirror over IPv6.
pub const MIRROR3_6: &str = "fd00:2::4";
