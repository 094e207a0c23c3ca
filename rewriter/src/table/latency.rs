//! How long something took, in two bytes.

use std::num::NonZeroU16;
use std::time::Duration;

/// How long something took: from a microsecond to 71 minutes, to one part in 2,000.
///
/// A number of microseconds with eleven bits after its first one, and above them the number of bits that
/// were left out, plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency(NonZeroU16);

/// Bits of a number that are kept, without its first.
const KEPT: u32 = 11;

impl Latency {
    /// Rounded down; at least a microsecond.
    pub fn new(duration: Duration) -> Self {
        let micros = u32::try_from(duration.as_micros())
            .unwrap_or(u32::MAX)
            .max(1);
        let left_out = (u32::BITS - micros.leading_zeros()).saturating_sub(KEPT + 1);
        // What is kept of a number whose first bit is worth 2^KEPT has that bit set; it adds the one.
        let code = (left_out << KEPT) + (micros >> left_out);
        Self(NonZeroU16::new(code as u16).unwrap_or(NonZeroU16::MIN))
    }

    /// As a duration, to one part in 2,000.
    pub fn duration(self) -> Duration {
        let code = u64::from(self.0.get());
        let left_out = (code >> KEPT).saturating_sub(1);
        let kept = code - (left_out << KEPT);
        Duration::from_micros(kept << left_out)
    }

    /// The running average after another sample (RFC 6298, section 2: an eighth of what is new).
    #[must_use]
    pub fn smoothed(average: Option<Self>, sample: Duration) -> Self {
        average.map_or(Self::new(sample), |average| {
            Self::new((average.duration() * 7 + sample) / 8)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_bytes_and_none_is_free() {
        assert_eq!(size_of::<Option<Latency>>(), 2);
    }

    #[test]
    fn the_least_and_the_most() {
        let stored = |micros| Latency::new(Duration::from_micros(micros)).duration();
        assert_eq!(stored(0), Duration::from_micros(1));
        assert_eq!(stored(4095), Duration::from_micros(4095));
        assert_eq!(stored(4097), Duration::from_micros(4096));
        assert_eq!(stored(u64::MAX).as_secs(), 4293);
    }

    proptest! {
        #[test]
        fn to_one_part_in_2000(micros in 1..=u32::MAX) {
            let micros = u64::from(micros);
            let stored = Latency::new(Duration::from_micros(micros)).duration().as_micros() as u64;
            prop_assert!(stored <= micros);
            prop_assert!(micros - stored <= micros / 2000, "{stored} for {micros}");
        }

        #[test]
        fn longer_is_never_shorter(a: u32, b: u32) {
            let stored = |micros: u32| Latency::new(Duration::from_micros(micros.into())).duration();
            prop_assert_eq!(stored(a.min(b)) <= stored(a.max(b)), true);
        }
    }

    #[test]
    fn averages_follow_slowly() {
        let mut average = None;
        for sample in [8000, 8000, 16000] {
            average = Some(Latency::smoothed(average, Duration::from_micros(sample)));
        }
        assert_eq!(average.unwrap().duration().as_micros() / 10, 900);
    }
}
