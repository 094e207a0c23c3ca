//! `docs/nat-behaviour.md` names a test for each requirement that it calls met: the tests exist.

#![allow(clippy::unwrap_used, reason = "in a test, that is how to fail")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The names of all test functions in the Rust files below a folder.
fn tests_below(folder: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line == "#[test]" || line == "#[tokio::test]" {
                    is_test = true;
                } else if let Some((_, name)) = line.split_once("fn ")
                    && is_test
                {
                    found.insert(name.split('(').next().unwrap().to_owned());
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn every_requirement_called_met_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut tests = HashSet::new();
    for folder in ["rewriter/src", "rewriter/tests", "tests/tests"] {
        tests_below(&root.join(folder), &mut tests);
    }
    let document = fs::read_to_string(root.join("docs/nat-behaviour.md")).unwrap();
    let mut met = 0;
    let mut rows = 0;
    for row in document.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (requirement, state, shown) = (cells[1], cells[3], cells[4]);
        match state {
            "met" => {
                let names: Vec<&str> = shown
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .filter(|name| name.contains('_') && !name.contains(['-', '.', ' ']))
                    .collect();
                assert!(
                    !names.is_empty(),
                    "{requirement} is called met, but names no test"
                );
                for name in names {
                    assert!(
                        tests.contains(name),
                        "{requirement} names {name}, which isn't there"
                    );
                }
                met += 1;
            }
            "not met" | "not applicable" => {
                assert!(!shown.is_empty(), "{requirement}: {state}, but why?");
            }
            "state" => continue,
            other => panic!("{requirement}: {other:?} is no state"),
        }
        rows += 1;
    }
    assert!(
        met > 20 && rows > met,
        "the table has been read: {met} of {rows} are met"
    );
}
