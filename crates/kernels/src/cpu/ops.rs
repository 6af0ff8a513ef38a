//! The verbs of the CPU: checks, then pieces of work for the threads.

use super::cache::Pack;
use super::matmul::{Widen, matmul};
use super::packed::{self, Packed, Row};
use super::rows::{Add, AddBias, Gated, NormRow, Reorder, RmsNorm, Scale, Turn};
use super::simd::Job;
use super::{Cpu, CpuBuf, attend, integer};
use crate::{
    Activation, Attend, Columns, Error, Heads, KvFormat, Matrix, Ops, Place, Result, Rope, Tokens, Work,
    shape,
};
use airllm_format::NumFormat;

/// Numbers in a piece of work, for verbs that treat each number by itself.
const PIECE: usize = 16 << 10;

/// Calls a function of a format type with the type of a format's name.
macro_rules! with_format {
    ($verb:literal, $format:expr, $function:ident ($($arg:expr),*)) => {
        match $format {
            NumFormat::F32 => $function::<packed::F32>($($arg),*),
            NumFormat::F16 => $function::<packed::F16>($($arg),*),
            NumFormat::Bf16 => $function::<packed::Bf16>($($arg),*),
            NumFormat::A8 => $function::<packed::A8>($($arg),*),
            NumFormat::Q8_0 => $function::<packed::Q8_0>($($arg),*),
            NumFormat::Q8 => $function::<packed::Q8>($($arg),*),
            NumFormat::F8 => $function::<packed::F8>($($arg),*),
            NumFormat::I8 => $function::<packed::I8>($($arg),*),
            NumFormat::Q6K => $function::<packed::Q6K>($($arg),*),
            NumFormat::Q6 => $function::<packed::Q6>($($arg),*),
            NumFormat::Q5_1 => $function::<packed::Q5_1>($($arg),*),
            NumFormat::Q5_0 => $function::<packed::Q5_0>($($arg),*),
            NumFormat::Q5K => $function::<packed::Q5K>($($arg),*),
            NumFormat::Q5 => $function::<packed::Q5>($($arg),*),
            NumFormat::A4 => $function::<packed::A4>($($arg),*),
            NumFormat::Q4_1 => $function::<packed::Q4_1>($($arg),*),
            NumFormat::A4G64 => $function::<packed::A4G64>($($arg),*),
            NumFormat::Q4 => $function::<packed::Q4>($($arg),*),
            NumFormat::Q4_0 => $function::<packed::Q4_0>($($arg),*),
            NumFormat::Q4K => $function::<packed::Q4K>($($arg),*),
            NumFormat::Nf4 => $function::<packed::Nf4>($($arg),*),
            NumFormat::A4G128 => $function::<packed::A4G128>($($arg),*),
            NumFormat::Q3K => $function::<packed::Q3K>($($arg),*),
            NumFormat::Q3 => $function::<packed::Q3>($($arg),*),
            NumFormat::Q2K => $function::<packed::Q2K>($($arg),*),
            NumFormat::Q2 => $function::<packed::Q2>($($arg),*),
            other => Err(Error::Argument {
                verb: $verb,
                what: format!("the CPU has no kernel for {other}"),
            }),
        }
    };
}

