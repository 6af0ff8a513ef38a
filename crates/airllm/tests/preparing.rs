//! Preparing: what is written, what is found again, what is refused.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use airllm::{AutoModel, Bits, Cancel, Error, Form, Preparation, Prepared, Repo, delete_weights};
use airllm_tests::checkpoint::{Checkpoint, Dtype, Shape};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new(checkpoint: Checkpoint) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        checkpoint.write(&dir.path().join("model")).unwrap();
        Folder { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn repo(&self) -> (Repo, airllm::Config) {
        let repo = Repo::open(&self.path("model")).unwrap();
        let config = airllm::Config::parse(repo.config()).unwrap();
        (repo, config)
    }

    fn prepare(&self, out: &str, bits: Bits) -> airllm::Result<Prepared> {
        let (repo, config) = self.repo();
        Preparation::new(&repo, &config).bits(bits).threads(2).memory(1).run(&self.path(out))
    }
}

fn tiny() -> Folder {
    Folder::new(
        Checkpoint::new(Shape { layers: 3, tied: true, attention_bias: true, ..Shape::TINY }).shards(2),
    )
}

/// All files of a folder with their content.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn every_interruption_leads_to_the_same_bytes() {
    let folder = tiny();
    folder.prepare("whole", Bits::Q8).unwrap();
    let whole = content(&folder.path("whole"));
    assert!(whole.keys().all(|name| !name.starts_with('.')), "{:?}", whole.keys());
    // Stops after every number of reports, in the same folder again and again.
    for stop_at in 0..200u64 {
        let (repo, config) = folder.repo();
        let (cancel, reports) = (Cancel::new(), AtomicU64::new(0));
        let (flag, count) = (cancel.clone(), std::sync::Arc::new(reports));
        let told = count.clone();
        let report = move |_: &airllm::Progress<'_>| {
            if told.fetch_add(1, Ordering::Relaxed) >= stop_at {
                flag.stop();
            }
        };
        let run = Preparation::new(&repo, &config).bits(Bits::Q8).memory(1).cancel(&cancel).progress(&report);
        match run.run(&folder.path("parts")) {
            Ok(_) => {
                assert!(stop_at > 4, "only {stop_at} reports");
                assert_eq!(content(&folder.path("parts")), whole);
                return;
            }
            Err(Error::Interrupted) => assert!(!Prepared::is_prepared(&folder.path("parts"))),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("never finished");
}

#[test]
fn threads_and_blocks_change_nothing() {
    let folder = tiny();
    for bits in [Bits::Source, Bits::Q4, Bits::Nf4] {
        let (repo, config) = folder.repo();
        let one = Preparation::new(&repo, &config).bits(bits).threads(1);
        let many = Preparation::new(&repo, &config).bits(bits).threads(7).memory(1);
        let (a, b) = (folder.path(&format!("a{}", bits.name())), folder.path(&format!("b{}", bits.name())));
        one.run(&a).unwrap();
        many.run(&b).unwrap();
        assert_eq!(content(&a), content(&b));
    }
}

#[test]
fn plain_rows_are_copied_and_vectors_widened() {
    let folder = Folder::new(Checkpoint::new(Shape::TINY).dtype(Dtype::F16));
    let prepared = folder.prepare("out", Bits::Source).unwrap();
    let (repo, _) = folder.repo();
    let layer = &prepared.manifest().shards[1];
    let file = fs::read(folder.path("out").join(&layer.file)).unwrap();
    for (role, hf) in [("q", "self_attn.q_proj"), ("down", "mlp.down_proj"), ("attn_norm", "input_layernorm")]
    {
        let hf = format!("model.layers.0.{hf}.weight");
        let bytes = repo.tensor(&hf).unwrap().info.bytes;
        let mut original = vec![0; bytes as usize];
        repo.read(&hf, 0..bytes, &mut original).unwrap();
        let entry = layer.tensors.iter().find(|t| t.name == role).unwrap();
        let stored = &file[entry.offset as usize..][..entry.bytes as usize];
        if role == "attn_norm" {
            let half = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes();
            let wide: Vec<u8> = original.chunks_exact(2).flat_map(half).collect();
            assert_eq!(stored, wide);
        } else {
            assert_eq!(stored, original, "{role}");
        }
    }
}

