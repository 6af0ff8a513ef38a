//! The reference fixtures through the program itself: logits, hidden states layer by layer, greedy tokens,
//! the stop at an eos id. Tolerances are those of the fixtures' README.

use airllm_tests::program::Airllm;
use airllm_tests::shared::{self, FIXTURES, Fixture};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

#[test]
fn every_fixture() {
    let Some(shared) = shared::dir() else { return };
    let home = tempfile::tempdir().unwrap();
    for Fixture { name, logits, hidden } in FIXTURES.iter().copied() {
        let dir = shared.join("fixtures").join(name);
        let golden = std::fs::read(dir.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        for prompt in 0..3 {
            // The second prompt runs in a budget that forces streaming.
            let ram: &[&str] = if prompt == 1 { &["--ram", "8MB", "--stripe", "64KiB"] } else { &[] };
            compare_logits(home.path(), &dir, &golden, prompt, (logits, hidden), ram);
            compare_greedy(home.path(), &dir, &golden, prompt, ram);
        }
        stop(home.path(), &dir, &golden);
    }
}

fn compare_logits(
    home: &Path,
    dir: &Path,
    golden: &SafeTensors,
    prompt: usize,
    (tolerance, hidden_tolerance): (f32, f32),
    more: &[&str],
) {
    let out = home.join("logits.safetensors");
    let ids = list(&integers(golden, &format!("p{prompt}.input_ids")));
    airllm(home, dir, &["logits", "--input-ids", &ids, "--hidden"])
        .args(["--out", out.to_str().unwrap()])
        .args(more)
        .run()
        .success();
    let bytes = std::fs::read(&out).unwrap();
    let ours = SafeTensors::deserialize(&bytes).unwrap();
    let name = dir.file_name().unwrap().to_string_lossy();

    // Layer by layer first, so that a failure names the first layer that is wrong.
    let rows = integers(golden, &format!("p{prompt}.hidden_rows"));
    let layers = ours.names().iter().filter(|name| name.starts_with("hidden.")).count();
    assert!(layers > 1, "{name}: no hidden states were written");
    for layer in 0..layers {
        let what = format!("{name}, prompt {prompt}, hidden state {layer}");
        let expected = floats(golden, &format!("p{prompt}.hidden.{layer}"));
        close(&what, &picked(&ours, &format!("hidden.{layer}"), &rows), &expected, hidden_tolerance);
    }
    let rows = integers(golden, &format!("p{prompt}.logits_rows"));
    let expected = floats(golden, &format!("p{prompt}.logits"));
    close(&format!("{name}, prompt {prompt}, logits"), &picked(&ours, "logits", &rows), &expected, tolerance);
}

fn compare_greedy(home: &Path, dir: &Path, golden: &SafeTensors, prompt: usize, more: &[&str]) {
    let expected = integers(golden, &format!("p{prompt}.greedy_ids"));
    let ids = list(&integers(golden, &format!("p{prompt}.input_ids")));
    let count = expected.len().to_string();
    let outcome = airllm(home, dir, &["generate", "--input-ids", &ids, "--ignore-eos", "--json"])
        .args(["--max-new-tokens", &count])
        .args(more)
        .run()
        .success();
    let object = outcome.json();
    assert_eq!(ids_of(&object), expected, "{}, prompt {prompt}", dir.display());
    assert_eq!(object["finish_reason"], "length");
}

/// Ends with an eos id where the fixture has such a run.
fn stop(home: &Path, dir: &Path, golden: &SafeTensors) {
    if golden.tensor("stop.input_ids").is_err() {
        return;
    }
    let expected = integers(golden, "stop.greedy_ids");
    let ids = list(&integers(golden, "stop.input_ids"));
    let object = airllm(home, dir, &["generate", "--input-ids", &ids, "--json"]).run().success().json();
    assert_eq!(object["finish_reason"], "stop", "{}", dir.display());
    let found = ids_of(&object);
    // The eos id itself may or may not be counted as new.
    let body = &expected[..expected.len() - 1];
    assert!(found == expected || found == body, "{}: {found:?} instead of {expected:?}", dir.display());
}

fn airllm(home: &Path, model: &Path, args: &[&str]) -> Airllm {
    Airllm::new(home).args(args).args(["--model", model.to_str().unwrap()])
}

fn ids_of(object: &serde_json::Value) -> Vec<i64> {
    object["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

fn list(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

fn integers(file: &SafeTensors, name: &str) -> Vec<i64> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
    tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The rows of a two-dimensional tensor that the golden holds.
fn picked(file: &SafeTensors, name: &str, rows: &[i64]) -> Vec<f32> {
    let width = file.tensor(name).unwrap().shape()[1];
    let all = floats(file, name);
    rows.iter().flat_map(|&row| all[row as usize * width..][..width].to_vec()).collect()
}

fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // Written so that NaN fails too.
    assert!(worst <= tolerance, "{what}: off by {worst}, {tolerance} is allowed");
    assert!(found.iter().all(|x| x.is_finite()), "{what}");
}
