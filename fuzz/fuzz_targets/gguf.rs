//! The head of a GGUF file. What is accepted lies inside the file, nothing twice; and what a repository makes
//! of it does, too.
#![no_main]

use airllm_format::Repo;
use airllm_format::gguf::Gguf;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|file: &[u8]| {
    // A head may also be read from a prefix of the file: no length may lead outside of it.
    let _ = Gguf::parse(&file[..file.len() / 2], file.len() as u64, Path::new("x"));
    let Ok(gguf) = Gguf::parse(file, file.len() as u64, Path::new("x")) else { return };
    let mut end = gguf.data_start();
    for tensor in gguf.tensors() {
        assert!(tensor.start >= end);
        end = tensor.start + tensor.bytes;
        assert_eq!(gguf.get(&tensor.name), Some(tensor));
    }
    assert!(gguf.tensors().is_empty() || end <= file.len() as u64);
    let _ = gguf.metadata().to_json("").to_string();

    let path = std::env::temp_dir().join(format!("airllm-fuzz-{}.gguf", std::process::id()));
    if std::fs::write(&path, file).is_err() {
        return;
    }
    if let Ok(repo) = Repo::open(&path) {
        assert!(repo.tensors().all(|tensor| tensor.info.start + tensor.info.bytes <= file.len() as u64));
        assert!(repo.config().is_object());
    }
});
