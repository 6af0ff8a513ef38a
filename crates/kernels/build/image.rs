//! Embeds the CUDA kernels that `cargo xtask build-kernels` has compiled, if there are any of the sources as they are.
//!
//! Writes `image.rs` into `OUT_DIR`, an expression for `src/image.rs` to include, and beside it the image.

#[path = "container.rs"]
mod container;

use container::Container;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Says where the kernels are, instead of `target/kernels/airllm.kernels`.
const PLACE: &str = "AIRLLM_KERNELS";

/// Writes what is to be embedded, or fails with a text.
pub(super) fn embed(out: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed={PLACE}");
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    // A published crate has no kernels beside it.
    let kernels = Some(kernels).filter(|folder| folder.join("include/abi.h").is_file());
    let failed =
        |what: &str, path: &Path, error: std::io::Error| format!("{what} {}: {error}", path.display());
    let found = match place(kernels.as_deref()) {
        Some(file) if file.is_file() => {
            let bytes = std::fs::read(&file).map_err(|error| failed("reading", &file, error))?;
            let container =
                Container::from_bytes(&bytes).map_err(|why| format!("{}: {why}", file.display()))?;
            let now = kernels.as_ref().map(|kernels| {
                println!("cargo::rerun-if-changed={}", kernels.display());
                container::hash(kernels).map_err(|error| failed("reading", kernels, error))
            });
            if now.transpose()?.is_some_and(|now| now != container.sources) {
                "Found::Stale".to_owned()
            } else {
                let image = out.join("kernels.fatbin");
                std::fs::write(&image, container.image).map_err(|error| failed("writing", &image, error))?;
                format!(
                    "Found::Built {{ made: {:?}, image: &Aligned(*include_bytes!({image:?})).0 }}",
                    container.made
                )
            }
        }
        _ => "Found::NotBuilt".to_owned(),
    };
    let file = out.join("image.rs");
    std::fs::write(&file, found).map_err(|error| failed("writing", &file, error))
}

/// Where the file may be. Cargo is told to look there again.
fn place(kernels: Option<&Path>) -> Option<PathBuf> {
    if let Some(place) = std::env::var_os(PLACE) {
        println!("cargo::rerun-if-changed={}", Path::new(&place).display());
        return Some(place.into());
    }
    let folder = kernels?.parent()?.join("target/kernels");
    // Cargo would take a path that is not there for a change, every time; so it gets a folder that is there.
    if !folder.is_dir() && std::fs::create_dir_all(&folder).is_ok() {
        // Not newer than this build, else the next one would look again. Where folders have no times, it does.
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(24 * 60 * 60);
        let _ = std::fs::File::open(&folder).and_then(|folder| folder.set_modified(old));
    }
    println!("cargo::rerun-if-changed={}", folder.display());
    Some(folder.join("airllm.kernels"))
}
