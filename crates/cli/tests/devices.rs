//! The choice of a device, and what is said where there is no GPU.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail loudly, and says when it is skipped"
)]

mod common;

use common::{Place, stderr};
use serde_json::Value;

const OTHER: i32 = 1;
const USAGE: i32 = 2;

/// Why no GPU can be used here; `None` where one can, and these tests have nothing to say.
fn why_none(place: &Place) -> Option<String> {
    let why = place.json(&["devices"])["why_no_cuda"].as_str().map(str::to_owned);
    if why.is_none() {
        eprintln!("skipped: there is a GPU");
    }
    why
}

#[test]
fn devices() {
    let place = Place::new();
    let object = place.json(&["devices"]);
    assert!(object["cpu"]["threads"].as_u64().unwrap() > 0, "{object}");
    assert!(
        ["avx512-vnni", "avx-vnni", "avx2", "neon", "portable"]
            .contains(&object["cpu"]["instructions"].as_str().unwrap())
    );
    assert!(object["cuda"].is_array());
    let text = place.ok(&["devices"]);
    assert!(text.starts_with("cpu ") && text.contains(" threads"), "{text}");
    let Some(why) = why_none(&place) else { return };
    // One line, the last, says why; nothing is wrong with that.
    assert_eq!(text.lines().last().unwrap(), format!("no GPU   {why}"));
    let gpus = object["cuda"].as_array().unwrap();
    assert_eq!(text.lines().count(), 2 + gpus.len());
    assert!(gpus.iter().all(|gpu| gpu["why_not"].is_string()), "{object}");
    // A library that is no driver, and none at all, are the same.
    let output =
        place.command(&["devices", "--json"]).env("LD_LIBRARY_PATH", place.dir.path()).output().unwrap();
    let again: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(again["why_no_cuda"], object["why_no_cuda"]);
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_refused_with_the_reason() {
    let place = Place::with_model();
    let Some(why) = why_none(&place) else { return };
    let model = place.model();
    let out = place.path("out");
    let commands: [&[&str]; 4] = [
        &["generate", "-m", &model, "--input-ids", "1,2", "-n", "1"],
        &["plan", "-m", &model],
        &["logits", "-m", &model, "--input-ids", "1,2", "--out", out.to_str().unwrap()],
        &["generate", "-m", &model, "--input-ids", "1,2", "-n", "1", "--bits", "4"],
    ];
    for command in commands {
        place.refused(&[command, &["--device", "cuda"]].concat(), OTHER, &["cuda:0", &why]);
        place.refused(&[command, &["--vram", "4GB"]].concat(), OTHER, &["vram", &why]);
        place.refused(&[command, &["--device", "auto", "--vram", "4GB"]].concat(), OTHER, &["vram", &why]);
        place.refused(
            &[command, &["--device", "cpu", "--vram", "4GB"]].concat(),
            USAGE,
            &["vram", "processor"],
        );
    }
    assert!(!out.exists());
    // Nothing was prepared for a device that is not there.
    assert_eq!(place.json(&["cache", "list"])["entries"], serde_json::json!([]));
    place.refused(&["plan", "-m", &model, "--device", "cuda:3"], OTHER, &["cuda:3"]);
    let output = place.run(&["plan", "-m", &model, "--device", "gpu"]);
    assert_eq!(output.status.code(), Some(USAGE));
    assert!(stderr(&output).contains("auto, cpu, cuda or cuda:N"), "{}", stderr(&output));
}

#[test]
fn without_a_gpu_the_processor_computes_and_a_plan_says_why() {
    let place = Place::with_model();
    let Some(why) = why_none(&place) else { return };
    let model = place.model();
    let generate = ["generate", "-m", &model, "--input-ids", "5,6", "-n", "4", "--ignore-eos"];
    let [auto, cpu] = ["auto", "cpu"].map(|device| {
        let output = place.run(&[&generate[..], &["--device", device]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        // The closing line alone: nobody has asked for a GPU.
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        assert!(!stderr(&output).contains("copy"), "{}", stderr(&output));
        output.stdout
    });
    assert_eq!(auto, cpu);
    let output = place.run(&["plan", "-m", &model]);
    assert_eq!(stderr(&output).trim(), format!("no GPU: {why}"));
    let cpu = place.run(&["plan", "-m", &model, "--device", "cpu"]);
    assert!(stderr(&cpu).is_empty(), "{}", stderr(&cpu));
    let plan = place.json(&["plan", "-m", &model]);
    assert_eq!(plan["device"]["why_not_gpu"], why);
    assert_eq!((&plan["device"]["device"], &plan["plan"]["vram"]), (&"cpu".into(), &0.into()));
    assert!(plan["hardware"]["gpu"].is_null() && plan["vram_budget"].is_null());
}
