//! A generator of small datagrams: frames made beforehand, sent by a packet socket on the client's
//! interface, many with one system call and past the queueing discipline.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::Context;
use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::libc;
use scenarios::{Host, Lab};

use crate::workload::{SINK_PORT, SMALL_PAYLOAD};

/// Frames in one system call.
const BATCH: usize = 64;
/// The first of the clients' ports.
const FIRST_PORT: u32 = 2000;
/// Flows of one client address.
const PORTS: u32 = 50_000;

/// Frames of so many flows.
pub struct Flood {
    frames: Vec<Vec<u8>>,
    socket: OwnedFd,
}

impl Flood {
    /// Datagrams from `source`, and the addresses after it, to [`SINK_PORT`] at `target`, by way of the
    /// rewriter's host.
    ///
    /// # Errors
    /// An interface has no hardware address, or there can be no packet socket.
    pub fn new(lab: &Lab, source: IpAddr, target: IpAddr, flows: u32) -> anyhow::Result<Self> {
        let from = hardware_address(&lab.client, "eth0")?;
        let to = hardware_address(&lab.rewriter, "client")?;
        let frames = (0..flows)
            .map(|flow| {
                let source = nth_after(source, flow / PORTS);
                let port = (FIRST_PORT + flow % PORTS) as u16;
                let ethernet = PacketBuilder::ethernet2(from, to);
                let ip = match (source, target) {
                    (IpAddr::V4(source), IpAddr::V4(target)) => {
                        ethernet.ipv4(source.octets(), target.octets(), 64)
                    }
                    (IpAddr::V6(source), IpAddr::V6(target)) => {
                        ethernet.ipv6(source.octets(), target.octets(), 64)
                    }
                    _ => anyhow::bail!("{source} and {target} are of different families"),
                };
                let mut frame = Vec::new();
                ip.udp(port, SINK_PORT)
                    .write(&mut frame, &[0; SMALL_PAYLOAD])?;
                Ok(frame)
            })
            .collect::<anyhow::Result<_>>()?;
        let socket = lab.client.inside(|| packet_socket("eth0"))?;
        Ok(Self { frames, socket })
    }

    /// Sends them, round and round, as fast as they go.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send_for(&self, time: Duration) -> io::Result<()> {
        let began = Instant::now();
        let mut next = (0..self.frames.len()).cycle();
        while began.elapsed() < time {
            let mut vectors = [libc::iovec {
                iov_base: ptr::null_mut(),
                iov_len: 0,
            }; BATCH];
            #[expect(unsafe_code, reason = "C leaves room for fields that no one may name")]
            // SAFETY: every field of an `mmsghdr` is a number or a pointer, for which zero is valid.
            let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
            for ((message, vector), frame) in messages.iter_mut().zip(&mut vectors).zip(&mut next) {
                let frame = &self.frames[frame];
                vector.iov_base = frame.as_ptr().cast_mut().cast();
                vector.iov_len = frame.len();
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
            }
            #[expect(
                unsafe_code,
                reason = "nix's sendmmsg wants an address for each message"
            )]
            // SAFETY: all messages are filled in, and what they point to (`vectors`, the frames)
            // outlives the call, which only reads.
            let sent = unsafe {
                libc::sendmmsg(
                    self.socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    BATCH as libc::c_uint,
                    0,
                )
            };
            match Errno::result(sent) {
                // The interface's queue is full: that is what we are here for.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn nth_after(address: IpAddr, n: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + n).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(n)).into()),
    }
}

fn hardware_address(host: &Host, interface: &str) -> anyhow::Result<[u8; 6]> {
    let text = host
        .run(&format!("cat /sys/class/net/{interface}/address"))
        .success();
    let bytes: Vec<u8> = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes
        .try_into()
        .ok()
        .with_context(|| format!("{interface}: {text}"))
}

/// A packet socket that sends by this interface of the calling thread's namespace.
fn packet_socket(interface: &str) -> anyhow::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    #[expect(unsafe_code, reason = "nix makes no packet socket without a protocol")]
    // SAFETY: the call takes numbers only, and gives a descriptor that nobody else has.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        OwnedFd::from_raw_fd(Errno::result(fd)?)
    };
    #[expect(unsafe_code, reason = "an address of the kind that nix only reads")]
    // SAFETY: every field of a `sockaddr_ll` is a number, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index)?;
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: the kernel reads one `sockaddr_ll`, which lives on this stack frame.
    Errno::result(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })?;
    let bypass: libc::c_int = 1;
    #[expect(unsafe_code, reason = "an option that nix doesn't have")]
    // SAFETY: the kernel reads one `int`, which lives on this stack frame.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            ptr::from_ref(&bypass).cast(),
            size_of_val(&bypass) as libc::socklen_t,
        )
    })?;
    Ok(socket)
}
