//! `airllm prepare`: writes shards.

use crate::args::{Common, Prepare};
use crate::exit::{Result, bad_input};
use crate::progress::Bars;
use crate::{model, output};
use airllm::{Cancel, Form, Size, delete_weights};
use std::sync::Arc;
use std::time::Instant;

pub fn run(common: &Common, args: &Prepare, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let mut builder = model::weights(model::builder(common, cancel, &bars), &args.weights);
    if let Some(out) = &args.out {
        builder = builder.shards(out);
    }
    let checkpoint = model::find(&builder, common, args.target.as_deref())?;
    if let (Form::Prepared(_), Some(out)) = (checkpoint.form(), &args.out) {
        return Err(bad_input(format!(
            "{}: already prepared; {} can only be made from a checkpoint",
            checkpoint.dir().display(),
            out.display()
        )));
    }
    let begin = Instant::now();
    // Asked for by name, every byte that is there already is checked, and mended where it is damaged.
    let prepared = builder.check_existing(true).prepare(&checkpoint)?;
    bars.clear();
    let deleted = match (args.delete_original, checkpoint.into_form()) {
        (true, Form::Published(repo)) => {
            prepared.verify(&mut |_, _| {}).map_err(airllm::Error::from)?;
            delete_weights(repo)?
        }
        _ => Vec::new(),
    };
    let manifest = prepared.manifest();
    let bytes = manifest.bytes();
    if common.json {
        return output::json(&serde_json::json!({
            "path": prepared.dir(),
            "bits": manifest.recipe.bits,
            "shards": manifest.shards.len(),
            "bytes": bytes,
            "seconds": begin.elapsed().as_secs_f64(),
            "deleted": deleted,
        }));
    }
    output::line(&prepared.dir().display().to_string())?;
    let bits = manifest.recipe.bits.name();
    let seconds = begin.elapsed().as_secs_f64();
    output::note(&format!("{} shards, {} ({bits}), {seconds:.1} s", manifest.shards.len(), Size(bytes)));
    for path in deleted {
        output::note(&format!("deleted {}", path.display()));
    }
    Ok(())
}
