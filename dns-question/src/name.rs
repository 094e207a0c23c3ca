//! Names as they are looked up: uncompressed, in lower case, so that equal names are equal bytes.

use std::fmt;

use thiserror::Error;

use crate::message::{Malformed, Question};

/// Bytes of the longest name, length bytes and end included (RFC 1035, section 3.1).
pub const MAX_NAME: usize = 255;

/// Bytes of the longest label.
const MAX_LABEL: usize = 63;

/// The label that makes a name a wildcard, with its length before it.
pub(crate) const WILDCARD: &[u8] = b"\x01*";

/// A name in the form that it has in a message, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WireName(Box<[u8]>);

/// Why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing, or nothing between two dots.
    #[error("a label is empty")]
    EmptyLabel,
    /// More than 63 bytes without a dot.
    #[error("a label is longer than {MAX_LABEL} bytes")]
    LabelTooLong,
    /// More than 253 bytes.
    #[error("the name is longer than 253 bytes")]
    NameTooLong,
}

impl WireName {
    /// Reads a name with dots between its labels, and perhaps one at its end. Every byte but the dots
    /// stands for itself; `.` is the root.
    ///
    /// # Errors
    /// A label or the whole is too long, or a label is empty.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        let labels = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(labels.len() + 2);
        if text != "." {
            for label in labels.split('.') {
                match label.len() {
                    0 => return Err(NameError::EmptyLabel),
                    length @ 1..=MAX_LABEL => wire.push(length as u8),
                    _ => return Err(NameError::LabelTooLong),
                }
                wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
            }
        }
        wire.push(0);
        if wire.len() > MAX_NAME {
            return Err(NameError::NameTooLong);
        }
        Ok(Self(wire.into()))
    }

    /// The name that a question is about.
    pub fn from_question(question: &Question<'_>) -> Self {
        Self(question.name.to_ascii_lowercase().into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What it is a wildcard for: the name behind `*.`; `None` if it is no wildcard (RFC 4592).
    pub(crate) fn wildcard_parent(&self) -> Option<&[u8]> {
        self.0.strip_prefix(WILDCARD)
    }
}

impl fmt::Display for WireName {
    /// With dots, and without one at the end. What isn't printable is written as `\DDD` (RFC 1035, section
    /// 5.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(&self.0, f)
    }
}

/// Writes a name that was checked.
fn write_name(name: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut rest = name;
    let mut is_first = true;
    while let [length, after @ ..] = rest
        && *length > 0
    {
        let (label, after) = after
            .split_at_checked((*length).into())
            .unwrap_or((after, &[]));
        if !is_first {
            f.write_str(".")?;
        }
        is_first = false;
        for byte in label {
            match byte {
                b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                b'!'..=b'~' => write!(f, "{}", char::from(*byte))?,
                _ => write!(f, "\\{byte:03}")?,
            }
        }
        rest = after;
    }
    if is_first {
        f.write_str(".")?;
    }
    Ok(())
}

/// A question's name in lower case, and where its labels start.
#[derive(Debug)]
pub(crate) struct Lowered {
    bytes: [u8; MAX_NAME],
    length: usize,
}

impl Lowered {
    /// Lowers a name that [`crate::Question::read`] has checked.
    ///
    /// # Errors
    /// It is longer than a name can be.
    #[inline]
    pub(crate) fn new(name: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = [0; MAX_NAME];
        let place = bytes.get_mut(..name.len()).ok_or(Malformed::NameTooLong)?;
        place.copy_from_slice(name);
        // Length bytes are at most 63, below any letter, and stay as they are.
        place.make_ascii_lowercase();
        Ok(Self {
            bytes,
            length: name.len(),
        })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_names() {
        let name = WireName::from_text("WWW.bt.com.").unwrap();
        assert_eq!(name.as_bytes(), b"\x03www\x02bt\x03com\0");
        assert_eq!(name.to_string(), "www.bt.com");
        assert_eq!(name, WireName::from_text("www.bt.com").unwrap());
        assert_eq!(WireName::from_text(".").unwrap().to_string(), ".");
        let wildcard = WireName::from_text("*.bt.com").unwrap();
        assert_eq!(
            wildcard.wildcard_parent(),
            Some(b"\x02bt\x03com\0".as_slice())
        );
        assert_eq!(name.wildcard_parent(), None);
        for (text, error) in [
            ("", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            (&"x".repeat(64), NameError::LabelTooLong),
            (&"x.".repeat(127), NameError::NameTooLong),
        ] {
            match WireName::from_text(text) {
                Err(seen) => assert_eq!(seen, error, "{text}"),
                // 127 labels of one byte are just as long as a name may be.
                Ok(name) => assert_eq!(name.as_bytes().len(), MAX_NAME),
            }
        }
        assert_eq!(
            WireName::from_text(&"x.".repeat(128)),
            Err(NameError::NameTooLong)
        );
    }

    #[test]
    fn what_isnt_printable_is_escaped() {
        let name = WireName::from_text("a b.\u{e9}\\").unwrap();
        assert_eq!(name.to_string(), "a\\032b.\\195\\169\\\\");
    }
}
