//! A prepared folder: shards and their manifest.

use crate::disk::open_file;
use crate::manifest::{Manifest, ShardEntry};
use crate::safetensors::{Dtype, Header};
use crate::shard::{Folders, Geometry, ShardTag, checksum_hex, in_parts, scan};
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An opened prepared folder, or several over which the shards are spread. Everything but the weights has been checked.
#[derive(Debug, Clone)]
pub struct Prepared {
    folders: Folders,
    manifest: Manifest,
}

impl Prepared {
    /// Whether a folder looks prepared: it has an `airllm.json`. Says nothing about its content.
    pub fn is_prepared(dir: &Path) -> bool {
        dir.join(crate::manifest::MANIFEST).is_file()
    }

    /// Opens a folder and checks its manifest against the headers, lengths and stored checksums of the
    /// shards, and the lengths of the side files.
    ///
    /// # Errors
    /// [`Error::Missing`] if the folder is not prepared or a file is gone, [`Error::Malformed`] where
    /// manifest and files disagree, or where the folder holds one part of several; [`Error::Io`] where the system
    /// refuses.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_in(&[dir.to_path_buf()])
    }

    /// The same for the folders that shards are spread over, in any order.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Malformed`] where a part is missing, there twice, or of something else.
    pub fn open_in(dirs: &[PathBuf]) -> Result<Self> {
        let (folders, manifest) = gather(dirs)?;
        for shard in &manifest.shards {
            check_shard(&folders, shard, &manifest)?;
        }
        for (file, dir) in
            manifest.files.iter().flat_map(|file| folders.dirs().iter().map(move |dir| (file, dir)))
        {
            let path = dir.join(&file.file);
            let (_, len) = open_file(&path)?;
            if len != file.bytes {
                return Err(Error::malformed(
                    &path,
                    format!("the file has {len} bytes, the manifest says {}", file.bytes),
                ));
            }
        }
        Ok(Self { folders, manifest })
    }

    /// The folder; of several the first.
    pub fn dir(&self) -> &Path {
        self.folders.first()
    }

    /// The folders.
    pub fn folders(&self) -> &Folders {
        &self.folders
    }

    /// Its manifest; of several that of the first.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shard files in the order of the manifest, to be given to a
    /// [`FileSource`](crate::FileSource); of several folders one after the other.
    pub fn shard_paths(&self) -> Vec<PathBuf> {
        self.part_paths().concat()
    }

    /// The shard files of each folder, in the order of the manifest.
    pub fn part_paths(&self) -> Vec<Vec<PathBuf>> {
        let shards = &self.manifest.shards;
        let of = |dir: &PathBuf| shards.iter().map(|shard| dir.join(&shard.file)).collect();
        self.folders.dirs().iter().map(of).collect()
    }

    /// Reads everything and compares all checksums: of whole files and of tensors.
    ///
    /// `progress` is told the bytes read so far and the bytes there are.
    ///
    /// # Errors
    /// [`Error::Checksum`] naming the file and, where it lies in one, the tensor that differs;
    /// [`Error::Io`] where the system refuses.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let side: u64 = self.manifest.files.iter().map(|f| f.bytes).sum();
        let total = self.manifest.bytes() + side * self.folders.dirs().len() as u64;
        let mut done = 0;
        let mut count = |n: u64| {
            done += n;
            progress(done, total);
        };
        for shard in &self.manifest.shards {
            verify_shard(&self.folders, shard, &mut count)?;
        }
        for file in &self.manifest.files {
            for path in self.folders.paths(&file.file) {
                let (open, len) = open_file(&path)?;
                let found = scan((&open, len), &path, &[], |_, _| {}, &mut count)?;
                compare(&path, "the file", &file.xxh3, format!("{:032x}", found.xxh3))?;
            }
        }
        Ok(())
    }
}

/// The parts of the shards in these folders, put in order.
fn gather(dirs: &[PathBuf]) -> Result<(Folders, Manifest)> {
    let mut parts = Vec::with_capacity(dirs.len());
    for dir in dirs {
        let mut manifest = Manifest::read(dir)?;
        let part = manifest.part.take();
        parts.push((dir, part, manifest));
    }
    let Some((first, part, whole)) = parts.first() else {
        return Err(Error::missing(Path::new(""), "no folder with shards was named"));
    };
    let fail = |dir: &Path, what: String| Err(Error::malformed(dir, what));
    let Some(part) = part else {
        return match parts.get(1) {
            None => Ok((Folders::one(first), whole.clone())),
            Some((other, ..)) => fail(
                first,
                format!("its shards are whole, there are none to be had from {} too", other.display()),
            ),
        };
    };
    let count = part.shares.shares().len();
    let mut placed: Vec<Option<PathBuf>> = vec![None; count];
    for (dir, other, manifest) in &parts {
        match other {
            Some(other) if other.shares == part.shares && manifest == whole => {
                if let Some(before) = placed[other.index].replace((*dir).clone()) {
                    return fail(
                        dir,
                        format!("part {} of {count}, as in {}", other.index + 1, before.display()),
                    );
                }
            }
            _ => return fail(dir, format!("holds no part of the shards in {}", first.display())),
        }
    }
    let missing = placed.iter().position(Option::is_none);
    if let Some(missing) = missing {
        return fail(
            first,
            format!(
                "holds part {} of {count} of the shards, and part {} is in none of the folders named: name them all",
                part.index + 1,
                missing + 1
            ),
        );
    }
    let folders = Folders::spread(placed.into_iter().flatten().collect(), part.shares.clone())?;
    Ok((folders, whole.clone()))
}

