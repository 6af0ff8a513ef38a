//! Sizes in bytes, as people write them: `600MB`, `4GiB`, `1.5GB`.

use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
///
/// Parsed from a number with an optional unit, in any case, with or without a space before it. `kB`,
/// `MB`, `GB`, `TB` are powers of ten, `KiB`, `MiB`, `GiB`, `TiB` powers of two (IEC 80000-13); the
/// short `K`, `M`, `G`, `T` mean powers of ten as well, and a bare number means bytes.
///
/// ```
/// use airllm::Size;
/// assert_eq!("600MB".parse::<Size>()?.0, 600_000_000);
/// assert_eq!("1.5 GiB".parse::<Size>()?.0, 3 << 29);
/// assert_eq!(Size(600_000_000).to_string(), "600 MB");
/// # Ok::<(), airllm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("b", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("m", 1_000_000),
    ("mb", 1_000_000),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Size> {
        let bad = |what: &str| Error::Argument {
            what: format!("{text:?} is not a size: {what}; write for example 600MB, 4GiB or 1.5GB"),
        };
        let trimmed = text.trim();
        let split =
            trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit = unit.trim().to_ascii_lowercase();
        let &(_, factor) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| bad(&format!("the unit {unit:?} is unknown")))?;
        let number = number.replace('_', "");
        if number.is_empty() {
            return Err(bad("there is no number"));
        }
        // Whole numbers go through u64, so that they are exact up to the last byte.
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(factor),
            Err(_) => {
                let value: f64 = number.parse().map_err(|_| bad("the number cannot be read"))?;
                let bytes = value * factor as f64;
                (bytes < 2f64.powi(63)).then_some(bytes.round() as u64)
            }
        };
        bytes.map(Size).ok_or_else(|| bad("it is too large"))
    }
}

impl fmt::Display for Size {
    /// Three significant digits in powers of ten: `4.28 GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["kB", "MB", "GB", "TB", "PB"] {
            if value < 999.5 {
                break;
            }
            value /= 1000.0;
            unit = next;
        }
        let decimals = match value {
            _ if unit == "B" => 0,
            v if v < 9.995 => 2,
            v if v < 99.95 => 1,
            _ => 0,
        };
        let number = format!("{value:.decimals$}");
        let number = match number.contains('.') {
            true => number.trim_end_matches('0').trim_end_matches('.'),
            false => &number,
        };
        f.pad(&format!("{number} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> u64 {
        text.parse::<Size>().unwrap().0
    }

    #[test]
    fn units() {
        assert_eq!(bytes("0"), 0);
        assert_eq!(bytes("17"), 17);
        assert_eq!(bytes("1k"), 1_000);
        assert_eq!(bytes("600MB"), 600_000_000);
        assert_eq!(bytes("600mb"), 600_000_000);
        assert_eq!(bytes("600 MiB"), 600 << 20);
        assert_eq!(bytes("4GiB"), 4 << 30);
        assert_eq!(bytes("1.5GB"), 1_500_000_000);
        assert_eq!(bytes("2T"), 2_000_000_000_000);
        assert_eq!(bytes("16_384KiB"), 16 << 20);
    }

    #[test]
    fn refused() {
        for text in ["", "GB", "-1MB", "1.2.3GB", "5 apples", "99999999999TB", "1e400", "nan", "inf"] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("is not a size"), "{text}: {error}");
        }
    }

    #[test]
    fn shown() {
        assert_eq!(Size(0).to_string(), "0 B");
        assert_eq!(Size(999).to_string(), "999 B");
        assert_eq!(Size(1_000).to_string(), "1 kB");
        assert_eq!(Size(999_600).to_string(), "1 MB");
        assert_eq!(Size(4_284_000_000).to_string(), "4.28 GB");
        assert_eq!(Size(12_340_000).to_string(), "12.3 MB");
    }
}
