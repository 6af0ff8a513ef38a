//! Every implementation against the portable one, operation by operation.

use super::*;

/// Bytes without a pattern.
fn noise(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u8
    }
}

/// Results of every operation on some operands, as numbers.
struct All {
    bytes: [u8; 64],
    others: [u8; 64],
    small: [i16; 16],
    large: [i32; 16],
    floats: [f32; 16],
    half: [u8; 2],
}

impl All {
    fn draw(seed: u64) -> All {
        let mut byte = noise(seed);
        All {
            bytes: std::array::from_fn(|_| byte()),
            others: std::array::from_fn(|_| byte()),
            small: std::array::from_fn(|_| i16::from(byte()) * 16 - 2048),
            large: std::array::from_fn(|_| (i32::from(byte()) << 11) - (1 << 18)),
            floats: std::array::from_fn(|_| (f32::from(byte()) - 128.0) / 3.0),
            half: [byte(), byte() & 0xbf],
        }
    }
}

impl IntJob for All {
    type Out = (Vec<[i16; 32]>, Vec<[u32; 16]>);

    #[inline(always)]
    fn run<S: Ints>(self, simd: S) -> Self::Out {
        let (mut words, mut floats) = (Vec::new(), Vec::new());
        let (v, w) = (simd.bytes(&self.bytes), simd.bytes(&self.others));
        let quarters = self.bytes.as_chunks::<16>().0;
        let mut all = vec![v, simd.or(v, w)];
        all.push(simd.quarters([&quarters[2], &quarters[0], &quarters[3], &quarters[1]]));
        all.push(simd.lanes(&quarters[1], [0, 2, 4, 6], 3));
        all.push(simd.lanes(&quarters[2], [4, 5, 6, 7], 1));
        all.extend(simd.pairs(self.bytes.first_chunk().expect("64 bytes")));
        all.extend(simd.bits(&quarters[3], 16));
        for by in 0..8 {
            let shifted = simd.shift_right(v, by, 0xff >> by);
            all.extend([shifted, simd.shift_left(shifted, by)]);
        }
        all.extend(simd.unzip(v, w));
        all.extend(simd.transpose(v, w));
        let mut store = |v: S::Words| {
            let mut to = [0; 32];
            simd.store_words(v, &mut to);
            words.push(to);
        };
        for v in all {
            let ([a, b], [c, d]) = (simd.unsigned(v), simd.signed(v));
            [a, b, c, d].into_iter().for_each(&mut store);
        }
        let [a, b] = simd.signed(v);
        let [c, d] = simd.groups(self.small.first_chunk().expect("16 numbers"));
        [c, d, simd.sub_words(c, a), simd.mul_words(a, b), simd.splat_words(-7)]
            .into_iter()
            .for_each(&mut store);

        for (by, mask, bias) in [(12, 0x000f_000f, 8), (16, 0x00ff_00ff, 0)] {
            let mut to = [0; 32];
            to[..16].copy_from_slice(&simd.double(
                self.bytes.first_chunk().expect("64 bytes"),
                by,
                mask,
                bias,
            ));
            words.push(to);
        }

        let mut store = |v: S::Floats| {
            let mut to = [0.0f32; 16];
            simd.store(v, &mut to);
            floats.push(to.map(f32::to_bits));
        };
        let sums = simd.dot(simd.no_sums(), c, d);
        store(simd.floats(sums));
        store(simd.floats(simd.dot(sums, a, simd.mul_words(a, b))));
        store(simd.floats(simd.mul_sums(&self.small, &self.large)));
        let (x, y) = (simd.load(&self.floats), simd.splat(simd.half(self.half)));
        let spread = simd.spread(self.floats.first_chunk().expect("16 numbers"));
        store(spread);
        store(simd.mul(x, spread));
        let product = simd.add_product(x, spread, y);
        store(product);
        store(simd.splat(simd.sum(product)));
        let halves: [u8; 8] = std::array::from_fn(|i| self.others[i] & if i % 2 == 0 { 0xff } else { 0xbf });
        store(simd.spread(&simd.halves(&halves)));
        (words, floats)
    }
}

#[test]
fn all_levels_agree_bit_for_bit() {
    for level in IntLevel::all() {
        for seed in 1..300 {
            let (expected, found) = (IntLevel::PORTABLE.run(All::draw(seed)), level.run(All::draw(seed)));
            assert_eq!(expected, found, "{}, {seed}", level.name());
        }
    }
}
