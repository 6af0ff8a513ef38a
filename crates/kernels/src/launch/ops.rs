//! The verbs: checks, then launches.

use super::{Grid, Launcher, Rung, STAGED, Staged, Where, aligned, attention, floats, product, run, vector};
use crate::abi;
use crate::{
    Activation, Attend, Columns, Heads, KvFormat, Matrix, Memory, Ops, Place, Result, Rope, RopeKind, Tokens,
    Work, shape,
};
use airllm_format::NumFormat;

impl<D: Launcher> Ops for D {
    /// Views of host memory are multiplied by the host, as it does it.
    fn in_integers(&self, format: NumFormat) -> bool {
        self.beside().is_some_and(|cpu| cpu.in_integers(format))
    }

    fn caches(&self) -> &'static [KvFormat] {
        &attention::CACHES
    }

    fn decode(&self, rows: Matrix<D::View<'_>>, y: &mut D::Buf) -> Result<()> {
        let place = self.locate(rows.data);
        let work = shape::decode(&shape::sized(&rows, place.len()), self.len(y))?;
        if let (Where::Host(data), Some(cpu)) = (place, self.beside()) {
            let rows = Matrix { data, format: rows.format, rows: rows.rows, cols: rows.cols };
            let mut numbers = vec![0; rows.rows * rows.cols * 4];
            let mut decoded = cpu.alloc(numbers.len())?;
            cpu.decode(rows, &mut decoded)?;
            cpu.read(&decoded, 0, &mut numbers)?;
            self.write(y, 0, &numbers)?;
            self.counter().count(work);
            return Ok(());
        }
        let params = abi::Decode {
            w: aligned("decode", "rows", place, 1)?,
            row_bytes: rows.format.row_bytes(rows.cols) as u64,
            rows: rows.rows as u64,
            cols: rows.cols as u64,
            y: floats(self, y),
        };
        let kernel = format!("decode_{}", rows.format);
        // SAFETY: `shape::decode` has seen that the view holds all rows and `y` all their numbers.
        unsafe { run(self, "decode", &kernel, &params, Grid::flat(rows.rows * rows.cols))? };
        self.counter().count(work);
        Ok(())
    }

    fn matmul(
        &self,
        w: Matrix<D::View<'_>>,
        x: &D::Buf,
        tokens: Tokens,
        y: &mut D::Buf,
        out: Columns,
    ) -> Result<()> {
        product::matmul(self, w, x, tokens, y, out)
    }

    fn rms_norm(
        &self,
        x: &D::Buf,
        weight: D::View<'_>,
        eps: f32,
        n: usize,
        dim: usize,
        y: &mut D::Buf,
    ) -> Result<()> {
        let weight = self.locate(weight);
        let work = shape::rms_norm(self.len(x), weight.len(), n, dim, self.len(y))?;
        let (x, y) = (floats(self, x), floats(self, y));
        // SAFETY: `shape::rms_norm` has seen that `x` and `y` hold `n` rows of `dim`; they are different buffers.
        unsafe { norm(self, "rms_norm", x, weight, eps, (n, dim), y)? };
        self.counter().count(work);
        Ok(())
    }

    fn rms_norm_rows(
        &self,
        x: &mut D::Buf,
        weight: D::View<'_>,
        eps: f32,
        rows: usize,
        dim: usize,
    ) -> Result<()> {
        let weight = self.locate(weight);
        let work = shape::rms_norm_rows(self.len(x), weight.len(), rows, dim)?;
        let x = floats(self, x);
        // SAFETY: `shape::rms_norm_rows` has seen that `x` holds all rows. The kernel allows in place: a thread writes a
        // number after all of its row were read, and but for its own it reads none after that.
        unsafe { norm(self, "rms_norm_rows", x, weight, eps, (rows, dim), x)? };
        self.counter().count(work);
        Ok(())
    }

    fn add_bias(&self, y: &mut D::Buf, bias: D::View<'_>, n: usize, dim: usize) -> Result<()> {
        let bias = self.locate(bias);
        let work = shape::add_bias(self.len(y), bias.len(), n, dim)?;
        let bias = vector(self, "add_bias", "bias", bias, dim)?;
        let params = abi::Rows { y: floats(self, y), by: bias.floats(), n: n as u64, dim: dim as u64 };
        // SAFETY: `shape::add_bias` has seen that `y` holds `n` rows of `dim` and the view `dim` numbers.
        unsafe { run(self, "add_bias", "add_bias", &params, Grid::flat(n * dim))? };
        self.counter().count(work);
        Ok(())
    }

    fn add(&self, y: &mut D::Buf, x: &D::Buf, len: usize) -> Result<()> {
        let work = shape::add(self.len(y), self.len(x), len)?;
        let params = abi::Flat { y: floats(self, y), x: floats(self, x), len: len as u64 };
        // SAFETY: `shape::add` has seen that both hold `len` numbers.
        unsafe { run(self, "add", "add", &params, Grid::flat(len))? };
        self.counter().count(work);
        Ok(())
    }

    fn gated(&self, gate: &mut D::Buf, up: &D::Buf, len: usize, f: Activation) -> Result<()> {
        let work = shape::gated(self.len(gate), self.len(up), len)?;
        let gelu = u32::from(f == Activation::GeluTanh);
        let params =
            abi::Gated { gate: floats(self, gate), up: floats(self, up), len: len as u64, gelu, unused: 0 };
        // SAFETY: `shape::gated` has seen that both hold `len` numbers.
        unsafe { run(self, "gated", "gated", &params, Grid::flat(len))? };
        self.counter().count(work);
        Ok(())
    }

    fn reorder(&self, x: &D::Buf, order: D::View<'_>, n: usize, dim: usize, y: &mut D::Buf) -> Result<()> {
        let order = self.locate(order);
        let work = shape::reorder(self.len(x), order.len(), n, dim, self.len(y))?;
        let order = vector(self, "reorder", "order", order, dim)?;
        let (n64, order) = (n as u64, order.floats());
        let params = abi::Reorder { x: floats(self, x), order, y: floats(self, y), n: n64, dim: dim as u64 };
        // SAFETY: `shape::reorder` has seen that `x` and `y` hold `n` rows of `dim` and the view `dim` numbers; the
        // kernel reads no column that is not one.
        unsafe { run(self, "reorder", "reorder", &params, Grid::flat(n * dim))? };
        self.counter().count(work);
        Ok(())
    }

    fn scale_rows(&self, y: &mut D::Buf, factors: &[f32], dim: usize) -> Result<()> {
        let work = shape::scale_rows(self.len(y), factors, dim)?;
        for (part, factors) in factors.chunks(STAGED / 4).enumerate() {
            let staged = self.stage(bytemuck::cast_slice(factors))?;
            let (y, n) = (floats(self, y).wrapping_add(part * (STAGED / 4) * dim), factors.len());
            let params = abi::Rows { y, by: staged.address().cast(), n: n as u64, dim: dim as u64 };
            // SAFETY: `shape::scale_rows` has seen that `y` holds a row for each factor; these are staged.
            unsafe { run(self, "scale_rows", "scale_rows", &params, Grid::flat(n * dim))? };
        }
        self.counter().count(work);
        Ok(())
    }

    fn scatter_add(
        &self,
        x: &D::Buf,
        rows: &[u32],
        factors: &[f32],
        dim: usize,
        y: &mut D::Buf,
    ) -> Result<()> {
        let work = shape::scatter_add(self.len(x), rows, factors, dim, self.len(y))?;
        // Rows come first, then their factors.
        const MOST: usize = STAGED / 8;
        for (part, (rows, factors)) in rows.chunks(MOST).zip(factors.chunks(MOST)).enumerate() {
            let count = rows.len();
            let both: Vec<u8> = [bytemuck::cast_slice(rows), bytemuck::cast_slice(factors)].concat();
            let staged = self.stage(&both)?;
            let numbers = staged.address().cast::<u32>();
            let params = abi::Scatter {
                x: floats(self, x).wrapping_add(part * MOST * dim),
                rows: numbers,
                factors: numbers.wrapping_add(count).cast(),
                y: floats(self, y),
                count: count as u64,
                dim: dim as u64,
            };
            // SAFETY: `shape::scatter_add` has seen that there is a factor and a row of `x` for each of `rows`, and that
            // `y` holds the last of them; these were staged, one behind the other.
            unsafe { run(self, "scatter_add", "scatter_add", &params, Grid::flat(dim))? };
        }
        self.counter().count(work);
        Ok(())
    }

    fn place(&self, x: &D::Buf, y: &mut D::Buf, shape: Place) -> Result<()> {
        let work = shape::place(self.len(x), self.len(y), &shape)?;
        let Place { rows, repeat, width, from, to } = shape;
        let params = abi::Placing {
            x: floats(self, x),
            y: floats(self, y),
            rows: rows as u64,
            repeat: repeat as u64,
            width: width as u64,
            from_stride: from.stride as u64,
            from_first: from.first as u64,
            to_stride: to.stride as u64,
            to_first: to.first as u64,
        };
        // SAFETY: `shape::place` has seen that the columns lie in their rows and that `x` and `y` hold those.
        unsafe { run(self, "place", "place", &params, Grid::flat(rows * width))? };
        self.counter().count(work);
        Ok(())
    }

    fn rope(&self, x: &mut D::Buf, table: &D::Buf, shape: Rope) -> Result<()> {
        let work = shape::rope(self.len(x), self.len(table), &shape)?;
        let Rope { n, heads, head_dim, rotary, kind } = shape;
        let params = abi::Turn {
            x: floats(self, x),
            table: floats(self, table),
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
            unsafe { run(self, "rope", "rope", &params, Grid::flat(n * heads * (rotary / 2)))? };
        }
        self.counter().count(work);
        Ok(())
    }

    fn store(
        &self,
        x: &D::Buf,
        first: usize,
        n: usize,
        shape: Heads,
        cache: &mut D::Buf,
        at: usize,
    ) -> Result<()> {
        attention::store(self, x, (first, n), shape, cache, at)
    }

    fn attend(&self, q: &D::Buf, k: &D::Buf, v: &D::Buf, out: &mut D::Buf, shape: Attend) -> Result<()> {
        attention::attend(self, [q, k, v], out, shape)
    }

    fn gather(&self, x: &D::Buf, rows: &[u32], dim: usize, y: &mut D::Buf) -> Result<()> {
        let work = shape::gather(self.len(x), rows, dim, self.len(y))?;
        for (part, rows) in rows.chunks(STAGED / 4).enumerate() {
            let staged = self.stage(bytemuck::cast_slice(rows))?;
            let count = rows.len();
            let params = abi::Gather {
                x: floats(self, x),
                rows: staged.address().cast(),
                y: floats(self, y).wrapping_add(part * (STAGED / 4) * dim),
                count: count as u64,
                dim: dim as u64,
            };
            // SAFETY: `shape::gather` has seen that `x` holds the last of the rows and `y` as many as there are.
            unsafe { run(self, "gather", "gather", &params, Grid::flat(count * dim))? };
        }
        self.counter().count(work);
        Ok(())
    }

    fn work(&self) -> Work {
        self.counter().total()
    }
}

/// # Safety
///
/// `x` and `y` lead to `rows` rows of `dim` numbers that the kernel alone may use, the same or apart; `weight` holds
/// `dim` numbers.
unsafe fn norm<D: Launcher>(
    device: &D,
    verb: &'static str,
    x: *const f32,
    weight: Where<'_>,
    eps: f32,
    (rows, dim): (usize, usize),
    y: *mut f32,
) -> Result<()> {
    let weight = vector(device, verb, "weight", weight, dim)?;
    let params =
        abi::Norm { x, weight: weight.floats(), y, rows: rows as u64, dim: dim as u64, eps, unused: 0 };
    if dim == 0 {
        return Ok(());
    }
    let (kernel, grid) = match device.rung() {
        Rung::Naive => ("rms_norm_naive", Grid::flat(rows)),
        Rung::Production => ("rms_norm", Grid { blocks: [rows, 1], threads: abi::NORM_THREADS, shared: 0 }),
    };
    // SAFETY: the caller vouches for the rows and the weight.
    unsafe { run(device, verb, kernel, &params, grid) }
}
