//! Values that have a form of their own.

/// Bits a weight, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitWidth(pub airllm::Bits);

impl std::str::FromStr for BitWidth {
    type Err = String;

    fn from_str(text: &str) -> Result<BitWidth, String> {
        if text == airllm::Bits::Nf4.name() {
            return Ok(BitWidth(airllm::Bits::Nf4));
        }
        let known = std::iter::once(airllm::Bits::Source).chain(airllm::Bits::NARROW);
        let mut known = known.filter(|bits| bits.width().to_string() == text);
        let expected = "expected 16 (the checkpoint's own precision), 8, 6, 5, 4, 3, 2 or nf4";
        known.next().map(BitWidth).ok_or_else(|| expected.to_owned())
    }
}

/// Bits a weight as typed, of each or on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Width(pub airllm::Target);

impl std::str::FromStr for Width {
    type Err = String;

    fn from_str(text: &str) -> Result<Width, String> {
        let average = text.contains('.').then(|| text.parse().ok()).flatten();
        match average.map(airllm::Target::Average) {
            Some(target) => target.check().map(|()| Width(target)).map_err(|error| error.to_string()),
            None => match text.parse() {
                Ok(BitWidth(bits)) => Ok(Width(airllm::Target::Uniform(bits))),
                Err(expected) => Err(format!("{expected}, or an average with a point, such as 3.7")),
            },
        }
    }
}

/// Token ids separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids(pub Vec<u32>);

impl std::str::FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Ids, String> {
        let id = |part: &str| {
            let part = part.trim();
            part.parse().map_err(|_| format!("{part:?} is not a token id; write for example 1,2,3"))
        };
        text.split(',').map(id).collect::<Result<_, _>>().map(Ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        use airllm::{Bits, Target};
        assert_eq!("4".parse::<Width>().unwrap().0, Target::Uniform(Bits::Q4));
        assert_eq!("4.0".parse::<Width>().unwrap().0, Target::Average(4.0));
        assert_eq!("3.7".parse::<Width>().unwrap().0, Target::Average(3.7));
        for bad in ["", "7", "x", "3,7", "0.0", "-3.5", "17.5", "inf.", "4.x"] {
            assert!(bad.parse::<Width>().unwrap_err().contains("expected"), "{bad}");
        }
    }

    #[test]
    fn ids() {
        assert_eq!("1, 2,3".parse::<Ids>().unwrap().0, [1, 2, 3]);
        for bad in ["", "1,,2", "-1", "1;2", "4294967296", "x"] {
            assert!(bad.parse::<Ids>().unwrap_err().contains("is not a token id"), "{bad}");
        }
    }
}
