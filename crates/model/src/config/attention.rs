//! The attention's part of `config.json`: heads, windows, scales.

use super::{MOST_HEAD_DIM, MOST_HEADS, MOST_HIDDEN, MOST_POSITIONS, MOST_WIDTH, flag};
use crate::arch::{Arch, Flag, RopeExtra, Windows};
use crate::field::Fields;
use crate::{Error, Result};

/// The latent from which keys and values are made, for all heads one (multi-head latent attention;
/// DeepSeek-AI, "DeepSeek-V2", 2024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Width of the latent of queries, where they have one.
    pub query: Option<usize>,
    /// Width of the latent of keys and values.
    pub kv: usize,
    /// Numbers of a head that turn; the others do not.
    pub turning: usize,
}

/// The shape of the attention.
pub(super) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub latent: Option<Latent>,
}

impl Heads {
    pub fn read(fields: &Fields<'_>, arch: &Arch, hidden: usize) -> Result<Heads> {
        let heads = fields.needed_size("num_attention_heads", MOST_HEADS)?;
        if arch.traits.latent {
            return Heads::latent(fields, heads);
        }
        let name = arch.fields.kv_heads;
        let grouped = match arch.fields.kv_heads_if {
            Some(name) => fields.flag(name)?.unwrap_or(false),
            None => true,
        };
        let kv_heads = fields.size(name, MOST_HEADS)?.filter(|_| grouped).unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, which is {heads}");
            return Err(fields.refuse(name, expected));
        }
        let head_dim = head_dim(fields, arch.fields.head_dim, hidden, heads)?;
        Ok(Heads { heads, kv_heads, head_dim, value_dim: head_dim, latent: None })
    }

    fn latent(fields: &Fields<'_>, heads: usize) -> Result<Heads> {
        if fields.size("num_key_value_heads", MOST_HEADS)?.is_some_and(|kv_heads| kv_heads != heads) {
            return Err(fields.refuse("num_key_value_heads", format!("as many as query heads, {heads}")));
        }
        let turning = fields.needed_size("qk_rope_head_dim", MOST_HEAD_DIM)?;
        let still = fields.needed_size("qk_nope_head_dim", MOST_HEAD_DIM)?;
        let value_dim = fields.needed_size("v_head_dim", MOST_HEAD_DIM)?;
        let kv = fields.needed_size("kv_lora_rank", MOST_HIDDEN)?;
        let query = fields.size("q_lora_rank", MOST_HIDDEN)?;
        if !turning.is_multiple_of(2) {
            return Err(fields.refuse("qk_rope_head_dim", "an even number, as rotary embedding turns pairs"));
        }
        if heads * (turning + still).max(value_dim) > MOST_WIDTH {
            return Err(
                fields.refuse("num_attention_heads", format!("at most {MOST_WIDTH} numbers in all heads"))
            );
        }
        let latent = Some(Latent { query, kv, turning });
        Ok(Heads { heads, kv_heads: heads, head_dim: turning + still, value_dim, latent })
    }
}

fn head_dim(fields: &Fields<'_>, name: &'static str, hidden: usize, heads: usize) -> Result<usize> {
    let (head_dim, field) = match fields.size(name, MOST_HEAD_DIM)? {
        Some(head_dim) => (head_dim, name),
        None if hidden.is_multiple_of(heads) => (hidden / heads, "hidden_size"),
        None => {
            let expected =
                format!("a multiple of num_attention_heads, which is {heads}, as there is no {name}");
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

/// For each layer the positions that it sees; 0 for all.
pub(super) fn windows(fields: &Fields<'_>, arch: &Arch, layers: usize) -> Result<Vec<usize>> {
    let kind = arch.traits.windows;
    let full = vec![0; layers];
    if kind == Windows::Never {
        return Ok(full);
    }
    let used = kind != Windows::Flagged || fields.flag("use_sliding_window")?.unwrap_or(false);
    let Some(window) = fields.size("sliding_window", MOST_POSITIONS)?.filter(|_| used) else {
        return Ok(full);
    };
    let some = |has: &dyn Fn(usize) -> bool| (0..layers).map(|i| if has(i) { window } else { 0 }).collect();
    if let Some(list) = fields.get("layer_types") {
        let expected =
            || fields.refuse("layer_types", format!("{layers} times sliding_attention or full_attention"));
        let list = list.as_array().filter(|list| list.len() == layers).ok_or_else(expected)?;
        let one = |value: &serde_json::Value| match value.as_str() {
            Some("sliding_attention") => Ok(window),
            Some("full_attention") => Ok(0),
            _ => Err(expected()),
        };
        return list.iter().map(one).collect();
    }
    Ok(match kind {
        Windows::Never => full,
        Windows::All => some(&|_| true),
        Windows::Flagged => {
            // Absent, it is 28 in the library, whatever the number of layers.
            let first = fields.whole("max_window_layers", layers.max(1 << 14))?.unwrap_or(28);
            some(&|layer| layer >= first)
        }
        Windows::Alternate => some(&|layer| layer.is_multiple_of(2)),
        Windows::Pattern => {
            let pattern = fields.size("sliding_window_pattern", 1 << 14)?.unwrap_or(6);
            some(&|layer| !(layer + 1).is_multiple_of(pattern))
        }
    })
}

/// What products of query and key are multiplied by.
pub(super) fn score_scale(fields: &Fields<'_>, arch: &Arch, heads: &Heads) -> Result<f32> {
    let head_dim = heads.head_dim as f64;
    let size = match arch.traits.query_scale {
        Some(name) => fields.number(name, 0.0, 1e9)?.unwrap_or(256.0),
        None => head_dim,
    };
    let mut scale = 1.0 / size.sqrt();
    if arch.traits.latent
        && let Some(map) = fields.object("rope_scaling")?
    {
        // YaRN's growth of scores, which other families put into cosine and sine.
        let inner = Fields::new(map, "rope_scaling.");
        let all = inner.number_or_unset("mscale_all_dim", 1e6)?.unwrap_or(0.0);
        let factor = inner.number("factor", 0.0, 1e6)?.unwrap_or(1.0);
        if all > 0.0 && factor > 1.0 {
            scale *= (0.1 * all * factor.ln() + 1.0).powi(2);
        }
    }
    Ok(scale as f32)
}

/// The length beyond which queries are scaled by the logarithm of their position.
pub(super) fn log_n(fields: &Fields<'_>, arch: &Arch) -> Result<Option<usize>, Error> {
    if arch.traits.rope_extra != RopeExtra::QwenNtk || !flag(fields, Flag::Any(&["use_logn_attn"]))? {
        return Ok(None);
    }
    match fields.needed_size("seq_length", MOST_POSITIONS)? {
        1 => Err(fields.refuse("seq_length", "more than 1, as it is the base of a logarithm")),
        length => Ok(Some(length)),
    }
}
