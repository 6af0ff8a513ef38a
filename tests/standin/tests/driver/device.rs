//! The device and its contexts.

use super::{Device, Standin, call, fails, ok};
use cudarc::driver::sys::CUdevice_attribute;
use std::ptr::null_mut;

#[test]
fn the_device_says_what_it_is() {
    let _device = Device::with("DRIVER=12040 COMPUTE=75 MEMORY=123456789");
    let (mut version, mut count, mut bytes) = (0, 0, 0);
    ok!(cuDriverGetVersion(&mut version));
    ok!(cuDeviceGetCount(&mut count));
    ok!(cuDeviceTotalMem_v2(&mut bytes, 0));
    assert_eq!((version, count, bytes), (12_040, 1, 123_456_789));
    let mut name = [0u8; 64];
    ok!(cuDeviceGetName(name.as_mut_ptr().cast(), 64, 0));
    assert!(name.starts_with(b"AirLLM stand-in\0"));
    for (attribute, expected) in [
        (CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 7),
        (CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 5),
        (CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49_152),
    ] {
        let mut value = 0;
        ok!(cuDeviceGetAttribute(&mut value, attribute, 0));
        assert_eq!(value, expected, "{attribute:?}");
    }
    fails!(CUDA_ERROR_INVALID_DEVICE, cuDeviceGet(&mut 0, 1));
}

#[test]
fn a_machine_without_a_device() {
    let _standin = Standin::with("DEVICES=0");
    fails!(CUDA_ERROR_NO_DEVICE, cuInit(0));
}

#[test]
fn work_needs_a_context_of_its_thread() {
    let device = Device::new();
    let (mut own, mut now) = (null_mut(), null_mut());
    std::thread::spawn(|| fails!(CUDA_ERROR_INVALID_CONTEXT, cuCtxSynchronize())).join().unwrap();
    ok!(cuCtxCreate_v2(&mut own, 0, 0));
    let at = device.alloc(1);
    let stream = device.stream();
    ok!(cuMemsetD8Async(at, 0, 4, stream));
    ok!(cuCtxDestroy_v2(own));
    assert_eq!(device.standin.used(), 0);
    ok!(cuCtxGetCurrent(&mut now));
    assert!(!now.is_null() && now != own);
    fails!(CUDA_ERROR_INVALID_HANDLE, cuStreamSynchronize(stream));
    fails!(CUDA_ERROR_INVALID_CONTEXT, cuCtxSetCurrent(own));
}
