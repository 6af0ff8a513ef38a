//! Whole models on a device that launches the CUDA kernels, against their reference outputs.

use airllm_kernels::Ops;
use airllm_model::{Config, KvFormat, Span, Want};
use std::path::{Path, PathBuf};

use crate::common::{Placement, Run, Tensors, close, json, pick};

/// A checkpoint of `airllm-model`'s own tests.
pub fn tiny(name: &str) -> PathBuf {
    airllm_tests::shared::repository().join("crates/model/tests/data").join(name)
}

/// Fixtures with the differences of logits and hidden states that their README accepts, each checked by `$check`.
#[macro_export]
macro_rules! goldens {
    ($check:ident; $($name:ident: $how:expr, $accept:expr;)*) => {$(
        #[test]
        fn $name() {
            if let Some(shared) = airllm_tests::shared::dir() {
                $check(&shared.join("fixtures").join(stringify!($name)), $how, $accept);
            }
        }
    )*};
}

/// Runs a checkpoint's prompts, all tokens at once and one by one, and compares logits, hidden states and what greedy
/// decoding makes of them.
#[allow(dead_code, reason = "not every test that has checkpoints compares them with goldens")]
pub fn check<D: Ops>(device: D, dir: &Path, placement: &Placement, [accept, accept_hidden]: [f32; 2]) {
    let name = dir.file_name().unwrap().to_string_lossy();
    let golden = Tensors::read(&[dir.join("golden.safetensors")]);
    let config = Config::parse(&json(&dir.join("config.json"))).unwrap();
    let mut run = Run::placed(device, config, &Tensors::model(dir), placement);
    let (hidden, vocab) = (run.config().hidden, run.config().vocab);
    let mut prompts = 0;
    for p in (0..).map(|p| format!("p{p}")).take_while(|p| golden.has(&format!("{p}.input_ids"))) {
        let ids = golden.ids(&format!("{p}.input_ids"));
        let mut states: Vec<Vec<f32>> = Vec::new();
        let mut observer = |_: usize, rows: &[f32]| states.push(rows.to_vec());
        let mut seq = run.sequence();
        let span = Span { ids: &ids, seq: &mut seq, rope_len: ids.len(), logits: Want::All };
        let logits = run.model.forward(&mut run.weights, &mut [span], Some(&mut observer)).unwrap().remove(0);

        let rows = golden.ids(&format!("{p}.hidden_rows"));
        assert_eq!(states.len(), run.config().layers + 1);
        for (number, state) in states.iter().enumerate() {
            let what = format!("{name}, {p}: hidden state {number}");
            let expected = golden.f32s(&format!("{p}.hidden.{number}"));
            close(&what, &pick(state, &rows, hidden), &expected, hidden, accept_hidden);
        }
        let rows = golden.ids(&format!("{p}.logits_rows"));
        let expected = golden.f32s(&format!("{p}.logits"));
        close(&format!("{name}, {p}: logits"), &pick(&logits, &rows, vocab), &expected, vocab, accept);

        // One token a pass gives the same, bit for bit: few tokens take other kernels than many.
        let mut seq = run.sequence();
        let alone = if prompts == 0 { &ids[..] } else { &[] };
        for (t, id) in alone.iter().enumerate() {
            let alone = run.run(&mut seq, &[*id], ids.len(), Want::All);
            assert!(alone == logits[t * vocab..][..vocab], "{name}, {p}: token {t} by itself");
        }
        let expected = golden.ids(&format!("{p}.greedy_ids"));
        assert_eq!(run.greedy(&ids, expected.len()).0, expected, "{name}, {p}: greedy ids");
        prompts += 1;
    }
    assert!(prompts > 0, "{name} has no prompts");
}

/// Caches of fewer bits: logits near those of the processor over the same format, whose bits do not depend on how the
/// prompt is cut; and decoding goes on from them.
pub fn check_caches<D: Ops>(device: impl Fn() -> Option<D>, dir: &Path) {
    let name = dir.file_name().unwrap().to_string_lossy();
    let golden = Tensors::read(&[dir.join("golden.safetensors")]);
    let (ids, next) = (golden.ids("p0.input_ids"), golden.ids("p0.greedy_ids"));
    let on_cpu = &mut Run::open(dir);
    let config = || Config::parse(&json(&dir.join("config.json"))).unwrap();
    // Rounding may fall to the other side where numbers differ in their last bits.
    for (kv, most) in [(KvFormat::F16, 1e-7), (KvFormat::Q8, 1e-5)] {
        let Some(device) = device() else { return };
        let mut run = Run::placed(device, config(), &Tensors::model(dir), &Placement::default());
        (run.kv, on_cpu.kv) = (kv, kv);
        let expected = logits(on_cpu, &ids, &next, ids.len());
        let whole = logits(&mut run, &ids, &next, ids.len());
        let squares = |f: &dyn Fn(f64, f64) -> f64| {
            expected.iter().zip(&whole).map(|(&a, &b)| f(f64::from(a), f64::from(b)).powi(2)).sum::<f64>()
        };
        let error = squares(&|a, b| a - b) / squares(&|a, _| a);
        assert!(error <= most, "{name}, {kv}: {error:e}");
        for piece in [1, 5] {
            assert!(logits(&mut run, &ids, &next, piece) == whole, "{name}, {kv}: {piece} tokens a pass");
        }
    }
}

/// Logits of a prompt, `piece` tokens a pass, and of a few tokens behind it.
fn logits<D: Ops>(run: &mut Run<D>, ids: &[u32], next: &[u32], piece: usize) -> Vec<f32> {
    let mut seq = run.sequence();
    let generated = next.iter().take(4).map(std::slice::from_ref);
    let passes: Vec<&[u32]> = ids.chunks(piece).chain(generated).collect();
    passes.into_iter().flat_map(|pass| run.run(&mut seq, pass, ids.len(), Want::All)).collect()
}
