//! The raw port: packets enter by a TUN queue and leave by raw sockets, many with one system call.
//!
//! # Theory of operation
//!
//! A packet that is written to a TUN enters the kernel as if it came from a link, and is
//! *forwarded*. A packet that is sent by a raw socket is *locally generated*: it needs no
//! forwarding to be enabled, and meets the OUTPUT chain of firewalls instead of FORWARD. `sendmmsg`
//! sends many at once. In exchange there are no super-packets, so the queue must belong to a device
//! without [offloads](super::tun::Offload).
//!
//! It isn't the faster port as a rule. A small packet took, on Linux 6.18, 0.5 µs in batches of 64
//! to a destination behind a gateway (0.6 µs by a TUN), but 0.9 µs to one on the link itself: for
//! those the kernel makes a new route entry each time (`FLOWI_FLAG_KNOWN_NH`, `net/ipv4/route.c`).
//!
//! A socket has one version of IP, so there is an outbox for each. [`Port::transmit`] swaps the
//! frame's storage with that of an empty slot of an outbox, without copying the packet;
//! [`Port::flush`], or the last empty slot, sends them all. Packets of one version stay in order.
//!
//! # What the kernel does to such packets
//!
//! With `IPPROTO_RAW` a socket takes whole packets, IP header included (`raw(7)`; for IPv6 it
//! implies `IPV6_HDRINCL`). The rest is from `net/ipv4/raw.c` and `net/ipv6/raw.c`, and tried on
//! Linux 6.18:
//!
//! - For IPv4 it fills in the header's checksum and total length, and the identification if it is
//!   zero. It touches nothing else: not the TTL, no checksum of layer 4.
//! - The source address may be anybody's: neither `ip_nonlocal_bind` nor forwarding is needed.
//! - The route is chosen by destination and mark alone. It isn't chosen by the packet's source
//!   address, so rules `from …` don't see it. Every packet carries the mark (`SO_MARK`) that
//!   exempts it from the rule that would lead it back into the TUN.
//! - What a firewall drops in OUTPUT is `EPERM`. A `prohibit` route gives `EACCES`, a `blackhole`
//!   route `EINVAL`.
//! - It isn't routed on behalf of its source: nobody lowers its TTL, and when it is longer than the
//!   next link's MTU, it is `EMSGSIZE`, with or without DF, and no ICMP error is sent. Such a packet
//!   is handed back with the MTU ([`Port::poll_too_big`]).
//! - An IPv6 packet needs some IPv6 address on the host that the kernel could have used as its
//!   source, though it isn't used; else it is `EADDRNOTAVAIL`.
//! - An IPv4 packet without a source address gets the host's own. For IPv6 we do the same here.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike,
    connect, getsockname, setsockopt, socket, sockopt,
};
use thiserror::Error;

use super::tun::TunQueue;
use super::{Frame, Losses, Port, TooBig};
use crate::packet::GsoType;
use crate::packet::checksum::{Sum, adjust_complete};

/// Packets of one version of IP that wait to be sent together.
const BATCH: usize = 64;

/// Bytes that may wait in a socket for the link to take them. The kernel counts a packet with its
/// bookkeeping, so it is room for some thousand packets of 1,500 bytes.
const SEND_BUFFER: usize = 4 << 20;

