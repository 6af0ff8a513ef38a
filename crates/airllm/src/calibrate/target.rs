//! How small a model shall be, and the format of each matrix that follows.

use super::Formats;
use crate::lift::UnitPlan;
use crate::{Error, Result, Size};
use airllm_format::shard::{ShardTag, TensorSpec, file_bytes};
use airllm_format::{Bits, NumFormat, Sensitivity};
use airllm_quant::select::{Choice, Frontier, SelectError, Selection, frontier};
use std::collections::BTreeMap;
use std::fmt;

/// How matrices are stored: one format for all, or for each what it needs, within some limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// The same format for every matrix, as far as its floor lets it.
    Uniform(Bits),
    /// So many bits a weight on average, scales and everything that is not rounded included.
    Average(f64),
    /// Shards of no more than so many bytes in all.
    Size(u64),
    /// The fewest bytes whose expected mean KL divergence from the checkpoint is no more than this, in nats a token.
    Quality(f64),
}

impl Target {
    /// Its name in manifests: "3.7bits", "2000000000bytes", "kl0.01". `None` for one format.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Uniform(_) => None,
            Self::Average(bits) => Some(format!("{bits}bits")),
            Self::Size(bytes) => Some(format!("{bytes}bytes")),
            Self::Quality(kl) => Some(format!("kl{kl}")),
        }
    }

    /// The format of all matrices, or [`Bits::Mixed`].
    pub fn bits(&self) -> Bits {
        match self {
            Self::Uniform(bits) => *bits,
            _ => Bits::Mixed,
        }
    }

    /// Refuses numbers that are no target.
    pub fn check(&self) -> Result<()> {
        let what = match *self {
            Self::Average(bits) if !(bits > 0.0 && bits <= 16.0) => {
                format!("{bits} bits a weight: expected a number between 2 and 16")
            }
            Self::Quality(kl) if !(kl > 0.0 && kl.is_finite()) => {
                format!("a KL divergence of {kl}: expected nats a token above 0, such as 0.01")
            }
            _ => return Ok(()),
        };
        Err(Error::Argument { what })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(bits) => f.write_str(bits.name()),
            Self::Average(bits) => write!(f, "{bits} bits a weight"),
            Self::Size(bytes) => write!(f, "{}", Size(*bytes)),
            Self::Quality(kl) => write!(f, "a KL divergence of {kl}"),
        }
    }
}

/// The format of each matrix, and what is to be expected of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Widths {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of all shards.
    pub file_bytes: u64,
    /// Weights, all tensors counted.
    pub weights: u64,
    /// Expected mean KL divergence from the checkpoint, in nats a token.
    pub kl: f64,
    /// Weights by format, widest first.
    pub formats: Vec<(NumFormat, u64)>,
    /// The format of every matrix that was chosen, by unit and name in its shard.
    pub(crate) chosen: Formats,
}

impl Widths {
    /// The format that was chosen for a matrix, by the names of its unit and its role; `None` for what keeps its own.
    pub fn format(&self, unit: &str, role: &str) -> Option<NumFormat> {
        let expert = unit.split_once(".expert.").map(|(_, number)| format!("expert.{number}.{role}"));
        self.chosen.get(&(unit.to_owned(), expert.unwrap_or_else(|| role.to_owned()))).copied()
    }

    /// Bits of a weight on average.
    pub fn bits(&self) -> f64 {
        if self.weights == 0 { 0.0 } else { 8.0 * self.bytes as f64 / self.weights as f64 }
    }
}

/// Gives tensors the formats that were chosen for them.
pub(crate) fn apply(units: &mut [UnitPlan], formats: &Formats) {
    if formats.is_empty() {
        return;
    }
    for unit in units {
        for plan in &mut unit.tensors {
            if let Some(format) = formats.get(&(unit.name.clone(), plan.entry.clone())) {
                plan.to = *format;
            }
        }
    }
}

