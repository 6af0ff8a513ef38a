//! Decides what stays in memory and what streams, and says how fast that will be. Numbers in, numbers out.
//!
//! With a GPU each unit lives in one of four tiers: in the device's memory; in RAM, and uploaded in every pass;
//! in RAM, and computed by the processor beside the device; on disk, and uploaded as it is read. Without one there
//! are two: in RAM, or on disk.

mod beside;
mod device;
mod experts;
mod host;
mod need;
mod prompt;
mod ring;

use crate::ExpertCache;
use beside::{Load, Pass, alone, choose};
use device::OnDevice;
use host::{Elsewhere, Host, Layout, cache_bytes};
use prompt::{prompt, prompt_beside};
use serde::Serialize;

pub use need::{Need, OnDemand, Share, UnitNeed};

#[cfg(all(test, not(feature = "loom")))]
mod tests;

/// Measured rates, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hardware {
    /// Sequential reads of the shards by the fastest method.
    pub disk: f64,
    /// Reads of memory by all compute threads together; the roof of a one-token multiply.
    pub memory: f64,
    /// Those of the GPU that computes, where one does.
    pub gpu: Option<Gpu>,
}

/// Measured rates of a GPU, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gpu {
    /// Copies from page-locked host memory to the device.
    pub upload: f64,
    /// Reads of the device's memory by the device; the roof of its one-token multiply.
    pub memory: f64,
}

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Bytes of host memory for weights, ring, activations and KV cache together; `None` takes what the model needs.
    pub ram: Option<u64>,
    /// Bytes of a GPU's memory for all of it that lives there; `None` takes what the model needs.
    pub vram: Option<u64>,
    /// Layers that the processor computes beside a GPU, of those that are in RAM; `None` lets the plan choose.
    pub host_layers: Option<usize>,
    /// Reader threads.
    pub readers: usize,
    /// Slots of the ring; `None` lets the plan choose.
    pub slots: Option<usize>,
    /// Bytes of a slot; `None` lets the plan choose.
    pub slot_bytes: Option<usize>,
}

impl Default for Request {
    fn default() -> Self {
        Self { ram: None, vram: None, host_layers: None, readers: 2, slots: None, slot_bytes: None }
    }
}

/// Where everything lives, and what that costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Whether a unit stays in host memory, in the order of [`Need::units`].
    pub pinned: Vec<bool>,
    /// Whether a unit stays in a GPU's memory. None that is pinned does.
    pub resident: Vec<bool>,
    /// Whether the processor computes a unit beside a GPU. Each that it does is pinned.
    pub on_host: Vec<bool>,
    /// Slots of the ring; 0 when nothing streams.
    pub slots: usize,
    /// Bytes of a slot. With a GPU no stripe is larger, be it pinned or not.
    pub slot_bytes: usize,
    /// Slots of that size in a GPU's memory that are uploaded to; 0 where all that a pass goes through is there.
    pub device_slots: usize,
    /// Reader threads.
    pub readers: usize,
    /// Memory for units that are read on demand and not pinned.
    pub experts: ExpertCache,
    /// Bytes of that memory.
    pub expert_cache_bytes: u64,
    /// The expected share of a token's on-demand bytes that are in memory, if all are used equally often,
    /// which is the worst case; `None` where nothing is read on demand.
    pub expert_hit_rate: Option<f64>,
    /// Bytes of host memory taken in all.
    pub ram: u64,
    /// Bytes of a GPU's memory taken in all.
    pub vram: u64,
    /// Bytes of weights that every pass multiplies.
    pub bytes_per_pass: u64,
    /// Bytes that every pass reads from disk; of units on demand, what one token is expected to read.
    pub streamed: u64,
    /// Bytes that every pass uploads to a GPU; of units on demand, what one token is expected to use.
    pub uploaded: u64,
    /// Bytes that are read once, and stay in host memory.
    pub pinned_bytes: u64,
    /// Bytes that are read once, and stay in a GPU's memory.
    pub resident_bytes: u64,
    /// What each lane has to do in a pass with one token.
    pub lanes: Vec<LaneTime>,
    /// Expected seconds of a pass with one token: lanes work at the same time, so the slowest one. Layers follow each
    /// other, so those that the processor computes beside a GPU add to the GPU's; and plans with such layers are
    /// counted a tenth slower than their lanes say.
    pub seconds_per_token: f64,
    /// The slowest lane.
    pub bottleneck: Lane,
    /// A pass of a prompt.
    pub prompt: PromptPass,
}

