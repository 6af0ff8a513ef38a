//! Runs the binary in an environment of its own.

use airllm_tests::checkpoint::{Checkpoint, Shape};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with a tiny checkpoint and an empty cache.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    #[allow(dead_code, reason = "not every test file uses every helper")]
    /// A place that holds a tiny checkpoint called `model`.
    pub fn with_model() -> Place {
        let place = Place::new();
        Checkpoint::new(Shape { context: 128, ..Shape::TINY }).write(&place.path("model")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn model(&self) -> String {
        self.path("model").to_str().unwrap().to_owned()
    }

    /// The binary, with this place's cache, without the network, and without a GPU.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_airllm"));
        command.args(args).env_clear().env("AIRLLM_HOME", self.path("home")).env("HF_HOME", self.path("hf"));
        command
            .env("HF_HUB_OFFLINE", "1")
            .env("CUDA_VISIBLE_DEVICES", "")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[allow(dead_code, reason = "not every test file uses every helper")]
    /// Runs with these bytes on standard input.
    pub fn feed(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A program that refuses early closes its end; that is its right.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Runs with success and returns standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    #[allow(dead_code, reason = "not every test file uses every helper")]
    /// Runs with success and `--json` and returns the last line's object.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.ok(&[args, &["--json"]].concat());
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Runs and expects this exit code, nothing on standard output and all of these words on standard
    /// error.
    #[track_caller]
    pub fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        check_refusal(&self.run(args), args, code, words);
    }
}

#[track_caller]
pub fn check_refusal(output: &Output, args: &[&str], code: i32, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(message.starts_with("error: "), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    for word in words {
        assert!(message.contains(word), "{args:?}: no {word:?} in: {message}");
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Changes a JSON file.
#[allow(dead_code, reason = "not every test file uses every helper")]
pub fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Changes the header of a safetensors file; the data stays.
#[allow(dead_code, reason = "not every test file uses every helper")]
pub fn edit_header(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let bytes = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    change(&mut header);
    let text = header.to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(text.as_bytes());
    file.extend_from_slice(&bytes[8 + len..]);
    std::fs::write(path, file).unwrap();
}
