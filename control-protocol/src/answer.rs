//! Answers: a result or a failure, written to a line and read back.
//!
//! Answers are read leniently, since later versions of the daemon may add fields to them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::line::{MAX_ANSWER_LINE, MAX_MESSAGE, PROTOCOL_VERSION, json_line};
use crate::method::{Daemon, Method};
use crate::text::words;

/// What the daemon says to one request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The request's number; `None` when the request was too broken to read it.
    pub id: Option<u64>,
    /// The result as JSON text, or why there is none.
    pub outcome: Result<Box<RawValue>, Failure>,
}

impl Answer {
    /// The request has been carried out. A result that can't be written as JSON becomes a failure of
    /// the code [`ErrorCode::Internal`].
    pub fn ok(id: u64, result: &impl Serialize) -> Self {
        match serde_json::value::to_raw_value(result) {
            Ok(result) => Self {
                id: Some(id),
                outcome: Ok(result),
            },
            Err(error) => {
                let message = format!("the result can't be written as JSON: {error}");
                Self::error(Some(id), ErrorCode::Internal, message)
            }
        }
    }

    /// The request has not been carried out. The message is cut at [`MAX_MESSAGE`] characters.
    pub fn error(id: Option<u64>, code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
        }
        Self {
            id,
            outcome: Err(Failure { code, message }),
        }
    }

    /// There is such a method, but `daemon` isn't the one that answers it.
    pub fn elsewhere(id: u64, method: &Method, daemon: Daemon) -> Self {
        let other = match method {
            Method::Decisions(_) | Method::Mirrors(_) => Daemon::Monitor,
            Method::NameSet(_)
            | Method::NameUnset(_)
            | Method::NameList(_)
            | Method::NameImport(_) => Daemon::Naming,
            _ => Daemon::Rewriter,
        };
        let message = format!(
            "{} doesn't answer `{}`; {} does, on its own socket, which is usually {}",
            daemon.program(),
            method.name(),
            other.program(),
            other.default_socket()
        );
        Self::error(Some(id), ErrorCode::UnknownMethod, message)
    }

    /// The answer as a line, `\n` included. In place of an answer longer than [`MAX_ANSWER_LINE`]
    /// stands a failure of the code [`ErrorCode::TooLarge`].
    pub fn to_line(&self) -> String {
        #[derive(Serialize)]
        struct Wire<'a> {
            v: u32,
            id: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            result: Option<&'a RawValue>,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<&'a Failure>,
        }

        let line = json_line(&Wire {
            v: PROTOCOL_VERSION,
            id: self.id,
            result: self.outcome.as_deref().ok(),
            error: self.outcome.as_ref().err(),
        });
        if line.len() <= MAX_ANSWER_LINE {
            return line;
        }
        let message = format!(
            "the answer has {} bytes, but a line may have only {MAX_ANSWER_LINE}",
            line.len()
        );
        Self::error(self.id, ErrorCode::TooLarge, message).to_line()
    }

    /// Reads an answer from its line, with or without the line end.
    ///
    /// # Errors
    /// Not JSON, not an answer, or one of another version of the protocol.
    pub fn from_line(line: &[u8]) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            v: u32,
            id: Option<u64>,
            #[serde(borrow)]
            result: Option<&'a RawValue>,
            error: Option<Failure>,
        }

        let wire: Wire<'_> = serde_json::from_slice(line)?;
        let invalid = |message: String| <serde_json::Error as serde::de::Error>::custom(message);
        if wire.v != PROTOCOL_VERSION {
            return Err(invalid(format!(
                "the answer is of protocol version {}; expected {PROTOCOL_VERSION}",
                wire.v
            )));
        }
        let outcome = match (wire.result, wire.error) {
            (Some(result), None) => Ok(result.to_owned()),
            (None, Some(failure)) => Err(failure),
            _ => return Err(invalid("expected either `result` or `error`".to_owned())),
        };
        Ok(Self {
            id: wire.id,
            outcome,
        })
    }

    /// The result, when there is one.
    ///
    /// # Errors
    /// The outer error is the daemon's failure; the inner one says that the result is not of this
    /// form.
    pub fn result<T: DeserializeOwned>(&self) -> Result<serde_json::Result<T>, &Failure> {
        self.outcome
            .as_ref()
            .map(|result| serde_json::from_str(result.get()))
    }
}

impl PartialEq for Answer {
    /// Results are equal when they are the same text.
    fn eq(&self, other: &Self) -> bool {
        let text = |answer: &Self| answer.outcome.clone().map(|result| result.get().to_owned());
        self.id == other.id && text(self) == text(other)
    }
}

impl Eq for Answer {}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Failure {
    /// What kind of reason it is, for programs.
    #[serde(deserialize_with = "known_code")]
    pub code: ErrorCode,
    /// The reason, for people. Its wording is no part of the protocol.
    pub message: String,
}

