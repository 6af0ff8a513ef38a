//! Packing and unpacking: exactness, bounds on errors, layout, refusals.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::NumFormat;
use airllm_quant::{Error, NF4, loss, nmse, pack_row, pack_row_weighted, unpack_row};
use half::f16;
use proptest::prelude::*;

/// Formats in planes, and the code that stands for zero.
const PLANES: [(NumFormat, f32); 5] = [
    (NumFormat::Q6, 32.0),
    (NumFormat::Q5, 16.0),
    (NumFormat::Q4, 8.0),
    (NumFormat::Q3, 4.0),
    (NumFormat::Q2, 2.0),
];

/// The largest magnitude of a scale of four bits.
fn reach(format: NumFormat) -> f32 {
    if format <= NumFormat::Q5 { 15.0 } else { 8.0 }
}

fn pack(format: NumFormat, weights: &[f32]) -> Vec<u8> {
    // Filled, so that bytes left unwritten would show.
    let mut row = vec![0xa5; format.row_bytes(weights.len())];
    pack_row(format, weights, &mut row).unwrap();
    row
}

fn unpack(format: NumFormat, row: &[u8], cols: usize) -> Vec<f32> {
    let mut weights = vec![f32::NAN; cols];
    unpack_row(format, row, &mut weights).unwrap();
    weights
}

fn round_trip(format: NumFormat, weights: &[f32]) -> Vec<f32> {
    unpack(format, &pack(format, weights), weights.len())
}

/// The next number of columns that the format's rows can have.
fn whole(format: NumFormat, cols: usize) -> usize {
    cols.next_multiple_of(format.multiple())
}

fn finite() -> impl Strategy<Value = f32> {
    use prop::num::f32::{NORMAL, SUBNORMAL, ZERO};
    NORMAL | SUBNORMAL | ZERO
}

/// Weights of one magnitude, from far below to far above what checkpoints hold.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    (prop::collection::vec(-1f32..1.0, 0..300), -7i32..5)
        .prop_map(|(w, e)| w.into_iter().map(|w| w * 10f32.powi(e)).collect())
}

fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |m, w| m.max(w.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn f32_is_exact(weights in prop::collection::vec(finite(), 0..100)) {
        let back = round_trip(NumFormat::F32, &weights);
        prop_assert!(weights.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn halves_are_the_nearest(weights in weights()) {
        let back = round_trip(NumFormat::F16, &weights);
        for (w, b) in weights.iter().zip(&back) {
            // Half a unit in the last place; below 2^-14 the unit is 2^-24.
            prop_assert!((w - b).abs() <= (w.abs() / 2048.0).max(2f32.powi(-25)), "{w} {b}");
        }
        let back = round_trip(NumFormat::Bf16, &weights);
        for (w, b) in weights.iter().zip(&back) {
            prop_assert!((w - b).abs() <= w.abs() / 256.0, "{w} {b}");
        }
    }

    #[test]
    fn sixteen_bits_come_back_as_they_were(bits in prop::collection::vec(any::<u16>(), 0..100)) {
        let row: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        for format in [NumFormat::F16, NumFormat::Bf16] {
            let weights = unpack(format, &row, bits.len());
            if weights.iter().all(|w| w.is_finite()) {
                prop_assert_eq!(&pack(format, &weights), &row);
            }
        }
    }

    #[test]
    fn q8_is_off_by_half_a_step(weights in weights()) {
        let back = round_trip(NumFormat::Q8, &weights);
        for (group, back) in weights.chunks(64).zip(back.chunks(64)) {
            // The scale was rounded to f16, whose unit is at least 2^-24.
            let step = largest(group) / 127.0 * 1.001 + 2f32.powi(-24);
            for (w, b) in group.iter().zip(back) {
                prop_assert!((w - b).abs() <= step * 0.501, "{w} {b} {step}");
            }
        }
    }

    #[test]
    fn planes_are_hardly_worse_than_symmetric_rounding(weights in weights()) {
        for (format, zero) in PLANES {
            let back = round_trip(format, &weights);
            for (block, back) in weights.chunks(256).zip(back.chunks(256)) {
                // Codes without the one that has no opposite, over the largest magnitude of all that shares an f16,
                // would be off by half a step each; a group's scale may be a little too coarse. An f16 below the
                // normal range is itself off by up to 2^-25, times scale and code.
                let half_step = largest(block) / (2.0 * (zero - 1.0)) * 1.25 + 15.0 * zero * 2f32.powi(-25);
                let half_step = f64::from(half_step);
                let error: f64 = block.iter().zip(back).map(|(w, b)| f64::from(w - b).powi(2)).sum();
                prop_assert!(error <= half_step * half_step * block.len() as f64, "{format} {error} {half_step}");
            }
        }
    }

    #[test]
    fn nf4_takes_the_nearest_code_and_keeps_it(weights in weights()) {
        let back = round_trip(NumFormat::Nf4, &weights);
        for (group, back) in weights.chunks(64).zip(back.chunks(64)) {
            let scale = largest(group);
            for (w, b) in group.iter().zip(back) {
                let off = NF4.iter().map(|v| (w - v * scale).abs()).fold(f32::INFINITY, f32::min);
                prop_assert!((w - b).abs() <= off + scale * 1e-6, "{w} {b} {off}");
                prop_assert!(w.abs() < scale || w == b, "{w} {b}");
            }
        }
        prop_assert_eq!(round_trip(NumFormat::Nf4, &back), back);
    }

    #[test]
    fn equal_importance_changes_nothing(weights in weights(), importance in 1e-20f32..1e20) {
        for format in NumFormat::ALL {
            let mut weights = weights.clone();
            weights.resize(whole(format, weights.len()), 0.0);
            for importance in [importance, 0.0] {
                let mut row = vec![0xa5; format.row_bytes(weights.len())];
                pack_row_weighted(format, &weights, &vec![importance; weights.len()], &mut row).unwrap();
                prop_assert_eq!(&row, &pack(format, &weights), "{}", format);
            }
        }
    }

    #[test]
    fn packing_again_changes_little(weights in weights()) {
        for format in [NumFormat::F32, NumFormat::F16, NumFormat::Bf16] {
            prop_assert_eq!(loss(format, &round_trip(format, &weights)).unwrap(), 0.0);
        }
        // But for the rounding of a scale. Below 2^-14 the f16 that scales are made of is itself off by up to
        // 2^-25, which is relatively the more the smaller it is, up to a half. It is at least the largest weight
        // over what scale and code can make of it.
        let q8 = (NumFormat::Q8, 64, 1e-4, 127.0);
        let planes = PLANES.map(|(format, zero)| (format, 256, 1e-2, zero * reach(format)));
        for (format, group, bound, reach) in std::iter::once(q8).chain(planes) {
            let once = round_trip(format, &weights);
            let twice = round_trip(format, &once);
            for (once, twice) in once.chunks(group).zip(twice.chunks(group)) {
                let coarse = (reach * 2f32.powi(-25) / largest(once)).min(0.5);
                let (again, bound) = (nmse(once, twice), bound + f64::from(coarse * coarse));
                prop_assert!(again <= bound, "{format}: {again} {bound}");
            }
        }
    }

    #[test]
    fn any_bytes_unpack(bytes in prop::collection::vec(any::<u8>(), 4096), cols in 0usize..900) {
        for format in NumFormat::ALL {
            let cols = whole(format, cols);
            let row = &bytes[..format.row_bytes(cols)];
            prop_assert_eq!(unpack(format, row, cols).len(), cols);
        }
    }

    #[test]
    fn bad_weights_are_named(
        weights in prop::collection::vec(-1f32..1.0, 1..200),
        at in any::<prop::sample::Index>(),
        bad in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        let at = at.index(weights.len());
        let mut weights = weights;
        weights[at] = bad;
        for format in NumFormat::ALL {
            let mut weights = weights.clone();
            weights.resize(whole(format, weights.len()), 0.0);
            let mut row = vec![0; format.row_bytes(weights.len())];
            let refused = pack_row(format, &weights, &mut row);
            prop_assert!(
                matches!(refused, Err(Error::NotFinite { position, .. }) if position == at),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn q8_bytes() {
    // Two groups, the second of three weights. 2.54 / 127 = 0.02.
    let mut weights = [0f32; 67];
    weights[0] = 2.54;
    weights[1] = -0.02;
    weights[63] = -2.54;
    weights[64] = 127.0;
    weights[66] = -3.4;
    let row = pack(NumFormat::Q8, &weights);
    assert_eq!(row.len(), 128 + 4 + 12);
    assert_eq!((row[0] as i8, row[1] as i8, row[63] as i8), (127, -1, -127));
    assert_eq!((row[64] as i8, row[65] as i8, row[66] as i8), (127, 0, -3));
    assert!(row[67..128].iter().all(|&b| b == 0));
    assert_eq!(row[128..130], f16::from_f32(0.02).to_le_bytes());
    assert_eq!(row[130..132], f16::ONE.to_le_bytes());
    assert!(row[132..].iter().all(|&b| b == 0));
}

#[test]
fn plane_bytes() {
    // One step whose weights are codes times a scale that can be stored; another of eight zeros.
    let row = |format, code: fn(usize) -> f32, scales: [f32; 2]| {
        let mut weights: Vec<f32> = (0..32).map(|c| scales[c / 16] * code(c)).collect();
        weights.resize(40, 0.0);
        let row = pack(format, &weights);
        assert_eq!(unpack(format, &row, 40), weights);
        row
    };
    let zeros = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);

    // −32 to −17, then 16 to 31.
    let q6 = row(NumFormat::Q6, |c| c as f32 - if c < 16 { 32.0 } else { 0.0 }, [15.0; 2]);
    assert_eq!(q6.len(), 32 + 16 + 16);
    assert!(q6[..16].iter().enumerate().all(|(j, &byte)| byte == (j | j << 4) as u8));
    assert!(zeros(&q6[16..32]) && q6[32..40] == [0xf0; 8] && q6[40..48] == [0xaa; 8]);
    assert!(q6[48..50] == [0xff, 0]);
    assert!(q6[50..52] == f16::ONE.to_le_bytes() && zeros(&q6[52..]));

    let q5 = row(NumFormat::Q5, |c| c as f32 - 16.0, [15.0; 2]);
    assert_eq!(q5.len(), 32 + 16 + 16);
    assert!(q5[..16].iter().enumerate().all(|(j, &byte)| byte == (j | j << 4) as u8));
    assert!(zeros(&q5[16..32]) && q5[32..40] == [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(zeros(&q5[40..48]) && q5[48..50] == [0xff, 0]);
    assert!(q5[50..52] == f16::ONE.to_le_bytes() && zeros(&q5[52..]));

    // Scales of −8 and 7 times −1/8; those of zeros are 0.
    let q4 = row(NumFormat::Q4, |c| (c % 16) as f32 - 8.0, [1.0, -0.875]);
    assert_eq!(q4.len(), 32 + 16);
    assert!(q4[..16].iter().enumerate().all(|(j, &byte)| byte == (j | j << 4) as u8));
    assert!(q4[16..32] == [0x88; 16] && q4[32..34] == [0xf0, 0x88]);
    assert!(q4[34..36] == f16::from_f32(-0.125).to_le_bytes() && zeros(&q4[36..]));

    let q3 = row(NumFormat::Q3, |c| (c % 8) as f32 - 4.0, [1.0, -0.875]);
    assert_eq!(q3.len(), 16 + 16 + 16);
    assert_eq!(q3[..8], [0, 0x55, 0xaa, 0xff, 0, 0x55, 0xaa, 0xff]);
    assert!(zeros(&q3[8..16]) && q3[16..20] == [0xf0; 4] && q3[20..24] == [0xff; 4] && zeros(&q3[24..32]));
    assert!(q3[32..34] == [0xf0, 0x88]);
    assert!(q3[34..36] == f16::from_f32(-0.125).to_le_bytes() && zeros(&q3[36..]));

    let q2 = row(NumFormat::Q2, |c| (c % 4) as f32 - 2.0, [1.0, -0.875]);
    assert_eq!(q2.len(), 16 + 16);
    assert_eq!(q2[..8], [0, 0x55, 0xaa, 0xff, 0, 0x55, 0xaa, 0xff]);
    assert!(q2[8..16] == [0xaa; 8] && q2[16..18] == [0xf0, 0x88]);
    assert!(q2[18..20] == f16::from_f32(-0.125).to_le_bytes() && zeros(&q2[20..]));
}

#[test]
fn zeros_stay_zeros() {
    for format in NumFormat::ALL {
        let zeros = vec![0.0; whole(format, 100)];
        assert_eq!(round_trip(format, &zeros), zeros);
        assert!(round_trip(format, &[]).is_empty());
    }
}

#[test]
fn tiny_groups_do_not_vanish() {
    for format in std::iter::once(NumFormat::Q8).chain(PLANES.map(|(format, _)| format)) {
        // One f16 step is 2^-24 = 6e-8.
        let back = round_trip(format, &[4e-8; 64]);
        assert!(back.iter().all(|&b| b > 0.0), "{format} {back:?}");
    }
}

#[test]
fn largest_weights() {
    let planes = [
        (NumFormat::Q6, 31.0 * 15.0 * 65_504.0),
        (NumFormat::Q5, 15.0 * 15.0 * 65_504.0),
        (NumFormat::Q4, 7.0 * 7.0 * 65_504.0),
    ];
    for (format, limit) in
        [(NumFormat::F16, 65_504.0), (NumFormat::Q8, 127.0 * 65_504.0)].into_iter().chain(planes)
    {
        assert!(loss(format, &[limit, -limit, 0.0]).unwrap() < 1e-4);
        let mut row = vec![0; format.row_bytes(2)];
        let refused = pack_row(format, &[0.0, -1.01 * limit], &mut row);
        let Err(Error::TooLarge { position: 1, limit: named, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(named, limit);
    }
}

#[test]
fn wrong_lengths_are_refused() {
    for format in NumFormat::ALL {
        for off in [-1isize, 1] {
            let cols = whole(format, 40);
            let right = format.row_bytes(cols);
            let mut row = vec![0; right.wrapping_add_signed(off)];
            let expected = Error::RowBytes { format, cols, expected: right, found: row.len() };
            let mut weights = vec![0.0; cols];
            assert_eq!(pack_row(format, &weights, &mut row), Err(expected.clone()));
            assert_eq!(unpack_row(format, &row, &mut weights), Err(expected));
        }
    }
}
