//! Evaluation: the numbers are those of the logits, however the text goes through the model.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use airllm::eval::Judged;
use airllm::{AutoModel, Bits, Builder, Cancel, Error, ErrorKind, Evaluation, KvFormat, Windows};
use airllm_tests::checkpoint::{Checkpoint, Shape};
use airllm_tests::shared::repository;
use std::path::Path;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn builder(&self) -> Builder {
        AutoModel::builder().device(airllm::Device::Cpu).home(self.dir.path().join("home")).threads(2)
    }

    /// The demo model, ready for these windows.
    fn demo(&self, windows: &Windows, change: impl FnOnce(Builder) -> Builder) -> AutoModel {
        load(change(self.builder().evaluating(windows)), &demo())
    }
}

fn demo() -> String {
    repository().join("assets/demo-model/model").to_str().unwrap().to_owned()
}

fn load(builder: Builder, dir: &str) -> AutoModel {
    builder.from_pretrained(dir).unwrap()
}

/// Something like prose, of any length, in two scripts.
fn prose(sentences: usize) -> String {
    let words = ["the moon", "a river", "my lord", "春风", "old friends", "the night", "明月", "her heart"];
    let verbs = ["saw", "will not forget", "sang of", "went down to", "loved"];
    let mut state = 7_usize;
    let mut next = |list: &[&'static str]| {
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        list[(state >> 8) % list.len()]
    };
    (0..sentences).map(|_| format!("Then {} {} {}.\n", next(&words), next(&verbs), next(&words))).collect()
}

fn windows(context: usize, limit: usize) -> Windows {
    let tokenizer = airllm::Tokenizer::open(demo()).unwrap();
    Windows::of(&tokenizer, &prose(200), context, Some(limit)).unwrap()
}

fn evaluate(model: &AutoModel, windows: &Windows, reference: Option<&AutoModel>) -> Evaluation {
    let mut last = 0;
    let evaluation = model
        .evaluate(windows, reference, &mut |now| {
            assert!(now.read > last && now.windows <= now.of_windows && now.left().is_some());
            assert_eq!(now.perplexity.is_some(), now.windows > 0);
            last = now.read;
        })
        .unwrap();
    assert_eq!(last, windows.count() * (windows.context() - 1));
    evaluation
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let place = Place::new();
    for (context, limit) in [(64, 3), (33, 2)] {
        let windows = windows(context, limit);
        let model = place.demo(&windows, |builder| builder);
        let result = evaluate(&model, &windows, None);
        // The same by hand, from logits of whole windows.
        let (mut sum, mut squares, mut count) = (0.0, 0.0, 0_usize);
        for window in 0..limit {
            let ids = windows.ids(window).unwrap();
            assert_eq!(ids.len(), context);
            let logits = model.forward(&ids).unwrap();
            for position in context / 2..context - 1 {
                let row: Vec<f64> = logits.row(position).unwrap().iter().map(|x| f64::from(*x)).collect();
                let total: f64 = row.iter().map(|x| x.exp()).sum();
                let nll = total.ln() - row[ids[position + 1] as usize];
                (sum, squares, count) = (sum + nll, squares + nll * nll, count + 1);
            }
        }
        assert!(windows.ids(limit).is_none());
        assert_eq!((result.scores.tokens, result.windows), (count, limit));
        let mean = sum / count as f64;
        let error = ((squares / count as f64 - mean * mean) / (count as f64 - 1.0)).sqrt();
        let perplexity = result.scores.perplexity;
        assert!((perplexity.value / mean.exp() - 1.0).abs() < 1e-9, "{perplexity:?} {}", mean.exp());
        assert!((perplexity.error / (error * mean.exp()) - 1.0).abs() < 1e-6, "{perplexity:?} {error}");
        assert!(perplexity.value > 1.5 && perplexity.value < 3000.0, "{perplexity:?}");
        let bits = sum / std::f64::consts::LN_2 / result.scores.bytes as f64;
        assert!((result.scores.bits_per_byte.unwrap() / bits - 1.0).abs() < 1e-9);
    }
}

#[test]
fn bytes_are_those_of_the_text() {
    let (tokenizer, text) = (airllm::Tokenizer::open(demo()).unwrap(), prose(60));
    let model = Place::new();
    let ids = tokenizer.encode_plain(&text).unwrap();
    let windows = Windows::of(&tokenizer, &text, ids.len() / 2, None).unwrap();
    let evaluation = evaluate(&model.demo(&windows, |builder| builder), &windows, None);
    let counted: Vec<u32> = (0..2)
        .flat_map(|window| {
            let from = window * windows.context();
            ids[from + windows.context() / 2 + 1..from + windows.context()].to_vec()
        })
        .collect();
    // A character cut by the edge of a window is up to three bytes, and as a replacement three.
    let expected = tokenizer.decode(&counted, false).len() as f64;
    assert!(
        (evaluation.scores.bytes as f64 - expected).abs() <= 12.0,
        "{} {expected}",
        evaluation.scores.bytes
    );
}

