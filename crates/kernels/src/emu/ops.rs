//! The verbs: checks, then launches.

use super::launch::Grid;
use super::{Emu, EmuBuf, EmuView, Rung};
use crate::abi;
use crate::{Activation, Attend, Columns, Error, Matrix, Ops, Place, Result, Rope, RopeKind, Work, shape};
use airllm_format::Layout;

/// Most tokens of a product for which `gemv` reads the weights, at most [`TILE`] of them at a time.
const FEW: usize = 16;
/// Most tokens in a block of `gemv`.
const TILE: usize = 8;

impl Ops for Emu {
    fn decode(&self, rows: Matrix<EmuView<'_>>, y: &mut EmuBuf) -> Result<()> {
        let work = shape::decode(&shape::sized(&rows, rows.data.len()), self.len_of(y))?;
        let params = abi::Decode {
            w: rows.data.start(),
            row_bytes: rows.format.row_bytes(rows.cols) as u64,
            rows: rows.rows as u64,
            cols: rows.cols as u64,
            y: y.floats_mut(),
        };
        let kernel = format!("decode_{}", rows.format);
        // SAFETY: `shape::decode` has seen that the view holds all rows and `y` all their numbers.
        unsafe { self.launch("decode", &kernel, &params, Grid::flat(rows.rows * rows.cols))? };
        self.counter.count(work);
        Ok(())
    }

    fn matmul(
        &self,
        w: Matrix<EmuView<'_>>,
        x: &EmuBuf,
        n: usize,
        y: &mut EmuBuf,
        out: Columns,
    ) -> Result<()> {
        const VERB: &str = "matmul";
        let work = shape::matmul(&shape::sized(&w, w.data.len()), self.len_of(x), n, self.len_of(y), out)?;
        let Matrix { data, format, rows, cols } = w;
        if matches!(format.layout(), Layout::Sections { .. } | Layout::Planes { .. }) {
            aligned(VERB, "w", data, 16)?;
        }
        if rows == 0 || n == 0 {
            self.counter.count(work);
            return Ok(());
        }
        let mut params = abi::Product {
            w: data.start(),
            row_bytes: format.row_bytes(cols) as u64,
            rows: rows as u64,
            cols: cols as u64,
            x: x.floats(),
            n: n as u64,
            y: y.floats_mut(),
            stride: out.stride as u64,
            first: out.first as u64,
        };
        let (kernel, grid);
        let spread;
        if self.rung == Rung::Naive {
            kernel = format!("gemv_naive_{format}");
            grid = Grid::flat(rows * n);
        } else if n > FEW {
            kernel = format!("gemm_{format}");
            let blocks = [rows.div_ceil(abi::GEMM_ROWS), n.div_ceil(abi::GEMM_TOKENS)];
            grid = Grid { blocks, threads: abi::GEMM_THREADS, shared: 0 };
        } else {
            spread = self.spread(x, n, cols)?;
            params.x = spread.floats();
            let tile = n.next_power_of_two().min(TILE);
            kernel = format!("gemv_{format}_x{tile}");
            let blocks = [rows.div_ceil(abi::GEMV_ROWS), n.div_ceil(tile)];
            grid = Grid { blocks, threads: abi::GEMV_THREADS, shared: 0 };
        }
        // SAFETY: `shape::matmul` has seen that the view holds all rows, `x` the numbers of `n` tokens and `y` rows of
        // `stride` of them, in which the result fits. What `gemv` reads in place of `x` was just made for it.
        unsafe { self.launch(VERB, &kernel, &params, grid)? };
        self.counter.count(work);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &EmuBuf,
        weight: EmuView<'_>,
        eps: f32,
        n: usize,
        dim: usize,
        y: &mut EmuBuf,
    ) -> Result<()> {
        let work = shape::rms_norm(self.len_of(x), weight.len(), n, dim, self.len_of(y))?;
        let (x, y) = (x.floats(), y.floats_mut());
        // SAFETY: `shape::rms_norm` has seen that `x` and `y` hold `n` rows of `dim`; they are different buffers.
        unsafe { self.norm("rms_norm", x, weight, eps, (n, dim), y)? };
        self.counter.count(work);
        Ok(())
    }

