//! Text from arguments, files and standard input.

use crate::exit::{Failure, Result, bad_input};
use airllm::Error;
use std::io::Read;
use std::path::Path;

/// The text of a file, or of standard input for `-`, as it is.
pub fn read(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return stdin();
    }
    let bytes = std::fs::read(path).map_err(|source| {
        let (path, doing) = (path.to_path_buf(), "reading the prompt");
        match source.kind() {
            std::io::ErrorKind::NotFound => bad_input(format!("{}: no such file", path.display())),
            _ => Failure::from(Error::Io { path, doing, source }),
        }
    })?;
    utf8(bytes, &path.display().to_string())
}

/// All of standard input.
pub fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).map_err(|source| Error::Io {
        path: "standard input".into(),
        doing: "reading",
        source,
    })?;
    utf8(bytes, "standard input")
}

fn utf8(bytes: Vec<u8>, place: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[at];
        bad_input(format!(
            "{place}: expected UTF-8 text, found byte 0x{byte:02x} at offset {at} (of {})",
            error.as_bytes().len()
        ))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn bad_bytes_are_named() {
        let error = super::utf8(b"abc\xff\xfed".to_vec(), "x").unwrap_err();
        let message = format!("{error:?}");
        assert!(message.contains("byte 0xff at offset 3 (of 6)"), "{message}");
        assert_eq!(super::utf8("诗".as_bytes().to_vec(), "x").unwrap(), "诗");
    }
}
