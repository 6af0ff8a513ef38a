//! Architectures as data: which tensors a family has, what they are called, how large they are and in
//! which order the forward uses them; how its configuration spells sizes, and what of its mathematics the
//! configuration does not say.
//!
//! A family is one constant [`Arch`] in [`families`], listed in [`ALL`]. Where a new family has a tensor
//! that none had before, it also adds a [`Role`] and the line of the forward that asks for it; where its
//! configuration spells a size in a new way, a [`Dim`] or a [`When`].

mod decl;
pub mod families;
mod role;

pub use decl::{Decl, Dim, Fold, Part, Shape, When, matrix, vector};
pub use families::ALL;
pub use role::Role;

use airllm_kernels::{Activation, RopeKind};

/// One family of models.
#[derive(Debug, PartialEq)]
pub struct Arch {
    /// Short name, as the manifest of prepared shards has it.
    pub name: &'static str,
    /// Names in the `architectures` field of `config.json`.
    pub hf: &'static [&'static str],
    /// Names in the `model_type` field, which decides where `architectures` is absent.
    pub model_type: &'static str,
    /// What absent fields mean.
    pub defaults: Defaults,
    /// How the configuration spells sizes.
    pub fields: FieldNames,
    /// What the configuration does not say, or says in a way of its own.
    pub traits: Traits,
    /// The embedding. Its rows are fetched one by one; only where the head is tied to it does it also
    /// pass by as a whole, at the end.
    pub embed: &'static [Decl],
    /// What the names of a layer's tensors begin with; `{}` stands for the layer's number.
    pub layer_prefix: &'static str,
    /// A decoder layer, in the order of use.
    pub layer: &'static [Decl],
    /// What the names of an expert's tensors begin with, after the layer's; `{}` stands for its number.
    pub expert_prefix: &'static str,
    /// One expert, in the order of use. Empty where there are none.
    pub expert: &'static [Decl],
    /// What follows the last layer, in the order of use.
    pub head: &'static [Decl],
}

/// What absent fields of a family's `config.json` mean.
#[derive(Debug, PartialEq)]
pub struct Defaults {
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// Context in tokens.
    pub max_positions: usize,
    /// `tie_word_embeddings`.
    pub tied: bool,
    /// `eos_token_id`.
    pub eos: &'static [u32],
}

/// Names of fields of `config.json`.
#[derive(Debug, PartialEq)]
pub struct FieldNames {
    /// Width between the halves of the feed-forward block.
    pub inner: &'static str,
    /// Decoder layers.
    pub layers: &'static str,
    /// Key/value heads.
    pub kv_heads: &'static str,
    /// A flag without which there are as many key/value heads as query heads, whatever `kv_heads` says.
    pub kv_heads_if: Option<&'static str>,
    /// Numbers in a head.
    pub head_dim: &'static str,
    /// Vocabulary.
    pub vocab: &'static str,
    /// Context in tokens.
    pub positions: &'static str,
    /// Epsilon of the norms.
    pub eps: &'static str,
    /// Base of the rotary wavelengths.
    pub theta: &'static str,
    /// Share of a head that turns.
    pub rotary_share: &'static str,
    /// The activation; several names are tried in turn.
    pub activation: &'static [&'static str],
    /// Whether queries, keys and values have biases.
    pub qkv_bias: Flag,
    /// Whether the attention's output has one.
    pub out_bias: Flag,
    /// Whether the feed-forward block has them.
    pub mlp_bias: Flag,
}

/// A property that a field may switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// The whole family has it.
    Yes,
    /// No model of the family has it.
    No,
    /// Models in which one of these fields is true.
    Any(&'static [&'static str]),
}

/// The mathematics of a family, as far as its configuration does not say.
#[derive(Debug, PartialEq)]
pub struct Traits {
    /// How the rotary embedding pairs the numbers of a head.
    pub rope: RopeKind,
    /// The share of a head that turns, where the configuration does not say.
    pub rotary_share: f64,
    /// What scales the rotary embedding beside `rope_scaling`.
    pub rope_extra: RopeExtra,
    /// Whether models whose configuration has no field for the context have ALiBi instead of rotary
    /// embedding (Baichuan 13B).
    pub alibi_without_positions: bool,
    /// The activation, where the configuration does not say.
    pub activation: Activation,
    /// Which layers have a sliding window.
    pub windows: Windows,
    /// Whether embeddings are multiplied by the square root of the hidden width (Gemma).
    pub scaled_embedding: bool,
    /// The field whose inverse square root scales attention scores, instead of the head's size (Gemma).
    pub query_scale: Option<&'static str>,
    /// Whether `attn_logit_softcapping` and `final_logit_softcapping` are understood (Gemma 2).
    pub softcaps: bool,
    /// Whether norms are stored as offsets from 1 (Gemma).
    pub norm_offset: bool,
    /// Whether `intermediate_size` is twice the true width (Qwen 1).
    pub inner_doubled: bool,
    /// Whether the second generation's mark, `z_loss_weight` or a vocabulary of 125696, says that the
    /// head's rows are normalised before use (Baichuan 2).
    pub head_normalised_if_marked: bool,
    /// Whether keys and values come from a latent (DeepSeek).
    pub latent: bool,
    /// Experts, where layers have them.
    pub moe: Option<MoeNames>,
    /// Fields with which the mathematics would be another one than that of this family, and the only
    /// value under which they are accepted.
    pub only: &'static [(&'static str, bool)],
}

/// Scaling of the rotary embedding that is not in `rope_scaling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeExtra {
    /// None.
    None,
    /// `rope_ratio` multiplies the base; in the second generation it divides positions (ChatGLM).
    Ratio,
    /// `use_dynamic_ntk` and `use_logn_attn` beyond `seq_length` (Qwen 1).
    QwenNtk,
    /// `rope_local_base_freq` is the base in layers with a window (Gemma 3).
    Local,
}

/// Which layers have a sliding window, where `layer_types` does not list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// None, whatever the configuration says.
    Never,
    /// All, if `sliding_window` is set.
    All,
    /// Those from `max_window_layers` on, if `use_sliding_window` is set (Qwen).
    Flagged,
    /// Every second, beginning with the first (Gemma 2).
    Alternate,
    /// All but each `sliding_window_pattern`-th (Gemma 3).
    Pattern,
}

/// How a configuration speaks of experts.
#[derive(Debug, PartialEq)]
pub struct MoeNames {
    /// How many there are.
    pub experts: &'static str,
    /// Width between the halves of an expert.
    pub inner: &'static str,
    /// The width of the expert that every token goes through; `n_shared_experts` counts in widths of an
    /// expert. `None` where there is none.
    pub shared: Option<&'static str>,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalise: Flag,
    /// Which layers have experts.
    pub sparse: Sparse,
    /// Whether scores are sigmoids with a correction for the choice, in groups (DeepSeek-V3), instead of a
    /// softmax.
    pub sigmoid: bool,
}

/// Which layers have experts instead of one feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    /// All.
    All,
    /// Each `decoder_sparse_step`-th that is not among `mlp_only_layers` (Qwen).
    Step,
    /// Those from `first_k_dense_replace` on, each `moe_layer_freq`-th (DeepSeek).
    AfterFirst,
}
