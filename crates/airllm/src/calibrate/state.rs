//! What an interrupted measurement leaves for the next run: hidden states of the text and of all branches at some layer,
//! and what was found out up to there.

use super::sensitivity::{Branch, Found};
use crate::error::At;
use crate::{Error, Result};
use airllm_format::{NumFormat, WidthError};
use airllm_stream::TensorId;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::Xxh3;

/// Where the state is kept, and how often.
pub(crate) struct Keep {
    path: PathBuf,
    every: Duration,
    last: Instant,
    /// What the last one took.
    took: Duration,
}

/// The text of a state file, before its numbers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    /// Layers that are done.
    layers: usize,
    /// Numbers of the text's hidden states.
    x: usize,
    branches: Vec<BranchHead>,
    together: Vec<(NumFormat, usize)>,
    found: Vec<FoundHead>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BranchHead {
    ids: Vec<(usize, usize)>,
    output: f64,
    x: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FoundHead {
    id: (usize, usize),
    floor: NumFormat,
    format: NumFormat,
    widths: Vec<WidthError>,
    share: f64,
}

/// A measurement at some layer.
pub(crate) struct State {
    pub(crate) layers: usize,
    pub(crate) x: Vec<f32>,
    pub(crate) branches: Vec<Branch>,
    pub(crate) together: Vec<(NumFormat, Vec<f32>)>,
    pub(crate) found: Vec<Found>,
}

const VERSION: u32 = 1;

/// The longest first line that is read.
const MOST_HEAD: u64 = 256 << 20;

impl Keep {
    /// Keeps the state in `path`, no more often than `every`.
    pub(crate) fn new(path: PathBuf, every: Duration) -> Keep {
        Keep { path, every, last: Instant::now(), took: Duration::ZERO }
    }

    /// Whether it is time to write. That shall be a twentieth of all time at most.
    pub(crate) fn is_due(&self) -> bool {
        self.last.elapsed() >= self.every.max(self.took * 20)
    }

    /// Writes a state; the file appears when it is whole.
    pub(crate) fn write(
        &mut self,
        layers: usize,
        x: &[f32],
        branches: &[Branch],
        together: &[(NumFormat, Vec<f32>)],
        found: &[Found],
    ) -> Result<()> {
        let begin = Instant::now();
        let pair = |id: TensorId| (id.unit, id.tensor);
        let head = Head {
            version: VERSION,
            layers,
            x: x.len(),
            branches: branches
                .iter()
                .map(|it| BranchHead {
                    ids: it.ids.iter().copied().map(pair).collect(),
                    output: it.output,
                    x: it.x.len(),
                })
                .collect(),
            together: together.iter().map(|(format, x)| (*format, x.len())).collect(),
            found: found
                .iter()
                .map(|it| FoundHead {
                    id: pair(it.id),
                    floor: it.floor,
                    format: it.format,
                    widths: it.widths.clone(),
                    share: it.share,
                })
                .collect(),
        };
        let head = serde_json::to_string(&head)
            .map_err(|error| Error::Input { what: format!("{}: {error}", self.path.display()) })?;
        let part = self.path.with_extension("part");
        let mut file = BufWriter::new(File::create(&part).at(&part, "keeping what was measured")?);
        let mut hash = Xxh3::new();
        let mut put = |bytes: &[u8]| {
            hash.update(bytes);
            file.write_all(bytes)
        };
        let mut all = || -> std::io::Result<()> {
            put(head.as_bytes())?;
            put(b"\n")?;
            let numbers = branches.iter().map(|it| &it.x).chain(together.iter().map(|(_, x)| x));
            std::iter::once(x).chain(numbers.map(|x| &x[..])).try_for_each(|x| put(bytemuck::cast_slice(x)))
        };
        all().at(&part, "keeping what was measured")?;
        let sum = hash.digest128().to_le_bytes();
        file.write_all(&sum).and_then(|()| file.flush()).at(&part, "keeping what was measured")?;
        drop(file);
        std::fs::rename(&part, &self.path).at(&self.path, "keeping what was measured")?;
        (self.last, self.took) = (Instant::now(), begin.elapsed());
        Ok(())
    }

    /// The state that was kept; `None` where there is none, or none that can be used.
    pub(crate) fn read(&self) -> Option<State> {
        read(&self.path)
    }

    /// Forgets it.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn read(path: &Path) -> Option<State> {
    let file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    let mut file = BufReader::new(file);
    let (mut hash, mut line) = (Xxh3::new(), Vec::new());
    (&mut file).take(MOST_HEAD).read_until(b'\n', &mut line).ok()?;
    hash.update(&line);
    let head: Head =
        serde_json::from_slice(line.strip_suffix(b"\n")?).ok().filter(|h: &Head| h.version == VERSION)?;
    let counts = head.branches.iter().map(|it| it.x).chain(head.together.iter().map(|(_, x)| *x));
    let numbers: u64 = counts.chain([head.x]).map(|n| n as u64).try_fold(0, u64::checked_add)?;
    // Before memory is taken for what a damaged head says.
    if numbers.checked_mul(4)?.checked_add(line.len() as u64 + 16)? != len {
        return None;
    }
    let mut numbers = |count: usize| -> Option<Vec<f32>> {
        let mut x = vec![0f32; count];
        file.read_exact(bytemuck::cast_slice_mut(&mut x)).ok()?;
        hash.update(bytemuck::cast_slice(&x));
        Some(x)
    };
    let id = |(unit, tensor)| TensorId { unit, tensor };
    let x = numbers(head.x)?;
    let branches = head.branches.into_iter().map(|it| {
        let ids = it.ids.into_iter().map(id).collect();
        Some(Branch { ids, x: numbers(it.x)?, output: it.output })
    });
    let branches = branches.collect::<Option<_>>()?;
    let together = head.together.into_iter().map(|(format, x)| Some((format, numbers(x)?)));
    let together = together.collect::<Option<_>>()?;
    let found = head.found.into_iter().map(|it| Found {
        id: id(it.id),
        floor: it.floor,
        format: it.format,
        widths: it.widths,
        share: it.share,
    });
    let state = State { layers: head.layers, x, branches, together, found: found.collect() };
    let mut sum = [0; 16];
    file.read_exact(&mut sum).ok()?;
    (hash.digest128().to_le_bytes() == sum).then_some(state)
}
