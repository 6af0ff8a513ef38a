//! Test vectors: JSON lines with texts, ids and decodes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use airllm_text::Tokenizer;
use serde_json::Value;

/// The folder of test data beside the repository, if it is there.
pub fn shared(what: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(what);
    if path.exists() {
        return Some(path);
    }
    skipped("../shared not there");
    None
}

fn skipped(why: &str) {
    // Straight to the descriptor: the harness keeps what a passing test prints to itself.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let line = format!("skipped: {why} ({test})\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

/// This crate's own test data.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The published vocabularies, unpacked once.
pub fn vocabularies() -> Option<&'static Path> {
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIR.get_or_init(|| {
        let archive = shared("tokenizers/vocab.tar.xz")?;
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vocabularies");
        if dir.exists() {
            return Some(dir);
        }
        // Another test program may be unpacking too: each into its own folder, the first one counts.
        let own = dir.with_extension(std::process::id().to_string());
        std::fs::create_dir_all(&own).unwrap();
        let unpacked = Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(&own).status();
        if !unpacked.is_ok_and(|status| status.success()) {
            skipped(&format!("tar cannot unpack {}", archive.display()));
            std::fs::remove_dir_all(&own).unwrap();
            return None;
        }
        if std::fs::rename(&own, &dir).is_err() {
            std::fs::remove_dir_all(&own).unwrap();
        }
        Some(dir)
    })
    .as_deref()
}

/// The path of a vocabulary file that the manifest of the test data names.
pub fn vocabulary(file: &str) -> Option<PathBuf> {
    let root = if file.starts_with("tiny/") { shared("tokenizers")? } else { vocabularies()?.to_owned() };
    Some(root.join(file))
}

/// The lines of a file, as JSON.
pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A list of ids.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Collects what differs, so that a failing run shows all of it.
#[derive(Default)]
pub struct Report {
    pub cases: usize,
    pub checks: usize,
    pub differences: Vec<String>,
}

impl Report {
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, found: T, expected: T) {
        self.checks += 1;
        if found != expected {
            self.differences.push(format!("{what}\n  expected {expected:?}\n  found    {found:?}"));
        }
    }

    /// Prints the counts and fails on differences.
    pub fn end(self, name: &str) {
        println!("{name}: {} cases, {} checks, {} differ", self.cases, self.checks, self.differences.len());
        assert!(self.cases > 0, "{name}: no cases");
        let shown: Vec<_> = self.differences.iter().take(8).map(String::as_str).collect();
        assert!(
            shown.is_empty(),
            "{name}: {} of {} checks differ\n{}",
            self.differences.len(),
            self.checks,
            shown.join("\n")
        );
    }

    /// A decode, and the same decode id by id.
    pub fn decode(&mut self, tokenizer: &Tokenizer, what: &str, ids: &[u32], skip: bool, expected: &str) {
        self.equal(
            &format!("decode {what}, skip {skip}, of {ids:?}"),
            tokenizer.decode(ids, skip).as_str(),
            expected,
        );
        let mut stream = tokenizer.stream(skip);
        let mut pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id)).collect();
        pieces.extend(stream.finish());
        self.equal(&format!("stream {what}, skip {skip}, of {ids:?}"), pieces.concat().as_str(), expected);
        self.equal(&format!("empty piece in {ids:?}"), pieces.iter().any(String::is_empty), false);
    }

    /// Texts with their ids.
    pub fn vectors(&mut self, tokenizer: &Tokenizer, cases: &[Value]) {
        for case in cases {
            self.cases += 1;
            let text = case["text"].as_str().unwrap();
            let what = format!("{text:?}");
            let plain = ids(&case["ids"]);
            let tie = case.get("ids_alt").map(ids);
            let found = tokenizer.encode_plain(text).unwrap();
            let expected = tie.filter(|tie| *tie == found).unwrap_or_else(|| plain.clone());
            self.equal(&format!("ids of {what}"), found, expected);
            self.decode(tokenizer, &what, &plain, false, case["decoded"].as_str().unwrap());
            if let Some(template) = case.get("ids_tmpl") {
                self.equal(
                    &format!("template ids of {what}"),
                    tokenizer.encode(text, false).unwrap(),
                    ids(template),
                );
            }
            let full = ids(&case["ids_full"]);
            if case.get("ids_alt").is_none() {
                self.equal(
                    &format!("full ids of {what}"),
                    tokenizer.encode(text, true).unwrap(),
                    full.clone(),
                );
            }
            self.decode(tokenizer, &what, &full, true, case["decoded_full"].as_str().unwrap());
        }
    }

    /// Texts whose special strings have no meaning, with a token put before them.
    pub fn plain(&mut self, tokenizer: &Tokenizer, cases: &[Value]) {
        for case in cases {
            self.cases += 1;
            let text = case["text"].as_str().unwrap();
            let what = format!("{text:?}");
            let (plain, full) = (ids(&case["ids"]), ids(&case["ids_full"]));
            let found = tokenizer.encode_plain(text).unwrap();
            self.equal(&format!("ids of {what}"), found.clone(), plain.clone());
            let framed = [tokenizer.encode("", true).unwrap(), found].concat();
            self.equal(&format!("full ids of {what}"), framed, full.clone());
            self.decode(tokenizer, &what, &plain, false, case["decoded"].as_str().unwrap());
            self.decode(tokenizer, &what, &full, true, case["decoded_full"].as_str().unwrap());
        }
    }

    /// Ids with their text.
    pub fn decodes(&mut self, tokenizer: &Tokenizer, cases: &[Value]) {
        for case in cases {
            self.cases += 1;
            let list = ids(&case["ids"]);
            self.decode(tokenizer, "of a list", &list, false, case["decoded"].as_str().unwrap());
            self.decode(tokenizer, "of a list", &list, true, case["decoded_skip"].as_str().unwrap());
        }
    }
}
