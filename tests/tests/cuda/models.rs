//! Whole models against their reference outputs: streamed, resident and computed on the host in turn.

use crate::common::Placement;
use crate::goldens;
use crate::on_device::{self, tiny};
use airllm_tests::gpu;
use std::path::Path;

/// Where the units live: one pattern for all of them, round and round.
#[derive(Clone, Copy)]
enum Where {
    /// All of them pass through the ring of the device, from a ring of the host.
    Streamed,
    /// Every third lives on the device, every third is pinned and copied in every pass, the others are read.
    Mixed,
    /// Half are computed on the host.
    Beside,
    /// All of them live on the device.
    Resident,
}

impl Where {
    fn placement(self) -> Placement {
        let every = |which: [bool; 3]| which.iter().copied().cycle().take(1000).collect::<Vec<bool>>();
        let (on, off) = (true, false);
        let (pinned, resident, on_host) = match self {
            Where::Streamed => ([off; 3], [off; 3], [off; 3]),
            Where::Mixed => ([off, on, off], [on, off, off], [off; 3]),
            Where::Beside => ([on, on, off], [off; 3], [on, off, off]),
            Where::Resident => ([off; 3], [on; 3], [off; 3]),
        };
        Placement {
            pinned: every(pinned),
            resident: every(resident),
            on_host: every(on_host),
            device_slots: 2,
        }
    }
}

fn check(dir: &Path, place: Where, accept: [f32; 2]) {
    if let Some(device) = gpu::device(u64::MAX, 1) {
        on_device::check(device, dir, &place.placement(), accept);
    }
}

#[test]
fn tiny_yarn_with_biases() {
    for place in [Where::Streamed, Where::Mixed, Where::Resident] {
        check(&tiny("tiny_yarn_bias"), place, [1e-4; 2]);
    }
}

#[test]
fn tiny_dynamic_tied() {
    check(&tiny("tiny_dynamic_tied"), Where::Mixed, [1e-4; 2]);
}

goldens! {
    check;
    // Grouped queries, biases.
    qwen2: Where::Mixed, [2e-4, 3e-4];
    // A window; experts: rows gathered, scaled and added; norms of heads.
    mistral_swa: Where::Streamed, [2e-4, 3e-4];
    qwen3_moe: Where::Mixed, [2e-4, 3e-4];
    // Pairs of neighbours, a part of each head.
    chatglm: Where::Resident, [2e-4, 3e-4];
    // Positions by ALiBi.
    baichuan_13b: Where::Mixed, [2e-4, 3e-4];
    // Softcaps, GELU.
    gemma2: Where::Streamed, [3e-4, 3e-4];
    // Values narrower than keys, columns placed.
    deepseek_v3: Where::Mixed, [2e-4, 4e-4];
}

#[test]
fn caches_of_fewer_bits() {
    let device = || gpu::device(u64::MAX, 1);
    on_device::check_caches(device, &tiny("tiny_yarn_bias"));
    // Values of another width than keys.
    if let Some(shared) = airllm_tests::shared::dir() {
        on_device::check_caches(device, &shared.join("fixtures/deepseek_v3"));
    }
}

/// A unit on the host has another order of sums, but the same one in every pass.
#[test]
fn layers_on_the_host_beside_the_device() {
    check(&tiny("tiny_yarn_bias"), Where::Beside, [1e-4; 2]);
}
