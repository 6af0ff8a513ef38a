//! `airllm generate`: prompts in, text out as it comes.

use crate::args::{Common, Generate, Ids, Sampling};
use crate::exit::{Failure, Result, usage};
use crate::progress::Bars;
use crate::{input, model, output, prompts};
use airllm::{
    Answer, AutoModel, Builder, Cancel, ChatFormat, Checkpoint, FinishReason, Generate as Run, Generation,
    Message, Physics, Prompt, Timings,
};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// The most new tokens, unless said otherwise.
pub const MAX_NEW_TOKENS: usize = 128;

/// One answer, as `--json` shows it.
#[derive(Serialize)]
struct AnswerObject<'a> {
    /// Left out for a model without a tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    ids: &'a [u32],
    prompt_ids: &'a [u32],
    finish_reason: &'a str,
}

/// One answer and the run.
#[derive(Serialize)]
struct OneObject<'a> {
    #[serde(flatten)]
    answer: AnswerObject<'a>,
    timings: Timings,
    physics: Physics,
}

/// Several answers and the run.
#[derive(Serialize)]
struct ManyObject<'a> {
    answers: Vec<AnswerObject<'a>>,
    timings: Timings,
    physics: Physics,
}

pub fn run(common: &Common, args: &Generate, cancel: &Cancel) -> Result<()> {
    if let Some(file) = &args.prompts_file {
        return prompts::run(common, args, file, cancel);
    }
    let mut options = options(&args.sampling, MAX_NEW_TOKENS);
    options.validate()?;
    let bars = Arc::new(Bars::new());
    let builder = builder(common, args, cancel, &bars)?;
    let checkpoint = model::find(&builder, common, None)?;
    let chat = if args.chat { Some(checkpoint.chat()?) } else { None };
    if let Some(chat) = &chat {
        options = options.stop_ids(chat.stops());
    }
    let prompts: Vec<Prompt> = ids(args, &checkpoint, chat.as_ref())?
        .into_iter()
        .map(|ids| Prompt::new(ids, options.clone()))
        .collect();
    let model = load(builder, &checkpoint, &prompts, &options)?;
    bars.clear();

    let mut run = model.answer(prompts)?;
    let many = run.answers().len() > 1;
    let shown = show(&mut run, common.json, many);
    traces(args, &run)?;
    shown?;
    end(&run, &model, common.json, many)
}

/// What the options ask of the library.
pub fn builder(common: &Common, args: &Generate, cancel: &Cancel, bars: &Arc<Bars>) -> Result<Builder> {
    let builder = model::running(model::builder(common, cancel, bars), &args.running)?;
    let builder = builder.timeline(args.timeline || args.trace.is_some());
    Ok(match args.context {
        Some(context) => builder.context(context),
        None => builder,
    })
}

/// Shows who was busy when, as far as that was asked for.
pub fn traces(args: &Generate, run: &Run<'_>) -> Result<()> {
    if args.timeline {
        output::note(run.gantt(72).trim_end());
    }
    match &args.trace {
        Some(path) => write_trace(path, run),
        None => Ok(()),
    }
}

/// Streams text while it comes: of one answer piece by piece, of several each when it is whole.
fn show(run: &mut Run<'_>, json: bool, many: bool) -> Result<()> {
    let mut next = 0;
    while let Some(piece) = run.next() {
        let piece = piece?;
        if json {
            continue;
        }
        if !many {
            output::text(&piece.text)?;
        } else if piece.finish.is_some() {
            // In the order of the prompts, whichever ends first.
            let whole: Vec<&Answer> = run.answers().skip(next).take_while(|a| a.finish.is_some()).collect();
            for answer in whole {
                next += 1;
                output::text(&format!("==> {next} <==\n{}\n", answer.text))?;
            }
        }
    }
    if !json && !many {
        output::text("\n")?;
    }
    Ok(())
}

