//! Caches of fewer bits: how far logits are from those over f32, and that their bits do not depend on how tokens share
//! passes.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_model::{KvFormat, Span, Want};
use common::{Run, Tensors, argmax, data, shared};
use std::path::{Path, PathBuf};

/// Checkpoints whose attention differs: many heads, groups, windows and caps, ALiBi, heads of two parts (MLA) with values
/// of another width, experts.
const FIXTURES: [&str; 9] = [
    "llama2_mha",
    "llama32_gqa_tied",
    "mistral_swa",
    "mixtral",
    "qwen3",
    "chatglm",
    "baichuan_13b",
    "gemma2",
    "deepseek_v3",
];

fn checkpoints() -> Vec<PathBuf> {
    let tiny = [data("tiny_yarn_bias"), data("tiny_dynamic_tied")];
    tiny.into_iter().chain(FIXTURES.iter().filter_map(|name| shared(name))).collect()
}

/// Tokens decoded behind a prompt.
const DECODED: usize = 6;

/// Logits of all tokens: of a prompt, and of those that `next` chooses behind it, `piece` tokens of the prompt a pass.
fn logits(
    run: &mut Run,
    prompt: &[u32],
    piece: usize,
    mut next: impl FnMut(usize, &[f32]) -> u32,
) -> Vec<f32> {
    let vocab = run.config().vocab;
    let mut seq = run.sequence();
    let mut all = Vec::new();
    for ids in prompt.chunks(piece) {
        all.extend(run.run(&mut seq, ids, prompt.len(), Want::All));
    }
    for step in 0..DECODED {
        let id = next(step, &all[all.len() - vocab..]);
        all.extend(run.run(&mut seq, &[id], prompt.len(), Want::All));
    }
    all
}

fn prompt(dir: &Path, number: usize) -> Vec<u32> {
    Tensors::read(&[dir.join("golden.safetensors")]).ids(&format!("p{number}.input_ids"))
}

/// `Σ (a − b)² / Σ a²`.
fn error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum::<f64>();
    squares / a.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>()
}

#[test]
fn logits_stay_near() {
    for dir in checkpoints() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let mut run = Run::open(&dir);
        for number in 0..2 {
            let prompt = prompt(&dir, number);
            let vocab = run.config().vocab;
            let mut chosen = Vec::new();
            run.kv = KvFormat::F32;
            let exact = logits(&mut run, &prompt, prompt.len(), |_, row| {
                chosen.push(argmax(row));
                argmax(row)
            });
            // Measured: up to 4.8e-7, 3.1e-4 and 0.18 (random weights tell keys apart by little); single logits up to 9e-3 and 0.33 apart in f16 and q8.
            for (kv, most) in [(KvFormat::F16, 1e-6), (KvFormat::Q8, 1e-3), (KvFormat::Q4, 0.3)] {
                run.kv = kv;
                let mut same = 0;
                let rounded = logits(&mut run, &prompt, prompt.len(), |step, row| {
                    same += usize::from(argmax(row) == chosen[step]);
                    chosen[step]
                });
                let found = error(&exact, &rounded);
                assert!(found > 0.0 && found <= most, "{name}, prompt {number}, {kv}: {found:e}");
                assert!(kv != KvFormat::F16 || same == DECODED, "{name}, prompt {number}: other tokens");
                assert_eq!(exact.len(), (prompt.len() + DECODED) * vocab);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_how_tokens_share_passes() {
    for dir in checkpoints() {
        let mut run = Run::open(&dir);
        let (a, b) = (prompt(&dir, 0), prompt(&dir, 1));
        for kv in KvFormat::ALL {
            run.kv = kv;
            let vocab = run.config().vocab;
            let what = format!("{}, {kv}", dir.display());
            let whole = logits(&mut run, &a, a.len(), |_, row| argmax(row));
            for piece in [1, 3, 5] {
                let cut = logits(&mut run, &a, piece, |_, row| argmax(row));
                assert!(cut == whole, "{what}: {piece} tokens a pass");
            }
            // Beside a sequence whose cache is another's.
            run.kv = KvFormat::F32;
            let mut beside = run.sequence();
            run.kv = kv;
            let mut seq = run.sequence();
            assert_eq!((beside.format(), seq.format()), (KvFormat::F32, kv));
            let mut spans = [
                Span { ids: &b, seq: &mut beside, rope_len: b.len(), logits: Want::None },
                Span { ids: &a, seq: &mut seq, rope_len: a.len(), logits: Want::All },
            ];
            let together = run.model.forward(&mut run.weights, &mut spans, None).unwrap().remove(1);
            assert!(together == whole[..a.len() * vocab], "{what}: beside another sequence");
            // What was forgotten leaves no trace.
            seq.truncate(a.len() / 2);
            let again = run.run(&mut seq, &a[a.len() / 2..], a.len(), Want::Last);
            assert!(again == whole[(a.len() - 1) * vocab..a.len() * vocab], "{what}: run again");
        }
    }
}
