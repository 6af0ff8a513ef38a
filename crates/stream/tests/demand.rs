//! Units read on demand, as a model with experts uses them: whatever the cache, the readers, the faults and
//! the device, the bytes are those of the file.

#![allow(clippy::unwrap_used)]

mod common;

use airllm_stream::{
    Activity, Catalog, Error, ExpertCache, Options, Pipeline, TensorId, Unit, smallest_slot,
};
use common::{Host, content, model, options, source, write};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Dense layers as in [`model`], each with `experts` behind it in its file. Experts are the last units, layer by
/// layer.
fn moe(layers: &[Vec<(usize, usize)>], experts: usize, shapes: &[(usize, usize)]) -> (Catalog, Vec<Vec<u8>>) {
    let (mut catalog, mut files) = model(layers, false);
    for (layer, file) in files.iter_mut().enumerate().skip(1) {
        for expert in 0..experts {
            let tensors = write(layer, expert + 1, shapes, file);
            let name = format!("u{layer}.expert{expert}");
            catalog.units.push(Unit { name, tensors, on_demand: true });
        }
    }
    (catalog, files)
}

/// A model small enough to reason about: two layers, four experts each of three matrices, 6000 bytes.
fn small() -> (Catalog, Vec<Vec<u8>>) {
    moe(&[vec![(20, 50)], vec![(20, 50)]], 4, &[(10, 50), (10, 50), (10, 50)])
}

fn with_cache(pinned: Vec<bool>, slots: usize, slot_bytes: usize) -> Options {
    Options { experts: ExpertCache { slots, slot_bytes }, ..options(pinned, 2, 8192, 2) }
}

fn start(catalog: &Catalog, files: &[Vec<u8>], options: &Options) -> Pipeline<Host> {
    let source = source(files.to_vec(), 0, false);
    Pipeline::start(Arc::new(Host::new(false, 0)), source, catalog.clone(), options).unwrap()
}

/// Leases a dense tensor or one of a requested unit.
fn lease(pipeline: &mut Pipeline<Host>, id: TensorId) -> Result<Vec<u8>, Error> {
    let on_demand = pipeline.catalog().units[id.unit].on_demand;
    let mut bytes = Vec::new();
    let mut next = 0;
    let take = |rows: airllm_stream::Rows<&[u8]>| {
        assert_eq!(rows.first, next);
        next += rows.count;
        bytes.extend_from_slice(rows.data);
        Ok(())
    };
    if on_demand {
        pipeline.demand::<Error, _>(id, take)?
    } else {
        pipeline.rows::<Error, _>(id, take)?
    }
    Ok(bytes)
}

/// Requests units, leases all of each, and says that it is done.
fn use_units(pipeline: &mut Pipeline<Host>, units: &[usize]) -> Result<Vec<Vec<u8>>, Error> {
    pipeline.request(units)?;
    let mut all = Vec::new();
    for &unit in units {
        for tensor in 0..pipeline.catalog().units[unit].tensors.len() {
            all.push(lease(pipeline, TensorId { unit, tensor })?);
        }
        pipeline.done(unit)?;
    }
    Ok(all)
}

/// What one layer does for one token.
#[derive(Debug, Clone)]
struct Step {
    /// Experts, as offsets among those of the layer; repeated ones are left out.
    chosen: Vec<usize>,
    /// Tensors leased of each before it is done.
    leased: usize,
    /// Whether the pass is given up in the middle of this layer.
    restart: bool,
    /// A row to gather from the layer's first expert.
    gather: u32,
}

