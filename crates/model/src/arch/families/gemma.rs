//! Gemma, all generations.

use super::*;

/// Gemma. Gemma team, 2024.
pub const GEMMA: Arch = Arch {
    name: "gemma",
    hf: &["GemmaForCausalLM"],
    model_type: "gemma",
    defaults: Defaults { max_positions: 8192, tied: true, eos: &[1], ..DEFAULTS },
    fields: FieldNames {
        activation: &["hidden_activation", "hidden_act"],
        qkv_bias: Flag::Any(&["attention_bias"]),
        out_bias: Flag::Any(&["attention_bias"]),
        ..FIELDS
    },
    traits: Traits { activation: Activation::GeluTanh, scaled_embedding: true, norm_offset: true, ..TRAITS },
    layer: &[
        ATTN_NORM,
        Q_PROJ,
        Q_PROJ_BIAS,
        K_PROJ,
        K_PROJ_BIAS,
        V_PROJ,
        V_PROJ_BIAS,
        O_PROJ,
        O_PROJ_BIAS,
        MLP_NORM,
        GATE_PROJ,
        UP_PROJ,
        DOWN_PROJ,
    ],
    ..LLAMA
};

const GEMMA_POST_ATTN: Decl = vector(PostAttnNorm, "post_attention_layernorm.weight", Hidden);
const GEMMA_PRE_MLP: Decl = vector(MlpNorm, "pre_feedforward_layernorm.weight", Hidden);
const GEMMA_POST_MLP: Decl = vector(PostMlpNorm, "post_feedforward_layernorm.weight", Hidden);

/// Gemma 2: soft caps, windows in every second layer, four norms a layer. Gemma team, 2024.
pub const GEMMA2: Arch = Arch {
    name: "gemma2",
    hf: &["Gemma2ForCausalLM"],
    model_type: "gemma2",
    traits: Traits {
        windows: Windows::Alternate,
        query_scale: Some("query_pre_attn_scalar"),
        softcaps: true,
        ..GEMMA.traits
    },
    layer: &[
        ATTN_NORM,
        Q_PROJ,
        Q_PROJ_BIAS,
        K_PROJ,
        K_PROJ_BIAS,
        V_PROJ,
        V_PROJ_BIAS,
        O_PROJ,
        O_PROJ_BIAS,
        GEMMA_POST_ATTN,
        GEMMA_PRE_MLP,
        GATE_PROJ,
        UP_PROJ,
        DOWN_PROJ,
        GEMMA_POST_MLP,
    ],
    ..GEMMA
};

/// Gemma 3, the models for text: norms of heads, another rotary base in layers with a window. Gemma team,
/// 2025.
pub const GEMMA3: Arch = Arch {
    name: "gemma3",
    hf: &["Gemma3ForCausalLM"],
    model_type: "gemma3_text",
    defaults: Defaults { rope_theta: 1e6, max_positions: 131_072, ..GEMMA.defaults },
    traits: Traits { windows: Windows::Pattern, rope_extra: RopeExtra::Local, ..GEMMA2.traits },
    layer: &[
        ATTN_NORM,
        Q_PROJ,
        Q_PROJ_BIAS,
        Q_NORM,
        K_PROJ,
        K_PROJ_BIAS,
        K_NORM,
        V_PROJ,
        V_PROJ_BIAS,
        O_PROJ,
        O_PROJ_BIAS,
        GEMMA_POST_ATTN,
        GEMMA_PRE_MLP,
        GATE_PROJ,
        UP_PROJ,
        DOWN_PROJ,
        GEMMA_POST_MLP,
    ],
    ..GEMMA2
};
