//! A model layer by layer is the model in one pass, bit for bit, and shows what its matrices are multiplied with.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_format::{MemorySource, NumFormat};
use airllm_kernels::{Cpu, KvFormat};
use airllm_model::arch::{ALL, Arch, Role};
use airllm_model::{Bound, Config, Error, Model, Sequence, Span, Walk, Want, bind};
use airllm_stream::{Catalog, ExpertCache, Held, OnDevice, Options, Pipeline, TensorId, Timeline};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A family's model of random weights in memory.
struct Random {
    config: Config,
    catalog: Catalog,
    /// The bytes of each unit.
    files: Arc<Vec<Vec<u8>>>,
    device: Arc<Cpu>,
}

/// Numbers between -1 and 1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

impl Random {
    /// `reordered`: columns of these matrices are in another order.
    fn new(arch: &Arch, switches: [bool; 3], reordered: &[Role]) -> Random {
        let mut config = Config::parse(&common::odd_sizes(arch, switches)).unwrap();
        let units = config.units();
        let chosen = units.iter().flat_map(|unit| &unit.tensors).filter(|it| reordered.contains(&it.role));
        config.reordered = chosen.map(|it| it.hf.clone()).collect();
        let catalog = common::catalog(&config, |_| NumFormat::F32);
        let mut noise = Noise(arch.name.len() as u64);
        let files = config.units().into_iter().zip(&catalog.units).map(|(decls, unit)| {
            let mut bytes = Vec::new();
            for (decl, tensor) in decls.tensors.iter().zip(&unit.tensors) {
                bytes.resize(tensor.offset as usize, 0);
                let cols = decl.cols();
                // Sizes here share no factor with 7 but for one of 14 columns, and of 28.
                let step = if cols % 7 == 0 { 5 } else { 7 };
                for at in 0..decl.rows() * cols {
                    let number = match () {
                        () if decl.is_order => ((at * step + tensor.offset as usize) % cols) as f32,
                        () if decl.is_vector() => 1.0 + 0.3 * noise.next(),
                        () => 2.0 * noise.next() / (cols as f32).sqrt(),
                    };
                    bytes.extend(number.to_le_bytes());
                }
            }
            bytes
        });
        let files = Arc::new(files.collect());
        Random { config, catalog, files, device: Arc::new(Cpu::new(2)) }
    }

    /// Logits of windows, all in one pass over a stream.
    fn forward(&self, windows: &[&[u32]]) -> Vec<Vec<f32>> {
        let files = self.files.iter().map(|bytes| ("memory".to_owned(), bytes.clone()));
        let source = Arc::new(MemorySource::new(files.collect()).with_alignment(4096));
        let options = Options {
            pinned: Vec::new(),
            slots: 3,
            slot_bytes: 16384,
            experts: ExpertCache { slots: 5, slot_bytes: 16384 },
            readers: 1,
            device: OnDevice::default(),
            timeline: Arc::new(Timeline::new(false)),
        };
        let binding = bind(&self.config, &self.catalog).unwrap();
        let (device, catalog) = (self.device.clone(), self.catalog.clone());
        let mut weights = Pipeline::start(device.clone(), source, catalog, &options).unwrap();
        let mut model = Model::new(device.clone(), self.config.clone(), binding, 40).unwrap();
        let mut seqs: Vec<_> = windows
            .iter()
            .map(|_| Sequence::new(&*device, &self.config, KvFormat::F32, 20).unwrap())
            .collect();
        let spans = windows.iter().zip(&mut seqs);
        let mut spans: Vec<_> =
            spans.map(|(&ids, seq)| Span { ids, seq, rope_len: ids.len(), logits: Want::All }).collect();
        model.forward(&mut weights, &mut spans, None).unwrap()
    }

