//! Calibrated rounding and widths by sensitivity, on the demo model: what is measured, chosen and written.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod places;

use airllm::{
    AutoModel, Bits, Builder, CalibrationText, ErrorKind, NumFormat, Sensitivity, Stage, Target, Windows,
};
use places::{Count, Place, TINY, TOKENS, bits, copy, demo, edit, file_bytes, open, shards, speaks};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A folder for what all tests here share, so that the demo model is measured once.
fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("calibrating");
        // What an earlier build has measured says nothing of this one.
        let _ = fs::remove_dir_all(&home);
        let builder = AutoModel::builder()
            .device(airllm::Device::Cpu)
            .home(&home)
            .threads(2)
            .calibration_tokens(TOKENS);
        builder.sensitivity(&open(&demo())).unwrap();
        home
    })
}

/// What is asked of the demo model, its sensitivity known.
fn builder() -> Builder {
    AutoModel::builder().device(airllm::Device::Cpu).home(home()).threads(2).calibration_tokens(TOKENS)
}

fn measured() -> Sensitivity {
    builder().sensitivity(&open(&demo())).unwrap()
}

/// How much the matrices of a unit make the model suffer, all of them alone.
fn suffering(sensitivity: &Sensitivity, unit: &str) -> f64 {
    sensitivity.tensors.iter().filter(|it| it.unit == unit).map(|it| it.kl).sum()
}

#[test]
fn every_matrix_is_measured() {
    let sensitivity = measured();
    sensitivity.check().unwrap();
    let names: Vec<_> = sensitivity.tensors.iter().map(|it| (it.unit.clone(), it.name.clone())).collect();
    let mut expected = vec![("embed".to_owned(), "embed".to_owned())];
    for layer in 0..5 {
        let roles = ["q", "k", "v", "o", "gate", "up", "down"];
        expected.extend(roles.map(|role| (format!("layer.{layer}"), role.to_owned())));
    }
    assert_eq!(names, expected);
    for it in &sensitivity.tensors {
        let name = format!("{} of {}", it.name, it.unit);
        assert!(it.kl > 0.0 && it.kl < 1.0 && it.output > 0.0 && it.output < 1.0, "{name}: {it:?}");
        let formats: Vec<_> = it.widths.iter().map(|width| width.format).collect();
        let all = [NumFormat::Q8, NumFormat::Q6, NumFormat::Q5, NumFormat::Q4, NumFormat::Q3, NumFormat::Q2];
        assert_eq!(
            formats,
            all.into_iter().filter(|format| *format <= it.floor).collect::<Vec<_>>(),
            "{name}"
        );
        let narrower = it.widths.windows(2);
        assert!(narrower.clone().all(|w| w[1].error > w[0].error), "{name}: {:?}", it.widths);
        // q8 alone is rounded to nearest, whatever the others make up for.
        assert!(narrower.clone().skip(1).all(|w| w[1].error > 2.0 * w[0].error), "{name}: {:?}", it.widths);
        assert!(narrower.clone().all(|w| w[1].bytes < w[0].bytes), "{name}");
        assert!(it.widths[0].error < 1e-3 && it.widths.last().unwrap().error < 0.5, "{name}");
    }
    // Mistakes of the first layer go through all others.
    let [first, second] = ["layer.0", "layer.1"].map(|unit| suffering(&sensitivity, unit));
    assert!(first > 1.5 * second, "{first} and {second}");

    let it = &sensitivity.calibration;
    assert_eq!((it.tokens, it.windows, it.context, &it.name[..]), (512, 1, 512, "built-in"));
    let sums: Vec<_> = sensitivity.together.iter().map(|it| (it.format, it.sum, it.measured)).collect();
    assert_eq!(sums.len(), 3);
    for (format, sum, measured) in &sums {
        assert!((0.1..10.0).contains(&(measured / sum)), "{format}: {measured} of {sum}");
    }
    assert!(sums.windows(2).all(|pair| pair[1].0 > pair[0].0 && pair[1].2 > pair[0].2), "{sums:?}");
}

