//! The plan changes time, never tokens: whatever stays in memory, however the ring is cut, however many
//! threads read and compute, and whatever goes wrong on the way, the logits are the same bits.

use airllm::{AutoModel, Bits, Checkpoint, Generation};
use airllm_format::{FaultSource, LayerSource, ReadMethod};
use airllm_kernels::Cpu;
use airllm_model::{KvFormat, Model, Span, Want, bind};
use airllm_stream::{ExpertCache, OnDevice, Options, Pipeline, Timeline};
use airllm_tests::checkpoint::{self, Dtype, Shape};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Prompts of different lengths; the third decodes on from its prompt.
const PROMPTS: [&[u32]; 3] =
    [&[7, 1, 200, 3, 3, 90, 41], &[250], &[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]];
const DECODED: usize = 3;

/// A model in a folder of its own.
struct Made {
    _dir: TempDir,
    checkpoint: Checkpoint,
}

fn shape(tied: bool) -> Shape {
    Shape { layers: 4, tied, attention_bias: tied, mlp_bias: tied, ..Shape::TINY }
}

fn published(shape: Shape, dtype: Dtype, seed: u64) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let made = checkpoint::Checkpoint::new(shape).dtype(dtype).seed(seed).shards(2);
    made.write(&dir.path().join("model")).unwrap();
    let checkpoint = Checkpoint::open(&dir.path().join("model"), None).unwrap();
    Made { _dir: dir, checkpoint }
}

fn prepared(tied: bool, dtype: Dtype, bits: Bits, seed: u64) -> Made {
    of_shape(shape(tied), dtype, bits, seed)
}

fn of_shape(shape: Shape, dtype: Dtype, bits: Bits, seed: u64) -> Made {
    let Made { _dir: dir, checkpoint } = published(shape, dtype, seed);
    let builder = AutoModel::builder().home(dir.path().join("home")).bits(bits);
    let shards = builder.prepare(&checkpoint).unwrap();
    let checkpoint = Checkpoint::open(shards.dir(), None).unwrap();
    Made { _dir: dir, checkpoint }
}

/// How a run is laid out, and what goes wrong in it.
#[derive(Debug, Clone)]
struct Layout {
    /// Units that stay, over and over if there are more units.
    pinned: Vec<bool>,
    expert_slots: usize,
    slots: usize,
    slot_bytes: usize,
    readers: usize,
    threads: usize,
    tokens_per_pass: usize,
    read: ReadMethod,
    fail: Vec<u64>,
    short_reads: Option<u64>,
    delay: u64,
}

fn layout() -> impl Strategy<Value = Layout> {
    let stream = (prop::collection::vec(any::<bool>(), 6), 1usize..5, 2usize..12, 1usize..5);
    let compute = (1usize..4, 1usize..14, prop::sample::select(&ReadMethod::ALL[..]), 2usize..20);
    let faults = (prop::collection::btree_set(0u64..60, 0..4), prop::option::of(any::<u64>()), 0u64..4);
    (stream, compute, faults).prop_map(|(stream, compute, faults)| Layout {
        pinned: stream.0,
        expert_slots: compute.3,
        slots: stream.1,
        slot_bytes: stream.2 * 4096,
        readers: stream.3,
        threads: compute.0,
        tokens_per_pass: compute.1,
        read: compute.2,
        // Never three neighbours: a read is tried three times.
        fail: faults.0.into_iter().map(|n| n * 3).collect(),
        short_reads: faults.1,
        delay: faults.2,
    })
}

/// Logits of all prompts, in pieces of at most `tokens_per_pass`, then of a few decoded tokens; as bits.
fn run(model: &Made, layout: &Layout) -> Vec<Vec<u32>> {
    let mut source = FaultSource::new(model.checkpoint.open_source(layout.read).unwrap());
    source = layout.fail.iter().fold(source, |source, &n| source.fail_read(n));
    if let Some(seed) = layout.short_reads {
        source = source.short_reads(seed);
    }
    if layout.delay > 0 {
        source = source.delay(layout.delay, Duration::from_micros(200));
    }
    let source: Arc<dyn LayerSource> = Arc::new(source);
    let config = model.checkpoint.config().clone();
    let catalog = model.checkpoint.catalog(None).unwrap();
    let options = Options {
        pinned: layout.pinned.iter().copied().cycle().take(catalog.units.len()).collect(),
        experts: ExpertCache { slots: layout.expert_slots, slot_bytes: layout.slot_bytes },
        slots: layout.slots,
        slot_bytes: layout.slot_bytes,
        readers: layout.readers,
        device: OnDevice::default(),
        timeline: Arc::new(Timeline::new(false)),
    };
    let device = Arc::new(Cpu::new(layout.threads));
    let binding = bind(&config, &catalog).unwrap();
    let mut stream = Pipeline::start(device.clone(), source, catalog, &options).unwrap();
    let mut runner = Model::new(device, config, binding, layout.tokens_per_pass.max(PROMPTS.len())).unwrap();

    let mut results = Vec::new();
    let mut sequences: Vec<_> =
        PROMPTS.iter().map(|p| runner.sequence(KvFormat::F32, p.len() + DECODED).unwrap()).collect();
    let mut next = Vec::new();
    for (prompt, seq) in PROMPTS.iter().zip(&mut sequences) {
        let mut rows = Vec::new();
        for ids in prompt.chunks(layout.tokens_per_pass) {
            let span = Span { ids, seq, rope_len: prompt.len(), logits: Want::All };
            rows.extend(runner_logits(&mut runner, &mut stream, &mut [span]).remove(0));
        }
        let vocab = rows.len() / prompt.len();
        next.push(best(&rows[rows.len() - vocab..]));
        results.push(rows.iter().map(|x| x.to_bits()).collect());
    }
    for _ in 0..DECODED {
        // All sequences in one pass, without padding.
        let ids: Vec<[u32; 1]> = next.iter().map(|&id| [id]).collect();
        let mut spans: Vec<_> = sequences
            .iter_mut()
            .zip(&ids)
            .zip(PROMPTS)
            .map(|((seq, ids), prompt)| Span { ids, seq, rope_len: prompt.len(), logits: Want::Last })
            .collect();
        let rows = runner_logits(&mut runner, &mut stream, &mut spans);
        next = rows.iter().map(|row| best(row)).collect();
        results.extend(rows.into_iter().map(|row| row.iter().map(|x| x.to_bits()).collect()));
    }
    results
}

