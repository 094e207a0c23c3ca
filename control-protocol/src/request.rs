//! Requests: reading one from a line, or saying why it can't be read, and writing one.
//!
//! Requests are read strictly, so that a typing error is never taken for something else: a field that
//! is unknown or comes twice is an error, and so is an array in place of an object.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::answer::{Answer, ErrorCode};
use crate::line::{MAX_LINE, PROTOCOL_VERSION, json_line};
use crate::method::Method;
use crate::text::excerpt;

/// What a client asks, with the number that its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client; the answer repeats it.
    pub id: u64,
    /// What is asked.
    pub method: Method,
}

impl Request {
    /// The request as a line, `\n` included. It may be longer than [`MAX_LINE`].
    pub fn to_line(&self) -> String {
        #[derive(Serialize)]
        struct Wire<'a> {
            v: u32,
            id: u64,
            #[serde(flatten)]
            method: &'a Method,
        }

        json_line(&Wire {
            v: PROTOCOL_VERSION,
            id: self.id,
            method: &self.method,
        })
    }
}

/// Reads a request from its line, with or without the line end. What is not a request gives the
/// answer to be sent instead, with the request's number wherever it could be read.
///
/// A server that stops reading a line at [`MAX_LINE`] + 1 bytes can pass on what it has: more than
/// [`MAX_LINE`] bytes are answered with [`ErrorCode::TooLarge`] unread.
///
/// # Errors
/// The answer that says what is wrong.
pub fn read_request(line: &[u8]) -> Result<Request, Answer> {
    if line.len() > MAX_LINE {
        let message = format!("the request is longer than {MAX_LINE} bytes");
        return Err(Answer::error(None, ErrorCode::TooLarge, message));
    }
    let fields = read_fields(line).map_err(|message| {
        Answer::error(
            None,
            ErrorCode::Malformed,
            format!("not a request: {message}"),
        )
    })?;
    let id = fields
        .once("id")
        .ok()
        .flatten()
        .and_then(|id| serde_json::from_str(id).ok());
    read_fielded(&fields, id).map_err(|(code, message)| Answer::error(id, code, message))
}

/// Reads a request from its outer fields; `id` is its number if there is a right one.
fn read_fielded(fields: &Fields<'_>, id: Option<u64>) -> Result<Request, (ErrorCode, String)> {
    let malformed = |message| (ErrorCode::Malformed, message);

    // The version comes first: a later one may have other fields.
    let version = fields.required("v").map_err(malformed)?;
    if serde_json::from_str::<u32>(version).ok() != Some(PROTOCOL_VERSION) {
        let message = format!(
            "`v` is {}; this daemon speaks version {PROTOCOL_VERSION}",
            excerpt(version)
        );
        return Err((ErrorCode::UnsupportedVersion, message));
    }
    fields
        .only(&["v", "id", "method", "params"])
        .map_err(malformed)?;
    let text = fields.required("id").map_err(malformed)?;
    let id = id.ok_or_else(|| {
        malformed(format!(
            "`id` is {}; expected a number from 0 to {}",
            excerpt(text),
            u64::MAX
        ))
    })?;
    let name = fields.required("method").map_err(malformed)?;
    let name: String = serde_json::from_str(name)
        .map_err(|_| malformed(format!("`method` is {}; expected a string", excerpt(name))))?;
    let params = match fields.once("params").map_err(malformed)? {
        None | Some("null") => "{}",
        Some(params) => params,
    };

    let invalid = |message| (ErrorCode::InvalidParams, message);
    if !params.starts_with('{') {
        return Err(invalid(format!(
            "`params` is {}; expected an object",
            excerpt(params)
        )));
    }
    match Method::read(&name, params) {
        Some(Ok(method)) => Ok(Request { id, method }),
        Some(Err(error)) => Err(invalid(without_position(&error))),
        None => {
            let message = format!(
                "there is no method \"{}\"; expected one of {}",
                excerpt(&name),
                Method::NAMES.join(", ")
            );
            Err((ErrorCode::UnknownMethod, message))
        }
    }
}

/// The outer fields of a request in the order they came, each with its value's JSON text.
struct Fields<'a>(Vec<(String, &'a str)>);

