//! `airllm eval` from end to end on the demo model.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Place, edit, stderr};
use std::fs;
use std::io::{BufRead, BufReader, Read};

/// Lines that the demo model has not seen.
fn text(lines: usize) -> String {
    (0..lines).map(|i| format!("The {i} ships came home before the {} winds.\n", i * 7 % 13)).collect()
}

fn with_text(lines: usize) -> (Place, String) {
    let place = Place::new();
    let path = place.path("text");
    fs::write(&path, text(lines)).unwrap();
    (place, path.to_str().unwrap().to_owned())
}

#[test]
fn one_object() {
    let (place, path) = with_text(60);
    let base = ["eval", "--text", &path, "--context", "64", "--chunks", "4"];
    let alone = place.json(&base);
    assert_eq!(
        (&alone["tokens"], &alone["windows"], &alone["context"]),
        (&124.into(), &4.into(), &64.into())
    );
    assert!(alone["comparison"].is_null() && alone["reference"].is_null(), "{alone}");
    let perplexity = alone["perplexity"]["value"].as_f64().unwrap();
    assert!((perplexity.ln() - alone["nll"]["value"].as_f64().unwrap()).abs() < 1e-12, "{alone}");
    assert!(alone["perplexity"]["error"].as_f64().unwrap() > 0.0);
    assert!(alone["bits_per_byte"].as_f64().unwrap() > 0.0);

    let against = place.json(&[&base[..], &["--bits", "8", "--reference", "demo", "--ram", "30MB"]].concat());
    let comparison = &against["comparison"];
    assert_eq!(comparison["perplexity"], alone["perplexity"]);
    assert!(comparison["kl_mean"]["value"].as_f64().unwrap() > 0.0, "{against}");
    assert!(comparison["kl_99"].as_f64() > comparison["kl_mean"]["value"].as_f64(), "{against}");
    assert!((0.5..=1.0).contains(&comparison["top1_agreement"]["value"].as_f64().unwrap()), "{against}");
    // Standard input, and another cut of the same passes.
    let args = ["eval", "-f", "-", "--context", "64", "--chunks", "4", "--batch-tokens", "9", "--json"];
    let fed = place.feed(&args, text(60).as_bytes());
    let fed: serde_json::Value = serde_json::from_slice(&fed.stdout).unwrap();
    assert_eq!((&fed["perplexity"], &fed["bits_per_byte"]), (&alone["perplexity"], &alone["bits_per_byte"]));
    assert_ne!(fed["passes"], alone["passes"]);
}

#[test]
fn lines_for_people() {
    let (place, path) = with_text(40);
    let output = place.run(&["eval", "-f", &path, "--context", "64", "--chunks", "2", "--reference", "demo"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let starts = [
        "perplexity  ",
        "bits per byte",
        "reference perplexity",
        "mean KL divergence",
        "99 % KL",
        "same top",
    ];
    for (line, start) in text.lines().zip(starts) {
        assert!(line.starts_with(start), "{text}");
    }
    assert_eq!(text.lines().count(), starts.len());
    assert!(text.contains("mean KL divergence    0.0000 ± 0.0000 nats"), "{text}");
    assert!(text.contains("same top token        100.0000 ± 0.0000 %"), "{text}");
    let notes = stderr(&output);
    assert!(notes.contains("62 tokens counted of 2 windows of 64") && notes.lines().count() == 1, "{notes}");
}

#[test]
fn what_is_refused() {
    let (place, path) = with_text(10);
    let file = ["eval", "-f", &path];
    place.refused(&file, 4, &["tokens", "a context of 512 needs at least 1024"]);
    place.refused(&[&file[..], &["--context", "513"]].concat(), 3, &["--context 513", "holds 512"]);
    place.refused(&[&file[..], &["--context", "4"]].concat(), 2, &["too short"]);
    place.refused(&[&file[..], &["--context", "16", "--chunks", "0"]].concat(), 2, &["0 windows"]);
    place.refused(&["eval", "-f", "no-such-file"], 4, &["no-such-file"]);
    let small = [&file[..], &["--context", "16", "--reference"]].concat();
    place.refused(&[&small[..], &["no-such-model"]].concat(), 4, &["the reference", "no-such-model"]);
    place.refused(
        &[&small[..], &["demo", "--ram", "1MB"]].concat(),
        3,
        &["half of the memory budget", "least"],
    );
    // Other ids for the same text, and the same ids with rows to spare.
    let tiny = Place::with_model();
    place.refused(&[&small[..], &[&tiny.model()]].concat(), 4, &["vocabularies", "token 0"]);
    let demo = place.path("home").join("demo");
    let other = place.path("other");
    fs::create_dir(&other).unwrap();
    for entry in fs::read_dir(&demo).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    // Without the merges that both words need, its ids differ from the first such word on.
    edit(&other.join("tokenizer.json"), |json| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.truncate(20);
    });
    let other = other.to_str().unwrap();
    place.refused(&[&small[..], &[other]].concat(), 4, &["vocabularies", "of the text is"]);
}

#[test]
fn it_ends_soon_when_interrupted() {
    let (place, path) = with_text(4000);
    let args = ["eval", "-v", "-f", &path, "--context", "64", "--batch-tokens", "64", "--threads", "1"];
    let mut child = place.command(&args).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(" windows, ") || !line.contains("perplexity ") {
        line.clear();
        assert!(notes.read_line(&mut line).unwrap() > 0, "it ended by itself");
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let mut rest = String::new();
    notes.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest}");
    assert!(output.stdout.is_empty());
    assert!(rest.lines().last().unwrap().starts_with("interrupted after "), "{rest}");
}
