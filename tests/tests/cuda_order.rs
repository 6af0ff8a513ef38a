//! What holds the two queues of a CUDA device together, on the stand-in for its driver, which runs everything as late, as
//! early or in as odd an order as CUDA allows: whole models give the same bits in each of them, and other ones where waits
//! are taken away. Budgets, failures and the host's waits besides.

#[path = "../../crates/model/tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "only the checkpoints are of use here")]
mod on_device;

use airllm_kernels::{Cuda, CudaSettings, Error, Memory};
use airllm_model::{Config, Want};
use airllm_standin::Standin;
use common::{Placement, Run, Tensors, json};
use on_device::tiny;
use std::path::PathBuf;

const PROMPT: [u32; 7] = [1, 5, 9, 2, 30, 4, 17];

fn model() -> (Config, Tensors) {
    let dir: PathBuf = tiny("tiny_yarn_bias");
    (Config::parse(&json(&dir.join("config.json"))).unwrap(), Tensors::model(&dir))
}

fn open(vram: Option<u64>) -> Cuda {
    // With a thread beside it, as programs open it: what it could compute on the host it must not, unasked.
    Cuda::open(&CudaSettings { ordinal: 0, vram, host_threads: 1 }).unwrap()
}

/// Some units live on the device, some are pinned and copied in every pass, the others are read.
fn mixed() -> Placement {
    let every = |which: [bool; 3]| which.iter().copied().cycle().take(100).collect();
    Placement {
        pinned: every([false, true, false]),
        resident: every([true, false, false]),
        on_host: Vec::new(),
        device_slots: 2,
    }
}

/// Logits of a prompt and of a few tokens behind it.
fn logits() -> Vec<u32> {
    let (config, tensors) = model();
    let mut run = Run::placed(open(None), config, &tensors, &mixed());
    let (ids, steps) = run.greedy(&PROMPT, 4);
    steps.iter().map(|x| x.to_bits()).chain(ids).collect()
}

#[test]
fn late_early_and_at_random_the_bits_are_the_same() {
    let expected = {
        let _standin = Standin::with("MODE=eager");
        logits()
    };
    assert!(expected.iter().all(|&bits| f32::from_bits(bits).is_finite()));
    for switches in
        ["MODE=lazy", "MODE=early", "MODE=random:1", "MODE=random:2 ORDER=reverse", "MODE=random:3"]
    {
        let _standin = Standin::with(switches);
        assert!(logits() == expected, "{switches}");
    }
}

#[test]
fn without_waits_between_the_queues_they_are_not() {
    let expected = {
        let _standin = Standin::with("MODE=lazy");
        logits()
    };
    for switches in ["MODE=lazy IGNORE_WAITS=1", "MODE=early IGNORE_WAITS=1"] {
        let _standin = Standin::with(switches);
        assert!(logits() != expected, "{switches}: no test would notice a wait that is missing");
    }
}

#[test]
fn a_step_waits_for_the_device_once() {
    let standin = Standin::with("MODE=lazy");
    let (config, tensors) = model();
    // All that a step needs lies on the device or is pinned: nothing is read from files.
    let placement = Placement { pinned: vec![true; 100], ..Placement::default() };
    let mut run = Run::placed(open(None), config, &tensors, &placement);
    let mut seq = run.sequence();
    run.run(&mut seq, &PROMPT, PROMPT.len(), Want::Last);
    run.run(&mut seq, &[3], PROMPT.len(), Want::Last);
    let calls = || {
        let waits = [
            "cuEventSynchronize",
            "cuStreamSynchronize",
            "cuCtxSynchronize",
            "cuMemcpyDtoH_v2",
            "cuMemcpyHtoD_v2",
        ];
        waits.iter().map(|call| standin.calls(call)).sum::<u64>()
    };
    let before = (calls(), run.device().host_waits());
    run.run(&mut seq, &[4], PROMPT.len(), Want::Last);
    assert_eq!((calls() - before.0, run.device().host_waits() - before.1), (1, 1));
}

#[test]
fn all_memory_is_within_the_budget_by_the_driver() {
    let context = 3_000_000;
    let standin = Standin::with(&format!("MODE=lazy CONTEXT={context}"));
    let vram = 24 << 20;
    let (config, tensors) = model();
    let mut run = Run::placed(open(Some(vram)), config, &tensors, &mixed());
    run.greedy(&PROMPT, 2);
    assert!(standin.peak() <= vram, "{} of {vram}", standin.peak());
    let memory = run.device().memory().unwrap();
    assert!(memory.peak <= vram && memory.overhead >= context, "{memory:?}");

    // What does not fit is refused, and nothing breaks.
    match run.device().alloc(vram as usize) {
        Err(Error::Budget { bytes, budget, .. }) => assert_eq!((bytes, budget), (vram as usize, vram)),
        other => panic!("{other:?}"),
    }
    run.greedy(&PROMPT, 1);
    assert!(standin.peak() <= vram);
}

#[test]
fn failures_name_the_call_the_kernel_and_the_layer() {
    let (config, tensors) = model();
    for (fail, words) in [
        ("cuLaunchKernel:30", &["layer ", "kernel ", "cuLaunchKernel", "CUDA_ERROR_ILLEGAL_ADDRESS"][..]),
        ("cuMemcpyHtoDAsync_v2:3", &["cuMemcpyHtoDAsync", "CUDA_ERROR_ILLEGAL_ADDRESS"]),
        ("cuEventSynchronize:1", &["cuEventSynchronize", "gemm_mma"]),
    ] {
        let standin = Standin::with("MODE=lazy");
        let mut run = Run::placed(open(None), config.clone(), &tensors, &mixed());
        standin.configure(&format!("MODE=lazy FAIL={fail}"));
        let mut seq = run.sequence();
        let span =
            airllm_model::Span { ids: &PROMPT, seq: &mut seq, rope_len: PROMPT.len(), logits: Want::Last };
        let said = run.model.forward(&mut run.weights, &mut [span], None).unwrap_err().to_string();
        for word in words {
            assert!(said.contains(word), "{fail}: {said}");
        }
    }
}
