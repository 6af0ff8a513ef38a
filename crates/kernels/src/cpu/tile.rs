//! The register tile under matrix products and attention.

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
    mut sums: [[S::V; T]; R],
) -> [[S::V; T]; R] {
    let width = w[0].len();
    let w = w.map(|w| &w[..width]);
    let x = x.map(|x| &x[..width]);
    for v in 0..width {
        let x = x.map(|x| simd.load(&x[v]));
        for r in 0..R {
            let w = simd.load(&w[r][v]);
            for t in 0..T {
                sums[r][t] = simd.mul_add(w, x[t], sums[r][t]);
            }
        }
    }
    sums
}
