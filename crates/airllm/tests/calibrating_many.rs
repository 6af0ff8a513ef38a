//! Calibrating small checkpoints of every kind: interrupted, on any number of threads, with rows of zeros, with
//! experts, latents, adapters, and weights that are quantised already.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod places;

use airllm::{Bits, Builder, CalibrationText, Cancel, Error, NumFormat, Sensitivity, Stage, Target};
use airllm_tests::checkpoint::Shape;
use airllm_tests::gguf::{Convert, Kind, convert};
use places::{Count, Place, TINY, bits, numbers, open, shards, speaks};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const FOUR: Shape = Shape { layers: 4, ..TINY };
const EXPERTS: Shape = Shape { experts: 4, top_k: 2, ..TINY };

fn text() -> CalibrationText {
    CalibrationText::default()
}

#[test]
fn interrupted_and_run_again() {
    for (shape, target) in [
        (Shape { tied: true, ..FOUR }, Target::Average(4.5)),
        (FOUR, Target::Uniform(Bits::Q3)),
        (Shape { layers: 3, ..EXPERTS }, Target::Average(5.0)),
    ] {
        let place = Place::of(shape);
        let builder = place.builder().target(target).calibration(text());
        let whole = builder.clone().shards(place.path("whole")).prepare(&place.model()).unwrap();
        let (parts, cancel) = (place.path("parts"), Cancel::new());
        let flag = cancel.clone();
        let cut = builder.clone().shards(&parts).cancel(&cancel).on_progress(move |now| {
            if (now.stage, now.item) == (Stage::Prepare, "layer.2") {
                flag.stop();
            }
        });
        let error = cut.prepare(&place.model()).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        let done = ["embed", "layer.0", "layer.1"].map(|unit| parts.join(format!("{unit}.safetensors")));
        let state = || {
            let each = done.iter().map(|path| fs::metadata(path).unwrap());
            each.map(|it| (it.ino(), it.modified().unwrap())).collect::<Vec<_>>()
        };
        let before = state();
        assert!(!parts.join("layer.2.safetensors").exists());
        let again = builder.clone().shards(&parts).prepare(&place.model()).unwrap();
        assert_eq!(state(), before, "finished shards are taken as they are");
        assert!(shards(&again) == shards(&whole), "{target}");
        assert_eq!(again.manifest(), whole.manifest());
        // A shard that was lost comes back the same, from the ones around it.
        fs::remove_file(parts.join("layer.1.safetensors")).unwrap();
        let mended = builder.shards(&parts).check_existing(true).prepare(&place.model()).unwrap();
        assert!(shards(&mended) == shards(&whole), "{target}: mended");
    }
}

#[test]
fn threads_change_nothing() {
    for shape in [Shape { attention_bias: true, ..TINY }, EXPERTS] {
        let place = Place::of(shape);
        let run = |threads: usize| {
            let home = place.path(&format!("home{threads}"));
            let builder = place.builder().home(home).threads(threads);
            let sensitivity = builder.sensitivity(&place.model()).unwrap();
            let each = [Target::Average(5.5), Target::Uniform(Bits::Q3), Target::Uniform(Bits::Nf4)];
            let each = each.map(|target| {
                let builder = builder.clone().target(target).calibration(text());
                shards(&builder.prepare(&place.model()).unwrap())
            });
            (sensitivity, each)
        };
        let (one, three) = (run(1), run(3));
        assert_eq!(one.0, three.0);
        assert!(one.1 == three.1);
    }
}

