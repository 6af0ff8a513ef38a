//! Chores of the repository: `cargo xtask tidy | ci | codegen | build-kernels | gpu-bundle | random-model | report`.

mod build_kernels;
mod bundle;
mod ci;
mod codegen;
mod random_model;
mod report;
mod tidy;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

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
    /// Write crates/kernels/src/abi/generated.rs from kernels/include/abi.h, with bindgen
    Codegen(codegen::Args),
    /// Compile the CUDA kernels with nvcc into target/kernels
    BuildKernels(build_kernels::Args),
    /// Put together what checks and measures on a machine with a GPU
    GpuBundle(bundle::Args),
    /// Write a Llama checkpoint with random weights in the Hugging Face layout
    RandomModel(Box<random_model::Args>),
    /// Render benches/results/*.json into benches/results/README.md
    Report {
        /// Change nothing; fail if the page is not up to date
        #[arg(long)]
        check: bool,
        /// First take the results from this folder: `out` of a bundle that has run
        #[arg(long, value_name = "DIR", conflicts_with = "check")]
        add: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().chore {
        Chore::Tidy => tidy::run(&root()),
        Chore::Ci { no_tests, sanitize } => ci::run(&root(), no_tests, sanitize),
        Chore::Codegen(args) => codegen::run(&root(), &args),
        Chore::BuildKernels(args) => build_kernels::run(&root(), &args),
        Chore::GpuBundle(args) => bundle::run(&root(), &args),
        Chore::RandomModel(args) => random_model::run(&args),
        Chore::Report { check, add } => report::run(&root(), check, add.as_deref()),
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

/// Makes a virtual environment of Python at `home`, with the wheels that a list names, and no others.
fn wheels(home: &Path, list: &Path) -> Result<()> {
    succeed(Command::new("python3").args(["-m", "venv"]).arg(home))?;
    let mut pip = Command::new(home.join("bin/pip"));
    succeed(pip.args(["install", "--no-deps", "--require-hashes", "-r"]).arg(list))?;
    Ok(())
}

/// Runs a command; what it said is the error where it fails.
fn succeed(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{name} {}: {}\n{}{}",
        command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" "),
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(output)
}
