//! Waiting until a worker has something to do: a packet at its port, a wake-up, or the time.
//!
//! One `ppoll` on two descriptors. `epoll_pwait2` isn't cheaper for so few: on Linux 6.18 both took
//! 0.2 µs with something ready, and the same time to sleep and wake; epoll was ahead (0.1 µs)
//! only when it looked and found nothing, which a worker has no reason to do, and it would need a
//! descriptor of its own.
//!
//! Timeouts are in nanoseconds, because the engine's next deadline is seldom a whole millisecond.
//! The kernel may be late by the thread's timer slack (50 µs unless changed), never early.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::{Frame, Port};

/// What a worker may look at after [`wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// The port has a packet, or is broken: [`Port::receive`] says which.
    pub port: bool,
    /// A [`Waker`](super::waker::Waker) has called.
    pub waker: bool,
}

/// Waits for a packet at `port`, a wake-up at `waker`, or until `timeout` has passed; `None` is
/// forever, zero only looks.
///
/// Nothing is ready after the timeout, and also after a signal: the caller takes the time anew in
/// either case.
///
/// A port whose device is gone is ready forever (`POLLERR`); its `receive` then fails, which ends
/// the worker, so nobody spins on it. A port whose link is down is simply not ready.
///
/// # Errors
/// The kernel has no memory (`ENOMEM`).
pub fn wait(
    port: BorrowedFd<'_>,
    waker: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let mut fds = [readable(port), readable(waker)];
    ppoll(&mut fds, timeout)?;
    Ok(Ready {
        port: fds[0].revents != 0,
        waker: fds[1].revents != 0,
    })
}

/// Takes packets from `port` until one is wanted, or `patience` is over (`None`). The others are
/// lost.
///
/// # Errors
/// Those of [`Port::receive`] and [`wait`].
pub(super) fn receive_within(
    port: &mut impl Port,
    patience: Duration,
    is_wanted: impl Fn(&Frame) -> bool,
) -> io::Result<Option<Frame>> {
    let end = Instant::now() + patience;
    let mut frame = Frame::new();
    loop {
        if port.receive(&mut frame)? {
            if is_wanted(&frame) {
                return Ok(Some(frame));
            }
            continue;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        ppoll(&mut [readable(port.readiness())], Some(left))?;
    }
}

fn readable(fd: BorrowedFd<'_>) -> libc::pollfd {
    libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }
}

/// Waits until one of `fds` has an event, for `timeout` at most, or until a signal.
fn ppoll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(to_timespec);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    #[expect(unsafe_code, reason = "nix offers ppoll only with its signal handling")]
    // SAFETY: `fds` and `timeout` outlive the call, and without a signal mask (null) none is
    // changed.
    let result = Errno::result(unsafe {
        libc::ppoll(
            fds.as_mut_ptr(),
            fds.len() as libc::nfds_t,
            timeout,
            ptr::null(),
        )
    });
    match result {
        // After a signal the kernel hasn't written `revents`, and they are still zero.
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A duration as the kernel wants it; one beyond its reach becomes the longest possible.
fn to_timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;
    use crate::io::waker;

    #[test]
    fn waiting_ends_with_the_timeout() {
        let (_a, port) = waker::pair().unwrap();
        let (_b, sleeper) = waker::pair().unwrap();
        let start = Instant::now();
        let ready = wait(
            port.as_fd(),
            sleeper.as_fd(),
            Some(Duration::from_micros(1_500)),
        )
        .unwrap();
        assert_eq!(
            ready,
            Ready {
                port: false,
                waker: false
            }
        );
        assert!(
            start.elapsed() >= Duration::from_micros(1_500),
            "not too early"
        );
    }

    #[test]
    fn a_wake_up_from_another_thread_ends_the_wait() {
        let (_a, port) = waker::pair().unwrap();
        let (waker, sleeper) = waker::pair().unwrap();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        let ready = wait(port.as_fd(), sleeper.as_fd(), None).unwrap();
        assert_eq!(
            ready,
            Ready {
                port: false,
                waker: true
            }
        );
        other.join().unwrap();
    }

    #[test]
    fn both_can_be_ready_at_once() {
        let (packet, port) = waker::pair().unwrap();
        let (waker, sleeper) = waker::pair().unwrap();
        packet.wake();
        waker.wake();
        let ready = wait(port.as_fd(), sleeper.as_fd(), Some(Duration::ZERO)).unwrap();
        assert_eq!(
            ready,
            Ready {
                port: true,
                waker: true
            }
        );
    }

    #[test]
    fn an_endless_timeout_is_brought_within_the_kernels_reach() {
        let spec = to_timespec(Duration::MAX);
        assert_eq!(
            (spec.tv_sec, spec.tv_nsec),
            (libc::time_t::MAX, 999_999_999)
        );

        let (packet, port) = waker::pair().unwrap();
        let (_b, sleeper) = waker::pair().unwrap();
        packet.wake();
        let ready = wait(port.as_fd(), sleeper.as_fd(), Some(Duration::MAX)).unwrap();
        assert!(ready.port, "and the kernel takes it");
    }
}
