//! The CUDA kernels that are part of this build, compiled: `cargo xtask build-kernels` makes them, `build.rs` embeds them.

use std::fmt;

/// Which kernels this build of the crate has for a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Compiled by nvcc.
    Built {
        /// By which version, for which architectures.
        made: &'static str,
        /// A fat binary, as the driver loads it.
        image: &'static [u8],
    },
    /// None were there when the crate was built.
    NotBuilt,
    /// Those that were there were not made from the sources as they were.
    Stale,
    /// None, but a mark that the stand-in for the driver knows: it has the kernels in itself. For tests, feature `standin`.
    StandIn,
}

/// What `build.rs` found.
enum Found {
    #[allow(dead_code, reason = "the build script writes one of the three")]
    Built { made: &'static str, image: &'static [u8] },
    #[allow(dead_code, reason = "the build script writes one of the three")]
    NotBuilt,
    #[allow(dead_code, reason = "the build script writes one of the three")]
    Stale,
}

/// Bytes where a driver may read words.
#[repr(C, align(64))]
#[allow(dead_code, reason = "not used where nothing is embedded")]
struct Aligned<T>(T);

static FOUND: Found = include!(concat!(env!("OUT_DIR"), "/image.rs"));

/// What the stand-in for the driver is given as an image.
const MARK: &[u8] = b"airllm: the kernels of the stand-in\0";

impl Kernels {
    /// Those of this build.
    pub fn of_this_build() -> Kernels {
        match FOUND {
            Found::Built { made, image } => Kernels::Built { made, image },
            _ if cfg!(feature = "standin") => Kernels::StandIn,
            Found::NotBuilt => Kernels::NotBuilt,
            Found::Stale => Kernels::Stale,
        }
    }

    /// What the driver is to load, or a line that says why there is nothing.
    ///
    /// # Errors
    /// Where kernels were not built, or from other sources.
    pub fn image(self) -> Result<&'static [u8], &'static str> {
        match self {
            Kernels::Built { image, .. } => Ok(image),
            Kernels::StandIn => Ok(MARK),
            Kernels::NotBuilt => {
                Err("the CUDA kernels are not built: run `cargo xtask build-kernels` in a checkout of the \
                     repository (`--setup` fetches the compiler), then build again")
            }
            Kernels::Stale => {
                Err("the CUDA kernels were built from other sources than this program: run `cargo xtask \
                     build-kernels`, then build again")
            }
        }
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kernels::Built { made, image } => {
                write!(f, "the CUDA kernels are built in: {made}, {} KiB", image.len().div_ceil(1024))
            }
            Kernels::StandIn => f.write_str("the CUDA kernels are those of the stand-in for the driver"),
            Kernels::NotBuilt | Kernels::Stale => f.write_str(self.image().err().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_one_line_and_says_what_to_do() {
        let built = Kernels::Built { made: "nvcc 13.0, sm_75", image: &[0; 1025] };
        assert_eq!(built.to_string(), "the CUDA kernels are built in: nvcc 13.0, sm_75, 2 KiB");
        assert_eq!(built.image().unwrap().len(), 1025);
        assert_eq!(Kernels::StandIn.image(), Ok(MARK));
        for missing in [Kernels::NotBuilt, Kernels::Stale] {
            let text = missing.to_string();
            assert!(text.contains("cargo xtask build-kernels") && !text.contains('\n'), "{text}");
            assert_eq!(missing.image(), Err(&text[..]));
        }
    }

    #[test]
    fn an_embedded_image_is_a_fat_binary() {
        match Kernels::of_this_build() {
            Kernels::Built { image, .. } => {
                assert_eq!(image.first_chunk(), Some(&0xba55_ed50_u32.to_le_bytes()));
                assert!(image.as_ptr().addr().is_multiple_of(64));
            }
            other => assert_eq!(other.image().is_ok(), cfg!(feature = "standin"), "{other}"),
        }
    }
}
