//! What is refused, by name and number.

use super::*;

fn refused(quantisation: Value, tensors: Vec<Given>, rows: usize, cols: usize, words: &[&str]) {
    let made = Made::new(quantisation.clone(), tensors);
    let message = match made.plan(&matrix("m.weight", rows, cols), Bits::Source) {
        Err(error) => error.to_string(),
        Ok(plan) => panic!("{quantisation} was taken as {}", plan.to),
    };
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[test]
fn methods_and_variants() {
    let plain = || vec![("m.weight", Dtype::F16, vec![2, 2], f16s(&[1.0; 4]))];
    for (json, words) in [
        (json!({ "quant_method": "aqlm" }), ["quant_method", "\"aqlm\""]),
        (json!({ "bits": 4 }), ["quant_method", "nothing"]),
        (json!({ "quant_method": "gptq", "bits": 3, "group_size": 128 }), ["bits", "3"]),
        (json!({ "quant_method": "gptq", "bits": 4, "group_size": 16 }), ["group_size", "16"]),
        (
            json!({ "quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "marlin" }),
            ["checkpoint_format", "marlin"],
        ),
        (
            json!({ "quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv" }),
            ["version", "gemv"],
        ),
        (json!({ "quant_method": "awq", "bits": 8, "group_size": 64 }), ["bits", "8"]),
        (json!({ "quant_method": "fp8", "weight_block_size": [128] }), ["weight_block_size", "[128]"]),
        (
            json!({ "quant_method": "compressed-tensors", "format": "pack-quantized" }),
            ["format", "pack-quantized"],
        ),
        (json!("gptq"), ["quantization_config", "an object"]),
    ] {
        refused(json, plain(), 2, 2, &[words[0], words[1], "config.json"]);
    }
}

fn gptq() -> Value {
    json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 })
}

/// The tensors of a GPTQ module of 8 x 64.
fn module() -> Vec<Given> {
    vec![
        ("m.qweight", Dtype::I32, vec![8, 8], words(&[0; 64])),
        ("m.qzeros", Dtype::I32, vec![2, 1], words(&[0; 2])),
        ("m.scales", Dtype::F16, vec![2, 8], f16s(&[0.5; 16])),
        ("m.g_idx", Dtype::I32, vec![64], words(&std::array::from_fn::<u32, 64, _>(|i| i as u32 / 32))),
    ]
}

/// The module with one tensor replaced, or left out.
fn with(name: &str, other: Option<Given>) -> Vec<Given> {
    let mut given = module();
    given.retain(|tensor| tensor.0 != name);
    given.extend(other);
    given
}

#[test]
fn gptq_tensors() {
    refused(Value::Null, module(), 8, 64, &["m.qweight", "quantization_config"]);
    for missing in ["m.qzeros", "m.scales"] {
        refused(gptq(), with(missing, None), 8, 64, &["m.qweight", missing, "missing"]);
    }
    refused(gptq(), module(), 16, 64, &["m.qweight", "[8, 8]", "[8, 16]"]);
    refused(gptq(), module(), 8, 72, &["m.qweight", "72", "multiple of 8, columns of 32"]);
    let other = ("m.qzeros", Dtype::I32, vec![1, 1], words(&[0]));
    refused(gptq(), with("m.qzeros", Some(other)), 8, 64, &["m.qzeros", "[1, 1]", "[2, 1]"]);
    let other = ("m.scales", Dtype::U8, vec![2, 8], vec![0; 16]);
    refused(gptq(), with("m.scales", Some(other)), 8, 64, &["m.scales", "U8", "F16"]);
    let other = ("m.g_idx", Dtype::I32, vec![64], words(&[2; 64]));
    refused(gptq(), with("m.g_idx", Some(other)), 8, 64, &["m.g_idx", "column 0", "group 2", "2"]);
    let other = ("m.g_idx", Dtype::I32, vec![32], words(&[0; 32]));
    refused(gptq(), with("m.g_idx", Some(other)), 8, 64, &["m.g_idx", "[32]", "[64]"]);
}

#[test]
fn float_and_bitsandbytes_tensors() {
    let codes = || ("m.weight", Dtype::F8_E4M3, vec![4, 256], vec![0; 1024]);
    let fp8 = json!({ "quant_method": "fp8" });
    refused(fp8.clone(), vec![codes()], 4, 256, &["m.weight", "m.weight_scale", "missing"]);
    let scale = ("m.weight_scale_inv", Dtype::F32, vec![2, 2], f32s(&[1.0; 4]));
    refused(fp8, vec![codes(), scale], 4, 256, &["weight_scale_inv", "[2, 2]", "[1, 2]"]);
    let scale = ("m.weight_scale_inv", Dtype::F32, vec![1, 4], f32s(&[1.0; 4]));
    let small = json!({ "quant_method": "fp8", "weight_block_size": [64, 64] });
    refused(small, vec![codes(), scale], 4, 256, &["weight_scale_inv", "64 columns", "128"]);

    let bnb = || json!({ "quant_method": "bitsandbytes" });
    let codes = || ("m.weight", Dtype::I8, vec![2, 3], vec![0; 6]);
    refused(bnb(), vec![codes()], 2, 3, &["m.weight", "m.SCB", "missing"]);
    let scale = ("m.SCB", Dtype::F32, vec![3], f32s(&[1.0; 3]));
    refused(bnb(), vec![codes(), scale], 2, 3, &["m.SCB", "[3]", "[2]"]);
    let scale = ("m.SCB", Dtype::F32, vec![2], f32s(&[1.0; 2]));
    let tiled = ("m.weight_format", Dtype::U8, vec![], vec![2]);
    refused(bnb(), vec![codes(), scale, tiled], 2, 3, &["m.weight_format", "tiled"]);

    let state = |json: Value| {
        let text = json.to_string().into_bytes();
        ("m.weight.quant_state.bitsandbytes__nf4", Dtype::U8, vec![text.len()], text)
    };
    let codes = || ("m.weight", Dtype::U8, vec![64, 1], vec![0; 64]);
    let table = || ("m.weight.quant_map", Dtype::F32, vec![16], f32s(&airllm_quant::NF4));
    let good = || state(json!({ "blocksize": 64, "shape": [2, 64] }));
    refused(bnb(), vec![codes(), good()], 2, 64, &["m.weight", "absmax", "missing"]);
    let absmax = ("m.weight.absmax", Dtype::F32, vec![3], f32s(&[1.0; 3]));
    refused(bnb(), vec![codes(), good(), table(), absmax], 2, 64, &["absmax", "[3]", "[2]"]);
    let absmax = || ("m.weight.absmax", Dtype::F32, vec![2], f32s(&[1.0; 2]));
    let other = state(json!({ "blocksize": 64, "shape": [64, 2] }));
    refused(bnb(), vec![codes(), other, table(), absmax()], 2, 64, &["[64, 2]", "[2, 64]"]);
    let other = state(json!({ "blocksize": 0, "shape": [2, 64] }));
    refused(bnb(), vec![codes(), other, table(), absmax()], 2, 64, &["blocksize", "0"]);
    let few = ("m.weight", Dtype::U8, vec![63, 1], vec![0; 63]);
    refused(bnb(), vec![few, good(), table(), absmax()], 2, 64, &["63 bytes", "64"]);
}

#[test]
fn plain_tensors() {
    let given = || vec![("m.weight", Dtype::I64, vec![2, 2], vec![0; 32])];
    refused(Value::Null, given(), 2, 2, &["m.weight", "I64", "F32, F16 or BF16"]);
    refused(Value::Null, given(), 2, 3, &["m.weight", "[2, 2]", "[2, 3]"]);
    refused(
        Value::Null,
        vec![("n", Dtype::U8, vec![1], vec![0])],
        2,
        3,
        &["m.weight", "missing", "1 tensors"],
    );
}
