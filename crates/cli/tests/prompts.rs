//! Files of prompts: lines in, lines out, and on from where it stopped.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Place, stderr};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Prompts in every form that needs no chat format, every third with settings of its own.
fn lines(count: usize) -> Vec<Value> {
    let line = |i: usize| match i % 3 {
        0 => json!({"prompt": format!("Story {i}")}),
        1 => {
            json!({"id": format!("s{i}"), "prompt": "x".repeat(i), "temperature": 1.2, "seed": i, "max_new_tokens": 5 + i})
        }
        _ => json!({"id": i, "input_ids": [5, i, 7], "stop": ["e", "a"], "max_new_tokens": 30}),
    };
    (0..count).map(line).collect()
}

fn write(place: &Place, lines: &[Value]) -> String {
    let path = place.path("prompts.jsonl");
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(&path, text.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The answers, by id.
fn answers(text: &str) -> Vec<Value> {
    let mut list: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    list.sort_by_key(|answer| answer["id"].to_string());
    list
}

#[test]
fn every_line_gets_the_answer_it_gets_alone() {
    let place = Place::with_model();
    let model = place.model();
    let lines = lines(12);
    let file = write(&place, &lines);
    let args = ["generate", "-m", &model, "-n", "8", "--ignore-eos", "--prompts", &file];
    let together = answers(&place.ok(&args));
    assert_eq!(together.len(), 12);
    for extra in [&["--active", "1"][..], &["--active", "3", "--batch-tokens", "4"], &["--ram", "6MB"]] {
        assert_eq!(answers(&place.ok(&[&args[..], extra].concat())), together, "{extra:?}");
    }
    // Lines without an id are called by their number; what a line says goes before the command line.
    let by_id = |id: Value| together.iter().find(|answer| answer["id"] == id).unwrap().clone();
    let alone = place.json(&["generate", "-m", &model, "-n", "8", "--ignore-eos", "Story 3"]);
    let found = by_id(json!(4));
    assert_eq!((&found["text"], &found["finish_reason"]), (&alone["text"], &json!("length")));
    assert_eq!((found["tokens"].as_u64(), found.get("ids")), (Some(8), None));
    assert_eq!(
        found["prompt_tokens"].as_u64().unwrap() as usize,
        alone["prompt_ids"].as_array().unwrap().len()
    );
    assert_eq!(by_id(json!("s7"))["tokens"], 12);
    // From standard input, and without a tokenizer.
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    let text = "{\"input_ids\":[5,6]}\n\n{\"input_ids\":[7],\"max_new_tokens\":2}\n";
    let output =
        place.feed(&["generate", "-m", &model, "-n", "3", "--ignore-eos", "--prompts", "-"], text.as_bytes());
    let mute = answers(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(mute.iter().map(|a| a["ids"].as_array().unwrap().len()).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(mute.iter().map(|a| a["id"].clone()).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn what_is_there_is_not_computed_again() {
    let place = Place::with_model();
    let model = place.model();
    let file = write(&place, &lines(9));
    let out = place.path("answers.jsonl");
    let args = ["generate", "-m", &model, "-n", "8", "--prompts", &file, "--out", out.to_str().unwrap()];
    assert_eq!(place.ok(&args), "");
    let whole = fs::read_to_string(&out).unwrap();
    assert_eq!(answers(&whole).len(), 9);
    // Nothing is left to do.
    let again = place.run(&args);
    assert!(
        again.status.success() && stderr(&again).contains("all 9 answers are there"),
        "{}",
        stderr(&again)
    );
    assert_eq!(fs::read_to_string(&out).unwrap(), whole);
    // Cut off anywhere, it goes on from there; what is whole stays as it is.
    for keep in [0, 3, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        fs::write(&out, &whole[..keep]).unwrap();
        let had = &whole[..whole[..keep].rfind('\n').map_or(0, |at| at + 1)];
        place.ok(&args);
        let text = fs::read_to_string(&out).unwrap();
        assert!(text.starts_with(had), "{keep}");
        assert_eq!(answers(&text), answers(&whole), "{keep}");
    }
    // The answer to another prompt is not taken for this one's, and no other file is written to.
    let mut others = lines(9);
    others[0] = json!({"prompt": "Story!"});
    write(&place, &others);
    place.refused(&args, 4, &["answers.jsonl:", "another prompt with the id 1", "name a new file"]);
    for other in ["my notes", "my notes\n", "{\"id\":1,\"text\":\"no hash\"}\n"] {
        fs::write(&out, other).unwrap();
        place.refused(&args, 4, &["answers.jsonl:1: expected an answer"]);
        assert_eq!(fs::read_to_string(&out).unwrap(), other);
    }
}

#[test]
fn an_interruption_keeps_what_has_ended() {
    let place = Place::with_model();
    let model = place.model();
    let mut lines: Vec<Value> = (0..4).map(|i| json!({"prompt": "a", "max_new_tokens": 2 + i})).collect();
    let long = 100;
    lines.extend((0..20).map(|_| json!({"prompt": "b", "max_new_tokens": long})));
    let file = write(&place, &lines);
    let out = place.path("answers.jsonl");
    let args = [
        "generate",
        "-m",
        &model,
        "--ignore-eos",
        "--prompts",
        &file,
        "--out",
        out.to_str().unwrap(),
        "--active",
        "1",
        "-v",
    ];
    let mut child = place.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
    let fifth = notes.by_ref().map(Result::unwrap).find(|line| line.contains("5 of 24 answers")).unwrap();
    assert!(fifth.contains("tokens/s") && fifth.contains("left"), "{fifth}");
    // A kill is no worse than Ctrl-C: here is one of each.
    child.kill().unwrap();
    child.wait().unwrap();
    let had = fs::read_to_string(&out).unwrap();
    assert!(had.lines().count() >= 5);
    let mut child = place.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
    notes.by_ref().map(Result::unwrap).find(|line| line.contains("answers,")).unwrap();
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let rest: Vec<String> = notes.map(Result::unwrap).collect();
    let code = child.wait().unwrap().code();
    // It may have been over before the signal came.
    assert!(
        code == Some(130) && rest.iter().any(|line| line.contains("goes on from here")) || code == Some(0)
    );
    assert!(fs::read_to_string(&out).unwrap().starts_with(had.rsplit_once('\n').unwrap().0));
    place.ok(&args);
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(text.lines().count(), 24);
    assert!(answers(&text).iter().all(|answer| answer["finish_reason"] == "length"));
}

#[test]
fn refusals_name_the_line() {
    let place = Place::with_model();
    let model = place.model();
    let good = json!({"prompt": "a"});
    let long: Vec<u32> = vec![5; 129];
    for (line, code, words) in [
        (json!({"prompt": ""}), 4, ["prompts.jsonl:2: ", "empty"]),
        (json!({"input_ids": [999]}), 4, ["prompts.jsonl:2: ", "999"]),
        (json!({"input_ids": long}), 3, ["prompts.jsonl:2: ", "129 tokens"]),
        (json!({"prompt": "a", "temperature": -1}), 4, ["prompts.jsonl:2: ", "temperature is -1"]),
        (json!({"prompt": "a", "temp": 1}), 4, ["prompts.jsonl:2: ", "unknown field `temp`"]),
    ] {
        let file = write(&place, &[good.clone(), line]);
        let out = place.path("out.jsonl");
        let args = ["generate", "-m", &model, "--prompts", &file, "-o", out.to_str().unwrap()];
        place.refused(&args, code, &words);
        assert!(!out.exists(), "nothing is begun");
    }
    let file = write(&place, &[good]);
    place.refused(
        &["generate", "-m", &model, "--prompts", &file, "--ram", "100kB"],
        3,
        &["budget", "least that works"],
    );
    place.refused(&["generate", "-m", &model, "--prompts", "none.jsonl"], 4, &["none.jsonl: no such file"]);
}

#[test]
fn chats() {
    let place = Place::with_model();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    fs::write(place.path("model/chat_template.jinja"), template).unwrap();
    let model = place.model();
    let said = json!({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]});
    let file = write(&place, &[said, json!({"prompt": "b"})]);
    let args = ["generate", "-m", &model, "-n", "5", "--ignore-eos", "--prompts", &file];
    let list = answers(&place.ok(&args));
    assert_eq!(list[0]["prompt_tokens"], "<system>a<user>b".len());
    assert_eq!(list[1]["prompt_tokens"], 1);
    let list = answers(&place.ok(&[&args[..], &["--chat"]].concat()));
    assert_eq!(list[1]["prompt_tokens"], "<user>b".len());
}
