//! Checkpoints made up here, with weights that are widened by hand.

use super::*;

#[test]
fn spans_folds_and_places() {
    let (rows, cols) = (10, 6);
    let mut noise = noise(1);
    let values: Vec<f32> = (0..rows * cols).map(|_| noise() as f32 / 1e6 - 8.0).collect();
    let values: Vec<f32> = values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
    let bias: Vec<f32> = (0..rows).map(|i| i as f32 / 4.0).collect();
    let given = vec![
        ("w.weight", Dtype::F16, vec![rows, cols], f16s(&values)),
        ("w.bias", Dtype::F16, vec![rows], f16s(&bias)),
    ];
    let made = Made::new(Value::Null, given);
    let at = |row: usize, col: usize| values[row * cols + col];

    // The rows 2 to 4 are read where they lie.
    let mut decl = matrix("w.weight", rows, cols);
    decl.spans = one(2..5);
    decl.shape = vec![3, cols];
    let plan = made.plan(&decl, Bits::Source).unwrap();
    let start = made.repo().tensor("w.weight").unwrap().info.start;
    assert_eq!(plan.direct(), Some((0, start + 2 * 2 * cols as u64)));
    made.check(&decl, NumFormat::F16, |row, col| at(row + 2, col));

    // Of several places, they are made.
    decl.spans = vec![7..9, 0..1, 3..6];
    decl.shape = vec![6, cols];
    assert_eq!(made.plan(&decl, Bits::Source).unwrap().direct(), None);
    let place = [7, 8, 0, 3, 4, 5];
    made.check(&decl, NumFormat::F16, |row, col| at(place[row], col));

    // What is folded is f32 where no fewer bits are asked for.
    decl.fold = Fold::NormaliseRows;
    made.check(&decl, NumFormat::F32, |row, col| {
        let length = (0..cols).map(|c| f64::from(at(place[row], c)).powi(2)).sum::<f64>().sqrt() as f32;
        at(place[row], col) / length
    });
    assert_eq!(made.plan(&decl, Bits::Q8).unwrap().to, NumFormat::Q8);

    let mut vector = TensorDecl { hf: "w.bias".into(), shape: vec![5], floor: NumFormat::F32, ..decl };
    vector.spans = vec![8..10, 1..4];
    vector.fold = Fold::AddOne;
    made.check(&vector, NumFormat::F32, |_, col| bias[[8, 9, 1, 2, 3][col]] + 1.0);
    vector.spans = one(0..11);
    vector.shape = vec![11];
    let error = made.plan(&vector, Bits::Source).unwrap_err().to_string();
    assert!(error.contains("0..11") && error.contains("10 rows"), "{error}");
}

/// A GPTQ or AWQ module `m`: its tensors, and its weights.
struct Integers {
    bits: u32,
    rows: usize,
    cols: usize,
    group: usize,
    /// The group of a column.
    order: Vec<u32>,
    codes: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<f32>,
}

impl Integers {
    fn new(bits: u32, rows: usize, cols: usize, group: usize) -> Integers {
        let mut noise = noise(rows as u32 * 31 + cols as u32);
        let groups = cols.div_ceil(group);
        let scales = (0..groups * rows).map(|_| half::f16::from_f32(noise() as f32 / 1e9).to_f32()).collect();
        Integers {
            bits,
            rows,
            cols,
            group,
            order: (0..cols).map(|col| (col / group) as u32).collect(),
            codes: (0..rows * cols).map(|_| noise() % (1 << bits)).collect(),
            zeros: (0..groups * rows).map(|_| noise() % (1 << bits)).collect(),
            scales,
        }
    }

    fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Zero points are what is stored and `offset`.
    fn weight(&self, row: usize, col: usize, offset: u32) -> f32 {
        let at = self.order[col] as usize * self.rows + row;
        let code = self.codes[row * self.cols + col] as f32;
        self.scales[at] * (code - (self.zeros[at] + offset) as f32)
    }

    fn scales(&self) -> Given {
        ("m.scales", Dtype::F16, vec![self.groups(), self.rows], f16s(&self.scales))
    }

