//! The source of a checkpoint that runs as it is: its own files, and rows that are made when they are read.

use super::TensorPlan;
use super::catalog::MadeFile;
use super::rows::Scratch;
use airllm_format::{Error, FileSource, LayerSource, ReadMode, Result};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The checkpoint's files, as [`FileSource`] reads them, followed by one file for each shard that has tensors
/// to make. A made file answers in whole rows: those that a read holds only a part of come back as zeros,
/// because what streams is whole rows and making one for a part of it would be for nothing.
///
/// Besides the buffers of its callers it takes what [`Lifted::memory`](super::Lifted::memory) says.
pub(crate) struct LiftedSource {
    files: FileSource,
    made: Vec<Made>,
    /// As many as readers were ever at work at once.
    spare: Mutex<Vec<Scratch>>,
}

struct Made {
    name: String,
    len: u64,
    tensors: Vec<MadeTensor>,
}

struct MadeTensor {
    offset: u64,
    plan: TensorPlan,
    /// The row of a vector: small, wanted in every pass, and so made once.
    kept: Option<Vec<u8>>,
}

impl LiftedSource {
    /// Opens the files `paths` of a checkpoint, and makes its vectors.
    ///
    /// # Errors
    /// As [`FileSource::open`]; [`Error::Malformed`] for a vector with something that is no number.
    pub(crate) fn open(paths: &[PathBuf], mode: ReadMode, made: Vec<MadeFile>) -> Result<LiftedSource> {
        let files = FileSource::open(paths, mode)?;
        let mut scratch = Scratch::default();
        let mut tensor = |(offset, plan): (u64, TensorPlan)| -> Result<MadeTensor> {
            let mut kept = None;
            if plan.decl.is_vector() {
                let row = kept.insert(vec![0; plan.row_bytes()]);
                plan.rows(&files, 0..1, &mut scratch, row)?;
            }
            Ok(MadeTensor { offset, plan, kept })
        };
        let mut file = |file: MadeFile| -> Result<Made> {
            let tensors = file.tensors.into_iter().map(&mut tensor).collect::<Result<_>>()?;
            Ok(Made { name: file.name, len: file.len, tensors })
        };
        let made = made.into_iter().map(&mut file).collect::<Result<_>>()?;
        Ok(LiftedSource { files, made, spare: Mutex::new(vec![scratch]) })
    }

    fn file(&self, file: usize) -> Option<&Made> {
        self.made.get(file.checked_sub(self.files.files())?)
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        // Scratch is right whatever happened to the thread that held it.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `buf` with the whole rows at `offset` of a made file, and with zeros.
    fn make(&self, file: &Made, offset: u64, buf: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let end = offset + buf.len() as u64;
        let first = file.tensors.partition_point(|t| t.offset + t.plan.bytes() <= offset);
        let mut done = 0;
        for tensor in file.tensors[first..].iter().take_while(|t| t.offset < end) {
            let (rows, at) = tensor.whole_rows(offset..end);
            let row = tensor.plan.row_bytes();
            let at = at as usize;
            if rows.is_empty() {
                continue;
            }
            let out = at..at + rows.len() * row;
            buf[done..at].fill(0);
            done = out.end;
            match &tensor.kept {
                Some(kept) => buf[out].copy_from_slice(kept),
                None => tensor.plan.rows(&self.files, rows, scratch, &mut buf[out])?,
            }
        }
        buf[done..].fill(0);
        Ok(())
    }
}

impl MadeTensor {
    /// The rows that lie in `range` of the file as a whole, and where the first one is, counted from the
    /// start of the range.
    fn whole_rows(&self, range: Range<u64>) -> (Range<usize>, u64) {
        let (row, rows) = (self.plan.row_bytes().max(1) as u64, self.plan.decl.rows() as u64);
        let first = range.start.saturating_sub(self.offset).div_ceil(row).min(rows);
        let last = (range.end.saturating_sub(self.offset) / row).clamp(first, rows);
        let at = (self.offset + first * row).saturating_sub(range.start);
        (first as usize..last as usize, at)
    }
}

impl LayerSource for LiftedSource {
    fn files(&self) -> usize {
        self.files.files() + self.made.len()
    }

    fn name(&self, file: usize) -> &str {
        self.file(file).map_or_else(|| self.files.name(file), |made| &made.name)
    }

    fn len(&self, file: usize) -> u64 {
        self.file(file).map_or_else(|| self.files.len(file), |made| made.len)
    }

    fn alignment(&self) -> usize {
        self.files.alignment()
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some(made) = self.file(file) else {
            return self.files.read_at(file, offset, buf);
        };
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end >= made.len + self.alignment() as u64) {
            let what = format!("{} bytes at {offset} were asked for, there are {}", buf.len(), made.len);
            return Err(Error::Malformed { path: PathBuf::from(&made.name), what });
        }
        let mut scratch = self.spare().pop().unwrap_or_default();
        let done = self.make(made, offset, buf, &mut scratch);
        self.spare().push(scratch);
        done
    }
}
