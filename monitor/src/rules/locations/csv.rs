//! A table of places as CSV: `prefix,location` a line, `#` before comments, a heading if one likes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use control_protocol::ClientPrefix;
use csv::{ReaderBuilder, StringRecord, Trim};
use ipnet::IpNet;

use super::{LineProblem, Locations, LocationsError};
use crate::rules::prefixes::difference;

/// A line that counts.
struct Line {
    number: u64,
    location: String,
    /// The prefixes in this one that are next to it, without others between.
    inner: Vec<IpNet>,
}

pub(super) fn read(
    path: &Path,
    bytes: &[u8],
    wanted: BTreeSet<String>,
) -> Result<Locations, LocationsError> {
    let mut lines = read_lines(path, bytes)?;
    nest(&mut lines);
    let mut found: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    for (prefix, line) in &lines {
        let folded = line.location.to_lowercase();
        if wanted.contains(&folded) {
            let own = difference(*prefix, &line.inner);
            found.entry(folded).or_default().extend(own);
        }
    }
    let known: BTreeSet<&str> = lines.values().map(|line| line.location.as_str()).collect();
    Ok(Locations::new(wanted, found, known))
}

fn read_lines(path: &Path, bytes: &[u8]) -> Result<BTreeMap<IpNet, Line>, LocationsError> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .comment(Some(b'#'))
        .trim(Trim::All)
        .from_reader(bytes);
    let at = |number, problem| LocationsError::Line {
        path: path.display().to_string(),
        line: number,
        problem,
    };
    let mut lines: BTreeMap<IpNet, Line> = BTreeMap::new();
    let mut record = StringRecord::new();
    let mut first = true;
    loop {
        let before = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(lines),
            Err(error) => {
                let number = error.position().map_or(before, csv::Position::line);
                return Err(at(number, LineProblem::Csv(error.to_string())));
            }
        }
        let number = record.position().map_or(before, csv::Position::line);
        let is_heading = first
            && record
                .get(0)
                .is_some_and(|f| f.eq_ignore_ascii_case("prefix"));
        first = false;
        if is_heading {
            continue;
        }
        let (prefix, location) = read_line(&record).map_err(|problem| at(number, problem))?;
        let line = Line {
            number,
            location,
            inner: Vec::new(),
        };
        if let Some(earlier) = lines.insert(prefix, line) {
            let earlier = earlier.number;
            return Err(at(number, LineProblem::PrefixTwice { prefix, earlier }));
        }
    }
}

fn read_line(record: &StringRecord) -> Result<(IpNet, String), LineProblem> {
    let (Some(prefix), Some(location), 2) = (record.get(0), record.get(1), record.len()) else {
        return Err(LineProblem::Fields(record.len()));
    };
    let prefix = prefix.parse::<ClientPrefix>()?.network();
    if location.is_empty() {
        return Err(LineProblem::NoLocation(prefix));
    }
    Ok((prefix, location.to_owned()))
}

/// Tells each prefix which ones are directly in it.
fn nest(lines: &mut BTreeMap<IpNet, Line>) {
    let mut around: Vec<IpNet> = Vec::new();
    let mut inner = Vec::new();
    for prefix in lines.keys() {
        while around.last().is_some_and(|outer| !outer.contains(prefix)) {
            around.pop();
        }
        inner.extend(around.last().map(|outer| (*outer, *prefix)));
        around.push(*prefix);
    }
    for (outer, prefix) in inner {
        if let Some(line) = lines.get_mut(&outer) {
            line.inner.push(prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::locations::LocationsError;

    fn table(text: &str, wanted: &[&str]) -> Result<Locations, LocationsError> {
        let wanted = wanted.iter().map(|name| name.to_string()).collect();
        read(Path::new("clients.csv"), text.as_bytes(), wanted)
    }

    fn at(locations: &Locations, place: &str) -> String {
        match locations.find(place) {
            Ok(prefixes) => {
                let prefixes: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
                prefixes.join(" ")
            }
            Err(problem) => problem.to_string(),
        }
    }

    #[test]
    fn a_client_is_where_the_longest_prefix_says() {
        let locations = table(
            "\u{feff}Prefix, Location\n\
             # offices\n\
             10.0.0.0/8, EU\r\n\
             \n\
             10.0.0.0/10,\"US, East\"\n\
             10.0.0.7, eu\n\
             fd00::/8,EU\n\
             11.0.0.0/8,EU\n\
             12.0.0.0/8,Asia",
            &["eu", "us, east", "asai"],
        )
        .unwrap();
        assert_eq!(
            at(&locations, "EU"),
            "10.0.0.7/32 10.64.0.0/10 10.128.0.0/9 11.0.0.0/8 fd00::/8"
        );
        let east = locations.find("US, East").unwrap();
        assert_eq!(east.len(), 22, "a /10 without one address");
        assert!(
            !east
                .iter()
                .any(|p| p.contains(&std::net::IpAddr::from([10, 0, 0, 7])))
        );
        assert_eq!(
            at(&locations, "Asai"),
            "location: nobody is at \"Asai\" in the table of places; did you mean \"Asia\"?"
        );
    }

    #[test]
    fn a_line_that_makes_no_sense_is_refused_with_its_number() {
        for (text, expected) in [
            (
                "# one\n\n10.0.0.0/8,EU\n10.0.0.5/8,EU\n",
                "line 4: 10.0.0.5/8 has bits set beyond its length; write 10.0.0.0/8, or 10.0.0.5 for \
                 that one client",
            ),
            (
                "10.0.0.0/8\n",
                "line 1: expected prefix,location; found 1 fields",
            ),
            (
                "prefix,location\n10.0.0.0/8,EU,GB\n",
                "line 2: expected prefix,location; found 3 fields",
            ),
            ("10.0.0.0/8,\n", "line 1: no location after 10.0.0.0/8"),
            (
                "10.0.0.0/8,EU\nfd00::/8,EU\n10.0.0.0/8,US\n",
                "line 3: 10.0.0.0/8 is on line 1 already",
            ),
            (
                "10.0.0.0/8,EU\nprefix,location\n",
                "line 2: \"prefix\" is not an IP address; expected one such as 10.1.0.1 or fd00::1 (names \
                 are not looked up)",
            ),
        ] {
            let error = table(text, &[]).expect_err(text).to_string();
            assert_eq!(error, format!("clients.csv, {expected}"));
        }
        let latin1 = read(
            Path::new("clients.csv"),
            b"10.0.0.0/8,EU\n11.0.0.0/8,M\xfcnchen\n",
            BTreeSet::new(),
        );
        let error = latin1.expect_err("not UTF-8").to_string();
        assert!(error.starts_with("clients.csv, line 2: "), "{error}");
        assert!(error.contains("UTF-8"), "{error}");
    }

    #[test]
    fn an_empty_table_has_nobody() {
        for text in ["", "prefix,location\n", "# nothing yet\n"] {
            let locations = table(text, &["eu"]).unwrap();
            assert_eq!(
                at(&locations, "EU"),
                "location: nobody is at \"EU\" in the table of places"
            );
        }
    }
}