#[test]
fn found_again_by_the_same_recipe_alone() {
    let place = Place::of(TINY);
    let (out, checkpoint) = (place.path("out"), place.model());
    let asked = |it: Builder| it.target(Target::Average(5.0)).shards(&out);
    let first = asked(place.builder()).prepare(&checkpoint).unwrap();
    // Nothing is measured, and nothing is written.
    let (measure, prepare) = (Count::default(), Count::default());
    let builder = asked(place.builder().home(place.path("other")));
    measure.of(Stage::Measure, builder.clone()).prepare(&checkpoint).unwrap();
    let again = prepare.of(Stage::Prepare, builder).prepare(&checkpoint).unwrap();
    assert_eq!((measure.get(), prepare.get()), (0, 0));
    assert_eq!(again.manifest(), first.manifest());
    // A model is loaded from it just so.
    let model = asked(place.builder().home(place.path("third"))).context(64).load(&checkpoint).unwrap();
    model.forward(&[1, 2, 3]).unwrap();
    assert!(!place.path("third/sensitivity").exists());

    // Anything else is refused in this folder, with both recipes named, before anything is measured.
    let before = shards(&first);
    let other = CalibrationText::new("other", "The moon is down. ".repeat(80));
    let changes: [(&str, Builder); 5] = [
        ("5bits-", place.builder().target(Target::Average(5.0)).calibration(other)),
        ("5bits-", place.builder().target(Target::Average(5.0)).calibration_tokens(2048)),
        ("5.5bits-", place.builder().target(Target::Average(5.5))),
        ("q4-calibrated-", place.builder().bits(Bits::Q4).calibration(text())),
        ("q4", place.builder().bits(Bits::Q4)),
    ];
    let own = first.manifest().recipe.name();
    for (name, builder) in changes {
        let count = Count::default();
        let builder = count.of(Stage::Measure, builder.home(place.path("fourth")).shards(&out));
        let error = builder.prepare(&checkpoint).unwrap_err().to_string();
        assert!(error.contains("another checkpoint or recipe") && error.contains(&own), "{name}: {error}");
        assert!(error.contains(&format!("asked for ({name}")), "{name}: {error}");
        assert_eq!(count.get(), 0, "{name}");
    }
    assert!(shards(&first) == before);
    // In the cache, each recipe has a folder of its own.
    let cached = |it: Builder| it.prepare(&checkpoint).unwrap().dir().to_path_buf();
    let uniform = cached(place.builder().bits(Bits::Q4));
    let calibrated = cached(place.builder().bits(Bits::Q4).calibration(text()));
    let mixed = cached(place.builder().target(Target::Average(5.5)));
    assert!(uniform != calibrated && calibrated != mixed && uniform != mixed);
}

#[test]
fn zeros_stay_zeros() {
    let place = Place::of(FOUR);
    let none = |name: &str| place.edit(name, |_, row| row.fill(0.0));
    // A whole matrix, one that leaves the next without any input but 0, and single rows.
    none("model.layers.1.self_attn.o_proj.weight");
    none("model.layers.2.mlp.up_proj.weight");
    let some = |row: usize, numbers: &mut [f32]| {
        if row % 3 == 1 {
            numbers.fill(0.0);
        }
    };
    place.edit("model.layers.0.mlp.gate_proj.weight", some);
    place.edit("model.layers.3.self_attn.q_proj.weight", some);
    place.edit("model.embed_tokens.weight", some);
    place.edit("lm_head.weight", some);
    let sensitivity = place.builder().sensitivity(&place.model()).unwrap();
    sensitivity.check().unwrap();
    let of = |unit: &str, name: &str| {
        sensitivity.tensors.iter().find(|it| it.unit == unit && it.name == name).unwrap()
    };
    for (unit, name) in [("layer.1", "o"), ("layer.2", "up")] {
        let it = of(unit, name);
        assert_eq!((it.kl, it.output), (0.0, 0.0), "{unit} {name}");
        assert!(it.widths.iter().all(|width| width.error == 0.0), "{:?}", it.widths);
    }
    // Nothing comes through the matrix behind it, whatever it is rounded to.
    assert_eq!((of("layer.2", "down").kl, of("layer.2", "down").output), (0.0, 0.0));
    assert!(of("layer.0", "gate").kl > 0.0);

    for target in [Target::Average(5.0), Target::Uniform(Bits::Q2), Target::Uniform(Bits::Q4)] {
        let builder = place.builder().target(target).calibration(text());
        let prepared = builder.prepare(&place.model()).unwrap();
        for shard in &prepared.manifest().shards {
            for tensor in &shard.tensors {
                let all = numbers(&prepared, &shard.unit, &tensor.name);
                assert!(all.iter().all(|n| n.is_finite()), "{target}: {} {}", shard.unit, tensor.name);
                let (cols, place) = (*tensor.shape.last().unwrap(), (&shard.unit[..], &tensor.name[..]));
                for (row, numbers) in all.chunks_exact(cols).enumerate() {
                    let zero = match place {
                        ("layer.1", "o") | ("layer.2", "up") => true,
                        ("layer.0", "gate") | ("layer.3", "q") | ("embed", _) | ("head", "head") => {
                            row % 3 == 1
                        }
                        _ => false,
                    };
                    let is = numbers.iter().all(|n| *n == 0.0);
                    assert_eq!(is, zero, "{target}: {place:?}, row {row}: {numbers:?}");
                }
            }
        }
        speaks(&builder, prepared.dir());
    }
}

