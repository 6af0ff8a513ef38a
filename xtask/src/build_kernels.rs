//! `cargo xtask build-kernels`: the CUDA kernels, compiled by nvcc into `target/kernels`.
//!
//! A fatbin for each `.cu` file, machine code for every architecture in [`ARCHS`] and PTX for newer ones, compressed. What ptxas
//! says of each kernel's registers and memory lies beside it. A file is compiled again only when a source, a flag or the
//! compiler has changed.

mod ptxas;

use crate::read;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

/// Architectures with machine code: Turing, A100, Ampere, Ada, Hopper, Blackwell.
pub const ARCHS: [&str; 6] = ["75", "80", "86", "89", "90", "120"];
/// Without contraction, so that host and device round alike; see `kernels/README.md`.
const FLAGS: [&str; 8] = [
    "-fatbin",
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
    #[arg(long)]
    accept: bool,
    /// The compiler; otherwise that of .cuda, of CUDA_HOME, or in the PATH
    #[arg(long, value_name = "PATH")]
    nvcc: Option<PathBuf>,
}

/// Compiles what has changed, and reports.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    if args.setup {
        setup(root)?;
    }
    let nvcc = find(root, args.nvcc.as_deref())?;
    let version = version(&nvcc)?;
    println!("{}: {version}", nvcc.display());
    let out = root.join("target/kernels");
    std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let sources = sources(&root.join("kernels"))?;
    let key = key(root, &version)?;
    let queue = Mutex::new(sources.iter());
    let worker = || -> Result<()> {
        loop {
            let next = queue.lock().map_or(None, |mut queue| queue.next());
            let Some(source) = next else { return Ok(()) };
            compile(root, &nvcc, source, &out, key)?;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })?;

    let mut bytes = 0;
    let mut logs = String::new();
    for source in &sources {
        let stem = out.join(unit(root, source));
        let fatbin = stem.with_extension("fatbin");
        bytes += fatbin.metadata().with_context(|| format!("looking at {}", fatbin.display()))?.len();
        logs += &read(&stem.with_extension("log"))?;
    }
    println!("{}: {} fatbins, {} KiB", out.display(), sources.len(), bytes / 1024);
    let found = ptxas::parse(&logs)?;
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

/// A virtual environment with the wheels that `kernels/requirements-nvcc.txt` names.
fn setup(root: &Path) -> Result<()> {
    let home = root.join(".cuda");
    succeed(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
    let list = root.join("kernels/requirements-nvcc.txt");
    let mut pip = Command::new(home.join("bin/pip"));
    succeed(pip.args(["install", "--no-deps", "--require-hashes", "-r"]).arg(list))?;
    Ok(())
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

/// Every kernel that a device is given: those of `emu` are checks of the host's side.
fn sources(kernels: &Path) -> Result<Vec<PathBuf>> {
    let mut files = files(kernels)?;
    files.retain(|file| file.extension() == Some(OsStr::new("cu")) && !file.starts_with(kernels.join("emu")));
    ensure!(!files.is_empty(), "no .cu files below {}", kernels.display());
    Ok(files)
}

/// Files two levels deep, in one order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

/// Everything that a fatbin depends on, as a number. Headers count for every file.
fn key(root: &Path, version: &str) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    (version, FLAGS, ARCHS).hash(&mut hasher);
    for file in files(&root.join("kernels"))? {
        if file.extension().is_some_and(|e| e == "cuh" || e == "h") {
            read(&file)?.hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

/// The name of what a source is compiled to.
fn unit(root: &Path, source: &Path) -> String {
    let name = source.strip_prefix(root.join("kernels")).unwrap_or(source).with_extension("");
    name.to_string_lossy().replace(['/', '\\'], "_")
}

/// Compiles a file, unless what is there was made from the same.
fn compile(root: &Path, nvcc: &Path, source: &Path, out: &Path, key: u64) -> Result<()> {
    let name = unit(root, source);
    let stem = out.join(&name);
    let (fatbin, log, stamp) =
        (stem.with_extension("fatbin"), stem.with_extension("log"), stem.with_extension("stamp"));
    let mut hasher = DefaultHasher::new();
    (key, read(source)?).hash(&mut hasher);
    let made_from = format!("{:016x}", hasher.finish());
    let same = std::fs::read_to_string(&stamp).is_ok_and(|was| was == made_from);
    if same && fatbin.is_file() && log.is_file() {
        return Ok(());
    }
    // An interrupted run must not pass for a whole one.
    if stamp.is_file() {
        std::fs::remove_file(&stamp).with_context(|| format!("removing {}", stamp.display()))?;
    }
    println!("compiling {name}");
    let mut command = Command::new(nvcc);
    command.args(FLAGS).arg("-I").arg(root.join("kernels/include")).arg("-o").arg(&fatbin).arg(source);
    for (i, arch) in ARCHS.into_iter().enumerate() {
        // PTX of the oldest: the driver can compile it for whatever has no machine code.
        let ptx = if i == 0 { format!(",compute_{arch}") } else { String::new() };
        command.arg("-gencode").arg(format!("arch=compute_{arch},code=[sm_{arch}{ptx}]"));
    }
    let output = succeed(&mut command)?;
    let said = [output.stdout, output.stderr].concat();
    std::fs::write(&log, &said).with_context(|| format!("writing {}", log.display()))?;
    std::fs::write(&stamp, made_from).with_context(|| format!("writing {}", stamp.display()))
}

/// Runs a command; what it said is the error where it fails.
fn succeed(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{name} {}: {}\n{}{}",
        command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" "),
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(output)
}
