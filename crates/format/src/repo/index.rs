//! `model.safetensors.index.json`: which tensor is in which file.

use crate::disk::{is_plain_name, read_bounded};
use crate::json::{MAX_JSON, utf8};
use crate::safetensors::UniqueStrings;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The checked index of a checkpoint that is split over several files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    weight_map: BTreeMap<String, String>,
    files: Vec<String>,
}

/// The part of the index that matters. `metadata.total_size` does not: published ones are often wrong.
#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueStrings,
}

impl Index {
    /// Reads and checks an index file.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Io`] if it cannot be read, [`Error::Malformed`] as
    /// [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_bounded(path, MAX_JSON)?, path)
    }

    /// Checks the bytes of an index; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not JSON, has no `weight_map` of strings, names a tensor twice, or
    /// names a file outside of the folder or one that is no safetensors file.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let raw: RawIndex = serde_json::from_str(utf8(bytes, path)?)
            .map_err(|e| Error::malformed(path, format!("not a valid index: {e}")))?;
        let weight_map = raw.weight_map.0;
        if weight_map.is_empty() {
            return Err(Error::malformed(path, "the weight_map is empty"));
        }
        for (tensor, file) in &weight_map {
            if !is_plain_name(file) || !file.ends_with(".safetensors") {
                return Err(Error::malformed(
                    path,
                    format!(
                        "tensor `{tensor}` is said to be in {file:?}, which is not the name of a safetensors file in this folder"
                    ),
                ));
            }
        }
        let files: BTreeSet<&String> = weight_map.values().collect();
        let files = files.into_iter().cloned().collect();
        Ok(Self { weight_map, files })
    }

    /// Tensor names and the file each is in.
    pub fn weight_map(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.weight_map.iter().map(|(tensor, file)| (tensor.as_str(), file.as_str()))
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        self.weight_map.get(tensor).map(String::as_str)
    }

    /// The files, sorted, each once.
    pub fn files(&self) -> &[String] {
        &self.files
    }
}
