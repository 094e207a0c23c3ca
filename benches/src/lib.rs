//! What the benches share.

pub mod load;
pub mod report;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does something that may fail or panic, as the lab does, and gives the reason if it did.
///
/// # Errors
/// The reason, in words.
pub fn in_one_piece<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| format!("{error:#}")),
        Err(panic) => Err(match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => other
                .downcast::<&str>()
                .map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned()),
        }),
    }
}
