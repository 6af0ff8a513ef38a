//! The `airllm` command: generate, chat, prepare, merge, inspect, plan, devices, probe, bench, sensitivity, logits, eval, tokenize, cache.
//!
//! Standard output carries only results; progress and the closing physics line go to standard error.
//! Everything a command does is done by the `airllm` library; here are arguments, bars and tables.

mod args;
mod bench;
mod cache;
mod chat;
mod compare;
mod demo;
mod devices;
mod eval;
mod exit;
mod generate;
mod heatmap;
mod input;
mod inspect;
mod logits;
mod merge;
mod model;
mod output;
mod plan;
mod prepare;
mod probe;
mod progress;
mod prompts;
mod sensitivity;
mod signal;
mod tokenize;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.common.verbose);
    let cancel = signal::cancel_on_interrupt();
    let common = &cli.common;
    let result = match &cli.command {
        Command::Generate(args) => generate::run(common, args, &cancel),
        Command::Chat(args) => chat::run(common, args, &cancel),
        Command::Prepare(args) => prepare::run(common, args, &cancel),
        Command::Merge(args) => merge::run(common, args, &cancel),
        Command::Inspect(args) => inspect::run(common, args, &cancel),
        Command::Plan(args) => plan::run(common, args, &cancel),
        Command::Devices => devices::run(common),
        Command::Bench(args) => bench::run(common, args, &cancel),
        Command::Probe(args) => probe::run(common, args, &cancel),
        Command::Sensitivity(args) => sensitivity::run(common, args, &cancel),
        Command::Logits(args) => logits::run(common, args, &cancel),
        Command::Eval(args) => eval::run(common, args, &cancel),
        Command::Tokenize(args) => tokenize::run(common, args),
        Command::Cache(args) => cache::run(common, args),
    };
    exit::code(result, common.json)
}

/// Logs to standard error: warnings, with -v what is done, with -vv how.
fn log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(verbose > 1)
        .without_time()
        .init();
}
