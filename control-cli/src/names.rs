//! What the naming server's answers look like to people, and to programs that read lines.

use std::io::{self, Write};

use control_protocol::{
    NameImportResult, NameInfo, NameListResult, NameRecords, NameSet, NameSetResult, NameUnset,
    NameUnsetResult,
};

use crate::output::{Format, Output};
use crate::table::{Cell, Table};

/// Shows what became of a `name set`.
///
/// # Errors
/// The writer's.
pub fn set<W: Write>(
    output: &mut Output<W>,
    request: &NameSet,
    result: &NameSetResult,
) -> io::Result<()> {
    if !output.for_people() {
        return writeln!(output, "replaced\t{}", result.replaced);
    }
    let records: Vec<String> = records(&request.records)
        .into_iter()
        .map(|(_, data, _)| data)
        .collect();
    let before = if result.replaced {
        " (instead of what it had before)"
    } else {
        ""
    };
    writeln!(output, "{}: {}{before}", request.name, records.join(", "))
}

/// Shows what became of a `name unset`.
///
/// # Errors
/// The writer's.
pub fn unset<W: Write>(
    output: &mut Output<W>,
    request: &NameUnset,
    result: &NameUnsetResult,
) -> io::Result<()> {
    if !output.for_people() {
        return writeln!(output, "answered\t{}", result.answered);
    }
    writeln!(
        output,
        "{}: left to the DNS, after {} answers",
        request.name, result.answered
    )
}

/// Shows what became of a `name import`.
///
/// # Errors
/// The writer's.
pub fn import<W: Write>(output: &mut Output<W>, result: &NameImportResult) -> io::Result<()> {
    let NameImportResult {
        names,
        replaced,
        skipped,
    } = result;
    if !output.for_people() {
        writeln!(output, "names\t{names}\nreplaced\t{replaced}")?;
        return skipped
            .iter()
            .try_for_each(|(kind, count)| writeln!(output, "skipped ({kind})\t{count}"));
    }
    writeln!(output, "{names} names, {replaced} of them listed before")?;
    if skipped.is_empty() {
        return Ok(());
    }
    let skipped: Vec<String> = skipped
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    writeln!(output, "left out: {}", skipped.join(", "))
}

/// The list of names, shown page by page: one line a record, or with `--json` one object that has the names of
/// all pages.
#[derive(Debug)]
pub struct Names {
    table: Table,
    version: Option<u64>,
    shown: u64,
}

impl Names {
    /// A list of which nothing has been shown.
    pub fn new() -> Self {
        Self {
            table: Table::new(["NAME", "TTL", "TYPE", "DATA", "WEIGHT", "ANSWERED"]),
            version: None,
            shown: 0,
        }
    }

    /// Shows one page, at once. Every list has at least one.
    ///
    /// # Errors
    /// The writer's.
    pub fn page<W: Write>(
        &mut self,
        output: &mut Output<W>,
        page: &NameListResult,
    ) -> io::Result<()> {
        if output.format() == Format::Json {
            if self.version.is_none() {
                write!(output, "{{\"version\":{},\"names\":[", page.version)?;
            }
            for (number, name) in (self.shown..).zip(&page.names) {
                if number > 0 {
                    write!(output, ",")?;
                }
                serde_json::to_writer(&mut *output, name)?;
            }
        } else {
            let rows: Vec<_> = page.names.iter().flat_map(rows).collect();
            self.table.rows(output, &rows)?;
        }
        self.version = Some(page.version);
        self.shown += page.names.len() as u64;
        Ok(())
    }

    /// Ends the list.
    ///
    /// # Errors
    /// The writer's.
    pub fn end<W: Write>(&self, output: &mut Output<W>) -> io::Result<()> {
        match output.format() {
            Format::Json => writeln!(output, "],\"next\":null}}"),
            Format::Terminal { .. } if self.shown == 0 => writeln!(output, "no names"),
            Format::Terminal { .. } | Format::Plain => Ok(()),
        }
    }
}

fn rows(info: &NameInfo) -> Vec<Vec<Cell>> {
    let row = |(kind, data, weight): (&str, String, Option<u16>)| {
        vec![
            Cell::text(&info.name),
            Cell::Count(info.ttl.into()),
            Cell::text(kind),
            Cell::text(data),
            Cell::optional(weight),
            Cell::Count(info.answered),
        ]
    };
    records(&info.records).into_iter().map(row).collect()
}

/// Each record's type and data, and the weight of an address.
fn records(records: &NameRecords) -> Vec<(&'static str, String, Option<u16>)> {
    let NameRecords {
        addresses,
        cname,
        https,
        svcb,
        srv,
        txt,
    } = records;
    let mut shown = Vec::new();
    for address in addresses {
        let kind = if address.address.is_ipv4() {
            "A"
        } else {
            "AAAA"
        };
        shown.push((kind, address.address.to_string(), Some(address.weight)));
    }
    if let Some(target) = cname {
        shown.push(("CNAME", target.to_string(), None));
    }
    for (kind, texts) in [("HTTPS", https), ("SVCB", svcb), ("SRV", srv)] {
        shown.extend(texts.iter().map(|text| (kind, printable(text), None)));
    }
    let quoted = |text: &String| ("TXT", format!("\"{}\"", printable(text)), None);
    shown.extend(txt.iter().map(quoted));
    shown
}

/// A text that may hold anything, so that it can go to a terminal, or into a column.
fn printable(text: &str) -> String {
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> NameListResult {
        NameListResult {
            version: 3,
            names: vec![NameInfo {
                name: "www.bt.com".parse().expect("a name"),
                ttl: 5,
                answered: 1200,
                records: NameRecords {
                    addresses: vec![
                        "10.2.0.2".parse().expect("an address"),
                        "fd00::3*3".parse().expect("an address"),
                    ],
                    txt: vec!["a\tb".to_owned()],
                    ..NameRecords::default()
                },
            }],
            next: None,
        }
    }

    fn shown(format: Format, pages: &[NameListResult]) -> String {
        let mut bytes = Vec::new();
        let mut output = Output::new(&mut bytes, format);
        let mut names = Names::new();
        for page in pages {
            names.page(&mut output, page).expect("memory has room");
        }
        names.end(&mut output).expect("memory has room");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_list_is_a_line_for_each_record() {
        assert_eq!(
            shown(Format::Plain, &[page()]),
            "www.bt.com\t5\tA\t10.2.0.2\t1\t1200\n\
             www.bt.com\t5\tAAAA\tfd00::3\t3\t1200\n\
             www.bt.com\t5\tTXT\t\"a\\tb\"\t-\t1200\n"
        );
        let people = Format::Terminal { bold: false };
        assert!(shown(people, &[page()]).starts_with("NAME "));
        let empty = NameListResult {
            names: Vec::new(),
            ..page()
        };
        assert_eq!(shown(people, &[empty]), "no names\n");
    }

    #[test]
    fn pages_make_one_object() {
        let text = shown(Format::Json, &[page(), page()]);
        let list: NameListResult = serde_json::from_str(&text).expect("a list");
        assert_eq!(list.names.len(), 2);
        assert_eq!((list.version, list.next), (3, None));
    }
}
