//! The verbs of a transformer forward and the devices that compute them.

mod error;
mod memory;
mod ops;

pub use error::{Error, Result};
pub use memory::Memory;
pub use ops::{Attend, Columns, Matrix, Ops, Rope, RopeKind, Work};
