//! A device without arithmetic.

use crate::shape::{self, Counter};
use crate::{Activation, Attend, Columns, Heads, Matrix, Memory, Ops, Place, Result, Rope, Tokens, Work};
use airllm_format::NumFormat;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// A device that computes nothing: it checks every size, logs every verb and reads back zeros.
///
/// Planners, schedulers and declarations of architectures run on it without weights: a view is only a
/// length, a buffer only a size.
///
/// ```
/// use airllm_kernels::{Memory, Ops, Trace};
///
/// let device = Trace::new();
/// let x = device.alloc(4 * 64)?;
/// let mut y = device.alloc(4 * 64)?;
/// device.add(&mut y, &x, 64)?;
/// assert!(device.add(&mut y, &x, 65).is_err());
///
/// let log = device.log();
/// assert_eq!(log.last().map(|e| (e.verb, e.bytes, e.flops)), Some(("add", 3 * 4 * 64, 64)));
/// # Ok::<(), airllm_kernels::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Trace {
    discrete: bool,
    log: Mutex<Vec<Event>>,
    counter: Counter,
}

/// One call of a verb or of a memory operation that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The method's name: `"matmul"`, `"attend"`, `"alloc"`, `"write"`, `"read"`, ….
    pub verb: &'static str,
    /// Bytes read and written, allocated or copied.
    pub bytes: u64,
    /// Multiplications and additions.
    pub flops: u64,
    /// Tokens, rows of `decode` and `gather`, 1 for verbs over a flat length, 0 for memory operations.
    pub n: usize,
    /// Rows, columns and format of the matrix, for `decode` and `matmul`.
    pub matrix: Option<(usize, usize, NumFormat)>,
}

/// The size of something that a [`Trace`] pretends to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its bytes.
    pub bytes: usize,
}

impl Trace {
    /// A device that computes from host memory, as the CPU does.
    pub fn new() -> Trace {
        Trace::default()
    }

    /// A device with memory of its own: [`host_view`](Memory::host_view) is `None`.
    pub fn discrete() -> Trace {
        Trace { discrete: true, ..Trace::default() }
    }

    /// Everything that was called so far, in order.
    pub fn log(&self) -> Vec<Event> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the log and starts a new one. The sums of [`work`](Ops::work) go on.
    pub fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, event: Event) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn memory(&self, verb: &'static str, bytes: usize) {
        self.push(Event { verb, bytes: bytes as u64, flops: 0, n: 0, matrix: None });
    }

    fn verb(&self, verb: &'static str, work: Work, n: usize) {
        self.counter.count(work);
        self.push(Event { verb, bytes: work.bytes, flops: work.flops, n, matrix: None });
    }

    fn product(&self, verb: &'static str, work: Work, n: usize, m: Matrix<Extent>) {
        self.counter.count(work);
        let matrix = Some((m.rows, m.cols, m.format));
        self.push(Event { verb, bytes: work.bytes, flops: work.flops, n, matrix });
    }
}

impl Memory for Trace {
    type Buf = Extent;
    type Fence = ();
    type View<'a> = Extent;

    fn copies(&self) -> bool {
        self.discrete
    }

    fn alloc(&self, bytes: usize) -> Result<Extent> {
        self.memory("alloc", bytes);
        Ok(Extent { bytes })
    }

    fn len(&self, buf: &Extent) -> usize {
        buf.bytes
    }

    fn write(&self, dst: &mut Extent, offset: usize, bytes: &[u8]) -> Result<()> {
        shape::need("write", "buffer", offset.saturating_add(bytes.len()), dst.bytes)?;
        self.memory("write", bytes.len());
        Ok(())
    }

    fn read(&self, src: &Extent, offset: usize, out: &mut [u8]) -> Result<()> {
        shape::need("read", "buffer", offset.saturating_add(out.len()), src.bytes)?;
        self.memory("read", out.len());
        out.fill(0);
        Ok(())
    }

    fn view<'a>(&'a self, buf: &'a Extent, range: Range<usize>) -> Result<Extent> {
        shape::range("view", &range, buf.bytes)?;
        Ok(Extent { bytes: range.len() })
    }

    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<Extent> {
        (!self.discrete).then_some(Extent { bytes: bytes.len() })
    }

    unsafe fn upload(&self, dst: &Extent, offset: usize, bytes: &[u8], _: Option<&()>) -> Result<()> {
        shape::need("upload", "buffer", offset.saturating_add(bytes.len()), dst.bytes)?;
        self.memory("upload", bytes.len());
        Ok(())
    }

    fn follow(&self, _: &()) -> Result<()> {
        Ok(())
    }

    fn fence(&self) -> Result<()> {
        Ok(())
    }

    fn wait(&self, _: &()) -> Result<()> {
        Ok(())
    }

    fn is_done(&self, _: &()) -> Result<bool> {
        Ok(true)
    }
}

