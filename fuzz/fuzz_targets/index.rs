//! `model.safetensors.index.json`. What is accepted names only files inside of the folder.
#![no_main]

use airllm_format::Index;
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|input: &[u8]| {
    let Ok(index) = Index::parse(input, Path::new("x")) else { return };
    assert!(!index.files().is_empty());
    for file in index.files() {
        let parts: Vec<Component> = Path::new(file).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{file:?} leads elsewhere");
    }
    for (tensor, file) in index.weight_map() {
        assert_eq!(index.file_of(tensor), Some(file));
        assert!(index.files().iter().any(|f| f == file));
    }
});
