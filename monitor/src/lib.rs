//! The network monitor of Shunt: watches the mirrors, decides, and instructs the rewriters (125 in the
//! patent's figure 1).

pub mod assign;
pub mod brain;
pub mod check;
pub mod model;
pub mod rules;
