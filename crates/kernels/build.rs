//! Embeds the CUDA kernels where they have been compiled. With the feature `emu`: compiles them for this machine, as
//! `kernels/README.md` says.

#[path = "build/image.rs"]
mod image;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    if let Err(why) = image::embed(out.as_ref()) {
        println!("cargo::error={}", why.replace('\n', " "));
        std::process::exit(1);
    }
    #[cfg(feature = "emu")]
    emu::build();
}

#[cfg(feature = "emu")]
mod emu {
    use std::ffi::OsStr;
    use std::path::{Path, PathBuf};

    /// Flags without which numbers would not be those of the device: no contraction, no assumptions about types of
    /// memory; no exceptions, because fibers do not unwind.
    const FLAGS: [&str; 6] = [
        "-std=c++20",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-omit-frame-pointer",
    ];

    pub(super) fn build() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
        if !root.join("include/emu.h").is_file() {
            stop(
                "the feature `emu` compiles the folder `kernels` of the repository, which a published crate does not have: \
                 use a checkout of the repository, or leave the feature out",
            );
        }
        println!("cargo::rerun-if-changed={}", root.display());
        probe();
        if sanitized() {
            // Before any other library: the address sanitizer insists on being the first.
            println!("cargo::rustc-link-lib=asan");
            println!("cargo::rustc-link-lib=ubsan");
        }
        let mut library = compiler();
        let mut units = String::new();
        for source in kernels(&root) {
            let name = unit(&root, &source);
            let mut build = compiler();
            build.include(root.join("include")).flag("-x").flag("c++").define("EMU_UNIT", name.as_str());
            build.file(&source);
            library.objects(objects(&build));
            units += &format!("extern \"C\" void airllm_emu_unit_{name}();\n");
            units += &format!("static const auto use_{name} = (airllm_emu_unit_{name}(), 0);\n");
        }
        // The library's only way in names every unit, so that the linker leaves none out.
        let all = out().join("runtime.cpp");
        let runtime = root.join("emu/runtime.cpp");
        let text = format!("#include {runtime:?}\n{units}");
        std::fs::write(&all, text)
            .unwrap_or_else(|error| stop(&format!("writing {}: {error}", all.display())));
        library.file(all).file(root.join("emu/fiber.cpp")).compile("airllm_emu");
        // For the stand-in driver, which holds the same objects.
        println!("cargo::metadata=lib={}", out().join("libairllm_emu.a").display());
    }

    /// A C++ compiler with the flags that all files need.
    fn compiler() -> cc::Build {
        let mut build = cc::Build::new();
        build.cpp(true).opt_level(2).debug(false).warnings(false).flag("-g1");
        for flag in FLAGS {
            build.flag(flag);
        }
        if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
            build.flag("-march=x86-64-v3");
        }
        if sanitized() {
            build.flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=undefined");
        }
        build
    }

    /// Whether the kernels are to be watched by the address and undefined-behaviour sanitizers.
    fn sanitized() -> bool {
        println!("cargo::rerun-if-env-changed=AIRLLM_EMU_SANITIZE");
        std::env::var_os("AIRLLM_EMU_SANITIZE").is_some()
    }

    /// Stops if the compiler lacks what the kernels need, before thirty files fail one by one.
    fn probe() {
        let source = out().join("probe.cpp");
        let text =
            "#include <bit>\n_Float16 h = 1; float f = std::bit_cast<float>(1u) + static_cast<float>(h);\n";
        std::fs::write(&source, text)
            .unwrap_or_else(|error| stop(&format!("writing {}: {error}", source.display())));
        if let Err(error) = compiler().cargo_warnings(false).file(&source).try_compile_intermediates() {
            stop(&format!(
                "the feature `emu` needs a C++20 compiler with _Float16 (g++ 12 or clang++ 15, or newer); set CXX to one, \
                 or leave the feature out. The compiler said: {error}"
            ));
        }
    }

    fn objects(build: &cc::Build) -> Vec<PathBuf> {
        build.try_compile_intermediates().unwrap_or_else(|error| stop(&error.to_string()))
    }

    /// Every `.cu` file in the folders of operations, in one order.
    fn kernels(root: &Path) -> Vec<PathBuf> {
        let list = |folder: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(folder)
                .unwrap_or_else(|error| stop(&format!("listing {}: {error}", folder.display())));
            entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
        };
        let folders = list(root).into_iter().filter(|path| path.is_dir());
        let mut files: Vec<PathBuf> = folders.flat_map(|folder| list(&folder)).collect();
        files.retain(|file| file.extension() == Some(OsStr::new("cu")));
        files.sort();
        files
    }

    /// A name for a file that C++ takes: folder and stem.
    fn unit(root: &Path, source: &Path) -> String {
        let name = source.strip_prefix(root).unwrap_or(source).with_extension("");
        name.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    }

    fn out() -> PathBuf {
        PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_else(|| stop("cargo sets no OUT_DIR")))
    }

    /// Ends the build with one line that says why.
    fn stop(why: &str) -> ! {
        println!("cargo::error={}", why.replace('\n', " "));
        std::process::exit(1)
    }
}
