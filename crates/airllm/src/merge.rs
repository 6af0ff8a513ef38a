//! Writing a checkpoint anew with adapters folded into its weights, as a Hugging Face folder.
//!
//! Every file keeps its header and its layout; only the bytes of matrices that an adapter changes are
//! others. So whatever could read the checkpoint can read the result.

use crate::adapter::Factors;
use crate::error::At;
use crate::progress::Meter;
use crate::{Adapter, Cancel, Checkpoint, Error, Form, OnProgress, Result, Stage};
use airllm_format::{FileSource, LayerSource, Located, NumFormat, ReadMethod, Repo, copy_file, free_space};
use airllm_quant::{pack_row, unpack_row};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes read at once.
const BLOCK: usize = 8 << 20;

/// Writes `checkpoint` with `adapters` folded in to the new folder `out`, and returns the files of weights.
///
/// A weight becomes `W + scale · B · A`, computed in f32 and rounded to what `W` is stored as.
///
/// Each file appears under its name when it is whole, the index and `config.json` come last: a folder that
/// was not finished is not taken for a checkpoint.
///
/// # Errors
/// [`Error::Input`] for a matrix that is not stored as plain numbers, for shards, for a folder that holds
/// something already, and for an adapter that does not fit; [`Error::NoSpace`] before anything is written.
pub fn merge(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    out: &Path,
    cancel: &Cancel,
    report: &OnProgress,
) -> Result<Vec<PathBuf>> {
    let Form::Published(repo) = checkpoint.form() else {
        let what = format!(
            "{}: prepared shards: adapters are merged into a checkpoint as published",
            checkpoint.dir().display()
        );
        return Err(Error::Input { what });
    };
    if repo.gguf().is_some() {
        let what = format!(
            "{}: a GGUF file: adapters can be folded into shards of it (--bits), or applied while it runs",
            repo.path().display()
        );
        return Err(Error::Input { what });
    }
    check(repo, checkpoint, adapters)?;
    std::fs::create_dir_all(out).at(out, "creating the folder")?;
    if std::fs::read_dir(out).at(out, "listing")?.next().is_some() {
        let what = format!("{}: holds something already; name a new or an empty folder", out.display());
        return Err(Error::Input { what });
    }
    let (needed, free) = (repo.bytes(), free_space(out)?);
    if needed > free {
        let what = format!("merging {}", repo.dir().display());
        return Err(Error::NoSpace { path: out.to_path_buf(), what, needed, free });
    }
    let mut meter = Meter::new(Stage::Prepare, repo.bytes(), report);
    let source = FileSource::open(repo.files(), ReadMethod::Buffered)?;
    let mut written = Vec::new();
    for (number, path) in repo.files().iter().enumerate() {
        let name = path.file_name().unwrap_or_default();
        let part = out.join(format!(".{}.part", name.to_string_lossy()));
        let copy = Copy { source: &source, number, repo, adapters, cancel };
        let file = File::create(&part).at(&part, "creating")?;
        let done = copy.run(file, &part, &mut meter);
        if let Err(error) = done {
            // What is left is of no use to anyone; the error that led here says more than this one would.
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
        let whole = out.join(name);
        std::fs::rename(&part, &whole).at(&whole, "renaming")?;
        written.push(whole);
    }
    let index = repo.dir().join("model.safetensors.index.json");
    if index.exists() {
        copy_file(&index, out)?;
    }
    let (config, others): (Vec<_>, Vec<_>) =
        repo.side_files()?.into_iter().partition(|path| path.ends_with("config.json"));
    for path in others.into_iter().chain(config) {
        copy_file(&path, out)?;
    }
    Ok(written)
}

/// Refuses what cannot be merged before anything is written.
fn check(repo: &Repo, checkpoint: &Checkpoint, adapters: &[Adapter]) -> Result<()> {
    for adapter in adapters {
        adapter.low_rank(checkpoint.config())?;
        for module in adapter.modules() {
            let name = format!("{module}.weight");
            let found = repo.tensor(&name);
            let plain = found.and_then(|at| at.info.dtype.format()).filter(|format| !format.is_quantised());
            if plain.is_none() {
                let stored = found.map_or("missing".into(), |at| format!("stored as {}", at.info.dtype));
                let what = format!(
                    "{}: `{name}` is {stored}, F32, F16 or BF16 was expected: an adapter of a quantised model \
                     can be folded into shards (--bits), or applied while it runs (--adapter)",
                    repo.dir().display()
                );
                return Err(Error::Input { what });
            }
        }
    }
    Ok(())
}

/// The copy of one file.
struct Copy<'a> {
    source: &'a FileSource,
    number: usize,
    repo: &'a Repo,
    adapters: &'a [Adapter],
    cancel: &'a Cancel,
}

