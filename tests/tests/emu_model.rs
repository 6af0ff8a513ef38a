//! Whole models on the CUDA kernels, thread by thread on the host: the checkpoints of `airllm-model`'s own tests, streamed
//! through a ring, against their reference outputs; and reference fixtures that together use all that a verb can do.

#[path = "../../crates/model/tests/common/mod.rs"]
mod common;
mod on_device;

use airllm_kernels::{Emu, Order};
use common::Placement;
use on_device::tiny;
use std::path::Path;

fn check(dir: &Path, order: Order, accept: [f32; 2]) {
    on_device::check(Emu::new(order), dir, &Placement::default(), accept);
}

#[test]
fn tiny_yarn_with_biases() {
    check(&tiny("tiny_yarn_bias"), Order::Forward, [1e-4; 2]);
}

#[test]
fn tiny_dynamic_tied() {
    check(&tiny("tiny_dynamic_tied"), Order::Random(2), [1e-4; 2]);
}

#[test]
fn caches_of_fewer_bits() {
    on_device::check_caches(|| Some(Emu::default()), &tiny("tiny_yarn_bias"));
    // Values of another width than keys.
    if let Some(shared) = airllm_tests::shared::dir() {
        on_device::check_caches(|| Some(Emu::new(Order::Random(5))), &shared.join("fixtures/deepseek_v3"));
    }
}

goldens! {
    check;
    // Grouped queries, biases.
    qwen2: Order::Forward, [2e-4, 3e-4];
    // A window; experts: rows gathered, scaled and added; norms of heads.
    mistral_swa: Order::Reverse, [2e-4, 3e-4];
    qwen3_moe: Order::Random(3), [2e-4, 3e-4];
    // Pairs of neighbours, a part of each head.
    chatglm: Order::Forward, [2e-4, 3e-4];
    // Positions by ALiBi.
    baichuan_13b: Order::Reverse, [2e-4, 3e-4];
    // Softcaps, GELU.
    gemma2: Order::Forward, [3e-4, 3e-4];
    // Values narrower than keys, columns placed.
    deepseek_v3: Order::Random(4), [2e-4, 4e-4];
}
