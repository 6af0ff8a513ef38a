//! The plan's promises, over random models and budgets.

use super::*;
use crate::arena::ALIGNMENT;
use crate::cut::smallest_slot;
use proptest::prelude::*;

mod gpu;

const HARDWARE: Hardware = Hardware { disk: 1e9, memory: 2e10, gpu: None };
const WITH_GPU: Hardware = Hardware { gpu: Some(Gpu { upload: 1e10, memory: 5e11 }), ..HARDWARE };

fn need(units: &[u64], table: u64, fixed: u64, longest_row: usize) -> Need {
    let unit =
        |name: String, bytes, per_pass| UnitNeed { name, bytes, per_pass, on_demand: None, beside: false };
    let mut all = vec![unit("embed".into(), table, 0)];
    let layers = units.iter().enumerate();
    all.extend(layers.map(|(index, &bytes)| unit(format!("layer.{index}"), bytes, bytes)));
    Need { units: all, fixed, device_fixed: 0, longest_row, longest_demand_row: 0 }
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