/// Chooses the format of every matrix. `units` are those of the checkpoint at its own precision, `tag` what their
/// shards will be marked with.
///
/// # Errors
/// A limit that nothing reaches, with the best that can be reached.
pub(crate) fn choose(
    units: &[UnitPlan],
    sensitivity: &Sensitivity,
    target: Target,
    tag: &dyn Fn(&str) -> ShardTag,
) -> Result<Widths> {
    target.check()?;
    let choices: Vec<Vec<Choice>> = sensitivity
        .tensors
        .iter()
        .map(|tensor| {
            let choice = |width: &airllm_format::WidthError| {
                Some(Choice { format: width.format, bytes: width.bytes, loss: tensor.loss(width.format)? })
            };
            tensor.widths.iter().filter_map(choice).collect()
        })
        .collect();
    let wrong = |error: SelectError| Error::Input { what: format!("choosing widths: {error}") };
    let best = frontier(&choices).map_err(wrong)?;
    let named = |selection: &Selection| -> Formats {
        let pairs = sensitivity.tensors.iter().zip(&choices).zip(&selection.choices);
        pairs.map(|((t, choices), at)| ((t.unit.clone(), t.name.clone()), choices[*at].format)).collect()
    };
    let of =
        |selection: &Selection| widths(units, named(selection), sensitivity.expected(selection.loss), tag);
    let least = |best: &Frontier| best.within(u64::MAX).map_err(wrong);
    // What no choice changes.
    let fixed = {
        let any = of(&least(&best)?)?;
        let chosen = least(&best)?.bytes;
        (any.bytes - chosen, any.weights)
    };
    match target {
        Target::Uniform(_) | Target::Average(_) => {
            let bits = if let Target::Average(bits) = target { bits } else { 16.0 };
            let budget = (bits / 8.0 * fixed.1 as f64).floor() as u64;
            let inside = budget.checked_sub(fixed.0).ok_or(0);
            match inside.map(|budget| best.within(budget)) {
                Ok(Ok(selection)) => of(&selection),
                _ => {
                    let smallest = of(&smallest(&best).map_err(wrong)?)?;
                    Err(refused(target, &format!("{:.2} bits a weight", least_bits(&smallest))))
                }
            }
        }
        Target::Size(size) => {
            let mut budget = size.saturating_sub(fixed.0);
            loop {
                let Ok(selection) = best.within(budget) else {
                    let smallest = of(&smallest(&best).map_err(wrong)?)?;
                    // What was left for the headers of wider ones may be too much for those of the smallest.
                    if smallest.file_bytes <= size {
                        return Ok(smallest);
                    }
                    let bytes = smallest.file_bytes;
                    return Err(refused(target, &format!("{} ({bytes} bytes)", Size(bytes))));
                };
                let widths = of(&selection)?;
                match widths.file_bytes.checked_sub(size) {
                    None | Some(0) => return Ok(widths),
                    // Headers, checksums and padding: the next try leaves room for them.
                    Some(over) => budget = selection.bytes.min(budget).saturating_sub(over.max(1)),
                }
            }
        }
        Target::Quality(kl) => {
            let sum = sensitivity.sum_for(kl);
            let selection = best.reaching(sum).or_else(|_| best.within(u64::MAX)).map_err(wrong)?;
            let widths = of(&selection)?;
            if widths.kl > kl * (1.0 + 1e-9) {
                // Rounded up, so that it can be asked for.
                return Err(refused(target, &format!("{:.2e}", widths.kl * 1.01)));
            }
            Ok(widths)
        }
    }
}

/// Bits that are enough for the smallest choice, rounded up to two digits.
fn least_bits(smallest: &Widths) -> f64 {
    (smallest.bits() * 100.0).ceil() / 100.0
}

fn smallest(best: &Frontier) -> Result<Selection, SelectError> {
    best.reaching(f64::INFINITY)
}

fn refused(target: Target, best: &str) -> Error {
    let what = format!(
        "{target}: no choice of widths reaches that, since no matrix is stored narrower than its floor; the least \
         possible is {best}"
    );
    Error::Argument { what }
}

/// What a model is whose matrices have these formats.
pub(crate) fn widths(
    units: &[UnitPlan],
    chosen: Formats,
    kl: f64,
    tag: &dyn Fn(&str) -> ShardTag,
) -> Result<Widths> {
    let mut units = units.to_vec();
    apply(&mut units, &chosen);
    let (mut bytes, mut weights) = (0, 0);
    let mut formats: BTreeMap<NumFormat, u64> = BTreeMap::new();
    for plan in units.iter().flat_map(|unit| &unit.tensors) {
        let count: u64 = plan.decl.shape.iter().map(|&n| n as u64).product();
        bytes += plan.bytes();
        weights += count;
        *formats.entry(plan.to).or_default() += count;
    }
    let mut files = 0;
    for shard in crate::lift::shards(units) {
        let specs: Vec<TensorSpec> = shard.specs();
        files += file_bytes(&tag(&shard.name), &specs)?;
    }
    Ok(Widths { bytes, file_bytes: files, weights, kl, formats: formats.into_iter().collect(), chosen })
}
