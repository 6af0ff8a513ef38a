//! Rates that are measured once and kept.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::Place;

const OTHER: i32 = 1;

#[test]
fn plans_count_with_what_was_measured_on_this_machine() {
    let place = Place::with_model();
    let model = place.model();
    let plan = || place.json(&["plan", "-m", &model]);
    assert_eq!(plan()["disk_measured"], false, "too small to be timed");

    let probe = place.json(&["probe", "--threads", "1"]);
    let kept = place.path("home/probe.toml");
    let text = std::fs::read_to_string(&kept).unwrap();
    let products = probe["products"].as_array().unwrap();
    for format in ["f16", "bf16", "q8", "q4", "q2", "nf4", "q4_k"] {
        let rate = products.iter().find(|rate| rate["format"] == format);
        let rate = rate.unwrap_or_else(|| panic!("no rate of {format}: {probe}"));
        assert!(rate["token"].as_f64().unwrap() > 1e6 && rate["prompt"].as_f64().unwrap() > 1e6, "{rate}");
        assert!(text.contains(&format!("format = \"{format}\"")), "{text}");
    }
    assert!(
        probe["memory"].as_f64().unwrap() > 1e8
            && probe["disks"][0]["methods"][0]["rate"].as_f64().unwrap() > 1e5
    );
    assert_eq!(std::fs::read_dir(place.path("home")).unwrap().count(), 1, "only the rates stay");

    // Measured with one thread: a plan with one counts with it, a plan with two is one of another machine.
    let memory = text.lines().find(|line| line.starts_with("memory = ") && line.contains('.')).unwrap();
    std::fs::write(&kept, text.replacen(memory, "memory = 12345678901.0", 1)).unwrap();
    let planned = |threads| {
        let plan = place.json(&["plan", "-m", &model, "--threads", threads]);
        (plan["hardware"]["memory"].as_f64().unwrap(), plan["disk_measured"].as_bool().unwrap())
    };
    // The model lies on the same disk as the program's folder.
    assert_eq!(planned("1"), (12_345_678_901.0, true));
    assert_ne!(planned("2").0, 12_345_678_901.0);

    // What cannot be understood is as good as nothing.
    std::fs::write(&kept, "memory = 'much'").unwrap();
    assert_eq!(plan()["disk_measured"], false);
    let prompt = plan();
    assert!(prompt["prompt_tokens_per_s"].as_f64().unwrap() > 0.0, "{prompt}");
}

#[test]
fn a_model_is_measured_beside_what_was_expected() {
    let place = Place::with_model();
    let model = place.model();
    let bench = place.json(&["bench", &model, "-p", "40", "-n", "5", "-s", "2", "-r", "3"]);
    for name in ["prompt", "decode"] {
        let measured = &bench[name];
        let runs: Vec<f64> =
            measured["runs"].as_array().unwrap().iter().map(|run| run.as_f64().unwrap()).collect();
        assert_eq!(runs.len(), 3);
        let median = measured["tokens_per_s"].as_f64().unwrap();
        assert!(runs.iter().filter(|run| **run <= median).count() >= 2 && runs.contains(&median), "{bench}");
        assert!(measured["expected"].as_f64().unwrap() > 0.0, "{bench}");
    }
    assert!(place.json(&["bench", &model, "-p", "0", "-n", "1", "-r", "1"])["prompt"].is_null());
    let text = place.ok(&["bench", "-m", &model, "-p", "3", "-n", "0", "-r", "1"]);
    assert!(text.contains("prompt of 3") && !text.contains("new tokens"), "{text}");
}

#[test]
fn a_folder_that_is_not_there_is_refused() {
    let place = Place::new();
    let none = place.path("none");
    place.refused(&["probe", "--dir", none.to_str().unwrap()], OTHER, &["none", "No such file"]);
}
