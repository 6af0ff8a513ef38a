//! When queued work runs.

use super::{Device, Flat, call, counted, fails, ok};
use cudarc::driver::sys::CUresult;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn copies_read_page_locked_memory_when_they_run_and_other_memory_at_the_call() {
    let device = Device::new();
    let (stream, to, also) = (device.stream(), device.alloc(4), device.alloc(4));
    let pinned = device.pinned(&[1.0; 4]);
    let mut pageable = [1f32; 4];
    ok!(cuMemcpyHtoDAsync_v2(to, pinned.cast(), 16, stream));
    ok!(cuMemcpyHtoDAsync_v2(also, pageable.as_ptr().cast(), 16, stream));
    // SAFETY: four numbers are there; the race with the copy is the point.
    unsafe { pinned.write(2.0) };
    pageable[0] = 2.0;
    assert!(device.read(to, 4).iter().all(|x| x.is_nan()), "nobody waited for the stream");
    ok!(cuStreamSynchronize(stream));
    assert_eq!(device.read(to, 4), [2.0, 1.0, 1.0, 1.0]);
    assert_eq!(device.read(also, 4), [1.0; 4]);
    assert_eq!(pageable[0], 2.0);
}

#[test]
fn registered_memory_is_read_when_copies_run() {
    let device = Device::new();
    let (stream, to) = (device.stream(), device.alloc(1024));
    let mut memory = vec![1f32; 1024];
    let start: *mut f32 = memory.as_mut_ptr();
    ok!(cuMemHostRegister_v2(start.cast(), 4096, 0));
    fails!(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(start.cast(), 4096, 0));
    ok!(cuMemcpyHtoDAsync_v2(to, start.cast(), 4096, stream));
    // SAFETY: the numbers are there; the race with the copy is the point.
    unsafe { start.add(7).write(3.0) };
    ok!(cuStreamSynchronize(stream));
    assert_eq!(device.read(to, 8)[7], 3.0);
    ok!(cuMemHostUnregister(start.cast()));
    fails!(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(start.cast()));
}

/// A copy in one stream, a kernel that reads it in another; what the kernel gives.
fn copy_then_kernel(device: &Device, waits: bool) -> Vec<f32> {
    let (copies, computes, event) = (device.stream(), device.stream(), device.event());
    let (x, y, pinned) = (device.alloc(64), device.alloc(64), device.pinned(&counted(64)));
    ok!(cuMemcpyHtoDAsync_v2(x, pinned.cast(), 256, copies));
    ok!(cuEventRecord(event, copies));
    if waits {
        ok!(cuStreamWaitEvent(computes, event, 0));
    }
    assert_eq!(device.launch("copy", Flat { y, x, len: 64 }, computes), CUresult::CUDA_SUCCESS);
    ok!(cuStreamSynchronize(computes));
    device.read(y, 64)
}

#[test]
fn a_missing_wait_gives_nan() {
    let device = Device::new();
    assert_eq!(copy_then_kernel(&device, true), counted(64));
    assert!(copy_then_kernel(&device, false).iter().all(|x| x.is_nan()));
    device.standin.configure("IGNORE_WAITS=1");
    assert!(copy_then_kernel(&device, true).iter().all(|x| x.is_nan()));
    device.standin.configure("MODE=eager");
    assert_eq!(copy_then_kernel(&device, false), counted(64));
}

/// A kernel in one stream, then a copy in another to what the kernel reads; what the kernel gives.
fn kernel_then_copy(device: &Device, waits: bool) -> Vec<f32> {
    let (copies, computes, event) = (device.stream(), device.stream(), device.event());
    let (x, y, pinned) = (device.alloc(64), device.alloc(64), device.pinned(&[7.0; 64]));
    device.write(x, &counted(64));
    assert_eq!(device.launch("copy", Flat { y, x, len: 64 }, computes), CUresult::CUDA_SUCCESS);
    ok!(cuEventRecord(event, computes));
    if waits {
        ok!(cuStreamWaitEvent(copies, event, 0));
    }
    ok!(cuMemcpyHtoDAsync_v2(x, pinned.cast(), 256, copies));
    ok!(cuStreamSynchronize(computes));
    ok!(cuStreamSynchronize(copies));
    assert_eq!(device.read(x, 64), [7.0; 64]);
    device.read(y, 64)
}

#[test]
fn memory_that_is_filled_too_early_shows_where_copies_run_early() {
    let device = Device::new();
    for mode in ["lazy", "early", "eager", "random:1", "random:2", "random:3"] {
        device.standin.configure(&format!("MODE={mode}"));
        assert_eq!(kernel_then_copy(&device, true), counted(64), "{mode}");
    }
    device.standin.configure("MODE=lazy");
    assert_eq!(kernel_then_copy(&device, false), counted(64), "by luck");
    device.standin.configure("MODE=early");
    assert_eq!(kernel_then_copy(&device, false), [7.0; 64]);
    let mut seen = [false; 2];
    for seed in 0..60 {
        device.standin.configure(&format!("MODE=random:{seed}"));
        seen[usize::from(kernel_then_copy(&device, false) == [7.0; 64])] = true;
    }
    assert_eq!(seen, [true; 2], "now and then");
}

