//! The check by a datagram: a mirror is well if it answers, and perhaps with the right bytes.
//!
//! An ICMP error such as "port unreachable" is a bad answer; silence is, too, when the time is up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use serde::Deserialize;
use tokio::net::UdpSocket;

use super::config::CheckError;
use super::fault::Fault;
use super::text::{HexBytes, contains};
use super::{Asked, Finding};

/// The most bytes that are sent: what fits most links without fragments.
const MAX_SEND: usize = 1200;

/// Room for any datagram.
pub(super) const MAX_DATAGRAM: usize = 65535;

/// A datagram and what is expected of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Udp {
    /// What is sent, as text.
    pub send: Option<String>,
    /// What is sent, in hexadecimal.
    pub send_hex: Option<HexBytes>,
    /// What the answer must contain, as text; without it any answer is good.
    pub expect: Option<String>,
    /// What the answer must contain, in hexadecimal.
    pub expect_hex: Option<HexBytes>,
}

impl Udp {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        if self.send.is_some() && self.send_hex.is_some() {
            return Err(CheckError::Exclusive {
                one: "send",
                other: "send-hex",
            });
        }
        if self.expect.is_some() && self.expect_hex.is_some() {
            return Err(CheckError::Exclusive {
                one: "expect",
                other: "expect-hex",
            });
        }
        if self.payload().is_empty() || self.payload().len() > MAX_SEND {
            return Err(CheckError::Value {
                field: if self.send_hex.is_some() {
                    "send-hex"
                } else {
                    "send"
                },
                why: "from 1 to 1200 bytes to send; a server has to have something to answer to",
            });
        }
        Ok(())
    }

    pub(super) async fn ask(&self, asked: &Asked) -> Result<Finding, Fault> {
        let began = Instant::now();
        let socket = connect(asked.address).await?;
        socket
            .send(self.payload())
            .await
            .map_err(Fault::io("send"))?;
        let mut buffer = vec![0; MAX_DATAGRAM];
        let count = socket
            .recv(&mut buffer)
            .await
            .map_err(Fault::io("receive"))?;
        let latency = began.elapsed();
        match contains(&buffer[..count], self.expected()) {
            true => Ok(Finding::good(latency, format!("{count} bytes"))),
            false => Ok(Finding::bad(format!(
                "{count} bytes, without what is expected"
            ))),
        }
    }

    fn payload(&self) -> &[u8] {
        bytes_of(self.send.as_ref(), self.send_hex.as_ref())
    }

    fn expected(&self) -> &[u8] {
        bytes_of(self.expect.as_ref(), self.expect_hex.as_ref())
    }
}

fn bytes_of<'a>(text: Option<&'a String>, hex: Option<&'a HexBytes>) -> &'a [u8] {
    match (text, hex) {
        (Some(text), _) => text.as_bytes(),
        (None, Some(hex)) => &hex.0,
        (None, None) => &[],
    }
}

/// A socket that sends to `address` and takes datagrams, and ICMP errors, from there only.
pub(super) async fn connect(address: SocketAddr) -> Result<UdpSocket, Fault> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(Fault::io("bind"))?;
    socket
        .connect(address)
        .await
        .map_err(Fault::io("connect"))?;
    Ok(socket)
}
