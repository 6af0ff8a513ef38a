//! Helpers for the tests that no single crate can hold.
//!
//! - [`checkpoint`] writes random Llama checkpoints of any size in the Hugging Face layout. It shares no
//!   code with the engine, so what the engine reads was not written by the engine.
//! - [`gguf`] writes GGUF files, from nothing or from a Hugging Face checkpoint.
//! - [`gpu`] opens the CUDA device that tests run on, or says that there is none.
//! - [`program`] builds the `airllm` binary once and runs it: captured output, a time limit, signals,
//!   and the peak of its resident memory as the kernel counts it.
//! - [`shared`] finds the reference fixtures in `../shared`, which a fresh clone does not have.
//!
//! ```
//! use airllm_tests::checkpoint::{Checkpoint, Dtype, Shape};
//!
//! let dir = tempfile::tempdir()?;
//! let made = Checkpoint::new(Shape::TINY).dtype(Dtype::F16).shards(2).write(dir.path())?;
//! assert_eq!(made.files.len(), 2);
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod checkpoint;
pub mod gguf;
pub mod gpu;
pub mod program;
pub mod shared;
