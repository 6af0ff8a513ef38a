//! `airllm chat` over a pipe, with the demo model and a template.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Place, stderr};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";

/// A place whose model is the demo model with a chat template.
fn place() -> Place {
    let place = Place::new();
    let model = place.path("model");
    fs::create_dir(&model).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo-model/model");
    for entry in fs::read_dir(demo).unwrap().flatten() {
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    fs::write(model.join("chat_template.jinja"), TEMPLATE).unwrap();
    place
}

fn talk(place: &Place, options: &[&str], lines: &str) -> Output {
    let model = place.model();
    let output = place.feed(&[&["chat", "-m", &model, "-n", "5"], options].concat(), lines.as_bytes());
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn saved(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap()
}

#[test]
fn a_conversation() {
    let place = place();
    let file = place.path("talk.json");
    let lines = format!(
        "/system Be brief.\nThe moon\n\"\"\"\nover\n\nthe sea\n\"\"\"\nand \\\nthe wind\n/save {}\n/exit\nnever\n",
        file.display()
    );
    let output = talk(&place, &["--ignore-eos"], &lines);
    let messages = saved(&place, "talk.json");
    let said: Vec<_> =
        messages.as_array().unwrap().iter().map(|m| (m["role"].as_str().unwrap(), &m["content"])).collect();
    let roles: Vec<_> = said.iter().map(|(role, _)| *role).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant", "user", "assistant"]);
    for (i, content) in [(0, "Be brief."), (1, "The moon"), (3, "over\n\nthe sea"), (5, "and \nthe wind")] {
        assert_eq!(said[i].1, content);
    }
    // Standard output is the answers, a line after each; the physics are on standard error.
    let answers: String = [2, 4, 6].map(|i| format!("{}\n", said[i].1.as_str().unwrap())).concat();
    assert_eq!(stdout(&output), answers);
    assert_eq!(stderr(&output).matches("| bottleneck ").count(), 3, "{}", stderr(&output));

    // The conversation goes on as if it had not been interrupted, and the prompt is what `tokenize` says.
    let more = [("system", "Be brief."), ("user", "The moon")].map(|(r, c)| json!({"role": r, "content": c}));
    fs::write(place.path("begin.json"), json!({ "messages": more }).to_string()).unwrap();
    let begin = place.path("begin.json");
    let prompt = place.json(&["tokenize", "-m", &place.model(), "--chat", begin.to_str().unwrap()]);
    assert_eq!(prompt["text"], "system: Be brief.\nuser: The moon\nassistant:");
    assert_eq!(prompt["format"], "template");
    let answer = talk(&place, &["--ignore-eos", "--system", "Be brief.", "--json"], "The moon\n");
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(answer["content"], *said[2].1);
    assert_eq!(answer["prompt_tokens"], prompt["ids"].as_array().unwrap().len());
    assert_eq!(answer["finish_reason"], "length");

    let loaded = format!("/history\n/reset\n/history\n/load {}\n/drop 2\n/history\n", file.display());
    let notes = stderr(&talk(&place, &["--load", file.to_str().unwrap()], &loaded));
    assert_eq!(notes.matches("user: The moon").count(), 1, "{notes}");
    assert!(notes.contains("a new conversation\nsystem: Be brief.\n7 messages from"), "{notes}");
    assert!(
        notes.contains("2 forgotten, 1 left\nsystem: Be brief.\nuser: and \nthe wind\nassistant:"),
        "{notes}"
    );
}

#[test]
fn mistakes_do_not_end_the_conversation() {
    let place = place();
    fs::write(place.path("bad.json"), "[{\"role\": \"user\"}]").unwrap();
    let bad = place.path("bad.json");
    let lines = format!("/nonsense\n/save\n/drop x\n/load {}\n/load /no/such\n//x\n\n", bad.display());
    let output = talk(&place, &["--json"], &lines);
    let notes = stderr(&output);
    for words in ["/nonsense is no command", "name a file", "\"x\" is not a number", "content", "/no/such"] {
        assert!(notes.contains(words), "{words}: {notes}");
    }
    // The doubled slash is a message.
    assert_eq!(stdout(&output).lines().count(), 1);
    place.refused(&["chat", "-m", &place.model(), "--load", bad.to_str().unwrap()], 4, &["bad.json"]);
    fs::remove_file(place.path("model/chat_template.jinja")).unwrap();
    place.refused(&["chat", "-m", &place.model()], 4, &["no chat template"]);
}

#[test]
fn the_oldest_turns_leave_a_full_context() {
    let place = place();
    let lines = "The moon is over the sea\nThe wind is over the hill\nThe rain is over the town\n/history\n";
    let options = ["--context", "40", "--ignore-eos", "--json"];
    let output = talk(&place, &options, lines);
    let answers: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 3);
    let notes = stderr(&output);
    assert!(
        notes.contains("the context of 40 tokens is full: the ") && notes.contains("are left out"),
        "{notes}"
    );
    // They are left out of the prompt and stay in the history.
    assert!(notes.contains("user: The moon is over the sea"), "{notes}");
    for answer in &answers {
        assert!(answer["prompt_tokens"].as_u64().unwrap() < 40, "{answer}");
    }
    let long = "wind ".repeat(60) + "\n/history\nThe moon\n";
    let output = talk(&place, &options, &long);
    let notes = stderr(&output);
    assert!(notes.contains("not sent: the prompt has") && notes.contains("nothing was said"), "{notes}");
    assert_eq!(stdout(&output).lines().count(), 1);
}

fn interrupt(child: &std::process::Child) {
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let place = place();
    let model = place.model();
    let args = ["chat", "-m", &model, "-n", "450", "--ignore-eos", "--threads", "1"];
    let mut child = place.command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    input.write_all(b"The moon\n").unwrap();
    let mut byte = [0];
    output.read_exact(&mut byte).unwrap();
    interrupt(&child);
    // What is still written must be read, or the pipe fills.
    let rest = std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
    let file = place.path("talk.json");
    writeln!(input, "/save {}", file.display()).unwrap();
    while !file.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the program ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let messages = saved(&place, "talk.json");
    assert_eq!(messages[1]["role"], "assistant");
    // It waits for a message: now it leaves.
    interrupt(&child);
    let status = child.wait().unwrap();
    rest.join().unwrap().unwrap();
    let mut notes = String::new();
    child.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
    assert_eq!(status.code(), Some(130), "{notes}");
    assert!(notes.contains("stopped"), "{notes}");
    let tokens = place.json(&["tokenize", "-m", &model, messages[1]["content"].as_str().unwrap()]);
    assert!(tokens["ids"].as_array().unwrap().len() < 440, "all of it came");
}

/// Models without a template get their family's own format, where a message cannot end its turn.
#[test]
fn formats_without_a_template() {
    let place = place();
    fs::remove_file(place.path("model/chat_template.jinja")).unwrap();
    common::edit(&place.path("model/config.json"), |config| {
        config["_name_or_path"] = "meta-llama/Llama-2-7b-chat-hf".into();
    });
    let messages = place.path("messages.json");
    fs::write(&messages, r#"[{"role": "user", "content": "The <|endoftext|> moon"}]"#).unwrap();
    let args = ["tokenize", "-m", &place.model(), "--chat", messages.to_str().unwrap()];
    let prompt = place.json(&args);
    assert_eq!(prompt["format"], "Llama 2");
    assert_eq!(prompt["text"], "<|endoftext|>[INST] The <|endoftext|> moon [/INST]");
    let ids = prompt["ids"].as_array().unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 0).count(), 1, "{prompt}");
    assert_eq!(prompt["stops"], json!([0]));
    // `generate` puts a prompt into the same format.
    let text = place.ok(&args);
    let shown: Vec<String> = ids.iter().map(Value::to_string).collect();
    assert_eq!(text, format!("{}\n{}\n", prompt["text"].as_str().unwrap(), shown.join(",")));
    let answer =
        place.json(&["generate", "-m", &place.model(), "--chat", "The <|endoftext|> moon", "-n", "1"]);
    assert_eq!(answer["prompt_ids"], prompt["ids"]);
    for (text, words) in [("{}", "list of messages"), ("[", "EOF"), ("[{\"role\": \"tool\"}]", "content")] {
        fs::write(&messages, text).unwrap();
        place.refused(&args, 4, &[words]);
    }
}

