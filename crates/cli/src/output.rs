//! Standard output: results, and nothing else.

use crate::exit::{Failure, Result};
use airllm::Error;
use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Writes text as it is and passes it on at once.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a line.
pub fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Writes one JSON object on a line of its own.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Writes a note to standard error; nobody there is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn closed(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::ClosedOutput),
        result => Ok(result?),
    }
}

/// Writes a file, under a temporary name first: the file is whole or not there.
pub fn file(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |doing| move |source| Error::Io { path: path.to_path_buf(), doing, source };
    let is_plain = std::fs::metadata(path).map_or(true, |meta| meta.is_file());
    let Some(name) = path.file_name().filter(|_| is_plain) else {
        // A device such as /dev/stdout: nothing to rename.
        return Ok(std::fs::write(path, bytes).map_err(failed("writing"))?);
    };
    let part = path.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let result = std::fs::File::create(&part)
        .map_err(failed("creating a file beside it"))
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("writing")))
        .and_then(|()| std::fs::rename(&part, path).map_err(failed("giving the file its name")));
    if result.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&part);
    }
    Ok(result?)
}

/// Columns with two spaces between; the first is aligned left, the others right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(i, head)| {
            let longest = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max();
            longest.unwrap_or(0).max(head.chars().count())
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let mut line = String::new();
        for (i, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let width = *width;
            match i {
                0 => line.push_str(&format!("{cell:<width$}")),
                _ => line.push_str(&format!("  {cell:>width$}")),
            }
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns() {
        let rows = [vec!["a".into(), "10".into()], vec!["long name".into(), "7".into()]];
        let table = super::table(&["what", "bytes"], &rows);
        assert_eq!(table, "what       bytes\na             10\nlong name      7\n");
    }
}
