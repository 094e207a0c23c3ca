//! Texts that mirrors send and operators write: made printable, parsed, found in a stream.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// The most characters of a detail.
const MAX_DETAIL: usize = 200;

/// `text` as one line of at most 200 characters that can go to a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut line = String::new();
    for (count, character) in text.trim().chars().enumerate() {
        if count == MAX_DETAIL {
            line.push('…');
            break;
        }
        if character.is_control() {
            line.push(' ');
        } else {
            line.push(character);
        }
    }
    line
}

/// The first line of `bytes` that isn't blank, as far as it is text.
pub(super) fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default().to_owned()
}

/// Whether `wanted` is a part of `bytes`; an empty one always is.
pub(super) fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Reads a field by its type's `FromStr`.
pub(super) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
}

/// Bytes that are written in hexadecimal, two digits each; blanks between them are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

/// Why a text is no bytes in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected bytes of two hexadecimal digits each, such as \"0a ff\"")]
pub struct HexError;

impl FromStr for HexBytes {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|character| !character.is_whitespace())
            .map(|character| character.to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()
            .ok_or(HexError)?;
        if digits.len() % 2 == 1 {
            return Err(HexError);
        }
        Ok(Self(
            digits
                .chunks(2)
                .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
                .collect(),
        ))
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_bytes_are_read_and_nonsense_is_refused() {
        assert_eq!("0aFF 10".parse(), Ok(HexBytes(vec![0x0a, 0xff, 0x10])));
        assert_eq!("".parse(), Ok(HexBytes(vec![])));
        for wrong in ["0", "0g", "zz", "é0"] {
            assert_eq!(wrong.parse::<HexBytes>(), Err(HexError), "{wrong}");
        }
    }

    #[test]
    fn a_detail_is_one_bounded_line_without_control_characters() {
        assert_eq!(printable("a\u{1b}[31mb\r\nc\n"), "a [31mb  c");
        assert_eq!(printable(&"ä".repeat(500)).chars().count(), MAX_DETAIL + 1);
    }

    #[test]
    fn the_first_line_is_the_first_that_says_something() {
        assert_eq!(first_line(b"\r\n \r\nup 75%\r\nmore"), "up 75%");
        assert_eq!(first_line(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(first_line(b""), "");
    }
}
