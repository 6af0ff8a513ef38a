//! What the tensors of a GGUF file are called in the Hugging Face checkpoint of the same model.

/// The names of a family.
#[derive(Debug)]
pub(super) struct Names {
    /// Tensors outside of the layers.
    pub(super) outer: &'static [(&'static str, &'static str)],
    /// What the names of a layer's tensors begin with; `{}` stands for the layer's number.
    pub(super) layer: &'static str,
    /// Tensors of a layer, without `.weight` or `.bias`; of tensors that hold all experts, `{}` stands for the
    /// number of one. Later lines go before earlier ones.
    pub(super) inner: &'static [&'static [(&'static str, &'static str)]],
}

/// What a tensor of the file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// One tensor.
    One(String),
    /// All experts of a layer side by side; `{}` stands for the number of one.
    Experts(String),
    /// Numbers that the configuration has in it.
    Configuration,
    /// Nothing that the family has.
    Unknown,
}

const OUTER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const BASE: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const HEAD_NORMS: &[(&str, &str)] =
    &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

/// Norms on both sides of each branch.
const FOUR_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const EXPERTS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{}.down_proj"),
];

const SHARED_EXPERT: &[(&str, &str)] = &[
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

const fn like_llama(inner: &'static [&'static [(&'static str, &'static str)]]) -> Names {
    Names { outer: OUTER, layer: "model.layers.{}.", inner }
}

/// Llama and all that have its tensors.
pub(super) const LLAMA: Names = like_llama(&[BASE]);
/// Mixtral.
pub(super) const MIXTRAL: Names = like_llama(&[
    BASE,
    &[
        ("ffn_gate_inp", "block_sparse_moe.gate"),
        ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
        ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
        ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
    ],
]);
/// Qwen 3.
pub(super) const QWEN3: Names = like_llama(&[BASE, HEAD_NORMS]);
/// Qwen 2 with experts.
pub(super) const QWEN2_MOE: Names = like_llama(&[BASE, EXPERTS, SHARED_EXPERT]);
/// Qwen 3 with experts.
pub(super) const QWEN3_MOE: Names = like_llama(&[BASE, HEAD_NORMS, EXPERTS]);
/// Phi-3: queries, keys and values are one tensor, and so are gate and up.
pub(super) const PHI3: Names =
    like_llama(&[BASE, &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")]]);
/// Gemma 2.
pub(super) const GEMMA2: Names = like_llama(&[BASE, FOUR_NORMS]);
/// Gemma 3.
pub(super) const GEMMA3: Names = like_llama(&[BASE, FOUR_NORMS, HEAD_NORMS]);
/// GLM-4-9B in the library's own spelling: gate and up are one tensor.
pub(super) const GLM: Names = like_llama(&[BASE, &[("ffn_up", "mlp.gate_up_proj")]]);
/// GLM-4-0414: as [`GLM`], with norms behind both branches.
pub(super) const GLM4: Names = like_llama(&[
    BASE,
    &[
        ("ffn_up", "mlp.gate_up_proj"),
        ("post_attention_norm", "post_self_attn_layernorm"),
        ("post_ffw_norm", "post_mlp_layernorm"),
    ],
]);
/// ChatGLM2, ChatGLM3 and GLM-4-9B as first published.
pub(super) const CHATGLM: Names = Names {
    outer: &[
        ("token_embd", "transformer.embedding.word_embeddings"),
        ("output_norm", "transformer.encoder.final_layernorm"),
        ("output", "transformer.output_layer"),
    ],
    layer: "transformer.encoder.layers.{}.",
    inner: &[&[
        ("attn_norm", "input_layernorm"),
        ("attn_qkv", "self_attention.query_key_value"),
        ("attn_output", "self_attention.dense"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ]],
};
/// The first Qwen.
pub(super) const QWEN1: Names = Names {
    outer: &[("token_embd", "transformer.wte"), ("output_norm", "transformer.ln_f"), ("output", "lm_head")],
    layer: "transformer.h.{}.",
    inner: &[&[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.w1"),
        ("ffn_gate", "mlp.w2"),
        ("ffn_down", "mlp.c_proj"),
    ]],
};

impl Names {
    /// What the tensor with a name in the file is.
    pub(super) fn meaning(&self, name: &str) -> Meaning {
        let configuration = ["rope_freqs", "rope_factors_long", "rope_factors_short"];
        let Some((stem, kind)) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))
        else {
            return Meaning::Unknown;
        };
        if let Some((layer, stem)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            return self.layered(layer, stem, kind).unwrap_or(Meaning::Unknown);
        }
        match self.outer.iter().find(|(known, _)| *known == stem) {
            Some((_, hf)) => Meaning::One(format!("{hf}.{kind}")),
            None if configuration.contains(&stem) => Meaning::Configuration,
            None => Meaning::Unknown,
        }
    }

    fn layered(&self, layer: &str, stem: &str, kind: &str) -> Option<Meaning> {
        let layer: u32 = number(layer)?;
        let prefix = self.layer.replace("{}", &layer.to_string());
        if ["attn_rot_embd", "rope_freqs"].contains(&stem) {
            // Frequencies that follow from the configuration.
            return Some(Meaning::Configuration);
        }
        if let Some(hf) = self.find(stem) {
            let name = format!("{prefix}{hf}.{kind}");
            return Some(if stem.ends_with("_exps") { Meaning::Experts(name) } else { Meaning::One(name) });
        }
        // Files of before May 2024 have a tensor for each expert: `ffn_gate.3`.
        let (stem, expert) = stem.rsplit_once('.')?;
        let hf = self.find(&format!("{stem}_exps"))?;
        let expert: u32 = number(expert)?;
        Some(Meaning::One(format!("{prefix}{}.{kind}", hf.replace("{}", &expert.to_string()))))
    }

    fn find(&self, stem: &str) -> Option<&'static str> {
        let mut tables = self.inner.iter().rev();
        tables.find_map(|table| table.iter().find(|(known, _)| *known == stem)).map(|(_, hf)| *hf)
    }
}