    fn held(&self) -> Held<'static, Cpu> {
        let (catalog, files) = (self.catalog.clone(), self.files.clone());
        let fetch = move |id: TensorId, rows: Range<usize>, out: &mut [u8]| -> airllm_stream::Result<()> {
            let tensor = catalog.get(id).unwrap();
            let start = tensor.offset as usize + rows.start * tensor.row_bytes();
            out.copy_from_slice(&files[tensor.file][start..start + out.len()]);
            Ok(())
        };
        Held::new(self.device.clone(), self.catalog.clone(), Box::new(fetch))
    }

    fn walk(&self, windows: usize, context: usize) -> Walk<Cpu> {
        let binding = bind(&self.config, &self.catalog).unwrap();
        Walk::new(self.device.clone(), self.config.clone(), binding, windows, context).unwrap()
    }
}

/// What each matrix was multiplied with, by unit and role.
#[derive(Default)]
struct Seen {
    inputs: BTreeMap<(usize, Role), Vec<f32>>,
    order: Vec<(usize, Role)>,
    reordered: BTreeMap<(usize, Role), bool>,
}

impl Seen {
    fn look(&mut self, bound: &Bound, x: &[f32]) -> airllm_model::Result<()> {
        let key = (bound.id.unit, bound.role);
        assert_eq!(x.len() % bound.cols, 0, "{key:?}: rows of {} numbers", bound.cols);
        assert!(self.inputs.insert(key, x.to_vec()).is_none(), "{key:?} twice");
        self.reordered.insert(key, bound.order.is_some());
        self.order.push(key);
        Ok(())
    }
}

/// The logits of windows, walked layer by layer, and what was seen on the way. Of what is met, every other tensor
/// is held.
fn walked(random: &Random, windows: &[&[u32]]) -> (Vec<Vec<f32>>, Seen) {
    let (mut held, mut walk) = (random.held(), random.walk(windows.len(), 20));
    let binding = bind(&random.config, &random.catalog).unwrap();
    for (unit, it) in random.catalog.units.iter().enumerate() {
        for tensor in (0..it.tensors.len()).step_by(2) {
            held.load(TensorId { unit, tensor }).unwrap();
        }
    }
    let mut seen = Seen::default();
    let mut x = Vec::new();
    walk.embed(&binding, &mut held, windows, &mut x).unwrap();
    assert_eq!(x.len(), windows.iter().map(|ids| ids.len()).sum::<usize>() * random.config.hidden);
    for layer in 0..random.config.layers {
        let before = x.clone();
        let mut look = |bound: &Bound, x: &[f32]| seen.look(bound, x);
        walk.layer(&binding, &mut held, layer, windows, &mut x, Some(&mut look)).unwrap();
        // A layer may be run as often as it takes; nobody has to look.
        let mut again = before;
        walk.layer(&binding, &mut held, layer, windows, &mut again, None).unwrap();
        assert!(x == again, "layer {layer}, once more");
    }
    let mut look = |bound: &Bound, x: &[f32]| seen.look(bound, x);
    walk.head_inputs(&binding, &mut held, windows, &x, &mut look).unwrap();
    let logits = walk.logits(&binding, &mut held, windows, &x).unwrap();
    (logits, seen)
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|n| n.to_bits()).collect()
}

/// Windows longer than the families' sliding windows, and one of a single token.
const WINDOWS: [&[u32]; 3] = [&[3, 1, 4, 1, 5, 9, 2, 6, 5], &[35], &[8, 97, 93, 23, 84, 62, 64]];

