//! The forward against reference outputs: hidden states layer by layer, logits, greedy ids, batches.
//!
//! The tiny checkpoints of this crate always run (`tests/data/make_tiny.py` made them); the reference
//! fixtures run where `../shared` is there.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_model::{Span, Want};
use common::{Run, Tensors, argmax, close, data, pick, shared};
use std::path::Path;

/// Accepted absolute differences of logits and hidden states.
#[derive(Clone, Copy)]
struct Accept {
    logits: f32,
    hidden: f32,
}

const TINY: Accept = Accept { logits: 1e-4, hidden: 1e-4 };
const USUAL: Accept = Accept { logits: 2e-4, hidden: 3e-4 };
const WIDER: Accept = Accept { logits: 3e-4, hidden: 3e-4 };

#[test]
fn tiny_yarn_with_biases() {
    check(&data("tiny_yarn_bias"), TINY);
}

#[test]
fn tiny_dynamic_tied() {
    check(&data("tiny_dynamic_tied"), TINY);
}

macro_rules! reference {
    ($($name:ident: $accept:expr;)*) => {$(
        #[test]
        fn $name() {
            if let Some(dir) = shared(stringify!($name)) {
                check(&dir, $accept);
            }
        }
    )*};
}

reference! {
    llama2_mha: USUAL;
    llama32_gqa_tied: WIDER;
    llama_rope_linear: USUAL;
    llama_rope_dynamic: USUAL;
    llama_rope_yarn: USUAL;
    llama_v5_config: USUAL;
    llama_bias: USUAL;
    llama_f32: WIDER;
    mistral_swa: USUAL;
    mixtral: USUAL;
    qwen1: USUAL;
    qwen1_ntk_logn: USUAL;
    qwen2: USUAL;
    qwen3: USUAL;
    qwen2_moe: USUAL;
    qwen3_moe: USUAL;
    chatglm: USUAL;
    chatglm_rope_ratio: USUAL;
    glm_native: USUAL;
    glm4_native: USUAL;
    baichuan_7b: Accept { logits: 2e-4, hidden: 5e-4 };
    baichuan_13b: USUAL;
    baichuan2_7b: USUAL;
    baichuan2_13b: USUAL;
    phi3: USUAL;
    phi3_longrope: Accept { logits: 6e-4, hidden: 1e-3 };
    gemma2: WIDER;
    gemma3_text: USUAL;
    deepseek_v3: Accept { logits: 2e-4, hidden: 4e-4 };
}

/// Everything that a fixture's golden says.
fn check(dir: &Path, accept: Accept) {
    let golden = Tensors::read(&[dir.join("golden.safetensors")]);
    let mut run = Run::open(dir);
    for prompt in (0..).map(|p| format!("p{p}")).take_while(|p| golden.has(&format!("{p}.input_ids"))) {
        whole_prompt(&mut run, &golden, &prompt, accept);
        greedy(&mut run, &golden, &prompt, accept);
        if golden.has(&format!("{prompt}.greedy_ids_recompute")) {
            recompute(&mut run, &golden, &prompt, accept);
        }
        cuts(&mut run, &golden.ids(&format!("{prompt}.input_ids")));
    }
    side_by_side(&mut run, &golden);
    if golden.has("batch.input_ids") {
        batch(&mut run, &golden, accept);
    }
    if golden.has("stop.input_ids") {
        stop(&mut run, &golden, dir);
    }
}