/// What kind of reason kept a request from being carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The line is no request: not UTF-8, not a JSON object, or its outer fields are wrong.
    Malformed,
    /// The request is longer than [`crate::MAX_LINE`], or the answer than [`MAX_ANSWER_LINE`].
    TooLarge,
    /// The request is of a version of the protocol that the daemon doesn't speak.
    UnsupportedVersion,
    /// There is no method of this name, or another daemon answers it.
    UnknownMethod,
    /// A parameter is unknown, missing, or has a wrong value.
    InvalidParams,
    /// The request is in order, but the daemon won't or can't do it.
    Refused,
    /// An automatic instruction about a service that is held ([`crate::Hold`]): nothing has changed.
    Held,
    /// The daemon failed. A [`Failure`] whose code is unknown is read as one of this code, since later
    /// versions of the daemon may have more.
    Internal,
}

words!(ErrorCode, "error code", "one of the codes of the protocol", {
    Malformed => "malformed",
    TooLarge => "too_large",
    UnsupportedVersion => "unsupported_version",
    UnknownMethod => "unknown_method",
    InvalidParams => "invalid_params",
    Refused => "refused",
    Held => "held",
    Internal => "internal",
});

/// Reads an error code; an unknown one is taken for [`ErrorCode::Internal`].
fn known_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorCode, D::Error> {
    let code = String::deserialize(deserializer)?;
    Ok(code.parse().unwrap_or(ErrorCode::Internal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_written_as_the_document_says_and_read_back() {
        let ok = Answer::ok(7, &crate::HoldResult { changed: false });
        assert_eq!(
            ok.to_line(),
            "{\"v\":1,\"id\":7,\"result\":{\"changed\":false}}\n"
        );
        assert_eq!(
            Answer::from_line(ok.to_line().as_bytes()).expect("an answer"),
            ok
        );

        let error = Answer::error(None, ErrorCode::TooLarge, "too long");
        assert_eq!(
            error.to_line(),
            "{\"v\":1,\"id\":null,\"error\":{\"code\":\"too_large\",\"message\":\"too long\"}}\n"
        );
        assert_eq!(
            Answer::from_line(error.to_line().as_bytes()).expect("an answer"),
            error
        );
    }

    #[test]
    fn a_method_of_another_daemon_is_told_from_one_that_there_is_not() {
        let decisions = Method::from(crate::DecisionsQuery::default());
        let failure = Answer::elsewhere(7, &decisions, Daemon::Rewriter)
            .outcome
            .expect_err("a failure");
        assert_eq!(failure.code, ErrorCode::UnknownMethod);
        assert_eq!(
            failure.message,
            "shuntd doesn't answer `decisions`; shunt-monitor does, on its own socket, which is usually \
             /run/shunt/monitor.sock"
        );
        let list = Method::from(crate::List {});
        let failure = Answer::elsewhere(7, &list, Daemon::Monitor)
            .outcome
            .expect_err("a failure");
        assert_eq!(
            failure.message,
            "shunt-monitor doesn't answer `list`; shuntd does, on its own socket, which is usually \
             /run/shunt/control.sock"
        );
    }

    #[test]
    fn answers_are_read_leniently_but_not_blindly() {
        let later = br#"{"v":1,"id":1,"took":3,"error":{"code":"busy","message":"no","see":"x"}}"#;
        let failure = Answer::from_line(later)
            .expect("an answer")
            .outcome
            .expect_err("a failure");
        assert_eq!(
            failure,
            Failure {
                code: ErrorCode::Internal,
                message: "no".to_owned()
            }
        );

        for (line, message) in [
            (
                r#"{"v":2,"id":1,"result":{}}"#,
                "the answer is of protocol version 2; expected 1",
            ),
            (r#"{"v":1,"id":1}"#, "expected either `result` or `error`"),
        ] {
            assert_eq!(
                Answer::from_line(line.as_bytes())
                    .expect_err(line)
                    .to_string(),
                message
            );
        }
    }

    #[test]
    fn an_answer_too_long_becomes_a_failure() {
        let answer = Answer::ok(7, &" ".repeat(MAX_ANSWER_LINE));
        assert_eq!(
            answer.to_line(),
            concat!(
                r#"{"v":1,"id":7,"error":{"code":"too_large","message":"the answer has 16777243 "#,
                r#"bytes, but a line may have only 16777216"}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_message_too_long_is_cut_between_characters() {
        let answer = Answer::error(None, ErrorCode::Refused, "é".repeat(MAX_MESSAGE + 1));
        let failure = answer.outcome.expect_err("a failure");
        assert_eq!(failure.message, "é".repeat(MAX_MESSAGE));
    }

    #[test]
    fn a_result_that_is_no_json_is_an_internal_error() {
        let result = std::collections::BTreeMap::from([((1, 2), 3)]);
        let failure = Answer::ok(7, &result)
            .outcome
            .expect_err("keys must be strings");
        assert_eq!(failure.code, ErrorCode::Internal);
    }
}
