//! What rounding its matrices does to a model, as it was measured, and what follows from it for other widths.
//!
//! Only numbers that somebody measured are stored; how they are scaled to other widths and added up is code
//! here, so that a manifest written today can be read with better rules tomorrow.

#[cfg(test)]
pub(super) mod tests;

use super::check::is_hex128;
use crate::NumFormat;
use crate::shard::Geometry;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What rounding does to a model, measured on calibration text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// The text it was measured on.
    pub calibration: Calibration,
    /// What one width of all matrices did, beside the sum of what the same width did to each alone; sums
    /// ascending. May be empty.
    pub together: Vec<Together>,
    /// The matrices, in the order of the units.
    pub tensors: Vec<TensorSensitivity>,
}

/// The text that a sensitivity was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// "built-in", or the name of its file.
    pub name: String,
    /// `xxh3_128` of its tokens, 32 hexadecimal digits.
    pub xxh3: String,
    /// Its tokens.
    pub tokens: u64,
    /// The windows it was read in.
    pub windows: u64,
    /// Tokens of a window.
    pub context: u64,
}

/// How far divergences add up: that of all matrices rounded at once beside the sum of their own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Together {
    /// What all matrices were rounded to, as far as their floors let them.
    pub format: NumFormat,
    /// The sum of the tensors' own [losses](TensorSensitivity::loss) there, in nats per token.
    pub sum: f64,
    /// The mean KL divergence that was measured, in nats per token.
    pub measured: f64,
}

/// What rounding does to one matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSensitivity {
    /// Its unit: "embed", "layer.3", "layer.3.expert.2" or "head".
    pub unit: String,
    /// Its name in its shard: its role ("q"), of an expert with the expert before it ("expert.2.gate").
    pub name: String,
    /// `[rows, cols]`, in numbers.
    pub shape: Vec<usize>,
    /// It is never stored narrower than this.
    pub floor: NumFormat,
    /// Mean KL divergence from the model as it is, in nats per token, with this tensor alone rounded to
    /// [`kl_format`](Self::kl_format).
    pub kl: f64,
    /// What it was rounded to for [`kl`](Self::kl) and [`output`](Self::output), one of its widths.
    pub kl_format: NumFormat,
    /// Relative squared error in the output of its layer, with this tensor alone rounded to
    /// [`kl_format`](Self::kl_format).
    pub output: f64,
    /// What it can be stored in, widest first.
    pub widths: Vec<WidthError>,
}

/// A width that a matrix can have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WidthError {
    /// The format.
    pub format: NumFormat,
    /// Bytes of the matrix in it.
    pub bytes: u64,
    /// Relative squared error of the matrix's product with its inputs: `tr(E·H·Eᵀ) / tr(W·H·Wᵀ)`, `E` being
    /// what rounding changed and `H` the second moment of the inputs.
    pub error: f64,
}

impl TensorSensitivity {
    /// The role: the name without the expert before it.
    pub fn role(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// Its number of weights.
    pub fn weights(&self) -> u64 {
        self.shape.iter().fold(1, |product, &dim| product.saturating_mul(dim as u64))
    }

    /// What is known of a width.
    pub fn width(&self, format: NumFormat) -> Option<&WidthError> {
        self.widths.iter().find(|width| width.format == format)
    }

    /// The mean KL divergence to expect with this tensor alone in `format`, in nats per token:
    /// `kl · error(format) / error(kl_format)`.
    ///
    /// That is the second order of a Taylor series. A divergence is least, 0, where nothing is changed, so
    /// the first order vanishes and what remains is quadratic in the change, as the squared error is.
    ///
    /// `None` for a format that is not among its widths, and where there is an error but none at
    /// [`kl_format`](Self::kl_format) to compare it with.
    pub fn loss(&self, format: NumFormat) -> Option<f64> {
        let error = self.width(format)?.error;
        if error == 0.0 {
            return Some(0.0);
        }
        let measured = self.width(self.kl_format)?.error;
        (measured > 0.0).then(|| self.kl * (error / measured))
    }

    fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.starts_with("__") {
            return Err("this name is not for a weight".to_owned());
        }
        not_negative("kl", self.kl)?;
        not_negative("output", self.output)?;
        if self.width(self.kl_format).is_none() {
            return Err(format!("`kl_format` is {}, which is not among its widths", self.kl_format));
        }
        // Formats are ordered from the widest to the narrowest.
        let wrong = |pair: &&[WidthError]| pair[0].format >= pair[1].format;
        if let Some([wide, narrow]) = self.widths.windows(2).find(wrong) {
            return Err(format!(
                "{} comes after {}, expected the widest first and each once",
                narrow.format, wide.format
            ));
        }
        for width in &self.widths {
            let format = width.format;
            let geometry = Geometry::of(format, &self.shape)
                .ok_or_else(|| format!("it cannot have shape {:?} in {format}", self.shape))?;
            if width.bytes != geometry.bytes {
                return Err(format!(
                    "shape {:?} in {format} is {} bytes, the sensitivity says {}",
                    self.shape, geometry.bytes, width.bytes
                ));
            }
            not_negative(&format!("error in {format}"), width.error)?;
        }
        Ok(())
    }
}

