//! What a DNS server must know of a message before it can tell whom it concerns: the header, the
//! question, and whether the question's name is listed.
//!
//! Everything here is pure, allocates nothing per message, and reads nothing that it hasn't checked the
//! length of. Whole messages are for a DNS library; this is for those who look at every query there is:
//! the naming server, and whoever sorts queries on their way.
//!
//! From the bottom to the top:
//! - [`Header`] and [`Question`] are views over a message's bytes (RFC 1035, section 4.1);
//! - [`WireName`] is a name as it is looked up: uncompressed, in lower case;
//! - [`Names`] is a table of names, some of them wildcards.

mod message;
mod name;
mod names;

pub use message::{Header, Malformed, Question, class, kind};
pub use name::{MAX_NAME, NameError, WireName};
pub use names::Names;
