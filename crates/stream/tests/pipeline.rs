//! The whole stream on sources that misbehave: whatever the budget, the ring, the readers and the faults,
//! the same rows arrive in the same order.

#![allow(clippy::unwrap_used)]

use airllm_format::{Error as FormatError, LayerSource, NumFormat};
use airllm_kernels::{Memory, Result as DeviceResult};
use airllm_stream::{
    Catalog, Error, Options, Pipeline, Stats, Tensor, TensorId, Timeline, Unit, smallest_slot,
};
use proptest::prelude::*;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A device of ordinary memory; `discrete` makes it refuse host bytes, as a GPU does.
struct Host {
    discrete: bool,
}

impl Memory for Host {
    type Buf = Vec<u8>;
    type Fence = ();
    type View<'a> = &'a [u8];

    fn alloc(&self, bytes: usize) -> DeviceResult<Vec<u8>> {
        Ok(vec![0; bytes])
    }
    fn len(&self, buf: &Vec<u8>) -> usize {
        buf.len()
    }
    fn write(&self, dst: &mut Vec<u8>, offset: usize, bytes: &[u8]) -> DeviceResult<()> {
        dst[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn read(&self, src: &Vec<u8>, offset: usize, out: &mut [u8]) -> DeviceResult<()> {
        out.copy_from_slice(&src[offset..offset + out.len()]);
        Ok(())
    }
    fn view<'a>(&'a self, buf: &'a Vec<u8>, range: Range<usize>) -> DeviceResult<&'a [u8]> {
        Ok(&buf[range])
    }
    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        (!self.discrete).then_some(bytes)
    }
    fn fence(&self) -> DeviceResult<()> {
        Ok(())
    }
    fn wait(&self, (): &()) -> DeviceResult<()> {
        Ok(())
    }
    fn is_done(&self, (): &()) -> DeviceResult<bool> {
        Ok(true)
    }
}

/// Files in memory that answer at one offset in `fail_every` only at the second attempt (at none, if it is
/// 1), and whose reads take their time.
struct Source {
    files: Vec<Vec<u8>>,
    fail_every: u64,
    slow: bool,
    reads: AtomicU64,
    failed: Mutex<HashSet<(usize, u64)>>,
}

impl LayerSource for Source {
    fn files(&self) -> usize {
        self.files.len()
    }
    fn name(&self, _: usize) -> &str {
        "memory"
    }
    fn len(&self, file: usize) -> u64 {
        self.files[file].len() as u64
    }
    fn alignment(&self) -> usize {
        4096
    }
    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> airllm_format::Result<()> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        if self.slow {
            std::thread::sleep(Duration::from_micros(read * 7919 % 300));
        }
        let chosen = self.fail_every > 0 && (offset / 4096).is_multiple_of(self.fail_every);
        if chosen && (self.failed.lock().unwrap().insert((file, offset)) || self.fail_every == 1) {
            return Err(FormatError::Io {
                path: "memory".into(),
                doing: format!("read {read}"),
                source: std::io::ErrorKind::TimedOut.into(),
            });
        }
        let from = offset as usize;
        let to = (from + buf.len()).min(self.files[file].len());
        buf[..to - from].copy_from_slice(&self.files[file][from..to]);
        buf[to - from..].fill(0);
        Ok(())
    }
}

/// An embedding that is only gathered from, layers of several tensors, and the embedding's twin as head.
fn model(layers: &[Vec<(usize, usize)>], tied: bool) -> (Catalog, Vec<Vec<u8>>) {
    let mut files = Vec::new();
    let mut units = Vec::new();
    let mut pass = Vec::new();
    let embed = vec![(97, 33)];
    for (file, shapes) in std::iter::once(&embed).chain(layers).enumerate() {
        let mut bytes = vec![0; 4096];
        let mut tensors = Vec::new();
        for (index, &(rows, cols)) in shapes.iter().enumerate() {
            bytes.resize(bytes.len().next_multiple_of(256), 0);
            let mut tensor = Tensor {
                name: format!("t{index}"),
                file,
                offset: bytes.len() as u64,
                format: NumFormat::F32,
                rows,
                cols,
                checksum: None,
            };
            let mut sum = 0u64;
            for row in 0..rows {
                let seed = (file * 1_000_003 + index * 10_007 + row) as u64;
                let data: Vec<u8> = (0..cols * 4)
                    .map(|at| (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (at % 56)) as u8 ^ at as u8)
                    .collect();
                sum = sum.wrapping_add(xxh3_64_with_seed(&data, row as u64));
                bytes.extend(data);
            }
            tensor.checksum = Some(sum);
            tensors.push(tensor);
            if file > 0 {
                pass.push(TensorId { unit: file, tensor: index });
            }
        }
        units.push(Unit { name: format!("u{file}"), tensors });
        files.push(bytes);
    }
    if tied {
        pass.push(TensorId { unit: 0, tensor: 0 });
    }
    (Catalog { units, pass }, files)
}

