//! `cargo xtask ci`: every check of the repository, one after the other.

use crate::{codegen, tidy};
use airllm_tests::program::cargo;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs all checks, even after one has failed, and fails if any did.
pub fn run(root: &Path, no_tests: bool, sanitize: bool) -> Result<()> {
    let mut steps: Vec<Step> = vec![
        Step::cargo("fmt", "fmt --all -- --check", &[]),
        Step::cargo("clippy", "clippy --workspace --all-targets -- -D warnings", &[]),
        Step { name: "tidy", run: Box::new(tidy::run) },
        Step::cargo("docs", "doc --workspace --no-deps --lib", &[("RUSTDOCFLAGS", "-D warnings")]),
        // Loom exchanges the ring's locks for its own and explores every interleaving.
        Step::cargo("loom", "test --package airllm-stream --lib --features loom", &[]),
        // Not among the default members, so a plain `cargo test` leaves them out.
        Step::cargo("tests of chores", "test --package xtask --package airllm-benches", &[]),
        Step { name: "structures of kernels", run: Box::new(codegen::ci) },
        Step { name: "CUDA kernels on the host", run: Box::new(|_| emu()) },
    ];
    if !no_tests {
        steps.push(Step::cargo("tests", "test", &[]));
    }
    if sanitize {
        steps.push(Step::cargo(
            "kernels under sanitizers",
            "test --package airllm-tests --features emu --test emu --test emu_model",
            &[("AIRLLM_EMU_SANITIZE", "1"), ("ASAN_OPTIONS", "detect_leaks=0")],
        ));
    }
    let mut failed = Vec::new();
    for step in steps {
        eprintln!("== {}", step.name);
        let start = Instant::now();
        match (step.run)(root) {
            Ok(()) => eprintln!("== {}: passed, {:.0} s", step.name, start.elapsed().as_secs_f64()),
            Err(error) => {
                eprintln!("== {}: FAILED: {error:#}", step.name);
                failed.push(step.name);
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The kernels, thread by thread on this machine. Where there is no compiler for them, that is said and all is well: it is
/// not among what the repository asks for.
fn emu() -> Result<()> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut check = Command::new(&compiler);
    check.args(["-std=c++20", "-x", "c++", "-fsyntax-only", "-"]);
    if !compiles(check)? {
        eprintln!("skipped: {compiler} is no compiler for C++20, which the kernels on the host need");
        return Ok(());
    }
    for args in [
        // One set of features for all of them, so that the kernels are compiled once.
        "clippy --package airllm-kernels --package airllm-standin --package airllm-tests --features \
         airllm-kernels/emu,airllm-kernels/standin,airllm-standin/emu,airllm-tests/standin --all-targets -- -D warnings",
        "test --package airllm-kernels --features emu,standin --lib",
        "test --package airllm-standin --features emu,airllm-kernels/standin",
        "test --package airllm-tests --features standin --test emu --test emu_model --test cuda \
         --test cuda_order --test cuda_run",
    ] {
        let status = cargo().args(args.split_whitespace()).status().context("starting cargo")?;
        ensure!(status.success(), "cargo {args}: {status}");
    }
    Ok(())
}

/// Whether a compiler takes what the kernels are written in.
fn compiles(mut command: Command) -> Result<bool> {
    const SOURCE: &[u8] =
        b"#include <bit>\n_Float16 h = 1; float f = std::bit_cast<float>(1u) + static_cast<float>(h);\n";
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = child else { return Ok(false) };
    if let Some(mut input) = child.stdin.take() {
        // A compiler that ends early says so by its status.
        let _ = input.write_all(SOURCE);
    }
    Ok(child.wait().context("waiting for the compiler")?.success())
}

struct Step {
    name: &'static str,
    run: Run,
}

type Run = Box<dyn FnOnce(&Path) -> Result<()>>;

impl Step {
    /// A cargo command, with variables put over the environment.
    fn cargo(name: &'static str, args: &'static str, env: &'static [(&str, &str)]) -> Self {
        let run = move |_: &Path| {
            let status =
                cargo().args(args.split(' ')).envs(env.iter().copied()).status().context("starting cargo")?;
            ensure!(status.success(), "cargo {args}: {status}");
            Ok(())
        };
        Self { name, run: Box::new(run) }
    }
}
