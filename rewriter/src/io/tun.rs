//! The TUN port: packets enter and leave by a TUN interface of Shunt's own.
//!
//! # Theory of operation
//!
//! A TUN interface is a link whose other end is a file descriptor: what the kernel routes into the
//! link is read, and what is written comes out of the link and is routed like any packet. Shunt
//! opens one *device* with as many *queues* as it has workers (`IFF_MULTI_QUEUE`); each queue is a
//! descriptor of its own, and so a [`Port`] of its own. The kernel spreads packets over the queues.
//!
//! Every packet is preceded by a [`VnetHeader`] (`IFF_VNET_HDR`), so that the kernel may hand over,
//! and take back, packets whose checksum isn't completed and super-packets that aren't cut yet.
//! What it may hand over is the device's [`Offload`] mask. Kernels differ in what they grant, so
//! [`TunDevice::open`] asks for what is wanted, contents itself with less, and says which
//! ([`Granted`]).
//!
//! The device is never persistent: it is created by the first queue, and is gone when the last one
//! is closed, with its addresses and routes. A device of the same name that exists already belongs
//! to somebody else and is left alone ([`TunError::Exists`]): attaching to it would steal its
//! packets.
//!
//! How a queue behaves when its link changes (Linux, `drivers/net/tun.c`):
//!
//! | link    | `poll`                             | `read`    | `write`              |
//! |---------|------------------------------------|-----------|----------------------|
//! | up      | `POLLIN` when a packet waits       | a packet  | passes               |
//! | down    | nothing: a waiter sleeps           | `EAGAIN`  | `EIO`: counted, lost |
//! | deleted | `POLLERR`, and waiters are woken   | `EBADFD`  | `EBADFD`             |
//!
//! So a link that is down costs no time, and one that was deleted ends the worker with an error at
//! the next [`Port::receive`] or [`Port::transmit`].
//!
//! Where the device carries UDP super-packets, small datagrams that follow each other are written as
//! one ([`coalescer`]).
//!
//! Not used: `IFF_NAPI` (it hands packets to another context to be merged, which super-packets
//! make needless) and zero-copy (TUN offers it to vhost only).

pub mod coalescer;
pub mod steering;

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::unistd;
use thiserror::Error;

use self::coalescer::Coalescer;
use super::{Frame, Losses, Port};
use crate::packet::VnetHeader;

/// The device file that every TUN queue begins as.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// The most queues that a device can have (`MAX_TAP_QUEUES`, `drivers/net/tun.c`).
pub const MAX_QUEUES: usize = 256;

/// What the kernel may leave undone on the packets of a TUN.
///
/// Each kind includes uncompleted checksums: the kernel grants none without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// TCP super-packets, IPv4 and IPv6 (`TUN_F_TSO4`, `TUN_F_TSO6`, `TUN_F_TSO_ECN`).
    pub tso: bool,
    /// UDP super-packets, IPv4 and IPv6 (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2 and later).
    pub uso: bool,
}

impl Offload {
    /// Nothing: every packet is complete and fits its link.
    pub const NONE: Self = Self {
        tso: false,
        uso: false,
    };
    /// TCP and UDP super-packets.
    pub const ALL: Self = Self {
        tso: true,
        uso: true,
    };

    /// What is in this one and not in `other`.
    pub fn without(self, other: Self) -> Self {
        Self {
            tso: self.tso && !other.tso,
            uso: self.uso && !other.uso,
        }
    }

    /// The next smaller thing to ask for: first without USO, which is younger, then nothing.
    fn less(self) -> Self {
        Self {
            tso: self.tso && self.uso,
            uso: false,
        }
    }

    /// The argument of `TUNSETOFFLOAD`.
    fn mask(self) -> libc::c_uint {
        let mut mask = 0;
        if self.tso {
            mask |= libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        }
        if self.uso {
            // The kernel grants both families or neither.
            mask |= libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
        mask
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match (self.tso, self.uso) {
            (true, true) => "TSO and USO",
            (true, false) => "TSO",
            (false, true) => "USO",
            (false, false) => "no offload",
        })
    }
}

/// What the kernel granted of the [`Offload`] that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// What the device does now.
    pub offload: Offload,
    /// What it was asked for and refused, if anything; worth one warning.
    pub refused: Option<OffloadRefused>,
}

/// The kernel refuses a kind of super-packet. Packets pass all the same, only more slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the kernel refuses {offload} on a TUN ({errno}); bulk transfers will be slower")]
pub struct OffloadRefused {
    /// What was refused.
    pub offload: Offload,
    /// The error of `TUNSETOFFLOAD`; `EINVAL`: the kernel doesn't know it.
    pub errno: Errno,
}

