//! What the benches share.

pub mod load;
pub mod report;
