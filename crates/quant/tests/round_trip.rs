//! Packing and unpacking: exactness, bounds on errors, layout, refusals.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::NumFormat;
use airllm_quant::{Error, loss, nmse, pack_row, pack_row_weighted, unpack_row};
use half::f16;
use proptest::prelude::*;

/// Formats in planes, and the code that stands for zero.
const PLANES: [(NumFormat, f32); 4] =
    [(NumFormat::Q6, 32.0), (NumFormat::Q5, 16.0), (NumFormat::Q3, 4.0), (NumFormat::Q2, 2.0)];

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
    fn q4_is_no_worse_than_symmetric_rounding(weights in weights()) {
        let back = round_trip(NumFormat::Q4, &weights);
        for (group, back) in weights.chunks(32).zip(back.chunks(32)) {
            // Codes −7 to 7 over the largest magnitude would be off by half a step each. A scale below the
            // normal range of f16 is itself off by up to 2^-25, and codes reach 8.
            let half_step = f64::from(largest(group) / 14.0 * 1.002 + 8.0 * 2f32.powi(-25));
            let error: f64 = group.iter().zip(back).map(|(w, b)| f64::from(w - b).powi(2)).sum();
            prop_assert!(error <= half_step * half_step * group.len() as f64, "{error} {half_step}");
        }
    }

    #[test]
    fn planes_are_hardly_worse_than_symmetric_rounding(weights in weights()) {
        for (format, zero) in PLANES {
            let back = round_trip(format, &weights);
            for (block, back) in weights.chunks(256).zip(back.chunks(256)) {
                // As for q4, over all that shares an f16; a group's scale may be a little too coarse.
                let half_step = largest(block) / (2.0 * (zero - 1.0)) * 1.25 + 15.0 * zero * 2f32.powi(-25);
                let half_step = f64::from(half_step);
                let error: f64 = block.iter().zip(back).map(|(w, b)| f64::from(w - b).powi(2)).sum();
                prop_assert!(error <= half_step * half_step * block.len() as f64, "{format} {error} {half_step}");
            }
        }
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
        // But for the rounding of a scale.
        prop_assert!(loss(NumFormat::Q8, &round_trip(NumFormat::Q8, &weights)).unwrap() < 1e-4);
        prop_assert!(loss(NumFormat::Q4, &round_trip(NumFormat::Q4, &weights)).unwrap() < 2e-3);
        for (format, _) in PLANES {
            let again = loss(format, &round_trip(format, &weights)).unwrap();
            prop_assert!(again < 1e-2, "{format}: {again}");
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
fn q4_bytes() {
    // The first group spans −8 to 7 exactly; the second is negated, so that its scale is.
    let mut weights = [0f32; 34];
    for (i, w) in weights[..32].iter_mut().enumerate() {
        *w = (i % 16) as f32 - 8.0;
    }
    weights[32] = 8.0;
    weights[33] = -7.0;
    let row = pack(NumFormat::Q4, &weights);
    assert_eq!(row.len(), 32 + 4 + 12);
    for (j, &byte) in row[..16].iter().enumerate() {
        assert_eq!(byte, (j | j << 4) as u8);
    }
    assert_eq!(row[16..18], [0x80, 0x8f]);
    assert!(row[18..32].iter().all(|&b| b == 0x88));
    assert_eq!(row[32..34], f16::ONE.to_le_bytes());
    assert_eq!(row[34..36], (-f16::ONE).to_le_bytes());
    assert!(row[36..].iter().all(|&b| b == 0));
    assert_eq!(unpack(NumFormat::Q4, &row, 34), weights);
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
fn importance_moves_the_error_away() {
    let weights = normal(1 << 14);
    // Columns differ by up to a thousand times, without a pattern that groups could have.
    let importance: Vec<f32> =
        (0..weights.len()).map(|c| 10f32.powf(3.0 * (c as f32 * 0.618).fract())).collect();
    for format in [NumFormat::Q6, NumFormat::Q5, NumFormat::Q4, NumFormat::Q3, NumFormat::Q2] {
        let mut row = vec![0; format.row_bytes(weights.len())];
        pack_row_weighted(format, &weights, &importance, &mut row).unwrap();
        let weighted = |back: &[f32]| -> f64 {
            let each = weights.iter().zip(back).zip(&importance);
            each.map(|((w, b), v)| f64::from(v * (w - b) * (w - b))).sum()
        };
        let (with, without) =
            (weighted(&unpack(format, &row, weights.len())), weighted(&round_trip(format, &weights)));
        assert!(with < 0.9 * without, "{format}: {with} of {without}");
    }
}

#[test]
fn bad_importance_is_named() {
    let pack = |importance: &[f32]| {
        pack_row_weighted(NumFormat::Q3, &[1.0; 3], importance, &mut vec![0; NumFormat::Q3.row_bytes(3)])
    };
    let refused = Error::Count { format: NumFormat::Q3, cols: 3, what: "importances", expected: 3, found: 2 };
    assert_eq!(pack(&[1.0; 2]), Err(refused));
    assert_eq!(pack(&[1.0, 0.0, -1.0]), Err(Error::Importance { position: 2, value: -1.0 }));
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(pack(&[1.0, bad, 1.0]), Err(Error::Importance { position: 1, .. })));
    }
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
    for format in [NumFormat::Q8, NumFormat::Q4].into_iter().chain(PLANES.map(|(format, _)| format)) {
        // One f16 step is 2^-24 = 6e-8.
        let back = round_trip(format, &[4e-8; 64]);
        assert!(back.iter().all(|&b| b > 0.0), "{format} {back:?}");
    }
}

#[test]
fn largest_weights() {
    for (format, limit) in
        [(NumFormat::F16, 65_504.0), (NumFormat::Q8, 127.0 * 65_504.0), (NumFormat::Q4, 7.0 * 65_504.0)]
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

/// Weights drawn from N(0, 1) by Box and Muller over SplitMix64.
fn normal(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut draw = || {
        let radius = (-2.0 * uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
    };
    (0..count).map(|_| draw()).collect()
}

/// The table in the crate's documentation.
#[test]
fn documented_errors() {
    let weights = normal(1 << 20);
    for (format, documented) in [
        (NumFormat::F32, 0.0),
        (NumFormat::F16, 4.31e-8),
        (NumFormat::Bf16, 2.76e-6),
        (NumFormat::A8, 2.26e-5),
        (NumFormat::Q8_0, 2.86e-5),
        (NumFormat::Q8, 3.51e-5),
        (NumFormat::F8, 6.62e-4),
        (NumFormat::I8, 7.45e-5),
        (NumFormat::Q6K, 3.52e-4),
        (NumFormat::Q6, 3.69e-4),
        (NumFormat::Q5_1, 1.43e-3),
        (NumFormat::Q5_0, 1.82e-3),
        (NumFormat::Q5K, 1.46e-3),
        (NumFormat::Q5, 1.47e-3),
        (NumFormat::A4, 6.52e-3),
        (NumFormat::Q4_1, 6.13e-3),
        (NumFormat::A4G64, 8.29e-3),
        (NumFormat::Q4, 6.90e-3),
        (NumFormat::Q4_0, 7.38e-3),
        (NumFormat::Q4K, 6.15e-3),
        (NumFormat::Nf4, 8.46e-3),
        (NumFormat::A4G128, 1.01e-2),
        (NumFormat::Q3K, 2.40e-2),
        (NumFormat::Q3, 2.20e-2),
        (NumFormat::Q2K, 1.08e-1),
        (NumFormat::Q2, 9.23e-2),
    ] {
        let back: Vec<f32> = weights.chunks(4096).flat_map(|w| round_trip(format, w)).collect();
        let found = nmse(&weights, &back);
        assert!((found - documented).abs() <= 0.01 * documented, "{format}: {found:.3e}");
    }
}
