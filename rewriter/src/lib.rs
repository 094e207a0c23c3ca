//! Shunt's packet rewriter.
//!
//! From the bottom to the top:
//!
//! - [`packet`] knows the bytes of one packet and nothing else;
//! - [`table`] is the address table: diversions, connections, proxy ports;
//! - [`engine`] decides: a packet and the time go in, a verdict comes out, no I/O;
//! - [`io`] knows file descriptors and takes no decisions;
//! - [`worker`] joins a port and an engine in a thread;
//! - [`config`] is what the daemon was told;
//! - [`control`] is the daemon's other side: the socket, the diversions, the routes.

pub mod config;
pub mod control;
pub mod engine;
pub mod io;
pub mod packet;
pub mod table;
pub mod worker;
