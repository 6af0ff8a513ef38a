//! `config.json`, from bytes to the declared tensors. What is accepted has sizes that can be computed with.
#![no_main]

use airllm_model::Config;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let Ok(json) = airllm_format::parse_json(input, Path::new("config.json")) else { return };
    let Ok(config) = Config::parse(&json) else { return };
    assert_eq!(config.heads % config.kv_heads, 0);
    assert!(config.query_dim() > 0 && config.key_dim() > 0 && config.value_width() > 0);
    // Declaring a great many layers or experts is allowed but slow; a few dozen show everything.
    if config.layers > 64 || config.moe.as_ref().is_some_and(|moe| moe.experts > 16) {
        return;
    }
    let units = config.units();
    for tensor in units.iter().flat_map(|unit| &unit.tensors) {
        let numbers = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).expect("countable");
        assert!(numbers > 0);
        assert!(numbers.checked_mul(8).is_some());
        assert_eq!(tensor.spans.iter().map(|span| span.len()).sum::<usize>(), tensor.shape[0]);
    }
    for (unit, tensor) in config.pass() {
        let unit = units.iter().find(|u| u.name == unit).expect("the pass uses declared units");
        assert!(unit.tensors.iter().any(|t| t.name == tensor), "{tensor} is not declared");
    }
    let _ = airllm_model::kv_bytes(&config, airllm_model::KvFormat::Q8, 4096);
});
