//! `airllm inspect`: what a checkpoint or a folder of shards holds.

use crate::args::{Common, Inspect};
use crate::exit::{Failure, Result};
use crate::progress::Bars;
use crate::{model, output, signal};
use airllm::{Bits, Cancel, Checkpoint, Form, Size};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Serialize)]
struct Report {
    name: String,
    path: String,
    /// "checkpoint" or "shards".
    form: &'static str,
    architecture: &'static str,
    bits: Option<Bits>,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    /// Tokens; null where any length works.
    context: Option<usize>,
    tied: bool,
    eos: Vec<u32>,
    parameters: u64,
    bytes: u64,
    files: usize,
    /// Bytes by number format.
    formats: BTreeMap<String, u64>,
    tokenizer: bool,
    /// True once everything was read and agreed; null if that was not asked for.
    verified: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorLine>,
}

#[derive(Serialize)]
struct TensorLine {
    unit: String,
    name: String,
    format: String,
    shape: Vec<usize>,
    bytes: u64,
}

pub fn run(common: &Common, args: &Inspect, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let builder = model::builder(common, cancel, &bars);
    let checkpoint = model::find(&builder, common, args.target.as_deref())?;
    let mut report = report(&checkpoint, args.tensors)?;
    if args.verify {
        let (shown, asked) = (bars.clone(), cancel.clone());
        checkpoint.verify(cancel, &move |progress| {
            signal::leave_if(&asked);
            shown.show(progress);
        })?;
        bars.clear();
        report.verified = Some(true);
    }
    if common.json { output::json(&report) } else { print(&report) }
}

fn report(checkpoint: &Checkpoint, list: bool) -> Result<Report> {
    let config = checkpoint.config();
    // Its own shapes and formats; this also refuses a checkpoint that lacks a tensor.
    let catalog = checkpoint.catalog(None)?;
    let (form, bytes) = match checkpoint.form() {
        Form::Prepared(prepared) => ("shards", prepared.manifest().bytes()),
        Form::Published(repo) => ("checkpoint", repo.bytes()),
        _ => return Err(Failure::from(anyhow::anyhow!("this form of model is not known"))),
    };
    let mut formats = BTreeMap::new();
    let (mut tensors, mut parameters) = (Vec::new(), 0);
    for unit in &catalog.units {
        for tensor in &unit.tensors {
            *formats.entry(tensor.format.name().to_owned()).or_insert(0) += tensor.bytes() as u64;
            parameters += (tensor.rows * tensor.cols) as u64;
            let shape = if tensor.rows == 1 { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] };
            tensors.push(TensorLine {
                unit: unit.name.clone(),
                name: tensor.name.clone(),
                format: tensor.format.name().to_owned(),
                shape,
                bytes: tensor.bytes() as u64,
            });
        }
    }
    Ok(Report {
        name: checkpoint.name().to_owned(),
        path: checkpoint.dir().display().to_string(),
        form,
        architecture: config.arch.name,
        bits: checkpoint.bits(),
        layers: config.layers,
        hidden: config.hidden,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        vocab: config.vocab,
        context: checkpoint.context(),
        tied: config.tied,
        eos: checkpoint.generation_config().eos.clone(),
        parameters,
        bytes,
        files: checkpoint.files().len(),
        formats,
        tokenizer: checkpoint.tokenizer().is_ok(),
        verified: None,
        tensors: if list { tensors } else { Vec::new() },
    })
}

fn print(report: &Report) -> Result<()> {
    let context = report.context.map_or("any length".to_owned(), |tokens| format!("{tokens} tokens"));
    let formats: Vec<String> =
        report.formats.iter().map(|(name, bytes)| format!("{name} {}", Size(*bytes))).collect();
    let r = report;
    let mut lines = vec![
        ("model", format!("{} ({} at {})", r.name, r.form, r.path)),
        ("architecture", format!("{}, {} layers, hidden {}", r.architecture, r.layers, r.hidden)),
        ("attention", format!("{} heads of {}, {} for keys and values", r.heads, r.head_dim, r.kv_heads)),
        ("vocabulary", format!("{}{}", r.vocab, if r.tied { ", head tied to the embedding" } else { "" })),
        ("context", context),
        ("parameters", r.parameters.to_string()),
        ("weights", format!("{} in {} files: {}", Size(r.bytes), r.files, formats.join(", "))),
        ("tokenizer", if r.tokenizer { "yes".to_owned() } else { "no".to_owned() }),
    ];
    if r.verified.is_some() {
        lines.push(("verified", "every byte was read and agrees".to_owned()));
    }
    for (name, value) in lines {
        output::line(&format!("{name:<13} {value}"))?;
    }
    if !r.tensors.is_empty() {
        let rows: Vec<Vec<String>> = r
            .tensors
            .iter()
            .map(|t| {
                vec![
                    format!("{}/{}", t.unit, t.name),
                    t.format.clone(),
                    format!("{:?}", t.shape),
                    t.bytes.to_string(),
                ]
            })
            .collect();
        output::text(&output::table(&["tensor", "format", "shape", "bytes"], &rows))?;
    }
    Ok(())
}
