//! `store` and `attend`: which kernel, in which grid.

use super::{Grid, Launcher, Rung, floats, run};
use crate::{Attend, Error, Heads, KvFormat, Regime, Result, abi, shape};
use std::ptr::null_mut;

/// The caches that there are kernels for.
pub(super) const CACHES: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8];

/// Refuses a cache that there are none for.
fn no_cache(verb: &'static str, cache: KvFormat) -> Error {
    let there: Vec<&str> = CACHES.iter().map(|cache| cache.name()).collect();
    let what = format!("there are no kernels for caches of {cache} here, there are for {}", there.join(", "));
    Error::Argument { verb, what }
}

/// See [`Ops::store`](crate::Ops::store). Rows `first..first + n` go to those from `at` on.
pub(super) fn store<D: Launcher>(
    device: &D,
    x: &D::Buf,
    (first, n): (usize, usize),
    shape: Heads,
    cache: &mut D::Buf,
    at: usize,
) -> Result<()> {
    const VERB: &str = "store";
    let work = shape::store(device.len(x), first, n, shape, device.len(cache), at)?;
    let (width, row) = (shape.width(), shape.row_bytes());
    if n > 0 && width > 0 {
        let x = floats(device, x).wrapping_add(first * width);
        let to = device.address(cache).wrapping_add(at * row);
        let Heads { heads, dim, cache } = shape;
        let params = abi::Store {
            x,
            to,
            n: n as u64,
            heads: heads as u64,
            dim: dim as u64,
            row: row as u64,
            head: cache.head_bytes(dim) as u64,
        };
        // SAFETY: `shape::store` has seen that `x` holds rows `first..first + n` and the cache those from `at` on.
        unsafe {
            match cache {
                KvFormat::F32 => {
                    let len = n * width;
                    let params = abi::Flat { y: to.cast(), x, len: len as u64 };
                    run(device, VERB, "copy", &params, Grid::flat(len))?;
                }
                KvFormat::F16 => run(device, VERB, "store_f16", &params, Grid::flat(n * width))?,
                // A warp for each 64 numbers of a head.
                KvFormat::Q8 => {
                    let threads = 32 * n * heads * dim.div_ceil(64);
                    run(device, VERB, "store_q8", &params, Grid::flat(threads))?;
                }
                KvFormat::Q4 => return Err(no_cache(VERB, cache)),
            }
        }
    }
    device.counter().count(work);
    Ok(())
}

/// See [`Ops::attend`](crate::Ops::attend).
///
/// Queries of prompts with heads too wide for matrix units go by chunks where the cache is not f32: so a query's
/// result depends on its position and the cache there too.
pub(super) fn attend<D: Launcher>(
    device: &D,
    [q, k, v]: [&D::Buf; 3],
    out: &mut D::Buf,
    shape: Attend,
) -> Result<()> {
    let lens = [q, k, v].map(|buf| device.len(buf));
    let work = shape::attend(lens[0], lens[1], lens[2], device.len(out), &shape)?;
    if !CACHES.contains(&shape.cache) {
        return Err(no_cache(VERB, shape.cache));
    }
    let Attend { n, heads, head_dim, value_dim, .. } = shape;
    if n == 0 || heads == 0 || value_dim == 0 {
        device.counter().count(work);
        return Ok(());
    }
    let [k, v] = [k, v].map(|buf| device.address(buf).cast_const());
    let call = Call { q: floats(device, q), k, v, out: floats(device, out) };
    let widest = head_dim.max(value_dim);
    // SAFETY: `shape::attend` has seen that `q` and `out` hold rows up to `first + n`, `k` and `v` those up to
    // `start + n`, beyond which no query looks; a head of keys and values belongs to whole heads of queries.
    unsafe {
        match shape.regime {
            // The first rung knows f32 alone.
            _ if device.rung() == Rung::Naive && shape.cache == KvFormat::F32 => {
                run(device, VERB, "attend_naive", &call.plain(&shape), Grid::flat(n * heads))?;
            }
            Regime::Prompt if widest <= abi::ATTEND_WIDEST => call.prompt(device, &shape, widest)?,
            Regime::Prompt if shape.cache == KvFormat::F32 => call.wide_prompt(device, &shape)?,
            Regime::Prompt | Regime::Token => call.chunks(device, &shape)?,
        }
    }
    device.counter().count(work);
    Ok(())
}

const VERB: &str = "attend";

/// Most bytes that sums over parts of the context take at a time.
pub(super) const SCRATCH: usize = 32 << 20;

/// Bytes of shared memory that `attend_chunk` has for each head of a block, beside what it is given at launch.
const CHUNK_SHARED: usize = 3072;

/// The operands. Keys and values are in the format of the cache, the others f32.
struct Call {
    q: *const f32,
    k: *const u8,
    v: *const u8,
    out: *mut f32,
}

impl Call {
    /// For kernels that read f32 alone.
    fn plain(&self, shape: &Attend) -> abi::Attention {
        abi::Attention {
            q: self.q,
            k: self.k.cast(),
            v: self.v.cast(),
            out: self.out,
            first: shape.first as u64,
            n: shape.n as u64,
            start: shape.start as u64,
            heads: shape.heads as u64,
            kv_heads: shape.kv_heads as u64,
            head_dim: shape.head_dim as u64,
            value_dim: shape.value_dim as u64,
            window: shape.window as u64,
            scale: shape.scale,
            softcap: shape.softcap,
            alibi: u32::from(shape.alibi),
            whole: 1 << shape.heads.ilog2(),
        }
    }

