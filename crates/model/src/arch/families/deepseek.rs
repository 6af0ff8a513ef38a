//! DeepSeek-V3.

use super::*;

/// DeepSeek-V3 and R1: keys and values from a latent, experts chosen in groups by sigmoid scores.
/// DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024.
///
/// Rows of queries are put so that a head begins with the numbers that turn, which changes no product of a
/// query with a key.
pub const DEEPSEEK_V3: Arch = {
    const QUERY: &[Dim] = &[Dim::Still, Dim::Turning];
    const LATENT: &[Dim] = &[Dim::KvLatent, Dim::Turning];
    const KEY_VALUE: &[Dim] = &[Dim::Still, Dim::ValueDim];
    Arch {
        name: "deepseek_v3",
        hf: &["DeepseekV3ForCausalLM"],
        model_type: "deepseek_v3",
        defaults: Defaults { max_positions: 4096, eos: &[1], ..DEFAULTS },
        fields: FIELDS,
        traits: Traits {
            rope: RopeKind::Interleaved,
            latent: true,
            moe: Some(MoeNames {
                experts: "n_routed_experts",
                inner: "moe_intermediate_size",
                shared: Some("n_shared_experts"),
                normalise: Flag::Any(&["norm_topk_prob"]),
                sparse: Sparse::AfterFirst,
                sigmoid: true,
            }),
            only: &[("attention_bias", false)],
            ..TRAITS
        },
        layer: &[
            ATTN_NORM,
            matrix(QDown, "self_attn.q_a_proj.weight", Dim::QueryLatent, Hidden).when(When::QueryLatent),
            vector(QDownNorm, "self_attn.q_a_layernorm.weight", Dim::QueryLatent).when(When::QueryLatent),
            matrix(Q, "self_attn.q_b_proj.weight", Query, Dim::QueryInput)
                .repeated(Dim::Heads, QUERY, &[1, 0])
                .when(When::QueryLatent),
            matrix(Q, "self_attn.q_proj.weight", Query, Dim::QueryInput)
                .repeated(Dim::Heads, QUERY, &[1, 0])
                .when(When::PlainQuery),
            matrix(KvDown, "self_attn.kv_a_proj_with_mqa.weight", Dim::KvLatent, Hidden).part(LATENT, &[0]),
            vector(KvDownNorm, "self_attn.kv_a_layernorm.weight", Dim::KvLatent),
            matrix(KRope, "self_attn.kv_a_proj_with_mqa.weight", Dim::Turning, Hidden).part(LATENT, &[1]),
            matrix(K, "self_attn.kv_b_proj.weight", Dim::KeyStill, Dim::KvLatent).repeated(
                Dim::KvHeads,
                KEY_VALUE,
                &[0],
            ),
            matrix(V, "self_attn.kv_b_proj.weight", Value, Dim::KvLatent).repeated(
                Dim::KvHeads,
                KEY_VALUE,
                &[1],
            ),
            O_PROJ,
            MLP_NORM,
            ROUTER,
            vector(RouterBias, "mlp.gate.e_score_correction_bias", Experts).when(When::Sparse),
            matrix(SharedGate, "mlp.shared_experts.gate_proj.weight", SharedInner, Hidden).when(Shared),
            matrix(SharedUp, "mlp.shared_experts.up_proj.weight", SharedInner, Hidden).when(Shared),
            matrix(SharedDown, "mlp.shared_experts.down_proj.weight", Hidden, SharedInner).when(Shared),
            GATE_PROJ,
            UP_PROJ,
            DOWN_PROJ,
        ],
        expert_prefix: "mlp.experts.{}.",
        expert: EXPERT,
        ..LLAMA
    }
};