fn source(files: Vec<Vec<u8>>, fail_every: u64, slow: bool) -> Arc<Source> {
    Arc::new(Source { files, fail_every, slow, reads: AtomicU64::new(0), failed: Mutex::default() })
}

fn options(pinned: Vec<bool>, slots: usize, slot_bytes: usize, readers: usize) -> Options {
    Options { pinned, slots, slot_bytes, readers, timeline: Arc::new(Timeline::new(true)) }
}

/// Runs a pass and returns all bytes it leased, tensor by tensor.
fn pass(pipeline: &mut Pipeline<Host>) -> Result<Vec<Vec<u8>>, Error> {
    let ids = pipeline.catalog().pass.clone();
    let mut all = Vec::new();
    for id in ids {
        let mut bytes = Vec::new();
        let mut next = 0;
        pipeline.rows::<Error, _>(id, |rows| {
            assert_eq!(rows.first, next);
            next += rows.count;
            bytes.extend_from_slice(rows.data);
            Ok(())
        })?;
        all.push(bytes);
    }
    Ok(all)
}

fn expected(catalog: &Catalog, files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    catalog
        .pass
        .iter()
        .map(|&id| {
            let tensor = catalog.get(id).unwrap();
            files[tensor.file][tensor.offset as usize..][..tensor.bytes()].to_vec()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_same_rows_arrive_whatever_the_plan(
        layers in prop::collection::vec(
            prop::collection::vec((1usize..60, 1usize..300), 1..6), 1..6),
        tied in any::<bool>(),
        pinned in prop::collection::vec(any::<bool>(), 7),
        slots in 1usize..5,
        extra in 0usize..20_000,
        readers in 1usize..5,
        fail_every in prop_oneof![Just(0u64), 2u64..5],
        discrete in any::<bool>(),
        leave in prop::collection::vec((0usize..8, 0usize..40), 0..3),
    ) {
        let (catalog, files) = model(&layers, tied);
        let want = expected(&catalog, &files);
        let embed: Vec<u8> = [5u32, 96, 5, 0].iter()
            .flat_map(|&row| files[0][4096 + row as usize * 132..][..132].to_vec())
            .collect();
        let slot_bytes = smallest_slot(300 * 4) + extra;
        let options = options(pinned, slots, slot_bytes, readers);
        let device = Arc::new(Host { discrete });
        let mut pipeline =
            Pipeline::start(device, source(files, fail_every, true), catalog.clone(), &options).unwrap();
        for turn in 0..4 {
            let mut got = Vec::new();
            pipeline.gather::<Error, _>(TensorId { unit: 0, tensor: 0 }, &[5, 96, 5, 0], |view| {
                got.extend_from_slice(view);
                Ok(())
            }).unwrap();
            prop_assert_eq!(&got, &embed);
            if let Some(&(_, tensors)) = leave.iter().find(|(at, _)| *at == turn) {
                for &id in catalog.pass.iter().take(tensors.min(catalog.pass.len() - 1)) {
                    pipeline.skip(id).unwrap();
                }
                pipeline.restart().unwrap();
            }
            prop_assert_eq!(pass(&mut pipeline).unwrap(), want.clone());
        }
    }
}

#[test]
fn pinned_units_are_read_once_and_streamed_ones_every_pass() {
    let (catalog, files) = model(&[vec![(50, 100)], vec![(50, 100)], vec![(50, 100)]], false);
    let want = expected(&catalog, &files);
    let options = options(vec![true, true, false, true], 2, 8192, 2);
    let device = Arc::new(Host { discrete: false });
    let mut pipeline = Pipeline::start(device, source(files, 0, false), catalog, &options).unwrap();
    for _ in 0..5 {
        assert_eq!(pass(&mut pipeline).unwrap(), want);
    }
    let Stats { passes, bytes_leased, bytes_read, .. } = pipeline.stats();
    assert_eq!((passes, bytes_leased), (5, 5 * 3 * 50 * 400));
    let (once, each) = (97 * 132 + 2 * 50 * 400, 50 * 400);
    // Rounding up to 4096 at both ends of each stripe, and at most a ring of reading ahead.
    assert!(bytes_read >= once + 5 * each, "{bytes_read}");
    assert!(bytes_read <= once + 5 * each + 60 * 4096 + 2 * 8192, "{bytes_read}");
    let streamed = pipeline.streamed_bytes();
    assert!((each..=each + 8 * 4096).contains(&streamed), "{streamed}");
}

#[test]
fn readers_work_across_the_end_of_a_pass() {
    let (catalog, files) = model(&[vec![(50, 100)]], false);
    let options = options(vec![], 2, 8192, 1);
    let device = Arc::new(Host { discrete: false });
    let timeline = options.timeline.clone();
    let mut pipeline = Pipeline::start(device, source(files, 0, false), catalog, &options).unwrap();
    pass(&mut pipeline).unwrap();
    // No second pass is asked for; its first stripes are read nevertheless.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !timeline.events().iter().any(|event| event.pass == 1 && event.lane > 0) {
        assert!(std::time::Instant::now() < deadline, "nothing was read ahead");
        std::thread::yield_now();
    }
}

#[test]
fn a_flipped_bit_is_found_before_the_pass_ends() {
    for (unit, tied) in [(2, false), (0, false), (0, true)] {
        for pin in [false, true] {
            let (catalog, mut files) = model(&[vec![(5, 30), (50, 100)], vec![(50, 100)]], tied);
            files[unit][4096 + 3000] ^= 4;
            let options = options(vec![pin; 3], 2, 8192, 2);
            let device = Arc::new(Host { discrete: false });
            let error = Pipeline::start(device, source(files, 0, false), catalog, &options)
                .and_then(|mut pipeline| pass(&mut pipeline))
                .unwrap_err();
            let Error::Checksum { tensor, .. } = &error else { panic!("{error}") };
            assert!(tensor.starts_with(&format!("u{unit}.")), "{tensor}");
        }
    }
}

#[test]
fn a_source_that_stays_broken_ends_the_pass_with_its_error() {
    let (catalog, files) = model(&[vec![(50, 100)]], true);
    let options = options(vec![], 2, 8192, 2);
    let device = Arc::new(Host { discrete: false });
    let mut pipeline = Pipeline::start(device, source(files, 1, false), catalog, &options).unwrap();
    let error = pass(&mut pipeline).unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    assert!(pass(&mut pipeline).is_err());
    assert!(pipeline.stats().retries >= 2);
}

#[test]
fn wrong_use_is_refused() {
    let (catalog, files) = model(&[vec![(5, 10), (5, 10)]], false);
    let start = |catalog: Catalog, options: &Options| {
        let device = Arc::new(Host { discrete: false });
        Pipeline::start(device, source(files.clone(), 0, false), catalog, options)
    };
    let good = options(vec![], 2, 8192, 1);
    let mut pipeline = start(catalog.clone(), &good).unwrap();
    let error = pipeline.skip(catalog.pass[1]).unwrap_err();
    assert!(error.to_string().contains("u1.t1 was asked for, the next one of the pass is u1.t0"), "{error}");
    let error = pipeline.gather::<Error, _>(TensorId { unit: 0, tensor: 0 }, &[97], |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("row 97 was asked for, there are 97"), "{error}");

    assert!(start(catalog.clone(), &options(vec![], 0, 8192, 1)).is_err());
    assert!(start(catalog.clone(), &options(vec![], 2, 8192, 0)).is_err());
    let mut beyond = catalog.clone();
    beyond.units[1].tensors[1].rows = 1 << 40;
    assert!(start(beyond, &good).is_err());
    let mut nowhere = catalog;
    nowhere.pass.push(TensorId { unit: 9, tensor: 0 });
    assert!(start(nowhere, &good).is_err());
}
