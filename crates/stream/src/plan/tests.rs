//! The plan's promises, over random models and budgets.

use super::*;
use crate::arena::ALIGNMENT;
use crate::cut::smallest_slot;
use proptest::prelude::*;

mod gpu;

const HARDWARE: Hardware = Hardware { disk: 1e9, memory: 2e10, gpu: None };
const WITH_GPU: Hardware = Hardware { gpu: Some(Gpu { upload: 1e10, memory: 5e11 }), ..HARDWARE };

fn need(units: &[u64], table: u64, fixed: u64, longest_row: usize) -> Need {
    let unit = |name: String, bytes, per_pass| UnitNeed {
        name,
        bytes,
        per_pass,
        on_demand: None,
        beside: false,
        token_ns: 0,
        prompt_ns: 0,
    };
    let mut all = vec![unit("embed".into(), table, 0)];
    let layers = units.iter().enumerate();
    all.extend(layers.map(|(index, &bytes)| unit(format!("layer.{index}"), bytes, bytes)));
    Need { units: all, fixed, device_fixed: 0, longest_row, longest_demand_row: 0, prompt_tokens: 1 }
}

/// Adds `count` experts of `bytes` for each of `layers`, of which a token uses `used`.
fn with_experts(mut need: Need, layers: usize, (used, count): (u32, u32), bytes: u64, row: usize) -> Need {
    let share = Share { used, of: count };
    for index in 0..layers * count as usize {
        need.units.push(UnitNeed {
            name: format!("expert.{index}"),
            bytes,
            per_pass: share.bytes(bytes),
            on_demand: Some(OnDemand { share, runs: 1 + index % 2, longest_run: bytes - bytes / 3 }),
            beside: false,
            token_ns: 0,
            prompt_ns: 0,
        });
        need.longest_demand_row = row;
    }
    need
}

fn request(ram: u64) -> Request {
    Request { ram: Some(ram), ..Request::default() }
}

proptest! {
    #[test]
    fn budgets_hold_and_more_memory_is_never_slower(
        units in prop::collection::vec(10_000u64..200_000_000, 1..40),
        table in 0u64..100_000_000,
        fixed in 0u64..50_000_000,
        row in 1usize..60_000,
        budgets in prop::collection::vec(0u64..3_000_000_000, 2..6),
        slots in prop::option::of(1usize..9),
        slot_bytes in prop::option::of(4096usize..20_000_000),
        routed in prop::option::of((1u32..9, 1u32..20, 10_000u64..40_000_000, 1usize..9000)),
    ) {
        let mut need = need(&units, table, fixed, row);
        if let Some((used, count, bytes, row)) = routed {
            need = with_experts(need, units.len(), (used.min(count), count), bytes, row);
        }
        let mut budgets = budgets;
        budgets.sort_unstable();
        let mut last = f64::INFINITY;
        let mut worked = false;
        for ram in budgets {
            let request = Request { ram: Some(ram), slots, slot_bytes, ..Request::default() };
            match plan(&need, &HARDWARE, &request) {
                Ok(plan) => {
                    worked = true;
                    prop_assert!(plan.ram <= ram, "{} of {ram}", plan.ram);
                    prop_assert!(plan.seconds_per_token <= last);
                    last = plan.seconds_per_token;
                    prop_assert!(plan.slot_bytes >= smallest_slot(row));
                    let experts = need.units.iter().zip(&plan.pinned).filter(|(u, _)| u.on_demand.is_some());
                    if experts.clone().any(|(_, pin)| !pin) {
                        prop_assert!(plan.experts.slots >= 2, "{:?}", plan.experts);
                        prop_assert!(plan.experts.slot_bytes >= smallest_slot(need.longest_demand_row));
                    }
                    prop_assert_eq!(plan.expert_hit_rate.is_some(), routed.is_some());
                    prop_assert!(plan.expert_hit_rate.is_none_or(|rate| (0.0..=1.0).contains(&rate)));
                    prop_assert_eq!(&plan, &super::plan(&need, &HARDWARE, &request).unwrap());
                }
                Err(refusal) => {
                    prop_assert!(!worked, "a larger budget was refused");
                    prop_assert_eq!(refusal.have, ram);
                    let least = Request { ram: Some(refusal.need), ..request };
                    prop_assert!(super::plan(&need, &HARDWARE, &least).is_ok());
                    let less = Request { ram: Some(refusal.need - 1), ..request };
                    prop_assert!(super::plan(&need, &HARDWARE, &less).is_err());
                }
            }
        }
    }
}

