//! How the checkpoint stores a tensor, decided by what its files hold.

use super::affine::Affine;
use super::bnb::{FourBit, Int8};
use super::fp8::Fp8;
use super::part::{Part, TILE};
use super::scheme::Scheme;
use crate::{Error, Result};
use airllm_format::safetensors::Dtype;
use airllm_format::{LayerSource, NumFormat, Repo};
use airllm_model::TensorDecl;
use std::ops::Range;

/// A tensor of the checkpoint, in the layout of the program that wrote it.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    /// Rows as they are: plain numbers, or the blocks of a GGUF file.
    Plain(Part, NumFormat),
    /// Integers with scales and zero points: GPTQ and AWQ.
    Affine(Box<Affine>),
    /// 8-bit floats with scales.
    Fp8(Box<Fp8>),
    /// The order into which the columns of such a matrix are put.
    Order(Box<Affine>),
    /// bitsandbytes, 4 bits.
    FourBit(Box<FourBit>),
    /// bitsandbytes, 8 bits.
    Int8(Box<Int8>),
}

impl Stored {
    /// The narrowest of our formats that holds its weights bit for bit: that of [`rows`](Self::rows).
    pub(crate) fn format(&self) -> NumFormat {
        match self {
            Self::Plain(_, format) => *format,
            Self::Affine(it) => it.format(),
            Self::Order(_) => NumFormat::F32,
            Self::Fp8(_) => NumFormat::F8,
            Self::FourBit(it) => it.format(),
            Self::Int8(_) => NumFormat::I8,
        }
    }

    /// The tensor that has the codes, for messages.
    pub(crate) fn main(&self) -> &Part {
        self.parts()[0]
    }

    /// All tensors of the checkpoint that it is made of, that of the codes first.
    pub(crate) fn parts(&self) -> Vec<&Part> {
        match self {
            Self::Plain(part, _) => vec![part],
            Self::Affine(it) | Self::Order(it) => it.parts(),
            Self::Fp8(it) => it.parts(),
            Self::FourBit(it) => it.parts(),
            Self::Int8(it) => it.parts(),
        }
    }

    /// Fills `out` with rows `rows`, packed in [`format`](Self::format), `cols` weights each. `raw` is room
    /// for what is read on the way.
    pub(crate) fn rows(
        &self,
        files: &dyn LayerSource,
        cols: usize,
        rows: Range<usize>,
        raw: &mut Vec<u8>,
        out: &mut [u8],
    ) -> airllm_format::Result<()> {
        match self {
            Self::Plain(part, format) => part.read(files, (rows.start * format.row_bytes(cols)) as u64, out),
            Self::Affine(it) => it.rows(files, rows, raw, out),
            Self::Order(it) => {
                // Numbers of columns are far below 2^24, up to which f32 has all of them.
                let columns = it.columns().unwrap_or_default();
                for (column, out) in columns.into_iter().zip(out.as_chunks_mut::<4>().0) {
                    *out = (column as f32).to_le_bytes();
                }
                Ok(())
            }
            Self::Fp8(it) => it.rows(files, rows, raw, out),
            Self::FourBit(it) => it.rows(files, rows, raw, out),
            Self::Int8(it) => it.rows(files, rows, raw, out),
        }
    }

    /// Which column of the checkpoint each column of its rows is, where they have another order.
    pub(crate) fn columns(&self) -> Option<Vec<u32>> {
        match self {
            Self::Affine(it) => it.columns(),
            _ => None,
        }
    }

    /// Bytes of memory that its tables take for good.
    pub(crate) fn tables(&self) -> usize {
        match self {
            Self::Affine(it) | Self::Order(it) => it.tables(),
            _ => 0,
        }
    }

    /// Bytes of memory that [`rows`](Self::rows) takes besides `out`, at most.
    pub(crate) fn working(&self, cols: usize) -> usize {
        match self {
            Self::Plain(..) => 0,
            // What is read at once with what of it is not wanted, scales as they are and widened; for one row
            // at least.
            _ => {
                let there: u64 = self.parts().iter().map(|part| part.bytes).sum();
                (4 * TILE).min(2 * there as usize) + 64 * cols
            }
        }
    }
}

