//! The formats that checkpoints come in: bounds on errors, rows made of codes, values of the references.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::NumFormat;
use airllm_format::safetensors::Header;
use airllm_quant::{Error, NF4, affine_row, f8_row, i8_row, loss, nf4_row, pack_row, unpack_row};
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::Path;

const AFFINE: [NumFormat; 4] = [NumFormat::A8, NumFormat::A4, NumFormat::A4G64, NumFormat::A4G128];

const BLOCKS: [NumFormat; 10] = [
    NumFormat::Q8_0,
    NumFormat::Q6K,
    NumFormat::Q5_1,
    NumFormat::Q5_0,
    NumFormat::Q5K,
    NumFormat::Q4_1,
    NumFormat::Q4_0,
    NumFormat::Q4K,
    NumFormat::Q3K,
    NumFormat::Q2K,
];

fn unpack(format: NumFormat, row: &[u8], cols: usize) -> Vec<f32> {
    let mut weights = vec![f32::NAN; cols];
    unpack_row(format, row, &mut weights).unwrap();
    weights
}

fn round_trip(format: NumFormat, weights: &[f32]) -> Vec<f32> {
    // Filled, so that bytes left unwritten would show.
    let mut row = vec![0xa5; format.row_bytes(weights.len())];
    pack_row(format, weights, &mut row).unwrap();
    unpack(format, &row, weights.len())
}

/// Weights of one magnitude, from far below to far above what checkpoints hold.
fn weights(cols: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    (prop::collection::vec(-1f32..1.0, cols), -7i32..4)
        .prop_map(|(w, e)| w.into_iter().map(|w| w * 10f32.powi(e)).collect())
}

fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |m, w| m.max(w.abs()))
}

/// The least and the largest of the weights and 0, apart.
fn spread(weights: &[f32]) -> f32 {
    let ends = weights.iter().fold((0f32, 0f32), |(a, b), &w| (a.min(w), b.max(w)));
    ends.1 - ends.0
}

