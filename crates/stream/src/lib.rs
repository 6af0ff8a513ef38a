//! Layer streaming inside a memory budget: source -> host ring -> lease, with a planner and a timeline.

mod catalog;

pub use catalog::{Catalog, Tensor, TensorId, Unit};
