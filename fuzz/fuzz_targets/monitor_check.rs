//! Any bytes as an agent's line and as a page of metrics: read without a panic, and the metrics the
//! same however they come in pieces.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use monitor::check::{AgentWords, Combine, Labels, Reading, Scan, Selector};

fuzz_target!(|bytes: &[u8]| {
    let line = String::from_utf8_lossy(bytes);
    if let Ok(words) = line.parse::<AgentWords>() {
        assert_ne!(
            words,
            AgentWords::default(),
            "a line that was understood says something"
        );
    }

    let wanted = [
        Labels::default(),
        Labels(BTreeMap::from([("a".to_owned(), "b".to_owned())])),
    ];
    for labels in &wanted {
        for combine in [Combine::Sum, Combine::Max] {
            let selector = Selector {
                metric: "load",
                labels,
                combine,
            };
            let mut whole = Scan::new(selector);
            whole.feed(bytes);
            let mut pieces = Scan::new(selector);
            for piece in bytes.chunks(3) {
                pieces.feed(piece);
            }
            let reading = whole.finish();
            // A sum may become infinite, and an infinite one not a number; each value is finite.
            if let (Reading::Value(value), Combine::Max) = (&reading, combine) {
                assert!(value.is_finite());
            }
            assert_eq!(format!("{reading:?}"), format!("{:?}", pieces.finish()));
        }
    }
});
