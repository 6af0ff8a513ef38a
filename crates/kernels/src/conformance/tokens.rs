//! Cases of the verbs that treat each token, or each number, by itself.

use super::lab::{Lab, MARK, Numbers, bytes, power, stored, widened};
use super::{ARITHMETIC, SIZES, TOKENS, Verdict};
use crate::{Activation, Columns, Heads, KvFormat, Ops, Place};

/// Root mean square norm, tiny and huge inputs and a NaN among them.
pub fn rms_norm<D: Ops>(device: &D) -> Verdict {
    let eps = 1e-5f32;
    for dim in SIZES.into_iter().chain([2000]) {
        for n in TOKENS {
            let lab = Lab::new(device, format!("rms_norm [{n}, {dim}]"));
            let mut numbers = Numbers::new(dim * 64 + n);
            let mut x = numbers.normal(n * dim);
            for (t, x) in x.chunks_mut(dim).enumerate() {
                let scale = [1.0, 1e-3, 1e4, 1e-15, 1e18][t % 5];
                x.iter_mut().for_each(|x| *x *= scale);
            }
            let weight = numbers.normal(dim);
            let reference: Vec<f64> = x
                .chunks(dim)
                .flat_map(|x| {
                    let sum: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
                    let root = (sum / dim as f64 + f64::from(eps)).sqrt();
                    x.iter().zip(&weight).map(move |(&x, &w)| f64::from(x) / root * f64::from(w))
                })
                .collect();
            let device_x = lab.upload(&x)?;
            let mut y = lab.marked(n * dim)?;
            lab.with_view(&bytes(&weight), |w| device.rms_norm(&device_x, w, eps, n, dim, &mut y))?;
            let found = lab.download(&y)?;
            // Token by token: one of small scale must be as good as the others.
            for (reference, found) in reference.chunks(dim).zip(found.chunks(dim)) {
                lab.close(reference, found, power(reference), ARITHMETIC)?;
            }
            lab.untouched(&found, n * dim)?;

            x[n * dim - 1] = f32::NAN;
            let device_x = lab.upload(&x)?;
            lab.with_view(&bytes(&weight), |w| device.rms_norm(&device_x, w, eps, n, dim, &mut y))?;
            let found = lab.download(&y)?;
            let bad = found[..n * dim].iter().position(|x| !x.is_finite());
            if bad != Some((n - 1) * dim) || !found[n * dim - dim..n * dim].iter().all(|x| x.is_nan()) {
                return Err(lab.wrong("NaN did not make exactly its own token NaN".into()));
            }
        }
    }
    Ok(())
}

/// A bias, the same for every token.
pub fn add_bias<D: Ops>(device: &D) -> Verdict {
    for dim in SIZES {
        for n in TOKENS {
            let lab = Lab::new(device, format!("add_bias [{n}, {dim}]"));
            let mut numbers = Numbers::new(dim * 64 + n);
            let (y, bias) = (numbers.normal(n * dim), numbers.normal(dim));
            let mut device_y = lab.upload(&[&y[..], &[MARK; 9]].concat())?;
            lab.with_view(&bytes(&bias), |b| device.add_bias(&mut device_y, b, n, dim))?;
            let found = lab.download(&device_y)?;
            let sums: Vec<f32> = y.iter().zip(bias.iter().cycle()).map(|(y, b)| y + b).collect();
            lab.equal(&sums, &found)?;
            lab.untouched(&found, n * dim)?;
        }
    }
    Ok(())
}

/// Sums of two buffers.
pub fn add<D: Ops>(device: &D) -> Verdict {
    for len in SIZES.into_iter().chain([100_003]) {
        let lab = Lab::new(device, format!("add {len}"));
        let mut numbers = Numbers::new(len);
        let (mut y, x) = (numbers.normal(len), numbers.normal(len));
        y[len / 2] = f32::NAN;
        let mut device_y = lab.upload(&[&y[..], &[MARK; 9]].concat())?;
        let device_x = lab.upload(&x)?;
        lab.must(device.add(&mut device_y, &device_x, len))?;
        let found = lab.download(&device_y)?;
        let sums: Vec<f32> = y.iter().zip(&x).map(|(y, x)| y + x).collect();
        lab.equal(&sums, &found)?;
        lab.untouched(&found, len)?;
    }
    Ok(())
}

/// The norm of single heads, in place: what the other norm gives.
pub fn rms_norm_rows<D: Ops>(device: &D) -> Verdict {
    let eps = 1e-6f32;
    for dim in SIZES {
        for rows in TOKENS {
            let lab = Lab::new(device, format!("rms_norm_rows [{rows}, {dim}]"));
            let mut numbers = Numbers::new(dim * 64 + rows);
            let (x, weight) = (numbers.normal(rows * dim), numbers.normal(dim));
            let device_x = lab.upload(&x)?;
            let mut expected = lab.marked(rows * dim)?;
            let mut found = lab.upload(&[&x[..], &[MARK; 9]].concat())?;
            lab.with_view(&bytes(&weight), |w| {
                device.rms_norm(&device_x, w, eps, rows, dim, &mut expected)?;
                device.rms_norm_rows(&mut found, w, eps, rows, dim)
            })?;
            lab.equal(&lab.download(&expected)?, &lab.download(&found)?)?;
        }
    }
    Ok(())
}