impl Sensitivity {
    /// The mean KL divergence to expect of a model whose tensors' own losses add up to `sum`, in nats per
    /// token.
    ///
    /// Losses do not quite add up: errors meet each other in later layers, and a divergence cannot grow
    /// without end. [`together`](Self::together) says how much came of which sum; between those points both
    /// logarithms are taken to be linear, and beyond them, or with one point alone, the ratio of the nearest
    /// holds. Without any, the sum itself is expected. Never falls where `sum` grows; 0 for 0.
    pub fn expected(&self, sum: f64) -> f64 {
        match self.around(|point| point.0 < sum) {
            _ if sum <= 0.0 => 0.0,
            (None, None) => sum,
            (Some((s, m)), None) | (None, Some((s, m))) => m * (sum / s),
            (Some((s0, m0)), Some((s1, m1))) => interpolate(sum, (s0, s1), (m0, m1)),
        }
    }

    /// The other way: how much the tensors' own losses may add up to for an expected mean KL divergence of
    /// `kl` nats per token.
    pub fn sum_for(&self, kl: f64) -> f64 {
        match self.around(|point| point.1 <= kl) {
            _ if kl <= 0.0 => 0.0,
            (None, None) => kl,
            (Some((s, m)), None) | (None, Some((s, m))) => s * (kl / m),
            (Some((s0, m0)), Some((s1, m1))) => interpolate(kl, (m0, m1), (s0, s1)),
        }
    }

    /// The last of the points `(sum, measured)` for which `before` holds, and the first after it.
    ///
    /// What a larger sum was measured to do is not less than what a smaller one did, or else it was noise:
    /// the larger of both holds. Points without a logarithm are left out.
    #[expect(clippy::type_complexity, reason = "two points, here alone")]
    fn around(&self, before: impl Fn((f64, f64)) -> bool) -> (Option<(f64, f64)>, Option<(f64, f64)>) {
        let (mut below, mut highest) = (None, 0f64);
        for point in self.together.iter().filter(|point| point.sum > 0.0 && point.measured > 0.0) {
            highest = highest.max(point.measured);
            let point = (point.sum, highest);
            if !before(point) {
                return (below, Some(point));
            }
            below = Some(point);
        }
        (below, None)
    }

    /// Checks that numbers are finite and not negative, and that names, sizes and orders agree; the error says
    /// what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let Calibration { name, xxh3, tokens, windows, context } = &self.calibration;
        if name.is_empty() || !is_hex128(xxh3) {
            return Err(format!(
                "calibration text {name:?} with xxh3 {xxh3:?}: expected a name and 32 hexadecimal digits"
            ));
        }
        if *windows == 0 || *context == 0 || tokens < windows {
            return Err(format!(
                "calibration with {tokens} tokens in {windows} windows of {context}: expected at least one of each, \
                 and a token a window"
            ));
        }
        for point in &self.together {
            let format = point.format;
            not_negative(&format!("sum for all in {format}"), point.sum)?;
            not_negative(&format!("measured for all in {format}"), point.measured)?;
        }
        if let Some([low, high]) = self.together.windows(2).find(|pair| pair[0].sum > pair[1].sum) {
            return Err(format!(
                "the sum {} for all in {} comes after {}, expected ascending sums",
                high.sum, high.format, low.sum
            ));
        }
        if self.tensors.is_empty() {
            return Err("there are no tensors".to_owned());
        }
        let mut names = HashSet::new();
        for tensor in &self.tensors {
            if !is_unit(&tensor.unit) {
                return Err(format!(
                    "{:?} is not a unit: expected \"embed\", \"layer.N\", \"layer.N.expert.E\" or \"head\"",
                    tensor.unit
                ));
            }
            if !names.insert((&tensor.unit, &tensor.name)) {
                return Err(format!("`{}` of `{}` comes twice", tensor.name, tensor.unit));
            }
            tensor.check().map_err(|what| format!("`{}` of `{}`: {what}", tensor.name, tensor.unit))?;
        }
        Ok(())
    }
}

/// Where `x` lies between `x0` and `x1`, there between `y0` and `y1`, all on logarithmic scales.
fn interpolate(x: f64, (x0, x1): (f64, f64), (y0, y1): (f64, f64)) -> f64 {
    let part = (x.ln() - x0.ln()) / (x1.ln() - x0.ln());
    // The bounds hold against rounding.
    (y0.ln() + part * (y1.ln() - y0.ln())).exp().clamp(y0, y1)
}

/// Units of shards, and experts inside them.
fn is_unit(name: &str) -> bool {
    match name.split_once(".expert.") {
        None => super::check::is_unit(name),
        Some((layer, expert)) => {
            let number = |n: &str| n.parse::<u32>().is_ok_and(|number| number.to_string() == n);
            layer.strip_prefix("layer.").is_some_and(number) && number(expert)
        }
    }
}

fn not_negative(what: &str, value: f64) -> Result<(), String> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => Err(format!("{what} is {value}, expected a finite number from 0 on")),
    }
}
