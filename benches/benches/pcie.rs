//! `cargo bench --bench pcie`: see `airllm_benches::gpu::pcie`.

fn main() {
    airllm_benches::gpu::pcie::main();
}
