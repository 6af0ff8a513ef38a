//! No JSON whatever makes the configuration panic, and what it accepts is safe to use.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_model::{Config, KvFormat, activation_bytes, kv_bytes, logits_bytes};
use common::{data, json};
use proptest::prelude::*;
use serde_json::{Map, Value};

const BASES: [&str; 15] = [
    "llama2_mha",
    "llama32_gqa_tied",
    "llama_rope_dynamic",
    "llama_rope_yarn",
    "llama_v5_config",
    "mixtral",
    "qwen1_ntk_logn",
    "qwen2_moe",
    "qwen3",
    "chatglm_rope_ratio",
    "baichuan_13b",
    "phi3_longrope",
    "gemma2",
    "gemma3_text",
    "deepseek_v3",
];

/// Names that a mutation may add or change, those that mean something among them.
const NAMES: [&str; 64] = [
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_type",
    "type",
    "factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "eos_token_id",
    "partial_rotary_factor",
    "torch_dtype",
    "quantization_config",
    "short_factor",
    "long_factor",
    "factors",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_shared_experts",
    "n_group",
    "topk_group",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "decoder_sparse_step",
    "mlp_only_layers",
    "first_k_dense_replace",
    "qk_rope_head_dim",
    "v_head_dim",
    "kv_lora_rank",
    "q_lora_rank",
    "kv_channels",
    "seq_length",
    "rope_ratio",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "multi_query_group_num",
    "rope_local_base_freq",
];

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0..300_i64).prop_map(Value::from),
        (0..63_u32).prop_map(|bit| Value::from(1_u64 << bit)),
        any::<f64>().prop_map(Value::from),
        (-300.0..300.0_f64).prop_map(|power| Value::from(10_f64.powf(power))),
        (0.0..100.0_f64).prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just("default"),
        Just("linear"),
        Just("dynamic"),
        Just("yarn"),
        Just("llama3"),
        Just("silu"),
        Just("LlamaForCausalLM"),
        Just("llama"),
        Just("bfloat16"),
        Just(""),
    ];
    let leaf = prop_oneof![
        4 => number(),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        2 => text.prop_map(Value::from),
        1 => ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let name = prop::sample::select(NAMES.to_vec()).prop_map(String::from);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..6)
                .prop_map(|fields| Value::from(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Sets or removes a field at the top or inside the rope object.
fn mutate(json: &mut Value, inside: bool, name: &str, value: Option<Value>) {
    let Value::Object(top) = json else { return };
    let key = if top.contains_key("rope_parameters") { "rope_parameters" } else { "rope_scaling" };
    let map = match top.get_mut(key) {
        Some(Value::Object(_)) if inside => top.get_mut(key).unwrap().as_object_mut().unwrap(),
        _ => top,
    };
    match value {
        Some(value) => map.insert(name.into(), value),
        None => map.remove(name),
    };
}

fn use_it(json: &Value) {
    match Config::parse(json) {
        Ok(config) => {
            // Every product that the planner and the forward take of it.
            for tokens in [0, 1, 4096, usize::MAX] {
                activation_bytes(&config, tokens);
                for format in KvFormat::ALL {
                    kv_bytes(&config, format, tokens);
                }
                logits_bytes(&config, tokens);
            }
            for len in [0, 1, config.max_positions, 1 << 30] {
                let freqs = config.rotary.inv_freq(len);
                assert_eq!(freqs.len(), config.rotary.dim / 2);
                assert!(config.rotary.dim <= config.head_dim);
                assert!(freqs.iter().all(|f| f.is_finite() && *f >= 0.0), "{:?}", config.rotary);
            }
            assert!(config.rotary.attention_factor().is_finite());
            assert!(config.norm_eps > 0.0 && config.norm_eps.is_finite());
            assert_eq!(config.heads % config.kv_heads, 0);
            if config.layers < 200 {
                let units = config.units();
                let experts: usize = (0..config.layers).map(|layer| config.experts(layer)).sum();
                assert_eq!(units.len(), config.layers + experts + 2);
                for tensor in units.iter().flat_map(|unit| &unit.tensors) {
                    assert!(tensor.rows().checked_mul(tensor.cols() * 4).is_some());
                    let taken: usize = tensor.spans.iter().map(|span| span.len()).sum();
                    assert_eq!(taken, tensor.shape[0], "{tensor:?}");
                    assert!(tensor.spans.iter().all(|span| span.end <= tensor.hf_rows), "{tensor:?}");
                }
                assert!(!config.pass().is_empty());
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("config: ") && message.len() < 2000, "{message}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn mutated_configurations(
        base in prop::sample::select(BASES.to_vec()),
        changes in prop::collection::vec(
            (any::<bool>(), prop::sample::select(NAMES.to_vec()), prop::option::weighted(0.85, value())),
            1..4,
        ),
    ) {
        let mut json = json(&data("configs").join(format!("{base}.json")));
        for (inside, name, value) in changes {
            mutate(&mut json, inside, name, value);
        }
        use_it(&json);
    }

    #[test]
    fn any_json(json in value()) {
        use_it(&json);
    }
}
