//! Tests of the whole crate through its public face.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod chat;
mod common;
mod gguf;
mod native;
mod refusals;
mod small_files;
mod stream;
mod vectors;
