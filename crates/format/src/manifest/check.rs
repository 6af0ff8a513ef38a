//! What must hold inside a manifest, whatever the files say.

use super::{MANIFEST, Manifest, ShardEntry, TensorEntry};
use crate::disk::is_plain_name;
use crate::json::kind;
use crate::shard::{ALIGNMENT, Geometry, TENSOR_ALIGNMENT, parse_checksum};
use std::collections::HashSet;

impl Manifest {
    /// Checks names, shapes, offsets and sizes against each other; the error says what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, value) in
            [("config", Some(&self.config)), ("generation_config", self.generation_config.as_ref())]
        {
            if let Some(value) = value.filter(|v| !v.is_object()) {
                return Err(format!("`{name}` is {}, expected an object", kind(value)));
            }
        }
        if self.source.fingerprint.is_empty() {
            return Err("the source has no fingerprint".to_owned());
        }
        if self.shards.is_empty() {
            return Err("there are no shards".to_owned());
        }
        let (mut files, mut units) = (HashSet::from([MANIFEST]), HashSet::new());
        let names = self.shards.iter().map(|s| &s.file).chain(self.files.iter().map(|f| &f.file));
        for name in names {
            if !is_plain_name(name) || name.starts_with('.') {
                return Err(format!("{name:?} is not a plain file name"));
            }
            if !files.insert(name) {
                return Err(format!("the file {name:?} comes twice"));
            }
        }
        for shard in &self.shards {
            if !is_unit(&shard.unit) {
                return Err(format!(
                    "{:?} is not a unit: expected \"embed\", \"layer.N\" or \"head\"",
                    shard.unit
                ));
            }
            if !units.insert(&shard.unit) {
                return Err(format!("the unit `{}` comes twice", shard.unit));
            }
            check_shard(shard).map_err(|what| format!("shard `{}`: {what}", shard.unit))?;
        }
        if let Some(part) = &self.part {
            part.shares.check().map_err(|what| format!("part: {what}"))?;
            let parts = part.shares.shares().len();
            if part.index >= parts {
                return Err(format!("part: {} of {parts}", part.index));
            }
        }
        if let Some(sensitivity) = &self.sensitivity {
            sensitivity.check().map_err(|what| format!("sensitivity: {what}"))?;
        }
        match self.files.iter().find(|f| !is_hex128(&f.xxh3)) {
            Some(file) => Err(format!("{:?}: xxh3 {:?} is not 32 hexadecimal digits", file.file, file.xxh3)),
            None => Ok(()),
        }
    }
}

pub(super) fn is_unit(name: &str) -> bool {
    match name.strip_prefix("layer.") {
        Some(n) => n.parse::<u32>().is_ok_and(|number| number.to_string() == n),
        None => matches!(name, "embed" | "head"),
    }
}

pub(super) fn is_hex128(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_shard(shard: &ShardEntry) -> Result<(), String> {
    if !shard.bytes.is_multiple_of(ALIGNMENT) {
        return Err(format!("its length {} is not a multiple of {ALIGNMENT}", shard.bytes));
    }
    if !is_hex128(&shard.xxh3) {
        return Err(format!("xxh3 {:?} is not 32 hexadecimal digits", shard.xxh3));
    }
    if shard.tensors.is_empty() {
        return Err("it has no tensors".to_owned());
    }
    let mut names = HashSet::new();
    let mut end = ALIGNMENT;
    for tensor in &shard.tensors {
        if !names.insert(&tensor.name) {
            return Err(format!("tensor `{}` comes twice", tensor.name));
        }
        end = check_tensor(tensor, end, shard.bytes)
            .map_err(|what| format!("tensor `{}`: {what}", tensor.name))?;
    }
    Ok(())
}

/// Checks a tensor that may start at `from` and must end by `file_len`; returns where it ends.
fn check_tensor(tensor: &TensorEntry, from: u64, file_len: u64) -> Result<u64, String> {
    if tensor.name.is_empty() || tensor.name.starts_with("__") {
        return Err("this name is not for a weight".to_owned());
    }
    let geometry = Geometry::of(tensor.format, &tensor.shape).ok_or_else(|| {
        format!("it cannot have shape {:?}: [d] or [rows, cols] is needed, 1 to 2^28 each", tensor.shape)
    })?;
    if tensor.bytes != geometry.bytes {
        return Err(format!(
            "shape {:?} in {} is {} bytes, the manifest says {}",
            tensor.shape, tensor.format, geometry.bytes, tensor.bytes
        ));
    }
    if !tensor.offset.is_multiple_of(TENSOR_ALIGNMENT) || tensor.offset < from {
        return Err(format!(
            "offset {} is not a multiple of {TENSOR_ALIGNMENT} from {from} on",
            tensor.offset
        ));
    }
    let end = tensor.offset.checked_add(tensor.bytes).filter(|&end| end <= file_len);
    let end = end.ok_or_else(|| {
        format!("{} bytes at {} end behind the file's {file_len}", tensor.bytes, tensor.offset)
    })?;
    if parse_checksum(&tensor.checksum).is_none() {
        return Err(format!("checksum {:?} is not 16 hexadecimal digits", tensor.checksum));
    }
    Ok(end)
}
