//! The check by a DNS query: a mirror is well if it answers with the right code, and perhaps the right
//! record (RFC 1035, over UDP).

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::config::CheckError;
use super::fault::Fault;
use super::text::parsed;
use super::udp::{MAX_DATAGRAM, connect};
use super::{Asked, Finding};

/// A DNS query and what is expected of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dns {
    /// The name to ask for, always taken as a whole one.
    #[serde(deserialize_with = "parsed")]
    pub name: Name,
    /// The type of record to ask for.
    #[serde(
        default = "address_record",
        rename = "type",
        deserialize_with = "parsed"
    )]
    pub record_type: RecordType,
    /// The code that the answer must have.
    #[serde(default)]
    pub rcode: Rcode,
    /// What one of the answer's records must be, as in a zone file: an address, a name, a text.
    pub answer: Option<String>,
}

fn address_record() -> RecordType {
    RecordType::A
}

impl Dns {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        if self.answer.is_some() && self.rcode != Rcode::default() {
            return Err(CheckError::Exclusive {
                one: "answer",
                other: "an rcode other than NOERROR",
            });
        }
        Ok(())
    }

    pub(super) async fn ask(&self, asked: &Asked) -> Result<Finding, Fault> {
        let began = Instant::now();
        let mut name = self.name.clone();
        name.set_fqdn(true);
        let query = Query::query(name, self.record_type);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        let id = message.metadata.id;
        let bytes = message.to_vec().map_err(Fault::Query)?;

        let socket = connect(asked.address).await?;
        socket.send(&bytes).await.map_err(Fault::io("send"))?;
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let count = socket
                .recv(&mut buffer)
                .await
                .map_err(Fault::io("receive"))?;
            let Ok(answer) = Message::from_vec(&buffer[..count]) else {
                return Ok(Finding::bad(format!(
                    "{count} bytes that are no DNS message"
                )));
            };
            // What doesn't belong to the query may be forged, or late.
            if answer.metadata.id != id
                || answer.metadata.message_type != MessageType::Response
                || answer.queries.first().is_some_and(|asked| *asked != query)
            {
                continue;
            }
            let finding = self.judge(&answer);
            return Ok(match finding {
                Ok(detail) => Finding::good(began.elapsed(), detail),
                Err(detail) => Finding::bad(detail),
            });
        }
    }

    /// What is seen in `answer`: as an error if it isn't what is expected.
    fn judge(&self, answer: &Message) -> Result<String, String> {
        let rcode = Rcode(u16::from(answer.metadata.response_code));
        if rcode != self.rcode {
            return Err(format!("{rcode}, expected {}", self.rcode));
        }
        let records: Vec<String> = answer
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        let seen = match records.as_slice() {
            [] => format!("{rcode}, no records"),
            records => format!("{rcode}: {}", records.join(", ")),
        };
        let plain = |text: &str| {
            text.trim_matches('"')
                .trim_end_matches('.')
                .to_ascii_lowercase()
        };
        match &self.answer {
            Some(wanted) if !records.iter().any(|record| plain(record) == plain(wanted)) => {
                Err(format!("{seen}; expected {wanted}"))
            }
            _ => Ok(seen),
        }
    }
}

/// The response code of a DNS message, by its mnemonic (IANA, "DNS RCODEs").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rcode(pub u16);

/// The codes of RFC 1035 and RFC 2136, by their numbers.
const MNEMONICS: [&str; 11] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET",
    "NXRRSET", "NOTAUTH", "NOTZONE",
];

/// Why a text is no response code.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected one of {}", MNEMONICS.join(", "))]
pub struct RcodeError;

impl FromStr for Rcode {
    type Err = RcodeError;

    fn from_str(text: &str) -> Result<Self, RcodeError> {
        let known = MNEMONICS
            .iter()
            .position(|mnemonic| mnemonic.eq_ignore_ascii_case(text));
        known
            .and_then(|number| u16::try_from(number).ok())
            .map(Self)
            .ok_or(RcodeError)
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MNEMONICS.get(usize::from(self.0)) {
            Some(mnemonic) => f.write_str(mnemonic),
            None => write!(f, "response code {}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Rcode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}
