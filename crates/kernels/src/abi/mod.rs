//! The structures that kernels take: those of `kernels/include/abi.h`, where each is documented.
//!
//! `generated.rs` is what bindgen makes of that header (`cargo xtask codegen`); a test compares the two without bindgen.
//! Here are the names that the crate has for them.

// Bindgen knows the header, not what of it the crate uses.
#[allow(dead_code, missing_docs)]
mod generated;

pub(crate) use generated::{
    AIRLLM_ATTEND_THREADS as ATTEND_THREADS, AIRLLM_FLAT_THREADS as FLAT_THREADS,
    AIRLLM_GEMM_THREADS as GEMM_THREADS, AIRLLM_GEMV_THREADS as GEMV_THREADS,
    AIRLLM_MMA_EXACT_THREADS as MMA_EXACT_THREADS, AIRLLM_MMA_SMALL_THREADS as MMA_SMALL_THREADS,
    AIRLLM_MMA_THREADS as MMA_THREADS, AIRLLM_NORM_THREADS as NORM_THREADS,
    AIRLLM_PREPARE_THREADS as PREPARE_THREADS, AttendParams as Attention, CachedParams as Cached,
    DecodeParams as Decode, FlatParams as Flat, GatedParams as Gated, GatherParams as Gather,
    LayerNormParams as LayerNorm, LoraParams as Lora, NormAddParams as NormAdd, NormParams as Norm,
    PickParams as Pick, PlaceParams as Placing, PrepareParams as Prepare, ProductParams as Product,
    PromptProductParams as PromptProduct, ReorderParams as Reorder, RopeParams as Turn, RouteParams as Route,
    RowsParams as Rows, ScatterParams as Scatter, SpreadParams as Spread, StoreParams as Store,
};
#[cfg(all(test, feature = "emu"))]
pub(crate) use generated::{
    AIRLLM_LORA_THREADS as LORA_THREADS, AIRLLM_PICK_THREADS as PICK_THREADS,
    AIRLLM_ROUTE_THREADS as ROUTE_THREADS,
};

/// What kernels take that only tests launch yet.
#[cfg(all(test, feature = "emu"))]
mod tested {
    use super::generated;
    pub(crate) const PICK_MOST: usize = generated::AIRLLM_PICK_MOST as usize;
    pub(crate) const LORA_ROWS: usize = generated::AIRLLM_LORA_ROWS as usize;
    pub(crate) const LORA_TOKENS: usize = generated::AIRLLM_LORA_TOKENS as usize;
}
#[cfg(all(test, feature = "emu"))]
pub(crate) use tested::{LORA_ROWS, LORA_TOKENS, PICK_MOST};

/// Rows in a block of `gemv`.
pub(crate) const GEMV_ROWS: usize = generated::AIRLLM_GEMV_ROWS as usize;
/// Columns that a warp of `gemv` takes in one turn.
pub(crate) const SLICE: usize = generated::AIRLLM_SLICE as usize;
/// Rows and tokens in a block of `gemm`.
pub(crate) const GEMM_ROWS: usize = generated::AIRLLM_GEMM_ROWS as usize;
pub(crate) const GEMM_TOKENS: usize = generated::AIRLLM_GEMM_TOKENS as usize;
/// Rows, tokens (half of them where they come in two parts) and columns of a turn of `gemm_mma`.
pub(crate) const MMA_ROWS: usize = generated::AIRLLM_MMA_ROWS as usize;
pub(crate) const MMA_TOKENS: usize = generated::AIRLLM_MMA_TOKENS as usize;
pub(crate) const MMA_SMALL_ROWS: usize = generated::AIRLLM_MMA_SMALL_ROWS as usize;
pub(crate) const MMA_SMALL_TOKENS: usize = generated::AIRLLM_MMA_SMALL_TOKENS as usize;
pub(crate) const MMA_EXACT_ROWS: usize = generated::AIRLLM_MMA_EXACT_ROWS as usize;
pub(crate) const MMA_EXACT_TOKENS: usize = generated::AIRLLM_MMA_EXACT_TOKENS as usize;
pub(crate) const MMA_COLS: usize = generated::AIRLLM_MMA_COLS as usize;
/// Queries in a block of `attend_prompt`, and the most numbers of a head.
pub(crate) const ATTEND_QUERIES: usize = generated::AIRLLM_ATTEND_QUERIES as usize;
pub(crate) const ATTEND_WIDEST: usize = generated::AIRLLM_ATTEND_WIDEST as usize;
/// Positions in a chunk of `attend_chunk`, and the columns to a multiple of which it pads queries.
pub(crate) const ATTEND_CHUNK: usize = generated::AIRLLM_ATTEND_CHUNK as usize;
pub(crate) const ATTEND_COLS: usize = generated::AIRLLM_ATTEND_COLS as usize;
/// Most bytes of shared memory that `attend` has beside what it is given at launch.
pub(crate) const ATTEND_SHARED: usize = 17_440;
/// Shared memory that a block has on every device.
pub(crate) const SHARED: usize = 48 << 10;

