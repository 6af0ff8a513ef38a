//! `config.json` and `generation_config.json`, as the publisher of the model would have written them.

use super::Gguf;
use super::families::{Family, Spelling};
use super::value::{List, Metadata, Value};
use crate::safetensors::TensorInfo;
use crate::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// The entries of the model's architecture, read with errors that name the key.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) arch: &'a str,
    metadata: &'a Metadata,
    path: &'a Path,
}

impl<'a> Keys<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Self {
        let arch = gguf.metadata().text("general.architecture").unwrap_or_default();
        Self { arch, metadata: gguf.metadata(), path: gguf.path() }
    }

    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::malformed(self.path, what)
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn read<T>(&self, name: &str, what: &str, as_t: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(name) else { return Ok(None) };
        as_t(value)
            .map(Some)
            .ok_or_else(|| self.wrong(format!("`{name}`: expected {what}, found {}", value.kind())))
    }

    /// A whole number that is not negative; one for each layer counts if they are all the same.
    pub(super) fn whole(&self, key: &str) -> Result<Option<u64>> {
        let what = "a whole number, the same for all layers";
        self.read(&self.name(key), what, |value| match value {
            Value::List(List::Numbers(numbers)) => {
                let mut numbers = numbers.iter().map(|value| value.whole());
                let first = numbers.next()?;
                first.filter(|_| numbers.all(|number| number == first))
            }
            value => value.whole(),
        })
    }

    fn needed_whole(&self, key: &str) -> Result<u64> {
        self.whole(key)?.ok_or_else(|| self.wrong(format!("there is no `{}`", self.name(key))))
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let finite = |value: &Value| value.number().filter(|number| number.is_finite());
        self.read(&self.name(key), "a finite number", finite)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let name = self.name(key);
        self.read(&name, "text", |_| self.metadata.text(&name))
    }

    /// An id of the tokenizer's.
    fn id(&self, key: &str) -> Result<Option<u64>> {
        self.read(&format!("tokenizer.ggml.{key}"), "a token id", Value::whole)
    }
}

/// What the configuration is made from.
pub(super) struct Source<'a> {
    pub(super) gguf: &'a Gguf,
    /// A tensor under its name in the file.
    pub(super) tensor: &'a dyn Fn(&str) -> Option<&'a TensorInfo>,
    /// The numbers of a small tensor of 32-bit floats, if it is there.
    pub(super) numbers: &'a dyn Fn(&str) -> Result<Option<Vec<f32>>>,
}

/// The configuration of a family that is not known: enough for a reader to refuse it by its name.
pub(super) fn unknown(gguf: &Gguf) -> Json {
    let arch = Keys::new(gguf).arch;
    json!({ "architectures": [format!("gguf:{arch}")], "model_type": format!("gguf:{arch}") })
}

/// The configuration of a known family.
pub(super) fn config(source: &Source<'_>, family: &Family) -> Result<Json> {
    let keys = Keys::new(source.gguf);
    let sizes = Sizes::new(source, &keys)?;
    let mut out = Map::new();
    let mut put = |key: &str, value: Json| drop(out.insert(key.into(), value));
    put("architectures", json!([family.hf]));
    put("model_type", json!(family.model_type));
    put("hidden_size", json!(sizes.hidden));
    put("num_hidden_layers", json!(sizes.layers));
    put("num_attention_heads", json!(sizes.heads));
    put("num_key_value_heads", json!(sizes.kv_heads));
    put("head_dim", json!(sizes.head_dim));
    put("vocab_size", json!(sizes.vocab));
    if let Some(inner) = keys.whole("feed_forward_length")? {
        put("intermediate_size", json!(inner));
    }
    if let Some(length) = keys.whole("context_length")? {
        put("max_position_embeddings", json!(length));
    }
    if let Some(eps) = keys.number("attention.layer_norm_rms_epsilon")? {
        put("rms_norm_eps", json!(eps));
    }
    put("hidden_act", json!("silu"));
    put("tie_word_embeddings", json!((source.tensor)("output.weight").is_none()));
    // Qwen 2 has biases by its nature, and not on all projections as this field would say.
    if !family.model_type.starts_with("qwen2") {
        put("attention_bias", json!((source.tensor)("blk.0.attn_q.bias").is_some()));
    }
    put("mlp_bias", json!((source.tensor)("blk.0.ffn_up.bias").is_some()));
    if let Some(window) = keys.whole("attention.sliding_window")?.filter(|window| *window > 0) {
        put("sliding_window", json!(window));
    }
    if family.interleaved {
        put("rope_interleaved", json!(true));
    }
    for (key, name) in [
        ("bos_token_id", "bos_token_id"),
        ("eos_token_id", "eos_token_id"),
        ("pad_token_id", "padding_token_id"),
    ] {
        if let Some(id) = keys.id(name)? {
            put(key, json!(id));
        }
    }
    rope(source, &keys, &sizes, &mut out)?;
    spell(source, &keys, &sizes, family.spelling, &mut out)?;
    Ok(Json::Object(out))
}

