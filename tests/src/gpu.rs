//! The CUDA device that tests run on, where there is one.

use crate::shared::skip;
use airllm_kernels::{Cuda, CudaSettings};

/// The first CUDA device, with a budget in bytes (`u64::MAX`: all there is) and so many threads of the host beside it.
/// `None` where none is usable, with a line that says why and that the test was skipped.
pub fn device(vram: u64, host_threads: usize) -> Option<Cuda> {
    let vram = (vram < u64::MAX).then_some(vram);
    match Cuda::open(&CudaSettings { ordinal: 0, vram, host_threads }) {
        Ok(device) => Some(device),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}
