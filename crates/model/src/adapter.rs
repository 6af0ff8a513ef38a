//! Low-rank additions to matrices (LoRA; Hu et al., 2021), applied beside the weights instead of merged
//! into them.

use crate::arch::Role;
use crate::{Binding, Error, Result};
use airllm_format::NumFormat;
use airllm_kernels::{Columns, Matrix, Memory, Ops, Tokens};
use airllm_stream::TensorId;
use std::collections::HashMap;

/// An addition `b · a` to one matrix of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Index into [`Config::units`](crate::Config::units).
    pub unit: usize,
    /// The matrix.
    pub role: Role,
    /// Columns of `b`, rows of `a`.
    pub rank: usize,
    /// `[rank, cols]`, row-major.
    pub a: Vec<f32>,
    /// `[rows, rank]`, row-major, whatever scales the addition multiplied in.
    pub b: Vec<f32>,
}

/// The additions of a model, on its device.
pub(crate) struct Adapters<M: Memory> {
    parts: HashMap<TensorId, Vec<Part<M>>>,
    /// `[tokens, rank]`.
    low: M::Buf,
    /// `[tokens, rows]`.
    delta: M::Buf,
}

struct Part<M: Memory> {
    a: M::Buf,
    b: M::Buf,
    rank: usize,
    rows: usize,
    cols: usize,
}

/// Bytes that additions take on the device, beside [`activation_bytes`](crate::activation_bytes), in a model
/// for passes of up to `tokens` tokens.
pub fn adapter_bytes(additions: &[LowRank], tokens: usize) -> usize {
    let numbers: usize = additions.iter().map(|part| part.a.len() + part.b.len()).sum();
    let (rank, rows) = widest(additions);
    numbers.saturating_add((rank + rows).saturating_mul(tokens)).saturating_mul(size_of::<f32>())
}

/// The largest rank and the most rows.
fn widest(additions: &[LowRank]) -> (usize, usize) {
    let rows = |part: &LowRank| part.b.len() / part.rank.max(1);
    additions.iter().fold((0, 0), |(rank, most), part| (rank.max(part.rank), most.max(rows(part))))
}

impl<D: Ops> Adapters<D> {
    /// Puts additions on the device; refuses those that fit no matrix of the model.
    pub fn new(device: &D, binding: &Binding, additions: &[LowRank], tokens: usize) -> Result<Self> {
        let upload = |numbers: &[f32]| -> Result<D::Buf> {
            let mut buf = device.alloc(size_of_val(numbers))?;
            device.write(&mut buf, 0, bytemuck::cast_slice(numbers))?;
            Ok(buf)
        };
        let mut parts: HashMap<TensorId, Vec<Part<D>>> = HashMap::new();
        for add in additions {
            let refuse = |what: String| {
                Error::Input(format!("an addition to {} of unit {}: {what}", add.role.name(), add.unit))
            };
            if add.role == Role::Embed {
                return Err(refuse("embeddings are looked up, not multiplied".into()));
            }
            let bound = binding
                .get(add.unit, add.role)
                .ok_or_else(|| refuse("the model has no such matrix".into()))?;
            let (rows, cols, rank) = (bound.rows, bound.cols, add.rank);
            if rank == 0 || add.a.len() != rank * cols || add.b.len() != rows * rank {
                return Err(refuse(format!(
                    "{} and {} numbers of rank {rank} do not fit the matrix [{rows}, {cols}]",
                    add.a.len(),
                    add.b.len()
                )));
            }
            let part = Part { a: upload(&add.a)?, b: upload(&add.b)?, rank, rows, cols };
            parts.entry(bound.id).or_default().push(part);
        }
        let (rank, rows) = widest(additions);
        let alloc = |width: usize| -> Result<D::Buf> {
            let bytes = width.checked_mul(tokens).and_then(|n| n.checked_mul(size_of::<f32>()));
            let bytes = bytes
                .ok_or_else(|| Error::Input(format!("{tokens} tokens are more than any memory holds")))?;
            Ok(device.alloc(bytes)?)
        };
        Ok(Self { parts, low: alloc(rank)?, delta: alloc(rows)? })
    }

    /// `y += x · aᵀ · bᵀ` for all additions to a matrix, for `n` rows.
    pub fn apply(&mut self, device: &D, id: TensorId, n: usize, x: &D::Buf, y: &mut D::Buf) -> Result<()> {
        for part in self.parts.get(&id).into_iter().flatten() {
            part.product(device, n, x, &mut self.low, &mut self.delta)?;
            device.add(y, &self.delta, n * part.rows)?;
        }
        Ok(())
    }

    /// As [`apply`](Self::apply), where the sums are made on the host: `each` is called for each addition,
    /// when `y` holds its product.
    pub fn products(
        &mut self,
        device: &D,
        id: TensorId,
        (n, x, y): (usize, &D::Buf, &mut D::Buf),
        mut each: impl FnMut(&D::Buf) -> Result<()>,
    ) -> Result<()> {
        for part in self.parts.get(&id).into_iter().flatten() {
            part.product(device, n, x, &mut self.low, y)?;
            each(y)?;
        }
        Ok(())
    }
}

impl<D: Ops> Part<D> {
    /// `y = x · aᵀ · bᵀ`.
    fn product(&self, device: &D, n: usize, x: &D::Buf, low: &mut D::Buf, y: &mut D::Buf) -> Result<()> {
        let matrix = |data, rows, cols| Matrix { data, format: NumFormat::F32, rows, cols };
        let all = |stride| Columns { stride, first: 0 };
        let a = device.view(&self.a, 0..device.len(&self.a))?;
        device.matmul(matrix(a, self.rank, self.cols), x, Tokens::few(n), low, all(self.rank))?;
        let b = device.view(&self.b, 0..device.len(&self.b))?;
        Ok(device.matmul(matrix(b, self.rows, self.rank), low, Tokens::few(n), y, all(self.rows))?)
    }
}
