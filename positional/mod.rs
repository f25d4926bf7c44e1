//! Where a token is: position numbers and how they enter queries and keys.

mod positions;
mod rope;

pub use positions::Positions;
pub use rope::{Rope, RopeConfig, RopeKind, RopeTable};
