//! The check by connecting: a mirror is well if it accepts a TCP connection.

use std::net::SocketAddr;
use std::time::Instant;

use serde::Deserialize;
use tokio::net::TcpStream;

use super::fault::Fault;
use super::{Asked, Finding};

/// Connects and closes again; nothing is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {}

impl Tcp {
    pub(super) async fn ask(&self, asked: &Asked) -> Result<Finding, Fault> {
        let began = Instant::now();
        connect(asked.address).await?;
        Ok(Finding::good(began.elapsed(), "connected"))
    }
}

/// A connection to `address`.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, Fault> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(Fault::io("connect"))?;
    // A port in the ephemeral range on this very host may connect to itself when nobody listens.
    let itself = stream.local_addr().is_ok_and(|local| local == address);
    if itself {
        return Err(Fault::io("connect")(
            std::io::ErrorKind::ConnectionRefused.into(),
        ));
    }
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
