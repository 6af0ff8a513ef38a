//! Layer streaming inside a memory budget: source -> host ring -> lease, with a planner and a timeline.
mod arena;
mod catalog;
mod check;
mod cut;
mod error;
mod pipeline;
mod reader;
mod ring;
mod sync;
mod timeline;
mod upload;

pub use arena::ALIGNMENT;
pub use catalog::{Catalog, Tensor, TensorId, Unit};
pub use cut::smallest_slot;
pub use error::{Error, Result};
pub use pipeline::{Options, Pipeline, Rows, Stats};
pub use timeline::{Activity, Event, Timeline};
