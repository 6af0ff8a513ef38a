//! The families. Adding one that is like Llama costs a constant here, its name in [`ALL`], and a test.

use super::decl::{Decl, Dim, Fold, When, matrix, vector};
use super::{Arch, Defaults, FieldNames, Flag, MoeNames, Role, RopeExtra, Sparse, Traits, Windows};
use airllm_format::NumFormat::{Bf16, Q3};
use airllm_kernels::{Activation, RopeKind};

mod deepseek;
mod gemma;
mod glm;
mod qwen;

pub use deepseek::DEEPSEEK_V3;
pub use gemma::{GEMMA, GEMMA2, GEMMA3};
pub use glm::{CHATGLM, GLM, GLM4};
pub use qwen::{QWEN, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE};

use Dim::{Attended, ExpertInner, Experts, HeadDim, Hidden, Inner, Key, Query, SharedInner, Value, Vocab};
use Role::*;
use When::{Dense, MlpBias, OutBias, QkvBias, Shared, Untied};

/// Every architecture that is known.
pub const ALL: &[&Arch] = &[
    &LLAMA,
    &MISTRAL,
    &MIXTRAL,
    &QWEN,
    &QWEN2,
    &QWEN3,
    &QWEN2_MOE,
    &QWEN3_MOE,
    &CHATGLM,
    &GLM,
    &GLM4,
    &BAICHUAN,
    &INTERNLM,
    &INTERNLM2,
    &PHI3,
    &GEMMA,
    &GEMMA2,
    &GEMMA3,
    &DEEPSEEK_V3,
];

const FIELDS: FieldNames = FieldNames {
    inner: "intermediate_size",
    layers: "num_hidden_layers",
    kv_heads: "num_key_value_heads",
    kv_heads_if: None,
    head_dim: "head_dim",
    vocab: "vocab_size",
    positions: "max_position_embeddings",
    eps: "rms_norm_eps",
    theta: "rope_theta",
    rotary_share: "partial_rotary_factor",
    activation: &["hidden_act"],
    qkv_bias: Flag::No,
    out_bias: Flag::No,
    mlp_bias: Flag::No,
};

const TRAITS: Traits = Traits {
    rope: RopeKind::Half,
    rotary_share: 1.0,
    rope_extra: RopeExtra::None,
    alibi_without_positions: false,
    activation: Activation::Silu,
    windows: Windows::Never,
    scaled_embedding: false,
    query_scale: None,
    softcaps: false,
    norm_offset: false,
    inner_doubled: false,
    head_normalised_if_marked: false,
    latent: false,
    moe: None,
    only: &[],
};

const DEFAULTS: Defaults =
    Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, max_positions: 2048, tied: false, eos: &[2] };

const EMBED: &[Decl] = &[matrix(Embed, "model.embed_tokens.weight", Vocab, Hidden).floor(Q3)];

const HEAD: &[Decl] = &[
    vector(FinalNorm, "model.norm.weight", Hidden),
    matrix(Head, "lm_head.weight", Vocab, Hidden).floor(Q3).when(Untied),
];

const ATTN_NORM: Decl = vector(AttnNorm, "input_layernorm.weight", Hidden);
const Q_PROJ: Decl = matrix(Q, "self_attn.q_proj.weight", Query, Hidden);
const Q_PROJ_BIAS: Decl = vector(QBias, "self_attn.q_proj.bias", Query).when(QkvBias);
const Q_NORM: Decl = vector(QNorm, "self_attn.q_norm.weight", HeadDim);
const K_PROJ: Decl = matrix(K, "self_attn.k_proj.weight", Key, Hidden);
const K_PROJ_BIAS: Decl = vector(KBias, "self_attn.k_proj.bias", Key).when(QkvBias);
const K_NORM: Decl = vector(KNorm, "self_attn.k_norm.weight", HeadDim);
const V_PROJ: Decl = matrix(V, "self_attn.v_proj.weight", Value, Hidden);
const V_PROJ_BIAS: Decl = vector(VBias, "self_attn.v_proj.bias", Value).when(QkvBias);
const O_PROJ: Decl = matrix(O, "self_attn.o_proj.weight", Hidden, Attended);
const O_PROJ_BIAS: Decl = vector(OBias, "self_attn.o_proj.bias", Hidden).when(OutBias);
const MLP_NORM: Decl = vector(MlpNorm, "post_attention_layernorm.weight", Hidden);
const GATE_PROJ: Decl = matrix(Gate, "mlp.gate_proj.weight", Inner, Hidden).when(Dense);
const UP_PROJ: Decl = matrix(Up, "mlp.up_proj.weight", Inner, Hidden).when(Dense);
const DOWN_PROJ: Decl = matrix(Down, "mlp.down_proj.weight", Hidden, Inner).when(Dense);
/// Gate and up in one matrix, the gate first.
const GATE_OF_BOTH: Decl = matrix(Gate, "mlp.gate_up_proj.weight", Inner, Hidden).part(&[Inner, Inner], &[0]);
const UP_OF_BOTH: Decl = matrix(Up, "mlp.gate_up_proj.weight", Inner, Hidden).part(&[Inner, Inner], &[1]);
const ROUTER: Decl = matrix(Router, "mlp.gate.weight", Experts, Hidden).floor(Bf16).when(When::Sparse);

