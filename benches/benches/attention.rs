//! `cargo bench --bench attention`: see `airllm_benches::gpu::attention`.

fn main() {
    airllm_benches::gpu::attention::main();
}
