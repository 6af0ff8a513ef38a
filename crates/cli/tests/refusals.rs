//! Every refusal: a clear message on standard error, the documented exit code, nothing on standard output.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Place, check_refusal, edit, edit_header, stderr};
use serde_json::json;
use std::fs;
use std::process::Command;

const INPUT: i32 = 4;
const FIT: i32 = 3;

fn generate(place: &Place) -> Vec<String> {
    ["generate", "-m", &place.model(), "--input-ids", "1,2,3", "-n", "2"].map(str::to_owned).to_vec()
}

#[track_caller]
fn refused(place: &Place, words: &[&str]) {
    let args = generate(place);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    place.refused(&args, INPUT, words);
}

#[test]
fn no_such_model() {
    let place = Place::new();
    place.refused(&["generate", "x", "-m", "/no/such/folder"], INPUT, &["/no/such/folder", "org/name"]);
    place.refused(&["generate", "x", "-m", "nothing"], INPUT, &["nothing", "org/name"]);
    place.refused(&["inspect", "org/absent"], INPUT, &["org/absent", "offline"]);
    place.refused(&["inspect", "-m", "a/b", "c/d"], 2, &["twice"]);
}

#[test]
fn missing_files() {
    let place = Place::with_model();
    fs::remove_file(place.path("model/model.safetensors")).unwrap();
    refused(&place, &["model.safetensors", "index"]);
    fs::remove_file(place.path("model/config.json")).unwrap();
    refused(&place, &["config.json"]);
}

#[test]
fn truncated_weights() {
    let place = Place::with_model();
    let path = place.path("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    refused(&place, &["model.safetensors", "truncated"]);
    fs::write(&path, &bytes[..5]).unwrap();
    refused(&place, &["model.safetensors", "5"]);
}

#[test]
fn header_beyond_the_file() {
    let place = Place::with_model();
    let path = place.path("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    refused(&place, &["model.safetensors", "header"]);
}

#[test]
fn offsets_that_overlap_or_leave_the_file() {
    let place = Place::with_model();
    let path = place.path("model/model.safetensors");
    edit_header(&path, |header| header["model.norm.weight"]["data_offsets"] = json!([0, 128]));
    refused(&place, &["model.safetensors", "overlap"]);
    // Twice as many rows as the file has bytes for.
    let place = Place::with_model();
    edit_header(&place.path("model/model.safetensors"), |header| {
        let tensor = &mut header["lm_head.weight"];
        let [start, end] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap());
        tensor["data_offsets"] = json!([start, end + (end - start)]);
        tensor["shape"] = json!([528, 64]);
    });
    refused(&place, &["model.safetensors", "lm_head.weight"]);
}

#[test]
fn wrong_dtype_or_shape() {
    let place = Place::with_model();
    edit_header(&place.path("model/model.safetensors"), |header| {
        header["model.norm.weight"]["dtype"] = json!("I16");
    });
    refused(&place, &["model.norm.weight", "I16", "F16"]);
    let place = Place::with_model();
    edit_header(&place.path("model/model.safetensors"), |header| {
        header["model.layers.1.self_attn.k_proj.weight"]["shape"] = json!([64, 32]);
    });
    refused(&place, &["model.layers.1.self_attn.k_proj.weight", "[64, 32]", "[32, 64]"]);
}

#[test]
fn missing_tensor() {
    let place = Place::with_model();
    edit_header(&place.path("model/model.safetensors"), |header| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove("model.layers.0.mlp.up_proj.weight").unwrap();
        header.insert("another.name".to_owned(), tensor);
    });
    refused(&place, &["model.layers.0.mlp.up_proj.weight", "missing"]);
}

#[test]
fn configurations() {
    let cases = [
        (json!({"architectures": ["NoSuchForCausalLM"]}), "NoSuchForCausalLM"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"rms_norm_eps": "tiny"}), "rms_norm_eps"),
        (json!({"num_hidden_layers": 2.5}), "num_hidden_layers"),
    ];
    for (change, word) in cases {
        let place = Place::with_model();
        edit(&place.path("model/config.json"), |config| {
            for (key, value) in change.as_object().unwrap() {
                config[key] = value.clone();
            }
        });
        refused(&place, &[word]);
    }
    // NaN as Python writes it.
    let place = Place::with_model();
    let path = place.path("model/config.json");
    edit(&path, |config| config["rms_norm_eps"] = json!("HERE"));
    let text = fs::read_to_string(&path).unwrap().replace("\"HERE\"", "NaN");
    fs::write(&path, text).unwrap();
    refused(&place, &["config.json"]);
    fs::write(&path, "{").unwrap();
    refused(&place, &["config.json"]);
}

