//! Messages out of lines: with editing and history at a terminal, plain from a pipe.

use crate::exit::Result;
use crate::{output, signal};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal};

/// Begins and ends a message of many lines.
const FENCE: &str = "\"\"\"";

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Text(String),
    /// Ctrl-D, or the end of the pipe.
    End,
    /// Ctrl-C, twice.
    Interrupted,
}

/// Where lines come from.
pub enum Input {
    Terminal(Box<DefaultEditor>),
    Pipe,
}

impl Input {
    /// A line editor where both ends are a terminal: it writes its prompt to standard output, which a file
    /// or a pipe must not get.
    pub fn open() -> Result<Input> {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            let editor = DefaultEditor::new().map_err(anyhow::Error::from)?;
            return Ok(Input::Terminal(Box::new(editor)));
        }
        Ok(Input::Pipe)
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// The next message, of one line or more.
    pub fn message(&mut self) -> Result<Line> {
        let mut message = Assembly::default();
        let mut interrupted = false;
        loop {
            match self.line(if message.is_empty() { "> " } else { "… " })? {
                Line::Text(line) => {
                    interrupted = false;
                    if let Some(text) = message.push(&line) {
                        if let Input::Terminal(editor) = self {
                            // A history that is full or refuses a double is no reason to stop.
                            let _ = editor.add_history_entry(text.as_str());
                        }
                        return Ok(Line::Text(text));
                    }
                }
                // What the pipe ended in the middle of is still a message.
                Line::End if !message.is_empty() => return Ok(Line::Text(message.text)),
                Line::End => return Ok(Line::End),
                Line::Interrupted if interrupted => return Ok(Line::Interrupted),
                Line::Interrupted => {
                    interrupted = true;
                    message = Assembly::default();
                    output::note("Ctrl-C once more leaves, as does Ctrl-D");
                }
            }
        }
    }

    fn line(&mut self, prompt: &str) -> Result<Line> {
        match self {
            Input::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(error) => Err(anyhow::Error::from(error).into()),
            },
            Input::Pipe => {
                signal::chat(signal::Chat::Listening);
                let mut bytes = Vec::new();
                if std::io::stdin().lock().read_until(b'\n', &mut bytes)? == 0 {
                    return Ok(Line::End);
                }
                let line = String::from_utf8_lossy(&bytes);
                Ok(Line::Text(line.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }
}

/// A message in the making.
#[derive(Debug, Default)]
struct Assembly {
    text: String,
    fenced: bool,
    open: bool,
}

impl Assembly {
    fn is_empty(&self) -> bool {
        !self.open
    }

    /// Takes a line; gives the message when it is whole.
    fn push(&mut self, line: &str) -> Option<String> {
        let mut line = line;
        if !self.open
            && let Some(rest) = line.trim_start().strip_prefix(FENCE)
        {
            (self.fenced, self.open) = (true, true);
            // The line of the fence is part of the message only if something stands on it.
            if rest.trim().is_empty() {
                return None;
            }
            line = rest;
        } else if self.open && !self.text.is_empty() {
            self.text.push('\n');
        }
        self.open = true;
        let more = if self.fenced {
            let end = line.trim_end().strip_suffix(FENCE);
            self.text.push_str(end.unwrap_or(line));
            end.is_none()
        } else {
            let end = line.strip_suffix('\\');
            self.text.push_str(end.unwrap_or(line));
            end.is_some()
        };
        if more {
            return None;
        }
        let text = std::mem::take(self).text;
        Some(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(lines: &str) -> Vec<String> {
        let mut assembly = Assembly::default();
        lines.lines().filter_map(|line| assembly.push(line)).collect()
    }

    #[test]
    fn lines_become_messages() {
        assert_eq!(messages("a\nb"), ["a", "b"]);
        assert_eq!(messages("a\\\nb\\\nc\nd"), ["a\nb\nc", "d"]);
        assert_eq!(messages("\"\"\"\na\n\n b\\\n\"\"\"\nc"), ["a\n\n b\\", "c"]);
        assert_eq!(messages("\"\"\"a\nb\"\"\"\n\"\"\"one\"\"\""), ["a\nb", "one"]);
        assert_eq!(messages("\n"), [""]);
    }
}
