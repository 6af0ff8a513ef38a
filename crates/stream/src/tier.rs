//! Where units stay.

use crate::cut::LARGEST_STRIPE;
use crate::{Catalog, Error, Options, Result};

/// Where a unit stays, once read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tier {
    /// In memory of the host.
    pub pinned: bool,
    /// In memory of the device.
    pub resident: bool,
    /// It is computed with where it is pinned, beside a device that the others are copied to.
    pub on_host: bool,
}

impl Tier {
    /// Whether it stays anywhere, so that it is read only once.
    pub fn stays(self) -> bool {
        self.pinned || self.resident
    }
}

/// The tiers of all units, by index.
#[derive(Debug, Clone, Copy)]
pub struct Tiers<'a> {
    pinned: &'a [bool],
    /// Only on a device that weights are copied to: which units live there, and which it leaves to the host.
    device: Option<(&'a [bool], &'a [bool])>,
}

impl<'a> Tiers<'a> {
    /// Where a layout puts the units, on a device that weights are copied to or not.
    pub fn of(options: &'a Options, copies: bool) -> Self {
        let device = (&*options.device.resident, &*options.device.on_host);
        Self { pinned: &options.pinned, device: copies.then_some(device) }
    }

    /// Some units pinned, others streamed, and nothing copied.
    #[cfg(all(test, not(feature = "loom")))]
    pub fn pinned(pinned: &'a [bool]) -> Self {
        Self { pinned, device: None }
    }

    /// The tier of a unit.
    pub fn get(self, unit: usize) -> Tier {
        let marked = |units: &[bool]| units.get(unit).copied().unwrap_or(false);
        let (resident, on_host) = self.device.unwrap_or((&[], &[]));
        Tier { pinned: marked(self.pinned), resident: marked(resident), on_host: marked(on_host) }
    }

    /// Bytes of the largest stripe of a tier: what is never in a slot of the ring, nor in a buffer that others use
    /// too, need not fit one.
    pub fn most(self, tier: Tier, slot_bytes: usize) -> usize {
        let alone = tier.pinned && (self.device.is_none() || tier.on_host);
        if alone { slot_bytes.max(LARGEST_STRIPE) } else { slot_bytes }
    }

    /// Refuses tiers that contradict themselves; `host` says whether the device can compute from host memory.
    pub fn check(self, catalog: &Catalog, host: bool) -> Result<()> {
        for (index, unit) in catalog.units.iter().enumerate() {
            let tier = self.get(index);
            let why = match tier {
                Tier { on_host: true, .. } if !host => "to be computed on the host, which this device cannot",
                Tier { on_host: true, pinned: false, .. } => {
                    "to be computed on the host, and not pinned there"
                }
                Tier { on_host: true, resident: true, .. } => "to be computed on the host and on the device",
                Tier { resident: true, .. } if unit.on_demand => "read on demand, and to live on the device",
                _ => continue,
            };
            return Err(Error::Catalog(format!("{} is {why}", unit.name)));
        }
        Ok(())
    }
}