impl Plan {
    /// Expected seconds of a pass with `tokens` tokens, of one sequence or of several: what is read and copied is the same, and
    /// the processor's products take as long as for one token until there are so many that arithmetic counts.
    pub fn seconds_of(&self, tokens: f64) -> f64 {
        let seconds = |lanes: &[LaneTime], name: Lane| {
            lanes.iter().find(|lane| lane.lane == name).map_or(0.0, |lane| lane.seconds)
        };
        let many = seconds(&self.prompt.lanes, Lane::Processor) / self.prompt.tokens.max(1) as f64;
        let more = many * tokens - seconds(&self.lanes, Lane::Processor);
        if self.vram == 0 {
            let disk = if tokens > 1.5 { &self.prompt.lanes } else { &self.lanes };
            return self.seconds_per_token.max(seconds(disk, Lane::Disk)).max(many * tokens);
        }
        // Beside a GPU, layers on the processor add to those on the device.
        self.seconds_per_token + more.max(0.0)
    }
}

/// A pass of many tokens of a prompt, through weights that live where they live for one token: a fixed set of them stays, and
/// which one does not depend on how many tokens there are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptPass {
    /// Its tokens.
    pub tokens: u64,
    /// Bytes that it is expected to read from disk.
    pub streamed: u64,
    /// What each lane has to do. A GPU's arithmetic is not counted.
    pub lanes: Vec<LaneTime>,
    /// Expected seconds: the slowest lane.
    pub seconds: f64,
    /// That lane.
    pub bottleneck: Lane,
}

/// Seconds that one lane is busy in a pass with one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LaneTime {
    /// The lane.
    pub lane: Lane,
    /// Its bytes over its rate; for the processor what was measured of its products.
    pub seconds: f64,
}

/// A lane that can be the bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Reading shards.
    Disk,
    /// Reading weights from memory to multiply them.
    Memory,
    /// Multiplying weights on the processor, where that takes longer than reading them.
    Processor,
    /// Uploading weights to a GPU.
    Copy,
    /// Reading weights from a GPU's memory to multiply them.
    Device,
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Processor => "processor",
            Self::Copy => "copy",
            Self::Device => "GPU",
        })
    }
}

/// A memory that has a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The host's.
    Ram,
    /// A GPU's.
    Vram,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ram => "memory",
            Self::Vram => "GPU memory",
        })
    }
}

/// The budget cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize)]
#[error(
    "the {memory} budget of {have} bytes is too small: {need} bytes are the least that works \
     ({fixed} for activations and KV cache, {ring} for the ring)"
)]
pub struct Refusal {
    /// The memory that is too small.
    pub memory: Memory,
    /// The smallest budget that works, in bytes.
    pub need: u64,
    /// The budget given.
    pub have: u64,
    /// The part of `need` that does not depend on the weights: activations, KV cache, logits.
    pub fixed: u64,
    /// The part of `need` that is the smallest ring, and what units on demand need.
    pub ring: u64,
}

/// With two slots one is read while the other is computed with.
const FEWEST_SLOTS: usize = 2;

