//! `cargo xtask build-kernels`: the CUDA kernels, compiled by nvcc into `target/kernels`.
//!
//! One compressed fat binary of all `.cu` files, machine code for every architecture in [`ARCHS`] and PTX for newer ones, in
//! `airllm.kernels`, which the build of `airllm-kernels` embeds. What ptxas says of each kernel's registers and memory lies
//! beside it. It is compiled again only when a source, a flag or the compiler has changed.

#[path = "../../crates/kernels/build/container.rs"]
mod container;
mod ptxas;

use crate::{read, succeed, wheels};
use anyhow::{Context, Result, ensure};
use container::Container;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Architectures with machine code: Turing, A100, Ampere, Ada, Hopper, Blackwell.
pub const ARCHS: [&str; 6] = ["75", "80", "86", "89", "90", "120"];
/// The architecture whose PTX comes along.
const PTX: &str = "90";
/// Without contraction, so that host and device round alike; see `kernels/README.md`.
const FLAGS: [&str; 9] = [
    "-fatbin",
    "-t0",
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "--compress-mode=size",
    "-Xptxas",
    "-v",
    "-Werror=all-warnings",
];

/// What to do beside compiling.
#[derive(clap::Args)]
pub struct Args {
    /// First put nvcc 13.0 into the folder .cuda, from Python wheels: 105 MB to download, 271 MB on disk
    #[arg(long)]
    setup: bool,
    /// Print registers, shared memory, stack and spills of each kernel; fail if one spills more than kernels/ptxas.txt has
    #[arg(long)]
    report: bool,
    /// Write kernels/ptxas.txt anew, with what this compiler says
    #[arg(long, conflicts_with = "arch")]
    accept: bool,
    /// Only these architectures (`90,120`), for the machine at hand
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    arch: Vec<String>,
    /// The compiler; otherwise that of .cuda, of CUDA_HOME, or in the PATH
    #[arg(long, value_name = "PATH")]
    nvcc: Option<PathBuf>,
}

/// Compiles what has changed, and reports.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    if args.setup {
        wheels(&root.join(".cuda"), &root.join("kernels/requirements-nvcc.txt"))?;
    }
    let nvcc = find(root, args.nvcc.as_deref())?;
    let version = version(&nvcc)?;
    println!("{}: {version}", nvcc.display());
    let archs: Vec<&str> =
        if args.arch.is_empty() { ARCHS.into() } else { args.arch.iter().map(String::as_str).collect() };
    let out = root.join("target/kernels");
    std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let log = compile(root, &nvcc, &version, &archs, &out)?;

    let found = ptxas::parse(&log)?;
    let page = root.join("kernels/ptxas.txt");
    if args.accept {
        std::fs::write(&page, ptxas::table(&found, &version))
            .with_context(|| format!("writing {}", page.display()))?;
    }
    if args.report {
        print!("{}", ptxas::table(&found, &version));
        let worse = ptxas::worse(&ptxas::read_table(&read(&page)?)?, &found);
        ensure!(
            worse.is_empty(),
            "more is spilled than {} has: {}. Change the kernel, or write the table anew with --accept",
            page.display(),
            worse.join("; ")
        );
    }
    Ok(())
}

/// Whether the kernels are compiled from the sources as they are.
pub fn current(root: &Path) -> Result<bool> {
    let Ok(bytes) = std::fs::read(root.join("target/kernels/airllm.kernels")) else { return Ok(false) };
    let made_of = Container::from_bytes(&bytes).map(|container| container.sources);
    Ok(made_of == Ok(container::hash(&root.join("kernels")).context("reading the kernels")?))
}

