//! When a rule holds: days of the week and hours of the day, by the clock on the wall of some zone.
//!
//! The week is a circle of [`WEEK`] seconds of local time that begins on Monday at midnight, and the
//! times at which a rule holds are spans on it. What counts is what the clock shows. So when it is put
//! forward, the hour that it leaves out never comes; when it is put back, the hour that it shows twice
//! comes twice.

use std::ops::Range;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::{self, TimeZone};
use thiserror::Error;

use super::suggestion::Suggestion;

const MINUTE: u32 = 60;
const DAY: u32 = 24 * 60 * MINUTE;
const WEEK: u32 = 7 * DAY;

/// How many changes of the clock and ends of spans may follow each other without a change of state.
/// It takes two for a span over the end of the week, and a few more for clock changes in its wake.
const MAX_UNEVENTFUL: usize = 64;

/// Days of the week: `mon-fri`, or one such as `sat`. `fri-mon` goes over the end of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days {
    first: Weekday,
    last: Weekday,
}

/// Why a text is no [`Days`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "\"{0}\" names no days; expected mon, tue, wed, thu, fri, sat or sun, or a range such as mon-fri"
)]
pub struct DaysError(String);

impl FromStr for Days {
    type Err = DaysError;

    fn from_str(text: &str) -> Result<Self, DaysError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (weekday(first), weekday(last)) {
            (Some(first), Some(last)) => Ok(Self { first, last }),
            _ => Err(DaysError(text.to_owned())),
        }
    }
}

fn weekday(text: &str) -> Option<Weekday> {
    Some(match text.trim().to_ascii_lowercase().as_str() {
        "mon" | "monday" => Weekday::Monday,
        "tue" | "tuesday" => Weekday::Tuesday,
        "wed" | "wednesday" => Weekday::Wednesday,
        "thu" | "thursday" => Weekday::Thursday,
        "fri" | "friday" => Weekday::Friday,
        "sat" | "saturday" => Weekday::Saturday,
        "sun" | "sunday" => Weekday::Sunday,
        _ => return None,
    })
}

impl Days {
    const ALL: Self = Self {
        first: Weekday::Monday,
        last: Weekday::Sunday,
    };

    fn iter(self) -> impl Iterator<Item = Weekday> {
        let more = self.first.until(self.last);
        (0..=more).map(move |days| self.first.wrapping_add(days))
    }
}

/// Hours of a day: `08:00-18:00`, the end not included. `22:00-06:00` goes on to the next day;
/// `24:00` is the day's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// Seconds since midnight.
    start: u32,
    /// Seconds, at most a day.
    length: u32,
}

/// Why a text is no [`Hours`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HoursError {
    /// It isn't of this form, or no such time exists.
    #[error("\"{0}\" names no hours; expected a range such as 08:00-18:00")]
    Form(String),
    /// It ends when it begins, which could mean all day or never.
    #[error("\"{0}\" ends when it begins; write 00:00-24:00 for all day")]
    Empty(String),
}

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let (start, end) = text
            .split_once('-')
            .and_then(|(start, end)| Some((time_of_day(start)?, time_of_day(end)?)))
            .filter(|(start, _)| *start < DAY)
            .ok_or_else(|| HoursError::Form(text.to_owned()))?;
        if start == end {
            return Err(HoursError::Empty(text.to_owned()));
        }
        let length = if start < end {
            end - start
        } else {
            end + DAY - start
        };
        Ok(Self { start, length })
    }
}

/// Seconds since midnight of a time such as `8:00` or `24:00`.
fn time_of_day(text: &str) -> Option<u32> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |digits: &str, lengths: Range<usize>| {
        (lengths.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| digits.parse::<u32>().ok())?
    };
    let (hours, minutes) = (number(hours, 1..3)?, number(minutes, 2..3)?);
    let seconds = (hours * 60 + minutes) * MINUTE;
    (minutes < 60 && seconds <= DAY).then_some(seconds)
}

impl Hours {
    const ALL: Self = Self {
        start: 0,
        length: DAY,
    };
}

/// A time zone of the IANA database, such as `Europe/London`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(pub TimeZone);

