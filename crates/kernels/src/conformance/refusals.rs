//! Sizes that cannot be, and sizes of nothing.

use super::lab::Lab;
use super::{Failure, Verdict, whole};
use crate::{
    Activation, Attend, Columns, Error, Heads, KvFormat, Matrix, Ops, Place, Regime, Result, Rope, RopeKind,
    Tokens,
};
use airllm_format::NumFormat;

const ROPE: Rope = Rope { n: 2, heads: 3, head_dim: 8, rotary: 6, kind: RopeKind::Half };
const ATTEND: Attend = Attend {
    first: 1,
    n: 2,
    start: 3,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    value_dim: 6,
    scale: 1.0,
    softcap: 0.0,
    window: 0,
    alibi: false,
    regime: Regime::Token,
    cache: KvFormat::F32,
};
const PLACE: Place = Place {
    rows: 5,
    repeat: 2,
    width: 4,
    from: Columns { stride: 6, first: 2 },
    to: Columns { stride: 9, first: 5 },
};

/// Every operand one byte too small is refused as such; so is every size that overflows, and every
/// parameter that no size could satisfy.
pub fn refusals<D: Ops>(device: &D) -> Verdict {
    NumFormat::ALL.into_iter().try_for_each(|format| refused_products(device, format))?;
    shrunk(device, "rms_norm", &[9 * 4], &[2 * 9 * 4, 2 * 9 * 4], |views, bufs| {
        let [x, y] = bufs else { return Ok(()) };
        device.rms_norm(x, views[0], 1e-5, 2, 9, y)
    })?;
    shrunk(device, "add_bias", &[9 * 4], &[2 * 9 * 4], |views, bufs| {
        device.add_bias(&mut bufs[0], views[0], 2, 9)
    })?;
    shrunk(device, "add", &[], &[9 * 4, 9 * 4], |_, bufs| {
        let [y, x] = bufs else { return Ok(()) };
        device.add(y, x, 9)
    })?;
    shrunk(device, "rms_norm_rows", &[9 * 4], &[2 * 9 * 4], |views, bufs| {
        device.rms_norm_rows(&mut bufs[0], views[0], 1e-5, 2, 9)
    })?;
    shrunk(device, "gated", &[], &[9 * 4, 9 * 4], |_, bufs| {
        let [gate, up] = bufs else { return Ok(()) };
        device.gated(gate, up, 9, Activation::Silu)
    })?;
    shrunk(device, "reorder", &[9 * 4], &[2 * 9 * 4, 2 * 9 * 4], |views, bufs| {
        let [x, y] = bufs else { return Ok(()) };
        device.reorder(x, views[0], 2, 9, y)
    })?;
    shrunk(device, "scale_rows", &[], &[2 * 9 * 4], |_, bufs| {
        device.scale_rows(&mut bufs[0], &[1.0, 2.0], 9)
    })?;
    shrunk(device, "scatter_add", &[], &[2 * 9 * 4, 4 * 9 * 4], |_, bufs| {
        let [x, y] = bufs else { return Ok(()) };
        device.scatter_add(x, &[3, 0], &[1.0, 2.0], 9, y)
    })?;
    shrunk(device, "place", &[], &[3 * 6 * 4, 5 * 9 * 4], |_, bufs| {
        let [x, y] = bufs else { return Ok(()) };
        device.place(x, y, PLACE)
    })?;
    shrunk(device, "rope", &[], &[2 * 3 * 8 * 4, 2 * 6 * 4], |_, bufs| {
        let [x, table] = bufs else { return Ok(()) };
        device.rope(x, table, ROPE)
    })?;
    let formats =
        [(KvFormat::F32, 32, 24), (KvFormat::F16, 16, 12), (KvFormat::Q8, 80, 80), (KvFormat::Q4, 18, 18)];
    for (cache, keys, values) in formats.into_iter().filter(|(cache, ..)| device.caches().contains(cache)) {
        shrunk(device, "store", &[], &[5 * 2 * 8 * 4, 7 * 2 * keys], |_, bufs| {
            let [x, to] = bufs else { return Ok(()) };
            device.store(x, 2, 3, Heads { heads: 2, dim: 8, cache }, to, 4)
        })?;
        let row = 4 * 8 * 4;
        for regime in [Regime::Token, Regime::Prompt] {
            shrunk(device, "attend", &[], &[3 * row, 10 * keys, 10 * values, 3 * row / 8 * 6], |_, bufs| {
                let [q, k, v, out] = bufs else { return Ok(()) };
                device.attend(q, k, v, out, Attend { cache, regime, ..ATTEND })
            })?;
        }
    }
    shrunk(device, "gather", &[], &[5 * 8 * 4, 3 * 8 * 4], |_, bufs| {
        let [x, y] = bufs else { return Ok(()) };
        device.gather(x, &[4, 0, 1], 8, y)
    })?;

    let far = usize::MAX / 2;
    with(device, |view, x, y| {
        shape("rms_norm", device.rms_norm(x, view, 1e-5, far, far, y))?;
        shape("add_bias", device.add_bias(y, view, far, far))?;
        shape("add", device.add(y, x, far))?;
        shape("rms_norm_rows", device.rms_norm_rows(y, view, 1e-5, far, far))?;
        shape("gated", device.gated(y, x, far, Activation::GeluTanh))?;
        shape("reorder", device.reorder(x, view, far, far, y))?;
        shape("scale_rows", device.scale_rows(y, &[1.0, 2.0], far))?;
        shape("scatter_add", device.scatter_add(x, &[u32::MAX], &[1.0], far, y))?;
        argument("scatter_add", device.scatter_add(x, &[0], &[1.0, 2.0], 1, y))?;
        shape("place", device.place(x, y, Place { rows: far, ..PLACE }))?;
        argument("place", device.place(x, y, Place { width: far, ..PLACE }))?;
        argument("place", device.place(x, y, Place { width: 5, ..PLACE }))?;
        argument("place", device.place(x, y, Place { repeat: 0, ..PLACE }))?;
        shape("rope", device.rope(y, x, Rope { n: far, heads: far, ..ROPE }))?;
        for &cache in device.caches() {
            let row = Heads { heads: 1, dim: 8, cache };
            shape("store", device.store(x, usize::MAX, far, row, y, usize::MAX))?;
            for row in [
                Heads { dim: far, ..row },
                Heads { heads: far, ..row },
                Heads { heads: far, dim: far, cache },
            ] {
                shape("store", device.store(x, 0, 1, row, y, 0))?;
            }
            let long = Attend { start: usize::MAX, n: far, cache, ..ATTEND };
            shape("attend", device.attend(x, x, x, y, long))?;
            let wide = Attend { head_dim: far, value_dim: far, cache, ..ATTEND };
            shape("attend", device.attend(x, x, x, y, wide))?;
        }
        shape("gather", device.gather(x, &[u32::MAX], far, y))?;
        for rotary in [7, 10, far] {
            argument("rope", device.rope(y, x, Rope { rotary, ..ROPE }))?;
        }
        for kv_heads in [0, 3, 8] {
            argument("attend", device.attend(x, x, x, y, Attend { kv_heads, ..ATTEND }))?;
        }
        Ok(())
    })
}

