//! Values as Python writes them: templates are written for Jinja, and expect its `str` and its JSON.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Deeper values are refused, so that a template cannot exhaust the stack.
const DEPTH: usize = 200;

/// `str(value)`.
pub(crate) fn str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            let mut out = String::new();
            repr(value, 0, &mut out)?;
            Ok(out)
        }
    }
}

/// The `tojson` filter: `json.dumps(value, ensure_ascii=False)` with its spaces after `,` and `:`.
pub(crate) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none() && !indent.is_undefined()) {
        None => None,
        Some(indent) => match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Some(n)) => Some(" ".repeat(n.min(64))),
            (None, None) => return Err(invalid("tojson: `indent` should be a number or a string")),
        },
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let [item, key] = match separators.as_deref() {
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(invalid("tojson: `separators` should be two strings")),
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut out = String::new();
    Json { indent, item, key, ensure_ascii, sort_keys }.write(value, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

struct Json {
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value, ["NaN", "Infinity", "-Infinity"])),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut any = false;
                for item in value.try_iter()? {
                    self.next(&mut any, depth, out);
                    self.write(&item, depth + 1, out)?;
                }
                self.close(any, depth, ']', out);
            }
            ValueKind::Map => {
                out.push('{');
                let mut any = false;
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for key in keys {
                    self.next(&mut any, depth, out);
                    let name = match key.kind() {
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool => key.is_true().to_string(),
                        _ => str(&key)?,
                    };
                    self.string(&name, out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(&key)?, depth + 1, out)?;
                }
                self.close(any, depth, '}', out);
            }
            kind => {
                return Err(invalid(format!("tojson: a value of kind {kind} has no JSON form")));
            }
        }
        Ok(())
    }

    fn next(&self, any: &mut bool, depth: usize, out: &mut String) {
        if std::mem::replace(any, true) {
            out.push_str(&self.item);
        }
        self.line(depth + 1, out);
    }

    fn close(&self, any: bool, depth: usize, bracket: char, out: &mut String) {
        if any {
            self.line(depth, out);
        }
        out.push(bracket);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' '
                    || (self.ensure_ascii && !c.is_ascii())
                    || (self.ensure_ascii && c == '\u{7f}') =>
                {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `repr(value)`.
fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value, ["nan", "inf", "-inf"])),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                if count > 0 {
                    out.push_str(", ");
                }
                repr(&item, depth + 1, out)?;
                count += 1;
            }
            if tuple && count == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A string literal: in single quotes unless that would need escapes that double quotes do not.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number; a float has the shortest digits that give it back, a point, and an exponent outside
/// 1e-4 to 1e16.
fn number(value: &Value, not_finite: [&str; 3]) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if float.is_nan() {
        return not_finite[0].to_owned();
    }
    if float.is_infinite() {
        return not_finite[if float > 0.0 { 1 } else { 2 }].to_owned();
    }
    let size = float.abs();
    if float != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = float.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(invalid(format!("a value is nested more than {DEPTH} deep")));
    }
    Ok(())
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn json_of(value: serde_json::Value, template: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        env.render_str(template, minijinja::context! { x => Value::from(minijinja::value::Serde(value)) })
            .unwrap()
    }

    #[test]
    fn json_has_pythons_spaces_and_keeps_letters() {
        let value = json!({"b": [1, 2.5, true, null], "a": {"é<>&'": "\"\\\n\u{1}你"}, "e": {}, "l": []});
        assert_eq!(
            json_of(value, "{{ x|tojson }}"),
            r#"{"b": [1, 2.5, true, null], "a": {"é<>&'": "\"\\\n\u0001你"}, "e": {}, "l": []}"#
        );
    }

    #[test]
    fn json_options() {
        let value = json!({"b": [1], "a": "你😀"});
        assert_eq!(
            json_of(value.clone(), "{{ x|tojson(indent=2) }}"),
            "{\n  \"b\": [\n    1\n  ],\n  \"a\": \"你😀\"\n}"
        );
        assert_eq!(
            json_of(value, "{{ x|tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}"),
            r#"{"a":"\u4f60\ud83d\ude00","b":[1]}"#
        );
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        for (value, text) in [
            (json!(null), "None"),
            (json!(true), "True"),
            (json!(1.0), "1.0"),
            (json!(1e16), "1e+16"),
            (json!(1.5e-7), "1.5e-07"),
            (json!(0.0001), "0.0001"),
            (json!(123456789.125), "123456789.125"),
            (json!(-3), "-3"),
            (json!("it's"), "it's"),
            (json!(["it's", "a\"b'", "x\n"]), r#"["it's", 'a"b\'', 'x\n']"#),
            (json!({"k": {"n": null}}), "{'k': {'n': None}}"),
        ] {
            assert_eq!(str(&Value::from(minijinja::value::Serde(&value))).unwrap(), text);
        }
    }

    #[test]
    fn too_deep_a_value_is_refused() {
        let mut value = Value::from(1);
        for _ in 0..300 {
            value = Value::from(vec![value]);
        }
        assert!(str(&value).unwrap_err().to_string().contains("nested more than"));
    }
}