/// Gated products with each activation, with gates from −100 to 100 and a NaN.
pub fn gated<D: Ops>(device: &D) -> Verdict {
    let gelu =
        |g: f64| g / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g)).tanh());
    for f in [Activation::Silu, Activation::GeluTanh] {
        for len in SIZES.into_iter().chain([100_003]) {
            for spread in [1.0, 100.0] {
                let lab = Lab::new(device, format!("gated {f:?} {len}, gates of {spread}"));
                let mut numbers = Numbers::new(len);
                let gate: Vec<f32> = numbers.normal(len).into_iter().map(|x| x * spread).collect();
                let up = numbers.normal(len);
                let activated = |g: f64| match f {
                    Activation::Silu => g / (1.0 + (-g).exp()),
                    Activation::GeluTanh => gelu(g),
                };
                let each = gate.iter().zip(&up).map(|(&g, &u)| (f64::from(g), f64::from(u)));
                let reference: Vec<f64> = each.map(|(g, u)| activated(g) * u).collect();
                let device_up = lab.upload(&up)?;
                let run = |gate: &[f32]| {
                    let mut device_gate = lab.upload(&[gate, &[MARK; 9]].concat())?;
                    lab.must(device.gated(&mut device_gate, &device_up, len, f))?;
                    lab.download(&device_gate)
                };
                let found = run(&gate)?;
                lab.close(&reference, &found, power(&reference), ARITHMETIC)?;
                lab.untouched(&found, len)?;

                let mut gate = gate;
                gate[len / 2] = f32::NAN;
                let found = run(&gate)?;
                let finite = found.iter().filter(|x| x.is_finite()).count();
                if !found[len / 2].is_nan() || finite != len + 8 {
                    return Err(lab.wrong("NaN did not make exactly its own number NaN".into()));
                }
            }
        }
    }
    Ok(())
}

/// Columns in another order.
pub fn reorder<D: Ops>(device: &D) -> Verdict {
    for dim in SIZES {
        for n in TOKENS {
            let lab = Lab::new(device, format!("reorder [{n}, {dim}]"));
            let x = Numbers::new(dim * 64 + n).normal(n * dim);
            // Every column once: 257 is prime and larger than any size but itself.
            let order: Vec<usize> = (0..257).map(|c| c * 100 % 257).filter(|c| *c < dim).collect();
            let places: Vec<f32> = order.iter().map(|&c| c as f32).collect();
            let expected: Vec<f32> = x.chunks(dim).flat_map(|x| order.iter().map(|&c| x[c])).collect();
            let device_x = lab.upload(&x)?;
            let mut y = lab.marked(n * dim)?;
            lab.with_view(&bytes(&places), |order| device.reorder(&device_x, order, n, dim, &mut y))?;
            let found = lab.download(&y)?;
            lab.equal(&expected, &found)?;
            lab.untouched(&found, n * dim)?;
        }
    }
    Ok(())
}

/// Rows times a factor each.
pub fn scale_rows<D: Ops>(device: &D) -> Verdict {
    for dim in SIZES {
        for n in TOKENS {
            let lab = Lab::new(device, format!("scale_rows [{n}, {dim}]"));
            let mut numbers = Numbers::new(dim * 64 + n);
            let (y, factors) = (numbers.normal(n * dim), numbers.normal(n));
            let mut device_y = lab.upload(&[&y[..], &[MARK; 9]].concat())?;
            lab.must(device.scale_rows(&mut device_y, &factors, dim))?;
            let found = lab.download(&device_y)?;
            let expected: Vec<f32> = y.iter().enumerate().map(|(i, y)| y * factors[i / dim]).collect();
            lab.equal(&expected, &found)?;
            lab.untouched(&found, n * dim)?;
        }
    }
    Ok(())
}

/// Rows added to others, some twice.
pub fn scatter_add<D: Ops>(device: &D) -> Verdict {
    for dim in SIZES {
        for rows in [&[0u32][..], &[4, 0, 2], &[1, 1, 3, 1]] {
            let lab = Lab::new(device, format!("scatter_add {rows:?} x {dim}"));
            let mut numbers = Numbers::new(dim);
            let (x, y) = (numbers.normal(rows.len() * dim), numbers.normal(5 * dim));
            let factors = numbers.normal(rows.len());
            let mut reference: Vec<f64> = y.iter().map(|&y| f64::from(y)).collect();
            for (i, &row) in rows.iter().enumerate() {
                for c in 0..dim {
                    reference[row as usize * dim + c] += f64::from(factors[i]) * f64::from(x[i * dim + c]);
                }
            }
            let mut device_y = lab.upload(&[&y[..], &[MARK; 9]].concat())?;
            lab.must(device.scatter_add(&lab.upload(&x)?, rows, &factors, dim, &mut device_y))?;
            let found = lab.download(&device_y)?;
            lab.close(&reference, &found, power(&reference), ARITHMETIC)?;
            lab.untouched(&found, 5 * dim)?;
            let still = (0..5).filter(|row| !rows.contains(row)).map(|row| row as usize * dim);
            for at in still {
                lab.equal(&y[at..at + dim], &found[at..at + dim])?;
            }
        }
    }
    Ok(())
}

