//! Sorts clients into groups, so that each rule applies to whole groups.
//!
//! Take all the prefixes of all rules. For a client, let *p* be the longest that contains it. Then a
//! rule has the client if and only if one of its prefixes contains *p* as a whole:
//! - if the rule's prefix *q* contains the client, then *p* and *q* have the client in common. So they
//!   nest, and *p* is the longer one (or the same), so *q* contains *p*;
//! - if *q* contains *p*, it contains the client.
//!
//! So all clients that have the same *p* have the same rules, and the prefixes whose rules are the same
//! make a group. The rewriter too takes a client's most specific diversion. When each prefix of a group
//! becomes a diversion, every client gets the one of its own group.
//!
//! Of a prefix's rules only the *candidates* count: those that don't always come after another one that
//! holds whenever they do. A prefix whose candidates are those of the prefix around it is left out,
//! since the client may as well be found by that.
//! (Everyone's candidates never come back inside of a prefix that has others. What made the others
//! different there holds further inside as well, or gives way only to a rule that everyone doesn't
//! have.) So the group of everyone needs no prefixes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Rule;

/// All clients, sorted.
#[derive(Debug)]
pub(super) struct Sorted {
    /// The candidates of those in no prefix.
    pub everyone: Vec<usize>,
    /// The prefixes of each group, by its candidates.
    pub groups: BTreeMap<Vec<usize>, Vec<IpNet>>,
    /// The rules that never apply, each with those that always come first.
    pub hidden: BTreeMap<usize, BTreeSet<usize>>,
}

/// Sorts the clients by the rules that they have, which are named by their place in the list.
pub(super) fn sort(rules: &[Rule]) -> Sorted {
    let mut of_everyone = Vec::new();
    let mut by_prefix: BTreeMap<IpNet, Vec<usize>> = BTreeMap::new();
    for (number, rule) in rules.iter().enumerate() {
        match &rule.clients {
            None => of_everyone.push(number),
            Some(prefixes) => {
                for prefix in prefixes {
                    by_prefix.entry(*prefix).or_default().push(number);
                }
            }
        }
    }
    let mut picker = Picker {
        rules,
        applied: BTreeSet::new(),
        missed: BTreeMap::new(),
    };
    let everyone = picker.candidates(&of_everyone);
    let mut groups: BTreeMap<Vec<usize>, Vec<IpNet>> = BTreeMap::new();
    // The prefixes around the one that is looked at, the widest first. In the map's order they come
    // before what is in them.
    let mut around: Vec<Surrounding> = Vec::new();
    for (prefix, own) in by_prefix {
        while around
            .last()
            .is_some_and(|outer| !outer.prefix.contains(&prefix))
        {
            around.pop();
        }
        let (outer_rules, outer_candidates) =
            around.last().map_or((&of_everyone, &everyone), |outer| {
                (&outer.rules, &outer.candidates)
            });
        let mut rules: Vec<usize> = outer_rules.iter().copied().chain(own).collect();
        rules.sort_unstable();
        let candidates = picker.candidates(&rules);
        if candidates != *outer_candidates {
            groups.entry(candidates.clone()).or_default().push(prefix);
        }
        around.push(Surrounding {
            prefix,
            rules,
            candidates,
        });
    }
    Sorted {
        everyone,
        groups,
        hidden: picker.hidden(),
    }
}

/// A prefix around others, and the rules that it has.
struct Surrounding {
    prefix: IpNet,
    rules: Vec<usize>,
    candidates: Vec<usize>,
}

/// Picks candidates, and remembers which rules were never among them.
struct Picker<'a> {
    rules: &'a [Rule],
    /// Those that were a candidate.
    applied: BTreeSet<usize>,
    /// Those that once weren't, each with the ones that came first then.
    missed: BTreeMap<usize, BTreeSet<usize>>,
}

impl Picker<'_> {
    /// Of these rules, in order, those that don't always come after another.
    fn candidates(&mut self, rules: &[usize]) -> Vec<usize> {
        let when = |rule: usize| self.rules.get(rule).map(|rule| &rule.when);
        let mut candidates: Vec<usize> = Vec::new();
        for rule in rules {
            let first = candidates.iter().find(|earlier| {
                when(**earlier)
                    .zip(when(*rule))
                    .is_some_and(|(earlier, later)| earlier.cover(later))
            });
            match first {
                Some(first) => {
                    self.missed.entry(*rule).or_default().insert(*first);
                }
                None => {
                    self.applied.insert(*rule);
                    candidates.push(*rule);
                }
            }
        }
        candidates
    }

    fn hidden(self) -> BTreeMap<usize, BTreeSet<usize>> {
        let mut hidden = self.missed;
        hidden.retain(|rule, _| !self.applied.contains(rule));
        hidden
    }
}