fn compare(path: &Path, what: &str, expected: &str, found: String) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Checksum {
        path: path.to_path_buf(),
        what: what.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}

fn verify_shard(folders: &Folders, shard: &ShardEntry, count: &mut dyn FnMut(u64)) -> Result<()> {
    let (file, path) = (folders.open(&shard.file)?, &folders.first().join(&shard.file));
    // The manifest's own check has seen to it that the shapes are countable and the ranges in order.
    let ranges: Vec<(Range<u64>, usize)> = shard
        .tensors
        .iter()
        .filter_map(|t| Some((t.offset..t.offset + t.bytes, Geometry::of(t.format, &t.shape)?.row_bytes)))
        .collect();
    let found = scan((&file, file.len()), path, &ranges, |_, _| {}, count)?;
    if found.len != shard.bytes {
        return Err(Error::malformed(
            path,
            format!("the file has {} bytes, the manifest says {}", found.len, shard.bytes),
        ));
    }
    for (tensor, sum) in shard.tensors.iter().zip(found.sums) {
        compare(path, &format!("tensor `{}`", tensor.name), &tensor.checksum, checksum_hex(sum))?;
    }
    compare(path, "the file", &shard.xxh3, format!("{:032x}", found.xxh3))
}

/// Checks a shard's length, header and stored checksums against the manifest, and the headers of its parts.
fn check_shard(folders: &Folders, shard: &ShardEntry, manifest: &Manifest) -> Result<()> {
    let (file, path) = (folders.open(&shard.file)?, &folders.first().join(&shard.file));
    let len = file.len();
    let fail = |what: String| Err(Error::malformed(path, what));
    if len != shard.bytes {
        return fail(format!("the file has {len} bytes, the manifest says {}", shard.bytes));
    }
    let header = Header::read_from(&file, len, path)?;
    let recipe = manifest.recipe.name();
    let of = ShardTag {
        unit: shard.unit.clone(),
        source: manifest.source.fingerprint.clone(),
        recipe: recipe.clone(),
    };
    for (path, head) in folders.paths(&shard.file).iter().zip(folders.heads(&of, len)) {
        if !in_parts(path, &head)? {
            return Err(Error::malformed(path, "this is not the part that the manifest says it is"));
        }
    }
    let tag = [
        ("format", "airllm-shard"),
        ("unit", &shard.unit),
        ("source", &manifest.source.fingerprint),
        ("bits", &recipe),
    ];
    for (key, expected) in tag {
        let found = header.metadata().get(key).map_or("", String::as_str);
        if found != expected {
            return fail(format!("the shard's {key} is {found:?}, the manifest says {expected:?}"));
        }
    }
    let own = header.tensors().iter().filter(|t| !t.name.starts_with("__")).count();
    if own != shard.tensors.len() {
        return fail(format!("the shard has {own} tensors, the manifest says {}", shard.tensors.len()));
    }
    for t in &shard.tensors {
        let Some(found) = header.get(&t.name) else {
            return fail(format!("the shard has no tensor `{}`, the manifest says it has", t.name));
        };
        let shape = match Geometry::of(t.format, &t.shape) {
            Some(g) if t.format.is_quantised() => vec![g.rows, g.row_bytes],
            _ => t.shape.clone(),
        };
        let expected = (Dtype::of(t.format), &shape, t.offset, t.bytes);
        if (found.dtype, &found.shape, found.start, found.bytes) != expected {
            return fail(format!(
                "tensor `{}` is {} {:?} at {}, the manifest says {} {shape:?} at {}",
                t.name, found.dtype, found.shape, found.start, expected.0, t.offset
            ));
        }
    }
    let sums =
        header.get("__sums").filter(|s| s.dtype == Dtype::U64 && s.bytes == 8 * shard.tensors.len() as u64);
    let Some(sums) = sums else {
        return fail("the shard's checksums are missing".to_owned());
    };
    let mut stored = vec![0; sums.bytes as usize];
    file.read_exact_at(&mut stored, sums.start).map_err(Error::io(path, "reading the checksums"))?;
    for (t, bytes) in shard.tensors.iter().zip(stored.chunks_exact(8)) {
        let sum = bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        compare(path, &format!("tensor `{}`", t.name), &t.checksum, checksum_hex(sum))?;
    }
    Ok(())
}
