//! Time as the engine knows it: only what it is told.

use std::time::Duration;

/// A moment: nanoseconds on a clock that never goes back, since whatever moment its keeper calls 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(u64);

impl Time {
    /// This many nanoseconds after the keeper's 0.
    pub fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the keeper's 0.
    pub fn nanos(self) -> u64 {
        self.0
    }

    /// This long after; the end of time at the latest.
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// How long `self` is after `earlier`; zero if it isn't.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
