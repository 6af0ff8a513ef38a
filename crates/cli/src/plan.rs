//! `airllm plan`: where every layer will live, and how fast that will be.

use crate::args::{Common, Plan};
use crate::exit::Result;
use crate::progress::Bars;
use crate::{model, output};
use airllm::{Cancel, Forecast, LaneTime, Size};
use std::sync::Arc;

pub fn run(common: &Common, args: &Plan, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let mut builder = model::builder(common, cancel, &bars);
    builder = model::running(builder, &args.running)?;
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
        object["prompt_tokens_per_s"] = forecast.prompt_tokens_per_s().into();
        return output::json(&object);
    }
    output::text(&units(&forecast))?;
    output::text(&summary(&forecast))?;
    if let Some(why) = &forecast.device.why_not_gpu {
        output::note(&format!("no GPU: {why}"));
    }
    Ok(())
}

/// Where every unit lives; the experts of a layer share a line.
fn units(forecast: &Forecast) -> String {
    let plan = &forecast.plan;
    let gpu = forecast.device.is_gpu();
    let mut rows: Vec<Row> = Vec::new();
    for (index, unit) in forecast.units.iter().enumerate() {
        let pinned = plan.pinned[index];
        let lives = match (unit.on_demand.is_some(), pinned, unit.per_pass) {
            _ if plan.resident[index] => "GPU memory",
            _ if plan.on_host[index] => "memory, computed there",
            (_, true, 1..) if gpu => "memory, uploaded",
            (_, true, _) => "memory",
            (true, ..) => "disk, on demand",
            (_, _, 0) => "disk, by row",
            _ if gpu => "disk, uploaded",
            _ => "disk, streamed",
        };
        let read = if pinned || plan.resident[index] { 0 } else { unit.per_pass };
        let layer = unit.name.split_once(".expert.").map(|(layer, _)| layer);
        let name = layer.map_or_else(|| unit.name.clone(), |layer| format!("{layer}, experts"));
        match rows.last_mut() {
            Some(last) if layer.is_some() && last.name == name && last.lives == lives => {
                last.count += 1;
                last.bytes += unit.bytes;
                last.read += read;
            }
            _ => rows.push(Row { name, lives, count: 1, bytes: unit.bytes, read }),
        }
    }
    let cells = rows.into_iter().map(|row| {
        let times = if row.name.ends_with("experts") { format!(" ({})", row.count) } else { String::new() };
        vec![row.name + &times, row.lives.to_owned(), Size(row.bytes).to_string(), Size(row.read).to_string()]
    });
    output::table(&["unit", "lives in", "size", "used per token"], &cells.collect::<Vec<_>>())
}

struct Row {
    name: String,
    lives: &'static str,
    count: usize,
    bytes: u64,
    read: u64,
}

fn summary(forecast: &Forecast) -> String {
    let mut lines = if forecast.device.is_gpu() { gpu(forecast) } else { Vec::new() };
    lines.extend(memory(forecast));
    lines.extend(speed(forecast));
    lines.into_iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

type Lines = Vec<(&'static str, String)>;

/// What the GPU's memory holds.
fn gpu(forecast: &Forecast) -> Lines {
    let plan = &forecast.plan;
    let budget = forecast.vram_budget.map_or(String::new(), |bytes| format!(" of {}", Size(bytes)));
    let ring = match plan.device_slots {
        0 => "none, all layers are there".to_owned(),
        slots => format!("{slots} slots of {}", Size(plan.slot_bytes as u64)),
    };
    vec![
        ("device", format!("{} ({})", forecast.device.name, forecast.device.device)),
        ("GPU memory", format!("{}{budget}", Size(plan.vram))),
        ("  weights", Size(plan.resident_bytes).to_string()),
        ("  ring", ring),
        ("  other", format!("{} ({})", Size(forecast.device_fixed), passes(forecast))),
    ]
}

/// What the host's memory holds.
fn memory(forecast: &Forecast) -> Lines {
    let plan = &forecast.plan;
    let budget = match forecast.budget {
        Some(bytes) => format!("of {}", Size(bytes)),
        None => "(all of the model fits)".to_owned(),
    };
    let ring = match plan.slots {
        0 => "none, no layer streams".to_owned(),
        slots => format!("{slots} slots of {}, {} readers", Size(plan.slot_bytes as u64), plan.readers),
    };
    let mut lines = vec![
        ("memory", format!("{} {budget}", Size(plan.ram))),
        ("  weights", Size(plan.pinned_bytes).to_string()),
    ];
    if let Some(rate) = plan.expert_hit_rate {
        let held = Size(plan.expert_cache_bytes);
        let line =
            format!("{held} for those used lately, {:.0} % expected to be there at least", rate * 100.0);
        lines.push(("  experts", line));
    }
    lines.push(("  ring", ring));
    let other = Size(forecast.fixed);
    lines.push(match forecast.device.is_gpu() {
        true => ("  other", other.to_string()),
        false => ("  other", format!("{other} ({})", passes(forecast))),
    });
    lines
}

fn passes(forecast: &Forecast) -> String {
    format!(
        "context {} tokens, {} as {}, passes of up to {}",
        forecast.context,
        Size(forecast.kv_bytes),
        forecast.kv,
        forecast.batch_tokens
    )
}

/// How fast it will be, and what would be faster.
fn speed(forecast: &Forecast) -> Lines {
    let plan = &forecast.plan;
    let disk = match forecast.disk_measured {
        true => format!("{}/s", Size(forecast.hardware.disk as u64)),
        false => "not measured (the files are small)".to_owned(),
    };
    let mut per_token =
        format!("{} of weights, {} from disk", Size(plan.bytes_per_pass), Size(plan.streamed));
    let mut measured = format!("disk {disk}, memory {}/s", Size(forecast.hardware.memory as u64));
    if let Some(gpu) = forecast.hardware.gpu {
        per_token += &format!(", {} to the GPU", Size(plan.uploaded));
        measured += &format!(", copy {}/s, GPU {}/s", Size(gpu.upload as u64), Size(gpu.memory as u64));
    }
    let mut lines = vec![("per token", per_token), ("measured", measured)];
    let lanes = |lanes: &[LaneTime]| {
        lanes.iter().map(|it| format!("{} {:.4} s", it.lane, it.seconds)).collect::<Vec<_>>().join(", ")
    };
    lines.push(("lanes", lanes(&plan.lanes)));
    let expected = format!("{:.3} tokens/s, bottleneck {}", forecast.tokens_per_s(), plan.bottleneck);
    lines.push(("expected", expected));
    let prompt = &plan.prompt;
    lines.push(("per prompt", format!("passes of {} tokens: {}", prompt.tokens, lanes(&prompt.lanes))));
    let expected =
        format!("{:.1} tokens/s, bottleneck {}", forecast.prompt_tokens_per_s(), prompt.bottleneck);
    lines.push(("expected", expected));
    if forecast.repacked > 0 {
        let line = format!(
            "{} per token while it is read, which the processor limits; `airllm prepare` does it once",
            Size(forecast.repacked)
        );
        lines.push(("repacked", line));
    }
    for other in &forecast.fewer_bits {
        let bits = other.bits.width();
        let rate = 1.0 / other.seconds_per_token;
        lines.push((
            "fewer bits",
            format!("--bits {bits}: {rate:.3} tokens/s, {:.1} times as fast", other.speedup),
        ));
    }
    lines
}
