//! A table of places as CSV: `prefix,location` a line, `#` before comments, a heading if one likes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use control_protocol::ClientPrefix;
use csv::{ReaderBuilder, StringRecord, Trim};
use ipnet::IpNet;

use super::{LineProblem, Locations, LocationsError};
use crate::rules::prefixes::difference;
use crate::rules::suggestion::Suggestion;

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
    let mut prefixes: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    for (prefix, line) in &lines {
        let folded = line.location.to_lowercase();
        if wanted.contains(&folded) {
            let own = difference(*prefix, &line.inner);
            prefixes.entry(folded).or_default().extend(own);
        }
    }
    let known: BTreeSet<&str> = lines.values().map(|line| line.location.as_str()).collect();
    let suggestions = wanted
        .into_iter()
        .filter(|name| !prefixes.contains_key(name))
        .map(|name| {
            let suggestion = Suggestion::closest(&name, known.iter().copied());
            (name, suggestion)
        })
        .collect();
    Ok(Locations {
        prefixes: prefixes
            .into_iter()
            .map(|(name, prefixes)| (name, IpNet::aggregate(&prefixes)))
            .collect(),
        suggestions,
    })
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