/// Products in integers where the format has them, else in f32.
macro_rules! with_integers {
    ($format:expr, $cpu:expr, $level:expr, ($($arg:expr),*)) => {
        match $format {
            NumFormat::Q8 => integer::matmul::<integer::Q8>($cpu, $level, $($arg),*),
            NumFormat::Q6 => integer::matmul::<integer::Q6>($cpu, $level, $($arg),*),
            NumFormat::Q5 => integer::matmul::<integer::Q5>($cpu, $level, $($arg),*),
            NumFormat::Q4 => integer::matmul::<integer::Q4>($cpu, $level, $($arg),*),
            NumFormat::Q3 => integer::matmul::<integer::Q3>($cpu, $level, $($arg),*),
            NumFormat::Q2 => integer::matmul::<integer::Q2>($cpu, $level, $($arg),*),
            NumFormat::Q8_0 => integer::matmul::<integer::Q8_0>($cpu, $level, $($arg),*),
            NumFormat::Q5_1 => integer::matmul::<integer::Q5_1>($cpu, $level, $($arg),*),
            NumFormat::Q5_0 => integer::matmul::<integer::Q5_0>($cpu, $level, $($arg),*),
            NumFormat::Q4_1 => integer::matmul::<integer::Q4_1>($cpu, $level, $($arg),*),
            NumFormat::Q4_0 => integer::matmul::<integer::Q4_0>($cpu, $level, $($arg),*),
            NumFormat::Q6K => integer::matmul::<integer::Q6K>($cpu, $level, $($arg),*),
            NumFormat::Q5K => integer::matmul::<integer::Q5K>($cpu, $level, $($arg),*),
            NumFormat::Q4K => integer::matmul::<integer::Q4K>($cpu, $level, $($arg),*),
            NumFormat::Q3K => integer::matmul::<integer::Q3K>($cpu, $level, $($arg),*),
            NumFormat::Q2K => integer::matmul::<integer::Q2K>($cpu, $level, $($arg),*),
            other => with_format!("matmul", other, matmul($cpu, $($arg),*)),
        }
    };
}

impl Ops for Cpu {
    fn decode(&self, rows: Matrix<&[u8]>, y: &mut CpuBuf) -> Result<()> {
        let work = shape::decode(&shape::sized(&rows, rows.data.len()), y.bytes)?;
        let Matrix { data, format, rows, cols } = rows;
        if rows > 0 && cols > 0 {
            let y = &mut y.floats_mut()[..rows * cols];
            with_format!("decode", format, decode(self, data, cols, y))?;
        }
        self.counter.count(work);
        Ok(())
    }

    fn matmul(
        &self,
        w: Matrix<&[u8]>,
        x: &CpuBuf,
        tokens: Tokens,
        y: &mut CpuBuf,
        out: Columns,
    ) -> Result<()> {
        let work = shape::matmul(&shape::sized(&w, w.data.len()), x.bytes, tokens, y.bytes, out)?;
        let Tokens { first, n, .. } = tokens;
        // Rows of nothing begin anywhere; where there are some, the buffers hold them.
        let x = x.floats().get(first * w.cols..).unwrap_or_default();
        let y = y.floats_mut().get_mut(first * out.stride..).unwrap_or_default();
        let columns = out.first..out.first + w.rows;
        match self.ints {
            _ if n == 0 || w.rows == 0 => Ok(()),
            _ if w.cols == 0 => {
                y.chunks_mut(out.stride).take(n).for_each(|y| y[columns.clone()].fill(0.0));
                Ok(())
            }
            Some(level) => with_integers!(w.format, self, level, (w, x, n, y, out)),
            None => with_format!("matmul", w.format, matmul(self, w, x, n, y, out)),
        }?;
        self.counter.count(work);
        Ok(())
    }

    fn in_integers(&self, format: NumFormat) -> bool {
        self.ints.is_some() && integer::has(format)
    }

    fn rms_norm(
        &self,
        x: &CpuBuf,
        weight: &[u8],
        eps: f32,
        n: usize,
        dim: usize,
        y: &mut CpuBuf,
    ) -> Result<()> {
        let work = shape::rms_norm(x.bytes, weight.len(), n, dim, y.bytes)?;
        if n > 0 && dim > 0 {
            let tokens = x.floats()[..n * dim].chunks(dim);
            let tokens = tokens.zip(y.floats_mut()[..n * dim].chunks_mut(dim));
            self.jobs(work.flops, tokens.map(|(x, y)| RmsNorm { x, weight, eps, y }));
        }
        self.counter.count(work);
        Ok(())
    }

