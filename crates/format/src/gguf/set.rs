//! GGUF files as a checkpoint: one file or the parts of a split one, under Hugging Face names.

use super::families::{self, Family};
use super::names::Meaning;
use super::{Gguf, config};
use crate::safetensors::{Dtype, TensorInfo};
use crate::{Error, FileSource, LayerSource, Located, ReadMethod, Result};
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// More experts than any published model has by far.
const MOST_EXPERTS: usize = 1 << 16;
/// Parts of a split file, likewise.
const MOST_PARTS: u64 = 1 << 12;

/// The files of one model.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) source: FileSource,
    /// Of the first file, whose entries are those of the model.
    pub(crate) head: Gguf,
    /// Lengths of the files in bytes.
    pub(crate) lens: Vec<u64>,
    pub(crate) tensors: Vec<Located>,
    pub(crate) config: Json,
    pub(crate) generation_config: Option<Json>,
}

/// Whether a path is a GGUF file by its name.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) && path.is_file()
}

/// The GGUF model of a folder, by the path of its first file; `None` if there is no such file.
///
/// # Errors
/// [`Error::Missing`] if there are several models, or a part is missing.
pub(crate) fn find(dir: &Path) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::io(dir, "listing"))?;
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|p| is_gguf(p)).collect();
    paths.sort();
    let mut firsts = paths.iter().filter(|path| part_of(path).is_none_or(|part| part.number == 1));
    match (firsts.next(), firsts.next()) {
        (None, _) if paths.is_empty() => Ok(None),
        (None, _) => Err(Error::missing(dir, "parts of a split GGUF file, but not the first one")),
        (Some(only), None) => Ok(Some(only.clone())),
        (Some(_), Some(_)) => {
            let names: Vec<_> = paths.iter().filter_map(|path| path.file_name()?.to_str()).take(8).collect();
            let list = names.join(", ");
            Err(Error::missing(dir, format!("several GGUF files, give the path of one: {list}")))
        }
    }
}

/// What the name of a part says: `model-00002-of-00005.gguf`.
struct Part {
    stem: String,
    number: u64,
    count: u64,
}

fn part_of(path: &Path) -> Option<Part> {
    let name = path.file_stem()?.to_str()?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |text: &str| -> Option<u64> {
        (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
    };
    Some(Part { stem: stem.to_owned(), number: five(number)?, count: five(count)? })
}

impl Set {
    /// Opens the model of which `path` is a file.
    ///
    /// # Errors
    /// As [`Gguf::read`], and [`Error::Missing`] and [`Error::Malformed`] if the parts of a split file do not
    /// make a whole.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let paths = parts(path)?;
        let heads = paths.iter().map(|path| Gguf::read(path)).collect::<Result<Vec<_>>>()?;
        let source = FileSource::open(&paths, ReadMethod::Buffered)?;
        let mut places: HashMap<&str, (usize, &TensorInfo)> = HashMap::new();
        for (file, head) in heads.iter().enumerate() {
            for info in head.tensors() {
                if places.insert(&info.name, (file, info)).is_some() {
                    let what = format!("tensor `{}` is in an earlier part too", info.name);
                    return Err(Error::malformed(head.path(), what));
                }
            }
        }
        let Some(head) = heads.first() else { return Err(Error::missing(path, "no such file")) };
        check_parts(&heads, places.len())?;
        if head.metadata().text("general.architecture").is_none() {
            return Err(Error::malformed(head.path(), "there is no `general.architecture`: not a model"));
        }

        let tensor = |name: &str| places.get(name).map(|(_, info)| *info);
        let numbers = |name: &str| small(name, &places, &paths, &source);
        let family = families::find(head, &|name| places.contains_key(name))?;
        let config = match family {
            Some(family) => {
                let from = config::Source { gguf: head, tensor: &tensor, numbers: &numbers };
                config::config(&from, family)?
            }
            None => config::unknown(head),
        };
        let generation_config = config::generation(head)?;
        let mut tensors = Vec::new();
        for (file, head) in heads.iter().enumerate() {
            for info in head.tensors() {
                locate(file, info, family, head.path(), &mut tensors)?;
            }
        }
        let mut names = HashSet::new();
        if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.info.name.as_str())) {
            let what = format!("two tensors are the model's `{}`", twice.info.name);
            return Err(Error::malformed(&paths[twice.file], what));
        }
        let lens = heads.iter().map(Gguf::file_len).collect();
        let head = head.clone();
        Ok(Self { paths, source, head, lens, tensors, config, generation_config })
    }
}

