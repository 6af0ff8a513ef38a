//! `config.json` in its spellings, and everything that is refused.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_format::NumFormat;
use airllm_model::Config;
use airllm_model::rope::Scaling;
use common::{data, json, shared};
use serde_json::{Value, json};

fn fixture(name: &str) -> Config {
    Config::parse(&json(&data("configs").join(format!("{name}.json")))).unwrap()
}

/// A small valid configuration in the oldest form.
fn plain() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 176,
        "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 320,
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut json = plain();
    json[field] = value;
    json
}

fn message(json: &Value) -> String {
    Config::parse(json).unwrap_err().to_string()
}

#[test]
fn absent_fields_mean_what_they_mean_in_transformers() {
    let c = Config::parse(&plain()).unwrap();
    assert_eq!((c.kv_heads, c.head_dim, c.max_positions), (4, 16, 2048));
    assert_eq!((c.norm_eps, c.rotary.theta, c.rotary.dim), (1e-6, 10_000.0, 16));
    assert_eq!((c.tied, c.qkv_bias, c.mlp_bias), (false, false, false));
    assert_eq!((c.eos.as_slice(), c.dtype), ([2].as_slice(), None));
    assert_eq!(c.rotary.scaling, Scaling::None);
    // Null is absent, but for the end of texts: null says that nothing ends one.
    let mut nulls = plain();
    for field in ["num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rms_norm_eps"] {
        nulls[field] = Value::Null;
    }
    assert_eq!(Config::parse(&nulls).unwrap(), c);
    assert!(Config::parse(&with("eos_token_id", Value::Null)).unwrap().eos.is_empty());
}

#[test]
fn fixtures_as_published() {
    let c = fixture("llama2_mha");
    assert_eq!((c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim), (64, 3, 4, 4, 16));
    assert_eq!((c.inner, c.vocab, c.norm_eps, c.dtype), (176, 320, 1e-5, Some(NumFormat::F16)));

    let c = fixture("llama32_gqa_tied");
    assert_eq!((c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim), (128, 2, 4, 2, 32));
    assert_eq!((c.tied, c.eos.as_slice()), (true, [441, 442, 443].as_slice()));
    assert_eq!((c.dtype, c.rotary.theta), (Some(NumFormat::Bf16), 500_000.0));
    let llama3 = Scaling::Llama3 { factor: 8.0, low_freq: 1.0, high_freq: 4.0, original: 64 };
    assert_eq!(c.rotary.scaling, llama3);

    let c = fixture("llama_v5_config");
    assert_eq!((c.kv_heads, c.head_dim, c.query_dim(), c.key_dim()), (1, 32, 128, 32));
    assert_eq!((c.dtype, c.rotary.theta), (Some(NumFormat::Bf16), 300_000.0));
    let llama3 = Scaling::Llama3 { factor: 4.0, low_freq: 1.0, high_freq: 4.0, original: 32 };
    assert_eq!(c.rotary.scaling, llama3);

    let c = fixture("llama_bias");
    assert_eq!((c.qkv_bias, c.mlp_bias, c.norm_eps), (true, true, 1e-3));
    assert_eq!(fixture("llama_f32").dtype, Some(NumFormat::F32));
    assert_eq!(fixture("llama_rope_linear").rotary.scaling, Scaling::Linear { factor: 4.0 });
    let dynamic = Scaling::Dynamic { factor: 2.0, limit: 48 };
    assert_eq!(fixture("llama_rope_dynamic").rotary.scaling, dynamic);
    let yarn = Scaling::Yarn {
        factor: 4.0,
        original: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: 0.1 * 4.0_f64.ln() + 1.0,
    };
    assert_eq!(fixture("llama_rope_yarn").rotary.scaling, yarn);
}

#[test]
fn every_fixture_of_the_reference_set_is_understood() {
    let Some(root) = shared("") else { return };
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path().join("config.json");
        if !path.is_file() {
            continue;
        }
        Config::parse(&json(&path)).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    }
}

