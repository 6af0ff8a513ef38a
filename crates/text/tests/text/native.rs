//! Chat formats of models without a template: what their families' code builds.

use crate::common::{Report, ids, lines, shared, vocabulary};
use airllm_text::{Chat, ChatFormat, ChatSource, ChatTemplate, DateTime, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;

/// A folder without a template, so that the native format is looked for.
fn format(
    tokenizer: &Tokenizer,
    name: &str,
    config: &Value,
    generation: Option<&Value>,
) -> Option<ChatFormat> {
    let empty = tempfile::tempdir().unwrap();
    let source = ChatSource { dir: empty.path(), name, config, generation_config: generation };
    ChatFormat::detect(&source, tokenizer).unwrap()
}

fn chat(messages: &Value) -> Chat<'_> {
    Chat::new(messages.as_array().unwrap(), DateTime::from_unix(0))
}

fn read(path: &Path) -> Option<Value> {
    Some(serde_json::from_slice(&std::fs::read(path).ok()?).unwrap())
}

fn model_type(vocab: &str) -> &'static str {
    match vocab {
        "qwen1" => "qwen",
        name if name.contains("baichuan") => "baichuan",
        _ => "chatglm",
    }
}

#[test]
fn published_code() {
    let Some(dir) = shared("tokenizers") else { return };
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(dir.join("chat")).unwrap().flatten() {
        let file = entry.file_name().into_string().unwrap();
        if !file.starts_with("native-") {
            continue;
        }
        files += 1;
        let mut report = Report::default();
        for case in lines(&entry.path()) {
            report.cases += 1;
            let vocab = case["vocab"].as_str().unwrap();
            let Some(path) = vocabulary(manifest["vectors"][vocab]["vocab"].as_str().unwrap()) else {
                return;
            };
            let tokenizer = Tokenizer::open_file(&path).unwrap();
            let generation = read(&path.with_file_name("generation_config.json"));
            let config = json!({ "model_type": model_type(vocab) });
            let format = format(&tokenizer, "", &config, generation.as_ref()).unwrap();
            let what = format!("{file} {}", case["conv"]);
            report.equal(&what, format.ids(&chat(&case["messages"])).unwrap(), ids(&case["ids"]));
            let prompt = case["prompt"].as_str();
            if let Some(prompt) = prompt {
                let text = format.text(&chat(&case["messages"])).unwrap();
                // The prompt of ChatGLM is given without the two tokens around it.
                let text = text.trim_start_matches("[gMASK]sop").trim_end_matches("[gMASK]<sop>");
                report.equal(&what, text, prompt);
            }
        }
        report.end(&file);
    }
    assert_eq!(files, 7);
}

#[test]
fn anchors_of_other_projects() {
    let Some(dir) = shared("tokenizers/anchors") else { return };
    let mut report = Report::default();
    for case in lines(&dir.join("chat.jsonl")) {
        let family = case["family"].as_str().unwrap();
        // The real vocabulary of GLM-4 is not at hand.
        let file = if family == "glm4" { continue } else { format!("{family}/tokenizer.model") };
        let Some(path) = vocabulary(&file) else { return };
        let tokenizer = Tokenizer::open_file(&path).unwrap();
        report.cases += 1;
        let config = json!({ "model_type": model_type(family) });
        let generation = read(&path.with_file_name("generation_config.json"));
        let format = format(&tokenizer, "", &config, generation.as_ref()).unwrap();
        report.equal(family, format.ids(&chat(&case["messages"])).unwrap(), ids(&case["ids"]));
    }
    assert_eq!(report.cases, 4);
    report.end("anchors of chats");
}

/// Reference checkpoints that carry no template but a rendered conversation.
#[test]
fn checkpoints() {
    let Some(dir) = shared("fixtures") else { return };
    let mut report = Report::default();
    let mut without = Vec::new();
    for folder in std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path()) {
        let Some(golden) = read(&folder.join("tokenizer_golden.json")) else { continue };
        if ChatTemplate::find(&folder).unwrap().is_some() {
            continue;
        }
        let (config, generation) =
            (read(&folder.join("config.json")).unwrap(), read(&folder.join("generation_config.json")));
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap();
        let source =
            ChatSource { dir: &folder, name, config: &config, generation_config: generation.as_ref() };
        let format = ChatFormat::detect(&source, &tokenizer).unwrap();
        let golden = &golden["chat"];
        let Some(format) = format else {
            assert!(golden.is_null(), "{name}");
            without.push(name.to_owned());
            continue;
        };
        if golden.is_null() {
            continue;
        }
        report.cases += 1;
        let request = chat(&golden["messages"]);
        report.equal(name, format.text(&request).unwrap().as_str(), golden["rendered"].as_str().unwrap());
        report.equal(name, format.ids(&request).unwrap(), ids(&golden["ids"]));
    }
    // Their config is that of a base model: no ids for user and assistant.
    without.sort();
    assert_eq!(without, ["baichuan2_13b", "baichuan2_7b", "baichuan_13b", "baichuan_7b"]);
    report.end("checkpoints without a template");
}

