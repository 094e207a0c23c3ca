//! Views over the bytes of one packet. Pure: no state, no clock, no I/O.
//!
//! [`Packet::parse`] checks every length once; what it returns can then be read and rewritten in
//! place without a further check that could fail. [`checksum`] explains how a checksum is kept right
//! without summing the packet again.

mod address;
pub mod checksum;
mod flow;
mod fragment;
mod icmp_error;
mod joinable;
mod mss;
mod parse;
mod renumber;
mod tcp_options;
mod translate;
mod vnet;

pub use address::{Address, Endpoint};
pub use flow::Flow;
pub use fragment::{BadFragment, Datagram, Fragment, cut_v4};
pub use icmp_error::Quote;
pub use joinable::Joinable;
pub use parse::{Malformed, Packet, TcpSegment, Transport};
pub use renumber::{Renumbering, WindowScales};
pub use tcp_options::{TcpOffer, Timestamps};
pub use translate::{Differences, Translation};
pub use vnet::{GsoType, VnetHeader};
