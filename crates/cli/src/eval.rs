//! `airllm eval`: how well a model predicts a text, and how far it is from a reference.

use crate::args::{Common, Eval};
use crate::exit::{Failure, Result, usage};
use crate::progress::Bars;
use crate::{input, model, output};
use airllm::eval::Estimate;
use airllm::{AutoModel, Builder, Cancel, Checkpoint, Error, Evaluating, Evaluation, KvFormat, Windows};
use anyhow::Context;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// What is left to others where the budget is "all that is free": a sixteenth.
const LEFT_FREE: u64 = 16;

/// The result as `--json` shows it.
#[derive(Serialize)]
struct Object<'a> {
    model: &'a Path,
    reference: Option<&'a Path>,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
}

pub fn run(common: &Common, args: &Eval, cancel: &Cancel) -> Result<()> {
    if args.text == Path::new("") {
        return Err(usage("--text is empty: name a file"));
    }
    let text = input::read(&args.text)?;
    let bars = Arc::new(Bars::new());
    let plain = model::tuning(model::builder(common, cancel, &bars), &args.running.tuning);
    let builder =
        model::adapters(model::weights(plain.clone(), &args.running.weights)?, &args.running.adapters);
    // The reference keeps its keys and values as it computes them.
    let builder = builder.kv(args.running.cache.kv);
    let checkpoint = model::find(&builder, common, None)?;
    let windows = windows(&builder, &checkpoint, &text, args)?;
    let other = plain.kv(KvFormat::F32).offline(args.running.weights.offline);
    let reference = match &args.reference {
        None => None,
        Some(name) => {
            let found = model::open(&other, name).map_err(|failure| about(failure, "the reference"))?;
            windows.check_same(&self::windows(&other, &found, &text, args)?)?;
            Some(found)
        }
    };
    let (model, reference) = load(common, [builder, other], &checkpoint, reference.as_ref(), &windows)?;
    bars.clear();

    let mut last = None;
    let result = model.evaluate(&windows, reference.as_ref(), &mut |now| {
        bars.evaluating(now);
        last = Some(*now);
    });
    bars.clear();
    let evaluation = match result {
        Err(Error::Interrupted) => {
            partial(last);
            return Err(Failure::Interrupted);
        }
        result => result?,
    };
    if common.json {
        return output::json(&Object {
            model: model.dir(),
            reference: reference.as_ref().map(AutoModel::dir),
            evaluation: &evaluation,
        });
    }
    output::text(&lines(&evaluation))?;
    output::note(&format!(
        "{} tokens counted of {} windows of {}, in {:.1} s: {} passes, {:.1} tokens/s",
        evaluation.scores.tokens,
        evaluation.windows,
        evaluation.context,
        evaluation.seconds,
        evaluation.passes,
        (evaluation.windows * evaluation.context) as f64 / evaluation.seconds.max(1e-9)
    ));
    Ok(())
}

/// The text as a model's tokenizer cuts it; refused where the model cannot read such windows.
fn windows(builder: &Builder, checkpoint: &Checkpoint, text: &str, args: &Eval) -> Result<Windows> {
    if let Some(limit) = builder.limit(checkpoint).filter(|limit| args.context > *limit) {
        let refusal: Result<(), Error> = Err(Error::Context { prompt: args.context, new: 0, context: limit });
        refusal.context(format!("--context {}, the tokens of a window", args.context))?;
    }
    Ok(Windows::of(&checkpoint.tokenizer()?, text, args.context, args.chunks)?)
}

/// Loads both inside the one budget: the model in up to half of it, the reference in what that leaves.
fn load(
    common: &Common,
    [builder, other]: [Builder; 2],
    checkpoint: &Checkpoint,
    reference: Option<&Checkpoint>,
    windows: &Windows,
) -> Result<(AutoModel, Option<AutoModel>)> {
    let builder = builder.evaluating(windows);
    let Some(reference) = reference else { return Ok((builder.load(checkpoint)?, None)) };
    let free = || airllm::available_memory().map(|free| free - free / LEFT_FREE);
    let budget = common.ram.map(|ram| ram.0).or_else(free);
    let free =
        || airllm::available_vram(common.device.unwrap_or_default()).map(|free| free - free / LEFT_FREE);
    let vram = common.vram.map(|vram| vram.0).or_else(free);
    let give = |mut builder: Builder, ram: Option<u64>, vram: Option<u64>| {
        if let Some(bytes) = ram {
            builder = builder.ram(bytes);
        }
        if let Some(bytes) = vram {
            builder = builder.vram(bytes);
        }
        builder
    };
    let half = |budget: Option<u64>| budget.map(|bytes| bytes / 2);
    let model = give(builder, half(budget), half(vram)).load(checkpoint);
    let model = model.context("the model, in half of the memory budget").map_err(Failure::from)?;
    let plan = &model.plan().plan;
    let rest = |budget: Option<u64>, taken: u64| budget.map(|bytes| bytes.saturating_sub(taken));
    let (ram, vram) = (rest(budget, plan.ram), rest(vram, plan.vram));
    let reference = give(other.evaluating(windows), ram, vram).load(reference);
    let reference = reference.context("the reference, in the memory that the model leaves");
    Ok((model, Some(reference.map_err(Failure::from)?)))
}

fn about(failure: Failure, whom: &'static str) -> Failure {
    match failure {
        Failure::Error(error) => Failure::Error(error.context(whom)),
        other => other,
    }
}

/// What an interrupted run has found.
fn partial(last: Option<Evaluating>) {
    if let Some(Evaluating { windows, of_windows, perplexity: Some(perplexity), .. }) = last {
        output::note(&format!(
            "interrupted after {windows} of {of_windows} windows: perplexity {perplexity:.4}"
        ));
    }
}

fn lines(evaluation: &Evaluation) -> String {
    let number = |name: &str, Estimate { value, error }: Estimate, scale: f64, unit: &str| {
        format!("{name:<22}{} ± {}{unit}\n", digits(value * scale), digits(error * scale))
    };
    let scores = &evaluation.scores;
    let mut text = number("perplexity", scores.perplexity, 1.0, "");
    if let Some(bits) = scores.bits_per_byte {
        text += &format!("{:<22}{bits:.4}\n", "bits per byte");
    }
    if let Some(comparison) = &scores.comparison {
        text += &number("reference perplexity", comparison.perplexity, 1.0, "");
        text += &number("mean KL divergence", comparison.kl_mean, 1.0, " nats");
        text += &format!("{:<22}{} nats\n", "99 % KL divergence", digits(comparison.kl_99));
        text += &number("same top token", comparison.top1_agreement, 100.0, " %");
    }
    text
}

/// Four decimals, or for what is smaller than they show, three digits.
fn digits(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.2e}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn small_numbers_keep_their_digits() {
        assert_eq!(super::digits(0.0), "0.0000");
        assert_eq!(super::digits(0.000_123_4), "1.23e-4");
        assert_eq!(super::digits(12.345_678), "12.3457");
    }
}
