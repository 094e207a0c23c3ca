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

mod cookie;
mod edns;
mod follow;
mod writer;

use std::net::SocketAddr;
use std::time::Instant;

use dns_question::{Header, Question, class, kind};
use ipnet::IpNet;

pub use cookie::CookieSecret;
pub use edns::{Cookie, Edns, Malformed, Reply};
pub use follow::Follow;

use crate::limit::{RateLimit, Verdict};
use crate::table::{Entry, Table};
use writer::{NameAt, Writer, flag, response};

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

/// When a query is looked at, and what chance has to say about it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The time, for what is measured.
    pub now: Instant,
    /// The time of day: seconds since 1970, modulo 2³².
    pub seconds: u32,
    /// Picks among several records.
    pub random: u64,
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
    /// Who may ask; nobody: all may.
    pub clients: Vec<IpNet>,
    /// What cookies are made with; none: there are none.
    pub cookies: Option<CookieSecret>,
}

/// What is to be done about a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is in the buffer.
    Answered(Answered),
    /// It is for the DNS to answer.
    Pass,
    /// The name is an alias, and what it stands for is for the DNS to answer.
    Follow(Box<Follow>),
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
    /// The client's prefix is answered too often: it is to ask over TCP.
    Limited,
    /// Nothing was asked for but a cookie (RFC 7873, section 5.4).
    CookieOnly,
    /// The query can't be understood (FORMERR).
    Malformed,
    /// Another operation than a query (NOTIMP).
    NotImplemented,
    /// A version of EDNS that there isn't yet (BADVERS).
    UnknownEdns,
    /// The client may not ask (REFUSED).
    Refused,
    /// A zone is asked for, which can't be passed on (REFUSED).
    Zone,
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
    /// The client's prefix is answered too often.
    Limited,
}

/// Bytes of an answer over UDP that every client takes (RFC 1035, section 4.2.1).
const SMALLEST_LIMIT: usize = 512;

/// Steps from alias to alias within the table.
const MAX_ALIASES: usize = 8;

/// The answer to "everything" (RFC 8482, section 4.2): HINFO with "RFC8482" and nothing, from its type on.
const EVERYTHING: &[u8] = b"\x00\x0d\x00\x01\x00\x00\x0e\x10\x00\x09\x07RFC8482\x00";