fn refused_products<D: Ops>(device: &D, format: NumFormat) -> Verdict {
    let cols = whole(format, 70);
    let row = format.row_bytes(cols);
    shrunk(device, "decode", &[3 * row], &[3 * cols * 4], |views, bufs| {
        device.decode(matrix(format, views[0], 3, cols), &mut bufs[0])
    })?;
    let out = Columns { stride: 5, first: 2 };
    shrunk(device, "matmul", &[3 * row], &[2 * cols * 4, 2 * 5 * 4], |views, bufs| {
        let [x, y] = bufs else { return Ok(()) };
        device.matmul(matrix(format, views[0], 3, cols), x, Tokens::few(2), y, out)
    })?;
    let far = whole(format, usize::MAX / 2);
    with(device, |view, x, y| {
        shape("decode", device.decode(matrix(format, view, far, far), y))?;
        for (rows, cols, n) in [(far, cols, 1), (3, far, 1), (3, cols, far)] {
            let out = Columns { stride: far, first: 0 };
            let w = matrix(format, view, rows, cols);
            shape("matmul", device.matmul(w, x, Tokens::few(n), y, out))?;
        }
        let few = whole(format, 16);
        for out in [Columns { stride: 4, first: 2 }, Columns { stride: 4, first: usize::MAX }] {
            argument("matmul", device.matmul(matrix(format, view, 3, few), x, Tokens::few(1), y, out))?;
        }
        if few > 16 {
            let out = Columns { stride: 3, first: 0 };
            argument("decode", device.decode(matrix(format, view, 3, few + 16), y))?;
            argument("matmul", device.matmul(matrix(format, view, 3, few - 16), x, Tokens::few(1), y, out))?;
        }
        Ok(())
    })
}

