//! `cargo bench --bench token -- --cuda --case pinned|disk|large [--json FILE] [--vram SIZE] [--layers N] [--dir FOLDER]
//! [--ram SIZE]`: models that do not fit the GPU.
//!
//! Random weights of 4 bits flow through the engine's own stream, plan and forward:
//!
//! - `pinned`: Llama 2 70B in `--vram 4GB`, all of it in page-locked memory. Tokens a second of one sequence as share of
//!   what the bytes that were copied allow at the rate of copies, measured just before; then passes of 32 sequences, and of
//!   a prompt of 1024 tokens, as share of the same.
//! - `disk`: the same from files in a folder, with 2 GB of host memory; the share is that of the slower lane.
//! - `large`: layers of Llama 3.1 405B in `--vram 2GB`, in page-locked memory.
//!
//! Where memory or disk do not hold all layers there are as many as they hold, and the result says how many.
//! `AIRLLM_BENCH_QUICK` shrinks the model.

mod layout;
mod random;

use crate::{Row, median, quick};
use airllm::Size;
use airllm_format::{FileSource, LayerSource, NumFormat, ReadMethod};
use airllm_kernels::{Cuda, CudaSettings, KvFormat, Memory};
use airllm_model::{Model, Sequence, Span, Want, bind};
use airllm_stream::{Catalog, Options, Pipeline, Plan, Stats, Timeline};
use layout::{READERS, Rates, Room};
use random::{Random, Shape, catalog};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// One sequence, 32 of them, a prompt of 1024 tokens.
const ROOM: Room = Room { batch: 1024, rows: 32, cache: 1024 };
/// One sequence.
const SMALL_ROOM: Room = Room { batch: 8, rows: 1, cache: 64 };
/// Host memory where weights are on disk.
const RAM: u64 = 2_000_000_000;
/// What is read of the disk to measure it, each way.
const PROBE: u64 = 256 << 20;
/// A prompt before tokens are generated.
const PROMPT: [u32; 3] = [5, 6, 7];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Pinned,
    Disk,
    Large,
}

impl Case {
    const ALL: [(&str, Case); 3] = [("pinned", Case::Pinned), ("disk", Case::Disk), ("large", Case::Large)];

    fn name(self) -> &'static str {
        Case::ALL.iter().find(|(_, case)| *case == self).map_or("", |(name, _)| name)
    }

    fn shape(self) -> Shape {
        match self {
            _ if quick() => Shape::QUICK,
            Case::Large => Shape::B405,
            _ => Shape::B70,
        }
    }

    fn vram(self) -> u64 {
        match self {
            _ if quick() => 64 << 20,
            Case::Large => 2_000_000_000,
            _ => 4_000_000_000,
        }
    }

    fn room(self) -> Room {
        match self {
            _ if quick() => Room { batch: 40, rows: 2, cache: 40 },
            Case::Large => SMALL_ROOM,
            _ => ROOM,
        }
    }
}

/// Measures and reports.
pub fn main() {
    let asked = super::option("--case").unwrap_or_else(|| "pinned".to_owned());
    let case = Case::ALL.iter().find(|(name, _)| *name == asked).map(|(_, case)| *case);
    let case = case.unwrap_or_else(|| panic!("--case {asked}: expected pinned, disk or large"));
    let size = |flag| super::option(flag).map(|text| text.parse::<Size>().expect("a size, as 4GB").0);
    let vram = size("--vram").unwrap_or(case.vram());
    let cuda = match Cuda::open(&CudaSettings { ordinal: 0, vram: Some(vram), host_threads: 0 }) {
        Ok(cuda) => cuda,
        Err(error) => return println!("skipped: {error}"),
    };
    println!("{}, CUDA {}, {vram} bytes", cuda.name(), cuda.driver());
    let name = cuda.name().to_owned();
    let layers = super::option("--layers").map(|text| text.parse().expect("--layers: expected a number"));
    let dir = super::option("--dir").map_or_else(super::scratch, PathBuf::from).join("airllm-token-bench");
    let rows = measure(case, cuda, layers, size("--ram").unwrap_or(RAM), &dir);
    if case == Case::Disk {
        let _ = std::fs::remove_dir_all(&dir);
    }
    let command = format!("cargo bench --bench token -- --cuda --case {}", case.name());
    let json = super::option("--json").map(PathBuf::from);
    let title = format!("token-{}", case.name());
    crate::report_on(Some(&name), &title, &command, &rows, json.as_deref());
}

