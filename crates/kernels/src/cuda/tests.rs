//! The device on whatever driver there is: a real one, its stand-in, or none, where every test says so and ends.
//!
//! Tests that need the stand-in (to choose what fails, or to lose a device and go on) say so too.

use super::api::Api;
use super::memory::Lies;
use super::{Cuda, CudaBuf, CudaSettings, CudaVersion, CudaView, DeviceMemory, Unusable, devices};
use crate::{Error, Memory, Result};
use cudarc::driver::sys;
use std::ffi::{CString, c_char, c_int};
use std::io::Write as _;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

const MIB: usize = 1 << 20;

/// The driver, for one test at a time: what one test loses all lose.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn skip(test: &str, why: &str) {
    // Past the capture of output: a test that checks nothing must not look as if it did.
    let _ = std::io::stderr().write_all(format!("skipped: {why} ({test})\n").as_bytes());
}

fn open(test: &str, vram: usize) -> Option<Cuda> {
    open_with(test, &CudaSettings { vram: Some(vram as u64), ..CudaSettings::default() })
}

fn open_with(test: &str, settings: &CudaSettings) -> Option<Cuda> {
    let settings = match settings.vram {
        // What the driver itself takes is not known to the tests; so their budgets come on top of it.
        Some(vram) => {
            match Cuda::open(&CudaSettings { vram: None, ..settings.clone() }).and_then(|c| c.memory()) {
                Ok(memory) => CudaSettings { vram: Some(vram + memory.overhead), ..settings.clone() },
                Err(_) => settings.clone(),
            }
        }
        None => settings.clone(),
    };
    match Cuda::open(&settings) {
        Ok(cuda) => Some(cuda),
        Err(Error::Unusable(why)) => {
            skip(test, &why.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Sets switches of the stand-in, and forgets its errors; whether the driver is the stand-in.
fn standin(test: &str, switches: &str) -> bool {
    if Api::get().is_err() {
        skip(test, "no stand-in for the CUDA driver");
        return false;
    }
    // SAFETY: the driver is there. Only its stand-in has these functions, with these types.
    unsafe {
        let (Ok(configure), Ok(reset)) = (
            sys::culib().get::<unsafe extern "C" fn(*const c_char) -> c_int>("airllm_standin_configure\0"),
            sys::culib().get::<unsafe extern "C" fn()>("airllm_standin_reset\0"),
        ) else {
            skip(test, "the CUDA driver is not the stand-in");
            return false;
        };
        let text = CString::new(switches).unwrap();
        assert_eq!(configure(text.as_ptr()), 0, "{switches}");
        reset();
    }
    true
}

/// Bytes that tell where they belong.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * seed as u64) >> 56) as u8)
        .collect()
}

fn bytes(cuda: &Cuda, buf: &CudaBuf) -> Vec<u8> {
    let mut out = vec![0x55; cuda.len(buf)];
    cuda.read(buf, 0, &mut out).unwrap();
    out
}

/// `y[i] += x[i]` with the kernel of that name.
fn add(cuda: &Cuda, y: &CudaBuf, x: &CudaBuf, len: usize) -> Result<()> {
    #[derive(Clone, Copy)]
    #[repr(C)]
    #[allow(dead_code, reason = "the kernel reads them")]
    struct Flat {
        y: *mut f32,
        x: *const f32,
        len: u64,
    }
    let params = Flat { y: y.address().cast(), x: x.address().cast(), len: len as u64 };
    assert!(cuda.len(y) >= len * 4 && cuda.len(x) >= len * 4);
    // SAFETY: the kernel `add` takes this structure, and both buffers have `len` numbers.
    unsafe { cuda.queue("add", "add", &params, [len.div_ceil(256) as u32, 1], 256, 0) }
}

#[test]
fn bytes_come_back() {
    let _alone = alone();
    let Some(cuda) = open("bytes_come_back", 64 * MIB) else { return };
    assert!(cuda.copies() && cuda.host_view(b"bytes").is_none());
    // Around the halves of the ring, and more than both.
    for len in [0, 1, 63, 4097, 2 * MIB - 1, 2 * MIB + 1, 9 * MIB + 3] {
        let mut buf = cuda.alloc(len + 5).unwrap();
        let data = pattern(len, 1);
        cuda.write(&mut buf, 3, &data).unwrap();
        let back = bytes(&cuda, &buf);
        assert_eq!(back[..3], [0; 3]);
        assert!(back[3..len + 3] == data[..], "{len}");
        assert_eq!(back[len + 3..], [0; 2]);
        let mut part = vec![0; len / 2];
        cuda.read(&buf, 3 + len / 2, &mut part).unwrap();
        assert!(part == data[len / 2..len / 2 + part.len()]);
    }
    let mut buf = cuda.alloc(10).unwrap();
    for error in [
        cuda.write(&mut buf, 8, b"abc").unwrap_err(),
        cuda.write(&mut buf, usize::MAX, b"abc").unwrap_err(),
        cuda.read(&buf, 9, &mut [0; 2]).unwrap_err(),
        cuda.view(&buf, 3..11).map(|_| ()).unwrap_err(),
        // SAFETY: refused before anything is copied.
        unsafe { cuda.upload(&buf, 9, b"ab", None) }.map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}

#[test]
fn fresh_memory_is_zero_whoever_had_it() {
    let _alone = alone();
    let Some(cuda) = open("fresh_memory_is_zero_whoever_had_it", 8 * MIB) else { return };
    let mut addresses = Vec::new();
    for round in 0..20 {
        let mut buf = cuda.alloc(MIB + round).unwrap();
        addresses.push(buf.address().addr());
        if round % 3 == 0 {
            assert!(bytes(&cuda, &buf).iter().all(|&b| b == 0), "{round}");
        }
        cuda.write(&mut buf, 0, &pattern(MIB, round)).unwrap();
    }
    // Freed memory is used again, at once.
    assert!(addresses.iter().all(|&address| address == addresses[0]));
}

#[test]
fn the_budget_holds_and_all_of_it_can_be_had() {
    let _alone = alone();
    const TEST: &str = "the_budget_holds_and_all_of_it_can_be_had";
    let Some(cuda) = open(TEST, 40 * MIB) else { return };
    let before = cuda.memory().unwrap();
    // 40 MiB where the driver takes the same each time that a context is made.
    let room = before.budget - before.overhead;
    assert!((20..60).contains(&(room >> 20)), "{before:?}");
    let mut held = Vec::new();
    let error = loop {
        match cuda.alloc(700_000 + held.len() * 1000) {
            Ok(buf) => held.push(buf),
            Err(error) => break error,
        }
        assert!(held.len() < 100);
    };
    let full: DeviceMemory = cuda.memory().unwrap();
    let Error::Budget { bytes, left, budget, .. } = error else { panic!("{error}") };
    assert_eq!((bytes, budget), (700_000 + held.len() * 1000, full.budget));
    assert_eq!(left, full.budget - full.overhead - full.used);
    // Little is lost to the cut of chunks: of this small pool's each has five of these buffers, and room for half of one.
    assert!(full.used > room / 100 * 85, "{full:?}");
    assert!(full.chunks <= room && full.peak == full.overhead + full.chunks);
    // What the driver says; it may take a little for its own books.
    let taken = before.free.saturating_sub(full.free);
    assert!((full.chunks..=full.chunks + 8 * MIB as u64).contains(&taken), "{taken} {full:?}");
    // Small chunks make room for a large one.
    drop(held);
    let most = room as usize / (2 * MIB) * (2 * MIB);
    let whole = cuda.alloc(most).unwrap();
    assert_eq!(cuda.memory().unwrap().used, most as u64);
    drop(whole);
    let memory = cuda.memory().unwrap();
    assert_eq!((memory.used, memory.peak_used), (0, most as u64));
    assert!(matches!(cuda.alloc(most + 1), Err(Error::Budget { .. })));
    assert!(matches!(cuda.alloc(usize::MAX), Err(Error::Budget { .. })));
}

/// Host memory on pages of its own, known to the device.
struct Registered {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
    registration: Option<Box<dyn Send + Sync>>,
}

impl Registered {
    fn new(cuda: &Cuda, bytes: usize) -> Registered {
        let memory = vec![0u8; bytes + 8192];
        let start = memory.as_ptr().align_offset(4096);
        let mut all = Registered { memory, start, bytes, registration: None };
        let first = NonNull::from(&mut all.slice()[0]);
        // SAFETY: the vector's memory stays where it is, and the registration is dropped before it.
        all.registration = Some(unsafe { cuda.register(first, bytes) }.unwrap());
        all
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.bytes]
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registration = None;
    }
}

#[test]
fn uploads_run_beside_the_work_and_are_followed() {
    let _alone = alone();
    let Some(cuda) = open("uploads_run_beside_the_work_and_are_followed", 32 * MIB) else { return };
    let len = MIB / 4;
    let mut host = Registered::new(&cuda, 2 * MIB);
    let ones = 1f32.to_le_bytes().repeat(len);
    let threes = 3f32.to_le_bytes().repeat(len);
    host.slice()[..MIB].copy_from_slice(&ones);
    host.slice()[MIB..].copy_from_slice(&threes);
    let sum = cuda.alloc(MIB).unwrap();
    let slot = cuda.alloc(MIB).unwrap();
    let mut after = cuda.fence().unwrap();
    let waits = cuda.host_waits();
    for round in 0..6 {
        let from = &host.slice()[round % 2 * MIB..][..MIB];
        // SAFETY: the bytes stay for the whole test. The slot is read by work before `after` and after `follow`.
        let uploaded = unsafe { cuda.upload(&slot, 0, from, Some(&after)) }.unwrap();
        cuda.follow(&uploaded).unwrap();
        add(&cuda, &sum, &slot, len).unwrap();
        after = cuda.fence().unwrap();
    }
    assert_eq!(cuda.host_waits(), waits, "nothing waits for the device until something is read");
    assert!(bytes(&cuda, &sum) == 12f32.to_le_bytes().repeat(len));
    assert_eq!(cuda.host_waits(), waits + 1);
    assert!(cuda.is_done(&after).unwrap());
    cuda.wait(&after).unwrap();
    assert_eq!(cuda.host_waits(), waits + 1, "what is done is not waited for");

    // Copies that come as early as they may: a slot is not written to before its work is done.
    for round in 0..6 {
        let from = &host.slice()[round % 2 * MIB..][..MIB];
        // SAFETY: as above.
        let uploaded = unsafe { cuda.upload(&slot, 0, from, Some(&after)) }.unwrap();
        cuda.follow(&uploaded).unwrap();
        add(&cuda, &sum, &slot, len).unwrap();
        after = cuda.fence().unwrap();
        if round == 5 {
            cuda.wait(&uploaded).unwrap();
        }
    }
    assert!(bytes(&cuda, &sum) == 24f32.to_le_bytes().repeat(len));

    // What is read into registered memory needs no copy on the host.
    cuda.read(&sum, 0, &mut host.slice()[100..][..MIB]).unwrap();
    assert!(host.slice()[100..][..MIB] == 24f32.to_le_bytes().repeat(len)[..]);

    // A buffer that is dropped while a copy to it is on its way: whoever gets its memory comes after the copy.
    host.slice().fill(7);
    for _ in 0..4 {
        let lost = cuda.alloc(MIB).unwrap();
        let address = lost.address();
        let fence = cuda.fence().unwrap();
        // SAFETY: the bytes stay; that the buffer goes is what is tested.
        let uploaded = unsafe { cuda.upload(&lost, 0, &host.slice()[..MIB], Some(&fence)) }.unwrap();
        drop((uploaded, lost));
        let fresh = cuda.alloc(MIB).unwrap();
        assert_eq!(fresh.address(), address);
        assert!(bytes(&cuda, &fresh).iter().all(|&b| b == 0));
        // All copies that were asked for are made before this one.
        // SAFETY: the bytes stay, and nothing that is not done uses the slot.
        let last = unsafe { cuda.upload(&slot, 0, &host.slice()[..16], None) }.unwrap();
        cuda.wait(&last).unwrap();
        assert!(bytes(&cuda, &fresh).iter().all(|&b| b == 0));
    }
}

#[test]
fn staged_bytes_stay_until_the_queue_has_read_them() {
    let _alone = alone();
    let Some(cuda) = open("staged_bytes_stay_until_the_queue_has_read_them", 16 * MIB) else { return };
    let sum = cuda.alloc(4000).unwrap();
    let waits = cuda.host_waits();
    let mut expected = vec![0f32; 1000];
    // Less than a half of the ring in all: nothing is waited for.
    for round in 0..400 {
        let numbers: Vec<f32> = (0..1000).map(|i| ((i * 7 + round) % 100) as f32).collect();
        expected.iter_mut().zip(&numbers).for_each(|(sum, number)| *sum += number);
        let staged: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let staged = cuda.staged(&staged).unwrap();
        add(&cuda, &sum, &staged, 1000).unwrap();
    }
    assert_eq!(cuda.host_waits(), waits);
    let expected: Vec<u8> = expected.iter().flat_map(|number| number.to_le_bytes()).collect();
    assert!(bytes(&cuda, &sum) == expected);
    assert_eq!(cuda.host_waits(), waits + 1);
}

#[test]
fn launches_that_cannot_be() {
    let _alone = alone();
    let Some(cuda) = open("launches_that_cannot_be", 16 * MIB) else { return };
    let launch = |kernel, shared, threads| {
        // SAFETY: for no numbers the kernel `add` touches nothing.
        unsafe { cuda.queue("check", kernel, &[0u64; 3], [1, 1], threads, shared) }
    };
    launch("add", 0, 256).unwrap();
    // More shared memory than a block has without asking.
    launch("add", 50 << 10, 256).unwrap();
    for (answer, words) in [
        (launch("no_such", 0, 256), "check: kernel no_such: this build has no such kernel"),
        (launch("null\0", 0, 256), "this build has no such kernel"),
        (launch("add", 16 * MIB, 256), "16777216 bytes of shared memory, a block can have"),
        (launch("add", 0, 1025), "cuLaunchKernel: CUDA_ERROR_INVALID_VALUE"),
    ] {
        let said = answer.unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
    }
    // The device is as good as before.
    launch("add", 0, 256).unwrap();
    cuda.wait(&cuda.fence().unwrap()).unwrap();
}

#[test]
fn devices_keep_apart() {
    let _alone = alone();
    let Some(cuda) = open("devices_keep_apart", 16 * MIB) else { return };
    let Some(other) =
        open_with("devices_keep_apart", &CudaSettings { host_threads: 1, ..Default::default() })
    else {
        return;
    };
    assert!(other.beside.is_some());
    assert!(matches!(other.host_view(b"bytes").map(CudaView::lies), Some(Lies::Host(b"bytes"))));
    let whole = cuda.alloc(100).unwrap();
    let Lies::Device(start, 30, _) = cuda.view(&whole, 7..37).unwrap().lies() else { panic!("30 bytes") };
    assert_eq!(start, whole.address().addr() as u64 + 7);
    assert_eq!(cuda.counter.total().calls, 0);
    let (mut buf, fence) = (other.alloc(8).unwrap(), other.fence().unwrap());
    for error in [
        cuda.write(&mut buf, 0, b"x").unwrap_err(),
        cuda.read(&buf, 0, &mut [0]).unwrap_err(),
        cuda.view(&buf, 0..1).map(|_| ()).unwrap_err(),
        cuda.follow(&fence).unwrap_err(),
        cuda.wait(&fence).unwrap_err(),
    ] {
        assert!(error.to_string().ends_with("a buffer or fence of another device"), "{error}");
    }
    // What outlives its device still has it.
    drop(other);
    drop((buf, fence));
    cuda.wait(&cuda.fence().unwrap()).unwrap();
}

#[test]
fn measurements() {
    let _alone = alone();
    let Some(cuda) = open("measurements", 16 * MIB) else { return };
    let buf = cuda.alloc(4096).unwrap();
    let (answer, milliseconds) = cuda.time(|| add(&cuda, &buf, &buf, 1000).map(|()| 5)).unwrap();
    assert!(answer == 5 && (0.0..60e3).contains(&milliseconds));
    let (up, within) = (cuda.measure_upload().unwrap(), cuda.measure_memory().unwrap());
    assert!(up > 1e6 && up < 1e13 && within > 1e6 && within < 1e14, "{up} {within}");
    assert!(cuda.memory().unwrap().used <= 4096);
    assert!(!cuda.name().is_empty() && cuda.capability() >= (7, 5) && cuda.multiprocessors() > 0);
    let all = devices().unwrap();
    assert_eq!((&all[0].name[..], all[0].unusable.as_ref()), (cuda.name(), None));
    assert!(all[0].free.is_some_and(|free| free <= all[0].total) && all[0].driver == cuda.driver());
}

#[test]
fn a_device_that_cannot_be_used_says_why() {
    let _alone = alone();
    const TEST: &str = "a_device_that_cannot_be_used_says_why";
    let why = |settings: &CudaSettings| match Cuda::open(settings) {
        Err(Error::Unusable(why)) => Some(why),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    let usual = CudaSettings::default();
    if !standin(TEST, "DRIVER=12040") {
        // Whatever there is: no panic, and a reason of one line.
        if let Some(why) = why(&usual) {
            assert!(!why.to_string().contains('\n'), "{why}");
        }
        return;
    }
    let needed = CudaVersion { major: 13, minor: 0 };
    let found = CudaVersion { major: 12, minor: 4 };
    assert_eq!(why(&usual), Some(Unusable::DriverTooOld { found, needed }));
    assert_eq!(devices().unwrap()[0].unusable, Some(Unusable::DriverTooOld { found, needed }));
    standin(TEST, "COMPUTE=70");
    assert!(matches!(why(&usual), Some(Unusable::Capability { found: (7, 0), .. })));
    standin(TEST, "DEVICES=0");
    assert_eq!(why(&usual), Some(Unusable::NoDevice));
    assert!(matches!(devices(), Err(Error::Unusable(Unusable::NoDevice))));
    standin(TEST, "");
    let second = CudaSettings { ordinal: 1, ..CudaSettings::default() };
    assert_eq!(why(&second), Some(Unusable::NoSuchDevice { ordinal: 1, count: 1 }));
    standin(TEST, "CONTEXT=100000000");
    let small = CudaSettings { vram: Some(100_000_000), ..CudaSettings::default() };
    // Unless this build has no kernels, which is found out later.
    if let Some(Unusable::Budget { budget, overhead }) = why(&small) {
        assert!(budget == 100_000_000 && (100_000_000..120_000_000).contains(&overhead), "{overhead}");
        let enough = CudaSettings { vram: Some(110_000_000), ..CudaSettings::default() };
        assert_eq!(why(&enough), None);
    } else {
        assert!(matches!(why(&small), Some(Unusable::KernelsNotBuilt { .. })));
    }
    standin(TEST, "");
}

#[test]
fn failures_name_the_call_and_what_may_have_done_it() {
    let _alone = alone();
    const TEST: &str = "failures_name_the_call_and_what_may_have_done_it";
    if !standin(TEST, "") {
        return;
    }
    // A call that fails and does no harm.
    let Some(cuda) = open(TEST, 16 * MIB) else { return };
    standin(TEST, "FAIL=cuEventRecord:1:304");
    let said = cuda.fence().unwrap_err().to_string();
    assert!(said.starts_with("cuEventRecord: ") && !said.contains("kernels"), "{said}");
    cuda.wait(&cuda.fence().unwrap()).unwrap();
    // One that fails where nobody can be told is told later.
    let host = Registered::new(&cuda, 4096);
    standin(TEST, "FAIL=cuMemHostUnregister:1:1");
    drop(host);
    let said = cuda.fence().unwrap_err().to_string();
    assert!(said.starts_with("cuMemHostUnregister: "), "{said}");
    cuda.fence().unwrap();
    // The driver has less than the budget: a smaller chunk does, and none is an error.
    standin(TEST, "FAIL=cuMemAlloc_v2:1:2");
    let small = cuda.alloc(1000).unwrap();
    assert_eq!(cuda.memory().unwrap().chunks, 2 * MIB as u64);
    standin(TEST, "FAIL=cuMemAlloc_v2:1:2,cuMemAlloc_v2:2:2");
    assert!(matches!(cuda.alloc(3 * MIB), Err(Error::OutOfMemory { device: "cuda", .. })));
    drop((small, cuda));

    // A kernel that fails.
    standin(TEST, "");
    let Some(cuda) = open(TEST, 16 * MIB) else { return };
    let buf = cuda.alloc(4096).unwrap();
    add(&cuda, &buf, &buf, 1000).unwrap();
    bytes(&cuda, &buf);
    // SAFETY: the driver is the stand-in, which finds out that these addresses are nobody's.
    let launched = unsafe { cuda.queue("scale", "scale_rows", &[4096u64, 4096, 8, 8], [1, 1], 256, 0) };
    let late = launched.is_ok();
    if late {
        add(&cuda, &buf, &buf, 1000).unwrap();
    }
    let said = cuda.read(&buf, 0, &mut [0; 4]).unwrap_err().to_string();
    assert!(said.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{said}");
    // A stand-in that runs everything at once fails in the launch.
    let kernels = if late { "scale scale_rows, add add" } else { "none" };
    assert!(said.ends_with(&format!("known to be good: {kernels}")), "{said}");
    assert_eq!(cuda.alloc(10).unwrap_err().to_string(), said);
    assert_eq!(cuda.fence().unwrap_err().to_string(), said);
    assert!(add(&cuda, &buf, &buf, 1000).unwrap_err().to_string().contains(&said));
    drop((buf, cuda));
    standin(TEST, "");
}
