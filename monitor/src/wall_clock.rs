//! The clock on the wall, which people and daemons set.
//!
//! Rules and maintenance go by it; all else goes by a clock that only runs on. A wall clock that has jumped isn't
//! believed until it has run on from where it jumped to for a while: a clock that is set wrong and right again at
//! boot, or a machine that was asleep, then changes nothing that it needn't.

use std::time::Duration;

use jiff::Timestamp;
use log::warn;

/// Two clocks that differ by more have jumped.
const JUMP: Duration = Duration::from_secs(30);
/// How long a clock that has jumped must run on before it is believed.
const PROBATION: Duration = Duration::from_secs(10);

/// The wall clock, and how it has run so far.
#[derive(Debug, Default)]
pub struct WallClock {
    /// What both clocks showed the last time.
    last: Option<(Timestamp, Duration)>,
    /// When the last jump was seen.
    jumped: Option<Duration>,
}

impl WallClock {
    /// The time on the wall, if it can be believed; `running` is the time on the other clock.
    pub fn trusted(&mut self, wall: Timestamp, running: Duration) -> Option<Timestamp> {
        if let Some((last_wall, last_running)) = self.last {
            let by_wall = wall.duration_since(last_wall).as_secs_f64();
            let by_running = running.saturating_sub(last_running).as_secs_f64();
            if (by_wall - by_running).abs() > JUMP.as_secs_f64() {
                warn!(
                    "the clock has jumped by {:.0} s: rules and maintenance wait a moment",
                    by_wall - by_running
                );
                self.jumped = Some(running);
            }
        }
        self.last = Some((wall, running));
        let is_believed = self
            .jumped
            .is_none_or(|jumped| running.saturating_sub(jumped) >= PROBATION);
        is_believed.then_some(wall)
    }

    /// What the wall clock showed when the other one showed `running`, as far as it can be told.
    pub fn wall(&self, running: Duration) -> Timestamp {
        let (wall, last) = self.last.unwrap_or_else(|| (Timestamp::now(), running));
        let since = running.as_secs_f64() - last.as_secs_f64();
        jiff::SignedDuration::try_from_secs_f64(since)
            .ok()
            .and_then(|since| wall.checked_add(since).ok())
            .unwrap_or(wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_is_not_believed_for_a_while() {
        let mut clock = WallClock::default();
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).expect("a time");
        let running = Duration::from_secs;
        assert_eq!(clock.trusted(at(0), running(0)), Some(at(0)));
        assert_eq!(clock.trusted(at(5), running(5)), Some(at(5)));
        // An hour forward.
        assert_eq!(clock.trusted(at(3610), running(10)), None);
        assert_eq!(clock.trusted(at(3615), running(15)), None);
        assert_eq!(clock.trusted(at(3620), running(20)), Some(at(3620)));
        // And back.
        assert_eq!(clock.trusted(at(25), running(25)), None);
        assert_eq!(clock.trusted(at(35), running(35)), Some(at(35)));
        assert_eq!(clock.wall(running(30)), at(30));
    }
}
