//! The fixtures: dequantised weights bit for bit, and the same rows prepared and live.

use super::*;
use crate::{AutoModel, Checkpoint, Form};
use std::path::PathBuf;

fn fixture(name: &str) -> Option<PathBuf> {
    airllm_tests::shared::dir().map(|shared| shared.join("fixtures").join(name))
}

/// The first rows of a plan, widened.
fn made(repo: &Repo, plan: &TensorPlan, rows: usize) -> Vec<Vec<u32>> {
    let mut out = vec![0; rows * plan.row_bytes()];
    plan.rows(repo.source(), 0..rows, &mut Scratch::default(), &mut out).unwrap();
    out.chunks_exact(plan.row_bytes()).map(|row| widen(plan, row)).collect()
}

/// Every `dequant.NAME` of a fixture is what the rows of NAME widen to.
fn dequantised(name: &str, format: NumFormat) {
    let Some(dir) = fixture(name) else { return };
    let checkpoint = Checkpoint::open(&dir, None).unwrap();
    let Form::Published(repo) = checkpoint.form() else { panic!("{name}") };
    let golden = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
    let units = units(repo, checkpoint.config(), Bits::Source).unwrap();
    let (mut compared, mut order) = (0, None);
    for plan in units.iter().flat_map(|unit| &unit.tensors) {
        let Ok(expected) = golden.tensor(&format!("dequant.{}", plan.decl.hf)) else { continue };
        if plan.decl.is_order {
            let row = made(repo, plan, 1).remove(0);
            order = Some(row.into_iter().map(|bits| f32::from_bits(bits) as usize).collect::<Vec<_>>());
            continue;
        }
        assert_eq!(plan.to, format, "{name} {}", plan.decl.hf);
        let (rows, cols) = (expected.shape()[0], expected.shape()[1]);
        let order = order.take().unwrap_or((0..cols).collect());
        let bits = |at: usize| u32::from_le_bytes(expected.data()[4 * at..][..4].try_into().unwrap());
        for (row, found) in made(repo, plan, rows).into_iter().enumerate() {
            let expected: Vec<u32> = order.iter().map(|col| bits(row * cols + col)).collect();
            assert!(found == expected, "{name} {} row {row}", plan.decl.hf);
        }
        compared += 1;
    }
    assert_eq!(compared, golden.names().iter().filter(|n| n.starts_with("dequant.")).count());
    assert!(compared > 0);
}

#[test]
fn gptq() {
    dequantised("gptq_sym_g128", NumFormat::A4G128);
    dequantised("gptq_actorder", NumFormat::A4G64);
}

#[test]
fn awq() {
    dequantised("awq_gemm", NumFormat::A4G128);
}

#[test]
fn bitsandbytes() {
    dequantised("bnb_nf4", NumFormat::Nf4);
    dequantised("bnb_nf4_double", NumFormat::Nf4);
    dequantised("bnb_int8", NumFormat::I8);
}

#[test]
fn prepared_rows_are_the_live_ones() {
    for name in [
        "llama32_gqa_tied",
        "llama_bias",
        "llama_f32",
        "gptq_sym_g128",
        "gptq_actorder",
        "bnb_nf4",
        "bnb_int8",
    ] {
        let Some(dir) = fixture(name) else { return };
        let live = Checkpoint::open(&dir, None).unwrap();
        let out = tempfile::tempdir().unwrap();
        let builder = AutoModel::builder().shards(out.path()).threads(3).ram(1);
        builder.prepare(&live).unwrap();
        let prepared = Checkpoint::open(out.path(), None).unwrap();
        let (a, b) = (live.catalog(None).unwrap(), prepared.catalog(None).unwrap());
        assert_eq!(a.pass, b.pass);
        let sources = [ReadMethod::Direct, ReadMethod::Buffered].map(|mode| live.open_source(mode).unwrap());
        let shards = prepared.open_source(ReadMethod::Buffered).unwrap();
        for (unit, other) in a.units.iter().zip(&b.units) {
            assert_eq!((&unit.name, unit.tensors.len()), (&other.name, other.tensors.len()));
            for (tensor, stored) in unit.tensors.iter().zip(&other.tensors) {
                assert_eq!(
                    (&tensor.name, tensor.format, tensor.rows),
                    (&stored.name, stored.format, stored.rows)
                );
                let mut expected = vec![0; stored.bytes()];
                shards.read_at(stored.file, stored.offset, &mut expected).unwrap();
                for source in &sources {
                    let mut found = vec![1; tensor.bytes()];
                    source.read_at(tensor.file, tensor.offset, &mut found).unwrap();
                    assert!(found == expected, "{name}: {}.{}", unit.name, tensor.name);
                }
            }
        }
    }
}

#[test]
fn made_files_answer_any_read() {
    let Some(dir) = fixture("gptq_sym_g128") else { return };
    let live = Checkpoint::open(&dir, None).unwrap();
    let catalog = live.catalog(None).unwrap();
    let source = live.open_source(ReadMethod::Buffered).unwrap();
    let unit = &catalog.units[1];
    let file = unit.tensors[0].file;
    assert!(file >= live.files().len() && unit.tensors.iter().all(|t| t.file == file));
    let len = source.len(file) as usize;
    let mut whole = vec![0; len];
    source.read_at(file, 0, &mut whole).unwrap();
    whole.resize(len + 4096, 0);
    let mut noise = noise(7);
    for most in [3, 300, 9000] {
        for _ in 0..60 {
            let from = noise() as usize % len;
            let mut part = vec![7; (noise() as usize % most).min(len + 4095 - from)];
            source.read_at(file, from as u64, &mut part).unwrap();
            assert!(part == whole[from..from + part.len()], "{} bytes at {from}", part.len());
        }
    }
    assert!(source.read_at(file, len as u64 - 10, &mut vec![0; 10 + 4096]).is_err());
}
