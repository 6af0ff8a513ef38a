//! `cargo bench --bench gemv -- --cuda [--json FILE] [--vram BYTES]`: products with one to sixteen tokens on the GPU, each
//! number format.
//!
//! GB/s of packed weights as share of what the device's memory gives when it is copied, and times as share of the speed of
//! cuBLAS on f16 weights of the same shape.

use super::products::{Roof, measure};
use airllm_kernels::Regime;

/// Measures and reports.
pub fn main() {
    let Some(cuda) = super::open() else { return };
    let rows = measure(&cuda, &[1, 4, 16], Regime::Token, Roof::Memory);
    super::finish(&cuda, "gemv", &rows);
}
