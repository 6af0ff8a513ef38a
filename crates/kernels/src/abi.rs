//! The structures that kernels take, field by field those of `kernels/include/abi.h`, where each is documented.
//!
//! A launch compares sizes; the order of fields is what the two files have to agree on.

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
    )*};
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
