//! Launches of kernels by their names.

use super::{Emu, EmuBuf, EmuView, Order, Rung};
use crate::launch::{Grid, Launcher, Params, Ready, Staged, Where};
use crate::shape::Counter;
use crate::{Cpu, Error, Result};
use std::ffi::{CString, c_char, c_int, c_void};

unsafe extern "C" {
    fn airllm_emu_launch(
        name: *const c_char,
        params: *const c_void,
        bytes: usize,
        grid: *const u32,
        threads: u32,
        dynamic: usize,
        order: u32,
        seed: u64,
        error: *mut c_char,
        error_bytes: usize,
    ) -> c_int;
}

/// Bytes that are read where they lie: every launch has ended when it returns.
#[derive(Debug)]
pub struct EmuStaged(*const u8);

impl Staged for EmuStaged {
    fn address(&self) -> *const u8 {
        self.0
    }
}

impl Launcher for Emu {
    type Staged = EmuStaged;

    unsafe fn launch<P: Params>(
        &self,
        verb: &'static str,
        kernel: &str,
        params: &P,
        grid: Grid,
    ) -> Result<()> {
        let failed = |what: String| Error::Kernel { verb, kernel: kernel.into(), what };
        let Some([across, along]) = grid.checked().map_err(failed)? else { return Ok(()) };
        if !supported() {
            return Err(failed(
                "this processor lacks AVX2, FMA or F16C, which the kernels are compiled for".into(),
            ));
        }
        let name = CString::new(kernel).map_err(|e| failed(e.to_string()))?;
        let blocks = [across, along, 1];
        let (order, seed) = match self.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let mut error = [0u8; 1024];
        // SAFETY: the pointers lead to what the function says it reads: a name that ends, a structure of `bytes` bytes,
        // three numbers, room for `error_bytes` characters. The kernel exists and takes a structure of this size, or
        // the function refuses. What the kernel does with the pointers in it, the caller vouches for.
        let code = unsafe {
            airllm_emu_launch(
                name.as_ptr(),
                std::ptr::from_ref(params).cast(),
                size_of::<P>(),
                blocks.as_ptr(),
                grid.threads,
                grid.shared,
                order,
                seed,
                error.as_mut_ptr().cast(),
                error.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let end = error.iter().position(|&c| c == 0).unwrap_or(error.len());
        Err(failed(String::from_utf8_lossy(&error[..end]).into_owned()))
    }

    fn address(&self, buf: &EmuBuf) -> *mut u8 {
        buf.start()
    }

    fn locate<'a>(&self, view: EmuView<'a>) -> Where<'a>
    where
        Self: 'a,
    {
        Where::Device(view.start(), view.len())
    }

    fn stage(&self, bytes: &[u8]) -> Result<EmuStaged> {
        Ok(EmuStaged(bytes.as_ptr()))
    }

    fn temporary(&self, bytes: usize) -> Result<EmuBuf> {
        EmuBuf::zeroed(bytes).ok_or(Error::OutOfMemory { bytes, device: "emu" })
    }

    fn beside(&self) -> Option<&Cpu> {
        None
    }

    fn ready(&self) -> &Ready<EmuBuf> {
        &self.ready
    }

    fn rung(&self) -> Rung {
        self.rung
    }

    fn counter(&self) -> &Counter {
        &self.counter
    }
}

/// Whether this machine has the instructions that `build.rs` lets the compiler use.
fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi;