#[cfg(test)]
mod tests {
    const HEADER: &str = include_str!("../../../../kernels/include/abi.h");
    const GENERATED: &str = include_str!("generated.rs");

    /// A structure: its name, and the names and types of its fields.
    type Structure = (String, Vec<(String, String)>);

    /// The structures of the header, with the types that Rust has for them.
    fn declared() -> Vec<Structure> {
        let bodies = HEADER.split("typedef struct {").skip(1);
        let line = |line: &str| -> Vec<(String, String)> {
            let (constant, rest) = line.strip_prefix("const ").map_or((false, line), |rest| (true, rest));
            let (c, names) = rest.split_once(' ').unwrap();
            let rust = match c {
                "float" => "f32",
                "uint8_t" => "u8",
                "uint16_t" => "u16",
                "int32_t" => "i32",
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
        let structure = |text: &str| -> Structure {
            let (body, rest) = text.split_once('}').unwrap();
            let (name, _) = rest.split_once(';').unwrap();
            let lines = uncommented(body);
            let lines = lines.split(';').map(str::trim).filter(|line| !line.is_empty());
            (name.trim().into(), lines.flat_map(line).collect())
        };
        bodies.map(structure).collect()
    }

    fn uncommented(text: &str) -> String {
        let mut parts = text.split("/*");
        let first = parts.next().unwrap_or_default().to_owned();
        first + &parts.map(|part| part.split_once("*/").unwrap().1).collect::<String>()
    }

    /// The structures of the file that bindgen wrote.
    fn generated() -> Vec<Structure> {
        let structure = |text: &str| -> Structure {
            let (name, rest) = text.split_once(" {").unwrap();
            let (body, _) = rest.split_once('}').unwrap();
            let lines = body.split(',').filter_map(|line| line.trim().strip_prefix("pub "));
            let field =
                |line: &str| line.split_once(": ").map(|(name, kind)| (name.into(), kind.into())).unwrap();
            (name.into(), lines.map(field).collect())
        };
        GENERATED.split("pub struct ").skip(1).map(structure).collect()
    }

    #[test]
    fn the_header_has_the_same_structures() {
        let (declared, generated) = (declared(), generated());
        assert!(declared.len() >= 13);
        assert_eq!(declared, generated, "run `cargo xtask codegen`");
    }

    #[test]
    fn the_header_has_the_same_numbers() {
        let header = HEADER.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' '));
        let header: Vec<_> = header.map(|(name, value)| (name, value.trim())).collect();
        let rust =
            GENERATED.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(": u32 = "));
        let rust: Vec<_> = rust.map(|(name, value)| (name, value.trim_end_matches(';'))).collect();
        assert!(header.len() >= 9);
        assert_eq!(header, rust, "run `cargo xtask codegen`");
    }
}
