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
        all.push(simd.flip(v));
        let mut store = |v: S::Words| {
            let mut to = [0; 32];
            simd.store_words(v, &mut to);
            words.push(to);
        };
        for v in all {
            simd.unsigned(v).into_iter().for_each(&mut store);
        }
        let [a, b] = simd.unsigned(v);
        let four = *self.bytes.first_chunk().expect("64 bytes");
        let eight = simd.eight(*self.small.first_chunk().expect("16 numbers"));
        let [c, d] = simd.groups(eight);
        let nibbles = simd.split(simd.nibbles(four, 8));
        [c, d, simd.sub_words(c, a), simd.split(eight), nibbles, simd.splat_words(-7)]
            .into_iter()
            .for_each(&mut store);
        store(simd.mul_words(a, nibbles));
        store(simd.pair(self.large[3]));
        simd.columns([a, b, c, nibbles]).into_iter().for_each(&mut store);
        store(simd.pack(simd.sums(&self.large), simd.shift_sums(simd.sums(&self.large))));

        let mut store = |v: S::Floats| {
            let mut to = [0.0f32; 16];
            simd.store(v, &mut to);
            floats.push(to.map(f32::to_bits));
        };
        let sums = simd.dot(simd.no_sums(), c, d);
        let wide = simd.dot_bytes::<true>(sums, v, w);
        let narrow = simd.dot_bytes::<false>(wide, simd.shift_right(v, 1, 127), w);
        let large = simd.sums(&self.large);
        let four = simd.spread_sums(self.large.first_chunk().expect("16 numbers"));
        let rows = std::array::from_fn(|r| quarters[r].first_chunk().copied().expect("16 bytes"));
        let bytes = simd.bytes_of(rows);
        let folded = simd.fold([sums, wide, narrow, large]);
        for sums in [sums, wide, narrow, large, four, bytes, folded] {
            store(simd.floats(sums));
        }
        store(simd.floats(simd.add_sums(four, simd.shift_sums(large))));
        let (x, y) = (simd.load(&self.floats), simd.splat(0.1));
        let spread = simd.spread(self.floats.first_chunk().expect("16 numbers"));
        store(spread);
        store(simd.mul(x, spread));
        store(simd.mul_add(x, spread, y));
        // Numbers of 16 bits that are finite.
        let word = |r: usize| u64::from_le_bytes(std::array::from_fn(|i| self.others[8 * r + i]));
        store(simd.halves_of(std::array::from_fn(|r| word(r) & 0xbfff_bfff_bfff_bfff)));
        store(simd.row_halves(std::array::from_fn(|r| word(r) as u16 & 0xbfff)));
        let mut finite = [self.bytes, self.others, self.bytes, self.others];
        finite.as_flattened_mut().iter_mut().for_each(|byte| *byte &= 0xbf);
        let [a, b, c, d] = &finite;
        store(simd.strided_halves::<9>([a, b, c, d]));
        store(simd.strided_halves::<10>([b, a, d, c]));
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
