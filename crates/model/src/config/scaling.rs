//! The rotary part of `config.json`, in its old and its new spelling.
//!
//! Old: `rope_theta` at the top and `rope_scaling: {type | rope_type, factor, …}` or null. New:
//! `rope_parameters: {rope_theta, rope_type, factor, …}`. Reading only one of them would give wrong
//! logits, not an error.

use super::MOST_POSITIONS;
use crate::arch::Arch;
use crate::field::Fields;
use crate::rope::{Rotary, Scaling};
use crate::{Error, Result};
use serde_json::Map;

/// Largest factors and bases that still leave every frequency a positive f32.
const MOST_FACTOR: f64 = 1e6;
const MOST_THETA: f64 = 1e15;

const KNOWN: &str = "default, linear, dynamic, yarn or llama3";

/// The rotary embedding of a head of `head_dim` numbers.
pub(super) fn rotary(top: &Fields<'_>, arch: &Arch, head_dim: usize, max_positions: usize) -> Result<Rotary> {
    let empty = Map::new();
    let mut inner = Fields::new(&empty, "");
    for (name, at) in [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")] {
        // The library takes `rope_scaling` where both are there.
        match top.object(name)? {
            Some(map) if !map.is_empty() => inner = Fields::new(map, at),
            _ => {}
        }
    }

    let theta = match inner.number("rope_theta", 1.0, MOST_THETA)? {
        Some(theta) => theta,
        None => top.number("rope_theta", 1.0, MOST_THETA)?.unwrap_or(arch.defaults.rope_theta),
    };
    for fields in [top, &inner] {
        if fields.number("partial_rotary_factor", 0.0, 1.0)?.is_some_and(|share| share != 1.0) {
            return Err(fields.refuse("partial_rotary_factor", "1, as the whole head turns"));
        }
    }

    let scaling = Reader { top, inner: &inner, max_positions }.scaling(head_dim)?;
    let rotary = Rotary { theta, dim: head_dim, scaling };
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
