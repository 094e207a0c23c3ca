//! The server's side of the control protocol, for every daemon that speaks it: `shuntd`, the monitor, the
//! naming server.
//!
//! - [`ControlSocket`]: a socket file that only one living daemon has;
//! - [`serve`]: lines in, lines out, one task a client, none of which can hold up another;
//! - [`Handler`]: what a daemon brings: its answers.
//!
//! What this crate does not do: know any method, but for `watch`, whose answers have no end. It needs a
//! tokio runtime with time and I/O.

mod server;
mod socket;

pub use server::{Handler, serve};
pub use socket::{ControlSocket, SocketError};
