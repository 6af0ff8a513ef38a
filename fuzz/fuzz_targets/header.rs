//! The safetensors header. What is accepted covers the file exactly, and the reference crate accepts it
//! too.
//!
//! An input that starts with a zero byte is `0 ‖ u16 length of the data ‖ JSON`, so that the fuzzer need not
//! keep the length field right; any other is a file as it is.
#![no_main]

use airllm_format::safetensors::Header;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let made;
    let file = match input {
        [0, low, high, json @ ..] => {
            let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(json);
            bytes.resize(bytes.len() + usize::from(u16::from_le_bytes([*low, *high])), 0);
            made = bytes;
            &made[..]
        }
        whole => whole,
    };
    // A header may also be read from a prefix of the file: no length may lead outside of it.
    let _ = Header::parse(&file[..file.len() / 2], file.len() as u64, Path::new("x"));
    let Ok(header) = Header::parse(file, file.len() as u64, Path::new("x")) else { return };
    let mut end = header.data_start();
    for tensor in header.tensors() {
        assert_eq!(tensor.start, end);
        end += tensor.bytes;
        assert_eq!(header.get(&tensor.name), Some(tensor));
    }
    assert_eq!(end, file.len() as u64);
    let reference = safetensors::SafeTensors::deserialize(file).expect("the reference crate accepts it");
    assert_eq!(reference.len(), header.tensors().len());
});
