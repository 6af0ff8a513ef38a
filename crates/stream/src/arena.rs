//! One anonymous mapping in huge pages, cut into slots whose state is their type.
//!
//! `Slot<Free> -> Slot<Filling> -> Slot<Ready> -> Slot<Free>`: only a filling slot can be written, only
//! a ready one read, and a slot is in one place at a time because it cannot be copied. Where weights are
//! copied to a device, [`device`] says how `Slot<Ready>` goes on.

pub mod device;

use crate::sync::Arc;
use crate::{Error, Result};
use airllm_kernels::Memory;
use memmap2::{Advice, MmapMut};
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Slots start on this boundary, which is enough for O_DIRECT everywhere.
pub const ALIGNMENT: usize = 4096;

const HUGE_PAGE: usize = 2 << 20;

/// State of a slot that holds nothing.
#[derive(Debug)]
pub enum Free {}
/// State of a slot that is being written.
#[derive(Debug)]
pub enum Filling {}
/// State of a slot whose bytes are complete.
#[derive(Debug)]
pub enum Ready {}

/// A part of the arena, owned by whoever holds this value.
#[derive(Debug)]
pub struct Slot<State> {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the mapping alive; never used to reach bytes.
    region: Arc<Region>,
    state: PhantomData<State>,
}

// SAFETY: a slot is the only way to its bytes (`carve` hands out disjoint ranges once, and no operation
// copies a slot), so moving it to another thread moves exclusive access with it.
unsafe impl<State> Send for Slot<State> {}
// SAFETY: through a shared slot one can only read (`bytes`); writing needs `&mut Slot<Filling>`.
unsafe impl<State> Sync for Slot<State> {}

struct Region {
    /// What the device knows of the mapping. Dropped before it, which the order of fields sees to.
    _registered: Option<Box<dyn Send + Sync>>,
    /// Unmapped when the last slot is gone.
    _map: MmapMut,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Region")
    }
}

/// Maps memory for slots of the given sizes and cuts it. Sizes are rounded up to [`ALIGNMENT`].
///
/// Pages come from huge pages where the system has them: reads with O_DIRECT then pin few pages, and
/// multiplies miss the TLB less. Memory is touched when a slot is first filled, not here.
pub fn carve(sizes: &[usize]) -> Result<Vec<Slot<Free>>> {
    cut(sizes, false, |_, _| Ok(None))
}

/// The same for slots that are copied to `device`, which is told of them. Devices may touch the memory then.
pub fn carve_for<M: Memory>(device: &M, sizes: &[usize]) -> Result<Vec<Slot<Free>>> {
    carve_at(device, sizes, false)
}

/// The same for slots that are filled again and again: their memory is touched here, so that no read pays for it. The
/// first touch of a page is dear, in a guest above all, where two machines have to find memory for it.
pub fn carve_touched<M: Memory>(device: &M, sizes: &[usize]) -> Result<Vec<Slot<Free>>> {
    carve_at(device, sizes, true)
}

fn carve_at<M: Memory>(device: &M, sizes: &[usize], touch: bool) -> Result<Vec<Slot<Free>>> {
    cut(sizes, touch, |start, bytes| {
        if !device.copies() {
            return Ok(None);
        }
        // SAFETY: `cut` passes a range of its mapping, which stays where it is until the region is dropped, and the
        // region drops the answer first.
        Ok(Some(unsafe { device.register(start, bytes)? }))
    })
}

fn cut(
    sizes: &[usize],
    touch: bool,
    register: impl FnOnce(NonNull<u8>, usize) -> Result<Option<Box<dyn Send + Sync>>>,
) -> Result<Vec<Slot<Free>>> {
    let sizes: Vec<usize> = sizes.iter().map(|size| size.next_multiple_of(ALIGNMENT)).collect();
    let total: usize = sizes.iter().sum();
    if total == 0 {
        return sizes.iter().map(|_| Slot::empty()).collect();
    }
    let mut map = MmapMut::map_anon(total + HUGE_PAGE).map_err(|error| Error::Memory {
        bytes: total,
        what: "slots",
        reason: error.to_string(),
    })?;
    // A refusal (no huge pages in this kernel) costs speed, not correctness.
    let _ = map.advise(Advice::HugePage);
    let base = map.as_mut_ptr();
    let mut offset = base.align_offset(HUGE_PAGE);
    if touch {
        self::touch(&mut map, offset, total);
    }
    // SAFETY: the gap is below HUGE_PAGE, which was added to the mapping's length. A mapping is never at address zero.
    let registered = register(unsafe { NonNull::new_unchecked(base.add(offset)) }, total)?;
    let region = Arc::new(Region { _registered: registered, _map: map });
    let mut slots = Vec::with_capacity(sizes.len());
    for len in sizes {
        // SAFETY: `offset + len` stays within the mapping: the alignment gap is below HUGE_PAGE, which was
        // added to its length, and the lens sum to `total`. A mapping is never at address zero.
        let start = unsafe { NonNull::new_unchecked(base.add(offset)) };
        slots.push(Slot { start, len, region: region.clone(), state: PhantomData });
        offset += len;
    }
    Ok(slots)
}

