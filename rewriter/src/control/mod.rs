//! The daemon's other side: what the control socket asks, carried out on all workers.
//!
//! - [`socket`]: a socket file that only one living daemon has;
//! - [`server`]: lines in, lines out, one task a client, none of which can hold up another;
//! - [`plane`]: the methods of the protocol, over workers and routes;
//! - `measured`: what the engines have measured, added up by what was asked for;
//! - [`routing`]: the routes that the daemon sets up, or prints.
//!
//! Nothing here is on the packet path. A worker sees the control plane only as closures that it runs
//! between two batches of packets.

mod measured;
pub mod plane;
pub mod routing;
pub mod server;
pub mod socket;
mod view;
