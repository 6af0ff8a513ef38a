//! Shards: what is written is what is read, and nothing unfinished is accepted.

use super::*;
use crate::disk::temporary;
use crate::safetensors::{Dtype, Header};
use crate::{Bits, NumFormat, Recipe, ShardEntry};
use proptest::prelude::*;
use std::path::Path;

const FILE: &str = "layer.3.safetensors";

fn tag() -> ShardTag {
    ShardTag { unit: "layer.3".into(), source: "f00d".into(), recipe: Recipe::uniform(Bits::Q4).name() }
}

fn spec(name: &str, format: NumFormat, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), format, shape: shape.to_vec() }
}

fn specs() -> Vec<TensorSpec> {
    vec![
        spec("attn_norm", NumFormat::F32, &[40]),
        spec("q", NumFormat::Q4, &[13, 40]),
        spec("k", NumFormat::Bf16, &[64, 2]),
        spec("v", NumFormat::Q8, &[3, 65]),
    ]
}

fn bytes_of(spec: &TensorSpec, seed: u8) -> Vec<u8> {
    let len = Geometry::of(spec.format, &spec.shape).unwrap().bytes as usize;
    (0..len).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect()
}

fn weights(specs: &[TensorSpec]) -> Vec<Vec<u8>> {
    specs.iter().zip(1..).map(|(s, seed)| bytes_of(s, seed)).collect()
}

fn write(dir: &Path, specs: &[TensorSpec]) -> ShardEntry {
    let mut writer = ShardWriter::create(dir, FILE, &tag(), specs.to_vec()).unwrap();
    weights(specs).iter().for_each(|w| writer.write(w).unwrap());
    writer.finish().unwrap()
}

#[test]
fn layout_is_as_promised() {
    let dir = tempfile::tempdir().unwrap();
    let entry = write(dir.path(), &specs());
    let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
    assert_eq!(entry.bytes, bytes.len() as u64);
    assert_eq!(bytes.len() % 4096, 0);
    assert_eq!(entry.xxh3, format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)));
    let header = Header::parse(&bytes, entry.bytes, Path::new(FILE)).unwrap();
    assert_eq!(header.data_start() % 4096, 0);
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for ((spec, weights), t) in specs().iter().zip(weights(&specs())).zip(&entry.tensors) {
        assert_eq!((&t.name, t.format, &t.shape), (&spec.name, spec.format, &spec.shape));
        assert_eq!(t.offset % 256, 0);
        assert_eq!(bytes[t.offset as usize..][..t.bytes as usize], weights);
        assert_eq!(reference.tensor(&t.name).unwrap().data(), weights);
        let row_bytes = Geometry::of(t.format, &t.shape).unwrap().row_bytes;
        assert_eq!(parse_checksum(&t.checksum), Some(row_checksum(0, row_bytes, &weights)));
    }
    let q = header.get("q").unwrap();
    assert_eq!((q.dtype, q.shape.as_slice()), (Dtype::U8, &[13, 48][..]));
    assert_eq!(header.get("k").unwrap().dtype, Dtype::Bf16);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the shard is there");
}

#[test]
fn an_accepted_shard_has_the_entry_that_was_written() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(accept(dir.path(), FILE, &tag(), &specs()).unwrap(), None);
    let entry = write(dir.path(), &specs());
    assert_eq!(accept(dir.path(), FILE, &tag(), &specs()).unwrap(), Some(entry));
    let other = ShardTag { source: "beef".into(), ..tag() };
    assert_eq!(accept(dir.path(), FILE, &other, &specs()).unwrap(), None);
    let other = ShardTag { recipe: Recipe::uniform(Bits::Q8).name(), ..tag() };
    assert_eq!(accept(dir.path(), FILE, &other, &specs()).unwrap(), None);
    assert_eq!(accept(dir.path(), FILE, &tag(), &specs()[..3]).unwrap(), None);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let entry = write(dir.path(), &specs());
    let path = dir.path().join(FILE);
    let good = std::fs::read(&path).unwrap();
    // Every byte of the data, every 7th of the header: the whole file in reasonable time.
    let data = (4096..good.len()).step_by(3).chain((0..4096).step_by(7));
    for at in data {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(accept(dir.path(), FILE, &tag(), &specs()).unwrap(), None, "byte {at}");
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(accept(dir.path(), FILE, &tag(), &specs()).unwrap(), Some(entry));
}

