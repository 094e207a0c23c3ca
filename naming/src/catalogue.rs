//! The listed names as they were told: what the control socket shows, what the state file keeps, and what the
//! workers' table is made from.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use control_protocol::{
    DomainName, MAX_PAGE, NameInfo, NameList, NameListResult, NameRecords, NameSet,
};
use dns_question::{NameError, WireName};
use thiserror::Error;

use crate::records::{RecordError, read_records};
use crate::table::{Entry, EntryError, Table};

/// The most names. Each change writes them all to the disk.
pub const MAX_NAMES: usize = 100_000;

/// Why a name can't be listed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// A record's text is wrong.
    #[error("{name}: {error}")]
    Record {
        /// The name.
        name: DomainName,
        /// What is wrong.
        error: RecordError,
    },
    /// Its records don't go together, or don't fit.
    #[error("{name}: {error}")]
    Entry {
        /// The name.
        name: DomainName,
        /// What is wrong.
        error: EntryError,
    },
    /// There are too many.
    #[error("there would be more than {MAX_NAMES} names")]
    Full,
    /// It isn't listed.
    #[error("{0} is not listed")]
    NotListed(DomainName),
    /// The name can't be written.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// All names. A copy is cheap enough to be made for each change, so that a change that can't be kept is
/// thrown away.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    names: BTreeMap<DomainName, Listed>,
    table: Arc<Table>,
    version: u64,
}

#[derive(Debug, Clone)]
struct Listed {
    ttl: u32,
    records: Arc<NameRecords>,
    entry: Arc<Entry>,
}

impl Catalogue {
    /// Lists a name, in place of what was listed for it, and says whether it was listed before.
    ///
    /// # Errors
    /// It can't be listed; nothing has changed.
    pub fn set(
        &mut self,
        name: DomainName,
        ttl: u32,
        records: NameRecords,
    ) -> Result<bool, CatalogueError> {
        if !self.names.contains_key(&name) && self.names.len() >= MAX_NAMES {
            return Err(CatalogueError::Full);
        }
        let data = read_records(&records).map_err(|error| CatalogueError::Record {
            name: name.clone(),
            error,
        })?;
        let entry = Entry::new(ttl, &data).map_err(|error| CatalogueError::Entry {
            name: name.clone(),
            error,
        })?;
        let entry = Arc::new(entry);
        let before = Arc::make_mut(&mut self.table)
            .insert(&WireName::from_text(name.as_str())?, Arc::clone(&entry));
        if let Some(before) = &before {
            entry.succeed(before);
        }
        let listed = Listed {
            ttl,
            records: Arc::new(records),
            entry,
        };
        self.names.insert(name, listed);
        self.version += 1;
        Ok(before.is_some())
    }

    /// Lists a name no longer, and gives how many queries were answered with it.
    ///
    /// # Errors
    /// It isn't listed.
    pub fn unset(&mut self, name: &DomainName) -> Result<u64, CatalogueError> {
        let listed = self
            .names
            .remove(name)
            .ok_or_else(|| CatalogueError::NotListed(name.clone()))?;
        Arc::make_mut(&mut self.table).remove(&WireName::from_text(name.as_str())?);
        self.version += 1;
        Ok(listed.entry.answered())
    }

    /// One page.
    pub fn page(&self, query: &NameList) -> NameListResult {
        let limit = query.limit.unwrap_or(MAX_PAGE) as usize;
        let from = match &query.after {
            Some(name) => Bound::Excluded(name.clone()),
            None => Bound::Unbounded,
        };
        let mut rest = self.names.range((from, Bound::Unbounded));
        let names: Vec<NameInfo> = rest
            .by_ref()
            .take(limit)
            .map(|(name, listed)| NameInfo {
                name: name.clone(),
                ttl: listed.ttl,
                answered: listed.entry.answered(),
                records: (*listed.records).clone(),
            })
            .collect();
        let next = rest.next().and(names.last()).map(|last| last.name.clone());
        NameListResult {
            version: self.version,
            names,
            next,
        }
    }

    /// All names as they would have to be set to be listed so.
    pub fn to_sets(&self) -> Vec<NameSet> {
        let set = |(name, listed): (&DomainName, &Listed)| NameSet {
            name: name.clone(),
            ttl: Some(listed.ttl),
            records: (*listed.records).clone(),
        };
        self.names.iter().map(set).collect()
    }

    /// The names, in the order of their texts.
    pub fn names(&self) -> impl Iterator<Item = &DomainName> {
        self.names.keys()
    }

    /// Grows with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many queries were answered, by name.
    pub fn answered(&self) -> impl Iterator<Item = (&DomainName, u64)> {
        self.names
            .iter()
            .map(|(name, listed)| (name, listed.entry.answered()))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// What workers look up.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> NameRecords {
        NameRecords {
            addresses: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ..NameRecords::default()
        }
    }

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn pages_cover_all_names_in_order() {
        let mut catalogue = Catalogue::default();
        for text in ["c.test", "a.test", "*.test", "b.test"] {
            let is_replaced = catalogue
                .set(name(text), 5, addresses(&["10.2.0.3"]))
                .unwrap();
            assert!(!is_replaced);
        }
        let mut query = NameList {
            after: None,
            limit: Some(3),
        };
        let page = catalogue.page(&query);
        let texts = |page: &NameListResult| {
            let names = page.names.iter().map(|info| info.name.to_string());
            names.collect::<Vec<_>>()
        };
        assert_eq!(texts(&page), ["*.test", "a.test", "b.test"]);
        query.after = page.next;
        let page = catalogue.page(&query);
        assert_eq!(texts(&page), ["c.test"]);
        assert_eq!((page.next, page.version), (None, 4));
    }

    #[test]
    fn a_replaced_name_keeps_its_count() {
        let mut catalogue = Catalogue::default();
        catalogue
            .set(name("a.test"), 5, addresses(&["10.2.0.3"]))
            .unwrap();
        let found = catalogue.table().find(b"\x01a\x04test\0").cloned().unwrap();
        found.count();
        let is_replaced = catalogue.set(name("a.test"), 5, addresses(&["10.2.0.4"]));
        assert!(is_replaced.unwrap());
        assert_eq!(catalogue.unset(&name("a.test")).unwrap(), 1);
        assert!(matches!(
            catalogue.unset(&name("a.test")),
            Err(CatalogueError::NotListed(_))
        ));
        assert!(catalogue.is_empty() && catalogue.table().is_empty());
    }
}
