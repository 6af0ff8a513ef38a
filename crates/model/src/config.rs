//! `config.json`, understood and validated.

mod scaling;

use crate::arch::{ALL, Arch, Decl, Fold, Role, Shape};
use crate::field::{Fields, refuse};
use crate::rope::Rotary;
use crate::{Error, Result};
use airllm_format::NumFormat;
use serde_json::Value;
use std::ops::Range;

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
    /// Numbers in a head; even. `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Token ids are below this.
    pub vocab: usize,
    /// The context the model was made for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in the norms.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rotary: Rotary,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether the head uses the embedding's matrix.
    pub tied: bool,
    /// Ids that end a text; may be empty.
    pub eos: Vec<u32>,
    /// What the file says the weights are stored as, where that is a plain format. The tensors
    /// themselves decide.
    pub dtype: Option<NumFormat>,
}

/// A unit that streams as a whole, as a configuration declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitDecl {
    /// "embed", "layer.N", "layer.N.expert.E" or "head".
    pub name: String,
    /// The shard it is stored in: the unit itself, or for an expert its layer.
    pub shard: String,
    /// Whether it is read only when asked for, as experts are, instead of in every pass.
    pub on_demand: bool,
    /// Its tensors, in the order of use.
    pub tensors: Vec<TensorDecl>,
}

/// A tensor that a configuration declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// What it is for.
    pub role: Role,
    /// The role's name ("q", "attn_norm"), as shards and catalogs have it.
    pub name: String,
    /// The tensor of the checkpoint that it is, or is a part of.
    pub hf: String,
    /// Rows of that tensor in the checkpoint; of a vector, its numbers.
    pub hf_rows: usize,
    /// Which of those rows it is made of, in order. One span of all of them where it is the whole tensor;
    /// a part of them where the checkpoint fuses several tensors into one.
    pub spans: Vec<Range<usize>>,
    /// What happens to its numbers on the way.
    pub fold: Fold,
    /// `[dim]` or `[rows, cols]`.
    pub shape: Vec<usize>,
    /// The narrowest format it may be rounded to. F32 for vectors, which are always stored so.
    pub floor: NumFormat,
}

impl UnitDecl {
    /// The name of one of its tensors inside its shard: "q", or "expert.3.gate".
    pub fn entry(&self, tensor: &TensorDecl) -> String {
        match self.name.strip_prefix(&self.shard).and_then(|rest| rest.strip_prefix('.')) {
            Some(expert) => format!("{expert}.{}", tensor.name),
            None => tensor.name.clone(),
        }
    }
}

impl TensorDecl {
    /// Whether it is a tensor of the checkpoint just as it is, as far as rows go.
    pub fn is_whole(&self) -> bool {
        matches!(&self.spans[..], [only] if *only == (0..self.hf_rows))
    }

    /// Rows; 1 for a vector.
    pub fn rows(&self) -> usize {
        if self.is_vector() { 1 } else { self.shape[0] }
    }

    /// Numbers in a row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Whether it is a norm or a bias, kept in f32.
    pub fn is_vector(&self) -> bool {
        self.shape.len() < 2
    }
}

impl Config {
    /// Reads a `config.json` in any spelling that the transformers library has written.
    ///
    /// Absent fields mean what they mean there. Fields that do not change what is computed are ignored
    /// (`pretraining_tp`, `initializer_range`, …), and so is how the weights are stored
    /// (`quantization_config`); a value that would make the result differ from the
    /// reference is refused, never guessed around.
    pub fn parse(json: &Value) -> Result<Self> {
        let Value::Object(map) = json else {
            return Err(refuse("the whole file", "an object", Some(json)));
        };
        let fields = Fields::new(map, "");
        let arch = architecture(&fields)?;
        activation(&fields)?;

        let hidden = fields.needed_size("hidden_size", MOST_HIDDEN)?;
        let heads = fields.needed_size("num_attention_heads", MOST_HEADS)?;
        let kv_heads = fields.size("num_key_value_heads", MOST_HEADS)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, which is {heads}");
            return Err(fields.refuse("num_key_value_heads", expected));
        }
        let head_dim = head_dim(&fields, hidden, heads)?;
        let max_positions =
            fields.size("max_position_embeddings", MOST_POSITIONS)?.unwrap_or(arch.defaults.max_positions);

