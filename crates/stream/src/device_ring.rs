//! Buffers of the device in turn: filled by copies that run ahead, leased one after the other.
//!
//! ```text
//!  free ──send──► ahead (being copied) ──take_next──► leased ──finish──► free, behind the work that reads it
//!                   └───────── the slot of the host is given back when its copy is done ─────────┘
//! ```
//!
//! Nothing here makes the host wait for the device but [`give_back_oldest`](DeviceRing::give_back_oldest): a buffer
//! that is sent for again is filled behind the work that still reads it, which the device sees to.

use crate::arena::device::{Origin, Resident, Retired, Target, Upload, Uploading};
use crate::layout::Layout;
use crate::timeline::{Activity, Event, Timeline};
use crate::{Error, Result};
use airllm_kernels::Memory;
use std::collections::VecDeque;
use std::sync::Arc;

/// What is copied.
#[derive(Debug, Clone, Copy)]
pub struct Cargo {
    /// Its number, in the order of use.
    pub number: u64,
    /// The pass that needs it.
    pub pass: u64,
    /// Index of the stripe.
    pub stripe: usize,
    /// The stripe's unit, for the timeline.
    pub unit: usize,
}

/// A copy that was asked for.
struct Sent<M: Memory, State> {
    cargo: Cargo,
    /// Nanoseconds of the timeline when it was.
    start: u64,
    bytes: u64,
    upload: Upload<M, State>,
}

/// See the module's documentation.
pub struct DeviceRing<M: Memory> {
    free: VecDeque<Target<M>>,
    ahead: VecDeque<Sent<M, Uploading>>,
    leased: Option<Sent<M, Resident>>,
    /// Leases that are over, but whose slots have not been given back.
    retired: VecDeque<Sent<M, Retired>>,
    timeline: Arc<Timeline>,
    /// The line of copies in the timeline.
    lane: usize,
    /// What was copied, and how long the host waited for it.
    pub moved: Moved,
}

/// Counters of copies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    pub bytes: u64,
    pub copies: u64,
    pub wait_ns: u64,
}

impl<M: Memory> DeviceRing<M> {
    /// As many buffers of `bytes` bytes.
    pub fn new(
        device: &Arc<M>,
        buffers: usize,
        bytes: usize,
        timeline: &Arc<Timeline>,
        lane: usize,
    ) -> Result<Self> {
        Ok(Self {
            free: (0..buffers).map(|_| Target::new(device, bytes)).collect::<Result<_>>()?,
            ahead: VecDeque::new(),
            leased: None,
            retired: VecDeque::new(),
            timeline: timeline.clone(),
            lane,
            moved: Moved::default(),
        })
    }

    /// Whether there is a buffer to send to.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// How many are ahead.
    pub fn ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Starts to copy `origin` to `home`, or to the buffer that was given back first.
    pub fn send(
        &mut self,
        cargo: Cargo,
        layout: &Layout,
        origin: Origin,
        home: Option<Target<M>>,
    ) -> Result<()> {
        let Some(target) = home.or_else(|| self.free.pop_front()) else { return Err(Error::Stopped) };
        let start = self.timeline.now();
        let upload = target.upload(origin, layout)?;
        let bytes = layout.copied();
        self.moved.bytes += bytes;
        self.moved.copies += layout.pieces.len() as u64;
        self.ahead.push_back(Sent { cargo, start, bytes, upload });
        Ok(())
    }

    /// What comes next.
    pub fn next(&self) -> Option<Cargo> {
        self.ahead.front().map(|sent| sent.cargo)
    }

    /// Leases what comes next: work from now on follows its copy.
    pub fn lease_next(&mut self) -> Result<()> {
        if let Some(Sent { cargo, start, bytes, upload }) = self.ahead.pop_front() {
            self.leased = Some(Sent { cargo, start, bytes, upload: upload.follow()? });
        }
        Ok(())
    }

    /// The stripe that is leased, and its bytes.
    pub fn leased(&self) -> Option<(usize, &Upload<M, Resident>)> {
        self.leased.as_ref().map(|sent| (sent.cargo.stripe, &sent.upload))
    }

