//! What a forward asks for weights by, whether they flow past or are held.

use crate::{Error, Pipeline, Result, Rows, TensorId};
use airllm_kernels::Memory;

/// Weights, as a computation meets them. A [`Pipeline`] streams them in the order of a pass;
/// [`Held`](crate::Held) has them at hand, for work that looks at a layer more than once.
///
/// Every method means what the one of the same name of [`Pipeline`] does.
pub trait Weights<M: Memory> {
    /// Leases all rows of a tensor, run after run, in order; see [`Pipeline::rows`].
    fn rows<E, F>(&mut self, id: TensorId, f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>;

    /// The same for a tensor of a unit that was requested; see [`Pipeline::demand`].
    fn demand<E, F>(&mut self, id: TensorId, f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>;

    /// Leases single rows, packed, in the order asked for; see [`Pipeline::gather`].
    fn gather<E, F>(&mut self, id: TensorId, rows: &[u32], f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnOnce(M::View<'_>) -> Result<(), E>;

    /// Says which units on demand are used next; see [`Pipeline::request`].
    fn request(&mut self, units: &[usize]) -> Result<()>;

    /// Ends the use of a requested unit; see [`Pipeline::done`].
    fn done(&mut self, unit: usize) -> Result<()>;

    /// Passes over a tensor; see [`Pipeline::skip`].
    fn skip(&mut self, id: TensorId) -> Result<()>;

    /// Gives up the current pass; see [`Pipeline::restart`].
    fn restart(&mut self) -> Result<()>;
}

impl<M: Memory> Weights<M> for Pipeline<M> {
    fn rows<E, F>(&mut self, id: TensorId, f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>,
    {
        Pipeline::rows(self, id, f)
    }

    fn demand<E, F>(&mut self, id: TensorId, f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>,
    {
        Pipeline::demand(self, id, f)
    }

    fn gather<E, F>(&mut self, id: TensorId, rows: &[u32], f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnOnce(M::View<'_>) -> Result<(), E>,
    {
        Pipeline::gather(self, id, rows, f)
    }

    fn request(&mut self, units: &[usize]) -> Result<()> {
        Pipeline::request(self, units)
    }

    fn done(&mut self, unit: usize) -> Result<()> {
        Pipeline::done(self, unit)
    }

    fn skip(&mut self, id: TensorId) -> Result<()> {
        Pipeline::skip(self, id)
    }

    fn restart(&mut self) -> Result<()> {
        Pipeline::restart(self)
    }
}
