//! Declarations of single tensors.

use super::Role;
use crate::Config;
use airllm_format::NumFormat;
use std::ops::Range;

/// One tensor of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decl {
    /// What it is for.
    pub role: Role,
    /// Its name in the checkpoint, or that of the tensor it is a part of; in a layer, what follows
    /// [`Arch::layer_prefix`](super::Arch::layer_prefix).
    pub hf: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Which part of the checkpoint's tensor it is.
    pub part: Part,
    /// What happens to its numbers on the way.
    pub fold: Fold,
    /// When the checkpoint has it.
    pub when: When,
    /// The narrowest format it may be rounded to; vectors are always f32.
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

    /// The same tensor as a part of a fused one: of its rows, which are blocks of these sizes one after the
    /// other, the block `index`.
    pub const fn part(self, of: &'static [Dim], index: &'static [usize]) -> Self {
        self.repeated(Dim::One, of, index)
    }

    /// As [`part`](Self::part), where the sequence of blocks occurs several times.
    pub const fn repeated(self, times: Dim, of: &'static [Dim], pick: &'static [usize]) -> Self {
        Self { part: Part { times, of, pick }, ..self }
    }

    /// The same tensor, changed on the way.
    pub const fn fold(self, fold: Fold) -> Self {
        Self { fold, ..self }
    }
}

/// Which rows of a checkpoint's tensor make up a declared one. Rows are `times` repetitions of blocks with
/// the sizes `of`; from each repetition the blocks `pick` are taken, in that order. The whole tensor where
/// `of` is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Repetitions.
    pub times: Dim,
    /// Rows of each block.
    pub of: &'static [Dim],
    /// Which blocks are taken.
    pub pick: &'static [usize],
}

impl Part {
    const WHOLE: Part = Part { times: Dim::One, of: &[], pick: &[] };

    /// Rows of the checkpoint's tensor, and the ranges that are taken; `rows` is what a whole tensor has.
    pub fn spans(&self, config: &Config, rows: usize) -> (usize, Vec<Range<usize>>) {
        if self.of.is_empty() {
            return (rows, std::iter::once(0..rows).collect());
        }
        let sizes: Vec<usize> = self.of.iter().map(|dim| dim.of(config)).collect();
        let (times, whole) = (self.times.of(config), sizes.iter().sum::<usize>());
        let mut spans: Vec<Range<usize>> = Vec::new();
        for repetition in 0..times {
            for &block in self.pick {
                let from = repetition * whole + sizes[..block].iter().sum::<usize>();
                let to = from + sizes[block];
                match spans.last_mut() {
                    Some(last) if last.end == from => last.end = to,
                    _ => spans.push(from..to),
                }
            }
        }
        (times * whole, spans)
    }
}

/// A matrix that is always there and may be stored in as few as two bits.
pub const fn matrix(role: Role, hf: &'static str, rows: Dim, cols: Dim) -> Decl {
    let (part, fold) = (Part::WHOLE, Fold::None);
    Decl { role, hf, shape: Shape::Matrix(rows, cols), part, fold, when: When::Always, floor: NumFormat::Q2 }
}

/// A vector that is always there. Norms and biases are small and everything passes through them, so
/// they are kept in f32.
pub const fn vector(role: Role, hf: &'static str, dim: Dim) -> Decl {
    let (part, fold) = (Part::WHOLE, Fold::None);
    Decl { role, hf, shape: Shape::Vector(dim), part, fold, when: When::Always, floor: NumFormat::F32 }
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
    /// 1.
    One,
    /// Width of the hidden state.
    Hidden,
    /// Width between the two halves of the feed-forward block.
    Inner,
    /// Vocabulary.
    Vocab,
    /// Query heads.
    Heads,
    /// Key/value heads.
    KvHeads,
    /// One head of queries or keys.
    HeadDim,
    /// All query heads side by side.
    Query,
    /// All key heads side by side.
    Key,
    /// All value heads side by side.
    Value,
    /// The query heads that share a key/value head, side by side.
    QueryGroup,
    /// What the attention gives before its output projection: a value head for each query head.
    Attended,
    /// One value head.
    ValueDim,
    /// The numbers of a head that turn.
    Turning,
    /// The numbers of a head that do not.
    Still,
    /// The keys' still numbers of all heads side by side.
    KeyStill,
    /// What queries are made of: the hidden state, or their latent.
    QueryInput,
    /// The latent of queries.
    QueryLatent,
    /// The latent of keys and values.
    KvLatent,
    /// Experts.
    Experts,
    /// Width between the two halves of an expert.
    ExpertInner,
    /// Width between the two halves of the expert that every token goes through.
    SharedInner,
}