/// What ends a generation: the end of a text, of a turn and of a message.
pub(super) fn generation(gguf: &Gguf) -> Result<Option<Json>> {
    /// Where no entry names the end of a turn, these tokens are it, as other readers have it.
    const TURN_ENDS: [&str; 5] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"];
    let keys = Keys::new(gguf);
    let mut ends = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(keys.id(key)?);
    }
    if keys.id("eot_token_id")?.is_none()
        && let Some(Value::List(List::Texts(tokens))) = gguf.metadata().get("tokenizer.ggml.tokens")
    {
        let ids = tokens.iter().zip(0u64..).filter(|(token, _)| TURN_ENDS.contains(&token.as_str()));
        ends.extend(ids.map(|(_, id)| id));
    }
    let mut unique: Vec<u64> = Vec::new();
    ends.into_iter().for_each(|id| {
        if !unique.contains(&id) {
            unique.push(id);
        }
    });
    Ok((!unique.is_empty()).then(|| json!({ "eos_token_id": unique })))
}

struct Sizes {
    hidden: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    vocab: u64,
    inner: Option<u64>,
    /// Numbers of a head that rotary embedding turns.
    turned: u64,
}

impl Sizes {
    fn new(source: &Source<'_>, keys: &Keys<'_>) -> Result<Self> {
        let hidden = keys.needed_whole("embedding_length")?;
        let heads = keys.needed_whole("attention.head_count")?;
        let kv_heads = keys.whole("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = match keys.whole("attention.key_length")? {
            Some(dim) => dim,
            None if heads > 0 => hidden / heads,
            None => return Err(keys.wrong(format!("`{}` is 0", keys.name("attention.head_count")))),
        };
        if keys.whole("attention.value_length")?.is_some_and(|dim| dim != head_dim) {
            let (value, key) = (keys.name("attention.value_length"), keys.name("attention.key_length"));
            return Err(
                keys.wrong(format!("`{value}` differs from `{key}`, {head_dim}, which is not known here"))
            );
        }
        let embedding = (source.tensor)("token_embd.weight");
        let vocab = embedding.and_then(|tensor| tensor.shape.first());
        let vocab = *vocab.ok_or_else(|| keys.wrong("there is no tensor `token_embd.weight`"))?;
        Ok(Self {
            hidden,
            layers: keys.needed_whole("block_count")?,
            heads,
            kv_heads,
            head_dim,
            vocab: vocab as u64,
            inner: keys.whole("feed_forward_length")?,
            turned: keys.whole("rope.dimension_count")?.unwrap_or(head_dim),
        })
    }
}

fn rope(source: &Source<'_>, keys: &Keys<'_>, sizes: &Sizes, out: &mut Map<String, Json>) -> Result<()> {
    out.insert("rope_theta".into(), json!(keys.number("rope.freq_base")?.unwrap_or(10_000.0)));
    if sizes.turned != sizes.head_dim && sizes.head_dim > 0 {
        let share = sizes.turned as f64 / sizes.head_dim as f64;
        out.insert("partial_rotary_factor".into(), json!(share));
    }
    if let Some(scaling) = scaling(source, keys)? {
        out.insert("rope_scaling".into(), scaling);
    }
    Ok(())
}