fn runner_logits(
    model: &mut Model<Cpu>,
    stream: &mut Pipeline<Cpu>,
    spans: &mut [Span<'_, Cpu>],
) -> Vec<Vec<f32>> {
    model.forward(stream, spans, None).unwrap()
}

fn best(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

fn simple() -> Layout {
    Layout {
        pinned: vec![true; 6],
        expert_slots: 0,
        slots: 0,
        slot_bytes: 1 << 20,
        readers: 1,
        threads: 1,
        tokens_per_pass: 64,
        read: ReadMethod::Buffered,
        fail: vec![],
        short_reads: None,
        delay: 0,
    }
}

fn check(model: &Made, cases: u32) {
    let expected = run(model, &simple());
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases, ..ProptestConfig::default() });
    runner
        .run(&layout(), |layout| {
            prop_assert!(run(model, &layout) == expected, "other logits than with everything pinned");
            Ok(())
        })
        .unwrap();
}

#[test]
fn logits_are_the_same_bits_for_every_plan_at_16_bits() {
    check(&prepared(false, Dtype::Bf16, Bits::Source, 1), 24);
    check(&prepared(true, Dtype::F16, Bits::Source, 2), 24);
}

#[test]
fn logits_are_the_same_bits_for_every_plan_at_32_8_and_4_bits() {
    check(&prepared(false, Dtype::F32, Bits::Source, 3), 12);
    check(&prepared(false, Dtype::Bf16, Bits::Q8, 4), 12);
    check(&prepared(true, Dtype::Bf16, Bits::Q4, 5), 12);
    check(&prepared(false, Dtype::Bf16, Bits::Q5, 8), 6);
    check(&prepared(true, Dtype::Bf16, Bits::Q3, 9), 6);
}

#[test]
fn logits_are_the_same_bits_for_every_plan_of_a_checkpoint_as_it_is() {
    let experts = Shape { layers: 3, experts: 5, intermediate: 64, ..Shape::TINY };
    for (shape, dtype, seed) in
        [(shape(false), Dtype::Bf16, 8), (shape(true), Dtype::F16, 9), (experts, Dtype::Bf16, 10)]
    {
        let live = published(shape, dtype, seed);
        check(&live, 12);
        assert!(run(&live, &simple()) == run(&of_shape(shape, dtype, Bits::Source, seed), &simple()));
    }
}

#[test]
fn logits_are_the_same_bits_for_every_plan_with_experts() {
    let shape = Shape { layers: 3, experts: 5, intermediate: 64, ..Shape::TINY };
    check(&of_shape(shape, Dtype::Bf16, Bits::Source, 6), 24);
    check(&of_shape(shape, Dtype::Bf16, Bits::Q4, 7), 12);
}

#[test]
fn budgets_set_by_the_user_do_not_change_text() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { layers: 6, ..Shape::TINY };
    checkpoint::Checkpoint::new(shape).seed(9).write(&dir.path().join("model")).unwrap();
    let model = dir.path().join("model");
    let ids = |ram: Option<u64>, threads: usize| {
        let builder = AutoModel::builder()
            .device(airllm::Device::Cpu)
            .home(dir.path().join("home"))
            .threads(threads)
            .context(64);
        let builder = ram.map_or(builder.clone(), |ram| builder.ram(ram));
        let model = builder.from_pretrained(path(&model)).unwrap();
        let streamed = model.plan().plan.streamed;
        let options = Generation::default().max_new_tokens(12).ignore_eos(true);
        let mut run = model.generate_ids(vec![vec![1, 2, 3, 4, 5]], &options).unwrap();
        for piece in run.by_ref() {
            piece.unwrap();
        }
        let ids = run.answers().next().unwrap().ids.clone();
        (ids, streamed)
    };
    let (all, nothing) = ids(None, 2);
    assert_eq!((all.len(), nothing), (12, 0));
    let least = smallest_budget(&model, dir.path());
    let mut streamed = Vec::new();
    for ram in [least, least + 50_000, least + 150_000, least + 400_000] {
        let (some, bytes) = ids(Some(ram), 1);
        assert_eq!(some, all, "with {ram} bytes");
        streamed.push(bytes);
    }
    assert!(streamed.is_sorted_by(|a, b| a >= b) && streamed[0] > 0, "{streamed:?}");
}

/// The budget that a refusal names as the least that works.
fn smallest_budget(model: &Path, dir: &Path) -> u64 {
    let builder = AutoModel::builder().device(airllm::Device::Cpu).home(dir.join("home")).context(64).ram(1);
    match builder.from_pretrained(path(model)) {
        Err(airllm::Error::Budget { need, .. }) => need,
        Err(error) => panic!("refused for another reason: {error}"),
        Ok(_) => panic!("one byte cannot be enough"),
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
