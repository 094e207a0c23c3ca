//! UDP sockets: datagrams come and go in batches. Nothing is decided here.
//!
//! nix receives many datagrams with one system call. It can send as many, but doesn't say how many it has
//! sent, so that is done by rustix; which in turn can't say from which address a datagram is to leave, as
//! is needed at a socket that is bound to all addresses. There each goes by itself.

mod lanes;
mod listener;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrLike, SockaddrStorage,
    recvmmsg, sendmsg,
};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

pub use lanes::{Lane, Lanes};
pub use listener::{BindError, Bound, Listener, check_free};

/// Datagrams for one system call.
pub const BATCH: usize = 32;

/// The address of our own that a datagram was sent to, and the interface that it came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// IPv4.
    V4(libc::in_pktinfo),
    /// IPv6.
    V6(libc::in6_pktinfo),
}

/// A datagram that was received.
#[derive(Debug, Clone, Copy)]
pub struct Received<S> {
    /// Its length in bytes.
    length: usize,
    /// Where it came from; nothing at a connected socket.
    address: Option<S>,
    /// Where it was sent to, at a socket that is bound to all addresses.
    pub local: Option<Local>,
}

impl Received<SockaddrStorage> {
    /// Where it came from.
    pub fn from(&self) -> Option<SocketAddr> {
        let address = self.address?;
        if let Some(address) = address.as_sockaddr_in() {
            return Some(SocketAddr::V4((*address).into()));
        }
        address
            .as_sockaddr_in6()
            .map(|address| SocketAddr::V6((*address).into()))
    }
}

/// Room for a batch of datagrams. Belongs to sockets of one family, as the kernel is told the room for an
/// address only once.
#[derive(Debug)]
pub struct Inbox<S> {
    buffers: Vec<Box<[u8]>>,
    headers: MultiHeaders<S>,
    received: Vec<Received<S>>,
}

impl<S: SockaddrLike + Copy> Inbox<S> {
    /// Room for datagrams of up to `size` bytes; for `with_local`, at sockets that tell it, also for where
    /// each was sent to.
    pub fn new(size: usize, with_local: bool) -> Self {
        let control = with_local.then(|| cmsg_space!(libc::in6_pktinfo));
        Self {
            buffers: (0..BATCH).map(|_| vec![0; size].into()).collect(),
            headers: MultiHeaders::preallocate(BATCH, control),
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Takes what has come, a batch at most. Whatever was longer than there is room has the length 0.
    ///
    /// # Errors
    /// Nothing has come (`WouldBlock`), or nobody listens at the far end (`ConnectionRefused` and the
    /// like), or the socket is broken.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.received.clear();
        let mut buffers: Vec<[IoSliceMut<'_>; 1]> = self
            .buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let datagrams = recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            buffers.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        for datagram in datagrams {
            let is_whole = !datagram.flags.contains(MsgFlags::MSG_TRUNC);
            let local = datagram.cmsgs().ok().and_then(|messages| {
                messages.into_iter().find_map(|message| match message {
                    ControlMessageOwned::Ipv4PacketInfo(info) => Some(Local::V4(info)),
                    ControlMessageOwned::Ipv6PacketInfo(info) => Some(Local::V6(info)),
                    _ => None,
                })
            });
            self.received.push(Received {
                length: if is_whole { datagram.bytes } else { 0 },
                address: datagram.address,
                local,
            });
        }
        Ok(())
    }

    /// What was received, each with its bytes.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (&Received<S>, &mut [u8])> {
        self.received
            .iter()
            .zip(&mut self.buffers)
            .map(|(received, buffer)| {
                let length = received.length.min(buffer.len());
                (received, &mut buffer[..length])
            })
    }
}

/// Datagrams that wait to be sent from one socket.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    letters: Vec<Letter>,
}

#[derive(Debug)]
struct Letter {
    bytes: Range<usize>,
    /// Nothing at a connected socket.
    to: Option<SocketAddr>,
    local: Option<Local>,
}

impl Outbox {
    /// Appends a datagram that `write` puts at the end of a buffer. One without bytes isn't sent.
    pub fn put<T>(
        &mut self,
        to: Option<SocketAddr>,
        local: Option<Local>,
        write: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> T {
        let start = self.bytes.len();
        let result = write(&mut self.bytes);
        if self.bytes.len() > start {
            self.letters.push(Letter {
                bytes: start..self.bytes.len(),
                to,
                local,
            });
        }
        result
    }

    /// Sends all, and gives the number of datagrams that the kernel didn't take.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> u64 {
        let mut lost = 0;
        let mut done = 0;
        while done < self.letters.len() {
            let sent = match &self.letters[done..] {
                [
                    letter @ Letter {
                        local: Some(local), ..
                    },
                    ..,
                ] => self.send_from(socket, letter, local).map(|()| 1),
                letters => {
                    let plain = letters
                        .iter()
                        .take(BATCH)
                        .take_while(|letter| letter.local.is_none());
                    self.send_batch(socket, &letters[..plain.count()])
                }
            };
            match sent {
                Ok(sent) => done += sent.max(1),
                Err(Errno::EINTR) => {}
                // `sendmmsg` reports an error only of the first message; it stops before a later one.
                Err(_) => {
                    lost += 1;
                    done += 1;
                }
            }
        }
        self.letters.clear();
        self.bytes.clear();
        lost
    }

    /// Sends several with one call, and gives the number that were sent.
    fn send_batch(&self, socket: BorrowedFd<'_>, letters: &[Letter]) -> Result<usize, Errno> {
        let parts: Vec<[IoSlice<'_>; 1]> = letters
            .iter()
            .map(|letter| [IoSlice::new(&self.bytes[letter.bytes.clone()])])
            .collect();
        let addresses: Vec<Option<SocketAddrAny>> = letters
            .iter()
            .map(|letter| letter.to.map(SocketAddrAny::from))
            .collect();
        let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> = letters
            .iter()
            .map(|_| SendAncillaryBuffer::default())
            .collect();
        let mut messages: Vec<MMsgHdr<'_>> = parts
            .iter()
            .zip(&addresses)
            .zip(&mut controls)
            .map(|((part, address), control)| match address {
                Some(address) => MMsgHdr::new_with_addr(address, part, control),
                None => MMsgHdr::new(part, control),
            })
            .collect();
        sendmmsg(socket, &mut messages, SendFlags::DONTWAIT)
            .map_err(|error| Errno::from_raw(error.raw_os_error()))
    }

    /// Sends one from the address that its client had asked.
    fn send_from(
        &self,
        socket: BorrowedFd<'_>,
        letter: &Letter,
        local: &Local,
    ) -> Result<(), Errno> {
        let parts = [IoSlice::new(&self.bytes[letter.bytes.clone()])];
        let to = letter.to.map(SockaddrStorage::from);
        let fd = socket.as_fd().as_raw_fd();
        match local {
            Local::V4(info) => {
                // The route is the kernel's affair; the address is the one that was asked.
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_addr: libc::in_addr { s_addr: 0 },
                    ..*info
                };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(fd, &parts, &control, MsgFlags::MSG_DONTWAIT, to.as_ref())?;
            }
            Local::V6(info) => {
                // Only a link-local address means nothing without its interface.
                let address = IpAddr::from(info.ipi6_addr.s6_addr);
                let is_link_local =
                    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
                let info = libc::in6_pktinfo {
                    ipi6_ifindex: if is_link_local { info.ipi6_ifindex } else { 0 },
                    ..*info
                };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(fd, &parts, &control, MsgFlags::MSG_DONTWAIT, to.as_ref())?;
            }
        }
        Ok(())
    }
}