/// Why no raw socket could be opened. The messages include the kernel's answer, so that isn't a
/// [`source`](std::error::Error::source) as well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RawError {
    /// The process lacks a capability.
    #[error(
        "not permitted to open a raw socket ({0}): \
         run as root or with CAP_NET_RAW and CAP_NET_ADMIN, or use --egress tun"
    )]
    NotPermitted(Errno),
    /// Any other error of the kernel.
    #[error("can't {step} a raw socket: {errno}")]
    Kernel {
        /// What was being done: a verb phrase.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// A port that reads from a TUN queue and sends by raw sockets.
#[derive(Debug)]
pub struct RawPort {
    ingress: TunQueue,
    ipv4: Outbox<SockaddrIn>,
    /// `None`: the kernel has no IPv6, and so no such packets.
    ipv6: Option<Outbox<SockaddrIn6>>,
    refused: Refused,
}

/// What the kernel didn't send.
#[derive(Debug, Default)]
struct Refused {
    losses: Losses,
    /// At most [`BATCH`]; what comes beyond is only counted.
    too_big: VecDeque<TooBig>,
}

impl RawPort {
    /// Opens the sockets in the calling thread's network namespace; what they send carries `mark`.
    ///
    /// # Errors
    /// Each variant of [`RawError`] says what to do.
    pub fn open(ingress: TunQueue, mark: u32) -> Result<Self, RawError> {
        let ipv6 = match Outbox::open(AddressFamily::Inet6, mark) {
            Ok(outbox) => Some(outbox),
            Err(RawError::Kernel {
                errno: Errno::EAFNOSUPPORT,
                ..
            }) => None,
            Err(error) => return Err(error),
        };
        let ipv4 = Outbox::open(AddressFamily::Inet, mark)?;
        Ok(Self {
            ingress,
            ipv4,
            ipv6,
            refused: Refused::default(),
        })
    }
}

impl Port for RawPort {
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        self.ingress.receive(frame)
    }

    /// Swaps the frame's storage for an empty one. A packet that raw sockets can't send as it is
    /// (not IP, or with something left undone in its [`VnetHeader`](crate::packet::VnetHeader))
    /// counts as refused.
    fn transmit(&mut self, frame: &mut Frame) -> io::Result<()> {
        let header = frame.header();
        let is_complete = !header.needs_csum() && header.gso() == GsoType::None;
        let outcome = match version(frame.packet()) {
            4 if is_complete => self.ipv4.put(frame, &mut self.refused),
            6 if is_complete => match &mut self.ipv6 {
                Some(outbox) => outbox
                    .complete_source(frame.packet_mut())
                    .and_then(|()| outbox.put(frame, &mut self.refused)),
                None => Err(Errno::EAFNOSUPPORT),
            },
            _ => Err(Errno::EINVAL),
        };
        if let Err(errno) = outcome {
            self.refused.losses.count(1, errno);
        }
        Ok(())
    }

    fn poll_too_big(&mut self) -> Option<TooBig> {
        self.refused.too_big.pop_front()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.ipv4.send(&mut self.refused);
        if let Some(outbox) = &mut self.ipv6 {
            outbox.send(&mut self.refused);
        }
        Ok(())
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.ingress.as_fd()
    }

    fn losses(&self) -> Losses {
        self.refused.losses
    }
}

/// A raw socket of one version of IP, and the packets that wait for it.
#[derive(Debug)]
struct Outbox<A> {
    socket: OwnedFd,
    family: AddressFamily,
    mark: u32,
    /// [`BATCH`] frames; as many as there are destinations hold a packet.
    slots: Vec<Frame>,
    destinations: Vec<A>,
}

impl<A: Destination> Outbox<A> {
    fn open(family: AddressFamily, mark: u32) -> Result<Self, RawError> {
        let failed = |step| {
            move |errno| match errno {
                Errno::EPERM | Errno::EACCES => RawError::NotPermitted(errno),
                _ => RawError::Kernel { step, errno },
            }
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(family, SockType::Raw, flags, SockProtocol::Raw).map_err(failed("open"))?;
        setsockopt(&socket, sockopt::Mark, &mark).map_err(failed("set the mark of"))?;
        // Beyond the host's limit only with CAP_NET_ADMIN on the host itself, which root of a user
        // namespace hasn't; as much as the limit allows will do.
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER))
            .map_err(failed("set the send buffer of"))?;
        // Nobody reads what arrives for protocol 255, so the kernel needn't keep much of it.
        setsockopt(&socket, sockopt::RcvBuf, &0).map_err(failed("set the receive buffer of"))?;
        Ok(Self {
            socket,
            family,
            mark,
            slots: (0..BATCH).map(|_| Frame::new()).collect(),
            destinations: Vec::with_capacity(BATCH),
        })
    }

    /// Puts the packet into an empty slot, and the slot's storage into `frame`; sends all when none
    /// is empty any more.
    fn put(&mut self, frame: &mut Frame, refused: &mut Refused) -> Result<(), Errno> {
        let destination = A::of(frame.packet()).ok_or(Errno::EINVAL)?;
        std::mem::swap(&mut self.slots[self.destinations.len()], frame);
        self.destinations.push(destination);
        if self.destinations.len() == BATCH {
            self.send(refused);
        }
        Ok(())
    }

    /// Sends all that waits. A packet that the kernel refuses is counted, and the rest goes on.
    fn send(&mut self, refused: &mut Refused) {
        let mut done = 0;
        while done < self.destinations.len() {
            match self.send_from(done) {
                Ok(sent) => done += sent,
                Err(Errno::EINTR) => {}
                // `sendmmsg` reports an error only of the first packet; it stops before a later
                // one.
                Err(errno) => {
                    refused.losses.count(1, errno);
                    if errno == Errno::EMSGSIZE
                        && refused.too_big.len() < BATCH
                        && let Ok(mtu) = self.mtu_towards(&self.destinations[done])
                    {
                        let packet = self.slots[done].packet().to_vec();
                        refused.too_big.push_back(TooBig { packet, mtu });
                    }
                    done += 1;
                }
            }
        }
        self.destinations.clear();
    }

    /// What the link towards a destination takes, in bytes.
    fn mtu_towards(&self, destination: &A) -> nix::Result<u16> {
        let probe = self.connect(destination)?;
        let mut mtu: libc::c_int = 0;
        let mut length = size_of_val(&mtu) as libc::socklen_t;
        let (level, name) = A::MTU;
        #[expect(unsafe_code, reason = "an option that nix has for IPv4 only")]
        // SAFETY: the kernel writes at most `length` bytes, an `int`, and the length itself; both
        // live on this stack frame.
        Errno::result(unsafe {
            libc::getsockopt(
                probe.as_raw_fd(),
                level,
                name,
                ptr::from_mut(&mut mtu).cast(),
                &raw mut length,
            )
        })?;
        // A loopback's is 65,536.
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// A socket that the kernel has found a route for, as for our packets. It sends nothing.
    fn connect(&self, destination: &A) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let probe = socket(self.family, SockType::Datagram, flags, SockProtocol::Udp)?;
        setsockopt(&probe, sockopt::Mark, &self.mark)?;
        connect(probe.as_raw_fd(), destination)?;
        Ok(probe)
    }

    /// Sends what waits from slot `start` on, and gives the number of packets that were sent.
    fn send_from(&self, start: usize) -> Result<usize, Errno> {
        let destinations = &self.destinations[start..];
        let mut packets = [IoSlice::new(&[]); BATCH];
        #[expect(unsafe_code, reason = "C leaves room for fields that no one may name")]
        // SAFETY: every field of an `mmsghdr` is a number or a pointer, for which zero is valid.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (((message, packet), slot), destination) in messages
            .iter_mut()
            .zip(&mut packets)
            .zip(&self.slots[start..])
            .zip(destinations)
        {
            *packet = IoSlice::new(slot.packet());
            message.msg_hdr.msg_name = destination.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = destination.len();
            // An `IoSlice` is an `iovec` to the kernel, as its documentation promises.
            message.msg_hdr.msg_iov = ptr::from_mut(packet).cast();
            message.msg_hdr.msg_iovlen = 1;
        }
        #[expect(
            unsafe_code,
            reason = "nix's sendmmsg reads addresses that nobody has written"
        )]
        // SAFETY: as many of `messages` as there are `destinations` are filled in, at most BATCH,
        // and what they point to (`packets`, slots and `destinations`) outlives the call, which
        // only reads.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                destinations.len() as libc::c_uint,
                0,
            )
        };
        Errno::result(sent).map(|sent| sent as usize)
    }
}