fn step() -> impl Strategy<Value = Step> {
    let chosen = prop::collection::vec(0usize..5, 0..6);
    (chosen, prop_oneof![4 => Just(3usize), 1 => 0usize..3], prop::bool::weighted(0.1), 0u32..8)
        .prop_map(|(chosen, leased, restart, gather)| Step { chosen, leased, restart, gather })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn requested_rows_arrive_whatever_the_cache(
        layers in prop::collection::vec(prop::collection::vec((1usize..40, 1usize..200), 1..4), 1..4),
        shapes in prop::collection::vec((8usize..40, 1usize..200), 3),
        pinned in prop::collection::vec(prop::bool::weighted(0.3), 20),
        (slots, slot_bytes, readers) in (1usize..5, 0usize..10_000, 1usize..5),
        (cache, cache_extra) in (1usize..12, 0usize..30_000),
        fail_every in prop_oneof![Just(0u64), 2u64..5],
        (discrete, lag) in (any::<bool>(), 0u64..4),
        steps in prop::collection::vec(step(), 3..24),
    ) {
        let (catalog, files) = moe(&layers, 5, &shapes);
        let options = Options {
            experts: ExpertCache { slots: cache, slot_bytes: smallest_slot(200 * 4) + cache_extra },
            ..options(pinned, slots, smallest_slot(200 * 4) + slot_bytes, readers)
        };
        let device = Arc::new(Host::new(discrete, lag));
        let source = source(files.clone(), fail_every, true);
        let mut pipeline = Pipeline::start(device, source, catalog.clone(), &options).unwrap();
        let (mut layer, mut leased) = (1, 0);
        for step in steps {
            // The layer's dense tensors, the router's word, then its experts.
            for id in catalog.pass.iter().copied().filter(|id| id.unit == layer) {
                prop_assert_eq!(lease(&mut pipeline, id).unwrap(), content(&catalog, &files, id));
            }
            let first = 1 + layers.len() + (layer - 1) * 5;
            let mut units: Vec<usize> = step.chosen.iter().map(|expert| first + expert).collect();
            let mut seen = std::collections::HashSet::new();
            units.retain(|&unit| seen.insert(unit));
            pipeline.request(&units).unwrap();
            let some = TensorId { unit: first, tensor: 1 };
            let mut row = Vec::new();
            pipeline.gather::<Error, _>(some, &[step.gather], |view| {
                row.extend_from_slice(view);
                Ok(())
            }).unwrap();
            prop_assert_eq!(&row[..], &content(&catalog, &files, some)[step.gather as usize * row.len()..][..row.len()]);
            for (index, &unit) in units.iter().enumerate() {
                for tensor in 0..step.leased {
                    let id = TensorId { unit, tensor };
                    let bytes = lease(&mut pipeline, id).unwrap();
                    leased += bytes.len() as u64;
                    prop_assert_eq!(bytes, content(&catalog, &files, id));
                }
                if step.restart && index == units.len() / 2 {
                    break;
                }
                pipeline.done(unit).unwrap();
            }
            if step.restart {
                pipeline.restart().unwrap();
                layer = 1;
            } else {
                layer = layer % layers.len() + 1;
            }
        }
        prop_assert_eq!(pipeline.stats().demand_bytes, leased);
    }
}

#[test]
fn what_fits_the_cache_is_read_once() {
    let (catalog, files) = small();
    // An expert is two stripes of at most 8192 bytes, or one if it lies well.
    let mut pipeline = start(&catalog, &files, &with_cache(vec![], 16, 8192));
    let want: Vec<_> = [4, 6]
        .iter()
        .flat_map(|&unit| (0..3).map(move |tensor| TensorId { unit, tensor }))
        .map(|id| content(&catalog, &files, id))
        .collect();
    assert_eq!(use_units(&mut pipeline, &[4, 6]).unwrap(), want);
    let first = pipeline.stats();
    assert!(first.demand_hits == 0 && (2..=4).contains(&first.demand_misses), "{first:?}");
    assert!((12_000..=4 * 8192).contains(&first.demand_read), "{first:?}");
    for _ in 0..3 {
        assert_eq!(use_units(&mut pipeline, &[4, 6]).unwrap(), want);
    }
    let last = pipeline.stats();
    assert_eq!(
        (last.demand_hits, last.demand_misses, last.demand_read),
        (3 * first.demand_misses, first.demand_misses, first.demand_read)
    );
    assert_eq!((first.demand_bytes, last.demand_bytes, last.bytes_leased), (12_000, 48_000, 48_000));
}

#[test]
fn an_expert_larger_than_the_cache_flows_through_it() {
    let (catalog, files) = moe(&[vec![(20, 50)]], 2, &[(100, 200), (100, 200)]);
    for slots in [1, 2] {
        let mut pipeline = start(&catalog, &files, &with_cache(vec![], slots, 8192));
        for _ in 0..3 {
            for (tensor, bytes) in use_units(&mut pipeline, &[2, 3]).unwrap().into_iter().enumerate() {
                let id = TensorId { unit: 2 + tensor / 2, tensor: tensor % 2 };
                assert_eq!(bytes, content(&catalog, &files, id));
            }
        }
        let stats = pipeline.stats();
        // What was leased last may be in memory still when the same unit comes again.
        assert!(stats.demand_misses >= 3 * 40 && stats.demand_hits <= 6, "{stats:?}");
    }
}