/// Nothing to do is no error, and does nothing.
pub fn empty<D: Ops>(device: &D) -> Verdict {
    let lab = Lab::new(device, "nothing to do".into());
    let (x, mut y) = (lab.upload(&[0.0; 3 * 256])?, lab.marked(0)?);
    let before = lab.download(&y)?;
    for format in NumFormat::ALL {
        for (rows, cols, n) in [(0, 64, 3), (0, 0, 3), (5, 64, 0), (0, 0, 0)] {
            let cols = whole(format, cols);
            let data = vec![0u8; rows * format.row_bytes(cols)];
            lab.with_view(&data, |data| {
                let w = Matrix { data, format, rows, cols };
                let out = Columns { stride: rows, first: 0 };
                device.matmul(w, &x, Tokens::few(n), &mut y, out)?;
                if rows == 0 { device.decode(w, &mut y) } else { Ok(()) }
            })?;
        }
    }
    lab.with_view(&[], |weight| {
        device.rms_norm(&x, weight, 1e-5, 4, 0, &mut y)?;
        device.add_bias(&mut y, weight, 4, 0)
    })?;
    lab.must(device.add(&mut y, &x, 0))?;
    lab.with_view(&[], |order| device.reorder(&x, order, 4, 0, &mut y))?;
    lab.with_view(&[], |weight| device.rms_norm_rows(&mut y, weight, 1e-5, 4, 0))?;
    lab.must(device.gated(&mut y, &x, 0, Activation::Silu))?;
    lab.must(device.scale_rows(&mut y, &[], 4))?;
    lab.must(device.scale_rows(&mut y, &[1.0, 2.0], 0))?;
    lab.must(device.scatter_add(&x, &[], &[], 4, &mut y))?;
    lab.must(device.scatter_add(&x, &[3], &[1.0], 0, &mut y))?;
    lab.must(device.place(&x, &mut y, Place { rows: 0, ..PLACE }))?;
    lab.must(device.place(&x, &mut y, Place { width: 0, ..PLACE }))?;
    let nowhere = Rope { head_dim: 0, rotary: 0, ..ROPE };
    for rope in [Rope { n: 0, ..ROPE }, Rope { heads: 0, ..ROPE }, nowhere] {
        lab.must(device.rope(&mut y, &x, rope))?;
    }
    for &cache in device.caches() {
        let row = Heads { heads: 2, dim: 4, cache };
        lab.must(device.store(&x, 0, 0, row, &mut y, 0))?;
        lab.must(device.store(&x, 2, 3, Heads { dim: 0, ..row }, &mut y, 4))?;
        lab.must(device.store(&x, 2, 3, Heads { heads: 0, ..row }, &mut y, 4))?;
    }
    let none = Attend { first: 0, n: 0, ..ATTEND };
    for shape in [none, Attend { head_dim: 0, value_dim: 0, ..ATTEND }, Attend { heads: 0, ..ATTEND }] {
        lab.must(device.attend(&x, &x, &x, &mut y, shape))?;
    }
    lab.must(device.gather(&x, &[], 8, &mut y))?;
    lab.must(device.gather(&x, &[3, 4], 0, &mut y))?;
    lab.equal(&before, &lab.download(&y)?)?;

    // No columns: sums of nothing, which are zero and have to be written.
    let out = Columns { stride: 4, first: 1 };
    lab.with_view(&[], |data| {
        device.matmul(matrix(NumFormat::F16, data, 2, 0), &x, Tokens::few(2), &mut y, out)
    })?;
    let mut expected = before;
    for zero in [1, 2, 5, 6] {
        expected[zero] = 0.0;
    }
    lab.equal(&expected, &lab.download(&y)?)
}