impl Outbox<SockaddrIn6> {
    /// Gives an ICMPv6 message without a source address the one that the host has towards its
    /// destination. All other packets have one.
    fn complete_source(&self, packet: &mut [u8]) -> nix::Result<()> {
        const NEXT_HEADER: usize = 6;
        const SOURCE: Range<usize> = 8..24;
        const ICMP_CHECKSUM: Range<usize> = 42..44;
        let is_ours = packet.len() >= ICMP_CHECKSUM.end
            && packet[SOURCE] == [0; 16]
            && packet[NEXT_HEADER] == libc::IPPROTO_ICMPV6 as u8;
        if !is_ours {
            return Ok(());
        }
        let destination = SockaddrIn6::of(packet).ok_or(Errno::EINVAL)?;
        let own: SockaddrIn6 = getsockname(self.connect(&destination)?.as_raw_fd())?;
        let own = own.ip().octets();
        packet[SOURCE].copy_from_slice(&own);
        if let Some(checksum) = packet[ICMP_CHECKSUM].first_chunk_mut() {
            adjust_complete(checksum, Sum::of(&own));
        }
        Ok(())
    }
}

/// Where a packet goes to, as a socket wants it told.
trait Destination: SockaddrLike + Copy {
    /// Level and name of the socket option that tells the MTU of a connected socket's route.
    const MTU: (libc::c_int, libc::c_int);

    /// Reads it from the packet's IP header. `None`: the packet is shorter than such a header.
    fn of(packet: &[u8]) -> Option<Self>;
}

impl Destination for SockaddrIn {
    const MTU: (libc::c_int, libc::c_int) = (libc::IPPROTO_IP, libc::IP_MTU);

    fn of(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<20>()?;
        let address: &[u8; 4] = header.last_chunk()?;
        Some(SocketAddrV4::new(Ipv4Addr::from(*address), 0).into())
    }
}

impl Destination for SockaddrIn6 {
    const MTU: (libc::c_int, libc::c_int) = (libc::IPPROTO_IPV6, libc::IPV6_MTU);

    fn of(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<40>()?;
        let address: &[u8; 16] = header.last_chunk()?;
        // The port must be zero: the kernel takes it for a protocol number.
        Some(SocketAddrV6::new(Ipv6Addr::from(*address), 0, 0, 0).into())
    }
}

/// The packet's version of IP; 0 if there is no packet.
fn version(packet: &[u8]) -> u8 {
    packet.first().map_or(0, |byte| byte >> 4)
}

#[cfg(test)]
mod tests;
