//! Capture and graphs.

use super::{Device, Flat, call, counted, fails, ok};
use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as THREAD;
use cudarc::driver::sys::{CUgraphExec, CUresult, CUstream, CUstreamCaptureStatus};
use std::ptr::null_mut;

fn end(stream: CUstream) -> CUgraphExec {
    let (mut graph, mut executable) = (null_mut(), null_mut());
    ok!(cuStreamEndCapture(stream, &mut graph));
    ok!(cuGraphInstantiateWithFlags(&mut executable, graph, 0));
    ok!(cuGraphDestroy(graph));
    executable
}

#[test]
fn a_graph_is_replayed() {
    let device = Device::new();
    let (stream, x, y) = (device.stream(), device.alloc(64), device.alloc(64));
    let pinned = device.pinned(&counted(64));
    device.write(y, &[0.0; 64]);
    ok!(cuStreamBeginCapture_v2(stream, THREAD));
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    ok!(cuStreamIsCapturing(stream, &mut status));
    assert_eq!(status, CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    ok!(cuMemcpyHtoDAsync_v2(x, pinned.cast(), 256, stream));
    assert_eq!(device.launch("add", Flat { y, x, len: 64 }, stream), CUresult::CUDA_SUCCESS);
    let executable = end(stream);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(device.read(y, 64), [0.0; 64], "captured, not run");
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    // SAFETY: the numbers are there, and no copy is queued.
    unsafe { pinned.add(1).write(10.0) };
    ok!(cuGraphLaunch(executable, stream));
    assert_eq!(device.read(y, 2), [0.0, 1.0], "lazy as everything");
    ok!(cuGraphExecDestroy(executable));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(device.read(y, 3), [0.0, 11.0, 4.0]);
}

#[test]
fn events_take_other_streams_into_a_capture_and_back() {
    let device = Device::new();
    let (stream, side, fork, join) = (device.stream(), device.stream(), device.event(), device.event());
    let x = device.alloc(1);
    let forked = |joins: bool| {
        ok!(cuStreamBeginCapture_v2(stream, THREAD));
        ok!(cuEventRecord(fork, stream));
        ok!(cuStreamWaitEvent(side, fork, 0));
        ok!(cuMemsetD32Async(x, 0x3f80_0000, 1, side));
        ok!(cuEventRecord(join, side));
        if joins {
            ok!(cuStreamWaitEvent(stream, join, 0));
        }
    };
    forked(true);
    fails!(CUDA_ERROR_CAPTURED_EVENT, cuEventSynchronize(join));
    let executable = end(stream);
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(device.read(x, 1), [1.0]);
    forked(false);
    fails!(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(stream, &mut null_mut()));
    // Both are out of it.
    ok!(cuMemsetD32Async(x, 0, 1, side));
    ok!(cuStreamSynchronize(side));
    assert_eq!(device.read(x, 1), [0.0]);
}

#[test]
fn what_a_capture_does_not_allow() {
    let device = Device::new();
    let (stream, other, event) = (device.stream(), device.stream(), device.event());
    let x = device.alloc(1);
    ok!(cuEventRecord(event, other));
    let mut graph = null_mut();
    let spoilt = |by: CUresult, error: CUresult| {
        assert_eq!(by, error);
        fails!(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &mut null_mut()));
    };
    ok!(cuStreamBeginCapture_v2(stream, THREAD));
    spoilt(call!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    ok!(cuStreamBeginCapture_v2(stream, THREAD));
    spoilt(call!(cuStreamWaitEvent(stream, event, 0)), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    ok!(cuStreamBeginCapture_v2(stream, THREAD));
    spoilt(call!(cuMemAlloc_v2(&mut 0, 4)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    ok!(cuStreamBeginCapture_v2(stream, THREAD));
    ok!(cuMemsetD8Async(x, 0, 4, other));
    ok!(cuStreamSynchronize(other));
    ok!(cuStreamEndCapture(stream, &mut graph));
    ok!(cuGraphDestroy(graph));
    fails!(CUDA_ERROR_ILLEGAL_STATE, cuStreamEndCapture(stream, &mut graph));
}
