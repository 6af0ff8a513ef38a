//! Rotary tables against the reference implementation's.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_model::Config;
use airllm_model::rope::{Rotary, Scaling, Table};
use common::{Tensors, close, data, json, shared};

/// A few units in the last place of a cosine, so the frequencies must be equal to the last bit or nearly.
const ACCEPT: f32 = 1e-6;

fn rotary(name: &str) -> Rotary {
    Config::parse(&json(&data("configs").join(format!("{name}.json")))).unwrap().rotary
}

fn row(rotary: &Rotary, position: usize, len: usize) -> Vec<f32> {
    let mut out = Vec::new();
    Table::new(rotary).push(position, len, &mut out);
    out
}

#[test]
fn single_rows() {
    let cases = json(&data("rope.json"));
    for (name, rows) in cases.as_object().unwrap() {
        let rotary = rotary(name);
        for case in rows.as_array().unwrap() {
            let at = |field: &str| case[field].as_u64().unwrap() as usize;
            let list = |field: &str| case[field].as_array().unwrap().clone();
            let expected: Vec<f32> = [list("cos"), list("sin")]
                .concat()
                .iter()
                .map(|value| value.as_f64().unwrap() as f32)
                .collect();
            let (position, len) = (at("position"), at("len"));
            let what = format!("{name}: position {position} of {len}");
            close(&what, &row(&rotary, position, len), &expected, rotary.dim, ACCEPT);
        }
    }
}

#[test]
fn whole_tables_of_the_reference_set() {
    let mut tables = 0;
    for name in [
        "llama_rope_linear",
        "llama_rope_dynamic",
        "llama_rope_yarn",
        "llama32_gqa_tied",
        "llama_v5_config",
        "qwen1_ntk_logn",
        "chatglm_rope_ratio",
        "phi3_longrope",
    ] {
        let Some(dir) = shared(name) else { return };
        let golden = Tensors::read(&[dir.join("golden.safetensors")]);
        let rotary = rotary(name);
        for prompt in ["p1", "p2"] {
            let [len, half] = golden.shape(&format!("rope.{prompt}.cos")) else { panic!("{name}") };
            let (cos, sin) =
                (golden.f32s(&format!("rope.{prompt}.cos")), golden.f32s(&format!("rope.{prompt}.sin")));
            let expected: Vec<f32> =
                cos.chunks(*half).zip(sin.chunks(*half)).flat_map(|(c, s)| [c, s].concat()).collect();
            let (mut table, mut found) = (Table::new(&rotary), Vec::new());
            (0..*len).for_each(|position| table.push(position, *len, &mut found));
            close(&format!("{name} {prompt}"), &found, &expected, 2 * half, ACCEPT);
            tables += 1;
        }
    }
    assert_eq!(tables, 16);
}

#[test]
fn dynamic_base_grows_with_the_length_alone() {
    let rotary = rotary("llama_rope_dynamic");
    let plain = Rotary { scaling: Scaling::None, ..rotary.clone() };
    assert!(rotary.is_dynamic() && !plain.is_dynamic());
    assert_eq!(rotary.inv_freq(0), plain.inv_freq(0));
    assert_eq!(rotary.inv_freq(48), plain.inv_freq(0));
    let (a, b) = (rotary.inv_freq(49), rotary.inv_freq(500));
    assert_eq!((a[0], b[0]), (1.0, 1.0));
    assert!(b[15] < a[15] && a[15] < plain.inv_freq(0)[15]);
    // One table serves rows of different lengths, in any order.
    let mut table = Table::new(&rotary);
    let mut rows = Vec::new();
    for len in [500, 49, 10, 500] {
        table.push(9, len, &mut rows);
    }
    let single: Vec<f32> = [500, 49, 10, 500].iter().flat_map(|&len| row(&rotary, 9, len)).collect();
    assert_eq!(rows, single);
}

#[test]
fn bands_of_llama3() {
    let rotary = rotary("llama32_gqa_tied");
    let plain = Rotary { scaling: Scaling::None, ..rotary.clone() }.inv_freq(0);
    let scaled = rotary.inv_freq(0);
    let ratio: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
    assert!(ratio.first() == Some(&1.0), "short waves stay");
    assert!((ratio[15] - 8.0).abs() < 1e-5, "long waves are stretched by the factor");
    assert!(ratio.iter().any(|r| *r > 1.01 && *r < 7.9), "those between are blended");
    assert!(ratio.is_sorted());
}

#[test]
fn ends_of_yarn() {
    let scaling = |truncate, beta_slow| Scaling::Yarn {
        factor: 8.0,
        original: 64,
        beta_fast: 4.0,
        beta_slow,
        truncate,
        attention_factor: 1.5,
    };
    let rotary = |truncate, slow| Rotary { theta: 1e4, dim: 32, scaling: scaling(truncate, slow) };
    let plain = Rotary { theta: 1e4, dim: 32, scaling: Scaling::None }.inv_freq(0);
    let ratio =
        |rotary: Rotary| -> Vec<f32> { plain.iter().zip(rotary.inv_freq(0)).map(|(p, s)| p / s).collect() };
    // ln(64 / (4 * 2 pi)) * 32 / (2 ln 1e4) = 1.62 and, for one turn, 4.03: kept up to there, blended, divided.
    let whole = ratio(rotary(true, 1.0));
    assert!((whole[1] - 1.0).abs() < 1e-6 && whole[2] > 1.1, "{whole:?}");
    assert!(whole[4] < 7.9 && (whole[5] - 8.0).abs() < 1e-5, "{whole:?}");
    let exact = ratio(rotary(false, 1.0));
    assert!((exact[1] - 1.0).abs() < 1e-6 && exact[2] < whole[2] && exact[4] > whole[4]);
    // Both ends at one place do not divide by nothing.
    assert!(ratio(rotary(false, 4.0)).iter().all(|r| r.is_finite()));
    // Cosine and sine carry the factor.
    let row = row(&rotary(true, 1.0), 0, 1);
    assert_eq!((row[0], row[16]), (1.5, 0.0));
}
