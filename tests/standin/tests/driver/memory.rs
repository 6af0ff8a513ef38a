//! What may be allocated, copied and freed.

use super::{Device, call, counted, fails, ok};
use cudarc::driver::sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
use std::ptr::null_mut;

#[test]
fn new_memory_is_nan_and_aligned() {
    let device = Device::new();
    for count in [1, 63, 64, 1000, 5_000_000] {
        let at = device.alloc(count);
        assert_eq!(at % 256, 0);
        let numbers = device.read(at, count);
        assert!(numbers.iter().all(|x| x.to_bits() == u32::MAX), "{count}");
        ok!(cuMemFree_v2(at));
        fails!(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(at));
    }
}

#[test]
fn large_memory_costs_nothing_until_it_is_written() {
    let device = Device::new();
    let bytes = 4usize << 30;
    let mut at = 0;
    ok!(cuMemAlloc_v2(&mut at, bytes));
    let last = at + bytes as u64 - 4;
    assert!(device.read(last, 1)[0].is_nan());
    device.write(last, &[5.0]);
    assert_eq!(device.read(last, 1), [5.0]);
    assert!(device.read(last - 4, 1)[0].is_nan());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kibibytes: usize = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kibibytes < 1 << 20, "{kibibytes} KiB");
}

#[test]
fn the_cap_holds() {
    let device = Device::with("MEMORY=1048576 CONTEXT=65536");
    let (mut free, mut total) = (0, 0);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    // The context was made with these switches.
    assert_eq!((free, total), (1_048_576 - 65_536, 1_048_576));
    let mut at = 0;
    fails!(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&mut at, free + 1));
    ok!(cuMemAlloc_v2(&mut at, free));
    let mut more = 0;
    fails!(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&mut more, 1));
    ok!(cuMemFree_v2(at));
    let small = device.alloc(1);
    assert_eq!(device.standin.used(), 65_536 + 512);
    assert_eq!(device.standin.peak(), 1_048_576);
    ok!(cuMemFree_v2(small));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemAlloc_v2(&mut at, 0));
}

#[test]
fn memory_is_freed_in_the_order_of_its_stream() {
    let device = Device::with("MEMORY=4096");
    let stream = device.stream();
    let (mut one, mut two, mut pool) = (0, 0, null_mut());
    ok!(cuMemAllocAsync(&mut one, 4096, stream));
    ok!(cuMemsetD8Async(one, 1, 4096, stream));
    ok!(cuMemFreeAsync(one, stream));
    assert_eq!(device.standin.used(), 4096, "nobody has waited");
    ok!(cuMemAllocAsync(&mut two, 2048, stream));
    assert_ne!(one, two);
    assert_eq!(device.standin.used(), 2048);
    ok!(cuDeviceGetDefaultMemPool(&mut pool, 0));
    let mut high = 0u64;
    ok!(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut high).cast()));
    assert_eq!(high, 4096);
}

#[test]
fn addresses_must_lie_in_one_allocation() {
    let device = Device::new();
    let (x, stream, numbers) = (device.alloc(64), device.stream(), counted(65));
    let (host, mut back) = (numbers.as_ptr().cast(), [0f32; 65]);
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(x, host, 260));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoDAsync_v2(x + 4, host, 256, stream));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), x - 4, 8));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(host as u64, host, 4));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(x, x as *const _, 4));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(x + 1, 0, 256, stream));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemsetD32Async(x + 2, 0, 1, stream));
    let pinned = device.pinned(&[1.0; 4]);
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoDAsync_v2(x, pinned.cast(), 20, stream));
    ok!(cuMemcpyHtoDAsync_v2(x, pinned.cast(), 16, stream));
    ok!(cuMemcpyHtoD_v2(x + 256, host, 0));
    let y = device.alloc(64);
    ok!(cuMemFree_v2(y));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoD_v2(x, y, 4));
    let old = device.pinned(&[1.0; 4]);
    ok!(cuMemFreeHost(old.cast()));
    fails!(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(x, old.cast(), 16));
    assert_eq!(device.standin.message(), "", "refused, and nothing happened");
}

#[test]
fn freed_memory_that_queued_work_needs_is_an_error_that_stays() {
    let device = Device::new();
    let (x, stream) = (device.alloc(4), device.stream());
    ok!(cuMemsetD8Async(x, 0, 16, stream));
    ok!(cuMemFree_v2(x));
    fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
    assert_eq!(device.standin.message(), "a memset needs 16 bytes that were freed while it was queued");
    fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
    fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemAlloc_v2(&mut 0, 4));
    device.standin.reset();
    ok!(cuCtxSynchronize());
}

#[test]
fn host_memory_that_queued_work_needs_must_stay() {
    let device = Device::new();
    let (x, stream, pinned) = (device.alloc(4), device.stream(), device.pinned(&[1.0; 4]));
    ok!(cuMemcpyHtoDAsync_v2(x, pinned.cast(), 16, stream));
    fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemFreeHost(pinned.cast()));
    assert!(device.standin.message().contains("16 bytes of host memory were freed while queued"));
    device.standin.reset();

    let mut memory = vec![1f32; 1024];
    ok!(cuMemHostRegister_v2(memory.as_mut_ptr().cast(), 4096, 0));
    ok!(cuMemcpyHtoDAsync_v2(x, memory.as_ptr().cast(), 16, stream));
    ok!(cuStreamSynchronize(stream));
    ok!(cuMemHostUnregister(memory.as_mut_ptr().cast()));
}

#[test]
fn calls_fail_where_the_test_wants_it() {
    let device = Device::with("FAIL=cuMemAlloc_v2:2:2,cuMemsetD8_v2:1");
    let x = device.alloc(1);
    fails!(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&mut 0, 4));
    device.alloc(1);
    fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemsetD8_v2(x, 0, 4));
    fails!(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemsetD8_v2(x, 0, 4));
    assert_eq!(device.standin.calls("cuMemAlloc_v2"), 3);
    assert!(device.standin.message().contains("cuMemsetD8_v2"));
}
