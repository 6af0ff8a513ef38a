//! `kill -9` at any moment of `prepare`, then a rerun: the result is the one of an undisturbed run, byte
//! for byte, and what a killed run left is never taken for whole.

use airllm_tests::checkpoint::{Checkpoint, Dtype, Shape};
use airllm_tests::program::Airllm;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const KILLS: u32 = 20;

fn prepare(home: &Path, model: &Path, out: &Path) -> Airllm {
    Airllm::new(home).args(["prepare", "--out"]).args([out, model]).limit(Duration::from_secs(120))
}

/// Every file below a folder, but for locks and other hidden files.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() && !name.starts_with('.') {
            found.insert(PathBuf::from(name), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn killed_at_any_moment_and_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let (home, model) = (dir.path().join("home"), dir.path().join("model"));
    let shape = Shape { hidden: 256, intermediate: 704, layers: 8, vocab: 2048, ..Shape::TINY };
    Checkpoint::new(shape).dtype(Dtype::Bf16).shards(3).write(&model).unwrap();

    let whole = dir.path().join("whole");
    let undisturbed = prepare(&home, &model, &whole).run().success().wall;
    let expected = files(&whole);
    assert!(expected.len() > 10, "{:?}", expected.keys());

    let mut interrupted = 0;
    // A fixed sequence that spreads over the whole run (golden ratio); moments differ by scheduling anyhow.
    for kill in 1..=KILLS {
        let out = dir.path().join(format!("out-{kill}"));
        let share = f64::from(kill) * 0.618_033_988_75 % 1.0;
        let running = prepare(&home, &model, &out).spawn();
        std::thread::sleep(undisturbed.mul_f64(share));
        let outcome = running.kill();
        let whole_at_kill = outcome.status.success();
        interrupted += u32::from(!whole_at_kill);
        if !whole_at_kill && !out.join("airllm.json").exists() {
            // Without a manifest the folder is no model, whatever lies in it.
            let refused = Airllm::new(&home).args(["inspect", out.to_str().unwrap()]).run();
            assert!(!refused.status.success(), "kill {kill}: {refused}");
        }
        prepare(&home, &model, &out).run().success();
        let found = files(&out);
        assert!(
            found == expected,
            "kill {kill} at {share:.2}: {:?} instead of {:?}, or other bytes",
            found.keys(),
            expected.keys()
        );
        std::fs::remove_dir_all(&out).unwrap();
    }
    assert!(interrupted > KILLS / 3, "only {interrupted} of {KILLS} runs were interrupted");
}
