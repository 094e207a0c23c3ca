//! Which DNS queries a peeking diversion takes: those for listed names.
//!
//! Each datagram is looked at by itself, since a client may ask for listed and for other names from one
//! port. What isn't plainly a query with one question for a listed name isn't taken. To the DNS, it is then
//! as if there were no diversion.

use std::sync::Arc;

use control_protocol::DomainName;
use dns_question::{Header, NameError, Names, Question, WireName};

/// The names that a peeking diversion takes the queries for.
#[derive(Debug, Clone, Default)]
pub struct Peek {
    /// Shared by all workers; none: it was told none yet.
    names: Option<Arc<Names<()>>>,
}

impl Peek {
    /// The opcode of a plain query (RFC 1035, section 4.1.1).
    const QUERY: u8 = 0;

    /// Takes queries for these names, and for those that are below a `*.`.
    ///
    /// # Errors
    /// One of them is no name, which none is that was read as a [`DomainName`].
    pub fn at<'a>(names: impl IntoIterator<Item = &'a DomainName>) -> Result<Self, NameError> {
        let mut table = Names::new();
        for name in names {
            table.insert(&WireName::from_text(name.as_str())?, ());
        }
        Ok(Self {
            names: Some(Arc::new(table)),
        })
    }

    /// How many names there are; `None`: none have been told.
    pub fn names(&self) -> Option<usize> {
        self.names.as_ref().map(|names| names.len())
    }

    /// Whether the payload of a packet is to be taken. `segment_length` says how long each datagram of a
    /// super-packet is, in bytes; `None`: there is but one.
    ///
    /// A super-packet can't be sent two ways. One with any datagram that is to be taken is taken whole: the
    /// naming server passes on what it doesn't answer, while the DNS would answer what it shouldn't.
    pub fn takes(&self, payload: &[u8], segment_length: Option<u16>) -> bool {
        match segment_length {
            Some(length @ 1..) => payload
                .chunks(length.into())
                .any(|datagram| self.takes_message(datagram)),
            _ => self.takes_message(payload),
        }
    }

    fn takes_message(&self, message: &[u8]) -> bool {
        let (Some(names), Some(header)) = (&self.names, Header::read(message)) else {
            return false;
        };
        !header.is_answer()
            && header.opcode() == Self::QUERY
            && header.questions() == 1
            && Question::read(message).is_ok_and(|question| names.find(question.name).is_some())
    }
}

impl PartialEq for Peek {
    /// Whether it is the same list, not only one like it.
    fn eq(&self, other: &Self) -> bool {
        match (&self.names, &other.names) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Eq for Peek {}
