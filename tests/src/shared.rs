//! The reference fixtures beside the repository, which a fresh clone does not have.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> PathBuf {
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
