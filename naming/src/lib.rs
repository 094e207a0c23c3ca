//! The enhanced naming server of Shunt (figure 5 of the patent): it stands before the DNS, answers a chosen
//! set of names from a table of its own, and passes all other queries on.
//!
//! From the bottom to the top:
//! - [`table`]: the listed names, with answers that are ready but for the question;
//! - [`answer`]: what is to be done about one query. Sans-I/O: bytes, table and time go in, an [`answer::Outcome`] comes out;
//! - [`limit`]: how often one part of the Internet is answered;
//! - [`passing`]: the queries that have been passed on, and who waits for their answers. Sans-I/O as well;
//! - [`udp`]: sockets, which decide nothing;
//! - [`counters`], [`metrics`], [`query_log`]: what was done;
//! - [`worker`]: the loop over all of these, one thread a core;
//! - [`tcp`]: the same over TCP, a task a client;
//! - [`records`], [`catalogue`], [`state`], [`control`]: the names as they are told, kept on the disk, and shown;
//! - [`rewriters`]: those who send queries this way are told the names;
//! - [`config`]: what the server was told at its start.

pub mod answer;
pub mod catalogue;
pub mod config;
pub mod control;
pub mod counters;
pub mod limit;
pub mod metrics;
pub mod passing;
pub mod query_log;
pub mod records;
pub mod rewriters;
pub mod state;
pub mod table;
pub mod tcp;
pub mod udp;
pub mod worker;