    fn rms_norm_rows(&self, x: &mut CpuBuf, weight: &[u8], eps: f32, rows: usize, dim: usize) -> Result<()> {
        let work = shape::rms_norm_rows(x.bytes, weight.len(), rows, dim)?;
        if dim > 0 {
            let rows = x.floats_mut()[..rows * dim].chunks_mut(dim);
            self.jobs(work.flops, rows.map(|x| NormRow { x, weight, eps }));
        }
        self.counter.count(work);
        Ok(())
    }

    fn add_bias(&self, y: &mut CpuBuf, bias: &[u8], n: usize, dim: usize) -> Result<()> {
        let work = shape::add_bias(y.bytes, bias.len(), n, dim)?;
        if n > 0 && dim > 0 {
            let tokens = y.floats_mut()[..n * dim].chunks_mut(dim);
            self.jobs(work.flops, tokens.map(|y| AddBias { y, bias }));
        }
        self.counter.count(work);
        Ok(())
    }

    fn add(&self, y: &mut CpuBuf, x: &CpuBuf, len: usize) -> Result<()> {
        let work = shape::add(y.bytes, x.bytes, len)?;
        let x = x.floats()[..len].chunks(PIECE);
        let pieces = y.floats_mut()[..len].chunks_mut(PIECE).zip(x);
        self.jobs(work.flops, pieces.map(|(y, x)| Add { y, x }));
        self.counter.count(work);
        Ok(())
    }

    fn gated(&self, gate: &mut CpuBuf, up: &CpuBuf, len: usize, f: Activation) -> Result<()> {
        let work = shape::gated(gate.bytes, up.bytes, len)?;
        let up = up.floats()[..len].chunks(PIECE);
        let pieces = gate.floats_mut()[..len].chunks_mut(PIECE).zip(up);
        self.jobs(work.flops, pieces.map(|(gate, up)| Gated { gate, up, f }));
        self.counter.count(work);
        Ok(())
    }

    fn reorder(&self, x: &CpuBuf, order: &[u8], n: usize, dim: usize, y: &mut CpuBuf) -> Result<()> {
        let work = shape::reorder(x.bytes, order.len(), n, dim, y.bytes)?;
        if dim > 0 {
            let tokens = x.floats()[..n * dim].chunks(dim).zip(y.floats_mut().chunks_mut(dim));
            self.jobs((n * dim) as u64, tokens.map(|(x, y)| Reorder { x, order, y }));
        }
        self.counter.count(work);
        Ok(())
    }

    fn scale_rows(&self, y: &mut CpuBuf, factors: &[f32], dim: usize) -> Result<()> {
        let work = shape::scale_rows(y.bytes, factors, dim)?;
        if dim > 0 {
            let rows = y.floats_mut().chunks_mut(dim).zip(factors);
            self.jobs(work.flops, rows.map(|(y, &factor)| Scale { y, factor }));
        }
        self.counter.count(work);
        Ok(())
    }

    fn scatter_add(
        &self,
        x: &CpuBuf,
        rows: &[u32],
        factors: &[f32],
        dim: usize,
        y: &mut CpuBuf,
    ) -> Result<()> {
        let work = shape::scatter_add(x.bytes, rows, factors, dim, y.bytes)?;
        if dim > 0 {
            let y = y.floats_mut();
            for ((x, &row), &factor) in x.floats().chunks(dim).zip(rows).zip(factors) {
                let y = &mut y[row as usize * dim..][..dim];
                y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
            }
        }
        self.counter.count(work);
        Ok(())
    }

    fn place(&self, x: &CpuBuf, y: &mut CpuBuf, shape: Place) -> Result<()> {
        let work = shape::place(x.bytes, y.bytes, &shape)?;
        let Place { rows, repeat, width, from, to } = shape;
        if width > 0 {
            let (x, y) = (x.floats(), y.floats_mut());
            for (row, y) in y.chunks_mut(to.stride).take(rows).enumerate() {
                let x = &x[row / repeat * from.stride + from.first..][..width];
                y[to.first..to.first + width].copy_from_slice(x);
            }
        }
        self.counter.count(work);
        Ok(())
    }