/// Hidden states after the embedding and every layer, then logits.
fn whole_prompt(run: &mut Run, golden: &Tensors, p: &str, accept: Accept) {
    let ids = golden.ids(&format!("{p}.input_ids"));
    let (hidden, vocab, layers) = (run.config().hidden, run.config().vocab, run.config().layers);
    let mut states: Vec<Vec<f32>> = Vec::new();
    let mut seq = run.sequence();
    let span = Span { ids: &ids, seq: &mut seq, rope_len: ids.len(), logits: Want::All };
    let mut observer = |number: usize, rows: &[f32]| {
        assert_eq!(number, states.len());
        states.push(rows.to_vec());
    };
    let logits = run.model.forward(&mut run.weights, &mut [span], Some(&mut observer)).unwrap();
    assert_eq!(states.len(), layers + 1);
    let rows = golden.ids(&format!("{p}.hidden_rows"));
    for (number, state) in states.iter().enumerate() {
        let what = match number {
            0 => format!("{p}: output of the embedding"),
            _ => format!("{p}: output of layer {}", number - 1),
        };
        let expected = golden.f32s(&format!("{p}.hidden.{number}"));
        close(&what, &pick(state, &rows, hidden), &expected, hidden, accept.hidden);
    }
    let rows = golden.ids(&format!("{p}.logits_rows"));
    let expected = golden.f32s(&format!("{p}.logits"));
    close(&format!("{p}: logits"), &pick(&logits[0], &rows, vocab), &expected, vocab, accept.logits);
}

fn greedy(run: &mut Run, golden: &Tensors, p: &str, accept: Accept) {
    let expected = golden.ids(&format!("{p}.greedy_ids"));
    let (ids, steps) = run.greedy(&golden.ids(&format!("{p}.input_ids")), expected.len());
    assert_eq!(ids, expected, "{p}: greedy ids");
    let name = format!("{p}.step_logits");
    if golden.has(&name) {
        let vocab = run.config().vocab;
        close(&name, &steps, &golden.f32s(&name), vocab, accept.logits);
    }
}

/// Greedy ids where every step runs the whole sequence anew, with the base of its whole length.
fn recompute(run: &mut Run, golden: &Tensors, p: &str, accept: Accept) {
    let mut ids = golden.ids(&format!("{p}.input_ids"));
    let prompt = ids.len();
    let expected = golden.ids(&format!("{p}.greedy_ids_recompute"));
    let mut steps = Vec::new();
    for _ in &expected {
        let mut seq = run.sequence();
        let logits = run.run(&mut seq, &ids, ids.len(), Want::Last);
        ids.push(argmax(&logits));
        steps.extend(logits);
    }
    assert_eq!(ids[prompt..], expected, "{p}: greedy ids, recomputed");
    let name = format!("{p}.step_logits_recompute");
    if golden.has(&name) {
        close(&name, &steps, &golden.f32s(&name), run.config().vocab, accept.logits);
    }
}

/// However a prompt is cut into passes, the logits are the same, bit for bit.
fn cuts(run: &mut Run, ids: &[u32]) {
    let vocab = run.config().vocab;
    let mut seq = run.sequence();
    let whole = run.run(&mut seq, ids, ids.len(), Want::All);

    // Token by token, as decoding does.
    seq.truncate(0);
    for (at, id) in ids.iter().enumerate() {
        let row = run.run(&mut seq, &[*id], ids.len(), Want::Last);
        assert!(row == whole[at * vocab..][..vocab], "row {at} differs when run alone");
    }
    // In two pieces, of which the first wants nothing.
    seq.truncate(0);
    let (first, second) = ids.split_at(ids.len() / 3);
    assert!(run.run(&mut seq, first, ids.len(), Want::None).is_empty());
    let rest = run.run(&mut seq, second, ids.len(), Want::All);
    assert!(rest == whole[first.len() * vocab..], "rows differ when run in two pieces");
    // Going back and running a part again.
    seq.truncate(first.len());
    let last = run.run(&mut seq, second, ids.len(), Want::Last);
    assert!(last == whole[(ids.len() - 1) * vocab..], "the last row differs when run again");
}

