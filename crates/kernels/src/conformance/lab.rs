//! What the cases share: numbers, operands on the device, comparison.

use super::{Failure, Verdict};
use crate::{Heads, KvFormat, Ops, Result};
use half::f16;

/// Fills what a verb must not touch.
pub(super) const MARK: f32 = 7777.0;

/// Pseudo-random numbers, the same on every machine (SplitMix64; Steele et al. 2014).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: usize) -> Numbers {
        Numbers(seed as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Drawn from N(0, 1) (Box and Muller).
    pub(super) fn normal(&mut self, count: usize) -> Vec<f32> {
        let uniform = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let mut draw = || {
            let radius = (-2.0 * uniform(self.next()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform(self.next())).cos()) as f32
        };
        (0..count).map(|_| draw()).collect()
    }
}

/// A device at work on one case.
pub(super) struct Lab<'d, D> {
    pub(super) device: &'d D,
    case: String,
}

impl<'d, D: Ops> Lab<'d, D> {
    pub(super) fn new(device: &'d D, case: String) -> Self {
        Lab { device, case }
    }

    /// The device's answer, named.
    pub(super) fn must<T>(&self, answer: Result<T>) -> std::result::Result<T, Failure> {
        answer.map_err(|error| Failure::Refused { case: self.case.clone(), error })
    }

    pub(super) fn wrong(&self, what: String) -> Failure {
        Failure::Wrong { case: self.case.clone(), what }
    }

    /// A buffer that holds `numbers`.
    pub(super) fn upload(&self, numbers: &[f32]) -> std::result::Result<D::Buf, Failure> {
        self.upload_bytes(&bytes(numbers))
    }

    /// The same with bytes.
    pub(super) fn upload_bytes(&self, bytes: &[u8]) -> std::result::Result<D::Buf, Failure> {
        let mut buf = self.must(self.device.alloc(bytes.len()))?;
        self.must(self.device.write(&mut buf, 0, bytes))?;
        Ok(buf)
    }

    /// A buffer of `count` marks, and some more.
    pub(super) fn marked(&self, count: usize) -> std::result::Result<D::Buf, Failure> {
        self.upload(&vec![MARK; count + 9])
    }

