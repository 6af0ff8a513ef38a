//! With the feature `emu`: links `libcuda.so` from `driver/` and from the kernels that `airllm-kernels` has compiled.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emu")]
    emu::build();
}

#[cfg(feature = "emu")]
mod emu {
    use std::path::{Path, PathBuf};

    pub(super) fn build() {
        println!("cargo::rerun-if-changed=driver");
        println!("cargo::rerun-if-env-changed=AIRLLM_EMU_SANITIZE");
        println!("cargo::rerun-if-env-changed=DEP_AIRLLM_EMU_LIB");
        let kernels = variable("DEP_AIRLLM_EMU_LIB");
        println!("cargo::rerun-if-changed={}", kernels.display());
        let sanitized = std::env::var_os("AIRLLM_EMU_SANITIZE").is_some();

        let mut compiler = cc::Build::new();
        compiler.cpp(true).std("c++20").opt_level(2).debug(false).flag("-g1").flag("-fvisibility=hidden");
        compiler.flag("-Wno-missing-field-initializers").cargo_metadata(false);
        if sanitized {
            compiler.flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=undefined");
        }
        let sources =
            std::fs::read_dir("driver").unwrap_or_else(|error| stop(&format!("listing driver: {error}")));
        let mut sources: Vec<PathBuf> = sources.filter_map(|entry| Some(entry.ok()?.path())).collect();
        sources.retain(|path| path.extension().is_some_and(|extension| extension == "cpp"));
        sources.sort();
        compiler.files(sources);
        let objects = compiler.try_compile_intermediates().unwrap_or_else(|error| stop(&error.to_string()));

        let out = variable("OUT_DIR");
        let library = out.join("libcuda.so");
        // Test programs may have the kernels too: each uses its own, and sees of the library what its API is.
        let script = out.join("exports.map");
        write(&script, "{ global: cu*; airllm_standin_*; local: *; };\n");
        let mut link = compiler.get_compiler().to_command();
        link.args(["-shared", "-Wl,-Bsymbolic", "-Wl,-z,nodelete", "-o"])
            .arg(&library)
            .args(objects)
            .arg(kernels);
        link.arg(format!("-Wl,--version-script={}", script.display())).args(["-ldl", "-lpthread"]);
        match link.status() {
            Ok(status) if status.success() => {}
            Ok(status) => stop(&format!("linking libcuda.so: {status}")),
            Err(error) => stop(&format!("linking libcuda.so: {error}")),
        }
        // One file under both names, so that whoever loads it by either has the same driver.
        link_name(&out.join("libcuda.so.1"));
        // cargo puts the folder on the library path of all tests and programs that it runs with this package.
        println!("cargo::rustc-link-search=native={}", out.display());
    }

    fn link_name(name: &Path) {
        if name.symlink_metadata().is_ok() {
            return;
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("libcuda.so", name)
            .unwrap_or_else(|error| stop(&format!("linking {}: {error}", name.display())));
        #[cfg(not(unix))]
        stop(&format!("{}: the stand-in driver is for Linux", name.display()));
    }

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text)
            .unwrap_or_else(|error| stop(&format!("writing {}: {error}", path.display())));
    }

    fn variable(name: &str) -> PathBuf {
        PathBuf::from(std::env::var_os(name).unwrap_or_else(|| stop(&format!("cargo sets no {name}"))))
    }

    /// Ends the build with one line that says why.
    fn stop(why: &str) -> ! {
        println!("cargo::error={}", why.replace('\n', " "));
        std::process::exit(1)
    }
}