/// A span's logits do not depend on what shares its pass, bit for bit.
fn side_by_side(run: &mut Run, golden: &Tensors) {
    let (a, b) = (golden.ids("p0.input_ids"), golden.ids("p1.input_ids"));
    let c: Vec<u32> = a.iter().rev().copied().collect();
    let alone: Vec<Vec<f32>> = [(&a, Want::Last), (&b, Want::All), (&c, Want::None)]
        .into_iter()
        .map(|(ids, want)| {
            let mut seq = run.sequence();
            run.run(&mut seq, ids, ids.len(), want)
        })
        .collect();

    let (mut sa, mut sb, mut sc) = (run.sequence(), run.sequence(), run.sequence());
    let mut spans = [
        Span { ids: &a, seq: &mut sa, rope_len: a.len(), logits: Want::Last },
        Span { ids: &b, seq: &mut sb, rope_len: b.len(), logits: Want::All },
        Span { ids: &c, seq: &mut sc, rope_len: c.len(), logits: Want::None },
    ];
    let together = run.model.forward(&mut run.weights, &mut spans, None).unwrap();
    assert!(together == alone, "logits depend on what shares the pass");

    // And then they decode side by side, at different positions.
    let alone = [run.run(&mut sa, &[1], a.len(), Want::Last), run.run(&mut sb, &[2], b.len(), Want::Last)];
    sa.truncate(a.len());
    sb.truncate(b.len());
    let mut spans = [
        Span { ids: &[1], seq: &mut sa, rope_len: a.len(), logits: Want::Last },
        Span { ids: &[2], seq: &mut sb, rope_len: b.len(), logits: Want::Last },
    ];
    let together = run.model.forward(&mut run.weights, &mut spans, None).unwrap();
    assert!(together == alone, "decoding depends on what shares the pass");
}

/// The golden batch: rows padded on the left there, without padding here, decoded together.
fn batch(run: &mut Run, golden: &Tensors, accept: Accept) {
    let (vocab, n) = (run.config().vocab, golden.shape("batch.input_ids")[1]);
    let (ids, mask) = (golden.ids("batch.input_ids"), golden.ids("batch.attention_mask"));
    let (logits, expected) = (golden.f32s("batch.logits"), golden.ids("batch.greedy_ids"));
    let steps = golden.shape("batch.greedy_ids")[1];
    let prompts: Vec<&[u32]> = ids
        .chunks(n)
        .zip(mask.chunks(n))
        .map(|(ids, mask)| &ids[mask.iter().take_while(|&&m| m == 0).count()..])
        .collect();
    let mut seqs: Vec<_> = prompts.iter().map(|_| run.sequence()).collect();
    let mut spans: Vec<_> = prompts
        .iter()
        .zip(&mut seqs)
        .map(|(&ids, seq)| Span { ids, seq, rope_len: ids.len(), logits: Want::All })
        .collect();
    let mut rows = run.model.forward(&mut run.weights, &mut spans, None).unwrap();
    for (row, (found, prompt)) in rows.iter().zip(&prompts).enumerate() {
        let padding = n - prompt.len();
        let expected = &logits[(row * n + padding) * vocab..(row + 1) * n * vocab];
        close(&format!("batch row {row}"), found, expected, vocab, accept.logits);
    }
    for step in 0..steps {
        let next: Vec<[u32; 1]> =
            rows.iter().map(|logits| [argmax(&logits[logits.len() - vocab..])]).collect();
        for (row, id) in next.iter().enumerate() {
            assert_eq!(id[0], expected[row * steps + step], "batch row {row}, greedy step {step}");
        }
        let mut spans: Vec<_> = next
            .iter()
            .zip(&prompts)
            .zip(&mut seqs)
            .map(|((ids, prompt), seq)| Span { ids, seq, rope_len: prompt.len(), logits: Want::Last })
            .collect();
        rows = run.model.forward(&mut run.weights, &mut spans, None).unwrap();
    }
}

/// A greedy run that meets an id of `Config::eos`, or of generation_config.json where the family has its ids
/// there.
fn stop(run: &mut Run, golden: &Tensors, dir: &Path) {
    let expected = golden.ids("stop.greedy_ids");
    let (ids, _) = run.greedy(&golden.ids("stop.input_ids"), expected.len());
    assert_eq!(ids, expected);
    let mut ends = run.config().eos.clone();
    if ends.is_empty() {
        let id = &common::json(&dir.join("generation_config.json"))["eos_token_id"];
        ends.push(id.as_u64().unwrap() as u32);
    }
    let eos = ids.iter().position(|id| ends.contains(id));
    assert_eq!(eos, Some(ids.len() - 1), "an eos id comes last and only there");
}
