//! Lines: what both ends agree on before they look at what is said.
//!
//! A line is one JSON object in UTF-8, ended by `\n`.

use serde::Serialize;

/// The version of the protocol that this crate speaks, the `v` of each message.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes of the longest request, its line end included: 1 MiB.
pub const MAX_LINE: usize = 1 << 20;

/// Bytes of the longest answer, its line end included: 16 MiB. That is more than a request may have,
/// because a list of diversions comes whole.
pub const MAX_ANSWER_LINE: usize = 16 << 20;

/// Characters of the longest message in a [`crate::Failure`]; longer ones are cut.
pub const MAX_MESSAGE: usize = 1000;

/// Writes a message as a line.
pub(crate) fn json_line(message: &impl Serialize) -> String {
    // Messages are structs of numbers, strings and maps with string keys, which JSON can't refuse.
    let mut line = serde_json::to_string(message).expect("a message is plain data");
    line.push('\n');
    line
}
