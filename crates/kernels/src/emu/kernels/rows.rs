//! Norms, the largest of a row, routing, adapters.

use super::{ORDERS, bits, error, launch, normal};
use crate::abi;
use crate::emu::Order;

#[test]
fn the_residual_and_its_norm_in_one() {
    for (rows, dim) in [(1, 1), (3, 257), (2, 1024)] {
        let (x, h, weight) = (normal(rows * dim, 1), normal(rows * dim, 2), normal(dim, 3));
        let sums: Vec<f32> = x.iter().zip(&h).map(|(x, h)| x + h).collect();
        let mut apart = vec![0f32; rows * dim];
        let (rows64, dim64) = (rows as u64, dim as u64);
        let norm = abi::Norm {
            x: sums.as_ptr(),
            weight: weight.as_ptr(),
            y: apart.as_mut_ptr(),
            rows: rows64,
            dim: dim64,
            eps: 1e-5,
            unused: 0,
        };
        // SAFETY: all operands hold `rows` rows of `dim` numbers, the weight one.
        unsafe { launch(Order::Forward, "rms_norm", &norm, [rows, 1], abi::NORM_THREADS, 0) };
        for order in ORDERS {
            let (mut into, mut y) = (x.clone(), vec![0f32; rows * dim]);
            let params = abi::NormAdd {
                x: into.as_mut_ptr(),
                h: h.as_ptr(),
                weight: weight.as_ptr(),
                y: y.as_mut_ptr(),
                rows: rows64,
                dim: dim64,
                eps: 1e-5,
                unused: 0,
            };
            // SAFETY: as above.
            unsafe { launch(order, "rms_norm_add", &params, [rows, 1], abi::NORM_THREADS, 0) };
            assert_eq!((bits(&into), bits(&y)), (bits(&sums), bits(&apart)), "{rows} x {dim}, {order:?}");
        }
    }
}

#[test]
fn layer_norm_is_right() {
    for (rows, dim) in [(1, 2), (3, 257), (2, 1024)] {
        for biased in [false, true] {
            // A mean that is large beside what differs from it.
            let x: Vec<f32> = normal(rows * dim, 1).iter().map(|x| x + 100.0).collect();
            let (weight, bias) = (normal(dim, 2), normal(dim, 3));
            let mut expected = Vec::new();
            for x in x.chunks(dim) {
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / dim as f64;
                let square = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / dim as f64;
                for (i, &x) in x.iter().enumerate() {
                    let normal = (f64::from(x) - mean) / (square + 1e-5).sqrt() * f64::from(weight[i]);
                    expected.push(normal + if biased { f64::from(bias[i]) } else { 0.0 });
                }
            }
            let mut first = None;
            for order in ORDERS {
                // In place.
                let mut y = x.clone();
                let params = abi::LayerNorm {
                    x: y.as_ptr(),
                    weight: weight.as_ptr(),
                    bias: if biased { bias.as_ptr() } else { std::ptr::null() },
                    y: y.as_mut_ptr(),
                    rows: rows as u64,
                    dim: dim as u64,
                    eps: 1e-5,
                    unused: 0,
                };
                // SAFETY: `y` holds `rows` rows of `dim` numbers, weight and bias one.
                unsafe { launch(order, "layer_norm", &params, [rows, 1], abi::NORM_THREADS, 0) };
                // What is left of a number that was 100 has two digits less.
                let error = error(&expected, &y);
                assert!(error <= 1e-9, "{rows} x {dim}, {order:?}: {error:e}");
                assert_eq!(first.get_or_insert(bits(&y)), &bits(&y));
            }
        }
    }
}

/// The best of a row by sorting.
fn sorted(x: &[f32], k: usize) -> Vec<u32> {
    let key = |i: &u32| if x[*i as usize].is_nan() { f32::NEG_INFINITY } else { x[*i as usize] };
    let mut order: Vec<u32> = (0..x.len() as u32).collect();
    order.sort_by(|a, b| key(b).partial_cmp(&key(a)).unwrap().then(a.cmp(b)));
    order.truncate(k);
    order
}

