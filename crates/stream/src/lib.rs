//! Layer streaming inside a memory budget: source -> host ring -> device ring -> lease, with a planner and a timeline.
//!
//! A [`Catalog`] says which tensors lie where and in which order a pass uses them. [`plan()`] decides what
//! of it stays in memory. A [`Pipeline`] lets the rest flow through a ring of slots, read ahead by a few
//! threads, round and round over the passes, and leases rows to whoever computes:
//!
//! ```
//! use airllm_format::{MemorySource, NumFormat};
//! use airllm_kernels::Cpu;
//! use airllm_stream::{
//!     Catalog, Error, Hardware, Need, Options, Pipeline, Request, Tensor, TensorId, Timeline, Unit, plan,
//! };
//! use std::sync::Arc;
//!
//! // One layer with one matrix of 100 rows of 256 f32.
//! let (rows, cols) = (100, 256);
//! let weights: Vec<u8> = (0..rows * cols).flat_map(|i| (i as f32).to_le_bytes()).collect();
//! let source = MemorySource::new(vec![("layer.0".to_owned(), weights)]);
//! let q = Tensor {
//!     name: "q".into(), file: 0, offset: 0, format: NumFormat::F32, rows, cols, checksum: None,
//! };
//! let catalog = Catalog {
//!     units: vec![Unit { name: "layer.0".into(), tensors: vec![q], on_demand: false }],
//!     pass: vec![TensorId { unit: 0, tensor: 0 }],
//! };
//!
//! // 64 kB are too few for 102 kB of weights: they stream.
//! let request = Request { ram: Some(64_000), ..Request::default() };
//! let plan = plan(&Need::of(&catalog, 0), &Hardware { disk: 1e9, memory: 2e10, gpu: None }, &request)?;
//! assert_eq!(plan.streamed, 102_400);
//!
//! let options = Options::of(&plan, Arc::new(Timeline::new(false)));
//! let mut stream = Pipeline::start(Arc::new(Cpu::new(1)), Arc::new(source), catalog, &options)?;
//! let mut seen = 0;
//! for _token in 0..3 {
//!     stream.rows::<Error, _>(TensorId { unit: 0, tensor: 0 }, |rows| {
//!         seen += rows.count; // multiply `rows.data` here
//!         Ok(())
//!     })?;
//! }
//! assert_eq!(seen, 300);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To a device with memory of its own the stripes are copied, ahead of their use and beside the computation; what
//! lives there, and what is computed with from host memory all the same, is said by [`OnDevice`].
//!
//! Units that a pass may or may not use, experts, are [requested](Pipeline::request) when that is known,
//! leased by [`demand`](Pipeline::demand), and kept for as long as a measured [`Policy`] says.
//!
//! Work that looks at a layer more than once, as calibrating does, meets the same [`Weights`] in [`Held`].
//!
//! How fast the files of a folder can be read, and by which method, is what [`probe`] measures; [`open_files`] reads by it.
//!
//! What is absent: this crate has never heard of attention, and sees of a device only
//! [`Memory`](airllm_kernels::Memory). [`plan()`] asks the machine nothing. All `unsafe` is in `arena` and `uring`.

mod arena;
mod catalog;
mod check;
mod cut;
mod demand;
mod device_ring;
mod error;
mod feed;
mod held;
mod intake;
mod layout;
mod options;
mod pipeline;
pub mod plan;
mod policy;
pub mod probe;
mod reader;
mod ring;
mod spread;
mod staging;
mod sync;
mod tier;
mod timeline;
mod turns;
mod uring;
mod weights;

pub use arena::ALIGNMENT;
pub use catalog::{Catalog, Tensor, TensorId, Unit};
pub use cut::smallest_slot;
pub use error::{Error, Result};
pub use held::{Fetch, Held};
pub use options::{ExpertCache, OnDevice, Options, Stats};
pub use pipeline::{Pipeline, Rows};
pub use plan::{Gpu, Hardware, Need, Plan, Refusal, Request, plan};
pub use policy::Policy;
pub use probe::{MethodRate, ReadRates, open_files, probe_reads};
pub use spread::SpreadSource;
pub use timeline::{Activity, Event, Timeline};
pub use weights::Weights;
