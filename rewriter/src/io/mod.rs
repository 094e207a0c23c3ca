//! Everything that touches a file descriptor: where packets enter and leave, and the routes that
//! bring them here. It takes no decisions about packets.
//!
//! A [`Port`] is one worker's place for packets to enter and leave. All of them speak in
//! [`Frame`]s: one packet, starting at its IP header, with a [`VnetHeader`] before it.

mod losses;
mod namespace;
pub mod poll;
pub mod raw;
pub mod routes;
pub mod self_test;
pub mod tun;
pub mod waker;

use std::io;
use std::os::fd::BorrowedFd;

use crate::packet::VnetHeader;

/// A packet that couldn't leave because it is too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooBig {
    /// The packet, from its IP header on.
    pub packet: Vec<u8>,
    /// What its link takes, in bytes.
    pub mtu: u16,
}

/// A place where packets enter and leave. One worker owns it; nothing in it is shared.
pub trait Port {
    /// Takes the next waiting packet into `frame`. `Ok(false)`: none waits. Never blocks.
    ///
    /// # Errors
    /// The port is broken for good (the device is gone); the worker ends.
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool>;

    /// Sends the packet in `frame`, now or at the next [`Port::flush`].
    ///
    /// The port may keep the frame's storage and leave another in its place: what `frame` holds
    /// afterwards is unspecified. A packet that the kernel refuses is lost and counted
    /// ([`Port::losses`]), as on any link.
    ///
    /// # Errors
    /// The port is broken for good.
    fn transmit(&mut self, frame: &mut Frame) -> io::Result<()>;

    /// A packet that was longer than its link takes, if there has been one since this was last asked:
    /// only of a port on which the kernel doesn't tell the sender itself.
    fn poll_too_big(&mut self) -> Option<TooBig> {
        None
    }

    /// Sends what [`Port::transmit`] has put off.
    ///
    /// # Errors
    /// The port is broken for good.
    fn flush(&mut self) -> io::Result<()>;

    /// Readable when a packet waits.
    fn readiness(&self) -> BorrowedFd<'_>;

    /// The packets that the kernel refused to send, since the port was opened.
    fn losses(&self) -> Losses;
}

/// Packets that a port couldn't send, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// The kernel called the packet or its `virtio_net_hdr` invalid (`EINVAL`).
    pub refused: u64,
    /// No room in a queue or no memory (`ENOBUFS`, `ENOMEM`, `EAGAIN`).
    pub no_room: u64,
    /// The link is down (`EIO`, `ENETDOWN`).
    pub link_down: u64,
    /// No route to the destination (`ENETUNREACH`, `EHOSTUNREACH`).
    pub no_route: u64,
    /// Longer than the next link's MTU (`EMSGSIZE`).
    pub too_big: u64,
    /// Forbidden by a firewall rule or a policy (`EPERM`, `EACCES`).
    pub forbidden: u64,
    /// Any other error.
    pub other: u64,
}

/// One packet in a buffer of its own: a [`VnetHeader`], then the packet from its IP header on.
#[derive(Debug, Clone)]
pub struct Frame {
    storage: Box<[u8]>,
    len: usize,
}

impl Frame {
    /// Bytes of the longest packet: IPv6 allows 40 bytes more than its length field counts.
    pub const MAX_PACKET: usize = 65_535 + 40;

    /// An empty frame with room for the longest packet.
    pub fn new() -> Self {
        Self {
            storage: vec![0; VnetHeader::LEN + Self::MAX_PACKET].into(),
            len: VnetHeader::LEN,
        }
    }

    /// The header that says what the kernel left undone.
    pub fn header(&self) -> VnetHeader {
        let mut bytes = [0; VnetHeader::LEN];
        bytes.copy_from_slice(&self.storage[..VnetHeader::LEN]);
        VnetHeader::decode(&bytes)
    }

    /// Replaces the header.
    pub fn set_header(&mut self, header: &VnetHeader) {
        self.storage[..VnetHeader::LEN].copy_from_slice(&header.encode());
    }

    /// The packet, from its IP header on.
    pub fn packet(&self) -> &[u8] {
        &self.storage[VnetHeader::LEN..self.len]
    }

    /// The packet, to be changed where it lies.
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.storage[VnetHeader::LEN..self.len]
    }

    /// Header and packet as they are read from and written to a TUN.
    pub fn wire(&self) -> &[u8] {
        &self.storage[..self.len]
    }

    /// The whole storage, to be read into; [`Frame::set_wire_len`] then says how much was.
    pub fn storage_mut(&mut self) -> &mut [u8] {
        &mut self.storage
    }

    /// Says how many bytes of header and packet the storage holds; too small or too large a number
    /// is brought to the nearest possible one.
    pub fn set_wire_len(&mut self, len: usize) {
        self.len = len.clamp(VnetHeader::LEN, self.storage.len());
    }

    /// Replaces the packet by a copy of `packet` with an all-zero header; cut off at
    /// [`Frame::MAX_PACKET`].
    pub fn fill(&mut self, packet: &[u8]) {
        let len = packet.len().min(Self::MAX_PACKET);
        self.storage[..VnetHeader::LEN].fill(0);
        self.storage[VnetHeader::LEN..VnetHeader::LEN + len].copy_from_slice(&packet[..len]);
        self.len = VnetHeader::LEN + len;
    }

    /// Adds `bytes` to the packet's end; cut off at [`Frame::MAX_PACKET`].
    pub fn extend(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(self.storage.len() - self.len);
        self.storage[self.len..self.len + len].copy_from_slice(&bytes[..len]);
        self.len += len;
    }

    /// Replaces header and packet by what [`Frame::wire`] gave for another frame; cut off at the
    /// length of the storage.
    pub fn fill_wire(&mut self, wire: &[u8]) {
        let len = wire.len().min(self.storage.len());
        self.storage[..len].copy_from_slice(&wire[..len]);
        self.set_wire_len(len);
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}
