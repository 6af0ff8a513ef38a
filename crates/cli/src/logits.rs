//! `airllm logits`: logits and hidden states as safetensors, for comparison with other implementations.

use crate::args::{Common, Ids, Logits};
use crate::exit::{Result, usage};
use crate::progress::Bars;
use crate::{model, output};
use airllm::{Cancel, Error};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::sync::Arc;

pub fn run(common: &Common, args: &Logits, cancel: &Cancel) -> Result<()> {
    let Ids(ids) = &args.input_ids;
    if ids.is_empty() {
        return Err(usage("--input-ids is empty"));
    }
    let bars = Arc::new(Bars::new());
    let mut builder = model::builder(common, cancel, &bars);
    builder = model::running(builder, &args.running)?;
    let checkpoint = model::find(&builder, common, None)?;
    let limit = builder.limit(&checkpoint).unwrap_or(usize::MAX);
    if ids.len() > limit {
        return Err(Error::Context { prompt: ids.len(), new: 0, context: limit }.into());
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= checkpoint.config().vocab) {
        let vocab = checkpoint.config().vocab;
        return Err(
            Error::Input { what: format!("token id {id} is given, the model has {vocab} ids") }.into()
        );
    }
    let model = builder.cache_tokens(ids.len()).load(&checkpoint)?;
    bars.clear();

    let (layers, width) = (model.config().layers, model.config().hidden);
    let mut hidden = vec![Vec::new(); if args.hidden { layers + 1 } else { 0 }];
    let logits = match args.hidden {
        false => model.forward(ids)?,
        true => model.forward_with(ids, &mut |states| {
            if let Some(rows) = hidden.get_mut(states.number) {
                rows.extend(states.values.iter().flat_map(|value| value.to_le_bytes()));
            }
        })?,
    };
    let bytes: Vec<u8> = logits.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view =
        |bytes, shape: Vec<usize>| TensorView::new(Dtype::F32, shape, bytes).map_err(anyhow::Error::from);
    let mut tensors = vec![("logits".to_owned(), view(&bytes, vec![logits.rows, logits.vocab])?)];
    for (i, rows) in hidden.iter().enumerate() {
        tensors.push((format!("hidden.{i}"), view(rows, vec![ids.len(), width])?));
    }
    let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
    let file = safetensors::serialize(tensors, None).map_err(anyhow::Error::from)?;
    output::file(&args.out, &file)?;
    if common.json {
        return output::json(&serde_json::json!({
            "out": args.out, "rows": logits.rows, "vocab": logits.vocab, "tensors": names,
        }));
    }
    output::note(&format!(
        "{}: {} [{}, {}]",
        args.out.display(),
        names.join(", "),
        logits.rows,
        logits.vocab
    ));
    Ok(())
}
