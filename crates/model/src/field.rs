//! Reading single fields of a JSON object, with errors that name the field.

use crate::{Error, Result};
use serde_json::{Map, Value};

/// A JSON object and where it lies in the file.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Empty, or the name of the object with a dot behind it.
    at: &'a str,
}

impl<'a> Fields<'a> {
    /// The fields of `map`, whose names in messages begin with `at`.
    pub fn new(map: &'a Map<String, Value>, at: &'a str) -> Self {
        Self { map, at }
    }

    /// The value of a field; `None` where it is absent or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// An error about a field.
    pub fn refuse(&self, name: &str, expected: impl Into<String>) -> Error {
        refuse(&format!("{}{name}", self.at), expected, self.map.get(name))
    }

    /// A whole number in `1..=most`, `None` where absent.
    pub fn size(&self, name: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        whole(value)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=most).contains(n))
            .map(Some)
            .ok_or_else(|| self.refuse(name, format!("a whole number from 1 to {most}")))
    }

    /// As [`size`](Self::size), for a field that must be there.
    pub fn needed_size(&self, name: &str, most: usize) -> Result<usize> {
        self.size(name, most)?.ok_or_else(|| self.refuse(name, format!("a whole number from 1 to {most}")))
    }

    /// A whole number in `0..=most`, `None` where absent.
    pub fn whole(&self, name: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        whole(value)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n <= most)
            .map(Some)
            .ok_or_else(|| self.refuse(name, format!("a whole number up to {most}")))
    }

    /// A list of numbers above 0, `None` where absent.
    pub fn numbers(&self, name: &str, most: f64) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let one = |value: &Value| value.as_f64().filter(|&n| n.is_finite() && n > 0.0 && n <= most);
        let list = value.as_array().and_then(|list| list.iter().map(one).collect());
        list.map(Some)
            .ok_or_else(|| self.refuse(name, format!("a list of numbers above 0 and up to {most:?}")))
    }

    /// A number above `above` and up to `most`, `None` where absent.
    pub fn number(&self, name: &str, above: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_f64()
            .filter(|&n| n.is_finite() && n > above && n <= most)
            .map(Some)
            .ok_or_else(|| self.refuse(name, format!("a number above {above:?} and up to {most:?}")))
    }

    /// As [`number`](Self::number), for a field that must be there.
    pub fn needed_number(&self, name: &str, above: f64, most: f64) -> Result<f64> {
        self.number(name, above, most)?
            .ok_or_else(|| self.refuse(name, format!("a number above {above:?} and up to {most:?}")))
    }

    /// As [`number`](Self::number) above nothing, where zero means the same as absent: some writers
    /// put it for "not set".
    pub fn number_or_unset(&self, name: &str, most: f64) -> Result<Option<f64>> {
        if self.get(name).and_then(Value::as_f64) == Some(0.0) {
            return Ok(None);
        }
        self.number(name, 0.0, most)
    }

    /// True or false, `None` where absent.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value.as_bool().map(Some).ok_or_else(|| self.refuse(name, "true or false"))
    }

    /// Text, `None` where absent.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value.as_str().map(Some).ok_or_else(|| self.refuse(name, "text"))
    }

    /// One token id or a list of them, `None` where absent.
    pub fn ids(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let one = |value: &Value| whole(value).and_then(|n| u32::try_from(n).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            value => one(value).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| self.refuse(name, "a token id or a list of token ids"))
    }

    /// An object, `None` where absent.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value.as_object().map(Some).ok_or_else(|| self.refuse(name, "an object"))
    }
}

/// An error about the field `field`, whose value is `found`.
pub(crate) fn refuse(field: &str, expected: impl Into<String>, found: Option<&Value>) -> Error {
    Error::Config { field: field.into(), expected: expected.into(), found: show(found) }
}

/// A non-negative whole number; `4096.0` counts, as some writers put it so.
fn whole(value: &Value) -> Option<u64> {
    /// Above this, doubles skip whole numbers.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let n = value.as_f64()?;
        (n.fract() == 0.0 && (0.0..=EXACT).contains(&n)).then_some(n as u64)
    })
}

/// A value as it stands in the file, short enough for a message.
fn show(value: Option<&Value>) -> String {
    const LONGEST: usize = 80;
    let Some(value) = value else {
        return "nothing".into();
    };
    let text = match value {
        Value::Array(list) if list.len() > 16 => format!("a list of {} values", list.len()),
        Value::Object(map) => format!("an object with {} fields", map.len()),
        value => value.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_name_field_expectation_and_value() {
        let value = json!({ "n": "sixty-four", "long": "x".repeat(500), "zero": 0, "f": 64.0 });
        let fields = Fields::new(value.as_object().unwrap(), "rope_scaling.");
        assert_eq!(
            fields.needed_size("n", 9).unwrap_err().to_string(),
            "config: rope_scaling.n: expected a whole number from 1 to 9, found \"sixty-four\""
        );
        assert_eq!(
            fields.needed_size("none", 9).unwrap_err().to_string(),
            "config: rope_scaling.none: expected a whole number from 1 to 9, found nothing"
        );
        assert!(fields.flag("long").unwrap_err().to_string().len() < 200);
        assert!(fields.size("zero", 9).is_err());
        assert_eq!(fields.size("f", 64).unwrap(), Some(64));
    }
}
