//! `airllm plan`: where every layer will live, and how fast that will be.

use crate::args::{Common, Plan};
use crate::exit::Result;
use crate::progress::Bars;
use crate::{model, output};
use airllm::{Cancel, Forecast, Size};
use std::sync::Arc;

pub fn run(common: &Common, args: &Plan, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let mut builder = model::builder(common, cancel, &bars);
    builder = model::tuning(model::weights(builder, &args.weights), &args.tuning);
    builder = model::adapters(builder, &args.adapters);
    if let Some(context) = args.context {
        builder = builder.context(context);
    }
    let checkpoint = model::find(&builder, common, args.target.as_deref())?;
    let forecast = builder.plan(&checkpoint)?;
    bars.clear();
    if common.json {
        let mut object = serde_json::to_value(&forecast)?;
        object["model"] = checkpoint.name().into();
        object["tokens_per_s"] = forecast.tokens_per_s().into();
        return output::json(&object);
    }
    output::text(&units(&forecast))?;
    output::text(&summary(&forecast))
}

/// Where every unit lives.
fn units(forecast: &Forecast) -> String {
    let rows: Vec<Vec<String>> = forecast
        .units
        .iter()
        .zip(&forecast.plan.pinned)
        .map(|(unit, pinned)| {
            let lives = match (pinned, unit.per_pass) {
                (true, _) => "memory",
                (false, 0) => "disk, by row",
                (false, _) => "disk, streamed",
            };
            let read = if *pinned { 0 } else { unit.per_pass };
            vec![unit.name.clone(), lives.to_owned(), Size(unit.bytes).to_string(), Size(read).to_string()]
        })
        .collect();
    output::table(&["unit", "lives in", "size", "read per token"], &rows)
}

fn summary(forecast: &Forecast) -> String {
    let plan = &forecast.plan;
    let budget = match forecast.budget {
        Some(bytes) => format!("of {}", Size(bytes)),
        None => "(all of the model fits)".to_owned(),
    };
    let ring = match plan.slots {
        0 => "none, nothing streams".to_owned(),
        slots => format!("{slots} slots of {}, {} readers", Size(plan.slot_bytes as u64), plan.readers),
    };
    let mut lines = vec![
        ("memory", format!("{} {budget}", Size(plan.ram))),
        ("  weights", Size(plan.resident).to_string()),
        ("  ring", ring),
        (
            "  other",
            format!(
                "{} (context {} tokens, passes of up to {})",
                Size(forecast.fixed),
                forecast.context,
                forecast.batch_tokens
            ),
        ),
        ("per token", format!("{} of weights, {} from disk", Size(plan.bytes_per_pass), Size(plan.streamed))),
        (
            "measured",
            format!(
                "disk {}, memory {}/s",
                match forecast.disk_measured {
                    true => format!("{}/s", Size(forecast.hardware.disk as u64)),
                    false => "not measured (the files are small)".to_owned(),
                },
                Size(forecast.hardware.memory as u64)
            ),
        ),
        ("expected", format!("{:.3} tokens/s, bottleneck {}", forecast.tokens_per_s(), plan.bottleneck)),
    ];
    for other in &forecast.fewer_bits {
        let bits = other.bits.width();
        let rate = 1.0 / other.seconds_per_token;
        lines.push((
            "fewer bits",
            format!("--bits {bits}: {rate:.3} tokens/s, {:.1} times as fast", other.speedup),
        ));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}
