//! Rows of checkpoints of every layout, against weights widened by hand and against the fixtures.

mod fixtures;
mod made_up;
mod refusals;

use super::*;
use airllm_format::ReadMethod;
use airllm_model::arch::{Fold, Role};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::ops::Range;

/// A folder with a few tensors and a configuration.
struct Made {
    dir: tempfile::TempDir,
}

/// Name, type, shape, bytes.
type Given = (&'static str, Dtype, Vec<usize>, Vec<u8>);

impl Made {
    fn new(quantisation: Value, tensors: Vec<Given>) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "quantization_config": quantisation });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
        Made { dir }
    }

    fn repo(&self) -> Repo {
        Repo::open(self.dir.path()).unwrap()
    }

    /// The plan of one declared tensor.
    fn plan(&self, decl: &TensorDecl, bits: Bits) -> Result<TensorPlan> {
        self.plan_in_order(decl, bits, false)
    }

    /// The same where columns may be sorted.
    fn plan_in_order(&self, decl: &TensorDecl, bits: Bits, sorted: bool) -> Result<TensorPlan> {
        let repo = self.repo();
        let unit = UnitDecl {
            name: "layer.0".into(),
            shard: "layer.0".into(),
            on_demand: false,
            tensors: vec![decl.clone()],
        };
        tensor(&repo, &Scheme::read(&repo)?, &unit, decl, (bits, &[]), sorted)
    }

    fn rows(&self, plan: &TensorPlan, rows: Range<usize>) -> Vec<u8> {
        let mut out = vec![0xAA; rows.len() * plan.row_bytes()];
        plan.rows(self.repo().source(), rows, &mut Scratch::default(), &mut out).unwrap();
        out
    }

    /// The weights of all rows as bits, and a check that some of the rows give the same.
    fn weights(&self, plan: &TensorPlan) -> Vec<Vec<u32>> {
        let (rows, size) = (plan.decl.rows(), plan.row_bytes());
        let all = self.rows(plan, 0..rows);
        for some in [0..1, rows - 1..rows, rows / 3..rows / 2, rows / 5..rows - rows / 7] {
            let bytes = &all[some.start * size..some.end * size];
            assert!(self.rows(plan, some.clone()) == bytes, "rows {some:?} differ from those of all {rows}");
        }
        all.chunks_exact(size).map(|row| widen(plan, row)).collect()
    }

    fn check(&self, decl: &TensorDecl, format: NumFormat, expected: impl Fn(usize, usize) -> f32) {
        let plan = self.plan(decl, Bits::Source).unwrap();
        assert_eq!(plan.to, format);
        for (row, weights) in self.weights(&plan).into_iter().enumerate() {
            for (col, found) in weights.into_iter().enumerate() {
                let expected = expected(row, col);
                assert_eq!(found, expected.to_bits(), "row {row}, column {col}: expected {expected}");
            }
        }
    }
}

fn widen(plan: &TensorPlan, row: &[u8]) -> Vec<u32> {
    let mut weights = vec![0.0; plan.decl.cols()];
    airllm_quant::unpack_row(plan.to, row, &mut weights).unwrap();
    weights.into_iter().map(f32::to_bits).collect()
}

/// A matrix `w` that is all of the checkpoint's tensor.
fn matrix(hf: &str, rows: usize, cols: usize) -> TensorDecl {
    TensorDecl {
        role: Role::Q,
        name: "q".into(),
        hf: hf.into(),
        hf_rows: rows,
        spans: one(0..rows),
        fold: Fold::None,
        is_order: false,
        shape: vec![rows, cols],
        floor: NumFormat::Q4,
    }
}

/// One span.
fn one(span: Range<usize>) -> Vec<Range<usize>> {
    Vec::from_iter(Some(span))
}

/// Numbers that repeat late: a linear congruence.
fn noise(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    }
}

fn f16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn formats() {
    use NumFormat::*;
    assert_eq!(choose(Bf16, F32, Bits::Q4), F32);
    assert_eq!(choose(Bf16, Q4, Bits::Source), Bf16);
    assert_eq!(choose(F32, Q4, Bits::Source), F32);
    assert_eq!(choose(Bf16, Q4, Bits::Q4), Q4);
    assert_eq!(choose(Bf16, Q8, Bits::Q4), Q8);
    assert_eq!(choose(F32, Q8, Bits::Q4), Q8);
    assert_eq!(choose(F16, Q4, Bits::Q8), Q8);
    // What has no more bits than asked for stays, whatever its scales take.
    for bits in [Bits::Source, Bits::Q8] {
        for from in [A8, Q8_0, F8, I8, Q6K, Q5K, A4, Nf4, Q2K] {
            assert_eq!(choose(from, Q8, bits), from);
        }
    }
    for from in [A4, A4G64, A4G128, Nf4, Q4_0, Q4_1, Q4K, Q3K, Q2K] {
        assert_eq!(choose(from, Q4, Bits::Q4), from);
    }
    for from in [A8, F8, I8, Q6K, Q5_0] {
        assert_eq!(choose(from, Q4, Bits::Q4), Q4);
    }
    for (bits, wanted) in [(Bits::Q6, Q6), (Bits::Q5, Q5), (Bits::Q3, Q3), (Bits::Q2, Q2)] {
        assert_eq!(choose(Bf16, Q2, bits), wanted);
        assert_eq!(choose(Bf16, Q8, bits), Q8);
        assert_eq!(choose(wanted, Q2, bits), wanted);
        assert_eq!(choose(Q2, Q2, bits), Q2);
    }
    for (from, floor, wanted) in [
        (Bf16, Q2, Nf4),
        (F32, Q4, Nf4),
        (A8, Q2, Nf4),
        (Q6K, Q2, Nf4),
        (Bf16, Q8, Q8),
        (F32, Q8, Q8),
        (Q6K, Q8, Q6K),
        (F16, F32, F32),
        (Nf4, Q8, Nf4),
        (Q4, Q2, Q4),
        (Q4K, Q2, Q4K),
    ] {
        assert_eq!(choose(from, floor, Bits::Nf4), wanted, "{from}, floor {floor}");
    }
    assert_eq!(choose(Nf4, Q2, Bits::Q3), Q3);
    assert_eq!(choose(Q5_1, Q2, Bits::Q6), Q5_1);
    assert_eq!(choose(Q4K, Q2, Bits::Q3), Q3);
    assert_eq!(choose(A8, Q8, Bits::Q4), Q8);
    assert_eq!(choose(Q6K, Q8, Bits::Q4), Q6K);
}
