//! The part of `config.json` that speaks of experts.

use super::{MOST_EXPERTS, MOST_INNER, MOST_LAYERS, flag};
use crate::Result;
use crate::arch::{Arch, MoeNames, Sparse};
use crate::field::Fields;

/// Far more than any published model has (DeepSeek-V3: 14,848).
const MOST_UNITS: usize = 1 << 18;

/// Experts: several feed-forward blocks in a layer, of which each token goes through a few.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// Experts of a layer.
    pub experts: usize,
    /// How many each token goes through.
    pub top_k: usize,
    /// Width between the two halves of an expert.
    pub inner: usize,
    /// The width of the expert that every token goes through; 0 where there is none.
    pub shared: usize,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalise: bool,
    /// What the weights of the chosen are multiplied by.
    pub scale: f32,
    /// Whether scores are sigmoids instead of a softmax.
    pub sigmoid: bool,
    /// Groups that experts are in, and how many of them a token may choose from.
    pub groups: (usize, usize),
    /// For each layer, whether it has experts.
    pub sparse: Vec<bool>,
}

impl Moe {
    /// Whether a layer has experts.
    pub fn is_sparse(&self, layer: usize) -> bool {
        self.sparse.get(layer).copied().unwrap_or(false)
    }
}

pub(super) fn read(fields: &Fields<'_>, arch: &Arch, layers: usize) -> Result<Option<Moe>> {
    let Some(names) = &arch.traits.moe else { return Ok(None) };
    let experts = fields.needed_size(names.experts, MOST_EXPERTS)?;
    if experts * layers > MOST_UNITS {
        let expected = format!("at most {MOST_UNITS} experts in all {layers} layers together");
        return Err(fields.refuse(names.experts, expected));
    }
    let top_k = fields.needed_size("num_experts_per_tok", experts)?;
    let inner = fields.needed_size(names.inner, MOST_INNER)?;
    let shared = match names.shared {
        None => 0,
        Some(name) => {
            let size = fields.whole(name, MOST_INNER)?.unwrap_or(0);
            if name == "n_shared_experts" { size.saturating_mul(inner).min(MOST_INNER) } else { size }
        }
    };
    let mut moe = Moe {
        experts,
        top_k,
        inner,
        shared,
        normalise: flag(fields, names.normalise)?,
        scale: 1.0,
        sigmoid: names.sigmoid,
        groups: (1, 1),
        sparse: sparse(fields, names, layers)?,
    };
    if names.sigmoid {
        grouped(fields, &mut moe)?;
    }
    Ok(Some(moe))
}

/// What DeepSeek-V3 adds: groups, a factor, and names for how it chooses.
fn grouped(fields: &Fields<'_>, moe: &mut Moe) -> Result<()> {
    for (name, known) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if fields.text(name)?.is_some_and(|found| found != known) {
            return Err(fields.refuse(name, format!("{known}, the only one known here")));
        }
    }
    moe.scale = fields.number("routed_scaling_factor", 0.0, 1e6)?.unwrap_or(1.0) as f32;
    let groups = fields.size("n_group", moe.experts)?.unwrap_or(1);
    let top = fields.size("topk_group", groups)?.unwrap_or(1);
    if !moe.experts.is_multiple_of(groups) {
        return Err(fields.refuse("n_group", format!("a divisor of the {} experts", moe.experts)));
    }
    // A group's score is the sum of its best two.
    if groups > 1 && moe.experts / groups < 2 {
        return Err(fields.refuse("n_group", "groups of at least two experts"));
    }
    if top * (moe.experts / groups) < moe.top_k {
        let expected = format!("groups with at least {} experts together", moe.top_k);
        return Err(fields.refuse("topk_group", expected));
    }
    moe.groups = (groups, top);
    Ok(())
}

fn sparse(fields: &Fields<'_>, names: &MoeNames, layers: usize) -> Result<Vec<bool>> {
    match names.sparse {
        Sparse::All => Ok(vec![true; layers]),
        Sparse::Step => {
            let step = fields.size("decoder_sparse_step", MOST_LAYERS)?.unwrap_or(1);
            let dense = fields.ids("mlp_only_layers")?.unwrap_or_default();
            let is = |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as u32));
            Ok((0..layers).map(is).collect())
        }
        Sparse::AfterFirst => {
            let first = fields.whole("first_k_dense_replace", MOST_LAYERS)?.unwrap_or(0);
            let every = fields.size("moe_layer_freq", MOST_LAYERS)?.unwrap_or(1);
            Ok((0..layers).map(|layer| layer >= first && layer.is_multiple_of(every)).collect())
        }
    }
}
