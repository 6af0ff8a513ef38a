//! `cargo xtask ci`: every check of the repository, one after the other.

use crate::{bundle, codegen, tidy};
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
        // Loom exchanges the locks of the ring and of the processor's threads for its own and explores every interleaving.
        Step::cargo("loom, ring", "test --package airllm-stream --lib --features loom", &[]),
        Step::cargo(
            "loom, threads",
            "test --package airllm-kernels --lib --features loom interleavings",
            &[],
        ),
        // Not among the default members, so a plain `cargo test` leaves them out.
        Step::cargo("tests of chores", "test --package xtask --package airllm-benches", &[]),
        Step { name: "structures of kernels", run: Box::new(codegen::ci) },
        Step { name: "CUDA kernels on the host", run: Box::new(|_| emu()) },
    ];
    if !no_tests {
        steps.push(Step::cargo("tests", "test", &[]));
    }
    if sanitize {
        // In one order of threads: which memory a kernel touches does not depend on it.
        steps.push(Step::cargo(
            "kernels under sanitizers",
            "test --package airllm-kernels --package airllm-tests --features airllm-kernels/emu,airllm-tests/emu --lib \
             --test emu --test emu_model -- --skip reverse:: --skip random::",
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
        "test --package airllm-standin --features emu,airllm-kernels/standin",
        "test --package airllm-tests --features standin --test emu --test emu_model --test cuda \
         --test cuda_order --test cuda_run",
    ] {
        let status = cargo().args(args.split_whitespace()).status().context("starting cargo")?;
        ensure!(status.success(), "cargo {args}: {status}");
    }
    // Their own tests, and those of the device with the stand-in for its driver: cargo gives its folder to the tests of packages that
    // depend on it alone.
    const OWN: &str = "test --package airllm-kernels --features emu,standin --lib";
    let mut folders = vec![bundle::standin_folder("dev")?];
    folders.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
    let path = std::env::join_paths(folders).context("the folder of the stand-in")?;
    let mut command = cargo();
    let status =
        command.args(OWN.split(' ')).env("LD_LIBRARY_PATH", path).status().context("starting cargo")?;
    ensure!(status.success(), "cargo {OWN}: {status}");
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
