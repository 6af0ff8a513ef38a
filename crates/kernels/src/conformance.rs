//! The cases that every device must pass: one list per verb, the same for all.
//!
//! The reference is computed in f64 by code written for clearness. Sizes straddle the edges of tiles
//! and blocks, every format meets every pair of them. Errors are measured as normalised mean square
//! errors, against named bounds. Views are handed over at odd addresses where the device computes from
//! host memory. Output buffers are larger than needed and hold a mark that must survive.
//!
//! A device's tests are one line, [`conformance!`](crate::conformance!):
//!
//! ```
//! airllm_kernels::conformance!(two_threads, airllm_kernels::Cpu::new(2));
//! # fn main() {}
//! ```

mod attention;
mod lab;
mod matrix;
mod refusals;
mod tokens;

pub use attention::{attend, attend_prompt, attend_stored, attend_stored_prompt, rope};
pub use matrix::{company, decode, matmul, matmul_prompt, not_finite};
pub use refusals::{empty, refusals};
pub use tokens::{
    add, add_bias, gated, gather, place, reorder, rms_norm, rms_norm_rows, scale_rows, scatter_add, store,
};

use crate::{KvFormat, Regime};
use airllm_format::NumFormat;

/// Rows, columns and other dimensions: around the edges of tiles.
pub const SIZES: [usize; 13] = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 127, 257];

/// Numbers of tokens in a call.
pub const TOKENS: [usize; 10] = [1, 2, 3, 4, 5, 7, 8, 9, 16, 33];

/// Bound on the error of f32 arithmetic alone: a verb against the f64 reference on the same operands.
pub const ARITHMETIC: f64 = 1e-12;

/// Bound on the error of a product with weights from N(0, 1) stored in `format`, against the product
/// with the weights before they were stored.
pub const fn bound(format: NumFormat) -> f64 {
    match format {
        NumFormat::F32 => ARITHMETIC,
        NumFormat::F16 => 1e-7,
        NumFormat::Bf16 => 5e-6,
        NumFormat::A8 => 4e-5,
        NumFormat::Q8_0 => 5e-5,
        NumFormat::Q8 => 6e-5,
        NumFormat::F8 => 1e-3,
        NumFormat::I8 => 1.2e-4,
        NumFormat::Q6K | NumFormat::Q6 => 6e-4,
        NumFormat::Q5_1 | NumFormat::Q5K | NumFormat::Q5 => 2.5e-3,
        NumFormat::Q5_0 => 3e-3,
        NumFormat::A4 | NumFormat::Q4_0 | NumFormat::Q4_1 | NumFormat::Q4K => 1e-2,
        NumFormat::A4G64 | NumFormat::Nf4 => 1.3e-2,
        NumFormat::Q4 => 9e-3,
        NumFormat::A4G128 => 1.5e-2,
        NumFormat::Q3K | NumFormat::Q3 => 4e-2,
        NumFormat::Q2K | NumFormat::Q2 => 1.6e-1,
        // A new format has to name its bound.
        _ => 0.0,
    }
}

/// Bound on the error of a product of tokens of a prompt, against the f64 product of the same stored weights and
/// activations: what [`Regime::Prompt`](crate::Regime) may round. Far below what storing weights in few bits costs
/// ([`bound`]), and that of f32 sums where a checkpoint's weights are taken as they are.
pub const fn prompt_bound(format: NumFormat) -> f64 {
    match format {
        NumFormat::F32 => ARITHMETIC,
        // Weights and activations rounded to f16: 2^-12 each, at most.
        NumFormat::Q8 | NumFormat::Q6 | NumFormat::Q5 | NumFormat::Q4 | NumFormat::Q3 | NumFormat::Q2 => 2e-7,
        // Weights that are taken as a checkpoint has them: two parts of whatever a half has no room for.
        _ => 1e-10,
    }
}

/// Bound on the error of a product on a device that computes it in integers
/// ([`Ops::in_integers`](crate::Ops::in_integers)), against the f64 product of the same stored weights and activations:
/// activations are rounded to 16 bits under the largest of 32. Between that of f16 activations (2e-8) and f32.
pub const INTEGERS: f64 = 2e-9;

/// The same for attention of a prompt's tokens.
pub const PROMPT_ATTENTION: f64 = 1e-11;

/// Bound on the error of attention, against the f64 result over the numbers that the cache holds.
pub const fn attention_bound(regime: Regime, cache: KvFormat) -> f64 {
    match (regime, cache) {
        (Regime::Token, _) => ARITHMETIC,
        (Regime::Prompt, KvFormat::F32 | KvFormat::F16) => PROMPT_ATTENTION,
        // Code times scale rounded to f16, by up to 2^-11 of it: 2.4e-7 where heads have one value, and about as much
        // again by scores; 1e-7 on average.
        (Regime::Prompt, KvFormat::Q8 | KvFormat::Q4) => 1e-6,
    }
}

/// The next number of columns that rows of `format` can have.
pub(crate) const fn whole(format: NumFormat, cols: usize) -> usize {
    cols.next_multiple_of(format.multiple())
}

/// Why a device does not conform.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The device refused what it must do.
    #[error("{case}: {error}")]
    Refused {
        /// The case, with its sizes.
        case: String,
        /// What the device said.
        error: crate::Error,
    },
    /// A result is wrong.
    #[error("{case}: {what}")]
    Wrong {
        /// The case, with its sizes.
        case: String,
        /// What was expected and what was found.
        what: String,
    },
}

/// What a list of cases comes to.
pub type Verdict = std::result::Result<(), Failure>;

/// Makes a test module named `$name` that runs every list of cases on the device that `$device` makes.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $device:expr) => {
        $crate::conformance!($name, $device,
            decode matmul not_finite rms_norm rms_norm_rows add_bias add gated reorder scale_rows scatter_add place
            rope store attend attend_stored gather refusals empty matmul_prompt attend_prompt attend_stored_prompt company);
    };
    ($name:ident, $device:expr, $($verb:ident)+) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(
                #[test]
                fn $verb() -> $crate::conformance::Verdict {
                    $crate::conformance::$verb(&$device)
                }
            )+
        }
    };
}