fn check(what: &str, random: &Random) {
    let (expected, (logits, seen)) = (random.forward(&WINDOWS), walked(random, &WINDOWS));
    let tokens: usize = WINDOWS.iter().map(|ids| ids.len()).sum();
    for (window, (found, expected)) in logits.iter().zip(&expected).enumerate() {
        assert!(found.iter().all(|n| n.is_finite()), "{what}: window {window}");
        assert!(found.iter().any(|n| *n != 0.0), "{what}: window {window} says something");
        assert!(bits(found) == bits(expected), "{what}: window {window}");
    }
    assert_eq!(logits.len(), WINDOWS.len());

    // Each matrix of the pass was seen once, and of experts those that some token went to.
    let (mut routed, mut layers) = (0, 0);
    for (unit, decls) in random.config.units().iter().enumerate().skip(1) {
        let matrices: Vec<_> = decls.tensors.iter().filter(|it| !it.is_vector()).collect();
        let used = matrices.iter().filter(|it| seen.inputs.contains_key(&(unit, it.role))).count();
        assert!(used == matrices.len() || (decls.on_demand && used == 0), "{what}: {} is seen", decls.name);
        layers += usize::from(matrices.iter().any(|it| it.role == Role::Router));
        for decl in matrices {
            let Some(x) = seen.inputs.get(&(unit, decl.role)) else { continue };
            let rows = x.len() / decl.cols();
            if decls.on_demand {
                routed += usize::from(decl.role == Role::Gate) * rows;
            } else {
                assert_eq!(rows, tokens, "{what}: {} of {}", decl.name, decls.name);
            }
            // What stands for it has the same inputs, unless columns are in an order of their own.
            let key = (unit, random.config.input_of(decl.role));
            let other = seen.inputs.get(&key).unwrap_or_else(|| panic!("{what}: {key:?} was not seen"));
            if !seen.reordered[&(unit, decl.role)] && !seen.reordered[&key] {
                assert!(bits(x) == bits(other), "{what}: {} has the inputs of {key:?}", decl.name);
            }
            assert_eq!(random.config.input_of(key.1), key.1, "{what}: stands for itself");
        }
    }
    let each = random.config.moe.as_ref().map_or(0, |moe| moe.top_k);
    assert_eq!(routed, layers * tokens * each, "{what}: tokens of experts");
    // Where the head is the embedding it is seen under that name.
    let head = (0, Role::Embed);
    assert_eq!(seen.inputs.contains_key(&head), random.config.tied, "{what}");
}

#[test]
fn every_family_layer_by_layer() {
    for arch in ALL {
        for case in 0..8_u32 {
            let switches = [0, 1, 2].map(|bit| case >> bit & 1 == 1);
            check(&format!("{}, case {case}", arch.name), &Random::new(arch, switches, &[]));
        }
    }
}

#[test]
fn columns_in_another_order_are_seen_in_theirs() {
    let mut compared = 0;
    for arch in ALL {
        let random = Random::new(arch, [false; 3], &[Role::Q, Role::O, Role::Down]);
        check(arch.name, &random);
        let decls = &random.config.units()[1].tensors;
        // Of a family with latents, queries are made of something else than keys; where both are one tensor of the
        // checkpoint, so is their order.
        if random.config.latent.is_some() || decls.iter().any(|it| it.is_order && it.role == Role::K) {
            continue;
        }
        compared += 1;
        let (_, seen) = walked(&random, &WINDOWS);
        let order = decls.iter().position(|it| it.is_order && it.role == Role::Q).unwrap();
        let tensor = &random.catalog.units[1].tensors[order];
        let places = &random.files[1][tensor.offset as usize..][..4 * tensor.cols];
        let places: Vec<usize> =
            places.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as usize).collect();
        assert!((0..tensor.cols).all(|column| places.contains(&column)), "an order: {places:?}");
        assert!(!places.is_sorted());
        // Keys have the same inputs in the usual order.
        let (q, k) = (&seen.inputs[&(1, Role::Q)], &seen.inputs[&(1, Role::K)]);
        let rows = k.chunks_exact(tensor.cols);
        let moved: Vec<f32> = rows.flat_map(|row| places.iter().map(|&column| row[column])).collect();
        assert!(bits(q) == bits(&moved), "{}", arch.name);
        assert!(bits(q) != bits(k), "{}", arch.name);
    }
    assert!(compared > 5, "{compared} families");
}

