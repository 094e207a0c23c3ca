//! Waking a worker that waits for packets.
//!
//! A worker with nothing to do sleeps in [`wait`](super::poll::wait) on two descriptors: its port's
//! and its [`Sleeper`]'s. Another thread that has put something into the worker's channel (a
//! command, or a packet that arrived at the wrong worker) then calls [`Waker::wake`]. Both ends
//! hold one `eventfd`, a counter in the kernel that is readable while it isn't zero.
//!
//! Waking is on the packet path when packets are handed over, so a flag saves the system call while
//! an earlier wake-up is still unseen. Nothing is lost by that: the waker's order is *put the
//! message, set the flag*, and the sleeper's is *clear the flag, look into the channel*. Whoever
//! finds the flag set has put its message before the sleeper clears it, so the sleeper will find
//! the message.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes one worker; any number of threads may have a clone.
#[derive(Debug, Clone)]
pub struct Waker {
    alarm: Arc<Alarm>,
}

/// The worker's side of a [`Waker`].
#[derive(Debug)]
pub struct Sleeper {
    alarm: Arc<Alarm>,
}

#[derive(Debug)]
struct Alarm {
    counter: EventFd,
    /// Whether the sleeper has been woken and hasn't noticed yet.
    raised: AtomicBool,
}

/// Makes a [`Waker`] and the [`Sleeper`] that it wakes.
///
/// # Errors
/// The process or the system has no descriptors left (`EMFILE`, `ENFILE`), or no memory.
pub fn pair() -> io::Result<(Waker, Sleeper)> {
    let counter = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let alarm = Arc::new(Alarm {
        counter,
        raised: AtomicBool::new(false),
    });
    Ok((
        Waker {
            alarm: Arc::clone(&alarm),
        },
        Sleeper { alarm },
    ))
}

impl Waker {
    /// Makes the sleeper's descriptor readable, now or the next time that it waits.
    ///
    /// Never blocks. To be called after the message has been put where the worker will look.
    pub fn wake(&self) {
        if self.alarm.raised.swap(true, Ordering::AcqRel) {
            return;
        }
        // The one possible error is a full counter (`EAGAIN`), and a full counter wakes as well.
        while self.alarm.counter.write(1) == Err(Errno::EINTR) {}
    }
}

impl Sleeper {
    /// Forgets the wake-ups so far. To be called when the descriptor is readable, and before
    /// looking for what the wakers have left.
    pub fn drain(&self) {
        // `EAGAIN`: there was no wake-up.
        while self.alarm.counter.read() == Err(Errno::EINTR) {}
        // In this order only. The other way round, a wake-up in between would leave the flag set
        // and the counter at zero, and nobody would ever write to it again.
        self.alarm.raised.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Sleeper {
    /// Readable when the worker has been woken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alarm.counter.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::hint;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::io::poll::{Ready, wait};

    /// Whether the sleeper's descriptor is readable now.
    fn is_woken(sleeper: &Sleeper) -> bool {
        // The port's place is taken by a descriptor that is never readable.
        let (_waker, idle) = pair().unwrap();
        let ready = wait(idle.as_fd(), sleeper.as_fd(), Some(Duration::ZERO)).unwrap();
        ready
            == Ready {
                port: false,
                waker: true,
            }
    }

    #[test]
    fn wake_ups_before_a_drain_count_as_one() {
        let (waker, sleeper) = pair().unwrap();
        assert!(!is_woken(&sleeper));

        waker.wake();
        waker.clone().wake();
        assert!(is_woken(&sleeper), "woken until drained");
        assert!(is_woken(&sleeper));

        sleeper.drain();
        assert!(!is_woken(&sleeper));

        waker.wake();
        assert!(is_woken(&sleeper), "can be woken again");
    }

    #[test]
    fn draining_without_a_wake_up_does_not_block() {
        let (waker, sleeper) = pair().unwrap();
        sleeper.drain();
        sleeper.drain();
        waker.wake();
        assert!(is_woken(&sleeper));
    }

    /// Another thread sends messages, each followed by a wake-up, at ever different intervals, so
    /// that they meet the worker in every state. The worker looks into its channel only when it has
    /// been woken: were a wake-up lost, it would wait in vain.
    #[test]
    fn no_wake_up_is_lost() {
        const MESSAGES: u32 = 100_000;
        let (waker, sleeper) = pair().unwrap();
        let (_other, idle) = pair().unwrap();
        let (sender, receiver) = mpsc::channel();

        let sending = thread::spawn(move || {
            for number in 0..MESSAGES {
                sender.send(number).unwrap();
                waker.wake();
                for _ in 0..number % 97 {
                    hint::spin_loop();
                }
            }
        });

        let mut seen = 0;
        while seen < MESSAGES {
            let ready = wait(idle.as_fd(), sleeper.as_fd(), Some(Duration::from_secs(5))).unwrap();
            assert!(
                ready.waker,
                "a wake-up was lost: {seen} of {MESSAGES} messages seen"
            );
            sleeper.drain();
            seen += receiver.try_iter().count() as u32;
        }
        sending.join().unwrap();
    }
}
