//! Forecasts of the demo model on machines that are made up.

use super::*;
use crate::Checkpoint;
use airllm_stream::plan::{Gpu, Lane};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn demo() -> (Config, Catalog) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo-model/model");
    let checkpoint = Checkpoint::open(&dir, None).unwrap();
    (checkpoint.config().clone(), checkpoint.catalog(None).unwrap())
}

fn machine(gpu: bool) -> Hardware {
    let gpu = gpu.then_some(Gpu { upload: 2e10, memory: 2e12 });
    Hardware { disk: 2e9, memory: 4e10, gpu }
}

/// What a user wants of a GPU whose driver takes 300 MiB, or of the processor.
fn want(gpu: bool, ram: u64, vram: Option<u64>) -> Want {
    let (device, name) = if gpu { ("cuda:0", "GPU") } else { ("cpu", "avx2") };
    let overhead = if gpu { 300 * MIB } else { 0 };
    Want {
        products: Arc::from([]),
        request: Request { ram: Some(ram), vram, ..Request::default() },
        cache_tokens: 256,
        cache_may_shrink: false,
        kv: KvFormat::F32,
        batch_tokens: Some(32),
        sequences: 1,
        pass_tokens: None,
        company: None,
        free: None,
        windows: None,
        additions: Arc::from([]),
        making: 0,
        device: DeviceReport { device: device.into(), name: name.into(), why_not_gpu: None, overhead },
    }
}

#[test]
fn what_a_pass_needs_is_where_it_is_computed() {
    let (config, catalog) = demo();
    let on_cpu = forecast(&config, &catalog, machine(false), &want(false, 200 * MIB, None)).unwrap();
    let vram = Some(400 * MIB);
    let on_gpu = forecast(&config, &catalog, machine(true), &want(true, 200 * MIB, vram)).unwrap();
    assert_eq!((on_cpu.device_fixed, on_cpu.plan.vram, on_cpu.vram_budget), (0, 0, None));
    let pass = (kv_bytes(&config, KvFormat::F32, 256) + activation_bytes(&config, 32)) as u64;
    let rows = on_cpu.fixed + PAGE_LOCKED - pass;
    assert_eq!(on_gpu.fixed, rows, "the host has neither cache nor activations");
    let row = catalog.find("embed", "embed").and_then(|id| catalog.get(id)).unwrap().row_bytes() as u64;
    assert_eq!(on_gpu.device_fixed, pass + 2 * 32 * row + scratch(&config, 32) + DEVICE_OVERHEAD + 300 * MIB);
    // All of so small a model is in the GPU's memory, and nothing is copied in a pass.
    let plan = &on_gpu.plan;
    assert_eq!((plan.uploaded, plan.streamed, plan.bottleneck), (0, 0, Lane::Device));
    assert_eq!(on_gpu.vram_budget, vram);
    assert!(plan.vram <= 400 * MIB && plan.vram > 300 * MIB, "{plan:?}");
    // What is got of the GPU's memory at once is what the plan takes, in pages, and no more than there is.
    assert_eq!(on_gpu.device_bytes(), (plan.vram - 300 * MIB).next_multiple_of(2 * MIB));
    assert_eq!((on_gpu.beside(), on_cpu.device_bytes()), (0, 0));
}

#[test]
fn refusals_name_the_budget_and_the_least_that_works() {
    let (config, catalog) = demo();
    let planned = |ram, vram| forecast(&config, &catalog, machine(true), &want(true, ram, Some(vram)));
    let error = planned(200 * MIB, 100 * MIB).unwrap_err();
    let text = error.to_string();
    let Error::Budget { memory: Memory::Vram, need, have, fixed, .. } = error else { panic!("{error}") };
    assert_eq!(have, 100 * MIB);
    assert!(need > fixed && fixed > 300 * MIB, "{text}");
    assert!(text.starts_with("the GPU memory budget of 105 MB is too small"), "{text}");
    assert!(text.contains("for the driver, activations and the key/value cache of 256 tokens"), "{text}");
    let least = planned(200 * MIB, need).unwrap();
    assert_eq!(least.plan.vram, need);
    assert!(planned(200 * MIB, need - 1).is_err());

    let error = planned(MIB, 400 * MIB).unwrap_err();
    let text = error.to_string();
    let Error::Budget { memory: Memory::Ram, need, .. } = error else { panic!("{error}") };
    assert!(text.starts_with("the memory budget of 1.05 MB is too small"), "{text}");
    assert!(text.contains("for logits and copies to the GPU"), "{text}");
    assert!(planned(need, 400 * MIB).is_ok() && planned(need - 1, 400 * MIB).is_err());
}

