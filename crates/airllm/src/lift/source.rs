//! The source of a checkpoint that runs as it is: its own files, and rows that are made when they are read.

use super::TensorPlan;
use super::catalog::MadeFile;
use super::rows::Scratch;
use airllm_format::{Error, FileSource, LayerSource, ReadMethod, Result};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The checkpoint's files, as [`FileSource`] reads them, followed by one file for each shard that has tensors
/// to make, whose rows are made by whoever reads them.
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
    /// As [`airllm_stream::open_files`]; [`Error::Malformed`] for a vector with something that is no number.
    pub(crate) fn open(paths: &[PathBuf], method: ReadMethod, made: Vec<MadeFile>) -> Result<LiftedSource> {
        let files = airllm_stream::open_files(paths, method)?;
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

    /// Fills `buf` with what is at `offset` of a made file; zeros between and behind tensors.
    fn make(&self, file: &Made, offset: u64, buf: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let end = offset + buf.len() as u64;
        let first = file.tensors.partition_point(|t| t.offset + t.plan.bytes() <= offset);
        let mut done = 0;
        for tensor in file.tensors[first..].iter().take_while(|t| t.offset < end) {
            // Both ends of the range, counted from the start of the tensor.
            let from = offset.saturating_sub(tensor.offset) as usize;
            let to = (end - tensor.offset).min(tensor.plan.bytes()) as usize;
            let at = tensor.offset.saturating_sub(offset) as usize;
            buf[done..at].fill(0);
            done = at + to - from;
            let out = &mut buf[at..done];
            match &tensor.kept {
                Some(kept) => out.copy_from_slice(&kept[from..to]),
                None => self.make_rows(&tensor.plan, from..to, out, scratch)?,
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    /// Fills `out` with the bytes `range` of a tensor.
    fn make_rows(
        &self,
        plan: &TensorPlan,
        range: Range<usize>,
        mut out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let row = plan.row_bytes().max(1);
        let mut at = range.start;
        while at < range.end {
            let (first, skip) = (at / row, at % row);
            let whole = if skip == 0 { (range.end - at) / row } else { 0 };
            let count = match whole {
                0 => (row - skip).min(range.end - at),
                rows => rows * row,
            };
            let (now, rest) = out.split_at_mut(count);
            if whole > 0 {
                plan.rows(&self.files, first..first + whole, scratch, now)?;
            } else {
                // Only a part of a row: that of the stripe before, or of the one behind.
                let mut edge = vec![0; row];
                plan.rows(&self.files, first..first + 1, scratch, &mut edge)?;
                now.copy_from_slice(&edge[skip..skip + count]);
            }
            (at, out) = (at + count, rest);
        }
        Ok(())
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