#[test]
fn pinned_experts_need_no_cache_and_are_read_once() {
    let (catalog, files) = small();
    let everything =
        Options { experts: ExpertCache::default(), slots: 0, ..with_cache(vec![true; 11], 0, 0) };
    let mut pipeline = start(&catalog, &files, &everything);
    let mut read = 0;
    for token in 0..4 {
        for layer in 1..=2 {
            lease(&mut pipeline, TensorId { unit: layer, tensor: 0 }).unwrap();
            let first = 3 + (layer - 1) * 4;
            use_units(&mut pipeline, &[first + 1, first + 3]).unwrap();
        }
        let now = pipeline.stats();
        assert!(token == 0 || now.bytes_read == read, "{now:?}");
        read = now.bytes_read;
    }
    let stats = pipeline.stats();
    assert_eq!((stats.demand_misses, stats.demand_hits), (4, 12));
    assert_eq!(stats.passes, 4);
}

#[test]
fn what_every_token_uses_stays_while_the_rest_changes() {
    let (catalog, files) = moe(&[vec![(20, 50)]], 9, &[(10, 50)]);
    let mut pipeline = start(&catalog, &files, &with_cache(vec![], 3, 8192));
    for token in 0..20 {
        lease(&mut pipeline, TensorId { unit: 1, tensor: 0 }).unwrap();
        use_units(&mut pipeline, &[2, 3 + token % 8]).unwrap();
    }
    let stats = pipeline.stats();
    assert_eq!((stats.demand_hits, stats.demand_misses), (19, 21));
}

#[test]
fn the_timeline_shows_reads_on_demand_beside_the_ring() {
    let (catalog, files) = small();
    let options = with_cache(vec![], 2, 8192);
    let timeline = options.timeline.clone();
    let mut pipeline = start(&catalog, &files, &options);
    for _ in 0..2 {
        for layer in 1..=2 {
            lease(&mut pipeline, TensorId { unit: layer, tensor: 0 }).unwrap();
            use_units(&mut pipeline, &[layer * 4]).unwrap();
        }
    }
    let events = timeline.events();
    let reads = |unit: usize, pass: u64| {
        events.iter().any(|e| (e.unit, e.pass) == (unit, pass) && e.activity == Activity::Read && e.lane > 0)
    };
    assert!(reads(1, 0) && reads(2, 0) && reads(1, 1) && reads(4, 0), "{events:?}");
    // The second layer's request is made when the last rows of the pass were leased: it counts to the next.
    assert!(reads(8, 1), "{events:?}");
    assert!(events.iter().any(|e| e.unit == 4 && e.activity == Activity::Compute && e.bytes == 2000));
}

