//! A part of a whole, in hundredths.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::{TextError, digits, excerpt};

/// A part of a whole in hundredths, from 1 to 100.
///
/// Text: a number and a percent sign, such as `40%`; read without the sign as well. JSON carries it as a
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Percent(u8);

impl Percent {
    /// So many hundredths; `None`: not a number from 1 to 100.
    pub const fn new(hundredths: u8) -> Option<Self> {
        if matches!(hundredths, 1..=100) {
            Some(Self(hundredths))
        } else {
            None
        }
    }

    /// How many hundredths.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl From<Percent> for u64 {
    fn from(percent: Percent) -> Self {
        percent.0.into()
    }
}

impl TryFrom<u64> for Percent {
    type Error = TextError;

    fn try_from(hundredths: u64) -> Result<Self, TextError> {
        u8::try_from(hundredths)
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| TextError::NotAPercent {
                seen: hundredths.to_string(),
            })
    }
}

impl FromStr for Percent {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        digits(text.strip_suffix('%').unwrap_or(text))
            .and_then(Self::new)
            .ok_or_else(|| TextError::NotAPercent {
                seen: excerpt(text),
            })
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_numbers_from_1_to_100() {
        for (text, hundredths) in [("1%", 1), ("40", 40), ("100%", 100)] {
            let percent: Percent = text.parse().expect("a percent");
            assert_eq!(percent.get(), hundredths);
            assert_eq!(percent.to_string(), format!("{hundredths}%"));
            let json = serde_json::to_string(&percent).expect("plain data");
            assert_eq!(json, hundredths.to_string());
            assert_eq!(
                serde_json::from_str::<Percent>(&json).expect("what was written"),
                percent
            );
        }
        for text in ["", "%", "0", "101%", "-1%", "1.5%", "4 %", "40%%"] {
            assert_eq!(
                text.parse::<Percent>().expect_err(text).to_string(),
                format!("\"{text}\" is not a percentage; expected a number from 1 to 100")
            );
        }
        let error = serde_json::from_str::<Percent>("0").expect_err("too small");
        assert!(
            error.to_string().contains("\"0\" is not a percentage"),
            "{error}"
        );
    }
}
