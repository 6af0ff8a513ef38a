//! `quantization_config`: what a checkpoint says about how its weights were made smaller.
//!
//! Only what the files cannot say themselves is taken from it; methods and variants that are not known
//! are refused by name, because their tensors could look like those of another.

use crate::{Error, Result};
use airllm_format::{Repo, read_json_object};
use serde_json::{Map, Value};

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Nothing.
    Plain,
    /// GPTQ: integers packed along the inputs.
    Gptq {
        /// Bits of a code, 4 or 8.
        bits: usize,
        /// Inputs that share a scale; `None` is all of them.
        group: Option<usize>,
        /// What is added to a stored zero point: 1, but 0 in the second version of the format.
        zero_offset: u8,
    },
    /// AWQ, GEMM layout: 4-bit integers packed along the outputs.
    Awq {
        /// Inputs that share a scale; `None` is all of them.
        group: Option<usize>,
    },
    /// 8-bit floats.
    Fp8 {
        /// Rows and columns that share a scale, where blocks do.
        block: Option<[usize; 2]>,
    },
    /// bitsandbytes, whose tensors describe themselves.
    BitsAndBytes,
}

impl Scheme {
    /// What a checkpoint's `config.json` says; where that has nothing, its `quantize_config.json`, which
    /// older GPTQ checkpoints have instead.
    ///
    /// # Errors
    /// [`Error::Input`] for methods and variants that are not known, by name.
    pub(crate) fn read(repo: &Repo) -> Result<Scheme> {
        let config = repo.config();
        let found = ["quantization_config", "compression_config"].into_iter().find_map(|key| {
            config
                .get(key)
                .filter(|value| !value.is_null())
                .map(|value| (format!("config.json: {key}"), value))
        });
        if let Some((place, value)) = found {
            return Fields::new(repo, &place, value)?.scheme(None);
        }
        let path = repo.dir().join("quantize_config.json");
        if path.exists() {
            let value = read_json_object(&path)?;
            return Fields::new(repo, "quantize_config.json", &value)?.scheme(Some("gptq"));
        }
        Ok(Scheme::Plain)
    }
}

/// The fields of one of these objects.
struct Fields<'a> {
    /// Folder and object, for messages.
    place: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(repo: &Repo, place: &str, value: &'a Value) -> Result<Self> {
        let place = format!("{}/{place}", repo.dir().display());
        match value {
            Value::Object(map) => Ok(Fields { place, map }),
            other => Err(Error::Input { what: format!("{place}: expected an object, found {other}") }),
        }
    }

    fn scheme(&self, method: Option<&str>) -> Result<Scheme> {
        let method = match self.text("quant_method")?.or(method) {
            Some(method) => method.to_owned(),
            None => return Err(self.refuse("quant_method", "the name of a method")),
        };
        match method.as_str() {
            "gptq" => self.gptq(),
            "awq" => self.awq(),
            "fp8" | "fbgemm_fp8" => Ok(Scheme::Fp8 { block: self.block()? }),
            "compressed-tensors" => self.compressed(),
            // fp4 has no format of its own here, but the files hold its table of values.
            "bitsandbytes" => Ok(Scheme::BitsAndBytes),
            _ => Err(self.refuse("quant_method", "gptq, awq, fp8, compressed-tensors or bitsandbytes")),
        }
    }

    fn gptq(&self) -> Result<Scheme> {
        let bits = match self.number("bits")? {
            Some(bits @ (4 | 8)) => bits as usize,
            _ => return Err(self.refuse("bits", "4 or 8")),
        };
        let zero_offset = match self.text("checkpoint_format")? {
            None | Some("gptq") => 1,
            Some("gptq_v2") => 0,
            Some(_) => return Err(self.refuse("checkpoint_format", "gptq or gptq_v2")),
        };
        Ok(Scheme::Gptq { bits, group: self.group()?, zero_offset })
    }

    fn awq(&self) -> Result<Scheme> {
        // The first writers had other names for these.
        if !matches!(self.number("bits")?.or(self.number("w_bit")?), Some(4)) {
            return Err(self.refuse("bits", "4"));
        }
        match self.text("version")?.map(str::to_lowercase).as_deref() {
            None | Some("gemm") => Ok(Scheme::Awq { group: self.group()? }),
            Some(_) => Err(self.refuse("version", "gemm")),
        }
    }

    fn compressed(&self) -> Result<Scheme> {
        match self.text("format")? {
            Some("float-quantized" | "naive-quantized") => {}
            _ => return Err(self.refuse("format", "float-quantized")),
        }
        // Blocks are said in each group of layers; the shapes of the scales are checked against them.
        let groups = self.map.get("config_groups").and_then(Value::as_object);
        let weights = groups.into_iter().flatten().filter_map(|(_, group)| group.get("weights"));
        let mut block = None;
        for weights in weights {
            let fields = Fields {
                place: format!("{}: weights", self.place),
                map: match weights {
                    Value::Object(map) => map,
                    _ => continue,
                },
            };
            if fields.number("num_bits")? != Some(8) || fields.text("type")? != Some("float") {
                return Err(fields.refuse("type", "8-bit floats"));
            }
            block = block.or(fields.pair("block_structure")?);
        }
        Ok(Scheme::Fp8 { block })
    }

    fn block(&self) -> Result<Option<[usize; 2]>> {
        self.pair("weight_block_size")
    }

    fn group(&self) -> Result<Option<usize>> {
        let key = if self.map.contains_key("q_group_size") { "q_group_size" } else { "group_size" };
        match self.number(key)? {
            Some(-1) => Ok(None),
            Some(size) if size > 0 && size % 32 == 0 => Ok(Some(size as usize)),
            _ => Err(self.refuse(key, "-1 or a multiple of 32")),
        }
    }

    /// Two sizes.
    fn pair(&self, key: &str) -> Result<Option<[usize; 2]>> {
        let Some(value) = self.map.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let size = |value: &Value| value.as_u64().filter(|n| (1..1 << 24).contains(n)).map(|n| n as usize);
        match value.as_array().map(Vec::as_slice) {
            Some([a, b]) => size(a).zip(size(b)).map(|(a, b)| Some([a, b])),
            _ => None,
        }
        .ok_or_else(|| self.refuse(key, "two sizes"))
    }

    fn number(&self, key: &str) -> Result<Option<i64>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| self.refuse(key, "a whole number")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.refuse(key, "a text")),
        }
    }

    fn refuse(&self, key: &str, expected: &str) -> Error {
        let found = self.map.get(key).map_or("nothing".to_owned(), Value::to_string);
        let found: String = found.chars().take(100).collect();
        Error::Input { what: format!("{}: {key} is {found}, expected {expected}", self.place) }
    }
}