    fn rope(&self, x: &mut CpuBuf, table: &CpuBuf, shape: Rope) -> Result<()> {
        let work = shape::rope(x.bytes, table.bytes, &shape)?;
        let Rope { n, heads, head_dim, rotary, kind } = shape;
        let row = heads * head_dim;
        if n > 0 && row > 0 && rotary > 0 {
            let tokens = x.floats_mut()[..n * row].chunks_mut(row);
            let tokens = tokens.zip(table.floats()[..n * rotary].chunks(rotary));
            self.jobs(work.flops, tokens.map(|(x, table)| Turn { x, table, head_dim, kind }));
        }
        self.counter.count(work);
        Ok(())
    }

    fn store(
        &self,
        x: &CpuBuf,
        first: usize,
        n: usize,
        shape: Heads,
        cache: &mut CpuBuf,
        at: usize,
    ) -> Result<()> {
        let work = shape::store(x.bytes, first, n, shape, cache.bytes, at)?;
        let (width, row) = (shape.width(), shape.row_bytes());
        if n > 0 && width > 0 {
            let from = &x.floats()[first * width..][..n * width];
            if shape.cache == KvFormat::F32 {
                cache.floats_mut()[at * width..][..n * width].copy_from_slice(from);
            } else {
                let rows = from.chunks(width).zip(cache.bytes_mut()[at * row..].chunks_mut(row));
                self.jobs((n * width) as u64, rows.map(|(x, to)| Pack { x, shape, to }));
            }
        }
        self.counter.count(work);
        Ok(())
    }

    fn attend(&self, q: &CpuBuf, k: &CpuBuf, v: &CpuBuf, out: &mut CpuBuf, shape: Attend) -> Result<()> {
        let work = shape::attend(q.bytes, k.bytes, v.bytes, out.bytes, &shape)?;
        attend::attend(self, q.floats(), [k, v], out.floats_mut(), &shape, work.flops)?;
        self.counter.count(work);
        Ok(())
    }

    fn gather(&self, x: &CpuBuf, rows: &[u32], dim: usize, y: &mut CpuBuf) -> Result<()> {
        let work = shape::gather(x.bytes, rows, dim, y.bytes)?;
        if dim > 0 {
            for (y, &row) in y.floats_mut().chunks_mut(dim).zip(rows) {
                y.copy_from_slice(&x.floats()[row as usize * dim..][..dim]);
            }
        }
        self.counter.count(work);
        Ok(())
    }

    fn work(&self) -> Work {
        self.counter.total()
    }
}

impl Cpu {
    /// Runs independent jobs on all threads, if there is enough to do.
    fn jobs<J: Job<Out = ()> + Send>(&self, flops: u64, jobs: impl Iterator<Item = J> + Send) {
        // These verbs move more than they compute: a number is worth some ten operations.
        let mut hands = vec![(); self.pool.hands(flops.saturating_mul(4))];
        self.pool.share(&mut hands, jobs, |(), jobs| jobs.for_each(|job| self.level.run(job)));
    }
}

/// Widens rows to f32.
fn decode<P: Packed>(cpu: &Cpu, data: &[u8], cols: usize, y: &mut [f32]) -> Result<()> {
    let vectors = cols.div_ceil(8);
    let mut scratch = cpu.shelf.take(vectors + packed::scale_vectors::<P>(cols))?;
    let (wide, scales) = scratch.split_at_mut(vectors);
    for (w, y) in data.chunks(P::FORMAT.row_bytes(cols)).zip(y.chunks_mut(cols)) {
        let row = Row::<P>::new(w, cols);
        let (wide, scales) = (&mut wide[..], &mut scales[..]);
        cpu.level.run(Widen { row, cols, first: 0, wide, scales });
        y.copy_from_slice(&wide.as_flattened()[..cols]);
    }
    Ok(())
}