        Ok(Self {
            arch,
            hidden,
            inner: fields.needed_size("intermediate_size", MOST_INNER)?,
            layers: fields.needed_size("num_hidden_layers", MOST_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            vocab: fields.needed_size("vocab_size", MOST_VOCAB)?,
            max_positions,
            norm_eps: fields.number("rms_norm_eps", MIN_EPS, 1.0)?.unwrap_or(arch.defaults.norm_eps) as f32,
            rotary: scaling::rotary(&fields, arch, head_dim, max_positions)?,
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(arch.defaults.tied),
            eos: eos(&fields, arch)?,
            dtype: dtype(&fields)?,
        })
    }

    /// Width of all query heads side by side.
    pub fn query_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads side by side.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Every tensor of the model: "embed", "layer.0" …, "head".
    pub fn units(&self) -> Vec<UnitDecl> {
        let unit = |name: String, prefix: &str, decls: &[Decl]| UnitDecl {
            shard: name.clone(),
            name,
            on_demand: false,
            tensors: decls
                .iter()
                .filter(|decl| decl.when.holds(self))
                .map(|decl| self.tensor(prefix, decl))
                .collect(),
        };
        let mut units = Vec::with_capacity(self.layers + 2);
        units.push(unit("embed".into(), "", self.arch.embed));
        for layer in 0..self.layers {
            let prefix = self.arch.layer_prefix.replace("{}", &layer.to_string());
            units.push(unit(format!("layer.{layer}"), &prefix, self.arch.layer));
        }
        units.push(unit("head".into(), "", self.arch.head));
        units
    }

    /// The tensors of one pass over the weights as `(unit, tensor)`, in the order of use.
    ///
    /// An embedding of its own is not among them, as its rows are fetched singly; one that also serves
    /// as the head comes last.
    pub fn pass(&self) -> Vec<(String, String)> {
        let units = self.units();
        let mut pass: Vec<_> = units
            .iter()
            .skip(1)
            .flat_map(|unit| unit.tensors.iter().map(|t| (unit.name.clone(), t.name.clone())))
            .collect();
        if self.tied {
            let embed = units.first().map(|u| (u.name.clone(), Role::Embed.name().into()));
            pass.extend(embed);
        }
        pass
    }

    fn tensor(&self, prefix: &str, decl: &Decl) -> TensorDecl {
        let shape = match decl.shape {
            Shape::Vector(dim) => vec![dim.of(self)],
            Shape::Matrix(rows, cols) => vec![rows.of(self), cols.of(self)],
        };
        TensorDecl {
            role: decl.role,
            name: decl.role.name().into(),
            hf: format!("{prefix}{}", decl.hf),
            hf_rows: shape[0],
            spans: vec![0..shape[0]],
            fold: Fold::None,
            shape,
            floor: decl.floor,
        }
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

fn activation(fields: &Fields<'_>) -> Result<()> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(_) => Err(fields.refuse("hidden_act", "silu, the only activation known here")),
    }
}

fn head_dim(fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
    let (head_dim, field) = match fields.size("head_dim", MOST_HEAD_DIM)? {
        Some(head_dim) => (head_dim, "head_dim"),
        None if hidden.is_multiple_of(heads) => (hidden / heads, "hidden_size"),
        None => {
            let expected =
                format!("a multiple of num_attention_heads, which is {heads}, as there is no head_dim");
            return Err(fields.refuse("hidden_size", expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        let expected =
            format!("an even number of numbers in each of {heads} heads, as rotary embedding turns pairs");
        return Err(fields.refuse(field, expected));
    }
    if heads * head_dim > MOST_WIDTH {
        let expected =
            format!("at most {MOST_WIDTH} numbers in all heads together, not {heads} heads of {head_dim}");
        return Err(fields.refuse(field, expected));
    }
    Ok(head_dim)
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
