//! Prepared folders: nothing half-written or damaged is opened or passes verification.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may end")]

use airllm_format::shard::{ShardTag, ShardWriter, TensorSpec, accept};
use airllm_format::{
    Bits, Error, FileSource, LayerSource, MANIFEST, Manifest, NumFormat, Prepared, ReadMethod, Recipe,
    SourceEntry, copy_file,
};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const UNITS: [&str; 3] = ["embed", "layer.0", "head"];

fn specs(unit: &str) -> Vec<TensorSpec> {
    let spec =
        |name: &str, format, shape: &[usize]| TensorSpec { name: name.into(), format, shape: shape.to_vec() };
    match unit {
        "embed" => vec![spec("embed", NumFormat::F16, &[32, 24])],
        "head" => vec![spec("final_norm", NumFormat::F32, &[24]), spec("head", NumFormat::Q8, &[32, 24])],
        _ => vec![spec("attn_norm", NumFormat::F32, &[24]), spec("q", NumFormat::Q4, &[48, 24])],
    }
}

fn tag(unit: &str) -> ShardTag {
    ShardTag { unit: unit.into(), source: "cafe".into(), recipe: Recipe::uniform(Bits::Q4).name() }
}

fn weights(spec: &TensorSpec) -> Vec<u8> {
    let bytes = airllm_format::shard::Geometry::of(spec.format, &spec.shape).unwrap().bytes;
    (0..bytes).map(|i| (i * 7 + spec.name.len() as u64) as u8).collect()
}

/// What `prepare` does: the shards that are not there yet, the side files, the manifest.
fn prepare(dir: &Path, side: &Path) {
    let source = SourceEntry { id: None, fingerprint: "cafe".into() };
    let config = serde_json::json!({ "rms_norm_eps": 1e-5 });
    let mut manifest = Manifest::new("LlamaForCausalLM".into(), source, Recipe::uniform(Bits::Q4), config);
    for unit in UNITS {
        let file = format!("{unit}.safetensors");
        if let Some(entry) = accept(dir, &file, &tag(unit), &specs(unit)).unwrap() {
            manifest.shards.push(entry);
            continue;
        }
        let mut writer = ShardWriter::create(dir, &file, &tag(unit), specs(unit)).unwrap();
        specs(unit).iter().for_each(|s| writer.write(&weights(s)).unwrap());
        manifest.shards.push(writer.finish().unwrap());
    }
    manifest.files.push(copy_file(side, dir).unwrap());
    manifest.write(dir).unwrap();
}

struct Folder {
    _temp: tempfile::TempDir,
    dir: PathBuf,
    side: PathBuf,
}

