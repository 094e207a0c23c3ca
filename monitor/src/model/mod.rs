//! What is known of a mirror: how long it takes to answer, as a function of how much it is asked.
//!
//! - [`Queue`] is the model: an M/M/c queue, with two numbers, the service time and the servers.
//! - [`Learner`] finds the two numbers from what is measured, forgets what is old, and starts afresh when
//!   a mirror has plainly become another one. It also says by how much the model is wrong.
//!
//! Which model, why, and how wrong it is: `docs/monitor.md`.

mod learner;
mod queue;

pub use learner::{Learner, Sample};
pub use queue::Queue;
