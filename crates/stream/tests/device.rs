//! The stream to a device with memory of its own, on one that does nothing before somebody waits for it.

#![allow(clippy::unwrap_used)]

mod common;

use airllm_stream::{
    Catalog, Error, ExpertCache, OnDevice, Options, Pipeline, TensorId, Unit, smallest_slot,
};
use common::lazy::{Broken, Lazy, LazyView, POISON};
use common::{content, expected, model, options, source, write};
use proptest::prelude::*;
use std::sync::Arc;

/// Lets the device look at all that a pass leases; returns the tensors, as often as they came.
fn pass(pipeline: &mut Pipeline<Lazy>) -> Result<Vec<TensorId>, Error> {
    let mut leased = Vec::new();
    for id in pipeline.catalog().pass.clone() {
        rows(pipeline, id, &mut leased)?;
    }
    Ok(leased)
}

fn rows(pipeline: &mut Pipeline<Lazy>, id: TensorId, leased: &mut Vec<TensorId>) -> Result<(), Error> {
    let device = pipeline.device().clone();
    let on_demand = pipeline.catalog().units[id.unit].on_demand;
    let mut next = 0;
    let see = |rows: airllm_stream::Rows<LazyView<'_>>| {
        assert_eq!(rows.first, next);
        next += rows.count;
        device.see(rows.data);
        leased.push(id);
        Ok(())
    };
    if on_demand { pipeline.demand::<Error, _>(id, see) } else { pipeline.rows::<Error, _>(id, see) }
}

/// What verbs saw, joined where it is of one tensor; `leased` says whose each was.
fn joined(seen: Vec<Vec<u8>>, leased: &[TensorId]) -> Vec<Vec<u8>> {
    assert_eq!(seen.len(), leased.len());
    let mut all: Vec<Vec<u8>> = Vec::new();
    let mut last = None;
    for (bytes, &id) in seen.into_iter().zip(leased) {
        match all.last_mut() {
            Some(tensor) if last == Some(id) => tensor.extend(bytes),
            _ => all.push(bytes),
        }
        last = Some(id);
    }
    all
}

fn gather(pipeline: &mut Pipeline<Lazy>, id: TensorId, rows: &[u32]) {
    let device = pipeline.device().clone();
    let see = |view: LazyView<'_>| {
        device.see(view);
        Ok(())
    };
    pipeline.gather::<Error, _>(id, rows, see).unwrap();
}

/// The same model with every file's bytes `shift` later, so that tensors start at odd places.
fn shifted(mut catalog: Catalog, mut files: Vec<Vec<u8>>, shift: usize) -> (Catalog, Vec<Vec<u8>>) {
    for file in &mut files {
        file.splice(0..0, vec![7; shift]);
    }
    let tensors = catalog.units.iter_mut().flat_map(|unit| &mut unit.tensors);
    tensors.for_each(|tensor| tensor.offset += shift as u64);
    (catalog, files)
}

/// Where a unit is, drawn at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Streamed,
    Pinned,
    Resident,
    ResidentAndPinned,
    OnHost,
}

fn anywhere() -> impl Strategy<Value = Where> {
    prop_oneof![
        3 => Just(Where::Streamed),
        2 => Just(Where::Pinned),
        2 => Just(Where::Resident),
        1 => Just(Where::ResidentAndPinned),
        1 => Just(Where::OnHost),
    ]
}

