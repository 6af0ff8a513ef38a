//! What the stream's tests share: a device, a source that misbehaves, models.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod lazy;

use airllm_format::{Error as FormatError, LayerSource, NumFormat};
use airllm_kernels::{Memory, Result as DeviceResult};
use airllm_stream::{
    Catalog, Error, ExpertCache, OnDevice, Options, Pipeline, Tensor, TensorId, Timeline, Unit,
};
use std::cell::UnsafeCell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A device of ordinary memory; `discrete` makes it refuse host bytes, as a GPU does, and work is done only
/// when `lag` more fences were made or somebody waits.
pub struct Host {
    discrete: bool,
    lag: u64,
    fences: AtomicU64,
    waited: AtomicU64,
}

impl Host {
    pub fn new(discrete: bool, lag: u64) -> Self {
        Self { discrete, lag, fences: AtomicU64::new(0), waited: AtomicU64::new(0) }
    }
}

/// Memory of a [`Host`]. Uploads write to it while it is shared.
pub struct HostBuf(UnsafeCell<Vec<u8>>);

// SAFETY: whoever uploads promises that nobody else reads or writes those bytes; other writes need `&mut`.
unsafe impl Sync for HostBuf {}

impl HostBuf {
    fn bytes(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { &*self.0.get() }
    }
}

impl Memory for Host {
    type Buf = HostBuf;
    type Fence = u64;
    type View<'a> = &'a [u8];

    fn alloc(&self, bytes: usize) -> DeviceResult<HostBuf> {
        Ok(HostBuf(UnsafeCell::new(vec![0; bytes])))
    }
    fn len(&self, buf: &HostBuf) -> usize {
        buf.bytes().len()
    }
    fn write(&self, dst: &mut HostBuf, offset: usize, bytes: &[u8]) -> DeviceResult<()> {
        dst.0.get_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn read(&self, src: &HostBuf, offset: usize, out: &mut [u8]) -> DeviceResult<()> {
        out.copy_from_slice(&src.bytes()[offset..offset + out.len()]);
        Ok(())
    }
    fn view<'a>(&'a self, buf: &'a HostBuf, range: Range<usize>) -> DeviceResult<&'a [u8]> {
        Ok(&buf.bytes()[range])
    }
    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        (!self.discrete).then_some(bytes)
    }
    fn copies(&self) -> bool {
        self.discrete
    }
    unsafe fn upload(&self, dst: &HostBuf, at: usize, bytes: &[u8], _: Option<&u64>) -> DeviceResult<u64> {
        // SAFETY: nobody else uses these bytes, as the caller promises.
        unsafe { (&mut *dst.0.get())[at..at + bytes.len()].copy_from_slice(bytes) };
        self.fence()
    }
    fn follow(&self, _: &u64) -> DeviceResult<()> {
        Ok(())
    }
    fn fence(&self) -> DeviceResult<u64> {
        Ok(self.fences.fetch_add(1, Ordering::Relaxed) + 1)
    }
    fn wait(&self, fence: &u64) -> DeviceResult<()> {
        self.waited.fetch_max(*fence, Ordering::Relaxed);
        Ok(())
    }
    fn is_done(&self, fence: &u64) -> DeviceResult<bool> {
        let latest = self.fences.load(Ordering::Relaxed);
        Ok(*fence <= self.waited.load(Ordering::Relaxed) || fence + self.lag <= latest)
    }
}

/// Files in memory that answer at one offset in `fail_every` only at the second attempt (at none, if it is
/// 1), and whose reads take their time.
pub struct Source {
    files: Vec<Vec<u8>>,
    fail_every: u64,
    slow: bool,
    pub reads: AtomicU64,
    failed: Mutex<HashSet<(usize, u64)>>,
}