#[test]
fn damage_is_found_when_an_expert_is_first_read() {
    let (catalog, mut files) = small();
    let damaged = catalog.get(TensorId { unit: 5, tensor: 1 }).unwrap().offset as usize + 700;
    files[1][damaged] ^= 1;
    for pin in [false, true] {
        let mut pipeline = start(&catalog, &files, &with_cache(vec![pin; 11], 4, 8192));
        use_units(&mut pipeline, &[4]).unwrap();
        let error = use_units(&mut pipeline, &[5]).unwrap_err();
        assert!(matches!(&error, Error::Checksum { tensor, .. } if tensor == "u1.expert2.t1"), "{error}");
        // A damaged model is not computed with any further.
        assert!(use_units(&mut pipeline, &[4]).is_err());
        assert!(pipeline.skip(catalog.pass[0]).is_err());
    }
    // Damage that nobody waited for is remembered.
    let mut pipeline = start(&catalog, &files, &with_cache(vec![], 4, 8192));
    pipeline.request(&[5]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    pipeline.restart().unwrap();
    assert!(matches!(use_units(&mut pipeline, &[5]).unwrap_err(), Error::Checksum { .. }));
}

#[test]
fn a_source_that_stays_broken_ends_a_request_with_its_error() {
    let (catalog, files) = small();
    let source = source(files, 1, false);
    let options = with_cache(vec![], 2, 8192);
    let mut pipeline = Pipeline::start(Arc::new(Host::new(false, 0)), source, catalog, &options);
    // The embedding's checksum is checked at the start, so even that fails on this source.
    assert!(matches!(pipeline.as_mut().err(), Some(Error::Source(_))));
    let (mut catalog, files) = small();
    catalog.units[0].tensors[0].checksum = None;
    let source = common::source(files, 1, false);
    let device = Arc::new(Host::new(false, 0));
    let mut pipeline = Pipeline::start(device, source.clone(), catalog, &options).unwrap();
    let error = use_units(&mut pipeline, &[4]).unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    assert!(source.reads.load(Ordering::Relaxed) >= 3);
    assert!(use_units(&mut pipeline, &[6]).is_err());
}

#[test]
fn a_stop_ends_a_demand() {
    let (catalog, files) = small();
    let mut pipeline = start(&catalog, &files, &with_cache(vec![], 2, 8192));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    pipeline.stop_when(stop.clone());
    pipeline.request(&[4, 5]).unwrap();
    lease(&mut pipeline, TensorId { unit: 4, tensor: 0 }).unwrap();
    stop.store(true, Ordering::Relaxed);
    let error = lease(&mut pipeline, TensorId { unit: 4, tensor: 1 }).unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error}");
    stop.store(false, Ordering::Relaxed);
    pipeline.restart().unwrap();
    let id = TensorId { unit: 5, tensor: 0 };
    pipeline.request(&[5]).unwrap();
    assert_eq!(lease(&mut pipeline, id).unwrap(), content(&catalog, &files, id));
}

#[test]
fn wrong_use_is_refused_by_name() {
    let (catalog, files) = small();
    let mut pipeline = start(&catalog, &files, &with_cache(vec![], 4, 8192));
    let id = |unit, tensor| TensorId { unit, tensor };
    let message = |result: Result<(), Error>| result.unwrap_err().to_string();
    let next = "was asked for, the next one of those requested is";
    assert_eq!(message(lease(&mut pipeline, id(4, 0)).map(drop)), format!("u1.expert1.t0 {next} nothing"));
    assert_eq!(message(pipeline.done(4)), format!("u1.expert1 {next} nothing"));
    assert_eq!(message(pipeline.request(&[1])), "unit u1 was requested, which is not read on demand");
    assert_eq!(message(pipeline.request(&[99])), "unit number 99 was requested, which is not there");
    assert_eq!(message(pipeline.request(&[4, 4])), "unit u1.expert1 was requested, twice at once");
    pipeline.request(&[4, 6]).unwrap();
    assert_eq!(
        message(pipeline.request(&[5, 6])),
        "unit u1.expert3 was requested, which is requested already"
    );
    assert_eq!(
        message(lease(&mut pipeline, id(6, 0)).map(drop)),
        format!("u1.expert3.t0 {next} u1.expert1.t0")
    );
    assert_eq!(message(pipeline.done(6)), format!("u1.expert3 {next} u1.expert1"));
    for tensor in 0..3 {
        lease(&mut pipeline, id(4, tensor)).unwrap();
    }
    let found = message(lease(&mut pipeline, id(6, 0)).map(drop));
    assert_eq!(found, format!("u1.expert3.t0 {next} the end of u1.expert1"));
    pipeline.done(4).unwrap();
    lease(&mut pipeline, id(6, 0)).unwrap();

    let refused = |catalog: Catalog, options: &Options| {
        let source = source(files.clone(), 0, false);
        Pipeline::start(Arc::new(Host::new(false, 0)), source, catalog, options).err().unwrap().to_string()
    };
    let found = refused(catalog.clone(), &with_cache(vec![], 0, 8192));
    assert!(found.contains("0 slots cannot hold"), "{found}");
    let found = refused(catalog.clone(), &with_cache(vec![], 2, 0));
    assert!(found.contains("u1.expert0.t0: one row needs a slot of 8192 bytes"), "{found}");
    let mut twice = catalog;
    twice.pass.push(id(5, 0));
    let found = refused(twice, &with_cache(vec![], 2, 8192));
    assert!(found.contains("the pass names u1.expert2.t0, which is read on demand"), "{found}");
}
