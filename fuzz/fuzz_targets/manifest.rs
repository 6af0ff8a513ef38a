//! `airllm.json`, as a file with its checksum and as the text inside of it. What is accepted holds
//! together: sizes can be added, and it can be written and read again.
#![no_main]

use airllm_format::{Manifest, shard};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let path = Path::new("x");
    let _ = Manifest::parse(input, path);
    let Ok(manifest) = Manifest::parse_body(input, path) else { return };
    for entry in &manifest.shards {
        let mut end = 0;
        for tensor in &entry.tensors {
            let geometry = shard::Geometry::of(tensor.format, &tensor.shape).expect("a countable shape");
            assert_eq!(geometry.rows as u64 * geometry.row_bytes as u64, tensor.bytes);
            assert!(tensor.offset >= end && tensor.offset % 256 == 0);
            end = tensor.offset + tensor.bytes;
            assert!(end <= entry.bytes);
            assert!(shard::parse_checksum(&tensor.checksum).is_some());
        }
    }
    let _ = manifest.bytes();
    let text = manifest.to_bytes(path).expect("what was read can be written");
    assert_eq!(Manifest::parse(&text, path).expect("and read again"), manifest);
});
