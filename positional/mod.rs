//! Where a token is: position numbers and how they enter queries and keys.

mod frequencies;
mod history;
mod kind;
mod positions;
mod rope;

pub use history::LengthHistory;
pub use kind::{LongRope, RopeKind, Yarn};
pub use positions::Positions;
pub use rope::{Rope, RopeConfig, RopeTable};