    fn gptq(&self) -> Vec<Given> {
        let pack = 32 / self.bits as usize;
        let word = |codes: &dyn Fn(usize) -> u32| {
            (0..pack).fold(0u32, |word, i| word | codes(i) << (i as u32 * self.bits))
        };
        let mut codes = Vec::new();
        for k in 0..self.cols / pack {
            for row in 0..self.rows {
                codes.push(word(&|i| self.codes[row * self.cols + k * pack + i]));
            }
        }
        let zeros: Vec<u32> =
            (0..self.groups() * self.rows / pack).map(|at| word(&|i| self.zeros[at * pack + i])).collect();
        vec![
            ("m.qweight", Dtype::I32, vec![self.cols / pack, self.rows], words(&codes)),
            ("m.qzeros", Dtype::I32, vec![self.groups(), self.rows / pack], words(&zeros)),
            ("m.g_idx", Dtype::I32, vec![self.cols], words(&self.order)),
            self.scales(),
        ]
    }

    fn awq(&self) -> Vec<Given> {
        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let word = |eight: &dyn Fn(usize) -> u32| {
            ORDER.iter().enumerate().fold(0u32, |word, (i, &output)| word | eight(output) << (4 * i))
        };
        let mut codes = Vec::new();
        for col in 0..self.cols {
            for j in 0..self.rows / 8 {
                codes.push(word(&|output| self.codes[(j * 8 + output) * self.cols + col]));
            }
        }
        let zeros: Vec<u32> = (0..self.groups() * self.rows / 8)
            .map(|at| word(&|output| self.zeros[at * 8 + output]))
            .collect();
        vec![
            ("m.qweight", Dtype::I32, vec![self.cols, self.rows / 8], words(&codes)),
            ("m.qzeros", Dtype::I32, vec![self.groups(), self.rows / 8], words(&zeros)),
            self.scales(),
        ]
    }
}

