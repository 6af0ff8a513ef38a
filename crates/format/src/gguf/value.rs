//! The entries of a GGUF file.

use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// The entries of a file by key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata(pub(super) BTreeMap<String, Value>);

/// The value of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A number with a point. One of 32 bits is given as the shortest decimal that means it, which is what its
    /// writer had (`1e-5`, not `0.000009999999747`).
    Float(f64),
    /// Text.
    Text(String),
    /// Values of one type.
    List(List),
}

/// A list of values of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum List {
    /// Numbers or truth values.
    Numbers(Numbers),
    /// Texts.
    Texts(Vec<String>),
    /// Lists.
    Lists(Vec<List>),
}

/// A list of numbers, kept as it is in the file: vocabularies have hundreds of thousands.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
}

/// The type of a number in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Kind {
    /// The type with that number in a file.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The value of so many bytes; shorter ones are filled up with zeros.
    pub(super) fn value(self, bytes: &[u8]) -> Value {
        let mut raw = [0; 8];
        raw.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let bits = u64::from_le_bytes(raw);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(bits),
            Self::I8 => Value::Signed(i64::from(bits as i8)),
            Self::I16 => Value::Signed(i64::from(bits as i16)),
            Self::I32 => Value::Signed(i64::from(bits as i32)),
            Self::I64 => Value::Signed(bits as i64),
            Self::Bool => Value::Bool(bits != 0),
            Self::F32 => Value::Float(decimal(f32::from_bits(bits as u32))),
            Self::F64 => Value::Float(f64::from_bits(bits)),
        }
    }
}

/// The shortest decimal that means `number`, as a double.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The text under a key, if it is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The entries whose keys begin with `prefix` (`"tokenizer."`, or nothing for all) as a JSON object.
    /// Numbers that JSON does not have (infinities, NaN) become null.
    pub fn to_json(&self, prefix: &str) -> Json {
        let wanted = self.iter().filter(|(key, _)| key.starts_with(prefix));
        Json::Object(wanted.map(|(key, value)| (key.to_owned(), value.to_json())).collect::<Map<_, _>>())
    }
}

impl Value {
    /// What it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::Unsigned(_) | Self::Signed(_) => "a whole number",
            Self::Float(_) => "a number with a point",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
        }
    }

    /// A number that is not negative and whole.
    pub fn whole(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Unsigned(n) => Some(*n as f64),
            Self::Signed(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }

    fn to_json(&self) -> Json {
        match self {
            Self::Bool(flag) => Json::from(*flag),
            Self::Unsigned(n) => Json::from(*n),
            Self::Signed(n) => Json::from(*n),
            Self::Float(n) => Json::from(*n),
            Self::Text(text) => Json::from(text.as_str()),
            Self::List(list) => list.to_json(),
        }
    }
}

impl List {
    fn to_json(&self) -> Json {
        match self {
            Self::Numbers(numbers) => numbers.iter().map(|value| value.to_json()).collect(),
            Self::Texts(texts) => texts.iter().map(|text| Json::from(text.as_str())).collect(),
            Self::Lists(lists) => lists.iter().map(Self::to_json).collect(),
        }
    }
}

impl Numbers {
    /// The numbers, or truth values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value> {
        self.bytes.chunks_exact(self.kind.bytes()).map(|bytes| self.kind.value(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_width() {
        let value = |id: u32, bytes: &[u8]| Kind::from_id(id).unwrap().value(bytes);
        assert_eq!(value(0, &[255]), Value::Unsigned(255));
        assert_eq!(value(1, &[255]), Value::Signed(-1));
        assert_eq!(value(3, &[0, 128]), Value::Signed(-32768));
        assert_eq!(value(5, &[254, 255, 255, 255]), Value::Signed(-2));
        assert_eq!(value(7, &[1]), Value::Bool(true));
        assert_eq!(value(10, &[255; 8]), Value::Unsigned(u64::MAX));
        assert_eq!(value(11, &[255; 8]), Value::Signed(-1));
        assert_eq!(value(6, &1e-5f32.to_le_bytes()), Value::Float(1e-5));
        assert_eq!(value(12, &0.1f64.to_le_bytes()), Value::Float(0.1));
        assert!(matches!(value(6, &f32::NAN.to_le_bytes()), Value::Float(n) if n.is_nan()));
        assert_eq!(value(6, &f32::NEG_INFINITY.to_le_bytes()), Value::Float(f64::NEG_INFINITY));
        assert_eq!(Kind::from_id(8), None);
    }
}
