//! `airllm prepare`: writes shards.

use crate::args::{Common, Prepare};
use crate::exit::{Result, bad_input, usage};
use crate::progress::Bars;
use crate::{model, output, signal};
use airllm::{Builder, Cancel, Checkpoint, Error, Form, Prepared, Repo, Size, Widths, delete_weights};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub fn run(common: &Common, args: &Prepare, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let mut builder = model::weights(model::builder(common, cancel, &bars), &args.weights)?;
    let checkpoint = model::find(&builder, common, args.target.as_deref())?;
    match (&args.out, checkpoint.form()) {
        (Some(out), Form::Prepared(_)) => {
            return Err(bad_input(format!(
                "{}: already prepared; {} can only be made from a checkpoint",
                checkpoint.dir().display(),
                out.display()
            )));
        }
        (Some(out), _) => builder = builder.shards(out),
        (None, _) if !args.weights.shards.is_empty() => {}
        (None, Form::Published(_)) if args.delete_original && checkpoint.id().is_some() => {
            return Err(usage(
                "--delete-original of a downloaded model needs --out: name a folder for its shards",
            ));
        }
        (None, Form::Published(repo)) if args.delete_original && repo.gguf().is_some() => {
            return Err(usage("--delete-original of a GGUF file needs --out: name a folder for its shards"));
        }
        (None, Form::Published(repo)) if args.delete_original => builder = builder.shards(repo.dir()),
        (None, _) => {}
    }
    let begin = Instant::now();
    // A folder of something else is refused before anything is measured.
    builder.made(&checkpoint)?;
    let widths = builder.widths(&checkpoint)?;
    bars.clear();
    if let Some(widths) = &widths {
        chosen(&builder, &checkpoint, widths)?;
    }
    // Asked for by name, every byte that is there already is checked, and mended where it is damaged.
    let prepared = builder.check_existing(true).prepare(&checkpoint)?;
    bars.clear();
    let deleted = if args.delete_original { delete(checkpoint, &prepared, cancel)? } else { Vec::new() };
    let manifest = prepared.manifest();
    let bytes = manifest.bytes();
    if common.json {
        return output::json(&serde_json::json!({
            "path": prepared.dir(),
            "bits": manifest.recipe.bits,
            "recipe": manifest.recipe.name(),
            "bits_per_weight": widths.as_ref().map(Widths::bits),
            "expected_kl": widths.as_ref().map(|widths| widths.kl),
            "shards": manifest.shards.len(),
            "bytes": bytes,
            "seconds": begin.elapsed().as_secs_f64(),
            "deleted": deleted,
        }));
    }
    output::line(&prepared.dir().display().to_string())?;
    let bits = manifest.recipe.name();
    let seconds = begin.elapsed().as_secs_f64();
    output::note(&format!("{} shards, {} ({bits}), {seconds:.1} s", manifest.shards.len(), Size(bytes)));
    for path in deleted {
        output::note(&format!("deleted {}", path.display()));
    }
    Ok(())
}

/// Says what was chosen, and what it is expected to bring.
fn chosen(builder: &Builder, checkpoint: &Checkpoint, widths: &Widths) -> Result<()> {
    let sensitivity = builder.sensitivity(checkpoint)?;
    let tensors = sensitivity.tensors.iter();
    let formats: Vec<_> = tensors.filter_map(|it| widths.format(&it.unit, it.role())).collect();
    output::note(crate::sensitivity::chosen(&sensitivity, &formats).trim_end());
    output::note(&format!("all tensors: {:.3} bits a weight, {}", widths.bits(), Size(widths.bytes)));
    let (now, then) = builder.gain(checkpoint, widths)?;
    output::note(&format!(
        "expected {then:.2} tokens/s, {:.2} times the {now:.2} of the checkpoint as it is",
        then / now
    ));
    Ok(())
}

/// Deletes the weights that the shards were made from, after a look at every byte of the shards.
fn delete(checkpoint: Checkpoint, prepared: &Prepared, cancel: &Cancel) -> Result<Vec<PathBuf>> {
    let repo = match checkpoint.into_form() {
        Form::Published(repo) => repo,
        // A run that was interrupted before the deletion may have left both in one folder.
        _ => match Repo::open(prepared.dir()) {
            Ok(repo) => repo,
            Err(_) => return Ok(Vec::new()),
        },
    };
    if repo.fingerprint().map_err(Error::from)? != prepared.manifest().source.fingerprint {
        return Err(bad_input(format!(
            "{}: these weights are not those that the shards were made from; they are left alone",
            repo.dir().display()
        )));
    }
    prepared.verify(&mut |_, _| signal::leave_if(cancel)).map_err(Error::from)?;
    Ok(delete_weights(repo)?)
}