fn gptq(bits: u32, group: i64, version: &str) -> Value {
    json!({ "quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version })
}

#[test]
fn gptq_of_every_group() {
    use NumFormat::*;
    // Rows and columns, group, format; the last matrix takes several tiles and steps.
    for (bits, rows, cols, group, format) in [
        (4, 24, 96, 32, A4),
        (4, 16, 192, 96, A4),
        (4, 40, 320, 64, A4G64),
        (4, 8, 256, 128, A4G128),
        (4, 8, 416, 128, A4G128),
        (8, 12, 128, 32, A8),
        (8, 20, 160, 160, A8),
        (4, 640, 4096, 128, A4G128),
        (4, 8200, 64, 64, A4G64),
    ] {
        let integers = Integers::new(bits, rows, cols, group);
        let size = if group == cols { -1 } else { group as i64 };
        for (version, offset) in [("gptq", 1), ("gptq_v2", 0)] {
            let made = Made::new(gptq(bits, size, version), integers.gptq());
            let decl = matrix("m.weight", rows, cols);
            made.check(&decl, format, |row, col| integers.weight(row, col, offset));
            if rows > 100 {
                break;
            }
        }
    }
}

#[test]
fn gptq_in_act_order() {
    for bits in [4, 8] {
        act_order(bits);
    }
}

fn act_order(bits: u32) {
    let mut integers = Integers::new(bits, 16, 128, 32);
    let mut noise = noise(5);
    for col in (1..128).rev() {
        integers.order.swap(col, noise() as usize % (col + 1));
    }
    let made = Made::new(gptq(bits, 32, "gptq"), integers.gptq());
    made.check(&matrix("m.weight", 16, 128), NumFormat::F32, |row, col| integers.weight(row, col, 1));
    // Where columns may be sorted, groups are neighbours again, and their order says where each came from.
    let sorted = made.plan_in_order(&matrix("m.weight", 16, 128), Bits::Source, true).unwrap();
    assert_eq!(sorted.to, if bits == 4 { NumFormat::A4 } else { NumFormat::A8 });
    let order = TensorDecl {
        is_order: true,
        hf_rows: 128,
        spans: one(0..128),
        shape: vec![128],
        floor: NumFormat::F32,
        ..matrix("m.weight", 16, 128)
    };
    let order = made.plan_in_order(&order, Bits::Q4, true).unwrap();
    let order: Vec<usize> =
        made.weights(&order).remove(0).into_iter().map(|bits| f32::from_bits(bits) as usize).collect();
    assert!(order.iter().enumerate().all(|(i, &col)| integers.order[col] as usize == i / 32));
    for (row, weights) in made.weights(&sorted).into_iter().enumerate() {
        for (&col, found) in order.iter().zip(weights) {
            assert_eq!(found, integers.weight(row, col, 1).to_bits(), "row {row}, column {col}");
        }
    }
    // Wider than asked for, it is rounded.
    assert_eq!(made.plan(&matrix("m.weight", 16, 128), Bits::Q4).unwrap().to, NumFormat::Q4);
    // In spans, as where three projections are one.
    let mut part = matrix("m.weight", 16, 128);
    part.spans = vec![13..16, 1..4];
    part.shape = vec![6, 128];
    let place = [13, 14, 15, 1, 2, 3];
    made.check(&part, NumFormat::F32, |row, col| integers.weight(place[row], col, 1));
}

#[test]
fn adapters_are_folded_into_sorted_columns() {
    let mut integers = Integers::new(4, 16, 128, 32);
    integers.order.reverse();
    let made = Made::new(gptq(4, 32, "gptq_v2"), integers.gptq());
    let dir = tempfile::tempdir().unwrap();
    let config = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 1.0 });
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let a: Vec<f32> = (0..128).map(|col| col as f32 / 64.0).collect();
    let b: Vec<f32> = (0..16).map(|row| row as f32 - 7.0).collect();
    let halves = [("m.lora_A.weight", vec![1, 128], f32s(&a)), ("m.lora_B.weight", vec![16, 1], f32s(&b))];
    let views = halves
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.path().join("adapter_model.safetensors")).unwrap();
    let adapters = [Adapter::open(dir.path()).unwrap()];

    let (repo, decl) = (made.repo(), matrix("m.weight", 16, 128));
    let unit =
        UnitDecl { name: "layer.0".into(), shard: "layer.0".into(), on_demand: false, tensors: Vec::new() };
    let scheme = Scheme::read(&repo).unwrap();
    let plan = tensor(&repo, &scheme, &unit, &decl, (Bits::Source, &adapters), true).unwrap();
    assert_eq!(plan.to, NumFormat::F16);
    let columns = plan.stored.columns().unwrap();
    assert_eq!(columns[..3], [96, 97, 98]);
    for (row, weights) in made.weights(&plan).into_iter().enumerate() {
        for (&col, found) in columns.iter().zip(weights) {
            let sum = integers.weight(row, col as usize, 0) + b[row] * a[col as usize];
            assert_eq!(found, half::f16::from_f32(sum).to_f32().to_bits(), "row {row}, column {col}");
        }
    }
}

#[test]
fn awq_of_every_group() {
    use NumFormat::*;
    for (rows, cols, group, format) in
        [(24, 96, 32, A4), (40, 320, 64, A4G64), (8, 256, 128, A4G128), (640, 4096, 128, A4G128)]
    {
        let integers = Integers::new(4, rows, cols, group);
        let scheme = json!({ "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm" });
        let made = Made::new(scheme, integers.awq());
        made.check(&matrix("m.weight", rows, cols), format, |row, col| integers.weight(row, col, 0));
    }
}

