//! Rotary position embedding: frequencies, their scaling to longer contexts, and the tables of a pass.
//!
//! The numbers follow the transformers library step by step, in the precision it uses at each step:
//! inverse frequencies are f32, an angle is the f32 product of position and frequency. At large
//! positions the rounding of that product is part of what a model was trained and measured with.
//!
//! Su et al., "RoFormer", 2021. The scalings: linear (kaiokendev; Chen et al. 2023), dynamic NTK
//! (bloc97, emozilla), YaRN (Peng et al. 2023), and the one of Llama 3.1.

/// The rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How many of a head's first numbers turn; even.
    pub dim: usize,
    /// How the frequencies are stretched.
    pub scaling: Scaling,
}

/// How rotary frequencies are stretched to contexts longer than those a model was first trained on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Scaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A base that grows with the length once it passes `limit`.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// The length up to which nothing changes (`max_position_embeddings`).
        limit: usize,
    },
    /// Low frequencies are divided, high ones kept, those between blended; cosine and sine are
    /// multiplied by `attention_factor`.
    Yarn {
        /// The divisor.
        factor: f64,
        /// The context of the first training.
        original: usize,
        /// Turns within `original` above which a frequency is kept.
        beta_fast: f64,
        /// Turns within `original` below which a frequency is divided.
        beta_slow: f64,
        /// Whether the ends of the blend are rounded outwards to whole dimensions.
        truncate: bool,
        /// What cosine and sine are multiplied by.
        attention_factor: f64,
    },
    /// As Llama 3.1: three bands by wavelength.
    Llama3 {
        /// The divisor of the low band.
        factor: f64,
        /// `original / low_freq` is the wavelength above which a frequency is divided.
        low_freq: f64,
        /// `original / high_freq` is the wavelength below which a frequency is kept.
        high_freq: f64,
        /// The context of the first training.
        original: usize,
    },
}

impl Rotary {
    /// The `dim / 2` inverse frequencies in use at a total length of `len` tokens.
    ///
    /// Only [`Scaling::Dynamic`] looks at `len`.
    pub fn inv_freq(&self, len: usize) -> Vec<f32> {
        let plain = || self.powers(self.theta as f32).into_iter().map(|p| 1.0 / p);
        match self.scaling {
            Scaling::None => plain().collect(),
            Scaling::Linear { factor } => plain().map(|f| f / factor as f32).collect(),
            Scaling::Dynamic { factor, limit } => {
                let base = self.grown_base(factor, limit, len);
                self.powers(base).into_iter().map(|p| 1.0 / p).collect()
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                let kept = self.kept_share(original, beta_fast, beta_slow, truncate);
                let powers = self.powers(self.theta as f32);
                powers
                    .into_iter()
                    .zip(kept)
                    .map(|(p, kept)| 1.0 / (factor as f32 * p) * (1.0 - kept) + 1.0 / p * kept)
                    .collect()
            }
            Scaling::Llama3 { factor, low_freq, high_freq, original } => {
                plain().map(|f| llama3(f, factor as f32, low_freq, high_freq, original as f64)).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Whether the frequencies depend on the length.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, Scaling::Dynamic { .. })
    }

    /// `theta^(2i/dim)` for `i < dim/2`.
    ///
    /// The power is taken in f64 and rounded once, so that it does not depend on a platform's `powf`.
    fn powers(&self, theta: f32) -> Vec<f32> {
        let exponent = |i: usize| (2 * i) as f32 / self.dim as f32;
        (0..self.dim / 2).map(|i| f64::from(theta).powf(f64::from(exponent(i))) as f32).collect()
    }

    /// The base of dynamic NTK at length `len`.
    fn grown_base(&self, factor: f64, limit: usize, len: usize) -> f32 {
        if len <= limit {
            return self.theta as f32;
        }
        let stretch = factor as f32 * len as f32 / limit as f32 - (factor - 1.0) as f32;
        let power = self.dim as f64 / (self.dim as f64 - 2.0);
        self.theta as f32 * f64::from(stretch).powf(power) as f32
    }

    /// YaRN: the share of each frequency that is kept as it was; the rest is divided.
    fn kept_share(&self, original: usize, fast: f64, slow: f64, truncate: bool) -> Vec<f32> {
        // The dimension whose frequency makes `turns` turns within the original context.
        let dimension = |turns: f64| {
            let length = original as f64 / (turns * 2.0 * std::f64::consts::PI);
            self.dim as f64 * length.ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (dimension(fast), dimension(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let low = low.max(0.0);
        let mut high = high.min(self.dim as f64 - 1.0);
        if low == high {
            high += 0.001;
        }
        let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        (0..self.dim / 2).map(|i| 1.0 - ramp(i)).collect()
    }
}

/// One frequency under the scaling of Llama 3.1.
fn llama3(freq: f32, factor: f32, low_freq: f64, high_freq: f64, original: f64) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / freq;
    if wavelength > (original / low_freq) as f32 {
        freq / factor
    } else if wavelength < (original / high_freq) as f32 {
        freq
    } else {
        let smooth = (original as f32 / wavelength - low_freq as f32) / (high_freq - low_freq) as f32;
        (1.0 - smooth) * freq / factor + smooth * freq
    }
}

/// Fills rows of the table that [`Ops::rope`](airllm_kernels::Ops::rope) reads.
pub struct Table<'a> {
    rotary: &'a Rotary,
    /// The length that `freqs` belongs to; of no meaning unless the scaling is dynamic.
    len: usize,
    freqs: Vec<f32>,
}

impl<'a> Table<'a> {
    /// A table without rows.
    pub fn new(rotary: &'a Rotary) -> Self {
        Self { rotary, len: 0, freqs: rotary.inv_freq(0) }
    }

    /// Appends the row of one position to `out`: `dim/2` cosines, then `dim/2` sines, with the
    /// attention factor multiplied in. `len` is the length that a dynamic base is taken from.
    pub fn push(&mut self, position: usize, len: usize, out: &mut Vec<f32>) {
        if self.rotary.is_dynamic() && len != self.len {
            self.freqs = self.rotary.inv_freq(len);
            self.len = len;
        }
        let factor = self.rotary.attention_factor();
        // The angle is rounded to f32 first, as the reference does; its cosine is taken in f64, which
        // rounds to the same f32 whatever the platform's library.
        let angle = |f: &f32| f64::from(position as f32 * f);
        out.extend(self.freqs.iter().map(|f| angle(f).cos() as f32 * factor));
        out.extend(self.freqs.iter().map(|f| angle(f).sin() as f32 * factor));
    }
}
