//! The folder in which prepared shards are kept between runs.

use crate::error::At;
use crate::lock::Lock;
use crate::{Error, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Prepared shards, one folder a checkpoint and recipe.
///
/// The folder's name is the entry's key: a readable beginning (name and bits) and the checkpoint's
/// fingerprint. A changed checkpoint has another fingerprint, so an entry is never out of date. An
/// entry without `airllm.json` is unfinished: an interrupted run left it, and the next one goes on there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    home: PathBuf,
}

/// One entry of the [`Cache`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its name, for [`Cache::remove`].
    pub key: String,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// False for what an interrupted run left.
    pub complete: bool,
    /// When something in it was last written.
    pub modified: Option<SystemTime>,
}

impl Cache {
    /// The cache below `home` (see [`env`](crate::env) for the usual place). Nothing is created yet.
    pub fn new(home: impl Into<PathBuf>) -> Cache {
        Cache { home: home.into() }
    }

    /// The folder that holds everything this program keeps.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The folder that holds the entries.
    pub fn dir(&self) -> PathBuf {
        self.home.join("shards")
    }

    /// The folder of the entry for a checkpoint called `name` with this fingerprint and these bits.
    pub fn entry(&self, name: &str, fingerprint: &str, bits: &str) -> PathBuf {
        let short: String = fingerprint.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
        self.dir().join(beginning(name, bits) + &short)
    }

    /// The file that keeps the sensitivity of a checkpoint called `name`; `hash` stands for all that it depends on.
    pub(crate) fn sensitivity(&self, name: &str, hash: &str) -> PathBuf {
        let short: String = hash.chars().take(20).collect();
        self.home.join("sensitivity").join(beginning(name, "sensitivity") + &short + ".json")
    }

    /// Whether there is an entry for any checkpoint of that name with these bits.
    pub(crate) fn has_some_of(&self, name: &str, bits: &str) -> bool {
        let beginning = beginning(name, bits);
        let entries = fs::read_dir(self.dir()).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&beginning))
    }

    /// All entries, by name. An absent cache has none.
    pub fn list(&self) -> Result<Vec<CacheEntry>> {
        let dir = self.dir();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at(&dir, "listing the cache")?,
        };
        let mut list = Vec::new();
        for entry in entries {
            let path = entry.at(&dir, "listing the cache")?.path();
            let Some(key) = path.file_name().and_then(|n| n.to_str()) else { continue };
            if !path.is_dir() {
                continue;
            }
            let (bytes, modified) = measure(&path)?;
            let complete = path.join("airllm.json").is_file();
            list.push(CacheEntry { key: key.to_owned(), path: path.clone(), bytes, complete, modified });
        }
        list.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(list)
    }

    /// Removes one entry and returns its bytes; refuses one that is being written at the moment.
    pub fn remove(&self, key: &str) -> Result<u64> {
        let path = self.dir().join(key);
        // A key is one name: nothing outside the cache can be meant by it.
        let one_name = Path::new(key).components().count() == 1 && path.parent() == Some(&self.dir());
        if !one_name || matches!(key, "." | "..") || !path.is_dir() {
            let keys: Vec<String> = self.list()?.into_iter().map(|e| e.key).collect();
            let keys = if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
            return Err(Error::NotFound {
                model: key.to_owned(),
                what: format!("no such entry in {}, which holds {keys}", self.dir().display()),
            });
        }
        let Some(_lock) = Lock::try_take(&path)? else {
            return Err(Error::Argument {
                what: format!("{key} is being prepared by another process: stop that one first"),
            });
        };
        let (bytes, _) = measure(&path)?;
        // The manifest goes first, so that an interrupted removal leaves an unfinished entry, not one
        // that looks whole.
        match fs::remove_file(path.join("airllm.json")) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).at(&path, "removing the manifest");
            }
            _ => {}
        }
        fs::remove_dir_all(&path).at(&path, "removing the folder")?;
        Ok(bytes)
    }
}

/// What the key of an entry begins with: name and bits, with nothing that means something to a file system.
fn beginning(name: &str, bits: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().map(plain).take(64).collect();
    let name = name.trim_start_matches('.');
    format!("{}-{bits}-", if name.is_empty() { "model" } else { name })
}

/// Bytes of the files of a folder, and the newest modification.
fn measure(dir: &Path) -> Result<(u64, Option<SystemTime>)> {
    let (mut bytes, mut newest) = (0, None);
    for entry in fs::read_dir(dir).at(dir, "listing the folder")? {
        let entry = entry.at(dir, "listing the folder")?;
        // A file may go away between the listing and the look: a run that finishes renames its files.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() {
            bytes += meta.len();
            newest = newest.max(meta.modified().ok());
        }
    }
    Ok((bytes, newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        (dir, cache)
    }

    fn put(cache: &Cache, key: &str, files: &[(&str, usize)]) {
        let dir = cache.dir().join(key);
        fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in files {
            fs::write(dir.join(name), vec![0; *bytes]).unwrap();
        }
    }

    #[test]
    fn keys_are_plain_names() {
        let (_dir, cache) = cache();
        let key = |name: &str| {
            let path = cache.entry(name, "0123456789abcdef0123456789", "q4");
            path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(key("org/Model-7B"), "org_Model-7B-q4-0123456789abcdef0123");
        assert_eq!(key("../.."), "_..-q4-0123456789abcdef0123");
        assert_eq!(key(""), "model-q4-0123456789abcdef0123");
        assert_eq!(key("诗"), "_-q4-0123456789abcdef0123");
    }

    #[test]
    fn list_and_remove() {
        let (_dir, cache) = cache();
        assert_eq!(cache.list().unwrap(), []);
        put(&cache, "b", &[("airllm.json", 10), ("x", 5)]);
        put(&cache, "a", &[("x", 7)]);
        let list = cache.list().unwrap();
        let seen: Vec<_> = list.iter().map(|e| (e.key.as_str(), e.bytes, e.complete)).collect();
        assert_eq!(seen, [("a", 7, false), ("b", 15, true)]);
        assert_eq!(cache.remove("b").unwrap(), 15);
        assert_eq!(cache.list().unwrap().len(), 1);
        let error = cache.remove("b").unwrap_err().to_string();
        assert!(error.contains("which holds a"), "{error}");
    }

    #[test]
    fn nothing_outside_is_removed() {
        let (dir, cache) = cache();
        put(&cache, "a", &[("x", 7)]);
        let outside = dir.path().join("precious");
        fs::create_dir(&outside).unwrap();
        for key in ["../precious", "..", ".", "", "a/..", outside.to_str().unwrap()] {
            assert!(cache.remove(key).is_err(), "{key}");
        }
        assert!(outside.is_dir() && cache.dir().join("a").is_dir());
    }

    #[test]
    fn an_entry_in_use_stays() {
        let (_dir, cache) = cache();
        put(&cache, "a", &[("x", 7)]);
        let _lock = Lock::try_take(&cache.dir().join("a")).unwrap().unwrap();
        assert!(cache.remove("a").unwrap_err().to_string().contains("another process"));
        assert_eq!(cache.list().unwrap().len(), 1);
    }
}
