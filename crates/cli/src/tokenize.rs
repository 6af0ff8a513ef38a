//! `airllm tokenize`: text to ids and back.

use crate::args::{Common, Ids, Tokenize};
use crate::exit::{Result, bad_input, usage};
use crate::progress::Bars;
use crate::{compare, input, model, output};
use airllm::{Builder, Cancel, Checkpoint, Error, Tokenizer};
use serde::{Deserialize, Serialize};
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

/// A line of `--jsonl`, in and out. Exactly one of both comes in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: Option<String>,
    ids: Option<Vec<u32>>,
}

/// A rendered conversation. The ids may differ from those of the text: see `ChatFormat`.
#[derive(Serialize)]
struct Rendered {
    format: &'static str,
    text: String,
    ids: Vec<u32>,
    stops: Vec<u32>,
}

#[derive(Serialize)]
struct Both {
    text: String,
    ids: Vec<u32>,
}

pub fn run(common: &Common, args: &Tokenize) -> Result<()> {
    let builder = model::builder(common, &Cancel::new(), &Arc::new(Bars::new()));
    if !args.compare.is_empty() {
        return compare_models(&builder, common, args);
    }
    let checkpoint = model::find(&builder, common, None)?;
    if let Some(path) = &args.chat {
        return render(&checkpoint, &input::read(path)?, common.json);
    }
    let tokenizer = checkpoint.tokenizer()?;
    if args.jsonl {
        return lines(&tokenizer, args);
    }
    let (both, to_text) = match (&args.ids, &args.text) {
        (Some(Ids(ids)), _) => (decode(&tokenizer, ids.clone(), args)?, true),
        (None, Some(text)) => (encode(&tokenizer, text.clone(), args)?, false),
        (None, None) => {
            let text = args.file.as_deref().map_or_else(input::stdin, input::read)?;
            (encode(&tokenizer, text, args)?, false)
        }
    };
    if common.json {
        output::json(&both)
    } else if to_text {
        output::line(&both.text)
    } else {
        output::line(&joined(&both.ids))
    }
}

fn joined(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The prompt of a conversation, and its ids.
fn render(checkpoint: &Checkpoint, messages: &str, json: bool) -> Result<()> {
    let chat = checkpoint.chat()?;
    let wrong = |what: &dyn std::fmt::Display| {
        bad_input(format!(
            "expected a JSON list of messages, [{{\"role\": \"user\", \"content\": …}}, …], or an object with such a \
             list as \"messages\": {what}"
        ))
    };
    let mut value: serde_json::Value = serde_json::from_str(messages).map_err(|error| wrong(&error))?;
    if let Some(list) = value.get_mut("messages") {
        value = list.take();
    }
    let messages = value.as_array().ok_or_else(|| wrong(&"found something else"))?;
    let (text, ids) = (chat.text_of(messages)?, chat.ids_of(messages)?);
    if json {
        return output::json(&Rendered { format: chat.name(), text, ids, stops: chat.stops().to_vec() });
    }
    output::line(&text)?;
    output::line(&joined(&ids))
}

fn compare_models(builder: &Builder, common: &Common, args: &Tokenize) -> Result<()> {
    if common.model.is_some() {
        return Err(usage("--compare names the models itself: leave --model out"));
    }
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => input::read(path)?,
        (None, None) => compare::SAMPLE.to_owned(),
    };
    if text.is_empty() {
        return Err(usage("there is no text to compare on"));
    }
    let open = |name: &String| -> Result<(String, Tokenizer)> {
        // A folder with nothing but a tokenizer will do.
        let folder = Path::new(name).is_dir().then(|| Tokenizer::open(name).ok()).flatten();
        let tokenizer = match folder {
            Some(tokenizer) => tokenizer,
            None => model::find(builder, common, Some(name))?.tokenizer()?,
        };
        Ok((name.clone(), tokenizer))
    };
    let models = args.compare.iter().map(open).collect::<Result<Vec<_>>>()?;
    compare::run(&models, &text, common.json)
}

fn lines(tokenizer: &Tokenizer, args: &Tokenize) -> Result<()> {
    let mut bytes = Vec::new();
    let mut stdin = std::io::stdin().lock();
    for number in 1.. {
        bytes.clear();
        if stdin.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let bad = |what: &dyn std::fmt::Display| {
            bad_input(format!("line {number}: expected {{\"text\": …}} or {{\"ids\": […]}}: {what}"))
        };
        let line: Line = serde_json::from_slice(&bytes).map_err(|error| bad(&error))?;
        let both = match (line.text, line.ids) {
            (Some(text), None) => encode(tokenizer, text, args)?,
            (None, Some(ids)) => decode(tokenizer, ids, args)?,
            (Some(_), Some(_)) => return Err(bad(&"both are there")),
            (None, None) => return Err(bad(&"neither is there")),
        };
        output::json(&both)?;
    }
    Ok(())
}

fn encode(tokenizer: &Tokenizer, text: String, args: &Tokenize) -> Result<Both> {
    let ids = tokenizer.encode(&text, !args.no_special).map_err(Error::from)?;
    Ok(Both { text, ids })
}

fn decode(tokenizer: &Tokenizer, ids: Vec<u32>, args: &Tokenize) -> Result<Both> {
    Ok(Both { text: tokenizer.decode(&ids, args.skip_special), ids })
}
