//! How long a pass of a prompt takes.

use super::beside::{Load, processor};
use super::host::Layout;
use super::{Gpu, Hardware, Lane, LaneTime, Need, PromptPass};

/// Where the processor computes alone.
pub(super) fn prompt(need: &Need, hardware: &Hardware, layout: &Layout, resident: &[bool]) -> PromptPass {
    let memory = all(need, |_| true) / hardware.memory;
    let products: f64 = need.units.iter().map(|unit| unit.prompt_ns as f64 * 1e-9).sum();
    let read = streamed(need, layout, resident);
    let lanes = vec![
        LaneTime { lane: Lane::Disk, seconds: read / hardware.disk },
        LaneTime { lane: Lane::Memory, seconds: memory },
        LaneTime { lane: Lane::Processor, seconds: products },
    ];
    slowest(need.prompt_tokens, read, lanes)
}

/// Beside a GPU. Layers on the processor follow those on the device, so that their time adds to what the device takes; of the
/// device only the reading of its memory is known.
pub(super) fn prompt_beside(
    load: &Load<'_>,
    hardware: &Hardware,
    gpu: Gpu,
    layout: &Layout,
    on_host: &[bool],
) -> PromptPass {
    let need = load.need;
    let host: f64 = (need.units.iter().zip(on_host).filter(|(_, on_host)| **on_host))
        .map(|(unit, _)| processor(unit, unit.bytes_of(need.prompt_tokens), unit.prompt_ns, hardware))
        .sum();
    let uploaded = all(need, |index| !load.resident[index] && !on_host[index]);
    let read = streamed(need, layout, load.resident);
    let lanes = vec![
        LaneTime { lane: Lane::Disk, seconds: read / hardware.disk },
        LaneTime { lane: Lane::Copy, seconds: uploaded / gpu.upload },
        LaneTime { lane: Lane::Device, seconds: all(need, |index| !on_host[index]) / gpu.memory },
        LaneTime { lane: Lane::Processor, seconds: host },
    ];
    let chain = lanes[2].seconds + host;
    let mut pass = slowest(need.prompt_tokens, read, lanes);
    pass.seconds = pass.seconds.max(chain);
    pass
}

/// Bytes of the units that `which` names, as a pass of a prompt goes through them.
fn all(need: &Need, which: impl Fn(usize) -> bool) -> f64 {
    let units = need.units.iter().enumerate().filter(|(index, _)| which(*index));
    units.map(|(_, unit)| unit.bytes_of(need.prompt_tokens)).sum()
}

/// Bytes that are read from disk.
fn streamed(need: &Need, layout: &Layout, resident: &[bool]) -> f64 {
    let units = need.units.iter().zip(layout.pinned.iter().zip(resident));
    let left = units.filter(|(_, (pinned, resident))| !**pinned && !**resident);
    left.map(|(unit, _)| {
        unit.bytes_of(need.prompt_tokens) * unit.on_demand.map_or(1.0, |_| 1.0 - layout.hits)
    })
    .sum()
}

fn slowest(tokens: u64, read: f64, lanes: Vec<LaneTime>) -> PromptPass {
    let first = LaneTime { lane: Lane::Memory, seconds: 0.0 };
    let most = lanes.iter().fold(first, |most, lane| if lane.seconds > most.seconds { *lane } else { most });
    PromptPass { tokens, streamed: read.round() as u64, lanes, seconds: most.seconds, bottleneck: most.lane }
}
