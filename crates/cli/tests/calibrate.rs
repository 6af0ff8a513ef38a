//! `airllm sensitivity`, and `airllm prepare` in widths that it chooses.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Place, stderr};
use std::fs;

const TOKENS: [&str; 2] = ["--calibration-tokens", "512"];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more, &TOKENS[..]].concat()
}

#[test]
fn the_demo_model_is_measured_and_made_smaller() {
    let place = Place::new();
    let svg = place.path("heat.svg");
    let sensitivity = place.json(&with(&["sensitivity", "--svg", svg.to_str().unwrap()], &[]));
    let tensors = sensitivity["tensors"].as_array().unwrap();
    assert_eq!((tensors.len(), &sensitivity["calibration"]["tokens"]), (36, &512.into()));
    assert!(tensors.iter().all(|it| it["kl"].as_f64().unwrap() > 0.0));
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<?xml") && picture.trim_end().ends_with("</svg>"), "{picture}");
    assert!(picture.contains("demo") && picture.contains("down"), "{picture}");

    // The second time it is only looked up, for people.
    let output = place.run(&with(&["sensitivity"], &[]));
    let report = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(report.starts_with("calibration: built-in, 512 tokens"), "{report}");
    for word in
        ["mean KL divergence", "attention", "feed-forward", "first layer", "last layer", "q3", "output"]
    {
        assert!(report.contains(word), "no {word:?} in: {report}");
    }
    assert!(!stderr(&output).contains("measuring"), "{}", stderr(&output));

    let out = place.path("out");
    let out = out.to_str().unwrap();
    let output = place.run(&with(&["prepare", "--bits", "3.6"], &["--out", out]));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), out);
    let notes = stderr(&output);
    for word in [
        "format",
        "matrices",
        "bits a weight",
        "expected mean KL divergence",
        "tokens/s",
        "times the",
        "7 shards",
    ] {
        assert!(notes.contains(word), "no {word:?} in: {notes}");
    }
    let made = place.json(&with(&["prepare", "--bits", "3.6"], &["--out", out]));
    assert_eq!((&made["bits"], &made["path"]), (&"mixed".into(), &out.into()));
    assert!(made["recipe"].as_str().unwrap().starts_with("3.6bits-"), "{made}");
    let bits = made["bits_per_weight"].as_f64().unwrap();
    assert!(bits <= 3.6 && bits > 3.5 && made["expected_kl"].as_f64().unwrap() > 0.0, "{made}");
    let files = fs::read_dir(out).unwrap().map(|entry| entry.unwrap());
    let shards = files.filter(|it| it.path().extension().is_some_and(|end| end == "safetensors"));
    assert_eq!(made["bytes"], shards.map(|it| it.metadata().unwrap().len()).sum::<u64>());

    assert!(place.ok(&["generate", "-m", out, "The moon", "-n", "8"]).trim().len() > 3);
    place.ok(&["inspect", "-m", out, "--verify"]);
    assert_eq!(place.json(&["sensitivity", "-m", out]), sensitivity);
    // By size, and by quality, each in a folder of its own of the cache.
    let sized = place.json(&with(&["prepare", "--size", "2.4MB"], &[]));
    assert!((2_300_000..=2_400_000).contains(&sized["bytes"].as_u64().unwrap()), "{sized}");
    let good = place.json(&with(&["prepare", "--quality", "0.05"], &[]));
    assert!(good["expected_kl"].as_f64().unwrap() <= 0.05, "{good}");
    assert_ne!(sized["path"], good["path"]);
}

#[test]
fn what_is_calibrated_runs() {
    let place = Place::with_model();
    let model = place.model();
    let text = place.path("text");
    fs::write(&text, "A line that is not too long, and another one.\n".repeat(40)).unwrap();
    let text = text.to_str().unwrap();
    let made = place.json(&with(&["prepare", "-m", &model, "--bits", "4"], &["--calibration", text]));
    assert_eq!((&made["bits"], &made["expected_kl"]), (&"q4".into(), &serde_json::Value::Null));
    assert!(made["recipe"].as_str().unwrap().starts_with("q4-calibrated-"), "{made}");
    let ids = |args: &[&str]| {
        let base = ["generate", "-m", &model, "--input-ids", "5,6", "-n", "6", "--ignore-eos"];
        place.json(&with(&base, args))["ids"].clone()
    };
    // Prepared when it is first asked for, too, and found again.
    for args in [&["--bits", "4", "--calibration", text][..], &["--bits", "5.0"], &["--bits", "5.0"]] {
        assert_eq!(ids(args).as_array().unwrap().len(), 6);
    }
    assert_eq!(place.json(&["cache", "list"])["entries"].as_array().unwrap().len(), 2);
}

