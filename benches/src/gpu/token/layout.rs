//! Where the units of a random model live: the engine's plan, with the engine's sums of what else takes memory.

use crate::quick;
use airllm_kernels::{DeviceMemory, KvFormat, scratch_bytes};
use airllm_model::{Config, activation_bytes, kv_bytes, logits_bytes};
use airllm_stream::{Catalog, Gpu, Hardware, Need, Plan, Request, plan};

/// Bytes of the device besides what is summed up: small buffers, and what is left over at the ends of chunks.
const DEVICE_OVERHEAD: u64 = 8 << 20;
/// Bytes of the host besides weights, ring and logits: what the driver locks for small copies, small buffers.
const HOST_OVERHEAD: u64 = 41 << 20;
/// Whole pages, as drivers give them.
const PAGE: u64 = 2 << 20;
/// Threads that read.
pub(super) const READERS: usize = 4;

/// What a pass has to have room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Most tokens of a pass.
    pub(super) batch: usize,
    /// Most sequences of a pass.
    pub(super) rows: usize,
    /// Tokens of all key/value caches.
    pub(super) cache: usize,
}

/// What may be taken of a device's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// All of it.
    pub(super) bytes: u64,
    /// What the driver takes of that.
    pub(super) overhead: u64,
}

impl From<DeviceMemory> for Budget {
    fn from(memory: DeviceMemory) -> Budget {
        Budget { bytes: memory.budget, overhead: memory.overhead }
    }
}

/// Rates, in bytes a second, that were measured just before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    pub(super) upload: f64,
    pub(super) memory: f64,
    /// `None` where nothing is read from one.
    pub(super) disk: Option<f64>,
}

/// Plans for a device with that budget, and for `ram` bytes of the host; all that the model needs where that is `None`.
///
/// A quick run takes budgets so small that something flows: the least that works and a third of the layers on the device,
/// and where there is a disk the least on the host.
///
/// # Panics
/// Where the budget is too small, with the least that works.
pub(super) fn layout(
    config: &Config,
    catalog: &Catalog,
    room: Room,
    device: Budget,
    rates: Rates,
    ram: Option<u64>,
) -> Plan {
    let (host, fixed) = fixed(config, catalog, room);
    let need = Need::of(catalog, host).with_device(fixed + device.overhead, |_| false);
    let gpu = Gpu { upload: rates.upload, memory: rates.memory };
    // With no layer on the host its memory has nothing to do but to be copied from.
    let hardware =
        Hardware { disk: rates.disk.unwrap_or(rates.memory), memory: rates.memory, gpu: Some(gpu) };
    let mut request = Request {
        ram,
        vram: Some(device.bytes),
        host_layers: Some(0),
        readers: READERS,
        ..Request::default()
    };
    if quick() {
        let least = |request: &Request| plan(&need, &hardware, request).err().map_or(0, |no| no.need);
        let layers: usize = catalog.units.iter().map(airllm_stream::Unit::bytes).sum();
        request.vram = Some(least(&Request { vram: Some(0), ..request }) + layers as u64 / 3);
        if ram.is_some() {
            request.ram = Some(least(&Request { ram: Some(0), ..request }));
        }
    }
    plan(&need, &hardware, &request).unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// Bytes of the host and of the device besides weights and rings, but for what the driver takes.
fn fixed(config: &Config, catalog: &Catalog, room: Room) -> (u64, u64) {
    let embed = catalog.find("embed", "embed").and_then(|id| catalog.get(id));
    let rows = embed.map_or(0, |tensor| tensor.row_bytes() * room.batch);
    let widest = config.hidden.max(config.inner).max(config.query_dim());
    let device = kv_bytes(config, KvFormat::default(), room.cache)
        + activation_bytes(config, room.batch)
        + scratch_bytes(room.batch, widest)
        + 2 * rows;
    let host = logits_bytes(config, room.rows) + rows;
    (host as u64 + HOST_OVERHEAD, device as u64 + DEVICE_OVERHEAD)
}

/// Bytes that the plan takes of the device, to be got in one piece before anything else.
pub(super) fn one_piece(plan: &Plan, device: Budget) -> u64 {
    let most = device.bytes.saturating_sub(device.overhead) / PAGE * PAGE;
    plan.vram.saturating_sub(device.overhead).next_multiple_of(PAGE).min(most)
}

/// How many layers fit `bytes` beside embedding and head, of those there are.
pub(super) fn layers_that_fit(catalog: &Catalog, bytes: u64) -> usize {
    let (layers, rest): (Vec<_>, Vec<_>) =
        catalog.units.iter().partition(|unit| unit.name.starts_with("layer."));
    let mut left = bytes.saturating_sub(rest.iter().map(|unit| unit.bytes() as u64).sum());
    let mut count = 0;
    for layer in layers.iter().map(|unit| unit.bytes() as u64).take_while(|layer| *layer > 0) {
        let Some(less) = left.checked_sub(layer) else { break };
        (left, count) = (less, count + 1);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::random::{Shape, catalog};
    use super::*;
    use airllm_format::NumFormat;

    #[test]
    fn layers_that_there_is_room_for() {
        let catalog = catalog(&Shape::B405.config(), NumFormat::Q4);
        let layer = 1_718_000_000;
        assert_eq!(layers_that_fit(&catalog, 1 << 20), 0);
        assert_eq!(layers_that_fit(&catalog, 4_000_000_000 + 10 * layer), 10);
        assert_eq!(layers_that_fit(&catalog, u64::MAX), 126);
    }

    #[test]
    fn the_budgets_of_the_bars_hold_their_models() {
        let rates = Rates { upload: 25e9, memory: 2e12, disk: Some(3e9) };
        for (shape, vram, room, ram) in [
            (Shape::B70, 4_000_000_000, super::super::ROOM, None),
            (Shape::B70, 4_000_000_000, super::super::ROOM, Some(super::super::RAM)),
            (Shape::B405, 2_000_000_000, super::super::SMALL_ROOM, None),
        ] {
            let config = shape.config();
            let catalog = catalog(&config, NumFormat::Q4);
            let device = Budget { bytes: vram, overhead: 500 << 20 };
            let plan = layout(&config, &catalog, room, device, rates, ram);
            assert!(plan.vram <= vram && plan.uploaded > plan.resident_bytes, "{plan:?}");
            assert_eq!(plan.streamed > 0, ram.is_some(), "{plan:?}");
            assert!(one_piece(&plan, device) + device.overhead <= vram);
        }
    }
}