/// Each weight of each group within `step` of what came back, `step` being made of the group.
fn within(
    group: usize,
    weights: &[f32],
    back: &[f32],
    step: impl Fn(&[f32]) -> f32,
) -> Result<(), TestCaseError> {
    for (group, back) in weights.chunks(group).zip(back.chunks(group)) {
        let step = step(group);
        for (w, b) in group.iter().zip(back) {
            prop_assert!((w - b).abs() <= step, "{w} {b} {step}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn affine_is_off_by_a_step(weights in weights(0..300)) {
        for format in AFFINE {
            let codes = if format == NumFormat::A8 { 255.0 } else { 15.0 };
            // Half a step of its own, and half a step where the zero point was rounded.
            let step = |group: &[f32]| spread(group) / codes * 1.001;
            within(format.group(), &weights, &round_trip(format, &weights), step)?;
        }
    }

    #[test]
    fn i8_is_off_by_half_a_step(weights in weights(0..300)) {
        let back = round_trip(NumFormat::I8, &weights);
        within(usize::MAX, &weights, &back, |row| largest(row) / 254.0 * 1.001)?;
    }

    #[test]
    fn f8_keeps_three_bits(weights in weights(0..300)) {
        let back = round_trip(NumFormat::F8, &weights);
        for (group, back) in weights.chunks(128).zip(back.chunks(128)) {
            // Below 2^-6 of 448ths, the step is 2^-9.
            let smallest = largest(group) / 448.0 / 1024.0;
            for (w, b) in group.iter().zip(back) {
                prop_assert!((w - b).abs() <= (w.abs() / 16.0).max(smallest) * 1.001, "{w} {b}");
            }
        }
    }

    #[test]
    fn nf4_is_off_by_half_the_widest_gap(weights in weights(0..300)) {
        let gap = NF4.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max);
        let back = round_trip(NumFormat::Nf4, &weights);
        within(64, &weights, &back, |group| largest(group) * gap * 0.501)?;
    }

    #[test]
    fn blocks_of_32_are_off_by_half_a_step(weights in weights(96)) {
        // A scale is rounded to f16: relatively by 2^-11, at least by 2^-25, and codes reach `ends`.
        for (format, steps, ends) in [
            (NumFormat::Q8_0, 127.0, 127.0),
            (NumFormat::Q5_0, 16.0, 16.0),
            (NumFormat::Q4_0, 8.0, 8.0),
        ] {
            // The end away from the largest weight lacks a code.
            let lacking = if steps == 127.0 { 0.501 } else { 1.001 };
            let step = |group: &[f32]| {
                largest(group) / steps * lacking + largest(group) / 2048.0 + ends * 2f32.powi(-25)
            };
            within(32, &weights, &round_trip(format, &weights), step)?;
        }
        for (format, steps) in [(NumFormat::Q5_1, 31.0), (NumFormat::Q4_1, 15.0)] {
            let step = |group: &[f32]| {
                spread(group) / steps * 0.501 + largest(group) / 500.0 + steps * 2f32.powi(-24)
            };
            within(32, &weights, &round_trip(format, &weights), step)?;
        }
    }

    #[test]
    fn blocks_of_256_lose_what_their_bits_say(weights in prop::collection::vec(-1f32..1.0, 512)) {
        for (format, bound) in [
            (NumFormat::Q6K, 1e-3),
            (NumFormat::Q5K, 3e-3),
            (NumFormat::Q4K, 1e-2),
            (NumFormat::Q3K, 5e-2),
            (NumFormat::Q2K, 1.5e-1),
        ] {
            let loss = loss(format, &weights).unwrap();
            prop_assert!(loss < bound, "{format} {loss}");
        }
    }

    #[test]
    fn codes_come_back_as_the_references_widen_them(
        cols in 1usize..300,
        draws in prop::collection::vec(any::<(u8, i8)>(), 300),
        scales in prop::collection::vec(-2f32..2.0, 10),
    ) {
        for format in AFFINE {
            let wide = format == NumFormat::A8;
            let groups = format.groups(cols);
            let codes: Vec<u8> = draws[..cols].iter().map(|d| if wide { d.0 } else { d.0 % 16 }).collect();
            let zeros: Vec<u16> = draws[..groups].iter().map(|d| match wide {
                true => u16::from(d.1 as u8) + u16::from(d.0 & 1),
                false => u16::from(d.1 as u8 % 17),
            }).collect();
            let mut row = vec![0xa5; format.row_bytes(cols)];
            affine_row(format, &codes, &scales[..groups], &zeros, &mut row).unwrap();
            let back = unpack(format, &row, cols);
            for c in 0..cols {
                let g = c / format.group();
                let expected = scales[g] * (f32::from(codes[c]) - f32::from(zeros[g]));
                prop_assert_eq!(back[c].to_bits(), expected.to_bits());
            }
        }
        let codes: Vec<i8> = draws[..cols].iter().map(|d| d.1).collect();
        let mut row = vec![0xa5; NumFormat::I8.row_bytes(cols)];
        i8_row(&codes, scales[0], &mut row).unwrap();
        for (w, &code) in unpack(NumFormat::I8, &row, cols).iter().zip(&codes) {
            prop_assert_eq!(*w, f32::from(code) * scales[0] / 127.0);
        }
        let codes: Vec<u8> = draws[..cols].iter().map(|d| d.0 % 16).collect();
        let mut row = vec![0xa5; NumFormat::Nf4.row_bytes(cols)];
        nf4_row(&codes, &scales[..NumFormat::Nf4.groups(cols)], &mut row).unwrap();
        for (c, w) in unpack(NumFormat::Nf4, &row, cols).iter().enumerate() {
            prop_assert_eq!(*w, NF4[usize::from(codes[c])] * scales[c / 64]);
        }
    }
}

#[test]
fn every_f8_code_comes_back() {
    let codes: Vec<u8> = (0..=255).collect();
    let mut row = vec![0xa5; NumFormat::F8.row_bytes(256)];
    f8_row(&codes, &[2.0, 0.5], &mut row).unwrap();
    let weights = unpack(NumFormat::F8, &row, 256);
    let value = |code: u8| {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = match exponent {
            0 => fraction * 2f32.powi(-9),
            e => (8.0 + fraction) * 2f32.powi(e - 10),
        };
        if code & 0x80 == 0 { size } else { -size }
    };
    for (code, w) in codes.into_iter().zip(weights) {
        match code & 0x7f {
            0x7f => assert!(w.is_nan()),
            _ => assert_eq!(w, value(code) * if code < 128 { 2.0 } else { 0.5 }, "{code:#x}"),
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let (format, mut row) = (NumFormat::A4, vec![0; NumFormat::A4.row_bytes(40)]);
    let refused = |codes: &[u8], scales: &[f32], zeros: &[u16], row: &mut [u8]| {
        affine_row(format, codes, scales, zeros, row).unwrap_err().to_string()
    };
    assert_eq!(refused(&[0; 40], &[1.0], &[0, 0], &mut row), "a a4 row of 40 weights has 2 scales, not 1");
    assert_eq!(
        refused(&[0; 40], &[1.0; 2], &[0], &mut row),
        "a a4 row of 40 weights has 2 zero points, not 1"
    );
    assert_eq!(
        refused(&[0; 40], &[1.0; 2], &[0, 17], &mut row),
        "zero point 1 of the row is 17; a4 reaches only to 16"
    );
    let mut codes = [0; 40];
    codes[39] = 16;
    assert_eq!(
        refused(&codes, &[1.0; 2], &[0; 2], &mut row),
        "code 39 of the row is 16; a4 reaches only to 15"
    );
    let error = affine_row(NumFormat::Q4, &[0; 32], &[1.0], &[0], &mut row);
    assert_eq!(error, Err(Error::Unsupported { format: NumFormat::Q4 }));
    assert!(matches!(
        nf4_row(&[16], &[1.0], &mut [0; 48]),
        Err(Error::OutOfRange { what: "code", position: 0, found: 16, .. })
    ));
    assert!(matches!(f8_row(&[0; 129], &[1.0], &mut [0; 272]), Err(Error::Count { expected: 2, .. })));
    assert!(matches!(i8_row(&[0; 3], 1.0, &mut [0; 4]), Err(Error::RowBytes { expected: 48, .. })));
}

#[test]
fn largest_weights() {
    for format in NumFormat::ALL.into_iter().filter(|f| f.is_foreign()) {
        let mut weights = vec![0.0; 256];
        weights[9] = f32::MAX;
        let mut row = vec![0; format.row_bytes(256)];
        let refused = pack_row(format, &weights, &mut row);
        let Err(Error::TooLarge { position: 9, limit, .. }) = refused else {
            panic!("{format}: {refused:?}")
        };
        (weights[9], weights[10]) = (limit, -limit);
        // One of them may lie at the end of the codes that reaches less far.
        let back = round_trip(format, &weights);
        assert!(back[9] > 0.6 * limit && back[9].is_finite(), "{format}: {} of {limit}", back[9]);
        assert!(back[10] < -0.6 * limit && back[10].is_finite(), "{format}: {} of -{limit}", back[10]);
    }
}

#[test]
fn rows_of_part_blocks_are_refused() {
    for format in BLOCKS {
        let block = format.multiple();
        assert!(block == 32 || block == 256);
        for cols in [1, block - 1, block + 1] {
            let mut row = vec![0; format.row_bytes(cols)];
            let expected = Error::PartBlock { format, cols, block };
            assert_eq!(pack_row(format, &vec![0.0; cols], &mut row), Err(expected.clone()));
            assert_eq!(unpack_row(format, &row, &mut vec![0.0; cols]), Err(expected));
        }
    }
}

/// Shapes and bytes by name.
type Tensors = HashMap<String, (Vec<usize>, Vec<u8>)>;

/// The tensors of a safetensors file.
fn tensors(path: &Path) -> Tensors {
    let header = Header::read(path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let data = |at: u64, len: u64| bytes[at as usize..][..len as usize].to_vec();
    let each = header.tensors().iter();
    each.map(|t| (t.name.clone(), (t.shape.clone(), data(t.start, t.bytes)))).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Random blocks and what the `gguf` package makes of them.
#[test]
fn gguf_blocks_have_the_values_of_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf_blocks.safetensors");
    let tensors = tensors(&path);
    for format in BLOCKS {
        let blocks = &tensors[&format!("{format}.blocks")].1;
        let values = f32s(&tensors[&format!("{format}.values")].1);
        assert_eq!(unpack(format, blocks, values.len()), values, "{format}");
    }
}

/// A fixture's weights and goldens, or `None` with a line that says so.
fn fixture(name: &str) -> Option<[Tensors; 2]> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures").join(name);
    if dir.is_dir() {
        return Some(["model", "golden"].map(|f| tensors(&dir.join(f).with_extension("safetensors"))));
    }
    // Straight to the descriptor: the harness keeps what a passing test prints to itself.
    let line = format!("skipped: ../shared not there ({name})\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    None
}

/// Compares the dequantised weights of a fixture with rows made by `row(model, name, r, cols)`.
fn dequantised(fixture_name: &str, format: NumFormat, row: impl Fn(&Tensors, &str, usize, usize) -> Vec<u8>) {
    let Some([model, golden]) = fixture(fixture_name) else { return };
    let mut compared = 0;
    for (name, (shape, values)) in &golden {
        let Some(name) = name.strip_prefix("dequant.").and_then(|n| n.strip_suffix(".weight")) else {
            continue;
        };
        for (r, expected) in f32s(values).chunks(shape[1]).enumerate() {
            let row = row(&model, name, r, shape[1]);
            assert_eq!(unpack(format, &row, shape[1]), expected, "{name}, row {r}");
            compared += 1;
        }
    }
    assert!(compared > 0, "{fixture_name} has no dequantised weights");
}

#[test]
fn int8_of_bitsandbytes() {
    dequantised("bnb_int8", NumFormat::I8, |model, name, r, cols| {
        let codes: Vec<i8> =
            model[&format!("{name}.weight")].1[r * cols..][..cols].iter().map(|&b| b as i8).collect();
        let scb = f32s(&model[&format!("{name}.SCB")].1)[r];
        let mut row = vec![0; NumFormat::I8.row_bytes(cols)];
        i8_row(&codes, scb, &mut row).unwrap();
        row
    });
}

/// The row of an nf4 fixture whose scales are `absmax`; the high nibble is the first.
fn nf4(bytes: &[u8], absmax: &[f32], r: usize, cols: usize) -> Vec<u8> {
    let codes: Vec<u8> =
        bytes[r * cols / 2..][..cols / 2].iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
    let mut row = vec![0; NumFormat::Nf4.row_bytes(cols)];
    nf4_row(&codes, &absmax[r * cols / 64..][..cols / 64], &mut row).unwrap();
    row
}

#[test]
fn nf4_of_bitsandbytes() {
    dequantised("bnb_nf4", NumFormat::Nf4, |model, name, r, cols| {
        let absmax = f32s(&model[&format!("{name}.weight.absmax")].1);
        nf4(&model[&format!("{name}.weight")].1, &absmax, r, cols)
    });
}

#[test]
fn doubly_quantised_nf4_of_bitsandbytes() {
    dequantised("bnb_nf4_double", NumFormat::Nf4, |model, name, r, cols| {
        let part = |part: &str| &model[&format!("{name}.weight.{part}")].1;
        let state = String::from_utf8_lossy(part("quant_state.bitsandbytes__nf4"));
        let offset = state.split("\"nested_offset\": ").nth(1).and_then(|s| s.split(['}', ',']).next());
        let offset: f32 = offset.unwrap().trim().parse().unwrap();
        let (map, nested) = (f32s(part("nested_quant_map")), f32s(part("nested_absmax")));
        let codes = part("absmax").iter().enumerate();
        let absmax: Vec<f32> =
            codes.map(|(i, &code)| map[usize::from(code)] * nested[i / 256] + offset).collect();
        nf4(&model[&format!("{name}.weight")].1, &absmax, r, cols)
    });
}

/// GPTQ: words of eight codes along the inputs, zero points less one; groups of 128 inputs.
#[test]
fn gptq_of_128() {
    dequantised("gptq_sym_g128", NumFormat::A4G128, |model, name, r, cols| {
        let part = |part: &str| &model[&format!("{name}.{part}")];
        let out = part("scales").0[1];
        let word = |bytes: &[u8], i: usize| u32::from_le_bytes(bytes.as_chunks::<4>().0[i]);
        let code = |c: usize| (word(&part("qweight").1, c / 8 * out + r) >> (c % 8 * 4) & 15) as u8;
        let zero = |g: usize| (word(&part("qzeros").1, g * out / 8 + r / 8) >> (r % 8 * 4) & 15) as u16 + 1;
        let scale = |g: usize| half::f16::from_le_bytes(part("scales").1.as_chunks().0[g * out + r]).to_f32();
        let groups = cols.div_ceil(128);
        let (codes, scales, zeros): (Vec<u8>, Vec<f32>, Vec<u16>) = (
            (0..cols).map(code).collect(),
            (0..groups).map(scale).collect(),
            (0..groups).map(zero).collect(),
        );
        let mut row = vec![0; NumFormat::A4G128.row_bytes(cols)];
        affine_row(NumFormat::A4G128, &codes, &scales, &zeros, &mut row).unwrap();
        row
    });
}
