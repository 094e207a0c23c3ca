//! From bytes to meaning: the header and the question of a DNS message (RFC 1035, section 4.1).

use thiserror::Error;

use crate::name::MAX_NAME;

/// Where the fields of the header lie: bytes from the message's first.
mod field {
    pub const ID: usize = 0;
    pub const FLAGS: usize = 2;
    pub const MORE_FLAGS: usize = 3;
    pub const QUESTIONS: usize = 4;
    pub const ANSWERS: usize = 6;
    pub const AUTHORITIES: usize = 8;
    pub const ADDITIONALS: usize = 10;
}

/// Types of records and questions (IANA, "Domain Name System Parameters").
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// Another name for this one.
    pub const CNAME: u16 = 5;
    /// Where a zone begins, and how long its silence may be remembered.
    pub const SOA: u16 = 6;
    /// What a host is; RFC 8482 answers with it when everything is asked for.
    pub const HINFO: u16 = 13;
    /// Any text.
    pub const TXT: u16 = 16;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// A service's host and port.
    pub const SRV: u16 = 33;
    /// What EDNS adds to a message (RFC 6891).
    pub const OPT: u16 = 41;
    /// How to reach a service (RFC 9460).
    pub const SVCB: u16 = 64;
    /// How to reach a web server (RFC 9460).
    pub const HTTPS: u16 = 65;
    /// Asks for the differences between two versions of a zone (RFC 1995).
    pub const IXFR: u16 = 251;
    /// Asks for a whole zone (RFC 5936).
    pub const AXFR: u16 = 252;
    /// Asks for everything (RFC 8482).
    pub const ANY: u16 = 255;
}

/// Classes of records and questions.
pub mod class {
    /// The Internet's.
    pub const IN: u16 = 1;
    /// Asks for any class.
    pub const ANY: u16 = 255;
}

/// The header of a message that has one.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    bytes: &'a [u8; Header::LENGTH],
}

impl<'a> Header<'a> {
    /// Length of a header, in bytes.
    pub const LENGTH: usize = 12;

    /// The header of the message that starts at the first of `message`. `None`: it is too short for one.
    pub fn read(message: &'a [u8]) -> Option<Self> {
        message.first_chunk().map(|bytes| Self { bytes })
    }

    /// The number by which an answer is told from others.
    pub fn id(&self) -> u16 {
        self.u16_at(field::ID)
    }

    /// Whether it is an answer (QR).
    pub fn is_answer(&self) -> bool {
        self.bytes[field::FLAGS] & 0x80 != 0
    }

    /// What is asked for: 0 is a query.
    pub fn opcode(&self) -> u8 {
        self.bytes[field::FLAGS] >> 3 & 0x0F
    }

    /// Whether the message was cut to fit (TC).
    pub fn is_truncated(&self) -> bool {
        self.bytes[field::FLAGS] & 0x02 != 0
    }

    /// Whether the client wants the whole way to be gone for it (RD).
    pub fn wants_recursion(&self) -> bool {
        self.bytes[field::FLAGS] & 0x01 != 0
    }

    /// Whether the client checks signatures by itself (CD, RFC 4035, section 3.2.2).
    pub fn checking_disabled(&self) -> bool {
        self.bytes[field::MORE_FLAGS] & 0x10 != 0
    }

    /// The lower four bits of the response code.
    pub fn response_code(&self) -> u8 {
        self.bytes[field::MORE_FLAGS] & 0x0F
    }

    /// How many questions there are said to be.
    pub fn questions(&self) -> u16 {
        self.u16_at(field::QUESTIONS)
    }

    /// How many records there are said to be in the answer section.
    pub fn answers(&self) -> u16 {
        self.u16_at(field::ANSWERS)
    }

    /// How many records there are said to be in the authority section.
    pub fn authorities(&self) -> u16 {
        self.u16_at(field::AUTHORITIES)
    }

