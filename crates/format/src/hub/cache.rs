//! The folder layout that Hugging Face's tools share.
//!
//! ```text
//! hub/models--org--name/refs/main                     the commit that a branch stood at
//!                      /blobs/<etag>                  contents, named by sha256 or git object id
//!                      /blobs/<etag>.airllm.incomplete  a content on its way, with .journal beside it
//!                      /snapshots/<commit>/<file>     links to ../../blobs/<etag>
//! hub/.locks/models--org--name/<etag>.lock            held by whoever fetches that blob
//! ```
//!
//! The unfinished file has a name of its own: other tools go on at the *length* of an `.incomplete` file,
//! and here bytes arrive in several places at once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use serde_json::Value;

use super::http::is_hex;
use super::listing::RemoteFile;
use super::names::{RepoId, check_path, printable};
use crate::{Error, Result};

/// Paths of one repository in the cache.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    repo: PathBuf,
    locks: PathBuf,
}

/// Held while a blob is fetched. The system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held, not used")] File);

impl Layout {
    pub fn new(cache: &Path, id: &RepoId) -> Layout {
        let folder = id.folder();
        Layout { repo: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    pub fn repo(&self) -> &Path {
        &self.repo
    }

    pub fn create(&self) -> Result<()> {
        for dir in [&self.repo.join("blobs"), &self.repo.join("refs"), &self.locks] {
            fs::create_dir_all(dir).map_err(Error::io(dir, "creating the folder"))?;
        }
        Ok(())
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.repo.join("blobs").join(etag)
    }

    /// The unfinished file and its journal.
    pub fn part(&self, etag: &str) -> (PathBuf, PathBuf) {
        let blobs = self.repo.join("blobs");
        let path = blobs.join(format!("{etag}.airllm.incomplete"));
        (path, blobs.join(format!("{etag}.airllm.journal")))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.join("snapshots").join(commit)
    }

    /// The snapshot of a revision if all that an engine needs is in it; else what is missing.
    pub fn find(&self, revision: &str) -> std::result::Result<PathBuf, String> {
        let commit = if is_hex(revision, 40) {
            revision.to_owned()
        } else {
            let path = self.repo.join("refs").join(revision);
            fs::read_to_string(&path)
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|text| is_hex(text, 40) || is_hex(text, 64))
                .ok_or_else(|| format!("revision {} was never fetched", printable(revision, 80)))?
        };
        let dir = self.snapshot(&commit);
        complete(&dir)?;
        Ok(dir)
    }

    /// Notes the commit of a branch or tag.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.repo.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|text| text == commit) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io(parent, "creating the folder"))?;
        }
        // Every process that fetches the model writes it, maybe at once: each under a name of its own first.
        let fresh = private(&path);
        fs::write(&fresh, commit).map_err(Error::io(&fresh, "noting the commit"))?;
        fs::rename(&fresh, &path).map_err(Error::io(&path, "noting the commit"))
    }

    /// Whether the file is in the snapshot already, with the right length.
    pub fn linked(&self, commit: &str, file: &RemoteFile) -> bool {
        has_length(&self.snapshot(commit).join(&file.name), file.size)
    }

    /// Whether the content is there already, with the right length.
    pub fn has_blob(&self, file: &RemoteFile) -> bool {
        has_length(&self.blob(&file.etag), file.size)
    }

    /// Puts a content that is there into the snapshot.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        if self.linked(commit, file) {
            return Ok(());
        }
        let path = self.snapshot(commit).join(&file.name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io(parent, "creating the folder"))?;
        }
        let depth = file.name.split('/').count() + 1;
        let target = PathBuf::from("../".repeat(depth)).join("blobs").join(&file.etag);
        let fresh = private(&path);
        // One may be left of a killed process that had this one's number.
        let _ = fs::remove_file(&fresh);
        match std::os::unix::fs::symlink(&target, &fresh) {
            Ok(()) => fs::rename(&fresh, &path).map_err(Error::io(&path, "linking the file")),
            // A file system without links: the content itself moves, as the other tools do it.
            Err(_) => fs::rename(self.blob(&file.etag), &path).map_err(Error::io(&path, "moving the file")),
        }
    }

    /// Takes the lock of a blob; `None` if another process or thread holds it.
    pub fn try_lock(&self, etag: &str) -> Result<Option<Lock>> {
        let path = self.locks.join(format!("{etag}.lock"));
        let refused = |doing: &str| Error::io(&path, doing.to_owned());
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(refused("opening the lock"))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(e) if e == rustix::io::Errno::WOULDBLOCK => return Ok(None),
                Err(e) => {
                    let doing = "locking (a cache on a file system without locks cannot be shared safely)";
                    return Err(refused(doing)(e.into()));
                }
            }
            // Some tools delete their lock files; a lock on a deleted file locks nobody out.
            let mine = file.metadata().map_err(refused("reading the lock"))?;
            match fs::metadata(&path) {
                Ok(now) if (now.dev(), now.ino()) == (mine.dev(), mine.ino()) => {
                    return Ok(Some(Lock(file)));
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(refused("reading the lock")(e)),
            }
        }
    }
}

