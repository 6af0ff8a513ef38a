//! Where answers go, and what an earlier run has written there.

use super::entries::Entry;
use crate::exit::{Result, bad_input};
use crate::output;
use airllm::Error;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// How every line begins.
const HEAD: &[u8] = b"{\"id\":";

/// Lines that are written whole, one call of the system each.
pub(super) struct Out {
    /// Standard output without one.
    file: Option<(File, PathBuf)>,
    /// Number of the line and hash of the prompt of each answer that is there, by id.
    there: HashMap<String, (usize, String)>,
}

/// What is looked at of a line that an earlier run has written.
#[derive(Deserialize)]
struct Written {
    id: serde_json::Value,
    prompt_hash: String,
}

impl Out {
    /// A file that answers are added to, or standard output. A line that was cut off is taken out of the file.
    ///
    /// # Errors
    /// The file holds something else, or another run writes to it.
    pub(super) fn open(path: Option<&Path>) -> Result<Out> {
        let Some(path) = path else { return Ok(Out { file: None, there: HashMap::new() }) };
        let failed = |doing| move |source| Error::Io { path: path.to_path_buf(), doing, source };
        let mut options = OpenOptions::new();
        let is_plain = std::fs::metadata(path).map_or(true, |meta| meta.is_file());
        if !is_plain {
            // A device such as /dev/stdout: there is nothing in it.
            let file = options.write(true).open(path).map_err(failed("opening"))?;
            return Ok(Out { file: Some((file, path.to_path_buf())), there: HashMap::new() });
        }
        let mut file = options.read(true).append(true).create(true).open(path).map_err(failed("opening"))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let what = format!("{}: another run writes its answers to this file", path.display());
                return Err(Error::Argument { what }.into());
            }
            // Some file systems know no locks.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("reading what is there"))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let there = read(path, &bytes[..whole])?;
        let rest = &bytes[whole..];
        if !rest.is_empty() {
            let ours = rest.len().min(HEAD.len());
            if rest[..ours] != HEAD[..ours] {
                return Err(other(path, there.len() + 1, "what its last line is the beginning of"));
            }
            file.set_len(whole as u64).map_err(failed("taking out a line that was cut off"))?;
        }
        Ok(Out { file: Some((file, path.to_path_buf())), there })
    }

    /// Whether the answer to this prompt is there.
    ///
    /// # Errors
    /// One of this name is there, to another prompt.
    pub(super) fn has(&self, entry: &Entry) -> Result<bool> {
        let (Some((line, hash)), Some((_, path))) = (self.there.get(&entry.id.to_string()), &self.file)
        else {
            return Ok(false);
        };
        if *hash != entry.hash {
            return Err(bad_input(format!(
                "{}:{line}: this is the answer to another prompt with the id {}: name a new file for other prompts",
                path.display(),
                entry.id
            )));
        }
        Ok(true)
    }

    /// Adds a line and passes it on at once.
    pub(super) fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let Some((file, path)) = &mut self.file else { return output::json(line) };
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let doing = "adding an answer";
        Ok(file.write_all(text.as_bytes()).map_err(|source| Error::Io {
            path: path.clone(),
            doing,
            source,
        })?)
    }
}

/// What whole lines say is there.
fn read(path: &Path, bytes: &[u8]) -> Result<HashMap<String, (usize, String)>> {
    let mut there = HashMap::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let written: Written = serde_json::from_slice(line)
            .map_err(|error| other(path, index + 1, &format!("something else ({error})")))?;
        there.insert(written.id.to_string(), (index + 1, written.prompt_hash));
    }
    Ok(there)
}

fn other(path: &Path, line: usize, found: &str) -> crate::exit::Failure {
    bad_input(format!(
        "{}:{line}: expected an answer that an earlier run has written, found {found}: name another file",
        path.display()
    ))
}