    /// How many records there are said to be in the additional section.
    pub fn additionals(&self) -> u16 {
        self.u16_at(field::ADDITIONALS)
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

/// Why some bytes hold no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The message ends before the question does.
    #[error("the message is cut off")]
    CutOff,
    /// A label that is longer than 63 bytes, or compressed. Before the first name of a message there is
    /// nothing that a compressed one could point at.
    #[error("the question's name has a label that can't be")]
    Label,
    /// The name is longer than [`MAX_NAME`].
    #[error("the question's name is longer than {MAX_NAME} bytes")]
    NameTooLong,
}

/// The first question of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question<'a> {
    /// The name as it was sent, its length bytes and its end included.
    pub name: &'a [u8],
    /// The type that is asked for, see [`kind`].
    pub kind: u16,
    /// The class that is asked for, see [`class`].
    pub class: u16,
}

impl<'a> Question<'a> {
    /// The first question of the message that starts at the first of `message`, whose header says that
    /// there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline]
    pub fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let rest = message.get(Header::LENGTH..).ok_or(Malformed::CutOff)?;
        let mut end = 0;
        loop {
            let length = usize::from(*rest.get(end).ok_or(Malformed::CutOff)?);
            end += 1 + length;
            match length {
                0 => break,
                1..=63 if end < MAX_NAME => {}
                1..=63 => return Err(Malformed::NameTooLong),
                _ => return Err(Malformed::Label),
            }
        }
        let (name, rest) = rest.split_at_checked(end).ok_or(Malformed::CutOff)?;
        let [kind, more_kind, class, more_class, ..] = *rest else {
            return Err(Malformed::CutOff);
        };
        Ok(Self {
            name,
            kind: u16::from_be_bytes([kind, more_kind]),
            class: u16::from_be_bytes([class, more_class]),
        })
    }

    /// Bytes from the message's first to the first behind this question.
    pub fn end(&self) -> usize {
        Header::LENGTH + self.name.len() + 4
    }

    /// Whether the other one asks for the same; upper and lower case are the same (RFC 4343).
    pub fn is_same(&self, other: &Question<'_>) -> bool {
        self.kind == other.kind
            && self.class == other.class
            // Length bytes are no letters, so they are compared as they are.
            && self.name.eq_ignore_ascii_case(other.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    #[test]
    fn a_query_is_read_as_hickory_wrote_it() {
        let message = query("WWW.bt.com.", RecordType::AAAA);
        let header = Header::read(&message).unwrap();
        assert_eq!(header.id(), 0x1234);
        assert!(!header.is_answer() && header.wants_recursion() && !header.is_truncated());
        assert_eq!((header.opcode(), header.questions()), (0, 1));
        let question = Question::read(&message).unwrap();
        assert_eq!(question.name, b"\x03WWW\x02bt\x03com\0");
        assert_eq!((question.kind, question.class), (kind::AAAA, class::IN));
        assert_eq!(question.end(), message.len());
        let other = query("www.bt.COM.", RecordType::AAAA);
        assert!(question.is_same(&Question::read(&other).unwrap()));
        let other = query("www.bt.com.", RecordType::A);
        assert!(!question.is_same(&Question::read(&other).unwrap()));
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_no_question() {
        let message = query("www.bt.com.", RecordType::A);
        for length in 0..message.len() {
            assert_eq!(
                Question::read(&message[..length]),
                Err(Malformed::CutOff),
                "{length}"
            );
        }
        let with_name = |name: &[u8]| [&message[..Header::LENGTH], name, &[0, 1, 0, 1]].concat();
        for pointer in [0x40, 0x80, 0xC0] {
            let message = with_name(&[pointer, 12]);
            assert_eq!(Question::read(&message), Err(Malformed::Label));
        }
        let longest = [b"\x3d".as_slice(), &[b'x'; 61]].concat().repeat(4);
        let longest = [&longest, b"\x05abcde\0".as_slice()].concat();
        assert_eq!(longest.len(), MAX_NAME);
        assert!(Question::read(&with_name(&longest)).is_ok());
        let longer = [b"\x01a".as_slice(), &longest].concat();
        assert_eq!(
            Question::read(&with_name(&longer)),
            Err(Malformed::NameTooLong)
        );
    }

    proptest! {
        #[test]
        fn whatever_is_read_lies_in_the_message(message: Vec<u8>) {
            if let Ok(question) = Question::read(&message) {
                prop_assert!(question.end() <= message.len());
                prop_assert!(question.name.len() <= MAX_NAME);
            }
        }
    }
}