    fn rms_norm_rows(
        &self,
        x: &mut EmuBuf,
        weight: EmuView<'_>,
        eps: f32,
        rows: usize,
        dim: usize,
    ) -> Result<()> {
        let work = shape::rms_norm_rows(self.len_of(x), weight.len(), rows, dim)?;
        let x = x.floats_mut();
        // SAFETY: `shape::rms_norm_rows` has seen that `x` holds all rows. The kernel allows in place: a thread writes a
        // number after all of its row were read, and but for its own it reads none after that.
        unsafe { self.norm("rms_norm_rows", x, weight, eps, (rows, dim), x)? };
        self.counter.count(work);
        Ok(())
    }

    fn add_bias(&self, y: &mut EmuBuf, bias: EmuView<'_>, n: usize, dim: usize) -> Result<()> {
        let work = shape::add_bias(self.len_of(y), bias.len(), n, dim)?;
        let by = aligned("add_bias", "bias", bias, 4)?.cast();
        let params = abi::Rows { y: y.floats_mut(), by, n: n as u64, dim: dim as u64 };
        // SAFETY: `shape::add_bias` has seen that `y` holds `n` rows of `dim` and the view `dim` numbers.
        unsafe { self.launch("add_bias", "add_bias", &params, Grid::flat(n * dim))? };
        self.counter.count(work);
        Ok(())
    }

    fn add(&self, y: &mut EmuBuf, x: &EmuBuf, len: usize) -> Result<()> {
        let work = shape::add(self.len_of(y), self.len_of(x), len)?;
        let params = abi::Flat { y: y.floats_mut(), x: x.floats(), len: len as u64 };
        // SAFETY: `shape::add` has seen that both hold `len` numbers.
        unsafe { self.launch("add", "add", &params, Grid::flat(len))? };
        self.counter.count(work);
        Ok(())
    }

    fn gated(&self, gate: &mut EmuBuf, up: &EmuBuf, len: usize, f: Activation) -> Result<()> {
        let work = shape::gated(self.len_of(gate), self.len_of(up), len)?;
        let gelu = u32::from(f == Activation::GeluTanh);
        let params =
            abi::Gated { gate: gate.floats_mut(), up: up.floats(), len: len as u64, gelu, unused: 0 };
        // SAFETY: `shape::gated` has seen that both hold `len` numbers.
        unsafe { self.launch("gated", "gated", &params, Grid::flat(len))? };
        self.counter.count(work);
        Ok(())
    }

    fn reorder(&self, x: &EmuBuf, order: EmuView<'_>, n: usize, dim: usize, y: &mut EmuBuf) -> Result<()> {
        let work = shape::reorder(self.len_of(x), order.len(), n, dim, self.len_of(y))?;
        let order = aligned("reorder", "order", order, 4)?.cast();
        let params = abi::Reorder { x: x.floats(), order, y: y.floats_mut(), n: n as u64, dim: dim as u64 };
        // SAFETY: `shape::reorder` has seen that `x` and `y` hold `n` rows of `dim` and the view `dim` numbers; the
        // kernel reads no column that is not one.
        unsafe { self.launch("reorder", "reorder", &params, Grid::flat(n * dim))? };
        self.counter.count(work);
        Ok(())
    }

    fn scale_rows(&self, y: &mut EmuBuf, factors: &[f32], dim: usize) -> Result<()> {
        let work = shape::scale_rows(self.len_of(y), factors, dim)?;
        let n = factors.len();
        let params = abi::Rows { y: y.floats_mut(), by: factors.as_ptr(), n: n as u64, dim: dim as u64 };
        // SAFETY: `shape::scale_rows` has seen that `y` holds a row for each factor.
        unsafe { self.launch("scale_rows", "scale_rows", &params, Grid::flat(n * dim))? };
        self.counter.count(work);
        Ok(())
    }

    fn scatter_add(
        &self,
        x: &EmuBuf,
        rows: &[u32],
        factors: &[f32],
        dim: usize,
        y: &mut EmuBuf,
    ) -> Result<()> {
        let work = shape::scatter_add(self.len_of(x), rows, factors, dim, self.len_of(y))?;
        let params = abi::Scatter {
            x: x.floats(),
            rows: rows.as_ptr(),
            factors: factors.as_ptr(),
            y: y.floats_mut(),
            count: rows.len() as u64,
            dim: dim as u64,
        };
        if !rows.is_empty() {
            // SAFETY: `shape::scatter_add` has seen that there is a factor and a row of `x` for each of `rows`, and that
            // `y` holds the last of them.
            unsafe { self.launch("scatter_add", "scatter_add", &params, Grid::flat(dim))? };
        }
        self.counter.count(work);
        Ok(())
    }