const EXPERT: &[Decl] = &[
    matrix(Gate, "gate_proj.weight", ExpertInner, Hidden),
    matrix(Up, "up_proj.weight", ExpertInner, Hidden),
    matrix(Down, "down_proj.weight", Hidden, ExpertInner),
];

/// Llama 1 to 3.x, and the many models published in its form: Yi, DeepSeek-LLM, Chinese-LLaMA, ...
///
/// Touvron et al., "LLaMA" and "Llama 2", 2023; Llama team, "The Llama 3 Herd of Models", 2024.
pub const LLAMA: Arch = Arch {
    name: "llama",
    hf: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    model_type: "llama",
    defaults: DEFAULTS,
    fields: FieldNames {
        qkv_bias: Flag::Any(&["attention_bias"]),
        out_bias: Flag::Any(&["attention_bias"]),
        mlp_bias: Flag::Any(&["mlp_bias"]),
        ..FIELDS
    },
    traits: TRAITS,
    embed: EMBED,
    layer_prefix: "model.layers.{}.",
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
        vector(GateBias, "mlp.gate_proj.bias", Inner).when(MlpBias),
        UP_PROJ,
        vector(UpBias, "mlp.up_proj.bias", Inner).when(MlpBias),
        DOWN_PROJ,
        vector(DownBias, "mlp.down_proj.bias", Hidden).when(MlpBias),
    ],
    expert_prefix: "",
    expert: &[],
    head: HEAD,
};

const PLAIN_LAYER: &[Decl] =
    &[ATTN_NORM, Q_PROJ, K_PROJ, V_PROJ, O_PROJ, MLP_NORM, GATE_PROJ, UP_PROJ, DOWN_PROJ];

/// Mistral: Llama with a sliding window. Jiang et al., "Mistral 7B", 2023.
pub const MISTRAL: Arch = Arch {
    name: "mistral",
    hf: &["MistralForCausalLM"],
    model_type: "mistral",
    defaults: Defaults { max_positions: 131_072, ..DEFAULTS },
    fields: FIELDS,
    traits: Traits { windows: Windows::All, ..TRAITS },
    layer: PLAIN_LAYER,
    ..LLAMA
};

/// Mixtral: Mistral with experts. Jiang et al., "Mixtral of Experts", 2024.
pub const MIXTRAL: Arch = Arch {
    name: "mixtral",
    hf: &["MixtralForCausalLM"],
    model_type: "mixtral",
    defaults: Defaults { norm_eps: 1e-5, rope_theta: 1e6, max_positions: 131_072, ..DEFAULTS },
    traits: Traits {
        moe: Some(MoeNames {
            experts: "num_local_experts",
            inner: "intermediate_size",
            shared: None,
            normalise: Flag::Yes,
            sparse: Sparse::All,
            sigmoid: false,
        }),
        ..MISTRAL.traits
    },
    layer: &[
        ATTN_NORM,
        Q_PROJ,
        K_PROJ,
        V_PROJ,
        O_PROJ,
        MLP_NORM,
        matrix(Router, "block_sparse_moe.gate.weight", Experts, Hidden).floor(Bf16),
    ],
    expert_prefix: "block_sparse_moe.experts.{}.",
    expert: &[
        matrix(Gate, "w1.weight", ExpertInner, Hidden),
        matrix(Up, "w3.weight", ExpertInner, Hidden),
        matrix(Down, "w2.weight", Hidden, ExpertInner),
    ],
    ..MISTRAL
};

