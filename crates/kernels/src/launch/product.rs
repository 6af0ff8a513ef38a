//! `matmul`: which kernel, in which grid, or on the host.

use super::ready::{self, Form, Source};
use super::{Grid, Launcher, Rung, Where, aligned, floats};
use crate::abi::{Product, PromptProduct};
use crate::{Columns, Cpu, Matrix, Memory, Ops, Regime, Result, Tokens, abi, shape};
use airllm_format::{Layout, NumFormat};

/// Most tokens of a product for which `gemv` reads the weights, at most [`TILE`] of them at a time.
const FEW: usize = 16;
/// Most tokens in a block of `gemv`.
const TILE: usize = 8;

/// Blocks that keep the multiprocessors of a large device busy.
const ENOUGH: usize = 128;

const VERB: &str = "matmul";

/// Blocks of a kernel for matrix units.
#[derive(Debug)]
pub(crate) struct MatrixTile {
    /// What its name begins with; the format follows.
    pub(crate) kernel: &'static str,
    pub(crate) rows: usize,
    /// Tokens, or parts of them.
    pub(crate) tokens: usize,
    pub(crate) threads: u32,
}

/// The blocks that a format's products for prompts may be cut into, large ones first: none if matrix units do not take it.
pub(crate) fn matrix_tiles(format: NumFormat) -> &'static [MatrixTile] {
    const LARGE: MatrixTile = MatrixTile {
        kernel: "gemm_mma",
        rows: abi::MMA_ROWS,
        tokens: abi::MMA_TOKENS,
        threads: abi::MMA_THREADS,
    };
    const SMALL: MatrixTile = MatrixTile {
        kernel: "gemm_mma_small",
        rows: abi::MMA_SMALL_ROWS,
        tokens: abi::MMA_SMALL_TOKENS,
        threads: abi::MMA_SMALL_THREADS,
    };
    /// Weights in two parts.
    const EXACT: MatrixTile = MatrixTile {
        kernel: "gemm_mma",
        rows: abi::MMA_EXACT_ROWS,
        tokens: abi::MMA_EXACT_TOKENS,
        threads: abi::MMA_EXACT_THREADS,
    };
    match (format, Form::of_prompt(format)) {
        (_, None) => &[],
        (NumFormat::F16 | NumFormat::Bf16, _) | (_, Some(Form::Half)) => &[LARGE, SMALL],
        _ => &[EXACT],
    }
}

/// See [`Ops::matmul`].
pub(super) fn matmul<D: Launcher>(
    device: &D,
    w: Matrix<D::View<'_>>,
    x: &D::Buf,
    tokens: Tokens,
    y: &mut D::Buf,
    out: Columns,
) -> Result<()> {
    let place = device.locate(w.data);
    let work = shape::matmul(&shape::sized(&w, place.len()), device.len(x), tokens, device.len(y), out)?;
    let Matrix { format, rows, cols, .. } = w;
    if rows == 0 || tokens.n == 0 {
        device.counter().count(work);
        return Ok(());
    }
    if let (Where::Host(data), Some(cpu)) = (place, device.beside()) {
        on_host(device, cpu, Matrix { data, format, rows, cols }, x, tokens, y, out)?;
        device.counter().count(work);
        return Ok(());
    }
    // Loads of 16 bytes, where all rows can start at multiples of that.
    let wide = matches!(format.layout(), Layout::Sections { .. } | Layout::Planes { .. });
    let data = aligned(VERB, "w", place, if wide { 16 } else { 1 })?;
    let source = Source { buffer: floats(device, x), first: tokens.first, n: tokens.n, cols };
    let call = Call {
        data,
        format,
        rows,
        cols,
        source,
        y: floats(device, y).wrapping_add(tokens.first * out.stride),
        out,
    };
    device.ready().forget_from(floats(device, y));
    // SAFETY: `shape::matmul` has seen that the view holds all rows, `x` the numbers of the tokens and `y` rows of
    // `stride` of them, in which the result fits.
    unsafe {
        match (tokens.regime, Form::of_prompt(format)) {
            _ if device.rung() == Rung::Naive => call.naive(device)?,
            (Regime::Prompt, Some(form)) => call.on_matrix_units(device, form)?,
            _ if tokens.n > FEW => call.many(device)?,
            _ => call.few(device)?,
        }
    }
    device.counter().count(work);
    Ok(())
}

/// A product on the device.
struct Call {
    data: *const u8,
    format: NumFormat,
    rows: usize,
    cols: usize,
    source: Source,
    /// The first token's row.
    y: *mut f32,
    out: Columns,
}

