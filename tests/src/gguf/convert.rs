//! A Hugging Face checkpoint as a GGUF file, changed as llama.cpp's converter changes it.

use super::{File, Kind, Value, vocabulary};
use half::{bf16, f16};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// How a checkpoint is converted.
#[derive(Debug, Clone, Copy)]
pub struct Convert {
    /// The type of matrices. Where rows are no whole blocks of it, they are F16 (as vectors are F32).
    pub kind: Kind,
    /// Whether the tokenizer is converted too.
    pub tokenizer: bool,
}

/// Reads a checkpoint folder of one of these architectures: Llama, Mistral, Mixtral, Qwen 2 and 3 with or without
/// experts, Baichuan (rotary), ChatGLM 2 to GLM-4-0414, Gemma 2 and 3, Phi-3. Weights should be F32, F16 or BF16.
///
/// Of Baichuan 2 the rows of the head are made one long, as its publisher says to before a conversion.
///
/// # Errors
/// Another architecture, something that the format cannot express, and whatever the disk says.
pub fn convert(dir: &Path, how: Convert) -> io::Result<File> {
    let config: Json = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let model = Model { config: &config };
    let arch = model.architecture()?;
    let mut weights = Weights::read(dir)?;
    let mut file = File::new(arch);
    model.entries(arch, &mut file)?;
    model.prepare(arch, &mut weights)?;
    let names: Vec<String> = weights.0.keys().cloned().collect();
    for name in &names {
        let Some(place) = gguf_name(arch, name) else {
            if name.contains("inv_freq") {
                continue;
            }
            return Err(io::Error::other(format!("{name} has no name in a {arch} file")));
        };
        let (shape, numbers) = match place {
            Place::One(_) => weights.0[name].clone(),
            // The first expert takes the others along.
            Place::Experts(_) if name.contains("experts.0.") => weights.experts(name)?,
            Place::Experts(_) => continue,
        };
        let (Place::One(to) | Place::Experts(to)) = place;
        let shape: Vec<usize> = match &shape[..] {
            [1, cols] => vec![*cols],
            shape => shape.to_vec(),
        };
        let cols = shape.last().copied().unwrap_or(1);
        let kind = match how.kind {
            _ if shape.len() == 1 || to.contains("ffn_gate_inp") => Kind::F32,
            kind if cols.is_multiple_of(kind.block()) => kind,
            _ => Kind::F16,
        };
        file.tensor(&to, &shape, kind, &numbers)?;
    }
    if how.tokenizer {
        let rows = model.whole(&["vocab_size", "padded_vocab_size"]).unwrap_or(0);
        file.entries.extend(vocabulary(dir, rows as usize)?);
        let ends = match &config["eos_token_id"] {
            Json::Array(list) => list.iter().filter_map(Json::as_u64).collect(),
            one => Vec::from_iter(one.as_u64()),
        };
        let keys = ["eos", "eot", "eom"].map(|end| format!("tokenizer.ggml.{end}_token_id"));
        file.entries.retain(|(key, _)| ends.is_empty() || !keys.contains(key));
        for (key, id) in keys.into_iter().zip(ends) {
            file.entries.push((key, Value::U32(id as u32)));
        }
    }
    Ok(file)
}

/// Where a tensor goes.
enum Place {
    One(String),
    Experts(String),
}

/// The end of a tensor's name in a layer, and what it is called in a file.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("self_attention.query_key_value", "attn_qkv"),
    ("self_attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
];
const GEMMA: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
const EXPERT: &[(&str, &str)] = &[
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];
const OUTER: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("transformer.embedding.word_embeddings", "token_embd"),
    ("transformer.encoder.final_layernorm", "output_norm"),
    ("transformer.output_layer", "output"),
];

fn look(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(known, _)| *known == name).map(|(_, to)| *to)
}