#[test]
fn a_writer_that_stops_leaves_nothing_that_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tempfile::tempdir().unwrap();
    write(whole.path(), &specs());
    let expected = std::fs::read(whole.path().join(FILE)).unwrap();
    let all: Vec<u8> = weights(&specs()).concat();
    let rows: Vec<usize> = specs()
        .iter()
        .flat_map(|s| {
            let g = Geometry::of(s.format, &s.shape).unwrap();
            vec![g.row_bytes; g.rows]
        })
        .collect();
    for killed in [false, true] {
        for stop in 0..rows.len() {
            let mut writer = ShardWriter::create(dir.path(), FILE, &tag(), specs()).unwrap();
            writer.write(&all[..rows[..stop].iter().sum()]).unwrap();
            let part = temporary(&dir.path().join(FILE));
            if killed {
                // As after `kill -9`: the temporary file stays.
                let left = std::fs::read(&part).unwrap();
                drop(writer);
                std::fs::write(&part, left).unwrap();
            } else {
                let error = writer.finish().unwrap_err().to_string();
                assert!(error.contains("rows are missing"), "{error}");
                assert!(!part.exists());
            }
            assert!(!dir.path().join(FILE).exists());
            assert_eq!(accept(dir.path(), FILE, &tag(), &specs()).unwrap(), None);
        }
        write(dir.path(), &specs());
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), expected);
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
    }
}

#[test]
fn a_cut_off_shard_is_not_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let entry = write(dir.path(), &specs());
    let path = dir.path().join(FILE);
    let good = std::fs::read(&path).unwrap();
    for len in (0..entry.bytes as usize).step_by(97) {
        std::fs::write(&path, &good[..len]).unwrap();
        assert_eq!(accept(dir.path(), FILE, &tag(), &specs()).unwrap(), None, "cut at {len}");
        assert!(Header::read(&path).is_err(), "cut at {len}");
    }
}

#[test]
fn misuse_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let create = |file: &str, specs: Vec<TensorSpec>| {
        ShardWriter::create(dir.path(), file, &tag(), specs).err().unwrap().to_string()
    };
    assert!(create(FILE, vec![]).contains("at least one tensor"));
    assert!(create("../x", specs()).contains("plain file name"));
    assert!(create(".x", specs()).contains("plain file name"));
    assert!(create(FILE, vec![spec("__pad.0", NumFormat::F32, &[4])]).contains("reserved"));
    let twice = spec("q", NumFormat::F32, &[4]);
    assert!(create(FILE, vec![twice.clone(), twice]).contains("there twice"));
    for shape in [&[][..], &[0], &[4, 0], &[1, 2, 3], &[usize::MAX], &[1 << 29, 2]] {
        assert!(create(FILE, vec![spec("q", NumFormat::Q8, shape)]).contains("cannot have shape"));
    }
    let mut writer =
        ShardWriter::create(dir.path(), FILE, &tag(), vec![spec("q", NumFormat::F32, &[3, 4])]).unwrap();
    assert!(writer.write(&[0; 15]).unwrap_err().to_string().contains("not whole rows of 16"));
    writer.write(&[0; 48]).unwrap();
    assert!(writer.write(&[0; 16]).unwrap_err().to_string().contains("16 bytes more"));
}

