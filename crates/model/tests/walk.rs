//! Every declared architecture, walked on a device without arithmetic and without weights.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_format::{LayerSource, NumFormat, Result as Read};
use airllm_kernels::{Event, KvFormat, Trace};
use airllm_model::arch::{ALL, Role};
use airllm_model::{Config, Error, Model, Sequence, Span, TensorDecl, Want};
use airllm_model::{activation_bytes, bind, kv_bytes};
use airllm_stream::{Catalog, ExpertCache, OnDevice, Options, Pipeline, Tensor, Timeline};
use common::odd_sizes;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Files full of zeros.
struct Zeros(Vec<u64>);

impl LayerSource for Zeros {
    fn files(&self) -> usize {
        self.0.len()
    }
    fn name(&self, _: usize) -> &str {
        "zeros"
    }
    fn len(&self, file: usize) -> u64 {
        self.0[file]
    }
    fn alignment(&self) -> usize {
        1
    }
    fn read_at(&self, _: usize, _: u64, buf: &mut [u8]) -> Read<()> {
        buf.fill(0);
        Ok(())
    }
}

struct Walk {
    config: Config,
    device: Arc<Trace>,
    catalog: Catalog,
    weights: Pipeline<Trace>,
    model: Model<Trace>,
}

/// `discrete`: a device with memory of its own. Slots hold a few rows only, so that matrices pass in
/// several stripes.
fn walk(json: &Value, discrete: bool) -> Walk {
    let config = Config::parse(json).unwrap();
    let catalog = common::catalog(&config, |_| NumFormat::F16);
    let len = |unit: &airllm_stream::Unit| {
        unit.tensors.iter().map(|t| t.offset + t.bytes() as u64).max().unwrap_or(0)
    };
    let source = Arc::new(Zeros(catalog.units.iter().map(len).collect()));
    let device = Arc::new(if discrete { Trace::discrete() } else { Trace::new() });
    let options = Options {
        pinned: vec![false, true],
        slots: 2,
        slot_bytes: 8192,
        experts: ExpertCache { slots: 2, slot_bytes: 8192 },
        readers: 1,
        device: OnDevice::default(),
        timeline: Arc::new(Timeline::new(false)),
    };
    let binding = bind(&config, &catalog).unwrap();
    let weights = Pipeline::start(device.clone(), source, catalog.clone(), &options).unwrap();
    device.take_log();
    let model = Model::new(device.clone(), config.clone(), binding, 20).unwrap();
    Walk { config, device, catalog, weights, model }
}

/// What was done with weights: the verb, the rows of a matrix or 1, and the columns where the log has them.
fn uses(log: &[Event]) -> Vec<(&'static str, usize, usize)> {
    let each = log.iter().filter_map(|event| match (event.verb, event.matrix) {
        ("matmul", Some((rows, cols, _))) => Some(("matmul", rows, cols)),
        ("rms_norm" | "rms_norm_rows", _) => Some(("rms_norm", 1, 0)),
        ("add_bias", _) => Some(("add_bias", 1, event.flops as usize / event.n)),
        _ => None,
    });
    merge(each.collect())
}