fn gguf_name(arch: &str, name: &str) -> Option<Place> {
    let (stem, kind) = name.rsplit_once('.')?;
    let layered = ["model.layers.", "transformer.encoder.layers."];
    let Some(rest) = layered.iter().find_map(|prefix| stem.strip_prefix(prefix)) else {
        return look(OUTER, stem).map(|to| Place::One(format!("{to}.{kind}")));
    };
    let (layer, stem) = rest.split_once('.')?;
    if let Some((_, expert)) = stem.split_once("experts.") {
        let to = look(EXPERT, expert.split_once('.')?.1)?;
        return Some(Place::Experts(format!("blk.{layer}.{to}.{kind}")));
    }
    let gemma = if arch.starts_with("gemma") { look(GEMMA, stem) } else { None };
    let to = gemma.or_else(|| look(LAYER, stem))?;
    Some(Place::One(format!("blk.{layer}.{to}.{kind}")))
}

struct Model<'a> {
    config: &'a Json,
}

impl Model<'_> {
    fn architecture(&self) -> io::Result<&'static str> {
        let name = self.config["architectures"][0].as_str().unwrap_or_default();
        Ok(match name {
            "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM" => "llama",
            "Qwen2ForCausalLM" => "qwen2",
            "Qwen3ForCausalLM" => "qwen3",
            "Qwen2MoeForCausalLM" => "qwen2moe",
            "Qwen3MoeForCausalLM" => "qwen3moe",
            "BaiChuanForCausalLM" | "BaichuanForCausalLM"
                if !self.config["max_position_embeddings"].is_null() =>
            {
                "baichuan"
            }
            "ChatGLMModel" | "GlmForCausalLM" => "chatglm",
            "Glm4ForCausalLM" => "glm4",
            "Gemma2ForCausalLM" => "gemma2",
            "Gemma3ForCausalLM" => "gemma3",
            "Phi3ForCausalLM" => "phi3",
            other => return Err(io::Error::other(format!("{other} is not converted"))),
        })
    }

    fn whole(&self, names: &[&str]) -> Option<u64> {
        names.iter().find_map(|name| self.config[*name].as_u64())
    }

    fn number(&self, names: &[&str]) -> Option<f64> {
        names.iter().find_map(|name| self.config[*name].as_f64())
    }

    fn heads(&self) -> (usize, usize, usize) {
        let heads = self.whole(&["num_attention_heads"]).unwrap_or(1);
        let kv = self.whole(&["num_key_value_heads", "multi_query_group_num"]).unwrap_or(heads);
        let hidden = self.whole(&["hidden_size"]).unwrap_or(0);
        let head = self.whole(&["head_dim", "kv_channels"]).unwrap_or(hidden / heads);
        (heads as usize, kv as usize, head as usize)
    }

    fn entries(&self, arch: &str, file: &mut File) -> io::Result<()> {
        let (heads, kv_heads, head) = self.heads();
        let mut put = |key: &str, value: Value| file.entry(&format!("{arch}.{key}"), value);
        let mut whole = |key: &str, names: &[&str]| {
            if let Some(n) = self.whole(names) {
                put(key, Value::U32(n as u32));
            }
        };
        whole("block_count", &["num_hidden_layers", "num_layers"]);
        whole("context_length", &["max_position_embeddings", "seq_length"]);
        whole("embedding_length", &["hidden_size"]);
        whole("feed_forward_length", &["ffn_hidden_size", "intermediate_size"]);
        whole("expert_count", &["num_local_experts", "num_experts"]);
        whole("expert_used_count", &["num_experts_per_tok"]);
        whole("expert_feed_forward_length", &["moe_intermediate_size"]);
        whole("expert_shared_feed_forward_length", &["shared_expert_intermediate_size"]);
        if self.config["use_sliding_window"] != false {
            whole("attention.sliding_window", &["sliding_window"]);
        }
        whole("attention.sliding_window_pattern", &["sliding_window_pattern"]);
        put("attention.head_count", Value::U32(heads as u32));
        put("attention.head_count_kv", Value::U32(kv_heads as u32));
        if self.config["head_dim"].is_u64() || arch == "chatglm" {
            put("attention.key_length", Value::U32(head as u32));
            put("attention.value_length", Value::U32(head as u32));
        }
        let eps = self.number(&["rms_norm_eps", "layernorm_epsilon"]).unwrap_or(1e-6);
        put("attention.layer_norm_rms_epsilon", Value::F32(eps as f32));
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = self.number(&[key]) {
                put(key, Value::F32(cap as f32));
            }
        }
        if let Some(scalar) = self.number(&["query_pre_attn_scalar"]).filter(|scalar| *scalar != head as f64)
        {
            // Other converters know the few published models where this is needed.
            put("attention.scale", Value::F32(scalar.sqrt().recip() as f32));
        }
        let share = match arch {
            "chatglm" | "glm4" => self.number(&["partial_rotary_factor"]).unwrap_or(0.5),
            _ => self.number(&["partial_rotary_factor"]).unwrap_or(1.0),
        };
        put("rope.dimension_count", Value::U32((head as f64 * share) as u32));
        self.rope(arch, head, file)
    }

    fn rope(&self, arch: &str, head: usize, file: &mut File) -> io::Result<()> {
        let inner = ["rope_scaling", "rope_parameters"].map(|name| &self.config[name]);
        let inner = inner.into_iter().find(|inner| inner.is_object()).unwrap_or(&Json::Null);
        let ratio = self.number(&["rope_ratio"]).unwrap_or(1.0);
        let theta = inner["rope_theta"].as_f64().or(self.number(&["rope_theta"])).unwrap_or(10_000.0) * ratio;
        file.entry(&format!("{arch}.rope.freq_base"), theta as f32);
        let kind = inner["rope_type"].as_str().or(inner["type"].as_str()).unwrap_or("default");
        let number = |name: &str| inner[name].as_f64();
        let key = |name: &str| format!("{arch}.rope.scaling.{name}");
        let original =
            number("original_max_position_embeddings").or(self.number(&["original_max_position_embeddings"]));
        match kind {
            "default" => {}
            "linear" | "yarn" => {
                file.entry(&key("type"), kind);
                file.entry(&key("factor"), number("factor").unwrap_or(1.0) as f32);
                if let Some(original) = original {
                    file.entry(&key("original_context_length"), original as u32);
                }
            }
            "llama3" => {
                let old = original.unwrap_or(8192.0);
                let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
                let (low, high) = (low.unwrap_or(1.0), high.unwrap_or(4.0));
                let factor = number("factor").unwrap_or(8.0);
                let factors: Vec<f32> = (0..head / 2)
                    .map(|i| {
                        let length = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head as f64);
                        if length < old / high {
                            1.0
                        } else if length > old / low {
                            factor as f32
                        } else {
                            let smooth = (old / length - low) / (high - low);
                            ((1.0 - smooth) / factor + smooth).recip() as f32
                        }
                    })
                    .collect();
                file.tensor("rope_freqs.weight", &[factors.len()], Kind::F32, &factors)?;
            }
            "longrope" => {
                let old = original.unwrap_or(4096.0);
                let most = self.number(&["max_position_embeddings"]).unwrap_or(old);
                file.entry(&key("original_context_length"), old as u32);
                let attention = (1.0 + (most / old).ln() / old.ln()).sqrt();
                file.entry(&key("attn_factor"), attention as f32);
                for length in ["long", "short"] {
                    let factors = inner[format!("{length}_factor")].as_array().into_iter().flatten();
                    let factors: Vec<f32> = factors.filter_map(Json::as_f64).map(|f| f as f32).collect();
                    let name = format!("rope_factors_{length}.weight");
                    file.tensor(&name, &[factors.len()], Kind::F32, &factors)?;
                }
            }
            other => return Err(io::Error::other(format!("{other} scaling is not expressed by GGUF files"))),
        }
        Ok(())
    }

    /// What the converter does to numbers.
    fn prepare(&self, arch: &str, weights: &mut Weights) -> io::Result<()> {
        let (heads, kv_heads, head) = self.heads();
        if arch == "baichuan" {
            weights.split_pack();
            if !self.config["z_loss_weight"].is_null() {
                weights.normalise("lm_head.weight");
            }
        }
        for (name, (shape, numbers)) in &mut weights.0 {
            let cols = if shape.len() == 1 { 1 } else { shape[shape.len() - 1] };
            if arch == "llama" || arch == "baichuan" {
                let heads = [("q_proj.", heads), ("k_proj.", kv_heads)];
                if let Some((_, heads)) = heads.iter().find(|(part, _)| name.contains(part)) {
                    *numbers = neighbours(numbers, *heads, head, cols);
                }
            }
            if arch.starts_with("gemma") && name.ends_with("norm.weight") {
                numbers.iter_mut().for_each(|n| *n += 1.0);
            }
        }
        Ok(())
    }
}

