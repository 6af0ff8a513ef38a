//! `airllm generate --prompts FILE`: JSON lines in, JSON lines out, and on from where it stopped.

mod entries;
mod out;

use crate::args::{Common, Generate};
use crate::exit::{Failure, Result, usage};
use crate::progress::Bars;
use crate::{generate, input, model, output};
use airllm::{Cancel, FinishReason, Generate as Run};
use entries::Entry;
use out::Out;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// A line of the result.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a serde_json::Value,
    /// Left out for a model without a tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// What there is instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<&'a [u32]>,
    tokens: usize,
    prompt_tokens: usize,
    finish_reason: &'a str,
    /// What a later run compares.
    prompt_hash: &'a str,
}

pub fn run(common: &Common, args: &Generate, file: &Path, cancel: &Cancel) -> Result<()> {
    let place = if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
    let lines = entries::parse(&place, &input::read(file)?)?;
    if lines.is_empty() {
        return Err(usage(format!("{place}: there is no prompt in it")));
    }
    let bars = Arc::new(Bars::new());
    let mut builder = generate::builder(common, args, cancel, &bars)?;
    let checkpoint = model::find(&builder, common, None)?;
    // Everything is looked at before anything is begun.
    let limit = builder.limit(&checkpoint).unwrap_or(usize::MAX);
    let all = entries::prepare(&place, lines, args, &checkpoint, limit)?;
    let of = all.len();
    let mut out = Out::open(args.out.as_deref())?;
    let mut entries: Vec<Entry> = Vec::with_capacity(of);
    for entry in all {
        if !out.has(&entry)? {
            entries.push(entry);
        }
    }
    let had = of - entries.len();
    if entries.is_empty() {
        output::note(&format!("all {of} answers are there already"));
        return Ok(());
    }
    let prompts: Vec<_> = entries.iter().map(|entry| entry.prompt.clone()).collect();
    if let Some(active) = args.active {
        builder = builder.active(active);
    }
    let model = builder.answering(&prompts).load(&checkpoint)?;
    bars.clear();

    let mut run = model.answer(prompts)?;
    let shown = write(&mut run, &entries, &mut out, &bars, model.tokenizer().is_ok());
    bars.clear();
    generate::traces(args, &run)?;
    let done = shown?;
    output::note(&run.physics().to_string());
    if done < entries.len() {
        let again = if args.out.is_some() { ": the same command goes on from here" } else { "" };
        output::note(&format!("{} of {of} answers are done{again}", had + done));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

/// Writes each answer when it ends; how many have.
fn write(run: &mut Run<'_>, entries: &[Entry], out: &mut Out, bars: &Bars, has_text: bool) -> Result<usize> {
    let mut done = 0;
    while let Some(piece) = run.next() {
        let piece = piece?;
        let ended = piece.finish.filter(|finish| *finish != FinishReason::Interrupted);
        if let (Some(finish), Some(answer)) = (ended, run.answer(piece.prompt)) {
            let entry = &entries[piece.prompt];
            out.write(&Line {
                id: &entry.id,
                text: has_text.then_some(answer.text.as_str()),
                ids: (!has_text).then_some(answer.ids.as_slice()),
                tokens: answer.ids.len(),
                prompt_tokens: answer.prompt_ids.len(),
                finish_reason: finish.name(),
                prompt_hash: &entry.hash,
            })?;
            done += 1;
        }
        bars.answering(&run.progress(), piece.finish.is_some());
    }
    Ok(done)
}