fn placed(places: &[Where], slots: usize, base: Options) -> Options {
    let marked = |of: &[Where]| places.iter().map(|place| of.contains(place)).collect::<Vec<bool>>();
    let device = OnDevice {
        slots,
        resident: marked(&[Where::Resident, Where::ResidentAndPinned]),
        on_host: marked(&[Where::OnHost]),
    };
    Options { pinned: marked(&[Where::Pinned, Where::ResidentAndPinned, Where::OnHost]), device, ..base }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn the_device_sees_the_bytes_of_the_source_whatever_the_layout(
        layers in prop::collection::vec(
            prop::collection::vec((1usize..60, 1usize..300), 1..6), 1..6),
        tied in any::<bool>(),
        places in prop::collection::vec(anywhere(), 6),
        (slots, device_slots, readers) in (1usize..5, 1usize..5, 1usize..4),
        extra in 0usize..20_000,
        shift in prop_oneof![2 => Just(0usize), 1 => 1usize..300],
        fail_every in prop_oneof![Just(0u64), 2u64..5],
        willing in 0u64..4,
        leave in prop::collection::vec((0usize..8, 0usize..40), 0..3),
    ) {
        let (catalog, files) = model(&layers, tied);
        let (catalog, files) = shifted(catalog, files, shift);
        let want = expected(&catalog, &files);
        let embed = TensorId { unit: 0, tensor: 0 };
        let row = |row: usize| content(&catalog, &files, embed)[row * 132..][..132].to_vec();
        let gathered: Vec<u8> = [5, 96, 5, 0].into_iter().flat_map(row).collect();
        let options =
            placed(&places, device_slots, options(vec![], slots, smallest_slot(300 * 4) + extra, readers));
        let device = Arc::new(Lazy::new(willing, true, Broken::default()));
        let source = source(files.clone(), fail_every, true);
        let mut pipeline = Pipeline::start(device.clone(), source, catalog.clone(), &options).unwrap();
        for turn in 0..4 {
            gather(&mut pipeline, embed, &[5, 96, 5, 0]);
            prop_assert_eq!(device.take_seen(), [gathered.clone()]);
            if let Some(&(_, tensors)) = leave.iter().find(|(at, _)| *at == turn) {
                for &id in catalog.pass.iter().take(tensors.min(catalog.pass.len() - 1)) {
                    pipeline.skip(id).unwrap();
                }
                pipeline.restart().unwrap();
            }
            let leased = pass(&mut pipeline).unwrap();
            // Over two passes at once in every other turn, so that what runs ahead is not caught up with.
            if turn % 2 == 0 {
                let more = pass(&mut pipeline).unwrap();
                let seen = device.take_seen();
                let (first, second) = seen.split_at(leased.len());
                prop_assert_eq!(joined(first.to_vec(), &leased), want.clone());
                prop_assert_eq!(joined(second.to_vec(), &more), want.clone());
            } else {
                prop_assert_eq!(joined(device.take_seen(), &leased), want.clone());
            }
        }
        drop(pipeline);
        prop_assert_eq!(device.violations(), Vec::<String>::new());
    }
}

/// Six layers of two tensors each, 10240 bytes without gaps, each layer one stripe.
fn even() -> (Catalog, Vec<Vec<u8>>) {
    model(&vec![vec![(20, 64), (20, 64)]; 6], false)
}
const LAYER: u64 = 2 * 20 * 64 * 4;

fn start(files: &[Vec<u8>], catalog: &Catalog, options: &Options, broken: Broken) -> Pipeline<Lazy> {
    let device = Arc::new(Lazy::new(0, true, broken));
    Pipeline::start(device, source(files.to_vec(), 0, false), catalog.clone(), options).unwrap()
}

#[test]
fn each_pass_copies_what_does_not_live_on_the_device_and_copies_that_once() {
    use Where::{OnHost, Pinned, Resident, Streamed};
    let (catalog, files) = even();
    let places = [Streamed, Resident, Pinned, Streamed, OnHost, Resident, Streamed];
    for device_slots in 1..4 {
        let options = placed(&places, device_slots, options(vec![], 2, 16384, 1));
        let mut pipeline = start(&files, &catalog, &options, Broken::default());
        for passes in 1..5 {
            pass(&mut pipeline).unwrap();
            let stats = pipeline.stats();
            // Two layers live on the device, one is computed with on the host, three are copied in each pass.
            let (least, most) = ((2 + 3 * passes) * LAYER, (2 + 3 * passes + device_slots as u64) * LAYER);
            assert!((least..=most).contains(&stats.bytes_uploaded), "{stats:?}");
            assert_eq!(stats.bytes_uploaded, stats.uploads * LAYER, "one copy for a stripe");
            assert_eq!(stats.bytes_leased, 6 * LAYER * passes);
        }
        // What was not copied ahead is not in the sum: give up a pass that nothing was leased of, twice.
        let before = pipeline.stats();
        pipeline.restart().unwrap();
        pipeline.restart().unwrap();
        assert_eq!(pipeline.stats().bytes_uploaded, before.bytes_uploaded);
        // Read: the layers that stay once, two streamed ones in every pass and at most the ring's slots ahead.
        let file = LAYER.next_multiple_of(4096);
        let table = 97 * 132;
        let most = (4 + 2 * 4 + 3 + device_slots as u64) * file + table + 8192;
        assert!(before.bytes_read <= most, "{} of {most}", before.bytes_read);
    }
}

#[test]
fn when_a_pass_ends_the_next_one_is_on_its_way() {
    let (catalog, files) = even();
    for device_slots in 1..5 {
        let places = [Where::Pinned; 7];
        let options = placed(&places, device_slots, options(vec![], 0, 16384, 1));
        let mut pipeline = start(&files, &catalog, &options, Broken::default());
        for passes in 1..4u64 {
            pass(&mut pipeline).unwrap();
            let ahead = pipeline.stats().bytes_uploaded - 6 * LAYER * passes;
            assert_eq!(ahead, device_slots as u64 * LAYER);
            // The host has waited for none of it: the last layers and all that is ahead are still to be copied.
            assert!(pipeline.device().pending_copies() >= device_slots);
        }
        assert_eq!(pipeline.stats().device_wait_ns, 0);
    }
}

