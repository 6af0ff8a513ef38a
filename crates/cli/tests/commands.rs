//! The commands from end to end on small models.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Place, edit, stderr};
use safetensors::SafeTensors;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn the_demo_model_speaks() {
    let place = Place::new();
    let output = place.run(&["generate", "The moon", "-n", "12"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.trim().len() > 5, "{text:?}");
    // The closing line, and nothing else, is on standard error.
    let notes = stderr(&output);
    assert_eq!(notes.lines().count(), 1, "{notes}");
    for word in ["tokens/s", "memory", "bottleneck", "logits"] {
        assert!(notes.contains(word), "{notes}");
    }
    let chinese = place.json(&["generate", "春风", "-n", "8"]);
    assert_eq!(chinese["ids"].as_array().unwrap().len(), 8);
    // It runs as it is.
    assert_eq!(place.json(&["cache", "list"])["entries"], serde_json::json!([]));
}

#[test]
fn generate_as_json() {
    let place = Place::with_model();
    let model = place.model();
    let args = ["generate", "-m", &model, "--input-ids", "72,101,108", "-n", "7", "--ignore-eos"];
    let object = place.json(&args);
    assert_eq!(object["ids"].as_array().unwrap().len(), 7);
    assert_eq!(object["prompt_ids"], serde_json::json!([72, 101, 108]));
    assert_eq!(object["finish_reason"], "length");
    for (group, key) in [("timings", "total_s"), ("physics", "tokens_per_s"), ("physics", "logits_hash")] {
        assert!(!object[group][key].is_null(), "{object}");
    }
    // The text is that of the ids, and a file, standard input and an argument are one prompt.
    let ids: Vec<String> = object["ids"].as_array().unwrap().iter().map(|id| id.to_string()).collect();
    let text = place.json(&["tokenize", "-m", &model, "--ids", &ids.join(","), "--skip-special"]);
    assert_eq!(text["text"], object["text"]);
    fs::write(place.path("prompt"), "Hel").unwrap();
    let file = place.path("prompt");
    let ways: [&[&str]; 2] = [&["Hel"], &["--file", file.to_str().unwrap()]];
    let head = ["generate", "-m", &model, "-n", "7", "--ignore-eos", "--json"];
    let outputs = ways.map(|way| place.run(&[&head[..], way].concat()));
    let fed = place.feed(&head, b"Hel");
    for output in outputs.iter().chain([&fed]) {
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let first: serde_json::Value = serde_json::from_slice(&fed.stdout).unwrap();
        assert_eq!((&object["ids"], &object["prompt_ids"]), (&first["ids"], &first["prompt_ids"]));
    }
}

#[test]
fn seeds_and_stops() {
    let place = Place::with_model();
    let model = place.model();
    let ids = |extra: &[&str]| {
        let args = ["generate", "-m", &model, "--input-ids", "5,6", "-n", "12", "--ignore-eos"];
        place.json(&[&args[..], extra].concat())["ids"].clone()
    };
    let hot = ["--temperature", "1.5", "--seed", "7"];
    assert_eq!(ids(&hot), ids(&hot));
    assert_ne!(ids(&hot), ids(&["--temperature", "1.5", "--seed", "8"]));
    assert_eq!(ids(&["--temperature", "1.5", "--top-k", "1"]), ids(&[]));
    assert_eq!(ids(&["--ram", "5MB", "--readers", "3", "--stripe", "16KiB"]), ids(&[]));
    for method in ["auto", "direct", "uring", "buffered"] {
        assert_eq!(ids(&["--ram", "5MB", "--read", method]), ids(&[]), "read by {method}");
    }
    let output = place.run(&["generate", "-m", &model, "--read", "mmap", "x"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn several_prompts() {
    let place = Place::with_model();
    let model = place.model();
    let common = ["generate", "-m", &model, "-n", "6", "--ignore-eos"];
    let both = place.json(&[&common[..], &["--input-ids", "1,2,3", "--input-ids", "9"]].concat());
    let answers = both["answers"].as_array().unwrap();
    for (answer, prompt) in answers.iter().zip(["1,2,3", "9"]) {
        let alone = place.json(&[&common[..], &["--input-ids", prompt]].concat());
        assert_eq!(answer["ids"], alone["ids"]);
    }
    let text = place.ok(&[&common[..], &["one", "two"]].concat());
    assert!(text.starts_with("==> 1 <==\n") && text.contains("\n==> 2 <==\n"), "{text}");
}

#[test]
fn models_without_a_tokenizer() {
    let place = Place::with_model();
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    let args = ["generate", "-m", &place.model(), "--input-ids", "5,6", "-n", "4", "--ignore-eos"];
    let object = place.json(&args);
    assert!(object.get("text").is_none() && object["ids"].as_array().unwrap().len() == 4);
    let output = place.run(&args);
    let shown = String::from_utf8(output.stdout.clone()).unwrap();
    let ids: Vec<u32> = shown.trim().split(',').map(|id| id.parse().unwrap()).collect();
    assert_eq!(serde_json::json!(ids), object["ids"]);
    assert!(stderr(&output).contains("no tokenizer"));
    place.refused(&["generate", "-m", &place.model(), "text"], 4, &["tokenizer"]);
}

#[test]
fn chat() {
    let place = Place::with_model();
    place.refused(&["generate", "-m", &place.model(), "--chat", "hi"], 4, &["chat template"]);
    fs::write(place.path("model/chat_template.jinja"), "<{{ messages[0].content }}>").unwrap();
    let object = place.json(&["generate", "-m", &place.model(), "--chat", "hi", "-n", "1"]);
    let plain = place.json(&["tokenize", "-m", &place.model(), "--no-special", "<hi>"]);
    assert_eq!(object["prompt_ids"], plain["ids"]);
}

#[test]
fn logits_and_hidden_states() {
    let place = Place::with_model();
    let out = place.path("logits.safetensors");
    let (model, path) = (place.model(), out.to_str().unwrap().to_owned());
    place.ok(&["logits", "-m", &model, "--input-ids", "3,1,4,1,5", "--out", &path, "--hidden"]);
    let bytes = fs::read(&out).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<&str> = tensors.names();
    names.sort_unstable();
    assert_eq!(names, ["hidden.0", "hidden.1", "hidden.2", "logits"]);
    assert_eq!(tensors.tensor("logits").unwrap().shape(), [5, 264]);
    assert_eq!(tensors.tensor("hidden.2").unwrap().shape(), [5, 64]);
    // In passes of two tokens, streamed, on one thread: the same bits.
    let narrow = ["--batch-tokens", "2", "--ram", "5MB", "--threads", "1"];
    let again = place.path("again.safetensors");
    let args =
        ["logits", "-m", &model, "--input-ids", "3,1,4,1,5", "--hidden", "--out", again.to_str().unwrap()];
    place.ok(&[&args[..], &narrow].concat());
    assert_eq!(fs::read(&again).unwrap(), bytes);
    // The first choice of generate is the largest logit of the last row.
    let logits: Vec<f32> = tensors
        .tensor("logits")
        .unwrap()
        .data()
        .chunks_exact(4)
        .skip(4 * 264)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    let best = (0..264).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let object = place.json(&["generate", "-m", &model, "--input-ids", "3,1,4,1,5", "-n", "1"]);
    assert_eq!(object["ids"][0], best);
    assert!(
        fs::read_dir(place.dir.path()).unwrap().all(|f| !f
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .contains("part"))
    );
}

#[test]
fn caches_of_fewer_bits() {
    let place = Place::new();
    let plan = |kv: &[&str]| place.json(&[&["plan", "--context", "512"], kv].concat());
    let (f32, f16, q8) = (plan(&[]), plan(&["--kv", "f16"]), plan(&["--kv", "q8"]));
    let bytes = |plan: &serde_json::Value| plan["kv_bytes"].as_u64().unwrap();
    // 5 layers with 2 heads of 64 numbers, keys and values.
    assert_eq!((f32["kv"].as_str(), bytes(&f32)), (Some("f32"), 512 * 5 * 2 * 2 * 256));
    assert_eq!((f16["kv"].as_str(), bytes(&f16)), (Some("f16"), 512 * 5 * 2 * 2 * 128));
    assert_eq!((q8["kv"].as_str(), bytes(&q8)), (Some("q8"), 512 * 5 * 2 * 2 * 80));
    let ram = |plan: &serde_json::Value| plan["plan"]["ram"].as_u64().unwrap();
    assert_eq!(ram(&f32) - ram(&q8), bytes(&f32) - bytes(&q8));
    let text = place.ok(&["plan", "--kv", "f16", "--context", "512"]);
    assert!(text.contains("context 512 tokens, 1.31 MB as f16"), "{text}");

    let said = |kv| place.json(&["generate", "Once upon a time", "-n", "12", "--kv", kv])["text"].clone();
    let exact = said("f32");
    assert!(exact.as_str().is_some_and(|text| !text.is_empty()), "{exact}");
    assert_eq!((said("f16"), said("q8")), (exact.clone(), exact));
    place.refused(&["generate", "x", "--kv", "q3"], 2, &["f32, f16, q8 or q4, not \"q3\""]);
}

#[test]
fn prepare_inspect_plan() {
    let place = Place::with_model();
    let model = place.model();
    let out = place.path("out");
    let out = out.to_str().unwrap();
    let made = place.json(&["prepare", &model, "--bits", "4", "--out", out]);
    assert_eq!((&made["bits"], &made["shards"]), (&"q4".into(), &4.into()));
    let report = place.json(&["inspect", out, "--verify", "--tensors"]);
    assert_eq!((&report["form"], &report["bits"]), (&"shards".into(), &"q4".into()));
    assert_eq!((&report["verified"], &report["layers"]), (&true.into(), &2.into()));
    let tensor = |name: &str| {
        let list = report["tensors"].as_array().unwrap();
        list.iter().find(|t| t["unit"] == "layer.0" && t["name"] == name).unwrap()["format"].clone()
    };
    assert_eq!((tensor("q"), tensor("attn_norm")), ("q4".into(), "f32".into()));
    // A folder of four bits cannot be run with eight.
    place.refused(&["generate", "-m", out, "--bits", "8", "x"], 4, &["q4", "q8"]);

    let plan = place.json(&["plan", &model, "--ram", "5MB"]);
    assert_eq!(plan["units"].as_array().unwrap().len(), plan["plan"]["pinned"].as_array().unwrap().len());
    assert!(plan["plan"]["ram"].as_u64().unwrap() <= 5_000_000);
    assert!(plan["tokens_per_s"].as_f64().unwrap() > 0.0);
    let fewer = plan["fewer_bits"].as_array().unwrap();
    // In rows this short, padding decides which of the narrow ones is the fastest.
    for bits in ["q8", "q6", "q5", "q4", "q3", "q2"] {
        assert!(fewer.iter().any(|other| other["bits"] == bits), "{bits}: {fewer:?}");
    }
    // Planning prepares nothing.
    assert_eq!(place.json(&["cache", "list"])["entries"], serde_json::json!([]));
    let text = place.ok(&["plan", "-m", &model]);
    for word in ["layer.1", "memory", "expected", "bottleneck", "--bits 4"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn delete_original() {
    let place = Place::with_model();
    let (model, out) = (place.model(), place.path("out"));
    let out = out.to_str().unwrap();
    let before = place.json(&["generate", "-m", &model, "--input-ids", "1,2", "-n", "5"]);
    let made = place.json(&["prepare", "-m", &model, "--out", out, "--delete-original"]);
    assert_eq!(made["deleted"].as_array().unwrap().len(), 1);
    assert!(!place.path("model/model.safetensors").exists() && place.path("model/config.json").exists());
    let hash = |model: &str| {
        let object = place.json(&["generate", "-m", model, "--input-ids", "1,2", "-n", "5"]);
        (object["ids"].clone(), object["physics"]["logits_hash"].clone())
    };
    let before = (before["ids"].clone(), before["physics"]["logits_hash"].clone());
    assert_eq!(hash(out), before);

    // Without --out the shards take the weights' place, and the folder goes on being the model.
    let place = Place::with_model();
    place.ok(&["prepare", "-m", &place.model()]);
    let made = place.json(&["prepare", "-m", &place.model(), "--delete-original"]);
    assert_eq!((&made["path"], made["deleted"].as_array().unwrap().len()), (&place.model().into(), 1));
    place.ok(&["cache", "clean", "--all"]);
    assert_eq!(
        place.json(&["generate", "-m", &place.model(), "--input-ids", "1,2", "-n", "5"])["ids"],
        before.0
    );
    assert_eq!(
        place.json(&["prepare", "-m", &place.model(), "--delete-original"])["deleted"],
        serde_json::json!([])
    );
}

#[test]
fn tokenize_both_ways() {
    let place = Place::with_model();
    let model = place.model();
    let ids = place.ok(&["tokenize", "-m", &model, "--no-special", "Hé"]);
    let back = place.ok(&["tokenize", "-m", &model, "--ids", ids.trim()]);
    assert_eq!(back, "Hé\n");
    let lines = "{\"text\": \"Hé\"}\n\n{\"ids\": [72, 105]}\n";
    let output = place.feed(&["tokenize", "-m", &model, "--jsonl", "--no-special"], lines.as_bytes());
    let answers: Vec<serde_json::Value> =
        output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["text"], "Hé");
    let listed: Vec<String> = answers[0]["ids"].as_array().unwrap().iter().map(|id| id.to_string()).collect();
    assert_eq!(listed.join(","), ids.trim());
}

#[test]
fn cache_is_listed_and_cleaned() {
    let place = Place::with_model();
    assert_eq!(place.ok(&["cache", "dir"]).trim(), place.path("home").to_str().unwrap());
    for bits in ["16", "8", "6", "5", "4", "3", "2"] {
        place.ok(&["prepare", "-m", &place.model(), "--bits", bits]);
    }
    let keys = || -> Vec<String> {
        let list = place.json(&["cache", "list"]);
        list["entries"].as_array().unwrap().iter().map(|e| e["key"].as_str().unwrap().to_owned()).collect()
    };
    let first = keys();
    assert_eq!(first.len(), 7);
    // What an interrupted run leaves has no manifest; only that is cleaned without being named.
    fs::remove_file(place.path("home/shards").join(&first[0]).join("airllm.json")).unwrap();
    assert_eq!(place.ok(&["cache", "clean"]).trim(), first[0]);
    place.ok(&["cache", "clean", &first[1]]);
    assert_eq!(keys(), first[2..]);
    place.refused(&["cache", "clean", "../model"], 4, &["../model", &first[2]]);
    place.ok(&["cache", "clean", "--all"]);
    assert!(keys().is_empty() && place.path("model/model.safetensors").exists());
}

#[test]
fn a_changed_checkpoint_is_prepared_anew() {
    let place = Place::with_model();
    let model = place.model();
    let args = ["generate", "-m", &model, "--input-ids", "1,2", "-n", "4", "--bits", "8"];
    let before = place.json(&args);
    edit(&place.path("model/config.json"), |config| config["rms_norm_eps"] = 0.5.into());
    let after = place.json(&args);
    assert_ne!(before["physics"]["logits_hash"], after["physics"]["logits_hash"]);
    assert_eq!(place.json(&["cache", "list"])["entries"].as_array().unwrap().len(), 2);
}

#[test]
fn a_checkpoint_at_its_own_precision_runs_as_it_is() {
    let place = Place::with_model();
    let model = place.model();
    let shown = |args: &[&str]| {
        let object =
            place.json(&[&["generate", "-m", &model, "--input-ids", "1,2", "-n", "4"], args].concat());
        (object["ids"].clone(), object["physics"]["logits_hash"].clone())
    };
    let live = shown(&[]);
    assert_eq!(shown(&["--bits", "16", "--ram", "5MB"]), live);
    place.ok(&["plan", "-m", &model]);
    place.ok(&["generate", "x", "-n", "1"]);
    // No second copy of anything, the demo model included.
    assert_eq!(place.json(&["cache", "list"])["entries"], serde_json::json!([]));
    // Shards that are there are used, whatever has become of the weights.
    place.ok(&["prepare", "-m", &model]);
    assert_eq!(shown(&[]), live);
    // Other bits need shards of their own.
    assert_ne!(shown(&["--bits", "8"]).1, live.1);
    assert_eq!(place.json(&["cache", "list"])["entries"].as_array().unwrap().len(), 2);
}

#[test]
fn trace_and_timeline() {
    let place = Place::with_model();
    let trace = place.path("trace.json");
    let args =
        ["generate", "-m", &place.model(), "x", "-n", "3", "--timeline", "--trace", trace.to_str().unwrap()];
    let output = place.run(&args);
    assert!(output.status.success() && stderr(&output).contains("compute"), "{}", stderr(&output));
    let trace: serde_json::Value = serde_json::from_slice(&fs::read(trace).unwrap()).unwrap();
    assert!(!trace["traceEvents"].as_array().unwrap().is_empty());
}

#[test]
fn closed_output_is_no_error() {
    let place = Place::new();
    let mut child = place.command(&["generate", "The", "-n", "400", "--ignore-eos"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 2]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?} {}", output.status, stderr(&output));
    assert!(!stderr(&output).contains("panicked"));
}

/// Sends a signal to a child of this test.
fn signal(child: &std::process::Child, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn ctrl_c_shows_what_there_is() {
    let place = Place::new();
    for json in [false, true] {
        let mut args = vec!["generate", "The", "-n", "490", "--ignore-eos", "--threads", "1"];
        args.extend(json.then_some("--json"));
        let mut child = place.command(&args).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut text = vec![0; if json { 0 } else { 3 }];
        out.read_exact(&mut text).unwrap();
        if json {
            std::thread::sleep(Duration::from_millis(300));
        }
        signal(&child, "-INT");
        let begin = Instant::now();
        out.read_to_end(&mut text).unwrap();
        let status = child.wait().unwrap();
        // A second, and what a loaded machine may take to run us.
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        if json && status.code() == Some(130) && !text.is_empty() {
            let object: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(object["finish_reason"], "interrupted");
        } else {
            assert_eq!(status.code(), Some(130));
        }
    }
}

#[test]
fn prepare_goes_on_where_it_was_interrupted() {
    use airllm_tests::checkpoint::{Checkpoint, Shape};
    let place = Place::new();
    let shape = Shape {
        hidden: 512,
        intermediate: 2048,
        layers: 12,
        heads: 8,
        kv_heads: 8,
        head_dim: 64,
        ..Shape::TINY
    };
    Checkpoint::new(shape).write(&place.path("model")).unwrap();
    let (model, out) = (place.model(), place.path("out"));
    let args = ["prepare", "-m", &model, "--bits", "4", "--out", out.to_str().unwrap()];
    let child = place.command(&args).stdout(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while !out.join("layer.0.safetensors").exists() && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    // On a fast machine it may have come to its end before the signal.
    if output.status.code() == Some(130) {
        assert!(!out.join("airllm.json").exists() && out.join("layer.0.safetensors").exists());
    }
    place.ok(&args);
    let whole = place.path("whole");
    place.ok(&["prepare", "-m", &model, "--bits", "4", "--out", whole.to_str().unwrap()]);
    for entry in fs::read_dir(&whole).unwrap() {
        let name = entry.unwrap().file_name();
        assert_eq!(fs::read(whole.join(&name)).unwrap(), fs::read(out.join(&name)).unwrap(), "{name:?}");
    }
    assert_eq!(fs::read_dir(&whole).unwrap().count(), fs::read_dir(&out).unwrap().count());
}
