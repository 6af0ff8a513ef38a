//! A CUDA device, or the stand-in for its driver (feature `standin`): one program, since each that may launch kernels has
//! all of them in it, and `cargo xtask gpu-bundle` takes this one along.

#[path = "../../../crates/model/tests/common/mod.rs"]
mod common;
mod goldens;
mod models;
#[path = "../on_device/mod.rs"]
mod on_device;
mod verbs;