    /// Takes what is leased out of turn, to be kept. Waits for its copy and gives the slot back, to `to`.
    pub fn keep_leased(&mut self, to: impl FnMut(Origin)) -> Result<Option<Upload<M, Resident>>> {
        let Some(mut sent) = self.leased.take() else { return Ok(None) };
        let begun = self.timeline.now();
        let origin = sent.upload.finish()?;
        self.moved.wait_ns += self.timeline.now() - begun;
        record(&self.timeline, self.lane, &sent);
        origin.into_iter().for_each(to);
        Ok(Some(sent.upload))
    }

    /// Ends the lease: the buffer is free behind the work queued so far.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(Sent { cargo, start, bytes, upload }) = self.leased.take() {
            let (target, upload) = upload.retire()?;
            self.free.push_back(target);
            self.retired.push_back(Sent { cargo, start, bytes, upload });
        }
        Ok(())
    }

    /// Gives back the slots of copies that are done, to `to`. Does not wait.
    pub fn give_back(&mut self, mut to: impl FnMut(Origin)) -> Result<()> {
        let (timeline, lane) = (&self.timeline, self.lane);
        while let Some(sent) = self.retired.front_mut() {
            if !done(timeline, lane, sent, &mut to)? {
                return Ok(());
            }
            self.retired.pop_front();
        }
        if let Some(sent) = &mut self.leased
            && !done(timeline, lane, sent, &mut to)?
        {
            return Ok(());
        }
        for sent in &mut self.ahead {
            if !done(timeline, lane, sent, &mut to)? {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the oldest copy from a slot that is to be used again, and gives that slot back, and those of all
    /// copies before. `false` if there is none.
    pub fn give_back_oldest(&mut self, mut to: impl FnMut(Origin)) -> Result<bool> {
        let (timeline, lane) = (&self.timeline, self.lane);
        let begun = timeline.now();
        let mut found = false;
        for sent in &mut self.retired {
            found = found || wait(timeline, lane, sent, &mut to)?;
        }
        if let Some(sent) = &mut self.leased {
            found = found || wait(timeline, lane, sent, &mut to)?;
        }
        for sent in &mut self.ahead {
            found = found || wait(timeline, lane, sent, &mut to)?;
        }
        if found {
            self.moved.wait_ns += self.timeline.now() - begun;
            self.give_back(to)?;
        }
        Ok(found)
    }

    /// Waits for the copies of a stripe whose leases are over, and lets go of its slot.
    pub fn let_go(&mut self, stripe: usize) -> Result<()> {
        if let Some(last) = self.retired.iter().rposition(|sent| sent.cargo.stripe == stripe) {
            for mut sent in self.retired.drain(..=last) {
                sent.upload.finish()?;
                record(&self.timeline, self.lane, &sent);
            }
        }
        Ok(())
    }

    /// Drops what is ahead of a pass, without using it.
    pub fn drop_pass(&mut self, pass: u64) -> Result<()> {
        while self.next().is_some_and(|cargo| cargo.pass == pass) {
            self.lease_next()?;
            self.finish()?;
        }
        Ok(())
    }
}

/// Gives the slot of a copy back if the copy is done. Says whether it is.
fn done<M: Memory, State>(
    timeline: &Timeline,
    lane: usize,
    sent: &mut Sent<M, State>,
    to: &mut impl FnMut(Origin),
) -> Result<bool> {
    if let Some(origin) = sent.upload.finished()? {
        to(origin);
        record(timeline, lane, sent);
    }
    Ok(sent.upload.origin().is_none())
}

/// Waits for a copy if it is made from a slot that is to be used again, and gives that back. Says whether it is.
fn wait<M: Memory, State>(
    timeline: &Timeline,
    lane: usize,
    sent: &mut Sent<M, State>,
    to: &mut impl FnMut(Origin),
) -> Result<bool> {
    let waits = matches!(sent.upload.origin(), Some(Origin::Ring(_)));
    if waits && let Some(origin) = sent.upload.finish()? {
        to(origin);
        record(timeline, lane, sent);
    }
    Ok(waits)
}

fn record<M: Memory, State>(timeline: &Timeline, lane: usize, sent: &Sent<M, State>) {
    let Cargo { pass, unit, .. } = sent.cargo;
    let (activity, start, bytes) = (Activity::Copy, sent.start, sent.bytes);
    timeline.record(Event { lane, activity, pass, unit, start, end: timeline.now(), bytes });
}