    fn place(&self, x: &EmuBuf, y: &mut EmuBuf, shape: Place) -> Result<()> {
        let work = shape::place(self.len_of(x), self.len_of(y), &shape)?;
        let Place { rows, repeat, width, from, to } = shape;
        let params = abi::Placing {
            x: x.floats(),
            y: y.floats_mut(),
            rows: rows as u64,
            repeat: repeat as u64,
            width: width as u64,
            from_stride: from.stride as u64,
            from_first: from.first as u64,
            to_stride: to.stride as u64,
            to_first: to.first as u64,
        };
        // SAFETY: `shape::place` has seen that the columns lie in their rows and that `x` and `y` hold those.
        unsafe { self.launch("place", "place", &params, Grid::flat(rows * width))? };
        self.counter.count(work);
        Ok(())
    }

    fn rope(&self, x: &mut EmuBuf, table: &EmuBuf, shape: Rope) -> Result<()> {
        let work = shape::rope(self.len_of(x), self.len_of(table), &shape)?;
        let Rope { n, heads, head_dim, rotary, kind } = shape;
        let params = abi::Turn {
            x: x.floats_mut(),
            table: table.floats(),
            n: n as u64,
            heads: heads as u64,
            head_dim: head_dim as u64,
            rotary: rotary as u64,
            interleaved: u32::from(kind == RopeKind::Interleaved),
            unused: 0,
        };
        if n > 0 && heads > 0 && rotary > 0 {
            // SAFETY: `shape::rope` has seen that `x` holds all heads and the table a row for each token, and that pairs
            // lie within their head; no two threads have the same pair.
            unsafe { self.launch("rope", "rope", &params, Grid::flat(n * heads * (rotary / 2)))? };
        }
        self.counter.count(work);
        Ok(())
    }

    fn store(
        &self,
        x: &EmuBuf,
        first: usize,
        n: usize,
        dim: usize,
        cache: &mut EmuBuf,
        at: usize,
    ) -> Result<()> {
        let work = shape::store(self.len_of(x), first, n, dim, self.len_of(cache), at)?;
        let len = n * dim;
        if len > 0 {
            let (x, y) = (x.floats().wrapping_add(first * dim), cache.floats_mut().wrapping_add(at * dim));
            let params = abi::Flat { y, x, len: len as u64 };
            // SAFETY: `shape::store` has seen that `x` holds rows `first..first + n` and the cache those from `at` on.
            unsafe { self.launch("store", "copy", &params, Grid::flat(len))? };
        }
        self.counter.count(work);
        Ok(())
    }

    fn attend(&self, q: &EmuBuf, k: &EmuBuf, v: &EmuBuf, out: &mut EmuBuf, shape: Attend) -> Result<()> {
        const VERB: &str = "attend";
        let lens = [q, k, v].map(|buf| self.len_of(buf));
        let work = shape::attend(lens[0], lens[1], lens[2], self.len_of(out), &shape)?;
        let Attend { n, heads, head_dim, value_dim, .. } = shape;
        if n == 0 || heads == 0 || value_dim == 0 {
            self.counter.count(work);
            return Ok(());
        }
        let params = abi::Attention {
            q: q.floats(),
            k: k.floats(),
            v: v.floats(),
            out: out.floats_mut(),
            first: shape.first as u64,
            n: n as u64,
            start: shape.start as u64,
            heads: heads as u64,
            kv_heads: shape.kv_heads as u64,
            head_dim: head_dim as u64,
            value_dim: value_dim as u64,
            window: shape.window as u64,
            scale: shape.scale,
            softcap: shape.softcap,
            alibi: u32::from(shape.alibi),
            whole: 1 << heads.ilog2(),
        };
        let (kernel, grid);
        if self.rung == Rung::Naive {
            (kernel, grid) = ("attend_naive", Grid::flat(n * heads));
        } else {
            let warps = abi::ATTEND_THREADS as usize / 32;
            let shared = value_dim.saturating_mul(warps).saturating_add(head_dim).saturating_mul(4);
            if shared > abi::SHARED - abi::ATTEND_SHARED {
                let what = format!(
                    "heads of {head_dim} and {value_dim} numbers need {shared} bytes of shared memory, a block has {}",
                    abi::SHARED - abi::ATTEND_SHARED
                );
                return Err(Error::Argument { verb: VERB, what });
            }
            (kernel, grid) = ("attend", Grid { blocks: [n, heads], threads: abi::ATTEND_THREADS, shared });
        }
        // SAFETY: `shape::attend` has seen that `q` and `out` hold rows up to `first + n`, `k` and `v` those up to
        // `start + n`, beyond which no query looks; a head of keys and values belongs to whole heads of queries.
        unsafe { self.launch(VERB, kernel, &params, grid)? };
        self.counter.count(work);
        Ok(())
    }

