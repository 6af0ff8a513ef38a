//! Source files: module docs, lengths, and where `unsafe` may stand.

use crate::read;
use anyhow::{Context, Result};
use cargo_metadata::{Metadata, TargetKind};
use std::path::{Path, PathBuf};

/// No file longer than this: one that is holds several rooms.
const MOST_LINES: usize = 500;
/// What files begin with that a program writes: nobody reads them as a room.
const GENERATED: &str = "//! Written by `cargo xtask ";
/// Folders with sources, from the root of the repository.
const FOLDERS: [&str; 6] = ["crates", "tests", "benches", "xtask", "fuzz", "kernels"];
/// Extensions of sources.
const SOURCES: [&str; 5] = ["rs", "cu", "cuh", "h", "cpp"];
/// Crates that forbid `unsafe` altogether.
const SAFE: [&str; 5] = ["airllm-format", "airllm-quant", "airllm-text", "airllm-model", "airllm"];
/// Beginnings of the paths where `unsafe` may stand.
const UNSAFE: &[&str] = &[
    "crates/kernels/src/cpu/simd",
    // Threads that borrow from their caller.
    "crates/kernels/src/cpu/pool",
    "crates/kernels/src/cuda",
    "crates/kernels/src/emu",
    "crates/kernels/src/launch",
    "crates/stream/src/arena",
    "crates/stream/src/uring.rs",
    // Declare what callers of `Memory` must promise, or need none of it.
    "crates/kernels/src/memory.rs",
    "crates/kernels/src/trace.rs",
    "crates/stream/tests/common",
    // The stand-in driver, called as C calls it.
    "tests/standin",
    // Maps files, to measure a method that the engine does not use.
    "benches/benches/disk.rs",
    // Call the driver and cuBLAS, to measure what the engine does not use.
    "benches/src/gpu/cublas.rs",
    "benches/src/gpu/driver.rs",
];

/// Breaches in the sources below `root`.
pub fn check(root: &Path, metadata: &Metadata) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in FOLDERS.iter().map(|f| root.join(f)).filter(|f| f.is_dir()) {
        collect(&folder, &mut files)?;
    }
    let mut findings = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let text = read(&file)?;
        findings.extend(check_file(&path, &text).into_iter().map(|what| format!("{path}: {what}")));
    }
    for package in metadata.workspace_packages() {
        for target in package.targets.iter().filter(|t| t.kind.contains(&TargetKind::Lib)) {
            let text = read(target.src_path.as_std_path())?;
            if !has_example(&text) {
                findings.push(format!("{}: its crate docs have no example that compiles", package.name));
            }
            if SAFE.contains(&package.name.as_str()) && !text.contains("#![forbid(unsafe_code)]") {
                findings.push(format!("{}: must `#![forbid(unsafe_code)]`", package.name));
            }
        }
        let manifest = read(package.manifest_path.as_std_path())?;
        let layered = package.manifest_path.as_str().contains("/crates/");
        if layered && !manifest.contains("[lints]\nworkspace = true") {
            findings.push(format!("{}: does not inherit the lints of the workspace", package.name));
        }
    }
    Ok(findings)
}

/// Sources below a folder, without build outputs and hidden folders.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in folder.read_dir().with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| SOURCES.iter().any(|source| e == *source)) {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > MOST_LINES && !text.starts_with(GENERATED) {
        findings.push(format!("{lines} lines; more than {MOST_LINES} are several rooms"));
    }
    if path.ends_with(".rs") {
        if !text.trim_start().starts_with("//!") {
            findings.push("does not start with `//!` docs that say what it is for".into());
        }
        if !UNSAFE.iter().any(|start| path.starts_with(start)) {
            let at = unsafe_lines(text);
            findings
                .extend(at.iter().map(|line| format!("`unsafe` in line {line}, outside the files for it")));
        }
    }
    findings
}

/// Whether the leading `//!` block has a fenced block of Rust that is compiled.
fn has_example(text: &str) -> bool {
    let docs = text.lines().take_while(|line| line.starts_with("//!")).map(|line| line[3..].trim());
    // Every second fence opens a block.
    let mut opening = docs.filter_map(|line| line.strip_prefix("```")).step_by(2);
    opening.any(|flags| matches!(flags, "" | "rust" | "no_run" | "rust,no_run"))
}

