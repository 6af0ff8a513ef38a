//! LoRA adapters as the PEFT library writes them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapter adds `scale · B · A` to some matrices (Hu et al., "LoRA", 2021). It is applied beside the
//! weights as they stream, or folded into them when they are written anew.

use crate::error::At;
use crate::{Error, Result};
use airllm_format::safetensors::Header;
use airllm_format::{FileSource, LayerSource, ReadMethod, read_json_object};
use airllm_model::{Config, LowRank};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Fields of an adapter's configuration with which it would be another mathematics, refused unless they say
/// "no".
const OTHER_KINDS: &[&str] = &[
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

const PREFIX: &str = "base_model.model.";

/// An adapter, read whole: some megabytes.
#[derive(Debug, Clone)]
pub struct Adapter {
    dir: PathBuf,
    base: Option<String>,
    /// By the name of the matrix in the checkpoint, without ".weight". Shared, as tensors that are made hold
    /// on to what they need.
    modules: Arc<BTreeMap<String, Factors>>,
}

/// `B · A`, the scale multiplied into `B`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Factors {
    pub(crate) rank: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `[rank, cols]`.
    pub(crate) a: Vec<f32>,
    /// `[rows, rank]`.
    pub(crate) b: Vec<f32>,
}

impl Factors {
    /// Adds a row of the product to a row of weights. What is added is summed first, as it is where an
    /// adapter is applied beside the weights.
    pub(crate) fn add_to(&self, row: usize, weights: &mut [f32]) {
        let b = &self.b[row * self.rank..][..self.rank];
        let mut sums = vec![0.0; self.cols];
        for (&b, a) in b.iter().zip(self.a.chunks_exact(self.cols)) {
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        weights.iter_mut().zip(sums).for_each(|(w, sum)| *w += sum);
    }
}

impl Adapter {
    /// Reads the folder of an adapter.
    ///
    /// # Errors
    /// [`Error::Input`] for a kind of adapter other than LoRA, for one whose mathematics is another
    /// (DoRA, biases, modules replaced as a whole), and for files that do not fit together.
    pub fn open(dir: &Path) -> Result<Adapter> {
        let config_path = dir.join("adapter_config.json");
        if !config_path.is_file() {
            let what =
                format!("{}: no adapter_config.json: expected the folder of a LoRA adapter", dir.display());
            return Err(Error::Input { what });
        }
        let config = read_json_object(&config_path)?;
        let settings = Settings::read(&config, &config_path)?;
        let path = dir.join("adapter_model.safetensors");
        if !path.is_file() {
            let what = match dir.join("adapter_model.bin").is_file() {
                true => {
                    "; adapter_model.bin is there, but only safetensors are read: convert the adapter first"
                }
                false => "",
            };
            return Err(Error::Input { what: format!("{}: no such file{what}", path.display()) });
        }
        let modules = Arc::new(modules(&path, &settings)?);
        Ok(Adapter { dir: dir.to_path_buf(), base: settings.base, modules })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The model it was trained on, as its configuration says.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Names of the matrices it changes, as in the checkpoint, without ".weight".
    pub fn modules(&self) -> impl ExactSizeIterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// Numbers in all its factors.
    pub fn numbers(&self) -> usize {
        self.modules.values().map(|factors| factors.a.len() + factors.b.len()).sum()
    }

    /// A name for its content: 16 hexadecimal digits.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Xxh3::new();
        for (name, factors) in self.modules.iter() {
            hash.update(name.as_bytes());
            for number in factors.a.iter().chain(&factors.b) {
                hash.update(&number.to_le_bytes());
            }
        }
        format!("{:016x}", hash.digest())
    }

    /// The factors of a tensor of the checkpoint, by its full name.
    pub(crate) fn factors(&self, tensor: &str) -> Option<&Factors> {
        self.modules.get(tensor.strip_suffix(".weight")?)
    }

