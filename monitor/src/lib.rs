//! The network monitor of Shunt: watches the mirrors, decides, and instructs the rewriters (125 in the
//! patent's figure 1).

pub mod check;
