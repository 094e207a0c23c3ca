//! Writing an answer: the header and the question as they were asked, then records as they lie in the table.

use dns_question::{Header, Question};

use super::edns::Reply;

/// Response codes (IANA, "DNS RCODEs").
pub(super) mod response {
    pub const NO_ERROR: u8 = 0;
    pub const FORMAT_ERROR: u8 = 1;
    pub const SERVER_FAILURE: u8 = 2;
    pub const NOT_IMPLEMENTED: u8 = 4;
    pub const REFUSED: u8 = 5;
    /// BADVERS is 16: its upper eight bits stand in the OPT record.
    pub const BAD_VERSION_UPPER: u8 = 1;
}

/// Bits of the header's flags.
pub(super) mod flag {
    pub const ANSWER: u8 = 0x80;
    pub const AUTHORITATIVE: u8 = 0x04;
    pub const TRUNCATED: u8 = 0x02;
    pub const RECURSION_DESIRED: u8 = 0x01;
    pub const OPCODE: u8 = 0x78;
    pub const RECURSION_AVAILABLE: u8 = 0x80;
    pub const CHECKING_DISABLED: u8 = 0x10;
}

/// Where in a message a name stands, for a pointer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NameAt(u16);

impl NameAt {
    /// The question's name, right behind the header.
    pub(super) const QUESTION: Self = Self(Header::LENGTH as u16);

    /// The pointer (RFC 1035, section 4.1.4).
    fn pointer(self) -> [u8; 2] {
        (0xC000 | self.0).to_be_bytes()
    }
}

/// An answer that is being written.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Where it starts.
    start: usize,
    /// Where its question ends.
    question_end: usize,
    answers: u16,
    authorities: u16,
}

impl<'a> Writer<'a> {
    /// Writes header and question, or only the header. The message has a header.
    pub(super) fn begin(
        message: &[u8],
        question: Option<&Question<'_>>,
        response_code: u8,
        out: &'a mut Vec<u8>,
    ) -> Self {
        let start = out.len();
        if let [id, more_id, flags, more_flags, ..] = *message {
            out.extend([id, more_id]);
            out.push(flag::ANSWER | flags & (flag::OPCODE | flag::RECURSION_DESIRED));
            let checking_disabled = more_flags & flag::CHECKING_DISABLED;
            out.push(flag::RECURSION_AVAILABLE | checking_disabled | response_code);
            out.extend([0, question.is_some().into(), 0, 0, 0, 0, 0, 0]);
        }
        if let Some(question) = question {
            let asked = message.get(Header::LENGTH..question.end());
            out.extend_from_slice(asked.unwrap_or_default());
        }
        Self {
            start,
            question_end: out.len(),
            out,
            answers: 0,
            authorities: 0,
        }
    }

    pub(super) fn set_flags(&mut self, flags: u8) {
        if let Some(byte) = self.out.get_mut(self.start + 2) {
            *byte |= flags;
        }
    }

    /// Adds a record, which is given from its type on, about a name.
    pub(super) fn answer(&mut self, owner: NameAt, record: &[u8]) {
        self.record(owner, record);
        self.answers += 1;
    }

    /// Adds a CNAME record, and says where the name is that it ends with.
    pub(super) fn alias(&mut self, owner: NameAt, record: &[u8], target_length: usize) -> NameAt {
        self.answer(owner, record);
        // A few aliases fit into the 16 KiB that pointers reach.
        NameAt((self.length() - target_length) as u16)
    }

    pub(super) fn authority(&mut self, owner: NameAt, record: &[u8]) {
        self.record(owner, record);
        self.authorities += 1;
    }

    fn record(&mut self, owner: NameAt, record: &[u8]) {
        self.out.extend(owner.pointer());
        self.out.extend_from_slice(record);
    }

    /// Bytes so far.
    pub(super) fn length(&self) -> usize {
        self.out.len() - self.start
    }

    /// How many records there are to the answer so far.
    pub(super) fn answers(&self) -> u16 {
        self.answers
    }

    /// Takes all records back, and says so.
    pub(super) fn truncate(&mut self) {
        self.out.truncate(self.question_end);
        (self.answers, self.authorities) = (0, 0);
        self.set_flags(flag::TRUNCATED);
    }

    /// Takes all of it back, and gives it away without an OPT record.
    pub(super) fn undo(self) -> Vec<u8> {
        let start = self.start;
        let out = self.finish(None);
        out.split_off(start)
    }

    /// Writes the OPT record and the numbers of records.
    pub(super) fn end(self, reply: Option<Reply>) {
        self.finish(reply);
    }

    fn finish(self, reply: Option<Reply>) -> &'a mut Vec<u8> {
        if let Some(reply) = &reply {
            reply.write(self.out);
        }
        let counts = [self.answers, self.authorities, reply.is_some().into()];
        let places = self.out.iter_mut().skip(self.start + 6);
        let bytes = counts.into_iter().flat_map(u16::to_be_bytes);
        places.zip(bytes).for_each(|(place, byte)| *place = byte);
        self.out
    }
}
