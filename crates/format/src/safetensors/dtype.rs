//! Element types of checkpoint files.

use crate::NumFormat;
use std::fmt;

/// What the elements of a tensor in a safetensors or GGUF file are.
///
/// Every type that safetensors knows can be named and measured; only some can be computed with, see
/// [`Dtype::format`]. Of the types of GGUF, those in blocks are [`Dtype::Packed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// Truth values, one byte each.
    Bool,
    /// OCP microscaling 4-bit floats, two to a byte.
    F4,
    /// OCP microscaling 6-bit floats, 2 exponent bits.
    F6E2M3,
    /// OCP microscaling 6-bit floats, 3 exponent bits.
    F6E3M2,
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// 8-bit floats, 5 exponent bits.
    F8E5M2,
    /// 8-bit floats, 4 exponent bits.
    F8E4M3,
    /// 8-bit powers of two: scales of microscaling blocks.
    F8E8M0,
    /// 8-bit floats, 4 exponent bits, no infinities, no negative zero.
    F8E4M3Fnuz,
    /// 8-bit floats, 5 exponent bits, no infinities, no negative zero.
    F8E5M2Fnuz,
    /// Signed 16-bit integers.
    I16,
    /// Unsigned 16-bit integers.
    U16,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 32-bit integers.
    I32,
    /// Unsigned 32-bit integers.
    U32,
    /// IEEE binary32.
    F32,
    /// Complex numbers of two binary32.
    C64,
    /// IEEE binary64.
    F64,
    /// Signed 64-bit integers.
    I64,
    /// Unsigned 64-bit integers.
    U64,
    /// Whole rows packed in blocks, as GGUF files have them. Never in safetensors files.
    Packed(NumFormat),
}

/// Type, name in safetensors files, bits per element.
const TABLE: [(Dtype, &str, u64); 22] = [
    (Dtype::Bool, "BOOL", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6E2M3, "F6_E2M3", 6),
    (Dtype::F6E3M2, "F6_E3M2", 6),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F8E5M2, "F8_E5M2", 8),
    (Dtype::F8E4M3, "F8_E4M3", 8),
    (Dtype::F8E8M0, "F8_E8M0", 8),
    (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 8),
    (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::Bf16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::C64, "C64", 64),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
];

impl Dtype {
    /// The type of that name in a safetensors header, such as `"BF16"`.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The name in a safetensors header; of a packed type, the name of its format (`"q4_k"`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Packed(format) => format.name(),
            plain => plain.row().1,
        }
    }

    /// Bits of one block: of one element, except for packed types.
    pub fn bits(self) -> u64 {
        match self {
            // Blocks are far from overflowing.
            Self::Packed(format) => format.row_bytes(format.group()) as u64 * 8,
            plain => plain.row().2,
        }
    }

    /// Elements of one block: 1, except for packed types. Rows are whole blocks.
    pub fn block(self) -> u64 {
        match self {
            Self::Packed(format) => format.group() as u64,
            _ => 1,
        }
    }

    /// The row of a type that is not packed.
    fn row(self) -> (Self, &'static str, u64) {
        TABLE.into_iter().find(|row| row.0 == self).unwrap_or(TABLE[0])
    }

    /// The format of a weight stored in this type, if weights can be read from it as they are.
    pub fn format(self) -> Option<NumFormat> {
        match self {
            Self::F32 => Some(NumFormat::F32),
            Self::F16 => Some(NumFormat::F16),
            Self::Bf16 => Some(NumFormat::Bf16),
            Self::Packed(format) => Some(format),
            _ => None,
        }
    }

    /// The type under which rows of a format are stored: quantised rows are opaque bytes.
    pub fn of(format: NumFormat) -> Self {
        match format {
            NumFormat::F32 => Self::F32,
            NumFormat::F16 => Self::F16,
            NumFormat::Bf16 => Self::Bf16,
            _ => Self::U8,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_agrees_with_the_reference_crate() {
        for (dtype, name, bits) in TABLE {
            assert_eq!((dtype.name(), dtype.bits(), dtype.block()), (name, bits, 1));
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            let reference: safetensors::Dtype = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            assert_eq!(reference.bitsize() as u64, bits);
        }
        assert_eq!(Dtype::from_name("f16"), None);
    }

    #[test]
    fn packed_types_are_measured_in_blocks_and_are_none_of_safetensors() {
        let q4k = Dtype::Packed(NumFormat::Q4K);
        assert_eq!((q4k.name(), q4k.block(), q4k.bits()), ("q4_k", 256, 144 * 8));
        assert_eq!(q4k.format(), Some(NumFormat::Q4K));
        assert_eq!((Dtype::from_name("q4_k"), Dtype::from_name("Q4_K")), (None, None));
        assert_eq!(Dtype::of(NumFormat::Q4K), Dtype::U8);
    }
}