#[test]
fn a_wait_is_for_the_record_before_it() {
    let device = Device::new();
    let (copies, other, event) = (device.stream(), device.stream(), device.event());
    let (x, pinned) = (device.alloc(8), device.pinned(&counted(8)));
    // A wait for an event that was never recorded is none.
    ok!(cuStreamWaitEvent(other, event, 0));
    ok!(cuMemcpyHtoDAsync_v2(x, pinned.cast(), 16, copies));
    ok!(cuEventRecord(event, copies));
    ok!(cuStreamWaitEvent(other, event, 0));
    ok!(cuMemcpyHtoDAsync_v2(x + 16, pinned.cast(), 16, copies));
    ok!(cuEventRecord(event, copies));
    ok!(cuStreamSynchronize(other));
    let half = device.read(x, 8);
    assert_eq!(half[..4], [0.0, 1.0, 2.0, 3.0]);
    assert!(half[4..].iter().all(|x| x.is_nan()), "{half:?}");
    ok!(cuEventSynchronize(event));
    assert_eq!(device.read(x, 8)[4..], [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn two_streams_that_wait_for_each_other_in_turns() {
    let device = Device::new();
    let (one, two) = (device.stream(), device.stream());
    let (x, y) = (device.alloc(64), device.alloc(64));
    device.write(x, &[1.0; 64]);
    device.write(y, &[1.0; 64]);
    for _ in 0..8 {
        for (stream, to, from, next) in [(one, x, y, two), (two, y, x, one)] {
            assert_eq!(
                device.launch("add", Flat { y: to, x: from, len: 64 }, stream),
                CUresult::CUDA_SUCCESS
            );
            let event = device.event();
            ok!(cuEventRecord(event, stream));
            ok!(cuStreamWaitEvent(next, event, 0));
            // What is queued outlives the event.
            ok!(cuEventDestroy_v2(event));
        }
    }
    ok!(cuStreamSynchronize(two));
    // Fibonacci: 1, 1, and 16 more.
    assert_eq!((device.read(x, 1)[0], device.read(y, 1)[0]), (1597.0, 2584.0));
}

#[test]
fn queries_say_not_ready_and_then_move_on() {
    let device = Device::new();
    let (stream, event, later) = (device.stream(), device.event(), device.event());
    let (x, pinned) = (device.alloc(4), device.pinned(&counted(4)));
    ok!(cuEventQuery(event));
    ok!(cuStreamQuery(stream));
    ok!(cuMemcpyHtoDAsync_v2(x, pinned.cast(), 16, stream));
    ok!(cuEventRecord(event, stream));
    ok!(cuMemsetD32Async(x, 0x4000_0000, 2, stream));
    ok!(cuEventRecord(later, stream));
    fails!(CUDA_ERROR_NOT_READY, cuEventQuery(event));
    assert!(device.read(x, 1)[0].is_nan());
    ok!(cuEventQuery(event));
    assert_eq!(device.read(x, 4), counted(4), "up to the event and not beyond");
    let mut time = 0f32;
    fails!(CUDA_ERROR_NOT_READY, cuEventElapsedTime_v2(&mut time, event, later));
    fails!(CUDA_ERROR_NOT_READY, cuStreamQuery(stream));
    ok!(cuStreamQuery(stream));
    assert_eq!(device.read(x, 4), [2.0, 2.0, 2.0, 3.0]);
    ok!(cuEventElapsedTime(&mut time, event, later));
    assert!(time >= 0.0);
    ok!(cuEventElapsedTime(&mut time, later, event));
    assert!(time <= 0.0);
}

#[test]
fn copies_to_memory_that_is_not_page_locked_wait() {
    let device = Device::new();
    let (stream, x) = (device.stream(), device.alloc(4));
    ok!(cuMemsetD32Async(x, 0x3f80_0000, 4, stream));
    let mut numbers = [0f32; 4];
    ok!(cuMemcpyDtoHAsync_v2(numbers.as_mut_ptr().cast(), x, 16, stream));
    assert_eq!(numbers, [1.0; 4]);
    let pinned = device.pinned(&[0.0; 4]);
    ok!(cuMemcpyDtoHAsync_v2(pinned.cast(), x, 16, stream));
    // SAFETY: four numbers are there.
    assert_eq!(unsafe { pinned.read() }, 0.0);
    ok!(cuCtxSynchronize());
    // SAFETY: as above.
    assert_eq!(unsafe { pinned.read() }, 1.0);
}

#[test]
fn the_stream_0_waits_for_blocking_streams_only() {
    let device = Device::new();
    let mut blocking = null_mut();
    ok!(cuStreamCreate(&mut blocking, 0));
    let (x, y) = (device.alloc(1), device.alloc(1));
    ok!(cuMemsetD32Async(x, 0, 1, blocking));
    ok!(cuMemsetD32Async(y, 0, 1, device.stream()));
    assert_eq!(device.read(x, 1), [0.0]);
    assert!(device.read(y, 1)[0].is_nan());
}

#[test]
fn a_stream_that_is_destroyed_ends_its_work() {
    let device = Device::new();
    let (stream, x) = (device.stream(), device.alloc(1));
    ok!(cuMemsetD32Async(x, 0, 1, stream));
    ok!(cuStreamDestroy_v2(stream));
    assert_eq!(device.read(x, 1), [0.0]);
    fails!(CUDA_ERROR_INVALID_HANDLE, cuStreamSynchronize(stream));
}

static CALLED: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn called(number: *mut c_void) {
    CALLED.store(number as usize as u32, Ordering::SeqCst);
    // Host functions may not call CUDA.
    fails!(CUDA_ERROR_NOT_PERMITTED, cuCtxSynchronize());
}

#[test]
fn host_functions_run_in_their_turn() {
    let device = Device::new();
    let stream = device.stream();
    ok!(cuLaunchHostFunc(stream, Some(called), 7 as *mut c_void));
    assert_eq!(CALLED.load(Ordering::SeqCst), 0);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(CALLED.load(Ordering::SeqCst), 7);
}
