//! An alias of the table whose other name isn't listed: the DNS is asked for that one, and the answer is put
//! together. Clients expect the whole way to be gone for them, and most can't go it themselves.

use dns_question::{Header, Question, WireName};
use hickory_proto::ProtoError;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::serialize::binary::DecodeError;
use thiserror::Error;

use super::edns::Reply;
use super::writer::{Writer, flag, response};

/// An answer that waits for its second part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// The query that is to be passed on, with the client's id.
    pub query: Vec<u8>,
    /// The answer so far: the question as the client asked it, and the aliases.
    begun: Vec<u8>,
    reply: Option<Reply>,
    /// Bytes of the longest answer.
    limit: usize,
}

/// Why two parts can't be put together.
#[derive(Debug, Error)]
#[error("the answer can't be put together")]
enum Unjoinable {
    Unreadable(#[from] DecodeError),
    Unwritable(#[from] ProtoError),
}

impl Follow {
    /// The second part is what `kind` of records the `target` has.
    pub(super) fn new(
        begun: Vec<u8>,
        header: Header<'_>,
        (target, kind): (&WireName, u16),
        reply: Option<Reply>,
        limit: usize,
    ) -> Self {
        let mut query = header.id().to_be_bytes().to_vec();
        let recursion = if header.wants_recursion() {
            flag::RECURSION_DESIRED
        } else {
            0
        };
        let checking = if header.checking_disabled() {
            flag::CHECKING_DISABLED
        } else {
            0
        };
        query.extend([
            recursion,
            checking,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            reply.is_some().into(),
        ]);
        query.extend(target.as_bytes());
        query.extend(kind.to_be_bytes());
        query.extend(dns_question::class::IN.to_be_bytes());
        if let Some(reply) = reply {
            // A cookie is for this server only.
            Reply {
                cookie: None,
                ..reply
            }
            .write(&mut query);
        }
        Self {
            query,
            begun,
            reply,
            limit,
        }
    }

    /// Appends the whole answer, with what the DNS says about the other name.
    pub fn join(&self, answer: &[u8], out: &mut Vec<u8>) {
        let is_cut = Header::read(answer).is_some_and(|header| header.is_truncated());
        let whole = match self.joined(answer) {
            Ok(whole) => whole,
            Err(_) => return self.fail(out),
        };
        let start = out.len();
        if is_cut || whole.len() + self.reply.map_or(0, |reply| reply.length()) > self.limit {
            let Ok(question) = Question::read(&self.begun) else {
                return;
            };
            let mut writer = Writer::begin(&self.begun, Some(&question), response::NO_ERROR, out);
            writer.truncate();
            return writer.end(self.reply);
        }
        out.extend(whole);
        if let Some(reply) = &self.reply {
            reply.write(out);
            // The one additional record there is.
            if let Some(place) = out.get_mut(start + Header::LENGTH - 1) {
                *place = 1;
            }
        }
    }

    /// Appends the answer that there is none to be had.
    pub fn fail(&self, out: &mut Vec<u8>) {
        let question = Question::read(&self.begun).ok();
        Writer::begin(
            &self.begun,
            question.as_ref(),
            response::SERVER_FAILURE,
            out,
        )
        .end(self.reply);
    }

    fn joined(&self, answer: &[u8]) -> Result<Vec<u8>, Unjoinable> {
        let mut whole = Message::from_vec(&self.begun)?;
        let second = Message::from_vec(answer)?;
        // What became of the last name is what became of the query (RFC 6604, section 3).
        whole.metadata.response_code = match second.metadata.response_code {
            code @ (ResponseCode::NoError | ResponseCode::NXDomain | ResponseCode::Refused) => code,
            _ => ResponseCode::ServFail,
        };
        whole.add_answers(second.answers);
        whole.add_authorities(second.authorities);
        Ok(whole.to_vec()?)
    }
}