/// A number as it is written in names: no sign, no needless zeros.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(names: &Names, name: &str) -> String {
        match names.meaning(name) {
            Meaning::One(hf) => hf,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn names_of_the_library() {
        assert_eq!(one(&LLAMA, "token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(one(&LLAMA, "blk.31.attn_q.bias"), "model.layers.31.self_attn.q_proj.bias");
        assert_eq!(one(&GEMMA2, "blk.0.ffn_norm.weight"), "model.layers.0.pre_feedforward_layernorm.weight");
        assert_eq!(one(&GLM4, "blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(one(&PHI3, "blk.2.ffn_up.weight"), "model.layers.2.mlp.gate_up_proj.weight");
        assert_eq!(one(&QWEN1, "blk.2.ffn_gate.weight"), "transformer.h.2.mlp.w2.weight");
        assert_eq!(
            one(&CHATGLM, "blk.9.attn_qkv.bias"),
            "transformer.encoder.layers.9.self_attention.query_key_value.bias"
        );
        assert_eq!(
            one(&MIXTRAL, "blk.1.ffn_down.7.weight"),
            "model.layers.1.block_sparse_moe.experts.7.w2.weight"
        );
        assert_eq!(
            QWEN3_MOE.meaning("blk.1.ffn_up_exps.weight"),
            Meaning::Experts("model.layers.1.mlp.experts.{}.up_proj.weight".into())
        );
        assert_eq!(LLAMA.meaning("rope_freqs.weight"), Meaning::Configuration);
    }

    #[test]
    fn what_a_family_does_not_have_is_not_named() {
        for name in [
            "blk.0.attn_q_norm.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.00.attn_q.weight",
            "blk.-1.attn_q.weight",
            "blk.0.ffn_up.1.weight",
            "blk.attn_q.weight",
            "token_embd.scale",
            "token_embd",
            "",
        ] {
            assert_eq!(LLAMA.meaning(name), Meaning::Unknown, "{name}");
        }
    }
}