    /// Its additions to the matrices of a model. Where the checkpoint fuses several matrices, each gets its
    /// rows.
    ///
    /// # Errors
    /// [`Error::Input`] where it changes something that the model does not have, or of another shape.
    pub fn low_rank(&self, config: &Config) -> Result<Vec<LowRank>> {
        let mut left: Vec<&str> = self.modules().collect();
        let mut additions = Vec::new();
        for (unit, decl) in config.units().into_iter().enumerate() {
            for tensor in decl.tensors.iter().filter(|tensor| !tensor.is_vector()) {
                let Some(factors) = self.factors(&tensor.hf) else { continue };
                if (factors.rows, factors.cols) != (tensor.hf_rows, tensor.cols()) {
                    let what = format!(
                        "{}: the adapter changes `{}` as [{}, {}], in this model it is [{}, {}]",
                        self.dir.display(),
                        tensor.hf,
                        factors.rows,
                        factors.cols,
                        tensor.hf_rows,
                        tensor.cols()
                    );
                    return Err(Error::Input { what });
                }
                left.retain(|name| tensor.hf.strip_suffix(".weight") != Some(*name));
                let rank = factors.rank;
                let rows =
                    tensor.spans.iter().flat_map(|span| &factors.b[span.start * rank..span.end * rank]);
                let (role, a, b) = (tensor.role, factors.a.clone(), rows.copied().collect());
                additions.push(LowRank { unit, role, rank, a, b });
            }
        }
        match left.first() {
            None => Ok(additions),
            Some(name) => {
                let what = format!(
                    "{}: the adapter changes `{name}`, which a {} model does not have ({} of {} modules)",
                    self.dir.display(),
                    config.arch.name,
                    left.len(),
                    self.modules.len()
                );
                Err(Error::Input { what })
            }
        }
    }
}

/// The factors of an adapter's file.
fn modules(path: &Path, settings: &Settings) -> Result<BTreeMap<String, Factors>> {
    let mut modules = BTreeMap::new();
    let header = Header::read(path)?;
    let source = FileSource::open(&[path.to_path_buf()], ReadMethod::Buffered)?;
    let mut halves: BTreeMap<String, [Option<Half>; 2]> = BTreeMap::new();
    for info in header.tensors() {
        let refuse = |what: String| Error::Input {
            what: format!("{}: tensor `{}` {what}", path.display(), info.name),
        };
        let (module, half) = half_of(&info.name)
            .ok_or_else(|| refuse("is none of lora_A.weight and lora_B.weight of a module".into()))?;
        let [rows, cols] = info.shape[..] else {
            return Err(refuse(format!("has shape {:?}, two dimensions were expected", info.shape)));
        };
        let format = info
            .dtype
            .format()
            .ok_or_else(|| refuse(format!("is stored as {}, expected F32, F16 or BF16", info.dtype)))?;
        let mut bytes = vec![0; info.bytes as usize];
        source.read_at(0, info.start, &mut bytes)?;
        let mut numbers = vec![0.0; rows * cols];
        airllm_quant::unpack_row(format, &bytes, &mut numbers).map_err(|e| refuse(e.to_string()))?;
        if let Some(at) = numbers.iter().position(|n| !n.is_finite()) {
            return Err(refuse(format!("holds {} at {at}, a number was expected", numbers[at])));
        }
        halves.entry(module.to_owned()).or_default()[half] = Some((rows, cols, numbers));
    }
    for (module, halves) in halves {
        let refuse = |what: String| Error::Input { what: format!("{}: `{module}`: {what}", path.display()) };
        let [Some((rank, cols, a)), Some((rows, inner, mut b))] = halves else {
            return Err(refuse("one of lora_A and lora_B is missing".into()));
        };
        let expected = settings.rank(&module)?;
        if rank != inner || expected.is_some_and(|expected| expected != rank) {
            let told = expected.map_or(String::new(), |rank| format!(", the configuration says {rank}"));
            return Err(refuse(format!("lora_A has rank {rank}, lora_B has rank {inner}{told}")));
        }
        let scale = settings.scale(&module, rank)?;
        b.iter_mut().for_each(|b| *b *= scale);
        modules.insert(module, Factors { rank, rows, cols, a, b });
    }
    match modules.is_empty() {
        false => Ok(modules),
        true => Err(Error::Input { what: format!("{}: an adapter without tensors", path.display()) }),
    }
}

/// Rows, columns and numbers of one of the two matrices of a module.
type Half = (usize, usize, Vec<f32>);

/// Module and half (0 for A, 1 for B) that a tensor of an adapter file is.
fn half_of(name: &str) -> Option<(&str, usize)> {
    let name = name.strip_prefix(PREFIX).unwrap_or(name).strip_suffix(".weight")?;
    // Files written from memory carry the adapter's name between.
    let name = name.strip_suffix(".default").unwrap_or(name);
    let a = name.strip_suffix(".lora_A").map(|module| (module, 0));
    a.or_else(|| name.strip_suffix(".lora_B").map(|module| (module, 1)))
}

/// What an adapter's configuration says of ranks and scales.
struct Settings {
    path: PathBuf,
    base: Option<String>,
    rank: f64,
    alpha: f64,
    rs: bool,
    ranks: Map<String, Value>,
    alphas: Map<String, Value>,
}

impl Settings {
    fn read(config: &Value, path: &Path) -> Result<Settings> {
        let refuse = |field: &str, expected: &str| {
            let found = config.get(field).map_or("nothing".into(), Value::to_string);
            let found: String = found.chars().take(80).collect();
            Error::Input { what: format!("{}: {field}: expected {expected}, found {found}", path.display()) }
        };
        if config["peft_type"] != "LORA" {
            return Err(refuse("peft_type", "LORA, the only kind of adapter known here"));
        }
        if !matches!(config["bias"].as_str(), None | Some("none")) {
            return Err(refuse("bias", "none: adapters that change biases are not known here"));
        }
        for field in OTHER_KINDS {
            let off = match &config[*field] {
                Value::Null | Value::Bool(false) => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if !off {
                return Err(refuse(field, "nothing: adapters with it are not known here"));
            }
        }
        let number = |field: &str| {
            let number = config[field].as_f64().filter(|n| n.is_finite() && *n > 0.0);
            number.ok_or_else(|| refuse(field, "a number above 0"))
        };
        let patterns = |field: &str| match &config[field] {
            Value::Null => Ok(Map::new()),
            Value::Object(map) => Ok(map.clone()),
            _ => Err(refuse(field, "an object of numbers by module")),
        };
        Ok(Settings {
            path: path.to_path_buf(),
            base: config["base_model_name_or_path"].as_str().map(str::to_owned),
            rank: number("r")?,
            alpha: number("lora_alpha")?,
            rs: config["use_rslora"].as_bool().unwrap_or(false),
            ranks: patterns("rank_pattern")?,
            alphas: patterns("alpha_pattern")?,
        })
    }

    /// The rank that a module should have; `None` where only its tensors say.
    fn rank(&self, module: &str) -> Result<Option<usize>> {
        let rank = self.matching(&self.ranks, "rank_pattern", module)?.unwrap_or(self.rank);
        Ok((rank.fract() == 0.0).then_some(rank as usize))
    }

    fn scale(&self, module: &str, rank: usize) -> Result<f32> {
        let alpha = self.matching(&self.alphas, "alpha_pattern", module)?.unwrap_or(self.alpha);
        let rank = rank as f64;
        Ok((alpha / if self.rs { rank.sqrt() } else { rank }) as f32)
    }

    /// The number for a module in a map from ends of names.
    fn matching(&self, map: &Map<String, Value>, field: &str, module: &str) -> Result<Option<f64>> {
        for (pattern, value) in map {
            let refuse = |expected: &str| {
                let what = format!(
                    "{}: {field}: expected {expected}, found `{pattern}`: {value}",
                    self.path.display()
                );
                Error::Input { what }
            };
            let name = pattern.trim_start_matches('^').trim_end_matches('$');
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
                return Err(refuse("names of modules or their ends, not a pattern"));
            }
            let ends = module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            if ends {
                let number = value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
                return number.map(Some).ok_or_else(|| refuse("numbers above 0"));
            }
        }
        Ok(None)
    }
}

/// Reads several adapters of one model.
pub(crate) fn open_all(dirs: &[PathBuf]) -> Result<Vec<Adapter>> {
    let open = |dir: &PathBuf| {
        // The system's own words for a folder that is not there.
        std::fs::metadata(dir).at(dir, "opening the adapter")?;
        Adapter::open(dir)
    };
    dirs.iter().map(open).collect()
}
