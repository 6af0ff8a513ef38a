//! The structures that kernels take, field by field those of `kernels/include/abi.h`, where each is documented.
//!
//! Structures and fields stand in the same order in both; a test compares them.

/// Threads in a block of kernels that treat numbers one by one.
pub(crate) const FLAT_THREADS: u32 = 256;
/// Rows in a block of `gemv`.
pub(crate) const GEMV_ROWS: usize = 4;
pub(crate) const GEMV_THREADS: u32 = 128;
/// Columns that a warp of `gemv` takes in one turn.
pub(crate) const SLICE: usize = 1024;
/// Rows and tokens in a block of `gemm`.
pub(crate) const GEMM_ROWS: usize = 64;
pub(crate) const GEMM_TOKENS: usize = 32;
pub(crate) const GEMM_THREADS: u32 = 128;
pub(crate) const NORM_THREADS: u32 = 256;
pub(crate) const ATTEND_THREADS: u32 = 128;
/// Most bytes of shared memory that `attend` has beside what it is given at launch.
pub(crate) const ATTEND_SHARED: usize = 17_440;
/// Shared memory that a block has on every device.
pub(crate) const SHARED: usize = 48 << 10;

macro_rules! params {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }
    )*

        /// Names and types of all fields, structure by structure.
        #[cfg(test)]
        const FIELDS: &[&[(&str, &str)]] = &[$(&[$((stringify!($field), stringify!($type))),*]),*];
    };
}

params! {
    Product {
        w: *const u8, row_bytes: u64, rows: u64, cols: u64, x: *const f32, n: u64, y: *mut f32, stride: u64, first: u64,
    }
    Spread { x: *const f32, to: *mut f32, n: u64, cols: u64 }
    Decode { w: *const u8, row_bytes: u64, rows: u64, cols: u64, y: *mut f32 }
    Norm { x: *const f32, weight: *const f32, y: *mut f32, rows: u64, dim: u64, eps: f32, unused: u32 }
    Turn {
        x: *mut f32, table: *const f32, n: u64, heads: u64, head_dim: u64, rotary: u64, interleaved: u32, unused: u32,
    }
    Attention {
        q: *const f32, k: *const f32, v: *const f32, out: *mut f32,
        first: u64, n: u64, start: u64, heads: u64, kv_heads: u64, head_dim: u64, value_dim: u64, window: u64,
        scale: f32, softcap: f32, alibi: u32, whole: u32,
    }
    Gated { gate: *mut f32, up: *const f32, len: u64, gelu: u32, unused: u32 }
    Flat { y: *mut f32, x: *const f32, len: u64 }
    Rows { y: *mut f32, by: *const f32, n: u64, dim: u64 }
    Scatter { x: *const f32, rows: *const u32, factors: *const f32, y: *mut f32, count: u64, dim: u64 }
    Gather { x: *const f32, rows: *const u32, y: *mut f32, count: u64, dim: u64 }
    Reorder { x: *const f32, order: *const f32, y: *mut f32, n: u64, dim: u64 }
    Placing {
        x: *const f32, y: *mut f32, rows: u64, repeat: u64, width: u64,
        from_stride: u64, from_first: u64, to_stride: u64, to_first: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::FIELDS;

    /// The fields of the structures in `abi.h`, with the types that Rust has for them.
    fn declared(header: &str) -> Vec<Vec<(String, String)>> {
        let bodies = header.split("typedef struct {").skip(1).filter_map(|rest| rest.split('}').next());
        let fields = |body: &str| -> Vec<(String, String)> {
            let lines = body.split(';').map(str::trim).filter(|line| !line.is_empty());
            let line = |line: &str| -> Vec<(String, String)> {
                let (constant, rest) = line.strip_prefix("const ").map_or((false, line), |rest| (true, rest));
                let (c, names) = rest.split_once(' ').unwrap();
                let rust = match c {
                    "float" => "f32",
                    "uint8_t" => "u8",
                    "uint32_t" => "u32",
                    "uint64_t" => "u64",
                    other => panic!("{other} in abi.h"),
                };
                let names = names.split(',').map(str::trim);
                names
                    .map(|name| match name.strip_prefix('*') {
                        Some(name) if constant => (name.into(), format!("*const {rust}")),
                        Some(name) => (name.into(), format!("*mut {rust}")),
                        None => (name.into(), rust.into()),
                    })
                    .collect()
            };
            lines.flat_map(line).collect()
        };
        bodies.map(fields).collect()
    }

    #[test]
    fn the_header_has_the_same_fields() {
        let header = include_str!("../../../kernels/include/abi.h");
        let declared = declared(header);
        assert_eq!(declared.len(), FIELDS.len());
        for (theirs, ours) in declared.iter().zip(FIELDS) {
            let theirs: Vec<_> = theirs.iter().map(|(name, kind)| (&name[..], &kind[..])).collect();
            assert_eq!(&theirs[..], *ours);
        }
        // Sizes of blocks, by their names without the prefix.
        let size = |name: &str| -> usize {
            let line = header.lines().find_map(|line| line.strip_prefix(&format!("#define AIRLLM_{name} ")));
            line.unwrap().parse().unwrap()
        };
        assert_eq!(size("FLAT_THREADS"), super::FLAT_THREADS as usize);
        assert_eq!(size("GEMV_ROWS"), super::GEMV_ROWS);
        assert_eq!(size("GEMV_THREADS"), super::GEMV_THREADS as usize);
        assert_eq!(size("SLICE"), super::SLICE);
        assert_eq!(size("GEMM_ROWS"), super::GEMM_ROWS);
        assert_eq!(size("GEMM_TOKENS"), super::GEMM_TOKENS);
        assert_eq!(size("GEMM_THREADS"), super::GEMM_THREADS as usize);
        assert_eq!(size("NORM_THREADS"), super::NORM_THREADS as usize);
        assert_eq!(size("ATTEND_THREADS"), super::ATTEND_THREADS as usize);
    }
}