/// Lets the system find pages for a part of a mapping now.
fn touch(map: &mut MmapMut, offset: usize, len: usize) {
    // Where the call is refused, or unknown (before Linux 5.14), by hand.
    #[cfg(target_os = "linux")]
    if map.advise_range(Advice::PopulateWrite, offset, len).is_ok() {
        return;
    }
    map[offset..offset + len].iter_mut().step_by(ALIGNMENT).for_each(|byte| *byte = 0);
}

impl<State> Slot<State> {
    fn become_state<Next>(self) -> Slot<Next> {
        Slot { start: self.start, len: self.len, region: self.region, state: PhantomData }
    }
}

impl Slot<Free> {
    fn empty() -> Result<Self> {
        let map = MmapMut::map_anon(1).map_err(|error| Error::Memory {
            bytes: 0,
            what: "slots",
            reason: error.to_string(),
        })?;
        Ok(Self {
            start: NonNull::dangling(),
            len: 0,
            region: Arc::new(Region { _registered: None, _map: map }),
            state: PhantomData,
        })
    }

    /// Begins writing.
    pub fn fill(self) -> Slot<Filling> {
        self.become_state()
    }
}

impl Slot<Filling> {
    /// The slot's bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range lies in the mapping kept alive by `region`, is initialised (anonymous pages
        // read as zeros), belongs to this slot alone, and `&mut self` excludes any other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Ends writing.
    pub fn ready(self) -> Slot<Ready> {
        self.become_state()
    }

    /// Gives up writing.
    pub fn discard(self) -> Slot<Free> {
        self.become_state()
    }
}

impl Slot<Ready> {
    /// The slot's bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`; nobody can write while the slot is `Ready`, because writing needs a
        // `Slot<Filling>` of the same range and this value is the only slot of that range.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Gives the bytes up.
    pub fn release(self) -> Slot<Free> {
        self.become_state()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_disjoint_and_survive_each_other() {
        let mut slots: Vec<_> = carve(&[1, 4096, 5000, 0]).unwrap().into_iter().map(Slot::fill).collect();
        let sizes: Vec<_> = slots.iter_mut().map(|slot| slot.bytes_mut().len()).collect();
        assert_eq!(sizes, [4096, 4096, 8192, 0]);
        for (value, slot) in slots.iter_mut().enumerate() {
            let bytes = slot.bytes_mut();
            assert_eq!(bytes.as_ptr().align_offset(ALIGNMENT), 0);
            bytes.fill(value as u8 + 1);
        }
        let last = slots.remove(2).ready();
        let first = slots.remove(0).ready();
        assert!(first.bytes().iter().all(|&b| b == 1));
        drop((first, slots));
        assert!(last.bytes().iter().all(|&b| b == 3));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touched_slots_are_in_memory_before_they_are_filled() {
        /// Bytes in memory of the mapping that holds an address.
        fn resident(address: usize) -> usize {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let (mut here, mut found) = (false, 0);
            for line in maps.lines() {
                if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-'))
                    && let (Ok(from), Ok(to)) =
                        (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
                {
                    here = (from..to).contains(&address);
                } else if let Some(kb) = line.strip_prefix("Rss:").filter(|_| here) {
                    found = kb.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024;
                }
            }
            found
        }
        let device = airllm_kernels::Cpu::new(1);
        const SIZE: usize = 64 << 20;
        let mut cold = carve_for(&device, &[SIZE]).unwrap().remove(0).fill();
        let mut warm = carve_touched(&device, &[SIZE]).unwrap().remove(0).fill();
        // Mappings may be merged with their neighbours, so of one only the least is known, of two the most.
        let (cold, warm) = (cold.bytes_mut().as_ptr().addr(), warm.bytes_mut().as_ptr().addr());
        assert!(resident(warm) >= SIZE, "{} of {SIZE} bytes are there", resident(warm));
        assert!(resident(cold) < 2 * SIZE, "{} bytes are there", resident(cold));
        let mut map = MmapMut::map_anon(1 << 20).unwrap();
        map.fill(1);
        touch(&mut map, 0, 1 << 20);
    }

    #[test]
    fn nothing_to_carve() {
        assert!(carve(&[]).unwrap().is_empty());
        assert_eq!(carve(&[0, 0]).unwrap().len(), 2);
    }
}
