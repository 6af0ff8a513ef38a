//! Chores of the repository: `cargo xtask tidy | ci | build-kernels | random-model | report`.

mod build_kernels;
mod ci;
mod random_model;
mod report;
mod tidy;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Chores of the repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check what the compiler does not: crate layering, module docs, file lengths, unsafe, licences
    Tidy,
    /// Run every check: fmt, clippy, tidy, tests, docs
    Ci {
        /// Leave out the tests that a plain `cargo test` has run already
        #[arg(long)]
        no_tests: bool,
        /// Also run the CUDA kernels on the host under the address and undefined-behaviour sanitizers; minutes
        #[arg(long)]
        sanitize: bool,
    },
    /// Compile the CUDA kernels with nvcc into target/kernels
    BuildKernels(build_kernels::Args),
    /// Write a Llama checkpoint with random weights in the Hugging Face layout
    RandomModel(Box<random_model::Args>),
    /// Render benches/results/*.json into benches/results/README.md
    Report {
        /// Change nothing; fail if the page is not up to date
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().chore {
        Chore::Tidy => tidy::run(&root()),
        Chore::Ci { no_tests, sanitize } => ci::run(&root(), no_tests, sanitize),
        Chore::BuildKernels(args) => build_kernels::run(&root(), &args),
        Chore::RandomModel(args) => random_model::run(&args),
        Chore::Report { check } => report::run(&root(), check),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Reads a text file, naming it when that fails.
fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}