/// All parts of the split file that a path belongs to; the path alone if it is not split.
fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let Some(part) = part_of(path) else { return Ok(vec![path.to_path_buf()]) };
    if part.count == 0 || part.count > MOST_PARTS || !(1..=part.count).contains(&part.number) {
        return Err(Error::malformed(path, format!("part {} of {} cannot be", part.number, part.count)));
    }
    let name =
        |number: u64| path.with_file_name(format!("{}-{number:05}-of-{:05}.gguf", part.stem, part.count));
    let paths: Vec<PathBuf> = (1..=part.count).map(name).collect();
    let missing: Vec<&PathBuf> = paths.iter().filter(|path| !path.is_file()).collect();
    match missing.first() {
        None => Ok(paths),
        Some(first) => {
            let what = format!("this part is missing ({} of {} are)", missing.len(), part.count);
            Err(Error::missing(first, what))
        }
    }
}

/// Checks what the parts say of themselves.
fn check_parts(heads: &[Gguf], tensors: usize) -> Result<()> {
    for (number, head) in heads.iter().enumerate() {
        for (key, expected) in
            [("split.no", number), ("split.count", heads.len()), ("split.tensors.count", tensors)]
        {
            let found = head.metadata().get(key).and_then(|value| value.whole());
            // A file that is not split may say nothing, or that it is the only part.
            if found != Some(expected as u64)
                && !(heads.len() == 1 && (found.is_none() || (key == "split.count" && found == Some(0))))
            {
                let found = found.map_or("nothing".to_owned(), |found| found.to_string());
                let what = format!("`{key}` is {found}, but the files that are there make it {expected}");
                return Err(Error::malformed(head.path(), what));
            }
        }
    }
    Ok(())
}

/// The numbers of a small tensor that belongs to the configuration.
fn small(
    name: &str,
    places: &HashMap<&str, (usize, &TensorInfo)>,
    paths: &[PathBuf],
    source: &FileSource,
) -> Result<Option<Vec<f32>>> {
    const MOST_BYTES: u64 = 1 << 16;
    let Some((file, info)) = places.get(name) else { return Ok(None) };
    if info.dtype != Dtype::F32 || info.bytes > MOST_BYTES {
        let what = format!(
            "tensor `{name}`: expected at most {} numbers of F32, found {:?} of {}",
            MOST_BYTES / 4,
            info.shape,
            info.dtype
        );
        return Err(Error::malformed(&paths[*file], what));
    }
    let mut bytes = vec![0; info.bytes as usize];
    source.read_at(*file, info.start, &mut bytes)?;
    let (numbers, _) = bytes.as_chunks::<4>();
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    if numbers.iter().any(|number| !number.is_finite() || *number <= 0.0) {
        let what = format!("tensor `{name}`: a factor is not above zero and finite");
        return Err(Error::malformed(&paths[*file], what));
    }
    Ok(Some(numbers))
}

/// Adds what a tensor of a file is in the checkpoint.
fn locate(
    file: usize,
    info: &TensorInfo,
    family: Option<&Family>,
    path: &Path,
    out: &mut Vec<Located>,
) -> Result<()> {
    let Some(family) = family else {
        out.push(Located { file, info: info.clone() });
        return Ok(());
    };
    let fail = |what: String| Error::malformed(path, format!("tensor `{}`: {what}", info.name));
    match family.names.meaning(&info.name) {
        Meaning::One(name) => {
            let mut info = TensorInfo { name, ..info.clone() };
            // The conversion drops sizes of 1, which this matrix of one row has.
            if info.name.ends_with("shared_expert_gate.weight") && info.shape.len() == 1 {
                info.shape.insert(0, 1);
            }
            out.push(Located { file, info });
        }
        Meaning::Configuration => out.push(Located { file, info: info.clone() }),
        Meaning::Experts(name) => {
            let &[experts, rows, cols] = info.shape.as_slice() else {
                return Err(fail(format!("expected experts, rows and columns, found {:?}", info.shape)));
            };
            if experts > MOST_EXPERTS {
                return Err(fail(format!("{experts} experts, more than {MOST_EXPERTS}")));
            }
            let bytes = info.bytes / experts as u64;
            for expert in 0..experts {
                let info = TensorInfo {
                    name: name.replace("{}", &expert.to_string()),
                    dtype: info.dtype,
                    shape: vec![rows, cols],
                    start: info.start + bytes * expert as u64,
                    bytes,
                };
                out.push(Located { file, info });
            }
        }
        Meaning::Unknown => {
            return Err(fail(format!("{} has no such tensor, as far as is known here", family.hf)));
        }
    }
    Ok(())
}
