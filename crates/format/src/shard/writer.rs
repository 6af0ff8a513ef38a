//! Writing a shard in one go, and recognising one that is already there.

use super::blocks::Blocks;
use super::layout::{Layout, ShardTag, TensorSpec};
use super::scan;
use super::spread::{Folders, in_parts};
use super::sums::RowSums;
use crate::disk::{is_plain_name, rename, temporary, write_error};
use crate::manifest::ShardEntry;
use crate::{Error, Result};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Writes one shard: create, write all rows in order, finish.
///
/// The bytes go to a hidden temporary name; only [`finish`](Self::finish) gives the file its own, after
/// everything is on the disk. A writer that is dropped before that leaves nothing behind, and one that is
/// killed leaves a temporary file that the next writer replaces.
pub struct ShardWriter {
    path: PathBuf,
    /// The files that are written: one, or one for each folder. Where each is meanwhile, and where it will be.
    files: Vec<(PathBuf, PathBuf)>,
    blocks: Vec<Blocks>,
    folders: Folders,
    tag: ShardTag,
    specs: Vec<TensorSpec>,
    layout: Layout,
    hash: Box<Xxh3>,
    at: u64,
    /// The tensor that is being written and how many of its bytes have come.
    tensor: usize,
    have: u64,
    open: RowSums,
    sums: Vec<u64>,
}

impl ShardWriter {
    /// Starts the shard `file` in `dir`, which is made if it is not there. The room for the whole file is
    /// reserved at once where the file system can do that.
    ///
    /// # Errors
    /// [`Error::Malformed`] for names or shapes that a shard cannot have, [`Error::NoSpace`] on a full disk,
    /// [`Error::Io`] where the system refuses.
    pub fn create(dir: &Path, file: &str, tag: &ShardTag, specs: Vec<TensorSpec>) -> Result<Self> {
        Self::create_in(&Folders::one(dir), file, tag, specs)
    }

    /// The same with the shard's bytes in one folder or spread over several, in files of the same name.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_in(folders: &Folders, file: &str, tag: &ShardTag, specs: Vec<TensorSpec>) -> Result<Self> {
        let path = folders.first().join(file);
        if !is_plain_name(file) || file.starts_with('.') {
            return Err(Error::malformed(&path, "a shard needs a plain file name"));
        }
        let layout = Layout::new(tag, &specs, &path)?;
        let files = folders.paths(file).into_iter().map(|path| (temporary(&path), path)).collect();
        let row_bytes = layout.tensors[0].1.row_bytes;
        let mut writer = Self {
            path,
            files,
            blocks: Vec::new(),
            folders: folders.clone(),
            tag: tag.clone(),
            specs,
            layout,
            hash: Box::new(Xxh3::new()),
            at: 0,
            tensor: 0,
            have: 0,
            open: RowSums::new(row_bytes),
            sums: Vec::new(),
        };
        let heads = folders.heads(tag, writer.layout.file_len);
        for ((dir, len), head) in folders.dirs().iter().zip(folders.lens(writer.layout.file_len)).zip(heads) {
            fs::create_dir_all(dir).map_err(Error::io(dir, "making the folder"))?;
            let part = &writer.files[writer.blocks.len()].0;
            let mut blocks = Blocks::create(part, len).map_err(|e| {
                // Whoever drops the writer removes what there are blocks of; here they could not be made.
                let _ = fs::remove_file(part);
                write_error(part, len, e)
            })?;
            blocks.write(&head).map_err(|e| write_error(part, len, e))?;
            writer.blocks.push(blocks);
        }
        let head = writer.layout.head.clone();
        writer.emit(&head)?;
        Ok(writer)
    }

    /// Length of the finished file in bytes.
    pub fn file_len(&self) -> u64 {
        self.layout.file_len
    }

    /// Writes the next whole packed rows: any number of them, of one tensor or of several that follow each
    /// other.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the bytes are not whole rows or more than the shard has,
    /// [`Error::NoSpace`] and [`Error::Io`] if they cannot be written.
    pub fn write(&mut self, mut rows: &[u8]) -> Result<()> {
        while !rows.is_empty() {
            let Some((_, geometry)) = self.layout.tensors.get(self.tensor).copied() else {
                return Err(Error::malformed(
                    &self.path,
                    format!("{} bytes more than the shard's tensors have", rows.len()),
                ));
            };
            let take = rows.len().min(usize::try_from(geometry.bytes - self.have).unwrap_or(usize::MAX));
            if take % geometry.row_bytes != 0 {
                return Err(Error::malformed(
                    &self.path,
                    format!(
                        "{} bytes for tensor `{}` are not whole rows of {}",
                        rows.len(),
                        self.specs[self.tensor].name,
                        geometry.row_bytes
                    ),
                ));
            }
            let (now, rest) = rows.split_at(take);
            self.open.update(now);
            self.emit(now)?;
            self.have += take as u64;
            rows = rest;
            if self.have == geometry.bytes {
                self.close_tensor()?;
            }
        }
        Ok(())
    }

    /// Completes the file, makes it durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Malformed`] if rows are missing, [`Error::NoSpace`] and [`Error::Io`] as for
    /// [`write`](Self::write).
    pub fn finish(mut self) -> Result<ShardEntry> {
        if let Some(spec) = self.specs.get(self.tensor) {
            let bytes = self.layout.tensors[self.tensor].1.bytes;
            return Err(Error::malformed(
                &self.path,
                format!("tensor `{}` has {} of {bytes} bytes: rows are missing", spec.name, self.have),
            ));
        }
        let sums: Vec<u8> = self.sums.iter().flat_map(|s| s.to_le_bytes()).collect();
        self.emit(&sums)?;
        self.zeros_to(self.layout.file_len)?;
        let len = self.layout.file_len;
        for (blocks, (part, _)) in self.blocks.iter_mut().zip(&self.files) {
            blocks.finish().map_err(|e| write_error(part, len, e))?;
        }
        // Between two of these names a crash leaves parts of different writers, which agree or are found not to.
        for (part, path) in &self.files {
            rename(part, path)?;
        }
        Ok(entry(&self.path, &self.tag, &self.specs, &self.layout, &self.sums, self.hash.digest128()))
    }

    /// Goes on to the next tensor, over the hole in front of it.
    fn close_tensor(&mut self) -> Result<()> {
        self.tensor += 1;
        self.have = 0;
        let next = self.layout.tensors.get(self.tensor).copied();
        let row_bytes = next.map_or(1, |(_, g)| g.row_bytes);
        let done = std::mem::replace(&mut self.open, RowSums::new(row_bytes));
        self.sums.push(done.finish());
        self.zeros_to(next.map_or(self.layout.sums, |(offset, _)| offset))
    }

    fn zeros_to(&mut self, to: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < to {
            let take = (to - self.at).min(ZEROS.len() as u64) as usize;
            self.emit(&ZEROS[..take])?;
        }
        Ok(())
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        let left = self.layout.file_len - self.at;
        match self.folders.shares() {
            None => self.blocks[0].write(bytes).map_err(|e| write_error(&self.files[0].0, left, e))?,
            Some(spread) => {
                for piece in spread.pieces(self.at, bytes.len()) {
                    let part = &self.files[piece.part].0;
                    self.blocks[piece.part]
                        .write(&bytes[piece.range])
                        .map_err(|e| write_error(part, left, e))?;
                }
            }
        }
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // After `finish` the name is gone already; an error here changes nothing for anybody.
        for (part, _) in &self.files[..self.blocks.len()] {
            let _ = fs::remove_file(part);
        }
    }
}

