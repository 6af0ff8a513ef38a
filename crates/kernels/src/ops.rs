//! The verbs of a transformer forward. What a model may see of a device.
//!
//! Activations are row-major f32, one row a token. `n` counts tokens. Buffers may be larger than what
//! a verb touches; they must not be smaller. Every verb checks its sizes and refuses with
//! [`Error::Shape`](crate::Error::Shape) instead of touching memory it should not.

use crate::{Memory, Result};
use airllm_format::NumFormat;

/// Some whole rows of a weight matrix `[rows, cols]`, packed as `format` says.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<V> {
    /// `rows * format.row_bytes(cols)` bytes.
    pub data: V,
    /// How each row is packed.
    pub format: NumFormat,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}

/// Where a multiply puts its result: columns `first..first + rows` of rows that are `stride` wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// Width of a full output row, in numbers.
    pub stride: usize,
    /// The column that the first row of the matrix goes to.
    pub first: usize,
}

/// Which rows of activations a product takes, and what their tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens {
    /// The first row, of the operand and of the result.
    pub first: usize,
    /// Rows.
    pub n: usize,
    /// What the tokens are.
    pub regime: Regime,
}

impl Tokens {
    /// The first `n` rows, in the fixed order of sums.
    pub const fn few(n: usize) -> Self {
        Self { first: 0, n, regime: Regime::Token }
    }

    /// The row behind the last.
    pub const fn end(self) -> usize {
        self.first.saturating_add(self.n)
    }
}

/// How a device may multiply. Chosen by what a token is, never by how many there are or what a plan says: so
/// the same tokens get the same bits under every plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Regime {
    /// Generated tokens, and whatever else must not be rounded noticeably: f32 activations, products summed in f32 in one
    /// fixed order, or what [`Ops::in_integers`] allows.
    #[default]
    Token,
    /// Tokens of a prompt: a device may use its matrix units, which have an order of sums of their own, and round
    /// activations to two parts or to f16 for them, within the bounds of
    /// [`conformance::prompt_bound`](crate::conformance::prompt_bound).
    Prompt,
}

/// How rotary position embedding pairs the elements of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Element `i` turns with element `i + rotary/2` (Llama, Qwen, Mistral; "rotate half", NeoX).
    Half,
    /// Element `2i` turns with element `2i + 1` (ChatGLM, GLM, GPT-J).
    Interleaved,
}

/// Shape of a rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rope {
    /// Tokens.
    pub n: usize,
    /// Heads in a row of `x`.
    pub heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
    /// How many of the head's first numbers turn; even, at most `head_dim`.
    pub rotary: usize,
    /// Which elements form a pair.
    pub kind: RopeKind,
}

/// How numbers are stored in a cache of keys or values.
///
/// A cache is `[position][head]`, and a head a row of numbers: `4 · dim` bytes, `2 · dim`, or a row of the weight format
/// `q8`, each 64 numbers with a scale of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvFormat {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to half precision. Numbers from 65520 on become infinite.
    F16,
    /// Eight bits and a scale, as `airllm_quant::pack_row` makes them of [`NumFormat::Q8`]. Where one of 64 numbers is
    /// infinite, NaN, or so large that the scale is no half, all of them read as NaN.
    Q8,
    /// Four bits and a scale for each 32 numbers, in 18 bytes, as `airllm_quant::pack_row` makes them of
    /// [`NumFormat::Q4_0`]: the scale as f16, then byte `j` with the code of number `j` in its low and that of number
    /// `16 + j` in its high half; a number is the scale times its code less 8. What a head lacks of 32 numbers is code 8.
    /// Where one of 32 numbers is infinite, NaN, or so large that the scale is no half, all of them read as NaN.
    Q4,
}

impl KvFormat {
    /// Every one, the most bits first.
    pub const ALL: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8, KvFormat::Q4];

    /// The format of a head, as a row of weights has it.
    pub const fn format(self) -> NumFormat {
        match self {
            Self::F32 => NumFormat::F32,
            Self::F16 => NumFormat::F16,
            Self::Q8 => NumFormat::Q8,
            Self::Q4 => NumFormat::Q4_0,
        }
    }

    /// Bytes of a head of `dim` numbers, at most `usize::MAX`.
    pub fn head_bytes(self, dim: usize) -> usize {
        // Beyond this the format's own arithmetic could wrap.
        if dim > usize::MAX / 64 { usize::MAX } else { self.format().row_bytes(dim) }
    }

    /// `"f32"`, `"f16"`, `"q8"` or `"q4"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for KvFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| format!("a cache of keys and values is f32, f16, q8 or q4, not {name:?}"))
    }
}

