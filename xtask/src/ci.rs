//! `cargo xtask ci`: every check of the repository, one after the other.

use crate::tidy;
use airllm_tests::program::cargo;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Instant;

/// Runs all checks, even after one has failed, and fails if any did.
pub fn run(root: &Path, no_tests: bool) -> Result<()> {
    let mut steps: Vec<Step> = vec![
        Step::cargo("fmt", "fmt --all -- --check", &[]),
        Step::cargo("clippy", "clippy --workspace --all-targets -- -D warnings", &[]),
        Step { name: "tidy", run: Box::new(tidy::run) },
        Step::cargo("docs", "doc --workspace --no-deps --lib", &[("RUSTDOCFLAGS", "-D warnings")]),
        // Loom exchanges the ring's locks for its own and explores every interleaving.
        Step::cargo("loom", "test --package airllm-stream --lib --features loom", &[]),
        // Not among the default members, so a plain `cargo test` leaves them out.
        Step::cargo("tests of chores", "test --package xtask --package airllm-benches", &[]),
    ];
    if !no_tests {
        steps.push(Step::cargo("tests", "test", &[]));
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