impl Call {
    fn params(&self, x: *const f32) -> abi::Product {
        abi::Product {
            w: self.data,
            row_bytes: self.format.row_bytes(self.cols) as u64,
            rows: self.rows as u64,
            cols: self.cols as u64,
            x,
            n: self.source.n as u64,
            y: self.y,
            stride: self.out.stride as u64,
            first: self.out.first as u64,
        }
    }

    fn tokens(&self) -> *const f32 {
        self.source.buffer.wrapping_add(self.source.first * self.cols)
    }

    /// # Safety
    ///
    /// Here and below: weights, tokens and result are as many as the call says.
    unsafe fn naive<D: Launcher>(&self, device: &D) -> Result<()> {
        let kernel = format!("gemv_naive_{}", self.format);
        let grid = Grid::flat(self.rows * self.source.n);
        // SAFETY: the caller vouches for the memory.
        unsafe { device.launch(VERB, &kernel, &self.params(self.tokens()), grid) }
    }

    unsafe fn many<D: Launcher>(&self, device: &D) -> Result<()> {
        let blocks = [self.rows.div_ceil(abi::GEMM_ROWS), self.source.n.div_ceil(abi::GEMM_TOKENS)];
        let grid = Grid { blocks, threads: abi::GEMM_THREADS, shared: 0 };
        // SAFETY: as above.
        unsafe { device.launch(VERB, &format!("gemm_{}", self.format), &self.params(self.tokens()), grid) }
    }

    unsafe fn few<D: Launcher>(&self, device: &D) -> Result<()> {
        let n = self.source.n;
        let tile = n.next_power_of_two().min(TILE);
        let kernel = format!("gemv_{}_x{tile}", self.format);
        let blocks = [self.rows.div_ceil(abi::GEMV_ROWS), n.div_ceil(tile)];
        let grid = Grid { blocks, threads: abi::GEMV_THREADS, shared: 0 };
        // SAFETY: as above; what is read in place of the tokens was made of them.
        unsafe {
            ready::with(device, self.source, Form::Spread, |x, _| {
                device.launch(VERB, &kernel, &self.params(x.cast()), grid)
            })
        }
    }

    /// Which blocks, and how many of them.
    fn tile(&self, form: Form) -> Option<(&'static MatrixTile, usize)> {
        let blocks = |tile: &MatrixTile| {
            self.rows.div_ceil(tile.rows) * self.source.n.div_ceil(tile.tokens / form.parts())
        };
        let mut tiles = matrix_tiles(self.format).iter().map(|tile| (tile, blocks(tile)));
        let first = tiles.next()?;
        // Small blocks make the same bits, and keep a large device busy where large ones are too few.
        Some(if first.1 >= ENOUGH { first } else { tiles.next().unwrap_or(first) })
    }

    unsafe fn on_matrix_units<D: Launcher>(&self, device: &D, form: Form) -> Result<()> {
        let Some((tile, blocks)) = self.tile(form) else { return Ok(()) };
        let kernel = format!("{}_{}", tile.kernel, self.format);
        let grid = Grid { blocks: [blocks, 1], threads: tile.threads, shared: 0 };
        let Product { w, row_bytes, rows, cols, n, y, stride, first, .. } = self.params(std::ptr::null());
        let padded = ready::padded(self.cols) as u64;
        // SAFETY: as for `few`.
        unsafe {
            ready::with(device, self.source, form, |x, factors| {
                let params =
                    PromptProduct { w, row_bytes, rows, cols, x, factors, n, padded, y, stride, first };
                device.launch(VERB, &kernel, &params, grid)
            })
        }
    }
}

/// A product with weights in host memory: the activations come to them.
fn on_host<D: Launcher>(
    device: &D,
    cpu: &Cpu,
    w: Matrix<&[u8]>,
    x: &D::Buf,
    tokens: Tokens,
    y: &mut D::Buf,
    out: Columns,
) -> Result<()> {
    let Tokens { first, n, regime } = tokens;
    let mut bytes = vec![0; n * w.cols * 4];
    device.read(x, first * w.cols * 4, &mut bytes)?;
    let mut input = cpu.alloc(bytes.len())?;
    cpu.write(&mut input, 0, &bytes)?;
    bytes.resize(n * w.rows * 4, 0);
    let mut output = cpu.alloc(bytes.len())?;
    let all = Columns { stride: w.rows, first: 0 };
    cpu.matmul(w, &input, Tokens { first: 0, n, regime }, &mut output, all)?;
    cpu.read(&output, 0, &mut bytes)?;
    let row = |token: usize| ((first + token) * out.stride + out.first) * 4;
    if out.stride == w.rows {
        return device.write(y, row(0), &bytes);
    }
    let mut rows = bytes.chunks_exact(w.rows * 4).enumerate();
    rows.try_for_each(|(token, bytes)| device.write(y, row(token), bytes))
}
