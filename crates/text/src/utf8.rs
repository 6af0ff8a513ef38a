//! Bytes to text, a few at a time.

/// Replacement character, for bytes that are no UTF-8.
pub(crate) const REPLACEMENT: char = '\u{fffd}';

/// Decodes UTF-8 that arrives in pieces; what is invalid becomes U+FFFD, once for each maximal
/// invalid part, as [`String::from_utf8_lossy`] (and Python's `errors="replace"`) would do with all
/// bytes at once. A character is given out when its last byte is there.
#[derive(Debug, Default)]
pub(crate) struct Lossy {
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
}

impl Lossy {
    /// Takes some bytes and appends the characters that are complete to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        rest = after;
                        break;
                    };
                    out.push(REPLACEMENT);
                    rest = &after[bad..];
                }
            }
        }
        self.pending = rest.to_vec();
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(REPLACEMENT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_lossy_decode_of_all_bytes(
            chunks in prop::collection::vec(
                prop::collection::vec(prop_oneof![
                    Just(0xE4u8), Just(0xBD), Just(0xA0), Just(0xF0), Just(0x9F), Just(0x98), Just(0x80),
                    Just(0xED), Just(0xC0), Just(0xFF), Just(b'a'), any::<u8>(),
                ], 0..4),
                0..30,
            )
        ) {
            let mut lossy = Lossy::default();
            let mut out = String::new();
            for chunk in &chunks {
                lossy.push(chunk, &mut out);
            }
            lossy.finish(&mut out);
            prop_assert_eq!(out, String::from_utf8_lossy(&chunks.concat()).into_owned());
        }
    }
}
