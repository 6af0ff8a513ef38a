//! One token, or a few: weights go straight from memory into the sums of all tokens.
//!
//! Codes stay bytes, of which processors multiply four at a time; activations are two bytes each, whose sums are
//! joined. Four rows go together: what they have in common is loaded once, and the sums of their steps fill a vector.

use super::operand::{Planes, planes, planes_room};
use super::{CHUNK, Coded, ROWS, STEP, Zero};
use crate::Result;
use crate::cpu::Cpu;
use crate::cpu::matmul::results;
use crate::cpu::simd::{IntJob, IntLevel, Ints};
use airllm_format::Layout;
use std::marker::PhantomData;

/// Bytes of weights in a piece of work, at least and at most. Its rows are read from four places at once: long ones, so that
/// the processor sees where reading goes.
const PIECE_BYTES: [usize; 2] = [32 << 10, 256 << 10];
/// Pieces that each thread finds, where they are not too small, so that all are done at the same time.
const PIECES: usize = 12;

/// All rows times at most eight tokens; `y` are the tokens' results.
pub(super) fn few<'y, C: Coded>(
    cpu: &Cpu,
    level: IntLevel,
    w: &[u8],
    cols: usize,
    x: &[f32],
    mut y: impl Iterator<Item = &'y mut [f32]>,
) -> Result<()> {
    let tokens = x.len() / cols;
    let mut room = cpu.shelf.take(planes_room(tokens, cols))?;
    let x = planes::<C>(cpu, level, x, cols, &mut room);
    let row_bytes = C::FORMAT.row_bytes(cols);
    let rows = w.len() / row_bytes;
    let mut hands = vec![(); cpu.pool.hands(2 * (rows as u64) * (cols as u64) * (tokens as u64))];
    let bytes = (w.len() / (PIECES * hands.len())).clamp(PIECE_BYTES[0], PIECE_BYTES[1]);
    let piece = (bytes / row_bytes).next_multiple_of(ROWS).max(ROWS);
    let pieces = w.chunks(piece * row_bytes);
    let work = |w: &[u8], y: &mut [&mut [f32]]| {
        let format = PhantomData::<C>;
        match tokens {
            1 => level.run(Few::<C, 1> { w, row_bytes, cols, x, y, format }),
            2 => level.run(Few::<C, 2> { w, row_bytes, cols, x, y, format }),
            3..=4 => level.run(Few::<C, 4> { w, row_bytes, cols, x, y, format }),
            _ => level.run(Few::<C, 8> { w, row_bytes, cols, x, y, format }),
        }
    };
    if tokens == 1 {
        let y = y.next().unwrap_or_default();
        cpu.pool.share(&mut hands, pieces.zip(y.chunks_mut(piece)), |(), pieces| {
            pieces.for_each(|(w, y)| work(w, &mut [y]));
        });
    } else {
        cpu.pool.share(&mut hands, pieces.zip(results(y, piece, rows)), |(), pieces| {
            pieces.for_each(|(w, mut y)| work(w, &mut y));
        });
    }
    Ok(())
}

/// Some rows times at most `T` tokens.
struct Few<'a, 'y, C, const T: usize> {
    w: &'a [u8],
    row_bytes: usize,
    cols: usize,
    x: &'a [Planes],
    y: &'a mut [&'y mut [f32]],
    format: PhantomData<C>,
}

impl<C: Coded, const T: usize> IntJob for Few<'_, '_, C, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, simd: S) {
        let Few { w, row_bytes, cols, x, y, .. } = self;
        let chunks = cols.div_ceil(CHUNK);
        let mut tokens = [&[][..]; T];
        for t in 0..T {
            // What is missing is done twice.
            tokens[t] = &x[t.min(y.len() - 1) * chunks..][..chunks];
        }
        let rows = w.len() / row_bytes;
        let quarter = rows.div_ceil(ROWS);
        for first in 0..quarter {
            let mut four = [&[][..]; ROWS];
            for r in 0..ROWS {
                four[r] = &w[(first + r * quarter).min(rows - 1) * row_bytes..][..row_bytes];
            }
            let totals = totals::<S, C, T>(simd, four, cols, &tokens);
            for (y, totals) in y.iter_mut().zip(totals) {
                for (y, total) in y[first..].iter_mut().step_by(quarter).zip(totals) {
                    *y = total;
                }
            }
        }
    }
}

/// Bytes of a row that are read from its start to their end; what follows them is read beside.
const fn first_plane<C: Coded>(cols: usize) -> usize {
    match C::FORMAT.layout() {
        Layout::Planes { low, .. } => (4 * low * cols.div_ceil(STEP)).next_multiple_of(16),
        _ => C::FORMAT.code_bytes(cols),
    }
}

