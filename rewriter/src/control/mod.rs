//! The daemon's other side: what the control socket asks, carried out on all workers.
//!
//! - [`plane`]: the methods of the protocol, over workers and routes;
//! - `holds`: services that programs which decide by themselves have to leave alone;
//! - `measured`: what the engines have measured, added up by what was asked for;
//! - [`routing`]: the routes that the daemon sets up, or prints.
//!
//! The socket itself is served by the crate `control_server`, which [`plane::Plane`] gives the answers.
//!
//! Nothing here is on the packet path. A worker sees the control plane only as closures that it runs
//! between two batches of packets.

mod holds;
mod measured;
pub mod plane;
pub mod routing;
mod view;
