//! The check by a metric: what a Prometheus endpoint on the mirror says of its load.
//!
//! The endpoint is scraped, and the series with the given name and at least the given labels are
//! looked for in what it answers, line by line (Prometheus, "Exposition formats"). A metric that is
//! missing, isn't a finite number or is negative is *unknown*, never a load of zero: a mirror whose
//! exporter is broken must not look idle. The same goes for an endpoint that can't be had.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use hyper::Method;
use hyper::http::uri::{Authority, PathAndQuery};
use serde::Deserialize;

use super::config::CheckError;
use super::fault::Fault;
use super::http::{Exchange, authority, check_headers, check_host, check_tls_fields, request, yes};
use super::text::parsed;
use super::{Asked, Finding, Verdict};

/// The most bytes that are read of an endpoint's metrics.
const MAX_METRICS: usize = 16 * 1024 * 1024;

/// The longest line that is looked at; of a longer one the rest is ignored.
const MAX_LINE: usize = 64 * 1024;

/// A metric, and what it means.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Prometheus {
    /// The endpoint's path, and query if it has one.
    #[serde(default = "metrics_path", deserialize_with = "parsed")]
    pub path: PathAndQuery,
    /// The metric's name.
    pub metric: String,
    /// Labels that a series must have; it may have more.
    #[serde(default)]
    pub labels: Labels,
    /// What becomes of several series.
    #[serde(default)]
    pub combine: Combine,
    /// The value that is a load of 1.0.
    pub full: f64,
    /// A greater value is bad. Without it the metric tells the load only.
    pub max: Option<f64>,
    /// What goes into the Host header, and without its port into TLS; the mirror's address otherwise.
    #[serde(default, deserialize_with = "authority")]
    pub host: Option<Authority>,
    /// Further headers of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Whether to speak TLS.
    #[serde(default)]
    pub tls: bool,
    /// Whether the certificate must be valid.
    #[serde(default = "yes")]
    pub verify: bool,
    /// A PEM file of the authorities to believe, instead of this host's.
    pub ca: Option<PathBuf>,
}

fn metrics_path() -> PathAndQuery {
    PathAndQuery::from_static("/metrics")
}

/// Labels of a series, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

/// What becomes of several series that match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// They are added up.
    #[default]
    Sum,
    /// The greatest counts.
    Max,
}

impl Prometheus {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        let mut characters = self.metric.chars();
        let first = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | ':');
        let named = characters.next().is_some_and(first)
            && characters.all(|c| first(c) || c.is_ascii_digit());
        if !named {
            return Err(CheckError::Value {
                field: "metric",
                why: "a name has letters, digits, _ and : only, and doesn't begin with a digit",
            });
        }
        if !(self.full.is_finite() && self.full > 0.0) {
            return Err(CheckError::Value {
                field: "full",
                why: "must be a number greater than 0",
            });
        }
        if self.max.is_some_and(|max| !(max.is_finite() && max >= 0.0)) {
            return Err(CheckError::Value {
                field: "max",
                why: "must be a number, 0 or greater",
            });
        }
        check_host(self.host.as_ref())?;
        check_headers(&self.headers)?;
        check_tls_fields(self.tls, self.verify, self.ca.is_some())
    }

    pub(super) async fn ask(&self, asked: &Asked) -> Result<Finding, Fault> {
        let began = Instant::now();
        let host = self.host.as_ref();
        let request = request(&Method::GET, &self.path, host, &self.headers, asked)?;
        let mut exchange = Exchange::begin(request, host, asked).await?;
        let latency = began.elapsed();
        let status = exchange.answer.status();
        if status != hyper::StatusCode::OK {
            return Ok(Finding::unknown(format!(
                "status {} instead of metrics",
                status.as_u16()
            )));
        }
        let selector = Selector {
            metric: &self.metric,
            labels: &self.labels,
            combine: self.combine,
        };
        let mut scan = Scan::new(selector);
        let mut length = 0;
        while let Some(piece) = exchange.next_piece().await? {
            length += piece.len();
            if length > MAX_METRICS {
                return Ok(Finding::unknown("more than 16 MiB of metrics"));
            }
            scan.feed(&piece);
        }
        Ok(Finding {
            latency: Some(latency),
            ..self.judge(scan.finish())
        })
    }

    fn judge(&self, reading: Reading) -> Finding {
        let metric = &self.metric;
        let value = match reading {
            Reading::Value(value) if value >= 0.0 && value.is_finite() => value,
            Reading::Value(value) => {
                return Finding::unknown(format!("{metric} is {value}, which is no load"));
            }
            Reading::Malformed(line) => {
                return Finding::unknown(format!("{metric} has no number: {line}"));
            }
            Reading::Missing => return Finding::unknown(format!("{metric} is missing")),
        };
        let load = value / self.full;
        let (verdict, detail) = match self.max {
            Some(max) if value > max => (
                Verdict::Bad,
                format!("{metric} is {value}, more than {max}; load {load:.2}"),
            ),
            _ => (
                Verdict::Good,
                format!("{metric} is {value}; load {load:.2}"),
            ),
        };
        Finding {
            load: Some(load),
            ..Finding::new(verdict, detail)
        }
    }
}

