//! Sleeping to the tens of microseconds. Tokio's own timers are right to a millisecond, which is too coarse
//! where a service takes a few of them, and where latencies are counted from the moment that was meant.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One of the kernel's timers (`timerfd_create(2)`), on the monotonic clock.
#[derive(Debug)]
pub struct Timer(AsyncFd<Descriptor>);

/// A timer as a descriptor that tokio can wait for.
#[derive(Debug)]
struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// A timer that isn't set.
    ///
    /// # Errors
    /// No more descriptors, or no tokio runtime with I/O.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; this descriptor is the timer's own until both are dropped"
        )]
        let timer = AsyncFd::with_interest(Descriptor(timer), Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Waits until `moment`; if that has passed, not at all.
    ///
    /// # Errors
    /// The kernel's, about a descriptor.
    pub async fn wait_until(&mut self, moment: Instant) -> io::Result<()> {
        let left = moment.saturating_duration_since(Instant::now());
        self.wait(left).await
    }

    /// Waits for as long as this.
    ///
    /// # Errors
    /// The kernel's, about a descriptor.
    pub async fn wait(&mut self, time: Duration) -> io::Result<()> {
        // Zero would mean "never" to the kernel.
        if time.is_zero() {
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(time));
        let timer = &self.0.get_ref().0;
        timer.set(once, TimerSetTimeFlags::empty())?;
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|timer| {
                timer.get_ref().0.wait().map_err(|errno| match errno {
                    Errno::EAGAIN => io::ErrorKind::WouldBlock.into(),
                    other => io::Error::from(other),
                })
            });
            // Otherwise it was woken for an earlier setting.
            if let Ok(outcome) = read {
                return outcome;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn it_waits_as_long_as_it_was_told_again_and_again() {
        let mut timer = Timer::new().unwrap();
        for microseconds in [0, 1, 300, 2500] {
            let time = Duration::from_micros(microseconds);
            let began = Instant::now();
            timer.wait(time).await.unwrap();
            assert!(began.elapsed() >= time);
        }
        let past = Instant::now();
        timer.wait_until(past).await.unwrap();
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_does_not_cut_the_next_short() {
        let mut timer = Timer::new().unwrap();
        {
            let mut short = pin!(timer.wait(Duration::from_micros(50)));
            let poll = short.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(poll.is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let began = Instant::now();
        timer.wait(Duration::from_millis(5)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(5));
    }
}
