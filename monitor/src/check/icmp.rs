//! The check by an ICMP echo (RFC 792, RFC 4443): a mirror is well if it answers.
//!
//! An unprivileged ICMP socket is used where the kernel lets us (`net.ipv4.ping_group_range`), a raw
//! one otherwise, which needs `CAP_NET_RAW`. An echo carries a random token, so that another's answer,
//! which a raw socket gets to see as well, is never taken for it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, socket,
};
use serde::Deserialize;
use tokio::net::UdpSocket;

use super::fault::Fault;
use super::{Asked, Finding};

/// An echo request and its reply. There is nothing to choose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Icmp {}

/// What tells an echo of ours from another's.
const TOKEN_LENGTH: usize = 16;

/// Type, code, checksum, identifier, sequence number.
const HEADER_LENGTH: usize = 8;

/// Room for an IPv4 header of the greatest length, and the reply.
const ROOM: usize = 60 + HEADER_LENGTH + TOKEN_LENGTH;

impl Icmp {
    pub(super) async fn ask(&self, asked: &Asked) -> Result<Finding, Fault> {
        let began = Instant::now();
        let socket = open(asked.address).map_err(Fault::io("open an ICMP socket"))?;
        let token: [u8; TOKEN_LENGTH] = rand::random();
        socket
            .send(&request(asked.address, &token))
            .await
            .map_err(Fault::io("send"))?;
        let mut buffer = [0; ROOM];
        loop {
            let count = socket
                .recv(&mut buffer)
                .await
                .map_err(Fault::io("receive"))?;
            if is_reply(asked.address, &buffer[..count], &token) {
                return Ok(Finding::good(began.elapsed(), "echo"));
            }
        }
    }
}

/// A socket for echoes with `address`. Any datagram socket can be a `UdpSocket` to tokio.
fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match address {
        SocketAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        SocketAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let open = |kind| socket(family, kind, flags, protocol);
    let descriptor: OwnedFd = open(SockType::Datagram).or_else(|_| open(SockType::Raw))?;
    // The port of a raw socket's address must be 0 for IPv6, and means nothing otherwise.
    let mut peer = address;
    peer.set_port(0);
    connect(descriptor.as_raw_fd(), &SockaddrStorage::from(peer))?;
    UdpSocket::from_std(descriptor.into())
}

/// An echo request with `token`. The identifier is random: an unprivileged socket puts its own in.
fn request(address: SocketAddr, token: &[u8; TOKEN_LENGTH]) -> Vec<u8> {
    let kind = match address {
        SocketAddr::V4(_) => 8,
        SocketAddr::V6(_) => 128,
    };
    let identifier: [u8; 2] = rand::random();
    let mut message = vec![kind, 0, 0, 0, identifier[0], identifier[1], 0, 1];
    message.extend_from_slice(token);
    // The kernel computes that of IPv6 itself, since it has the addresses in it.
    if address.is_ipv4() {
        let checksum = checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

/// The Internet checksum of `message`, whose length is even (RFC 1071).
fn checksum(message: &[u8]) -> u16 {
    let sum: u32 = message
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

/// Whether `received` is the reply to the request with `token`. A raw IPv4 socket gives the IP header
/// as well.
fn is_reply(address: SocketAddr, received: &[u8], token: &[u8; TOKEN_LENGTH]) -> bool {
    let reply = match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(_) => 129,
    };
    let header = match received.first() {
        Some(first) if address.is_ipv4() && first >> 4 == 4 => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    received.get(header..).is_some_and(|message| {
        message.first() == Some(&reply) && message.get(HEADER_LENGTH..) == Some(token.as_slice())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; TOKEN_LENGTH] = *b"sixteen bytes...";

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_checksum_is_that_of_the_rfcs_example() {
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&example), !0xddf2);
        // A message with its checksum in place sums up to nothing.
        assert_eq!(checksum(&request(address("127.0.0.1:0"), &TOKEN)), 0);
    }

    #[test]
    fn only_a_reply_with_the_token_is_ours() {
        for (to, reply, request_kind) in [("127.0.0.1:0", 0, 8), ("[::1]:0", 129, 128)] {
            let to = address(to);
            let mut message = request(to, &TOKEN);
            assert!(!is_reply(to, &message, &TOKEN), "it is the request itself");
            assert_eq!(message[0], request_kind);
            message[0] = reply;
            assert!(is_reply(to, &message, &TOKEN));
            assert!(!is_reply(to, &message, b"another's token."));
            for length in 0..message.len() {
                assert!(!is_reply(to, &message[..length], &TOKEN), "{length}");
            }
            message.push(0);
            assert!(!is_reply(to, &message, &TOKEN));
        }
    }

    #[test]
    fn a_raw_ipv4_sockets_header_is_skipped_whatever_its_length() {
        let to = address("127.0.0.1:0");
        let mut message = request(to, &TOKEN);
        message[0] = 0;
        for words in 5..=15_u8 {
            let mut packet = vec![0; usize::from(words) * 4];
            packet[0] = 0x40 | words;
            packet.extend_from_slice(&message);
            assert!(is_reply(to, &packet, &TOKEN));
            assert!(!is_reply(to, &packet[..usize::from(words)], &TOKEN));
        }
    }
}
