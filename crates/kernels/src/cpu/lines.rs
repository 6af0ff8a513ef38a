//! Memory in cache lines: zeroed, aligned, seen as bytes, numbers or vectors.

use super::simd::Eight;
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// One cache line. Vectors that start at a multiple of eight numbers never straddle two.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Zeroed memory that starts on a cache line.
#[derive(Debug)]
pub(crate) struct Lines(Box<[Line]>);

impl Lines {
    /// At least `bytes` bytes, `None` where there is no memory for them. Pages come from the system as
    /// they are touched.
    pub(crate) fn zeroed(bytes: usize) -> Option<Lines> {
        let lines = bytes.div_ceil(size_of::<Line>());
        bytemuck::allocation::try_zeroed_slice_box(lines).ok().map(Lines)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub(crate) fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub(crate) fn eights(&self) -> &[Eight] {
        self.floats().as_chunks().0
    }

    pub(crate) fn eights_mut(&mut self) -> &mut [Eight] {
        self.floats_mut().as_chunks_mut().0
    }
}

/// Working memory that is kept for the next call: the first touch of fresh pages is dear.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<Vec<Lines>>);

impl Shelf {
    /// Room for `count` vectors, holding anything.
    pub(crate) fn take(&self, count: usize) -> Result<Borrowed<'_>> {
        let free = |shelf: &mut Vec<Lines>| {
            let sizes = shelf.iter().map(|lines| lines.eights().len()).enumerate();
            let fits = sizes.filter(|&(_, size)| size >= count).min_by_key(|&(_, size)| size);
            fits.map(|(at, _)| shelf.swap_remove(at)).or_else(|| shelf.pop())
        };
        let found = free(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let lines = match found.filter(|lines| lines.eights().len() >= count) {
            Some(lines) => lines,
            // A piece that was too small is dropped: pieces grow to what is asked for and stay few.
            None => {
                let bytes = count.saturating_mul(size_of::<Eight>());
                Lines::zeroed(bytes).ok_or(Error::OutOfMemory { bytes, device: "cpu" })?
            }
        };
        Ok(Borrowed { shelf: self, lines: Some(lines), count })
    }

    /// One for each of `hands` threads.
    pub(crate) fn take_each(&self, hands: usize, count: usize) -> Result<Vec<Borrowed<'_>>> {
        (0..hands).map(|_| self.take(count)).collect()
    }
}

/// Working memory; goes back to its shelf when dropped.
pub(crate) struct Borrowed<'a> {
    shelf: &'a Shelf,
    lines: Option<Lines>,
    count: usize,
}

impl Deref for Borrowed<'_> {
    type Target = [Eight];
    fn deref(&self) -> &[Eight] {
        self.lines.as_ref().map_or(&[], |lines| &lines.eights()[..self.count])
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut [Eight] {
        self.lines.as_mut().map_or(&mut [], |lines| &mut lines.eights_mut()[..self.count])
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(lines) = self.lines.take() {
            self.shelf.0.lock().unwrap_or_else(PoisonError::into_inner).push(lines);
        }
    }
}