/// Finds a declared tensor in the checkpoint, in whatever layout it is there.
///
/// The files decide and not the configuration alone, because no program converts all modules and they
/// differ in how they say which.
///
/// `sorted` says that the columns of its matrix are put into the order of their groups, where they have one.
pub(crate) fn find(
    repo: &Repo,
    scheme: &Scheme,
    unit: &str,
    decl: &TensorDecl,
    sorted: bool,
) -> Result<Stored> {
    let role = format!("the {} of {unit}", decl.name);
    let found = Part::find(repo, &decl.hf);
    let matrix = decl.is_order || !decl.is_vector();
    let module = decl.hf.strip_suffix(".weight").filter(|_| matrix);
    if let Some(module) = module {
        let (rows, cols) = (decl.hf_rows, decl.cols());
        if let Some(part) = &found {
            if let Some(it) = FourBit::find(repo, part, rows, cols)? {
                return Ok(Stored::FourBit(Box::new(it)));
            }
            match part.dtype {
                Dtype::I8 => return Ok(Stored::Int8(Box::new(Int8::find(repo, part, module, rows, cols)?))),
                Dtype::F8E4M3 => {
                    return Ok(Stored::Fp8(Box::new(Fp8::find(repo, scheme, part.clone(), rows, cols)?)));
                }
                _ => {}
            }
        } else if let Some(codes) = Part::find(repo, &format!("{module}.qweight")) {
            // The declaration of an order does not say how many rows its matrix has.
            let rows = if decl.is_order { codes.shape.last().copied().unwrap_or(0) } else { rows };
            let it = Affine::find(repo, scheme, codes, module, (rows, cols), sorted)?;
            match (decl.is_order, it.columns()) {
                (false, _) => return Ok(Stored::Affine(Box::new(it))),
                (true, Some(_)) => return Ok(Stored::Order(Box::new(it))),
                (true, None) => {}
            }
        }
    }
    let Some(part) = found else {
        let dir = repo.dir().display();
        let what = format!(
            "{dir}: tensor `{}` is missing: {role}, {:?}, was expected among the {} tensors there",
            decl.hf,
            decl.shape,
            repo.tensors().len()
        );
        return Err(Error::Input { what });
    };
    let expected = match decl.is_vector() {
        true => vec![decl.hf_rows],
        false => vec![decl.hf_rows, decl.cols()],
    };
    if part.shape != expected {
        let what =
            format!("has shape {:?}, {role} was expected to be {expected:?} by config.json", part.shape);
        return Err(part.refuse(what));
    }
    match part.dtype.format() {
        Some(format) => {
            let (rows, cols) = if decl.is_vector() { (1, decl.hf_rows) } else { (decl.hf_rows, decl.cols()) };
            let bytes = (rows * format.row_bytes(cols)) as u64;
            if part.bytes != bytes {
                return Err(part.refuse(format!("has {} bytes, expected {bytes} of {format}", part.bytes)));
            }
            Ok(Stored::Plain(part, format))
        }
        None => {
            let what = format!("is stored as {}, {role} was expected as F32, F16 or BF16", part.dtype);
            Err(part.refuse(what))
        }
    }
}

/// Widens numbers of a plain tensor.
pub(super) fn floats(part: &Part, bytes: &[u8]) -> airllm_format::Result<Vec<f32>> {
    let format = part.dtype.format().unwrap_or(NumFormat::F32);
    let mut numbers = vec![0.0; bytes.len() / format.row_bytes(1)];
    airllm_quant::unpack_row(format, bytes, &mut numbers).map_err(|error| part.wrong(error))?;
    Ok(numbers)
}

/// Eight 4-bit codes, lowest bits first, as the bytes of a number, lowest first.
pub(super) fn spread(word: [u8; 4]) -> u64 {
    let x = u64::from(u32::from_le_bytes(word));
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

/// The 4-bit codes of 32 weights, lowest bits first, as rows of our formats have them: byte `j` holds the
/// codes `j` and `16 + j`.
pub(super) fn interleave([a, b, c, d]: [[u8; 4]; 4]) -> [u8; 16] {
    let first = (spread(a) | spread(c) << 4).to_le_bytes();
    let second = (spread(b) | spread(d) << 4).to_le_bytes();
    std::array::from_fn(|j| if j < 8 { first[j] } else { second[j - 8] })
}