#[test]
fn a_damaged_shard_is_found_and_mended() {
    let folder = tiny();
    let prepared = folder.prepare("out", Bits::Source).unwrap();
    let before = content(prepared.dir());
    let shard = &prepared.manifest().shards[2];
    let path = prepared.dir().join(&shard.file);
    let mut bytes = fs::read(&path).unwrap();
    bytes[shard.tensors[1].offset as usize + 7] ^= 4;
    fs::write(&path, bytes).unwrap();
    let error = prepared.verify(&mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("layer.1.safetensors") && error.contains('q'), "{error}");

    let (repo, config) = folder.repo();
    // A finished folder is taken as it is, unless a check is asked for.
    Preparation::new(&repo, &config).run(prepared.dir()).unwrap();
    assert_ne!(content(prepared.dir()), before);
    Preparation::new(&repo, &config).check_existing(true).run(prepared.dir()).unwrap();
    assert_eq!(content(prepared.dir()), before);
}

#[test]
fn shards_of_something_else_stay() {
    let folder = tiny();
    let prepared = folder.prepare("out", Bits::Source).unwrap();
    let before = content(prepared.dir());
    let error = folder.prepare("out", Bits::Q4).unwrap_err().to_string();
    assert!(error.contains("another checkpoint or recipe"), "{error}");
    assert_eq!(content(prepared.dir()), before);
}

#[test]
fn no_space() {
    let folder = tiny();
    let (repo, config) = folder.repo();
    let full = |_: &Path| Ok(1000);
    let run = Preparation::new(&repo, &config).free_space(&full);
    let needed = run.bytes().unwrap();
    let error = run.run(&folder.path("out")).unwrap_err();
    assert_eq!(error.kind(), airllm::ErrorKind::DoesNotFit);
    match error {
        Error::NoSpace { needed: n, free: 1000, .. } => assert!(n >= needed),
        error => panic!("{error}"),
    }
    assert!(!folder.path("out").join("embed.safetensors").exists());
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let folder = Folder::new(Checkpoint::new(Shape::TINY).dtype(Dtype::F32));
    let (repo, _) = folder.repo();
    let at = repo.tensor("model.layers.1.mlp.up_proj.weight").unwrap();
    let (path, start) = (repo.files()[at.file].clone(), at.info.start as usize);
    let mut bytes = fs::read(&path).unwrap();
    // Row 5, column 3 of 64.
    bytes[start + (5 * 64 + 3) * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = folder.prepare("out", Bits::Q8).unwrap_err().to_string();
    for part in ["model.safetensors", "model.layers.1.mlp.up_proj.weight", "row 5", "3"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!Prepared::is_prepared(&folder.path("out")));
    let checkpoint = airllm::Checkpoint::open(&folder.path("model"), None).unwrap();
    let error = checkpoint.verify(&Cancel::new(), &|_| {}).unwrap_err().to_string();
    assert!(error.contains("row 5") && error.contains("NaN"), "{error}");
}

#[test]
fn deleting_keeps_the_shards_running() {
    let folder = tiny();
    let prepared = folder.prepare("out", Bits::Source).unwrap();
    let model = |dir: &Path| {
        AutoModel::builder().device(airllm::Device::Cpu).threads(1).from_pretrained(dir.to_str().unwrap())
    };
    let before = model(&folder.path("out")).unwrap().forward(&[1, 2, 3]).unwrap();
    let checkpoint = airllm::Checkpoint::open(&folder.path("model"), None).unwrap();
    let Form::Published(repo) = checkpoint.into_form() else { panic!() };
    assert_eq!(delete_weights(repo).unwrap().len(), 2);
    assert!(
        fs::read_dir(folder.path("model"))
            .unwrap()
            .all(|f| { !f.unwrap().file_name().to_str().unwrap().ends_with(".safetensors") })
    );
    assert_eq!(model(prepared.dir()).unwrap().forward(&[1, 2, 3]).unwrap(), before);
}

#[test]
fn two_at_once_write_once() {
    let folder = tiny();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| folder.prepare("out", Bits::Q8))).collect();
        runs.into_iter().for_each(|run| drop(run.join().unwrap().unwrap()));
    });
    folder.prepare("alone", Bits::Q8).unwrap();
    assert_eq!(content(&folder.path("out")), content(&folder.path("alone")));
}