/// Which series are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Selector<'a> {
    /// The metric's name.
    pub metric: &'a str,
    /// The labels that they have at least.
    pub labels: &'a Labels,
    /// What becomes of several.
    pub combine: Combine,
}

/// What was found of the series.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// There is none.
    Missing,
    /// A line of one can't be read, or its value isn't a finite number.
    Malformed(String),
    /// Their value together.
    Value(f64),
}

/// Looks for series in metrics that come piece by piece.
#[derive(Debug)]
pub struct Scan<'a> {
    selector: Selector<'a>,
    /// The line that isn't whole yet, as far as it is looked at.
    line: Vec<u8>,
    reading: Reading,
}

impl<'a> Scan<'a> {
    /// Begins with nothing found.
    pub fn new(selector: Selector<'a>) -> Self {
        Self {
            selector,
            line: Vec::new(),
            reading: Reading::Missing,
        }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.extend_line(&piece[..end]);
            self.end_line(true);
            piece = &piece[end + 1..];
        }
        self.extend_line(piece);
    }

    /// What was found. A line without its end may be half a number, so it counts as malformed.
    pub fn finish(mut self) -> Reading {
        self.end_line(false);
        self.reading
    }

    fn extend_line(&mut self, bytes: &[u8]) {
        let room = MAX_LINE - self.line.len();
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_line(&mut self, whole: bool) {
        let metric = self.selector.metric.as_bytes();
        if !self.line.trim_ascii_start().starts_with(metric) {
            self.line.clear();
            return;
        }
        let text = String::from_utf8_lossy(&self.line);
        let sample = match self.selector.read(&text) {
            Some(Ok(value)) if whole => Some(Ok(value)),
            None => None,
            _ => Some(Err(text.chars().take(100).collect())),
        };
        self.line.clear();
        match (&self.reading, sample) {
            (_, None) | (Reading::Malformed(_), _) => {}
            (_, Some(Err(line))) => self.reading = Reading::Malformed(line),
            (Reading::Missing, Some(Ok(value))) => self.reading = Reading::Value(value),
            (Reading::Value(known), Some(Ok(value))) => {
                self.reading = Reading::Value(match self.selector.combine {
                    Combine::Sum => known + value,
                    Combine::Max => known.max(value),
                });
            }
        }
    }
}

/// A line of one of the series, but not such as it should be.
struct BadLine;

impl Selector<'_> {
    /// The value on `line`, if it is of one of the series: `name{label="value",…} value [timestamp]`.
    fn read(&self, line: &str) -> Option<Result<f64, BadLine>> {
        let rest = line.trim_start().strip_prefix(self.metric)?;
        let after = rest.trim_start();
        let (has_all, rest) = match after.strip_prefix('{') {
            Some(labels) => match self.read_labels(labels) {
                Ok(read) => read,
                Err(error) => return Some(Err(error)),
            },
            // The name may go on: it is another metric's.
            None if after.len() == rest.len() && !rest.is_empty() => return None,
            None => (self.labels.0.is_empty(), after),
        };
        if !has_all {
            return None;
        }
        let value = rest.split_whitespace().next().unwrap_or_default();
        let value: Option<f64> = value.parse().ok();
        Some(value.filter(|value| value.is_finite()).ok_or(BadLine))
    }

    /// Whether the labels at the beginning of `text` are enough, and what follows them.
    fn read_labels<'t>(&self, mut text: &'t str) -> Result<(bool, &'t str), BadLine> {
        let mut found = 0;
        loop {
            text = text.trim_start();
            if let Some(rest) = text.strip_prefix('}') {
                return Ok((found == self.labels.0.len(), rest));
            }
            let (name, rest) = text.split_once('=').ok_or(BadLine)?;
            let quoted = rest.trim_start().strip_prefix('"').ok_or(BadLine)?;
            let (value, rest) = unquote(quoted).ok_or(BadLine)?;
            if self.labels.0.get(name.trim_end()) == Some(&value) {
                found += 1;
            }
            text = rest.trim_start();
            text = match text.strip_prefix(',') {
                Some(rest) => rest,
                None if text.starts_with('}') => text,
                None => return Err(BadLine),
            };
        }
    }
}

/// The value up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}
