//! JSON files, read strictly: bounded size, no `NaN`, no `Infinity`, errors that name the place.

use crate::disk::read_bounded;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The largest JSON file that is read, in bytes. Published ones stay below a tenth of it.
pub(crate) const MAX_JSON: u64 = 64 << 20;

/// Parses the bytes of a JSON file such as `config.json`.
///
/// Python writes non-finite numbers as the bare words `NaN` and `Infinity`, which JSON does not have.
/// They are refused, and the message names line, column and field.
///
/// # Errors
/// [`Error::Malformed`] with the position where the text stops being JSON.
///
/// ```
/// use std::path::Path;
/// let text = b"{\"rope_scaling\": {\"factor\": NaN}}";
/// let error = airllm_format::parse_json(text, Path::new("config.json")).unwrap_err();
/// assert!(error.to_string().contains("rope_scaling.factor"));
/// ```
pub fn parse_json(bytes: &[u8], path: &Path) -> Result<Value> {
    serde_json::from_str(utf8(bytes, path)?).map_err(|error| match find_non_finite(bytes) {
        Some(found) => Error::malformed(path, found),
        None => Error::malformed(path, format!("not valid JSON: {error}")),
    })
}

/// Reads and parses a JSON file that must hold an object.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] as [`parse_json`] or if it holds no object.
pub fn read_json_object(path: &Path) -> Result<Value> {
    parse_object(&read_bounded(path, MAX_JSON)?, path)
}

/// The text of a JSON file. Checked as a whole, because a parser need not look into values it skips.
pub(crate) fn utf8<'a>(bytes: &'a [u8], path: &Path) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        Error::malformed(path, format!("the JSON is not UTF-8 at byte {} of it", e.valid_up_to()))
    })
}

/// [`parse_json`] for a file that must hold an object.
pub(crate) fn parse_object(bytes: &[u8], path: &Path) -> Result<Value> {
    let value = parse_json(bytes, path)?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Error::malformed(path, format!("expected a JSON object, found {}", kind(&value))))
    }
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// One open bracket on the way to the place that is looked at.
enum Open {
    Object(String),
    Array(usize),
}

/// Finds the first `NaN` or `Infinity` outside of strings and says where it is.
///
/// Runs only after the real parser has refused the text, so it need not judge anything else.
fn find_non_finite(bytes: &[u8]) -> Option<String> {
    let mut open: Vec<Open> = Vec::new();
    let mut text = String::new();
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        match byte {
            b'"' => {
                let end = string_end(bytes, i + 1);
                text = String::from_utf8_lossy(bytes.get(i + 1..end).unwrap_or_default()).into_owned();
                i = end;
            }
            b':' => {
                if let Some(Open::Object(key)) = open.last_mut() {
                    *key = std::mem::take(&mut text);
                }
            }
            b',' => {
                if let Some(Open::Array(index)) = open.last_mut() {
                    *index += 1;
                }
            }
            b'{' => open.push(Open::Object(String::new())),
            b'[' => open.push(Open::Array(0)),
            b'}' | b']' => drop(open.pop()),
            b'N' | b'I' => {
                let word = ["NaN", "Infinity"].into_iter().find(|w| bytes[i..].starts_with(w.as_bytes()))?;
                let start = if i > 0 && bytes[i - 1] == b'-' { i - 1 } else { i };
                let line = bytes[..start].iter().filter(|&&b| b == b'\n').count() + 1;
                let column =
                    start - bytes[..start].iter().rposition(|&b| b == b'\n').map_or(0, |p| p + 1) + 1;
                let sign = if start < i { "-" } else { "" };
                return Some(format!(
                    "`{}` is {sign}{word} (line {line}, column {column}); a finite number is needed",
                    field(&open)
                ));
            }
            _ => {}
        }
        i += 1;
    }
    None
}

/// Index of the quote that ends the string whose first byte is at `i`.
fn string_end(bytes: &[u8], mut i: usize) -> usize {
    while let Some(&byte) = bytes.get(i) {
        match byte {
            b'"' => return i,
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// `a.b[2]` for the brackets that are open.
fn field(open: &[Open]) -> String {
    let mut name = String::new();
    for part in open {
        match part {
            Open::Object(key) => {
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(key);
            }
            Open::Array(index) => name.push_str(&format!("[{index}]")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &str) -> String {
        parse_json(text.as_bytes(), Path::new("config.json")).unwrap_err().to_string()
    }

    #[test]
    fn names_the_field_of_a_non_finite_number() {
        assert_eq!(
            refusal("{\"a\": 1,\n \"rms_norm_eps\": NaN}"),
            "config.json: `rms_norm_eps` is NaN (line 2, column 18); a finite number is needed"
        );
        assert!(refusal("{\"x\": {\"NaN\": [1, 2, -Infinity]}}").contains("`x.NaN[2]` is -Infinity"));
        assert!(refusal("{\"say \\\"hi\\\"\": Infinity}").contains("is Infinity"));
    }

    #[test]
    fn names_the_place_of_other_errors() {
        assert!(refusal("{\"a\": }").contains("line 1 column 7"));
        assert!(refusal("{\"a\": 1e999}").contains("number out of range"));
        let latin1 = parse_json(b"{\"a\": \"\xe9\"}", Path::new("x")).unwrap_err().to_string();
        assert_eq!(latin1, "x: the JSON is not UTF-8 at byte 7 of it");
        assert!(refusal(&"[".repeat(100_000)).contains("recursion limit"));
        let array = parse_object(b"[1]", Path::new("config.json")).unwrap_err().to_string();
        assert_eq!(array, "config.json: expected a JSON object, found an array");
    }

    #[test]
    fn floats_survive_being_written_and_read() {
        for text in ["1e-05", "0.1234567890123456", "9007199254740993.0", "2.2250738585072014e-308"] {
            let value = parse_json(text.as_bytes(), Path::new("x")).unwrap();
            assert_eq!(value.as_f64().unwrap().to_bits(), text.parse::<f64>().unwrap().to_bits());
            let again = parse_json(value.to_string().as_bytes(), Path::new("x")).unwrap();
            assert_eq!(again, value);
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(prop::sample::select(b"{}[]\",:\\ \nNaNInfinity-1e".to_vec()), 0..64)) {
            let _ = find_non_finite(&bytes);
            let _ = parse_json(&bytes, Path::new("x"));
        }
    }
}
