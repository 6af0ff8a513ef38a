//! Exit codes, and the last words of a run that failed.

use airllm::{Error, ErrorKind};
use std::io::Write;
use std::process::ExitCode;

/// Why a command ends other than well.
#[derive(Debug)]
pub enum Failure {
    /// The engine or the system refused.
    Error(anyhow::Error),
    /// Whoever reads standard output has read enough. Not an error: the work is over.
    ClosedOutput,
    /// The result is out, but it is not all that was asked for: Ctrl-C.
    Interrupted,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error.into())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Error(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::Error(error.into())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Error(error.into())
    }
}

pub const INTERRUPTED: u8 = 130;

/// Says what went wrong, on standard error and with `--json` as an object there, and gives the exit code.
pub fn code(result: Result<()>, json: bool) -> ExitCode {
    let (code, kind, error) = match result {
        Ok(()) | Err(Failure::ClosedOutput) => return ExitCode::SUCCESS,
        Err(Failure::Interrupted) => return ExitCode::from(INTERRUPTED),
        Err(Failure::Error(error)) => {
            let (code, kind) = classify(&error);
            (code, kind, error)
        }
    };
    // Standard error may be closed as well; then there is nobody to tell.
    let mut err = std::io::stderr().lock();
    let _ = if json {
        let object = serde_json::json!({ "error": format!("{error:#}"), "kind": kind });
        writeln!(err, "{object}")
    } else {
        writeln!(err, "error: {error:#}")
    };
    ExitCode::from(code)
}

fn classify(error: &anyhow::Error) -> (u8, &'static str) {
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(ErrorKind::Usage) => (2, "usage"),
        Some(ErrorKind::DoesNotFit) => (3, "does not fit"),
        Some(ErrorKind::Input) => (4, "bad input"),
        Some(ErrorKind::Download) => (1, "download"),
        Some(ErrorKind::Interrupted) => (INTERRUPTED, "interrupted"),
        _ => (1, "other"),
    }
}

/// Bad input, in the words of the command.
pub fn bad_input(what: impl Into<String>) -> Failure {
    Error::Input { what: what.into() }.into()
}

/// A command line that makes no sense.
pub fn usage(what: impl Into<String>) -> Failure {
    Error::Argument { what: what.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes_survive_context() {
        let error = Error::Interrupted;
        let error = Err::<(), _>(error).context("while generating").unwrap_err();
        assert_eq!(classify(&error), (130, "interrupted"));
        assert_eq!(classify(&anyhow::anyhow!("anything")).0, 1);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = Error::Io { path: "x".into(), doing: "writing", source: full };
        assert_eq!(classify(&full.into()).0, 3);
    }
}