/// Four rows times `T` tokens. The processor fetches what it sees being read one after the other; of the rows that come next,
/// the parts that are not are asked for.
#[inline(always)]
fn totals<S: Ints, C: Coded, const T: usize>(
    simd: S,
    bytes: [&[u8]; ROWS],
    cols: usize,
    tokens: &[&[Planes]; T],
) -> [[f32; ROWS]; T] {
    let chunks = cols.div_ceil(CHUNK);
    let row_bytes = bytes[0].len();
    let beside = row_bytes + first_plane::<C>(cols);
    let lines = if beside < 2 * row_bytes { (2 * row_bytes - beside).div_ceil(64 * chunks) } else { 0 };
    let rows =
        [C::row(bytes[0], cols), C::row(bytes[1], cols), C::row(bytes[2], cols), C::row(bytes[3], cols)];
    let mut sums = [simd.splat(0.0); T];
    for chunk in 0..chunks {
        for line in lines * chunk..lines * (chunk + 1) {
            for r in 0..ROWS {
                simd.prefetch(bytes[r], (beside + 64 * line).min(2 * row_bytes));
            }
        }
        let scales = C::scales(simd, &rows, chunk);
        let least = if C::LEAST > 0 { C::least(simd, &rows, chunk) } else { [scales; 2] };
        let mut codes = [C::codes(simd, &rows[0], chunk); ROWS];
        for r in 1..ROWS {
            codes[r] = C::codes(simd, &rows[r], chunk);
        }
        let mut factors = [simd.splat_words(0); ROWS];
        if C::FACTORS {
            for r in 0..ROWS {
                factors[r] = simd.split(C::factors(simd, &rows[r], chunk));
            }
        }
        for t in 0..T {
            let x = &tokens[t][chunk];
            let mut whole = [simd.no_sums(); ROWS];
            for r in 0..ROWS {
                whole[r] = if C::FACTORS {
                    multiplied::<S>(simd, codes[r], factors[r], x)
                } else {
                    plain::<S, C>(simd, codes[r], x)
                };
            }
            let mut whole = simd.fold(whole);
            if !C::FACTORS && C::ZERO != Zero::None {
                whole = simd.add_sums(whole, simd.spread_sums(&x.zeros));
            }
            let scale = simd.mul(scales, simd.spread(&x.scales));
            sums[t] = simd.mul_add(simd.floats(whole), scale, sums[t]);
            for i in 0..C::LEAST {
                sums[t] = simd.mul_add(least[i], simd.spread(&x.least[i]), sums[t]);
            }
        }
    }
    let mut totals = [[0.0; ROWS]; T];
    for t in 0..T {
        let mut lanes = [0.0; 16];
        simd.store(sums[t], &mut lanes);
        for r in 0..ROWS {
            totals[t][r] = ((lanes[r] + lanes[4 + r]) + lanes[8 + r]) + lanes[12 + r];
        }
    }
    totals
}

/// Quarter `k` adds up to the sum of step `k`.
#[inline(always)]
fn plain<S: Ints, C: Coded>(simd: S, codes: [S::Bytes; 2], x: &Planes) -> S::Sums {
    let mut sum = simd.no_sums();
    for h in 0..2 {
        sum = if C::WIDE {
            simd.dot_bytes::<true>(sum, codes[h], simd.bytes(&x.high[h]))
        } else {
            simd.dot_bytes::<false>(sum, codes[h], simd.bytes(&x.high[h]))
        };
    }
    sum = simd.shift_sums(sum);
    for h in 0..2 {
        sum = if C::WIDE {
            simd.dot_bytes::<true>(sum, codes[h], simd.bytes(&x.low[h]))
        } else {
            simd.dot_bytes::<false>(sum, codes[h], simd.bytes(&x.low[h]))
        };
    }
    sum
}

/// The same where 16 columns have a factor: the sums of four of them fit 16 bits, for codes have at most six.
#[inline(always)]
fn multiplied<S: Ints>(simd: S, codes: [S::Bytes; 2], factors: S::Words, x: &Planes) -> S::Sums {
    let planes = [&x.high, &x.low];
    let mut sum = simd.no_sums();
    for p in 0..2 {
        let mut halves = [sum; 2];
        for h in 0..2 {
            let start = simd.sums(&x.starts[p][h]);
            halves[h] = simd.dot_bytes::<false>(start, codes[h], simd.bytes(&planes[p][h]));
        }
        if p == 1 {
            sum = simd.shift_sums(sum);
        }
        sum = simd.dot(sum, simd.pack(halves[0], halves[1]), factors);
    }
    sum
}
