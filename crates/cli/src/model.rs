//! From the common options to a model.

use crate::args::{Adapters, Common, Running, Tuning, Weights};
use crate::demo;
use crate::exit::{Result, usage};
use crate::progress::Bars;
use airllm::{AutoModel, Builder, CalibrationText, Cancel, Checkpoint, Target};
use std::path::Path;
use std::sync::Arc;

/// What the common options ask of the library.
pub fn builder(common: &Common, cancel: &Cancel, bars: &Arc<Bars>) -> Builder {
    let bars = bars.clone();
    let mut builder = AutoModel::builder().cancel(cancel).on_progress(move |progress| bars.show(progress));
    if let Some(ram) = common.ram {
        builder = builder.ram(ram.0);
    }
    if let Some(vram) = common.vram {
        builder = builder.vram(vram.0);
    }
    if let Some(device) = common.device {
        builder = builder.device(device);
    }
    if let Some(threads) = common.threads {
        builder = builder.threads(usize::from(threads));
    }
    builder
}

/// Adds how the model is stored and fetched.
pub fn weights(mut builder: Builder, args: &Weights) -> Result<Builder> {
    let size = args.size.map(|size| Target::Size(size.0));
    if let Some(target) = args.bits.map(|bits| bits.0).or(size).or(args.quality.map(Target::Quality)) {
        builder = builder.target(target);
    }
    match &args.calibration {
        Some(name) if name == Path::new("built-in") => {
            builder = builder.calibration(CalibrationText::default())
        }
        Some(file) => builder = builder.calibration(CalibrationText::read(file)?),
        None => {}
    }
    builder = builder.calibration_tokens(args.calibration_tokens as usize);
    if !args.shards.is_empty() {
        builder = builder.shards_over(&args.shards);
    }
    if let Some(revision) = &args.revision {
        builder = builder.revision(revision);
    }
    Ok(builder.offline(args.offline))
}

/// Adds all that can be chosen about a model that runs.
pub fn running(builder: Builder, args: &Running) -> Result<Builder> {
    let builder = adapters(weights(builder, &args.weights)?, &args.adapters);
    Ok(tuning(builder.kv(args.cache.kv), &args.tuning))
}

/// Adds what is added to the weights.
pub fn adapters(builder: Builder, args: &Adapters) -> Builder {
    args.adapter.iter().fold(builder, Builder::adapter)
}

/// Adds the shape of the stream.
pub fn tuning(mut builder: Builder, args: &Tuning) -> Builder {
    if let Some(slots) = args.slots {
        builder = builder.slots(slots);
    }
    if let Some(stripe) = args.stripe {
        builder = builder.slot_bytes(usize::try_from(stripe.0).unwrap_or(usize::MAX));
    }
    if let Some(readers) = args.readers {
        builder = builder.readers(readers);
    }
    builder = builder.read(args.read);
    if let Some(tokens) = args.batch_tokens {
        builder = builder.batch_tokens(tokens);
    }
    builder.host_layers(args.host_layers.0)
}

/// Finds the model that was named, by option or by argument.
pub fn find(builder: &Builder, common: &Common, target: Option<&str>) -> Result<Checkpoint> {
    let model = match (target, common.model.as_deref()) {
        (Some(_), Some(_)) => return Err(usage("the model is named twice: by --model and by an argument")),
        (None, None) => match builder.find_shards()? {
            Some(checkpoint) => return Ok(checkpoint),
            None => "demo",
        },
        (Some(model), None) | (None, Some(model)) => model,
    };
    open(builder, model)
}

/// Finds a model by its name on the command line.
pub fn open(builder: &Builder, model: &str) -> Result<Checkpoint> {
    match model {
        "demo" => Ok(builder.find(&demo::folder(&builder.cache()?)?.to_string_lossy())?),
        model => Ok(builder.find(model)?),
    }
}
