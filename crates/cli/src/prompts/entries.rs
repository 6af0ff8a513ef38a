//! The lines of a file of prompts: what they say, and where they say what cannot be.

use crate::args::Generate;
use crate::exit::{Failure, Result, bad_input};
use crate::generate;
use airllm::{Checkpoint, Error, Generation, Prompt, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use xxhash_rust::xxh3::Xxh3;

/// A line as it is written. Without an `id` its number is taken, counted from 1.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    id: Option<Value>,
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    input_ids: Option<Vec<u32>>,
    max_new_tokens: Option<usize>,
    temperature: Option<f32>,
    seed: Option<u64>,
    stop: Option<Stop>,
    #[serde(skip)]
    number: usize,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// A prompt, ready to be continued.
#[derive(Debug)]
pub(super) struct Entry {
    /// What its answer is called: a text or a whole number.
    pub(super) id: Value,
    pub(super) prompt: Prompt,
    /// Hash of the prompt's ids.
    pub(super) hash: String,
}

/// Reads the lines; empty ones are none.
///
/// # Errors
/// The first line that is not as it should be, by its number.
pub(super) fn parse(place: &str, text: &str) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    for (index, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let number = index + 1;
        let bad = |what: &dyn std::fmt::Display| bad_input(format!("{place}:{number}: {what}"));
        let mut line: Line = serde_json::from_str(text).map_err(|error| bad(&inner(&error)))?;
        line.number = number;
        let given = [line.prompt.is_some(), line.messages.is_some(), line.input_ids.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err(bad(&"expected one of \"prompt\", \"messages\" and \"input_ids\""));
        }
        let id = line.id.get_or_insert_with(|| json!(number));
        if !(id.is_string() || id.is_u64() || id.is_i64()) {
            return Err(bad(&format!("expected a text or a whole number as \"id\", found {id}")));
        }
        if let Some(first) = ids.insert(id.to_string(), number) {
            return Err(bad(&format!("the id {id} is that of line {first} already")));
        }
        lines.push(line);
    }
    Ok(lines)
}

/// What a JSON error says, with the column: the line is known better.
fn inner(error: &serde_json::Error) -> String {
    let (text, column) = (error.to_string(), error.column());
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("expected a JSON object with a prompt, found at column {column}: {what}")
}

/// Turns lines into prompts for a model, with sequences of up to `limit` tokens.
///
/// # Errors
/// The first line that the model cannot continue, by its number.
pub(super) fn prepare(
    place: &str,
    lines: Vec<Line>,
    args: &Generate,
    checkpoint: &Checkpoint,
    limit: usize,
) -> Result<Vec<Entry>> {
    let has = |what: fn(&Line) -> bool| lines.iter().any(what);
    let wants_chat = has(|line| line.messages.is_some()) || (args.chat && has(|line| line.prompt.is_some()));
    let chat = if wants_chat { Some(checkpoint.chat()?) } else { None };
    let tokenizer = if has(|line| line.prompt.is_some()) { Some(checkpoint.tokenizer()?) } else { None };
    let common = generate::options(&args.sampling, generate::MAX_NEW_TOKENS);
    common.validate()?;
    let vocab = checkpoint.config().vocab;
    let entry = |line: Line| {
        let place = format!("{place}:{}", line.number);
        let mut options = line.options(&common).map_err(|error| bad_input(format!("{place}: {error}")))?;
        let chat = chat.as_ref().filter(|_| line.messages.is_some() || (args.chat && line.prompt.is_some()));
        if let Some(chat) = chat {
            options = options.stop_ids(chat.stops());
        }
        let at = |error: Error| Failure::Error(anyhow::Error::from(error).context(place.clone()));
        let ids = line.ids(chat, tokenizer.as_ref()).map_err(at)?;
        if ids.is_empty() {
            return Err(bad_input(format!("{place}: the prompt is empty: it has no tokens to continue")));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            let what = format!("{place}: the prompt has token id {id}, the model has {vocab} ids");
            return Err(bad_input(what));
        }
        let new = options.max_new_tokens;
        if ids.len().saturating_add(new.min(1)) > limit {
            return Err(at(Error::Context { prompt: ids.len(), new, context: limit }));
        }
        let mut hash = Xxh3::new();
        ids.iter().for_each(|id| hash.update(&id.to_le_bytes()));
        let id = line.id.unwrap_or(Value::Null);
        Ok(Entry { id, prompt: Prompt::new(ids, options), hash: format!("{:016x}", hash.digest()) })
    };
    lines.into_iter().map(entry).collect()
}

impl Line {
    /// The options of the command line, but for what this line says.
    fn options(&self, common: &Generation) -> airllm::Result<Generation> {
        let mut options = common.clone();
        options.max_new_tokens = self.max_new_tokens.unwrap_or(options.max_new_tokens);
        options.temperature = self.temperature.unwrap_or(options.temperature);
        options.seed = self.seed.or(options.seed);
        match &self.stop {
            Some(Stop::One(stop)) => options.stop = vec![stop.clone()],
            Some(Stop::Several(stops)) => options.stop.clone_from(stops),
            None => {}
        }
        options.validate()?;
        Ok(options)
    }

    fn ids(
        &self,
        chat: Option<&airllm::ChatFormat>,
        tokenizer: Option<&Tokenizer>,
    ) -> airllm::Result<Vec<u32>> {
        match (self, chat, tokenizer) {
            (Line { messages: Some(messages), .. }, Some(chat), _) => chat.ids_of(messages),
            (Line { prompt: Some(text), .. }, Some(chat), _) => chat.ids(&[airllm::Message::user(text)]),
            (Line { prompt: Some(text), .. }, None, Some(tokenizer)) => Ok(tokenizer.encode(text, true)?),
            _ => Ok(self.input_ids.clone().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        match parse("x.jsonl", text) {
            Err(Failure::Error(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_are_numbered_and_named() {
        let lines =
            parse("x", "{\"prompt\":\"a\"}\n\n{\"input_ids\":[1],\"id\":\"b\",\"stop\":[\"c\"]}\n").unwrap();
        assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(
            lines.iter().filter_map(|line| line.id.clone()).collect::<Vec<_>>(),
            [json!(1), json!("b")]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let good = "{\"prompt\":\"a\"}\n";
        let cases = [
            ("{\"prompt\":", ["x.jsonl:2: ", "EOF"]),
            ("[1]", ["x.jsonl:2: ", "expected a JSON object"]),
            ("{\"prompt\":\"a\",\"temprature\":1}", ["x.jsonl:2: ", "unknown field `temprature`"]),
            ("{\"prompt\":\"a\",\"messages\":[]}", ["x.jsonl:2: ", "expected one of"]),
            ("{}", ["x.jsonl:2: ", "expected one of"]),
            ("{\"prompt\":\"a\",\"id\":1}", ["x.jsonl:2: ", "the id 1 is that of line 1"]),
            ("{\"prompt\":\"a\",\"id\":1.5}", ["x.jsonl:2: ", "found 1.5"]),
            ("{\"prompt\":\"a\",\"stop\":7}", ["x.jsonl:2: ", "expected a text or a list of texts"]),
            ("{\"prompt\":\"a\",\"max_new_tokens\":-1}", ["x.jsonl:2: ", "-1"]),
        ];
        for (line, words) in cases {
            let error = refused(&format!("{good}{line}\n"));
            assert!(words.iter().all(|word| error.contains(word)), "{line}: {error}");
        }
    }
}
