//! Stop strings that may begin in one piece of text and end in another.

/// Passes text on, except what might turn out to be the beginning of a stop string.
///
/// ```
/// use airllm::Stops;
/// let mut stops = Stops::new(["END"]);
/// assert_eq!(stops.push("one E"), ("one ".to_owned(), false)); // "E" may become "END"
/// assert_eq!(stops.push("N"), (String::new(), false));
/// assert_eq!(stops.push("ough"), ("ENough".to_owned(), false)); // it did not
/// assert_eq!(stops.push(". END of it"), (". ".to_owned(), true));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Stops {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl Stops {
    /// Stops at the occurrence that is complete first; empty strings are left out. Of several that end at the
    /// same place the longest counts.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Stops {
        let stops = stops.into_iter().map(Into::into).filter(|s: &String| !s.is_empty()).collect();
        Stops { stops, held: String::new(), stopped: false }
    }

    /// Takes a piece of text; returns what may be shown and whether a stop string was met.
    ///
    /// Text from the stop string on is dropped, and so is everything pushed later.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        self.held.push_str(piece);
        // What is complete first does not depend on how the text was cut; what begins first would.
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at + s.len(), at)));
        if let Some((_, at)) = found.min() {
            self.stopped = true;
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is still held back, once no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len())
        .rev()
        .filter(|n| stop.is_char_boundary(*n))
        .find(|n| text.as_bytes().ends_with(&stop.as_bytes()[..*n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn earliest_of_several() {
        let mut stops = Stops::new(["cd", "bcx", ""]);
        assert_eq!(stops.push("abc"), ("a".into(), false));
        assert_eq!(stops.push("d"), ("b".into(), true));
        assert_eq!(stops.push("more"), (String::new(), true));
        assert_eq!(stops.finish(), "");
    }

    #[test]
    fn wide_characters() {
        let mut stops = Stops::new(["。完"]);
        assert_eq!(stops.push("你好。"), ("你好".into(), false));
        assert_eq!(stops.push("是"), ("。是".into(), false));
        assert_eq!(stops.push("。"), (String::new(), false));
        assert_eq!(stops.finish(), "。");
    }

    proptest! {
        /// However a text is cut into pieces, the same part of it comes out.
        #[test]
        fn cuts_do_not_matter(
            text in "[ab]{0,40}",
            stops in prop::collection::vec("[ab]{1,5}", 0..3),
            cuts in prop::collection::vec(0usize..41, 0..8),
        ) {
            let found = stops.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at)));
            let end = found.min().map(|(_, at)| at);
            let mut filter = Stops::new(stops);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            let (mut out, mut from, mut met) = (String::new(), 0, false);
            for cut in cuts {
                let (piece, stopped) = filter.push(&text[from..cut]);
                out.push_str(&piece);
                met = stopped;
                from = cut;
            }
            out.push_str(&filter.finish());
            prop_assert_eq!(met, end.is_some());
            prop_assert_eq!(out, &text[..end.unwrap_or(text.len())]);
        }
    }
}