impl<'a> Fields<'a> {
    /// The field of this name if it is there; an error if it is there twice.
    fn once(&self, name: &str) -> Result<Option<&'a str>, String> {
        let mut found = self
            .0
            .iter()
            .filter(|(field, _)| field == name)
            .map(|(_, value)| *value);
        match (found.next(), found.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(format!("`{name}` is there twice")),
        }
    }

    /// The field of this name.
    fn required(&self, name: &str) -> Result<&'a str, String> {
        self.once(name)?
            .ok_or_else(|| format!("`{name}` is missing"))
    }

    /// That there are no fields but these.
    fn only(&self, names: &[&str]) -> Result<(), String> {
        match self
            .0
            .iter()
            .find(|(field, _)| !names.contains(&field.as_str()))
        {
            None => Ok(()),
            Some((field, _)) => Err(format!(
                "`{}` is unknown here; expected {}",
                excerpt(field),
                names.join(", ")
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push((name, value.get()));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Takes a line apart into its outer fields; the error is the end of a sentence.
fn read_fields(line: &[u8]) -> Result<Fields<'_>, String> {
    let text = std::str::from_utf8(line)
        .map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to() + 1))?;
    serde_json::from_str(text).map_err(|error| match error.classify() {
        // The line number is always 1, except at the very end of the line.
        Category::Syntax | Category::Eof => format!(
            "no JSON at byte {}: {}",
            error.column(),
            without_position(&error)
        ),
        Category::Data | Category::Io => without_position(&error),
    })
}

/// What the error says, without the line and column that `serde_json` puts behind it: the columns of
/// a part of a line would mislead.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    message
        .strip_suffix(&position)
        .unwrap_or(&message)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{ConnectionsQuery, Divert, List, Redirect, TcpMove, Version};

    fn refusal(line: &str) -> (Option<u64>, ErrorCode, String) {
        let answer = read_request(line.as_bytes()).expect_err(line);
        let failure = answer.outcome.expect_err("a refusal");
        (answer.id, failure.code, failure.message)
    }

    fn assert_refused(line: &str, id: Option<u64>, code: ErrorCode, message: &str) {
        assert_eq!(refusal(line), (id, code, message.to_owned()), "{line}");
    }

    #[test]
    fn a_request_is_written_as_the_document_says_and_read_back() {
        let request = Request {
            id: 7,
            method: Method::Divert(Divert {
                service: "10.1.0.1:80/tcp".parse().expect("a service"),
                mirrors: vec!["10.2.0.2:8080*3".parse().expect("a mirror")],
                from: Some("10.0.0.0/8".parse().expect("a prefix")),
                peek: None,
                automatic: false,
            }),
        };
        let line = request.to_line();
        assert_eq!(
            line,
            concat!(
                r#"{"v":1,"id":7,"method":"divert","params":{"service":"10.1.0.1:80/tcp","#,
                r#""mirrors":["10.2.0.2:8080*3"],"from":"10.0.0.0/8"}}"#,
                "\n"
            )
        );
        assert_eq!(read_request(line.as_bytes()), Ok(request));
    }

    #[test]
    fn what_is_absent_or_null_has_its_default() {
        let expected = Request {
            id: 0,
            method: Method::List(List {}),
        };
        for params in ["", r#","params":null"#, r#","params":{}"#] {
            let line = format!(r#"{{"v":1,"id":0,"method":"list"{params}}}"#);
            assert_eq!(
                read_request(line.as_bytes()).as_ref(),
                Ok(&expected),
                "{line}"
            );
        }

        let request = read_request(
            concat!(
                r#" {"id":1,"v":1,"method":"redirect","params":{"service":"10.1.0.1","#,
                r#""mirrors":["10.2.0.2"],"from":null,"tcp":null,"from_mirror":null}}"#,
                "\r\n"
            )
            .as_bytes(),
        );
        let redirect = Redirect {
            service: "10.1.0.1".parse().expect("a service"),
            mirrors: vec!["10.2.0.2".parse().expect("a mirror")],
            from: None,
            tcp: TcpMove::Splice,
            splice: crate::method::Splice::default(),
            from_mirror: None,
            share: None,
            automatic: false,
        };
        assert_eq!(
            request,
            Ok(Request {
                id: 1,
                method: redirect.into()
            })
        );

        let request =
            read_request(br#"{"v":1,"id":1,"method":"connections","params":{"limit":null}}"#);
        let method = ConnectionsQuery::default().into();
        assert_eq!(request, Ok(Request { id: 1, method }));
    }

    #[test]
    fn what_is_no_json_object_is_malformed() {
        use ErrorCode::Malformed;
        for (line, message) in [
            (
                "",
                "not a request: no JSON at byte 0: EOF while parsing a value",
            ),
            ("list", "not a request: no JSON at byte 1: expected value"),
            (
                r#"{"v":1"#,
                "not a request: no JSON at byte 6: EOF while parsing an object",
            ),
            (
                "{} {}",
                "not a request: no JSON at byte 4: trailing characters",
            ),
            (
                "[1]",
                "not a request: invalid type: sequence, expected an object",
            ),
            (
                "7",
                "not a request: invalid type: integer `7`, expected an object",
            ),
        ] {
            assert_refused(line, None, Malformed, message);
        }
        let answer = read_request(b"{\"v\":1,\xff}").expect_err("not UTF-8");
        let failure = answer.outcome.expect_err("a refusal");
        assert_eq!(failure.message, "not a request: byte 8 is not UTF-8");
    }

    #[test]
    fn wrong_outer_fields_are_malformed() {
        use ErrorCode::Malformed;
        for (line, id, message) in [
            ("{}", None, "`v` is missing"),
            (r#"{"v":1,"method":"list"}"#, None, "`id` is missing"),
            (
                r#"{"v":1,"id":-1,"method":"list"}"#,
                None,
                "`id` is -1; expected a number from 0 to 18446744073709551615",
            ),
            (
                r#"{"v":1,"id":1,"id":2,"method":"list"}"#,
                None,
                "`id` is there twice",
            ),
            (r#"{"v":1,"id":3}"#, Some(3), "`method` is missing"),
            (
                r#"{"v":1,"id":3,"method":4}"#,
                Some(3),
                "`method` is 4; expected a string",
            ),
            (
                r#"{"v":1,"id":3,"method":"list","parms":{}}"#,
                Some(3),
                "`parms` is unknown here; expected v, id, method, params",
            ),
            (
                r#"{"v":1,"id":3,"method":"list","params":{},"params":{}}"#,
                Some(3),
                "`params` is there twice",
            ),
        ] {
            assert_refused(line, id, Malformed, message);
        }
    }

    #[test]
    fn another_version_is_named_before_anything_else() {
        for version in ["2", "0", "\"1\"", "1.0", "null"] {
            let line = format!(r#"{{"v":{version},"id":3,"verb":"list"}}"#);
            let shown = excerpt(version);
            assert_refused(
                &line,
                Some(3),
                ErrorCode::UnsupportedVersion,
                &format!("`v` is {shown}; this daemon speaks version 1"),
            );
        }
    }

    #[test]
    fn an_unknown_method_is_answered_with_the_known_ones() {
        assert_refused(
            r#"{"v":1,"id":3,"method":"delete"}"#,
            Some(3),
            ErrorCode::UnknownMethod,
            "there is no method \"delete\"; expected one of divert, redirect, redirects, \
             restore, peek_names, hold, release, list, connections, stats, watch, liveness, decisions, mirrors, \
             name_set, name_unset, name_list, name_import, version",
        );
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (method, params, message) in [
            (
                "name_set",
                r#"{"name":"www.bt.com","adresses":["10.2.0.3"]}"#,
                "unknown field `adresses`",
            ),
            (
                "name_set",
                r#"{"name":"www.bt.com","ttl":604801}"#,
                "`ttl` is 604801; expected a number from 0 to 604800, which is a week",
            ),
            ("divert", "[]", "`params` is []; expected an object"),
            ("divert", "{}", "missing field `service`"),
            (
                "divert",
                r#"{"service":"10.1.0.1"}"#,
                "missing field `mirrors`",
            ),
            (
                "divert",
                r#"{"service":"10.1.0.1","mirrors":[]}"#,
                "`mirrors` is empty; expected at least one mirror",
            ),
            (
                "divert",
                r#"{"service":"10.1.0.1","mirrors":["10.2.0.2:0"]}"#,
                "\"0\" is not a port; expected a number from 1 to 65535",
            ),
            (
                "divert",
                r#"{"service":1}"#,
                "invalid type: integer `1`, expected a service such as \"10.1.0.1:80/tcp\"",
            ),
            (
                "divert",
                r#"{"service":"10.1.0.1","mirrors":["10.2.0.2"],"form":"10.0.0.0/8"}"#,
                "unknown field `form`, expected one of `service`, `mirrors`, `from`, `peek`, `automatic`",
            ),
            (
                "redirect",
                r#"{"service":"10.1.0.1","mirrors":["10.2.0.2"],"share":101}"#,
                "\"101\" is not a percentage; expected a number from 1 to 100",
            ),
            (
                "decisions",
                r#"{"limit":1001}"#,
                "`limit` is 1001; expected a number from 1 to 1000",
            ),
            (
                "restore",
                r#"{"service":"10.1.0.1","service":"10.1.0.2"}"#,
                "duplicate field `service`",
            ),
            (
                "list",
                r#"{"all":true}"#,
                "unknown field `all`, there are no fields",
            ),
            (
                "connections",
                r#"{"limit":0}"#,
                "`limit` is 0; expected a number from 1 to 1000",
            ),
            (
                "connections",
                r#"{"limit":1001}"#,
                "`limit` is 1001; expected a number from 1 to 1000",
            ),
        ] {
            let line = format!(r#"{{"v":1,"id":3,"method":"{method}","params":{params}}}"#);
            assert_refused(&line, Some(3), ErrorCode::InvalidParams, message);
        }
    }

    #[test]
    fn a_request_may_have_exactly_the_longest_length() {
        let request = Request {
            id: 1,
            method: Version {}.into(),
        };
        let mut line = request.to_line();
        line.insert_str(0, &" ".repeat(MAX_LINE - line.len()));
        assert_eq!(read_request(line.as_bytes()), Ok(request));
        line.insert(0, ' ');
        assert_refused(
            &line,
            None,
            ErrorCode::TooLarge,
            "the request is longer than 1048576 bytes",
        );
    }
}
