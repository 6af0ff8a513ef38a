//! How long a pass takes with a GPU, and which layers the processor computes beside it.

use super::{Gpu, Hardware, Lane, LaneTime, Need, UnitNeed};

/// A plan with layers on the processor is taken to be slower by this than its lanes say: results change hands, and
/// the processor has other work. It is chosen only where it wins by more.
const MARGIN: f64 = 1.1;

/// Products that take longer than reading memory by no more than this are limited by memory.
const NEAR: f64 = 1.15;

/// What the lanes have to carry, whoever computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load<'a> {
    pub need: &'a Need,
    pub pinned: &'a [bool],
    pub resident: &'a [bool],
    /// Bytes that every pass reads from disk.
    pub streamed: u64,
    /// Bytes that copies may run ahead of the computation: the device's ring but for the slot in use.
    pub ahead: u64,
}

/// A pass, as it is expected.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pass {
    pub lanes: Vec<LaneTime>,
    pub seconds: f64,
    pub bottleneck: Lane,
    pub uploaded: u64,
}

/// A pass of the processor alone.
pub(super) fn alone(need: &Need, hardware: &Hardware, streamed: u64) -> Pass {
    let all: u64 = need.units.iter().map(|unit| unit.per_pass).sum();
    let (disk, memory) = (streamed as f64 / hardware.disk, all as f64 / hardware.memory);
    let products: f64 = need.units.iter().map(|unit| one(unit, hardware)).sum();
    let lane = |lane, seconds| LaneTime { lane, seconds };
    let bottleneck = match () {
        () if disk > products => Lane::Disk,
        () if products > NEAR * memory => Lane::Processor,
        () => Lane::Memory,
    };
    Pass {
        lanes: vec![lane(Lane::Disk, disk), lane(Lane::Memory, memory), lane(Lane::Processor, products)],
        seconds: disk.max(products),
        bottleneck,
        uploaded: 0,
    }
}

/// Seconds that the processor takes for what a pass goes through of a unit: `bytes` are read, and the products take `ns`.
pub(super) fn processor(unit: &UnitNeed, bytes: f64, ns: u64, hardware: &Hardware) -> f64 {
    debug_assert!(bytes <= unit.bytes as f64);
    (bytes / hardware.memory).max(ns as f64 * 1e-9)
}

/// The same for one token.
fn one(unit: &UnitNeed, hardware: &Hardware) -> f64 {
    processor(unit, unit.per_pass as f64, unit.token_ns, hardware)
}

/// The layers that the processor computes, and what a pass takes then. `asked` is their number, where it is asked
/// for.
pub(super) fn choose(
    load: &Load<'_>,
    hardware: &Hardware,
    gpu: Gpu,
    asked: Option<usize>,
) -> (Vec<bool>, Pass) {
    // In the order in which they were pinned, so that any number of them is spread over the pass and copies for the
    // device go on meanwhile.
    let may = |&index: &usize| load.pinned[index] && !load.resident[index] && load.need.units[index].beside;
    let layers: Vec<usize> = super::ring::pin_order(load.need).into_iter().filter(may).collect();
    let mut on_host = vec![false; load.need.units.len()];
    let mut best = (on_host.clone(), pass(load, hardware, gpu, &on_host));
    for (index, count) in layers.into_iter().zip(1..) {
        on_host[index] = true;
        match asked {
            Some(most) if count > most => break,
            // So many are wanted, whatever it takes.
            Some(_) => best = (on_host.clone(), pass(load, hardware, gpu, &on_host)),
            None => {
                let other = pass(load, hardware, gpu, &on_host);
                if other.seconds < best.1.seconds {
                    best = (on_host.clone(), other);
                }
            }
        }
    }
    best
}

/// Disk, copies and computation go on at the same time. Layers follow each other, so the processor's time adds to
/// the device's; and while the processor computes, copies run ahead only as far as the device's ring has room.
fn pass(load: &Load<'_>, hardware: &Hardware, gpu: Gpu, on_host: &[bool]) -> Pass {
    let (mut stretches, mut uploaded, mut host_bytes, mut all) = (Stretches::default(), 0, 0, 0);
    let mut host = 0.0;
    for (index, unit) in load.need.units.iter().enumerate() {
        all += unit.per_pass;
        if load.resident[index] {
            continue;
        }
        if on_host[index] {
            let seconds = one(unit, hardware);
            host_bytes += unit.per_pass;
            host += seconds;
            stretches.host(seconds);
        } else {
            uploaded += unit.per_pass;
            if unit.on_demand.is_none() {
                stretches.upload(unit.per_pass);
            }
        }
    }
    let device = (all - host_bytes) as f64 / gpu.memory;
    let copying = uploaded as f64 / gpu.upload;
    let behind = |(computing, next): (f64, u64)| {
        let ahead = load.ahead.min(next) as f64 / gpu.upload;
        computing - computing.min(ahead)
    };
    let waits: f64 = if uploaded == 0 { 0.0 } else { stretches.list().map(behind).sum() };
    let lanes = vec![
        LaneTime { lane: Lane::Disk, seconds: load.streamed as f64 / hardware.disk },
        LaneTime { lane: Lane::Copy, seconds: copying },
        LaneTime { lane: Lane::Device, seconds: device },
        LaneTime { lane: Lane::Processor, seconds: host },
    ];
    let ends = [lanes[0].seconds, copying + waits, device + host];
    let seconds = ends.into_iter().fold(0.0, f64::max);
    let bottleneck = match ends {
        [disk, ..] if disk >= seconds => Lane::Disk,
        [_, _, chain] if chain >= seconds && host > device => Lane::Processor,
        [_, _, chain] if chain >= seconds => Lane::Device,
        // Copies that wait for the processor.
        _ if waits > copying => Lane::Processor,
        _ => Lane::Copy,
    };
    let margin = if host_bytes > 0 { MARGIN } else { 1.0 };
    Pass { lanes, seconds: seconds * margin, bottleneck, uploaded }
}

/// Layers on the processor that nothing is uploaded between, and what is uploaded next.
#[derive(Debug, Default)]
struct Stretches {
    /// What is uploaded before the first layer on the processor: the pass begins anew after its end.
    first: u64,
    done: Vec<(f64, u64)>,
}

impl Stretches {
    fn host(&mut self, seconds: f64) {
        match self.done.last_mut() {
            Some((host, 0)) => *host += seconds,
            _ => self.done.push((seconds, 0)),
        }
    }

    fn upload(&mut self, bytes: u64) {
        match self.done.last_mut() {
            Some((_, next)) => *next += bytes,
            None => self.first += bytes,
        }
    }

    /// Seconds that the processor computes, and bytes uploaded then.
    fn list(mut self) -> impl Iterator<Item = (f64, u64)> {
        let first = self.first;
        match self.done.as_mut_slice() {
            // Nothing is uploaded between the end of the pass and its first layer on the processor.
            [(begin, _), .., (end, 0)] if first == 0 => {
                *begin += std::mem::take(end);
            }
            [.., (_, next)] => *next += first,
            [] => {}
        }
        self.done.into_iter()
    }
}