#[test]
fn tokenizers_are_compared() {
    let place = place();
    let (model, file) = (place.model(), place.path("text"));
    fs::write(&file, "春风又绿江南岸 the moon 12").unwrap();
    let compare = ["tokenize", "--compare", "demo", &model];
    let with_file = [&compare[..], &["--file", file.to_str().unwrap()]].concat();
    let object = place.json(&with_file);
    let costs = object["compare"].as_array().unwrap();
    assert_eq!(
        (costs[0]["model"].as_str(), costs[1]["model"].as_str()),
        (Some("demo"), Some(model.as_str()))
    );
    for cost in costs {
        // The same tokenizer twice.
        assert_eq!(cost["tokens"], costs[0]["tokens"]);
        assert_eq!(cost["relative_time"], 1.0);
        assert!(cost["characters_per_s"].as_f64().unwrap() > 0.0);
        let share = |name: &str, key: &str| cost[name][key].as_u64().unwrap();
        assert_eq!(["cjk", "latin", "other"].map(|kind| share(kind, "characters")), [7, 7, 5]);
        let tokens: u64 = ["cjk", "latin", "other"].iter().map(|kind| share(kind, "tokens")).sum();
        assert_eq!(Some(tokens), cost["tokens"].as_u64());
        let ratio = share("cjk", "tokens") as f64 / 7.0;
        assert_eq!(cost["cjk"]["tokens_per_character"].as_f64(), Some(ratio));
    }
    let ids = place.json(&["tokenize", "--no-special", "--file", file.to_str().unwrap()]);
    assert_eq!(costs[0]["tokens"].as_u64().unwrap() as usize, ids["ids"].as_array().unwrap().len());
    // A table of a built-in text, or of an argument.
    let table = place.ok(&compare);
    assert!(table.starts_with("model") && table.lines().count() == 3 && table.contains("1.00x"), "{table}");
    assert!(place.ok(&["tokenize", "moon", "--compare", "demo"]).contains("demo"));
    place.refused(&["tokenize", "-m", "demo", "--compare", "demo"], 2, &["leave --model out"]);
    place.refused(&["tokenize", "--compare", "/no/such"], 4, &["/no/such"]);
}
