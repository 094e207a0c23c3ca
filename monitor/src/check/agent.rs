//! The check by an agent on the mirror, which says how it is in the words of HAProxy's agent check.
//!
//! The agent listens on a TCP port and answers each connection with one line of words, which are
//! separated by blanks or commas, in any order, in any case:
//!
//! | word | meaning |
//! |---|---|
//! | `75%` | this share of its weight |
//! | `up` | it is well |
//! | `down`, `failed`, `fail`, `stopped` | it isn't |
//! | `ready`, `drain`, `maint` | what is to be done with it |
//! | `maxconn:30` | the most connections at once |
//! | `#…` | the rest of the line is for people |
//!
//! What the agent doesn't mention stays as it was. Where words contradict each other the more cautious
//! one counts. Words of another language are ignored, and shown; a line without a known word says
//! nothing of the mirror, and neither does an agent that can't be reached (HAProxy configuration
//! manual, `agent-check`).

use std::str::FromStr;
use std::time::Instant;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::config::CheckError;
use super::fault::Fault;
use super::tcp::connect;
use super::text::first_line;
use super::{Asked, Finding, Verdict};

/// The most bytes of an agent's line.
const MAX_LINE: usize = 4096;

/// The most bytes that are sent to an agent.
const MAX_SEND: usize = 4096;

/// An agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Agent {
    /// What is sent to it first; the agent must expect it. HAProxy's `agent-send`.
    pub send: Option<String>,
}

/// What an agent said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentWords {
    /// Whether it is up; none if it said nothing of it.
    pub up: Option<bool>,
    /// What is to be done with it.
    pub wish: Option<AgentWish>,
    /// The share of its weight, in percent. It may be more than 100.
    pub weight_percent: Option<u32>,
    /// The most connections at once.
    pub max_connections: Option<u32>,
}

/// What an agent wishes to be done with its mirror; the later, the more cautious.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AgentWish {
    /// It takes connections as usual.
    Ready,
    /// It is to get no new connections.
    Drain,
    /// It is to get no connections.
    Maintenance,
}

impl Agent {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        match &self.send {
            Some(text) if text.len() > MAX_SEND => Err(CheckError::Value {
                field: "send",
                why: "at most 4096 bytes",
            }),
            _ => Ok(()),
        }
    }

    pub(super) async fn ask(&self, asked: &Asked) -> Result<Finding, Fault> {
        let began = Instant::now();
        let mut stream = connect(asked.address).await?;
        if let Some(text) = &self.send {
            stream
                .write_all(text.as_bytes())
                .await
                .map_err(Fault::io("send"))?;
        }
        let mut line = Vec::new();
        let mut limited = stream.take(MAX_LINE as u64);
        while !ends(&line) {
            let count = limited
                .read_buf(&mut line)
                .await
                .map_err(Fault::io("receive"))?;
            if count == 0 {
                break;
            }
        }
        let latency = began.elapsed();
        if line.len() == MAX_LINE && !ends(&line) {
            return Ok(Finding::unknown(format!(
                "the agent's line has no end within {MAX_LINE} bytes"
            )));
        }
        let line = first_line(&line);
        Ok(Finding {
            latency: Some(latency),
            ..understood(&line)
        })
    }
}

/// Whether `received` has a whole line that says something.
fn ends(received: &[u8]) -> bool {
    let text = received.trim_ascii_start();
    text.iter().any(|byte| matches!(byte, b'\n' | b'\r'))
}

fn understood(line: &str) -> Finding {
    match line.parse::<AgentWords>() {
        Ok(words) => Finding {
            agent: words,
            ..Finding::new(
                match words.up {
                    Some(true) => Verdict::Good,
                    Some(false) => Verdict::Bad,
                    None => Verdict::Same,
                },
                line,
            )
        },
        Err(NoAgentWord) if line.is_empty() => Finding::unknown("the agent said nothing"),
        Err(NoAgentWord) => Finding::unknown(format!("the agent said nothing known: {line}")),
    }
}

/// None of a line's words is one of an agent's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no word of an agent's")]
pub struct NoAgentWord;

impl FromStr for AgentWords {
    type Err = NoAgentWord;

    fn from_str(line: &str) -> Result<Self, NoAgentWord> {
        let (words, _description) = line.split_once('#').unwrap_or((line, ""));
        let mut said = Self::default();
        for word in words.split([' ', '\t', ',', '\r', '\n']) {
            match word.to_ascii_lowercase().as_str() {
                "up" => said.up = Some(said.up.unwrap_or(true)),
                "down" | "failed" | "fail" | "stopped" => said.up = Some(false),
                "ready" => said.wish = said.wish.max(Some(AgentWish::Ready)),
                "drain" => said.wish = said.wish.max(Some(AgentWish::Drain)),
                "maint" => said.wish = said.wish.max(Some(AgentWish::Maintenance)),
                other => {
                    if let Some(percent) = other.strip_suffix('%').and_then(number) {
                        said.weight_percent = Some(lowest(said.weight_percent, percent));
                    } else if let Some(most) = other.strip_prefix("maxconn:").and_then(number) {
                        said.max_connections = Some(lowest(said.max_connections, most));
                    }
                }
            }
        }
        if said == Self::default() {
            return Err(NoAgentWord);
        }
        Ok(said)
    }
}

/// A number of digits only.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn lowest(known: Option<u32>, new: u32) -> u32 {
    known.map_or(new, |known| known.min(new))
}
