//! Families of Llama's form for which there is no reference checkpoint: Llama's weights under their names
//! give Llama's logits, bit for bit.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_model::Want;
use common::{Run, Tensors, data, json};
use serde_json::Value;

/// Queries, keys and values fused by groups: for each key/value head its query heads, then its key, then
/// its value.
fn internlm2(config: &mut Value, tensors: &mut Tensors) {
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let (heads, kv_heads) = (size("num_attention_heads"), size("num_key_value_heads"));
    for layer in 0..size("num_hidden_layers") {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        for kind in ["weight", "bias"] {
            let parts: Option<Vec<_>> = ["q", "k", "v"]
                .map(|part| tensors.take(&name(&format!("self_attn.{part}_proj.{kind}"))))
                .into_iter()
                .collect();
            let Some(parts) = parts else { continue };
            let (dtype, shape, _) = parts[0].clone();
            let mut fused = Vec::new();
            for group in 0..kv_heads {
                for (part, count) in parts.iter().zip([heads / kv_heads, 1, 1]) {
                    let head = part.2.len() / (kv_heads * count);
                    fused.extend_from_slice(&part.2[group * count * head..(group + 1) * count * head]);
                }
            }
            let mut whole = shape;
            whole[0] = parts.iter().map(|part| part.1[0]).sum();
            tensors.put(name(&format!("attention.wqkv.{kind}")), (dtype, whole, fused));
        }
        for (old, new) in [
            ("self_attn.o_proj.weight", "attention.wo.weight"),
            ("self_attn.o_proj.bias", "attention.wo.bias"),
            ("input_layernorm.weight", "attention_norm.weight"),
            ("post_attention_layernorm.weight", "ffn_norm.weight"),
            ("mlp.gate_proj.weight", "feed_forward.w1.weight"),
            ("mlp.up_proj.weight", "feed_forward.w3.weight"),
            ("mlp.down_proj.weight", "feed_forward.w2.weight"),
        ] {
            if let Some(tensor) = tensors.take(&name(old)) {
                tensors.put(name(new), tensor);
            }
        }
    }
    for (old, new) in
        [("model.embed_tokens.weight", "model.tok_embeddings.weight"), ("lm_head.weight", "output.weight")]
    {
        if let Some(tensor) = tensors.take(old) {
            tensors.put(new.into(), tensor);
        }
    }
    config["bias"] = config["attention_bias"].clone();
    config["architectures"] = serde_json::json!(["InternLM2ForCausalLM"]);
}

#[test]
fn internlm_is_llama_with_a_flag_of_its_own_for_biases() {
    same_as_llama(|config, _| {
        config["bias"] = config["attention_bias"].clone();
        config["architectures"] = serde_json::json!(["InternLMForCausalLM"]);
    });
}

#[test]
fn internlm2_is_llama_fused_by_groups() {
    same_as_llama(internlm2);
}

/// The logits of a small Llama do not change when it is turned into another family.
fn same_as_llama(turn: impl FnOnce(&mut Value, &mut Tensors)) {
    let dir = data("tiny_yarn_bias");
    let (mut config, mut tensors) = (json(&dir.join("config.json")), Tensors::model(&dir));
    // The feed-forward blocks of the family have no biases.
    config["mlp_bias"] = false.into();
    assert!(config["num_key_value_heads"].as_u64() >= Some(2), "groups, and more than one");
    let ids: Vec<u32> = (1..60).map(|i| i * 7 % 32).collect();
    let logits = |run: &mut Run| {
        let mut seq = run.sequence();
        run.run(&mut seq, &ids, ids.len(), Want::All)
    };
    let expected = logits(&mut Run::of(&config, &tensors));
    turn(&mut config, &mut tensors);
    assert_eq!(logits(&mut Run::of(&config, &tensors)), expected);
}

#[test]
fn columns_in_another_order_give_the_same() {
    let dir = data("tiny_yarn_bias");
    let (config, mut tensors) = (json(&dir.join("config.json")), Tensors::model(&dir));
    let ids: Vec<u32> = (1..40).map(|i| i * 5 % 32).collect();
    let logits = |run: &mut Run| {
        let mut seq = run.sequence();
        run.run(&mut seq, &ids, ids.len(), Want::All)
    };
    let expected = logits(&mut Run::of(&config, &tensors));
    let mut parsed = airllm_model::Config::parse(&config).unwrap();
    for name in ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"] {
        let name = format!("model.layers.1.{name}.weight");
        let (dtype, shape, bytes) = tensors.take(&name).unwrap();
        // Column c of the stored matrix is column `order(c)` of the true one.
        let cols = shape[1];
        let order = |c: usize| (c * 7 + 3) % cols;
        let size = bytes.len() / shape[0] / cols;
        let rows = bytes.chunks(cols * size);
        let moved = rows.flat_map(|row| (0..cols).flat_map(move |c| row[order(c) * size..][..size].to_vec()));
        tensors.put(name.clone(), (dtype, shape, moved.collect()));
        let places = (0..cols).flat_map(|c| (order(c) as f32).to_le_bytes()).collect();
        tensors.put(format!("{name}_order"), (airllm_format::safetensors::Dtype::F32, vec![cols], places));
        parsed.reordered.insert(name);
    }
    let found = logits(&mut Run::parsed(parsed, &tensors));
    common::close("logits", &found, &expected, 32, 1e-5);
}
