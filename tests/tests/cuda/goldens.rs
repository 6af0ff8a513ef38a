//! Every reference fixture through the facade on a CUDA device: logits, and what greedy decoding makes of them.

use airllm::{AutoModel, Checkpoint, Device, Generation};
use airllm_tests::gpu;
use airllm_tests::shared::{self, FIXTURES, Fixture};
use safetensors::{Dtype, SafeTensors};

/// What weights in few bits add to the accepted difference: a prompt's tokens meet them rounded to halves
/// (`conformance::prompt_bound`).
const ROUNDED: f32 = 2e-3;

#[test]
fn every_fixture() {
    if gpu::device(u64::MAX, 0).is_none() {
        return;
    }
    let Some(shared) = shared::dir() else { return };
    let home = tempfile::tempdir().unwrap();
    let builder = AutoModel::builder().home(home.path()).device(Device::Cuda(0)).threads(2).context(128);
    for Fixture { name, logits: accept, .. } in FIXTURES.iter().copied() {
        let dir = shared.join("fixtures").join(name);
        let golden = std::fs::read(dir.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let quantised = ["gptq", "awq", "bnb"].iter().any(|kind| name.starts_with(kind));
        let accept = if quantised { accept + ROUNDED } else { accept };
        let checkpoint = Checkpoint::open(&dir, None).unwrap();
        let model = builder.clone().load(&checkpoint).unwrap();
        for prompt in (0..3).map(|p| format!("p{p}")) {
            let ids = integers(&golden, &format!("{prompt}.input_ids"));
            let found = model.forward(&ids).unwrap();
            let rows = integers(&golden, &format!("{prompt}.logits_rows"));
            let expected = floats(&golden, &format!("{prompt}.logits"));
            let found = rows.iter().flat_map(|&row| found.row(row as usize).unwrap());
            let worst = found.zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Written so that NaN fails too.
            assert!(worst <= accept, "{name}, {prompt}: logits are off by {worst}, {accept} is allowed");

            let expected = integers(&golden, &format!("{prompt}.greedy_ids"));
            let options =
                Generation::default().max_new_tokens(expected.len()).temperature(0.0).ignore_eos(true);
            let mut answer = model.generate_ids(vec![ids], &options).unwrap();
            answer.by_ref().for_each(|piece| drop(piece.unwrap()));
            assert_eq!(answer.answers().next().unwrap().ids, expected, "{name}, {prompt}: greedy ids");
        }
    }
}

fn integers(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
    tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