/// Plans inside a budget.
///
/// The ring gets a quarter of what activations and KV cache leave, as long as that makes its reads
/// faster; the rest pins whole units, a fixed set, because a cyclic scan defeats any cache that replaces.
/// Units are pinned in an order that does not depend on the budget and spreads every prefix over the
/// pass: more memory never pins less, and the disk lane can read ahead during pinned layers.
///
/// Units that are read on demand have a cache. If routers choose uniformly, one that holds a share of the
/// experts hits that share, so a byte of it saves `top_k / experts` bytes a token, and a byte of a pinned
/// layer saves one. Layers come first therefore, then experts, then tables that are only gathered from;
/// what is left over between two layers goes to the cache, unless fewer layers and more cache read less.
///
/// A GPU's memory is filled first, in the same way and the same order: a ring, then a fixed, evenly spread set of
/// units. RAM then holds units that the GPU's memory does not, and always a ring, through which those come that live
/// in the GPU's. Experts stay in RAM, and those of a token are uploaded. Of the layers in RAM as many are computed by
/// the processor as makes a pass of one token fastest; none, if that does not win a tenth.
pub fn plan(need: &Need, hardware: &Hardware, request: &Request) -> Result<Plan, Refusal> {
    let host = Host::new(need, request);
    let Some(gpu) = hardware.gpu else {
        let layout = host.alone()?;
        let resident = vec![false; need.units.len()];
        let pass = alone(need, hardware, streamed(need, &layout, &resident));
        let prompt = prompt(need, hardware, &layout, &resident);
        return Ok(finish(need, request, layout, Device { resident, ..Device::default() }, pass, prompt));
    };
    let on_device = OnDevice::layout(need, request, host.slot_bytes()?)?;
    let layout = host.beside(&Elsewhere { units: &on_device.resident, slot_bytes: on_device.ring.1 })?;
    let load = Load {
        need,
        pinned: &layout.pinned,
        resident: &on_device.resident,
        streamed: streamed(need, &layout, &on_device.resident),
        ahead: (on_device.ring.0.saturating_sub(1) * on_device.ring.1) as u64,
    };
    let (on_host, pass) = choose(&load, hardware, gpu, request.host_layers);
    let prompt = prompt_beside(&load, hardware, gpu, &layout, &on_host);
    let device = Device {
        vram: on_device.taken(need),
        slots: on_device.ring.0,
        resident: on_device.resident,
        on_host,
    };
    Ok(finish(need, request, layout, device, pass, prompt))
}

/// What a GPU holds and leaves to the processor.
#[derive(Debug, Default)]
struct Device {
    resident: Vec<bool>,
    on_host: Vec<bool>,
    slots: usize,
    vram: u64,
}

/// Bytes that every pass reads from disk.
fn streamed(need: &Need, layout: &Layout, resident: &[bool]) -> u64 {
    let units = need.units.iter().zip(layout.pinned.iter().zip(resident));
    let sum = |on_demand: bool| -> u64 {
        let units = units
            .clone()
            .filter(|(unit, (pin, here))| unit.on_demand.is_some() == on_demand && !**pin && !**here);
        units.map(|(unit, _)| unit.per_pass).sum()
    };
    sum(false) + (sum(true) as f64 * (1.0 - layout.hits)).round() as u64
}

fn finish(
    need: &Need,
    request: &Request,
    layout: Layout,
    device: Device,
    pass: Pass,
    prompt: PromptPass,
) -> Plan {
    let bytes = |marks: &[bool]| -> u64 {
        need.units.iter().zip(marks).filter(|(_, mark)| **mark).map(|(unit, _)| unit.bytes).sum()
    };
    let mut on_host = device.on_host;
    on_host.resize(need.units.len(), false);
    Plan {
        slots: layout.ring.0,
        slot_bytes: layout.ring.1,
        device_slots: device.slots,
        readers: request.readers.max(1),
        experts: layout.experts,
        expert_cache_bytes: cache_bytes(&layout.experts),
        expert_hit_rate: need.units.iter().any(|unit| unit.on_demand.is_some()).then_some(layout.hits),
        ram: layout.taken(need),
        vram: device.vram,
        bytes_per_pass: need.units.iter().map(|unit| unit.per_pass).sum(),
        streamed: streamed(need, &layout, &device.resident),
        uploaded: pass.uploaded,
        pinned_bytes: bytes(&layout.pinned),
        resident_bytes: bytes(&device.resident),
        lanes: pass.lanes,
        seconds_per_token: pass.seconds,
        bottleneck: pass.bottleneck,
        prompt,
        pinned: layout.pinned,
        resident: device.resident,
        on_host,
    }
}
