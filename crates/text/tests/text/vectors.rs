//! Published tokenizers and look-alikes: the ids and decodes that their own code gives.

use crate::common::{Report, data, ids, lines, shared, vocabulary};
use airllm_text::{Chat, ChatTemplate, DateTime, Tokenizer};
use serde_json::Value;

fn small(name: &str) {
    let dir = data().join(name);
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let mut report = Report::default();
    report.vectors(&tokenizer, &lines(&dir.join("vectors.jsonl")));
    report.decodes(&tokenizer, &lines(&dir.join("decode.jsonl")));
    report.end(name);
}

#[test]
fn small_byte_fallback() {
    small("tiny-llama2");
}

#[test]
fn small_byte_level() {
    small("tiny-llama3");
}

#[test]
fn small_byte_level_with_normaliser() {
    small("tiny-qwen2");
}

#[test]
fn small_sentencepiece() {
    let dir = data().join("tiny-llama2");
    let tokenizer = Tokenizer::open_file(dir.join("tokenizer.model")).unwrap();
    let mut report = Report::default();
    report.plain(&tokenizer, &lines(&dir.join("model.jsonl")));
    report.end("tiny-llama2, tokenizer.model");
}

/// Every vector set of the manifest whose vocabulary file has one of these endings.
fn published(endings: &[&str]) {
    let Some(dir) = shared("tokenizers") else { return };
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let mut sets = 0;
    for (name, set) in manifest["vectors"].as_object().unwrap() {
        let file = set["vocab"].as_str().unwrap();
        if !endings.iter().any(|ending| file.ends_with(ending)) {
            continue;
        }
        let Some(path) = vocabulary(file) else { continue };
        let tokenizer = Tokenizer::open_file(&path).unwrap();
        let mut report = Report::default();
        let cases = lines(&dir.join(set["file"].as_str().unwrap()));
        let decodes = lines(&dir.join(set["decode"].as_str().unwrap()));
        match name.as_str() {
            // Made with SentencePiece itself, which gives no meaning to special strings.
            "llama2-model" | "tiny-llama2-model" => {
                report.plain(&tokenizer, &cases);
                report.decodes(&tokenizer, &decodes);
            }
            // Made with transformers' slow Llama tokenizer.
            "mistral-v1" | "mistral-v3" | "chinese-llama2" => {
                slow_llama(&mut report, &tokenizer, &cases, &decodes)
            }
            _ => {
                report.vectors(&tokenizer, &cases);
                report.decodes(&tokenizer, &decodes);
            }
        }
        if let Some(size) = set["id_space"].as_u64() {
            report.equal("vocabulary size", tokenizer.vocab_size() as u64, size);
        }
        report.end(name);
        sets += 1;
    }
    println!("{sets} sets");
}

/// The ids are equal. The decode with special tokens skipped differs in two ways, on purpose: the slow
/// tokenizer loses a blank that begins a text, and shows control tokens that are not named in its
/// config. Here as in SentencePiece, the blank stays and control tokens have no text.
fn slow_llama(report: &mut Report, tokenizer: &Tokenizer, cases: &[Value], decodes: &[Value]) {
    let (mut blanks, mut controls) = (0, 0);
    for case in cases {
        let mut case = case.clone();
        let (decoded, full) = (case["decoded"].as_str().unwrap(), case["decoded_full"].as_str().unwrap());
        // It cuts a mark off the first piece; if that leaves no piece, marks stay marks.
        let lost = decoded.strip_prefix(' ') == Some(full);
        if lost || (decoded.starts_with(' ') && full.replace('▁', " ") == decoded && full != decoded) {
            blanks += 1;
            case["decoded_full"] = case["decoded"].clone();
        }
        let shown = case["decoded_full"].as_str().unwrap();
        let unnamed = |id: &u32| {
            let token = tokenizer.token(*id).unwrap();
            tokenizer.is_special(*id) && *id > 2 && shown.contains(&token)
        };
        let full = ids(&case["ids_full"]);
        if full.iter().any(unnamed) {
            controls += 1;
            let rest: Vec<u32> = full.into_iter().filter(|id| !tokenizer.is_special(*id)).collect();
            case["decoded_full"] = tokenizer.decode(&rest, false).into();
        }
        report.vectors(tokenizer, &[case]);
    }
    for case in decodes {
        let mut case = case.clone();
        if case["decoded_skip"].as_str().unwrap().contains("[control_") {
            controls += 1;
            case["decoded_skip"] = case["decoded"].clone();
        }
        report.decodes(tokenizer, &[case]);
    }
    println!("{blanks} decodes with a blank that the slow tokenizer loses, {controls} with control tokens");
}