#[test]
fn slots_whose_copies_are_done_go_back_without_waiting() {
    let (catalog, files) = even();
    for (slots, device_slots) in [(1, 1), (2, 3), (4, 2)] {
        let options = placed(&[], device_slots, options(vec![], slots, 16384, 1));
        let device = Arc::new(Lazy::new(1, true, Broken::default()));
        let mut pipeline =
            Pipeline::start(device, source(files.clone(), 0, true), catalog.clone(), &options).unwrap();
        for _ in 0..3 {
            pass(&mut pipeline).unwrap();
        }
        assert_eq!(pipeline.stats().device_wait_ns, 0);
    }
}

#[test]
fn one_slot_of_each_kind_is_enough() {
    let (catalog, files) = even();
    let options = placed(&[], 1, options(vec![], 1, 16384, 1));
    let mut pipeline = start(&files, &catalog, &options, Broken::default());
    let want = expected(&catalog, &files);
    for _ in 0..3 {
        let leased = pass(&mut pipeline).unwrap();
        assert_eq!(joined(pipeline.device().take_seen(), &leased), want);
    }
}

#[test]
fn without_follow_the_device_computes_with_poison() {
    let (catalog, files) = even();
    let options = placed(&[Where::Pinned; 7], 6, options(vec![], 0, 16384, 1));
    let broken = Broken { follow: true, ..Broken::default() };
    let mut pipeline = start(&files, &catalog, &options, broken);
    pass(&mut pipeline).unwrap();
    let seen = pipeline.device().take_seen();
    assert!(seen.iter().flatten().all(|&byte| byte == POISON), "nothing was waited for");
}

#[test]
fn without_after_a_copy_overtakes_the_work_that_reads_its_buffer() {
    let (catalog, files) = even();
    let want = expected(&catalog, &files);
    // One slot of the host makes copies be waited for; work is not.
    let options = placed(&[], 2, options(vec![], 1, 16384, 1));
    for after in [false, true] {
        let mut pipeline = start(&files, &catalog, &options, Broken { after, ..Broken::default() });
        let leased = pass(&mut pipeline).unwrap();
        let seen = joined(pipeline.device().take_seen(), &leased);
        assert_eq!(seen != want, after);
    }
}

#[test]
fn a_pipeline_that_is_dropped_waits_for_its_copies() {
    let (catalog, files) = even();
    let options = placed(&[Where::Pinned; 7], 3, options(vec![], 0, 16384, 1));
    let mut pipeline = start(&files, &catalog, &options, Broken::default());
    // After the first pass all that is pinned has arrived, and can be copied ahead.
    pass(&mut pipeline).unwrap();
    pipeline.skip(catalog.pass[0]).unwrap();
    let device = pipeline.device().clone();
    assert!(device.pending_copies() >= 3);
    drop(pipeline);
    assert_eq!((device.pending_copies(), device.violations()), (0, vec![]));
}

#[test]
fn what_cannot_be_is_refused() {
    use Where::{OnHost, Resident, Streamed};
    let (mut catalog, files) = even();
    let try_with = |catalog: &Catalog, host: bool, options: &Options| {
        let device = Arc::new(Lazy::new(0, host, Broken::default()));
        Pipeline::start(device, source(files.clone(), 0, false), catalog.clone(), options)
            .err()
            .map_or(String::new(), |error| error.to_string())
    };
    let base = || options(vec![], 2, 16384, 1);
    let on_host = placed(&[Streamed, OnHost], 2, base());
    assert_eq!(try_with(&catalog, true, &on_host), "");
    let error = try_with(&catalog, false, &on_host);
    assert!(error.contains("u1 is to be computed on the host, which this device cannot"), "{error}");
    let error = try_with(&catalog, true, &Options { pinned: vec![], ..on_host.clone() });
    assert!(error.contains("u1 is to be computed on the host, and not pinned there"), "{error}");
    let resident = OnDevice { resident: vec![true; 7], ..on_host.device.clone() };
    let error = try_with(&catalog, true, &Options { device: resident, ..on_host });
    assert!(error.contains("u1 is to be computed on the host and on the device"), "{error}");
    let error = try_with(&catalog, true, &placed(&[], 0, base()));
    assert!(error.contains("0 buffers of the device cannot take 6 stripes"), "{error}");
    let all = placed(&[Resident; 7], 0, base());
    assert_eq!(try_with(&catalog, true, &all), "", "what lives on the device needs no ring there");
    let error = try_with(&catalog, true, &Options { slots: 0, ..all.clone() });
    assert!(error.contains("0 slots cannot stream 6 stripes"), "but it comes through the host's: {error}");
    catalog.pass.truncate(10);
    catalog.units[6].on_demand = true;
    let error = try_with(&catalog, true, &all);
    assert!(error.contains("u6 is read on demand, and to live on the device"), "{error}");
}