    fn cached(&self, shape: &Attend) -> abi::Cached {
        let abi::Attention {
            first,
            n,
            start,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            window,
            scale,
            softcap,
            alibi,
            whole,
            ..
        } = self.plain(shape);
        let [k_head, v_head] =
            [shape.head_dim, shape.value_dim].map(|dim| shape.cache.head_bytes(dim) as u64);
        abi::Cached {
            q: self.q,
            k: self.k,
            v: self.v,
            out: self.out,
            first,
            n,
            start,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            window,
            k_row: kv_heads * k_head,
            k_head,
            v_row: kv_heads * v_head,
            v_head,
            scale,
            softcap,
            alibi,
            whole,
            ends: null_mut(),
            sums: null_mut(),
            chunk: 0,
            chunks: 0,
        }
    }

    /// # Safety
    ///
    /// Here and below: the operands are as large as the shape says.
    unsafe fn prompt<D: Launcher>(&self, device: &D, shape: &Attend, widest: usize) -> Result<()> {
        let width = widest.next_power_of_two().max(64);
        let blocks = [shape.n.div_ceil(abi::ATTEND_QUERIES), shape.heads];
        let grid = Grid { blocks, threads: abi::ATTEND_THREADS, shared: 0 };
        // SAFETY: the caller vouches for the memory.
        unsafe {
            run(device, VERB, &format!("attend_prompt_{}_{width}", shape.cache), &self.cached(shape), grid)
        }
    }

    unsafe fn wide_prompt<D: Launcher>(&self, device: &D, shape: &Attend) -> Result<()> {
        let Attend { n, heads, head_dim, value_dim, .. } = *shape;
        let warps = abi::ATTEND_THREADS as usize / 32;
        let shared = value_dim.saturating_mul(warps).saturating_add(head_dim).saturating_mul(4);
        if shared > abi::SHARED - abi::ATTEND_SHARED {
            return Err(too_wide(shape, shared, abi::SHARED - abi::ATTEND_SHARED));
        }
        let grid = Grid { blocks: [n, heads], threads: abi::ATTEND_THREADS, shared };
        // SAFETY: as above.
        unsafe { run(device, VERB, "attend", &self.plain(shape), grid) }
    }

    unsafe fn chunks<D: Launcher>(&self, device: &D, shape: &Attend) -> Result<()> {
        let Attend { first, n, start, heads, kv_heads, head_dim, value_dim, window, .. } = *shape;
        // How many heads of queries share a block: bits do not depend on it.
        let padded = head_dim.next_multiple_of(abi::ATTEND_COLS);
        let fits = |together: &usize| together * (CHUNK_SHARED + 4 * padded) <= abi::SHARED;
        let group = heads / kv_heads;
        let wanted = match group {
            0 | 1 => &[1][..],
            2..=4 => &[4, 1],
            _ => &[8, 4, 1],
        };
        let Some(together) = wanted.iter().copied().find(fits) else {
            return Err(too_wide(shape, CHUNK_SHARED + 4 * padded, abi::SHARED));
        };
        let kernel = format!("attend_chunk_{}_x{together}", shape.cache);
        // Some queries at a time, so that sums of parts of the context stay within bounds.
        let mut done = 0;
        while done < n {
            let chunk = oldest(start + done, window) / abi::ATTEND_CHUNK;
            let chunks_of = |n: usize| (start + done + n - 1) / abi::ATTEND_CHUNK - chunk + 1;
            let bytes = |n: usize| 4 * n * heads * chunks_of(n) * (2 + value_dim);
            let mut n = n - done;
            while n > 1 && bytes(n) > SCRATCH {
                n = n.div_ceil(2);
            }
            let chunks = chunks_of(n);
            let ends = device.temporary(8 * n * heads * chunks)?;
            let sums = device.temporary(4 * n * heads * chunks * value_dim)?;
            let part = Attend { first: first + done, n, start: start + done, ..*shape };
            let mut params = self.cached(&part);
            params.ends = floats(device, &ends);
            params.sums = floats(device, &sums);
            (params.chunk, params.chunks) = (chunk as u64, chunks as u64);
            let blocks = [n * chunks, kv_heads * group.div_ceil(together)];
            let grid = Grid { blocks, threads: abi::ATTEND_THREADS, shared: 4 * together * padded };
            let join = Grid { blocks: [n, heads], threads: abi::ATTEND_THREADS, shared: 0 };
            // SAFETY: as above; `ends` and `sums` were just made for what the first kernel writes and the second reads.
            unsafe {
                run(device, VERB, &kernel, &params, grid)?;
                run(device, VERB, "attend_join", &params, join)?;
            }
            done += n;
        }
        Ok(())
    }
}

/// The first position that the query at `position` sees.
fn oldest(position: usize, window: usize) -> usize {
    if window == 0 { 0 } else { (position + 1).saturating_sub(window) }
}

fn too_wide(shape: &Attend, needed: usize, most: usize) -> Error {
    let Attend { head_dim, value_dim, .. } = *shape;
    let what = format!(
        "heads of {head_dim} and {value_dim} numbers need {needed} bytes of shared memory, a block has {most}"
    );
    Error::Argument { verb: VERB, what }
}