#[test]
fn a_model_is_itself_and_fewer_bits_are_farther() {
    let place = Place::new();
    let windows = windows(64, 4);
    let reference = place.demo(&windows, |builder| builder);
    let mut divergences = Vec::new();
    for bits in [Bits::Source, Bits::Q8, Bits::Q4] {
        let model = place.demo(&windows, |builder| builder.bits(bits));
        let result = evaluate(&model, &windows, Some(&reference));
        assert_eq!(result.scores.tokens, 4 * 31);
        let comparison = result.scores.comparison.unwrap();
        if bits == Bits::Source {
            assert_eq!((comparison.kl_mean.value, comparison.kl_99, comparison.kl_max), (0.0, 0.0, 0.0));
            assert_eq!((comparison.top1_agreement.value, comparison.top1_agreement.error), (1.0, 0.0));
            assert_eq!(comparison.perplexity, result.scores.perplexity);
        }
        assert!(comparison.kl_mean.value <= comparison.kl_99 && comparison.kl_99 <= comparison.kl_max);
        divergences.push(comparison.kl_mean.value);
    }
    assert!(divergences[1] > 0.0 && divergences[2] > 4.0 * divergences[1], "{divergences:?}");
}

#[test]
fn a_cache_of_fewer_bits_is_near() {
    let place = Place::new();
    let windows = windows(256, 4);
    let reference = place.demo(&windows, |builder| builder);
    let mut divergences = Vec::new();
    // Measured: 1.4e-7 and 8.5e-5.
    for (kv, most) in [(KvFormat::F32, 0.0), (KvFormat::F16, 1e-6), (KvFormat::Q8, 2e-4)] {
        let with = |tokens| place.demo(&windows, |builder| builder.kv(kv).batch_tokens(tokens));
        let model = with(256);
        assert_eq!(model.plan().kv, kv);
        let scores = evaluate(&model, &windows, Some(&reference)).scores;
        let comparison = scores.comparison.unwrap();
        assert!(comparison.kl_mean.value <= most, "{kv}: {comparison:?}");
        // However tokens share passes.
        assert_eq!(evaluate(&with(37), &windows, Some(&reference)).scores, scores, "{kv}");
        divergences.push((model.plan().kv_bytes, comparison.kl_mean.value));
    }
    // Fewer bytes, and farther.
    assert!(
        divergences.windows(2).all(|pair| pair[0].0 > pair[1].0 && pair[0].1 < pair[1].1),
        "{divergences:?}"
    );
}

#[test]
fn how_it_is_cut_changes_nothing() {
    let place = Place::new();
    let windows = windows(24, 5);
    let reference = place.demo(&windows, |builder| builder.bits(Bits::Q4));
    let expected = evaluate(&place.demo(&windows, |builder| builder), &windows, Some(&reference));
    let least = match place.builder().evaluating(&windows).ram(1).from_pretrained(&demo()) {
        Err(Error::Budget { need, have: 1, .. }) => need,
        other => panic!("{other:?}"),
    };
    let changes: [fn(Builder, u64) -> Builder; 6] = [
        |builder, _| builder.batch_tokens(1),
        |builder, _| builder.batch_tokens(7),
        |builder, _| builder.batch_tokens(25),
        |builder, _| builder.batch_tokens(1000).threads(1),
        |builder, least| builder.ram(least),
        |builder, least| builder.ram(least + 2_000_000).readers(3),
    ];
    let mut passes = vec![expected.passes];
    for change in changes {
        let model = place.demo(&windows, |builder| change(builder, least));
        let result = evaluate(&model, &windows, Some(&reference));
        assert_eq!(result.scores, expected.scores);
        passes.push(result.passes);
    }
    // They did differ in how they read it.
    passes.sort_unstable();
    passes.dedup();
    assert!(passes.len() > 3, "{passes:?}");
    // Not loaded for it, a model still does what it has room for.
    let plain = load(place.builder().cache_tokens(24), &demo());
    assert_eq!(evaluate(&plain, &windows, Some(&reference)).scores, expected.scores);
}