impl Ops for Trace {
    fn decode(&self, rows: Matrix<Extent>, y: &mut Extent) -> Result<()> {
        let work = shape::decode(&shape::sized(&rows, rows.data.bytes), y.bytes)?;
        self.product("decode", work, rows.rows, rows);
        Ok(())
    }

    fn matmul(
        &self,
        w: Matrix<Extent>,
        x: &Extent,
        tokens: Tokens,
        y: &mut Extent,
        out: Columns,
    ) -> Result<()> {
        let work = shape::matmul(&shape::sized(&w, w.data.bytes), x.bytes, tokens, y.bytes, out)?;
        self.product("matmul", work, tokens.n, w);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &Extent,
        weight: Extent,
        _eps: f32,
        n: usize,
        dim: usize,
        y: &mut Extent,
    ) -> Result<()> {
        let work = shape::rms_norm(x.bytes, weight.bytes, n, dim, y.bytes)?;
        self.verb("rms_norm", work, n);
        Ok(())
    }

    fn rms_norm_rows(
        &self,
        x: &mut Extent,
        weight: Extent,
        _eps: f32,
        rows: usize,
        dim: usize,
    ) -> Result<()> {
        let work = shape::rms_norm_rows(x.bytes, weight.bytes, rows, dim)?;
        self.verb("rms_norm_rows", work, rows);
        Ok(())
    }

    fn add_bias(&self, y: &mut Extent, bias: Extent, n: usize, dim: usize) -> Result<()> {
        let work = shape::add_bias(y.bytes, bias.bytes, n, dim)?;
        self.verb("add_bias", work, n);
        Ok(())
    }

    fn add(&self, y: &mut Extent, x: &Extent, len: usize) -> Result<()> {
        let work = shape::add(y.bytes, x.bytes, len)?;
        self.verb("add", work, 1);
        Ok(())
    }

    fn gated(&self, gate: &mut Extent, up: &Extent, len: usize, _: Activation) -> Result<()> {
        let work = shape::gated(gate.bytes, up.bytes, len)?;
        self.verb("gated", work, 1);
        Ok(())
    }

    fn reorder(&self, x: &Extent, order: Extent, n: usize, dim: usize, y: &mut Extent) -> Result<()> {
        let work = shape::reorder(x.bytes, order.bytes, n, dim, y.bytes)?;
        self.verb("reorder", work, n);
        Ok(())
    }

    fn scale_rows(&self, y: &mut Extent, factors: &[f32], dim: usize) -> Result<()> {
        let work = shape::scale_rows(y.bytes, factors, dim)?;
        self.verb("scale_rows", work, factors.len());
        Ok(())
    }

    fn scatter_add(
        &self,
        x: &Extent,
        rows: &[u32],
        factors: &[f32],
        dim: usize,
        y: &mut Extent,
    ) -> Result<()> {
        let work = shape::scatter_add(x.bytes, rows, factors, dim, y.bytes)?;
        self.verb("scatter_add", work, rows.len());
        Ok(())
    }

    fn place(&self, x: &Extent, y: &mut Extent, shape: Place) -> Result<()> {
        let work = shape::place(x.bytes, y.bytes, &shape)?;
        self.verb("place", work, shape.rows);
        Ok(())
    }

    fn rope(&self, x: &mut Extent, table: &Extent, shape: Rope) -> Result<()> {
        let work = shape::rope(x.bytes, table.bytes, &shape)?;
        self.verb("rope", work, shape.n);
        Ok(())
    }

    fn store(
        &self,
        x: &Extent,
        first: usize,
        n: usize,
        heads: Heads,
        cache: &mut Extent,
        at: usize,
    ) -> Result<()> {
        let work = shape::store(x.bytes, first, n, heads, cache.bytes, at)?;
        self.verb("store", work, n);
        Ok(())
    }

    fn attend(&self, q: &Extent, k: &Extent, v: &Extent, out: &mut Extent, shape: Attend) -> Result<()> {
        let work = shape::attend(q.bytes, k.bytes, v.bytes, out.bytes, &shape)?;
        self.verb("attend", work, shape.n);
        Ok(())
    }

    fn gather(&self, x: &Extent, rows: &[u32], dim: usize, y: &mut Extent) -> Result<()> {
        let work = shape::gather(x.bytes, rows, dim, y.bytes)?;
        self.verb("gather", work, rows.len());
        Ok(())
    }

    fn work(&self) -> Work {
        self.counter.total()
    }
}
