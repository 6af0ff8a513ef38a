//! How far two runs are apart: their hidden states, and their distributions.

use crate::eval::Judged;
use crate::{Error, Result};

/// `Σ (a - b)² / Σ (b - base)²`.
pub(super) fn relative(a: &[f32], b: &[f32], base: Option<&[f32]>) -> f64 {
    let (mut off, mut all) = (0.0, 0.0);
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        off += f64::from(a - b).powi(2);
        all += f64::from(b - base.map_or(0.0, |base| base[i])).powi(2);
    }
    if all > 0.0 { off / all } else { 0.0 }
}

/// Divergence of each distribution of a window from the model's own, in nats.
pub(super) fn divergences(ours: &[f32], theirs: &[f32], vocab: usize, ids: &[u32]) -> Result<Vec<f64>> {
    let rows = ours.chunks_exact(vocab.max(1)).zip(theirs.chunks_exact(vocab.max(1)));
    let kl = |(ours, theirs): (&[f32], &[f32])| {
        Judged::of(ours, ids[0], Some(theirs))
            .and_then(|judged| judged.against)
            .map(|against| against.kl.max(0.0))
    };
    rows.map(kl).collect::<Option<_>>().ok_or_else(|| Error::Input {
        what: "calibrating: a logit is no finite number: the weights or the arithmetic are broken".to_owned(),
    })
}
