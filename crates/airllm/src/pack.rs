//! Making the rows of shards and handing them to their writers, in blocks.
//!
//! Several threads each make every so-manieth block, from reading to packing, and hand them over in turn;
//! memory is a few blocks a thread, however large a tensor is.

use crate::lift::{Scratch, ShardPlan, TensorPlan, UnitPlan};
use crate::progress::Meter;
use crate::{Cancel, Error, Result};
use airllm_format::Repo;
use airllm_format::shard::ShardWriter;
use airllm_quant::unpack_row;
use std::ops::Range;
use std::sync::mpsc::{channel, sync_channel};

/// How shards are made.
pub(crate) struct Packer<'a> {
    pub(crate) repo: &'a Repo,
    /// Threads that make rows, one less than there are: one more keeps the disk busy meanwhile.
    pub(crate) threads: usize,
    /// Bytes of a block; a single longer row is a block of its own.
    pub(crate) block: usize,
    pub(crate) cancel: &'a Cancel,
}

/// Reads every weight of some units and refuses what is no number, naming its place.
pub(crate) fn check_numbers(
    repo: &Repo,
    units: &[UnitPlan],
    cancel: &Cancel,
    meter: &mut Meter<'_>,
) -> Result<()> {
    let total = units.iter().flat_map(|u| &u.tensors).map(TensorPlan::bytes).sum();
    let (mut done, mut bytes, mut scratch) = (0, Vec::new(), Scratch::default());
    for unit in units {
        for (tensor, rows) in blocks(&unit.tensors, 8 << 20) {
            cancel.check()?;
            let plan = &unit.tensors[tensor];
            let (size, cols) = (plan.row_bytes(), plan.decl.cols());
            bytes.resize(rows.len() * size, 0);
            plan.rows(repo.source(), rows.clone(), &mut scratch, &mut bytes)?;
            let mut weights = vec![0.0f32; cols];
            for (row, packed) in rows.clone().zip(bytes.chunks_exact(size)) {
                unpack_row(plan.to, packed, &mut weights).map_err(|error| plan.bad_row(row, error))?;
                if let Some(col) = weights.iter().position(|w| !w.is_finite()) {
                    let what = format!("weight {col} is {}, a number was expected", weights[col]);
                    return Err(plan.bad_row(row, what).into());
                }
            }
            done += bytes.len() as u64;
            meter.set(&unit.name, done, total, 0);
        }
    }
    Ok(())
}

/// All blocks of some tensors, in order: the tensor's index and its rows.
fn blocks(tensors: &[TensorPlan], block: usize) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
    tensors.iter().enumerate().flat_map(move |(tensor, plan)| {
        let rows = plan.decl.rows();
        let step = (block / plan.row_bytes().max(1)).max(1);
        (0..rows).step_by(step).map(move |from| (tensor, from..(from + step).min(rows)))
    })
}

impl Packer<'_> {
    /// Makes and writes all tensors of a shard.
    pub(crate) fn shard(
        &self,
        shard: &ShardPlan,
        writer: &mut ShardWriter,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let makers = self.threads.max(1) + 1;
        std::thread::scope(|scope| {
            let mut lanes = Vec::with_capacity(makers);
            for maker in 0..makers {
                // A block waits while the next one is made; a maker that is two ahead waits itself.
                let (send, made) = sync_channel::<Result<Vec<u8>>>(0);
                let (give_back, spare) = channel::<Vec<u8>>();
                let make = move || {
                    let mut scratch = Scratch::default();
                    for (tensor, rows) in blocks(&shard.tensors, self.block).skip(maker).step_by(makers) {
                        let plan = &shard.tensors[tensor];
                        let mut bytes = spare.try_recv().unwrap_or_default();
                        bytes.resize(rows.len() * plan.row_bytes(), 0);
                        let done = plan.rows(self.repo.source(), rows, &mut scratch, &mut bytes);
                        let failed = done.is_err();
                        // A send fails when the other side has met an error and left.
                        if send.send(done.map(|()| bytes).map_err(Error::from)).is_err() || failed {
                            return;
                        }
                    }
                };
                let thread = std::thread::Builder::new().name(format!("airllm-prepare-{maker}"));
                thread.spawn_scoped(scope, make).map_err(|source| Error::Io {
                    path: shard.file.clone().into(),
                    doing: "starting a thread",
                    source,
                })?;
                lanes.push((made, give_back));
            }
            for (number, (tensor, rows)) in blocks(&shard.tensors, self.block).enumerate() {
                self.cancel.check()?;
                let (made, give_back) = &lanes[number % makers];
                // A maker that is gone without a word has panicked.
                let bytes = made.recv().unwrap_or(Err(Error::Poisoned))?;
                writer.write(&bytes)?;
                meter.add(&shard.name, bytes.len() as u64);
                // The maker may be done already; then the buffer is dropped.
                let _ = give_back.send(bytes);
                let plan = &shard.tensors[tensor];
                if rows.end == plan.decl.rows() {
                    plan.forget(self.repo);
                }
            }
            Ok(())
        })
    }

    /// The block size with which `threads` threads stay within `memory` bytes, about.
    pub(crate) fn block_within(memory: u64, threads: usize) -> usize {
        // Each maker has a block at hand and one that comes back; what is made of larger rows takes some
        // more.
        let makers = threads.max(1) as u64 + 1;
        usize::try_from(memory / (3 * makers)).unwrap_or(usize::MAX).clamp(64 << 10, 8 << 20)
    }
}