/// Why no TUN device could be opened. The messages include the kernel's answer, so that isn't a
/// [`source`](std::error::Error::source) as well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TunError {
    /// The name can't be one of an interface.
    #[error(
        "{name:?} can't be the name of an interface: \
         choose a --tun of 1 to 15 letters, digits, '-', '_' or '.' \
         (and one %d for the next free number)"
    )]
    Name {
        /// The name that was asked for.
        name: String,
    },
    /// Zero queues, or more than [`MAX_QUEUES`].
    #[error("a TUN has 1 to {MAX_QUEUES} queues, not {queues}: choose other --workers")]
    Queues {
        /// The number that was asked for.
        queues: usize,
    },
    /// The kernel has no TUN driver, or its device file is missing.
    #[error(
        "there is no {CLONE_DEVICE} ({0}): load the kernel module with `modprobe tun`, \
         or hand the device into the container"
    )]
    NoDriver(Errno),
    /// The process lacks the capability.
    #[error(
        "not permitted to open a TUN ({0}): run as root or with CAP_NET_ADMIN, \
         and with access to {CLONE_DEVICE}"
    )]
    NotPermitted(Errno),
    /// An interface of this name exists; it isn't ours.
    #[error(
        "an interface {name} exists already, perhaps of another shuntd: \
         stop its owner, remove it with `ip link delete {name}`, or choose another --tun"
    )]
    Exists {
        /// The name that was asked for.
        name: String,
    },
    /// Any other error of the kernel.
    #[error("can't {step} TUN {name}: {errno}")]
    Kernel {
        /// What was being done: a verb phrase.
        step: &'static str,
        /// The name that was asked for.
        name: String,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// A TUN device of this process.
///
/// The device exists as long as one of its queues; taking them out and dropping the rest is fine.
#[derive(Debug)]
pub struct TunDevice {
    /// The interface's name, with a `%d` resolved.
    pub name: String,
    /// The interface's index, for rtnetlink.
    pub index: u32,
    /// What super-packets it carries.
    pub granted: Granted,
    /// One for each worker, in the kernel's order.
    pub queues: Vec<TunQueue>,
}

impl TunDevice {
    /// Creates the device `name` with `queues` queues in the calling thread's network namespace.
    ///
    /// A `%d` in `name` becomes the first number that is free. The link is down and has no
    /// addresses. Its descriptors don't block and are closed on `exec`.
    ///
    /// # Errors
    /// Each variant of [`TunError`] says what to do. A refused offload isn't an error: see
    /// [`TunDevice::granted`].
    pub fn open(name: &str, queues: usize, wanted: Offload) -> Result<Self, TunError> {
        if !is_interface_name(name) {
            return Err(TunError::Name {
                name: name.to_owned(),
            });
        }
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TunError::Queues { queues });
        }
        let kernel = |step| {
            move |errno| TunError::Kernel {
                step,
                name: name.to_owned(),
                errno,
            }
        };

        let (first, name_given) = TunQueue::create(name)?;
        set_vnet_header_length(&first.fd).map_err(kernel("set the header length of"))?;
        let granted = negotiate(wanted, |offload| set_offload(&first.fd, offload))
            .map_err(kernel("set the offloads of"))?;

        let mut opened = vec![first];
        while opened.len() < queues {
            opened.push(TunQueue::join(&name_given)?);
        }
        let index = if_nametoindex(name_given.as_str()).map_err(kernel("find the index of"))?;
        Ok(Self {
            name: name_given,
            index,
            granted,
            queues: opened,
        })
    }
}

/// One queue of a [`TunDevice`]: the port of one worker.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
    losses: Losses,
    coalescer: Option<Coalescer>,
}

impl TunQueue {
    /// From now on writes datagrams that follow each other as super-packets. Only for a device that
    /// carries those ([`Offload::uso`]).
    pub fn coalesce(&mut self) {
        self.coalescer = Some(Coalescer::default());
    }

    /// Creates a device and its first queue; gives the device's real name too.
    fn create(name: &str) -> Result<(Self, String), TunError> {
        Self::attach(name, libc::IFF_TUN_EXCL)
    }

    /// Adds a queue to the device `name`, which this process created.
    fn join(name: &str) -> Result<Self, TunError> {
        Ok(Self::attach(name, 0)?.0)
    }