#[test]
fn everything_is_pinned_where_it_fits() {
    let need = need(&[1000, 1000], 500, 10, 100);
    let plan = plan(&need, &HARDWARE, &Request::default()).unwrap();
    assert_eq!((plan.pinned, plan.slots, plan.streamed), (vec![true; 3], 0, 0));
    assert_eq!(plan.bottleneck, Lane::Memory);
}

#[test]
fn half_the_memory_pins_every_other_layer() {
    let layer = 100_000_000;
    let need = need(&[layer; 16], 50_000_000, 1_000_000, 16384);
    let plan = plan(&need, &HARDWARE, &request(8 * 100_500_000 + 70_000_000)).unwrap();
    let layers: Vec<bool> = plan.pinned[1..].to_vec();
    assert_eq!(layers.iter().filter(|&&pin| pin).count(), 8);
    assert!(layers.chunks(2).all(|pair| pair[0] != pair[1]), "{layers:?}");
    assert_eq!((plan.streamed, plan.bottleneck), (8 * layer, Lane::Disk));
    assert!((plan.seconds_per_token - 0.8).abs() < 1e-9);
}

#[test]
fn layers_come_before_experts_and_experts_before_tables() {
    let (layer, expert) = (50_000_000, 3_000_000);
    let need = with_experts(need(&[layer; 8], 400_000_000, 1_000_000, 16384), 8, (4, 32), expert, 4096);
    let layers = 8 * 50_100_000;
    let some = plan(&need, &HARDWARE, &request(layers / 2 + 30_000_000)).unwrap();
    assert_eq!(some.pinned.iter().filter(|&&pin| pin).count(), 3);
    assert!(some.slots > 0 && some.expert_hit_rate.unwrap() < 0.1, "{some:?}");

    // All layers, and room for half of the experts' slots: no ring, and half of the reads.
    let slots = 8 * 32 * 3 / 2;
    let slot = 2_000_000u64 + 2 * ALIGNMENT as u64;
    let half = plan(&need, &HARDWARE, &request(layers + 1_000_000 + (slots / 2 + 4) * slot)).unwrap();
    assert_eq!((half.slots, half.pinned[0], half.pinned[1..9].iter().all(|&pin| pin)), (0, false, true));
    assert!((half.expert_hit_rate.unwrap() - 0.5).abs() < 0.02, "{half:?}");
    let per_token = 8 * 4 * expert;
    assert!((half.streamed as f64 / per_token as f64 - 0.5).abs() < 0.02, "{half:?}");
    assert_eq!(half.bytes_per_pass, 8 * layer + per_token);
    assert_eq!(half.expert_cache_bytes, half.experts.slots as u64 * half.experts.slot_bytes as u64);

    let all = plan(&need, &HARDWARE, &Request::default()).unwrap();
    assert_eq!((all.streamed, all.experts.slots, all.expert_hit_rate), (0, 0, Some(1.0)));
    assert!(all.pinned.iter().all(|&pin| pin));
}

#[test]
fn a_share_is_a_fraction_of_any_number_of_bytes() {
    assert_eq!(Share { used: 2, of: 8 }.bytes(1000), 250);
    assert_eq!(Share { used: 3, of: 7 }.bytes(u64::MAX), 7_905_747_460_161_236_406);
    assert_eq!((Share { used: 9, of: 3 }.bytes(100), Share { used: 1, of: 0 }.bytes(100)), (100, 100));
    assert_eq!(Share::WHOLE.bytes(77), 77);
}

/// Layers of which each takes `token` nanoseconds for a token and a hundred times as much for a prompt's pass.
fn measured(layers: usize, bytes: u64, token: u64) -> Need {
    let mut need = need(&vec![bytes; layers], 0, 1_000_000, 16384);
    for unit in &mut need.units[1..] {
        (unit.token_ns, unit.prompt_ns) = (token, 100 * token);
    }
    Need { prompt_tokens: 512, ..need }
}

