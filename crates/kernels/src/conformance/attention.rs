//! Cases of rotary embedding and attention.

use super::lab::{Lab, MARK, Numbers, power, stored, widened};
use super::{ARITHMETIC, Failure, SIZES, TOKENS, Verdict, attention_bound};
use crate::{Attend, Heads, KvFormat, Ops, Regime, Rope, RopeKind, alibi_slope};

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
    attend_in(device, Regime::Token, KvFormat::F32)
}

/// The same for tokens of prompts, within [`PROMPT_ATTENTION`](super::PROMPT_ATTENTION); and a query's result does not
/// depend on the queries that share its call.
pub fn attend_prompt<D: Ops>(device: &D) -> Verdict {
    attend_in(device, Regime::Prompt, KvFormat::F32)
}

/// Both over caches of fewer bits, against the numbers that these hold.
pub fn attend_stored<D: Ops>(device: &D) -> Verdict {
    stored_formats(device).try_for_each(|cache| attend_in(device, Regime::Token, cache))
}

/// The same for tokens of prompts.
pub fn attend_stored_prompt<D: Ops>(device: &D) -> Verdict {
    stored_formats(device).try_for_each(|cache| attend_in(device, Regime::Prompt, cache))
}

/// Formats of caches that the device has, but f32.
fn stored_formats<D: Ops>(device: &D) -> impl Iterator<Item = KvFormat> {
    device.caches().iter().copied().filter(|cache| *cache != KvFormat::F32)
}

fn attend_in<D: Ops>(device: &D, regime: Regime, cache: KvFormat) -> Verdict {
    let groups = [(1, 1), (4, 4), (4, 1), (6, 2), (5, 5), (14, 2), (32, 1)];
    for (i, head_dim) in SIZES.into_iter().enumerate() {
        for (j, n) in TOKENS.into_iter().enumerate() {
            // Every format meets every width and every number of tokens, not all pairs of them.
            if cache != KvFormat::F32 && !(i + j + cache as usize).is_multiple_of(3) {
                continue;
            }
            for start in [[0, 63], [1, 200], [5, 64]][(i + 2 * j) % 3] {
                let (heads, kv_heads) = groups[(i + j + start) % groups.len()];
                let scale = 1.0 / (head_dim as f32).sqrt();
                let first = (i + j) % 3;
                let plain = Attend {
                    first,
                    n,
                    start,
                    heads,
                    kv_heads,
                    head_dim,
                    value_dim: head_dim,
                    scale,
                    regime,
                    cache,
                    ..Attend::default()
                };
                one_attend(device, &plain)?;
                // One variation at a time, then all of them.
                let window = [1, 2, 7, 16, 65, 500][(i + 2 * j) % 6];
                let value_dim = SIZES[(i + j + 3) % SIZES.len()];
                let all = Attend { value_dim, window, softcap: 2.0, alibi: true, ..plain };
                let some = [
                    Attend { window, ..plain },
                    Attend { softcap: 2.0, ..plain },
                    Attend { alibi: true, ..plain },
                    Attend { value_dim, ..plain },
                ];
                one_attend(device, &some[(i + j) % 4])?;
                one_attend(device, &all)?;
            }
        }
    }
    Ok(())
}