/// Lines, from 1, where the keyword `unsafe` stands in code: not in a comment, a text or a longer name.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let length = token(rest, first);
        let (here, after) = rest.split_at(length);
        if here == "unsafe" {
            found.push(line);
        }
        line += here.matches('\n').count();
        rest = after;
    }
    found
}

/// Bytes of the token at the start of `rest`: a comment, a text, a name, or one other character.
fn token(rest: &str, first: char) -> usize {
    let until = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |i| from + i + end.len());
    if rest.starts_with("//") {
        return until("\n", 2);
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    for prefix in ["r", "br", "cr"] {
        let hashes = rest.strip_prefix(prefix).map(|r| r.len() - r.trim_start_matches('#').len());
        if let Some(hashes) = hashes.filter(|n| rest[prefix.len() + n..].starts_with('"')) {
            return until(&format!("\"{}", "#".repeat(hashes)), prefix.len() + hashes + 1);
        }
    }
    if first == '"' {
        return escaped(rest, '"');
    }
    if first == '\'' {
        // 'a' and '\n' are characters, 'a without an end is a lifetime.
        let second = rest[1..].chars().next().unwrap_or(' ');
        let closed = rest[1 + second.len_utf8()..].starts_with('\'');
        return if second == '\\' {
            escaped(rest, '\'')
        } else if closed {
            2 + second.len_utf8()
        } else {
            1
        };
    }
    let in_name = |c: char| c.is_alphanumeric() || c == '_';
    if in_name(first) {
        return rest.find(|c| !in_name(c)).unwrap_or(rest.len());
    }
    first.len_utf8()
}

/// Bytes of a quoted text with backslash escapes.
fn escaped(rest: &str, quote: char) -> usize {
    let mut after_backslash = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            _ if after_backslash => after_backslash = false,
            '\\' => after_backslash = true,
            _ if c == quote => return i + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Bytes of a block comment; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_told_from_its_name() {
        let text = r####"
            // unsafe
            /* unsafe /* unsafe */ unsafe */
            const A: &str = "unsafe \" unsafe"; const B: &str = r#"unsafe " unsafe"#;
            #![forbid(unsafe_code)]
            let c = '"'; unsafe { f::<'a>('\'') }
            let r#unsafe_like = 'x'; unsafe fn g() {}
        "####;
        assert_eq!(unsafe_lines(text), [6, 7]);
    }

    #[test]
    fn unsafe_is_found_outside_its_rooms_only() {
        let text = "//! Docs.\nunsafe fn f() {}\n";
        assert_eq!(check_file("crates/stream/src/arena.rs", text), [""; 0]);
        assert_eq!(check_file("crates/kernels/src/cpu/simd/avx2.rs", text), [""; 0]);
        assert_eq!(check_file("crates/kernels/src/cpu/verbs.rs", text).len(), 1);
        assert_eq!(check_file("crates/cli/src/main.rs", text).len(), 1);
    }

    #[test]
    fn docs_and_lengths() {
        assert_eq!(check_file("a.rs", "use x;\n").len(), 1);
        let long = format!("//! Docs.\n{}", "\n".repeat(MOST_LINES));
        assert_eq!(check_file("a.rs", &long).len(), 1);
        assert_eq!(check_file("a.rs", "//! Docs.\n"), [""; 0]);
        assert_eq!(check_file("a.rs", &format!("{GENERATED}x`.{long}")), [""; 0]);
        assert_eq!(check_file("a.cu", &long).len(), 1);
    }

    #[test]
    fn examples() {
        assert!(has_example("//! Docs.\n//!\n//! ```\n//! let x = 1;\n//! ```\nuse y;\n"));
        assert!(has_example("//! Docs.\n//! ```no_run\n//! ```\n"));
        assert!(!has_example("//! Docs.\n//! ```text\n//! ```\n"));
        assert!(!has_example("//! Docs.\n\n/// ```\n/// ```\nfn f() {}\n"));
    }
}
