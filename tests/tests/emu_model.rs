//! Whole models on the CUDA kernels, thread by thread on the host: the checkpoints of `airllm-model`'s own tests, streamed
//! through a ring, against their reference outputs; and reference fixtures that together use all that a verb can do.

#[path = "../../crates/model/tests/common/mod.rs"]
mod common;

use airllm_kernels::{Emu, Order};
use airllm_model::{Config, Span, Want};
use airllm_tests::shared;
use common::{Run, Tensors, close, json, pick};
use std::path::{Path, PathBuf};

#[test]
fn tiny_yarn_with_biases() {
    check(&tiny("tiny_yarn_bias"), Order::Forward, [1e-4; 2]);
}

#[test]
fn tiny_dynamic_tied() {
    check(&tiny("tiny_dynamic_tied"), Order::Random(2), [1e-4; 2]);
}

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/data").join(name)
}

/// Fixtures with the differences of logits and hidden states that their README accepts.
macro_rules! reference {
    ($($name:ident: $order:expr, $accept:expr;)*) => {$(
        #[test]
        fn $name() {
            if let Some(shared) = shared::dir() {
                check(&shared.join("fixtures").join(stringify!($name)), $order, $accept);
            }
        }
    )*};
}

reference! {
    // Grouped queries, biases.
    qwen2: Order::Forward, [2e-4, 3e-4];
    // A window; experts: rows gathered, scaled and added; norms of heads.
    mistral_swa: Order::Reverse, [2e-4, 3e-4];
    qwen3_moe: Order::Random(3), [2e-4, 3e-4];
    // Pairs of neighbours, a part of each head.
    chatglm: Order::Forward, [2e-4, 3e-4];
    // Positions by ALiBi.
    baichuan_13b: Order::Reverse, [2e-4, 3e-4];
    // Softcaps, GELU.
    gemma2: Order::Forward, [3e-4, 3e-4];
    // Values narrower than keys, columns placed.
    deepseek_v3: Order::Random(4), [2e-4, 4e-4];
}

fn check(dir: &Path, order: Order, [accept, accept_hidden]: [f32; 2]) {
    let name = dir.file_name().unwrap().to_string_lossy();
    let golden = Tensors::read(&[dir.join("golden.safetensors")]);
    let config = Config::parse(&json(&dir.join("config.json"))).unwrap();
    let mut run = Run::on(Emu::new(order), config, &Tensors::model(dir));
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
