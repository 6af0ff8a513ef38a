//! Headers that are right, headers that are wrong in every way we know, and random ones.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A file with this header and so many bytes of data.
fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header> {
    Header::parse(bytes, bytes.len() as u64, Path::new("x.safetensors"))
}

fn refusal(json: &str, data: usize) -> String {
    parse(&file(json, data)).unwrap_err().to_string()
}

fn two(a: [u64; 2], b: [u64; 2]) -> String {
    json!({
        "a": { "dtype": "U8", "shape": [a[1].saturating_sub(a[0])], "data_offsets": a },
        "b": { "dtype": "U8", "shape": [b[1].saturating_sub(b[0])], "data_offsets": b },
    })
    .to_string()
}

#[test]
fn reads_what_is_there() {
    let json = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},
        "empty":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    let header = parse(&file(json, 12)).unwrap();
    let names: Vec<&str> = header.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "empty", "b"]);
    assert_eq!(header.metadata()["format"], "pt");
    assert_eq!(header.data_start(), 8 + json.len() as u64);
    let b = header.get("b").unwrap();
    assert_eq!((b.start, b.bytes), (header.data_start() + 4, 8));
    assert_eq!((b.dtype, b.shape.as_slice()), (Dtype::Bf16, &[2, 2][..]));
    assert!(header.get("c").is_none());
}

#[test]
fn a_header_beyond_the_file() {
    let path = Path::new("x");
    let short = |bytes: &[u8], len| Header::parse(bytes, len, path).unwrap_err().to_string();
    assert!(short(&[1, 2, 3], 3).contains("has 3 bytes"));
    assert!(short(&[], 0).contains("has 0 bytes"));
    assert!(short(&100u64.to_le_bytes(), 50).contains("length is 100, beyond the end of the file (50"));
    assert!(short(&[255; 8], 1 << 40).contains("beyond the end"));
    assert!(short(&(MAX_HEADER + 1).to_le_bytes(), 1 << 40).contains("more than the 100000000"));
    assert!(short(&20u64.to_le_bytes(), 50).contains("20 bytes, only 0 are there"));
}

