//! The register tile under matrix products and attention.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

use super::simd::{Eight, Simd};

/// Rows that are multiplied at once.
pub(crate) const ROWS: usize = 4;
/// Tokens that are multiplied at once. Twelve sums, three vectors of x and one of weights: 16 registers.
pub(crate) const TOKENS: usize = 3;

/// `sums[r][t] += w[r] · x[t]`, lane by lane, along vectors. All slices have the length of `w[0]`.
#[inline(always)]
pub(crate) fn tile<S: Simd, const R: usize, const T: usize>(
    simd: S,
    w: [&[Eight]; R],
    x: [&[Eight]; T],
    sums: &mut [[S::V; T]; R],
) {
    let width = w[0].len();
    // Said once, so that the loop needs no checks.
    let w = w.map(|w| &w[..width]);
    let x = x.map(|x| &x[..width]);
    let mut running = *sums;
    for v in 0..width {
        let mut vectors = [simd.zero(); T];
        for t in 0..T {
            vectors[t] = simd.load(&x[t][v]);
        }
        for r in 0..R {
            let w = simd.load(&w[r][v]);
            for t in 0..T {
                running[r][t] = simd.mul_add(w, vectors[t], running[r][t]);
            }
        }
    }
    *sums = running;
}
