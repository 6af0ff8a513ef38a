//! Cases of rotary embedding and attention.

use super::lab::{Lab, MARK, Numbers, power};
use super::{ARITHMETIC, SIZES, TOKENS, Verdict};
use crate::{Attend, Ops, Rope, RopeKind};

/// Both kinds of pairs, whole and partial rotation.
pub fn rope<D: Ops>(device: &D) -> Verdict {
    for kind in [RopeKind::Half, RopeKind::Interleaved] {
        for (head_dim, rotary) in
            [(1, 0), (2, 2), (16, 16), (17, 16), (64, 64), (80, 20), (80, 80), (127, 126), (128, 64)]
        {
            for n in TOKENS {
                let heads = 1 + n % 5;
                let shape = Rope { n, heads, head_dim, rotary, kind };
                let lab = Lab::new(device, format!("{shape:?}"));
                let mut numbers = Numbers::new(n * 256 + head_dim);
                let x = numbers.normal(n * heads * head_dim);
                let angles = numbers.normal(n * rotary / 2);
                let table: Vec<f32> = angles
                    .chunks((rotary / 2).max(1))
                    .flat_map(|a| a.iter().map(|a| a.cos()).chain(a.iter().map(|a| a.sin())))
                    .collect();
                let mut device_x = lab.upload(&[&x[..], &[MARK; 9]].concat())?;
                lab.must(device.rope(&mut device_x, &lab.upload(&table)?, shape))?;
                let found = lab.download(&device_x)?;
                let reference = turned(&x, &table, &shape);
                lab.close(&reference, &found, power(&reference), ARITHMETIC)?;
                lab.untouched(&found, x.len())?;
            }
        }
    }
    Ok(())
}

fn turned(x: &[f32], table: &[f32], shape: &Rope) -> Vec<f64> {
    let Rope { heads, head_dim, rotary, kind, .. } = *shape;
    let half = rotary / 2;
    let mut y: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    for (h, head) in y.chunks_mut(head_dim).enumerate() {
        for i in 0..half {
            let row = &table[h / heads * rotary..];
            let (cos, sin) = (f64::from(row[i]), f64::from(row[half + i]));
            let (a, b) = match kind {
                RopeKind::Half => (i, half + i),
                RopeKind::Interleaved => (2 * i, 2 * i + 1),
            };
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }
    y
}

/// Causal attention: groups of one and of several, heads of odd sizes, with and without a past.
pub fn attend<D: Ops>(device: &D) -> Verdict {
    let groups = [(1, 1), (4, 4), (4, 1), (6, 2), (5, 5), (14, 2), (32, 1)];
    for (i, head_dim) in SIZES.into_iter().enumerate() {
        for (j, n) in TOKENS.into_iter().enumerate() {
            for start in [[0, 63], [1, 200], [5, 64]][(i + j) % 3] {
                let (heads, kv_heads) = groups[(i + j + start) % groups.len()];
                let scale = 1.0 / (head_dim as f32).sqrt();
                let first = (i + j) % 3;
                let shape = Attend { first, n, start, heads, kv_heads, head_dim, scale };
                one_attend(device, &shape)?;
            }
        }
    }
    Ok(())
}

fn one_attend<D: Ops>(device: &D, shape: &Attend) -> Verdict {
    let Attend { first, n, start, heads, kv_heads, head_dim, .. } = *shape;
    let lab = Lab::new(device, format!("{shape:?}"));
    let mut numbers = Numbers::new(n * 4096 + head_dim * 7 + start);
    let cached = (start + n) * kv_heads * head_dim;
    let q = numbers.normal((first + n) * heads * head_dim);
    let (mut k, mut v) = (numbers.normal(cached), numbers.normal(cached));
    // What lies in the cache beyond the last position must not matter.
    k.extend([f32::NAN; 40]);
    v.extend([f32::NAN; 40]);
    let device_q = lab.upload(&q)?;
    let used = (first + n) * heads * head_dim;
    let run = |k: &[f32], v: &[f32]| {
        let mut out = lab.marked(used)?;
        let (k, v) = (lab.upload(k)?, lab.upload(v)?);
        lab.must(device.attend(&device_q, &k, &v, &mut out, *shape))?;
        lab.download(&out)
    };
    let found = run(&k, &v)?;
    let skipped = first * heads * head_dim;
    if found[..skipped].iter().any(|&x| x != MARK) {
        return Err(lab.wrong("rows before the first query changed".into()));
    }
    lab.untouched(&found, used)?;
    let reference = attended(&q, &k, &v, shape);
    lab.close(&reference, &found[skipped..], power(&reference), ARITHMETIC)?;

    // A NaN at the last position reaches the last query and no other.
    for poison in [&mut k, &mut v] {
        poison[cached - 1] = f32::NAN;
    }
    let poisoned = run(&k, &v)?;
    let last = used - heads * head_dim;
    lab.equal(&found[..last], &poisoned[..last])?;
    if !poisoned[used - 1].is_nan() {
        return Err(lab.wrong("a NaN in the cache vanished".into()));
    }
    Ok(())
}

fn attended(q: &[f32], k: &[f32], v: &[f32], shape: &Attend) -> Vec<f64> {
    let Attend { first, n, start, heads, kv_heads, head_dim, scale } = *shape;
    let mut out = vec![0f64; n * heads * head_dim];
    for (i, out) in out.chunks_mut(head_dim).enumerate() {
        let (query, head) = (i / heads, i % heads);
        let kv = head / (heads / kv_heads);
        let q = &q[((first + query) * heads + head) * head_dim..][..head_dim];
        let cached = |cache: &[f32], j: usize| -> Vec<f64> {
            let row = &cache[(j * kv_heads + kv) * head_dim..][..head_dim];
            row.iter().map(|&x| f64::from(x)).collect()
        };
        let seen = 0..start + query + 1;
        let score = |j: usize| -> f64 {
            let k = cached(k, j);
            q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>() * f64::from(scale)
        };
        let scores: Vec<f64> = seen.map(score).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (j, weight) in weights.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(cached(v, j)) {
                *out += weight / total * v;
            }
        }
    }
    out
}
