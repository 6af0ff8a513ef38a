//! Shards that are spread over several folders: the same bytes as in one, and nothing half-written, missing or foreign is
//! taken for them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may end")]

use airllm_format::safetensors::Header;
use airllm_format::shard::{Folders, ShardTag, ShardWriter, Spread, TensorSpec, accept_in, dealt};
use airllm_format::{
    Bits, Error, MANIFEST, Manifest, NumFormat, PartEntry, Prepared, Recipe, SourceEntry, write_side_text,
};
use std::fs;
use std::path::PathBuf;

const FILE: &str = "embed.safetensors";

fn tag() -> ShardTag {
    ShardTag { unit: "embed".into(), source: "cafe".into(), recipe: Recipe::uniform(Bits::Source).name() }
}

/// A little more than two turns of 4 MiB.
fn specs() -> Vec<TensorSpec> {
    let spec =
        |name: &str, rows| TensorSpec { name: name.into(), format: NumFormat::F32, shape: vec![rows, 999] };
    vec![spec("embed", 2000), spec("more", 300)]
}

fn rows() -> Vec<u8> {
    (0..2300 * 999u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect()
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn dirs(&self, name: &str, count: usize) -> Vec<PathBuf> {
        (0..count).map(|part| self.dir.path().join(format!("{name}{part}"))).collect()
    }

    fn folders(&self, name: &str, rates: &[f64]) -> Folders {
        Folders::spread(self.dirs(name, rates.len()), Spread::by_rates(rates).unwrap()).unwrap()
    }
}

/// What `prepare` does: the shard if it is not there yet, a side file and a manifest for each folder.
fn prepare(folders: &Folders) -> bool {
    let source = SourceEntry { id: None, fingerprint: "cafe".into() };
    let recipe = Recipe::uniform(Bits::Source);
    let mut manifest = Manifest::new("LlamaForCausalLM".into(), source, recipe, serde_json::json!({}));
    let there = accept_in(folders, FILE, &tag(), &specs()).unwrap();
    let wrote = there.is_none();
    manifest.shards.push(there.unwrap_or_else(|| {
        let mut writer = ShardWriter::create_in(folders, FILE, &tag(), specs()).unwrap();
        rows().chunks(999 * 4 * 7).for_each(|rows| writer.write(rows).unwrap());
        writer.finish().unwrap()
    }));
    for (index, dir) in folders.dirs().iter().enumerate() {
        manifest.files = vec![write_side_text("tokenizer.json", "{}", dir).unwrap()];
        manifest.part = folders.shares().map(|shares| PartEntry { index, shares: shares.clone() });
        manifest.write(dir).unwrap();
    }
    wrote
}

fn whole(folders: &Folders) -> Vec<u8> {
    let shard = folders.open(FILE).unwrap();
    let mut bytes = vec![0; shard.len() as usize];
    shard.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn together_the_parts_are_the_shard_of_one_folder() {
    let place = Place::new();
    let one = Folders::one(&place.dir.path().join("one"));
    assert!(prepare(&one));
    for (name, rates) in [("a", &[1.0, 1.0][..]), ("b", &[3.0, 1.0]), ("c", &[1.0, 5.0, 2.0])] {
        let folders = place.folders(name, rates);
        assert!(prepare(&folders));
        assert!(
            whole(&folders) == whole(&one) && whole(&one) == fs::read(one.paths(FILE).remove(0)).unwrap()
        );
        // A second run changes nothing.
        assert!(!prepare(&folders));
        let spread = folders.shares().unwrap();
        for (part, path) in folders.paths(FILE).iter().enumerate() {
            // Each file is one that any reader of safetensors opens.
            let header = Header::read(path).unwrap();
            assert_eq!(header.metadata()["part"], part.to_string());
            assert_eq!(header.get("blocks").unwrap().bytes, spread.part_len(part, whole(&one).len() as u64));
            assert_eq!(dealt(path).as_ref(), Some(spread));
        }
        // In any order.
        let mut dirs = folders.dirs().to_vec();
        dirs.rotate_left(1);
        let prepared = Prepared::open_in(&dirs).unwrap();
        assert_eq!(prepared.folders(), &folders);
        let (mut last, mut all) = (0, 0);
        prepared.verify(&mut |done, total| (last, all) = (done, total)).unwrap();
        assert_eq!(last, all);
        // What a run that was killed leaves is not taken.
        let names = fs::read_dir(&dirs[0]).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| !name.to_string_lossy().ends_with(".part")));
    }
}