fn one_attend<D: Ops>(device: &D, shape: &Attend) -> Verdict {
    let Attend { first, n, start, heads, kv_heads, head_dim, value_dim, .. } = *shape;
    let lab = Lab::new(device, format!("{shape:?}"));
    let mut numbers = Numbers::new(n * 4096 + head_dim * 7 + start);
    let cached = (start + n) * kv_heads;
    let q = numbers.normal((first + n) * heads * head_dim);
    let (mut k, mut v) = (numbers.normal(cached * head_dim), numbers.normal(cached * value_dim));
    // What lies in the cache beyond the last position must not matter.
    k.extend(vec![f32::NAN; kv_heads * head_dim]);
    v.extend(vec![f32::NAN; kv_heads * value_dim]);
    let [k_heads, v_heads] =
        [head_dim, value_dim].map(|dim| Heads { heads: kv_heads, dim, cache: shape.cache });
    let pack = |x: &[f32], heads| stored(x, heads, 0).map_err(|what| lab.wrong(what));
    let wide = |rows: &[u8], heads| widened(rows, heads).map_err(|what| lab.wrong(what));
    let device_q = lab.upload(&q)?;
    let used = (first + n) * heads * value_dim;
    let run = |k: &[f32], v: &[f32]| -> Result<Vec<f32>, Failure> {
        let mut out = lab.marked(used)?;
        let (k, v) = (lab.upload_bytes(&pack(k, k_heads)?)?, lab.upload_bytes(&pack(v, v_heads)?)?);
        lab.must(device.attend(&device_q, &k, &v, &mut out, *shape))?;
        lab.download(&out)
    };
    let found = run(&k, &v)?;
    let skipped = first * heads * value_dim;
    if found[..skipped].iter().any(|&x| x != MARK) {
        return Err(lab.wrong("rows before the first query changed".into()));
    }
    lab.untouched(&found, used)?;
    let packed = (pack(&k, k_heads)?, pack(&v, v_heads)?);
    let reference = attended(&q, &wide(&packed.0, k_heads)?, &wide(&packed.1, v_heads)?, shape);
    let hidden = if shape.window == 0 { 0 } else { (start + 1).saturating_sub(shape.window) * kv_heads };
    let allowed = attention_bound(shape.regime, shape.cache);
    lab.close(&reference, &found[skipped..], power(&reference), allowed)?;
    queries_alone(&lab, (&device_q, &packed.0, &packed.1), shape, &found)?;

    // A NaN at the last position reaches the last query and no other.
    k[cached * head_dim - 1] = f32::NAN;
    v[cached * value_dim - 1] = f32::NAN;
    let poisoned = run(&k, &v)?;
    let last = used - heads * value_dim;
    lab.equal(&found[..last], &poisoned[..last])?;
    if !poisoned[used - 1].is_nan() {
        return Err(lab.wrong("a NaN in the cache vanished".into()));
    }
    // What lies before the window of every query does not matter.
    k[..hidden * head_dim].fill(f32::NAN);
    v[..hidden * value_dim].fill(f32::NAN);
    lab.equal(&poisoned, &run(&k, &v)?)
}

/// Each query by itself, and those behind it, give what all of them together gave.
fn queries_alone<D: Ops>(
    lab: &Lab<'_, D>,
    (q, k, v): (&D::Buf, &[u8], &[u8]),
    shape: &Attend,
    together: &[f32],
) -> Verdict {
    let Attend { first, n, start, heads, value_dim, .. } = *shape;
    let (k, v) = (lab.upload_bytes(k)?, lab.upload_bytes(v)?);
    let mut out = lab.marked((first + n) * heads * value_dim)?;
    let cut = n.div_ceil(3);
    for (at, n) in [(0, cut), (cut, n - cut)] {
        let part = Attend { first: first + at, n, start: start + at, ..*shape };
        lab.must(lab.device.attend(q, &k, &v, &mut out, part))?;
    }
    lab.equal(together, &lab.download(&out)?)
}

fn attended(q: &[f32], k: &[f32], v: &[f32], shape: &Attend) -> Vec<f64> {
    let Attend { first, n, start, heads, kv_heads, head_dim, value_dim, .. } = *shape;
    let mut out = vec![0f64; n * heads * value_dim];
    for (i, out) in out.chunks_mut(value_dim).enumerate() {
        let (query, head) = (i / heads, i % heads);
        let kv = head / (heads / kv_heads);
        let q = &q[((first + query) * heads + head) * head_dim..][..head_dim];
        let cached = |cache: &[f32], dim: usize, j: usize| -> Vec<f64> {
            let row = &cache[(j * kv_heads + kv) * dim..][..dim];
            row.iter().map(|&x| f64::from(x)).collect()
        };
        let position = start + query;
        let oldest = if shape.window == 0 { 0 } else { (position + 1).saturating_sub(shape.window) };
        let score = |j: usize| -> f64 {
            let k = cached(k, head_dim, j);
            let product = q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>();
            let mut score = product * f64::from(shape.scale);
            if shape.softcap > 0.0 {
                score = f64::from(shape.softcap) * (score / f64::from(shape.softcap)).tanh();
            }
            if shape.alibi {
                score -= f64::from(alibi_slope(head, heads)) * (position - j) as f64;
            }
            score
        };
        let scores: Vec<f64> = (oldest..=position).map(score).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (j, weight) in (oldest..).zip(weights) {
            for (out, v) in out.iter_mut().zip(cached(v, value_dim, j)) {
                *out += weight / total * v;
            }
        }
    }
    out
}
