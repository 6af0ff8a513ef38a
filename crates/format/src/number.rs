//! Names and geometry of the number formats a weight may be stored in.
//!
//! Only sizes live here, so that files can be laid out and checked without arithmetic. What the bytes
//! mean is documented, byte by byte, in `airllm-quant`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How the numbers of one tensor are stored.
///
/// The serialised names (`"f16"`, `"q4"`, …) appear in `airllm.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NumFormat {
    /// IEEE binary32, little endian.
    F32,
    /// IEEE binary16, little endian.
    F16,
    /// bfloat16, little endian.
    Bf16,
    /// 8-bit signed codes, groups of 64 along the row with one f16 scale: 8.25 bits per weight.
    Q8,
    /// 4-bit codes, groups of 32 along the row with one f16 scale: 4.5 bits per weight.
    Q4,
}

impl NumFormat {
    /// Every format, widest first.
    pub const ALL: [NumFormat; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8, Self::Q4];

    /// The name used in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// Weights that share one scale; 1 for the plain formats.
    pub const fn group(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8 => 64,
            Self::Q4 => 32,
        }
    }

    /// True when a row holds codes and scales rather than plain numbers.
    pub const fn is_quantised(self) -> bool {
        self.group() > 1
    }

    /// Bytes of the codes of a row of `cols` weights: the part of the row before its scales.
    ///
    /// A last group that is not full is padded with zero codes, so this is whole groups.
    pub const fn code_bytes(self, cols: usize) -> usize {
        let padded = cols.div_ceil(self.group()) * self.group();
        match self {
            Self::F32 => padded * 4,
            Self::F16 | Self::Bf16 => padded * 2,
            Self::Q8 => padded,
            Self::Q4 => padded / 2,
        }
    }

    /// Bytes of one row of `cols` weights, scales and padding included.
    ///
    /// Plain rows are exactly as in safetensors. Quantised rows are `codes ‖ f16 scales ‖ zeros up to
    /// a multiple of 16`, so that every row of a 16-byte aligned tensor starts 16-byte aligned.
    pub const fn row_bytes(self, cols: usize) -> usize {
        let codes = self.code_bytes(cols);
        if self.is_quantised() {
            (codes + cols.div_ceil(self.group()) * 2).next_multiple_of(16)
        } else {
            codes
        }
    }
}

impl fmt::Display for NumFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_sizes() {
        assert_eq!(NumFormat::F32.row_bytes(5), 20);
        assert_eq!(NumFormat::Bf16.row_bytes(5), 10);
        assert_eq!(NumFormat::Q8.row_bytes(128), 128 + 4 + 12);
        assert_eq!(NumFormat::Q4.row_bytes(8192), 4096 + 512);
        assert_eq!(NumFormat::Q4.row_bytes(33), (32 + 4usize).next_multiple_of(16));
    }
}