/// InternLM 2: Llama under other names, queries, keys and values fused by groups. Cai et al., 2024.
pub const INTERNLM2: Arch = {
    const GROUPS: &[Dim] = &[Dim::QueryGroup, HeadDim, HeadDim];
    const fn fused(decl: Decl, block: &'static [usize]) -> Decl {
        decl.repeated(Dim::KvHeads, GROUPS, block)
    }
    Arch {
        name: "internlm2",
        hf: &["InternLM2ForCausalLM"],
        model_type: "internlm2",
        fields: FieldNames { qkv_bias: Flag::Any(&["bias"]), out_bias: Flag::Any(&["bias"]), ..FIELDS },
        embed: &[matrix(Embed, "model.tok_embeddings.weight", Vocab, Hidden).floor(Q3)],
        layer: &[
            vector(AttnNorm, "attention_norm.weight", Hidden),
            fused(matrix(Q, "attention.wqkv.weight", Query, Hidden), &[0]),
            fused(vector(QBias, "attention.wqkv.bias", Query), &[0]).when(QkvBias),
            fused(matrix(K, "attention.wqkv.weight", Key, Hidden), &[1]),
            fused(vector(KBias, "attention.wqkv.bias", Key), &[1]).when(QkvBias),
            fused(matrix(V, "attention.wqkv.weight", Value, Hidden), &[2]),
            fused(vector(VBias, "attention.wqkv.bias", Value), &[2]).when(QkvBias),
            matrix(O, "attention.wo.weight", Hidden, Attended),
            vector(OBias, "attention.wo.bias", Hidden).when(OutBias),
            vector(MlpNorm, "ffn_norm.weight", Hidden),
            matrix(Gate, "feed_forward.w1.weight", Inner, Hidden),
            matrix(Up, "feed_forward.w3.weight", Inner, Hidden),
            matrix(Down, "feed_forward.w2.weight", Hidden, Inner),
        ],
        head: &[
            vector(FinalNorm, "model.norm.weight", Hidden),
            matrix(Head, "output.weight", Vocab, Hidden).floor(Q3).when(Untied),
        ],
        ..LLAMA
    }
};

/// InternLM 1: Llama with biases in the attention. InternLM team, 2023.
pub const INTERNLM: Arch = Arch {
    name: "internlm",
    hf: &["InternLMForCausalLM"],
    model_type: "internlm",
    fields: FieldNames { qkv_bias: Flag::Any(&["bias"]), out_bias: Flag::Any(&["bias"]), ..FIELDS },
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

/// Phi-3 and Phi-4: everything fused that can be, long contexts by "longrope". Abdin et al., 2024.
pub const PHI3: Arch = {
    const FUSED: &[Dim] = &[Query, Key, Value];
    Arch {
        name: "phi3",
        hf: &["Phi3ForCausalLM"],
        model_type: "phi3",
        defaults: Defaults { norm_eps: 1e-5, max_positions: 4096, eos: &[32000], ..DEFAULTS },
        fields: FIELDS,
        traits: Traits { windows: Windows::All, ..TRAITS },
        layer: &[
            ATTN_NORM,
            matrix(Q, "self_attn.qkv_proj.weight", Query, Hidden).part(FUSED, &[0]),
            matrix(K, "self_attn.qkv_proj.weight", Key, Hidden).part(FUSED, &[1]),
            matrix(V, "self_attn.qkv_proj.weight", Value, Hidden).part(FUSED, &[2]),
            O_PROJ,
            MLP_NORM,
            GATE_OF_BOTH,
            UP_OF_BOTH,
            DOWN_PROJ,
        ],
        ..LLAMA
    }
};

/// Baichuan 1 and 2, 7B (rotary embedding) and 13B (ALiBi). Yang et al., "Baichuan 2", 2023, and the
/// published modelling code.
pub const BAICHUAN: Arch = {
    const FUSED: &[Dim] = &[Query, Key, Value];
    Arch {
        name: "baichuan",
        hf: &["BaichuanForCausalLM", "BaiChuanForCausalLM"],
        model_type: "baichuan",
        defaults: Defaults { max_positions: 4096, ..DEFAULTS },
        fields: FIELDS,
        traits: Traits { alibi_without_positions: true, head_normalised_if_marked: true, ..TRAITS },
        layer: &[
            ATTN_NORM,
            matrix(Q, "self_attn.W_pack.weight", Query, Hidden).part(FUSED, &[0]),
            matrix(K, "self_attn.W_pack.weight", Key, Hidden).part(FUSED, &[1]),
            matrix(V, "self_attn.W_pack.weight", Value, Hidden).part(FUSED, &[2]),
            O_PROJ,
            MLP_NORM,
            GATE_PROJ,
            UP_PROJ,
            DOWN_PROJ,
        ],
        head: &[
            vector(FinalNorm, "model.norm.weight", Hidden),
            matrix(Head, "lm_head.weight", Vocab, Hidden).floor(Q3).when(When::PlainHead),
            matrix(Head, "lm_head.weight", Vocab, Hidden)
                .floor(Q3)
                .fold(Fold::NormaliseRows)
                .when(When::NormalisedHead),
        ],
        ..LLAMA
    }
};
