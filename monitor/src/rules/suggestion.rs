//! "Did you mean …?" for names that aren't known.

use std::fmt;

/// The known name that a mistyped one is most like, if there is one. Its text is the end of a
/// sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suggestion(pub Option<String>);

impl Suggestion {
    /// Looks for a name of which at most a third was mistyped.
    pub fn closest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let unknown = unknown.to_lowercase();
        let tolerated = (unknown.chars().count() / 3).max(1);
        let closest = known
            .into_iter()
            .map(|name| {
                let distance = strsim::damerau_levenshtein(&unknown, &name.to_lowercase());
                (distance, name)
            })
            .filter(|(distance, _)| *distance <= tolerated)
            .min();
        Self(closest.map(|(_, name)| name.to_owned()))
    }
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "; did you mean \"{name}\"?"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_recognised_and_another_one_is_not() {
        let suggestion =
            |unknown| Suggestion::closest(unknown, ["london", "paris", "new-york"]).to_string();
        assert_eq!(suggestion("lodnon"), "; did you mean \"london\"?");
        assert_eq!(suggestion("LONDON"), "; did you mean \"london\"?");
        assert_eq!(suggestion("newyork"), "; did you mean \"new-york\"?");
        assert_eq!(suggestion("berlin"), "");
        assert_eq!(suggestion(""), "");
    }
}
