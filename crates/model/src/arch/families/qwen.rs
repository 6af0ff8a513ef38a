//! Qwen, all generations.

use super::*;

/// The first Qwen. Bai et al., "Qwen Technical Report", 2023, and its published modelling code.
pub const QWEN: Arch = {
    const FUSED: &[Dim] = &[Query, Key, Value];
    Arch {
        name: "qwen",
        hf: &["QWenLMHeadModel"],
        model_type: "qwen",
        defaults: Defaults { max_positions: 8192, eos: &[], ..DEFAULTS },
        fields: FieldNames {
            head_dim: "kv_channels",
            eps: "layer_norm_epsilon",
            theta: "rotary_emb_base",
            rotary_share: "rotary_pct",
            qkv_bias: Flag::Yes,
            ..FIELDS
        },
        traits: Traits {
            rope_extra: RopeExtra::QwenNtk,
            inner_doubled: true,
            only: &[("no_bias", true)],
            ..TRAITS
        },
        embed: &[matrix(Embed, "transformer.wte.weight", Vocab, Hidden).floor(Q3)],
        layer_prefix: "transformer.h.{}.",
        layer: &[
            vector(AttnNorm, "ln_1.weight", Hidden),
            matrix(Q, "attn.c_attn.weight", Query, Hidden).part(FUSED, &[0]),
            vector(QBias, "attn.c_attn.bias", Query).part(FUSED, &[0]),
            matrix(K, "attn.c_attn.weight", Key, Hidden).part(FUSED, &[1]),
            vector(KBias, "attn.c_attn.bias", Key).part(FUSED, &[1]),
            matrix(V, "attn.c_attn.weight", Value, Hidden).part(FUSED, &[2]),
            vector(VBias, "attn.c_attn.bias", Value).part(FUSED, &[2]),
            matrix(O, "attn.c_proj.weight", Hidden, Attended),
            vector(MlpNorm, "ln_2.weight", Hidden),
            // The activation is on `w2`.
            matrix(Gate, "mlp.w2.weight", Inner, Hidden),
            matrix(Up, "mlp.w1.weight", Inner, Hidden),
            matrix(Down, "mlp.c_proj.weight", Hidden, Inner),
        ],
        head: &[
            vector(FinalNorm, "transformer.ln_f.weight", Hidden),
            matrix(Head, "lm_head.weight", Vocab, Hidden).floor(Q3).when(Untied),
        ],
        ..LLAMA
    }
};

/// Qwen 1.5, 2 and 2.5. Yang et al., "Qwen2 Technical Report", 2024.
pub const QWEN2: Arch = Arch {
    name: "qwen2",
    hf: &["Qwen2ForCausalLM"],
    model_type: "qwen2",
    defaults: Defaults { max_positions: 32768, eos: &[], ..DEFAULTS },
    fields: FieldNames { qkv_bias: Flag::Yes, ..FIELDS },
    traits: Traits { windows: Windows::Flagged, ..TRAITS },
    layer: &[
        ATTN_NORM,
        Q_PROJ,
        Q_PROJ_BIAS,
        K_PROJ,
        K_PROJ_BIAS,
        V_PROJ,
        V_PROJ_BIAS,
        O_PROJ,
        MLP_NORM,
        GATE_PROJ,
        UP_PROJ,
        DOWN_PROJ,
    ],
    ..LLAMA
};

/// Qwen 3. Yang et al., "Qwen3 Technical Report", 2025.
pub const QWEN3: Arch = Arch {
    name: "qwen3",
    hf: &["Qwen3ForCausalLM"],
    model_type: "qwen3",
    fields: FieldNames {
        qkv_bias: Flag::Any(&["attention_bias"]),
        out_bias: Flag::Any(&["attention_bias"]),
        ..FIELDS
    },
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
        MLP_NORM,
        GATE_PROJ,
        UP_PROJ,
        DOWN_PROJ,
    ],
    ..QWEN2
};

const QWEN_MOE: MoeNames = MoeNames {
    experts: "num_experts",
    inner: "moe_intermediate_size",
    shared: None,
    normalise: Flag::Any(&["norm_topk_prob"]),
    sparse: Sparse::Step,
    sigmoid: false,
};

/// Qwen 1.5 and 2 with experts, one of which every token goes through.
pub const QWEN2_MOE: Arch = Arch {
    name: "qwen2_moe",
    hf: &["Qwen2MoeForCausalLM"],
    model_type: "qwen2_moe",
    traits: Traits {
        moe: Some(MoeNames { shared: Some("shared_expert_intermediate_size"), ..QWEN_MOE }),
        ..QWEN2.traits
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
        MLP_NORM,
        ROUTER,
        matrix(SharedGate, "mlp.shared_expert.gate_proj.weight", SharedInner, Hidden).when(Shared),
        matrix(SharedUp, "mlp.shared_expert.up_proj.weight", SharedInner, Hidden).when(Shared),
        matrix(SharedDown, "mlp.shared_expert.down_proj.weight", Hidden, SharedInner).when(Shared),
        matrix(SharedRouter, "mlp.shared_expert_gate.weight", Dim::One, Hidden).floor(Bf16).when(Shared),
        GATE_PROJ,
        UP_PROJ,
        DOWN_PROJ,
    ],
    expert_prefix: "mlp.experts.{}.",
    expert: EXPERT,
    ..QWEN2
};

/// Qwen 3 with experts.
pub const QWEN3_MOE: Arch = Arch {
    name: "qwen3_moe",
    hf: &["Qwen3MoeForCausalLM"],
    model_type: "qwen3_moe",
    traits: Traits { moe: Some(QWEN_MOE), ..QWEN3.traits },
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
        MLP_NORM,
        ROUTER,
        GATE_PROJ,
        UP_PROJ,
        DOWN_PROJ,
    ],
    expert_prefix: "mlp.experts.{}.",
    expert: EXPERT,
    ..QWEN3
};
