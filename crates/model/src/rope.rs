//! Rotary position embedding: frequencies, their scaling to longer contexts, and the tables of a pass.
//!
//! The numbers follow the transformers library step by step, in the precision it uses at each step:
//! inverse frequencies are f32, an angle is the f32 product of position and frequency. At large
//! positions the rounding of that product is part of what a model was trained and measured with.
//!
//! Su et al., "RoFormer", 2021. The scalings: linear (kaiokendev; Chen et al. 2023), dynamic NTK
//! (bloc97, emozilla), YaRN (Peng et al. 2023), LongRoPE (Ding et al. 2024), and the one of Llama 3.1.

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
    /// A base that grows in steps with the length of the prompt and then stays (Qwen 1).
    PromptNtk {
        /// The length up to which nothing changes (`seq_length`).
        limit: usize,
    },
    /// A divisor for each frequency.
    Factors {
        /// The divisors.
        factors: Vec<f64>,
    },
    /// A divisor for each frequency, others once the length passes the context of the first training.
    Long {
        /// Divisors up to there.
        short: Vec<f64>,
        /// Divisors beyond.
        long: Vec<f64>,
        /// The context of the first training.
        original: usize,
        /// What cosine and sine are multiplied by.
        attention_factor: f64,
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
    /// No rotary embedding: of no number of a head.
    pub fn none() -> Self {
        Self { theta: 1.0, dim: 0, scaling: Scaling::None }
    }

    /// The length after which what a cache holds of earlier tokens is not what it would be, had they been
    /// run together: caches must be made anew when a sequence grows beyond it.
    ///
    /// Only LongRoPE has one. With the other scalings that depend on the length, the reference keeps its
    /// cache as it is.
    pub fn switch(&self) -> Option<usize> {
        match self.scaling {
            Scaling::Long { original, .. } => Some(original),
            _ => None,
        }
    }

    /// The `dim / 2` inverse frequencies in use at a total length of `len` tokens.
    ///
    /// Only scalings that are [dynamic](Self::is_dynamic) look at `len`.
    pub fn inv_freq(&self, len: usize) -> Vec<f32> {
        let plain = || self.powers(self.theta as f32).into_iter().map(|p| 1.0 / p);
        let divided = |factors: &[f64]| -> Vec<f32> {
            let powers = self.powers(self.theta as f32).into_iter();
            powers.zip(factors).map(|(p, &factor)| 1.0 / (factor as f32 * p)).collect()
        };
        match self.scaling {
            Scaling::None => plain().collect(),
            Scaling::Factors { ref factors } => divided(factors),
            Scaling::Long { ref short, ref long, original, .. } => {
                divided(if len > original { long } else { short })
            }
            Scaling::PromptNtk { limit } => {
                let base = self.stepped_base(limit, len);
                self.powers(base).into_iter().map(|p| 1.0 / p).collect()
            }
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
            Scaling::Yarn { attention_factor, .. } | Scaling::Long { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// Whether the frequencies depend on the length.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, Scaling::Dynamic { .. } | Scaling::PromptNtk { .. } | Scaling::Long { .. })
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

    /// The base of the first Qwen for a prompt of `len` tokens: times `alpha^(d/(d-2))`, where `alpha` is
    /// `2^ceil(log2(len/limit) + 1) - 1`, at least 1.
    fn stepped_base(&self, limit: usize, len: usize) -> f32 {
        let step = ((len as f64 / limit as f64).log2() + 1.0).ceil();
        let alpha = (step.exp2() - 1.0).max(1.0);
        let power = self.dim as f64 / (self.dim as f64 - 2.0);
        (self.theta * alpha.powf(power)) as f32
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
    /// attention factor multiplied in. `prompt` is the prompt's length, as far as it is known, else 0.
    ///
    /// A dynamic base is that of the prompt's length, or of the position's own (its index and one) where
    /// that is more; the first Qwen's stays that of the prompt.
    pub fn push(&mut self, position: usize, prompt: usize, out: &mut Vec<f32>) {
        let len = match self.rotary.scaling {
            Scaling::PromptNtk { .. } if prompt > 0 => prompt,
            _ => prompt.max(position + 1),
        };
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
