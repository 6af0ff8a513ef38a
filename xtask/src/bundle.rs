//! `cargo xtask gpu-bundle`: what checks and measures on a machine that has a GPU and its driver, and nothing else.
//!
//! A folder with programs that have the kernels in them, the reference checkpoints that the tests read, and `run.sh`, which
//! says what it does. No other file is needed there, so that the folder can be copied anywhere.

use crate::{build_kernels, read, succeed};
use airllm_tests::program::cargo;
use airllm_tests::shared::FIXTURES;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes that the folder may have, without the program that may be asked for.
const MOST_BYTES: u64 = 60_000_000;
const RUN: &str = include_str!("bundle/run.sh");
/// Programs, and how cargo is asked for them. With `airllm-kernels`, whose feature they may be built with. Each has all
/// kernels in it, which are most of its bytes: so there are few.
const PROGRAMS: [(&str, &str); 2] = [
    ("build --package airllm-kernels --package airllm-benches --bin gpu-bench", "gpu-bench"),
    ("test --no-run --package airllm-kernels --package airllm-tests --test cuda", "cuda"),
];

/// The program that people use, where it is asked for.
const AIRLLM: (&str, &str) = ("build --package airllm-kernels --package airllm-cli --bin airllm", "airllm");

/// Features of a bundle for the stand-in: those of the tests, so that the kernels on the host are compiled once.
const STANDIN: [&str; 2] = ["--features", "airllm-kernels/emu,airllm-kernels/standin"];

/// Where to, and for what.
#[derive(clap::Args)]
pub struct Args {
    /// The folder; one that is there is replaced if it is a bundle
    #[arg(long, value_name = "DIR", default_value = "target/gpu-bundle")]
    out: PathBuf,
    /// Add the stand-in for the driver, so that the bundle can be tried without a GPU
    #[arg(long)]
    standin: bool,
    /// Add the program `airllm`, for models that are there: 35 MB more, of which the model that ships with it is 11
    #[arg(long)]
    airllm: bool,
    /// The profile that programs are built with; `dev` builds sooner, for a trial
    #[arg(long, default_value = "release")]
    profile: String,
}

/// Builds the programs and puts everything together.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    ensure!(
        args.standin || build_kernels::current(root)?,
        "the CUDA kernels are not built from these sources: run `cargo xtask build-kernels` first, or add --standin for a bundle that runs \
         on the stand-in alone"
    );
    let out = root.join(&args.out);
    if out.exists() {
        ensure!(out.join("run.sh").is_file(), "{} is there and is no bundle", out.display());
        std::fs::remove_dir_all(&out).with_context(|| format!("removing {}", out.display()))?;
    }
    for folder in ["bin", "repository"] {
        make(&out.join(folder))?;
    }
    let mut sizes = Vec::new();
    // First, because it is what a bundle is known by when it is replaced.
    write(&out.join("run.sh"), RUN.as_bytes())?;
    executable_mode(&out.join("run.sh"))?;
    for (command, name) in PROGRAMS.into_iter().chain(args.airllm.then_some(AIRLLM)) {
        let features: &[&str] = if args.standin { &STANDIN } else { &[] };
        let messages = messages(command, features, &args.profile)?;
        let program = messages.iter().rev().find_map(|message| executable(message, name));
        let program = program.with_context(|| format!("cargo {command} says nothing of {name}"))?;
        let to = out.join("bin").join(name);
        copy(Path::new(program), &to)?;
        // Where there is no strip, the folder is larger.
        let _ = Command::new("strip").arg(&to).status();
        sizes.push((format!("bin/{name}"), size_of_file(&to)?));
    }
    if args.standin {
        standin(&out.join("standin"), &args.profile)?;
    }
    let fixtures = fixtures(root, &out)?;
    for folder in ["repository", "shared", "standin"].map(|name| (name, out.join(name))) {
        if folder.1.is_dir() {
            sizes.push((folder.0.to_owned(), size(&folder.1)?));
        }
    }
    for (name, bytes) in sizes {
        println!("{name:<14} {:6.1} MB", bytes as f64 / 1e6);
    }
    let commit = succeed(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root))?;
    write(&out.join("commit"), &commit.stdout)?;
    let bytes = size(&out)?;
    let megabytes = bytes as f64 / 1e6;
    println!("{}: {megabytes:.1} MB, {fixtures} checkpoints; run.sh runs it", out.display());
    let program = if args.airllm { size_of_file(&out.join("bin").join(AIRLLM.1))? } else { 0 };
    // What is built for a trial is no smaller than it has to be.
    ensure!(
        bytes - program <= MOST_BYTES || args.profile == "dev",
        "{megabytes:.1} MB are more than {} MB",
        MOST_BYTES / 1_000_000
    );
    Ok(())
}

