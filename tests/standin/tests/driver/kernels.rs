//! Launches, and what kernels may not do.

use super::{Device, Flat, call, counted, fails, ok};
use cudarc::driver::sys::{self, CUfunction_attribute, CUresult};
use std::ptr::null_mut;

#[test]
fn kernels_run_in_every_order_of_threads() {
    let device = Device::new();
    let (x, y, stream) = (device.alloc(64), device.alloc(64), device.stream());
    device.write(x, &counted(64));
    let expected: Vec<f32> = (0..64).map(|i| ((i + 1) % 64) as f32).collect();
    for order in ["forward", "reverse", "random:7"] {
        device.standin.configure(&format!("ORDER={order}"));
        for kernel in ["check_neighbours", "check_no_barrier"] {
            ok!(cuMemsetD8Async(y, 0xff, 256, stream));
            assert_eq!(device.launch(kernel, Flat { y, x, len: 64 }, stream), CUresult::CUDA_SUCCESS);
            ok!(cuStreamSynchronize(stream));
            assert_eq!(device.read(y, 64) == expected, kernel == "check_neighbours", "{kernel}, {order}");
        }
    }
}

#[test]
fn the_library_holds_every_folder_of_kernels() {
    let device = Device::new();
    for name in ["add", "copy", "gather", "rms_norm", "rope", "check_shared"] {
        assert!(device.function(name).is_ok(), "{name}");
    }
}

#[test]
fn parameters_are_taken_at_the_call() {
    let device = Device::new();
    let (x, y, stream) = (device.alloc(64), device.alloc(64), device.stream());
    device.write(x, &counted(64));
    let function = device.function("copy").unwrap();
    let mut params = Flat { y, x, len: 64 };
    let mut list = [(&raw mut params).cast()];
    ok!(cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, list.as_mut_ptr(), null_mut()));
    params.len = 0;
    ok!(cuStreamSynchronize(stream));
    assert_eq!((device.read(y, 64), params.len), (counted(64), 0));
}

#[test]
fn kernels_that_fail_say_so_and_fail_for_good() {
    let device = Device::new();
    let (x, y, stream) = (device.alloc(64), device.alloc(64), device.stream());
    assert_eq!(device.launch("check_deadlock", Flat { y, x, len: 64 }, stream), CUresult::CUDA_SUCCESS);
    fails!(CUDA_ERROR_LAUNCH_FAILED, cuStreamSynchronize(stream));
    let said = device.standin.message();
    assert!(
        said.starts_with("the kernel check_deadlock: ") && said.contains("wait for each other"),
        "{said}"
    );
    fails!(CUDA_ERROR_LAUNCH_FAILED, cuStreamQuery(stream));
}

#[test]
fn kernels_that_touch_what_they_may_not_are_stopped() {
    // The address sanitizer ends the process itself.
    if std::env::var_os("AIRLLM_EMU_SANITIZE").is_some() {
        return;
    }
    let device = Device::new();
    let stream = device.stream();
    let stopped = |params: Flat, words: &str| {
        assert_eq!(device.launch("check_neighbours", params, stream), CUresult::CUDA_SUCCESS);
        fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
        let said = device.standin.message();
        assert!(said.contains("the kernel check_neighbours") && said.contains(words), "{said}");
        device.standin.reset();
    };
    let (x, y) = (device.alloc(64), device.alloc(64));
    device.write(x, &counted(64));
    // Too short, a null address, memory that is freed, and that of the host.
    stopped(Flat { y: y + 128, x, len: 64 }, "touched ");
    stopped(Flat { y: 0, x, len: 64 }, "where nothing was allocated");
    let freed = device.alloc(64);
    ok!(cuMemFree_v2(freed));
    stopped(
        Flat { y, x: freed, len: 64 },
        "at byte 8 of its parameters, byte 0 of 256 bytes that were freed",
    );
    let host = counted(64);
    stopped(Flat { y, x: host.as_ptr() as u64, len: 64 }, "an address of host memory that is not registered");
    // Freed after the launch was queued.
    let late = device.alloc(64);
    assert_eq!(
        device.launch("check_neighbours", Flat { y, x: late, len: 64 }, stream),
        CUresult::CUDA_SUCCESS
    );
    ok!(cuMemFree_v2(late));
    fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
    assert!(device.standin.message().contains("the kernel check_neighbours needs 256 bytes that were freed"));
    device.standin.reset();
    // And then kernels run as before; page-locked memory is theirs too.
    let pinned = device.pinned(&counted(64));
    assert_eq!(device.launch("copy", Flat { y, x: pinned as u64, len: 64 }, stream), CUresult::CUDA_SUCCESS);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(device.read(y, 64), counted(64));
}

#[test]
fn launches_that_no_device_takes() {
    let device = Device::new();
    let (x, stream) = (device.alloc(64), device.stream());
    assert_eq!(device.function("no_such_kernel").unwrap_err(), CUresult::CUDA_ERROR_NOT_FOUND);
    let function = device.function("copy").unwrap();
    let launch = |grid: [u32; 2], threads, shared| {
        let mut params = Flat { y: x, x, len: 0 };
        let mut list = [(&raw mut params).cast()];
        call!(cuLaunchKernel(
            function,
            grid[0],
            grid[1],
            1,
            threads,
            1,
            1,
            shared,
            stream,
            list.as_mut_ptr(),
            null_mut()
        ))
    };
    for (grid, threads, shared) in
        [([0, 1], 64, 0), ([1, 65_536], 64, 0), ([1, 1], 257, 0), ([1, 1], 64, 49_153)]
    {
        assert_eq!(
            launch(grid, threads, shared),
            CUresult::CUDA_ERROR_INVALID_VALUE,
            "{grid:?} {threads} {shared}"
        );
    }
    let opt_in = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    fails!(CUDA_ERROR_INVALID_VALUE, cuFuncSetAttribute(function, opt_in, 101_377));
    ok!(cuFuncSetAttribute(function, opt_in, 101_376));
    assert_eq!(launch([2, 2], 256, 101_376), CUresult::CUDA_SUCCESS);
    ok!(cuStreamSynchronize(stream));
    let (mut offset, mut bytes) = (1, 0);
    ok!(cuFuncGetParamInfo(function, 0, &mut offset, &mut bytes));
    assert_eq!((offset, bytes), (0, size_of::<Flat>()));
    fails!(CUDA_ERROR_INVALID_VALUE, cuFuncGetParamInfo(function, 1, &mut offset, &mut bytes));
    let mut module = null_mut();
    fails!(CUDA_ERROR_INVALID_IMAGE, cuModuleLoadData(&mut module, c"no image at all".as_ptr().cast()));
    let mut blocks = 0;
    ok!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, 256, 0));
    assert_eq!(blocks, 6);
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    let mut threads = 0;
    ok!(cuFuncGetAttribute(&mut threads, attribute, function));
    assert_eq!(threads, 256);
}
