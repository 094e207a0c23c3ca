//! The network monitor of Shunt: watches the mirrors, decides, and instructs the rewriters (125 in the
//! patent's figure 1).
//!
//! From the eyes to the hands:
//!
//! - [`check`]: asks each mirror how it is;
//! - [`model`]: what a mirror is capable of, learned from what is measured;
//! - [`assign`]: which share of whose requests should go where, by these models;
//! - [`rules`]: what the operator allows;
//! - [`brain`]: decides, from all of these. It does no I/O;
//! - [`link`]: the rewriters, which measure and are instructed; [`diversions`]: what they have;
//! - [`naming`]: the naming servers, which are kept up to date;
//! - [`suspicion`]: what they see of dying mirrors;
//! - [`monitor`]: the loop that joins them;
//! - [`board`], [`show`], [`server`], [`metrics`]: what people and programs see of it.

pub mod assign;
pub mod board;
pub mod brain;
pub mod check;
pub mod config;
pub mod diversions;
pub mod link;
pub mod metrics;
pub mod model;
pub mod monitor;
pub mod naming;
pub mod rules;
pub mod server;
pub mod show;
pub mod suspicion;
pub mod wall_clock;
