//! What is to be done about one query. No socket, no clock, no log: bytes, the table and a random number go
//! in, an [`Outcome`] comes out, and the answer, if there is one, in a buffer.
//!
//! The order is that of what each step costs. What is no query is dropped: an answer must never be
//! answered, or two servers could keep each other busy for ever. What isn't about a listed name is passed
//! on without being looked at any further. Only then are the records behind the question read.
//!
//! An answer has the question as it was asked, byte for byte, as clients compare upper and lower case to
//! tell forgeries. Records are copied behind it as they lie in the table; their owner is a pointer to the
//! question's name.

mod edns;

use std::net::SocketAddr;

use dns_question::{Header, Question, class, kind};

pub use edns::{Cookie, Edns, Malformed, Reply};

use crate::table::{Entry, Table};

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram, from an address that may be forged.
    Udp,
    /// On a connection.
    Tcp,
}

/// A query and where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The message.
    pub message: &'a [u8],
    /// Who asks, as far as the packet tells.
    pub client: SocketAddr,
    /// How it came.
    pub transport: Transport,
}

/// What a listed name that lacks the type that is asked for means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherTypes {
    /// An empty answer, so that the client can't get past the table by asking for another type.
    #[default]
    Empty,
    /// The query is passed on.
    Pass,
}

/// How queries are answered.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Bytes of the longest answer over UDP, whatever the client would take.
    pub max_udp_size: u16,
    /// What becomes of types that a listed name hasn't got.
    pub other_types: OtherTypes,
}

/// What is to be done about a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is in the buffer.
    Answered(Answered),
    /// It is for the DNS to answer.
    Pass,
    /// Nothing, for this reason.
    Dropped(DropReason),
}

/// What kind of answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answered {
    /// With records from the table.
    Own,
    /// The name is listed, but not the type: no records, and how long that may be remembered.
    Empty,
    /// The records don't fit: the client is to ask over TCP.
    Truncated,
    /// The query can't be understood (FORMERR).
    Malformed,
    /// Another operation than a query (NOTIMP).
    NotImplemented,
    /// A version of EDNS that there isn't yet (BADVERS).
    UnknownEdns,
    /// A zone is asked for, which can't be passed on (REFUSED).
    Refused,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Too short for a header.
    TooShort,
    /// It is itself an answer.
    IsAnswer,
    /// It comes from port 0, where no answer can go.
    NoPort,
}

/// Response codes (IANA, "DNS RCODEs").
mod response {
    pub const FORMAT_ERROR: u8 = 1;
    pub const SERVER_FAILURE: u8 = 2;
    pub const NOT_IMPLEMENTED: u8 = 4;
    pub const REFUSED: u8 = 5;
    /// BADVERS is 16: its upper eight bits stand in the OPT record.
    pub const BAD_VERSION_UPPER: u8 = 1;
}

/// Bits of the header's flags.
mod flag {
    pub const ANSWER: u8 = 0x80;
    pub const AUTHORITATIVE: u8 = 0x04;
    pub const TRUNCATED: u8 = 0x02;
    pub const RECURSION_DESIRED: u8 = 0x01;
    pub const OPCODE: u8 = 0x78;
    pub const RECURSION_AVAILABLE: u8 = 0x80;
    pub const CHECKING_DISABLED: u8 = 0x10;
}

/// Bytes of an answer over UDP that every client takes (RFC 1035, section 4.2.1).
const SMALLEST_LIMIT: usize = 512;

impl Rules {
    /// Decides about a query. An answer is appended to `out`, to which nothing else is done; `random` picks
    /// among several records.
    pub fn handle(
        &self,
        asked: &Asked<'_>,
        table: &Table,
        random: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let message = asked.message;
        let Some(header) = Header::read(message) else {
            return Outcome::Dropped(DropReason::TooShort);
        };
        if header.is_answer() {
            return Outcome::Dropped(DropReason::IsAnswer);
        }
        if asked.client.port() == 0 {
            return Outcome::Dropped(DropReason::NoPort);
        }
        if header.opcode() != 0 {
            return error(
                message,
                None,
                response::NOT_IMPLEMENTED,
                Answered::NotImplemented,
                out,
            );
        }
        // One question is all that can be asked (RFC 9619).
        if header.questions() != 1 {
            return error(
                message,
                None,
                response::FORMAT_ERROR,
                Answered::Malformed,
                out,
            );
        }
        let Ok(question) = Question::read(message) else {
            return error(
                message,
                None,
                response::FORMAT_ERROR,
                Answered::Malformed,
                out,
            );
        };
        let entry = match question.class {
            class::IN | class::ANY => table.find(question.name),
            _ => None,
        };
        let Some(entry) = entry else {
            // What is passed on has one answer. A zone is a stream of them.
            let is_zone = matches!(question.kind, kind::AXFR | kind::IXFR);
            if is_zone && asked.transport == Transport::Tcp {
                return error(
                    message,
                    Some(&question),
                    response::REFUSED,
                    Answered::Refused,
                    out,
                );
            }
            return Outcome::Pass;
        };
        self.answer(asked, header, &question, entry, random, out)
    }

