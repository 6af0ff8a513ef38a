//! Every reference fixture through the facade on a CUDA device: logits, within what the fixtures' own table accepts, and what
//! greedy decoding makes of them. On the stand-in for the driver, which takes a second for each, one prompt of each.

use airllm::{AutoModel, Checkpoint, Device, Generation};
use airllm_tests::gpu;
use airllm_tests::shared::{self, FIXTURES, Fixture};
use safetensors::{Dtype, SafeTensors};

#[test]
fn every_fixture() {
    let Some(device) = gpu::device(u64::MAX, 0) else { return };
    let standin = device.name().contains("stand-in");
    drop(device);
    let Some(shared) = shared::dir() else { return };
    let home = tempfile::tempdir().unwrap();
    let mut builder = AutoModel::builder().home(home.path()).device(Device::Cuda(0)).threads(2).context(256);
    if standin {
        // What the rates of the lanes are measured with is a part of this, and takes longer than these models.
        builder = builder.vram(64 << 20);
    }
    let mut wrong = Vec::new();
    for Fixture { name, logits: accept, .. } in FIXTURES.iter().copied() {
        let dir = shared.join("fixtures").join(name);
        let golden = std::fs::read(dir.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let checkpoint = Checkpoint::open(&dir, None).unwrap();
        let model = builder.clone().load(&checkpoint).unwrap();
        for prompt in (0..if standin { 1 } else { 3 }).map(|p| format!("p{p}")) {
            let ids = integers(&golden, &format!("{prompt}.input_ids"));
            let found = model.forward(&ids).unwrap();
            let rows = integers(&golden, &format!("{prompt}.logits_rows"));
            let expected = floats(&golden, &format!("{prompt}.logits"));
            let found = rows.iter().flat_map(|&row| found.row(row as usize).unwrap());
            // NaN is as far off as can be.
            let gap = |(a, b): (&f32, &f32)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() };
            let worst = found.zip(&expected).map(gap).fold(0.0, f32::max);
            if worst > accept {
                wrong.push(format!("{name}, {prompt}: logits are off by {worst}, {accept} is allowed"));
            }

            let expected = integers(&golden, &format!("{prompt}.greedy_ids"));
            let options =
                Generation::default().max_new_tokens(expected.len()).temperature(0.0).ignore_eos(true);
            let mut answer = model.generate_ids(vec![ids], &options).unwrap();
            answer.by_ref().for_each(|piece| drop(piece.unwrap()));
            let found = &answer.answers().next().unwrap().ids;
            if *found != expected {
                wrong.push(format!("{name}, {prompt}: {found:?} instead of {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
