//! A source that refuses to read once the user has asked to stop.

use crate::Cancel;
use airllm_format::{Error, LayerSource, Result};
use std::path::PathBuf;

/// Passes reads on to the files until the cancel flag is set. Then every read fails at once, so that
/// nothing waits for a disk whose bytes nobody wants.
pub(crate) struct Stoppable {
    files: Box<dyn LayerSource>,
    cancel: Cancel,
}

impl Stoppable {
    pub(crate) fn new(files: Box<dyn LayerSource>, cancel: Cancel) -> Self {
        Stoppable { files, cancel }
    }
}

impl LayerSource for Stoppable {
    fn files(&self) -> usize {
        self.files.files()
    }

    fn name(&self, file: usize) -> &str {
        self.files.name(file)
    }

    fn len(&self, file: usize) -> u64 {
        self.files.len(file)
    }

    fn alignment(&self) -> usize {
        self.files.alignment()
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.cancel.is_stopped() {
            return Err(Error::Io {
                path: PathBuf::from(self.files.name(file)),
                doing: "reading".to_owned(),
                source: std::io::Error::new(std::io::ErrorKind::Interrupted, "the run was interrupted"),
            });
        }
        self.files.read_at(file, offset, buf)
    }
}
