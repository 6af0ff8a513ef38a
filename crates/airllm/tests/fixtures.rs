//! Every fixture beside the repository against its goldens: logits, hidden states by layer, greedy
//! tokens, batches, ends. The tolerances are those of the fixtures' own table.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use airllm::{AutoModel, FinishReason, Generation};
use airllm_tests::shared::FIXTURES;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

/// The fixtures, or `None` after saying that the test is skipped.
fn fixtures() -> Option<PathBuf> {
    airllm_tests::shared::dir().map(|shared| shared.join("fixtures"))
}

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn numbers(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.0.tensor(name).ok()?;
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        Some(tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    fn ids(&self, name: &str) -> Option<Vec<u32>> {
        let tensor = self.0.tensor(name).ok()?;
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        let id = |b: &[u8]| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap();
        Some(tensor.data().chunks_exact(8).map(id).collect())
    }
}

/// The largest difference between the golden rows and those rows of `found`.
fn difference(golden: &[f32], rows: &[u32], found: &[f32], width: usize) -> f32 {
    assert_eq!(golden.len(), rows.len() * width);
    let pairs = golden.chunks_exact(width).zip(rows);
    let worst = pairs.flat_map(|(golden, &row)| {
        let found = &found[row as usize * width..][..width];
        golden.iter().zip(found).map(|(a, b)| if b.is_nan() { f32::INFINITY } else { (a - b).abs() })
    });
    worst.fold(0.0, f32::max)
}

fn load(dir: &Path, home: &Path) -> AutoModel {
    // Two sequences of the longest prompt; small slots, so that every matrix is cut into stripes.
    let builder = AutoModel::builder()
        .device(airllm::Device::Cpu)
        .home(home)
        .threads(2)
        .max_batch(2)
        .batch_tokens(64)
        .cache_tokens(400);
    builder.slot_bytes(16 << 10).from_pretrained(dir.to_str().unwrap()).unwrap()
}

fn greedy(model: &AutoModel, prompts: Vec<Vec<u32>>, new: usize) -> Vec<(Vec<u32>, FinishReason)> {
    let options = Generation::default().max_new_tokens(new);
    let mut run = model.generate_ids(prompts, &options).unwrap();
    run.by_ref().for_each(|piece| drop(piece.unwrap()));
    run.answers().map(|answer| (answer.ids.clone(), answer.finish.unwrap())).collect()
}

fn check(name: &str, logits_tolerance: f32, hidden_tolerance: f32) {
    let Some(fixtures) = fixtures() else { return };
    let dir = fixtures.join(name);
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = Golden(SafeTensors::deserialize(&bytes).unwrap());
    let home = tempfile::tempdir().unwrap();
    let model = load(&dir, home.path());
    let (layers, width) = (model.config().layers, model.config().hidden);

    for prompt in ["p0", "p1", "p2"] {
        let ids = golden.ids(&format!("{prompt}.input_ids")).unwrap();
        let mut hidden = vec![Vec::new(); layers + 1];
        let logits = model
            .forward_with(&ids, &mut |states| hidden[states.number].extend_from_slice(states.values))
            .unwrap();
        let rows = golden.ids(&format!("{prompt}.hidden_rows")).unwrap();
        for (i, found) in hidden.iter().enumerate() {
            let expected = golden.numbers(&format!("{prompt}.hidden.{i}")).unwrap();
            let worst = difference(&expected, &rows, found, width);
            let place = if i == 0 { "the embedding".to_owned() } else { format!("layer {}", i - 1) };
            assert!(worst <= hidden_tolerance, "{name} {prompt}: {place} is off by {worst}");
        }
        let rows = golden.ids(&format!("{prompt}.logits_rows")).unwrap();
        let expected = golden.numbers(&format!("{prompt}.logits")).unwrap();
        let worst = difference(&expected, &rows, &logits.values, logits.vocab);
        assert!(worst <= logits_tolerance, "{name} {prompt}: logits are off by {worst}");

        let expected = golden.ids(&format!("{prompt}.greedy_ids")).unwrap();
        let found = greedy(&model, vec![ids], expected.len());
        assert_eq!(found, [(expected, FinishReason::Length)], "{name} {prompt}");
    }
    if let Some(ids) = golden.ids("stop.input_ids") {
        let expected = golden.ids("stop.greedy_ids").unwrap();
        let found = greedy(&model, vec![ids], expected.len() + 20);
        assert_eq!(found, [(expected, FinishReason::Stop)], "{name} stop");
    }
    if let Some(ids) = golden.ids("batch.input_ids") {
        let mask = golden.ids("batch.attention_mask").unwrap();
        let expected = golden.ids("batch.greedy_ids").unwrap();
        let prompts: Vec<Vec<u32>> = ids
            .chunks_exact(ids.len() / 2)
            .zip(mask.chunks_exact(ids.len() / 2))
            .map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect())
            .collect();
        let found = greedy(&model, prompts, expected.len() / 2);
        let found: Vec<u32> = found.into_iter().flat_map(|(ids, _)| ids).collect();
        assert_eq!(found, expected, "{name} batch");
    }
}

/// A share of all fixtures, so that several run at once.
fn check_share(share: usize) {
    for fixture in FIXTURES.iter().skip(share).step_by(SHARES) {
        check(fixture.name, fixture.logits, fixture.hidden);
    }
}

const SHARES: usize = 4;

#[test]
fn every_fixture_of_the_first_share() {
    check_share(0);
}

#[test]
fn every_fixture_of_the_second_share() {
    check_share(1);
}

#[test]
fn every_fixture_of_the_third_share() {
    check_share(2);
}

#[test]
fn every_fixture_of_the_fourth_share() {
    check_share(3);
}