#[test]
fn layers_and_nothing_else_are_computed_beside() {
    let (config, catalog) = demo();
    // As little of the GPU's memory as works, and no wide bus: all layers are on the processor.
    let mut want = want(true, 200 * MIB, Some(0));
    let mut hardware = machine(true);
    hardware.gpu = Some(Gpu { upload: 1e9, memory: 2e12 });
    let Err(Error::Budget { need, .. }) = forecast(&config, &catalog, hardware, &want) else { panic!() };
    want.request.vram = Some(need);
    let forecast = forecast(&config, &catalog, hardware, &want).unwrap();
    let on_host = forecast.units.iter().zip(&forecast.plan.on_host).filter(|(_, on_host)| **on_host);
    let names: Vec<&str> = on_host.map(|(unit, _)| &*unit.name).collect();
    let layers: Vec<String> = (0..config.layers).map(|layer| format!("layer.{layer}")).collect();
    assert_eq!(names, layers);
    assert_eq!(forecast.plan.uploaded, forecast.plan.bytes_per_pass - forecast.beside());
}

#[test]
fn a_cache_of_fewer_bits_leaves_room_for_more_tokens() {
    let (config, catalog) = demo();
    let planned = |kv, ram, shrink| {
        let want = Want { kv, cache_tokens: 4096, cache_may_shrink: shrink, ..want(false, ram, None) };
        forecast(&config, &catalog, machine(false), &want)
    };
    let plenty = 4 << 30;
    let fixed = |kv| planned(kv, plenty, false).unwrap();
    let all = fixed(KvFormat::F32);
    for kv in KvFormat::ALL {
        let forecast = fixed(kv);
        assert_eq!((forecast.kv, forecast.kv_bytes), (kv, kv_bytes(&config, kv, 4096) as u64));
        // The cache alone makes the difference.
        assert_eq!(forecast.fixed - forecast.kv_bytes, all.fixed - all.kv_bytes, "{kv}");
        assert_eq!(serde_json::to_value(&forecast).unwrap()["kv"], kv.name());
    }
    assert_eq!(fixed(KvFormat::F16).kv_bytes, all.kv_bytes / 2);
    // A budget of which a quarter is 1024 tokens in f32.
    let tight = 4 * kv_bytes(&config, KvFormat::F32, 1024) as u64;
    let context = |kv| planned(kv, tight, true).unwrap().context;
    assert_eq!((context(KvFormat::F32), context(KvFormat::F16)), (1024, 2048));
    let q8 = kv_bytes(&config, KvFormat::Q8, 4096) as u64;
    assert_eq!(context(KvFormat::Q8), if q8 <= tight / 4 { 4096 } else { 2048 });
}

/// What a user wants who has so many prompts of 100 tokens, each to be continued by 100.
fn company(prompts: usize, ram: u64) -> Want {
    let sizes = vec![(100, 100); prompts];
    let company = Some(Company::new(&sizes, 4096, None));
    Want { company, batch_tokens: None, ..want(false, ram, None) }
}

#[test]
fn prompts_get_the_company_that_ends_them_first() {
    let (config, catalog) = demo();
    let planned = |want: &Want| forecast(&config, &catalog, machine(false), want);
    let of = |prompts, ram| planned(&company(prompts, ram)).unwrap();
    let least = match planned(&company(64, 1)) {
        Err(Error::Budget { need, context: 200, .. }) => need,
        other => panic!("{other:?}"),
    };
    // Expected seconds for all of them, as the plan has it: the more memory, the fewer.
    let seconds = |forecast: &Forecast| {
        let company = Company::new(&[(100, 100); 64], 4096, None);
        company.passes(forecast.sequences, forecast.batch_tokens) * forecast.plan.seconds_per_token
    };
    let plans: Vec<Forecast> = (0..40).map(|step| of(64, least + step * MIB)).collect();
    for pair in plans.windows(2) {
        assert!(
            seconds(&pair[1]) <= seconds(&pair[0]) * 1.000_001,
            "{} and {}",
            pair[0].plan.ram,
            pair[1].plan.ram
        );
    }
    for forecast in &plans {
        assert!(forecast.plan.ram <= forecast.budget.unwrap());
        assert_eq!(forecast.context, 200 * forecast.sequences);
        assert!(forecast.sequences == 1 || forecast.kv_bytes <= forecast.budget.unwrap() / 2);
    }
    assert_eq!(plans[0].sequences, 1);
    assert!(plans.iter().any(|forecast| forecast.sequences > 1 && forecast.plan.streamed > 0));
    let plenty = of(64, 4 << 30);
    assert_eq!((plenty.sequences, plenty.plan.streamed), (64, 0));
    // Where nothing flows there is no reason for passes longer than these.
    assert!(plenty.batch_tokens <= BATCH_TOKENS && plenty.batch_tokens >= 64, "{}", plenty.batch_tokens);
    // The largest of different prompts always fit beside each other, and an upper limit is one.
    let sizes = [(10, 5), (300, 1000), (20, 30)];
    let two = Want {
        company: Some(Company::new(&sizes, 800, Some(2))),
        batch_tokens: None,
        ..want(false, 4 << 30, None)
    };
    let two = planned(&two).unwrap();
    assert_eq!((two.sequences, two.context, two.batch_tokens), (2, 800 + 50, 320));
    let fixed = Want { batch_tokens: Some(7), ..company(64, 4 << 30) };
    assert_eq!(planned(&fixed).unwrap().batch_tokens, 7);
}
