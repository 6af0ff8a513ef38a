//! The facade on a CUDA device, or on the stand-in for its driver (feature `standin`): a budget of the GPU's memory is
//! kept, is refused with the least that works, and changes time, never tokens.

use airllm::{AutoModel, Builder, Checkpoint, Device, Error, Generation, Memory};
use airllm_tests::checkpoint::{self, Shape};
use airllm_tests::shared::skip;
use std::path::Path;

const PROMPT: [u32; 9] = [7, 1, 200, 3, 3, 90, 41, 250, 5];

/// Ids, and the hash of all logits.
fn tokens(builder: &Builder, checkpoint: &Checkpoint) -> (Vec<u32>, String, airllm::Forecast) {
    let model = builder.load(checkpoint).unwrap();
    let options = Generation::default().max_new_tokens(5).ignore_eos(true);
    let mut run = model.generate_ids(vec![PROMPT.to_vec()], &options).unwrap();
    run.by_ref().for_each(|piece| drop(piece.unwrap()));
    let physics = run.physics();
    assert!(physics.device.is_some() && physics.copy.is_some(), "{physics}");
    let ids = run.answers().next().unwrap().ids.clone();
    (ids, physics.logits_hash, model.plan().clone())
}

fn least(builder: &Builder, checkpoint: &Checkpoint, of: Memory) -> u64 {
    match builder.load(checkpoint) {
        Err(Error::Budget { memory, need, have, .. }) if memory == of => {
            assert!(need > have);
            need
        }
        other => panic!("{:?}", other.map(|model| model.plan().clone())),
    }
}

fn open(dir: &Path) -> Checkpoint {
    checkpoint::Checkpoint::new(Shape { layers: 4, ..Shape::TINY }).write(dir).unwrap();
    Checkpoint::open(dir, None).unwrap()
}

#[test]
fn budgets_change_no_token() {
    #[cfg(feature = "standin")]
    let standin = airllm_standin::Standin::with("MEMORY=400000000");
    let devices = airllm::devices();
    if let Some(why) = devices.why_no_cuda {
        return skip(&why);
    }
    assert!(devices.cuda.iter().any(|gpu| gpu.why_not.is_none()), "{:?}", devices.cuda);
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open(&dir.path().join("model"));
    let builder = AutoModel::builder().home(dir.path().join("home")).device(Device::Cuda(0)).threads(2);
    let builder = builder.context(64).batch_tokens(4).host_layers(Some(0));

    // All of the model in the GPU's memory.
    let (ids, hash, roomy) = tokens(&builder, &checkpoint);
    assert_eq!(
        (roomy.device.device.as_str(), roomy.plan.uploaded, roomy.plan.device_slots),
        ("cuda:0", 0, 0)
    );
    assert!(roomy.device.why_not_gpu.is_none() && roomy.hardware.gpu.is_some());

    // As little as works, and somewhat more: layers are uploaded from RAM, then from disk.
    let overhead = roomy.device.overhead;
    let vram = least(&builder.clone().vram(overhead + (4 << 20)), &checkpoint, Memory::Vram);
    let ram = least(&builder.clone().ram(1), &checkpoint, Memory::Ram);
    for (vram, ram) in
        [(vram, u64::MAX), (vram + 200_000, u64::MAX), (vram, ram), (vram + 200_000, ram + 50_000)]
    {
        // A real driver takes a little more or less each time.
        let vram = vram + if cfg!(feature = "standin") { 0 } else { 1 << 20 };
        #[cfg(feature = "standin")]
        standin.reset();
        let mut builder = builder.clone().vram(vram);
        if ram < u64::MAX {
            builder = builder.ram(ram);
        }
        let (other_ids, other_hash, forecast) = tokens(&builder, &checkpoint);
        let plan = &forecast.plan;
        assert!(plan.uploaded > 0 && plan.vram <= vram && plan.ram <= ram, "{forecast:?}");
        assert_eq!((other_ids, other_hash), (ids.clone(), hash.clone()), "{vram} and {ram}: {plan:?}");
        #[cfg(feature = "standin")]
        assert!(standin.peak() <= vram, "{} of {vram}", standin.peak());
    }

    // Layers that the processor computes round differently, and are as right.
    let logits = |builder: &Builder| builder.load(&checkpoint).unwrap().forward(&PROMPT).unwrap().values;
    let beside = builder.clone().vram(vram + 200_000).host_layers(Some(2));
    assert_eq!(beside.plan(&checkpoint).unwrap().plan.on_host.iter().filter(|&&on_host| on_host).count(), 2);
    let (gpu, with_cpu) = (logits(&builder), logits(&beside));
    let cpu = logits(&builder.clone().device(Device::Cpu));
    for (other, name) in [(&with_cpu, "beside"), (&cpu, "alone")] {
        let error = gpu.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 2e-3, "{name}: {error}");
    }
}