/// What there is room for, of the layers of a model: an eighth of memory or disk stays free.
fn shape_that_fits(case: Case, layers: Option<usize>, dir: &Path) -> Shape {
    let shape = case.shape();
    let room = match case {
        Case::Disk => airllm_format::free_space(dir).ok(),
        _ => airllm::available_memory(),
    };
    let whole = catalog(&shape.config(), NumFormat::Q4);
    let fit = room.map_or(shape.layers, |room| layout::layers_that_fit(&whole, room / 8 * 7));
    let layers = layers.unwrap_or(fit.min(shape.layers));
    assert!(layers > 0, "{room:?} bytes do not hold a layer");
    Shape { layers, ..shape }
}

fn measure(case: Case, cuda: Cuda, layers: Option<usize>, ram: u64, dir: &Path) -> Vec<Row> {
    let shape = shape_that_fits(case, layers, dir);
    let config = shape.config();
    let catalog = catalog(&config, NumFormat::Q4);
    let random = Random::new(&catalog);
    let mut rates = Rates {
        upload: cuda.measure_upload().expect("copies to the device"),
        memory: cuda.measure_memory().expect("copies on the device"),
        disk: None,
    };
    let source: Arc<dyn LayerSource> = match case {
        Case::Disk => {
            let paths = random.write(dir).expect("the folder has room for the model");
            let (rate, mode) = disk(&paths);
            rates.disk = Some(rate);
            Arc::new(FileSource::open(&paths, mode).expect("files that were just written"))
        }
        _ => Arc::new(random),
    };
    let mut rows = vec![
        Row::new("layers", shape.layers as f64, "layers")
            .against(shape.layers as f64 / case.shape().layers as f64, "the model's"),
        Row::new("copy from pinned memory", rates.upload / 1e9, "GB/s"),
    ];
    rows.extend(rates.disk.map(|disk| Row::new("reads of the disk", disk / 1e9, "GB/s")));
    let memory = cuda.memory().expect("the device's memory");
    let ram = rates.disk.map(|_| ram);
    let plan = layout::layout(&config, &catalog, case.room(), memory.into(), rates, ram);
    let mut run = Run::start(cuda, config, catalog, source, &plan, case.room(), rates);
    // Fills what stays.
    run.decode(1, 1);
    rows.extend(one(case, &mut run));
    if case == Case::Pinned {
        rows.extend(many(&mut run));
    }
    rows.extend(run.memory_rows());
    rows
}

/// Rows for one sequence, which says how wide the lanes are used.
fn one(case: Case, run: &mut Run) -> Vec<Row> {
    let pass = run.rounds(|run| run.decode(1, if quick() { 2 } else { 8 }));
    assert!(pass.uploaded > 0.0, "the budget holds the whole model: nothing is copied");
    let limit = run.limit(&pass);
    let against = match case {
        Case::Disk => "the slower of disk and copies",
        _ => "copied bytes over the rate of copies",
    };
    let mut rows = vec![
        Row::new("weights of a pass", run.bytes_per_pass / 1e6, "MB"),
        Row::new("copied in a pass", pass.uploaded / 1e6, "MB"),
    ];
    if case == Case::Disk {
        rows.push(Row::new("read in a pass", pass.read / 1e6, "MB"));
    }
    rows.push(
        Row::new("one sequence", 1.0 / pass.seconds, "tokens/s").against(limit / pass.seconds, against),
    );
    rows.push(Row::new("one sequence, waits of the host in a pass", pass.waits, "waits"));
    rows
}