/// The compiler to use.
fn find(root: &Path, given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let mut candidates = Vec::new();
    // The version of Python is part of the path.
    if let Ok(entries) = root.join(".cuda/lib").read_dir() {
        let pythons = entries.filter_map(|entry| Some(entry.ok()?.path()));
        candidates.extend(pythons.map(|python| python.join("site-packages/nvidia/cu13/bin/nvcc")));
    }
    candidates.extend(std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")));
    if let Some(path) = std::env::var_os("PATH") {
        candidates.extend(std::env::split_paths(&path).map(|folder| folder.join("nvcc")));
    }
    candidates.into_iter().find(|nvcc| nvcc.is_file()).context(
        "no nvcc in .cuda, CUDA_HOME or PATH: install CUDA 13, or let `cargo xtask build-kernels --setup` fetch the \
         compiler alone (105 MB)",
    )
}

/// The line of `nvcc --version` that names the build.
fn version(nvcc: &Path) -> Result<String> {
    let output = succeed(Command::new(nvcc).arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("release"));
    Ok(line.with_context(|| format!("{} --version names no release:\n{text}", nvcc.display()))?.to_owned())
}

/// Compiles everything, unless what is there was made from the same. What ptxas said comes back.
///
/// nvcc gets one file that includes the others: fat binaries cannot be put together afterwards (a driver loads only one
/// image of each architecture in one), and linked device code has no PTX.
fn compile(root: &Path, nvcc: &Path, version: &str, archs: &[&str], out: &Path) -> Result<String> {
    let kernels = root.join("kernels");
    let sources = container::hash(&kernels).with_context(|| format!("reading {}", kernels.display()))?;
    let (file, log, stamp) = (out.join("airllm.kernels"), out.join("kernels.log"), out.join("kernels.stamp"));
    let mut hasher = DefaultHasher::new();
    (sources, version, FLAGS, archs).hash(&mut hasher);
    let made_from = format!("{:016x}", hasher.finish());
    let same = std::fs::read_to_string(&stamp).is_ok_and(|was| was == made_from);
    if same && file.is_file() && log.is_file() {
        println!("{}: up to date", file.display());
        return read(&log);
    }
    // An interrupted run must not pass for a whole one.
    if stamp.is_file() {
        std::fs::remove_file(&stamp).with_context(|| format!("removing {}", stamp.display()))?;
    }
    let mut units = container::sources(&kernels).with_context(|| format!("listing {}", kernels.display()))?;
    units.retain(|file| file.extension().is_some_and(|extension| extension == "cu"));
    ensure!(!units.is_empty(), "no .cu files below {}", kernels.display());
    let all = out.join("kernels.cu");
    let text: String = units.iter().map(|unit| format!("#include {unit:?}\n")).collect();
    std::fs::write(&all, text).with_context(|| format!("writing {}", all.display()))?;
    println!("compiling {} files for sm_{}", units.len(), archs.join(", "));
    let start = Instant::now();
    let fatbin = out.join("kernels.fatbin");
    let mut command = Command::new(nvcc);
    command.args(FLAGS).arg("-I").arg(kernels.join("include")).arg("-o").arg(&fatbin).arg(&all);
    let newest = archs.iter().find(|arch| **arch == PTX).or(archs.last());
    for arch in archs {
        // PTX that drivers can compile for GPUs without machine code here: those between Hopper and the newest, and later ones.
        let ptx = if Some(arch) == newest { format!(",compute_{arch}") } else { String::new() };
        command.arg("-gencode").arg(format!("arch=compute_{arch},code=[sm_{arch}{ptx}]"));
    }
    let output = succeed(&mut command)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    std::fs::write(&log, &said).with_context(|| format!("writing {}", log.display()))?;

    let image = std::fs::read(&fatbin).with_context(|| format!("reading {}", fatbin.display()))?;
    let compiler = version.trim_start_matches("Cuda compilation tools, ");
    let made = format!("nvcc {compiler}, sm_{}", archs.join(" "));
    // Sources that changed meanwhile leave a hash of before: the build will say that they are newer.
    let container = Container { sources, made: &made, image: &image };
    std::fs::write(&file, container.to_bytes()).with_context(|| format!("writing {}", file.display()))?;
    std::fs::write(&stamp, made_from).with_context(|| format!("writing {}", stamp.display()))?;
    println!("{}: {} KiB, {:.0} s", file.display(), image.len() / 1024, start.elapsed().as_secs_f64());
    Ok(said)
}
