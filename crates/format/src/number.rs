//! Names and geometry of the number formats a weight may be stored in.
//!
//! Only sizes live here, so that files can be laid out and checked without arithmetic. What the bytes
//! mean is documented, byte by byte, in `airllm-quant`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How the numbers of one tensor are stored.
///
/// The serialised names (`"f16"`, `"q4"`, …) appear in `airllm.json`. Ordered from the widest to the
/// narrowest, so that `a > b` says that `a` is narrower.
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
    /// 8-bit codes with an integer zero point, groups of 32: holds 8-bit GPTQ exactly. 9.5 bits per weight.
    A8,
    /// GGUF `Q8_0`: blocks of 32, 8.5 bits per weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 8-bit signed codes, groups of 64 along the row with one f16 scale: 8.25 bits per weight.
    Q8,
    /// float8 `e4m3fn`, groups of 128 along the row with one f32 scale: 8.25 bits per weight.
    F8,
    /// 8-bit signed codes with one f32 scale a row: holds LLM.int8() weights exactly. 8 bits per weight.
    I8,
    /// GGUF `Q6_K`: blocks of 256, 6.5625 bits per weight.
    #[serde(rename = "q6_k")]
    Q6K,
    /// 6-bit codes in two planes, groups of 16 with a scale of four bits, one f16 for 256 weights: 6.3125 bits
    /// per weight.
    Q6,
    /// GGUF `Q5_1`: blocks of 32, 6 bits per weight.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// GGUF `Q5_0`: blocks of 32, 5.5 bits per weight.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// GGUF `Q5_K`: blocks of 256, 5.5 bits per weight.
    #[serde(rename = "q5_k")]
    Q5K,
    /// As [`Q6`](Self::Q6) with 5-bit codes: 5.3125 bits per weight.
    Q5,
    /// 4-bit codes with an integer zero point, groups of 32: holds 4-bit GPTQ and AWQ exactly. 5.25 bits per
    /// weight.
    A4,
    /// GGUF `Q4_1`: blocks of 32, 5 bits per weight.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// As [`A4`](Self::A4) in groups of 64: 4.625 bits per weight.
    A4G64,
    /// GGUF `Q4_0`: blocks of 32, 4.5 bits per weight.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// GGUF `Q4_K`: blocks of 256, 4.5 bits per weight.
    #[serde(rename = "q4_k")]
    Q4K,
    /// NormalFloat of QLoRA, groups of 64 along the row with one f32 scale: 4.5 bits per weight.
    Nf4,
    /// As [`A4`](Self::A4) in groups of 128: 4.3125 bits per weight.
    A4G128,
    /// As [`Q6`](Self::Q6) with 4-bit codes, in one plane: 4.3125 bits per weight.
    Q4,
    /// GGUF `Q3_K`: blocks of 256, 3.4375 bits per weight.
    #[serde(rename = "q3_k")]
    Q3K,
    /// As [`Q6`](Self::Q6) with 3-bit codes and signed scales: 3.3125 bits per weight.
    Q3,
    /// GGUF `Q2_K`: blocks of 256, 2.625 bits per weight.
    #[serde(rename = "q2_k")]
    Q2K,
    /// As [`Q3`](Self::Q3) with 2-bit codes, in one plane: 2.3125 bits per weight.
    Q2,
}

/// How the bytes of a row are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Plain numbers of so many bytes, one after the other.
    Plain(usize),
    /// `codes ‖ scales ‖ zero points ‖ zeros up to a multiple of 16`.
    Sections {
        /// Bits of a code.
        bits: usize,
        /// Bytes of a group's scale.
        scale: usize,
        /// Bytes of a group's zero point.
        zero: usize,
    },
    /// `low bits ‖ high bits ‖ scales and scales of the scales`, each with zeros up to a multiple of 16: a
    /// group has a scale of four bits, 16 groups share one f16.
    Planes {
        /// Bits of a code in the first plane.
        low: usize,
        /// Bits of a code in the second plane; 0 where there is none.
        high: usize,
    },
    /// Blocks that hold their own scales, this many bytes each, as GGUF files have them.
    Blocks(usize),
}

