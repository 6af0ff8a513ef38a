//! The benches on a GPU as one program, for the bundle of `cargo xtask gpu-bundle`: `gpu-bench NAME [options]`.
//!
//! `gpu-bench devices` says which GPUs there are and why one cannot be used; it fails where none can.
//!
//! `gpu-bench checks FILE` reports what `run.sh` of the bundle found: lines of name, status, seconds, tests passed, tests
//! failed, tests skipped.

use airllm_benches::{Row, gpu, report_on};
use airllm_kernels::{Cuda, CudaSettings, Kernels};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("attention") => gpu::attention::main(),
        Some("gemm") => gpu::gemm::main(),
        Some("gemv") => gpu::gemv::main(),
        Some("overlap") => gpu::overlap::main(),
        Some("pcie") => gpu::pcie::main(),
        Some("token") => gpu::token::main(),
        Some("devices") => return devices(),
        Some("checks") => checks(args.get(1).expect("a file of steps")),
        other => {
            eprintln!(
                "expected attention, gemm, gemv, overlap, pcie, token, devices or checks FILE, found {other:?}"
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A line for each GPU.
fn devices() -> ExitCode {
    println!("{}", Kernels::of_this_build());
    let found = match airllm_kernels::devices() {
        Ok(found) => found,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    for device in &found {
        let (major, minor) = device.capability;
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let free = device.free.map_or("unknown".to_owned(), |free| format!("{:.1} GB", gb(free)));
        let why = device.unusable.as_ref().map_or(String::new(), |why| format!(": cannot be used: {why}"));
        println!(
            "cuda:{} {}, {major}.{minor}, {} multiprocessors, {:.1} GB, free {free}, driver for CUDA {}{why}",
            device.ordinal,
            device.name,
            device.multiprocessors,
            gb(device.total),
            device.driver
        );
    }
    let usable = found.iter().any(|device| device.unusable.is_none());
    if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The steps that ran tests, as a result.
fn checks(file: &str) {
    let text = std::fs::read_to_string(file).expect("the file of steps");
    let rows: Vec<Row> = text.lines().filter_map(row).collect();
    let cuda = Cuda::open(&CudaSettings::default());
    let gpu = cuda.map_or_else(|why| format!("no GPU ({why})"), |cuda| cuda.name().to_owned());
    report_on(Some(&gpu), "checks", "cargo xtask gpu-bundle", &rows, None);
}

/// Tests passed of those that ran; `None` for steps without tests.
fn row(line: &str) -> Option<Row> {
    let words: Vec<&str> = line.split('\t').collect();
    let [name, status, _, passed, failed, skipped] = words[..] else { return None };
    let number = |text: &str| text.parse::<f64>().unwrap_or(0.0);
    let (passed, failed, skipped) = (number(passed), number(failed), number(skipped));
    if passed + failed == 0.0 {
        return None;
    }
    // What was skipped counts among what passed: the harness does not know better.
    let row = Row::new(&format!("{name}: {status}"), passed - skipped, "tests passed");
    Some(row.against((passed - skipped) / (passed + failed), "all"))
}
