//! A tensor of the checkpoint, as bytes at a place.

use airllm_format::safetensors::Dtype;
use airllm_format::{Error, LayerSource, Repo, Result};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a tensor of the checkpoint lies. Its shape and type were checked when it was found.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) name: Arc<str>,
    /// The file, for messages.
    path: Arc<PathBuf>,
    /// Its number among [`Repo::files`].
    pub(crate) file: usize,
    /// Offset of its first byte there.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

/// What is read at once where rows are made, in bytes. Also about what a tile of rows has. Large enough
/// for the disk, small enough to stay in a cache and not to count beside the ring.
pub(crate) const TILE: usize = 512 << 10;

impl Part {
    /// The tensor of that name.
    pub(crate) fn find(repo: &Repo, name: &str) -> Option<Part> {
        let at = repo.tensor(name)?;
        Some(Part {
            name: name.into(),
            path: Arc::new(repo.files()[at.file].clone()),
            file: at.file,
            start: at.info.start,
            bytes: at.info.bytes,
            dtype: at.info.dtype,
            shape: at.info.shape.clone(),
        })
    }

    /// The tensor of that name, which `of` cannot be read without.
    pub(crate) fn need(repo: &Repo, name: &str, of: &Part) -> crate::Result<Part> {
        Part::find(repo, name).ok_or_else(|| of.refuse(format!("needs `{name}`, which is missing")))
    }

    /// Refuses other types and shapes than these.
    pub(crate) fn expect(&self, dtypes: &[Dtype], shapes: &[&[usize]]) -> crate::Result<()> {
        if !dtypes.contains(&self.dtype) {
            let expected: Vec<_> = dtypes.iter().map(|dtype| dtype.name()).collect();
            return Err(self.refuse(format!(
                "is stored as {}, expected {}",
                self.dtype,
                expected.join(" or ")
            )));
        }
        if !shapes.contains(&&self.shape[..]) {
            let expected: Vec<_> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            let expected = expected.join(" or ");
            return Err(self.refuse(format!("has shape {:?}, expected {expected}", self.shape)));
        }
        Ok(())
    }

    /// Bytes of an element.
    pub(crate) fn width(&self) -> usize {
        self.dtype.bits() as usize / 8
    }

    /// The refusal of a tensor by its header.
    pub(crate) fn refuse(&self, what: impl std::fmt::Display) -> crate::Error {
        crate::Error::Input { what: format!("{}: tensor `{}` {what}", self.path.display(), self.name) }
    }

    /// Fills `buf` with the bytes from byte `at` of the tensor on.
    pub(crate) fn read(&self, files: &dyn LayerSource, at: u64, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(self.wrong(format!(
                "{} bytes at {at} were asked for, it has {}",
                buf.len(),
                self.bytes
            )));
        }
        files.read_at(self.file, self.start + at, buf)
    }

    /// All of its bytes, for the small ones.
    pub(crate) fn all(&self, files: &dyn LayerSource) -> Result<Vec<u8>> {
        let mut buf = vec![0; self.bytes as usize];
        self.read(files, 0, &mut buf)?;
        Ok(buf)
    }

    /// Columns `cols` of rows `rows` of a matrix whose rows are `width` elements of `unit` bytes, one row
    /// after the other into `out`.
    ///
    /// Where half of each row is wanted or more, whole rows are read together and the rest is dropped.
    pub(crate) fn window(
        &self,
        files: &dyn LayerSource,
        (unit, width): (usize, usize),
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let (stride, wanted, skip) = (unit * width, unit * cols.len(), unit * cols.start);
        if 2 * wanted < stride {
            out.resize(rows.len() * wanted, 0);
            for (row, to) in rows.zip(out.chunks_exact_mut(wanted.max(1))) {
                self.read(files, (row * stride + skip) as u64, to)?;
            }
            return Ok(());
        }
        out.resize(rows.len() * stride, 0);
        self.read(files, (rows.start * stride) as u64, out)?;
        if wanted < stride {
            for row in 0..rows.len() {
                out.copy_within(row * stride + skip..row * stride + skip + wanted, row * wanted);
            }
            out.truncate(rows.len() * wanted);
        }
        Ok(())
    }

    /// The error of something in this tensor that cannot be used.
    pub(crate) fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::Malformed { path: (*self.path).clone(), what: format!("tensor `{}`: {what}", self.name) }
    }

    /// The error of one of its rows.
    pub(crate) fn bad_row(&self, row: usize, what: impl std::fmt::Display) -> Error {
        let what = format!("tensor `{}`, row {row}: {what}", self.name);
        Error::Malformed { path: (*self.path).clone(), what }
    }
}