#[test]
fn it_is_measured_once() {
    let before = measured();
    let count = Count::default();
    let again = count.of(Stage::Measure, builder()).sensitivity(&open(&demo())).unwrap();
    assert_eq!(again, before);
    assert_eq!(count.get(), 0);
    let text = serde_json::to_string(&before).unwrap();
    assert_eq!(serde_json::from_str::<Sensitivity>(&text).unwrap(), before);
    // A file that is broken is measured anew, and mended.
    let place = Place::of(TINY);
    let first = place.builder().sensitivity(&place.model()).unwrap();
    let kept = fs::read_dir(place.path("home/sensitivity")).unwrap().next().unwrap().unwrap().path();
    fs::write(&kept, "{").unwrap();
    let count = Count::default();
    assert_eq!(count.of(Stage::Measure, place.builder()).sensitivity(&place.model()).unwrap(), first);
    assert!(count.get() > 0);
    assert_eq!(serde_json::from_slice::<Sensitivity>(&fs::read(&kept).unwrap()).unwrap(), first);
    // Where nothing is kept it is measured, and is the same for any number of threads.
    let bare = place.builder().home(place.path("other")).threads(1);
    assert_eq!(bare.sensitivity(&place.model()).unwrap(), first);
}

#[test]
fn an_average_number_of_bits() {
    let place = Place::new();
    let (checkpoint, out) = (open(&demo()), place.path("out"));
    let builder = builder().target(Target::Average(3.6)).shards(&out);
    let widths = builder.widths(&checkpoint).unwrap().unwrap();
    let prepared = builder.prepare(&checkpoint).unwrap();
    let found = bits(&prepared);
    assert!(found <= 3.6 && found > 3.55, "{found}");
    assert_eq!((widths.bits(), widths.file_bytes), (found, file_bytes(&prepared)));
    let manifest = prepared.manifest();
    assert_eq!(manifest.sensitivity.as_ref(), Some(&measured()));
    assert_eq!((manifest.recipe.bits, manifest.recipe.target.as_deref()), (Bits::Mixed, Some("3.6bits")));
    assert!(manifest.recipe.calibration.is_some() && manifest.recipe.name().starts_with("3.6bits-"));
    let sensitivity = measured();
    let mut formats = Vec::new();
    for shard in &manifest.shards {
        for tensor in &shard.tensors {
            let chosen = widths.format(&shard.unit, &tensor.name);
            let known = sensitivity.tensors.iter().find(|it| it.unit == shard.unit && it.name == tensor.name);
            match known {
                Some(known) => {
                    assert_eq!(chosen, Some(tensor.format));
                    assert!(tensor.format <= known.floor && known.width(tensor.format).is_some());
                    formats.push(tensor.format);
                }
                None => assert_eq!((chosen, tensor.format, tensor.shape.len()), (None, NumFormat::F32, 1)),
            }
        }
    }
    formats.sort();
    formats.dedup();
    assert!(formats.len() >= 2, "{formats:?}");
    prepared.verify(&mut |_, _| {}).unwrap();
    assert_eq!(speaks(&builder, prepared.dir()).len(), 8);
    // The shards say what they were made by.
    assert_eq!(builder.sensitivity(&open(&out)).unwrap(), sensitivity);
}

#[test]
fn a_size_and_a_quality() {
    let (place, checkpoint) = (Place::new(), open(&demo()));
    let size = 2_500_000;
    let prepared =
        builder().target(Target::Size(size)).shards(place.path("size")).prepare(&checkpoint).unwrap();
    let found = file_bytes(&prepared);
    assert!(found <= size && found * 100 > size * 97, "{found}");
    prepared.verify(&mut |_, _| {}).unwrap();

    let widths = |target| builder().target(target).widths(&checkpoint).unwrap().unwrap();
    for kl in [0.1, 0.05, 0.01] {
        let these = widths(Target::Quality(kl));
        assert!(these.kl <= kl * (1.0 + 1e-9), "{kl}: {}", these.kl);
        // A tenth of a bit less is not good enough.
        let fewer = widths(Target::Average(these.bits() - 0.1));
        assert!(fewer.kl > kl, "{kl}: {} bits do {}", fewer.bits(), fewer.kl);
    }
    let one = builder().target(Target::Uniform(Bits::Q4)).widths(&checkpoint).unwrap();
    assert!(one.is_none(), "one format needs no choice");
}