impl Rules {
    /// Decides about a query. An answer is appended to `out`, to which nothing else is done. Without a `limit`, any
    /// number is answered.
    pub fn handle(
        &self,
        asked: &Asked<'_>,
        table: &Table,
        moment: Moment,
        limit: Option<&mut RateLimit>,
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
        let question = match header.questions() {
            1 => Question::read(message).ok(),
            _ => None,
        };
        // What is wrong with the query, as an answer without records.
        let error = |response_code, answered, out: &mut Vec<u8>| {
            Writer::begin(message, question.as_ref(), response_code, out).end(None);
            Outcome::Answered(answered)
        };
        if let Some(limit) = limit {
            match limit.take(asked.client.ip(), moment.now) {
                Verdict::Allowed => {}
                _ if self.is_proven(asked, header, question.as_ref(), moment) => {}
                Verdict::Dropped => return Outcome::Dropped(DropReason::Limited),
                Verdict::Truncated => {
                    let mut writer =
                        Writer::begin(message, question.as_ref(), response::NO_ERROR, out);
                    writer.truncate();
                    writer.end(None);
                    return Outcome::Answered(Answered::Limited);
                }
            }
        }
        if !self.clients.is_empty() && !self.is_client(asked) {
            return error(response::REFUSED, Answered::Refused, out);
        }
        if header.opcode() != 0 {
            return error(response::NOT_IMPLEMENTED, Answered::NotImplemented, out);
        }
        let Some(question) = question else {
            if header.questions() == 0 && self.cookie_only(asked, header, moment, out) {
                return Outcome::Answered(Answered::CookieOnly);
            }
            // More than one question can't be asked (RFC 9619).
            Writer::begin(message, None, response::FORMAT_ERROR, out).end(None);
            return Outcome::Answered(Answered::Malformed);
        };
        let entry = match question.class {
            class::IN | class::ANY => table.find(question.name),
            _ => None,
        };
        let Some(entry) = entry else {
            // What is passed on has one answer. A zone is a stream of them.
            let is_zone = matches!(question.kind, kind::AXFR | kind::IXFR);
            if is_zone && asked.transport == Transport::Tcp {
                return error(response::REFUSED, Answered::Zone, out);
            }
            return Outcome::Pass;
        };
        let Ok(edns) = Edns::read(message, header, question.end()) else {
            return error(response::FORMAT_ERROR, Answered::Malformed, out);
        };
        let reply = edns.map(|edns| self.reply(&edns, asked, moment));
        if edns.is_some_and(|edns| edns.version > 0) {
            let reply = reply.map(|reply| Reply {
                response_code: response::BAD_VERSION_UPPER,
                ..reply
            });
            Writer::begin(message, Some(&question), response::NO_ERROR, out).end(reply);
            return Outcome::Answered(Answered::UnknownEdns);
        }
        let limit = match (asked.transport, edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => SMALLEST_LIMIT,
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.udp_size.min(self.max_udp_size)).max(SMALLEST_LIMIT)
            }
        };
        let own = Own {
            header,
            question,
            reply,
            limit,
        };
        let writer = Writer::begin(message, Some(&question), response::NO_ERROR, out);
        let outcome = self.answer(&own, entry, table, moment.random, writer);
        if outcome != Outcome::Pass {
            entry.count();
        }
        outcome
    }

    /// Answers from the table.
    fn answer(
        &self,
        own: &Own<'_>,
        entry: &Entry,
        table: &Table,
        random: u64,
        mut writer: Writer<'_>,
    ) -> Outcome {
        let Own {
            header,
            question,
            reply,
            limit,
        } = *own;
        // An answer that stands for all classes is nobody's (RFC 1035, section 6.2).
        if question.class == class::IN {
            writer.set_flags(flag::AUTHORITATIVE);
        }
        let (mut entry, mut owner) = (entry, NameAt::QUESTION);
        let mut answered = Answered::Own;
        for _ in 0..MAX_ALIASES {
            if let Some(alias) = entry.alias() {
                let target = &alias.target;
                owner = writer.alias(owner, &alias.record, target.as_bytes().len());
                if matches!(question.kind, kind::CNAME | kind::ANY) {
                    break;
                }
                match table.find(target.as_bytes()) {
                    Some(next) => entry = next,
                    None => {
                        let asked = (target, question.kind);
                        let follow = Follow::new(writer.undo(), header, asked, reply, limit);
                        return Outcome::Follow(Box::new(follow));
                    }
                }
                continue;
            }
            match entry.set(question.kind) {
                Some(set) if !set.is_empty() => {
                    for record in set.rotated(random) {
                        writer.answer(owner, record);
                    }
                }
                None if question.kind == kind::ANY => writer.answer(owner, EVERYTHING),
                None if self.other_types == OtherTypes::Pass && writer.answers() == 0 => {
                    writer.undo();
                    return Outcome::Pass;
                }
                _ => {
                    writer.authority(owner, entry.negative());
                    answered = Answered::Empty;
                }
            }
            break;
        }
        if writer.length() + reply.map_or(0, |reply| reply.length()) > limit {
            writer.truncate();
            answered = Answered::Truncated;
        }
        writer.end(reply);
        Outcome::Answered(answered)
    }

    /// What the answer's OPT record says.
    fn reply(&self, edns: &Edns<'_>, asked: &Asked<'_>, moment: Moment) -> Reply {
        let cookie = match (&self.cookies, edns.cookie) {
            (Some(secret), Some(cookie)) => {
                Some(secret.make(cookie.client, asked.client.ip(), moment.seconds))
            }
            _ => None,
        };
        Reply {
            udp_size: self.max_udp_size,
            response_code: 0,
            dnssec_ok: edns.dnssec_ok,
            cookie,
        }
    }

    /// Whether the query has a cookie that shows that the client is where it says.
    fn is_proven(
        &self,
        asked: &Asked<'_>,
        header: Header<'_>,
        question: Option<&Question<'_>>,
        moment: Moment,
    ) -> bool {
        let Some(secret) = &self.cookies else {
            return false;
        };
        let at = question.map_or(Header::LENGTH, Question::end);
        let cookie = match Edns::read(asked.message, header, at) {
            Ok(Some(edns)) => edns.cookie,
            _ => None,
        };
        cookie.is_some_and(|cookie| secret.is_valid(&cookie, asked.client.ip(), moment.seconds))
    }

    /// Answers a query without a question, if it asks for a cookie.
    fn cookie_only(
        &self,
        asked: &Asked<'_>,
        header: Header<'_>,
        moment: Moment,
        out: &mut Vec<u8>,
    ) -> bool {
        let Ok(Some(edns)) = Edns::read(asked.message, header, Header::LENGTH) else {
            return false;
        };
        let reply = self.reply(&edns, asked, moment);
        if reply.cookie.is_none() || edns.version > 0 {
            return false;
        }
        Writer::begin(asked.message, None, response::NO_ERROR, out).end(Some(reply));
        true
    }

    fn is_client(&self, asked: &Asked<'_>) -> bool {
        let address = asked.client.ip();
        self.clients.iter().any(|net| net.contains(&address))
    }
}

/// A query for a listed name.
struct Own<'a> {
    header: Header<'a>,
    question: Question<'a>,
    reply: Option<Reply>,
    /// Bytes of the longest answer.
    limit: usize,
}

/// Appends the answer that there is none to be had, to a query that was to be passed on (SERVFAIL).
pub fn failure(message: &[u8], out: &mut Vec<u8>) {
    let question = Question::read(message).ok();
    Writer::begin(message, question.as_ref(), response::SERVER_FAILURE, out).end(None);
}

#[cfg(test)]
mod tests;
