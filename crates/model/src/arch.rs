//! Architectures as data: which tensors a family has, what they are called, how large they are and in
//! which order the forward uses them.
//!
//! A family is one constant [`Arch`], listed in [`ALL`]. Where a new family has a tensor that none had
//! before, it also adds a [`Role`] and the line of the forward that asks for it; where its configuration
//! spells a size in a new way, a [`Dim`] or a [`When`].

use crate::Config;
use airllm_format::NumFormat;
use airllm_kernels::RopeKind;

/// Every architecture that is known.
pub const ALL: &[&Arch] = &[&LLAMA];

/// Llama 1 to 3.x, and the many models published in its form.
///
/// Touvron et al., "LLaMA" and "Llama 2", 2023; Llama team, "The Llama 3 Herd of Models", 2024.
pub const LLAMA: Arch = {
    use Dim::{Hidden, Inner, KeyValue, Query, Vocab};
    use Role::*;
    use When::{AttentionBias, MlpBias, Untied};
    Arch {
        name: "llama",
        hf: &["LlamaForCausalLM", "LLaMAForCausalLM"],
        model_type: "llama",
        defaults: Defaults {
            norm_eps: 1e-6,
            rope_theta: 10_000.0,
            max_positions: 2048,
            tied: false,
            eos: &[2],
        },
        rope: RopeKind::Half,
        embed: &[matrix(Embed, "model.embed_tokens.weight", Vocab, Hidden).floor(NumFormat::Q8)],
        layer_prefix: "model.layers.{}.",
        layer: &[
            vector(AttnNorm, "input_layernorm.weight", Hidden),
            matrix(Q, "self_attn.q_proj.weight", Query, Hidden),
            vector(QBias, "self_attn.q_proj.bias", Query).when(AttentionBias),
            matrix(K, "self_attn.k_proj.weight", KeyValue, Hidden),
            vector(KBias, "self_attn.k_proj.bias", KeyValue).when(AttentionBias),
            matrix(V, "self_attn.v_proj.weight", KeyValue, Hidden),
            vector(VBias, "self_attn.v_proj.bias", KeyValue).when(AttentionBias),
            matrix(O, "self_attn.o_proj.weight", Hidden, Query),
            vector(OBias, "self_attn.o_proj.bias", Hidden).when(AttentionBias),
            vector(MlpNorm, "post_attention_layernorm.weight", Hidden),
            matrix(Gate, "mlp.gate_proj.weight", Inner, Hidden),
            vector(GateBias, "mlp.gate_proj.bias", Inner).when(MlpBias),
            matrix(Up, "mlp.up_proj.weight", Inner, Hidden),
            vector(UpBias, "mlp.up_proj.bias", Inner).when(MlpBias),
            matrix(Down, "mlp.down_proj.weight", Hidden, Inner),
            vector(DownBias, "mlp.down_proj.bias", Hidden).when(MlpBias),
        ],
        head: &[
            vector(FinalNorm, "model.norm.weight", Hidden),
            matrix(Head, "lm_head.weight", Vocab, Hidden).floor(NumFormat::Q8).when(Untied),
        ],
    }
};

/// One family of models.
#[derive(Debug, PartialEq)]
pub struct Arch {
    /// Short name, as the manifest of prepared shards has it.
    pub name: &'static str,
    /// Names in the `architectures` field of `config.json`.
    pub hf: &'static [&'static str],
    /// Name in the `model_type` field, which decides where `architectures` is absent.
    pub model_type: &'static str,
    /// What absent fields mean.
    pub defaults: Defaults,
    /// How the rotary embedding pairs the numbers of a head.
    pub rope: RopeKind,
    /// The embedding. Its rows are fetched one by one; only where the head is tied to it does it also
    /// pass by as a whole, at the end.
    pub embed: &'static [Decl],
    /// What the names of a layer's tensors begin with; `{}` stands for the layer's number.
    pub layer_prefix: &'static str,
    /// A decoder layer, in the order of use.
    pub layer: &'static [Decl],
    /// What follows the last layer, in the order of use.
    pub head: &'static [Decl],
}

/// What absent fields of a family's `config.json` mean.
#[derive(Debug, PartialEq)]
pub struct Defaults {
    /// `rms_norm_eps`.
    pub norm_eps: f64,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// `tie_word_embeddings`.
    pub tied: bool,
    /// `eos_token_id`.
    pub eos: &'static [u32],
}