/// Columns copied between rows of other widths, each row to one or several.
pub fn place<D: Ops>(device: &D) -> Verdict {
    for width in SIZES {
        for (rows, repeat) in [(1, 1), (3, 1), (6, 2), (7, 3), (33, 4)] {
            let (from, to) =
                (Columns { stride: width + 5, first: 2 }, Columns { stride: width + 3, first: 3 });
            let shape = Place { rows, repeat, width, from, to };
            let lab = Lab::new(device, format!("{shape:?}"));
            let x = Numbers::new(width).normal(rows.div_ceil(repeat) * from.stride);
            let mut expected = vec![MARK; rows * to.stride + 9];
            for row in 0..rows {
                let x = &x[row / repeat * from.stride + from.first..][..width];
                expected[row * to.stride + to.first..][..width].copy_from_slice(x);
            }
            let mut y = lab.marked(rows * to.stride)?;
            lab.must(device.place(&lab.upload(&x)?, &mut y, shape))?;
            lab.equal(&expected, &lab.download(&y)?)?;
        }
    }
    Ok(())
}

/// Rows stored in a cache of each format: the bits of [`airllm_quant::pack_row`], padding and other rows left alone; and
/// numbers that are none, or too large for a format.
pub fn store<D: Ops>(device: &D) -> Verdict {
    for &cache in device.caches() {
        for dim in SIZES {
            for (first, n, at) in [(0, 1, 0), (2, 3, 5), (1, 33, 7)] {
                let shape = Heads { heads: 1 + (dim + n) % 3, dim, cache };
                let (width, row) = (shape.width(), shape.row_bytes());
                let lab = Lab::new(device, format!("store {n} of {shape:?} from {first} to {at}"));
                let mut x = Numbers::new(dim).normal((first + n) * width);
                for (i, head) in x.chunks_mut(dim).enumerate() {
                    // Small ones, large ones, and zeros in all of a group.
                    let factor = [1.0, 1e-6, 300.0, 0.0][i % 4];
                    head.iter_mut().take(64).for_each(|x| *x *= factor);
                }
                let fill = 0xa5;
                let packed = stored(&x[first * width..], shape, fill).map_err(|what| lab.wrong(what))?;
                let mut expected = vec![fill; (at + n) * row + 36];
                expected[at * row..(at + n) * row].copy_from_slice(&packed);
                let mut to = lab.upload_bytes(&vec![fill; expected.len()])?;
                lab.must(device.store(&lab.upload(&x)?, first, n, shape, &mut to, at))?;
                let found = lab.download_bytes(&to)?;
                if let Some(i) = (0..expected.len()).find(|&i| found[i] != expected[i]) {
                    return Err(lab.wrong(format!("byte {i} is {}, not {}", found[i], expected[i])));
                }
            }
        }
        for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20, -70_000.0] {
            let shape = Heads { heads: 2, dim: 70, cache };
            let lab = Lab::new(device, format!("store {strange} among {shape:?}"));
            let mut x = Numbers::new(70).normal(3 * 140);
            // In the last group of the second head of the second row.
            x[140 + 70 + 66] = strange;
            // Its scale would be infinite: no code of it is a number.
            let nothing = matches!(cache, KvFormat::Q8 | KvFormat::Q4) && strange == 1e20;
            let as_stored = if nothing { f32::NAN } else { strange };
            let mut clean = x.clone();
            clean[140 + 70 + 66] = as_stored;
            let wide = |rows: &[u8]| widened(rows, shape).map_err(|what| lab.wrong(what));
            let expected = stored(&clean, shape, 0).map_err(|what| lab.wrong(what))?;
            let mut to = lab.upload_bytes(&vec![0; expected.len()])?;
            lab.must(device.store(&lab.upload(&x)?, 0, 3, shape, &mut to, 0))?;
            lab.equal(&wide(&expected)?, &wide(&lab.download_bytes(&to)?)?)?;
        }
    }
    Ok(())
}

/// Rows picked in any order, some twice.
pub fn gather<D: Ops>(device: &D) -> Verdict {
    for dim in SIZES {
        for rows in [&[0u32][..], &[4, 0, 4, 2], &[1, 1, 1, 1, 1, 3]] {
            let lab = Lab::new(device, format!("gather {rows:?} x {dim}"));
            let x = Numbers::new(dim).normal(5 * dim);
            let row = |&row: &u32| &x[row as usize * dim..][..dim];
            let expected = rows.iter().map(row).collect::<Vec<_>>().concat();
            let device_x = lab.upload(&x)?;
            let mut y = lab.marked(rows.len() * dim)?;
            lab.must(device.gather(&device_x, rows, dim, &mut y))?;
            let found = lab.download(&y)?;
            lab.equal(&expected, &found)?;
            lab.untouched(&found, rows.len() * dim)?;
        }
    }
    Ok(())
}
