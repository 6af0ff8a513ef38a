//! Finding a model by path or id, and what is known of it before it runs.

use crate::lift::{self, Lifted};
use crate::progress::Meter;
use crate::weights::Source;
use crate::{Cancel, ChatFormat, Error, GenerationConfig, OnProgress, Result, Stage};
use airllm_format::shard::parse_checksum;
use airllm_format::{Bits, LayerSource, NumFormat, Prepared, ReadMethod, Repo, TensorEntry};
use airllm_model::rope::Scaling;
use airllm_model::{Config, TensorDecl};
use airllm_stream::{Catalog, Tensor, Unit};
use airllm_text::{GgufVocabulary, Tokenizer};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A model that was found: a checkpoint as published, or a folder of prepared shards. No weights have
/// been read.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    id: Option<String>,
    form: Form,
    config: Config,
    generation: GenerationConfig,
}

/// In which form a [`Checkpoint`] lies on the disk.
#[derive(Debug)]
#[non_exhaustive]
pub enum Form {
    /// As published on the Hugging Face hub, or as a GGUF file.
    Published(Repo),
    /// As layer shards.
    Prepared(Prepared),
}

impl Checkpoint {
    /// Opens a folder with a checkpoint or prepared shards, or a GGUF file. `id` is the name it was asked for
    /// by.
    pub fn open(dir: &Path, id: Option<&str>) -> Result<Checkpoint> {
        let form = match Prepared::is_prepared(dir) {
            true => Form::Prepared(Prepared::open(dir)?),
            false => Form::Published(Repo::open(dir)?),
        };
        Self::of(form, dir, id)
    }

    /// Opens prepared shards in one folder or spread over several.
    pub fn open_shards(dirs: &[PathBuf]) -> Result<Checkpoint> {
        let prepared = Prepared::open_in(dirs)?;
        let dir = prepared.dir().to_path_buf();
        Self::of(Form::Prepared(prepared), &dir, None)
    }

    fn of(form: Form, dir: &Path, id: Option<&str>) -> Result<Checkpoint> {
        let name = match id {
            Some(id) => id.to_owned(),
            // "." and ".." have no name of their own.
            None => std::path::absolute(dir)
                .ok()
                .and_then(|dir| {
                    dir.canonicalize().unwrap_or(dir).file_name().map(|n| n.to_string_lossy().into_owned())
                })
                .map(|name| name.strip_suffix(".gguf").map_or(name.clone(), str::to_owned))
                .unwrap_or_else(|| "model".to_owned()),
        };
        let (config, generation) = match &form {
            Form::Published(repo) => (repo.config(), repo.generation_config()),
            Form::Prepared(p) => (&p.manifest().config, p.manifest().generation_config.as_ref()),
        };
        let mut config = parse_config(config, dir)?;
        let generation = GenerationConfig::read(generation, &config.eos)?;
        config.reordered = match &form {
            Form::Published(repo) => lift::reordered(repo, &config)?,
            Form::Prepared(prepared) => reordered(prepared, &config),
        };
        Ok(Checkpoint { name, id: id.map(str::to_owned), form, config, generation })
    }

