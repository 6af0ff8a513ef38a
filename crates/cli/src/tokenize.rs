//! `airllm tokenize`: text to ids and back.

use crate::args::{Common, Ids, Tokenize};
use crate::exit::{Result, bad_input};
use crate::progress::Bars;
use crate::{input, model, output};
use airllm::{Cancel, Error, Tokenizer};
use serde::{Deserialize, Serialize};
use std::io::BufRead;
use std::sync::Arc;

/// A line of `--jsonl`, in and out. Exactly one of both comes in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: Option<String>,
    ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Both {
    text: String,
    ids: Vec<u32>,
}

pub fn run(common: &Common, args: &Tokenize) -> Result<()> {
    let builder = model::builder(common, &Cancel::new(), &Arc::new(Bars::new()));
    let tokenizer = model::find(&builder, common, None)?.tokenizer()?;
    if args.jsonl {
        return lines(&tokenizer, args);
    }
    let (both, to_text) = match (&args.ids, &args.text) {
        (Some(Ids(ids)), _) => (decode(&tokenizer, ids.clone(), args)?, true),
        (None, Some(text)) => (encode(&tokenizer, text.clone(), args)?, false),
        (None, None) => (encode(&tokenizer, input::stdin()?, args)?, false),
    };
    if common.json {
        output::json(&both)
    } else if to_text {
        output::line(&both.text)
    } else {
        let ids: Vec<String> = both.ids.iter().map(u32::to_string).collect();
        output::line(&ids.join(","))
    }
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
