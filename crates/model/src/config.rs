//! `config.json`, understood and validated.

mod attention;
mod experts;
mod refuse;
mod scaling;
mod units;

pub use attention::Latent;
pub use experts::Moe;
pub use units::{TensorDecl, UnitDecl};

use crate::arch::{ALL, Arch, Flag, Role, RopeExtra};
use crate::field::{Fields, refuse};
use crate::rope::Rotary;
use crate::{Error, Result};
use airllm_format::NumFormat;
use airllm_kernels::{Activation, RopeKind};
use serde_json::Value;
use std::collections::BTreeSet;

// Limits far above any published model and far below where a product of two or three of them, in
// bytes, would overflow. Sizes are `usize`, which therefore must have 64 bits.
const _: () = assert!(usize::BITS >= 64, "sizes of models need 64 bits");
const MOST_HIDDEN: usize = 1 << 20;
const MOST_INNER: usize = 1 << 24;
const MOST_VOCAB: usize = 1 << 26;
const MOST_LAYERS: usize = 1 << 14;
const MOST_HEADS: usize = 1 << 14;
const MOST_HEAD_DIM: usize = 1 << 14;
const MOST_WIDTH: usize = 1 << 22;
const MOST_POSITIONS: usize = 1 << 40;
const MOST_EXPERTS: usize = 1 << 12;

