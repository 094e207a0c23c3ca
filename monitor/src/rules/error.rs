//! Why rules can't be taken.

use std::fmt;

use thiserror::Error;

use super::suggestion::Suggestion;

/// Which rule, as people know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleLabel {
    /// Its place in the service's list, from 1.
    pub number: usize,
    /// Its name, if it has one.
    pub name: Option<String>,
}

impl RuleLabel {
    /// Its name, or `rule 2`.
    pub fn short(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for RuleLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}", self.number)?;
        match &self.name {
            Some(name) => write!(f, " (\"{name}\")"),
            None => Ok(()),
        }
    }
}

/// What is wrong with which rule.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{rule}: {problem}")]
pub struct RuleError {
    /// The rule.
    pub rule: RuleLabel,
    /// What is wrong.
    pub problem: RuleProblem,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum RuleProblem {
    /// Its name is empty, another rule's, or means something else.
    #[error("name: \"{name}\" is taken; rules need names of their own")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// `when` with neither days nor hours.
    #[error("when: needs days or hours; leave it out for a rule that always holds")]
    EmptyWhen,
    /// More than one of the kinds of rule.
    #[error("mirrors, shares and prefer exclude each other; choose one")]
    SeveralKinds,
    /// `overflow` or `overflow-at` where nothing is preferred.
    #[error("overflow and overflow-at mean nothing without prefer")]
    OverflowWithoutPrefer,
    /// A mirror that the service doesn't have.
    #[error("{list}: the service has no mirror \"{mirror}\"{suggestion}")]
    UnknownMirror {
        /// Where.
        list: MirrorList,
        /// The name.
        mirror: String,
        /// What was probably meant.
        suggestion: Suggestion,
    },
    /// A mirror is named twice in one list.
    #[error("{list}: mirror \"{mirror}\" is named twice")]
    MirrorTwice {
        /// Where.
        list: MirrorList,
        /// The name.
        mirror: String,
    },
    /// A share that is negative, absurdly great or no number.
    #[error("shares: {share} for \"{mirror}\" is no share; expected a number from 0 to 1e9")]
    BadShare {
        /// The mirror.
        mirror: String,
        /// The number.
        share: f64,
    },
    /// Every share is 0.
    #[error("shares: at least one must be more than 0")]
    NoShares,
    /// A mirror that is both preferred and for the rest.
    #[error("overflow: mirror \"{mirror}\" is preferred already")]
    PreferredOverflow {
        /// The name.
        mirror: String,
    },
    /// A percentage that can't be one of a capacity.
    #[error("overflow-at: {percent} is not a percentage above 0 and up to 100")]
    BadOverflowAt {
        /// The number.
        percent: f64,
    },
    /// Places are named, but there is no table of them.
    #[error(
        "location: needs a table of places; name it with locations = \"FILE\" at the top of the file"
    )]
    NoLocations,
    /// A place that isn't in the table.
    #[error("location: nobody is at \"{location}\" in the table of places{suggestion}")]
    UnknownLocation {
        /// The place.
        location: String,
        /// What was probably meant.
        suggestion: Suggestion,
    },
    /// The prefixes and the places have no client in common.
    #[error("from and location have no clients in common, so the rule would never apply")]
    NoClients,
    /// Too many diversions would be needed.
    #[error("its clients are {found} prefixes; {most} are the most for one rule")]
    TooManyPrefixes {
        /// How many there are, when adjacent ones are joined.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// Whenever it holds, for whomever, an earlier one does.
    #[error("it would never apply, since {} always comes first; put it before, or remove it", join(.earlier))]
    NeverApplies {
        /// The rules that come first.
        earlier: Vec<RuleLabel>,
    },
}

/// Where a rule names mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorList {
    /// `mirrors`
    Mirrors,
    /// `shares`
    Shares,
    /// `prefer`
    Prefer,
    /// `overflow`
    Overflow,
}

impl fmt::Display for MirrorList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mirrors => "mirrors",
            Self::Shares => "shares",
            Self::Prefer => "prefer",
            Self::Overflow => "overflow",
        })
    }
}

fn join(rules: &[RuleLabel]) -> String {
    let labels: Vec<String> = rules.iter().map(RuleLabel::to_string).collect();
    labels.join(" or ")
}
