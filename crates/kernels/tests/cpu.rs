//! The CPU device against the cases that every device must pass.

use airllm_kernels::{Cpu, conformance};

// The best instructions of this machine, whatever they are.
conformance!(best_one_thread, Cpu::new(1));
conformance!(best_two_threads, Cpu::new(2));
conformance!(best_three_threads, Cpu::new(3));

conformance!(portable_one_thread, Cpu::portable(1));
conformance!(portable_two_threads, Cpu::portable(2));
conformance!(portable_three_threads, Cpu::portable(3));

// Products in f32.
conformance!(floats_one_thread, Cpu::floats(1), matmul not_finite matmul_prompt company);
conformance!(floats_two_threads, Cpu::floats(2), matmul not_finite matmul_prompt company);
