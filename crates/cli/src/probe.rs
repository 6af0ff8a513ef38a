//! `airllm probe`: measure what this machine can do, and keep it for plans.

use crate::args::{Common, Probe as Args};
use crate::exit::Result;
use crate::progress::Bars;
use crate::{model, output};
use airllm::{Cancel, Error, Probe, Size};
use std::sync::Arc;

pub fn run(common: &Common, args: &Args, cancel: &Cancel) -> Result<()> {
    let builder = model::builder(common, cancel, &Arc::new(Bars::new()));
    let mut dirs = args.dir.clone();
    if dirs.is_empty() {
        let home = airllm::env::home()
            .ok_or_else(|| crate::exit::usage("there is no home folder to keep rates in: set AIRLLM_HOME"))?;
        std::fs::create_dir_all(&home)?;
        dirs.push(home);
    }
    // Before anything takes time.
    for dir in &dirs {
        let looked = std::fs::read_dir(dir);
        looked.map_err(|source| Error::Io { path: dir.clone(), doing: "looking at the folder", source })?;
    }
    output::note("measuring for about 15 seconds; other programs that run meanwhile make numbers smaller");
    let probe = builder.probe(&dirs)?;
    if common.json {
        return output::json(&probe);
    }
    output::text(&lines(&probe))?;
    output::text(&products(&probe))?;
    if let Some(home) = airllm::env::home() {
        output::note(&format!("kept in {}", Probe::path(&home).display()));
    }
    Ok(())
}

fn rate(bytes: f64) -> String {
    format!("{}/s", Size(bytes as u64))
}

fn lines(probe: &Probe) -> String {
    let machine = &probe.machine;
    let name = if machine.processor.is_empty() { "this machine's processor" } else { &machine.processor };
    let mut lines = vec![
        ("cpu", format!("{name}: {}, {} threads", machine.instructions, machine.threads)),
        ("memory", rate(probe.memory)),
    ];
    if let Some(gpu) = &probe.gpu {
        let line =
            format!("{}: copies to it {}, its memory {}", gpu.device, rate(gpu.upload), rate(gpu.memory));
        lines.push(("gpu", line));
    }
    for disk in &probe.disks {
        let way = |it: &airllm::Way| format!("{} {} ({} threads)", it.method, rate(it.rate), it.threads);
        let ways: Vec<String> = disk.methods.iter().map(way).collect();
        lines.push(("disk", format!("{}: {}", disk.dir.display(), ways.join(", "))));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<8} {value}\n")).collect()
}

fn products(probe: &Probe) -> String {
    let rows: Vec<Vec<String>> = probe
        .products
        .iter()
        .map(|it| {
            vec![
                it.format.to_string(),
                rate(it.token),
                format!("{:.0} %", 100.0 * it.token / probe.memory),
                format!("{:.0}", it.prompt * 2e-9),
            ]
        })
        .collect();
    output::table(&["weights", "one token", "of memory", "prompt, Gflop/s"], &rows)
}