#[test]
fn one_format_is_what_was_asked_for() {
    let place = Place::of(EXPERTS);
    let all = [Bits::Q8, Bits::Q6, Bits::Q5, Bits::Q4, Bits::Q3, Bits::Q2, Bits::Nf4];
    for bits in all {
        // Rounded to nearest, the formats and sizes are the same.
        let [nearest, calibrated] = [false, true].map(|calibrated| {
            let builder = place.builder().bits(bits);
            let builder = if calibrated { builder.calibration(text()) } else { builder };
            builder.prepare(&place.model()).unwrap()
        });
        let formats = |it: &airllm::Prepared| {
            let tensors = it.manifest().shards.iter().flat_map(|shard| &shard.tensors);
            tensors.map(|it| (it.name.clone(), it.format, it.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(formats(&nearest), formats(&calibrated), "{bits:?}");
        assert!(calibrated.manifest().sensitivity.is_none());
        assert!(shards(&nearest) != shards(&calibrated) || bits == Bits::Nf4, "{bits:?}");
        let name = calibrated.manifest().recipe.name();
        assert!(name.starts_with(&format!("{}-calibrated-", bits.name())), "{name}");
    }
    // Nothing is rounded at the checkpoint's own precision.
    let own = place.builder().bits(Bits::Source).calibration(text()).prepare(&place.model()).unwrap();
    assert_eq!(own.manifest().recipe.name(), "source");
}

/// Measures and prepares a checkpoint in mixed widths, and runs it.
fn sensible(place: &Place, dir: &Path, average: f64) -> (Sensitivity, BTreeMap<NumFormat, usize>) {
    let (builder, checkpoint) = (place.builder(), open(dir));
    let name = dir.display();
    let sensitivity = builder.sensitivity(&checkpoint).unwrap();
    sensitivity.check().unwrap_or_else(|error| panic!("{name}: {error}"));
    let seen = sensitivity.tensors.iter().filter(|it| it.kl > 0.0).count();
    assert!(seen * 10 >= sensitivity.tensors.len() * 9, "{name}: {seen} of {}", sensitivity.tensors.len());
    for pair in sensitivity.together.windows(2) {
        assert!(pair[0].sum < pair[1].sum && pair[0].measured < pair[1].measured, "{name}: {pair:?}");
    }
    for it in &sensitivity.together {
        assert!((0.02..50.0).contains(&(it.measured / it.sum)), "{name}: {it:?}");
    }
    let builder = builder.target(Target::Average(average));
    let widths = builder.widths(&checkpoint).unwrap().unwrap();
    let prepared = builder.prepare(&checkpoint).unwrap();
    prepared.verify(&mut |_, _| {}).unwrap();
    assert!(bits(&prepared) <= average && bits(&prepared) == widths.bits(), "{name}: {}", bits(&prepared));
    assert_eq!(speaks(&builder, prepared.dir()).len(), 8);
    let mut formats = BTreeMap::new();
    for tensor in prepared.manifest().shards.iter().flat_map(|shard| &shard.tensors) {
        *formats.entry(tensor.format).or_default() += 1;
    }
    (sensitivity, formats)
}

#[test]
fn experts() {
    let place = Place::of(EXPERTS);
    let (sensitivity, formats) = sensible(&place, &place.path("model"), 5.0);
    for layer in 0..2 {
        for role in ["gate", "up", "down"] {
            let unit = |expert| format!("layer.{layer}.expert.{expert}");
            for expert in 0..4 {
                let name = format!("expert.{expert}.{role}");
                let found =
                    sensitivity.tensors.iter().filter(|it| it.unit == unit(expert) && it.name == name);
                assert_eq!(found.count(), 1, "{name} of layer {layer}");
            }
        }
    }
    // The router keeps its precision.
    assert!(sensitivity.tensors.iter().all(|it| it.role() != "router"));
    assert!(formats.len() > 2, "{formats:?}");
    // Little memory changes where experts are while they are looked at, not what comes of it.
    let small = place.builder().home(place.path("small")).ram(200_000);
    let found = small.sensitivity(&place.model()).unwrap();
    assert_eq!(found.tensors.len(), sensitivity.tensors.len());
    for (a, b) in found.tensors.iter().zip(&sensitivity.tensors) {
        assert!((a.kl / b.kl - 1.0).abs() < 0.2, "{} {}: {} and {}", a.unit, a.name, a.kl, b.kl);
    }
}

#[test]
fn an_expert_that_no_token_meets() {
    let place = Place::of(EXPERTS);
    // Its score is the least there is, whatever comes.
    place.edit("model.layers.1.block_sparse_moe.gate.weight", |row, numbers| {
        if row == 2 {
            numbers.fill(0.0);
        }
    });
    let bias = |row: usize, numbers: &mut [f32]| {
        if row != 2 {
            numbers.iter_mut().for_each(|n| *n = n.abs() * 3.0);
        }
    };
    place.edit("model.layers.1.block_sparse_moe.gate.weight", bias);
    let (sensitivity, _) = sensible(&place, &place.path("model"), 5.0);
    assert!(sensitivity.tensors.iter().all(|it| it.kl.is_finite()));
}

#[test]
fn every_kind_of_fixture() {
    let Some(shared) = airllm_tests::shared::dir() else { return };
    let fixture = |name: &str| shared.join("fixtures").join(name);
    for (name, average, matrix) in [
        ("deepseek_v3", 6.0, "kv_down"),
        ("qwen2_moe", 6.0, "shared_gate"),
        ("gemma2", 5.0, "up"),
        ("chatglm", 5.0, "q"),
        ("baichuan_13b", 5.0, "q"),
        ("phi3", 5.0, "gate"),
    ] {
        let place = Place::new();
        let (sensitivity, _) = sensible(&place, &fixture(name), average);
        assert!(sensitivity.tensors.iter().any(|it| it.role() == matrix), "{name} has {matrix}");
    }
}

#[test]
fn weights_that_are_quantised_already() {
    let Some(shared) = airllm_tests::shared::dir() else { return };
    for name in ["gptq_sym_g128", "gptq_actorder", "awq_gemm", "bnb_nf4", "bnb_int8"] {
        let place = Place::new();
        let dir = shared.join("fixtures").join(name);
        let (sensitivity, formats) = sensible(&place, &dir, 5.0);
        let q = sensitivity.tensors.iter().find(|it| it.name == "q").unwrap();
        let own = q.widths[0];
        assert!(own.format.is_foreign() && own.error == 0.0, "{name}: {own:?}");
        assert!(q.widths[1..].iter().all(|it| it.bytes < own.bytes && it.error > 0.0), "{name}: {q:?}");
        // With enough bits all of it is kept as it is.
        let wide = place.builder().target(Target::Average(16.0));
        let widths = wide.widths(&open(&dir)).unwrap().unwrap();
        assert_eq!(widths.format("layer.0", "q"), Some(own.format), "{name}");
        assert!(formats.len() > 2, "{name}: {formats:?}");
    }
}

#[test]
fn columns_in_an_order_of_their_own() {
    let Some(shared) = airllm_tests::shared::dir() else { return };
    // Queries, keys and values have each another order here.
    let dir = shared.join("fixtures/gptq_actorder");
    let (place, checkpoint) = (Place::new(), open(&dir));
    let known: String = include_str!("../src/calibration.txt").chars().take(400).collect();
    let ids: Vec<u32> = checkpoint.tokenizer().unwrap().encode_plain(&known).unwrap()[..256].to_vec();
    let logits =
        |builder: &Builder| builder.clone().context(256).load(&checkpoint).unwrap().forward(&ids).unwrap();
    let own = logits(&place.builder());
    let off = |builder: Builder| {
        let found = logits(&builder);
        found.values.iter().zip(&own.values).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let nearest = off(place.builder().bits(Bits::Q3));
    let calibrated = off(place.builder().bits(Bits::Q3).calibration(text()));
    assert!(calibrated < 0.5 * nearest, "{calibrated} calibrated, {nearest} to nearest");
}

#[test]
fn a_gguf_file() {
    for (kind, average) in [(Kind::F16, 4.0), (Kind::Q8_0, 5.0), (Kind::Q4_0, 4.4), (Kind::Q4K, 4.4)] {
        let place = Place::of(Shape { hidden: 256, intermediate: 256, ..TINY });
        let file = convert(&place.path("model"), Convert { kind, tokenizer: true }).unwrap();
        fs::create_dir(place.path("gguf")).unwrap();
        file.write(&place.path("gguf/model.gguf")).unwrap();
        let (sensitivity, _) = sensible(&place, &place.path("gguf"), average);
        let q = sensitivity.tensors.iter().find(|it| it.name == "q").unwrap();
        assert_eq!(q.widths[0].format.is_foreign(), kind != Kind::F16, "{:?}", q.widths);
    }
}

#[test]
fn adapters_folded_in() {
    let Some(shared) = airllm_tests::shared::dir() else { return };
    let fixture = shared.join("fixtures/lora_adapter");
    let (place, base) = (Place::new(), open(&fixture.join("base")));
    let folded = |target, out: &str, adapted: bool| {
        let builder = place.builder().target(target).calibration(text()).shards(place.path(out));
        match adapted {
            true => builder.adapter(fixture.join("adapter")).merge_into_shards(&base).unwrap(),
            false => builder.prepare(&base).unwrap(),
        }
    };
    for target in [Target::Uniform(Bits::Q4), Target::Average(5.0)] {
        let name = target.to_string();
        let (with, without) = (folded(target, &name, true), folded(target, &format!("{name} plain"), false));
        with.verify(&mut |_, _| {}).unwrap();
        assert_ne!(with.manifest().source.fingerprint, without.manifest().source.fingerprint);
        // What the adapter adds is in the weights, and was when they were rounded.
        let [with, without, own] = [with.dir(), without.dir(), &fixture.join("base")].map(|dir| {
            let builder = place.builder().context(64);
            let builder =
                if dir.ends_with("base") { builder.adapter(fixture.join("adapter")) } else { builder };
            let model = builder.load(&open(dir)).unwrap();
            model.forward(&[5, 6, 7, 8, 9, 10, 11, 12]).unwrap().values
        });
        let off = |a: &[f32]| a.iter().zip(&own).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        assert!(off(&with) < 0.5 * off(&without), "{name}: {} and {}", off(&with), off(&without));
    }
    let sensitivity = |adapted: bool| {
        let builder = place.builder();
        let builder = if adapted { builder.adapter(fixture.join("adapter")) } else { builder };
        builder.sensitivity(&base).unwrap()
    };
    assert_ne!(sensitivity(true), sensitivity(false));
}
