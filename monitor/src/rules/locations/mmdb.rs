//! A table of places as a MaxMind-format database (<https://maxmind.github.io/MaxMind-DB/>) with the
//! records of a GeoIP2 City or Country database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::path::Path;

use ipnet::IpNet;
use maxminddb::{MaxMindDbError, Metadata, Reader, WithinOptions};
use serde::Deserialize;

use super::{Locations, LocationsError};

/// Codes of continents that are those of countries as well: code, continent, country
/// (ISO 3166-1).
const AMBIGUOUS: [(&str, &str, &str); 4] = [
    ("AF", "Africa", "Afghanistan"),
    ("AS", "Asia", "American Samoa"),
    ("NA", "North America", "Namibia"),
    ("SA", "South America", "Saudi Arabia"),
];

/// What is needed of a record; all else in it may be as it likes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Place<'a> {
    #[serde(borrow)]
    continent: Continent<'a>,
    country: Country<'a>,
    subdivisions: Vec<Named<'a>>,
    city: Named<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Continent<'a> {
    code: Option<&'a str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Country<'a> {
    iso_code: Option<&'a str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named<'a> {
    #[serde(borrow)]
    names: Names<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Names<'a> {
    en: Option<&'a str>,
}

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
    let reader = Reader::from_source(&bytes).map_err(damaged)?;
    if !is_tree(&bytes, reader.metadata()) {
        return Err(LocationsError::NotATree {
            path: path.display().to_string(),
        });
    }
    let mut places = Places::new(wanted);
    for leaf in reader.networks(WithinOptions::default()).map_err(damaged)? {
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
    let known = places.known.iter().map(String::as_str);
    Ok(Locations::new(places.wanted, places.found, known))
}

/// Whether there is but one way to each node, so that walking all ways comes to an end. The exception is
/// the root of IPv4, to which aliases lead (`::ffff:0:0/96` and others); the reader takes only the first
/// way to it. Where a way leads back to itself, the reader notices.
fn is_tree(bytes: &[u8], metadata: &Metadata) -> bool {
    let nodes = metadata.node_count as usize;
    let children = |node| children(bytes, metadata.record_size, node);
    // IPv4 is at ::/96, if there is any.
    let ipv4_root = (0..96).try_fold(0, |node, _| {
        children(node)
            .map(|[left, _]| left)
            .filter(|left| *left < nodes)
    });
    let mut has_parent = vec![false; nodes];
    (0..nodes).filter_map(children).flatten().all(|child| {
        let seen = has_parent
            .get_mut(child)
            .is_some_and(|seen| mem::replace(seen, true));
        !seen || Some(child) == ipv4_root
    })
}

/// A node's two children: nodes, or from the number of nodes on something else.
fn children(bytes: &[u8], record_size: u16, node: usize) -> Option<[usize; 2]> {
    let length = usize::from(record_size) / 4;
    let at = node.checked_mul(length)?;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
    match (record_size, bytes.get(at..at.checked_add(length)?)?) {
        // The two halves of the middle byte are the highest bits of the one and the other.
        (28, &[a, b, c, middle, d, e, f]) => Some([
            number(&[middle >> 4, a, b, c]),
            number(&[middle & 0xf, d, e, f]),
        ]),
        (_, record) => {
            let (left, right) = record.split_at(length / 2);
            Some([number(left), number(right)])
        }
    }
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
    found: BTreeMap<String, Vec<IpNet>>,
    /// What could have been wanted.
    known: BTreeSet<String>,
}

impl Places {
    fn new(wanted: BTreeSet<String>) -> Self {
        Self {
            wanted,
            by_record: HashMap::new(),
            found: BTreeMap::new(),
            known: BTreeSet::new(),
        }
    }

    fn add(&mut self, record: usize, place: &Place<'_>) {
        let names = names(place);
        let wanted = names.iter().filter(|name| self.wanted.contains(*name));
        self.by_record.insert(record, wanted.cloned().collect());
        self.known.extend(names);
    }

    fn put(&mut self, record: usize, network: IpNet) {
        for name in self.by_record.get(&record).into_iter().flatten() {
            self.found.entry(name.clone()).or_default().push(network);
        }
    }
}

/// The names by which a place can be wanted: its continent, its country, and within its country its
/// subdivisions and its city.
fn names(place: &Place<'_>) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(continent) = place.continent.code {
        names.extend([continent.to_owned(), format!("continent:{continent}")]);
    }
    if let Some(country) = place.country.iso_code {
        names.extend([country.to_owned(), format!("country:{country}")]);
        let subdivisions = place.subdivisions.iter().map(|part| part.names.en);
        let within = subdivisions.chain([place.city.names.en]).flatten();
        names.extend(within.map(|name| format!("{country}/{name}")));
    }
    for name in &mut names {
        *name = name.to_lowercase();
    }
    names
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use maxminddb_writer::Database;
    use maxminddb_writer::metadata::IpVersion;
    use maxminddb_writer::paths::IpAddrWithMask;
    use serde_json::{Value, json};

    use super::*;

    const LONDON: &str = "2.125.160.0/20";

    fn city(continent: &str, country: &str, subdivision: &str, city: &str) -> Value {
        json!({
            "continent": { "code": continent, "names": { "en": "a continent" } },
            "country": { "iso_code": country, "names": { "en": "a country" } },
            "subdivisions": [ { "iso_code": "X", "names": { "en": subdivision } } ],
            "city": { "geoname_id": 1, "names": { "en": city, "de": "a city" } },
        })
    }

    /// A database of a few places. IPv4 is at `::/96`, as the format has it.
    fn database(places: &[(&str, Value)]) -> Vec<u8> {
        let mut database = Database::default();
        database.metadata.ip_version = IpVersion::V6;
        database.metadata.database_type = "GeoIP2-City".to_owned();
        database.metadata.binary_format_major_version = 2;
        for (prefix, place) in places {
            let record = database.insert_value(place).unwrap();
            let network: IpNet = prefix.parse().unwrap();
            let path = match network {
                IpNet::V4(v4) => {
                    let address = u128::from(u32::from(v4.addr())).to_be_bytes();
                    IpAddrWithMask::new(IpAddr::from(address), v4.prefix_len() + 96)
                }
                IpNet::V6(v6) => IpAddrWithMask::new(v6.addr().into(), v6.prefix_len()),
            };
            database.insert_node(path, record);
        }
        database.write_to(Vec::new()).unwrap()
    }

    fn a_few_places() -> Vec<u8> {
        database(&[
            (LONDON, city("EU", "GB", "England", "London")),
            ("2.125.176.0/20", city("EU", "GB", "England", "Leeds")),
            ("5.1.0.0/16", city("EU", "FR", "Île-de-France", "Paris")),
            ("10.0.0.0/8", json!({})),
            ("41.0.0.0/11", city("AF", "ZA", "Gauteng", "Pretoria")),
            ("58.147.128.0/19", city("AS", "AF", "Kabul", "Kabul")),
            ("2a02:6b8::/32", city("EU", "GB", "England", "London")),
            ("2a02:6b9::/32", city("NA", "CA", "Ontario", "London")),
        ])
    }

    fn table(bytes: Vec<u8>, wanted: &[&str]) -> Result<Locations, LocationsError> {
        let wanted = wanted.iter().map(|name| name.to_string()).collect();
        read(Path::new("places.mmdb"), bytes, wanted)
    }

    #[test]
    fn places_are_found_by_continent_country_subdivision_and_city() {
        let wanted = [
            "eu",
            "gb",
            "gb/london",
            "gb/england",
            "fr/île-de-france",
            "continent:af",
            "country:af",
            "london",
            "gb/lodnon",
        ];
        let locations = table(a_few_places(), &wanted).unwrap();
        for (place, expected) in [
            ("EU", "2.125.160.0/19 5.1.0.0/16 2a02:6b8::/32"),
            ("GB", "2.125.160.0/19 2a02:6b8::/32"),
            ("GB/London", "2.125.160.0/20 2a02:6b8::/32"),
            ("gb/ENGLAND", "2.125.160.0/19 2a02:6b8::/32"),
            ("FR/Île-de-France", "5.1.0.0/16"),
            ("continent:AF", "41.0.0.0/11"),
            ("country:AF", "58.147.128.0/19"),
        ] {
            let prefixes = locations.find(place).expect(place);
            let prefixes: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
            assert_eq!(prefixes.join(" "), expected, "{place}");
        }
        let problem = |place| locations.find(place).expect_err(place).to_string();
        assert_eq!(
            problem("London"),
            "location: nobody is at \"London\" in the table of places"
        );
        assert_eq!(
            problem("GB/Lodnon"),
            "location: nobody is at \"GB/Lodnon\" in the table of places; did you mean \"gb/london\"?"
        );
    }

    #[test]
    fn a_code_of_a_continent_and_a_country_is_not_guessed_at() {
        assert_eq!(
            table(a_few_places(), &["af"])
                .expect_err("two meanings")
                .to_string(),
            "location \"AF\" is a continent (Africa) and a country (Afghanistan); write \
             \"continent:AF\" or \"country:AF\""
        );
    }

    #[test]
    fn a_damaged_database_is_refused() {
        let whole = a_few_places();
        for bytes in [
            Vec::new(),
            b"prefix,location\n".to_vec(),
            whole[..whole.len() / 2].to_vec(),
        ] {
            let error = table(bytes, &["eu"]).expect_err("no database").to_string();
            assert!(error.starts_with("places.mmdb: "), "{error}");
        }
    }

    #[test]
    fn any_damaged_byte_gives_an_answer() {
        let whole = a_few_places();
        let mut refused = 0;
        for at in 0..whole.len() {
            for bit in [0x01, 0x80] {
                let mut damaged = whole.clone();
                damaged[at] ^= bit;
                refused += usize::from(table(damaged, &["eu"]).is_err());
            }
        }
        assert!(refused > 0);
    }

    /// Both children of the first nodes are the next one, so there are 2^64 ways to the end, or to the
    /// root of IPv4.
    #[test]
    fn a_tree_whose_ways_meet_again_is_refused() {
        for (nodes, end) in [
            (64, None),
            (96, None),
            (64, Some(0xff_ffff)),
            (96, Some(97)),
        ] {
            let mut bytes = a_few_places();
            assert_eq!(
                Reader::from_source(&bytes).unwrap().metadata().record_size,
                24
            );
            for node in 0..nodes {
                let last = node == nodes - 1;
                let next = end
                    .filter(|_| last)
                    .unwrap_or(node as u32 + 1)
                    .to_be_bytes();
                for child in 0..2 {
                    let at = node * 6 + child * 3;
                    bytes[at..at + 3].copy_from_slice(&next[1..]);
                }
            }
            assert_eq!(
                table(bytes, &["eu"]).expect_err("many ways").to_string(),
                "places.mmdb: the search tree is damaged"
            );
        }
    }

    #[test]
    fn aliases_of_ipv4_are_no_damage() {
        let mut database = Database::default();
        database.metadata.ip_version = IpVersion::V6;
        database.metadata.binary_format_major_version = 2;
        let record = database
            .insert_value(city("EU", "GB", "England", "London"))
            .unwrap();
        for prefix in ["::/97", "::ffff:0:0/97"] {
            database.insert_node(prefix.parse::<IpAddrWithMask>().unwrap(), record);
        }
        let mut bytes = database.write_to(Vec::new()).unwrap();
        let nodes = Reader::from_source(&bytes).unwrap().metadata().node_count as usize;
        // The roots of ::/96 and of its alias; the latter was made last, and so was its parent.
        let (root, alias) = (96, nodes - 1);
        let parent = alias - 1;
        assert_eq!(children(&bytes, 24, parent), Some([nodes, alias]));
        bytes[parent * 6 + 3..parent * 6 + 6].copy_from_slice(&[0, 0, root]);
        let locations = table(bytes, &["gb"]).unwrap();
        assert_eq!(
            locations.find("GB").unwrap(),
            ["0.0.0.0/1".parse().unwrap()]
        );
    }

    #[test]
    fn nodes_are_read_in_each_size() {
        let (left, right) = (0x0123_4567, 0x0fed_cba9);
        let read = |size, bytes: &[u8]| children(bytes, size, 1);
        let before = [0; 8];
        assert_eq!(
            read(
                24,
                &[&before[..6], &[0x23, 0x45, 0x67, 0xed, 0xcb, 0xa9]].concat()
            ),
            Some([left & 0xff_ffff, right & 0xff_ffff])
        );
        assert_eq!(
            read(
                28,
                &[&before[..7], &[0x23, 0x45, 0x67, 0x1f, 0xed, 0xcb, 0xa9]].concat()
            ),
            Some([left, right])
        );
        assert_eq!(
            read(
                32,
                &[
                    &before[..],
                    &[0x01, 0x23, 0x45, 0x67, 0x0f, 0xed, 0xcb, 0xa9]
                ]
                .concat()
            ),
            Some([left, right])
        );
        assert_eq!(read(32, &before), None);
    }
}
