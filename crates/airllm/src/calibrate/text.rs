//! The text that calibrating runs through a model, and its windows.

use crate::error::At;
use crate::{Error, Result};
use airllm_text::Tokenizer;
use std::path::Path;

/// The text that is taken where none is named: written for this, in English and Chinese, with some code.
const BUILT_IN: &str = include_str!("../calibration.txt");

/// Tokens of a window, as far as the model was made for so many.
const CONTEXT: usize = 512;

/// Fewer tokens than this say too little of what a model's inputs are like.
const LEAST_TOKENS: usize = 256;

/// Text that shows what the inputs of a model's matrices are like.
///
/// Anything like what the model will be used for is good; a few ten thousand tokens are enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationText {
    name: String,
    text: String,
}

impl Default for CalibrationText {
    /// The built-in text.
    fn default() -> CalibrationText {
        CalibrationText::new("built-in", BUILT_IN)
    }
}

impl CalibrationText {
    /// A text with a name for messages.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> CalibrationText {
        CalibrationText { name: name.into(), text: text.into() }
    }

    /// The text of a file, called by the file's name.
    ///
    /// # Errors
    /// [`Input`](Error::Input) for a file that is not there or is no UTF-8, [`Io`](Error::Io) for other trouble.
    pub fn read(path: &Path) -> Result<CalibrationText> {
        let text = std::fs::read_to_string(path).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData => Err(Error::Input {
                what: format!("{}: reading the calibration text: {error}", path.display()),
            }),
            _ => Err(error).at(path, "reading the calibration text"),
        })?;
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        Ok(CalibrationText { name, text })
    }

    /// `xxh3_128` of the text and of the most tokens that are taken of it, 32 hexadecimal digits.
    pub(crate) fn hash(&self, tokens: usize) -> String {
        let mut bytes = self.text.clone().into_bytes();
        bytes.extend(tokens.to_le_bytes());
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A calibration text as windows of ids.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    pub(crate) name: String,
    /// Windows, each as a model would meet the beginning of a text.
    pub(crate) windows: Vec<Vec<u32>>,
    /// The most tokens of a window.
    pub(crate) context: usize,
    /// Of the ids of all windows.
    pub(crate) hash: String,
}

impl Samples {
    /// Cuts a text into windows, and takes at most `tokens` tokens of them, from all over the text.
    ///
    /// # Errors
    /// A text of less than 256 tokens, or less than one window where the model has a smaller one.
    pub(crate) fn of(
        text: &CalibrationText,
        tokenizer: &Tokenizer,
        positions: Option<usize>,
        tokens: usize,
    ) -> Result<Samples> {
        let context = positions.unwrap_or(CONTEXT).clamp(2, CONTEXT);
        let plain = tokenizer.encode_plain(&text.text)?;
        let start = crate::eval::beginning(tokenizer)?;
        let (body, least) = (context - start.len().min(context - 1), LEAST_TOKENS.min(context));
        if plain.len() < least {
            let what = format!(
                "the calibration text ({}) has {} tokens, at least {least} are needed, and some ten thousand are good",
                text.name,
                plain.len()
            );
            return Err(Error::Input { what });
        }
        let mut windows: Vec<Vec<u32>> = plain
            .chunks(body)
            // What is left over at the end counts where it is not a mere scrap.
            .filter(|ids| 2 * ids.len() >= body || plain.len() < body)
            .map(|ids| start.iter().chain(ids).copied().collect())
            .collect();
        let most = (tokens / context).max(1);
        if windows.len() > most {
            let all = windows.len();
            windows = (0..most).map(|i| std::mem::take(&mut windows[i * all / most])).collect();
        }
        let bytes: Vec<u8> = windows.iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
        let hash = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes));
        Ok(Samples { name: text.name.clone(), windows, context, hash })
    }

    pub(crate) fn windows(&self) -> Vec<&[u32]> {
        self.windows.iter().map(|ids| &ids[..]).collect()
    }

    pub(crate) fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
}
