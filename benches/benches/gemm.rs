//! `cargo bench --bench gemm`: see `airllm_benches::gpu::gemm`.

fn main() {
    airllm_benches::gpu::gemm::main();
}