    /// Answers a query for a listed name.
    fn answer(
        &self,
        asked: &Asked<'_>,
        header: Header<'_>,
        question: &Question<'_>,
        entry: &Entry,
        random: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let message = asked.message;
        let Ok(edns) = Edns::read(message, header, question.end()) else {
            return error(
                message,
                Some(question),
                response::FORMAT_ERROR,
                Answered::Malformed,
                out,
            );
        };
        let mut reply = edns.map(|edns| Reply {
            udp_size: self.max_udp_size,
            response_code: 0,
            dnssec_ok: edns.dnssec_ok,
            cookie: None,
        });
        let limit = match (asked.transport, edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => SMALLEST_LIMIT,
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.udp_size.min(self.max_udp_size)).max(SMALLEST_LIMIT)
            }
        };
        let mut writer = Writer::begin(message, question, out);
        if edns.is_some_and(|edns| edns.version > 0) {
            if let Some(reply) = &mut reply {
                reply.response_code = response::BAD_VERSION_UPPER;
            }
            writer.end(reply);
            return Outcome::Answered(Answered::UnknownEdns);
        }
        // An answer that stands for all classes is nobody's (RFC 1035, section 6.2).
        if question.class == class::IN {
            writer.set_flags(flag::AUTHORITATIVE);
        }
        let room = limit - reply.map_or(0, |reply| reply.length());
        let answered = match entry.set(question.kind) {
            Some(set) if !set.is_empty() => {
                set.rotated(random).for_each(|record| writer.answer(record));
                Answered::Own
            }
            _ if question.kind == kind::ANY => {
                writer.answer(EVERYTHING);
                Answered::Own
            }
            None if self.other_types == OtherTypes::Pass => {
                writer.undo();
                return Outcome::Pass;
            }
            _ => {
                writer.authority(entry.negative());
                Answered::Empty
            }
        };
        entry.count();
        if writer.length() > room {
            writer.truncate();
            writer.end(reply);
            return Outcome::Answered(Answered::Truncated);
        }
        writer.end(reply);
        Outcome::Answered(answered)
    }
}

/// The answer to "everything" (RFC 8482, section 4.2): HINFO with "RFC8482" and nothing, from its type on.
const EVERYTHING: &[u8] = b"\x00\x0d\x00\x01\x00\x00\x0e\x10\x00\x09\x07RFC8482\x00";

/// Appends the answer that there is none to be had, to a query that was to be passed on (SERVFAIL).
pub fn failure(message: &[u8], out: &mut Vec<u8>) {
    let question = Question::read(message).ok();
    error(
        message,
        question.as_ref(),
        response::SERVER_FAILURE,
        Answered::Refused,
        out,
    );
}

/// Appends an answer with an error and no records.
fn error(
    message: &[u8],
    question: Option<&Question<'_>>,
    response_code: u8,
    answered: Answered,
    out: &mut Vec<u8>,
) -> Outcome {
    let Some(header) = message.first_chunk::<{ Header::LENGTH }>() else {
        return Outcome::Dropped(DropReason::TooShort);
    };
    let [id, more_id, flags, more_flags, ..] = *header;
    out.extend([id, more_id]);
    out.push(flag::ANSWER | flags & (flag::OPCODE | flag::RECURSION_DESIRED));
    out.push(flag::RECURSION_AVAILABLE | more_flags & flag::CHECKING_DISABLED | response_code);
    out.extend([0, question.is_some().into(), 0, 0, 0, 0, 0, 0]);
    if let Some(question) = question {
        out.extend(
            message
                .get(Header::LENGTH..question.end())
                .unwrap_or_default(),
        );
    }
    Outcome::Answered(answered)
}

/// An answer that is being written.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Where it starts.
    start: usize,
    /// Where its question ends.
    question_end: usize,
    answers: u16,
    authorities: u16,
}

impl<'a> Writer<'a> {
    /// Writes header and question.
    fn begin(message: &[u8], question: &Question<'_>, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        error(message, Some(question), 0, Answered::Own, out);
        Self {
            start,
            question_end: out.len(),
            out,
            answers: 0,
            authorities: 0,
        }
    }

    fn set_flags(&mut self, flags: u8) {
        if let Some(byte) = self.out.get_mut(self.start + 2) {
            *byte |= flags;
        }
    }

    /// Adds a record about the question's name, which is given from its type on.
    fn answer(&mut self, record: &[u8]) {
        self.record(record);
        self.answers += 1;
    }

    fn authority(&mut self, record: &[u8]) {
        self.record(record);
        self.authorities += 1;
    }

    fn record(&mut self, record: &[u8]) {
        // A pointer to the question's name, right behind the header.
        self.out.extend([0xC0, Header::LENGTH as u8]);
        self.out.extend_from_slice(record);
    }

    /// Bytes so far.
    fn length(&self) -> usize {
        self.out.len() - self.start
    }

    /// Takes all records back, and says so.
    fn truncate(&mut self) {
        self.out.truncate(self.question_end);
        (self.answers, self.authorities) = (0, 0);
        self.set_flags(flag::TRUNCATED);
    }

    /// Takes all of it back.
    fn undo(self) {
        self.out.truncate(self.start);
    }

    fn end(self, reply: Option<Reply>) {
        if let Some(reply) = &reply {
            reply.write(self.out);
        }
        let counts = [self.answers, self.authorities, reply.is_some().into()];
        let places = self.out.iter_mut().skip(self.start + 6);
        let bytes = counts.into_iter().flat_map(u16::to_be_bytes);
        places.zip(bytes).for_each(|(place, byte)| *place = byte);
    }
}