fn scaling(source: &Source<'_>, keys: &Keys<'_>) -> Result<Option<Json>> {
    const FACTORS: &str = "rope_freqs.weight";
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0);
    let original = keys.whole("rope.scaling.original_context_length")?;
    let attention = keys.number("rope.scaling.attn_factor")?;
    let factors = (source.numbers)(FACTORS)?;
    let long = (source.numbers)("rope_factors_long.weight")?;
    let short = (source.numbers)("rope_factors_short.weight")?;
    if let Some(name) = ["rope.scaling.yarn_log_multiplier", "rope.scaling.alpha"]
        .into_iter()
        .find(|key| matches!(keys.number(key), Ok(Some(n)) if n != 0.0))
    {
        return Err(keys.wrong(format!("`{}` is not known here", keys.name(name))));
    }
    let mut scaling = match (keys.text("rope.scaling.type")?, factor, factors, long, short) {
        (_, _, None, Some(long), Some(short)) => {
            json!({ "rope_type": "longrope", "long_factor": long, "short_factor": short })
        }
        (None | Some("none" | "linear"), None, Some(factors), None, None) => {
            json!({ "rope_type": "factors", "tensor": FACTORS, "factors": factors })
        }
        (Some("none"), _, None, None, None) | (_, None, None, None, None) => return Ok(None),
        (None | Some("linear"), Some(factor), None, None, None) => {
            return Ok(Some(json!({ "rope_type": "linear", "factor": factor })));
        }
        (Some("yarn"), Some(factor), None, None, None) => {
            let mut yarn = json!({ "rope_type": "yarn", "factor": factor });
            for (key, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                if let Some(beta) = keys.number(&format!("rope.scaling.{name}"))? {
                    yarn[key] = json!(beta);
                }
            }
            // Other readers multiply the growth that belongs to the factor with this.
            if let Some(attention) = attention.filter(|attention| *attention != 1.0) {
                yarn["attention_factor"] = json!(attention * (0.1 * factor.ln() + 1.0));
            }
            yarn
        }
        (kind, ..) => {
            let kind = kind.unwrap_or("none");
            return Err(keys.wrong(format!(
                "`{}` is \"{kind}\", which is not known here together with what else the file says of it",
                keys.name("rope.scaling.type")
            )));
        }
    };
    if let Some(original) = original {
        scaling["original_max_position_embeddings"] = json!(original);
    }
    if scaling["rope_type"] == "longrope"
        && let Some(attention) = attention
    {
        scaling["attention_factor"] = json!(attention);
    }
    Ok(Some(scaling))
}

