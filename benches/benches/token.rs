//! `cargo bench --bench token [-- --json FILE]`: one-token decode of a random model, in memory and with
//! half of it on disk, by number format. On a GPU instead: `-- --cuda`, see `airllm_benches::gpu::token`.
//!
//! Printed and written: tokens per second (medians of several runs that take turns), and the achieved
//! share of the slower lane's limit as measured on this machine just before (what `airllm plan` predicts).

use airllm::{AutoModel, Bits, Generation};
use airllm_benches::{Row, median, report};
use airllm_tests::checkpoint::{Checkpoint, Shape};
use std::path::{Path, PathBuf};

const RUNS: usize = 3;
const TOKENS: usize = 12;

/// 0.3 G weights in layers shaped like a small Llama's.
const SHAPE: Shape = Shape {
    hidden: 1536,
    intermediate: 4096,
    layers: 10,
    heads: 12,
    kv_heads: 4,
    head_dim: 128,
    vocab: 16_000,
    context: 2048,
    ..Shape::TINY
};

fn main() {
    if std::env::args().any(|arg| arg == "--cuda") {
        return airllm_benches::gpu::token::main();
    }
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1));
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("token-bench");
    let model = dir.join("model");
    Checkpoint::new(SHAPE).write(&model).expect("there is room for a model of 0.6 GB");

    let cases: Vec<(String, Bits, Option<f64>)> =
        [(Bits::Source, "bf16"), (Bits::Q8, "q8"), (Bits::Q4, "q4")]
            .into_iter()
            .flat_map(|(bits, name)| {
                [
                    (format!("{name}, all in memory"), bits, None),
                    (format!("{name}, half on disk"), bits, Some(0.5)),
                ]
            })
            .collect();
    let mut results = vec![(Vec::new(), Vec::new()); cases.len()];
    for _ in 0..RUNS {
        for ((_, bits, share), (rates, shares)) in cases.iter().zip(&mut results) {
            let (rate, predicted) = run(&dir, &model, *bits, *share);
            rates.push(rate);
            shares.push(rate / predicted);
        }
    }
    let rows: Vec<Row> = cases
        .iter()
        .zip(&mut results)
        .map(|((name, ..), (rates, shares))| {
            Row::new(name, median(rates), "tokens/s").against(median(shares), "the slower lane's limit")
        })
        .collect();
    let _ = std::fs::remove_dir_all(&dir);
    report("token", "cargo bench --bench token", &rows, value("--json").map(Path::new));
}

/// Tokens per second of decoding, and what the plan predicted.
fn run(dir: &Path, model: &Path, bits: Bits, share: Option<f64>) -> (f64, f64) {
    let builder =
        AutoModel::builder().device(airllm::Device::Cpu).home(dir.join("home")).bits(bits).context(64);
    let name = model.to_str().expect("the target folder's name is UTF-8");
    let builder = match share {
        None => builder,
        Some(share) => {
            let found = builder.find(name).expect("the model was just written");
            let weights: usize =
                found.catalog(Some(bits)).expect("a catalog").units.iter().map(|u| u.bytes()).sum();
            builder.ram((weights as f64 * share) as u64 + (48 << 20))
        }
    };
    let model = builder.from_pretrained(name).expect("the model loads");
    let predicted = model.plan().tokens_per_s();
    // The first run fills the pinned tier, the second one is measured.
    let mut rate = 0.0;
    for tokens in [2, TOKENS] {
        let options = Generation::default().max_new_tokens(tokens).ignore_eos(true);
        let mut run = model.generate_ids(vec![vec![5, 6, 7]], &options).expect("it generates");
        for piece in run.by_ref() {
            piece.expect("it goes on");
        }
        rate = run.physics().tokens_per_s;
    }
    (rate, predicted)
}
