//! The file that `cargo xtask build-kernels` writes and the build of this crate embeds: `target/kernels/airllm.kernels`.
//!
//! | bytes | hold |
//! |---|---|
//! | 0..8 | `AIRLLMK1` |
//! | 8..16 | [`hash`] of the sources that it was made of |
//! | 16..24 | length of `made` |
//! | 24..32 | length of the image |
//! | 32.. | `made`: compiler and architectures, UTF-8; then the image, a fat binary as nvcc writes it |
//!
//! Numbers are little-endian. Both sides include this file: the build script as a module, xtask by its path.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"AIRLLMK1";
const HEAD: usize = 32;
/// What lies in the folder of kernels for the host alone.
const OF_THE_HOST: [&str; 3] = ["emu", "standin", "include/emu.h"];

/// What the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Container<'a> {
    /// See [`hash`].
    pub sources: u64,
    /// Compiler and architectures, for people.
    pub made: &'a str,
    /// A fat binary.
    pub image: &'a [u8],
}

impl<'a> Container<'a> {
    /// The bytes of the file.
    #[allow(dead_code, reason = "xtask writes")]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let lengths = [self.made.len() as u64, self.image.len() as u64];
        [self.sources, lengths[0], lengths[1]].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(self.made.as_bytes());
        bytes.extend(self.image);
        bytes
    }

    /// The inverse; says what is wrong with other bytes.
    pub fn from_bytes(bytes: &'a [u8]) -> std::result::Result<Self, String> {
        let Some((head, rest)) = bytes.split_at_checked(HEAD).filter(|(head, _)| head.starts_with(MAGIC))
        else {
            return Err("it does not begin with `AIRLLMK1`: not a file of `cargo xtask build-kernels`".into());
        };
        let number = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (sources, made, image) = (number(8), number(16), number(24));
        if made.checked_add(image) != Some(rest.len() as u64) {
            return Err(format!("{} bytes follow its head, not {made} and {image}", rest.len()));
        }
        let (made, image) = rest.split_at(made as usize);
        let made = std::str::from_utf8(made).map_err(|error| format!("the compiler's name: {error}"))?;
        Ok(Self { sources, made, image })
    }
}

/// Every `.cu`, `.cuh` and `.h` file that nvcc is given, in one order. `kernels` is the folder of that name.
pub fn sources(kernels: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![kernels.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir()? {
            let path = entry?.path();
            if OF_THE_HOST.iter().any(|name| path == kernels.join(name)) {
                continue;
            }
            let extension = path.extension().unwrap_or_default();
            if path.is_dir() {
                folders.push(path);
            } else if extension == "cu" || extension == "cuh" || extension == "h" {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A number for the sources below `kernels`: FNV-1a over names and contents. Tells versions apart, not forgeries.
pub fn hash(kernels: &Path) -> Result<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        let length = (bytes.len() as u64).to_le_bytes();
        for byte in length.iter().chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in sources(kernels)? {
        let name = file.strip_prefix(kernels).map_err(Error::other)?;
        add(name.to_string_lossy().replace('\\', "/").as_bytes());
        add(&std::fs::read(&file)?);
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_comes_back() {
        let whole = Container { sources: 7, made: "nvcc, sm_75", image: b"image" };
        let bytes = whole.to_bytes();
        assert_eq!(Container::from_bytes(&bytes).unwrap(), whole);
        for wrong in [&bytes[..bytes.len() - 1], &bytes[..20], &bytes[1..], &[&bytes[..], b"x"].concat()] {
            Container::from_bytes(wrong).unwrap_err();
        }
        let mut endless = bytes.clone();
        endless[16..24].fill(0xff);
        Container::from_bytes(&endless).unwrap_err();
    }

    #[test]
    fn the_hash_is_that_of_what_nvcc_reads() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = temp.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let now = || hash(temp.path()).unwrap();
        write("gemv/gemv.cu", "a");
        write("include/abi.h", "b");
        let first = now();
        // Of the host, or no source.
        for name in ["emu/runtime.cpp", "emu/checks.cu", "standin/standin.h", "include/emu.h", "README.md"] {
            write(name, "c");
            assert_eq!(now(), first, "{name}");
        }
        write("include/abi.h", "c");
        let second = now();
        assert_ne!(second, first);
        write("include/abi.h", "b");
        assert_eq!(now(), first);
        write("gemv/step.cuh", "");
        assert_ne!(now(), first);
    }
}
