//! The plan's promises with a GPU.

use super::*;

/// A need whose layers the processor may compute; the last unit in the pass is the head.
fn on_gpu(units: &[u64], table: u64, (fixed, device_fixed): (u64, u64), row: usize) -> Need {
    let last = units.len();
    need(units, table, fixed, row).with_device(device_fixed, |unit| (1..last).contains(&unit))
}

fn budgets(ram: u64, vram: u64) -> Request {
    Request { ram: Some(ram), vram: Some(vram), ..Request::default() }
}

fn planned(need: &Need, request: &Request) -> Result<Plan, Refusal> {
    plan(need, &WITH_GPU, request)
}

fn seconds(plan: &Plan, lane: Lane) -> f64 {
    plan.lanes.iter().find(|it| it.lane == lane).map_or(f64::NAN, |it| it.seconds)
}

fn count(marks: &[bool]) -> usize {
    marks.iter().filter(|&&mark| mark).count()
}

/// What holds of every plan.
fn check(need: &Need, request: &Request, plan: &Plan) -> Result<(), TestCaseError> {
    prop_assert!(request.ram.is_none_or(|ram| plan.ram <= ram), "{} of {:?}", plan.ram, request.ram);
    prop_assert!(request.vram.is_none_or(|vram| plan.vram <= vram), "{} of {:?}", plan.vram, request.vram);
    let mut uploaded = 0;
    for (index, unit) in need.units.iter().enumerate() {
        let (pinned, resident, on_host) = (plan.pinned[index], plan.resident[index], plan.on_host[index]);
        prop_assert!(!(pinned && resident), "{} lives twice", unit.name);
        prop_assert!(!on_host || (pinned && unit.beside), "{} on the processor", unit.name);
        prop_assert!(!resident || unit.is_in_pass(), "{} in the GPU's memory", unit.name);
        uploaded += if resident || on_host { 0 } else { unit.per_pass };
    }
    prop_assert_eq!(plan.uploaded, uploaded);
    prop_assert!(plan.slots > 0 && plan.slot_bytes >= smallest_slot(need.longest_row));
    let all = need.units.iter().zip(&plan.resident).all(|(unit, here)| *here || !unit.is_in_pass());
    prop_assert!(all || plan.device_slots >= 2, "{plan:?}");
    prop_assert!(plan.lanes.iter().all(|lane| lane.seconds <= plan.seconds_per_token));
    Ok(())
}

