//! Verbs against the cases that every device must pass.

use airllm_kernels::conformance::{self, Verdict};
use airllm_tests::gpu;

/// Each list of cases, on a device whose products have their weights on the device, and where `host` is said on one that
/// computes them on the host.
macro_rules! conforms {
    ($module:ident, $threads:expr; $($verb:ident)+) => {
        mod $module {
            use super::*;

            $(
                #[test]
                fn $verb() -> Verdict {
                    gpu::device(u64::MAX, $threads).map_or(Ok(()), |device| conformance::$verb(&device))
                }
            )+
        }
    };
}

conforms! {
    device, 0;
    decode matmul not_finite rms_norm rms_norm_rows add_bias add gated reorder scale_rows scatter_add place
    rope store attend gather refusals empty matmul_prompt attend_prompt company
}

// With a thread of the host beside it, views of host memory are computed there.
conforms! {
    beside, 1;
    decode matmul not_finite rms_norm rms_norm_rows add_bias reorder refusals empty company
}
