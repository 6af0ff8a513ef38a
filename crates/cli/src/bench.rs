//! `airllm bench`: how fast a model reads prompts and decodes, and how fast it was expected to.

use crate::args::{Bench as Args, Common};
use crate::exit::Result;
use crate::progress::Bars;
use crate::{model, output};
use airllm::{AutoModel, Cancel, Generation, Physics};
use serde::Serialize;
use std::sync::Arc;

/// One thing measured.
#[derive(Debug, Serialize)]
struct Measured {
    /// Tokens a second of each run.
    runs: Vec<f64>,
    /// Their median.
    tokens_per_s: f64,
    /// What the plan expected.
    expected: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Object<'a> {
    model: &'a str,
    prompt_tokens: usize,
    new_tokens: usize,
    sequences: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Measured>,
    /// That of the last run.
    physics: Option<Physics>,
}

pub fn run(common: &Common, args: &Args, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let mut builder = model::running(model::builder(common, cancel, &bars), &args.running)?;
    let sequences = args.sequences as usize;
    let (prompt, new) = (args.prompt_tokens as usize, args.new_tokens as usize);
    let (one, all) = (prompt + 1, sequences.saturating_mul(new + 2));
    builder = builder.context(one.max(new + 2)).max_batch(sequences).cache_tokens(one.max(all));
    let checkpoint = model::find(&builder, common, args.target.as_deref())?;
    let model = builder.load(&checkpoint)?;
    bars.clear();

    // Reads what stays in memory, wakes threads.
    once(&model, 1, 1, 2)?;
    let mut object = Object {
        model: checkpoint.name(),
        prompt_tokens: prompt,
        new_tokens: new,
        sequences,
        prompt: None,
        decode: None,
        physics: None,
    };
    let mut rates = (Vec::new(), Vec::new());
    let (mut prompts, mut decodes) = (None, None);
    // Both in turn, so that a machine that drifts does so for both.
    for _ in 0..args.runs {
        if prompt > 0 {
            let physics = once(&model, 1, prompt, 1)?;
            rates.0.push(physics.prompt_tokens_per_s);
            prompts = physics.expected_prompt_tokens_per_s;
            object.physics = Some(physics);
        }
        if new > 0 {
            let physics = once(&model, sequences, 1, new + 1)?;
            rates.1.push(physics.tokens_per_s);
            decodes = physics.expected_tokens_per_s;
            object.physics = Some(physics);
        }
    }
    object.prompt = measured(rates.0, prompts);
    object.decode = measured(rates.1, decodes);
    if common.json {
        return output::json(&object);
    }
    let rows = [(format!("prompt of {prompt}"), &object.prompt), (decoding(new, sequences), &object.decode)];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .filter_map(|(name, measured)| {
            let it = measured.as_ref()?;
            let least = it.runs.iter().copied().fold(f64::INFINITY, f64::min);
            let most = it.runs.iter().copied().fold(0.0, f64::max);
            let expected = it.expected.map_or_else(String::new, |rate| format!("{rate:.2}"));
            Some(vec![name, format!("{:.2}", it.tokens_per_s), format!("{least:.2} to {most:.2}"), expected])
        })
        .collect();
    output::text(&output::table(&["tokens/s", "median", "runs", "expected"], &rows))?;
    if let Some(physics) = &object.physics {
        output::note(&physics.to_string());
    }
    Ok(())
}

fn decoding(new: usize, sequences: usize) -> String {
    match sequences {
        1 => format!("{new} new tokens"),
        many => format!("{new} new tokens each of {many}"),
    }
}

/// Continues made-up prompts of so many tokens by so many.
fn once(model: &AutoModel, sequences: usize, prompt: usize, new: usize) -> Result<Physics> {
    let vocab = model.config().vocab.max(1);
    let ids = |sequence: usize| -> Vec<u32> {
        (0..prompt).map(|i| ((i * 7919 + sequence * 104_729 + 11) % vocab) as u32).collect()
    };
    let options = Generation::default().max_new_tokens(new).ignore_eos(true).temperature(0.0);
    let mut run = model.generate_ids((0..sequences).map(ids).collect(), &options)?;
    for piece in run.by_ref() {
        piece?;
    }
    if run.answers().any(|answer| answer.finish == Some(airllm::FinishReason::Interrupted)) {
        return Err(crate::exit::Failure::Interrupted);
    }
    Ok(run.physics())
}

fn measured(runs: Vec<f64>, expected: Option<f64>) -> Option<Measured> {
    let mut sorted = runs.clone();
    sorted.sort_by(f64::total_cmp);
    let median = *sorted.get(sorted.len() / 2)?;
    Some(Measured { runs, tokens_per_s: median, expected })
}