#[test]
fn what_is_missing_or_foreign_is_named() {
    let place = Place::new();
    let (folders, other) = (place.folders("a", &[1.0, 1.0]), place.folders("b", &[3.0, 1.0]));
    let one = Folders::one(&place.dir.path().join("one"));
    assert!([&folders, &other, &one].into_iter().all(prepare));
    let (a, b, one) = (folders.dirs(), other.dirs(), one.dirs());
    let message = |dirs: &[&PathBuf]| {
        let dirs: Vec<PathBuf> = dirs.iter().map(|dir| (*dir).clone()).collect();
        let error = Prepared::open_in(&dirs).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        error.to_string()
    };
    assert!(message(&[&a[0]]).contains("holds part 1 of 2 of the shards, and part 2 is in none"));
    assert!(message(&[&a[1]]).contains("holds part 2 of 2 of the shards, and part 1 is in none"));
    assert!(Prepared::open(&a[1]).is_err());
    assert!(message(&[&a[0], &a[0]]).contains("part 1 of 2, as in"));
    assert!(message(&[&a[0], &b[1]]).contains("holds no part of the shards in"));
    assert!(message(&[&a[0], &one[0]]).contains("holds no part of the shards in"));
    assert!(message(&[&one[0], &a[0]]).contains("its shards are whole"));
    assert!(message(&[&a[0], &a[1], &b[0]]).contains("holds no part"));
    assert!(matches!(Prepared::open_in(&[]), Err(Error::Missing { .. })));
    let nowhere = place.dir.path().join("nowhere");
    assert!(matches!(Prepared::open_in(&[a[0].clone(), nowhere]), Err(Error::Missing { .. })));
}

#[test]
fn damage_of_any_part_is_found() {
    let place = Place::new();
    let folders = place.folders("a", &[1.0, 1.0]);
    prepare(&folders);
    let open = || Prepared::open_in(folders.dirs());
    for path in folders.paths(FILE) {
        let good = fs::read(&path).unwrap();
        // Cut, longer, gone.
        for bytes in [&good[..0], &good[..5000], &good[..good.len() - 1], &[&good[..], &[0; 4096]].concat()] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(open(), Err(Error::Malformed { .. })));
            assert!(accept_in(&folders, FILE, &tag(), &specs()).unwrap().is_none());
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(open(), Err(Error::Missing { .. })));
        // The header of the other part, a bit of the weights, one of what stands between them.
        for at in [60, 4096 + 70_000, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let seen = open().and_then(|prepared| prepared.verify(&mut |_, _| {}));
            assert!(seen.is_err(), "{at}");
            assert!(accept_in(&folders, FILE, &tag(), &specs()).unwrap().is_none(), "{at}");
        }
        // It is mended.
        assert!(prepare(&folders));
        assert!(fs::read(&path).unwrap() == good);
        open().unwrap().verify(&mut |_, _| {}).unwrap();
    }
    // Parts of the same lengths, exchanged.
    let [a, b] = &folders.paths(FILE)[..] else { panic!() };
    let (left, right) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    fs::write(a, &right).unwrap();
    fs::write(b, &left).unwrap();
    assert!(open().is_err());
    // Side files are in every folder.
    prepare(&folders);
    fs::write(folders.dirs()[1].join("tokenizer.json"), "{ }").unwrap();
    assert!(open().is_err());
    fs::remove_file(folders.dirs()[1].join(MANIFEST)).unwrap();
    assert!(matches!(open(), Err(Error::Missing { .. })));
}

#[test]
fn a_writer_that_stops_leaves_nothing() {
    let place = Place::new();
    let folders = place.folders("a", &[1.0, 1.0]);
    let mut writer = ShardWriter::create_in(&folders, FILE, &tag(), specs()).unwrap();
    writer.write(&rows()[..999 * 4 * 1500]).unwrap();
    drop(writer);
    assert!(folders.dirs().iter().all(|dir| fs::read_dir(dir).unwrap().count() == 0));
    assert!(Folders::spread(place.dirs("x", 3), Spread::by_rates(&[1.0, 1.0]).unwrap()).is_err());
}