/// Rows of heads whose halves are turned together, in the order in which neighbours are.
fn neighbours(numbers: &[f32], heads: usize, head: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(numbers.len());
    for h in 0..heads {
        for i in 0..head / 2 {
            for half in 0..2 {
                let row = h * head + half * head / 2 + i;
                out.extend(&numbers[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

/// All weights of a checkpoint, by name: shape and numbers.
struct Weights(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Weights {
    fn read(dir: &Path) -> io::Result<Self> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("model") || !name.ends_with(".safetensors") {
                continue;
            }
            let bytes = std::fs::read(&path)?;
            let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length)) as usize;
            let header: BTreeMap<String, Json> = serde_json::from_slice(&bytes[8..8 + length])?;
            for (name, tensor) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
                let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone())?;
                let [start, end]: [usize; 2] = serde_json::from_value(tensor["data_offsets"].clone())?;
                let data = &bytes[8 + length + start..8 + length + end];
                let halves = || data.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
                let numbers = match tensor["dtype"].as_str().unwrap_or_default() {
                    "F32" => data.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
                    "F16" => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
                    "BF16" => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
                    other => return Err(io::Error::other(format!("{name} is stored as {other}"))),
                };
                all.insert(name, (shape, numbers));
            }
        }
        Ok(Self(all))
    }

    /// The experts of which `first` is number 0, side by side.
    fn experts(&self, first: &str) -> io::Result<(Vec<usize>, Vec<f32>)> {
        let missing = || io::Error::other(format!("no {first}"));
        let (before, after) = first.split_once("experts.0.").ok_or_else(missing)?;
        let mut numbers = Vec::new();
        let mut count = 0;
        while let Some((_, expert)) = self.0.get(&format!("{before}experts.{count}.{after}")) {
            numbers.extend(expert);
            count += 1;
        }
        let (shape, _) = self.0.get(first).ok_or_else(missing)?;
        Ok(([vec![count], shape.clone()].concat(), numbers))
    }

    /// Queries, keys and values of Baichuan's `W_pack` as tensors of their own.
    fn split_pack(&mut self) {
        let packs: Vec<String> = self.0.keys().filter(|name| name.contains("W_pack")).cloned().collect();
        for name in packs {
            let Some((shape, numbers)) = self.0.remove(&name) else { continue };
            let third = numbers.len() / 3;
            for (i, part) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                let shape = vec![shape[0] / 3, shape[1]];
                let numbers = numbers[i * third..(i + 1) * third].to_vec();
                self.0.insert(name.replace("W_pack", part), (shape, numbers));
            }
        }
    }

    fn normalise(&mut self, name: &str) {
        if let Some((shape, numbers)) = self.0.get_mut(name) {
            for row in numbers.chunks_mut(shape[1]) {
                let length = row.iter().map(|n| n * n).sum::<f32>().sqrt().max(1e-7);
                row.iter_mut().for_each(|n| *n /= length);
            }
        }
    }
}