/// Builds, and answers cargo's messages.
fn messages(command: &str, features: &[&str], profile: &str) -> Result<Vec<Value>> {
    let mut build = cargo();
    build.args(command.split(' ')).args([
        "--profile",
        profile,
        "--message-format",
        "json-render-diagnostics",
    ]);
    build.args(features);
    // What cargo prints for people goes past.
    let output = build.stderr(std::process::Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "cargo {command}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("cargo says {line:?}")))
        .collect()
}

/// The program that a message says was built, if it has this name.
fn executable<'a>(message: &'a Value, name: &str) -> Option<&'a str> {
    (message["target"]["name"] == name).then(|| message["executable"].as_str())?
}

/// The library of the stand-in.
fn standin(to: &Path, profile: &str) -> Result<()> {
    make(to)?;
    copy(&standin_folder(profile)?.join("libcuda.so"), &to.join("libcuda.so.1"))?;
    let _ = Command::new("strip").arg("--strip-debug").arg(to.join("libcuda.so.1")).status();
    Ok(())
}

/// The folder that has the libraries of the stand-in, which its build script writes to: built if it is not there.
pub fn standin_folder(profile: &str) -> Result<PathBuf> {
    // The same features as in the tests, so that the kernels are compiled once.
    let features = ["--features", "airllm-standin/emu,airllm-kernels/standin"];
    let messages = messages("build --package airllm-standin --package airllm-kernels", &features, profile)?;
    let folder = messages.iter().find_map(|message| {
        let ours = message["reason"] == "build-script-executed"
            && message["package_id"]
                .as_str()
                .is_some_and(|id| id.contains("airllm-standin") || id.contains("tests/standin"));
        if ours { message["out_dir"].as_str() } else { None }
    });
    Ok(folder.context("cargo says nothing of the build of airllm-standin")?.into())
}

/// The checkpoints that the tests read: those of the repository that `tests/cuda/models.rs` names, and all of [`FIXTURES`] beside it where
/// they are.
fn fixtures(root: &Path, out: &Path) -> Result<usize> {
    let tests = read(&root.join("tests/tests/cuda/models.rs"))?;
    let named = |name: &str| {
        FIXTURES.iter().any(|fixture| fixture.name == name)
            || tests.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name)
    };
    let mut count = 0;
    for (from, to) in [
        (root.join("crates/model/tests/data"), out.join("repository/crates/model/tests/data")),
        (root.join("../shared/fixtures"), out.join("shared/fixtures")),
    ] {
        let Ok(entries) = from.read_dir() else {
            println!("skipped: {} is not there, so its checkpoints are not in the bundle", from.display());
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && named(&name) {
                copy_folder(&path, &to.join(&name))?;
                count += 1;
            }
        }
    }
    ensure!(count > 0, "tests/tests/cuda/models.rs names no checkpoint");
    Ok(count)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    make(to)?;
    for entry in from.read_dir().with_context(|| format!("listing {}", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { bail!("{} has no name", path.display()) };
        if path.is_dir() { copy_folder(&path, &to.join(name))? } else { copy(&path, &to.join(name))? }
    }
    Ok(())
}

/// Bytes of all files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in folder.read_dir().with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        bytes += if path.is_dir() { size(&path)? } else { path.metadata()?.len() };
    }
    Ok(bytes)
}

fn size_of_file(file: &Path) -> Result<u64> {
    Ok(file.metadata().with_context(|| format!("looking at {}", file.display()))?.len())
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}

#[cfg(unix)]
fn executable_mode(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} a program", file.display()))
}

#[cfg(not(unix))]
fn executable_mode(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_program_is_found_by_its_name() {
        let message =
            json!({ "reason": "compiler-artifact", "target": { "name": "cuda" }, "executable": "/x/cuda-1" });
        assert_eq!(executable(&message, "cuda"), Some("/x/cuda-1"));
        assert_eq!(executable(&message, "cuda_order"), None);
        assert_eq!(executable(&json!({ "target": { "name": "cuda" }, "executable": null }), "cuda"), None);
    }

    #[test]
    fn checkpoints_that_the_tests_name_are_taken() {
        let temp = tempfile::tempdir().unwrap();
        let (root, out) = (temp.path().join("root"), temp.path().join("out"));
        let file = |name: &str, text: &str| {
            make(root.join(name).parent().unwrap()).unwrap();
            write(&root.join(name), text.as_bytes()).unwrap();
        };
        file("tests/tests/cuda/models.rs", "check(&tiny(\"tiny_one\"));");
        file("crates/model/tests/data/tiny_one/config.json", "{}");
        file("crates/model/tests/data/tiny_two/config.json", "{}");
        file("../shared/fixtures/qwen2/inner/golden.safetensors", "1234");
        file("../shared/fixtures/qwen/config.json", "{}");
        assert_eq!(fixtures(&root, &out).unwrap(), 2);
        assert!(out.join("repository/crates/model/tests/data/tiny_one/config.json").is_file());
        assert_eq!(size(&out).unwrap(), 6);
    }
}