/// Where a family has both, its text format is what the published template renders.
#[test]
fn text_formats_are_those_of_the_templates() {
    let Some(dir) = shared("tokenizers") else { return };
    for (template, vocab, model, name) in [
        ("llama2-chat", "llama2/tokenizer.json", "llama", "Llama-2-7b-chat-hf"),
        (
            "mistral-7b-instruct-v0.1-style",
            "mistral-v1/tokenizer.model",
            "mistral",
            "Mistral-7B-Instruct-v0.1",
        ),
        ("mistral-7b-instruct-v0.3", "mistral-v3/tokenizer.model", "mistral", "Mistral-7B-Instruct-v0.3"),
        ("qwen2-instruct", "qwen2/tokenizer.json", "qwen2", "x"),
    ] {
        let Some(path) = vocabulary(vocab) else { return };
        let tokenizer = Tokenizer::open_file(path).unwrap();
        let config = json!({ "model_type": model });
        let format = format(&tokenizer, name, &config, None).unwrap();
        let mut report = Report::default();
        for case in lines(&dir.join(format!("chat/{template}.jsonl"))) {
            let conv = case["conv"].as_str().unwrap();
            let system = case["messages"][0]["role"] == "system";
            // This template of Mistral's leaves system messages out.
            if !["single", "system", "multi", "system-multi", "think"].contains(&conv)
                || case["add_generation_prompt"] == false
                || case["rendered"].is_null()
                || (system && template.contains("mistral"))
            {
                continue;
            }
            report.cases += 1;
            let what = format!("{template} {conv}");
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            let text = format.text(&chat(&case["messages"])).unwrap();
            let rendered = case["rendered"].as_str().unwrap();
            report.equal(&what, squeeze(&text), squeeze(rendered));
            if !template.contains("mistral") {
                report.equal(&what, text.as_str(), rendered);
            }
            // Meta's code encodes each round as a text of its own, so with a blank before it; the ids that
            // the template's text gives depend on the tokenizer's implementation.
            let found = format.ids(&chat(&case["messages"])).unwrap();
            match template {
                "llama2-chat" => report.equal(&what, &found[..4], &[1, 518, 25580, 29962][..]),
                "qwen2-instruct" => report.equal(&what, found, ids(&case["ids"])),
                _ => report.equal(&what, found[0], 1),
            }
        }
        report.end(template);
        assert!(stops(&format, &tokenizer).contains(if model == "qwen2" { "<|im_end|>" } else { "</s>" }));
    }
}

fn stops(format: &ChatFormat, tokenizer: &Tokenizer) -> String {
    let names: Vec<_> = format.stops().iter().filter_map(|id| tokenizer.token(*id)).collect();
    names.join(" ")
}

#[test]
fn every_format_says_what_ends_an_answer() {
    let Some(dir) = shared("tokenizers") else { return };
    for (vocab, config, end) in [
        ("qwen1/qwen.tiktoken", json!({"model_type": "qwen"}), "<|endoftext|> <|im_start|> <|im_end|>"),
        ("chatglm-6b/ice_text.model", json!({"model_type": "chatglm"}), "<eop>"),
        ("chatglm2/tokenizer.model", json!({"model_type": "chatglm"}), "</s>"),
        (
            "tiny/tiny-glm4/tokenizer.model",
            json!({"model_type": "chatglm"}),
            "<|endoftext|> <|user|> <|observation|>",
        ),
    ] {
        let Some(path) = vocabulary(vocab) else { return };
        let tokenizer = Tokenizer::open_file(path).unwrap();
        let format = format(&tokenizer, "", &config, None).unwrap();
        assert_eq!(stops(&format, &tokenizer), end, "{vocab}");
    }
    for (template, vocab, end) in [
        ("llama3-instruct", "llama3/tokenizer.json", "<|eot_id|>"),
        ("qwen3", "qwen3/tokenizer.json", "<|im_end|>"),
        ("qwen2.5-instruct", "qwen2.5/tokenizer.json", "<|im_end|>"),
        ("chatglm3", "chatglm3/tokenizer.model", "<|user|>"),
        ("glm4-9b-chat", "tiny/tiny-glm4/tokenizer.model", "<|user|>"),
        ("llama2-chat", "llama2/tokenizer.json", "</s>"),
    ] {
        let Some(path) = vocabulary(vocab) else { return };
        let tokenizer = Tokenizer::open_file(path).unwrap();
        let source = std::fs::read_to_string(dir.join(format!("templates/{template}.jinja"))).unwrap();
        let mut parsed = ChatTemplate::parse(&source).unwrap();
        parsed.set_variable("bos_token", &json!("<s>"));
        parsed.set_variable("eos_token", &json!("</s>"));
        let format = ChatFormat::from_template(parsed, &tokenizer);
        assert!(stops(&format, &tokenizer).contains(end), "{template}: {}", stops(&format, &tokenizer));
    }
}
