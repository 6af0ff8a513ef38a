//! A writer that is killed for real, at any moment, leaves nothing that is taken for whole.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may end")]

use airllm_format::shard::{ShardTag, ShardWriter, TensorSpec, accept};
use airllm_format::{Bits, Manifest, NumFormat, Prepared, Recipe, SourceEntry};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LAYERS: usize = 6;
const FOLDER: &str = "AIRLLM_FORMAT_CRASH_FOLDER";

fn specs() -> Vec<TensorSpec> {
    let spec = |name: &str, shape: &[usize]| TensorSpec {
        name: name.into(),
        format: NumFormat::F16,
        shape: shape.to_vec(),
    };
    vec![spec("norm", &[512]), spec("q", &[700, 512]), spec("k", &[300, 512])]
}

/// Writes a folder of six shards, taking over what an earlier run has finished. Returns how many were.
fn prepare(dir: &Path) -> usize {
    let source = SourceEntry { id: None, fingerprint: "cafe".into() };
    let mut manifest =
        Manifest::new("X".into(), source, Recipe::uniform(Bits::Source), serde_json::json!({}));
    let mut taken = 0;
    for layer in 0..LAYERS {
        let file = format!("layer.{layer}.safetensors");
        let recipe = Recipe::uniform(Bits::Source).name();
        let tag = ShardTag { unit: format!("layer.{layer}"), source: "cafe".into(), recipe };
        if let Some(entry) = accept(dir, &file, &tag, &specs()).unwrap() {
            taken += 1;
            manifest.shards.push(entry);
            continue;
        }
        let mut writer = ShardWriter::create(dir, &file, &tag, specs()).unwrap();
        for row in 0..1001usize {
            let row: Vec<u8> = (0..1024).map(|i| (i * row + layer) as u8).collect();
            writer.write(&row).unwrap();
        }
        manifest.shards.push(writer.finish().unwrap());
    }
    manifest.write(dir).unwrap();
    taken
}

#[test]
#[ignore = "is started and killed by the test below"]
fn child() {
    let dir = std::env::var(FOLDER).unwrap();
    prepare(Path::new(&dir));
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| !p.file_name().unwrap().to_string_lossy().starts_with('.'))
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn killed_at_any_moment() {
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(prepare(whole.path()), 0);
    let expected = contents(whole.path());
    let mut interrupted = 0;
    for round in 0..12u64 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--test-threads=1"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Wait until it has begun, then up to some more shards, then a little: moments all over the run.
        while fs::read_dir(dir.path()).unwrap().count() <= (round as usize / 2)
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(round * 700 % 5000));
        child.kill().unwrap();
        child.wait().unwrap();
        let done = dir.path().join("airllm.json").exists();
        interrupted += usize::from(!done);
        assert_eq!(Prepared::open(dir.path()).is_ok(), done, "only a folder with a manifest is accepted");
        for (name, bytes) in contents(dir.path()) {
            let (_, whole) = expected.iter().find(|e| e.0 == name).unwrap();
            assert!(bytes == *whole, "{name} has its name but not its bytes");
        }
        prepare(dir.path());
        assert!(contents(dir.path()) == expected, "round {round}: not the bytes of an uninterrupted run");
        Prepared::open(dir.path()).unwrap().verify(&mut |_, _| {}).unwrap();
    }
    assert!(interrupted >= 6, "only {interrupted} of 12 runs were interrupted: the test does not test");
}