/// The heads of a row of a cache, for [`Ops::store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads in a row.
    pub heads: usize,
    /// Numbers in a head.
    pub dim: usize,
    /// How the cache stores them.
    pub cache: KvFormat,
}

impl Heads {
    /// Numbers in a row.
    pub const fn width(self) -> usize {
        self.heads.saturating_mul(self.dim)
    }

    /// Bytes of a row of the cache, at most `usize::MAX`.
    pub fn row_bytes(self) -> usize {
        if self.dim == 0 { 0 } else { self.heads.saturating_mul(self.cache.head_bytes(self.dim)) }
    }
}

/// Shape of causal grouped-query attention over one sequence's cache.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Attend {
    /// The row of `q` and `out` that holds the first query.
    pub first: usize,
    /// Queries.
    pub n: usize,
    /// Position of the first query; query `i` sees no cache row after `start + i`.
    pub start: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers in a head of queries and keys.
    pub head_dim: usize,
    /// Numbers in a head of values and of the result.
    pub value_dim: usize,
    /// Products of query and key are multiplied by this.
    pub scale: f32,
    /// Where above 0, a score `s` becomes `softcap · tanh(s / softcap)` (Gemma 2).
    pub softcap: f32,
    /// Where above 0, the query at position `p` sees only rows from `p + 1 - window` on (Mistral).
    pub window: usize,
    /// Whether scores get `slope · (j - p)`, `j` being the row, `p` the query's position, and the slope
    /// that of [`alibi_slope`].
    pub alibi: bool,
    /// What the queries' tokens are.
    pub regime: Regime,
    /// How keys and values are stored.
    pub cache: KvFormat,
}

/// The slope of a head in ALiBi: `2^(-8(h+1)/m)` for the first `m` heads, `m` being the largest power of
/// two up to `heads`; the others take every second slope of twice as many heads.
///
/// Press et al., "Train Short, Test Long", 2022, with the interpolation of its reference code.
pub fn alibi_slope(head: usize, heads: usize) -> f32 {
    let whole = if heads == 0 { 1 } else { 1usize << heads.ilog2() };
    let exponent = if head < whole {
        -8.0 * (head + 1) as f64 / whole as f64
    } else {
        -4.0 * (2 * (head - whole) + 1) as f64 / whole as f64
    };
    exponent.exp2() as f32
}

/// The function on the gate of a gated feed-forward block (Shazeer, "GLU Variants", 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// `x / (1 + e^-x)`: SwiGLU.
    #[default]
    Silu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: GeGLU in its usual approximation.
    GeluTanh,
}

/// Equal columns of two row-major arrays, for [`Ops::place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Rows written.
    pub rows: usize,
    /// So many rows in a row are written from the same row.
    pub repeat: usize,
    /// Columns copied.
    pub width: usize,
    /// Where they lie in rows of `x`.
    pub from: Columns,
    /// Where they go in rows of `y`.
    pub to: Columns,
}

/// The verbs. A device implements each of them; there is no default that fails at run time.
///
/// Results are a function of the operands and of the [`Regime`] alone: the same numbers come out, bit for bit,
/// however the rows of a matrix were cut into calls, however many tokens share a call and however many threads work.
pub trait Ops: Memory {
    /// Widens packed rows to f32: `y[rows, cols]`. The embedding lookup, after its rows were fetched.
    fn decode(&self, rows: Matrix<Self::View<'_>>, y: &mut Self::Buf) -> Result<()>;

    /// `y[t, out.first + r] = Σ_c x[t, c] · w[r, c]` for the rows `t` of `tokens`; `x` is `[_, cols]`.
    fn matmul(
        &self,
        w: Matrix<Self::View<'_>>,
        x: &Self::Buf,
        tokens: Tokens,
        y: &mut Self::Buf,
        out: Columns,
    ) -> Result<()>;

    /// Whether [`matmul`](Ops::matmul) with weights in `format` rounds activations, in both regimes, to 16 bits under the
    /// largest magnitude of 32 columns, so that products are sums of integers.
    fn in_integers(&self, _format: NumFormat) -> bool {
        false
    }

    /// How caches may be stored for [`store`](Ops::store) and [`attend`](Ops::attend), which refuse others.
    fn caches(&self) -> &'static [KvFormat] {
        &KvFormat::ALL
    }