impl Dim {
    /// Its size in a configuration; 0 where a configuration has no such thing.
    pub fn of(self, config: &Config) -> usize {
        let (moe, latent) = (config.moe.as_ref(), config.latent);
        let turning = config.rotary.dim;
        match self {
            Self::One => 1,
            Self::Hidden => config.hidden,
            Self::Inner => config.inner,
            Self::Vocab => config.vocab,
            Self::Heads => config.heads,
            Self::KvHeads => config.kv_heads,
            Self::HeadDim => config.head_dim,
            Self::Query => config.query_dim(),
            Self::Key => config.key_dim(),
            Self::Value => config.kv_heads * config.value_dim,
            Self::QueryGroup => config.heads / config.kv_heads.max(1) * config.head_dim,
            Self::Attended => config.heads * config.value_dim,
            Self::ValueDim => config.value_dim,
            Self::Turning => turning,
            Self::Still => config.head_dim - turning,
            Self::KeyStill => config.kv_heads * (config.head_dim - turning),
            Self::QueryInput => latent.and_then(|latent| latent.query).unwrap_or(config.hidden),
            Self::QueryLatent => latent.and_then(|latent| latent.query).unwrap_or(0),
            Self::KvLatent => latent.map_or(0, |latent| latent.kv),
            Self::Experts => moe.map_or(0, |moe| moe.experts),
            Self::ExpertInner => moe.map_or(0, |moe| moe.inner),
            Self::SharedInner => moe.map_or(0, |moe| moe.shared),
        }
    }
}

/// When a declared tensor exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In every model of the family.
    Always,
    /// Where queries, keys and values have biases.
    QkvBias,
    /// Where the attention's output has one.
    OutBias,
    /// Where the projections of the feed-forward block have biases.
    MlpBias,
    /// In layers with one feed-forward block.
    Dense,
    /// In layers with experts.
    Sparse,
    /// In layers with experts, where there is one that every token goes through.
    Shared,
    /// Where queries come from a latent.
    QueryLatent,
    /// Where they come from the hidden state, in a family where others do not.
    PlainQuery,
    /// Where the head has a matrix of its own instead of the embedding's.
    Untied,
    /// As [`Untied`](Self::Untied), where the head's rows are normalised.
    NormalisedHead,
    /// As [`Untied`](Self::Untied), where they are not.
    PlainHead,
}

impl When {
    /// Whether it holds for a configuration; `layer` is the layer's number, of no meaning outside of one.
    pub fn holds(self, config: &Config, layer: usize) -> bool {
        let sparse = || config.moe.as_ref().is_some_and(|moe| moe.is_sparse(layer));
        match self {
            Self::Always => true,
            Self::QkvBias => config.qkv_bias,
            Self::OutBias => config.out_bias,
            Self::MlpBias => config.mlp_bias,
            Self::Dense => !sparse(),
            Self::Sparse => sparse(),
            Self::Shared => sparse() && config.moe.as_ref().is_some_and(|moe| moe.shared > 0),
            Self::QueryLatent => config.latent.is_some_and(|latent| latent.query.is_some()),
            Self::PlainQuery => config.latent.is_some_and(|latent| latent.query.is_none()),
            Self::Untied => !config.tied,
            Self::NormalisedHead => !config.tied && config.head_normalised,
            Self::PlainHead => !config.tied && !config.head_normalised,
        }
    }
}