/// Joins products that follow each other with as many columns: a matrix passes in several stripes, and
/// the log does not say where the next one begins.
fn merge(uses: Vec<(&'static str, usize, usize)>) -> Vec<(&'static str, usize, usize)> {
    let mut out: Vec<(&'static str, usize, usize)> = Vec::new();
    for (verb, rows, cols) in uses {
        match out.last_mut() {
            Some(last) if verb == "matmul" && last.0 == verb && last.2 == cols => last.1 += rows,
            _ => out.push((verb, rows, cols)),
        }
    }
    out
}

/// How a tensor is used, by its name.
fn used(tensor: &Tensor) -> (&'static str, usize, usize) {
    match tensor.name.as_str() {
        name if name.ends_with("_norm") => ("rms_norm", 1, 0),
        name if name.ends_with("_bias") => ("add_bias", 1, tensor.cols),
        _ => ("matmul", tensor.rows, tensor.cols),
    }
}

#[test]
fn every_declared_tensor_is_used_in_the_order_of_the_pass() {
    for arch in ALL {
        let mut seen = BTreeSet::new();
        for case in 0..16_u32 {
            let flag = |bit: u32| case >> bit & 1 == 1;
            let mut walk = walk(&odd_sizes(arch, [flag(0), flag(1), flag(2)]), flag(3));
            let (config, n) = (walk.config.clone(), 7);
            let mut seq = walk.model.sequence(KvFormat::F32, n).unwrap();
            walk.device.take_log();
            let ids: Vec<u32> = (0..n as u32).collect();
            let span = Span { ids: &ids, seq: &mut seq, rope_len: n, logits: Want::All };
            walk.model.forward(&mut walk.weights, &mut [span], None).unwrap();
            assert_eq!(walk.weights.stats().passes, 1, "the pass was walked to its end");
            assert_eq!(seq.len(), n);

            // The embedding is decoded row by row; everything else is used as the pass says.
            let log = walk.device.log();
            let decoded = log.iter().find(|event| event.verb == "decode").unwrap();
            assert_eq!(decoded.matrix, Some((n, config.hidden, NumFormat::F16)));
            seen.insert("embed".to_string());
            let found = uses(&log);
            let mut expected = Vec::new();
            for (place, &id) in walk.catalog.pass.iter().enumerate() {
                let tensor = walk.catalog.get(id).unwrap();
                expected.push(used(tensor));
                seen.insert(tensor.name.clone());
                // All scores of routers are 0 here, so every token goes through the first two experts. They
                // come when the rest of their layer has passed.
                let last = walk.catalog.pass.get(place + 1).is_none_or(|next| next.unit != id.unit);
                let layer = &walk.catalog.units[id.unit].name;
                for expert in (0..2).filter(|_| last) {
                    let name = format!("{layer}.expert.{expert}");
                    for tensor in
                        walk.catalog.units.iter().filter(|u| u.name == name).flat_map(|u| &u.tensors)
                    {
                        expected.push(used(tensor));
                        seen.insert(tensor.name.clone());
                    }
                }
            }
            assert_eq!(found, merge(expected), "{}, case {case}", arch.name);
        }
        let decls = arch.embed.iter().chain(arch.layer).chain(arch.expert).chain(arch.head);
        let declared: BTreeSet<_> = decls.map(|decl| decl.role.name().to_string()).collect();
        assert_eq!(seen, declared, "{}: roles that were used", arch.name);
    }
}

#[test]
fn declarations_are_sound() {
    for arch in ALL {
        let decls = || arch.embed.iter().chain(arch.layer).chain(arch.head);
        let roles: BTreeSet<_> = decls().map(|decl| decl.role).collect();
        for (i, decl) in decls().enumerate() {
            let twice = decls().skip(i + 1).any(|other| other.role == decl.role && other.when == decl.when);
            assert!(!twice, "{}: {:?} is declared twice", arch.name, decl.role);
        }
        assert!(
            arch.expert.is_empty() == arch.traits.moe.is_none()
                && arch.expert_prefix.contains("{}") != arch.expert.is_empty()
        );
        assert!(arch.layer_prefix.contains("{}"), "{}: layers share their names", arch.name);
        assert!(!arch.hf.is_empty());
        for other in ALL.iter().filter(|other| other.name != arch.name) {
            assert!(other.hf.iter().all(|name| !arch.hf.contains(name)));
        }
        assert!(roles.contains(&Role::Embed) && roles.contains(&Role::FinalNorm));
        let units = Config::parse(&odd_sizes(arch, [true, true, false])).unwrap().units();
        for unit in &units {
            let roles: BTreeSet<_> = unit.tensors.iter().map(|tensor| tensor.role).collect();
            assert_eq!(roles.len(), unit.tensors.len(), "{}: {} has a role twice", arch.name, unit.name);
        }
        let parts = |tensor: &TensorDecl| {
            (tensor.hf.clone(), tensor.spans.iter().map(|s| s.start).collect::<Vec<_>>())
        };
        let names: BTreeSet<_> = units.iter().flat_map(|unit| &unit.tensors).map(parts).collect();
        let count: usize = units.iter().map(|unit| unit.tensors.len()).sum();
        assert_eq!(names.len(), count, "{}: two tensors share a name", arch.name);
    }
}

#[test]
fn declared_memory_is_what_is_taken() {
    for arch in ALL {
        let walk = walk(&odd_sizes(arch, [true, false, false]), false);
        let taken = || {
            let log = walk.device.take_log();
            log.iter().filter(|event| event.verb == "alloc").map(|event| event.bytes as usize).sum::<usize>()
        };
        assert_eq!(taken(), activation_bytes(&walk.config, 20), "{}", arch.name);
        for format in KvFormat::ALL {
            Sequence::new(&*walk.device, &walk.config, format, 33).unwrap();
            assert_eq!(taken(), kv_bytes(&walk.config, format, 33), "{} {format}", arch.name);
        }
    }
}

#[test]
fn refused_calls_say_why_and_leave_everything_as_it_was() {
    let mut walk = walk(&odd_sizes(ALL[0], [false, false, true]), false);
    let mut seq = walk.model.sequence(KvFormat::F32, 10).unwrap();
    let mut run = |ids: &[u32], seq: &mut Sequence<Trace>| {
        let span = Span { ids, seq, rope_len: 0, logits: Want::Last };
        walk.model.forward(&mut walk.weights, &mut [span], None)
    };
    assert_eq!(run(&[1; 6], &mut seq).unwrap()[0].len(), 190);
    let error = run(&[1; 5], &mut seq).unwrap_err();
    assert!(matches!(error, Error::Cache { span: 0, capacity: 10, len: 6, more: 5 }), "{error}");
    assert_eq!(
        error.to_string(),
        "the cache of sequence 0 has room for 10 tokens; it holds 6 and 5 more were given"
    );
    let message = |result: Result<Vec<Vec<f32>>, Error>| result.unwrap_err().to_string();
    assert_eq!(message(run(&[1, 190], &mut seq)), "token 1 of span 0 has id 190, the vocabulary has 190 ids");
    assert_eq!(message(run(&[], &mut seq)), "span 0 has no tokens");
    assert_eq!(seq.len(), 6);
    run(&[1; 4], &mut seq).unwrap();
    assert_eq!(seq.len(), 10);

    let mut large = walk.model.sequence(KvFormat::F32, 100).unwrap();
    let span = Span { ids: &[0; 21], seq: &mut large, rope_len: 0, logits: Want::None };
    let refused = walk.model.forward(&mut walk.weights, &mut [span], None);
    assert_eq!(message(refused), "21 tokens were given for one pass, 20 are the most");
    // The heads are wider than the feed-forward block here, and a full pass fits all the same.
    assert!(walk.config.query_dim() > walk.config.inner);
    let span = Span { ids: &[0; 20], seq: &mut large, rope_len: 0, logits: Want::All };
    let logits = walk.model.forward(&mut walk.weights, &mut [span], None).unwrap();
    assert_eq!(logits[0].len(), 20 * 190);
    assert!(walk.model.forward(&mut walk.weights, &mut [], None).unwrap().is_empty());
    assert!(walk.model.sequence(KvFormat::F32, 0).is_err());
    assert!(walk.model.sequence(KvFormat::F32, usize::MAX / 2).is_err());
}

#[test]
fn a_broken_pass_starts_anew() {
    let json = odd_sizes(ALL[0], [false, false, false]);
    let mut walk = walk(&json, false);
    // A cache of another model: the pass breaks in its first layer, with leases out.
    let mut other = json.clone();
    other["num_key_value_heads"] = 1.into();
    let other = Config::parse(&other).unwrap();
    let mut small = Sequence::new(&*walk.device, &other, KvFormat::F32, 4).unwrap();
    for _ in 0..3 {
        let span = Span { ids: &[1, 2, 3, 4], seq: &mut small, rope_len: 0, logits: Want::Last };
        let error = walk.model.forward(&mut walk.weights, &mut [span], None).unwrap_err();
        assert!(matches!(error, Error::Layer { layer: 0, .. }), "{error}");
        assert_eq!(small.len(), 0);
    }
    let mut seq = walk.model.sequence(KvFormat::F32, 4).unwrap();
    let span = Span { ids: &[1, 2, 3, 4], seq: &mut seq, rope_len: 0, logits: Want::Last };
    walk.model.forward(&mut walk.weights, &mut [span], None).unwrap();
    assert_eq!(seq.len(), 4);
}
