//! The check by an HTTP(S) request: a mirror is well if it answers with the right status, and perhaps
//! the right text, soon enough.
//!
//! HTTP/1.1, a new connection each time, closed after the answer. At most 64 KiB of an answer's head
//! and 1 MiB of its body are read, and of the body no more than it takes to find the text.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::config::CheckError;
use super::fault::Fault;
use super::tcp::connect;
use super::text::{contains, parsed};
use super::{Asked, Finding};

/// The most bytes of an answer's head.
const MAX_HEAD: usize = 64 * 1024;

/// The most bytes of an answer's body in which a text is looked for.
const MAX_BODY: usize = 1024 * 1024;

/// An HTTP(S) request and what is expected of the answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Http {
    /// The request's method.
    #[serde(default = "get", deserialize_with = "parsed")]
    pub method: Method,
    /// The request's path, and query if it has one.
    #[serde(default = "root", deserialize_with = "parsed")]
    pub path: PathAndQuery,
    /// What goes into the Host header, and without its port into TLS; the mirror's address otherwise.
    #[serde(default, deserialize_with = "authority")]
    pub host: Option<Authority>,
    /// Further headers of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The statuses that are good.
    #[serde(default)]
    pub status: StatusRanges,
    /// A text that the first MiB of the body must have.
    pub body: Option<String>,
    /// A slower answer is bad.
    #[serde(default, with = "humantime_serde")]
    pub max_latency: Option<Duration>,
    /// Whether to speak TLS.
    #[serde(default)]
    pub tls: bool,
    /// Whether the certificate must be valid.
    #[serde(default = "yes")]
    pub verify: bool,
    /// A PEM file of the authorities to believe, instead of this host's.
    pub ca: Option<PathBuf>,
}

fn get() -> Method {
    Method::GET
}

pub(super) fn root() -> PathAndQuery {
    PathAndQuery::from_static("/")
}

pub(super) fn yes() -> bool {
    true
}

pub(super) fn authority<'de, D>(deserializer: D) -> Result<Option<Authority>, D::Error>
where
    D: Deserializer<'de>,
{
    parsed(deserializer).map(Some)
}

impl Http {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        if self.method == Method::CONNECT {
            return Err(CheckError::Value {
                field: "method",
                why: "CONNECT asks for a tunnel, which is no check",
            });
        }
        if self.method == Method::HEAD && self.body.is_some() {
            return Err(CheckError::Value {
                field: "body",
                why: "the answer to HEAD has none",
            });
        }
        check_host(self.host.as_ref())?;
        check_headers(&self.headers)?;
        check_tls_fields(self.tls, self.verify, self.ca.is_some())
    }

    pub(super) async fn ask(&self, asked: &Asked) -> Result<Finding, Fault> {
        let began = Instant::now();
        let request = request(
            &self.method,
            &self.path,
            self.host.as_ref(),
            &self.headers,
            asked,
        )?;
        let mut exchange = Exchange::begin(request, self.host.as_ref(), asked).await?;
        let latency = began.elapsed();
        let status = exchange.answer.status();
        if !self.status.contains(status.as_u16()) {
            return Ok(Finding::bad(format!(
                "status {}, expected {}",
                status.as_u16(),
                self.status
            )));
        }
        if let Some(wanted) = &self.body
            && !exchange.body_has(wanted.as_bytes()).await?
        {
            return Ok(Finding::bad(format!(
                "status {}, but the body has no {wanted:?}",
                status.as_u16()
            )));
        }
        match self.max_latency {
            Some(most) if latency > most => Ok(Finding::bad(format!(
                "status {}, but after {latency:.0?}; expected within {most:?}",
                status.as_u16()
            ))),
            _ => Ok(Finding::good(
                latency,
                format!("status {}", status.as_u16()),
            )),
        }
    }
}

pub(super) fn check_host(host: Option<&Authority>) -> Result<(), CheckError> {
    let Some(host) = host else { return Ok(()) };
    if host.as_str().contains('@') || tls_name(host).is_none() {
        return Err(CheckError::Value {
            field: "host",
            why: "expected a name or an address, perhaps with a port",
        });
    }
    Ok(())
}

/// The name that `host` has for TLS.
fn tls_name(host: &Authority) -> Option<ServerName<'static>> {
    ServerName::try_from(host.host().trim_matches(['[', ']']).to_owned()).ok()
}

pub(super) fn check_headers(headers: &BTreeMap<String, String>) -> Result<(), CheckError> {
    for (name, value) in headers {
        let known: Result<header::HeaderName, _> = name.parse();
        let framing = [
            header::HOST,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
        ];
        if known.is_err() || value.parse::<header::HeaderValue>().is_err() {
            return Err(CheckError::Value {
                field: "headers",
                why: "names must be tokens, and values without control characters",
            });
        }
        if known.is_ok_and(|name| framing.contains(&name)) {
            return Err(CheckError::Value {
                field: "headers",
                why: "Host is set by `host`; Connection, Content-Length and Transfer-Encoding are ours",
            });
        }
    }
    Ok(())
}

