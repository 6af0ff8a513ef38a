//! Fields that would change the mathematics in a way that is not known here. They are refused by name:
//! ignoring one would give wrong text, not an error.

use crate::Result;
use crate::arch::{Arch, RopeExtra};
use crate::field::Fields;
use serde_json::Value;

/// Parts of a model beside the language model. Any value but null means that there is one.
const OTHER_PARTS: &[&str] = &[
    "vision_config",
    "vision_tower",
    "mm_vision_tower",
    "visual",
    "audio_config",
    "text_config",
    "speech_config",
];

/// Scales that are 1 where they are absent.
const SCALES: &[&str] = &[
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "logit_scale",
    "scale_emb",
    "scale_depth",
    "dim_model_base",
    "mup_denominator",
];

/// Switches that are off where they are absent.
const SWITCHES: &[&str] = &[
    "alibi",
    "use_qk_norm",
    "qk_layernorm",
    "use_parallel_residual",
    "parallel_attn",
    "use_mla",
    "attn_output_gate",
    "use_bidirectional_attention",
];

/// Limits that do not exist where they are absent.
const LIMITS: &[&str] = &["clip_qkv", "attention_chunk_size", "swiglu_limit"];

/// Numbers of experts.
const EXPERTS: &[&str] = &["num_experts", "num_local_experts", "n_routed_experts"];

pub(super) fn unknown_mathematics(fields: &Fields<'_>, arch: &Arch) -> Result<()> {
    let traits = &arch.traits;
    for name in OTHER_PARTS {
        if fields.get(name).is_some_and(|value| *value != Value::Object(Default::default())) {
            return Err(fields.refuse(name, "a model for text alone"));
        }
    }
    for name in SCALES {
        if fields.get(name).is_some_and(|value| value.as_f64() != Some(1.0)) {
            return Err(fields.refuse(name, format!("1, as {} models have no such scale", arch.name)));
        }
    }
    for name in SWITCHES {
        if fields.get(name).is_some_and(|value| value.as_bool() != Some(false)) {
            return Err(fields.refuse(name, format!("false, as {} models have no such thing", arch.name)));
        }
    }
    for name in LIMITS {
        if fields.get(name).is_some() {
            return Err(fields.refuse(name, format!("nothing, as {} models have no such limit", arch.name)));
        }
    }
    let expected = |what: &str| format!("nothing, as {} models have no {what}", arch.name);
    if traits.moe.is_none() {
        for name in EXPERTS {
            if fields.get(name).is_some_and(|value| !matches!(value.as_u64(), Some(0 | 1))) {
                return Err(fields.refuse(name, expected("experts")));
            }
        }
    }
    if !traits.softcaps {
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if fields.get(name).is_some() {
                return Err(fields.refuse(name, expected("soft caps")));
            }
        }
    }
    if !traits.latent && fields.get("kv_lora_rank").is_some() {
        return Err(fields.refuse("kv_lora_rank", expected("latent keys")));
    }
    if traits.rope_extra != RopeExtra::Local && fields.get("rope_local_base_freq").is_some() {
        return Err(
            fields.refuse("rope_local_base_freq", expected("rotary base of their own in some layers"))
        );
    }
    if fields.text("position_embedding_type")?.is_some_and(|kind| !matches!(kind, "rope" | "rotary")) {
        return Err(fields.refuse("position_embedding_type", "rope"));
    }
    for (name, value) in traits.only {
        if fields.flag(name)?.is_some_and(|found| found != *value) {
            return Err(fields.refuse(name, format!("{value}, as in all published models")));
        }
    }
    Ok(())
}