#[test]
fn more_bits_never_do_worse() {
    let checkpoint = open(&demo());
    let mut last: Option<(f64, f64)> = None;
    for tenth in [25, 28, 30, 33, 36, 37, 38, 40, 43, 46, 50, 55, 60, 70, 85, 160] {
        let target = Target::Average(f64::from(tenth) / 10.0);
        let Ok(widths) = builder().target(target).widths(&checkpoint) else {
            assert!(tenth < 30, "{target} is possible");
            continue;
        };
        let (bits, kl) = widths.map(|it| (it.bits(), it.kl)).unwrap();
        assert!(bits <= f64::from(tenth) / 10.0 && kl >= 0.0, "{target}: {bits}, {kl}");
        if let Some((fewer, worse)) = last {
            assert!(bits >= fewer && kl <= worse, "{target}: {bits} bits do {kl}, {fewer} did {worse}");
        }
        last = Some((bits, kl));
    }
    let (bits, _) = last.unwrap();
    assert!((8.0..9.0).contains(&bits), "all in q8 is the most: {bits}");
}

/// The first number after some words of a message.
fn number_after(message: &str, words: &str) -> f64 {
    let rest = message.split_once(words).unwrap_or_else(|| panic!("no {words:?} in {message}")).1;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || ".e-".contains(c))).unwrap_or(rest.len());
    rest[..end].trim_end_matches('.').parse().unwrap_or_else(|_| panic!("{rest}"))
}

#[test]
fn what_cannot_be_reached_says_what_can() {
    let (place, checkpoint) = (Place::new(), open(&demo()));
    let refusal = |target| {
        let builder = builder().target(target).shards(place.path("out"));
        let error = builder.widths(&checkpoint).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert_eq!(builder.prepare(&checkpoint).unwrap_err().to_string(), error.to_string());
        error.to_string()
    };
    let works = |target| builder().target(target).widths(&checkpoint).unwrap().unwrap();

    let message = refusal(Target::Average(2.0));
    let least = number_after(&message, "least possible is ");
    assert!(message.contains("2 bits a weight") && least > 2.0 && least < 3.0, "{message}");
    assert!(works(Target::Average(least)).bits() <= least);
    refusal(Target::Average(least - 0.02));

    let message = refusal(Target::Size(1_000_000));
    let least = number_after(&message, "(") as u64;
    assert!(message.contains("bytes)"), "{message}");
    assert_eq!(works(Target::Size(least)).file_bytes, least);
    refusal(Target::Size(least - 1));

    let message = refusal(Target::Quality(1e-9));
    let least = number_after(&message, "least possible is ");
    assert!(works(Target::Quality(least)).kl <= least * (1.0 + 1e-9));
    refusal(Target::Quality(least * 0.97));

    for bits in [0.0, -1.0, 16.1, f64::NAN, f64::INFINITY] {
        assert!(refusal(Target::Average(bits)).contains("bits a weight: expected"), "{bits}");
    }
    for kl in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        assert!(refusal(Target::Quality(kl)).contains("expected nats a token"), "{kl}");
    }
    assert!(!place.path("out").exists(), "what is refused leaves nothing behind");
}

