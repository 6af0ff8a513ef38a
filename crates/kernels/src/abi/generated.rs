//! Written by `cargo xtask codegen` from `kernels/include/abi.h`, where everything is documented.

pub const AIRLLM_FLAT_THREADS: u32 = 256;
pub const AIRLLM_GEMV_ROWS: u32 = 4;
pub const AIRLLM_GEMV_THREADS: u32 = 128;
pub const AIRLLM_SLICE: u32 = 1024;
pub const AIRLLM_GEMM_ROWS: u32 = 64;
pub const AIRLLM_GEMM_TOKENS: u32 = 32;
pub const AIRLLM_GEMM_THREADS: u32 = 128;
pub const AIRLLM_MMA_ROWS: u32 = 128;
pub const AIRLLM_MMA_TOKENS: u32 = 128;
pub const AIRLLM_MMA_THREADS: u32 = 256;
pub const AIRLLM_MMA_SMALL_ROWS: u32 = 64;
pub const AIRLLM_MMA_SMALL_TOKENS: u32 = 64;
pub const AIRLLM_MMA_SMALL_THREADS: u32 = 128;
pub const AIRLLM_MMA_EXACT_ROWS: u32 = 64;
pub const AIRLLM_MMA_EXACT_TOKENS: u32 = 128;
pub const AIRLLM_MMA_EXACT_THREADS: u32 = 128;
pub const AIRLLM_MMA_COLS: u32 = 64;
pub const AIRLLM_PREPARE_THREADS: u32 = 256;
pub const AIRLLM_NORM_THREADS: u32 = 256;
pub const AIRLLM_ATTEND_THREADS: u32 = 128;
pub const AIRLLM_PICK_THREADS: u32 = 256;
pub const AIRLLM_PICK_MOST: u32 = 64;
pub const AIRLLM_ROUTE_THREADS: u32 = 32;
pub const AIRLLM_LORA_ROWS: u32 = 8;
pub const AIRLLM_LORA_TOKENS: u32 = 8;
pub const AIRLLM_LORA_THREADS: u32 = 256;
pub const AIRLLM_ATTEND_QUERIES: u32 = 64;
pub const AIRLLM_ATTEND_WIDEST: u32 = 256;
pub const AIRLLM_ATTEND_CHUNK: u32 = 256;
pub const AIRLLM_ATTEND_COLS: u32 = 128;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ProductParams {
    pub w: *const u8,
    pub row_bytes: u64,
    pub rows: u64,
    pub cols: u64,
    pub x: *const f32,
    pub n: u64,
    pub y: *mut f32,
    pub stride: u64,
    pub first: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ProductParams"][::core::mem::size_of::<ProductParams>() - 72usize];
    ["Alignment of ProductParams"][::core::mem::align_of::<ProductParams>() - 8usize];
    ["Offset of field: ProductParams::w"][::core::mem::offset_of!(ProductParams, w) - 0usize];
    ["Offset of field: ProductParams::row_bytes"][::core::mem::offset_of!(ProductParams, row_bytes) - 8usize];
    ["Offset of field: ProductParams::rows"][::core::mem::offset_of!(ProductParams, rows) - 16usize];
    ["Offset of field: ProductParams::cols"][::core::mem::offset_of!(ProductParams, cols) - 24usize];
    ["Offset of field: ProductParams::x"][::core::mem::offset_of!(ProductParams, x) - 32usize];
    ["Offset of field: ProductParams::n"][::core::mem::offset_of!(ProductParams, n) - 40usize];
    ["Offset of field: ProductParams::y"][::core::mem::offset_of!(ProductParams, y) - 48usize];
    ["Offset of field: ProductParams::stride"][::core::mem::offset_of!(ProductParams, stride) - 56usize];
    ["Offset of field: ProductParams::first"][::core::mem::offset_of!(ProductParams, first) - 64usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SpreadParams {
    pub x: *const f32,
    pub to: *mut f32,
    pub n: u64,
    pub cols: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SpreadParams"][::core::mem::size_of::<SpreadParams>() - 32usize];
    ["Alignment of SpreadParams"][::core::mem::align_of::<SpreadParams>() - 8usize];
    ["Offset of field: SpreadParams::x"][::core::mem::offset_of!(SpreadParams, x) - 0usize];
    ["Offset of field: SpreadParams::to"][::core::mem::offset_of!(SpreadParams, to) - 8usize];
    ["Offset of field: SpreadParams::n"][::core::mem::offset_of!(SpreadParams, n) - 16usize];
    ["Offset of field: SpreadParams::cols"][::core::mem::offset_of!(SpreadParams, cols) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct PrepareParams {
    pub x: *const f32,
    pub to: *mut u8,
    pub factors: *mut f32,
    pub n: u64,
    pub cols: u64,
    pub padded: u64,
    pub parts: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PrepareParams"][::core::mem::size_of::<PrepareParams>() - 56usize];
    ["Alignment of PrepareParams"][::core::mem::align_of::<PrepareParams>() - 8usize];
    ["Offset of field: PrepareParams::x"][::core::mem::offset_of!(PrepareParams, x) - 0usize];
    ["Offset of field: PrepareParams::to"][::core::mem::offset_of!(PrepareParams, to) - 8usize];
    ["Offset of field: PrepareParams::factors"][::core::mem::offset_of!(PrepareParams, factors) - 16usize];
    ["Offset of field: PrepareParams::n"][::core::mem::offset_of!(PrepareParams, n) - 24usize];
    ["Offset of field: PrepareParams::cols"][::core::mem::offset_of!(PrepareParams, cols) - 32usize];
    ["Offset of field: PrepareParams::padded"][::core::mem::offset_of!(PrepareParams, padded) - 40usize];
    ["Offset of field: PrepareParams::parts"][::core::mem::offset_of!(PrepareParams, parts) - 48usize];
    ["Offset of field: PrepareParams::unused"][::core::mem::offset_of!(PrepareParams, unused) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct PromptProductParams {
    pub w: *const u8,
    pub row_bytes: u64,
    pub rows: u64,
    pub cols: u64,
    pub x: *const u8,
    pub factors: *const f32,
    pub n: u64,
    pub padded: u64,
    pub y: *mut f32,
    pub stride: u64,
    pub first: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PromptProductParams"][::core::mem::size_of::<PromptProductParams>() - 88usize];
    ["Alignment of PromptProductParams"][::core::mem::align_of::<PromptProductParams>() - 8usize];
    ["Offset of field: PromptProductParams::w"][::core::mem::offset_of!(PromptProductParams, w) - 0usize];
    ["Offset of field: PromptProductParams::row_bytes"]
        [::core::mem::offset_of!(PromptProductParams, row_bytes) - 8usize];
    ["Offset of field: PromptProductParams::rows"]
        [::core::mem::offset_of!(PromptProductParams, rows) - 16usize];
    ["Offset of field: PromptProductParams::cols"]
        [::core::mem::offset_of!(PromptProductParams, cols) - 24usize];
    ["Offset of field: PromptProductParams::x"][::core::mem::offset_of!(PromptProductParams, x) - 32usize];
    ["Offset of field: PromptProductParams::factors"]
        [::core::mem::offset_of!(PromptProductParams, factors) - 40usize];
    ["Offset of field: PromptProductParams::n"][::core::mem::offset_of!(PromptProductParams, n) - 48usize];
    ["Offset of field: PromptProductParams::padded"]
        [::core::mem::offset_of!(PromptProductParams, padded) - 56usize];
    ["Offset of field: PromptProductParams::y"][::core::mem::offset_of!(PromptProductParams, y) - 64usize];
    ["Offset of field: PromptProductParams::stride"]
        [::core::mem::offset_of!(PromptProductParams, stride) - 72usize];
    ["Offset of field: PromptProductParams::first"]
        [::core::mem::offset_of!(PromptProductParams, first) - 80usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct DecodeParams {
    pub w: *const u8,
    pub row_bytes: u64,
    pub rows: u64,
    pub cols: u64,
    pub y: *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of DecodeParams"][::core::mem::size_of::<DecodeParams>() - 40usize];
    ["Alignment of DecodeParams"][::core::mem::align_of::<DecodeParams>() - 8usize];
    ["Offset of field: DecodeParams::w"][::core::mem::offset_of!(DecodeParams, w) - 0usize];
    ["Offset of field: DecodeParams::row_bytes"][::core::mem::offset_of!(DecodeParams, row_bytes) - 8usize];
    ["Offset of field: DecodeParams::rows"][::core::mem::offset_of!(DecodeParams, rows) - 16usize];
    ["Offset of field: DecodeParams::cols"][::core::mem::offset_of!(DecodeParams, cols) - 24usize];
    ["Offset of field: DecodeParams::y"][::core::mem::offset_of!(DecodeParams, y) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct NormParams {
    pub x: *const f32,
    pub weight: *const f32,
    pub y: *mut f32,
    pub rows: u64,
    pub dim: u64,
    pub eps: f32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NormParams"][::core::mem::size_of::<NormParams>() - 48usize];
    ["Alignment of NormParams"][::core::mem::align_of::<NormParams>() - 8usize];
    ["Offset of field: NormParams::x"][::core::mem::offset_of!(NormParams, x) - 0usize];
    ["Offset of field: NormParams::weight"][::core::mem::offset_of!(NormParams, weight) - 8usize];
    ["Offset of field: NormParams::y"][::core::mem::offset_of!(NormParams, y) - 16usize];
    ["Offset of field: NormParams::rows"][::core::mem::offset_of!(NormParams, rows) - 24usize];
    ["Offset of field: NormParams::dim"][::core::mem::offset_of!(NormParams, dim) - 32usize];
    ["Offset of field: NormParams::eps"][::core::mem::offset_of!(NormParams, eps) - 40usize];
    ["Offset of field: NormParams::unused"][::core::mem::offset_of!(NormParams, unused) - 44usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct NormAddParams {
    pub x: *mut f32,
    pub h: *const f32,
    pub weight: *const f32,
    pub y: *mut f32,
    pub rows: u64,
    pub dim: u64,
    pub eps: f32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NormAddParams"][::core::mem::size_of::<NormAddParams>() - 56usize];
    ["Alignment of NormAddParams"][::core::mem::align_of::<NormAddParams>() - 8usize];
    ["Offset of field: NormAddParams::x"][::core::mem::offset_of!(NormAddParams, x) - 0usize];
    ["Offset of field: NormAddParams::h"][::core::mem::offset_of!(NormAddParams, h) - 8usize];
    ["Offset of field: NormAddParams::weight"][::core::mem::offset_of!(NormAddParams, weight) - 16usize];
    ["Offset of field: NormAddParams::y"][::core::mem::offset_of!(NormAddParams, y) - 24usize];
    ["Offset of field: NormAddParams::rows"][::core::mem::offset_of!(NormAddParams, rows) - 32usize];
    ["Offset of field: NormAddParams::dim"][::core::mem::offset_of!(NormAddParams, dim) - 40usize];
    ["Offset of field: NormAddParams::eps"][::core::mem::offset_of!(NormAddParams, eps) - 48usize];
    ["Offset of field: NormAddParams::unused"][::core::mem::offset_of!(NormAddParams, unused) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LayerNormParams {
    pub x: *const f32,
    pub weight: *const f32,
    pub bias: *const f32,
    pub y: *mut f32,
    pub rows: u64,
    pub dim: u64,
    pub eps: f32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LayerNormParams"][::core::mem::size_of::<LayerNormParams>() - 56usize];
    ["Alignment of LayerNormParams"][::core::mem::align_of::<LayerNormParams>() - 8usize];
    ["Offset of field: LayerNormParams::x"][::core::mem::offset_of!(LayerNormParams, x) - 0usize];
    ["Offset of field: LayerNormParams::weight"][::core::mem::offset_of!(LayerNormParams, weight) - 8usize];
    ["Offset of field: LayerNormParams::bias"][::core::mem::offset_of!(LayerNormParams, bias) - 16usize];
    ["Offset of field: LayerNormParams::y"][::core::mem::offset_of!(LayerNormParams, y) - 24usize];
    ["Offset of field: LayerNormParams::rows"][::core::mem::offset_of!(LayerNormParams, rows) - 32usize];
    ["Offset of field: LayerNormParams::dim"][::core::mem::offset_of!(LayerNormParams, dim) - 40usize];
    ["Offset of field: LayerNormParams::eps"][::core::mem::offset_of!(LayerNormParams, eps) - 48usize];
    ["Offset of field: LayerNormParams::unused"][::core::mem::offset_of!(LayerNormParams, unused) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct PickParams {
    pub x: *const f32,
    pub indices: *mut u32,
    pub values: *mut f32,
    pub strange: *mut u32,
    pub rows: u64,
    pub cols: u64,
    pub stride: u64,
    pub k: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PickParams"][::core::mem::size_of::<PickParams>() - 64usize];
    ["Alignment of PickParams"][::core::mem::align_of::<PickParams>() - 8usize];
    ["Offset of field: PickParams::x"][::core::mem::offset_of!(PickParams, x) - 0usize];
    ["Offset of field: PickParams::indices"][::core::mem::offset_of!(PickParams, indices) - 8usize];
    ["Offset of field: PickParams::values"][::core::mem::offset_of!(PickParams, values) - 16usize];
    ["Offset of field: PickParams::strange"][::core::mem::offset_of!(PickParams, strange) - 24usize];
    ["Offset of field: PickParams::rows"][::core::mem::offset_of!(PickParams, rows) - 32usize];
    ["Offset of field: PickParams::cols"][::core::mem::offset_of!(PickParams, cols) - 40usize];
    ["Offset of field: PickParams::stride"][::core::mem::offset_of!(PickParams, stride) - 48usize];
    ["Offset of field: PickParams::k"][::core::mem::offset_of!(PickParams, k) - 56usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RouteParams {
    pub scores: *const f32,
    pub bias: *const f32,
    pub chosen: *mut u32,
    pub weights: *mut f32,
    pub n: u64,
    pub experts: u64,
    pub top_k: u64,
    pub groups: u64,
    pub kept: u64,
    pub scale: f32,
    pub sigmoid: u32,
    pub normalise: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RouteParams"][::core::mem::size_of::<RouteParams>() - 88usize];
    ["Alignment of RouteParams"][::core::mem::align_of::<RouteParams>() - 8usize];
    ["Offset of field: RouteParams::scores"][::core::mem::offset_of!(RouteParams, scores) - 0usize];
    ["Offset of field: RouteParams::bias"][::core::mem::offset_of!(RouteParams, bias) - 8usize];
    ["Offset of field: RouteParams::chosen"][::core::mem::offset_of!(RouteParams, chosen) - 16usize];
    ["Offset of field: RouteParams::weights"][::core::mem::offset_of!(RouteParams, weights) - 24usize];
    ["Offset of field: RouteParams::n"][::core::mem::offset_of!(RouteParams, n) - 32usize];
    ["Offset of field: RouteParams::experts"][::core::mem::offset_of!(RouteParams, experts) - 40usize];
    ["Offset of field: RouteParams::top_k"][::core::mem::offset_of!(RouteParams, top_k) - 48usize];
    ["Offset of field: RouteParams::groups"][::core::mem::offset_of!(RouteParams, groups) - 56usize];
    ["Offset of field: RouteParams::kept"][::core::mem::offset_of!(RouteParams, kept) - 64usize];
    ["Offset of field: RouteParams::scale"][::core::mem::offset_of!(RouteParams, scale) - 72usize];
    ["Offset of field: RouteParams::sigmoid"][::core::mem::offset_of!(RouteParams, sigmoid) - 76usize];
    ["Offset of field: RouteParams::normalise"][::core::mem::offset_of!(RouteParams, normalise) - 80usize];
    ["Offset of field: RouteParams::unused"][::core::mem::offset_of!(RouteParams, unused) - 84usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraParams {
    pub w: *const u8,
    pub row_bytes: u64,
    pub rows: u64,
    pub cols: u64,
    pub x: *const f32,
    pub n: u64,
    pub y: *mut f32,
    pub stride: u64,
    pub first: u64,
    pub factor: f32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraParams"][::core::mem::size_of::<LoraParams>() - 80usize];
    ["Alignment of LoraParams"][::core::mem::align_of::<LoraParams>() - 8usize];
    ["Offset of field: LoraParams::w"][::core::mem::offset_of!(LoraParams, w) - 0usize];
    ["Offset of field: LoraParams::row_bytes"][::core::mem::offset_of!(LoraParams, row_bytes) - 8usize];
    ["Offset of field: LoraParams::rows"][::core::mem::offset_of!(LoraParams, rows) - 16usize];
    ["Offset of field: LoraParams::cols"][::core::mem::offset_of!(LoraParams, cols) - 24usize];
    ["Offset of field: LoraParams::x"][::core::mem::offset_of!(LoraParams, x) - 32usize];
    ["Offset of field: LoraParams::n"][::core::mem::offset_of!(LoraParams, n) - 40usize];
    ["Offset of field: LoraParams::y"][::core::mem::offset_of!(LoraParams, y) - 48usize];
    ["Offset of field: LoraParams::stride"][::core::mem::offset_of!(LoraParams, stride) - 56usize];
    ["Offset of field: LoraParams::first"][::core::mem::offset_of!(LoraParams, first) - 64usize];
    ["Offset of field: LoraParams::factor"][::core::mem::offset_of!(LoraParams, factor) - 72usize];
    ["Offset of field: LoraParams::unused"][::core::mem::offset_of!(LoraParams, unused) - 76usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RopeParams {
    pub x: *mut f32,
    pub table: *const f32,
    pub n: u64,
    pub heads: u64,
    pub head_dim: u64,
    pub rotary: u64,
    pub interleaved: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RopeParams"][::core::mem::size_of::<RopeParams>() - 56usize];
    ["Alignment of RopeParams"][::core::mem::align_of::<RopeParams>() - 8usize];
    ["Offset of field: RopeParams::x"][::core::mem::offset_of!(RopeParams, x) - 0usize];
    ["Offset of field: RopeParams::table"][::core::mem::offset_of!(RopeParams, table) - 8usize];
    ["Offset of field: RopeParams::n"][::core::mem::offset_of!(RopeParams, n) - 16usize];
    ["Offset of field: RopeParams::heads"][::core::mem::offset_of!(RopeParams, heads) - 24usize];
    ["Offset of field: RopeParams::head_dim"][::core::mem::offset_of!(RopeParams, head_dim) - 32usize];
    ["Offset of field: RopeParams::rotary"][::core::mem::offset_of!(RopeParams, rotary) - 40usize];
    ["Offset of field: RopeParams::interleaved"][::core::mem::offset_of!(RopeParams, interleaved) - 48usize];
    ["Offset of field: RopeParams::unused"][::core::mem::offset_of!(RopeParams, unused) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttendParams {
    pub q: *const f32,
    pub k: *const f32,
    pub v: *const f32,
    pub out: *mut f32,
    pub first: u64,
    pub n: u64,
    pub start: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub value_dim: u64,
    pub window: u64,
    pub scale: f32,
    pub softcap: f32,
    pub alibi: u32,
    pub whole: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttendParams"][::core::mem::size_of::<AttendParams>() - 112usize];
    ["Alignment of AttendParams"][::core::mem::align_of::<AttendParams>() - 8usize];
    ["Offset of field: AttendParams::q"][::core::mem::offset_of!(AttendParams, q) - 0usize];
    ["Offset of field: AttendParams::k"][::core::mem::offset_of!(AttendParams, k) - 8usize];
    ["Offset of field: AttendParams::v"][::core::mem::offset_of!(AttendParams, v) - 16usize];
    ["Offset of field: AttendParams::out"][::core::mem::offset_of!(AttendParams, out) - 24usize];
    ["Offset of field: AttendParams::first"][::core::mem::offset_of!(AttendParams, first) - 32usize];
    ["Offset of field: AttendParams::n"][::core::mem::offset_of!(AttendParams, n) - 40usize];
    ["Offset of field: AttendParams::start"][::core::mem::offset_of!(AttendParams, start) - 48usize];
    ["Offset of field: AttendParams::heads"][::core::mem::offset_of!(AttendParams, heads) - 56usize];
    ["Offset of field: AttendParams::kv_heads"][::core::mem::offset_of!(AttendParams, kv_heads) - 64usize];
    ["Offset of field: AttendParams::head_dim"][::core::mem::offset_of!(AttendParams, head_dim) - 72usize];
    ["Offset of field: AttendParams::value_dim"][::core::mem::offset_of!(AttendParams, value_dim) - 80usize];
    ["Offset of field: AttendParams::window"][::core::mem::offset_of!(AttendParams, window) - 88usize];
    ["Offset of field: AttendParams::scale"][::core::mem::offset_of!(AttendParams, scale) - 96usize];
    ["Offset of field: AttendParams::softcap"][::core::mem::offset_of!(AttendParams, softcap) - 100usize];
    ["Offset of field: AttendParams::alibi"][::core::mem::offset_of!(AttendParams, alibi) - 104usize];
    ["Offset of field: AttendParams::whole"][::core::mem::offset_of!(AttendParams, whole) - 108usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CachedParams {
    pub q: *const f32,
    pub k: *const u8,
    pub v: *const u8,
    pub out: *mut f32,
    pub first: u64,
    pub n: u64,
    pub start: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub value_dim: u64,
    pub window: u64,
    pub k_row: u64,
    pub k_head: u64,
    pub v_row: u64,
    pub v_head: u64,
    pub scale: f32,
    pub softcap: f32,
    pub alibi: u32,
    pub whole: u32,
    pub ends: *mut f32,
    pub sums: *mut f32,
    pub chunk: u64,
    pub chunks: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CachedParams"][::core::mem::size_of::<CachedParams>() - 176usize];
    ["Alignment of CachedParams"][::core::mem::align_of::<CachedParams>() - 8usize];
    ["Offset of field: CachedParams::q"][::core::mem::offset_of!(CachedParams, q) - 0usize];
    ["Offset of field: CachedParams::k"][::core::mem::offset_of!(CachedParams, k) - 8usize];
    ["Offset of field: CachedParams::v"][::core::mem::offset_of!(CachedParams, v) - 16usize];
    ["Offset of field: CachedParams::out"][::core::mem::offset_of!(CachedParams, out) - 24usize];
    ["Offset of field: CachedParams::first"][::core::mem::offset_of!(CachedParams, first) - 32usize];
    ["Offset of field: CachedParams::n"][::core::mem::offset_of!(CachedParams, n) - 40usize];
    ["Offset of field: CachedParams::start"][::core::mem::offset_of!(CachedParams, start) - 48usize];
    ["Offset of field: CachedParams::heads"][::core::mem::offset_of!(CachedParams, heads) - 56usize];
    ["Offset of field: CachedParams::kv_heads"][::core::mem::offset_of!(CachedParams, kv_heads) - 64usize];
    ["Offset of field: CachedParams::head_dim"][::core::mem::offset_of!(CachedParams, head_dim) - 72usize];
    ["Offset of field: CachedParams::value_dim"][::core::mem::offset_of!(CachedParams, value_dim) - 80usize];
    ["Offset of field: CachedParams::window"][::core::mem::offset_of!(CachedParams, window) - 88usize];
    ["Offset of field: CachedParams::k_row"][::core::mem::offset_of!(CachedParams, k_row) - 96usize];
    ["Offset of field: CachedParams::k_head"][::core::mem::offset_of!(CachedParams, k_head) - 104usize];
    ["Offset of field: CachedParams::v_row"][::core::mem::offset_of!(CachedParams, v_row) - 112usize];
    ["Offset of field: CachedParams::v_head"][::core::mem::offset_of!(CachedParams, v_head) - 120usize];
    ["Offset of field: CachedParams::scale"][::core::mem::offset_of!(CachedParams, scale) - 128usize];
    ["Offset of field: CachedParams::softcap"][::core::mem::offset_of!(CachedParams, softcap) - 132usize];
    ["Offset of field: CachedParams::alibi"][::core::mem::offset_of!(CachedParams, alibi) - 136usize];
    ["Offset of field: CachedParams::whole"][::core::mem::offset_of!(CachedParams, whole) - 140usize];
    ["Offset of field: CachedParams::ends"][::core::mem::offset_of!(CachedParams, ends) - 144usize];
    ["Offset of field: CachedParams::sums"][::core::mem::offset_of!(CachedParams, sums) - 152usize];
    ["Offset of field: CachedParams::chunk"][::core::mem::offset_of!(CachedParams, chunk) - 160usize];
    ["Offset of field: CachedParams::chunks"][::core::mem::offset_of!(CachedParams, chunks) - 168usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct StoreParams {
    pub x: *const f32,
    pub to: *mut u8,
    pub n: u64,
    pub heads: u64,
    pub dim: u64,
    pub row: u64,
    pub head: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of StoreParams"][::core::mem::size_of::<StoreParams>() - 56usize];
    ["Alignment of StoreParams"][::core::mem::align_of::<StoreParams>() - 8usize];
    ["Offset of field: StoreParams::x"][::core::mem::offset_of!(StoreParams, x) - 0usize];
    ["Offset of field: StoreParams::to"][::core::mem::offset_of!(StoreParams, to) - 8usize];
    ["Offset of field: StoreParams::n"][::core::mem::offset_of!(StoreParams, n) - 16usize];
    ["Offset of field: StoreParams::heads"][::core::mem::offset_of!(StoreParams, heads) - 24usize];
    ["Offset of field: StoreParams::dim"][::core::mem::offset_of!(StoreParams, dim) - 32usize];
    ["Offset of field: StoreParams::row"][::core::mem::offset_of!(StoreParams, row) - 40usize];
    ["Offset of field: StoreParams::head"][::core::mem::offset_of!(StoreParams, head) - 48usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GatedParams {
    pub gate: *mut f32,
    pub up: *const f32,
    pub len: u64,
    pub gelu: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GatedParams"][::core::mem::size_of::<GatedParams>() - 32usize];
    ["Alignment of GatedParams"][::core::mem::align_of::<GatedParams>() - 8usize];
    ["Offset of field: GatedParams::gate"][::core::mem::offset_of!(GatedParams, gate) - 0usize];
    ["Offset of field: GatedParams::up"][::core::mem::offset_of!(GatedParams, up) - 8usize];
    ["Offset of field: GatedParams::len"][::core::mem::offset_of!(GatedParams, len) - 16usize];
    ["Offset of field: GatedParams::gelu"][::core::mem::offset_of!(GatedParams, gelu) - 24usize];
    ["Offset of field: GatedParams::unused"][::core::mem::offset_of!(GatedParams, unused) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct FlatParams {
    pub y: *mut f32,
    pub x: *const f32,
    pub len: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlatParams"][::core::mem::size_of::<FlatParams>() - 24usize];
    ["Alignment of FlatParams"][::core::mem::align_of::<FlatParams>() - 8usize];
    ["Offset of field: FlatParams::y"][::core::mem::offset_of!(FlatParams, y) - 0usize];
    ["Offset of field: FlatParams::x"][::core::mem::offset_of!(FlatParams, x) - 8usize];
    ["Offset of field: FlatParams::len"][::core::mem::offset_of!(FlatParams, len) - 16usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RowsParams {
    pub y: *mut f32,
    pub by: *const f32,
    pub n: u64,
    pub dim: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RowsParams"][::core::mem::size_of::<RowsParams>() - 32usize];
    ["Alignment of RowsParams"][::core::mem::align_of::<RowsParams>() - 8usize];
    ["Offset of field: RowsParams::y"][::core::mem::offset_of!(RowsParams, y) - 0usize];
    ["Offset of field: RowsParams::by"][::core::mem::offset_of!(RowsParams, by) - 8usize];
    ["Offset of field: RowsParams::n"][::core::mem::offset_of!(RowsParams, n) - 16usize];
    ["Offset of field: RowsParams::dim"][::core::mem::offset_of!(RowsParams, dim) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ScatterParams {
    pub x: *const f32,
    pub rows: *const u32,
    pub factors: *const f32,
    pub y: *mut f32,
    pub count: u64,
    pub dim: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ScatterParams"][::core::mem::size_of::<ScatterParams>() - 48usize];
    ["Alignment of ScatterParams"][::core::mem::align_of::<ScatterParams>() - 8usize];
    ["Offset of field: ScatterParams::x"][::core::mem::offset_of!(ScatterParams, x) - 0usize];
    ["Offset of field: ScatterParams::rows"][::core::mem::offset_of!(ScatterParams, rows) - 8usize];
    ["Offset of field: ScatterParams::factors"][::core::mem::offset_of!(ScatterParams, factors) - 16usize];
    ["Offset of field: ScatterParams::y"][::core::mem::offset_of!(ScatterParams, y) - 24usize];
    ["Offset of field: ScatterParams::count"][::core::mem::offset_of!(ScatterParams, count) - 32usize];
    ["Offset of field: ScatterParams::dim"][::core::mem::offset_of!(ScatterParams, dim) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GatherParams {
    pub x: *const f32,
    pub rows: *const u32,
    pub y: *mut f32,
    pub count: u64,
    pub dim: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GatherParams"][::core::mem::size_of::<GatherParams>() - 40usize];
    ["Alignment of GatherParams"][::core::mem::align_of::<GatherParams>() - 8usize];
    ["Offset of field: GatherParams::x"][::core::mem::offset_of!(GatherParams, x) - 0usize];
    ["Offset of field: GatherParams::rows"][::core::mem::offset_of!(GatherParams, rows) - 8usize];
    ["Offset of field: GatherParams::y"][::core::mem::offset_of!(GatherParams, y) - 16usize];
    ["Offset of field: GatherParams::count"][::core::mem::offset_of!(GatherParams, count) - 24usize];
    ["Offset of field: GatherParams::dim"][::core::mem::offset_of!(GatherParams, dim) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ReorderParams {
    pub x: *const f32,
    pub order: *const f32,
    pub y: *mut f32,
    pub n: u64,
    pub dim: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ReorderParams"][::core::mem::size_of::<ReorderParams>() - 40usize];
    ["Alignment of ReorderParams"][::core::mem::align_of::<ReorderParams>() - 8usize];
    ["Offset of field: ReorderParams::x"][::core::mem::offset_of!(ReorderParams, x) - 0usize];
    ["Offset of field: ReorderParams::order"][::core::mem::offset_of!(ReorderParams, order) - 8usize];
    ["Offset of field: ReorderParams::y"][::core::mem::offset_of!(ReorderParams, y) - 16usize];
    ["Offset of field: ReorderParams::n"][::core::mem::offset_of!(ReorderParams, n) - 24usize];
    ["Offset of field: ReorderParams::dim"][::core::mem::offset_of!(ReorderParams, dim) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct PlaceParams {
    pub x: *const f32,
    pub y: *mut f32,
    pub rows: u64,
    pub repeat: u64,
    pub width: u64,
    pub from_stride: u64,
    pub from_first: u64,
    pub to_stride: u64,
    pub to_first: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PlaceParams"][::core::mem::size_of::<PlaceParams>() - 72usize];
    ["Alignment of PlaceParams"][::core::mem::align_of::<PlaceParams>() - 8usize];
    ["Offset of field: PlaceParams::x"][::core::mem::offset_of!(PlaceParams, x) - 0usize];
    ["Offset of field: PlaceParams::y"][::core::mem::offset_of!(PlaceParams, y) - 8usize];
    ["Offset of field: PlaceParams::rows"][::core::mem::offset_of!(PlaceParams, rows) - 16usize];
    ["Offset of field: PlaceParams::repeat"][::core::mem::offset_of!(PlaceParams, repeat) - 24usize];
    ["Offset of field: PlaceParams::width"][::core::mem::offset_of!(PlaceParams, width) - 32usize];
    ["Offset of field: PlaceParams::from_stride"]
        [::core::mem::offset_of!(PlaceParams, from_stride) - 40usize];
    ["Offset of field: PlaceParams::from_first"][::core::mem::offset_of!(PlaceParams, from_first) - 48usize];
    ["Offset of field: PlaceParams::to_stride"][::core::mem::offset_of!(PlaceParams, to_stride) - 56usize];
    ["Offset of field: PlaceParams::to_first"][::core::mem::offset_of!(PlaceParams, to_first) - 64usize];
};
