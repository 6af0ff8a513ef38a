//! Where the tests of calibrating work, and what they look at.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

use airllm::{AutoModel, Builder, Checkpoint, Prepared};
use airllm_tests::checkpoint::{Checkpoint as Made, Dtype, Shape};
use airllm_tests::shared::repository;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tokens that calibrating takes here: enough to see something.
pub const TOKENS: usize = 512;

/// A tiny model of which that are several windows.
pub const TINY: Shape = Shape { context: 128, ..Shape::TINY };

pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    /// A place with a random checkpoint in `model`.
    pub fn of(shape: Shape) -> Place {
        let place = Place::new();
        Made::new(shape).dtype(Dtype::F32).write(&place.path("model")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn builder(&self) -> Builder {
        AutoModel::builder()
            .device(airllm::Device::Cpu)
            .home(self.path("home"))
            .threads(2)
            .calibration_tokens(TOKENS)
    }

    pub fn model(&self) -> Checkpoint {
        open(&self.path("model"))
    }

    /// Changes the rows of a tensor of the checkpoint, which is one file of f32 or f16 numbers.
    pub fn edit(&self, name: &str, change: impl Fn(usize, &mut [f32])) {
        edit(&self.path("model/model.safetensors"), name, change);
    }
}

pub fn open(dir: &Path) -> Checkpoint {
    Checkpoint::open(dir, None).unwrap()
}

pub fn demo() -> PathBuf {
    repository().join("assets/demo-model/model")
}

/// Changes the rows of a tensor of a safetensors file in place.
pub fn edit(path: &Path, name: &str, change: impl Fn(usize, &mut [f32])) {
    let mut bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let (tensor, base) = (&json[name], 8 + header);
    let [start, end] = [0, 1].map(|i| base + tensor["data_offsets"][i].as_u64().unwrap() as usize);
    let cols = tensor["shape"][1].as_u64().unwrap() as usize;
    let half = tensor["dtype"] == "F16";
    assert!(half || tensor["dtype"] == "F32");
    let size = if half { 2 } else { 4 };
    for (row, bytes) in bytes[start..end].chunks_exact_mut(cols * size).enumerate() {
        let number = |b: &[u8]| match half {
            true => half::f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
            false => f32::from_le_bytes(b.try_into().unwrap()),
        };
        let mut numbers: Vec<f32> = bytes.chunks_exact(size).map(number).collect();
        change(row, &mut numbers);
        for (out, number) in bytes.chunks_exact_mut(size).zip(numbers) {
            match half {
                true => out.copy_from_slice(&half::f16::from_f32(number).to_le_bytes()),
                false => out.copy_from_slice(&number.to_le_bytes()),
            }
        }
    }
    fs::write(path, bytes).unwrap();
}

/// A copy of a folder.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::write(to.join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
}

/// The shards of a folder with their content.
pub fn shards(prepared: &Prepared) -> BTreeMap<String, Vec<u8>> {
    let paths = prepared.shard_paths().into_iter();
    paths.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap())).collect()
}

/// Bits of a weight on average, by what the manifest says of every tensor.
pub fn bits(prepared: &Prepared) -> f64 {
    let tensors = || prepared.manifest().shards.iter().flat_map(|shard| &shard.tensors);
    let bytes: u64 = tensors().map(|it| it.bytes).sum();
    let weights: u64 = tensors().map(|it| it.shape.iter().product::<usize>() as u64).sum();
    8.0 * bytes as f64 / weights as f64
}

/// All shards of a folder in bytes.
pub fn file_bytes(prepared: &Prepared) -> u64 {
    prepared.shard_paths().iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

/// The numbers of a tensor of a shard, row after row.
pub fn numbers(prepared: &Prepared, unit: &str, name: &str) -> Vec<f32> {
    let shard = prepared.manifest().shards.iter().find(|shard| shard.unit == unit).unwrap();
    let tensor = shard.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    let file = fs::read(prepared.dir().join(&shard.file)).unwrap();
    let (cols, bytes) =
        (*tensor.shape.last().unwrap(), &file[tensor.offset as usize..][..tensor.bytes as usize]);
    let mut row = vec![0.0; cols];
    let rows = bytes.chunks_exact(tensor.format.row_bytes(cols));
    rows.flat_map(|packed| {
        airllm_quant::unpack_row(tensor.format, packed, &mut row).unwrap();
        row.clone()
    })
    .collect()
}

/// Eight tokens, greedily.
pub fn speaks(builder: &Builder, dir: &Path) -> Vec<u32> {
    let model = builder.clone().context(64).from_pretrained(dir.to_str().unwrap()).unwrap();
    let options = airllm::Generation::default().max_new_tokens(8).ignore_eos(true);
    let mut run = model.generate_ids(vec![vec![72, 101, 108]], &options).unwrap();
    run.by_ref().for_each(|piece| drop(piece.unwrap()));
    run.answers().next().unwrap().ids.to_vec()
}

/// Reports of a stage so far.
#[derive(Clone, Default)]
pub struct Count(std::sync::Arc<AtomicU64>);

impl Count {
    /// Counts the reports of a stage.
    pub fn of(&self, stage: airllm::Stage, builder: Builder) -> Builder {
        let count = self.0.clone();
        builder.on_progress(move |now| {
            count.fetch_add(u64::from(now.stage == stage), Ordering::Relaxed);
        })
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