#[test]
fn another_binding_meets_another_format() {
    let random = Random::new(ALL[0], [false; 3], &[]);
    let (windows, layer) = ([&WINDOWS[0][..4]], 1);
    let mut catalog = random.catalog.clone();
    let id = catalog.find("layer.1", "down").unwrap();
    catalog.units[id.unit].tensors[id.tensor].format = NumFormat::F16;
    let bindings = [&random.catalog, &catalog].map(|catalog| bind(&random.config, catalog).unwrap());
    let (mut held, mut walk) = (random.held(), random.walk(1, 4));
    let mut x = Vec::new();
    walk.embed(&bindings[0], &mut held, &windows, &mut x).unwrap();
    let mut run = |binding, held: &mut Held<'static, Cpu>| {
        let mut x = x.clone();
        walk.layer(binding, held, layer, &windows, &mut x, None).map(|()| x)
    };
    let plain = run(&bindings[0], &mut held).unwrap();
    let tensor = random.catalog.get(id).unwrap();
    let whole = &random.files[tensor.file][tensor.offset as usize..][..tensor.bytes()];
    let half = |b: &[u8]| half::f16::from_f32(f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes();
    let halves: Vec<u8> = whole.chunks_exact(4).flat_map(half).collect();
    held.put(id, &halves).unwrap();
    let rounded = run(&bindings[1], &mut held).unwrap();
    let off = plain.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off > 0.0 && off < 0.01, "halves are near: {off}");
    // Bytes of one format under the name of another are refused, and do no harm.
    assert!(run(&bindings[0], &mut held).is_err());
    held.clear();
    assert!(run(&bindings[0], &mut held).unwrap() == plain);
}

#[test]
fn what_a_walk_refuses() {
    let random = Random::new(ALL[0], [false; 3], &[]);
    let binding = bind(&random.config, &random.catalog).unwrap();
    let (mut held, mut walk) = (random.held(), random.walk(2, 5));
    assert_eq!((walk.windows(), walk.config().hidden), (2, 72));
    let mut x = Vec::new();
    let refusals: [(&[&[u32]], &str); 5] = [
        (&[&[1], &[2], &[3]], "3 windows of 3 tokens"),
        (&[&[1, 2, 3, 4, 5, 6]], "1 to 5 each"),
        (&[&[1], &[]], "2 windows of 1 tokens"),
        (&[&[1, 190]], "id 190"),
        (&[&[1], &[1_000_000]], "id 1000000"),
    ];
    for (windows, says) in refusals {
        let error = walk.embed(&binding, &mut held, windows, &mut x).unwrap_err();
        assert!(matches!(error, Error::Input(_)) && error.to_string().contains(says), "{error}");
    }
    let mut short = vec![0.0; 143];
    let error = walk.layer(&binding, &mut held, 0, &[&[1, 2]], &mut short, None).unwrap_err().to_string();
    assert!(error.contains("143 numbers, expected 144"), "{error}");
    let error = walk.logits(&binding, &mut held, &[&[1, 2]], &short).unwrap_err().to_string();
    assert!(error.contains("143 numbers, expected 144"), "{error}");
    // What whoever looks says ends the call.
    let mut x = vec![0.1; 144];
    let mut stop = |_: &Bound, _: &[f32]| Err(Error::Input("seen enough".to_owned()));
    let error = walk.layer(&binding, &mut held, 0, &[&[1, 2]], &mut x, Some(&mut stop)).unwrap_err();
    assert!(error.to_string().contains("seen enough"), "{error}");
    walk.layer(&binding, &mut held, 0, &[&[1, 2]], &mut x, None).unwrap();
    assert!(Walk::new(random.device.clone(), random.config.clone(), binding.clone(), 0, 5).is_err());
    assert!(Walk::new(random.device.clone(), random.config.clone(), binding, 1, 0).is_err());
}