impl Copy<'_> {
    fn run(&self, mut file: File, path: &Path, meter: &mut Meter<'_>) -> Result<()> {
        // Tensors of this file that change, by their place.
        let mut changed: Vec<(&Located, Vec<&Factors>)> = self
            .repo
            .tensors()
            .filter(|at| at.file == self.number)
            .filter_map(|at| {
                let factors: Vec<_> = self.adapters.iter().filter_map(|a| a.factors(&at.info.name)).collect();
                (!factors.is_empty()).then_some((at, factors))
            })
            .collect();
        changed.sort_by_key(|(at, _)| at.info.start);
        let end = self.source.len(self.number);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut at = 0;
        let mut bytes = Vec::new();
        for (tensor, factors) in changed {
            self.plain(at..tensor.info.start, &mut file, path, &mut bytes, (&name, meter))?;
            self.merged(tensor, &factors, &mut file, path, (&name, meter))?;
            at = tensor.info.start + tensor.info.bytes;
        }
        self.plain(at..end, &mut file, path, &mut bytes, (&name, meter))?;
        file.sync_all().at(path, "flushing")
    }

    /// Copies bytes as they are.
    fn plain(
        &self,
        range: std::ops::Range<u64>,
        file: &mut File,
        path: &Path,
        bytes: &mut Vec<u8>,
        (name, meter): (&str, &mut Meter<'_>),
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            self.cancel.check()?;
            bytes.resize((range.end - at).min(BLOCK as u64) as usize, 0);
            self.source.read_at(self.number, at, bytes)?;
            file.write_all(bytes).at(path, "writing")?;
            at += bytes.len() as u64;
            meter.add(name, bytes.len() as u64);
        }
        Ok(())
    }

    /// Writes a matrix with what is added to it.
    fn merged(
        &self,
        tensor: &Located,
        factors: &[&Factors],
        file: &mut File,
        path: &Path,
        (name, meter): (&str, &mut Meter<'_>),
    ) -> Result<()> {
        let info = &tensor.info;
        let (Some(format), &[rows, cols]) = (info.dtype.format(), &info.shape[..]) else {
            return Ok(());
        };
        let size = format.row_bytes(cols);
        let step = (BLOCK / size.max(1)).max(1);
        let mut weights = vec![0.0; cols];
        let mut bytes = Vec::new();
        for first in (0..rows).step_by(step) {
            self.cancel.check()?;
            let last = (first + step).min(rows);
            bytes.resize((last - first) * size, 0);
            self.source.read_at(self.number, info.start + (first * size) as u64, &mut bytes)?;
            for (row, packed) in (first..last).zip(bytes.chunks_exact_mut(size)) {
                add(format, factors, row, packed, &mut weights).map_err(|error| Error::Input {
                    what: format!(
                        "{}: `{}`, row {row}: {error}",
                        self.repo.files()[self.number].display(),
                        info.name
                    ),
                })?;
            }
            file.write_all(&bytes).at(path, "writing")?;
            meter.add(name, bytes.len() as u64);
        }
        Ok(())
    }
}

fn add(
    format: NumFormat,
    factors: &[&Factors],
    row: usize,
    packed: &mut [u8],
    weights: &mut [f32],
) -> airllm_quant::Result<()> {
    unpack_row(format, packed, weights)?;
    factors.iter().for_each(|factors| factors.add_to(row, weights));
    pack_row(format, weights, packed)
}