impl NumFormat {
    /// Every format, widest first.
    pub const ALL: [NumFormat; 26] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::A8,
        Self::Q8_0,
        Self::Q8,
        Self::F8,
        Self::I8,
        Self::Q6K,
        Self::Q6,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q5K,
        Self::Q5,
        Self::A4,
        Self::Q4_1,
        Self::A4G64,
        Self::Q4_0,
        Self::Q4K,
        Self::Nf4,
        Self::A4G128,
        Self::Q4,
        Self::Q3K,
        Self::Q3,
        Self::Q2K,
        Self::Q2,
    ];

    /// The name used in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::A8 => "a8",
            Self::Q8_0 => "q8_0",
            Self::Q8 => "q8",
            Self::F8 => "f8",
            Self::I8 => "i8",
            Self::Q6K => "q6_k",
            Self::Q6 => "q6",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q5K => "q5_k",
            Self::Q5 => "q5",
            Self::A4 => "a4",
            Self::Q4_1 => "q4_1",
            Self::A4G64 => "a4g64",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Nf4 => "nf4",
            Self::A4G128 => "a4g128",
            Self::Q4 => "q4",
            Self::Q3K => "q3_k",
            Self::Q3 => "q3",
            Self::Q2K => "q2_k",
            Self::Q2 => "q2",
        }
    }

    /// Weights that share one scale, or one block; 1 for the plain formats, `usize::MAX` where the whole
    /// row does.
    pub const fn group(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::I8 => usize::MAX,
            Self::Q6 | Self::Q5 | Self::Q4 | Self::Q3 | Self::Q2 => 16,
            Self::Q8 | Self::A4G64 | Self::Nf4 => 64,
            Self::F8 | Self::A4G128 => 128,
            Self::A8 | Self::A4 => 32,
            Self::Q8_0 | Self::Q5_1 | Self::Q5_0 | Self::Q4_1 | Self::Q4_0 => 32,
            Self::Q6K | Self::Q5K | Self::Q4K | Self::Q3K | Self::Q2K => 256,
        }
    }

    /// Rows are whole multiples of this many weights: the block of the formats in blocks, 1 for the others.
    pub const fn multiple(self) -> usize {
        match self.layout() {
            Layout::Blocks(_) => self.group(),
            Layout::Plain(_) | Layout::Sections { .. } | Layout::Planes { .. } => 1,
        }
    }

    /// How the bytes of a row are arranged.
    pub const fn layout(self) -> Layout {
        match self {
            Self::F32 => Layout::Plain(4),
            Self::F16 | Self::Bf16 => Layout::Plain(2),
            Self::A8 => Layout::Sections { bits: 8, scale: 4, zero: 2 },
            Self::Q8 => Layout::Sections { bits: 8, scale: 2, zero: 0 },
            Self::F8 | Self::I8 => Layout::Sections { bits: 8, scale: 4, zero: 0 },
            Self::A4 | Self::A4G64 | Self::A4G128 => Layout::Sections { bits: 4, scale: 4, zero: 1 },
            Self::Nf4 => Layout::Sections { bits: 4, scale: 4, zero: 0 },
            Self::Q6 => Layout::Planes { low: 4, high: 2 },
            Self::Q5 => Layout::Planes { low: 4, high: 1 },
            Self::Q4 => Layout::Planes { low: 4, high: 0 },
            Self::Q3 => Layout::Planes { low: 2, high: 1 },
            Self::Q2 => Layout::Planes { low: 2, high: 0 },
            Self::Q8_0 => Layout::Blocks(34),
            Self::Q6K => Layout::Blocks(210),
            Self::Q5_1 => Layout::Blocks(24),
            Self::Q5_0 => Layout::Blocks(22),
            Self::Q5K => Layout::Blocks(176),
            Self::Q4_1 => Layout::Blocks(20),
            Self::Q4_0 => Layout::Blocks(18),
            Self::Q4K => Layout::Blocks(144),
            Self::Q3K => Layout::Blocks(110),
            Self::Q2K => Layout::Blocks(84),
        }
    }

    /// True when a row holds codes and scales rather than plain numbers.
    pub const fn is_quantised(self) -> bool {
        self.group() > 1
    }

    /// Groups of a row of `cols` weights; the last one may not be full.
    pub const fn groups(self, cols: usize) -> usize {
        match self.group() {
            usize::MAX => {
                if cols == 0 {
                    0
                } else {
                    1
                }
            }
            group => cols.div_ceil(group),
        }
    }

    /// Bytes of the codes of a row of `cols` weights: the part of the row before its scales. For formats in
    /// blocks, all of the row.
    ///
    /// A last group that is not full is padded with zero codes, so this is whole groups; where the group is
    /// the row, or in planes, the padding is up to a multiple of 32.
    pub const fn code_bytes(self, cols: usize) -> usize {
        let padded = match self.group() {
            usize::MAX => cols.next_multiple_of(32),
            group => cols.div_ceil(group) * group,
        };
        match self.layout() {
            Layout::Plain(bytes) => padded * bytes,
            Layout::Sections { bits, .. } => padded / 8 * bits,
            Layout::Planes { low, high } => {
                // 32 columns are as many bytes as four times the bits of a code.
                let steps = cols.div_ceil(32);
                (4 * low * steps).next_multiple_of(16) + (4 * high * steps).next_multiple_of(16)
            }
            Layout::Blocks(bytes) => self.groups(cols) * bytes,
        }
    }

    /// Bytes of one row of `cols` weights, scales and padding included.
    ///
    /// Plain rows are exactly as in safetensors, rows of blocks exactly as in GGUF files. Other quantised
    /// rows are `codes ‖ scales ‖ zero points ‖ zeros up to a multiple of 16`, or planes of such sections, so
    /// that every row of a 16-byte aligned tensor starts 16-byte aligned.
    pub const fn row_bytes(self, cols: usize) -> usize {
        let codes = self.code_bytes(cols);
        match self.layout() {
            Layout::Plain(_) | Layout::Blocks(_) => codes,
            Layout::Planes { .. } => {
                let (scales, halves) = (cols.div_ceil(32), 2 * cols.div_ceil(256));
                codes + (scales.next_multiple_of(2) + halves).next_multiple_of(16)
            }
            Layout::Sections { scale, zero, .. } => {
                (codes + self.groups(cols) * (scale + zero)).next_multiple_of(16)
            }
        }
    }

    /// True for formats that checkpoints come in. They are kept as they are, whatever a tensor's precision floor,
    /// and nothing is rounded to them here, [`Nf4`](Self::Nf4) alone excepted: where it is asked for, a tensor
    /// whose floor is wider gets a wider format.
    pub const fn is_foreign(self) -> bool {
        !matches!(
            self,
            Self::F32
                | Self::F16
                | Self::Bf16
                | Self::Q8
                | Self::Q6
                | Self::Q5
                | Self::Q4
                | Self::Q3
                | Self::Q2
        )
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
        assert_eq!(NumFormat::Q4.row_bytes(8192), 4096 + 256 + 64);
        assert_eq!(NumFormat::Q4.row_bytes(33), 32 + 16);
        assert_eq!(NumFormat::A4G128.row_bytes(256), 128 + 2 * 5 + 6);
        assert_eq!(NumFormat::I8.row_bytes(33), 64 + 4 + 12);
        assert_eq!(NumFormat::I8.row_bytes(0), 0);
        assert_eq!(NumFormat::Q6.row_bytes(4096), 4096 * 101 / 128);
        assert_eq!(NumFormat::Q5.row_bytes(4096), 4096 * 85 / 128);
        assert_eq!(NumFormat::Q3.row_bytes(4096), 4096 * 53 / 128);
        assert_eq!(NumFormat::Q2.row_bytes(4096), 4096 * 37 / 128);
        assert_eq!(NumFormat::Q5.row_bytes(33), 32 + 16 + 16);
        assert_eq!(NumFormat::Q2.row_bytes(0), 0);
        assert_eq!(NumFormat::Q4K.row_bytes(512), 288);
        assert_eq!(NumFormat::Q4K.multiple(), 256);
        assert_eq!((NumFormat::Q8_0.multiple(), NumFormat::Q8.multiple()), (32, 1));
    }

    #[test]
    fn names_are_those_of_files_and_formats_are_ordered_by_width() {
        for format in NumFormat::ALL {
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
        let bits = |format: NumFormat| format.row_bytes(1 << 16);
        assert!(NumFormat::ALL.windows(2).all(|pair| bits(pair[0]) >= bits(pair[1]) && pair[0] < pair[1]));
    }
}
