//! What is expected of a model and a machine, and what they do.

use super::{Running, Weights};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Plan {
    /// The model, instead of --model
    #[arg(value_name = "MODEL")]
    pub target: Option<String>,
    /// Tokens of context to make room for
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    #[command(flatten)]
    pub running: Running,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// The model, instead of --model
    #[arg(value_name = "MODEL")]
    pub target: Option<String>,
    /// Tokens of the prompt that is read; 0 leaves it out
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    pub prompt_tokens: u32,
    /// Tokens that are decoded; 0 leaves it out
    #[arg(short, long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    pub new_tokens: u32,
    /// Sequences that are decoded side by side
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub sequences: u32,
    /// Runs; medians are shown
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    #[command(flatten)]
    pub running: Running,
}

#[derive(Debug, Args)]
pub struct Probe {
    /// A folder whose disk is measured, by a file of 256 MiB that is removed again; may be given several times. The program's
    /// own folder if not given
    #[arg(long, value_name = "DIR")]
    pub dir: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Sensitivity {
    /// The model, instead of --model
    #[arg(value_name = "MODEL")]
    pub target: Option<String>,
    /// Also draw a heat map of layers and matrices
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    #[command(flatten)]
    pub weights: Weights,
}
