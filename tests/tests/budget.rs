//! A model larger than its memory budget: 2 GB of weights in 600 MB.

use airllm_tests::program::{Airllm, cargo};
use airllm_tests::shared::skip;
use std::path::Path;
use std::time::Duration;

const BUDGET: u64 = 600_000_000;
/// What the program itself may take beside what the budget counts: code, tokenizer, allocator.
const PROGRAM: u64 = 64 << 20;
const TOKENS: usize = 3;

#[test]
fn two_gigabytes_run_in_six_hundred_megabytes() {
    let dir = tempfile::Builder::new().prefix("budget").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let free = rustix::fs::statvfs(dir.path()).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
    if free < 6_000_000_000 {
        return skip("6 GB of disk space are needed for a model of 2 GB and its shards");
    }
    let model = dir.path().join("model");
    let made = cargo()
        .args(["run", "--quiet", "--package", "xtask", "--", "random-model", "--size", "2.1GB", "--out"])
        .arg(&model)
        .status()
        .unwrap();
    assert!(made.success(), "xtask random-model: {made}");

    let home = dir.path().join("home");
    // From the checkpoint's own files, then from shards.
    generate(&home, &model, &dir.path().join("live.json"));

    // Writing the shards keeps the budget too.
    let shards = dir.path().join("shards");
    let prepared = airllm(&home, &model, &["prepare", "--delete-original"])
        .args(["--out", shards.to_str().unwrap()])
        .run()
        .success();
    assert!(prepared.peak_rss <= BUDGET + PROGRAM, "prepare took {} bytes", prepared.peak_rss);
    let written: u64 =
        std::fs::read_dir(&shards).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(written >= 2_000_000_000, "{written}");

    generate(&home, &shards, &dir.path().join("trace.json"));
}

/// Generates within the budget, while the disk and the processor work at the same time.
fn generate(home: &Path, model: &Path, trace: &Path) {
    let count = TOKENS.to_string();
    let outcome = airllm(home, model, &["generate", "--input-ids", "5,6,7,8"])
        .args(["--ignore-eos", "--json", "--max-new-tokens", &count, "--trace", trace.to_str().unwrap()])
        .run()
        .success();
    assert!(outcome.peak_rss > 0, "the kernel said nothing about memory");
    assert!(
        outcome.peak_rss <= BUDGET + PROGRAM,
        "generate took {} bytes, {BUDGET} and {PROGRAM} are allowed",
        outcome.peak_rss
    );
    assert_eq!(outcome.json()["ids"].as_array().unwrap().len(), TOKENS);
    lanes_overlap(trace);
}

fn airllm(home: &Path, model: &Path, args: &[&str]) -> Airllm {
    let ram = BUDGET.to_string();
    Airllm::new(home)
        .args(args)
        .args(["--ram", &ram, "--model", model.to_str().unwrap()])
        .limit(Duration::from_secs(600))
}

/// The timeline shows reads during computation, and reads of a pass before the one before it was over.
fn lanes_overlap(trace: &Path) {
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |activity: &str| -> Vec<(u64, f64, f64)> {
        events
            .iter()
            .filter(|event| event["args"]["activity"] == activity)
            .map(|event| {
                let start = event["ts"].as_f64().unwrap();
                (event["args"]["pass"].as_u64().unwrap(), start, start + event["dur"].as_f64().unwrap())
            })
            .collect()
    };
    let (reads, computes) = (of("read"), of("compute"));
    let during = computes
        .iter()
        .filter(|(_, start, end)| reads.iter().any(|(_, from, to)| from < end && to > start))
        .count();
    assert!(during * 2 > computes.len(), "reads went on during {during} of {} leases", computes.len());
    for pass in 1..TOKENS as u64 {
        let over = computes.iter().filter(|e| e.0 == pass - 1).map(|e| e.2).fold(0.0, f64::max);
        let ahead = reads.iter().any(|&(of, start, _)| of == pass && start < over);
        assert!(ahead, "no read of pass {pass} began before pass {} was over", pass - 1);
    }
}