fn folder() -> Folder {
    let temp = tempfile::tempdir().unwrap();
    let side = temp.path().join("tokenizer.json");
    fs::write(&side, b"{\"a\": 1}").unwrap();
    let dir = temp.path().join("prepared");
    fs::create_dir(&dir).unwrap();
    prepare(&dir, &side);
    Folder { _temp: temp, dir, side }
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

fn verify(dir: &Path) -> Result<(), Error> {
    Prepared::open(dir)?.verify(&mut |_, _| {})
}

#[test]
fn opens_verifies_and_streams() {
    let f = folder();
    let prepared = Prepared::open(&f.dir).unwrap();
    assert!(Prepared::is_prepared(&f.dir) && !Prepared::is_prepared(f.side.parent().unwrap()));
    let mut last = (0, 0);
    prepared
        .verify(&mut |done, total| {
            assert!(done > last.0 && done <= total);
            last = (done, total);
        })
        .unwrap();
    assert_eq!(last.0, last.1);
    assert_eq!(last.1, prepared.manifest().bytes() + 8);
    for mode in [ReadMethod::Direct, ReadMethod::Buffered] {
        let source = FileSource::open(&prepared.shard_paths(), mode).unwrap();
        for (number, shard) in prepared.manifest().shards.iter().enumerate() {
            for (t, spec) in shard.tensors.iter().zip(specs(&shard.unit)) {
                let mut bytes = vec![0; t.bytes as usize];
                source.read_at(number, t.offset, &mut bytes).unwrap();
                assert_eq!(bytes, weights(&spec));
            }
        }
    }
}

#[test]
fn a_second_run_changes_nothing() {
    let f = folder();
    let before = contents(&f.dir);
    Manifest::remove(&f.dir).unwrap();
    assert!(
        Prepared::open(&f.dir).unwrap_err().to_string().contains("not a prepared folder, or not finished")
    );
    prepare(&f.dir, &f.side);
    assert_eq!(contents(&f.dir), before);
}

#[test]
fn missing_and_cut_files_are_refused_at_once() {
    for name in ["embed.safetensors", "layer.0.safetensors", "head.safetensors", "tokenizer.json", MANIFEST] {
        let f = folder();
        let path = f.dir.join(name);
        let bytes = fs::read(&path).unwrap();
        for len in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(matches!(Prepared::open(&f.dir), Err(Error::Malformed { .. })), "{name} cut at {len}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(Prepared::open(&f.dir), Err(Error::Missing { .. })), "{name} gone");
    }
}

#[test]
fn shards_of_other_runs_are_refused() {
    let other = ShardTag { source: "beef".into(), ..tag("layer.0") };
    let recipe = ShardTag { recipe: Recipe::uniform(Bits::Q8).name(), ..tag("layer.0") };
    let unit = ShardTag { unit: "layer.1".into(), ..tag("layer.0") };
    for (tag, word) in [(other, "source"), (recipe, "bits"), (unit, "unit")] {
        let f = folder();
        let mut writer = ShardWriter::create(&f.dir, "layer.0.safetensors", &tag, specs("layer.0")).unwrap();
        specs("layer.0").iter().for_each(|s| writer.write(&weights(s)).unwrap());
        writer.finish().unwrap();
        let error = Prepared::open(&f.dir).unwrap_err().to_string();
        assert!(error.contains(&format!("the shard's {word} is")), "{error}");
    }
    // The same shapes with other weights: the stored checksums tell, before any weight is read.
    let f = folder();
    let mut writer =
        ShardWriter::create(&f.dir, "layer.0.safetensors", &tag("layer.0"), specs("layer.0")).unwrap();
    specs("layer.0").iter().for_each(|s| writer.write(&vec![1; weights(s).len()]).unwrap());
    writer.finish().unwrap();
    assert!(matches!(Prepared::open(&f.dir), Err(Error::Checksum { .. })));
}

#[test]
fn a_flipped_bit_names_its_tensor() {
    let f = folder();
    let q = Prepared::open(&f.dir).unwrap().manifest().shards[1].tensors[1].clone();
    let path = f.dir.join("layer.0.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[q.offset as usize + 100] ^= 4;
    fs::write(&path, &bytes).unwrap();
    Prepared::open(&f.dir).unwrap();
    let error = verify(&f.dir).unwrap_err().to_string();
    assert!(error.contains("checksum of tensor `q`") && error.contains("layer.0.safetensors"), "{error}");
    let f = folder();
    fs::write(f.dir.join("tokenizer.json"), b"{\"a\": 2}").unwrap();
    assert!(matches!(verify(&f.dir), Err(Error::Checksum { what, .. }) if what == "the file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_changed_byte_fails_verification(file in 0usize..5, at: prop::sample::Index, to: u8) {
        static FOLDER: OnceLock<Folder> = OnceLock::new();
        let f = FOLDER.get_or_init(folder);
        let all = contents(&f.dir);
        let (name, bytes) = &all[file];
        let mut bad = bytes.clone();
        let at = at.index(bad.len());
        prop_assume!(bad[at] != to);
        bad[at] = to;
        fs::write(f.dir.join(name), &bad).unwrap();
        let refused = verify(&f.dir).is_err();
        fs::write(f.dir.join(name), bytes).unwrap();
        prop_assert!(refused, "{} byte {}", name, at);
        verify(&f.dir).unwrap();
    }
}
