//! Weights at hand: a layer that is looked at several times, and whatever else is fetched when it is met.

use crate::{Catalog, Error, Result, Rows, Tensor, TensorId, Weights};
use airllm_kernels::Memory;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that are fetched at a time of a tensor that is not held; a longer row is fetched whole.
const PIECE: usize = 16 << 20;

/// Fills a buffer with the packed rows of a tensor.
pub type Fetch<'a> = dyn FnMut(TensorId, Range<usize>, &mut [u8]) -> Result<()> + 'a;

/// Some tensors in the device's memory, in any format, and a way to get the rows of the others.
///
/// No order is asked for: a pass may meet a tensor as often as it likes. What is not held is fetched anew
/// each time, in pieces of 16 MiB.
pub struct Held<'a, M: Memory> {
    device: Arc<M>,
    catalog: Catalog,
    fetch: Box<Fetch<'a>>,
    tensors: HashMap<TensorId, (M::Buf, usize)>,
    bytes: Vec<u8>,
    /// Where fetched bytes meet the device.
    room: Option<M::Buf>,
}

impl<'a, M: Memory> Held<'a, M> {
    /// Holds nothing yet. `catalog` gives the shapes, and the format of what is fetched.
    pub fn new(device: Arc<M>, catalog: Catalog, fetch: Box<Fetch<'a>>) -> Self {
        Self { device, catalog, fetch, tensors: HashMap::new(), bytes: Vec::new(), room: None }
    }

    /// Holds a tensor from now on: all its rows, packed as whoever meets them expects.
    pub fn put(&mut self, id: TensorId, bytes: &[u8]) -> Result<()> {
        let tensor = self.tensor(id)?;
        if tensor.rows == 0 || !bytes.len().is_multiple_of(tensor.rows) {
            let what = format!("{}: {} bytes are not {} rows", tensor.name, bytes.len(), tensor.rows);
            return Err(Error::Catalog(what));
        }
        let mut buf = self.device.alloc(bytes.len())?;
        self.device.write(&mut buf, 0, bytes)?;
        self.tensors.insert(id, (buf, bytes.len()));
        Ok(())
    }

    /// Fetches a tensor and holds it.
    pub fn load(&mut self, id: TensorId) -> Result<()> {
        let tensor = self.tensor(id)?;
        let (rows, bytes) = (tensor.rows, tensor.bytes());
        self.bytes.resize(bytes, 0);
        (self.fetch)(id, 0..rows, &mut self.bytes)?;
        let bytes = std::mem::take(&mut self.bytes);
        self.put(id, &bytes)?;
        self.bytes = bytes;
        Ok(())
    }

    /// Whether a tensor is held.
    pub fn holds(&self, id: TensorId) -> bool {
        self.tensors.contains_key(&id)
    }

    /// Gives up a tensor; of those that are not held, does nothing.
    pub fn drop_tensor(&mut self, id: TensorId) {
        self.tensors.remove(&id);
    }

    /// Gives up everything.
    pub fn clear(&mut self) {
        self.tensors.clear();
    }

    fn tensor(&self, id: TensorId) -> Result<&Tensor> {
        self.catalog.get(id).ok_or_else(|| Error::Catalog(format!("{id:?} is not there")))
    }

    /// Lets `f` see bytes that are in `self.bytes`.
    fn lend<E: From<Error>>(
        &mut self,
        len: usize,
        f: impl FnOnce(M::View<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let room = match self.room.take() {
            Some(room) if self.device.len(&room) >= len => room,
            _ => self.device.alloc(len).map_err(Error::from)?,
        };
        let room = self.room.insert(room);
        self.device.write(room, 0, &self.bytes[..len]).map_err(Error::from)?;
        f(self.device.view(room, 0..len).map_err(Error::from)?)?;
        // The room is written again for the next piece.
        let fence = self.device.fence().map_err(Error::from)?;
        Ok(self.device.wait(&fence).map_err(Error::from)?)
    }
}

impl<M: Memory> Weights<M> for Held<'_, M> {
    fn rows<E, F>(&mut self, id: TensorId, mut f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>,
    {
        let tensor = self.tensor(id)?;
        let (rows, row) = (tensor.rows, tensor.row_bytes().max(1));
        if let Some((buf, len)) = self.tensors.get(&id) {
            let data = self.device.view(buf, 0..*len).map_err(Error::from)?;
            return f(Rows { data, first: 0, count: rows });
        }
        let step = (PIECE / row).max(1);
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            self.bytes.resize(count * row, 0);
            (self.fetch)(id, first..first + count, &mut self.bytes)?;
            self.lend(count * row, |data| f(Rows { data, first, count }))?;
        }
        Ok(())
    }

    fn demand<E, F>(&mut self, id: TensorId, f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>,
    {
        self.rows(id, f)
    }

    fn gather<E, F>(&mut self, id: TensorId, rows: &[u32], f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnOnce(M::View<'_>) -> Result<(), E>,
    {
        let tensor = self.tensor(id)?;
        let (have, name) = (tensor.rows, tensor.name.clone());
        let held = self.tensors.get(&id);
        let row = held.map_or(tensor.row_bytes(), |(_, len)| len / have.max(1));
        let mut bytes = vec![0; rows.len() * row];
        for (&index, out) in rows.iter().zip(bytes.chunks_exact_mut(row.max(1))) {
            let index = index as usize;
            if index >= have {
                return Err(Error::Row { tensor: name, row: index, rows: have }.into());
            }
            match held {
                Some((buf, _)) => self.device.read(buf, index * row, out).map_err(Error::from)?,
                None => (self.fetch)(id, index..index + 1, out)?,
            }
        }
        let len = bytes.len();
        self.bytes = bytes;
        self.lend(len, f)
    }

    fn request(&mut self, _: &[usize]) -> Result<()> {
        Ok(())
    }

    fn done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }

    fn skip(&mut self, _: TensorId) -> Result<()> {
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        Ok(())
    }
}