fn end(run: &Run<'_>, model: &AutoModel, json: bool, many: bool) -> Result<()> {
    let (timings, physics) = (run.timings(), run.physics());
    let has_text = model.tokenizer().is_ok();
    if json {
        let mut answers: Vec<AnswerObject<'_>> =
            run.answers().map(|answer| object(answer, has_text)).collect();
        if many {
            output::json(&ManyObject { answers, timings, physics })?;
        } else if let Some(answer) = answers.pop() {
            output::json(&OneObject { answer, timings, physics })?;
        }
    } else {
        if !has_text {
            for answer in run.answers() {
                let ids: Vec<String> = answer.ids.iter().map(u32::to_string).collect();
                output::line(&ids.join(","))?;
            }
            output::note("the model has no tokenizer: the new token ids are shown instead of text");
        }
        output::note(&physics.to_string());
    }
    let interrupted = run.answers().any(|answer| answer.finish == Some(FinishReason::Interrupted));
    if interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

fn object(answer: &Answer, has_text: bool) -> AnswerObject<'_> {
    AnswerObject {
        text: has_text.then_some(answer.text.as_str()),
        ids: &answer.ids,
        prompt_ids: &answer.prompt_ids,
        finish_reason: answer.finish.map_or("error", FinishReason::name),
    }
}

/// How to choose tokens, with `most` new ones where the user names no number.
pub fn options(args: &Sampling, most: usize) -> Generation {
    let mut options = Generation::default()
        .max_new_tokens(args.max_new_tokens.unwrap_or(most))
        .temperature(args.temperature)
        .top_p(args.top_p.unwrap_or(1.0))
        .min_p(args.min_p.unwrap_or(0.0))
        .repetition_penalty(args.repetition_penalty.unwrap_or(1.0))
        .ignore_eos(args.ignore_eos);
    options.top_k = args.top_k;
    options.seed = args.seed;
    options.stop = args.stop.clone();
    options
}

/// The token ids of every prompt, wherever the prompts come from.
fn ids(args: &Generate, checkpoint: &Checkpoint, chat: Option<&ChatFormat>) -> Result<Vec<Vec<u32>>> {
    if !args.input_ids.is_empty() {
        return Ok(args.input_ids.iter().map(|Ids(ids)| ids.clone()).collect());
    }
    let texts = match (&args.file, args.prompts.as_slice()) {
        (Some(path), _) => vec![input::read(path)?],
        (None, []) => vec![input::stdin()?],
        (None, prompts) => prompts.to_vec(),
    };
    let tokenizer = checkpoint.tokenizer()?;
    let encode = |text: &String| -> Result<Vec<u32>> {
        match chat {
            Some(chat) => Ok(chat.ids(&[Message::user(text)])?),
            None => Ok(tokenizer.encode(text, true).map_err(airllm::Error::from)?),
        }
    };
    texts.iter().map(encode).collect()
}

/// Makes room for what these prompts and their answers need, and loads.
fn load(
    builder: Builder,
    checkpoint: &Checkpoint,
    prompts: &[Prompt],
    options: &Generation,
) -> Result<AutoModel> {
    let lengths = || prompts.iter().map(|prompt| prompt.ids.len());
    if lengths().any(|tokens| tokens == 0) {
        return Err(usage("the prompt is empty: it has no tokens to continue"));
    }
    let (new, limit) = (options.max_new_tokens, builder.limit(checkpoint).unwrap_or(usize::MAX));
    if let Some(prompt) = lengths().find(|tokens| tokens.saturating_add(new.min(1)) > limit) {
        return Err(airllm::Error::Context { prompt, new, context: limit }.into());
    }
    Ok(builder.answering(prompts).load(checkpoint)?)
}

fn write_trace(path: &Path, run: &Run<'_>) -> Result<()> {
    std::fs::write(path, run.chrome_trace()).map_err(|source| {
        airllm::Error::Io { path: path.to_path_buf(), doing: "writing the trace", source }.into()
    })
}
