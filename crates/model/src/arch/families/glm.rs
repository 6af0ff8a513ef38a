//! ChatGLM and GLM-4.

use super::*;

/// ChatGLM 2 and 3, and GLM-4 in its first form. GLM team, "ChatGLM", 2024, and the published modelling
/// code.
pub const CHATGLM: Arch = {
    const QKV: &[Dim] = &[Query, Key, Value];
    const fn layer_norm(role: Role, hf: &'static str) -> Decl {
        vector(role, hf, Hidden)
    }
    Arch {
        name: "chatglm",
        hf: &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
        model_type: "chatglm",
        defaults: Defaults { norm_eps: 1e-5, ..DEFAULTS },
        fields: FieldNames {
            inner: "ffn_hidden_size",
            layers: "num_layers",
            kv_heads: "multi_query_group_num",
            kv_heads_if: Some("multi_query_attention"),
            head_dim: "kv_channels",
            vocab: "padded_vocab_size",
            positions: "seq_length",
            eps: "layernorm_epsilon",
            qkv_bias: Flag::Any(&["add_qkv_bias", "add_bias_linear"]),
            out_bias: Flag::Any(&["add_bias_linear"]),
            mlp_bias: Flag::Any(&["add_bias_linear"]),
            ..FIELDS
        },
        traits: Traits {
            rope: RopeKind::Interleaved,
            rotary_share: 0.5,
            rope_extra: RopeExtra::Ratio,
            only: &[
                ("rmsnorm", true),
                ("post_layer_norm", true),
                ("apply_residual_connection_post_layernorm", false),
            ],
            ..TRAITS
        },
        embed: &[matrix(Embed, "transformer.embedding.word_embeddings.weight", Vocab, Hidden).floor(Q3)],
        layer_prefix: "transformer.encoder.layers.{}.",
        layer: &[
            layer_norm(AttnNorm, "input_layernorm.weight"),
            matrix(Q, "self_attention.query_key_value.weight", Query, Hidden).part(QKV, &[0]),
            vector(QBias, "self_attention.query_key_value.bias", Query).part(QKV, &[0]).when(QkvBias),
            matrix(K, "self_attention.query_key_value.weight", Key, Hidden).part(QKV, &[1]),
            vector(KBias, "self_attention.query_key_value.bias", Key).part(QKV, &[1]).when(QkvBias),
            matrix(V, "self_attention.query_key_value.weight", Value, Hidden).part(QKV, &[2]),
            vector(VBias, "self_attention.query_key_value.bias", Value).part(QKV, &[2]).when(QkvBias),
            matrix(O, "self_attention.dense.weight", Hidden, Attended),
            vector(OBias, "self_attention.dense.bias", Hidden).when(OutBias),
            layer_norm(MlpNorm, "post_attention_layernorm.weight"),
            matrix(Gate, "mlp.dense_h_to_4h.weight", Inner, Hidden).part(&[Inner, Inner], &[0]),
            vector(GateBias, "mlp.dense_h_to_4h.bias", Inner).part(&[Inner, Inner], &[0]).when(MlpBias),
            matrix(Up, "mlp.dense_h_to_4h.weight", Inner, Hidden).part(&[Inner, Inner], &[1]),
            vector(UpBias, "mlp.dense_h_to_4h.bias", Inner).part(&[Inner, Inner], &[1]).when(MlpBias),
            matrix(Down, "mlp.dense_4h_to_h.weight", Hidden, Inner),
            vector(DownBias, "mlp.dense_4h_to_h.bias", Hidden).when(MlpBias),
        ],
        head: &[
            layer_norm(FinalNorm, "transformer.encoder.final_layernorm.weight"),
            matrix(Head, "transformer.output_layer.weight", Vocab, Hidden).floor(Q3).when(Untied),
        ],
        ..LLAMA
    }
};

/// GLM-4 as the transformers library has it.
pub const GLM: Arch = Arch {
    name: "glm",
    hf: &["GlmForCausalLM"],
    model_type: "glm",
    defaults: Defaults { norm_eps: 1.5625e-7, max_positions: 131_072, eos: &[], ..DEFAULTS },
    fields: FieldNames { qkv_bias: Flag::Any(&["attention_bias"]), ..FIELDS },
    traits: Traits { rope: RopeKind::Interleaved, rotary_share: 0.5, ..TRAITS },
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
        GATE_OF_BOTH,
        UP_OF_BOTH,
        DOWN_PROJ,
    ],
    ..LLAMA
};

/// GLM-4-0414: norms also behind attention and feed-forward block.
pub const GLM4: Arch = Arch {
    name: "glm4",
    hf: &["Glm4ForCausalLM"],
    model_type: "glm4",
    defaults: Defaults { norm_eps: 1e-5, max_positions: 131_072, eos: &[], ..DEFAULTS },
    layer: &[
        ATTN_NORM,
        Q_PROJ,
        Q_PROJ_BIAS,
        K_PROJ,
        K_PROJ_BIAS,
        V_PROJ,
        V_PROJ_BIAS,
        O_PROJ,
        vector(PostAttnNorm, "post_self_attn_layernorm.weight", Hidden),
        MLP_NORM,
        GATE_OF_BOTH,
        UP_OF_BOTH,
        DOWN_PROJ,
        vector(PostMlpNorm, "post_mlp_layernorm.weight", Hidden),
    ],
    ..GLM
};
