//! The header as it is written, before anything but its form is checked.

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// One entry of the header.
#[derive(Debug, Deserialize)]
pub(super) struct RawTensor {
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    pub(super) data_offsets: [u64; 2],
}

/// The whole header. A name that comes twice is refused: JSON readers differ in which one they keep.
#[derive(Debug)]
pub(super) struct RawHeader {
    pub(super) tensors: Vec<(String, RawTensor)>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut seen = HashSet::new();
        let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name `{name}` comes twice")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value::<Option<UniqueStrings>>()?.unwrap_or_default().0;
            } else {
                let tensor =
                    map.next_value().map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                header.tensors.push((name, tensor));
            }
        }
        Ok(header)
    }
}

/// An object of strings in which no name comes twice.
#[derive(Debug, Default)]
pub(crate) struct UniqueStrings(pub(crate) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StringsVisitor)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = UniqueStrings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueStrings, A::Error> {
        let mut strings = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            if let Some(_old) = strings.insert(name.clone(), value) {
                return Err(A::Error::custom(format!("the name `{name}` comes twice")));
            }
        }
        Ok(UniqueStrings(strings))
    }
}