/// A number of e4m3, from its definition.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => fraction / 8.0 * 2f32.powi(-6),
        e => (1.0 + fraction / 8.0) * 2f32.powi(e - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn fp8_by_tensor_row_and_block() {
    let (rows, cols) = (300, 416);
    let mut noise = noise(9);
    // All codes but the two that are no numbers.
    let codes: Vec<u8> =
        (0..rows * cols).map(|_| noise() as u8).map(|c| if c & 0x7f == 0x7f { 3 } else { c }).collect();
    let mut scale = |n: usize| -> Vec<f32> { (0..n).map(|_| noise() as f32 / 1e9 + 1e-4).collect() };
    let weights = ("m.weight", Dtype::F8_E4M3, vec![rows, cols], codes.clone());
    let fp8 = json!({ "quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3" });
    let compressed = json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
        "group_0": { "weights": { "num_bits": 8, "type": "float", "strategy": "channel" } }
    } });
    let decl = matrix("m.weight", rows, cols);
    let code = |row: usize, col: usize| e4m3(codes[row * cols + col]);

    let blocks = scale(3 * 4);
    let made = Made::new(
        fp8.clone(),
        vec![weights.clone(), ("m.weight_scale_inv", Dtype::F32, vec![3, 4], f32s(&blocks))],
    );
    made.check(&decl, NumFormat::F8, |row, col| blocks[row / 128 * 4 + col / 128] * code(row, col));

    let by_row = scale(rows);
    for shape in [vec![rows, 1], vec![rows]] {
        let made = Made::new(
            compressed.clone(),
            vec![weights.clone(), ("m.weight_scale", Dtype::F32, shape, f32s(&by_row))],
        );
        made.check(&decl, NumFormat::F8, |row, col| by_row[row] * code(row, col));
    }
    let one = half::f16::from_f32(0.0123).to_f32();
    for shape in [vec![], vec![1]] {
        let made = Made::new(
            fp8.clone(),
            vec![weights.clone(), ("m.weight_scale", Dtype::F16, shape, f16s(&[one]))],
        );
        made.check(&decl, NumFormat::F8, |row, col| one * code(row, col));
    }
    // Blocks of another size, as the configuration says.
    let other = scale(5 * 2);
    let made = Made::new(
        json!({ "quant_method": "fp8", "weight_block_size": [64, 256] }),
        vec![weights, ("m.weight_scale_inv", Dtype::F32, vec![5, 2], f32s(&other))],
    );
    made.check(&decl, NumFormat::F8, |row, col| other[row / 64 * 2 + col / 256] * code(row, col));
}

/// A bitsandbytes matrix `m.weight` with these values of codes: its tensors, and its weights.
fn four_bit(kind: &str, values: [f32; 16], rows: usize, cols: usize, block: usize) -> (Vec<Given>, Vec<f32>) {
    let mut noise = noise(3);
    let codes: Vec<u8> = (0..rows * cols).map(|_| noise() as u8 & 15).collect();
    let absmax: Vec<f32> = (0..(rows * cols).div_ceil(block)).map(|_| noise() as f32 / 1e8).collect();
    let bytes =
        codes.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)).collect::<Vec<_>>();
    let state = json!({ "quant_type": kind, "blocksize": block, "dtype": "float16", "shape": [rows, cols] });
    let state = state.to_string().into_bytes();
    let name = match kind {
        "nf4" => "m.weight.quant_state.bitsandbytes__nf4",
        _ => "m.weight.quant_state.bitsandbytes__fp4",
    };
    let weights = codes.iter().enumerate().map(|(i, &c)| values[c as usize] * absmax[i / block]).collect();
    let given = vec![
        ("m.weight", Dtype::U8, vec![bytes.len(), 1], bytes),
        ("m.weight.absmax", Dtype::F32, vec![absmax.len()], f32s(&absmax)),
        ("m.weight.quant_map", Dtype::F32, vec![16], f32s(&values)),
        (name, Dtype::U8, vec![state.len()], state),
    ];
    (given, weights)
}

#[test]
fn four_bits_of_bitsandbytes() {
    let nf4 = airllm_quant::NF4;
    let fp4 = std::array::from_fn(|i| i as f32 / 16.0 - 0.5);
    for (kind, values, rows, cols, block, format) in [
        ("nf4", nf4, 12, 192, 64, NumFormat::Nf4),
        ("nf4", nf4, 6, 192, 128, NumFormat::Nf4),
        // Blocks run on from row to row.
        ("nf4", nf4, 8, 80, 64, NumFormat::F32),
        ("nf4", nf4, 5, 33, 64, NumFormat::F32),
        ("nf4", nf4, 4, 64, 32, NumFormat::F32),
        ("fp4", fp4, 4, 64, 64, NumFormat::F32),
        // Several tiles.
        ("nf4", nf4, 3000, 448, 64, NumFormat::Nf4),
    ] {
        let (given, weights) = four_bit(kind, values, rows, cols, block);
        let made = Made::new(json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), given);
        made.check(&matrix("m.weight", rows, cols), format, |row, col| weights[row * cols + col]);
    }
}
