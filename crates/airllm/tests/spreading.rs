//! Shards over several folders: written, found again, run; the same tokens as from one.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use airllm::{AutoModel, Builder, Cancel, Checkpoint, Error, Preparation, Prepared, ReadMethod, Repo};
use airllm_format::shard::{Folders, Spread};
use airllm_tests::checkpoint::{Checkpoint as Made, Shape};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { layers: 3, ..Shape::TINY };
        Made::new(shape).write(&dir.path().join("model")).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn dirs(&self, names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(|name| self.path(name)).collect()
    }

    fn builder(&self) -> Builder {
        AutoModel::builder().device(airllm::Device::Cpu).home(self.path("home")).threads(1)
    }
}

/// All files of a folder with their content.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn every_interruption_leads_to_the_same_bytes() {
    let place = Place::new();
    let repo = Repo::open(&place.path("model")).unwrap();
    let config = airllm::Config::parse(repo.config()).unwrap();
    let spread = |names| Folders::spread(place.dirs(names), Spread::by_rates(&[2.0, 1.0]).unwrap()).unwrap();
    let (whole, parts) = (spread(&["a", "b"]), spread(&["c", "d"]));
    Preparation::new(&repo, &config).memory(1).run_in(&whole).unwrap();
    for stop_at in 0..200u64 {
        let (cancel, told) = (Cancel::new(), Arc::new(AtomicU64::new(0)));
        let flag = cancel.clone();
        let report = move |_: &airllm::Progress<'_>| {
            if told.fetch_add(1, Ordering::Relaxed) >= stop_at {
                flag.stop();
            }
        };
        let run = Preparation::new(&repo, &config).memory(1).cancel(&cancel).progress(&report);
        match run.run_in(&parts) {
            Ok(_) => {
                assert!(stop_at > 4, "only {stop_at} reports");
                for (whole, part) in whole.dirs().iter().zip(parts.dirs()) {
                    assert!(content(whole) == content(part));
                }
                return;
            }
            Err(Error::Interrupted) => assert!(Prepared::open_in(parts.dirs()).is_err()),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("never finished");
}

#[test]
fn written_found_and_run_as_from_one_folder() {
    let place = Place::new();
    let checkpoint = Checkpoint::open(&place.path("model"), None).unwrap();
    let tokens = [1, 2, 3, 4, 5];
    let want = place.builder().load(&checkpoint).unwrap().forward(&tokens).unwrap();
    let dirs = place.dirs(&["x", "y"]);
    // Shares are measured.
    let builder = place.builder().shards_over(&dirs);
    assert!(builder.find_shards().unwrap().is_none() && builder.made(&checkpoint).unwrap().is_none());
    let prepared = builder.prepare(&checkpoint).unwrap();
    assert_eq!(prepared.folders().dirs(), &dirs[..]);
    let shares = prepared.folders().shares().unwrap().clone();
    let before: Vec<_> = dirs.iter().map(|dir| content(dir)).collect();

    // Again, with the folders in the other order: it is there.
    let swapped: Vec<PathBuf> = dirs.iter().rev().cloned().collect();
    let again = place.builder().shards_over(&swapped).check_existing(true).prepare(&checkpoint).unwrap();
    assert_eq!(again.folders(), prepared.folders());
    // After an interruption: in the shares that it was begun with.
    fs::remove_file(dirs[0].join(airllm_format::MANIFEST)).unwrap();
    fs::remove_file(dirs[1].join("layer.1.safetensors")).unwrap();
    let again = place.builder().shards_over(&dirs).prepare(&checkpoint).unwrap();
    assert_eq!(again.folders().shares(), Some(&shares));
    assert!(before.iter().zip(&dirs).all(|(before, dir)| *before == content(dir)));

    // By the checkpoint's name, by a folder's, and by none.
    let budget = |builder: Builder| builder.ram(12_000_000);
    for method in [ReadMethod::Auto, ReadMethod::Direct, ReadMethod::Uring, ReadMethod::Buffered] {
        let model = budget(builder.clone().read(method)).load(&checkpoint).unwrap();
        assert_eq!(model.forward(&tokens).unwrap(), want, "{method}");
    }
    let named = builder.from_pretrained(dirs[1].to_str().unwrap()).unwrap();
    assert_eq!(named.forward(&tokens).unwrap(), want);
    let found = builder.find_shards().unwrap().unwrap();
    assert_eq!(builder.load(&found).unwrap().forward(&tokens).unwrap(), want);
    found.verify(&Cancel::new(), &|_| {}).unwrap();

    // A folder too few, and one of something else.
    let message = |dirs: &[PathBuf]| place.builder().shards_over(dirs).find_shards().unwrap_err().to_string();
    assert!(message(&dirs[..1]).contains("part 2 is in none of the folders named"));
    let error = place.builder().find(dirs[0].to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("name them all"), "{error}");
    let other = place.dirs(&["one"]);
    place.builder().shards_over(&other).prepare(&checkpoint).unwrap();
    let mixed = [dirs[0].clone(), other[0].clone()];
    assert!(message(&mixed).contains("holds no part of the shards in"));
    let error = place.builder().shards_over(&mixed).prepare(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("name all of its folders and no other"), "{error}");
    assert!(before.iter().zip(&dirs).all(|(before, dir)| *before == content(dir)));
}
