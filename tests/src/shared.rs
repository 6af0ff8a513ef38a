//! The reference fixtures beside the repository, which a fresh clone does not have.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The root of the repository: where this was built, or what `AIRLLM_REPOSITORY` says, for programs that were taken away
/// from there.
pub fn repository() -> PathBuf {
    if let Some(elsewhere) = std::env::var_os("AIRLLM_REPOSITORY") {
        return elsewhere.into();
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder `../shared`, or `None` after saying that the running test is skipped.
///
/// ```no_run
/// let Some(shared) = airllm_tests::shared::dir() else { return };
/// let fixture = shared.join("fixtures/llama2_mha");
/// ```
pub fn dir() -> Option<PathBuf> {
    let dir = repository().join("../shared");
    if let Ok(dir) = dir.canonicalize() {
        return Some(dir);
    }
    skip("../shared not there");
    None
}

/// Says on standard error that the running test is skipped, and why.
///
/// The test harness has no word for "skipped" and swallows what a passing test prints, so the line goes
/// straight to the descriptor. `cargo xtask ci` and `.ci/run` count these lines.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // One write, so that lines of parallel tests stay whole; a closed stderr is no reason to fail.
    let _ = std::io::stderr().write_all(format!("skipped: {reason} ({test})\n").as_bytes());
}

/// A reference checkpoint that runs from its folder alone, with the largest accepted differences.
#[derive(Debug, Clone, Copy)]
pub struct Fixture {
    /// Its folder in `../shared/fixtures`.
    pub name: &'static str,
    /// Accepted difference of logits.
    pub logits: f32,
    /// Accepted difference of hidden states.
    pub hidden: f32,
}

const fn fixture(name: &'static str) -> Fixture {
    Fixture { name, logits: 2e-4, hidden: 3e-4 }
}

/// Every such checkpoint; differences are those of the fixtures' own table.
pub const FIXTURES: &[Fixture] = &[
    fixture("llama2_mha"),
    Fixture { logits: 3e-4, ..fixture("llama32_gqa_tied") },
    fixture("llama_rope_linear"),
    fixture("llama_rope_dynamic"),
    fixture("llama_rope_yarn"),
    fixture("llama_v5_config"),
    fixture("llama_bias"),
    Fixture { logits: 3e-4, ..fixture("llama_f32") },
    fixture("mistral_swa"),
    fixture("mixtral"),
    fixture("qwen1"),
    fixture("qwen1_ntk_logn"),
    fixture("qwen2"),
    fixture("qwen3"),
    fixture("qwen2_moe"),
    fixture("qwen3_moe"),
    fixture("chatglm"),
    fixture("chatglm_rope_ratio"),
    fixture("glm_native"),
    fixture("glm4_native"),
    Fixture { hidden: 5e-4, ..fixture("baichuan_7b") },
    fixture("baichuan_13b"),
    fixture("baichuan2_7b"),
    fixture("baichuan2_13b"),
    fixture("phi3"),
    Fixture { logits: 6e-4, hidden: 1e-3, ..fixture("phi3_longrope") },
    Fixture { logits: 3e-4, ..fixture("gemma2") },
    fixture("gemma3_text"),
    Fixture { hidden: 4e-4, ..fixture("deepseek_v3") },
    fixture("gptq_sym_g128"),
    fixture("gptq_actorder"),
    fixture("awq_gemm"),
    fixture("bnb_nf4"),
    fixture("bnb_nf4_double"),
    fixture("bnb_int8"),
];