/// One tensor of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decl {
    /// What it is for.
    pub role: Role,
    /// Its name in the checkpoint; in a layer, what follows [`Arch::layer_prefix`].
    pub hf: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// When the checkpoint has it.
    pub when: When,
    /// The narrowest format it may be stored in; vectors are always f32.
    pub floor: NumFormat,
}

impl Decl {
    /// The same tensor with another precision floor.
    pub const fn floor(self, floor: NumFormat) -> Self {
        Self { floor, ..self }
    }

    /// The same tensor, present only under a condition.
    pub const fn when(self, when: When) -> Self {
        Self { when, ..self }
    }
}

/// A matrix that is always there and may be stored in as few as four bits.
pub const fn matrix(role: Role, hf: &'static str, rows: Dim, cols: Dim) -> Decl {
    Decl { role, hf, shape: Shape::Matrix(rows, cols), when: When::Always, floor: NumFormat::Q4 }
}

/// A vector that is always there. Norms and biases are small and everything passes through them, so
/// they are kept in f32.
pub const fn vector(role: Role, hf: &'static str, dim: Dim) -> Decl {
    Decl { role, hf, shape: Shape::Vector(dim), when: When::Always, floor: NumFormat::F32 }
}

/// What happens to a tensor's numbers between checkpoint and forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fold {
    /// Nothing.
    #[default]
    None,
    /// Each row is divided by its Euclidean length, at least 1e-7 (the head of Baichuan 2).
    NormaliseRows,
    /// 1 is added to each number (Gemma's norms are stored as offsets from 1).
    AddOne,
}

/// Shape of a tensor, by the names of its dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `[dim]`.
    Vector(Dim),
    /// `[rows, cols]`: output features, input features.
    Matrix(Dim, Dim),
}

/// A named size of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// Width of the hidden state.
    Hidden,
    /// Width between the two halves of the feed-forward block.
    Inner,
    /// Vocabulary.
    Vocab,
    /// All query heads side by side.
    Query,
    /// All key (or value) heads side by side.
    KeyValue,
}

impl Dim {
    /// Its size in a configuration.
    pub fn of(self, config: &Config) -> usize {
        match self {
            Self::Hidden => config.hidden,
            Self::Inner => config.inner,
            Self::Vocab => config.vocab,
            Self::Query => config.query_dim(),
            Self::KeyValue => config.kv_dim(),
        }
    }
}

/// When a declared tensor exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In every model of the family.
    Always,
    /// Where the projections of the attention have biases.
    AttentionBias,
    /// Where the projections of the feed-forward block have biases.
    MlpBias,
    /// Where the head has a matrix of its own instead of the embedding's.
    Untied,
}

impl When {
    /// Whether it holds for a configuration.
    pub fn holds(self, config: &Config) -> bool {
        match self {
            Self::Always => true,
            Self::AttentionBias => config.attention_bias,
            Self::MlpBias => config.mlp_bias,
            Self::Untied => !config.tied,
        }
    }
}

/// What a tensor is for. The forward asks for weights by role and knows no other name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding, one row an id.
    Embed,
    /// Norm before the attention.
    AttnNorm,
    /// Query projection.
    Q,
    /// Bias of the query projection.
    QBias,
    /// Key projection.
    K,
    /// Bias of the key projection.
    KBias,
    /// Value projection.
    V,
    /// Bias of the value projection.
    VBias,
    /// Output projection of the attention.
    O,
    /// Bias of the output projection.
    OBias,
    /// Norm before the feed-forward block.
    MlpNorm,
    /// The projection that goes through the activation.
    Gate,
    /// Its bias.
    GateBias,
    /// The projection that the activated one is multiplied with.
    Up,
    /// Its bias.
    UpBias,
    /// The projection back to the hidden width.
    Down,
    /// Its bias.
    DownBias,
    /// Norm after the last layer.
    FinalNorm,
    /// Projection to the vocabulary.
    Head,
}

impl Role {
    /// Its name in shards, catalogs and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::AttnNorm => "attn_norm",
            Self::Q => "q",
            Self::QBias => "q_bias",
            Self::K => "k",
            Self::KBias => "k_bias",
            Self::V => "v",
            Self::VBias => "v_bias",
            Self::O => "o",
            Self::OBias => "o_bias",
            Self::MlpNorm => "mlp_norm",
            Self::Gate => "gate",
            Self::GateBias => "gate_bias",
            Self::Up => "up",
            Self::UpBias => "up_bias",
            Self::Down => "down",
            Self::DownBias => "down_bias",
            Self::FinalNorm => "final_norm",
            Self::Head => "head",
        }
    }
}