    /// The id it was asked for by, or the name of its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The hub id it was asked for by.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        match &self.form {
            Form::Published(repo) => repo.dir(),
            Form::Prepared(prepared) => prepared.dir(),
        }
    }

    /// What was opened: the folder, or the GGUF file.
    pub fn path(&self) -> &Path {
        match &self.form {
            Form::Published(repo) => repo.path(),
            Form::Prepared(prepared) => prepared.dir(),
        }
    }

    /// Checkpoint or shards.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Gives up everything but the checkpoint or the shards.
    pub fn into_form(self) -> Form {
        self.form
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the checkpoint says about how to generate.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The most tokens a sequence may have; `None` for models whose position embedding adapts to any
    /// length (dynamic NTK).
    pub fn context(&self) -> Option<usize> {
        match self.config.rotary.scaling {
            Scaling::Dynamic { .. } | Scaling::PromptNtk { .. } => None,
            _ => Some(self.config.max_positions),
        }
    }

    /// The bits of prepared shards; `None` for a checkpoint.
    pub fn bits(&self) -> Option<Bits> {
        match &self.form {
            Form::Published(_) => None,
            Form::Prepared(prepared) => Some(prepared.manifest().recipe.bits),
        }
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        if let Form::Published(repo) = &self.form
            && let Some(gguf) = repo.gguf()
        {
            let metadata = gguf.metadata().to_json("tokenizer.");
            return Ok(Tokenizer::from_gguf(GgufVocabulary::from_metadata(&metadata)?)?);
        }
        Ok(Tokenizer::open(self.dir())?)
    }

    /// Its chat format.
    pub fn chat(&self) -> Result<ChatFormat> {
        ChatFormat::of(self)
    }

    /// Reads everything. Of prepared shards all checksums are compared; a checkpoint has none, so of it
    /// every weight is looked at and must be a number.
    pub fn verify(&self, cancel: &Cancel, report: &OnProgress) -> Result<()> {
        let mut meter = Meter::new(Stage::Verify, 0, report);
        match &self.form {
            Form::Prepared(prepared) => {
                prepared.verify(&mut |done, total| meter.set(&self.name, done, total, 0))?;
                Ok(())
            }
            Form::Published(repo) => {
                let units = lift::units(repo, &self.config, Bits::Source)?;
                crate::pack::check_numbers(repo, &units, cancel, &mut meter)
            }
        }
    }

    /// Its weight files: the checkpoint's own, or the shards.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.form {
            Form::Published(repo) => repo.files().to_vec(),
            Form::Prepared(prepared) => prepared.shard_paths(),
        }
    }

    /// What there is to stream when it is stored in `bits`; `None` means as it is. Prepared shards are
    /// never wider than they are.
    ///
    /// As it is, its places are those of [`open_source`](Self::open_source).
    pub fn catalog(&self, bits: Option<Bits>) -> Result<Catalog> {
        let bits = bits.unwrap_or(Bits::Source);
        match &self.form {
            Form::Published(_) => Ok(self.lifted(bits)?.catalog),
            Form::Prepared(prepared) => {
                let catalog = prepared_catalog(prepared, &self.config)?;
                Ok(if bits == Bits::Source { catalog } else { self.narrowed(catalog, bits) })
            }
        }
    }

    /// The bytes that [`catalog`](Self::catalog) names, without other bits: shards, or the checkpoint's own
    /// files and rows that are made of them while they are read.
    pub fn open_source(&self, method: ReadMethod) -> Result<Box<dyn LayerSource>> {
        let source = match &self.form {
            Form::Prepared(prepared) => Source::of(prepared),
            Form::Published(_) => Source::Checkpoint(self.lifted(Bits::Source)?.made),
        };
        source.open(&self.files(), &[method], 1)
    }

    /// What there is to stream of a checkpoint, and where from; of shards, nothing.
    pub(crate) fn lifted(&self, bits: Bits) -> Result<Lifted> {
        let Form::Published(repo) = &self.form else {
            return Ok(Lifted { catalog: Catalog::default(), made: Vec::new() });
        };
        let units = lift::units(repo, &self.config, bits)?;
        Ok(Lifted::new(units, &self.config, repo.files().len(), &repo.dir().display().to_string()))
    }

    /// The catalog of prepared shards as it would be with fewer bits; its places mean nothing then.
    fn narrowed(&self, mut catalog: Catalog, bits: Bits) -> Catalog {
        let units = self.config.units();
        let floors: HashMap<(&str, &str), NumFormat> = units
            .iter()
            .flat_map(|unit| unit.tensors.iter().map(|t| ((&*unit.name, &*t.name), lift::floor(t, bits))))
            .collect();
        for unit in &mut catalog.units {
            for tensor in &mut unit.tensors {
                if let Some(&floor) = floors.get(&(&*unit.name, &*tensor.name)) {
                    tensor.format = lift::choose(tensor.format, floor, bits);
                }
            }
        }
        catalog
    }
}

/// The matrices of prepared shards that have the order of their columns with them.
fn reordered(prepared: &Prepared, config: &Config) -> BTreeSet<String> {
    let shards = prepared.manifest().shards.iter();
    let orders: BTreeSet<(&str, &str)> = shards
        .flat_map(|shard| {
            shard.tensors.iter().filter_map(|t| Some((&*shard.unit, t.name.strip_suffix("_order")?)))
        })
        .collect();
    if orders.is_empty() {
        return BTreeSet::new();
    }
    let units = config.units();
    let tensors = units.iter().flat_map(|unit| unit.tensors.iter().map(move |decl| (unit, decl)));
    let ordered = tensors.filter(|(unit, decl)| orders.contains(&(&*unit.shard, &*unit.entry(decl))));
    ordered.map(|(_, decl)| decl.hf.clone()).collect()
}

