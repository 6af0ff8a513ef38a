//! LoRA adapters: applied beside the weights, merged into them, folded into shards, and refused.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use airllm::{Adapter, AutoModel, Bits, Cancel, Generation, merge};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn fixture() -> Option<PathBuf> {
    airllm_tests::shared::dir().map(|shared| shared.join("fixtures/lora_adapter"))
}

fn floats(golden: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = golden.tensor(name).unwrap();
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ids(golden: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let tensor = golden.tensor(name).unwrap();
    tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

/// The largest difference between golden rows and those rows of what a model gives.
fn difference(model: &AutoModel, golden: &SafeTensors<'_>, prompt: &str, logits: &str) -> f32 {
    let found = model.forward(&ids(golden, &format!("{prompt}.input_ids"))).unwrap();
    let rows = ids(golden, &format!("{prompt}.logits_rows"));
    let expected = floats(golden, &format!("{prompt}.{logits}"));
    assert_eq!(expected.len(), rows.len() * found.vocab);
    let rows = rows.iter().map(|&row| &found.values[row as usize * found.vocab..][..found.vocab]);
    expected.chunks(found.vocab).zip(rows).flat_map(|(e, f)| e.iter().zip(f)).fold(0.0, |worst, (e, f)| {
        // Written so that NaN is the worst.
        if (e - f).abs() <= worst { worst } else { (e - f).abs() }
    })
}

fn load(model: &Path, adapters: &[&Path], home: &Path) -> airllm::Result<AutoModel> {
    let mut builder = AutoModel::builder()
        .device(airllm::Device::Cpu)
        .home(home)
        .threads(2)
        .context(256)
        .slot_bytes(16 << 10);
    for adapter in adapters {
        builder = builder.adapter(adapter);
    }
    builder.from_pretrained(model.to_str().unwrap())
}

#[test]
fn applied_beside_the_weights() {
    let Some(fixture) = fixture() else { return };
    let bytes = std::fs::read(fixture.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (base, adapter) = (fixture.join("base"), fixture.join("adapter"));

    let plain = load(&base, &[], home.path()).unwrap();
    let adapted = load(&base, &[&adapter], home.path()).unwrap();
    for prompt in ["p0", "p1", "p2"] {
        let worst = difference(&adapted, &golden, prompt, "logits");
        assert!(worst <= 2e-4, "{prompt}: off by {worst}");
        let expected = ids(&golden, &format!("{prompt}.greedy_ids"));
        let options = Generation::default().max_new_tokens(expected.len()).ignore_eos(true);
        let input = ids(&golden, &format!("{prompt}.input_ids"));
        let mut run = adapted.generate_ids(vec![input], &options).unwrap();
        run.by_ref().for_each(|piece| drop(piece.unwrap()));
        assert_eq!(run.answers().next().unwrap().ids, expected, "{prompt}");
    }
    for prompt in ["p0", "p1"] {
        let worst = difference(&plain, &golden, prompt, "logits_base");
        assert!(worst <= 2e-4, "{prompt}: off by {worst}");
        assert!(difference(&plain, &golden, prompt, "logits") > 0.01, "the adapter changes something");
    }
    // Two adapters add up.
    let half = scaled(&adapter, home.path(), 8);
    let twice = load(&base, &[&half, &half], home.path()).unwrap();
    let worst = difference(&twice, &golden, "p0", "logits");
    assert!(worst <= 2e-4, "two halves: off by {worst}");
}

/// A copy of an adapter with another `lora_alpha`.
fn scaled(adapter: &Path, dir: &Path, alpha: u32) -> PathBuf {
    changed(adapter, &dir.join(format!("alpha-{alpha}")), |config| config["lora_alpha"] = alpha.into())
}

fn changed(adapter: &Path, to: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    std::fs::copy(adapter.join("adapter_model.safetensors"), to.join("adapter_model.safetensors")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    to.to_path_buf()
}

#[test]
fn merged_and_folded_in() {
    let Some(fixture) = fixture() else { return };
    let bytes = std::fs::read(fixture.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (base, adapter) = (fixture.join("base"), fixture.join("adapter"));
    let checkpoint = AutoModel::builder().find(base.to_str().unwrap()).unwrap();
    let out = home.path().join("merged");
    let adapters = [Adapter::open(&adapter).unwrap()];
    let files = merge(&checkpoint, &adapters, &out, &Cancel::new(), &|_| {}).unwrap();
    assert_eq!(files, [out.join("model.safetensors")]);

    // Rounded to the checkpoint's f16, within half a step of the reference's f32 sum.
    let merged = std::fs::read(&files[0]).unwrap();
    let original = std::fs::read(base.join("model.safetensors")).unwrap();
    assert_eq!(merged.len(), original.len());
    let (merged, original) =
        (SafeTensors::deserialize(&merged).unwrap(), SafeTensors::deserialize(&original).unwrap());
    let name = "model.layers.0.self_attn.q_proj.weight";
    let halves = |file: &SafeTensors<'_>| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
    };
    for (found, expected) in halves(&merged).iter().zip(floats(&golden, &format!("merged.{name}"))) {
        assert!((found - expected).abs() <= expected.abs() / 1024.0 + 1e-6, "{found} instead of {expected}");
    }
    let same = "model.layers.0.self_attn.k_proj.weight";
    assert_eq!(merged.tensor(same).unwrap().data(), original.tensor(same).unwrap().data());

    // The merged checkpoint, and shards made of both, compute the same bits.
    let model = load(&out, &[], home.path()).unwrap();
    let worst = difference(&model, &golden, "p0", "logits_merged");
    assert!(worst <= 5e-3, "merged at 16 bits: off by {worst}");
    let shards = home.path().join("shards");
    let prepared =
        AutoModel::builder().adapter(&adapter).shards(&shards).merge_into_shards(&checkpoint).unwrap();
    let folded = load(prepared.dir(), &[], home.path()).unwrap();
    let prompt = ids(&golden, "p1.input_ids");
    assert!(model.forward(&prompt).unwrap().values == folded.forward(&prompt).unwrap().values);

    // A folder that holds something is left alone, and so are shards without the adapter.
    let error = merge(&checkpoint, &adapters, &out, &Cancel::new(), &|_| {}).unwrap_err().to_string();
    assert!(error.contains("holds something already"), "{error}");
    let error = AutoModel::builder().shards(&shards).bits(Bits::Q8).prepare(&checkpoint).unwrap_err();
    assert!(error.to_string().contains("another checkpoint or recipe"), "{error}");
}

#[test]
fn on_a_quantised_base() {
    let Some(shared) = airllm_tests::shared::dir() else { return };
    let fixture = shared.join("fixtures/qlora_train_nf4");
    let bytes = std::fs::read(fixture.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let home = tempfile::tempdir().unwrap();
    let adapter = fixture.join("adapter_init");
    let model = load(&fixture.join("base"), &[&adapter], home.path()).unwrap();
    // The first row has no padding.
    let (all, expected) = (ids(&golden, "input_ids"), floats(&golden, "logits0"));
    let n = golden.tensor("input_ids").unwrap().shape()[1];
    let found = model.forward(&all[..n]).unwrap();
    let worst = found.values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 2e-4, "off by {worst}");

    let checkpoint = AutoModel::builder().find(fixture.join("base").to_str().unwrap()).unwrap();
    let adapters = [Adapter::open(&adapter).unwrap()];
    let out = home.path().join("out");
    let error = merge(&checkpoint, &adapters, &out, &Cancel::new(), &|_| {}).unwrap_err().to_string();
    assert!(error.contains("--bits") && error.contains("U8") && !out.exists(), "{error}");
    let builder = AutoModel::builder()
        .device(airllm::Device::Cpu)
        .adapter(&adapter)
        .bits(Bits::Q8)
        .shards(home.path().join("shards"));
    let folded = load(builder.merge_into_shards(&checkpoint).unwrap().dir(), &[], home.path()).unwrap();
    let found = folded.forward(&all[..n]).unwrap();
    let off: f32 = found.values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum();
    assert!(off / (found.values.len() as f32) < 0.1, "8 bits are near: {off}");
}

#[test]
fn what_is_no_plain_lora_is_refused_by_name() {
    let Some(fixture) = fixture() else { return };
    let dir = tempfile::tempdir().unwrap();
    let adapter = fixture.join("adapter");
    for (field, value, says) in [
        ("peft_type", json!("IA3"), "LORA"),
        ("use_dora", json!(true), "use_dora"),
        ("bias", json!("all"), "bias"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save"),
        ("r", json!(0), "r: expected a number above 0"),
        ("r", json!(4), "the configuration says 4"),
        ("rank_pattern", json!({"q_proj|k_proj": 4}), "not a pattern"),
    ] {
        let to = changed(&adapter, &dir.path().join(field), |config| config[field] = value.clone());
        let error = Adapter::open(&to).unwrap_err().to_string();
        assert!(error.contains(says), "{field}: {error}");
    }
    // Ranks and scales by module.
    let by_module = changed(&adapter, &dir.path().join("pattern"), |config| {
        (config["r"], config["lora_alpha"]) = (json!(4), json!(1));
        config["rank_pattern"] = json!({"proj": 1, "q_proj": 8, "v_proj": 8, "mlp.gate_proj": 8, "up_proj": 8,
            "layers.0.mlp.down_proj": 8, "layers.1.mlp.down_proj": 8});
        config["alpha_pattern"] = json!({"self_attn.q_proj": 16});
    });
    assert_eq!(Adapter::open(&by_module).unwrap().modules().len(), 10);
    let none = Adapter::open(dir.path()).unwrap_err().to_string();
    assert!(none.contains("adapter_config.json"), "{none}");

    // An adapter of another model.
    let Some(shared) = airllm_tests::shared::dir() else { return };
    let other = shared.join("fixtures/qwen2");
    let error = load(&other, &[&adapter], dir.path()).err().unwrap().to_string();
    assert!(error.contains("gate_proj") && error.contains("[176, 64]"), "{error}");
    let other = shared.join("fixtures/chatglm");
    let error = load(&other, &[&adapter], dir.path()).err().unwrap().to_string();
    assert!(error.contains("which a chatglm model does not have"), "{error}");
}