/// Rows for passes in which more is computed.
fn many(run: &mut Run) -> Vec<Row> {
    let (sequences, tokens, long) = if quick() { (2, 2, 40) } else { (32, 8, 1024) };
    let row = |name: &str, pass: Pass, run: &Run| {
        let row = Row::new(&format!("{name}, a pass"), pass.seconds * 1e3, "ms");
        row.against(run.limit(&pass) / pass.seconds, "copied bytes over the rate of copies")
    };
    let batch = run.rounds(|run| run.decode(sequences, tokens));
    let prompt = run.rounds(|run| run.prompt(long));
    vec![
        row(&format!("{sequences} sequences"), batch, run),
        row(&format!("prompt of {long} tokens"), prompt, run),
    ]
}

/// Bytes a second of the files' disk, and the way to read them.
fn disk(paths: &[PathBuf]) -> (f64, ReadMethod) {
    let probe = FileSource::probe(paths, PROBE, READERS).expect("reads of the files");
    if probe.best() > 0.0 {
        return (probe.best(), probe.choose());
    }
    // Files of a quick run are too small for the probe.
    let source = FileSource::open(paths, ReadMethod::Buffered).expect("files that were just written");
    let start = Instant::now();
    let mut bytes = 0;
    for file in 0..source.files() {
        let mut buf = vec![0; source.len(file) as usize];
        source.read_at(file, 0, &mut buf).expect("reads of the files");
        bytes += buf.len();
    }
    (bytes as f64 / start.elapsed().as_secs_f64(), ReadMethod::Buffered)
}

/// Means over some passes.
#[derive(Debug, Clone, Copy)]
struct Pass {
    seconds: f64,
    uploaded: f64,
    read: f64,
    waits: f64,
}

/// A model that runs.
struct Run {
    cuda: Arc<Cuda>,
    model: Model<Cuda>,
    weights: Pipeline<Cuda>,
    rates: Rates,
    bytes_per_pass: f64,
    /// Fewest bytes of the device that were free after a pass.
    least_free: u64,
}

impl Run {
    fn start(
        cuda: Cuda,
        config: airllm_model::Config,
        catalog: Catalog,
        source: Arc<dyn LayerSource>,
        plan: &Plan,
        room: Room,
        rates: Rates,
    ) -> Run {
        let cuda = Arc::new(cuda);
        let memory = cuda.memory().expect("the device's memory");
        // As the engine does it.
        cuda.reserve(layout::one_piece(plan, memory.into()) as usize).expect("what was planned");
        let binding = bind(&config, &catalog).expect("a catalog of what is declared");
        let options = Options::of(plan, Arc::new(Timeline::new(false)));
        let weights = Pipeline::start(cuda.clone(), source, catalog, &options).expect("the stream starts");
        let model = Model::new(cuda.clone(), config, binding, room.batch).expect("room for activations");
        let bytes_per_pass = plan.bytes_per_pass as f64;
        Run { cuda, model, weights, rates, bytes_per_pass, least_free: memory.free }
    }

    /// One pass with these tokens of each sequence; answers the next token of each.
    fn pass(&mut self, ids: &[Vec<u32>], sequences: &mut [Sequence<Cuda>]) -> Vec<u32> {
        let spans = ids.iter().zip(sequences);
        let span = |(ids, seq)| Span { ids, seq, rope_len: PROMPT.len(), logits: Want::Last };
        let mut spans: Vec<Span<'_, Cuda>> =
            spans.map(|(ids, seq): (&Vec<u32>, _)| span((ids.as_slice(), seq))).collect();
        let logits = self.model.forward(&mut self.weights, &mut spans, None).expect("the pass ends");
        let likeliest = |logits: &Vec<f32>| {
            assert!(logits.iter().all(|logit| logit.is_finite()), "logits are numbers");
            (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0) as u32
        };
        logits.iter().map(likeliest).collect()
    }