#[test]
fn products_count_where_they_take_longer_than_reading() {
    // 5 ms to read a layer from memory, 100 ms from disk.
    let bytes = 100_000_000;
    for (token, seconds, bottleneck) in [
        (4_000_000, 8.0 * 5e-3, Lane::Memory),
        (5_500_000, 8.0 * 5.5e-3, Lane::Memory),
        (20_000_000, 8.0 * 20e-3, Lane::Processor),
    ] {
        let plan = plan(&measured(8, bytes, token), &HARDWARE, &Request::default()).unwrap();
        assert!((plan.seconds_per_token - seconds).abs() < 1e-9, "{plan:?}");
        assert_eq!(plan.bottleneck, bottleneck);
        let prompt = plan.prompt;
        assert_eq!((prompt.tokens, prompt.bottleneck), (512, Lane::Processor));
        assert!((prompt.seconds - 100.0 * 8.0 * token as f64 * 1e-9).abs() < 1e-9, "{prompt:?}");
    }
    // Half of the layers on disk: that is what takes longest for a token, and the products of a prompt hide it.
    let half =
        plan(&measured(8, bytes, 5_500_000), &HARDWARE, &request(4 * 100_500_000 + 70_000_000)).unwrap();
    assert_eq!((half.bottleneck, half.prompt.bottleneck), (Lane::Disk, Lane::Processor));
    assert!(
        (half.seconds_per_token - 0.4).abs() < 1e-9 && (half.prompt.seconds - 4.4).abs() < 1e-9,
        "{half:?}"
    );
}

#[test]
fn a_prompt_goes_through_nearly_all_experts() {
    let mut need = with_experts(need(&[1_000_000; 2], 0, 1000, 4096), 2, (2, 8), 1_000_000, 4096);
    need.prompt_tokens = 512;
    let disk = |tokens| {
        let need = Need { prompt_tokens: tokens, ..need.clone() };
        let plan = plan(&need, &HARDWARE, &request(9_000_000)).unwrap();
        assert!(plan.pinned[1] && plan.pinned[2], "{plan:?}");
        (plan.prompt.lanes[0].seconds * 1e9, plan.expert_hit_rate.unwrap())
    };
    let ((one, hits), (many, _)) = (disk(1), disk(512));
    assert!((one / (4e6 * (1.0 - hits)) - 1.0).abs() < 1e-6, "{one} {hits}");
    assert!((many / (16e6 * (1.0 - hits)) - 1.0).abs() < 1e-6, "{many} {hits}");
}

#[test]
fn a_processor_is_told_of_what_a_pass_uses() {
    use crate::{Catalog, Tensor, TensorId, Unit};
    use airllm_format::NumFormat;
    let tensor = |rows| Tensor {
        name: format!("t{rows}"),
        file: 0,
        offset: 0,
        format: NumFormat::F16,
        rows,
        cols: 8,
        checksum: None,
    };
    let unit = |name: &str, rows: [usize; 2], on_demand| Unit {
        name: name.into(),
        tensors: rows.map(tensor).to_vec(),
        on_demand,
    };
    let units =
        vec![unit("layer", [3, 5], false), unit("expert", [8, 8], true), unit("table", [100, 1], false)];
    // The second tensor is used twice and multiplied as one that is used once; the table is only gathered from.
    let pass = [(0, 0), (0, 1), (0, 1)].map(|(unit, tensor)| TensorId { unit, tensor }).to_vec();
    let catalog = Catalog { units, pass };
    let need = Need::of(&catalog, 0).with_shares(|_| Share { used: 1, of: 4 }).with_processor(
        &catalog,
        64,
        |_, tensor| (tensor.rows as f64 * 10.0, tensor.rows as f64 * 300.0),
    );
    let times: Vec<_> = need.units.iter().map(|unit| (unit.token_ns, unit.prompt_ns)).collect();
    assert_eq!(times, [(80, 2400), (40, 1200), (0, 0)]);
    assert_eq!(need.prompt_tokens, 64);
}