    fn attach(name: &str, further_flags: libc::c_int) -> Result<(Self, String), TunError> {
        let fd = open_clone_device(name)?;
        let flags = libc::IFF_TUN
            | libc::IFF_NO_PI
            | libc::IFF_VNET_HDR
            | libc::IFF_MULTI_QUEUE
            | further_flags;
        let real_name = set_interface(&fd, name, flags).map_err(|errno| match errno {
            Errno::EBUSY => TunError::Exists {
                name: name.to_owned(),
            },
            Errno::EPERM => TunError::NotPermitted(errno),
            _ => TunError::Kernel {
                step: "attach to",
                name: name.to_owned(),
                errno,
            },
        })?;
        Ok((
            Self {
                fd,
                losses: Losses::default(),
                coalescer: None,
            },
            real_name,
        ))
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Port for TunQueue {
    /// One `read`. A packet that the kernel can't describe in a [`VnetHeader`], or that comes
    /// without one, gives an empty packet, which any reader of IP headers counts as malformed.
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        loop {
            match unistd::read(&self.fd, frame.storage_mut()) {
                Ok(len) if len >= VnetHeader::LEN => {
                    frame.set_wire_len(len);
                    return Ok(true);
                }
                // `EINVAL`: the kernel has thrown one packet away ("unexpected GSO type").
                Ok(_) | Err(Errno::EINVAL) => {
                    frame.fill(&[]);
                    return Ok(true);
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// One `write`, unless the packet is a datagram to be coalesced. Of the header's flags only
    /// [`VnetHeader::NEEDS_CSUM`] is kept: the others are what the kernel says of a received packet,
    /// and some of them it doesn't take back.
    fn transmit(&mut self, frame: &mut Frame) -> io::Result<()> {
        let mut header = frame.header();
        header.flags &= VnetHeader::NEEDS_CSUM;
        frame.set_header(&header);
        let (fd, losses) = (&self.fd, &mut self.losses);
        let mut write = |frame: &Frame, packets| write(fd, frame, packets, losses);
        match &mut self.coalescer {
            Some(coalescer) => coalescer.transmit(frame, write),
            None => write(frame, 1),
        }
    }

    /// Writes the datagrams that [`Port::transmit`] has put off.
    fn flush(&mut self) -> io::Result<()> {
        let (fd, losses) = (&self.fd, &mut self.losses);
        match &mut self.coalescer {
            Some(coalescer) => coalescer.flush(|frame, packets| write(fd, frame, packets, losses)),
            None => Ok(()),
        }
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn losses(&self) -> Losses {
        self.losses
    }
}

/// Writes `frame`, which is so many packets; a refusal is counted.
///
/// # Errors
/// The device is gone.
fn write(fd: &OwnedFd, frame: &Frame, packets: usize, losses: &mut Losses) -> io::Result<()> {
    loop {
        match unistd::write(fd, frame.wire()) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno @ (Errno::EBADFD | Errno::EBADF | Errno::ENODEV | Errno::ENXIO)) => {
                return Err(errno.into());
            }
            Err(errno) => {
                losses.count(packets as u64, errno);
                return Ok(());
            }
        }
    }
}

/// Asks for `wanted` and then for less and less, until `set` succeeds.
///
/// # Errors
/// Even [`Offload::NONE`] was refused.
fn negotiate(
    wanted: Offload,
    mut set: impl FnMut(Offload) -> nix::Result<()>,
) -> nix::Result<Granted> {
    let mut offload = wanted;
    let mut refusal = None;
    loop {
        match set(offload) {
            Ok(()) => {
                let refused = refusal.map(|errno| OffloadRefused {
                    offload: wanted.without(offload),
                    errno,
                });
                return Ok(Granted { offload, refused });
            }
            Err(errno) if offload == Offload::NONE => return Err(errno),
            Err(errno) => {
                refusal = Some(errno);
                offload = offload.less();
            }
        }
    }
}

/// Whether `name` can be an interface's: narrower than the kernel (`dev_valid_name`,
/// `net/core/dev.c`), which takes control characters and quotes as well.
fn is_interface_name(name: &str) -> bool {
    let plain = name.replacen("%d", "", 1);
    (1..libc::IFNAMSIZ).contains(&name.len())
        && !matches!(name, "." | "..")
        && plain
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn open_clone_device(name: &str) -> Result<OwnedFd, TunError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)
        .map(OwnedFd::from)
        .map_err(
            |error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                errno @ (Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoDriver(errno),
                errno @ (Errno::EPERM | Errno::EACCES) => TunError::NotPermitted(errno),
                errno => TunError::Kernel {
                    step: "open",
                    name: name.to_owned(),
                    errno,
                },
            },
        )
}

/// Makes `fd` a queue of the interface `name` and gives the interface's real name.
///
/// `name` has been checked: it is shorter than `IFNAMSIZ` and ASCII.
fn set_interface(fd: &OwnedFd, name: &str, flags: libc::c_int) -> nix::Result<String> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    #[expect(unsafe_code, reason = "an ioctl that the kernel's TUN driver defines")]
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let end = request
        .ifr_name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(libc::IFNAMSIZ);
    Ok(request.ifr_name[..end]
        .iter()
        .map(|&byte| char::from(byte as u8))
        .collect())
}

/// Says that [`VnetHeader`] is what comes before each packet.
fn set_vnet_header_length(fd: &OwnedFd) -> nix::Result<()> {
    let length = VnetHeader::LEN as libc::c_int;
    #[expect(unsafe_code, reason = "an ioctl that the kernel's TUN driver defines")]
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which lives on this stack frame.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })
        .map(drop)
}

/// Sets the offloads of the whole device.
fn set_offload(fd: &OwnedFd, offload: Offload) -> nix::Result<()> {
    let mask = libc::c_ulong::from(offload.mask());
    #[expect(unsafe_code, reason = "an ioctl that the kernel's TUN driver defines")]
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, mask) }).map(drop)
}

#[cfg(test)]
mod tests;