#[test]
fn a_header_that_is_no_json() {
    assert!(refusal("", 0).contains("does not start with `{`"));
    assert!(refusal("PK\u{3}\u{4}", 0).contains("does not start with `{`"));
    assert!(refusal("{\"a\":", 0).contains("EOF while parsing"));
    assert!(refusal("{\"a\":7}", 0).contains("line 1"));
    assert!(refusal(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 0).contains("missing field `data_offsets`"));
    assert!(refusal(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4).contains("-1"));
    assert!(refusal(r#"{"__metadata__":{"format":7}}"#, 0).contains("not valid"));
    assert!(parse(&file("{}", 0)).unwrap().tensors().is_empty());
    // Bytes that are no text, in a value that nobody reads.
    let mut odd = file(r#"{"a":{"x":"?","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, 0);
    assert!(parse(&odd).is_ok());
    odd[8 + 11] = 0xff;
    assert!(parse(&odd).unwrap_err().to_string().contains("not UTF-8 at byte 11"));
}

#[test]
fn a_name_that_comes_twice() {
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    assert!(refusal(&format!(r#"{{"w":{entry},"w":{entry}}}"#), 0).contains("`w` comes twice"));
    assert!(refusal(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0).contains("`k` comes twice"));
}

#[test]
fn offsets_that_do_not_fit() {
    assert!(parse(&file(&two([0, 4], [4, 8]), 8)).is_ok());
    assert!(
        refusal(&two([0, 4], [3, 8]), 8)
            .contains("`b` (bytes 3..8 of the data) overlaps `a`, which ends at 4")
    );
    assert!(refusal(&two([0, 4], [0, 4]), 4).contains("overlaps"));
    assert!(
        refusal(&two([0, 4], [6, 8]), 8)
            .contains("bytes 4..6 of the data, before tensor `b`, belong to no tensor")
    );
    assert!(refusal(&two([2, 4], [4, 8]), 8).contains("bytes 0..2"));
    assert!(
        refusal(&two([0, 4], [4, 8]), 7)
            .contains("`b` ends at byte 8 of the data, the file has 7: truncated")
    );
    assert!(refusal(&two([0, 4], [4, 8]), 9).contains("1 bytes after the last tensor"));
    assert!(refusal(&two([0, 4], [8, 4]), 8).contains("run backwards"));
    assert!(refusal(&two([0, 4], [u64::MAX - 4, u64::MAX]), 8).contains("out of range"));
    assert!(refusal(&two([0, 4], [4, u64::MAX / 8]), 8).contains("truncated"));
}

#[test]
fn sizes_that_do_not_fit() {
    let one = |dtype: &str, shape: Value, end: u64| {
        json!({ "a": { "dtype": dtype, "shape": shape, "data_offsets": [0, end] } }).to_string()
    };
    assert!(refusal(&one("F32", json!([2, 3]), 20), 20).contains("is 24 bytes, data_offsets [0, 20] are 20"));
    assert!(refusal(&one("F99", json!([2]), 2), 2).contains("unknown dtype `F99`"));
    assert!(refusal(&one("F4", json!([3]), 2), 2).contains("12 bits, not whole bytes"));
    assert!(parse(&file(&one("F4", json!([4]), 2), 2)).is_ok());
    let huge = json!([1u64 << 40, 1u64 << 40]);
    assert!(refusal(&one("F32", huge, 4), 4).contains("more than 2^64 bits"));
    assert!(parse(&file(&one("F32", json!([u64::MAX, 0]), 0), 0)).is_ok(), "nothing is still nothing");
}

#[test]
fn reads_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    assert!(matches!(Header::read(&path), Err(Error::Missing { .. })));
    assert!(matches!(Header::read(dir.path()), Err(Error::Malformed { .. })));
    let bytes = file(&two([0, 4], [4, 8]), 8);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Header::read(&path).unwrap(), parse(&bytes).unwrap());
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(matches!(Header::read(&path), Err(Error::Malformed { .. })), "cut at {len}");
    }
}

/// A header that may be right: tensors one behind the other, then some of the numbers bent.
fn layouts() -> impl Strategy<Value = Vec<u8>> {
    let tensor = (0usize..22, proptest::collection::vec(0u64..5, 0..4));
    let bend = (0usize..6, -2i64..3, 0u8..3);
    (proptest::collection::vec(tensor, 0..6), proptest::option::of(bend), -2i64..3).prop_map(
        |(tensors, bend, extra)| {
            let mut header = serde_json::Map::new();
            let mut at = 0u64;
            let names = [
                "BOOL",
                "F4",
                "F6_E2M3",
                "F6_E3M2",
                "U8",
                "I8",
                "F8_E5M2",
                "F8_E4M3",
                "F8_E8M0",
                "F8_E4M3FNUZ",
            ];
            let names: Vec<&str> = names
                .into_iter()
                .chain([
                    "F8_E5M2FNUZ",
                    "I16",
                    "U16",
                    "F16",
                    "BF16",
                    "I32",
                    "U32",
                    "F32",
                    "C64",
                    "F64",
                    "I64",
                    "U64",
                ])
                .collect();
            for (i, (dtype, shape)) in tensors.iter().enumerate() {
                let bits = shape.iter().product::<u64>() * Dtype::from_name(names[*dtype]).unwrap().bits();
                let mut ends = [at, at + bits / 8];
                at = ends[1];
                if let Some((which, by, what)) = bend.filter(|b| b.0 == i) {
                    match what {
                        0 => ends[0] = ends[0].saturating_add_signed(by),
                        1 => ends[1] = ends[1].saturating_add_signed(by),
                        _ => ends = ends.map(|e| e.saturating_add_signed(by)),
                    }
                    assert_eq!(which, i);
                }
                header.insert(
                    format!("t{}", (i * 5) % 7),
                    json!({ "dtype": names[*dtype], "shape": shape, "data_offsets": ends }),
                );
            }
            file(&Value::Object(header).to_string(), at.saturating_add_signed(extra / 2) as usize)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_the_reference_crate(bytes in layouts()) {
        let reference = safetensors::SafeTensors::read_metadata(&bytes);
        let ours = parse(&bytes);
        prop_assert_eq!(ours.is_ok(), reference.is_ok(), "{:?} {:?}", ours, reference);
        if let (Ok(ours), Ok((n, reference))) = (ours, reference) {
            prop_assert_eq!(ours.data_start(), n as u64 + 8);
            for (name, info) in reference.tensors() {
                let t = ours.get(&name).unwrap();
                prop_assert_eq!(&t.shape, &info.shape);
                prop_assert_eq!((t.start - ours.data_start()) as usize, info.data_offsets.0);
                prop_assert_eq!(t.bytes as usize, info.data_offsets.1 - info.data_offsets.0);
            }
        }
    }

    #[test]
    fn a_changed_byte_is_refused_or_harmless(mut bytes in layouts(), at: prop::sample::Index, to: u8) {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(header) = parse(&bytes) {
            let mut end = header.data_start();
            for t in header.tensors() {
                prop_assert_eq!(t.start, end);
                end += t.bytes;
            }
            prop_assert_eq!(end, bytes.len() as u64);
        }
    }
}
