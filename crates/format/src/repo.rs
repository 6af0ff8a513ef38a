//! A checkpoint as published on the Hugging Face hub: a folder of safetensors files, configuration and tokenizer,
//! or a GGUF file that has it all.

mod index;

pub use index::Index;

use crate::disk::{is_plain_name, open_file, read_bounded};
use crate::gguf::{self, Gguf};
use crate::json::{MAX_JSON, parse_object};
use crate::safetensors::{Header, TensorInfo};
use crate::{Error, FileSource, LayerSource, ReadMethod, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const INDEX: &str = "model.safetensors.index.json";

/// Side files by name; beside these, everything that ends in `.tiktoken`.
const SIDE_FILES: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Where a tensor of a [`Repo`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Index into [`Repo::files`].
    pub file: usize,
    /// Its name, type, shape and place in that file.
    pub info: TensorInfo,
}

/// An opened checkpoint. All headers are checked; no weights have been read.
#[derive(Debug)]
pub struct Repo {
    path: PathBuf,
    dir: PathBuf,
    config: Value,
    generation_config: Option<Value>,
    config_bytes: Vec<Vec<u8>>,
    paths: Vec<PathBuf>,
    source: FileSource,
    /// Lengths of the files in bytes.
    lens: Vec<u64>,
    tensors: Vec<Located>,
    by_name: HashMap<String, usize>,
    gguf: Option<Gguf>,
}

impl Repo {
    /// Opens a folder with `config.json` and either `model.safetensors` or
    /// `model.safetensors.index.json` and the files it names; or a GGUF file, or a folder with one and no
    /// safetensors. Of a split GGUF file (`NAME-00001-of-00003.gguf`) any part will do.
    ///
    /// Tensors that a safetensors file holds but the index does not name are left out, as other readers do.
    ///
    /// A GGUF file is shown as the Hugging Face checkpoint of the same model: with its names of tensors, one
    /// tensor for each expert, and [`config`](Self::config) and [`generation_config`](Self::generation_config)
    /// put together from its entries. Nothing is moved or changed, so three things differ from a checkpoint:
    ///
    /// - `"rope_interleaved": true`: the rows of queries and keys (and their biases) stand in the order in which
    ///   rotary embedding turns neighbours (2i, 2i+1) instead of halves (i, i + n/2). Llama and what is converted
    ///   as such: Mistral, Mixtral, Baichuan 7B, InternLM 2; the last two are shown as `LlamaForCausalLM`.
    /// - `"norm_offset_folded": true`: the weights of norms have their 1 added already (Gemma).
    /// - `"rope_scaling": {"rope_type": "factors", "factors": [f0, f1, …], "tensor": "rope_freqs.weight"}`: frequency
    ///   i is divided by `factors[i]`. Llama 3.1 and later, whose files hold the result of the scaling only.
    ///
    /// A model that is not known has the architecture `gguf:NAME` and the names of the file.
    ///
    /// # Errors
    /// [`Error::Missing`] for a missing folder, file or tensor, [`Error::Malformed`] for anything that is
    /// not as its format says, [`Error::Io`] where the system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        if gguf::is_gguf(path) {
            return Self::open_gguf(path, path);
        }
        if !path.is_dir() {
            let what = if path.exists() {
                "expected a folder with a checkpoint or a GGUF file, found a file of another kind"
            } else {
                "no such folder"
            };
            return Err(Error::missing(path, what));
        }
        if !["model.safetensors", INDEX].iter().any(|name| path.join(name).exists())
            && let Some(file) = gguf::find(path)?
        {
            return Self::open_gguf(path, &file);
        }
        Self::open_folder(path)
    }

    fn open_gguf(path: &Path, file: &Path) -> Result<Self> {
        let set = gguf::Set::open(file)?;
        let configs = [Some(&set.config), set.generation_config.as_ref()];
        let config_bytes =
            configs.into_iter().flatten().map(|config| config.to_string().into_bytes()).collect();
        Ok(Self {
            path: path.to_path_buf(),
            dir: file.parent().unwrap_or(Path::new("")).to_path_buf(),
            config: set.config,
            generation_config: set.generation_config,
            config_bytes,
            paths: set.paths,
            source: set.source,
            lens: set.lens,
            by_name: by_name(&set.tensors),
            tensors: set.tensors,
            gguf: Some(set.head),
        })
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let config_path = dir.join("config.json");
        if !config_path.exists() {
            return Err(Error::missing(dir, "no config.json: not a checkpoint folder"));
        }
        let config_bytes = read_bounded(&config_path, MAX_JSON)?;
        let config = parse_object(&config_bytes, &config_path)?;
        let mut config_bytes = vec![config_bytes];
        let mut generation_config = None;
        let generation_path = dir.join("generation_config.json");
        if generation_path.exists() {
            let bytes = read_bounded(&generation_path, MAX_JSON)?;
            generation_config = Some(parse_object(&bytes, &generation_path)?);
            config_bytes.push(bytes);
        }
        let weights = Weights::open(dir)?;
        Ok(Self {
            path: dir.to_path_buf(),
            dir: dir.to_path_buf(),
            config,
            generation_config,
            config_bytes,
            paths: weights.paths,
            source: weights.source,
            lens: weights.headers.iter().map(Header::file_len).collect(),
            by_name: by_name(&weights.tensors),
            tensors: weights.tensors,
            gguf: None,
        })
    }

    /// What was opened: the folder, or the GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that the files are in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The head of the GGUF file, if it is one: of the first part, if it is split.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// The content of `config.json`, an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The content of `generation_config.json`, an object, if there is one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Located> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// All tensors, in the order of the files and of their bytes.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Located> {
        self.tensors.iter()
    }

    /// The files with the weights, to be given to a [`FileSource`](crate::FileSource).
    pub fn files(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The bytes of [`files`](Self::files), read through the page cache.
    pub fn source(&self) -> &FileSource {
        &self.source
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.info.bytes).sum()
    }

    /// Fills `buf` with the bytes `range` of a tensor, counted from its first byte.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such tensor, [`Error::Malformed`] if the range is not inside it or
    /// not as long as `buf`, [`Error::Io`] where the system refuses.
    pub fn read(&self, name: &str, range: Range<u64>, buf: &mut [u8]) -> Result<()> {
        let at = self.tensor(name).ok_or_else(|| Error::missing(&self.dir, format!("no tensor `{name}`")))?;
        let path = &self.paths[at.file];
        if range.start > range.end || range.end > at.info.bytes || range.end - range.start != buf.len() as u64
        {
            return Err(Error::malformed(
                path,
                format!(
                    "bytes {range:?} of tensor `{name}` ({} bytes) asked into a buffer of {}",
                    at.info.bytes,
                    buf.len()
                ),
            ));
        }
        let offset = at.info.start + range.start;
        self.source.read_at(at.file, offset, buf)
    }

    /// Tells the system that the bytes of a tensor will not be needed again soon, so that reading a large
    /// checkpoint once does not push everything else out of the page cache.
    pub fn forget(&self, name: &str) {
        if let Some(at) = self.tensor(name) {
            self.source.forget(at.file, at.info.start, at.info.bytes);
        }
    }

    /// The files beside the weights that a prepared folder carries along: configuration, tokenizer, chat
    /// template. Sorted by name. None for a GGUF file, see [`side_texts`](Self::side_texts).
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed.
    pub fn side_files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if self.gguf.is_some() {
            return Ok(found);
        }
        for entry in fs::read_dir(&self.dir).map_err(Error::io(&self.dir, "listing"))? {
            let path = entry.map_err(Error::io(&self.dir, "listing"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if (SIDE_FILES.contains(&&*name) || name.ends_with(".tiktoken")) && path.is_file() {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// What a GGUF file says instead of side files, as names and contents of files that a prepared folder can
    /// carry along: `tokenizer.gguf.json`, the entries of the tokenizer as they are, and `chat_template.jinja`.
    pub fn side_texts(&self) -> Vec<(&'static str, String)> {
        let Some(metadata) = self.gguf.as_ref().map(Gguf::metadata) else { return Vec::new() };
        let mut texts = Vec::new();
        if metadata.get("tokenizer.ggml.model").is_some() {
            texts.push(("tokenizer.gguf.json", metadata.to_json("tokenizer.").to_string()));
        }
        if let Some(template) = metadata.text("tokenizer.chat_template") {
            texts.push(("chat_template.jinja", template.to_owned()));
        }
        texts
    }

    /// A stable name for the content, for keys of caches: 32 hexadecimal digits.
    ///
    /// It covers the configuration, the headers and file lengths, and of the weights all bytes of a
    /// checkpoint up to 64 MiB, of a larger one samples of every tensor (so that two fine-tunes with equal
    /// shapes differ). Times, places and the tokenizer files do not enter.
    ///
    /// # Errors
    /// [`Error::Io`] if a sample cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        const WHOLE: u64 = 64 << 20;
        const SAMPLE: u64 = 4096;
        let mut hash = Xxh3::new();
        let mut add = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(b"airllm checkpoint 1");
        self.config_bytes.iter().for_each(|bytes| add(bytes));
        for (path, len) in self.paths.iter().zip(&self.lens) {
            add(path.file_name().unwrap_or_default().as_encoded_bytes());
            add(&len.to_le_bytes());
        }
        let whole = self.bytes() <= WHOLE;
        let mut buf = Vec::new();
        for t in &self.tensors {
            add(t.info.name.as_bytes());
            add(t.info.dtype.name().as_bytes());
            t.info.shape.iter().for_each(|&d| add(&(d as u64).to_le_bytes()));
            add(&t.info.start.to_le_bytes());
            let len = t.info.bytes;
            let starts = [0, len.saturating_sub(SAMPLE) / 2, len.saturating_sub(SAMPLE)];
            let (starts, sample) =
                if whole || len <= 3 * SAMPLE { (&starts[..1], len) } else { (&starts[..], SAMPLE) };
            for &from in starts {
                buf.resize(sample as usize, 0);
                self.read(&t.info.name, from..from + sample, &mut buf)?;
                add(&buf);
            }
        }
        Ok(format!("{:032x}", hash.digest128()))
    }
}

fn by_name(tensors: &[Located]) -> HashMap<String, usize> {
    tensors.iter().enumerate().map(|(i, t)| (t.info.name.clone(), i)).collect()
}

/// The opened weight files of a folder.
struct Weights {
    paths: Vec<PathBuf>,
    source: FileSource,
    headers: Vec<Header>,
    tensors: Vec<Located>,
}

impl Weights {
    fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index_path = dir.join(INDEX);
        if single.exists() {
            return Self::open_files(vec![single], None);
        }
        if !index_path.exists() {
            return Err(no_weights(dir));
        }
        let index = Index::read(&index_path)?;
        let paths: Vec<PathBuf> = index.files().iter().map(|f| dir.join(f)).collect();
        if let Some(gone) = paths.iter().find(|p| !p.exists()) {
            let count = paths.iter().filter(|p| !p.exists()).count();
            return Err(Error::missing(
                gone,
                format!(
                    "the index names this file, it is not there ({count} of {} files are missing)",
                    paths.len()
                ),
            ));
        }
        Self::open_files(paths, Some((&index, &index_path)))
    }

    fn open_files(paths: Vec<PathBuf>, index: Option<(&Index, &Path)>) -> Result<Self> {
        let (mut headers, mut tensors) = (Vec::new(), Vec::new());
        for path in &paths {
            let (file, len) = open_file(path)?;
            headers.push(Header::read_from(&file, len, path)?);
        }
        for (number, header) in headers.iter().enumerate() {
            let name = paths[number].file_name().unwrap_or_default().to_string_lossy();
            for info in header.tensors() {
                if index.is_none_or(|(index, _)| index.file_of(&info.name) == Some(&*name)) {
                    tensors.push(Located { file: number, info: info.clone() });
                }
            }
        }
        if let Some((index, path)) = index {
            check_index(index, path, &paths, &headers)?;
        }
        let source = FileSource::open(&paths, ReadMethod::Buffered)?;
        Ok(Self { paths, source, headers, tensors })
    }
}

/// Checks that every tensor of the index is in the file that the index names.
fn check_index(index: &Index, index_path: &Path, paths: &[PathBuf], headers: &[Header]) -> Result<()> {
    let number: HashMap<&str, usize> =
        index.files().iter().enumerate().map(|(i, f)| (f.as_str(), i)).collect();
    for (tensor, file) in index.weight_map() {
        if headers[number[file]].get(tensor).is_none() {
            let elsewhere = headers.iter().position(|h| h.get(tensor).is_some());
            let hint = elsewhere.map_or("nor is it in another one".to_owned(), |i| {
                format!("it is in {}", paths[i].display())
            });
            return Err(Error::malformed(
                index_path,
                format!("tensor `{tensor}` is not in {file} as the index says; {hint}"),
            ));
        }
    }
    Ok(())
}

/// The refusal of a folder without safetensors, with what there is instead.
fn no_weights(dir: &Path) -> Error {
    let names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| is_plain_name(n))
        .collect();
    let with = |end: &str| names.iter().filter(|n| n.ends_with(end)).min();
    let hint = if let Some(name) = with(".safetensors") {
        format!("; {name} is there, but no index names it")
    } else if let Some(name) = with(".bin").or(with(".pth")) {
        format!(
            "; {name} is there, but only safetensors and GGUF files are read: convert the checkpoint first"
        )
    } else {
        String::new()
    };
    Error::missing(dir, format!("neither model.safetensors nor model.safetensors.index.json{hint}"))
}

#[cfg(test)]
mod tests;