impl LayerSource for Source {
    fn files(&self) -> usize {
        self.files.len()
    }
    fn name(&self, _: usize) -> &str {
        "memory"
    }
    fn len(&self, file: usize) -> u64 {
        self.files[file].len() as u64
    }
    fn alignment(&self) -> usize {
        4096
    }
    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> airllm_format::Result<()> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        if self.slow {
            std::thread::sleep(Duration::from_micros(read * 7919 % 300));
        }
        let chosen = self.fail_every > 0 && (offset / 4096).is_multiple_of(self.fail_every);
        if chosen && (self.failed.lock().unwrap().insert((file, offset)) || self.fail_every == 1) {
            return Err(FormatError::Io {
                path: "memory".into(),
                doing: format!("read {read}"),
                source: std::io::ErrorKind::TimedOut.into(),
            });
        }
        let from = offset as usize;
        let to = (from + buf.len()).min(self.files[file].len());
        buf[..to - from].copy_from_slice(&self.files[file][from..to]);
        buf[to - from..].fill(0);
        Ok(())
    }
}

/// Tensors of the given shapes, written behind `bytes` with content of their own.
pub fn write(file: usize, group: usize, shapes: &[(usize, usize)], bytes: &mut Vec<u8>) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for (index, &(rows, cols)) in shapes.iter().enumerate() {
        bytes.resize(bytes.len().next_multiple_of(256), 0);
        let mut tensor = Tensor {
            name: format!("t{index}"),
            file,
            offset: bytes.len() as u64,
            format: NumFormat::F32,
            rows,
            cols,
            checksum: None,
        };
        let mut sum = 0u64;
        for row in 0..rows {
            let seed = (group * 100_000_007 + file * 1_000_003 + index * 10_007 + row) as u64;
            let data: Vec<u8> = (0..cols * 4)
                .map(|at| (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (at % 56)) as u8 ^ at as u8)
                .collect();
            sum = sum.wrapping_add(xxh3_64_with_seed(&data, row as u64));
            bytes.extend(data);
        }
        tensor.checksum = Some(sum);
        tensors.push(tensor);
    }
    tensors
}

/// An embedding that is only gathered from, layers of several tensors, and the embedding's twin as head.
pub fn model(layers: &[Vec<(usize, usize)>], tied: bool) -> (Catalog, Vec<Vec<u8>>) {
    let mut files = Vec::new();
    let mut units = Vec::new();
    let mut pass = Vec::new();
    let embed = vec![(97, 33)];
    for (file, shapes) in std::iter::once(&embed).chain(layers).enumerate() {
        let mut bytes = vec![0; 4096];
        let tensors = write(file, 0, shapes, &mut bytes);
        if file > 0 {
            pass.extend((0..shapes.len()).map(|tensor| TensorId { unit: file, tensor }));
        }
        units.push(Unit { name: format!("u{file}"), tensors, on_demand: false });
        files.push(bytes);
    }
    if tied {
        pass.push(TensorId { unit: 0, tensor: 0 });
    }
    (Catalog { units, pass }, files)
}

pub fn source(files: Vec<Vec<u8>>, fail_every: u64, slow: bool) -> Arc<Source> {
    Arc::new(Source { files, fail_every, slow, reads: AtomicU64::new(0), failed: Mutex::default() })
}

pub fn options(pinned: Vec<bool>, slots: usize, slot_bytes: usize, readers: usize) -> Options {
    let (experts, device) = (ExpertCache::default(), OnDevice::default());
    Options { pinned, slots, slot_bytes, readers, experts, device, timeline: Arc::new(Timeline::new(true)) }
}

/// Runs a pass and returns all bytes it leased, tensor by tensor.
pub fn pass(pipeline: &mut Pipeline<Host>) -> Result<Vec<Vec<u8>>, Error> {
    let ids = pipeline.catalog().pass.clone();
    let mut all = Vec::new();
    for id in ids {
        let mut bytes = Vec::new();
        let mut next = 0;
        pipeline.rows::<Error, _>(id, |rows| {
            assert_eq!(rows.first, next);
            next += rows.count;
            bytes.extend_from_slice(rows.data);
            Ok(())
        })?;
        all.push(bytes);
    }
    Ok(all)
}

/// What a pass must lease.
pub fn expected(catalog: &Catalog, files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    catalog.pass.iter().map(|&id| content(catalog, files, id)).collect()
}

/// All bytes of a tensor.
pub fn content(catalog: &Catalog, files: &[Vec<u8>], id: TensorId) -> Vec<u8> {
    let tensor = catalog.get(id).unwrap();
    files[tensor.file][tensor.offset as usize..][..tensor.bytes()].to_vec()
}
