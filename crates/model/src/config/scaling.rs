//! The rotary part of `config.json`, in its old and its new spelling.
//!
//! Old: `rope_theta` at the top and `rope_scaling: {type | rope_type, factor, …}` or null. New:
//! `rope_parameters: {rope_theta, rope_type, factor, …}`. Reading only one of them would give wrong
//! logits, not an error.

use super::MOST_POSITIONS;
use super::attention::Heads;
use crate::arch::{Arch, RopeExtra};
use crate::field::Fields;
use crate::rope::{Rotary, Scaling};
use crate::{Error, Result};
use serde_json::{Map, Value};

/// Largest factors and bases that still leave every frequency a positive f32.
const MOST_FACTOR: f64 = 1e6;
const MOST_THETA: f64 = 1e15;

const KNOWN: &str = "default, linear, dynamic, yarn, longrope or llama3";

/// The rotary embedding of a model's heads.
pub(super) fn rotary(top: &Fields<'_>, arch: &Arch, heads: &Heads, max_positions: usize) -> Result<Rotary> {
    let empty = Map::new();
    let mut inner = Fields::new(&empty, "");
    for (name, at) in [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")] {
        // The library takes `rope_scaling` where both are there.
        match top.object(name)? {
            Some(map) if !map.is_empty() => inner = Fields::new(of_kind(map, "full_attention"), at),
            _ => {}
        }
    }

    let base = arch.fields.theta;
    let mut theta = match inner.number("rope_theta", 1.0, MOST_THETA)? {
        Some(theta) => theta,
        None => top.number(base, 1.0, MOST_THETA)?.unwrap_or(arch.defaults.rope_theta),
    };
    let dim = turning(top, &inner, arch, heads)?;
    let mut scaling = Reader { top, inner: &inner, max_positions }.scaling(dim)?;
    match arch.traits.rope_extra {
        RopeExtra::Ratio => {
            let ratio = top.number("rope_ratio", 0.0, MOST_FACTOR)?.unwrap_or(1.0);
            // The second generation divides positions, later ones multiply the base; the name is all that
            // tells them apart.
            match top.text("_name_or_path")? {
                Some(name) if name.to_ascii_lowercase().contains("chatglm2") && ratio != 1.0 => {
                    scaling = Scaling::Linear { factor: ratio };
                }
                _ => theta *= ratio,
            }
        }
        RopeExtra::QwenNtk if top.flag("use_dynamic_ntk")?.unwrap_or(false) => {
            if dim < 4 {
                return Err(
                    top.refuse("use_dynamic_ntk", "false, as heads of two numbers have no such scaling")
                );
            }
            scaling = Scaling::PromptNtk { limit: top.needed_size("seq_length", MOST_POSITIONS)? };
        }
        _ => {}
    }
    let rotary = Rotary { theta, dim, scaling };
    // The extremes of fields that are fine one by one may still meet in something that is not a number.
    for len in [0, max_positions, MOST_POSITIONS] {
        let sane = |f: &f32| f.is_finite() && *f >= 0.0;
        if !rotary.inv_freq(len).iter().all(sane) {
            return Err(inner
                .refuse("factor", format!("a scaling with finite frequencies, not {:?}", rotary.scaling)));
        }
    }
    Ok(rotary)
}

/// The rotary embedding of layers with a window, where it has a base of its own.
pub(super) fn local(top: &Fields<'_>, heads: &Heads) -> Result<Rotary> {
    let kinds = top.object("rope_parameters")?.filter(|map| map.contains_key("sliding_attention"));
    let theta = match kinds {
        Some(map) => Fields::new(of_kind(map, "sliding_attention"), "rope_parameters.sliding_attention.")
            .number("rope_theta", 1.0, MOST_THETA)?,
        None => top.number("rope_local_base_freq", 1.0, MOST_THETA)?,
    };
    Ok(Rotary { theta: theta.unwrap_or(10_000.0), dim: heads.head_dim, scaling: Scaling::None })
}

/// The settings for one kind of layer, where there are settings for each kind.
fn of_kind<'a>(map: &'a Map<String, Value>, kind: &str) -> &'a Map<String, Value> {
    map.get(kind).and_then(Value::as_object).unwrap_or(map)
}

/// How many numbers of a head turn.
fn turning(top: &Fields<'_>, inner: &Fields<'_>, arch: &Arch, heads: &Heads) -> Result<usize> {
    if let Some(latent) = heads.latent {
        return Ok(latent.turning);
    }
    let name = arch.fields.rotary_share;
    let mut share = arch.traits.rotary_share;
    for fields in [top, inner] {
        share = fields.number(name, 0.0, 1.0)?.unwrap_or(share);
    }
    let dim = (heads.head_dim as f64 * share) as usize;
    if dim == 0 || !dim.is_multiple_of(2) {
        let expected =
            format!("a share of which a head of {} numbers has an even number, not {dim}", heads.head_dim);
        return Err(top.refuse(name, expected));
    }
    Ok(dim)
}