/// Calls `verb` with operands of the given sizes, which must do, then with each a byte smaller.
fn shrunk<D: Ops>(
    device: &D,
    verb: &'static str,
    views: &[usize],
    bufs: &[usize],
    call: impl Fn(&[D::View<'_>], &mut [D::Buf]) -> Result<()>,
) -> Verdict {
    let lab = Lab::new(device, format!("{verb}, operands of {views:?} and {bufs:?} bytes"));
    for small in 0..=views.len() + bufs.len() {
        let size = |(i, &bytes): (usize, &usize)| bytes - usize::from(i == small);
        let sizes: Vec<usize> = views.iter().chain(bufs).enumerate().map(size).collect();
        let (view_sizes, buf_sizes) = sizes.split_at(views.len());
        let alloc = |&bytes: &usize| lab.must(device.alloc(bytes));
        let backing = view_sizes.iter().map(alloc).collect::<Result<Vec<_>, _>>()?;
        let mut bufs = buf_sizes.iter().map(alloc).collect::<Result<Vec<_>, _>>()?;
        let view = |(buf, &size)| lab.must(device.view(buf, 0..size));
        let views = backing.iter().zip(view_sizes).map(view).collect::<Result<Vec<_>, _>>()?;
        let answer = call(&views, &mut bufs);
        if small == sizes.len() {
            lab.must(answer)?;
        } else {
            shape(verb, answer)?;
        }
    }
    Ok(())
}

/// Calls with operands of 4096 bytes.
fn with<D: Ops>(device: &D, call: impl FnOnce(D::View<'_>, &D::Buf, &mut D::Buf) -> Verdict) -> Verdict {
    let lab = Lab::new(device, "4096 bytes".into());
    let alloc = || lab.must(device.alloc(4096));
    let (weights, x, mut y) = (alloc()?, alloc()?, alloc()?);
    call(lab.must(device.view(&weights, 0..4096))?, &x, &mut y)
}

fn matrix<V>(format: NumFormat, data: V, rows: usize, cols: usize) -> Matrix<V> {
    Matrix { data, format, rows, cols }
}

fn shape(verb: &'static str, answer: Result<()>) -> Verdict {
    match answer {
        Err(Error::Shape { verb: named, expected, found, .. }) if named == verb && found < expected => Ok(()),
        other => Err(wrong(verb, &other, "size")),
    }
}

fn argument(verb: &'static str, answer: Result<()>) -> Verdict {
    match answer {
        Err(Error::Argument { verb: named, .. }) if named == verb => Ok(()),
        other => Err(wrong(verb, &other, "argument")),
    }
}

fn wrong(verb: &str, answer: &Result<()>, what: &str) -> Failure {
    let what = format!("{answer:?}, where a {what} should be refused");
    Failure::Wrong { case: verb.into(), what }
}
