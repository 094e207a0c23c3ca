//! What EDNS says about a query (RFC 6891), and what an answer says back.

use dns_question::{Header, kind};
use thiserror::Error;

/// The bit that asks for DNSSEC records (RFC 3225), in the upper half of the flags.
const DNSSEC_OK: u8 = 0x80;

/// Option code of a cookie (RFC 7873, section 4).
const COOKIE: u16 = 10;

/// What an OPT record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns<'a> {
    /// Bytes of the longest UDP answer that the client takes.
    pub udp_size: u16,
    /// The version of EDNS; 0 is the one there is.
    pub version: u8,
    /// Whether the client wants DNSSEC records.
    pub dnssec_ok: bool,
    /// What shows that the client is where it says (RFC 7873).
    pub cookie: Option<Cookie<'a>>,
}

/// A cookie as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie<'a> {
    /// The client's part.
    pub client: [u8; 8],
    /// The server's part, 8 to 32 bytes; empty if the client has none yet.
    pub server: &'a [u8],
}

/// Why a query can't be understood behind its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the records behind the question are malformed")]
pub struct Malformed;

impl<'a> Edns<'a> {
    /// Looks for the OPT record among all records, which start at `at` bytes from the message's first.
    ///
    /// # Errors
    /// A record is cut off, there is more than one OPT, something follows the last record, or a cookie has
    /// an impossible length.
    pub fn read(
        message: &'a [u8],
        header: Header<'a>,
        at: usize,
    ) -> Result<Option<Self>, Malformed> {
        let mut rest = message.get(at..).ok_or(Malformed)?;
        let before = usize::from(header.answers()) + usize::from(header.authorities());
        let mut edns = None;
        for number in 0..before + usize::from(header.additionals()) {
            let (record, after) = Record::read(rest)?;
            rest = after;
            if record.kind != kind::OPT {
                continue;
            }
            if number < before || !record.is_root || edns.is_some() {
                return Err(Malformed);
            }
            edns = Some(Self::of(&record)?);
        }
        if rest.is_empty() {
            Ok(edns)
        } else {
            Err(Malformed)
        }
    }

    fn of(record: &Record<'a>) -> Result<Self, Malformed> {
        let [_, version, flags, _] = record.ttl;
        let mut cookie = None;
        let mut rest = record.data;
        while let [code, more_code, length, more_length, after @ ..] = rest {
            let length = u16::from_be_bytes([*length, *more_length]);
            let (data, after) = after.split_at_checked(length.into()).ok_or(Malformed)?;
            rest = after;
            if u16::from_be_bytes([*code, *more_code]) != COOKIE {
                continue;
            }
            let (client, server) = data.split_first_chunk().ok_or(Malformed)?;
            // RFC 7873, section 5.2.2.
            if !matches!(server.len(), 0 | 8..=32) {
                return Err(Malformed);
            }
            // Of several, the first counts (section 5.2).
            cookie.get_or_insert(Cookie {
                client: *client,
                server,
            });
        }
        if !rest.is_empty() {
            return Err(Malformed);
        }
        Ok(Self {
            udp_size: record.class,
            version,
            dnssec_ok: flags & DNSSEC_OK != 0,
            cookie,
        })
    }
}

/// What an answer's OPT record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of the longest UDP query that the server takes.
    pub udp_size: u16,
    /// The upper eight bits of the response code.
    pub response_code: u8,
    /// As the client said (RFC 3225, section 3).
    pub dnssec_ok: bool,
    /// Both parts of the cookie.
    pub cookie: Option<[u8; 24]>,
}

impl Reply {
    /// Bytes of the longest one.
    pub const MAX_LENGTH: usize = 11 + 4 + 24;

    /// Its length, in bytes.
    pub fn length(&self) -> usize {
        if self.cookie.is_some() {
            Self::MAX_LENGTH
        } else {
            11
        }
    }

    /// Writes the OPT record behind the others.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(0);
        out.extend(kind::OPT.to_be_bytes());
        out.extend(self.udp_size.to_be_bytes());
        let flags = if self.dnssec_ok { DNSSEC_OK } else { 0 };
        out.extend([self.response_code, 0, flags, 0]);
        match &self.cookie {
            Some(cookie) => {
                out.extend([0, 28]);
                out.extend(COOKIE.to_be_bytes());
                out.extend([0, 24]);
                out.extend(cookie);
            }
            None => out.extend([0, 0]),
        }
    }
}

/// One record, as far as it matters here.
struct Record<'a> {
    is_root: bool,
    kind: u16,
    class: u16,
    ttl: [u8; 4],
    data: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at the start of `bytes`, and what follows it.
    fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Malformed> {
        let is_root = bytes.first() == Some(&0);
        let rest = skip_name(bytes).ok_or(Malformed)?;
        let (fixed, rest) = rest.split_first_chunk::<10>().ok_or(Malformed)?;
        let [
            kind,
            more_kind,
            class,
            more_class,
            a,
            b,
            c,
            d,
            length,
            more_length,
        ] = *fixed;
        let length = u16::from_be_bytes([length, more_length]);
        let (data, after) = rest.split_at_checked(length.into()).ok_or(Malformed)?;
        let record = Self {
            is_root,
            kind: u16::from_be_bytes([kind, more_kind]),
            class: u16::from_be_bytes([class, more_class]),
            ttl: [a, b, c, d],
            data,
        };
        Ok((record, after))
    }
}

/// What follows the name at the start of `bytes`, which may be compressed.
fn skip_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let (length, after) = bytes.split_first()?;
        match length {
            0 => return Some(after),
            1..=63 => bytes = after.get(usize::from(*length)..)?,
            0xC0.. => return after.get(1..),
            _ => return None,
        }
    }
}