proptest! {
    #[test]
    fn both_budgets_hold_and_more_of_either_is_never_slower(
        units in prop::collection::vec(10_000u64..200_000_000, 1..40),
        table in 0u64..100_000_000,
        fixed in (0u64..50_000_000, 0u64..50_000_000),
        row in 1usize..60_000,
        rams in prop::collection::vec(0u64..3_000_000_000, 2..5),
        vrams in prop::collection::vec(0u64..3_000_000_000, 2..5),
        slots in prop::option::of(1usize..9),
        slot_bytes in prop::option::of(4096usize..20_000_000),
        routed in prop::option::of((1u32..9, 1u32..20, 10_000u64..40_000_000, 1usize..9000)),
        beside in any::<bool>(),
    ) {
        let mut need = on_gpu(&units, table, fixed, row);
        if let Some((used, count, bytes, row)) = routed {
            need = with_experts(need, units.len(), (used.min(count), count), bytes, row);
        }
        // With experts the plan that reads the least may have fewer layers in memory for the processor to compute.
        let host_layers = (routed.is_some() || !beside).then_some(0);
        let (mut rams, mut vrams) = (rams, vrams);
        rams.sort_unstable();
        vrams.sort_unstable();
        // Seconds by RAM, for the VRAM before.
        let mut before = vec![f64::INFINITY; rams.len()];
        for &vram in &vrams {
            let mut last = f64::INFINITY;
            for (&ram, before) in rams.iter().zip(&mut before) {
                let request = Request { slots, slot_bytes, host_layers, ..budgets(ram, vram) };
                match planned(&need, &request) {
                    Ok(plan) => {
                        check(&need, &request, &plan)?;
                        prop_assert!(plan.seconds_per_token <= last * (1.0 + 1e-12), "{} after {last}", plan.seconds_per_token);
                        prop_assert!(plan.seconds_per_token <= *before * (1.0 + 1e-12), "{} after {before}", plan.seconds_per_token);
                        last = plan.seconds_per_token;
                        *before = last;
                        prop_assert_eq!(&plan, &planned(&need, &request).unwrap());
                    }
                    Err(refusal) => {
                        prop_assert!(last.is_infinite() && before.is_infinite(), "a larger budget was refused");
                        let with = |bytes: u64| match refusal.memory {
                            Memory::Ram => Request { ram: Some(bytes), ..request },
                            Memory::Vram => Request { vram: Some(bytes), ..request },
                        };
                        let have = match refusal.memory { Memory::Ram => ram, Memory::Vram => vram };
                        prop_assert_eq!(refusal.have, have);
                        prop_assert_eq!(refusal.need, refusal.fixed + refusal.ring);
                        // With what it asks for, only the other memory can be too small.
                        if let Err(other) = planned(&need, &with(refusal.need)) {
                            prop_assert!(other.memory != refusal.memory, "{other}");
                        }
                        let less = planned(&need, &with(refusal.need - 1)).unwrap_err();
                        prop_assert_eq!((less.memory, less.need), (refusal.memory, refusal.need));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_said_of_a_gpu_changes_nothing_without_one(
        units in prop::collection::vec(10_000u64..200_000_000, 1..20),
        ram in 0u64..2_000_000_000,
        vram in prop::option::of(0u64..2_000_000_000),
        host_layers in prop::option::of(0usize..5),
    ) {
        let (plain, with) = (need(&units, 5000, 100, 500), on_gpu(&units, 5000, (100, 1 << 40), 500));
        let other = Request { vram, host_layers, ..request(ram) };
        prop_assert_eq!(plan(&plain, &HARDWARE, &request(ram)), plan(&with, &HARDWARE, &other));
    }

    #[test]
    fn the_layers_that_the_processor_computes_are_the_best_number(
        units in prop::collection::vec(1_000_000u64..200_000_000, 2..24),
        upload in 1e9..6e10,
        memory in 1e9..2e11,
        vram in 100_000_000u64..1_000_000_000,
        ram in 500_000_000u64..3_000_000_000,
    ) {
        let need = on_gpu(&units, 1000, (1000, 1000), 16384);
        let hardware = Hardware { disk: 3e9, memory, gpu: Some(Gpu { upload, memory: 1e12 }) };
        let by_count = |host_layers| {
            let request = Request { host_layers, ..budgets(ram, vram) };
            plan(&need, &hardware, &request).unwrap()
        };
        let (chosen, none) = (by_count(None), by_count(Some(0)));
        for count in 1..units.len() {
            prop_assert!(chosen.seconds_per_token <= by_count(Some(count)).seconds_per_token);
        }
        prop_assert!(chosen.seconds_per_token <= none.seconds_per_token);
        prop_assert_eq!(count(&none.on_host), 0);
        // By more than a tenth, or not at all.
        let lanes = |plan: &Plan| plan.lanes.iter().map(|lane| lane.seconds).fold(0.0, f64::max);
        if count(&chosen.on_host) > 0 {
            prop_assert!(lanes(&chosen) * 1.0999 < none.seconds_per_token);
        }
        prop_assert_eq!((&chosen.pinned, &chosen.resident), (&none.pinned, &none.resident));
    }
}

const LAYER: u64 = 100_000_000;

/// 15 layers and a head of the same size, activations and cache of 1 MB on either side.
fn sixteen() -> Need {
    on_gpu(&[LAYER; 16], 50_000_000, (1_000_000, 1_000_000), 16384)
}

#[test]
fn all_of_it_in_the_memory_of_the_gpu() {
    let plan = planned(&sixteen(), &budgets(500_000_000, 2_000_000_000)).unwrap();
    assert_eq!((count(&plan.resident), plan.device_slots, plan.uploaded, plan.streamed), (16, 0, 0, 0));
    assert_eq!((plan.resident[0], plan.pinned[0]), (false, true), "the table is in RAM");
    assert_eq!(plan.bottleneck, Lane::Device);
    assert!((plan.seconds_per_token - 16.0 * LAYER as f64 / 5e11).abs() < 1e-9);
    assert!(plan.slots > 0, "what lives there comes through the ring");
    assert_eq!(plan.resident_bytes, 16 * LAYER);
}

#[test]
fn half_there_and_the_rest_in_ram_is_bound_by_copies() {
    let need = sixteen();
    let vram = 1_000_000 + (64 << 20) + 8 * (LAYER + LAYER / 100);
    let request = Request { host_layers: Some(0), ..budgets(3_000_000_000, vram) };
    let plan = planned(&need, &request).unwrap();
    assert_eq!((count(&plan.resident), count(&plan.pinned), plan.device_slots), (8, 9, 4));
    assert!(plan.resident[1..].chunks(2).all(|pair| pair[0] != pair[1]), "{:?}", plan.resident);
    assert_eq!((plan.uploaded, plan.streamed, plan.bottleneck), (8 * LAYER, 0, Lane::Copy));
    assert!((plan.seconds_per_token - 0.08).abs() < 1e-9);
    assert_eq!(seconds(&plan, Lane::Copy), plan.seconds_per_token);
    // With no room in RAM the disk is slower than the copies.
    let plan = planned(&need, &budgets(300_000_000, vram)).unwrap();
    assert_eq!(plan.bottleneck, Lane::Disk);
    assert!(plan.streamed >= 6 * LAYER && plan.uploaded == 8 * LAYER, "{plan:?}");
}

#[test]
fn memory_that_is_wider_than_the_bus_computes_beside() {
    let need = sixteen();
    let vram = 1_000_000 + (80 << 20);
    let with = |memory: f64, host_layers| {
        let hardware = Hardware { memory, ..WITH_GPU };
        let request = Request { host_layers, ..budgets(3_000_000_000, vram) };
        plan(&need, &hardware, &request).unwrap()
    };
    // Four times as wide: all layers but the head, which is uploaded.
    let wide = with(4e10, None);
    assert_eq!((count(&wide.on_host), wide.on_host[16], wide.uploaded), (15, false, LAYER));
    assert_eq!(wide.bottleneck, Lane::Processor);
    assert!((seconds(&wide, Lane::Processor) - 0.0375).abs() < 1e-9);
    assert!(wide.seconds_per_token < with(4e10, Some(8)).seconds_per_token);
    // As wide as the bus: it can only take what the ring lets copies run ahead of, which is less than a tenth.
    let even = with(1e10, None);
    assert_eq!((count(&even.on_host), even.bottleneck), (0, Lane::Copy));
    // Half of the layers, spread over the pass.
    let half = with(4e10, Some(8)).on_host;
    assert!(half[1..].chunks(2).all(|pair| pair[0] != pair[1]), "{half:?}");
}

#[test]
fn refusals_name_the_memory_that_is_too_small() {
    let need = sixteen();
    let vram = planned(&need, &budgets(3_000_000_000, 1_000_000)).unwrap_err();
    assert_eq!((vram.memory, vram.have, vram.fixed), (Memory::Vram, 1_000_000, 1_000_000));
    assert!(vram.to_string().starts_with("the GPU memory budget of 1000000 bytes is too small"), "{vram}");
    let ram = planned(&need, &budgets(1_000_000, 3_000_000_000)).unwrap_err();
    assert_eq!((ram.memory, ram.have), (Memory::Ram, 1_000_000));
    assert!(ram.to_string().starts_with("the memory budget of 1000000 bytes is too small"), "{ram}");
}

#[test]
fn experts_stay_in_ram_and_those_of_a_token_are_uploaded() {
    let (layer, expert) = (50_000_000, 3_000_000);
    let need = on_gpu(&[layer; 9], 4000, (1_000_000, 1_000_000), 16384);
    let need = with_experts(need, 8, (4, 32), expert, 4096);
    let plan = planned(&need, &budgets(4_000_000_000, 600_000_000)).unwrap();
    assert_eq!((count(&plan.resident), plan.expert_hit_rate), (9, Some(1.0)));
    assert_eq!((plan.uploaded, plan.streamed, plan.bottleneck), (8 * 4 * expert, 0, Lane::Copy));
    // Two stretches of an expert, each in whole pages with the edges of its neighbours.
    let staging = 2 * (2_000_000 + 2 * ALIGNMENT as u64).next_multiple_of(ALIGNMENT as u64);
    assert_eq!(plan.vram, 1_000_000 + staging + 9 * layer + plan_slack(&need));
}

/// What units take beyond their bytes where stripes are as large as they get.
fn plan_slack(need: &Need) -> u64 {
    let stripes = super::super::ring::Stripes::of(crate::cut::LARGEST_STRIPE, need.longest_row);
    need.units.iter().filter(|unit| unit.is_in_pass()).map(|unit| stripes.bytes(unit) - unit.bytes).sum()
}
