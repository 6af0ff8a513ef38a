//! Manifests: what must be refused.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn tensor(name: &str, offset: u64) -> TensorEntry {
    TensorEntry {
        name: name.into(),
        format: NumFormat::Q4,
        shape: vec![4, 64],
        offset,
        bytes: 4 * 48,
        checksum: "00000000000000ff".into(),
    }
}

fn shard(unit: &str) -> ShardEntry {
    ShardEntry {
        file: format!("{unit}.safetensors"),
        unit: unit.into(),
        bytes: 8192,
        xxh3: "0".repeat(32),
        tensors: vec![tensor("q", 4096), tensor("k", 4096 + 256)],
    }
}

fn manifest() -> Manifest {
    let source = SourceEntry { id: Some("org/name".into()), fingerprint: "abc".into() };
    let config = json!({ "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "nested": { "x": [1, 2.5, null] } });
    let mut m = Manifest::new("LlamaForCausalLM".into(), source, Recipe::uniform(Bits::Q4), config);
    m.generation_config = Some(json!({ "eos_token_id": [1, 2] }));
    m.shards = vec![shard("embed"), shard("layer.0"), shard("layer.12"), shard("head")];
    m.files = vec![FileEntry { file: "tokenizer.json".into(), bytes: 7, xxh3: "a".repeat(32) }];
    m
}

fn parse(bytes: &[u8]) -> Result<Manifest> {
    Manifest::parse(bytes, Path::new("airllm.json"))
}

#[test]
fn round_trip() {
    let bytes = manifest().to_bytes(Path::new("airllm.json")).unwrap();
    assert_eq!(parse(&bytes).unwrap(), manifest());
    let plain: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(plain["format"], "airllm-shards");
    assert_eq!(plain["recipe"]["bits"], "q4");
    assert_eq!(plain["shards"][1]["tensors"][0]["format"], "q4");
    assert_eq!(plain["xxh3"].as_str().unwrap().len(), 32);

    assert!(plain.get("sensitivity").is_none());
    let measured = Manifest { sensitivity: Some(super::sensitivity::tests::sensitivity()), ..manifest() };
    let bytes = measured.to_bytes(Path::new("airllm.json")).unwrap();
    assert_eq!(parse(&bytes).unwrap(), measured);
    let plain: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(plain["sensitivity"]["tensors"][1]["widths"][0]["format"], "q8");

    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Manifest::read(dir.path()), Err(Error::Missing { .. })));
    manifest().write(dir.path()).unwrap();
    assert_eq!(Manifest::read(dir.path()).unwrap(), manifest());
    Manifest::remove(dir.path()).unwrap();
    Manifest::remove(dir.path()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn every_changed_byte_and_every_cut_is_refused() {
    let good = manifest().to_bytes(Path::new("airllm.json")).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(parse(&bad).is_err(), "byte {at}");
        assert!(parse(&good[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn says_what_is_wrong() {
    let refusal = |change: &dyn Fn(&mut Manifest)| {
        let mut m = manifest();
        change(&mut m);
        let error = m.to_bytes(Path::new("airllm.json")).unwrap_err().to_string();
        let body = serde_json::to_vec(&m).unwrap();
        assert_eq!(Manifest::parse_body(&body, Path::new("airllm.json")).unwrap_err().to_string(), error);
        error
    };
    assert!(refusal(&|m| m.config = json!([1])).contains("`config` is an array"));
    assert!(refusal(&|m| m.shards.clear()).contains("no shards"));
    assert!(refusal(&|m| m.source.fingerprint.clear()).contains("no fingerprint"));
    assert!(refusal(&|m| m.shards[1].file = "../x".into()).contains("not a plain file name"));
    assert!(refusal(&|m| m.files[0].file = "/etc/passwd".into()).contains("not a plain file name"));
    assert!(refusal(&|m| m.files[0].file = "airllm.json".into()).contains("comes twice"));
    assert!(refusal(&|m| m.shards[1].file = "head.safetensors".into()).contains("comes twice"));
    assert!(refusal(&|m| m.shards[1].unit = "head".into()).contains("`head` comes twice"));
    for unit in ["layer.", "layer.-1", "layer.01", "layer.+1", "Layer.1", ""] {
        assert!(refusal(&|m| m.shards[1].unit = unit.into()).contains("is not a unit"), "{unit}");
    }
    assert!(refusal(&|m| m.shards[0].bytes = 8193).contains("not a multiple of 4096"));
    assert!(refusal(&|m| m.shards[0].bytes = 4096).contains("end behind the file's 4096"));
    assert!(refusal(&|m| m.shards[0].xxh3 = "0".repeat(31)).contains("not 32 hexadecimal"));
    assert!(refusal(&|m| m.files[0].xxh3 = "G".repeat(32)).contains("not 32 hexadecimal"));
    assert!(refusal(&|m| m.shards[0].tensors.clear()).contains("no tensors"));
    assert!(refusal(&|m| m.shards[0].tensors[1].name = "q".into()).contains("`q` comes twice"));
    assert!(refusal(&|m| m.shards[0].tensors[1].name = "__sums".into()).contains("not for a weight"));
    assert!(
        refusal(&|m| m.shards[0].tensors[1].offset = 4096)
            .contains("offset 4096 is not a multiple of 256 from")
    );
    assert!(refusal(&|m| m.shards[0].tensors[1].offset = 4400).contains("offset 4400"));
    assert!(refusal(&|m| m.shards[0].tensors[0].offset = 0).contains("from 4096 on"));
    assert!(refusal(&|m| m.shards[0].tensors[1].offset = u64::MAX - 255).contains("end behind"));
    assert!(refusal(&|m| m.shards[0].tensors[0].bytes = 191).contains("is 192 bytes, the manifest says 191"));
    assert!(refusal(&|m| m.shards[0].tensors[0].shape = vec![usize::MAX, 2]).contains("cannot have shape"));
    assert!(refusal(&|m| m.shards[0].tensors[0].shape = vec![]).contains("cannot have shape"));
    assert!(
        refusal(&|m| {
            let mut wrong = super::sensitivity::tests::sensitivity();
            wrong.tensors[0].unit = "norm".into();
            m.sensitivity = Some(wrong);
        })
        .contains("sensitivity: \"norm\" is not a unit")
    );
    assert!(refusal(&|m| m.shards[0].tensors[0].checksum = "+".repeat(16)).contains("not 16 hexadecimal"));
}

#[test]
fn another_version_is_named() {
    let body = |version: u32| format!(r#"{{"format": "airllm-shards", "version": {version}, "new": 1}}"#);
    let error = Manifest::parse_body(body(1).as_bytes(), Path::new("x")).unwrap_err().to_string();
    assert!(error.contains("version is 1, this program reads version 2"), "{error}");
    let error = Manifest::parse_body(body(2).as_bytes(), Path::new("x")).unwrap_err().to_string();
    assert!(error.contains("not a valid manifest"), "{error}");
    let error =
        Manifest::parse_body(br#"{"format": "gguf", "version": 2}"#, Path::new("x")).unwrap_err().to_string();
    assert!(error.contains("format is \"gguf\""), "{error}");
}

#[test]
fn copies_are_hashed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = from.path().join("tokenizer.json");
    std::fs::write(&path, b"{}").unwrap();
    let entry = copy_file(&path, to.path()).unwrap();
    assert_eq!((entry.file.as_str(), entry.bytes), ("tokenizer.json", 2));
    assert_eq!(entry.xxh3, format!("{:032x}", xxh3_128(b"{}")));
    assert_eq!(std::fs::read(to.path().join("tokenizer.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 1);
    assert!(matches!(copy_file(&from.path().join("no"), to.path()), Err(Error::Missing { .. })));
    let own = from.path().join(MANIFEST);
    std::fs::write(&own, b"{}").unwrap();
    assert!(copy_file(&own, to.path()).is_err(), "a copied manifest would make the folder look finished");
}

proptest! {
    #[test]
    fn changed_bodies_are_refused_or_whole(at: prop::sample::Index, to: u8) {
        let mut body = serde_json::to_vec(&manifest()).unwrap();
        let at = at.index(body.len());
        body[at] = to;
        if let Ok(m) = Manifest::parse_body(&body, Path::new("x")) {
            // What is accepted holds together: it can be written and read again.
            let bytes = m.to_bytes(Path::new("x")).unwrap();
            prop_assert_eq!(parse(&bytes).unwrap(), m);
        }
    }
}
