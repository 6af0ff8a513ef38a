//! `airllm devices`: what there is to compute with.

use crate::args::Common;
use crate::exit::Result;
use crate::output;
use airllm::{Devices, Size};

pub fn run(common: &Common) -> Result<()> {
    let devices = airllm::devices();
    if common.json { output::json(&devices) } else { output::text(&lines(&devices)) }
}

fn lines(devices: &Devices) -> String {
    let cpu = &devices.cpu;
    let memory = match (cpu.memory, cpu.free) {
        (Some(all), Some(free)) => format!(", {} of memory, {} free", Size(all), Size(free)),
        (Some(all), None) => format!(", {} of memory", Size(all)),
        (None, _) => String::new(),
    };
    let name = cpu.name.as_deref().unwrap_or("this machine's processor");
    let mut lines = vec![("cpu", format!("{name}: {}, {} threads{memory}", cpu.instructions, cpu.threads))];
    for cuda in &devices.cuda {
        let free = cuda.free.map_or(String::new(), |free| format!(", {} free", Size(free)));
        let why = cuda.why_not.as_ref().map_or(String::new(), |why| format!("; cannot be used: {why}"));
        let line = format!(
            "{}: compute capability {}, {} multiprocessors, {} of memory{free}, driver for CUDA {}{why}",
            cuda.name,
            cuda.capability,
            cuda.multiprocessors,
            Size(cuda.memory),
            cuda.driver
        );
        lines.push((&cuda.device, line));
    }
    if let Some(why) = &devices.why_no_cuda {
        lines.push(("no GPU", why.clone()));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<8} {value}\n")).collect()
}
