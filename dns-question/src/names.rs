//! A table of names, some of them wildcards.
//!
//! Looked up as RFC 4592 has it: a name that is listed itself comes first. Otherwise the wildcard below the
//! closest listed name above it counts, if there is one: with `www.bt.com` and `*.bt.com` listed,
//! `a.b.bt.com` finds the wildcard, and `a.www.bt.com` finds nothing. One thing is left out: a name that
//! is only there because a longer one is listed is not taken for listed.

use std::collections::HashMap;

use crate::name::{Lowered, WILDCARD, WireName};

/// Values by name. Keyed with random numbers, as clients choose what is looked up.
#[derive(Debug, Clone)]
pub struct Names<T> {
    exact: HashMap<Box<[u8]>, T, ahash::RandomState>,
    /// By the name behind `*.`.
    wildcards: HashMap<Box<[u8]>, T, ahash::RandomState>,
    /// Labels of the longest name in either, to spare the search above long names.
    most_labels: usize,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::default(),
            wildcards: HashMap::default(),
            most_labels: 0,
        }
    }
}

impl<T> Names<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcards.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcards.is_empty()
    }

    /// Lists a name, and gives what was listed by it before.
    pub fn insert(&mut self, name: &WireName, value: T) -> Option<T> {
        self.most_labels = self.most_labels.max(labels(name.as_bytes()));
        match name.wildcard_parent() {
            Some(parent) => self.wildcards.insert(parent.into(), value),
            None => self.exact.insert(name.as_bytes().into(), value),
        }
    }

    /// Lists a name no longer, and gives what was listed by it.
    pub fn remove(&mut self, name: &WireName) -> Option<T> {
        match name.wildcard_parent() {
            Some(parent) => self.wildcards.remove(parent),
            None => self.exact.remove(name.as_bytes()),
        }
    }

    /// What is listed by exactly this name; a wildcard's is listed by the wildcard.
    pub fn get(&self, name: &WireName) -> Option<&T> {
        match name.wildcard_parent() {
            Some(parent) => self.wildcards.get(parent),
            None => self.exact.get(name.as_bytes()),
        }
    }

    /// What is listed for the name of a question, as it stands there; upper and lower case are the same.
    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<&T> {
        let lowered = Lowered::new(name).ok()?;
        if let Some(value) = self.exact.get(lowered.as_bytes()) {
            return Some(value);
        }
        if self.wildcards.is_empty() {
            return None;
        }
        self.find_above(lowered.as_bytes())
    }

    fn is_listed(&self, name: &[u8]) -> bool {
        match name.strip_prefix(WILDCARD) {
            Some(parent) => self.wildcards.contains_key(parent),
            None => self.exact.contains_key(name),
        }
    }

    /// The wildcard below the closest listed name above this one.
    fn find_above(&self, name: &[u8]) -> Option<&T> {
        let mut above = parent(name);
        let mut left = above.map_or(0, labels);
        while let Some(name) = above {
            if left <= self.most_labels {
                if let Some(value) = self.wildcards.get(name) {
                    return Some(value);
                }
                if self.is_listed(name) {
                    return None;
                }
            }
            above = parent(name);
            left = left.saturating_sub(1);
        }
        None
    }
}

/// The name without its first label; `None` for the root.
fn parent(name: &[u8]) -> Option<&[u8]> {
    let length = *name.first()?;
    if length == 0 {
        return None;
    }
    name.get(1 + usize::from(length)..)
}

fn labels(name: &[u8]) -> usize {
    std::iter::successors(parent(name), |name| parent(name)).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> WireName {
        WireName::from_text(text).unwrap()
    }

    fn table(texts: &[&'static str]) -> Names<&'static str> {
        let mut names = Names::new();
        for text in texts {
            names.insert(&name(text), *text);
        }
        names
    }

    #[test]
    fn the_examples_of_rfc_4592() {
        // Section 2.2.1, without what is only there because of longer names.
        let names = table(&[
            "example",
            "*.example",
            "sub.*.example",
            "host1.example",
            "_ssh._tcp.host1.example",
            "subdel.example",
        ]);
        let find = |text: &str| names.find(name(text).as_bytes()).copied();
        assert_eq!(find("host3.example"), Some("*.example"));
        assert_eq!(find("foo.bar.example"), Some("*.example"));
        assert_eq!(find("host1.example"), Some("host1.example"));
        assert_eq!(find("_telnet._tcp.host1.example"), None);
        assert_eq!(find("host.subdel.example"), None);
        assert_eq!(find("sub.*.example"), Some("sub.*.example"));
        assert_eq!(find("*.example"), Some("*.example"));
        assert_eq!(find("example"), Some("example"));
        assert_eq!(find("other"), None);
        assert_eq!(find("."), None);
    }

    #[test]
    fn case_makes_no_difference() {
        let names = table(&["www.bt.com", "*.shunt.test"]);
        assert_eq!(names.find(b"\x03wWw\x02BT\x03com\0"), Some(&"www.bt.com"));
        assert_eq!(
            names.find(b"\x01a\x05SHUNT\x04test\0"),
            Some(&"*.shunt.test")
        );
    }

    #[test]
    fn what_is_removed_is_gone() {
        let mut names = table(&["www.bt.com", "*.bt.com"]);
        assert_eq!(names.len(), 2);
        assert_eq!(names.remove(&name("www.bt.com")), Some("www.bt.com"));
        assert_eq!(names.find(name("www.bt.com").as_bytes()), Some(&"*.bt.com"));
        assert_eq!(names.remove(&name("*.bt.com")), Some("*.bt.com"));
        assert!(names.is_empty());
        assert_eq!(names.find(name("www.bt.com").as_bytes()), None);
    }

    /// The same, slowly: every listed name by its text.
    fn find_slowly<'a>(listed: &'a BTreeMap<String, usize>, asked: &str) -> Option<&'a usize> {
        if let Some(value) = listed.get(asked) {
            return Some(value);
        }
        let mut above = asked;
        while let Some((_, rest)) = above.split_once('.') {
            if let Some(value) = listed.get(&format!("*.{rest}")) {
                return Some(value);
            }
            if listed.contains_key(rest) {
                return None;
            }
            above = rest;
        }
        None
    }

    proptest! {
        #[test]
        fn names_are_found_as_a_plain_model_finds_them(
            listed in prop::collection::vec("(\\*\\.)?([ab]\\.){0,3}c", 0..12),
            asked in prop::collection::vec("([ab*]\\.){0,4}[cd]", 20),
        ) {
            let mut names = Names::new();
            let mut model = BTreeMap::new();
            for (value, text) in listed.into_iter().enumerate() {
                names.insert(&name(&text), value);
                model.insert(text, value);
            }
            prop_assert_eq!(names.len(), model.len());
            for text in asked {
                prop_assert_eq!(names.find(name(&text).as_bytes()), find_slowly(&model, &text), "{}", text);
            }
        }
    }
}
