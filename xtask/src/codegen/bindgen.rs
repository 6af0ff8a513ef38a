//! The program behind `cargo xtask codegen`: a header of C as Rust, on standard output.
//!
//! `codegen HEADER INCLUDE`: `INCLUDE` is the only folder that system headers are looked for in, so that what comes out
//! does not depend on the machine. libclang is that of `LIBCLANG_PATH`, or where the loader looks.

use anyhow::{Context, Result, ensure};
use std::io::Write;

/// The layout of structures is that of this target on any machine that the engine runs on: numbers of 32 and 64 bits,
/// pointers of 64.
const TARGET: &str = "--target=x86_64-unknown-linux-gnu";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [header, include] = &args[..] else {
        anyhow::bail!("expected a header and a folder of system headers")
    };
    let bindings = bindgen::Builder::default()
        .header(header)
        .clang_args([TARGET, "-std=c11", "-nostdinc", "-isystem", include])
        .allowlist_file(".*abi\\.h")
        .allowlist_recursively(false)
        // The header is where they are read, next to the kernels.
        .generate_comments(false)
        .use_core()
        .disable_header_comment()
        .formatter(bindgen::Formatter::None)
        .generate()
        .with_context(|| format!("translating {header}"))?;
    let text = bindings.to_string();
    ensure!(text.contains("pub struct"), "no structure came out of {header}");
    std::io::stdout().write_all(text.as_bytes()).context("writing")
}
