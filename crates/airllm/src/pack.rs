//! Reading rows of a checkpoint, packing them, and handing them to a shard, in blocks.
//!
//! One thread reads ahead while the others pack; memory is a few blocks, however large a tensor is.

use crate::lift::{TensorPlan, UnitPlan};
use crate::progress::Meter;
use crate::{Cancel, Error, Result};
use airllm_format::Repo;
use airllm_format::shard::ShardWriter;
use airllm_quant::{pack_row, unpack_row};
use std::ops::Range;
use std::sync::mpsc::sync_channel;

/// Blocks that are read and not yet packed, at most. With the one being read and the one being packed
/// there are two more.
const AHEAD: usize = 1;

/// How units are packed.
pub(crate) struct Packer<'a> {
    pub(crate) repo: &'a Repo,
    /// Threads that pack.
    pub(crate) threads: usize,
    /// Bytes of a block as read; a single longer row is a block of its own.
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
    let packer = Packer { repo, threads: 1, block: 8 << 20, cancel };
    let total = units.iter().flat_map(|u| &u.tensors).map(TensorPlan::source_bytes).sum();
    let (mut done, mut bytes) = (0, Vec::new());
    for unit in units {
        for (tensor, rows) in packer.blocks(unit) {
            cancel.check()?;
            let plan = &unit.tensors[tensor];
            packer.read(plan, &rows, &mut bytes)?;
            let cols = plan.decl.cols();
            let mut weights = vec![0.0f32; cols];
            for (row, packed) in rows.clone().zip(bytes.chunks_exact(plan.from.row_bytes(cols))) {
                unpack_row(plan.from, packed, &mut weights)
                    .map_err(|error| packer.bad_row(plan, row, &error))?;
                if let Some(col) = weights.iter().position(|w| !w.is_finite()) {
                    let value = weights[col];
                    return Err(packer.bad_row(
                        plan,
                        row,
                        &format!("weight {col} is {value}, a number was expected"),
                    ));
                }
            }
            done += bytes.len() as u64;
            meter.set(&unit.name, done, total, 0);
        }
    }
    Ok(())
}

struct Block {
    tensor: usize,
    rows: Range<usize>,
    bytes: Vec<u8>,
}

impl Packer<'_> {
    /// Reads, packs and writes all tensors of a unit.
    pub(crate) fn unit(
        &self,
        unit: &UnitPlan,
        writer: &mut ShardWriter,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            let (send, blocks) = sync_channel::<Result<Block>>(AHEAD);
            let (give_back, spare) = std::sync::mpsc::channel::<Vec<u8>>();
            let reader = move || {
                for (tensor, rows) in self.blocks(unit) {
                    let mut bytes = spare.try_recv().unwrap_or_default();
                    let read = self.read(&unit.tensors[tensor], &rows, &mut bytes);
                    let failed = read.is_err();
                    // A send fails when the other side has met an error and left.
                    if send.send(read.map(|()| Block { tensor, rows, bytes })).is_err() || failed {
                        return;
                    }
                }
            };
            let reader =
                std::thread::Builder::new().name("airllm-prepare-read".into()).spawn_scoped(scope, reader);
            reader.map_err(|source| Error::Io {
                path: unit.file.clone().into(),
                doing: "starting a thread",
                source,
            })?;
            let mut packed = Vec::new();
            for block in blocks {
                self.cancel.check()?;
                let block = block?;
                let plan = &unit.tensors[block.tensor];
                if plan.from == plan.to {
                    writer.write(&block.bytes)?;
                    meter.add(&unit.name, block.bytes.len() as u64);
                } else {
                    self.pack(plan, &block, &mut packed)?;
                    writer.write(&packed)?;
                    meter.add(&unit.name, packed.len() as u64);
                }
                if block.rows.end == plan.decl.rows() {
                    self.repo.forget(&plan.decl.hf);
                }
                // The reader may be done already; then the buffer is dropped.
                let _ = give_back.send(block.bytes);
            }
            Ok(())
        })
    }

    /// All blocks of a unit, in order: the tensor's number and its rows.
    fn blocks<'u>(&self, unit: &'u UnitPlan) -> impl Iterator<Item = (usize, Range<usize>)> + 'u {
        let block = self.block;
        unit.tensors.iter().enumerate().flat_map(move |(tensor, plan)| {
            let rows = plan.decl.rows();
            let step = (block / plan.from.row_bytes(plan.decl.cols()).max(1)).max(1);
            (0..rows).step_by(step).map(move |from| (tensor, from..(from + step).min(rows)))
        })
    }

    fn read(&self, plan: &TensorPlan, rows: &Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        let row = plan.from.row_bytes(plan.decl.cols());
        bytes.resize(rows.len() * row, 0);
        let from = (rows.start * row) as u64;
        Ok(self.repo.read(&plan.decl.hf, from..from + bytes.len() as u64, bytes)?)
    }

    /// Packs the rows of a block, each thread some of them.
    fn pack(&self, plan: &TensorPlan, block: &Block, packed: &mut Vec<u8>) -> Result<()> {
        let cols = plan.decl.cols();
        let (from, to) = (plan.from.row_bytes(cols), plan.to.row_bytes(cols));
        packed.resize(block.rows.len() * to, 0);
        let share = block.rows.len().div_ceil(self.threads.max(1)).max(1);
        let some = |rows: &[u8], out: &mut [u8], first: usize| -> Result<()> {
            let mut weights = vec![0.0; cols];
            for (i, (row, out)) in rows.chunks_exact(from).zip(out.chunks_exact_mut(to)).enumerate() {
                let packed =
                    unpack_row(plan.from, row, &mut weights).and_then(|()| pack_row(plan.to, &weights, out));
                packed.map_err(|error| self.bad_row(plan, first + i, &error))?;
            }
            Ok(())
        };
        let parts = block.bytes.chunks(share * from).zip(packed.chunks_mut(share * to));
        let parts = parts.enumerate().map(|(i, (rows, out))| (rows, out, block.rows.start + i * share));
        let mut parts: Vec<_> = parts.collect();
        // The last part is this thread's own.
        let own = parts.pop();
        std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .into_iter()
                .map(|(rows, out, first)| scope.spawn(move || some(rows, out, first)))
                .collect();
            let mut result = own.map_or(Ok(()), |(rows, out, first)| some(rows, out, first));
            for thread in threads {
                result = result.and(thread.join().unwrap_or(Err(Error::Poisoned)));
            }
            result
        })
    }

    fn bad_row(&self, plan: &TensorPlan, row: usize, error: &dyn std::fmt::Display) -> Error {
        let at = self.repo.tensor(&plan.decl.hf).and_then(|t| self.repo.files().get(t.file));
        let path = at.map_or(self.repo.dir(), |p| p.as_path()).display();
        Error::Input { what: format!("{path}: tensor `{}`, row {row}: {error}", plan.decl.hf) }
    }
}
