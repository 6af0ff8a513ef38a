//! Published chat templates: what transformers renders.

use crate::common::{Report, ids, lines, shared, vocabulary};
use airllm_text::{Chat, ChatTemplate, DateTime, Error, Tokenizer};
use serde_json::Value;

/// 2026-11-22 12:00:00, the clock of the goldens.
const NOON: i64 = 1_795_348_800;

#[test]
fn published_templates() {
    let Some(dir) = shared("tokenizers") else { return };
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let mut all = Report::default();
    for file in manifest["chat"]["jinja"].as_array().unwrap() {
        let file = file.as_str().unwrap();
        let mut report = Report::default();
        for case in lines(&dir.join("chat").join(file)) {
            report.cases += 1;
            let name = case["template"].as_str().unwrap();
            let source = std::fs::read_to_string(dir.join(format!("templates/{name}.jinja"))).unwrap();
            let mut template = ChatTemplate::parse(&source).unwrap();
            for token in ["bos_token", "eos_token"] {
                if !case[token].is_null() {
                    template.set_variable(token, &case[token]);
                }
            }
            assert_eq!(case["now"], "2026-11-22T12:00:00");
            let mut chat = Chat::new(case["messages"].as_array().unwrap(), DateTime::from_unix(NOON));
            chat.tools = case["tools"].as_array().map(Vec::as_slice);
            chat.add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
            chat.kwargs = case["kwargs"].as_object().unwrap().clone();
            let what = format!("{name} {} {}", case["conv"], case["add_generation_prompt"]);
            match (template.render(&chat), case["error"].as_str()) {
                (Ok(text), None) => {
                    report.equal(&what, text.as_str(), case["rendered"].as_str().unwrap());
                    if let Some(tokenizer) = tokenizer(&case, &manifest) {
                        let found = tokenizer.encode(&text, false).unwrap();
                        report.equal(&format!("{what}: ids"), found, ids(&case["ids"]));
                    }
                }
                (Err(Error::Refused { message }), Some(error)) => {
                    report.equal(&what, format!("TemplateError: {message}").as_str(), error);
                }
                (found, error) => report.equal(&what, format!("{found:?}"), format!("{error:?}")),
            }
        }
        all.cases += report.cases;
        all.checks += report.checks;
        report.end(file);
    }
    assert_eq!(all.cases, 424);
    all.end("all templates");
}

/// The tokenizer that gave a case's ids, if there is one.
fn tokenizer(case: &Value, manifest: &Value) -> Option<Tokenizer> {
    use std::collections::HashMap;
    thread_local!(static OPEN: std::cell::RefCell<HashMap<String, Tokenizer>> = Default::default());
    let name = case["vocab"].as_str()?;
    let file = manifest["vectors"][name]["vocab"].as_str()?;
    let path = vocabulary(file)?;
    OPEN.with_borrow_mut(|open| {
        Some(open.entry(name.to_owned()).or_insert_with(|| Tokenizer::open_file(path).unwrap()).clone())
    })
}