/// Why a text is no [`Zone`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no time zone \"{name}\"{suggestion} (expected one such as Europe/London or UTC)")]
pub struct ZoneError {
    name: String,
    suggestion: Suggestion,
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(name: &str) -> Result<Self, ZoneError> {
        TimeZone::get(name).map(Self).map_err(|_| {
            let known: Vec<String> = tz::db().available().map(|n| n.to_string()).collect();
            ZoneError {
                name: name.to_owned(),
                suggestion: Suggestion::closest(name, known.iter().map(String::as_str)),
            }
        })
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

/// The times of a week at which a rule holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeeklyTimes {
    zone: TimeZone,
    /// Seconds of the local week; in order, with gaps between.
    spans: Vec<Range<u32>>,
}

impl WeeklyTimes {
    /// At all times.
    pub fn always() -> Self {
        Self::new(&[], &[], Zone::default())
    }

    /// During these hours of these days; none: all of them. The hours that go on to the next day belong to
    /// the day on which they begin.
    pub fn new(days: &[Days], hours: &[Hours], zone: Zone) -> Self {
        let days = if days.is_empty() { &[Days::ALL] } else { days };
        let hours = if hours.is_empty() {
            &[Hours::ALL]
        } else {
            hours
        };
        let mut spans = Vec::new();
        for day in days.iter().flat_map(|days| days.iter()) {
            let midnight = u32::from(day.to_monday_zero_offset().unsigned_abs()) * DAY;
            for Hours { start, length } in hours {
                let start = midnight + start;
                let end = start + length;
                spans.push(start..end.min(WEEK));
                if end > WEEK {
                    spans.push(0..end - WEEK);
                }
            }
        }
        Self {
            zone: zone.0,
            spans: merge(spans),
        }
    }

    /// Whether it is time.
    pub fn hold(&self, now: Timestamp) -> bool {
        let second = self.second_of_week(now);
        self.spans.iter().any(|span| span.contains(&second))
    }

    /// When [`WeeklyTimes::hold`] gives another answer than now; `None`: never.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_always() {
            return None;
        }
        let holds = self.hold(now);
        let mut at = now;
        for _ in 0..MAX_UNEVENTFUL {
            at = self.next_event(at)?;
            if self.hold(at) != holds {
                return Some(at);
            }
        }
        None
    }

    /// Whether these times surely hold whenever the others do. Times of two zones are only compared when
    /// one is always.
    pub fn cover(&self, others: &Self) -> bool {
        self.is_always()
            || self.zone == others.zone
                && others.spans.iter().all(|other| {
                    self.spans
                        .iter()
                        .any(|span| span.start <= other.start && other.end <= span.end)
                })
    }

    /// Whether there is no other time.
    pub fn is_always(&self) -> bool {
        matches!(self.spans.as_slice(), [span] if *span == (0..WEEK))
    }

    /// The next end of a span, or change of the clock, whichever comes first.
    fn next_event(&self, after: Timestamp) -> Option<Timestamp> {
        let second = self.second_of_week(after);
        let until = |boundary: u32| match (boundary + WEEK - second) % WEEK {
            0 => WEEK,
            seconds => seconds,
        };
        let seconds = self
            .spans
            .iter()
            .flat_map(|span| [until(span.start), until(span.end)])
            .min()?;
        let end = Timestamp::from_second(after.as_second() + i64::from(seconds)).ok()?;
        let clock_change = self.zone.following(after).next().map(|t| t.timestamp());
        Some(clock_change.map_or(end, |change| change.min(end)))
    }

    fn second_of_week(&self, now: Timestamp) -> u32 {
        let local = self.zone.to_datetime(now);
        let field = |value: i8| u32::from(value.unsigned_abs());
        field(local.weekday().to_monday_zero_offset()) * DAY
            + field(local.hour()) * 60 * MINUTE
            + field(local.minute()) * MINUTE
            + field(local.second())
    }
}

/// Joins spans that meet.
fn merge(mut spans: Vec<Range<u32>>) -> Vec<Range<u32>> {
    spans.sort_by_key(|span| span.start);
    let mut merged: Vec<Range<u32>> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}
