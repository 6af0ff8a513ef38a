//! What to generate, and how to choose each token.

use crate::{Error, Result};

/// How to generate. Start from [`Generation::default`] and change what matters.
///
/// ```
/// use airllm::Generation;
/// let options = Generation::default().max_new_tokens(64).temperature(0.7).top_p(0.9).seed(1).stop("\n\n");
/// assert!(options.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// The most tokens to add to each prompt. 128.
    pub max_new_tokens: usize,
    /// 0 takes the most likely token each time (greedy); above, scores are divided by this before a
    /// token is drawn. 0.
    pub temperature: f32,
    /// Draw only from this many of the best tokens; `None` or 0 for all.
    pub top_k: Option<usize>,
    /// Draw only from the best tokens that together hold this probability (Holtzman et al. 2019). 1.
    pub top_p: f32,
    /// Draw only from tokens at least this likely, relative to the best (Nguyen et al. 2024). 0.
    pub min_p: f32,
    /// Scores of tokens already there are divided by this if positive, multiplied if negative
    /// (Keskar et al. 2019). 1.
    pub repetition_penalty: f32,
    /// Seed of the draws; `None` takes one that differs from run to run.
    pub seed: Option<u64>,
    /// Text that ends an answer. It is not part of the answer.
    pub stop: Vec<String>,
    /// Ids that end an answer, beside those that the checkpoint names; such as
    /// [`ChatFormat::stops`](crate::ChatFormat::stops).
    pub stop_ids: Vec<u32>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Let the tokenizer add its special tokens (a begin-of-sequence token, mostly) to a prompt. True.
    pub add_special_tokens: bool,
}

impl Default for Generation {
    fn default() -> Generation {
        Generation {
            max_new_tokens: 128,
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: None,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            ignore_eos: false,
            add_special_tokens: true,
        }
    }
}

impl Generation {
    /// Sets [`max_new_tokens`](Self::max_new_tokens).
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = tokens;
        self
    }

    /// Sets [`temperature`](Self::temperature).
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets [`top_k`](Self::top_k).
    pub fn top_k(mut self, tokens: usize) -> Self {
        self.top_k = Some(tokens);
        self
    }

    /// Sets [`top_p`](Self::top_p).
    pub fn top_p(mut self, share: f32) -> Self {
        self.top_p = share;
        self
    }

    /// Sets [`min_p`](Self::min_p).
    pub fn min_p(mut self, share: f32) -> Self {
        self.min_p = share;
        self
    }

    /// Sets [`repetition_penalty`](Self::repetition_penalty).
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Adds one string to [`stop`](Self::stop).
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// Adds to [`stop_ids`](Self::stop_ids).
    pub fn stop_ids(mut self, ids: &[u32]) -> Self {
        self.stop_ids.extend_from_slice(ids);
        self
    }

    /// Sets [`ignore_eos`](Self::ignore_eos).
    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    /// Sets [`add_special_tokens`](Self::add_special_tokens).
    pub fn add_special_tokens(mut self, add: bool) -> Self {
        self.add_special_tokens = add;
        self
    }

    /// Refuses values outside their range, naming the first.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: f32, fits: bool, range: &str| match fits {
            true => Ok(()),
            false => Err(Error::Argument { what: format!("{name} is {value}, it must be {range}") }),
        };
        let t = self.temperature;
        check("temperature", t, t >= 0.0 && t.is_finite(), "0 or a positive number")?;
        let p = self.top_p;
        check("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")?;
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r > 0.0 && r.is_finite(), "a positive number")
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-sequence token or a stop string.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The caller asked to stop.
    Interrupted,
}

impl FinishReason {
    /// `"stop"`, `"length"` or `"interrupted"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What a checkpoint says about how to generate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

impl GenerationConfig {
    /// Reads `eos_token_id`, a number or a list, from the content of `generation_config.json`; where it
    /// says nothing, `config_eos`, the ids of `config.json`, hold.
    pub fn read(
        generation_config: Option<&serde_json::Value>,
        config_eos: &[u32],
    ) -> Result<GenerationConfig> {
        let key = "eos_token_id";
        let eos = match generation_config.and_then(|v| v.get(key)) {
            None | Some(serde_json::Value::Null) => config_eos.to_vec(),
            Some(value) => ids(value, key)?,
        };
        Ok(GenerationConfig { eos })
    }
}

fn ids(value: &serde_json::Value, key: &str) -> Result<Vec<u32>> {
    let bad = || Error::Input {
        what: format!(
            "generation_config.json: {key} is {value}, a token id or a list of token ids was expected"
        ),
    };
    let one = |v: &serde_json::Value| v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(bad);
    match value {
        serde_json::Value::Array(list) => list.iter().map(one).collect(),
        // Some published files write -1 for "none".
        serde_json::Value::Number(n) if n.as_i64() == Some(-1) => Ok(Vec::new()),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges() {
        let d = Generation::default;
        assert!(d().validate().is_ok());
        for bad in [
            d().temperature(-1.0),
            d().temperature(f32::NAN),
            d().temperature(f32::INFINITY),
            d().top_p(0.0),
            d().top_p(1.5),
            d().min_p(-0.1),
            d().min_p(f32::NAN),
            d().repetition_penalty(0.0),
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn eos_from_either_file() {
        let read = |g: Option<serde_json::Value>| GenerationConfig::read(g.as_ref(), &[2]);
        assert_eq!(read(None).unwrap().eos, [2]);
        assert_eq!(read(Some(json!({"eos_token_id": [5, 6]}))).unwrap().eos, [5, 6]);
        assert_eq!(read(Some(json!({"eos_token_id": 7}))).unwrap().eos, [7]);
        assert_eq!(read(Some(json!({"eos_token_id": null}))).unwrap().eos, [2]);
        assert_eq!(read(Some(json!({"eos_token_id": -1}))).unwrap().eos, [0u32; 0]);
        let error = read(Some(json!({"eos_token_id": "x"}))).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: eos_token_id is \"x\""), "{error}");
        assert!(read(Some(json!({"eos_token_id": [1.5]}))).is_err());
    }
}