#[test]
fn a_flipped_bit() {
    let place = Place::with_model();
    let out = place.path("out");
    place.ok(&["prepare", "-m", &place.model(), "--out", out.to_str().unwrap()]);
    let path = out.join("layer.1.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    // The header takes one page; this lies in the first tensors of the data.
    bytes[4096 + 1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let model = out.to_str().unwrap();
    for args in [
        &["generate", "-m", model, "--input-ids", "1,2,3"][..],
        &["inspect", "-m", model, "--verify"],
        &["logits", "-m", model, "--input-ids", "1,2", "--out", "/dev/null"],
    ] {
        place.refused(args, INPUT, &["layer.1", "checksum"]);
    }
    // A prepare that is asked for by name checks what is there, and mends it.
    place.ok(&["prepare", "-m", &place.model(), "--out", model]);
    place.ok(&["inspect", "-m", model, "--verify"]);
}

#[test]
fn budget_too_small() {
    let place = Place::with_model();
    let model = place.model();
    let run =
        |ram: &str| place.run(&["generate", "-m", &model, "--input-ids", "1,2", "-n", "3", "--ram", ram]);
    let args = ["--ram", "10kB"];
    let output = run("10kB");
    check_refusal(&output, &args, FIT, &["10 kB", "least that works"]);
    // The number it names works, and one byte less does not.
    let message = stderr(&output);
    let need = message.split_once('(').unwrap().1.split_once(" bytes").unwrap().0;
    assert!(run(need).status.success(), "{need}");
    let less = (need.parse::<u64>().unwrap() - 1).to_string();
    check_refusal(&run(&less), &args, FIT, &[need]);
}

#[test]
fn no_space_for_shards() {
    // A file size limit makes the very same write fail that a full disk does.
    let place = Place::with_model();
    let script = "ulimit -f 20; trap '' XFSZ; exec \"$0\" \"$@\"";
    let out = place.path("out");
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_airllm"), "prepare", "-m", &place.model(), "--out"])
        .arg(&out)
        .env_clear()
        .env("AIRLLM_HOME", place.path("home"))
        .output()
        .unwrap();
    check_refusal(&output, &["prepare"], FIT, &[out.to_str().unwrap()]);
    assert!(!out.join("airllm.json").exists());
    // Nothing half-written stands in the way of the next run.
    place.ok(&["prepare", "-m", &place.model(), "--out", out.to_str().unwrap()]);
}

#[test]
fn unwritable_folders() {
    let place = Place::with_model();
    let file = place.path("file");
    fs::write(&file, "").unwrap();
    let below = file.join("out");
    let below = below.to_str().unwrap();
    place.refused(&["prepare", "-m", &place.model(), "--out", below], 1, &[below]);
    let logits = format!("{below}/x.safetensors");
    place.refused(&["logits", "-m", &place.model(), "--input-ids", "1", "--out", &logits], 1, &[&logits]);
    let output = place.command(&["generate", "x"]).env("AIRLLM_HOME", &file).output().unwrap();
    check_refusal(&output, &["generate"], 1, &[file.to_str().unwrap()]);
    let output = place.command(&["generate", "x"]).env_remove("AIRLLM_HOME").output().unwrap();
    check_refusal(&output, &["generate"], 2, &["AIRLLM_HOME"]);
}

#[test]
fn prompts_that_do_not_fit() {
    let place = Place::with_model();
    let model = place.model();
    let long = vec!["7"; 129].join(",");
    place.refused(&["generate", "-m", &model, "--input-ids", &long], FIT, &["129", "128"]);
    place.refused(
        &["logits", "-m", &model, "--input-ids", &long, "--out", "/dev/null"],
        FIT,
        &["129", "128"],
    );
    place.refused(&["generate", "-m", &model, "--input-ids", "1,2,3", "--context", "3"], FIT, &["3 tokens"]);
    place.refused(&["generate", "-m", &model, "--input-ids", "1,264"], INPUT, &["264"]);
    place.refused(&["generate", "-m", &model, ""], 2, &["empty"]);
}

#[test]
fn input_that_is_no_text() {
    let place = Place::with_model();
    let args = ["generate", "-m", &place.model()];
    check_refusal(
        &place.feed(&args, b"abc\xff"),
        &args,
        INPUT,
        &["standard input", "UTF-8", "0xff", "offset 3"],
    );
    let file = place.path("prompt");
    fs::write(&file, b"\xc3").unwrap();
    let file = file.to_str().unwrap();
    place.refused(&["generate", "-m", &place.model(), "--file", file], INPUT, &[file, "UTF-8"]);
    place.refused(&["generate", "-m", &place.model(), "--file", "/no/prompt"], INPUT, &["/no/prompt"]);
    let args = ["tokenize", "-m", &place.model(), "--jsonl"];
    for (line, word) in
        [("{\"text\": 3}", "line 1"), ("{}", "neither"), ("{\"text\":\"a\",\"ids\":[1]}", "both")]
    {
        check_refusal(&place.feed(&args, line.as_bytes()), &args, INPUT, &[word]);
    }
}

#[test]
fn command_lines() {
    let place = Place::with_model();
    let model = place.model();
    for args in [
        &["generate", "-m", &model, "--ram", "much", "x"][..],
        &["generate", "-m", &model, "--threads", "0", "x"],
        &["generate", "-m", &model, "--bits", "7", "x"],
        &["generate", "-m", &model, "--input-ids", "1,x"],
        &["generate", "-m", &model, "--temperature=-1", "x"],
        &["generate", "-m", &model, "--top-p", "0", "x"],
        &["logits", "-m", &model],
        &["nonsense"],
    ] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn refusals_as_json() {
    let place = Place::new();
    let output = place.run(&["inspect", "--json", "-m", "/no/such"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &object["kind"]), (Some(INPUT), &json!("bad input")));
    assert!(object["error"].as_str().unwrap().contains("/no/such"));
}
