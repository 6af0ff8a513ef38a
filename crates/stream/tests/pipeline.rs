//! The whole stream on sources that misbehave: whatever the budget, the ring, the readers and the faults,
//! the same rows arrive in the same order.

#![allow(clippy::unwrap_used)]

mod common;

use airllm_format::LayerSource;
use airllm_stream::{Catalog, Error, Options, Pipeline, Stats, TensorId, smallest_slot};
use common::{Host, expected, model, options, pass, source};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

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
        let device = Arc::new(Host::new(discrete, 0));
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
    let device = Arc::new(Host::new(false, 0));
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
    let device = Arc::new(Host::new(false, 0));
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

/// A source whose reads end only in company: each waits until all readers read. Where one does not come, those that wait
/// go on after a while, and are counted.
struct Together {
    inner: Arc<common::Source>,
    readers: usize,
    /// Reads that began, and reads that ended alone.
    state: Mutex<(usize, usize)>,
    came: Condvar,
    open: AtomicBool,
}

impl LayerSource for Together {
    fn files(&self) -> usize {
        self.inner.files()
    }
    fn name(&self, file: usize) -> &str {
        self.inner.name(file)
    }
    fn len(&self, file: usize) -> u64 {
        self.inner.len(file)
    }
    fn alignment(&self) -> usize {
        self.inner.alignment()
    }
    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> airllm_format::Result<()> {
        if self.readers > 0 && !self.open.load(Ordering::Relaxed) {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            let group = state.0.next_multiple_of(self.readers);
            let (mut state, late) = self
                .came
                .wait_timeout_while(state, Duration::from_secs(5), |state| {
                    state.0 < group && !self.open.load(Ordering::Relaxed)
                })
                .unwrap();
            state.1 += usize::from(late.timed_out());
            self.came.notify_all();
        }
        self.inner.read_at(file, offset, buf)
    }
}

#[test]
fn while_the_consumer_waits_every_reader_reads_between_layers_and_passes_too() {
    // Layers of one stripe and of several, and small ones.
    let layers = [vec![(50, 100), (3, 20)], vec![(2, 8)], vec![(90, 100)], vec![(20, 100)]];
    for readers in [2, 3] {
        let (catalog, files) = model(&layers, false);
        let want = expected(&catalog, &files);
        // One slot is leased, and there is one for each reader: none more.
        let options = options(vec![], readers + 1, 8192, readers);
        let inner = source(files, 0, false);
        let (state, came, open) = (Mutex::default(), Condvar::new(), AtomicBool::new(true));
        let together = Arc::new(Together { inner, readers, state, came, open });
        let device = Arc::new(Host::new(false, 0));
        let mut pipeline = Pipeline::start(device, together.clone(), catalog, &options).unwrap();
        // From here on no reader may be idle while the consumer waits: it would wait for ever.
        together.open.store(false, Ordering::Relaxed);
        for _ in 0..20 {
            assert_eq!(pass(&mut pipeline).unwrap(), want);
        }
        let (began, alone) = *together.state.lock().unwrap();
        together.open.store(true, Ordering::Relaxed);
        together.came.notify_all();
        assert!(began > 100, "{began} reads");
        assert_eq!(alone, 0, "of {began} reads so many waited for a reader that did not come");
    }
}

#[test]
fn a_flipped_bit_is_found_before_the_pass_ends() {
    for (unit, tied) in [(2, false), (0, false), (0, true)] {
        for pin in [false, true] {
            let (catalog, mut files) = model(&[vec![(5, 30), (50, 100)], vec![(50, 100)]], tied);
            files[unit][4096 + 3000] ^= 4;
            let options = options(vec![pin; 3], 2, 8192, 2);
            let device = Arc::new(Host::new(false, 0));
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
    let device = Arc::new(Host::new(false, 0));
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
        let device = Arc::new(Host::new(false, 0));
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