/// The fields that a family has beside Llama's, or instead of them.
fn spell(
    source: &Source<'_>,
    keys: &Keys<'_>,
    sizes: &Sizes,
    spelling: Spelling,
    out: &mut Map<String, Json>,
) -> Result<()> {
    // Widths that older files do not name: the tensors know them.
    let rows = |name: &str, from_end: usize| {
        let shape = (source.tensor)(name).map(|tensor| tensor.shape.as_slice()).unwrap_or_default();
        shape.len().checked_sub(from_end).and_then(|at| shape.get(at)).copied()
    };
    let mut put = |key: &str, value: Json| drop(out.insert(key.into(), value));
    match spelling {
        Spelling::Llama => {}
        Spelling::Mixtral => {
            put("num_local_experts", json!(keys.needed_whole("expert_count")?));
            put("num_experts_per_tok", json!(keys.needed_whole("expert_used_count")?));
        }
        Spelling::QwenExperts(normalised) => {
            put("num_experts", json!(keys.needed_whole("expert_count")?));
            put("num_experts_per_tok", json!(keys.needed_whole("expert_used_count")?));
            put("norm_topk_prob", json!(normalised));
            put("decoder_sparse_step", json!(1));
            put("mlp_only_layers", json!([]));
            if let Some(inner) = rows("blk.0.ffn_gate_exps.weight", 2) {
                put("moe_intermediate_size", json!(inner));
            }
            if let Some(inner) = rows("blk.0.ffn_gate_shexp.weight", 2) {
                put("shared_expert_intermediate_size", json!(inner));
            }
        }
        Spelling::Gemma2 | Spelling::Gemma3 => gemma(keys, sizes, spelling, &mut put)?,
        Spelling::ChatGlm => {
            if sizes.turned * 2 != sizes.head_dim {
                let name = keys.name("rope.dimension_count");
                return Err(
                    keys.wrong(format!("`{name}` is {}, not half of {}", sizes.turned, sizes.head_dim))
                );
            }
            let base = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
            put("rope_ratio", json!(base / 10_000.0));
            put("num_layers", json!(sizes.layers));
            put("kv_channels", json!(sizes.head_dim));
            put("multi_query_attention", json!(true));
            put("multi_query_group_num", json!(sizes.kv_heads));
            put("ffn_hidden_size", json!(sizes.inner));
            put("layernorm_epsilon", json!(keys.number("attention.layer_norm_rms_epsilon")?));
            put("rmsnorm", json!(true));
            put("seq_length", json!(keys.whole("context_length")?));
            put("padded_vocab_size", json!(sizes.vocab));
            put("add_qkv_bias", json!((source.tensor)("blk.0.attn_qkv.bias").is_some()));
            put("add_bias_linear", json!(false));
            put("original_rope", json!(true));
            for other in ["rope_theta", "partial_rotary_factor", "head_dim", "num_key_value_heads"] {
                out.shift_remove(other);
            }
        }
        Spelling::Qwen1 => {
            put("kv_channels", json!(sizes.head_dim));
            put("layer_norm_epsilon", json!(keys.number("attention.layer_norm_rms_epsilon")?));
            put("rotary_emb_base", json!(keys.number("rope.freq_base")?.unwrap_or(10_000.0)));
            put("rotary_pct", json!(1.0));
            put("seq_length", json!(keys.whole("context_length")?));
            put("no_bias", json!(true));
            // The file does not say whether the published model had them; other readers have neither.
            put("use_dynamic_ntk", json!(false));
            put("use_logn_attn", json!(false));
        }
    }
    Ok(())
}

fn gemma(keys: &Keys<'_>, sizes: &Sizes, spelling: Spelling, put: &mut dyn FnMut(&str, Json)) -> Result<()> {
    put("hidden_act", json!("gelu_pytorch_tanh"));
    put("hidden_activation", json!("gelu_pytorch_tanh"));
    put("norm_offset_folded", json!(true));
    // The largest of each generation, known by its layers, divides by another root than that of the head.
    let largest = if spelling == Spelling::Gemma2 { 46 } else { 62 };
    let scalar = match keys.number("attention.scale")? {
        Some(scale) if scale > 0.0 => json!(1.0 / (scale * scale)),
        _ if sizes.layers == largest => json!(sizes.hidden / sizes.heads.max(1)),
        _ => json!(sizes.head_dim),
    };
    put("query_pre_attn_scalar", scalar);
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        // Gemma 2 has caps where nothing is said of them, Gemma 3 has not.
        match keys.number(key)? {
            Some(cap) => put(key, json!(Some(cap).filter(|cap| *cap != 0.0))),
            None if spelling == Spelling::Gemma2 => {}
            None => put(key, Json::Null),
        }
    }
    if spelling == Spelling::Gemma2 {
        return Ok(());
    }
    put("rope_local_base_freq", json!(keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0)));
    let pattern = keys.name("attention.sliding_window_pattern");
    match keys.metadata.get(&pattern) {
        Some(Value::List(List::Numbers(layers))) => {
            let kind = |local: Value| match local {
                Value::Bool(true) => "sliding_attention",
                _ => "full_attention",
            };
            put("layer_types", layers.iter().map(kind).collect::<Vec<_>>().into());
        }
        _ => {
            put("sliding_window_pattern", json!(keys.whole("attention.sliding_window_pattern")?.unwrap_or(6)))
        }
    }
    Ok(())
}
