//! What this machine can do, measured once and kept.
//!
//! `airllm probe` measures for some seconds what every start would otherwise look at for a moment, and writes it to `probe.toml`
//! in the program's folder, with a fingerprint of the machine. A start that finds it takes its numbers from there; one
//! on another machine (a folder on a network, a new processor, another GPU) measures for itself.

use crate::error::At;
use crate::hardware::{self, ProductRate, products};
use crate::{Cancel, Error, Result};
use airllm_format::{NumFormat, ReadMethod, write_atomically};
use airllm_stream::MethodRate;
use airllm_stream::plan::Gpu;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Its name in the program's folder.
const NAME: &str = "probe.toml";
/// Layout of the file.
const VERSION: u32 = 1;
/// For each number format. All of them together, and a few seconds for each disk, stay below 20 seconds.
const PRODUCT_TIME: Duration = Duration::from_millis(250);
/// For each disk, all ways of reading it together.
const DISK_TIME: Duration = Duration::from_secs(4);

/// Measured rates of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Probe {
    /// Layout of the file, 1.
    pub version: u32,
    /// Seconds since 1970 when it was measured.
    pub time: u64,
    /// The machine that it is of.
    pub machine: Fingerprint,
    /// Bytes of memory a second that the threads together read.
    pub memory: f64,
    /// The GPU that computes, where one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRates>,
    /// Disks, each by a folder on it.
    #[serde(default)]
    pub disks: Vec<DiskRates>,
    /// Matrix products by number format.
    pub products: Vec<ProductRate>,
}

/// What tells machines apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Fingerprint {
    /// The processor's name, as the system tells it.
    pub processor: String,
    /// The instructions in use.
    pub instructions: String,
    /// Threads that compute.
    pub threads: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// GPUs that can be used.
    pub gpus: Vec<String>,
    /// Version of this program: other kernels have other rates.
    pub program: String,
}

/// Rates of a GPU, in bytes a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GpuRates {
    /// What it is called on the command line: `cuda:0`.
    pub device: String,
    /// Copies from page-locked host memory.
    pub upload: f64,
    /// Reads of its own memory.
    pub memory: f64,
}

/// Rates of a disk, in bytes a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiskRates {
    /// A folder on it.
    pub dir: PathBuf,
    /// The number that the system has for it.
    pub device: u64,
    /// Ways to read it, the best first; each method with the threads that it is fastest with.
    pub methods: Vec<Way>,
}

/// A way to read a disk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Way {
    /// How: `direct`, `uring` or `buffered`.
    #[serde(with = "method")]
    pub method: ReadMethod,
    /// Threads that read.
    pub threads: usize,
    /// Bytes a second.
    pub rate: f64,
}

mod method {
    use airllm_format::ReadMethod;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(method: &ReadMethod, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(method)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ReadMethod, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl DiskRates {
    /// The rate and the method where this one is asked for; `None` where it was not to be had.
    pub(crate) fn choose(&self, method: ReadMethod) -> Option<(f64, ReadMethod)> {
        let way = self.methods.iter().find(|way| method == ReadMethod::Auto || way.method == method)?;
        Some((way.rate, way.method))
    }
}

impl Fingerprint {
    /// That of this machine, for so many threads.
    pub fn here(threads: usize) -> Fingerprint {
        let found = airllm_kernels::devices().unwrap_or_default();
        Fingerprint {
            processor: hardware::processor().unwrap_or_default(),
            instructions: hardware::instructions().to_owned(),
            threads,
            memory: hardware::all_memory().unwrap_or(0),
            gpus: found.into_iter().filter(|it| it.unusable.is_none()).map(|it| it.name).collect(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What to measure.
pub(crate) struct Ask<'a> {
    pub(crate) threads: usize,
    /// Folders whose disks are measured.
    pub(crate) dirs: &'a [PathBuf],
    pub(crate) gpu: Option<(String, Gpu)>,
    pub(crate) cancel: &'a Cancel,
}

impl Probe {
    /// Measures everything.
    pub(crate) fn measure(ask: &Ask<'_>) -> Result<Probe> {
        let mut disks = Vec::new();
        for dir in ask.dirs {
            ask.cancel.check()?;
            disks.push(disk(dir)?);
        }
        let memory = hardware::memory(ask.threads, u64::MAX);
        let mut rates = Vec::new();
        for format in NumFormat::ALL {
            ask.cancel.check()?;
            rates.extend(products(&[format], ask.threads, u64::MAX, PRODUCT_TIME)?);
        }
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Probe {
            version: VERSION,
            time: seconds.as_secs(),
            machine: Fingerprint::here(ask.threads),
            memory,
            gpu: ask.gpu.as_ref().map(|(device, gpu)| GpuRates {
                device: device.clone(),
                upload: gpu.upload,
                memory: gpu.memory,
            }),
            disks,
            products: rates,
        })
    }

    /// Where it is kept below the program's folder.
    pub fn path(home: &Path) -> PathBuf {
        home.join(NAME)
    }

    /// What is kept below the program's folder, whatever machine it is of; `None` where nothing is, or where the file has another
    /// layout.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn load(home: &Path) -> Result<Option<Probe>> {
        let path = Self::path(home);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, doing: "reading", source }),
        };
        // Written by a machine: what it does not understand is measured anew, not argued about.
        Ok(toml::from_str::<Probe>(&text).ok().filter(|probe| probe.version == VERSION && probe.is_sound()))
    }