/// The catalog of prepared shards: file `i` is shard `i`. Binding refuses what is missing.
pub(crate) fn prepared_catalog(prepared: &Prepared, config: &Config) -> Result<Catalog> {
    let shards = prepared.manifest().shards.iter().enumerate();
    let entries: HashMap<(&str, &str), (usize, &TensorEntry)> = shards
        .flat_map(|(file, shard)| shard.tensors.iter().map(move |t| ((&*shard.unit, &*t.name), (file, t))))
        .collect();
    let mut catalog = Catalog::default();
    for unit in config.units() {
        let found = unit.tensors.iter().filter_map(|decl| {
            let name = unit.entry(decl);
            let (file, entry) = entries.get(&(&*unit.shard, &*name))?;
            Some((decl, *file, *entry))
        });
        let tensor = |(decl, file, entry): (&TensorDecl, usize, &TensorEntry)| -> Result<Tensor> {
            let (rows, cols) = match *entry.shape {
                [cols] => (1, cols),
                [rows, cols] => (rows, cols),
                _ => {
                    let dir = prepared.dir().display();
                    let what = format!("{dir}: {} has shape {:?}", entry.name, entry.shape);
                    return Err(Error::Input { what });
                }
            };
            Ok(Tensor {
                name: decl.name.clone(),
                file,
                offset: entry.offset,
                format: entry.format,
                rows,
                cols,
                checksum: parse_checksum(&entry.checksum),
            })
        };
        let tensors = found.map(tensor).collect::<Result<_>>()?;
        catalog.units.push(Unit { name: unit.name, tensors, on_demand: unit.on_demand });
    }
    catalog.pass = lift::pass(&catalog, config);
    Ok(catalog)
}

fn parse_config(json: &Value, dir: &Path) -> Result<Config> {
    Config::parse(json).map_err(|error| Error::Input { what: format!("{}: {error}", dir.display()) })
}

/// What a user may mean by the name of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// A folder, or a GGUF file, that is there.
    Folder(PathBuf),
    /// `org/name`, perhaps with `@revision`.
    Id(&'a str),
}

/// Understands the name of a model: an existing folder first, then a hub id.
pub(crate) fn understand(model: &str) -> Result<Meaning<'_>> {
    let path = Path::new(model);
    let not_found = |what: String| Err(Error::NotFound { model: model.to_owned(), what });
    if path.is_dir() {
        return Ok(Meaning::Folder(path.to_path_buf()));
    }
    if path.is_file() && path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
        return Ok(Meaning::Folder(path.to_path_buf()));
    }
    if path.is_file() {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return not_found(format!("this is a file; name the folder it is in, {}", parent.display()));
    }
    let looks_like_path = model.starts_with(['.', '/', '~', '\\']) || model.ends_with('/');
    let name = model.split('@').next().unwrap_or(model);
    let plain = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.starts_with(['.', '-'])
    };
    let mut parts = name.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(org), Some(name), None) if !looks_like_path && plain(org) && plain(name) => Ok(Meaning::Id(model)),
        _ if looks_like_path || name.contains('/') => not_found(
            "no such folder; expected a folder with config.json and safetensors files, a prepared folder, or a \
             hub id of the form org/name"
                .to_owned(),
        ),
        _ => not_found(
            "no such folder here, and a hub id has the form org/name; expected a folder with config.json and \
             safetensors files, or a prepared folder"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(understand(path).unwrap(), Meaning::Folder(path.into()));
        assert_eq!(understand("org/Model-7B.v2").unwrap(), Meaning::Id("org/Model-7B.v2"));
        assert_eq!(understand("org/name@main").unwrap(), Meaning::Id("org/name@main"));
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, b"").unwrap();
        let message = understand(file.to_str().unwrap()).unwrap_err().to_string();
        assert!(message.contains("name the folder"), "{message}");
        for bad in
            ["/no/such/folder", "./no", "a/b/c", "no-such-model", "", "../x", "org/", "org/na me", "-x/y"]
        {
            let message = understand(bad).unwrap_err().to_string();
            assert!(message.contains("org/name"), "{bad}: {message}");
        }
    }
}
