//! Fixtures: checkpoints in memory, their goldens, and pipelines over them.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

use airllm_format::safetensors::{Dtype, Header};
use airllm_format::{MemorySource, NumFormat};
use airllm_kernels::{Cpu, KvFormat, Ops};
use airllm_model::arch::{Arch, Flag, Fold, RopeExtra};
use airllm_model::{Config, Model, Sequence, Span, TensorDecl, UnitDecl, Want, bind};
use airllm_stream::{Catalog, ExpertCache, OnDevice, Options, Pipeline, Tensor, TensorId, Timeline, Unit};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file or folder of this crate's own test data.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A fixture of the reference set, or `None` with a line that says so.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures").join(name);
    if path.is_dir() {
        return Some(path);
    }
    // Straight to the descriptor: the harness keeps what a passing test prints to itself.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let line = format!("skipped: ../shared not there ({test})\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    None
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The tensors of some safetensors files.
pub struct Tensors(HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    pub fn read(files: &[PathBuf]) -> Self {
        let mut map = HashMap::new();
        for file in files {
            let header = Header::read(file).unwrap();
            let bytes = std::fs::read(file).unwrap();
            for t in header.tensors() {
                let data = bytes[t.start as usize..][..t.bytes as usize].to_vec();
                map.insert(t.name.clone(), (t.dtype, t.shape.clone(), data));
            }
        }
        Self(map)
    }

    /// The weights of a checkpoint folder.
    pub fn model(dir: &Path) -> Self {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("model") && name.ends_with(".safetensors") {
                files.push(path);
            }
        }
        Self::read(&files)
    }

    /// Takes a tensor out.
    pub fn take(&mut self, name: &str) -> Option<(Dtype, Vec<usize>, Vec<u8>)> {
        self.0.remove(name)
    }

    /// Puts a tensor in.
    pub fn put(&mut self, name: String, tensor: (Dtype, Vec<usize>, Vec<u8>)) {
        self.0.insert(name, tensor);
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self.get(name).1
    }

    pub fn format(&self, name: &str) -> NumFormat {
        self.get(name).0.format().unwrap()
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.get(name).2
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.get(name);
        let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F16 => halves().map(|b| half::f16::from_bits(b).to_f32()).collect(),
            Dtype::Bf16 => halves().map(|b| half::bf16::from_bits(b).to_f32()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let (dtype, _, bytes) = self.get(name);
        assert_eq!(*dtype, Dtype::I64, "{name}");
        bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }

    fn get(&self, name: &str) -> &(Dtype, Vec<usize>, Vec<u8>) {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

/// The catalog of what a configuration declares, one file a unit, matrices in `format(hf name)`.
pub fn catalog(config: &Config, format: impl Fn(&str) -> NumFormat) -> Catalog {
    let unit = |(file, decl): (usize, &UnitDecl)| {
        let mut offset = 0_u64;
        let tensors = decl.tensors.iter().map(|t| {
            // What is changed on the way is widened.
            let folded = t.fold != Fold::None;
            let format = if t.is_vector() || folded { NumFormat::F32 } else { format(&t.hf) };
            let tensor = Tensor {
                name: t.name.clone(),
                file,
                offset,
                format,
                rows: t.rows(),
                cols: t.cols(),
                checksum: None,
            };
            offset = (offset + tensor.bytes() as u64).next_multiple_of(256);
            tensor
        });
        Unit { name: decl.name.clone(), tensors: tensors.collect(), on_demand: decl.on_demand }
    };
    let units = config.units().iter().enumerate().map(unit).collect();
    let mut catalog = Catalog { units, pass: Vec::new() };
    let id = |(unit, tensor): &(String, String)| catalog.find(unit, tensor).unwrap();
    let pass: Vec<TensorId> = config.pass().iter().map(id).collect();
    catalog.pass = pass;
    catalog
}

/// The rows that a declaration names, changed as it says.
fn lifted(decl: &TensorDecl, format: NumFormat, tensors: &Tensors) -> Vec<u8> {
    let width = if decl.is_vector() { 1 } else { decl.cols() };
    let spans = decl.spans.iter();
    if !decl.is_vector() && decl.fold == Fold::None {
        let row = format.row_bytes(width);
        return spans.flat_map(|s| &tensors.bytes(&decl.hf)[s.start * row..s.end * row]).copied().collect();
    }
    let all = tensors.f32s(&decl.hf);
    let mut numbers: Vec<f32> = spans.flat_map(|s| &all[s.start * width..s.end * width]).copied().collect();
    match decl.fold {
        Fold::None => {}
        Fold::AddOne => numbers.iter_mut().for_each(|n| *n += 1.0),
        Fold::NormaliseRows => {
            for row in numbers.chunks_mut(width) {
                let length = row.iter().map(|&n| f64::from(n).powi(2)).sum::<f64>().sqrt().max(1e-7);
                row.iter_mut().for_each(|n| *n = (f64::from(*n) / length) as f32);
            }
        }
    }
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// A checkpoint on a device, streaming through a ring of small slots.
pub struct Run<D: Ops = Cpu> {
    pub model: Model<D>,
    pub weights: Pipeline<D>,
    device: Arc<D>,
    /// How its sequences are stored.
    pub kv: KvFormat,
}

/// Most tokens of a pass in these tests.
pub const MAX_TOKENS: usize = 200;

impl Run {
    pub fn open(dir: &Path) -> Self {
        Self::of(&json(&dir.join("config.json")), &Tensors::model(dir))
    }

    /// A checkpoint of these tensors.
    pub fn of(config: &Value, tensors: &Tensors) -> Self {
        Self::parsed(Config::parse(config).unwrap(), tensors)
    }

    pub fn parsed(config: Config, tensors: &Tensors) -> Self {
        Self::on(Cpu::new(2), config, tensors)
    }
}

/// Which units live where, by index; see [`Options`].
pub struct Placement {
    pub pinned: Vec<bool>,
    pub resident: Vec<bool>,
    pub on_host: Vec<bool>,
    pub device_slots: usize,
}

impl Default for Placement {
    /// All stream.
    fn default() -> Self {
        Self { pinned: Vec::new(), resident: Vec::new(), on_host: Vec::new(), device_slots: 2 }
    }
}

impl<D: Ops> Run<D> {
    /// A checkpoint of these tensors on this device, streaming.
    pub fn on(device: D, config: Config, tensors: &Tensors) -> Self {
        Self::placed(device, config, tensors, &Placement::default())
    }

    /// The same with units in places of their own. Those on demand stay on demand.
    pub fn placed(device: D, config: Config, tensors: &Tensors, placement: &Placement) -> Self {
        let catalog = catalog(&config, |hf| tensors.format(hf));
        let files = config.units().into_iter().zip(&catalog.units).map(|(decl, unit)| {
            let mut bytes = Vec::new();
            for (decl, tensor) in decl.tensors.iter().zip(&unit.tensors) {
                if decl.is_order {
                    bytes.resize(tensor.offset as usize, 0);
                    bytes.extend_from_slice(tensors.bytes(&format!("{}_order", decl.hf)));
                    continue;
                }
                let mut whole = decl.shape.clone();
                whole[0] = decl.hf_rows;
                assert_eq!(tensors.shape(&decl.hf), whole, "{}", decl.hf);
                bytes.resize(tensor.offset as usize, 0);
                bytes.extend(lifted(decl, tensor.format, tensors));
            }
            (unit.name.clone(), bytes)
        });
        let source = Arc::new(MemorySource::new(files.collect()).with_alignment(4096));
        let device = Arc::new(device);
        let binding = bind(&config, &catalog).unwrap();
        let of_pass = |marks: &[bool]| -> Vec<bool> {
            let units = catalog.units.iter().zip(marks);
            units.map(|(unit, &mark)| mark && !unit.on_demand).collect()
        };
        let options = Options {
            pinned: of_pass(&placement.pinned),
            device: OnDevice {
                slots: placement.device_slots,
                resident: of_pass(&placement.resident),
                on_host: of_pass(&placement.on_host),
            },
            slots: 3,
            slot_bytes: 8192,
            // An expert is several stripes, and some stay from token to token.
            experts: ExpertCache { slots: 5, slot_bytes: 8192 },
            readers: 1,
            timeline: Arc::new(Timeline::new(false)),
        };
        let weights = Pipeline::start(device.clone(), source, catalog, &options).unwrap();
        let model = Model::new(device.clone(), config, binding, MAX_TOKENS).unwrap();
        Self { model, weights, device, kv: KvFormat::F32 }
    }

    pub fn config(&self) -> &Config {
        self.model.config()
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    pub fn sequence(&self) -> Sequence<D> {
        Sequence::new(&*self.device, self.model.config(), self.kv, 256).unwrap()
    }

    /// One span in one pass.
    pub fn run(&mut self, seq: &mut Sequence<D>, ids: &[u32], rope_len: usize, want: Want) -> Vec<f32> {
        let span = Span { ids, seq, rope_len, logits: want };
        self.model.forward(&mut self.weights, &mut [span], None).unwrap().remove(0)
    }

    /// Greedy continuation of a prompt: the ids, and the logits each was taken from.
    pub fn greedy(&mut self, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<f32>) {
        let mut seq = self.sequence();
        let mut logits = self.run(&mut seq, prompt, prompt.len(), Want::Last);
        let (mut ids, mut steps) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let id = argmax(&logits);
            ids.push(id);
            steps.extend_from_slice(&logits);
            logits = self.run(&mut seq, &[id], prompt.len(), Want::Last);
        }
        (ids, steps)
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.unwrap() as u32
}

/// Fails where a number differs by more than `most`, saying where.
pub fn close(what: &str, found: &[f32], expected: &[f32], width: usize, most: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let mut worst = (0.0_f32, 0);
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let gap = (a - b).abs();
        assert!(!gap.is_nan(), "{what}: row {}, column {} is {a}", i / width, i % width);
        if gap > worst.0 {
            worst = (gap, i);
        }
    }
    let (gap, at) = worst;
    assert!(
        gap <= most,
        "{what}: row {}, column {}: {} instead of {}, {gap:e} apart, {most:e} allowed",
        at / width,
        at % width,
        found[at],
        expected[at]
    );
}

/// Rows `rows` of a flat `[_, width]`.
pub fn pick(flat: &[f32], rows: &[u32], width: usize) -> Vec<f32> {
    rows.iter().flat_map(|&row| &flat[row as usize * width..][..width]).copied().collect()
}

/// A configuration of a family in which every named dimension has a size of its own. `switches` turn on
/// what some of its models have: biases of the attention; biases of the feed-forward block, and what else
/// a family has only sometimes; a tied head.
pub fn odd_sizes(arch: &Arch, switches: [bool; 3]) -> Value {
    let (names, traits) = (&arch.fields, &arch.traits);
    let [attention, other, tied] = switches;
    let mut json = json!({
        "architectures": [arch.hf[0]], "hidden_size": 72, "num_attention_heads": 6,
        "tie_word_embeddings": tied, "sliding_window": 5, "use_sliding_window": true,
        "max_window_layers": 1, "sliding_window_pattern": 2,
    });
    let map = json.as_object_mut().unwrap();
    let mut set = |name: &str, value: Value| map.insert(name.into(), value);
    set(names.inner, if traits.inner_doubled { 208 } else { 104 }.into());
    set(names.vocab, 190.into());
    set(names.layers, 3.into());
    set(names.kv_heads, if traits.latent { 6 } else { 2 }.into());
    names.kv_heads_if.map(|name| set(name, true.into()));
    set(names.head_dim, 20.into());
    for (flag, value) in [(names.qkv_bias, attention), (names.out_bias, attention), (names.mlp_bias, other)] {
        if let Flag::Any(names) = flag {
            set(names[0], value.into());
        }
    }
    if !(traits.alibi_without_positions && other) {
        set(names.positions, 500.into());
    }
    if traits.head_normalised_if_marked && other {
        set("z_loss_weight", 0.into());
    }
    if traits.rope_extra == RopeExtra::QwenNtk {
        for name in ["use_dynamic_ntk", "use_logn_attn"] {
            set(name, true.into());
        }
        set("seq_length", 4.into());
    }
    if traits.softcaps {
        set("attn_logit_softcapping", 5.into());
        set("final_logit_softcapping", 9.into());
    }
    if traits.latent {
        for (name, size) in
            [("qk_rope_head_dim", 8), ("qk_nope_head_dim", 12), ("v_head_dim", 14), ("kv_lora_rank", 24)]
        {
            set(name, size.into());
        }
        if !other {
            set("q_lora_rank", 28.into());
        }
    }
    if let Some(moe) = &traits.moe {
        set("num_experts_per_tok", 2.into());
        set(moe.experts, 4.into());
        if moe.inner != names.inner {
            set(moe.inner, 40.into());
        }
        if let Some(name) = moe.shared {
            set(name, if name == "n_shared_experts" { 2 } else { 56 }.into());
        }
        for (name, value) in
            [("decoder_sparse_step", 2), ("first_k_dense_replace", 1), ("n_group", 2), ("topk_group", 1)]
        {
            set(name, value.into());
        }
    }
    json
}