#[test]
fn both_spellings_of_rope_give_the_same() {
    let fields = json!({ "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64 });
    let spell = |name: &str, kind: &str, inside: bool| {
        let mut json = plain();
        json[name] = fields.clone();
        json[name][kind] = "llama3".into();
        if inside {
            json[name]["rope_theta"] = 5e5.into();
        } else {
            json["rope_theta"] = 500_000.into();
        }
        Config::parse(&json).unwrap().rotary
    };
    let first = spell("rope_scaling", "type", false);
    assert_eq!(first.theta, 5e5);
    assert!(matches!(first.scaling, Scaling::Llama3 { original: 64, .. }));
    for name in ["rope_scaling", "rope_parameters"] {
        for kind in ["type", "rope_type"] {
            for inside in [false, true] {
                assert_eq!(spell(name, kind, inside), first, "{name} {kind} {inside}");
            }
        }
    }
    // `default` and an empty object are no scaling; the base inside goes before the one at the top.
    let mut json = with("rope_parameters", json!({ "rope_type": "default", "rope_theta": 7.5 }));
    json["rope_theta"] = 99.0.into();
    let rotary = Config::parse(&json).unwrap().rotary;
    assert_eq!((rotary.theta, rotary.scaling), (7.5, Scaling::None));
    json["rope_scaling"] = json!({});
    assert_eq!(Config::parse(&json).unwrap().rotary.theta, 7.5);
}

#[test]
fn yarn_in_full() {
    let yarn = |extra: Value| {
        let mut json = with("rope_scaling", json!({ "type": "yarn", "factor": 4.0 }));
        json["max_position_embeddings"] = 256.into();
        for (name, value) in extra.as_object().unwrap() {
            json["rope_scaling"][name] = value.clone();
        }
        match Config::parse(&json).unwrap().rotary.scaling {
            Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor } => {
                ([factor, beta_fast, beta_slow, attention_factor], original, truncate)
            }
            other => panic!("{other:?}"),
        }
    };
    let usual = 0.1 * 4.0_f64.ln() + 1.0;
    assert_eq!(yarn(json!({})), ([4.0, 32.0, 1.0, usual], 256, true));
    assert_eq!(
        yarn(json!({ "beta_fast": 16, "beta_slow": 2.0, "truncate": false, "attention_factor": 1.25,
            "original_max_position_embeddings": 32 })),
        ([4.0, 16.0, 2.0, 1.25], 32, false)
    );
    // Zero and null are "not set".
    assert_eq!(yarn(json!({ "beta_fast": 0, "beta_slow": null })).0, [4.0, 32.0, 1.0, usual]);
    // A factor that is not set follows from the contexts.
    let free = yarn(json!({ "factor": null, "original_max_position_embeddings": 32 }));
    assert_eq!(free.0[0], 8.0);
    // Attention factors by mscale: only where both are set.
    let both = yarn(json!({ "mscale": 2.0, "mscale_all_dim": 0.5 })).0[3];
    assert_eq!(both, (0.2 * 4.0_f64.ln() + 1.0) / (0.05 * 4.0_f64.ln() + 1.0));
    assert_eq!(yarn(json!({ "mscale": 2.0 })).0[3], usual);
    assert_eq!(yarn(json!({ "factor": 0.5 })).0[3], 1.0);
    // The original context at the top of the file goes first.
    let mut json = with(
        "rope_scaling",
        json!({ "type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 32 }),
    );
    json["original_max_position_embeddings"] = 16.into();
    let scaling = Config::parse(&json).unwrap().rotary.scaling;
    assert!(matches!(scaling, Scaling::Yarn { original: 16, .. }));
}

#[test]
fn harmless_variants_are_accepted() {
    for (field, value) in [
        ("pretraining_tp", json!(2)),
        ("hidden_act", json!("swish")),
        ("num_hidden_layers", json!(3.0)),
        ("head_dim", json!(20)),
        ("partial_rotary_factor", json!(1.0)),
        ("eos_token_id", json!([])),
        ("torch_dtype", json!("float8_e4m3fn")),
        ("model_type", json!("whatever, as architectures decides")),
        ("architectures", json!(["Other", "LlamaForCausalLM"])),
        // How weights are stored is the business of whoever reads them.
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("num_experts", json!(0)),
        ("logits_scaling", json!(1.0)),
        ("use_qk_norm", json!(false)),
        ("vision_config", Value::Null),
    ] {
        let json = with(field, value);
        Config::parse(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
    }
    // Without `architectures` the model type decides.
    let mut json = with("model_type", json!("llama"));
    for absent in [json!([]), Value::Null] {
        json["architectures"] = absent;
        assert!(Config::parse(&json).is_ok());
    }
    assert_eq!(
        Config::parse(&with("torch_dtype", json!("torch.float16"))).unwrap().dtype,
        Some(NumFormat::F16)
    );
}

#[test]
fn refusals_name_the_field_what_was_expected_and_what_was_found() {
    for (field, value, parts) in [
        ("hidden_size", json!("64"), ["hidden_size", "a whole number from 1 to", "\"64\""]),
        ("hidden_size", json!(-1), ["hidden_size", "a whole number", "-1"]),
        ("hidden_size", json!(64.5), ["hidden_size", "a whole number", "64.5"]),
        ("hidden_size", Value::Null, ["hidden_size", "a whole number", "null"]),
        ("hidden_size", json!(1_u64 << 40), ["hidden_size", "1048576", "1099511627776"]),
        ("hidden_size", json!(66), ["hidden_size", "a multiple of num_attention_heads", "66"]),
        ("hidden_size", json!(60), ["hidden_size", "even", "60"]),
        ("vocab_size", json!(0), ["vocab_size", "from 1", "0"]),
        ("num_hidden_layers", json!(u64::MAX), ["num_hidden_layers", "16384", "18446744073709551615"]),
        ("num_key_value_heads", json!(3), ["num_key_value_heads", "divisor", "found 3"]),
        ("num_key_value_heads", json!(8), ["num_key_value_heads", "divisor", "found 8"]),
        ("head_dim", json!(15), ["head_dim", "even", "15"]),
        ("rms_norm_eps", json!(0.0), ["rms_norm_eps", "a number above", "0.0"]),
        ("rms_norm_eps", json!("NaN"), ["rms_norm_eps", "a number", "\"NaN\""]),
        ("rms_norm_eps", json!([0.5]), ["rms_norm_eps", "a number", "[0.5]"]),
        ("rms_norm_eps", json!(1e-300), ["rms_norm_eps", "a number above", "1e-300"]),
        ("rope_theta", json!(-10.0), ["rope_theta", "a number above 1", "-10.0"]),
        ("rope_theta", json!(1e300), ["rope_theta", "up to", "1e+300"]),
        ("rope_scaling", json!("linear"), ["rope_scaling", "an object", "\"linear\""]),
        ("rope_scaling", json!({"type": "linear"}), ["rope_scaling.factor", "a number", "nothing"]),
        ("rope_scaling", json!({"type": "mrope"}), ["rope_scaling.type", "llama3", "\"mrope\""]),
        (
            "rope_scaling",
            json!({"rope_type": "longrope", "short_factor": [1.0]}),
            ["rope_scaling.short_factor", "8 numbers, one for each frequency", "[1.0]"],
        ),
        ("rope_scaling", json!({"type": "su", "long_mscale": 1.1}), ["long_mscale", "nothing", "1.1"]),
        ("rope_parameters", json!({"rope_type": 7}), ["rope_parameters.rope_type", "text", "7"]),
        (
            "rope_scaling",
            json!({"type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}),
            ["rope_scaling.high_freq_factor", "more than low_freq_factor, which is 4", "found 4"],
        ),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 8.0, "beta_fast": 0.5}),
            ["rope_scaling.beta_fast", "at least beta_slow, which is 1", "0.5"],
        ),
        ("partial_rotary_factor", json!(0.2), ["partial_rotary_factor", "an even number, not 3", "0.2"]),
        // What would change the mathematics is refused by name.
        ("vision_config", json!({"depth": 2}), ["vision_config", "a model for text alone", "1 field"]),
        ("visual", json!({"layers": 2}), ["visual", "a model for text alone", "1 field"]),
        ("embedding_multiplier", json!(12.0), ["embedding_multiplier", "1, as llama models", "12.0"]),
        ("logit_scale", json!(0.0625), ["logit_scale", "1, as llama models", "0.0625"]),
        ("use_qk_norm", json!(true), ["use_qk_norm", "false", "true"]),
        ("clip_qkv", json!(8.0), ["clip_qkv", "nothing", "8.0"]),
        ("num_local_experts", json!(8), ["num_local_experts", "no experts", "8"]),
        ("attn_logit_softcapping", json!(50.0), ["attn_logit_softcapping", "no soft caps", "50.0"]),
        ("kv_lora_rank", json!(512), ["kv_lora_rank", "no latent keys", "512"]),
        ("position_embedding_type", json!("alibi"), ["position_embedding_type", "rope", "\"alibi\""]),
        ("hidden_act", json!("gelu"), ["hidden_act", "silu", "\"gelu\""]),
        ("attention_bias", json!(1), ["attention_bias", "true or false", "1"]),
        ("tie_word_embeddings", json!("yes"), ["tie_word_embeddings", "true or false", "\"yes\""]),
        ("eos_token_id", json!([1, -2]), ["eos_token_id", "a token id or a list", "[1,-2]"]),
        ("architectures", json!("LlamaForCausalLM"), ["architectures", "a list", "LlamaForCausalLM"]),
        ("architectures", json!([3]), ["architectures", "names", "[3]"]),
        ("architectures", json!([]), ["architectures", "the name of an architecture", "[]"]),
        ("dtype", json!(16), ["dtype", "text", "16"]),
    ] {
        let message = message(&with(field, value));
        for part in parts {
            assert!(message.contains(part), "{field}: {part:?} is not in {message:?}");
        }
    }
    let unknown = message(&with("architectures", json!(["GPT2LMHeadModel"])));
    let begin = "config: architecture GPT2LMHeadModel is not known; known are LlamaForCausalLM, ";
    assert!(unknown.starts_with(begin) && unknown.contains("QWenLMHeadModel"), "{unknown}");
    let mut json = with("model_type", json!("gpt2"));
    json.as_object_mut().unwrap().remove("architectures");
    assert!(message(&json).contains("of model_type \"gpt2\" is not known"), "{}", message(&json));
    assert!(message(&json!([1])).contains("the whole file: expected an object, found [1]"));
    // Two sizes that are fine alone, too large together.
    let mut json = with("num_attention_heads", json!(16384));
    json["head_dim"] = 16384.into();
    assert!(message(&json).contains("16384 heads of 16384"), "{}", message(&json));
    // Pairs that turn need two dimensions more for the dynamic base.
    let mut json = with("rope_scaling", json!({"type": "dynamic", "factor": 2.0}));
    json["head_dim"] = 2.into();
    assert!(message(&json).contains("head_dim 2"), "{}", message(&json));
}

#[test]
fn units_and_pass_of_a_tied_model_with_all_biases() {
    let mut json = with("tie_word_embeddings", json!(true));
    for (field, value) in [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("num_hidden_layers", json!(2)),
        ("num_key_value_heads", json!(2)),
    ] {
        json[field] = value;
    }
    let config = Config::parse(&json).unwrap();
    let units = config.units();
    let names: Vec<_> = units.iter().map(|unit| unit.name.as_str()).collect();
    assert_eq!(names, ["embed", "layer.0", "layer.1", "head"]);
    let list: Vec<_> = units[2].tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    assert_eq!(
        list,
        [
            ("attn_norm", [64].as_slice()),
            ("q", &[64, 64]),
            ("q_bias", &[64]),
            ("k", &[32, 64]),
            ("k_bias", &[32]),
            ("v", &[32, 64]),
            ("v_bias", &[32]),
            ("o", &[64, 64]),
            ("o_bias", &[64]),
            ("mlp_norm", &[64]),
            ("gate", &[176, 64]),
            ("gate_bias", &[176]),
            ("up", &[176, 64]),
            ("up_bias", &[176]),
            ("down", &[64, 176]),
            ("down_bias", &[64]),
        ]
    );
    assert_eq!(units[2].tensors[8].hf, "model.layers.1.self_attn.o_proj.bias");
    assert_eq!(units[3].tensors.len(), 1, "a tied head has no matrix of its own");
    let pass = config.pass();
    assert_eq!(pass.len(), 2 * 16 + 2);
    assert_eq!(pass[0], ("layer.0".into(), "attn_norm".into()));
    assert_eq!(pass[32], ("head".into(), "final_norm".into()));
    assert_eq!(pass[33], ("embed".into(), "embed".into()));

    let untied = Config::parse(&plain()).unwrap();
    let pass = untied.pass();
    assert_eq!(pass.last().unwrap(), &("head".into(), "head".into()));
    assert!(pass.iter().all(|(unit, _)| unit != "embed"), "its rows are only gathered");
    let floors: Vec<_> = untied.units()[1].tensors.iter().map(|t| t.floor).collect();
    assert_eq!(floors[..2], [NumFormat::F32, NumFormat::Q2]);
}
