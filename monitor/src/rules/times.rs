//! When a rule holds: days of the week and hours of the day, by the clock on the wall of some zone.
//!
//! The week is a circle of seconds of local time that begins on Monday at midnight, and the times at
//! which a rule holds are spans on it. What counts is what the clock shows. So when it is put
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

#[cfg(test)]
mod tests {
    use jiff::civil::Time;
    use jiff::{SignedDuration, ToSpan};
    use proptest::prelude::*;

    use super::*;

    fn times(days: &[&str], hours: &[&str], zone: &str) -> WeeklyTimes {
        let days: Vec<Days> = days.iter().map(|d| d.parse().unwrap()).collect();
        let hours: Vec<Hours> = hours.iter().map(|h| h.parse().unwrap()).collect();
        WeeklyTimes::new(&days, &hours, zone.parse().unwrap())
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    /// The moments at which it begins or ceases to be time, from one on.
    fn changes(times: &WeeklyTimes, from: &str, count: usize) -> Vec<String> {
        let next = |now: &Timestamp| times.next_change(*now);
        std::iter::successors(next(&at(from)), next)
            .take(count)
            .map(|moment| {
                let sign = if times.hold(moment) { '+' } else { '-' };
                format!("{sign}{moment}")
            })
            .collect()
    }

    #[test]
    fn hours_belong_to_the_day_on_which_they_begin() {
        let friday_night = times(&["fri"], &["22:00-06:00"], "UTC");
        assert_eq!(
            changes(&friday_night, "2026-12-01T00:00:00Z", 4),
            [
                "+2026-12-04T22:00:00Z",
                "-2026-12-05T06:00:00Z",
                "+2026-12-11T22:00:00Z",
                "-2026-12-12T06:00:00Z"
            ]
        );
    }

    #[test]
    fn the_week_has_no_seam() {
        let sunday_night = times(&["sun"], &["22:00-06:00"], "UTC");
        assert_eq!(
            changes(&sunday_night, "2026-12-06T12:00:00Z", 2),
            ["+2026-12-06T22:00:00Z", "-2026-12-07T06:00:00Z"]
        );
        let long_weekend = times(&["fri-mon"], &[], "UTC");
        assert_eq!(
            changes(&long_weekend, "2026-12-06T12:00:00Z", 2),
            ["-2026-12-08T00:00:00Z", "+2026-12-11T00:00:00Z"]
        );
    }

    #[test]
    fn clocks_that_are_put_forward_and_back_are_followed() {
        // London puts its clocks forward on 29 March 2026 and back on 25 October, both at 01:00 UTC.
        let office = times(&[], &["08:00-18:00"], "Europe/London");
        assert_eq!(
            changes(&office, "2026-03-28T12:00:00Z", 3),
            [
                "-2026-03-28T18:00:00Z",
                "+2026-03-29T07:00:00Z",
                "-2026-03-29T17:00:00Z"
            ]
        );
        assert_eq!(
            changes(&office, "2026-10-24T12:00:00Z", 3),
            [
                "-2026-10-24T17:00:00Z",
                "+2026-10-25T08:00:00Z",
                "-2026-10-25T18:00:00Z"
            ]
        );
    }

    #[test]
    fn an_hour_that_is_left_out_never_comes_and_one_that_is_shown_twice_comes_twice() {
        let night = times(&[], &["01:30-02:30"], "Europe/London");
        assert_eq!(
            changes(&night, "2026-03-29T00:00:00Z", 2),
            ["+2026-03-29T01:00:00Z", "-2026-03-29T01:30:00Z"],
            "01:30 doesn't exist: it begins when the clock shows 02:00"
        );
        assert_eq!(
            changes(&night, "2026-10-25T00:00:00Z", 4),
            [
                "+2026-10-25T00:30:00Z",
                "-2026-10-25T01:00:00Z",
                "+2026-10-25T01:30:00Z",
                "-2026-10-25T02:30:00Z"
            ],
            "the clock shows 01:30 to 02:00 twice"
        );
        let gone = times(&["sun"], &["01:10-01:50"], "Europe/London");
        assert_eq!(
            changes(&gone, "2026-03-28T00:00:00Z", 1),
            ["+2026-04-05T00:10:00Z"],
            "a week later"
        );
    }

    #[test]
    fn a_leap_day_is_a_day() {
        let tuesdays = times(&["tue"], &[], "Europe/London");
        assert!(tuesdays.hold(at("2028-02-29T12:00:00Z")));
        assert_eq!(
            changes(&tuesdays, "2028-02-29T12:00:00Z", 1),
            ["-2028-03-01T00:00:00Z"]
        );
        let wednesdays = times(&["wed"], &[], "UTC");
        assert_eq!(
            changes(&wednesdays, "2028-02-28T12:00:00Z", 1),
            ["+2028-03-01T00:00:00Z"]
        );
    }

    #[test]
    fn always_never_changes() {
        let now = at("2026-12-01T12:00:00Z");
        for always in [
            WeeklyTimes::always(),
            times(&["mon-sun"], &["00:00-24:00"], "Europe/London"),
            times(
                &["wed-tue"],
                &["12:00-00:00", "00:00-12:00"],
                "Europe/London",
            ),
        ] {
            assert!(always.is_always() && always.hold(now), "{always:?}");
            assert_eq!(always.next_change(now), None);
        }
    }

    #[test]
    fn the_end_of_time_is_no_trouble() {
        let office = times(&[], &["08:00-18:00"], "Europe/London");
        assert_eq!(office.next_change(Timestamp::MAX), None);
        office.next_change(Timestamp::MIN);
    }

    #[test]
    fn what_names_no_hours_is_refused() {
        for text in [
            "",
            "-",
            "08:00",
            "8-18",
            "24:00-08:00",
            "08:00-24:01",
            "08:60-10:00",
            "08:00-1:0",
            "+8:00-10:00",
            "08:00-18:00-20:00",
            "008:00-10:00",
        ] {
            assert_eq!(
                text.parse::<Hours>(),
                Err(HoursError::Form(text.to_owned()))
            );
        }
    }

    /// Whether it is time, told from the clock alone.
    fn by_the_clock(days: &[Weekday], hours: &[(i8, i8)], zone: &TimeZone, now: Timestamp) -> bool {
        let local = zone.to_datetime(now);
        let quarter = |quarters: i8| Time::constant(quarters / 4, quarters % 4 * 15, 0, 0);
        let (today, yesterday) = (local.weekday(), local.weekday().previous());
        hours.iter().any(|(start, end)| {
            let (begun, over) = (
                local.time() >= quarter(*start),
                local.time() >= quarter(*end),
            );
            if start < end {
                days.contains(&today) && begun && !over
            } else {
                days.contains(&today) && begun || days.contains(&yesterday) && !over
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Around clock changes of an hour and of half an hour, minute by minute, for nine days.
        #[test]
        fn every_change_is_found_and_no_other(
            zone in prop::sample::select(vec![
                "Europe/London", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC",
            ]),
            start in prop::sample::select(vec![
                "2026-02-13T00:00:00Z", "2026-03-05T00:00:00Z", "2026-03-24T00:00:00Z",
                "2026-04-01T00:00:00Z", "2026-10-01T00:00:00Z", "2026-10-21T00:00:00Z",
                "2028-02-27T00:00:00Z",
            ]),
            days in prop::collection::vec(0i8..7, 1..4),
            hours in prop::collection::vec(
                (0i8..96, 0i8..96).prop_filter("not empty", |(start, end)| start != end), 1..3),
        ) {
            let weekdays: Vec<Weekday> =
                days.iter().map(|d| Weekday::from_monday_zero_offset(*d).unwrap()).collect();
            let ranges: Vec<Days> =
                weekdays.iter().map(|day| Days { first: *day, last: *day }).collect();
            let spans: Vec<Hours> = hours
                .iter()
                .map(|(start, end)| {
                    let text = |quarters: i8| format!("{}:{:02}", quarters / 4, quarters % 4 * 15);
                    format!("{}-{}", text(*start), text(*end)).parse().unwrap()
                })
                .collect();
            let zone: Zone = zone.parse().unwrap();
            let times = WeeklyTimes::new(&ranges, &spans, zone.clone());
            let expected = |now| by_the_clock(&weekdays, &hours, &zone.0, now);

            let mut now = at(start);
            let end = now + (9 * 24).hours();
            let mut holds = expected(now);
            let mut announced = times.next_change(now);
            while now < end {
                prop_assert_eq!(times.hold(now), holds, "at {}", now);
                now += SignedDuration::from_mins(1);
                if expected(now) != holds {
                    prop_assert_eq!(announced, Some(now));
                    holds = !holds;
                    announced = times.next_change(now);
                } else {
                    prop_assert_ne!(announced, Some(now));
                }
            }
        }
    }
}
