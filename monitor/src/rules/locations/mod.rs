//! Where clients are: a table of places, read from a CSV file or a MaxMind-format database.
//!
//! Such tables are large, and little of them is wanted. So the names of the wanted places are given when
//! the table is read, and only their prefixes are kept.
//!
//! Names are compared without regard to case. A client is at one place: that of the longest prefix in the
//! table that contains it.

mod csv;
mod mmdb;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use ipnet::IpNet;
use thiserror::Error;

use super::error::RuleProblem;
use super::suggestion::Suggestion;

/// The longest CSV file that is read, in bytes.
const MAX_CSV: u64 = 64 << 20;

/// The longest database that is read, in bytes.
const MAX_DATABASE: u64 = 1 << 30;

/// The places that were asked for, and their clients.
#[derive(Debug, Clone, Default)]
pub struct Locations {
    /// By name in lower case: prefixes in order, none in another.
    prefixes: BTreeMap<String, Vec<IpNet>>,
    /// For names that aren't in the table, in lower case.
    suggestions: BTreeMap<String, Suggestion>,
}

/// Why a table of places can't be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LocationsError {
    /// There is no such file, or it can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is a directory or a device.
    #[error("{path}: not a file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// It is longer than any table of places.
    #[error("{path}: more than {most} bytes")]
    TooLong {
        /// The file.
        path: String,
        /// How many it may have.
        most: u64,
    },
    /// A line of a CSV file.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: String,
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// It isn't a MaxMind-format database, or is damaged.
    #[error("{path}: {source}")]
    Database {
        /// The file.
        path: String,
        /// Why.
        source: maxminddb::MaxMindDbError,
    },
    /// A database's search tree isn't one: there are several ways to the same node.
    #[error("{path}: the search tree is damaged")]
    NotATree {
        /// The file.
        path: String,
    },
    /// A code that continents and countries share.
    #[error(
        "location \"{code}\" is a continent ({continent}) and a country ({country}); write \
         \"continent:{code}\" or \"country:{code}\""
    )]
    Ambiguous {
        /// The code.
        code: String,
        /// The continent's name.
        continent: &'static str,
        /// The country's name.
        country: &'static str,
    },
}

/// What is wrong with a line of a CSV file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// It isn't CSV in UTF-8.
    #[error("{0}")]
    Csv(String),
    /// It has more or fewer fields.
    #[error("expected prefix,location; found {0} fields")]
    Fields(usize),
    /// The first field is no prefix.
    #[error(transparent)]
    Prefix(#[from] control_protocol::TextError),
    /// The second field is empty.
    #[error("no location after {0}")]
    NoLocation(IpNet),
    /// A prefix that an earlier line has.
    #[error("{prefix} is on line {earlier} already")]
    PrefixTwice {
        /// The prefix.
        prefix: IpNet,
        /// The other line.
        earlier: u64,
    },
}

impl Locations {
    /// Reads the places with these names from a table: a MaxMind-format database if the file's name
    /// ends in `.mmdb`, otherwise a CSV file. A name that isn't in the table is no error here, but where
    /// a rule uses it.
    ///
    /// # Errors
    /// What is wrong with the file, or a name that could mean two places.
    pub fn read<'a>(
        path: &Path,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, LocationsError> {
        let wanted = wanted.into_iter().map(str::to_lowercase).collect();
        if path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("mmdb"))
        {
            mmdb::read(path, read_bounded(path, MAX_DATABASE)?, wanted)
        } else {
            csv::read(path, &read_bounded(path, MAX_CSV)?, wanted)
        }
    }

    /// What was found of the wanted places, all by their names in lower case. Of the known names the
    /// suggestions are made for those of which nothing was found.
    fn new<'a>(
        wanted: BTreeSet<String>,
        found: BTreeMap<String, Vec<IpNet>>,
        known: impl IntoIterator<Item = &'a str> + Clone,
    ) -> Self {
        let mut locations = Self::default();
        for name in wanted {
            if let Some(prefixes) = found.get(&name) {
                let joined = IpNet::aggregate(prefixes);
                locations.prefixes.insert(name, joined);
            } else {
                let suggestion = Suggestion::closest(&name, known.clone());
                locations.suggestions.insert(name, suggestion);
            }
        }
        locations
    }

    /// The prefixes of the clients at a place.
    pub(super) fn find(&self, location: &str) -> Result<&[IpNet], RuleProblem> {
        let folded = location.to_lowercase();
        self.prefixes
            .get(&folded)
            .map(Vec::as_slice)
            .ok_or_else(|| RuleProblem::UnknownLocation {
                location: location.to_owned(),
                suggestion: self.suggestions.get(&folded).cloned().unwrap_or_default(),
            })
    }
}

fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, LocationsError> {
    let name = || path.display().to_string();
    let failed = |source| LocationsError::Read {
        path: name(),
        source,
    };
    // Opening a named pipe would wait for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(LocationsError::NotAFile { path: name() });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(LocationsError::TooLong { path: name(), most });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn refusal(path: &Path) -> String {
        Locations::read(path, ["EU"])
            .expect_err("no table")
            .to_string()
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.csv");
        assert!(refusal(&missing).ends_with("missing.csv: No such file or directory (os error 2)"));
        assert!(refusal(directory.path()).ends_with(": not a file"));
        assert_eq!(refusal(Path::new("/dev/zero")), "/dev/zero: not a file");
        let pipe = directory.path().join("pipe.csv");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(refusal(&pipe).ends_with("pipe.csv: not a file"));
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"10.0.0.0/8,EU\n").unwrap();
        assert!(read_bounded(file.path(), 14).is_ok());
        let error = read_bounded(file.path(), 13)
            .expect_err("one byte more")
            .to_string();
        assert!(error.ends_with(": more than 13 bytes"), "{error}");
    }

    #[test]
    fn the_name_of_the_file_tells_its_kind() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name| {
            let path = directory.path().join(name);
            fs::write(&path, "10.0.0.0/8,EU\n").unwrap();
            path
        };
        let table = Locations::read(&write("clients.csv"), ["EU"]).unwrap();
        assert_eq!(table.find("eu").unwrap(), ["10.0.0.0/8".parse().unwrap()]);
        assert!(refusal(&write("clients.MMDB")).contains("MaxMind"));
    }
}