/// A model's configuration: every number that its tensors and its forward depend on.
///
/// Made by [`parse`](Config::parse), which vouches for the limits that the rest of the crate relies on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The family.
    pub arch: &'static Arch,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Width between the two halves of the feed-forward block.
    pub inner: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers in a head of queries and keys; even. `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Numbers in a head of values.
    pub value_dim: usize,
    /// Token ids are below this.
    pub vocab: usize,
    /// The context the model was made for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in the norms.
    pub norm_eps: f32,
    /// Rotary position embedding; of 0 numbers where there is none.
    pub rotary: Rotary,
    /// The one of layers with a window, where it is another.
    pub local_rotary: Option<Rotary>,
    /// How it pairs the numbers of a head.
    pub rope: RopeKind,
    /// Whether positions come in by ALiBi.
    pub alibi: bool,
    /// Positions that each layer sees, its own included; 0 for all.
    pub windows: Vec<usize>,
    /// Products of query and key are multiplied by this.
    pub score_scale: f32,
    /// Soft cap of attention scores; 0 for none.
    pub score_cap: f32,
    /// Soft cap of logits; 0 for none.
    pub logit_cap: f32,
    /// Length beyond which queries are scaled by the logarithm of their position to this base (Qwen 1).
    pub log_n: Option<usize>,
    /// Embeddings are multiplied by this.
    pub embed_scale: f32,
    /// The function on the gate.
    pub activation: Activation,
    /// The latent that keys and values come from, where they do.
    pub latent: Option<Latent>,
    /// The experts, where there are any.
    pub moe: Option<Moe>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has one.
    pub out_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether the head uses the embedding's matrix.
    pub tied: bool,
    /// Whether the head's rows are normalised before use.
    pub head_normalised: bool,
    /// Whether norms are stored as offsets from 1.
    pub norm_offset: bool,
    /// Ids that end a text; may be empty.
    pub eos: Vec<u32>,
    /// Matrices, by their names in the checkpoint, whose columns are stored in another order. Each has a
    /// vector before it that says which column of the input belongs to which of its own. No
    /// `config.json` says so; whoever reads the weights does.
    pub reordered: BTreeSet<String>,
    /// What the file says the weights are stored as, where that is a plain format. The tensors
    /// themselves decide.
    pub dtype: Option<NumFormat>,
}

impl Config {
    /// Reads a `config.json` in any spelling that the transformers library, or the family's own code, has
    /// written.
    ///
    /// Absent fields mean what they mean there. Fields that do not change what is computed are ignored
    /// (`pretraining_tp`, `initializer_range`, …); a value that would make the result differ from the
    /// reference is refused, never guessed around. How the weights are stored (`quantization_config`) is
    /// not this crate's business.
    pub fn parse(json: &Value) -> Result<Self> {
        let Value::Object(map) = json else {
            return Err(refuse("the whole file", "an object", Some(json)));
        };
        let fields = Fields::new(map, "");
        let arch = architecture(&fields)?;
        refuse::unknown_mathematics(&fields, arch)?;
        let (names, traits) = (&arch.fields, &arch.traits);

        let hidden = fields.needed_size("hidden_size", MOST_HIDDEN)?;
        let layers = fields.needed_size(names.layers, MOST_LAYERS)?;
        let max_positions =
            fields.size(names.positions, MOST_POSITIONS)?.unwrap_or(arch.defaults.max_positions);
        let shape = attention::Heads::read(&fields, arch, hidden)?;
        let alibi = traits.alibi_without_positions && !fields.has(names.positions);
        let windows = attention::windows(&fields, arch, layers)?;
        let rotary = match alibi {
            true => Rotary::none(),
            false => scaling::rotary(&fields, arch, &shape, max_positions)?,
        };
        let vocab = fields.needed_size(names.vocab, MOST_VOCAB)?;
        let score_scale = attention::score_scale(&fields, arch, &shape)?;
        let cap = |name| match traits.softcaps {
            true => fields.number(name, 0.0, 1e6).map(|cap| cap.unwrap_or(0.0) as f32),
            false => Ok(0.0),
        };
        let marked = fields.has("z_loss_weight") || vocab == 125_696;
        // Files made by other programs may hold what these say already done.
        let folded = fields.flag("norm_offset_folded")?.unwrap_or(false);
        let interleaved = fields.flag("rope_interleaved")?.unwrap_or(false);

        Ok(Self {
            arch,
            hidden,
            inner: inner(&fields, arch)?,
            layers,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            value_dim: shape.value_dim,
            vocab,
            max_positions,
            norm_eps: fields.number(names.eps, MIN_EPS, 1.0)?.unwrap_or(arch.defaults.norm_eps) as f32,
            rotary,
            local_rotary: match traits.rope_extra {
                RopeExtra::Local => Some(scaling::local(&fields, &shape)?),
                _ => None,
            },
            rope: if interleaved { RopeKind::Interleaved } else { traits.rope },
            alibi,
            windows,
            score_scale,
            score_cap: cap("attn_logit_softcapping")?,
            logit_cap: cap("final_logit_softcapping")?,
            log_n: attention::log_n(&fields, arch)?,
            embed_scale: if traits.scaled_embedding { (hidden as f32).sqrt() } else { 1.0 },
            activation: activation(&fields, arch)?,
            latent: shape.latent,
            moe: experts::read(&fields, arch, layers)?,
            qkv_bias: flag(&fields, names.qkv_bias)?,
            out_bias: flag(&fields, names.out_bias)?,
            mlp_bias: flag(&fields, names.mlp_bias)?,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(arch.defaults.tied),
            head_normalised: traits.head_normalised_if_marked && marked,
            norm_offset: traits.norm_offset && !folded,
            eos: eos(&fields, arch)?,
            reordered: BTreeSet::new(),
            dtype: dtype(&fields)?,
        })
    }

    /// The role whose matrix is multiplied with the same numbers as that of `role`, and comes first: what is
    /// known of its inputs holds for both.
    pub fn input_of(&self, role: Role) -> Role {
        match (self.latent, role) {
            (None, Role::K | Role::V) => Role::Q,
            (Some(_), Role::V) => Role::K,
            (Some(latent), Role::KvDown | Role::KRope) if latent.query.is_some() => Role::QDown,
            (Some(_), Role::KvDown | Role::KRope) => Role::Q,
            (_, Role::Up) => Role::Gate,
            (_, Role::SharedUp) => Role::SharedGate,
            _ => role,
        }
    }

    /// Width of all query heads side by side.
    pub fn query_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads side by side.
    pub fn key_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of all value heads side by side.
    pub fn value_width(&self) -> usize {
        self.kv_heads * self.value_dim
    }
}

/// The smallest epsilon that is still a positive f32.
const MIN_EPS: f64 = f32::MIN_POSITIVE as f64;

fn architecture(fields: &Fields<'_>) -> Result<&'static Arch> {
    let mut named = Vec::new();
    if let Some(value) = fields.get("architectures") {
        let list = value.as_array().ok_or_else(|| fields.refuse("architectures", "a list"))?;
        for name in list {
            named.push(name.as_str().ok_or_else(|| fields.refuse("architectures", "names"))?);
        }
    }
    let (found, arch) = if named.is_empty() {
        let Some(model_type) = fields.text("model_type")? else {
            return Err(fields.refuse("architectures", "the name of an architecture"));
        };
        let arch = ALL.iter().find(|arch| arch.model_type == model_type);
        (format!("of model_type \"{model_type}\""), arch)
    } else {
        let arch = ALL.iter().find(|arch| named.iter().any(|name| arch.hf.contains(name)));
        (named.join(", "), arch)
    };
    arch.copied().ok_or_else(|| Error::Architecture {
        found: found.chars().take(200).collect(),
        known: ALL.iter().flat_map(|arch| arch.hf).copied().collect::<Vec<_>>().join(", "),
    })
}

fn inner(fields: &Fields<'_>, arch: &Arch) -> Result<usize> {
    let name = arch.fields.inner;
    let inner = fields.needed_size(name, MOST_INNER)?;
    match arch.traits.inner_doubled {
        false => Ok(inner),
        true if inner.is_multiple_of(2) => Ok(inner / 2),
        true => Err(fields.refuse(name, "an even number, twice the width of the feed-forward block")),
    }
}

fn activation(fields: &Fields<'_>, arch: &Arch) -> Result<Activation> {
    for name in arch.fields.activation {
        match fields.text(name)? {
            None => {}
            Some("silu" | "swish" | "swiglu") => return Ok(Activation::Silu),
            // The first Gemma says "gelu" and has always been computed with the approximation.
            Some("gelu_pytorch_tanh" | "gelu_new") => return Ok(Activation::GeluTanh),
            Some("gelu") if arch.traits.activation == Activation::GeluTanh => {
                return Ok(Activation::GeluTanh);
            }
            Some(_) => {
                return Err(fields.refuse(name, "silu or gelu_pytorch_tanh, the activations known here"));
            }
        }
    }
    Ok(arch.traits.activation)
}

fn flag(fields: &Fields<'_>, flag: Flag) -> Result<bool> {
    match flag {
        Flag::Yes => Ok(true),
        Flag::No => Ok(false),
        Flag::Any(names) => {
            names.iter().try_fold(false, |any, name| Ok(any | fields.flag(name)?.unwrap_or(false)))
        }
    }
}

fn eos(fields: &Fields<'_>, arch: &Arch) -> Result<Vec<u32>> {
    // A null says that nothing ends a text; an absent field means the family's own id.
    match fields.ids("eos_token_id")? {
        Some(ids) => Ok(ids),
        None if fields.has("eos_token_id") => Ok(Vec::new()),
        None => Ok(arch.defaults.eos.to_vec()),
    }
}

fn dtype(fields: &Fields<'_>) -> Result<Option<NumFormat>> {
    let name = match fields.text("dtype")? {
        Some(name) => Some(name),
        None => fields.text("torch_dtype")?,
    };
    Ok(name.and_then(|name| match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" | "float" => Some(NumFormat::F32),
        "float16" | "half" => Some(NumFormat::F16),
        "bfloat16" => Some(NumFormat::Bf16),
        _ => None,
    }))
}