#[test]
fn every_format_comes_back_and_part_blocks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let specs: Vec<TensorSpec> =
        NumFormat::ALL.into_iter().map(|format| spec(format.name(), format, &[3, 512])).collect();
    let mut writer = ShardWriter::create(dir.path(), FILE, &tag(), specs.clone()).unwrap();
    specs.iter().for_each(|s| writer.write(&bytes_of(s, 7)).unwrap());
    let entry = writer.finish().unwrap();
    let file = std::fs::read(dir.path().join(FILE)).unwrap();
    for (s, t) in specs.iter().zip(&entry.tensors) {
        assert_eq!((t.format, &t.shape), (s.format, &s.shape));
        assert_eq!(file[t.offset as usize..][..t.bytes as usize], bytes_of(s, 7));
    }
    assert_eq!(accept(dir.path(), FILE, &tag(), &specs).unwrap(), Some(entry));

    for format in NumFormat::ALL.into_iter().filter(|f| f.multiple() > 1) {
        assert_eq!(Geometry::of(format, &[3, 500]), None);
        let error = ShardWriter::create(dir.path(), FILE, &tag(), vec![spec("t", format, &[3, 500])]).err();
        let (text, block) = (error.unwrap().to_string(), format.multiple());
        assert!(text.contains(&format!("rows of {format} being whole multiples of {block}")), "{text}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("taken");
    std::fs::write(&file, "").unwrap();
    let error = ShardWriter::create(&file, FILE, &tag(), specs()).err().unwrap();
    assert!(matches!(&error, crate::Error::Io { path, .. } if *path == file), "{error}");
}

proptest! {
    #[test]
    fn random_layouts_round_trip(
        shapes in proptest::collection::vec((0..NumFormat::ALL.len(), 1usize..20, 1usize..200, any::<bool>()), 1..8),
        seed: u8,
        cut in 1usize..40,
    ) {
        let specs: Vec<TensorSpec> = shapes.iter().enumerate().map(|(i, &(f, rows, cols, vector))| {
            let cols = cols.next_multiple_of(NumFormat::ALL[f].multiple());
            let shape = if vector { vec![cols] } else { vec![rows, cols] };
            spec(&format!("t{i}"), NumFormat::ALL[f], &shape)
        }).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), FILE, &tag(), specs.clone()).unwrap();
        for s in &specs {
            let row_bytes = Geometry::of(s.format, &s.shape).unwrap().row_bytes;
            for rows in bytes_of(s, seed).chunks(row_bytes * cut) {
                writer.write(rows).unwrap();
            }
        }
        let entry = writer.finish().unwrap();
        let header = Header::read(&dir.path().join(FILE)).unwrap();
        prop_assert_eq!(header.data_start() % 4096, 0);
        let file = std::fs::read(dir.path().join(FILE)).unwrap();
        for (s, t) in specs.iter().zip(&entry.tensors) {
            prop_assert_eq!(&file[t.offset as usize..][..t.bytes as usize], &bytes_of(s, seed)[..]);
        }
        prop_assert_eq!(accept(dir.path(), FILE, &tag(), &specs).unwrap(), Some(entry));
    }

    #[test]
    fn checksums_do_not_depend_on_the_cut(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        row_bytes in 1usize..300,
        cuts in proptest::collection::vec(0usize..2000, 0..10),
    ) {
        let whole = row_checksum(0, row_bytes, &bytes);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut stream = RowSums::new(row_bytes);
        cuts.windows(2).for_each(|w| stream.update(&bytes[w[0]..w[1]]));
        prop_assert_eq!(stream.finish(), whole);
        // Whole rows, in any order.
        let rows: Vec<u64> = cuts.windows(2).rev().map(|w| {
            let (from, to) = (w[0] / row_bytes, w[1] / row_bytes);
            row_checksum(from as u64, row_bytes, &bytes[from * row_bytes..to * row_bytes])
        }).collect();
        prop_assert_eq!(rows.into_iter().fold(0, u64::wrapping_add), whole);
    }

    #[test]
    fn rows_that_change_places_change_the_checksum(row in proptest::collection::vec(any::<u8>(), 1..50)) {
        let other: Vec<u8> = row.iter().map(|b| !b).collect();
        let (ab, ba) = ([row.clone(), other.clone()].concat(), [other, row.clone()].concat());
        prop_assert_ne!(row_checksum(0, row.len(), &ab), row_checksum(0, row.len(), &ba));
    }
}