#[test]
fn published_tokenizer_json() {
    published(&["tokenizer.json"]);
}

#[test]
fn published_sentencepiece_and_tiktoken() {
    published(&[".model", ".tiktoken"]);
}

#[test]
fn anchors_of_other_projects() {
    let Some(dir) = shared("tokenizers/anchors") else { return };
    for (file, vocab, framed) in [
        ("llamacpp-llama-spm", "llama2/tokenizer.json", false),
        ("llamacpp-llama-spm", "llama2/tokenizer.model", false),
        ("llamacpp-llama-bpe", "llama3/tokenizer.json", false),
        ("llamacpp-llama-bpe", "llama3/original/tokenizer.model", false),
        ("llamacpp-qwen2", "qwen2/tokenizer.json", false),
        ("baichuan1", "baichuan1/tokenizer.model", true),
        ("baichuan2", "baichuan2/tokenizer.model", true),
        ("chatglm-6b", "chatglm-6b/ice_text.model", true),
        ("chatglm2-3", "chatglm2/tokenizer.model", true),
        ("chatglm2-3", "chatglm3/tokenizer.model", true),
    ] {
        let Some(path) = vocabulary(vocab) else { continue };
        let tokenizer = Tokenizer::open_file(path).unwrap();
        let mut report = Report::default();
        for case in lines(&dir.join(file).with_extension("jsonl")) {
            report.cases += 1;
            let text = case["text"].as_str().unwrap();
            report.equal(&format!("{text:?}"), tokenizer.encode(text, framed).unwrap(), ids(&case["ids"]));
        }
        report.end(&format!("{file} with {vocab}"));
    }
}

/// Tokenizers of the reference checkpoints, with a conversation each.
#[test]
fn checkpoints() {
    let Some(dir) = shared("fixtures") else { return };
    let mut report = Report::default();
    let mut folders: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path()).collect();
    folders.extend(folders.iter().map(|folder| folder.join("base")).collect::<Vec<_>>());
    folders.sort();
    let (mut used, mut chats) = (0, 0);
    for folder in folders {
        let Ok(golden) = std::fs::read(folder.join("tokenizer_golden.json")) else { continue };
        used += 1;
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let tokenizer = Tokenizer::open(&folder).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            report.cases += 1;
            let text = case["text"].as_str().unwrap();
            let what = format!("{}: {text:?}", folder.display());
            let plain = ids(&case["ids"]);
            report.equal(&what, tokenizer.encode(text, false).unwrap(), plain.clone());
            report.equal(&what, tokenizer.encode(text, true).unwrap(), ids(&case["ids_with_special"]));
            report.decode(&tokenizer, &what, &plain, false, case["decoded"].as_str().unwrap());
        }
        let chat = &golden["chat"];
        if chat.is_null() || ChatTemplate::find(&folder).unwrap().is_none() {
            continue;
        }
        chats += 1;
        let template = ChatTemplate::open(&folder).unwrap();
        let mut request = Chat::new(chat["messages"].as_array().unwrap(), DateTime::from_unix(0));
        request.add_generation_prompt = chat["add_generation_prompt"].as_bool().unwrap();
        let text = template.render(&request).unwrap();
        let what = format!("{}: chat", folder.display());
        report.equal(&what, text.as_str(), chat["rendered"].as_str().unwrap());
        report.equal(&what, tokenizer.encode(&text, false).unwrap(), ids(&chat["ids"]));
    }
    println!("{used} checkpoints, {chats} of them with a template");
    report.end("checkpoints");
}