    /// `y[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight`; `weight` is `dim` f32.
    ///
    /// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    fn rms_norm(
        &self,
        x: &Self::Buf,
        weight: Self::View<'_>,
        eps: f32,
        n: usize,
        dim: usize,
        y: &mut Self::Buf,
    ) -> Result<()>;

    /// As [`rms_norm`](Ops::rms_norm), in place: `x` is `[rows, dim]`, each row normalised by itself. The
    /// norm of single heads.
    fn rms_norm_rows(
        &self,
        x: &mut Self::Buf,
        weight: Self::View<'_>,
        eps: f32,
        rows: usize,
        dim: usize,
    ) -> Result<()>;

    /// `y[t, i] += bias[i]`; `bias` is `dim` f32, `y` is `[n, dim]`.
    fn add_bias(&self, y: &mut Self::Buf, bias: Self::View<'_>, n: usize, dim: usize) -> Result<()>;

    /// `y[i] += x[i]` for `i < len`.
    fn add(&self, y: &mut Self::Buf, x: &Self::Buf, len: usize) -> Result<()>;

    /// `gate[i] = f(gate[i]) · up[i]` for `i < len`.
    fn gated(&self, gate: &mut Self::Buf, up: &Self::Buf, len: usize, f: Activation) -> Result<()>;

    /// `y[t, c] = x[t, order[c]]`: columns in another order, for matrices whose columns were put so. `order` is
    /// `dim` f32 that are whole numbers below `dim`; of others the result is undefined, but no memory beyond
    /// the buffers is touched.
    fn reorder(
        &self,
        x: &Self::Buf,
        order: Self::View<'_>,
        n: usize,
        dim: usize,
        y: &mut Self::Buf,
    ) -> Result<()>;

    /// `y[t, i] *= factors[t]` for rows of `dim` numbers, as many as there are factors.
    fn scale_rows(&self, y: &mut Self::Buf, factors: &[f32], dim: usize) -> Result<()>;

    /// `y[rows[i]] += factors[i] · x[i]` for rows of `dim` numbers, in the order of `i`.
    fn scatter_add(
        &self,
        x: &Self::Buf,
        rows: &[u32],
        factors: &[f32],
        dim: usize,
        y: &mut Self::Buf,
    ) -> Result<()>;

    /// Copies columns: `y[r, to.first + c] = x[r / repeat, from.first + c]` for `r < rows`, `c < width`.
    fn place(&self, x: &Self::Buf, y: &mut Self::Buf, shape: Place) -> Result<()>;

    /// Turns each pair of `x[n, heads, head_dim]` by its angle (RoFormer; Su et al. 2021).
    ///
    /// `table` is `[n, rotary]`: for each token `rotary/2` cosines, then `rotary/2` sines, any
    /// attention factor already multiplied in.
    fn rope(&self, x: &mut Self::Buf, table: &Self::Buf, shape: Rope) -> Result<()>;

    /// Stores rows `first..first + n` of `x[_, heads, dim]` in rows `at..at + n` of a cache, in the cache's format.
    /// The bits are the same on every device. Bytes that pad a head are left as they are.
    fn store(
        &self,
        x: &Self::Buf,
        first: usize,
        n: usize,
        shape: Heads,
        cache: &mut Self::Buf,
        at: usize,
    ) -> Result<()>;

    /// `out[first + i] = softmax(scale · q[first + i] · Kᵀ) · V` per head over cache rows `0..=start + i`,
    /// scores changed as the shape says.
    ///
    /// `q` is `[_, heads, head_dim]`, `out` `[_, heads, value_dim]`, `k` `[capacity, kv_heads, head_dim]`
    /// and `v` `[capacity, kv_heads, value_dim]`, both as [`store`](Ops::store) stores them. Arithmetic is that of f32
    /// on the stored numbers, within what the regime allows.
    fn attend(
        &self,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
        out: &mut Self::Buf,
        shape: Attend,
    ) -> Result<()>;

    /// `y[i] = x[rows[i]]` for rows of `dim` numbers.
    fn gather(&self, x: &Self::Buf, rows: &[u32], dim: usize, y: &mut Self::Buf) -> Result<()>;

    /// Work declared by every verb since the device was opened.
    fn work(&self) -> Work;
}

/// What verbs declared: bytes of weights and activations touched, and floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read and written.
    pub bytes: u64,
    /// Multiplications and additions.
    pub flops: u64,
    /// Calls.
    pub calls: u64,
}
