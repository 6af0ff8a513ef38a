//! Where a lease finds its bytes: in slots of the host, or in buffers of the device.

mod device;
mod host;

use crate::Result;
use crate::cut::Part;
use crate::device_ring::Moved;
use crate::intake::Intake;
use airllm_kernels::Memory;
pub use device::DeviceFeed;
pub use host::{HostFeed, on_host};

/// What stands between the host ring and a lease. Stripes are leased in the order of the pass, one at a time.
pub trait Feed<M: Memory>: Send {
    /// Makes sure that a stripe is at hand, which is leased from now on; waits for it.
    fn reach(&mut self, stripe: usize, intake: &mut Intake) -> Result<()>;

    /// The first `bytes` bytes of a part of the stripe that was reached, where the device can read them.
    fn view<'a>(&'a self, part: Place, bytes: usize, intake: &'a Intake) -> Result<M::View<'a>>;

    /// Copies a row of a tensor that lies on the device alone to the host. `false` if it does not lie there.
    fn read(&self, part: Place, skip: usize, out: &mut [u8]) -> Result<bool>;

    /// Ends the lease.
    fn finish(&mut self) -> Result<()>;

    /// Does what can be done without waiting, so that later stripes are at hand sooner.
    fn run_ahead(&mut self, intake: &mut Intake) -> Result<()>;

    /// The stripe that comes next, if it is of this pass, and not of those that stay.
    fn next_of(&self, pass: u64, intake: &Intake) -> Option<usize>;

    /// Whether nothing of a pass was leased but stripes that stay.
    fn untouched(&self, pass: u64, intake: &Intake) -> bool;

    /// Passes over what is left of a pass. Not of the first one.
    fn drop_pass(&mut self, pass: u64, intake: &mut Intake) -> Result<()>;

    /// What was copied, and how long the host waited for the device.
    fn moved(&self) -> Moved;
}

/// A part of a stripe.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The stripe.
    pub stripe: usize,
    /// Index of the part in it.
    pub index: usize,
    /// The part.
    pub part: Part,
}
