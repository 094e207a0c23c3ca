//! What was decided, why, and the orders that carry it out.

use std::fmt;
use std::time::Duration;

use control_protocol::{ClientPrefix, Mirror as Weighted, MirrorAddress, Service};

use crate::assign::Shares;

/// The sum of a diversion's weights.
const WEIGHTS: f64 = 1000.0;

/// Why something is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A service gets its first diversion.
    Start,
    /// A mirror is dead.
    Failover,
    /// A mirror is to be emptied.
    Drain,
    /// A mirror comes back.
    Recover,
    /// A mirror's agent wants another part of its usual load.
    Agent,
    /// The rules say otherwise than before.
    Rule,
    /// The rules prefer some mirrors, and the load has changed.
    Preference,
    /// New connections are shared out otherwise.
    Weights,
    /// Existing connections are moved as well.
    Redirect,
    /// A mirror that was slow is looked at again.
    Trial,
    /// Nothing is done, though it looks as if something should be.
    None,
}

impl Kind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Failover => "failover",
            Self::Drain => "drain",
            Self::Recover => "recover",
            Self::Agent => "agent",
            Self::Rule => "rule",
            Self::Preference => "preference",
            Self::Weights => "weights",
            Self::Redirect => "redirect",
            Self::Trial => "trial",
            Self::None => "none",
        }
    }

    /// Whether it can't wait for the service to settle, so that it may undo what was decided just before.
    pub const fn is_urgent(self) -> bool {
        matches!(
            self,
            Self::Start | Self::Failover | Self::Drain | Self::Agent | Self::Rule
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that was decided for a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Its number, from 1 on.
    pub number: u64,
    /// When, by the caller's clock.
    pub at: Duration,
    /// For which service, by its index.
    pub service: usize,
    /// Why, in a word.
    pub kind: Kind,
    /// Why, in a sentence.
    pub reason: String,
    /// What changes.
    pub changes: Vec<Change>,
    /// The mean response time in seconds that the model promises, before and after.
    pub cost: Option<(f64, f64)>,
    /// What is to be done about it.
    pub orders: Vec<Order>,
}

/// What changes for a group of clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which, by its index.
    pub group: usize,
    /// Where its requests went before, by mirror.
    pub from: Shares,
    /// Where they are to go.
    pub to: Shares,
}

/// What a rewriter is told: the same to each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What is diverted.
    pub service: Service,
    /// For which clients.
    pub from: Option<ClientPrefix>,
    /// Where to.
    pub mirrors: Vec<Weighted>,
    /// What becomes of existing connections.
    pub action: Action,
}

/// What becomes of existing connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// They stay.
    Stay,
    /// Some leave a mirror, as they can be spliced.
    Leave {
        /// Which mirror.
        mirror: MirrorAddress,
        /// How many in a hundred; none: all.
        percent: Option<u8>,
        /// For how long they may wait for a good moment.
        within: Duration,
        /// Whether those that couldn't be spliced by then, or can't be, are reset.
        or_reset: bool,
    },
    /// They leave a mirror that is dead.
    Flee(MirrorAddress),
}

/// Shares as weights: the mirrors that get any, in whole thousandths, none so little that it gets nothing.
pub(super) fn weights(shares: &[f64], addresses: &[Option<MirrorAddress>]) -> Vec<Weighted> {
    shares
        .iter()
        .zip(addresses)
        .filter(|(share, _)| **share > 1e-6)
        .filter_map(|(share, address)| {
            let address = (*address)?;
            let weight = (share * WEIGHTS).round().clamp(1.0, WEIGHTS);
            Some(Weighted {
                address: address.address,
                port: address.port,
                weight: weight as u16,
            })
        })
        .collect()
}

impl Order {
    /// As a person would give it.
    pub fn words(&self) -> String {
        let from = self
            .from
            .map_or(String::new(), |from| format!(" --from {from}"));
        let mirrors: Vec<String> = self.mirrors.iter().map(ToString::to_string).collect();
        let (verb, how) = match &self.action {
            Action::Stay => ("divert", String::new()),
            Action::Leave {
                mirror,
                percent,
                within,
                or_reset,
            } => {
                let share = percent.map_or(String::new(), |share| format!(" --share {share}%"));
                let reset = if *or_reset {
                    " --then reset --otherwise reset"
                } else {
                    ""
                };
                let within = humantime::format_duration(*within);
                (
                    "redirect",
                    format!(" --from-mirror {mirror}{share} --within {within}{reset}"),
                )
            }
            Action::Flee(mirror) => ("redirect", format!(" --from-mirror {mirror} --now")),
        };
        format!("{verb} {} {}{from}{how}", self.service, mirrors.join(" "))
    }
}