#[test]
fn the_token_for_the_beginning_begins_every_window() {
    let place = Place::new();
    let dir = place.dir.path().join("model");
    Checkpoint::new(Shape { context: 128, ..Shape::TINY }).write(&dir).unwrap();
    let path = dir.join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let id = json["added_tokens"][0]["id"].as_u64().unwrap() as u32;
    let token = json["added_tokens"][0]["content"].clone();
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {token.as_str().unwrap(): {"id": token, "ids": [id], "tokens": [token]}},
    });
    std::fs::write(&path, json.to_string()).unwrap();
    let tokenizer = airllm::Tokenizer::open(&dir).unwrap();
    let text = prose(3);
    let framed = tokenizer.encode(&text, true).unwrap();
    assert_eq!((framed[0], framed.len()), (id, text.len() + 1));
    let windows = Windows::of(&tokenizer, &text, 16, None).unwrap();
    assert_eq!(windows.count(), framed.len() / 16);
    for window in 0..windows.count() {
        let ids = windows.ids(window).unwrap();
        assert_eq!((ids[0], &ids[1..]), (id, &framed[window * 16 + 1..][..15]));
    }
    // Every token is a byte here.
    let model = load(place.builder().evaluating(&windows), dir.to_str().unwrap());
    let characters = evaluate(&model, &windows, None).scores;
    assert!(
        characters.bytes.abs_diff(characters.tokens as u64) < 3 * windows.count() as u64,
        "{characters:?}"
    );
}

#[test]
fn what_cannot_be_evaluated() {
    let place = Place::new();
    let tokenizer = airllm::Tokenizer::open(demo()).unwrap();
    let tokens = tokenizer.encode_plain("A short text.").unwrap().len();
    let error = Windows::of(&tokenizer, "A short text.", 64, None).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(
        message.contains(&format!("has {tokens} tokens")) && message.contains("at least 128"),
        "{message}"
    );
    for (context, limit) in [(0, None), (7, None), (64, Some(0))] {
        let error = Windows::of(&tokenizer, &prose(100), context, limit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }
    // Another vocabulary, by size and by the ids of the text.
    let dir = place.dir.path().join("tiny");
    Checkpoint::new(Shape { context: 128, ..Shape::TINY }).write(&dir).unwrap();
    let other = airllm::Tokenizer::open(&dir).unwrap();
    let (few, theirs) = (windows(64, 2), Windows::of(&other, &prose(200), 64, Some(2)).unwrap());
    let message = few.check_same(&theirs).unwrap_err().to_string();
    assert!(message.contains("vocabularies") && message.contains("token 0"), "{message}");
    few.check_same(&few.clone()).unwrap();
    let (model, tiny) =
        (place.demo(&few, |builder| builder), load(place.builder().evaluating(&few), dir.to_str().unwrap()));
    let error = model.evaluate(&few, Some(&tiny), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("6144 ids and 264"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Input);
    // No room, and a model that is at work: as its own reference.
    let small = load(place.builder().cache_tokens(63), &demo());
    assert!(matches!(
        small.evaluate(&few, None, &mut |_| {}),
        Err(Error::Context { prompt: 64, context: 63, .. })
    ));
    assert!(matches!(model.evaluate(&few, Some(&model), &mut |_| {}), Err(Error::Busy)));
}

#[test]
fn logits_that_are_no_numbers_are_placed() {
    let place = Place::new();
    let (from, to) = (demo(), place.dir.path().join("broken"));
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(Path::new(&from)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    // One number of the embedding of token 6000, which is also that token's row of the head, is none.
    let path = to.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offset = json["model.embed_tokens.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = 8 + header + offset + 6000 * 256 * 2;
    bytes[at..at + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let windows = windows(64, 2);
    let model = load(place.builder().evaluating(&windows), to.to_str().unwrap());
    let error = model.evaluate(&windows, None, &mut |_| {}).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("the model: window 0, position 32: the logit of token 6000 of 6144"),
        "{message}"
    );
    // It can be asked again, and as a reference it is named.
    let whole = place.demo(&windows, |builder| builder);
    let message = whole.evaluate(&windows, Some(&model), &mut |_| {}).unwrap_err().to_string();
    assert!(message.starts_with("the reference: window 0"), "{message}");
    evaluate(&whole, &windows, None);
}

#[test]
fn it_can_be_stopped() {
    let place = Place::new();
    let (windows, cancel) = (windows(64, 6), Cancel::new());
    let model = place.demo(&windows, |builder| builder.cancel(&cancel).batch_tokens(64));
    let mut told = 0;
    let result = model.evaluate(&windows, None, &mut |_| {
        told += 1;
        if told == 2 {
            cancel.stop();
        }
    });
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert_eq!(told, 2);
}

#[test]
fn a_row_is_judged_alone() {
    let judged = Judged::of(&[0.0, 0.0, 0.0, 0.0], 3, None).unwrap();
    assert!((judged.nll - 4f64.ln()).abs() < 1e-12);
}