    /// All numbers of a buffer.
    pub(super) fn download(&self, buf: &D::Buf) -> std::result::Result<Vec<f32>, Failure> {
        let out = self.download_bytes(buf)?;
        Ok(out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// All bytes of a buffer.
    pub(super) fn download_bytes(&self, buf: &D::Buf) -> std::result::Result<Vec<u8>, Failure> {
        let mut out = vec![0u8; self.device.len(buf)];
        self.must(self.device.read(buf, 0, &mut out))?;
        Ok(out)
    }

    /// Calls `verb` with a view of `bytes`, which lies at an odd address if it is host memory.
    pub(super) fn with_view<T>(
        &self,
        bytes: &[u8],
        verb: impl FnOnce(D::View<'_>) -> Result<T>,
    ) -> std::result::Result<T, Failure> {
        let mut odd = vec![0u8; bytes.len() + 16];
        let shift = 1 + bytes.len() % 7;
        odd[shift..shift + bytes.len()].copy_from_slice(bytes);
        if let Some(view) = self.device.host_view(&odd[shift..shift + bytes.len()]) {
            return self.must(verb(view));
        }
        let mut buf = self.must(self.device.alloc(bytes.len() + 16))?;
        self.must(self.device.write(&mut buf, 16, bytes))?;
        let view = self.must(self.device.view(&buf, 16..16 + bytes.len()))?;
        self.must(verb(view))
    }

    /// Refuses `found` unless it is within `bound` of the reference; `power` is what an error of 1 means.
    pub(super) fn close(&self, reference: &[f64], found: &[f32], power: f64, bound: f64) -> Verdict {
        if found.len() < reference.len() {
            return Err(self.wrong(format!("{} numbers, not {}", found.len(), reference.len())));
        }
        let error = squared_distance(reference, found);
        // Written so that NaN fails.
        if error <= bound * power {
            return Ok(());
        }
        let worst = (0..reference.len())
            .find(|&i| (reference[i] - f64::from(found[i])).powi(2) * reference.len() as f64 >= error)
            .or_else(|| found.iter().position(|x| !x.is_finite()))
            .unwrap_or(0);
        Err(self.wrong(format!(
            "NMSE is {:.3e}, at most {bound:.1e} is allowed; number {worst} is {}, not {}",
            error / power,
            found[worst],
            reference[worst]
        )))
    }

    /// Refuses `found` unless it equals `expected` number by number (NaN equals NaN).
    pub(super) fn equal(&self, expected: &[f32], found: &[f32]) -> Verdict {
        let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
        match (0..expected.len()).find(|&i| !found.get(i).is_some_and(|&f| same(expected[i], f))) {
            None => Ok(()),
            Some(i) => Err(self.wrong(format!("number {i} is {:?}, not {}", found.get(i), expected[i]))),
        }
    }

    /// Refuses if anything from `used` on was changed.
    pub(super) fn untouched(&self, found: &[f32], used: usize) -> Verdict {
        match found.iter().skip(used).position(|&x| x != MARK) {
            None => Ok(()),
            Some(i) => Err(self.wrong(format!("number {}, beyond the result, changed", used + i))),
        }
    }
}

/// `Σ (a − b)²`.
pub(super) fn squared_distance(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum()
}

/// `Σ a²`.
pub(super) fn power(a: &[f64]) -> f64 {
    a.iter().map(|a| a * a).sum()
}

/// Little-endian bytes.
pub(super) fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Numbers in a group of `q8`.
const GROUP: usize = 64;
/// Numbers in a block of `q4`.
const BLOCK: usize = 32;

/// Rows of a cache, as [`Ops::store`] has to store them: heads of whole rows, whose padding is `fill`.
pub(super) fn stored(x: &[f32], shape: Heads, fill: u8) -> std::result::Result<Vec<u8>, String> {
    let Heads { dim, cache, .. } = shape;
    let mut rows = Vec::new();
    for head in x.chunks(dim) {
        let start = rows.len();
        match cache {
            KvFormat::F32 => rows.extend(bytes(head)),
            KvFormat::F16 => rows.extend(head.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
            KvFormat::Q8 => {
                let format = cache.format();
                let mut scales: Vec<u8> = Vec::new();
                for group in head.chunks(GROUP) {
                    let mut row = vec![0; format.row_bytes(group.len())];
                    if group.iter().all(|x| x.is_finite()) {
                        airllm_quant::pack_row(format, group, &mut row).map_err(|error| error.to_string())?;
                    } else {
                        row[GROUP..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
                    }
                    rows.extend(&row[..GROUP]);
                    scales.extend(&row[GROUP..][..2]);
                }
                rows.extend(scales);
            }
            KvFormat::Q4 => {
                let format = cache.format();
                for block in head.chunks(BLOCK) {
                    let mut whole = [0f32; BLOCK];
                    whole[..block.len()].copy_from_slice(block);
                    let mut row = vec![0x88; format.row_bytes(BLOCK)];
                    if block.iter().all(|x| x.is_finite() && x.abs() < 8.0 * 65504.0) {
                        airllm_quant::pack_row(format, &whole, &mut row)
                            .map_err(|error| error.to_string())?;
                    } else {
                        row[..2].copy_from_slice(&f16::NAN.to_le_bytes());
                    }
                    rows.extend(row);
                }
            }
        }
        rows.resize(start + cache.head_bytes(dim), fill);
    }
    Ok(rows)
}

/// The numbers of whole rows of a cache.
pub(super) fn widened(rows: &[u8], shape: Heads) -> std::result::Result<Vec<f32>, String> {
    let Heads { dim, cache, .. } = shape;
    let heads = rows.chunks_exact(cache.head_bytes(dim));
    let mut numbers = vec![0.0; heads.len() * dim];
    for (head, to) in heads.zip(numbers.chunks_mut(dim)) {
        // Blocks are unpacked whole.
        let mut whole = vec![0.0; if cache == KvFormat::Q4 { dim.next_multiple_of(BLOCK) } else { dim }];
        airllm_quant::unpack_row(cache.format(), head, &mut whole).map_err(|error| error.to_string())?;
        to.copy_from_slice(&whole[..dim]);
    }
    Ok(numbers)
}
