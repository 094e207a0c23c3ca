//! A table of places as a MaxMind-format database (<https://maxmind.github.io/MaxMind-DB/>) with the
//! records of a GeoIP2 City or Country database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use ipnet::IpNet;
use maxminddb::{MaxMindDbError, Reader, WithinOptions, geoip2};

use super::{Locations, LocationsError};
use crate::rules::suggestion::Suggestion;

/// Codes of continents that are those of countries as well: code, continent, country
/// (ISO 3166-1).
const AMBIGUOUS: [(&str, &str, &str); 4] = [
    ("AF", "Africa", "Afghanistan"),
    ("AS", "Asia", "American Samoa"),
    ("NA", "North America", "Namibia"),
    ("SA", "South America", "Saudi Arabia"),
];

pub(super) fn read(
    path: &Path,
    bytes: Vec<u8>,
    wanted: BTreeSet<String>,
) -> Result<Locations, LocationsError> {
    check_ambiguous(&wanted)?;
    let damaged = |source| LocationsError::Database {
        path: path.display().to_string(),
        source,
    };
    let reader = Reader::from_source(bytes).map_err(damaged)?;
    // A tree has one more leaf than nodes. In a damaged file paths can meet again, and there could be
    // more leaves than anyone can count.
    let most = reader.metadata().node_count as usize + 1;
    let options = WithinOptions::default().include_networks_without_data();
    let mut places = Places::new(wanted);
    for (leaves, leaf) in reader.networks(options).map_err(damaged)?.enumerate() {
        if leaves >= most {
            return Err(LocationsError::NotATree {
                path: path.display().to_string(),
            });
        }
        let leaf = leaf.map_err(damaged)?;
        let Some(record) = leaf.offset() else {
            continue;
        };
        if !places.by_record.contains_key(&record) {
            let place = leaf.decode().map_err(damaged)?.unwrap_or_default();
            places.add(record, &place);
        }
        let network = leaf.network().map_err(damaged)?;
        let network = IpNet::new(network.ip(), network.prefix())
            .map_err(|_| damaged(MaxMindDbError::invalid_database("a prefix is too long")))?;
        places.put(record, network);
    }
    Ok(places.finish())
}

fn check_ambiguous(wanted: &BTreeSet<String>) -> Result<(), LocationsError> {
    for (code, continent, country) in AMBIGUOUS {
        if wanted.contains(&code.to_lowercase()) {
            return Err(LocationsError::Ambiguous {
                code: code.to_owned(),
                continent,
                country,
            });
        }
    }
    Ok(())
}

/// The wanted places, as they are found. All names are in lower case.
struct Places {
    wanted: BTreeSet<String>,
    /// Which of the wanted places each of the database's records is about. Many leaves share one.
    by_record: HashMap<usize, Vec<String>>,
    prefixes: BTreeMap<String, Vec<IpNet>>,
    /// What could have been wanted.
    known: BTreeSet<String>,
}

impl Places {
    fn new(wanted: BTreeSet<String>) -> Self {
        Self {
            wanted,
            by_record: HashMap::new(),
            prefixes: BTreeMap::new(),
            known: BTreeSet::new(),
        }
    }

    fn add(&mut self, record: usize, place: &geoip2::City<'_>) {
        let names = names(place);
        let wanted = names.iter().filter(|name| self.wanted.contains(*name));
        self.by_record.insert(record, wanted.cloned().collect());
        self.known.extend(names);
    }

    fn put(&mut self, record: usize, network: IpNet) {
        for name in self.by_record.get(&record).into_iter().flatten() {
            self.prefixes.entry(name.clone()).or_default().push(network);
        }
    }

    fn finish(self) -> Locations {
        let suggestions = self
            .wanted
            .iter()
            .filter(|name| !self.prefixes.contains_key(*name))
            .map(|name| {
                let suggestion = Suggestion::closest(name, self.known.iter().map(String::as_str));
                (name.clone(), suggestion)
            })
            .collect();
        Locations {
            prefixes: self
                .prefixes
                .into_iter()
                .map(|(name, prefixes)| (name, IpNet::aggregate(&prefixes)))
                .collect(),
            suggestions,
        }
    }
}

/// The names by which a place can be wanted: its continent, its country, and within its country its
/// subdivisions and its city.
fn names(place: &geoip2::City<'_>) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(continent) = place.continent.code {
        names.extend([continent.to_owned(), format!("continent:{continent}")]);
    }
    if let Some(country) = place.country.iso_code {
        names.extend([country.to_owned(), format!("country:{country}")]);
        let subdivisions = place.subdivisions.iter().map(|part| part.names.english);
        let within = subdivisions.chain([place.city.names.english]).flatten();
        names.extend(within.map(|name| format!("{country}/{name}")));
    }
    for name in &mut names {
        *name = name.to_lowercase();
    }
    names
}