struct Reader<'a> {
    top: &'a Fields<'a>,
    inner: &'a Fields<'a>,
    max_positions: usize,
}

impl Reader<'_> {
    fn scaling(&self, head_dim: usize) -> Result<Scaling> {
        let inner = self.inner;
        let (name, kind) = match inner.text("rope_type")? {
            Some(kind) => ("rope_type", kind),
            None => ("type", inner.text("type")?.unwrap_or("default")),
        };
        let factor = || inner.needed_number("factor", 0.0, MOST_FACTOR);
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: factor()? }),
            "dynamic" if head_dim < 4 => {
                Err(inner.refuse(name, "a scaling that works with head_dim 2, which dynamic does not"))
            }
            "dynamic" => Ok(Scaling::Dynamic { factor: factor()?, limit: self.max_positions }),
            "yarn" => self.yarn(),
            "longrope" | "su" => self.longrope(head_dim),
            // Files of other programs list the divisors one by one.
            "factors" => Ok(Scaling::Factors { factors: self.factors("factors", head_dim)? }),
            "llama3" => {
                let low_freq = inner.needed_number("low_freq_factor", 0.0, MOST_FACTOR)?;
                let high_freq = inner.needed_number("high_freq_factor", 0.0, MOST_FACTOR)?;
                if high_freq <= low_freq {
                    let expected = format!("more than low_freq_factor, which is {low_freq}");
                    return Err(inner.refuse("high_freq_factor", expected));
                }
                let original = self.original()?;
                Ok(Scaling::Llama3 { factor: factor()?, low_freq, high_freq, original })
            }
            _ => Err(inner.refuse(name, KNOWN)),
        }
    }

    fn yarn(&self) -> Result<Scaling> {
        let inner = self.inner;
        let original = self.original()?;
        let factor = match inner.number("factor", 0.0, MOST_FACTOR)? {
            Some(factor) => factor,
            None => self.max_positions as f64 / original as f64,
        };
        let beta_fast = inner.number_or_unset("beta_fast", MOST_FACTOR)?.unwrap_or(32.0);
        let beta_slow = inner.number_or_unset("beta_slow", MOST_FACTOR)?.unwrap_or(1.0);
        if beta_fast < beta_slow {
            let expected = format!("at least beta_slow, which is {beta_slow}");
            return Err(inner.refuse("beta_fast", expected));
        }
        let mscale = inner.number_or_unset("mscale", MOST_FACTOR)?;
        let mscale_all_dim = inner.number_or_unset("mscale_all_dim", MOST_FACTOR)?;
        let attention_factor = match inner.number("attention_factor", 0.0, MOST_FACTOR)? {
            Some(factor) => factor,
            None => match (mscale, mscale_all_dim) {
                (Some(over), Some(under)) => magnitude(factor, over) / magnitude(factor, under),
                _ => magnitude(factor, 1.0),
            },
        };
        let truncate = inner.flag("truncate")?.unwrap_or(true);
        Ok(Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor })
    }

    fn longrope(&self, head_dim: usize) -> Result<Scaling> {
        let inner = self.inner;
        for name in ["short_mscale", "long_mscale"] {
            if inner.get(name).is_some() {
                return Err(inner.refuse(name, "nothing, as scales of that kind are not known here"));
            }
        }
        let original = self.original()?;
        let attention_factor = match inner.number("attention_factor", 0.0, MOST_FACTOR)? {
            Some(factor) => factor,
            None => {
                let stretch = self.max_positions as f64 / original as f64;
                if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() }
            }
        };
        if !attention_factor.is_finite() {
            return Err(inner.refuse("attention_factor", "a number, as the original context of 1 gives none"));
        }
        let short = self.factors("short_factor", head_dim)?;
        let long = self.factors("long_factor", head_dim)?;
        Ok(Scaling::Long { short, long, original, attention_factor })
    }

    /// A divisor for each frequency.
    fn factors(&self, name: &str, dim: usize) -> Result<Vec<f64>> {
        let list = self.inner.numbers(name, MOST_FACTOR)?.filter(|list| list.len() == dim / 2);
        list.ok_or_else(|| self.inner.refuse(name, format!("{} numbers, one for each frequency", dim / 2)))
    }

    /// The context of the first training. A value at the top of the file goes before one beside the
    /// factor; without either it is the whole context.
    fn original(&self) -> Result<usize, Error> {
        const NAME: &str = "original_max_position_embeddings";
        if let Some(original) = self.top.size(NAME, MOST_POSITIONS)? {
            return Ok(original);
        }
        Ok(self.inner.size(NAME, MOST_POSITIONS)?.unwrap_or(self.max_positions))
    }
}

/// YaRN's growth of attention scores with the stretch of the context.
fn magnitude(stretch: f64, scale: f64) -> f64 {
    if stretch <= 1.0 { 1.0 } else { 0.1 * scale * stretch.ln() + 1.0 }
}