pub(super) fn check_tls_fields(tls: bool, verify: bool, ca: bool) -> Result<(), CheckError> {
    let needs_tls = |field| CheckError::Needs {
        field,
        needs: "tls = true",
    };
    if ca && !tls {
        return Err(needs_tls("ca"));
    }
    if !verify && !tls {
        return Err(needs_tls("verify"));
    }
    if ca && !verify {
        return Err(CheckError::Exclusive {
            one: "ca",
            other: "verify = false",
        });
    }
    Ok(())
}

/// A request without a body, after which the connection is to be closed.
pub(super) fn request(
    method: &Method,
    path: &PathAndQuery,
    host: Option<&Authority>,
    headers: &BTreeMap<String, String>,
    asked: &Asked,
) -> Result<Request<Empty<Bytes>>, Fault> {
    let host = host.map_or_else(|| asked.address.to_string(), Authority::to_string);
    let mut request = Request::builder()
        .method(method)
        .uri(path.as_str())
        .header(header::HOST, host)
        .header(header::CONNECTION, "close");
    let names_agent = headers
        .keys()
        .any(|name| name.eq_ignore_ascii_case(header::USER_AGENT.as_str()));
    if !names_agent {
        request = request.header(header::USER_AGENT, "shunt-monitor");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    Ok(request.body(Empty::new())?)
}

/// A request that has been answered, as far as the head.
pub(super) struct Exchange {
    /// The answer, its body still to come.
    pub(super) answer: Response<Incoming>,
    /// What moves the connection's bytes; it ends with the exchange.
    _connection: JoinSet<()>,
}

impl Exchange {
    /// Connects, sends `request`, and waits for the head of the answer.
    pub(super) async fn begin(
        request: Request<Empty<Bytes>>,
        host: Option<&Authority>,
        asked: &Asked,
    ) -> Result<Self, Fault> {
        let stream = connect(asked.address).await?;
        match &asked.tls {
            None => Self::over(stream, request).await,
            Some(connector) => {
                let stream = handshake(connector, host, asked, stream).await?;
                Self::over(stream, request).await
            }
        }
    }

    async fn over<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Self, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Fault::Http)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // What goes wrong is told to whoever waits for the answer.
            let _ = connection.await;
        });
        let answer = sender.send_request(request).await.map_err(Fault::Http)?;
        Ok(Self {
            answer,
            _connection: tasks,
        })
    }

    /// The next piece of the body; none at its end.
    pub(super) async fn next_piece(&mut self) -> Result<Option<Bytes>, Fault> {
        while let Some(frame) = self.answer.body_mut().frame().await {
            if let Ok(piece) = frame.map_err(Fault::Http)?.into_data() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Whether the first MiB of the body has `wanted`.
    async fn body_has(&mut self, wanted: &[u8]) -> Result<bool, Fault> {
        let mut body = Vec::new();
        while body.len() < MAX_BODY {
            let Some(piece) = self.next_piece().await? else {
                break;
            };
            // It may have begun in the piece before.
            let from = body.len().saturating_sub(wanted.len());
            body.extend_from_slice(&piece);
            body.truncate(MAX_BODY);
            if contains(&body[from..], wanted) {
                return Ok(true);
            }
        }
        Ok(contains(&body, wanted))
    }
}

async fn handshake<S>(
    connector: &TlsConnector,
    host: Option<&Authority>,
    asked: &Asked,
    stream: S,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<S>, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let name = host
        .and_then(tls_name)
        .unwrap_or_else(|| ServerName::from(asked.address.ip()));
    connector
        .connect(name, stream)
        .await
        .map_err(Fault::io("TLS"))
}

/// Statuses of HTTP that are good; from 200 to 399 unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRanges(Vec<RangeInclusive<u16>>);

impl StatusRanges {
    /// Whether `status` is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for StatusRanges {
    fn default() -> Self {
        Self(vec![200..=399])
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match range.start() == range.end() {
                true => write!(f, "{}", range.start())?,
                false => write!(f, "{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for StatusRanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(Part),
            Many(Vec<Part>),
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Part {
            Number(u16),
            Text(String),
        }

        let wrong = || {
            serde::de::Error::custom(
                "expected a status from 100 to 599 such as 200, a range such as \"200-299\", or a \
                 list of these",
            )
        };
        let parts = match OneOrMany::deserialize(deserializer).map_err(|_| wrong())? {
            OneOrMany::One(part) => vec![part],
            OneOrMany::Many(parts) => parts,
        };
        let mut ranges = Vec::new();
        for part in parts {
            let (first, last) = match part {
                Part::Number(status) => (status, status),
                Part::Text(text) => {
                    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
                    let number = |text: &str| text.trim().parse().map_err(|_| wrong());
                    (number(first)?, number(last)?)
                }
            };
            if first < 100 || first > last || last > 599 {
                return Err(wrong());
            }
            ranges.push(first..=last);
        }
        if ranges.is_empty() {
            return Err(wrong());
        }
        Ok(Self(ranges))
    }
}
