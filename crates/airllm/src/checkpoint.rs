//! Finding a model by path or id, and what is known of it before it runs.

use crate::lift::{self, TensorPlan, UnitPlan};
use crate::progress::Meter;
use crate::{Cancel, ChatFormat, Error, GenerationConfig, OnProgress, Result, Stage};
use airllm_format::shard::parse_checksum;
use airllm_format::{Bits, Prepared, Repo};
use airllm_model::Config;
use airllm_model::rope::Scaling;
use airllm_stream::{Catalog, Tensor, Unit};
use airllm_text::Tokenizer;
use serde_json::Value;
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
    /// As published on the Hugging Face hub.
    Published(Repo),
    /// As layer shards.
    Prepared(Prepared),
}

impl Checkpoint {
    /// Opens a folder: a checkpoint, or prepared shards. `id` is the name it was asked for by.
    pub fn open(dir: &Path, id: Option<&str>) -> Result<Checkpoint> {
        let form = match Prepared::is_prepared(dir) {
            true => Form::Prepared(Prepared::open(dir)?),
            false => Form::Published(Repo::open(dir)?),
        };
        let name = match id {
            Some(id) => id.to_owned(),
            // "." and ".." have no name of their own.
            None => std::path::absolute(dir)
                .ok()
                .and_then(|dir| {
                    dir.canonicalize().unwrap_or(dir).file_name().map(|n| n.to_string_lossy().into_owned())
                })
                .unwrap_or_else(|| "model".to_owned()),
        };
        let (config, generation) = match &form {
            Form::Published(repo) => (repo.config(), repo.generation_config()),
            Form::Prepared(p) => (&p.manifest().config, p.manifest().generation_config.as_ref()),
        };
        let config = parse_config(config, dir)?;
        let generation = GenerationConfig::read(generation, &config.eos)?;
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
            Scaling::Dynamic { .. } => None,
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
    pub fn catalog(&self, bits: Option<Bits>) -> Result<Catalog> {
        let bits = bits.unwrap_or(Bits::Source);
        let units = match &self.form {
            Form::Published(repo) => lift::units(repo, &self.config, bits)?,
            Form::Prepared(prepared) => {
                let catalog = prepared_catalog(prepared, &self.config)?;
                if bits == Bits::Source {
                    return Ok(catalog);
                }
                self.narrowed(&catalog, bits)?
            }
        };
        Ok(lift::catalog(&units, &self.config))
    }

    /// The units of prepared shards as they would be with fewer bits.
    fn narrowed(&self, catalog: &Catalog, bits: Bits) -> Result<Vec<UnitPlan>> {
        let plan = |unit: airllm_model::UnitDecl| -> Result<UnitPlan> {
            let tensors = unit.tensors.into_iter().map(|decl| {
                let found = catalog.find(&unit.name, &decl.name).and_then(|id| catalog.get(id));
                let from = found.map(|tensor| tensor.format).ok_or_else(|| Error::Input {
                    what: format!("{}: {}/{} is missing", self.dir().display(), unit.name, decl.name),
                })?;
                let to = lift::choose(from, decl.floor, bits);
                Ok(TensorPlan { decl, from, to })
            });
            let tensors = tensors.collect::<Result<_>>()?;
            Ok(UnitPlan { file: String::new(), name: unit.name, tensors })
        };
        self.config.units().into_iter().map(plan).collect()
    }
}

/// The catalog of prepared shards: file `i` is shard `i`.
pub(crate) fn prepared_catalog(prepared: &Prepared, config: &Config) -> Result<Catalog> {
    let mut catalog = Catalog::default();
    for (file, shard) in prepared.manifest().shards.iter().enumerate() {
        let tensor = |entry: &airllm_format::TensorEntry| -> Result<Tensor> {
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
                name: entry.name.clone(),
                file,
                offset: entry.offset,
                format: entry.format,
                rows,
                cols,
                checksum: parse_checksum(&entry.checksum),
            })
        };
        let tensors = shard.tensors.iter().map(tensor).collect::<Result<_>>()?;
        catalog.units.push(Unit { name: shard.unit.clone(), tensors });
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
    /// A folder that is there.
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
