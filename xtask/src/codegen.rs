//! `cargo xtask codegen`: the structures of `kernels/include/abi.h` for Rust, by bindgen.
//!
//! bindgen is in a program of its own (`codegen/bindgen.rs`, feature `codegen`), so that other chores build without it. It
//! needs libclang when it runs. What it writes is committed, and everything else builds without either.

use crate::{read, succeed, wheels};
use airllm_tests::program::cargo;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the committed file begins with.
const HEAD: &str =
    "//! Written by `cargo xtask codegen` from `kernels/include/abi.h`, where everything is documented.\n\n";
/// Folders in which systems keep libclang; a `*` stands for any ending.
const USUAL: [&str; 9] = [
    "/usr/lib/llvm-*/lib",
    "/usr/lib/llvm*/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/opt/homebrew/opt/llvm/lib",
    "/Library/Developer/CommandLineTools/usr/lib",
];

/// What to do beside writing.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing; fail if the file is not what bindgen makes of the header
    #[arg(long)]
    check: bool,
    /// First put libclang into the folder .clang, from a Python wheel: 25 MB to download
    #[arg(long)]
    setup: bool,
}

/// Writes the file, or compares it.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    if args.setup {
        wheels(&root.join(".clang"), &root.join("kernels/requirements-codegen.txt"))?;
    }
    let library = libclang(root).context(
        "no libclang in LIBCLANG_PATH, .clang or where systems keep it: install it (Debian: libclang1), or let \
         `cargo xtask codegen --setup` fetch it (25 MB)",
    )?;
    let new = generate(root, &library)?;
    let file = root.join("crates/kernels/src/abi/generated.rs");
    let old = if file.is_file() { read(&file)? } else { String::new() };
    if args.check {
        ensure!(
            old == new,
            "{} is not what bindgen makes of kernels/include/abi.h: run `cargo xtask codegen`\n{}",
            file.display(),
            difference(&old, &new)
        );
    } else if old != new {
        std::fs::write(&file, &new).with_context(|| format!("writing {}", file.display()))?;
    }
    println!("{}: up to date", file.display());
    Ok(())
}

/// The step of `cargo xtask ci`: where there is no libclang, that is said and all is well. A test of `airllm-kernels`
/// compares the file with the header without it.
pub fn ci(root: &Path) -> Result<()> {
    if libclang(root).is_none() {
        eprintln!("skipped: no libclang; `cargo xtask codegen --setup` fetches it");
        return Ok(());
    }
    run(root, &Args { check: true, setup: false })
}

/// The folder or file of libclang.
fn libclang(root: &Path) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LIBCLANG_PATH") {
        return Some(path.into());
    }
    // The version of Python is part of the path.
    let pythons = list(&root.join(".clang/lib")).into_iter();
    let own = pythons.map(|python| python.join("site-packages/clang/native"));
    let usual = USUAL.iter().flat_map(|folder| expand(folder));
    own.chain(usual).find(|folder| list(folder).iter().any(|file| is_libclang(file)))
}

fn is_libclang(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let versioned =
        name.strip_prefix("libclang-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let named = name.starts_with("libclang.") || versioned;
    named && (name.contains(".so") || name.ends_with(".dylib"))
}

/// The folders that a pattern with at most one `*`, at the end of a name, stands for; the last ones first: they are newer.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((start, rest)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (folder, prefix) = start.rsplit_once('/').unwrap_or(("", start));
    let mut found = list(Path::new(folder));
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found.sort();
    found.into_iter().rev().map(|path| path.join(rest.trim_start_matches('/'))).collect()
}

fn list(folder: &Path) -> Vec<PathBuf> {
    folder
        .read_dir()
        .map_or_else(|_| Vec::new(), |entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
}

/// The header as Rust, formatted as everything here is.
fn generate(root: &Path, library: &Path) -> Result<String> {
    let mut bindgen = cargo();
    bindgen.args(["run", "--quiet", "--package", "xtask", "--features", "codegen", "--bin", "codegen", "--"]);
    bindgen.arg(root.join("kernels/include/abi.h")).arg(root.join("xtask/src/codegen/include"));
    bindgen.env("LIBCLANG_PATH", library);
    let bindings = succeed(&mut bindgen)?.stdout;
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024", "--emit", "stdout", "--config-path"]).arg(root.join("rustfmt.toml"));
    let mut child = rustfmt
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting rustfmt, which formats what bindgen writes")?;
    let mut input = child.stdin.take().context("rustfmt: no way to its input")?;
    // rustfmt reads all of it before it writes.
    input
        .write_all(HEAD.as_bytes())
        .and_then(|()| input.write_all(&bindings))
        .context("giving text to rustfmt")?;
    drop(input);
    let output = child.wait_with_output().context("waiting for rustfmt")?;
    ensure!(output.status.success(), "rustfmt: {}", output.status);
    String::from_utf8(output.stdout).context("rustfmt writes UTF-8")
}

/// The lines that only one of the two has, in their order: `-` of the old one, `+` of the new one.
fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // Lines that both have from a place in either on.
    let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            let longer = common[i + 1][j].max(common[i][j + 1]);
            common[i][j] = if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { longer };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            out += &format!("- {}\n", old[i]);
            i += 1;
        } else {
            out += &format!("+ {}\n", new[j]);
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        assert_eq!(difference("a\nb\nc\nd\n", "a\nx\nc\n"), "- b\n+ x\n- d\n");
        assert_eq!(difference("a\n", "a\na\n"), "+ a\n");
        assert_eq!(difference("a\nb\n", "a\nb\n"), "");
    }

    #[test]
    fn the_library_by_its_name() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang.dylib"] {
            assert!(is_libclang(Path::new(name)), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclang_rt.so", "libclangBasic.a", "libclang-14.a"] {
            assert!(!is_libclang(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn patterns_of_folders() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["llvm-14/lib", "llvm-9/lib", "other/lib"] {
            std::fs::create_dir_all(temp.path().join(name)).unwrap();
        }
        let pattern = format!("{}/llvm-*/lib", temp.path().display());
        let found = expand(&pattern);
        assert_eq!(found, [temp.path().join("llvm-9/lib"), temp.path().join("llvm-14/lib")]);
        assert!(expand("/nowhere/x*/lib").is_empty());
        assert_eq!(expand("/usr/lib"), [PathBuf::from("/usr/lib")]);
    }
}
