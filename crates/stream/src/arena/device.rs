//! The second half of a slot's life, on a device that weights are copied to.
//!
//! `Slot<Ready>` and a free `Target` ->  `Upload<Uploading>` -> `Upload<Resident>` -> `Target` again. The slot's bytes
//! are kept by the upload until the copy is known to be done, and the buffer can be reached through a `Resident` alone,
//! which exists only after the device was told to compute behind the copy.

use super::{Ready, Slot};
use crate::layout::Layout;
use crate::{Error, Result};
use airllm_kernels::Memory;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Where the bytes of an upload come from.
#[derive(Debug)]
pub enum Origin {
    /// A slot that is to be used again.
    Ring(Slot<Ready>),
    /// One that stays, or at least stays until nobody shares it.
    Kept(Arc<Slot<Ready>>),
}

impl Origin {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Ring(slot) => slot.bytes(),
            Self::Kept(slot) => slot.bytes(),
        }
    }
}

/// A buffer of the device that nothing but work before `after` uses.
#[derive(Debug)]
pub struct Target<M: Memory> {
    device: Arc<M>,
    buffer: Arc<M::Buf>,
    after: M::Fence,
}

/// State of an upload that work on the device may not see yet.
#[derive(Debug)]
pub enum Uploading {}
/// State of an upload that work queued from now on finds complete.
#[derive(Debug)]
pub enum Resident {}
/// State of an upload whose buffer has been given back.
#[derive(Debug)]
pub enum Retired {}

/// A buffer of the device, and the slot that it is filled from as long as that is copied.
pub struct Upload<M: Memory, State> {
    copy: Copying<M>,
    state: PhantomData<State>,
}

struct Copying<M: Memory> {
    device: Arc<M>,
    buffer: Arc<M::Buf>,
    /// Done when the copy is.
    done: M::Fence,
    /// `None` once the copy is known to be done.
    origin: Option<Origin>,
}

impl<M: Memory> Target<M> {
    /// Makes a buffer.
    pub fn new(device: &Arc<M>, bytes: usize) -> Result<Self> {
        let buffer = Arc::new(device.alloc(bytes)?);
        let after = device.fence()?;
        Ok(Self { device: device.clone(), buffer, after })
    }

    /// Starts to fill the buffer as `layout` says. After an error buffer and slot are gone.
    pub fn upload(self, origin: Origin, layout: &Layout) -> Result<Upload<M, Uploading>> {
        let mut copy: Option<Copying<M>> = None;
        let mut origin = Some(origin);
        for piece in &layout.pieces {
            let from = copy.as_ref().and_then(|copy| copy.origin.as_ref()).or(origin.as_ref());
            let Some(bytes) = from.and_then(|origin| origin.bytes().get(piece.from.clone())) else {
                return Err(Error::Catalog(format!("a slot does not have bytes {:?}", piece.from)));
            };
            // SAFETY: the slot that `bytes` lie in is `Ready` and owned, or shared, by `copy` from here on, which
            // keeps it until `done` is done, also when it is dropped, and with it `buffer`; a `Ready` slot is not
            // written, and keeps its mapping. Whoever reads or wrote the buffer did so through a `Resident`, and
            // `after` was taken when that ended, or the buffer is fresh and `after` stands for what made it. The
            // next one who can reach it is a `Resident`, which comes of `follow` alone.
            let done = unsafe { self.device.upload(&self.buffer, piece.to, bytes, Some(&self.after))? };
            // Copies are done in order, so that the last fence stands for all of them.
            match &mut copy {
                Some(copy) => copy.done = done,
                None => {
                    let (device, buffer) = (self.device.clone(), self.buffer.clone());
                    copy = Some(Copying { device, buffer, done, origin: origin.take() });
                }
            }
        }
        let copy = copy.ok_or_else(|| Error::Catalog("a stripe without bytes".to_owned()))?;
        Ok(Upload { copy, state: PhantomData })
    }
}

impl<M: Memory, State> Upload<M, State> {
    /// The slot, if it is not needed any more and was not given back before. Does not wait.
    pub fn finished(&mut self) -> Result<Option<Origin>> {
        if self.copy.origin.is_some() && self.copy.device.is_done(&self.copy.done)? {
            return Ok(self.copy.origin.take());
        }
        Ok(None)
    }

    /// Waits for the copy; gives the slot back unless that was done before.
    pub fn finish(&mut self) -> Result<Option<Origin>> {
        if self.copy.origin.is_some() {
            self.copy.device.wait(&self.copy.done)?;
        }
        Ok(self.copy.origin.take())
    }

    /// What it still has to give back.
    pub fn origin(&self) -> Option<&Origin> {
        self.copy.origin.as_ref()
    }
}

impl<M: Memory> Upload<M, Uploading> {
    /// Lets the work that is queued from now on come after the copy.
    pub fn follow(self) -> Result<Upload<M, Resident>> {
        self.copy.device.follow(&self.copy.done)?;
        Ok(Upload { copy: self.copy, state: PhantomData })
    }
}

impl<M: Memory> Upload<M, Resident> {
    /// Bytes of the buffer, for work that is queued before [`retire`](Self::retire).
    pub fn view(&self, range: Range<usize>) -> Result<M::View<'_>> {
        Ok(self.copy.device.view(&self.copy.buffer, range)?)
    }

    /// Copies bytes of the buffer to the host.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        Ok(self.copy.device.read(&self.copy.buffer, at, out)?)
    }

    /// Gives the buffer back behind the work that was queued with it, and leaves the slot.
    pub fn retire(self) -> Result<(Target<M>, Upload<M, Retired>)> {
        let (device, buffer) = (self.copy.device.clone(), self.copy.buffer.clone());
        let after = device.fence()?;
        Ok((Target { device, buffer, after }, Upload { copy: self.copy, state: PhantomData }))
    }
}

impl<M: Memory> Drop for Copying<M> {
    fn drop(&mut self) {
        if self.origin.is_some() && self.device.wait(&self.done).is_err() {
            // Nobody can say whether the copy goes on: what it may touch stays where it is, for good.
            std::mem::forget((self.origin.take(), self.buffer.clone()));
        }
    }
}
