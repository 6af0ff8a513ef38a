//! What can be wrong with a tokenizer, a template or a request.

use std::path::PathBuf;

/// Errors of this crate. Each says what was expected, what was found and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to give a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file's content is not what its format says.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// The folder has no vocabulary that can be read.
    #[error("{}: no tokenizer: {what}", path.display())]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
        /// What is there and what would be read.
        what: String,
    },
    /// A special token was asked for by a name that the vocabulary does not have.
    #[error("the vocabulary has no token {token:?}")]
    UnknownToken {
        /// The name.
        token: String,
    },
    /// An id is past the end of the vocabulary.
    #[error("id {id} at position {position} is out of range: the vocabulary has {size} ids")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Its place in the list that was given.
        position: usize,
        /// Number of ids in the vocabulary.
        size: usize,
    },
    /// A text could not be cut into tokens.
    #[error("this text cannot be encoded: {what}")]
    Encode {
        /// The reason.
        what: String,
    },
    /// The folder has no chat template.
    #[error(
        "{}: no chat template: neither chat_template.jinja, nor `chat_template` in \
         tokenizer_config.json, nor chat_template.json is there", path.display()
    )]
    NoTemplate {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has chat templates, but none by the name asked for.
    #[error("no chat template is named {name:?}; there are: {have}")]
    NoSuchTemplate {
        /// The name.
        name: String,
        /// The names that exist.
        have: String,
    },
    /// A chat template is wrong, or fails on these messages.
    #[error("chat template: {what}")]
    Template {
        /// The template engine's message, with the line.
        what: String,
    },
    /// A chat template refused these messages (it called `raise_exception`), or a built-in chat format
    /// has no place for them.
    #[error("the chat template refuses these messages: {message}")]
    Refused {
        /// The template's own words, or the name of the format and what it lacks.
        message: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