#[test]
fn a_source_that_breaks_ends_the_pass_and_the_pipeline_can_be_dropped() {
    let (catalog, files) = even();
    for places in [[Where::Streamed; 7], [Where::Resident; 7], [Where::Pinned; 7]] {
        let options = placed(&places, 2, options(vec![], 2, 16384, 2));
        let device = Arc::new(Lazy::new(0, true, Broken::default()));
        let mut catalog = catalog.clone();
        // Nothing that is checked when the pipeline starts.
        catalog.units[0].tensors[0].checksum = None;
        let mut damaged = files.clone();
        damaged[4][4096 + 300] ^= 1;
        let mut options = options;
        options.pinned[0] = false;
        let mut pipeline =
            Pipeline::start(device.clone(), source(damaged, 0, true), catalog.clone(), &options).unwrap();
        let error = pass(&mut pipeline).unwrap_err();
        assert!(matches!(error, Error::Checksum { .. }), "{error}");
        assert!(pass(&mut pipeline).is_err() && pipeline.restart().is_err());
        drop(pipeline);
        assert_eq!(device.violations(), Vec::<String>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_device_sees_the_bytes_of_units_on_demand(
        shapes in prop::collection::vec((8usize..40, 1usize..200), 3),
        places in prop::collection::vec(prop_oneof![
            4 => Just(Where::Streamed), 1 => Just(Where::Pinned), 1 => Just(Where::OnHost),
        ], 12),
        (slots, device_slots, cache) in (1usize..4, 1usize..4, 1usize..8),
        (extra, cache_extra) in (0usize..10_000, 0usize..30_000),
        willing in 0u64..4,
        steps in prop::collection::vec(
            (prop::collection::vec(0usize..5, 0..6), prop_oneof![3 => Just(3usize), 1 => 0usize..3],
             prop::bool::weighted(0.1)), 3..20),
    ) {
        let (mut catalog, mut files) = model(&[vec![(30, 40)], vec![(1, 7), (30, 40)]], false);
        for (layer, file) in files.iter_mut().enumerate().skip(1) {
            for expert in 0..5 {
                let tensors = write(layer, expert + 1, &shapes, file);
                catalog.units.push(Unit { name: format!("e{layer}.{expert}"), tensors, on_demand: true });
            }
        }
        let base = options(vec![], slots, smallest_slot(200 * 4) + extra, 2);
        let experts = ExpertCache { slots: cache, slot_bytes: smallest_slot(200 * 4) + cache_extra };
        let options = placed(&places, device_slots, Options { experts, ..base });
        let device = Arc::new(Lazy::new(willing, true, Broken::default()));
        let source = source(files.clone(), 0, true);
        let mut pipeline = Pipeline::start(device.clone(), source, catalog.clone(), &options).unwrap();
        let (mut layer, mut leased, mut want) = (1, Vec::new(), Vec::new());
        for (chosen, tensors, restart) in steps {
            for tensor in 0..catalog.units[layer].tensors.len() {
                let id = TensorId { unit: layer, tensor };
                rows(&mut pipeline, id, &mut leased).unwrap();
                want.push(content(&catalog, &files, id));
            }
            let mut units = Vec::new();
            for unit in chosen.iter().map(|expert| 3 + (layer - 1) * 5 + expert) {
                if !units.contains(&unit) {
                    units.push(unit);
                }
            }
            pipeline.request(&units).unwrap();
            for &unit in &units {
                for tensor in 0..tensors {
                    let id = TensorId { unit, tensor };
                    rows(&mut pipeline, id, &mut leased).unwrap();
                    want.push(content(&catalog, &files, id));
                }
                if restart {
                    break;
                }
                pipeline.done(unit).unwrap();
            }
            layer = 3 - layer;
            if restart {
                pipeline.restart().unwrap();
                layer = 1;
            }
        }
        // The same tensor may have come twice in a row, and so be joined: all bytes are compared at once.
        let seen: Vec<u8> = device.take_seen().into_iter().flatten().collect();
        prop_assert!(seen == want.concat());
        drop(pipeline);
        prop_assert_eq!(device.violations(), Vec::<String>::new());
    }
}
