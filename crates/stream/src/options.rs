//! How a pipeline is laid out, and what it says of itself.

use crate::{Plan, Timeline};
use std::sync::Arc;

/// How a pipeline is laid out; see [`plan`](crate::plan::plan), which chooses this.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which units stay in memory, by index; missing ones are streamed.
    pub pinned: Vec<bool>,
    /// Slots of the ring.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
    /// Reader threads.
    pub readers: usize,
    /// Memory for units that are read on demand and not pinned.
    pub experts: ExpertCache,
    /// What is where on a device that weights are copied to.
    pub device: OnDevice,
    /// Where lanes record what they do.
    pub timeline: Arc<Timeline>,
}

/// The device's side of the layout. Without meaning where the device computes from host memory.
///
/// Beside the units that live there, a device holds [`slots`](Self::slots) buffers, each as large as the largest
/// stripe that passes through them: at most [`Options::slot_bytes`], and 256 bytes more for each tensor in a
/// stripe where a file does not start its tensors at multiples of 16. Where units are read on demand there are two
/// more, for stripes of at most [`ExpertCache::slot_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OnDevice {
    /// Buffers of the device ring. One works; with two, one is copied to while the other is computed with.
    pub slots: usize,
    /// Which units live on the device, by index; missing ones do not. They are read and copied in the first pass,
    /// and need no memory of the host after it, unless they are pinned too. Tensors that no pass streams are not
    /// concerned; units that are read on demand cannot live there.
    pub resident: Vec<bool>,
    /// Which units the device computes with from host memory, by index; missing ones are copied. They must be
    /// pinned, and the device must be able to.
    pub on_host: Vec<bool>,
}

impl Default for OnDevice {
    /// Two buffers; all that passes is copied.
    fn default() -> Self {
        Self { slots: 2, resident: Vec::new(), on_host: Vec::new() }
    }
}

/// Memory for stripes that are read on demand: what is in use, what is read next, and what was used before
/// and stays for as long as the [`Policy`](crate::Policy) says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExpertCache {
    /// How many slots. One works; with two, one is read while the other is computed with. A unit that needs
    /// more than there are flows through them.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
}

impl Options {
    /// The layout that a plan chose.
    pub fn of(plan: &Plan, timeline: Arc<Timeline>) -> Self {
        Self {
            pinned: plan.pinned.clone(),
            slots: plan.slots,
            slot_bytes: plan.slot_bytes,
            readers: plan.readers,
            experts: plan.experts,
            device: OnDevice {
                slots: plan.device_slots,
                resident: plan.resident.clone(),
                on_host: plan.on_host.clone(),
            },
            timeline,
        }
    }
}

/// What has been moved so far. Deterministic but for the times.
///
/// A device that computes asynchronously works while the host goes on: times are what the host saw, so
/// `compute_ns` is then the time it took to queue work, not to do it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Bytes asked of the source.
    pub bytes_read: u64,
    /// Reads issued.
    pub reads: u64,
    /// Reads repeated after an error.
    pub retries: u64,
    /// Bytes of weights leased to the computation.
    pub bytes_leased: u64,
    /// Whole passes leased.
    pub passes: u64,
    /// Nanoseconds spent in reads, summed over readers.
    pub read_ns: u64,
    /// Nanoseconds the consumer waited for stripes.
    pub wait_ns: u64,
    /// Nanoseconds the consumer spent on leases.
    pub compute_ns: u64,
    /// The part of `bytes_leased` that was of units read on demand.
    pub demand_bytes: u64,
    /// Stripes of such units that were leased and did not have to be read for it.
    pub demand_hits: u64,
    /// Those that did.
    pub demand_misses: u64,
    /// The part of `bytes_read` that was read for that, requests that came to nothing included.
    pub demand_read: u64,
    /// Bytes of stripes whose copy to the device was asked for, what runs ahead included.
    pub bytes_uploaded: u64,
    /// Copies asked for: one a stripe, or one a tensor in it where those lie at odd places.
    pub uploads: u64,
    /// Nanoseconds the consumer waited for copies and work of the device, so as to use a slot again.
    pub device_wait_ns: u64,
}