    /// Keeps it below the program's folder, in place of what was there; disks that it has not measured stay known if the machine
    /// is the same.
    pub(crate) fn keep(&mut self, home: &Path) -> Result<()> {
        if let Some(old) = Self::load(home)?.filter(|old| old.machine == self.machine) {
            let known: Vec<u64> = self.disks.iter().map(|disk| disk.device).collect();
            self.disks.extend(old.disks.into_iter().filter(|disk| !known.contains(&disk.device)));
        }
        let path = Self::path(home);
        std::fs::create_dir_all(home).at(home, "creating the folder")?;
        let text = toml::to_string_pretty(self)
            .map_err(|error| Error::Input { what: format!("{}: {error}", path.display()) })?;
        Ok(write_atomically(&path, text.as_bytes())?)
    }

    /// The rates of the disk that a file is on.
    pub(crate) fn disk_of(&self, file: &Path) -> Option<&DiskRates> {
        let device = std::fs::metadata(file).ok()?.dev();
        self.disks.iter().find(|disk| disk.device == device)
    }

    /// Whether all rates are numbers that can be divided by.
    fn is_sound(&self) -> bool {
        let products = self.products.iter().flat_map(|it| [it.token, it.prompt]);
        let disks = self.disks.iter().flat_map(|it| &it.methods).map(|it| it.rate);
        let gpu = self.gpu.iter().flat_map(|it| [it.upload, it.memory]);
        products.chain(disks).chain(gpu).chain([self.memory]).all(|rate| rate.is_finite() && rate > 0.0)
    }
}

/// Times the disk below a folder, with a file that is removed afterwards.
fn disk(dir: &Path) -> Result<DiskRates> {
    let device = std::fs::metadata(dir).at(dir, "looking at the folder")?.dev();
    let rates = airllm_stream::probe_reads(dir, &[], DISK_TIME)?;
    let ways = rates.methods.iter().filter(|it| it.rate > 0.0);
    let way = |it: &MethodRate| Way { method: it.method, threads: it.threads, rate: it.rate };
    let mut methods: Vec<Way> = ways.map(way).collect();
    let best = rates.best().map(way).ok_or_else(|| Error::Input {
        what: format!("{}: nothing could be read of a file written there", dir.display()),
    })?;
    // The best of each method.
    methods.sort_by(|a, b| b.rate.total_cmp(&a.rate));
    let mut kept: Vec<Way> = vec![best];
    for way in methods {
        if kept.iter().all(|it| it.method != way.method) {
            kept.push(way);
        }
    }
    Ok(DiskRates { dir: dir.canonicalize().at(dir, "looking at the folder")?, device, methods: kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(dir: &Path, device: u64) -> Probe {
        let way = |method, rate| Way { method, threads: 2, rate };
        let methods = vec![way(ReadMethod::Direct, 2e9), way(ReadMethod::Buffered, 1e9)];
        let disk = DiskRates { dir: dir.to_owned(), device, methods };
        Probe {
            version: VERSION,
            time: 1,
            machine: Fingerprint::here(2),
            memory: 3e10,
            gpu: None,
            disks: vec![disk],
            products: vec![ProductRate { format: NumFormat::Q4, token: 2.5e10, prompt: 1e11 }],
        }
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Probe::load(home.path()).unwrap(), None);
        let mut first = probe(home.path(), 7);
        first.keep(home.path()).unwrap();
        assert_eq!(Probe::load(home.path()).unwrap(), Some(first.clone()));
        // Another disk of the same machine is known beside the first.
        let mut second = probe(home.path(), 8);
        second.keep(home.path()).unwrap();
        let both = Probe::load(home.path()).unwrap().unwrap();
        assert_eq!(both.disks.iter().map(|disk| disk.device).collect::<Vec<_>>(), [8, 7]);
        // Not so of another machine.
        let mut other = probe(home.path(), 9);
        other.machine.threads = 3;
        other.keep(home.path()).unwrap();
        assert_eq!(Probe::load(home.path()).unwrap().unwrap().disks.len(), 1);
        let left: Vec<_> =
            std::fs::read_dir(home.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["probe.toml"]);
    }

    #[test]
    fn what_cannot_be_used_counts_as_nothing() {
        let home = tempfile::tempdir().unwrap();
        let path = Probe::path(home.path());
        let good = toml::to_string_pretty(&probe(home.path(), 7)).unwrap();
        for (from, to) in [
            ("version = 1", "version = 2"),
            ("memory = 30000000000.0", "memory = 0.0"),
            ("memory = 30000000000.0", "memory = nan"),
            ("\"q4\"", "\"q99\""),
            ("rate", "rat"),
        ] {
            assert!(good.contains(from), "{good}");
            std::fs::write(&path, good.replace(from, to)).unwrap();
            assert_eq!(Probe::load(home.path()).unwrap(), None, "{to}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(Probe::load(home.path()), Err(Error::Io { .. })));
    }

    #[test]
    fn a_disk_is_timed_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let rates = disk(dir.path()).unwrap();
        let best = rates.choose(ReadMethod::Auto).unwrap();
        assert_eq!(rates.choose(best.1), Some(best));
        assert!(best.0 > 1e6 && rates.choose(ReadMethod::Buffered).is_some(), "{rates:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let probe = Probe { disks: vec![rates], ..probe(dir.path(), 0) };
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(probe.disk_of(&dir.path().join("file")).is_some());
        assert!(probe.disk_of(&dir.path().join("none")).is_none());
        assert!(disk(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
