//! Number formats for weights: packing, unpacking, error measures. No I/O.
//!
//! A weight matrix is stored row by row, a row being the weights of one output feature. Each row
//! stands alone: its codes and its scales lie together, so any run of whole rows can be moved, copied
//! and multiplied without the rest of the matrix. One layout serves every device.
//!
//! ```
//! use airllm_format::NumFormat;
//!
//! let weights: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
//! let mut row = vec![0u8; NumFormat::Q8.row_bytes(weights.len())];
//! airllm_quant::pack_row(NumFormat::Q8, &weights, &mut row)?;
//!
//! let mut back = vec![0f32; weights.len()];
//! airllm_quant::unpack_row(NumFormat::Q8, &row, &mut back)?;
//! assert!(airllm_quant::nmse(&weights, &back) < 1e-4);
//! # Ok::<(), airllm_quant::Error>(())
//! ```
//!
//! # Layout, byte by byte
//!
//! All numbers are little endian. `cols` is the number of weights in the row.
//!
//! **`f32`, `f16`, `bf16`**: the weights one after the other, as in safetensors; `4·cols` or `2·cols`
//! bytes, no padding. `bf16` is the upper half of a binary32.
//!
//! **`q8`**: `G = ceil(cols/64)` groups of 64 weights.
//!
//! | bytes | what |
//! |---|---|
//! | `0 .. 64G` | signed 8-bit codes, `code[c]` at byte `c`; codes run from -127 to 127 |
//! | `64G .. 66G` | `scale[g]` as f16 at byte `64G + 2g` |
//! | `66G .. ` next multiple of 16 | zeros |
//!
//! `weight[c] = scale[c / 64] · code[c]`. Codes of columns beyond `cols` are 0.
//!
//! **`q4`**: `G = ceil(cols/32)` groups of 32 weights.
//!
//! | bytes | what |
//! |---|---|
//! | `0 .. 16G` | codes: byte `16g + j` holds `code[32g + j]` in its low and `code[32g + 16 + j]` in its high four bits; codes run from 0 to 15 |
//! | `16G .. 18G` | `scale[g]` as f16 at byte `16G + 2g`; may be negative |
//! | `18G .. ` next multiple of 16 | zeros |
//!
//! `weight[c] = scale[c / 32] · (code[c] − 8)`. Codes of columns beyond `cols` are 8, which is zero.
//!
//! Readers ignore codes beyond `cols`. A scale has 11 significant bits and a code at most 8, so the
//! product is exact in f32: every reader gets the very same weights.
//!
//! # How numbers are rounded
//!
//! - `f16`, `bf16`: to nearest, ties to even. A weight that would become infinite is refused.
//! - `q8`: the scale is the largest magnitude of the group over 127, rounded to f16 (one step up if
//!   the largest weight would not fit otherwise); codes are rounded to nearest under the rounded scale.
//! - `q4`: codes −8 to 7 are not symmetric, so the weight of largest magnitude `m` is tried at both
//!   ends, with the scales `m / −8` and `m / 7`. Either is tried as it is and once more after least
//!   squares: for the codes it gives, `Σ w·code / Σ code²` is the scale of least error, under which
//!   codes are rounded anew. Of the four the one of least squared error is taken.
//!
//! # What it costs
//!
//! Normalised mean square error (see [`nmse`]) of 2²⁰ weights drawn from N(0, 1), rows of 4096:
//!
//! | format | bits per weight | NMSE | dB |
//! |---|---|---|---|
//! | `f32` | 32 | 0 | |
//! | `f16` | 16 | 4.31e-8 | -73.7 |
//! | `bf16` | 16 | 2.76e-6 | -55.6 |
//! | `q8` | 8.25 | 3.51e-5 | -44.5 |
//! | `q4` | 4.5 | 6.90e-3 | -21.6 |
#![forbid(unsafe_code)]

mod error;
mod groups;
mod measure;
mod row;

pub use error::{Error, Result};
pub use measure::{loss, nmse};
pub use row::{pack_row, unpack_row};
