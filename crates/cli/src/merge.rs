//! `airllm merge`: folds adapters into weights.

use crate::args::{Common, Merge};
use crate::exit::Result;
use crate::progress::Bars;
use crate::{model, output};
use airllm::{Adapter, Cancel, Progress, Size};
use std::sync::Arc;
use std::time::Instant;

pub fn run(common: &Common, args: &Merge, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let mut builder = model::builder(common, cancel, &bars).offline(args.offline);
    if let Some(bits) = args.bits {
        builder = builder.bits(bits.0);
    }
    if let Some(revision) = &args.revision {
        builder = builder.revision(revision);
    }
    let checkpoint = model::find(&builder, common, None)?;
    let begin = Instant::now();
    let (files, bytes) = if args.bits.is_some() {
        for dir in &args.adapter {
            builder = builder.adapter(dir);
        }
        let prepared = builder.shards(&args.out).merge_into_shards(&checkpoint)?;
        (prepared.shard_paths(), prepared.manifest().bytes())
    } else {
        let adapters: Vec<Adapter> =
            args.adapter.iter().map(|dir| Adapter::open(dir)).collect::<airllm::Result<_>>()?;
        let report = {
            let bars = bars.clone();
            move |progress: &Progress<'_>| bars.show(progress)
        };
        let files = airllm::merge(&checkpoint, &adapters, &args.out, cancel, &report)?;
        let size = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let bytes = files.iter().map(size).sum();
        (files, bytes)
    };
    bars.clear();
    let seconds = begin.elapsed().as_secs_f64();
    if common.json {
        return output::json(&serde_json::json!({
            "path": args.out,
            "files": files.len(),
            "bytes": bytes,
            "seconds": seconds,
        }));
    }
    output::line(&args.out.display().to_string())?;
    output::note(&format!("{} files of weights, {}, {seconds:.1} s", files.len(), Size(bytes)));
    Ok(())
}