#[test]
fn recipes_that_are_not_those_of_the_shards() {
    let place = Place::with_model();
    let (model, out) = (place.model(), place.path("out"));
    let out = out.to_str().unwrap();
    place.ok(&with(&["prepare", "-m", &model, "--bits", "5.0", "--out", out], &[]));
    let refused = |args: &[&str], words: &[&str]| place.refused(&with(args, &[]), 4, words);
    fs::remove_dir_all(place.path("home/sensitivity")).unwrap();
    refused(
        &["prepare", "-m", &model, "--bits", "5.5", "--out", out],
        &[out, "another checkpoint or recipe", "5bits-", "5.5bits-"],
    );
    refused(&["prepare", "-m", &model, "--bits", "5", "--out", out], &["5bits-", "(q5)"]);
    assert!(!place.path("home/sensitivity").exists(), "nothing is measured for it");
    refused(&["prepare", "-m", out, "--bits", "5.5"], &["stored as 5bits-", "5.5bits-"]);
    refused(&["generate", "-m", out, "--bits", "4", "x"], &["stored as 5bits-", "q4 was asked for"]);
    place.ok(&with(&["prepare", "-m", out, "--bits", "5.0"], &[]));
    // Shards that were made without a measurement have none to show.
    let plain = place.path("plain");
    let plain = plain.to_str().unwrap();
    place.ok(&["prepare", "-m", &model, "--bits", "4", "--out", plain]);
    refused(&["sensitivity", "-m", plain], &[plain, "without a look at sensitivities"]);
}

#[test]
fn what_is_refused() {
    let place = Place::with_model();
    let model = place.model();
    for args in [
        &["--bits", "3.6", "--size", "1MB"][..],
        &["--bits", "4", "--quality", "0.1"],
        &["--size", "1MB", "--quality", "0.1"],
        &["--bits", "17.5"],
        &["--bits", "nan"],
        &["--bits", "3.6.1"],
        &["--quality", "much"],
        &["--calibration-tokens", "-3"],
    ] {
        let output = place.run(&[&["prepare", "-m", &model], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
    let prepare = ["prepare", "-m", &model];
    let refused = |more: &[&str], code, words: &[&str]| place.refused(&with(&prepare, more), code, words);
    refused(&["--bits", "2.5"], 2, &["2.5 bits a weight", "floor", "least possible is 4."]);
    refused(&["--size", "20kB"], 2, &["20 kB", "least possible is", "bytes)"]);
    refused(&["--quality", "1e-12"], 2, &["least possible is"]);
    refused(&["--quality", "0"], 2, &["above 0"]);
    refused(&["--bits", "4", "--calibration", "no-such-file"], 4, &["no-such-file"]);
    let short = place.path("short");
    fs::write(&short, "Too short.").unwrap();
    let words = ["(short)", "has 10 tokens", "at least 128"];
    refused(&["--bits", "4", "--calibration", short.to_str().unwrap()], 4, &words);
    fs::write(&short, b"caf\xe9".repeat(100)).unwrap();
    refused(&["--bits", "4", "--calibration", short.to_str().unwrap()], 4, &["short", "UTF-8"]);
}

#[test]
fn help() {
    let place = Place::new();
    let prepare = place.ok(&["prepare", "--help"]);
    for word in [
        "--bits <16|8|6|5|4|3|2|nf4|N.N>",
        "--size <SIZE>",
        "--quality <KL>",
        "--calibration <FILE|built-in>",
    ] {
        assert!(prepare.contains(word), "no {word:?} in: {prepare}");
    }
    assert!(
        prepare.contains("average") && prepare.contains("mean KL divergence") && prepare.contains("20GB")
    );
    assert!(prepare.contains("[default: 32768]"), "{prepare}");
    let sensitivity = place.ok(&["sensitivity", "--help"]);
    for word in ["--svg <FILE>", "heat map", "--calibration"] {
        assert!(sensitivity.contains(word), "no {word:?} in: {sensitivity}");
    }
    assert!(place.ok(&["--help"]).contains("sensitivity"));
}