    fn sequences(&self, count: usize, capacity: usize) -> Vec<Sequence<Cuda>> {
        (0..count)
            .map(|_| self.model.sequence(KvFormat::default(), capacity).expect("room for the cache"))
            .collect()
    }

    /// `tokens` passes that generate a token of each sequence, after one with their prompts.
    fn decode(&mut self, count: usize, tokens: usize) -> Pass {
        let mut sequences = self.sequences(count, PROMPT.len() + tokens);
        let vocab = self.model.config().vocab as u32;
        let prompts: Vec<Vec<u32>> =
            (0..count as u32).map(|i| PROMPT.map(|id| (id + i) % vocab).to_vec()).collect();
        let mut next = self.pass(&prompts, &mut sequences);
        self.passes(tokens, |run| {
            let ids: Vec<Vec<u32>> = next.iter().map(|&id| vec![id]).collect();
            next = run.pass(&ids, &mut sequences);
        })
    }

    /// One pass with a whole prompt.
    fn prompt(&mut self, tokens: usize) -> Pass {
        let mut sequences = self.sequences(1, tokens);
        let vocab = self.model.config().vocab as u32;
        let ids = [(0..tokens as u32).map(|i| (3 + 7 * i) % vocab).collect()];
        self.passes(1, |run| {
            run.pass(&ids, &mut sequences);
        })
    }

    /// Times passes, and counts what they moved. Copies run ahead by as much before as after.
    fn passes(&mut self, count: usize, mut pass: impl FnMut(&mut Run)) -> Pass {
        let counts = |run: &Run| (run.weights.stats(), run.cuda.host_waits());
        let (before, waits): (Stats, u64) = counts(self);
        let start = Instant::now();
        for _ in 0..count {
            pass(self);
        }
        let seconds = start.elapsed().as_secs_f64();
        let (after, more_waits) = counts(self);
        let free = self.cuda.memory().expect("the device's memory").free;
        self.least_free = self.least_free.min(free);
        let each = |bytes: u64| bytes as f64 / count as f64;
        Pass {
            seconds: seconds / count as f64,
            uploaded: each(after.bytes_uploaded - before.bytes_uploaded),
            read: each(after.bytes_read - before.bytes_read),
            waits: each(more_waits - waits),
        }
    }

    /// The round of median time.
    fn rounds(&mut self, mut round: impl FnMut(&mut Run) -> Pass) -> Pass {
        let rounds = if quick() { 1 } else { 3 };
        let mut all: Vec<Pass> = (0..rounds).map(|_| round(self)).collect();
        let middle = median(&mut all.iter().map(|pass| pass.seconds).collect::<Vec<_>>());
        all.swap_remove(all.iter().position(|pass| pass.seconds == middle).unwrap_or(0))
    }

    /// Seconds that the slower lane needs for what a pass moved.
    fn limit(&self, pass: &Pass) -> f64 {
        let disk = self.rates.disk.map_or(0.0, |disk| pass.read / disk);
        (pass.uploaded / self.rates.upload).max(disk)
    }

    /// The most of the device's memory that was taken, against the budget.
    fn memory_rows(&self) -> Vec<Row> {
        const GIB: f64 = (1_u64 << 30) as f64;
        let memory = self.cuda.memory().expect("the device's memory");
        // What the driver calls taken, by this program and any other.
        let driver = memory.total - self.least_free.min(memory.free);
        [("by the driver, of all programs", driver), ("by the engine", memory.peak)]
            .map(|(who, bytes)| {
                let row = Row::new(&format!("most device memory, {who}"), bytes as f64 / GIB, "GiB");
                row.against(bytes as f64 / memory.budget as f64, "the budget")
            })
            .to_vec()
    }
}
