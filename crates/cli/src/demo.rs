//! The model that ships with the program.
//!
//! It is part of the binary. On first use it is written into the cache folder as an ordinary checkpoint,
//! and from there on it goes the way of every other model.

use crate::exit::Result;
use airllm::{Cache, Error};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

macro_rules! files {
    ($($name:literal),*) => {
        [$(($name, include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model/model/", $name
        )))),*]
    };
}

/// The checkpoint. The weights come last, so that a folder that has them has everything.
const FILES: [(&str, &[u8]); 5] = files![
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors"
];

/// The folder of the demo model, written if it is not there as it should be.
pub fn folder(cache: &Cache) -> Result<PathBuf> {
    let dir = cache.home().join("demo");
    for (name, bytes) in FILES {
        let path = dir.join(name);
        // Another version of the program may have left another model; equal bytes are left alone.
        let there = fs::metadata(&path).is_ok_and(|meta| meta.len() == bytes.len() as u64);
        if !there || fs::read(&path).is_ok_and(|old| old != bytes) {
            write(&dir, &path, bytes).map_err(|source| Error::Io {
                path,
                doing: "writing the demo model",
                source,
            })?;
        }
    }
    Ok(dir)
}

/// Under a name of this process first, so that two that start at once do not meet.
fn write(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let result = File::create(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, path));
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&part);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_once_and_mended() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::new(home.path());
        let dir = folder(&cache).unwrap();
        let weights = dir.join("model.safetensors");
        let first = fs::metadata(&weights).unwrap().modified().unwrap();
        folder(&cache).unwrap();
        assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), first);
        fs::write(dir.join("config.json"), b"{}").unwrap();
        folder(&cache).unwrap();
        assert_eq!(fs::read(dir.join("config.json")).unwrap(), FILES[0].1);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES.len());
    }
}
