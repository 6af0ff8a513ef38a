//! `cargo bench --bench overlap`: see `airllm_benches::gpu::overlap`.

fn main() {
    airllm_benches::gpu::overlap::main();
}
