//! `cargo xtask random-model`: checkpoints too large to commit, for tests and benchmarks.

use airllm_tests::checkpoint::{Checkpoint, Dtype, Shape};
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::time::Instant;

/// What to write. The sizes come from `--shape` or `--size`; single sizes replace parts of them.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to write into; must be empty or absent
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Sizes of a known model
    #[arg(long, value_enum, conflicts_with = "size")]
    shape: Option<Preset>,
    /// Pick sizes so that the weights take at least this much, e.g. 2GB or 512MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Storage of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Format,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// About how many bytes a file holds (files end between tensors)
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "4GB")]
    shard_size: u64,
    /// Width of the residual stream
    #[arg(long)]
    hidden: Option<usize>,
    /// Width inside the MLP
    #[arg(long)]
    intermediate: Option<usize>,
    /// Decoder layers
    #[arg(long)]
    layers: Option<usize>,
    /// Query heads
    #[arg(long)]
    heads: Option<usize>,
    /// Key and value heads
    #[arg(long)]
    kv_heads: Option<usize>,
    /// Numbers a head
    #[arg(long)]
    head_dim: Option<usize>,
    /// Rows of the embedding
    #[arg(long)]
    vocab: Option<usize>,
    /// Longest context that the config declares
    #[arg(long)]
    context: Option<usize>,
    /// Experts of a layer; 0 for one MLP
    #[arg(long, default_value_t = 0)]
    experts: usize,
    /// Experts that a token goes through
    #[arg(long, default_value_t = 2)]
    experts_per_token: usize,
    /// Use the embedding as head
    #[arg(long)]
    tied: bool,
    /// Biases on attention and MLP
    #[arg(long)]
    bias: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Preset {
    /// About 96 thousand weights
    Tiny,
    /// TinyLlama: 1.1 billion weights
    #[value(name = "1.1b")]
    Llama1B,
    /// Llama-2-7B: 6.7 billion weights
    #[value(name = "7b")]
    Llama7B,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Bf16,
    F16,
    F32,
}

/// Writes the checkpoint and says what it holds.
pub fn run(args: &Args) -> Result<()> {
    let out = args.out.display();
    let taken = args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    ensure!(!taken, "{out} is not empty; choose another folder or empty it");
    let dtype = match args.dtype {
        Format::Bf16 => Dtype::Bf16,
        Format::F16 => Dtype::F16,
        Format::F32 => Dtype::F32,
    };
    let shape = args.shape(dtype);
    let bytes = shape.parameters() * dtype.bytes() as u64;
    let shards = usize::try_from(bytes.div_ceil(args.shard_size.max(1)))?;
    let checkpoint = Checkpoint::new(shape).dtype(dtype).seed(args.seed).shards(shards);

    eprintln!("{shape:?}");
    let start = Instant::now();
    let made = checkpoint.write(&args.out).with_context(|| format!("writing {out}"))?;
    let (gb, seconds) = (made.bytes as f64 / 1e9, start.elapsed().as_secs_f64());
    println!(
        "{out}: {} weights, {gb:.3} GB in {} file(s), {seconds:.1} s ({:.2} GB/s)",
        made.parameters,
        made.files.len(),
        gb / seconds,
    );
    Ok(())
}

impl Args {
    fn shape(&self, dtype: Dtype) -> Shape {
        let base = match (self.shape, self.size) {
            (Some(Preset::Llama1B), _) => Shape::LLAMA_1B,
            (Some(Preset::Llama7B), _) => Shape::LLAMA_7B,
            (None, Some(size)) => Shape::of_size(size, dtype),
            (Some(Preset::Tiny) | None, _) => Shape::TINY,
        };
        let hidden = self.hidden.unwrap_or(base.hidden);
        let heads = self.heads.unwrap_or(base.heads);
        // A new width or head count alone keeps the usual rule, heads * head_dim = hidden.
        let same = hidden == base.hidden && heads == base.heads;
        let head_dim = if same { base.head_dim } else { hidden / heads.max(1) };
        Shape {
            hidden,
            intermediate: self.intermediate.unwrap_or(base.intermediate),
            layers: self.layers.unwrap_or(base.layers),
            heads,
            kv_heads: self.kv_heads.unwrap_or(base.kv_heads.min(heads)),
            head_dim: self.head_dim.unwrap_or(head_dim),
            vocab: self.vocab.unwrap_or(base.vocab),
            context: self.context.unwrap_or(base.context),
            tied: self.tied,
            attention_bias: self.bias,
            mlp_bias: self.bias,
            experts: self.experts,
            top_k: self.experts_per_token,
        }
    }
}

/// A number of bytes: `1500`, `600MB` (millions), `2GiB` (powers of two).
fn parse_size(text: &str) -> Result<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().with_context(|| format!("{text:?} does not start with a number"))?;
    let unit = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "K" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "T" | "TB" => 1e12,
        "KIB" => 1024.0,
        "MIB" => 1024f64.powi(2),
        "GIB" => 1024f64.powi(3),
        "TIB" => 1024f64.powi(4),
        other => bail!("unknown unit {other:?}: use B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"),
    };
    Ok((number * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1500").unwrap(), 1500);
        assert_eq!(parse_size("600MB").unwrap(), 600_000_000);
        assert_eq!(parse_size("1.5 GiB").unwrap(), 3 << 29);
        for wrong in ["", "GB", "3XB", "1.2.3GB"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }
}