    fn gather(&self, x: &EmuBuf, rows: &[u32], dim: usize, y: &mut EmuBuf) -> Result<()> {
        let work = shape::gather(self.len_of(x), rows, dim, self.len_of(y))?;
        let count = rows.len();
        let params = abi::Gather {
            x: x.floats(),
            rows: rows.as_ptr(),
            y: y.floats_mut(),
            count: count as u64,
            dim: dim as u64,
        };
        // SAFETY: `shape::gather` has seen that `x` holds the last of the rows and `y` as many as there are.
        unsafe { self.launch("gather", "gather", &params, Grid::flat(count * dim))? };
        self.counter.count(work);
        Ok(())
    }

    fn work(&self) -> Work {
        self.counter.total()
    }
}

impl Emu {
    fn len_of(&self, buf: &EmuBuf) -> usize {
        buf.bytes().len()
    }

    /// The numbers of `n` tokens in the order in which `gemv` reads them.
    fn spread(&self, x: &EmuBuf, n: usize, cols: usize) -> Result<EmuBuf> {
        let fours = n * cols.div_ceil(abi::SLICE) * (abi::SLICE / 4);
        let bytes = fours * 16;
        let mut to = EmuBuf::zeroed(bytes).ok_or(Error::OutOfMemory { bytes, device: "emu" })?;
        let params = abi::Spread { x: x.floats(), to: to.floats_mut(), n: n as u64, cols: cols as u64 };
        // SAFETY: the caller has seen that `x` holds `n` tokens; `to` was made for what the kernel writes, four numbers
        // a thread.
        unsafe { self.launch("matmul", "gemv_spread", &params, Grid::flat(fours))? };
        Ok(to)
    }

    /// # Safety
    ///
    /// `x` and `y` lead to `rows` rows of `dim` numbers that the kernel alone may use, the same or apart; `weight` holds
    /// `dim` numbers.
    unsafe fn norm(
        &self,
        verb: &'static str,
        x: *const f32,
        weight: EmuView<'_>,
        eps: f32,
        (rows, dim): (usize, usize),
        y: *mut f32,
    ) -> Result<()> {
        let weight = aligned(verb, "weight", weight, 4)?.cast();
        let params = abi::Norm { x, weight, y, rows: rows as u64, dim: dim as u64, eps, unused: 0 };
        if dim == 0 {
            return Ok(());
        }
        let (kernel, grid) = match self.rung {
            Rung::Naive => ("rms_norm_naive", Grid::flat(rows)),
            Rung::Production => {
                ("rms_norm", Grid { blocks: [rows, 1], threads: abi::NORM_THREADS, shared: 0 })
            }
        };
        // SAFETY: the caller vouches for the rows and the weight.
        unsafe { self.launch(verb, kernel, &params, grid) }
    }
}

/// Where a view starts, if that is a multiple of `to`.
fn aligned(verb: &'static str, operand: &str, view: EmuView<'_>, to: usize) -> Result<*const u8> {
    let start = view.start();
    // A view of nothing is never read.
    if view.len() == 0 || start.addr().is_multiple_of(to) {
        return Ok(start);
    }
    let what = format!(
        "{operand} starts {} bytes after a multiple of {to}, and must start at one",
        start.addr() % to
    );
    Err(Error::Argument { verb, what })
}