#[test]
fn a_text_that_is_too_short() {
    let (place, checkpoint) = (Place::new(), open(&demo()));
    let text = "The sea was calm that night. ".repeat(3);
    let tokens = checkpoint.tokenizer().unwrap().encode_plain(&text).unwrap().len();
    let builder = place.builder().calibration(CalibrationText::new("calm", &text));
    let calls = [
        builder.sensitivity(&checkpoint).map(drop),
        builder.clone().bits(Bits::Q3).prepare(&checkpoint).map(drop),
        builder.clone().target(Target::Average(4.0)).prepare(&checkpoint).map(drop),
    ];
    for error in calls.map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Input);
        let message = error.to_string();
        for part in ["(calm)", &format!("has {tokens} tokens"), "at least 256"] {
            assert!(message.contains(part), "{message}");
        }
    }
    fs::write(place.path("latin"), b"caf\xe9").unwrap();
    for file in ["no-such-file", "latin"] {
        let error = CalibrationText::read(&place.path(file)).unwrap_err();
        assert!(error.kind() == ErrorKind::Input && error.to_string().contains(file), "{error}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let place = Place::new();
    for (value, name, unit) in [
        (f32::NAN, "model.layers.1.mlp.up_proj.weight", "up"),
        (f32::INFINITY, "model.layers.0.self_attn.k_proj.weight", "k"),
    ] {
        let dir = place.path(unit);
        copy(&demo(), &dir);
        let spoil = |row, numbers: &mut [f32]| {
            if row == 17 {
                numbers[5] = value
            }
        };
        edit(&dir.join("model.safetensors"), name, spoil);
        let checkpoint = open(&dir);
        let builder = place.builder().shards(place.path("out"));
        let calls = [
            builder.sensitivity(&checkpoint).map(drop),
            builder.clone().target(Target::Average(4.0)).prepare(&checkpoint).map(drop),
            builder
                .clone()
                .calibration(CalibrationText::default())
                .bits(Bits::Q4)
                .prepare(&checkpoint)
                .map(drop),
        ];
        for (call, error) in calls.map(Result::unwrap_err).into_iter().enumerate() {
            assert_eq!(error.kind(), ErrorKind::Input);
            let message = error.to_string();
            for part in ["model.safetensors", name, "row 17"] {
                assert!(message.contains(part), "call {call}: {message}");
            }
        }
        let _ = fs::remove_dir_all(place.path("out"));
    }
}

#[test]
fn calibrating_is_better_than_rounding_to_nearest() {
    let (place, checkpoint) = (Place::new(), open(&demo()));
    let tokenizer = checkpoint.tokenizer().unwrap();
    // What it is calibrated on, and what it is compared on.
    let text = include_str!("../src/calibration.txt");
    let half = (text.len() / 2..).find(|at| text.is_char_boundary(*at)).unwrap();
    let (known, held) = text.split_at(half);
    let windows = Windows::of(&tokenizer, held, 128, Some(24)).unwrap();
    let reference = builder().evaluating(&windows).load(&checkpoint).unwrap();
    let kl = |change: &dyn Fn(Builder) -> Builder, out: &str| {
        let builder = change(builder().evaluating(&windows).shards(place.path(out)));
        let model = builder.load(&checkpoint).unwrap();
        let found = model.evaluate(&windows, Some(&reference), &mut |_| {}).unwrap();
        found.scores.comparison.unwrap().kl_mean.value
    };
    let nearest = kl(&|it| it.bits(Bits::Q3), "nearest");
    let known = CalibrationText::new("the first half", known);
    let calibrated =
        kl(&|it| it.calibration(known.clone()).calibration_tokens(4096).bits(Bits::Q3), "calibrated");
    assert!(calibrated <= 0.8 * nearest, "{calibrated} calibrated, {nearest} to nearest");
    // With as many bytes, chosen widths are better still.
    let uniform = open(&place.path("calibrated"));
    let airllm::Form::Prepared(prepared) = uniform.form() else { panic!() };
    let size = Target::Size(file_bytes(prepared));
    let chosen = kl(&|it| it.target(size), "chosen");
    assert!(chosen < nearest, "{chosen} chosen, {nearest} to nearest");
    assert_eq!(shards(prepared).len(), 7);
}