/// A name beside `path` that no other process and no other thread uses.
fn private(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{number}.new", std::process::id()))
}

fn has_length(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == size)
}

/// Whether a snapshot can be used without asking the server: the config and all weights are there.
fn complete(dir: &Path) -> std::result::Result<(), String> {
    let there = |name: &str| dir.join(name).is_file();
    if !there("config.json") {
        return Err("config.json is missing".to_owned());
    }
    let names: Vec<String> = fs::read_dir(dir)
        .map_err(|e| format!("{}: {e}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let mut weights: BTreeSet<String> =
        names.iter().filter(|name| name.ends_with(".safetensors")).cloned().collect();
    for index in names.iter().filter(|name| name.ends_with(".safetensors.index.json")) {
        weights.extend(indexed(&dir.join(index)).ok_or_else(|| format!("{index} is not an index"))?);
    }
    for name in weights.clone() {
        weights.extend(siblings(&name));
    }
    if weights.is_empty() {
        return Err("there are no .safetensors files".to_owned());
    }
    match weights.iter().find(|name| !there(name)) {
        Some(name) => Err(format!("{} is missing", printable(name, 120))),
        None => Ok(()),
    }
}

/// The files that an index names.
fn indexed(path: &Path) -> Option<BTreeSet<String>> {
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    value
        .get("weight_map")?
        .as_object()?
        .values()
        .map(|file| {
            let name = file.as_str()?;
            check_path(name).ok()?;
            Some(name.to_owned())
        })
        .collect()
}

/// All shards of a family, from the name of one: `model-00001-of-00003.safetensors`.
fn siblings(name: &str) -> Vec<String> {
    let parse = || {
        let stem = name.strip_suffix(".safetensors")?;
        let (rest, total) = stem.rsplit_once("-of-")?;
        let (base, number) = rest.rsplit_once('-')?;
        let count: usize = total.parse().ok().filter(|n| *n <= 10_000)?;
        number.parse::<usize>().ok()?;
        let width = number.len();
        let all = (1..=count).map(|i| format!("{base}-{i:0width$}-of-{total}.safetensors"));
        Some(all.collect())
    };
    parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::listing::Check;
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn layout(dir: &Path) -> Layout {
        let layout = Layout::new(dir, &RepoId::parse("a/b").unwrap().0);
        layout.create().unwrap();
        layout
    }

    fn put(layout: &Layout, name: &str, content: &str) {
        let file = RemoteFile {
            name: name.to_owned(),
            size: content.len() as u64,
            etag: format!("etag-{}", name.replace(['.', '/'], "-")),
            check: Check::Length,
        };
        fs::write(layout.blob(&file.etag), content).unwrap();
        layout.link(COMMIT, &file).unwrap();
        assert!(layout.linked(COMMIT, &file));
    }

    #[test]
    fn links_are_relative_and_reach_their_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        put(&layout, "config.json", "{}");
        put(&layout, "deep/er/x.json", "{}");
        let snapshot = layout.snapshot(COMMIT);
        let link = fs::read_link(snapshot.join("config.json")).unwrap();
        assert_eq!(link, PathBuf::from("../../blobs/etag-config-json"));
        assert_eq!(fs::read_to_string(snapshot.join("deep/er/x.json")).unwrap(), "{}");
        // A dangling link is replaced.
        fs::remove_file(layout.blob("etag-config-json")).unwrap();
        put(&layout, "config.json", "{ }");
    }

    #[test]
    fn a_snapshot_is_complete_only_with_all_its_weights() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let missing = |part: &str| {
            let reason = layout.find("main").unwrap_err();
            assert!(reason.contains(part), "{reason}");
        };
        missing("never fetched");
        layout.write_ref("main", COMMIT).unwrap();
        missing("config.json");
        put(&layout, "config.json", "{}");
        missing("no .safetensors");
        put(&layout, "model-00001-of-00002.safetensors", "x");
        missing("model-00002-of-00002.safetensors");
        put(&layout, "model-00002-of-00002.safetensors", "x");
        assert_eq!(layout.find("main").unwrap(), layout.snapshot(COMMIT));
        assert_eq!(layout.find(COMMIT).unwrap(), layout.snapshot(COMMIT));
        put(&layout, "model.safetensors.index.json", r#"{"weight_map":{"t":"other.safetensors"}}"#);
        missing("other.safetensors");
        put(&layout, "other.safetensors", "x");
        layout.find("main").unwrap();
        fs::remove_file(layout.blob("etag-other-safetensors")).unwrap();
        missing("other.safetensors");
        fs::write(dir.path().join("models--a--b/refs/evil"), "../../..").unwrap();
        assert!(layout.find("evil").is_err());
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let lock = layout.try_lock("e").unwrap().unwrap();
        assert!(layout.try_lock("e").unwrap().is_none());
        assert!(layout.try_lock("f").unwrap().is_some());
        // Another tool deletes the file of a lock that is held: the new file is a new lock.
        fs::remove_file(dir.path().join(".locks/models--a--b/e.lock")).unwrap();
        assert!(layout.try_lock("e").unwrap().is_some());
        drop(lock);
        assert!(layout.try_lock("e").unwrap().is_some());
    }
}