/// Looks whether `dir` already holds the very shard that a writer with these arguments would make.
///
/// The whole file is read: its header must be byte for byte the one that would be written, the holes must
/// be zero and every tensor must agree with its checksum. `None` means that it must be written (again).
///
/// # Errors
/// [`Error::Malformed`] for names or shapes that a shard cannot have, [`Error::Io`] where the system
/// refuses.
pub fn accept(dir: &Path, file: &str, tag: &ShardTag, specs: &[TensorSpec]) -> Result<Option<ShardEntry>> {
    accept_in(&Folders::one(dir), file, tag, specs)
}

/// The same for a shard in one folder or spread over several, of which the headers of the parts must be the ones that
/// would be written as well.
///
/// # Errors
/// As [`accept`].
pub fn accept_in(
    folders: &Folders,
    file: &str,
    tag: &ShardTag,
    specs: &[TensorSpec],
) -> Result<Option<ShardEntry>> {
    let path = folders.first().join(file);
    let layout = Layout::new(tag, specs, &path)?;
    let heads = folders.heads(tag, layout.file_len);
    for ((path, len), head) in folders.paths(file).iter().zip(folders.lens(layout.file_len)).zip(heads) {
        match fs::metadata(path) {
            Ok(meta) if meta.is_file() && meta.len() == len => {}
            _ => return Ok(None),
        }
        if !in_parts(path, &head)? {
            tracing::info!(file = %path.display(), "a part is there but not the one that is needed; it is written again");
            return Ok(None);
        }
    }
    let shard = folders.open(file)?;
    let ranges: Vec<(Range<u64>, usize)> =
        layout.tensors.iter().map(|(offset, g)| (*offset..offset + g.bytes, g.row_bytes)).collect();
    let mut head = Vec::with_capacity(layout.head.len());
    let mut stored = Vec::new();
    let mut zeros = true;
    let head_end = layout.head.len() as u64;
    let sums_range = layout.sums..layout.sums + 8 * specs.len() as u64;
    let found = scan(
        (&shard, shard.len()),
        &path,
        &ranges,
        |at, bytes| {
            for (offset, &byte) in (at..).zip(bytes) {
                if offset < head_end {
                    head.push(byte);
                } else if sums_range.contains(&offset) {
                    stored.push(byte);
                } else {
                    zeros &= byte == 0;
                }
            }
        },
        |_| {},
    )?;
    let stored: Vec<u64> =
        stored.chunks_exact(8).map(|c| c.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))).collect();
    if found.len != layout.file_len || head != layout.head || !zeros || stored != found.sums {
        tracing::info!(file = %path.display(), "a shard is there but not the one that is needed; it is written again");
        return Ok(None);
    }
    Ok(Some(entry(&path, tag, specs, &layout, &found.sums, found.xxh3)))
}

fn entry(
    path: &Path,
    tag: &ShardTag,
    specs: &[TensorSpec],
    layout: &Layout,
    sums: &[u64],
    xxh3: u128,
) -> ShardEntry {
    ShardEntry {
        file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        unit: tag.unit.clone(),
        bytes: layout.file_len,
        xxh3: format!("{xxh3:032x}"),
        tensors: layout.entries(specs, sums),
    }
}
