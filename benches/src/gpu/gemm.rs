//! `cargo bench --bench gemm [-- --json FILE] [--vram BYTES]`: products with the 512 tokens of a prompt on the GPU, each
//! number format, in TFLOP/s and as share of the speed of cuBLAS on f16 weights of the same shape.

use super::products::{Roof, measure};
use airllm_kernels::Regime;

/// Measures and reports.
pub fn main() {
    let Some(cuda) = super::open() else { return };
    let tokens = if crate::quick() { 48 } else { 512 };
    let rows = measure(&cuda, &[tokens], Regime::Prompt, Roof::Compute);
    super::finish(&cuda, "gemm", &rows);
}