fn pick(
    kernel: &str,
    x: &[f32],
    rows: usize,
    cols: usize,
    k: usize,
    order: Order,
) -> (Vec<u32>, Vec<f32>, Vec<u32>) {
    let (mut indices, mut values, mut strange) = (vec![9999; rows * k], vec![0f32; rows * k], vec![9; rows]);
    let params = abi::Pick {
        x: x.as_ptr(),
        indices: indices.as_mut_ptr(),
        values: values.as_mut_ptr(),
        strange: strange.as_mut_ptr(),
        rows: rows as u64,
        cols: cols as u64,
        stride: (x.len() / rows) as u64,
        k: k as u64,
    };
    // SAFETY: `x` holds the rows, the others `k` numbers for each, and one.
    unsafe { launch(order, kernel, &params, [rows, 1], abi::PICK_THREADS, 0) };
    (indices, values, strange)
}

#[test]
fn the_largest_are_picked_in_order() {
    let drawn = normal(3 * 3001, 8);
    let mut strange = normal(600, 9);
    (strange[17], strange[400], strange[401]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let zeros: Vec<f32> = (0..500).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect();
    // All of the best in one thread's columns, so that far more than the bound asks for reach it.
    let crowded: Vec<f32> = (0..300_000).map(|i| if i % 256 < 9 { i as f32 } else { -1.0 }).collect();
    let cases: [(&[f32], usize, usize); 7] = [
        (&drawn, 3, 3000),
        (&drawn[..1], 1, 1),
        (&drawn[..70], 1, 70),
        (&strange, 1, 600),
        (&zeros, 1, 500),
        (&[f32::NAN; 65], 1, 65),
        (&crowded, 1, 300_000),
    ];
    for (x, rows, cols) in cases {
        let each: Vec<&[f32]> = x.chunks(x.len() / rows).map(|row| &row[..cols]).collect();
        for k in [1, 5, abi::PICK_MOST] {
            let k = k.min(cols);
            let expected: Vec<u32> = each.iter().flat_map(|row| sorted(row, k)).collect();
            let values: Vec<f32> =
                expected.iter().enumerate().map(|(i, &at)| each[i / k][at as usize]).collect();
            let nan: Vec<u32> = each.iter().map(|row| u32::from(row.iter().any(|x| x.is_nan()))).collect();
            for order in ORDERS {
                let mut kernels = vec!["topk"];
                if k == 1 {
                    kernels.push("argmax");
                }
                for kernel in kernels {
                    let found = pick(kernel, x, rows, cols, k, order);
                    assert_eq!(
                        (&found.0, bits(&found.1), &found.2),
                        (&expected, bits(&values), &nan),
                        "{kernel} {cols} {k}"
                    );
                }
            }
        }
    }
}

/// What the forward does on the host (`route` in `airllm-model`), written anew.
fn routed(scores: &[f32], bias: &[f32], case: &Routing) -> Vec<(u32, f32)> {
    let &Routing { experts, top_k, groups, kept, sigmoid, normalise, biased } = case;
    let shares: Vec<f32> = if sigmoid {
        scores.iter().map(|s| 1.0 / (1.0 + (-s).exp())).collect()
    } else {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f32 = shares.iter().sum();
        shares.iter().map(|s| s / total).collect()
    };
    let mut ranks: Vec<f32> =
        shares.iter().enumerate().map(|(i, s)| if biased { s + bias[i] } else { *s }).collect();
    if kept < groups {
        let size = experts / groups;
        let two = |group: &[f32]| sorted(group, 2).iter().map(|&i| group[i as usize]).sum::<f32>();
        let sums: Vec<f32> = ranks.chunks(size).map(two).collect();
        let open = sorted(&sums, kept);
        for (i, rank) in ranks.iter_mut().enumerate() {
            if !open.contains(&((i / size) as u32)) {
                *rank = f32::NEG_INFINITY;
            }
        }
    }
    let chosen = sorted(&ranks, top_k);
    let total: f32 = chosen.iter().map(|&i| shares[i as usize]).sum();
    let total = if sigmoid { total + 1e-20 } else { total };
    let factor = if normalise { 2.5 / total } else { 2.5 };
    chosen.iter().map(|&i| (i, shares[i as usize] * factor)).collect()
}

#[derive(Debug)]
struct Routing {
    experts: usize,
    top_k: usize,
    groups: usize,
    kept: usize,
    sigmoid: bool,
    normalise: bool,
    biased: bool,
}

#[test]
fn experts_are_chosen_as_on_the_host() {
    let n = 7;
    for (experts, top_k, groups, kept) in
        [(1, 1, 1, 1), (8, 2, 1, 1), (60, 4, 1, 1), (64, 6, 8, 3), (256, 8, 8, 4), (9, 9, 3, 1)]
    {
        for mask in 0..8 {
            let [sigmoid, normalise, biased] = [1, 2, 4].map(|bit| mask & bit != 0);
            let case = Routing { experts, top_k, groups, kept, sigmoid, normalise, biased };
            let mut scores = normal(n * experts, 6);
            // Ties, and a number that is none.
            scores[..experts].fill(1.0);
            scores[experts] = f32::NAN;
            let bias = if biased { normal(experts, 7) } else { Vec::new() };
            for order in ORDERS {
                let (mut chosen, mut weights) = (vec![9999u32; n * top_k], vec![0f32; n * top_k]);
                let params = abi::Route {
                    scores: scores.as_ptr(),
                    bias: if biased { bias.as_ptr() } else { std::ptr::null() },
                    chosen: chosen.as_mut_ptr(),
                    weights: weights.as_mut_ptr(),
                    n: n as u64,
                    experts: experts as u64,
                    top_k: top_k as u64,
                    groups: groups as u64,
                    kept: kept as u64,
                    scale: 2.5,
                    sigmoid: u32::from(sigmoid),
                    normalise: u32::from(normalise),
                    unused: 0,
                };
                // SAFETY: scores for `n` tokens, room for the experts of each.
                unsafe { launch(order, "route", &params, [n, 1], abi::ROUTE_THREADS, 16 * experts) };
                for (token, scores) in scores.chunks(experts).enumerate() {
                    let expected = routed(scores, &bias, &case);
                    for (i, (expert, weight)) in expected.into_iter().enumerate() {
                        let at = token * top_k + i;
                        assert_eq!(chosen[at], expert, "{case:?}, token {token}, {order:?}");
                        let close = (weights[at] - weight).abs() <= 1e-6 * weight.abs();
                        assert!(
                            close || weight.is_nan() && weights[at].is_nan(),
                            "{case:?}, token {token}: {} {weight}",
                            weights[at]
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn adapters_are_added() {
    for (rows, rank, n) in [(1, 1, 1), (9, 8, 3), (20, 40, 8), (17, 16, 20)] {
        let (b, x, y) = (normal(rows * rank, 1), normal(n * rank, 2), normal(n * (rows + 3), 3));
        let add = |x: &[f32], y: &[f32], order| {
            let (count, mut y) = (x.len() / rank, y.to_vec());
            let params = abi::Lora {
                w: b.as_ptr().cast(),
                row_bytes: 4 * rank as u64,
                rows: rows as u64,
                cols: rank as u64,
                x: x.as_ptr(),
                n: count as u64,
                y: y.as_mut_ptr(),
                stride: rows as u64 + 3,
                first: 2,
                factor: 0.5,
                unused: 0,
            };
            let blocks = [rows.div_ceil(abi::LORA_ROWS), count.div_ceil(abi::LORA_TOKENS)];
            // SAFETY: `b` holds `rows` rows, `x` and `y` `count`.
            unsafe { launch(order, "lora_up_f32", &params, blocks, abi::LORA_THREADS, 0) };
            y
        };
        let found = add(&x, &y, Order::Forward);
        let mut expected: Vec<f64> = y.iter().map(|&y| f64::from(y)).collect();
        for (t, r) in (0..n).flat_map(|t| (0..rows).map(move |r| (t, r))) {
            let product =
                (0..rank).map(|c| f64::from(b[r * rank + c]) * f64::from(x[t * rank + c])).sum::<f64>();
            expected[t * (rows + 3) + 2 + r] += 0.5 * product;
        }
        assert!(error(&expected, &found) <= 1e-12);
        for order in ORDERS {
            assert_eq!(bits(&add(&x, &y, order)), bits(&found));
        }
        let last = add(&x[(n - 1) * rank..], &y[(n - 1) * (rows + 3)..], Order::Forward);
        assert_eq!(bits(&last), bits(&found[(n - 1) * (rows + 3)..]));
    }
}
