//! The sockets that clients ask at: one for each address and worker, among which the kernel shares out the
//! clients (`SO_REUSEPORT`).

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use thiserror::Error;

use super::{Inbox, Outbox};

/// Bytes of the longest query. A question and what EDNS adds to it have less; what is longer isn't read.
const MAX_QUERY: usize = 4096;

/// Bytes that may wait in a socket while a worker is busy.
const BUFFER: usize = 4 << 20;

/// Why there is no listening at an address.
#[derive(Debug, Error)]
#[error("can't listen at {address}: {errno}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The kernel's reason.
    pub errno: Errno,
}

/// A socket that a worker will have.
#[derive(Debug)]
pub struct Bound {
    socket: OwnedFd,
    /// Whether it is bound to all addresses.
    is_wildcard: bool,
}

/// One worker's socket at one address. Stays in the worker's thread, as the room for what comes in does.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// What has come.
    pub inbox: Inbox<SockaddrStorage>,
    /// What is to go.
    pub outbox: Outbox,
}

impl Bound {
    /// Listens at `address`, together with the other workers.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |errno| BindError { address, errno };
        let is_wildcard = address.ip().is_unspecified();
        let socket = open(address, is_wildcard).map_err(failed)?;
        Ok(Self {
            socket,
            is_wildcard,
        })
    }
}

impl From<Bound> for Listener {
    fn from(bound: Bound) -> Self {
        Self {
            socket: bound.socket,
            inbox: Inbox::new(MAX_QUERY, bound.is_wildcard),
            outbox: Outbox::default(),
        }
    }
}

impl Listener {
    /// Takes a batch of what has come. `false`: nothing has.
    pub fn receive(&mut self) -> bool {
        // An error is about some answer that couldn't be delivered, and is gone by being told.
        self.inbox.receive(self.socket.as_fd()).is_ok()
    }

    /// Sends what is to go, and gives the number of answers that the kernel didn't take.
    pub fn send(&mut self) -> u64 {
        self.outbox.send(self.socket.as_fd())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(address: SocketAddr, is_wildcard: bool) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    match family {
        AddressFamily::Inet6 => {
            // IPv4 has a socket of its own.
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            if is_wildcard {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
        }
        _ if is_wildcard => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
        _ => {}
    }
    enlarge(&socket);
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

/// Gives the socket room for bursts, as much as the host allows.
pub(super) fn enlarge(socket: &OwnedFd) {
    // More than the host's limit takes a privilege; without it the limit has to do.
    let _ = setsockopt(socket, sockopt::RcvBufForce, &BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &BUFFER));
    let _ = setsockopt(socket, sockopt::SndBufForce, &BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::SndBuf, &BUFFER));
}

/// Whether nobody else is at an address, neither over UDP nor over TCP. The workers' own sockets share
/// theirs, and would share it with another server as well, unnoticed.
///
/// # Errors
/// Somebody is, or the address can't be had.
pub fn check_free(address: SocketAddr) -> Result<(), BindError> {
    let failed = |error: std::io::Error| BindError {
        address,
        errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    };
    if address.ip().is_unspecified() && address.is_ipv6() {
        // The standard library's would take IPv4's place as well.
        return open_alone(address).map_err(|errno| BindError { address, errno });
    }
    UdpSocket::bind(address).map_err(failed)?;
    TcpListener::bind(address).map_err(failed)?;
    Ok(())
}

fn open_alone(address: SocketAddr) -> Result<(), Errno> {
    for kind in [SockType::Datagram, SockType::Stream] {
        let socket = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        if kind == SockType::Stream {
            // As for any server: what is left of earlier connections doesn't matter.
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    }
    Ok(())
}