    const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];

    /// What a kernel of `kernels/emu/checks.cu` makes of the numbers 0 to 63.
    fn run(kernel: &str, order: Order) -> Result<Vec<f32>> {
        #[repr(align(16))]
        struct Aligned([f32; 64]);
        let x = Aligned(std::array::from_fn(|i| i as f32));
        let mut y = vec![-1f32; 64];
        let params = abi::Flat { y: y.as_mut_ptr(), x: x.0.as_ptr(), len: 64 };
        let grid = Grid { blocks: [1, 1], threads: 64, shared: 0 };
        // SAFETY: the kernels read and write the first 64 numbers of `x` and `y`.
        unsafe { Emu::new(order).launch("check", kernel, &params, grid)? };
        Ok(y)
    }

    #[test]
    fn a_missing_barrier_shows() {
        let expected: Vec<f32> = (0..64).map(|i| ((i + 1) % 64) as f32).collect();
        for order in ORDERS {
            assert_eq!(run("check_neighbours", order).unwrap(), expected, "{order:?}");
        }
        let forward = run("check_no_barrier", Order::Forward).unwrap();
        let reverse = run("check_no_barrier", Order::Reverse).unwrap();
        assert!(forward[0].is_nan() && forward[63] == 0.0, "{forward:?}");
        assert!(reverse[0] == 1.0 && reverse[63].is_nan(), "{reverse:?}");
    }

    #[test]
    fn lanes_with_masks_of_their_own() {
        let expected: Vec<f32> = (0..64)
            .map(|i| match (i % 2, i % 32) {
                // The sum of 1, 3, ..., 31, and of those and 16 times 32.
                (1, _) => 256.0 + (i / 32 * 16 * 32) as f32,
                // The last has no lane below; of the lanes up to 8, four are even; some lane is 4, not all.
                (_, 30) => i as f32 + 104.0,
                _ => (i + 2) as f32 + 104.0,
            })
            .collect();
        for order in ORDERS {
            assert_eq!(run("check_divergent", order).unwrap(), expected, "{order:?}");
        }
    }

    #[test]
    fn matrix_units_multiply() {
        let left = |row: usize, column: usize| ((3 * row + column) % 7) as f32 - 3.0;
        let right = |row: usize, column: usize| ((5 * row + 2 * column) % 9) as f32 - 4.0;
        let number = |row, column| (0..16).map(|k| left(row, k) * right(k, column)).sum::<f32>();
        for order in ORDERS {
            for (kernel, further, start) in
                [("check_product_rows", 0, 1.0), ("check_product_columns", 8, 3.0)]
            {
                let found = run(kernel, order).unwrap();
                for (thread, found) in found.into_iter().enumerate() {
                    let (row, column) = (thread % 32 / 4 + further, thread % 4 * 2);
                    let expected =
                        start + number(row, column) + 512.0 * (start + 1.0 + number(row, column + 1));
                    assert_eq!(found, expected, "{kernel}, thread {thread}, {order:?}");
                }
            }
        }
    }

    #[test]
    fn copies_arrive_when_waited_for() {
        let first = |i: usize| (4 * (i % 16)) as f32;
        for order in ORDERS {
            let all = run("check_copies", order).unwrap();
            let expected: Vec<f32> = (0..64).map(|i| first(i) + first(i + 1) + 1.0).collect();
            assert_eq!(all, expected, "{order:?}");
            let one = run("check_copies_first", order).unwrap();
            assert_eq!(one, (0..64).map(first).collect::<Vec<_>>(), "{order:?}");
            assert!(run("check_copies_early", order).unwrap().iter().all(|x| x.is_nan()), "{order:?}");
        }
    }

    #[test]
    fn what_cannot_end_says_why() {
        let cases = [
            (
                "check_deadlock",
                "32 of 64 threads have ended",
                "32 threads (32, 33, 34, 35, 36, 37, 38, 39, ...) in __syncthreads",
            ),
            (
                "check_lost_lane",
                "33 of 64 threads have ended",
                "31 threads (0, 1, 2, 4, 5, 6, 7, 8, ...) in __shfl_xor_sync of mask ffffffff",
            ),
            ("check_product_alone", "33 of 64 threads have ended", "in ldmatrix of mask ffffffff"),
            ("check_two_barriers", "in __syncthreads at", "in that at"),
            ("check_shared", "52000 bytes of shared memory for", "0 of 49152 are taken"),
            ("check_nothing", "there is no such kernel", ""),
        ];
        for (kernel, first, second) in cases {
            for order in ORDERS {
                let said = run(kernel, order).unwrap_err().to_string();
                assert!(said.starts_with(&format!("check: kernel {kernel}: ")), "{said}");
                assert!(said.contains(first) && said.contains(second), "{order:?}: {said}");
            }
        }
        // The machine is as good as new.
        assert!(run("check_neighbours", Order::Forward).is_ok());
    }

    #[test]
    fn launches_that_do_not_fit_the_kernel() {
        let emu = Emu::default();
        let params = abi::Spread { x: std::ptr::null(), to: std::ptr::null_mut(), n: 0, cols: 0 };
        let launch = |threads, shared, blocks| {
            let grid = Grid { blocks, threads, shared };
            // SAFETY: for no tokens the kernel touches nothing.
            unsafe { emu.launch("check", "gemv_spread", &params, grid) }
        };
        launch(256, 0, [2, 2]).unwrap();
        launch(256, 0, [0, 1]).unwrap();
        for (answer, words) in [
            (launch(257, 0, [1, 1]), "257 threads in a block, the kernel allows 256"),
            (launch(256, 102_000, [1, 1]), "102000 bytes of shared memory, a block has 101376"),
            (launch(256, 0, [1, 65_536]), "[1, 65536] blocks are more than a launch can have"),
        ] {
            let said = answer.unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
        let flat = abi::Flat { y: std::ptr::null_mut(), x: std::ptr::null(), len: 0 };
        // SAFETY: the launch is refused for the size of its parameters.
        let said =
            unsafe { emu.launch("check", "gemv_spread", &flat, Grid::flat(1)) }.unwrap_err().to_string();
        assert!(said.contains("takes 32 bytes of parameters, not 24"), "{said}");
    }
}
