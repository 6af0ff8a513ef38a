//! Which tokens are read and counted, and which of them go through the model in one pass.

use crate::{Error, Result};
use airllm_text::Tokenizer;
use std::collections::VecDeque;
use std::ops::Range;

/// Fewer tokens than this a window leave too little to count.
const LEAST_CONTEXT: usize = 8;

/// What tells which ids the tokenizer puts before a text: any text that has ids.
const PROBE: &str = "a";

/// The ids that a tokenizer puts before a text.
pub(crate) fn beginning(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let framed = tokenizer.encode(PROBE, true)?;
    let bare = tokenizer.encode(PROBE, false)?;
    let at = framed.windows(bare.len().max(1)).position(|ids| ids == bare);
    Ok(framed[..at.unwrap_or(0)].to_vec())
}

/// A text as windows of ids, to be predicted. See [`Scores`](crate::eval::Scores) for what is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    context: usize,
    count: usize,
    /// What each window begins with, in place of its own ids.
    start: Vec<u32>,
    ids: Vec<u32>,
    /// Bytes of text that each id stands for.
    bytes: Vec<u32>,
}

impl Windows {
    /// Cuts a text into windows of `context` ids, at most `limit` of them. Special tokens written in the text have
    /// no meaning. A token that ends inside a character stands for no bytes; the one that ends it, for all.
    ///
    /// # Errors
    /// A context below 8, a limit of 0, a text shorter than two windows, and what the tokenizer refuses.
    pub fn of(tokenizer: &Tokenizer, text: &str, context: usize, limit: Option<usize>) -> Result<Windows> {
        let start = beginning(tokenizer)?;
        if context < LEAST_CONTEXT || start.len() > context / 2 {
            let least = LEAST_CONTEXT.max(2 * start.len());
            let what = format!("a context of {context} tokens is too short, {least} are the least");
            return Err(Error::Argument { what });
        }
        if limit == Some(0) {
            return Err(Error::Argument { what: "0 windows leave nothing to count".to_owned() });
        }
        let plain = tokenizer.encode_plain(text)?;
        let total = start.len() + plain.len();
        if total < 2 * context {
            let what = format!(
                "the text has {total} tokens, a context of {context} needs at least {}: give a longer text or a \
                 smaller context",
                2 * context
            );
            return Err(Error::Input { what });
        }
        let count = limit.unwrap_or(usize::MAX).min(total / context);
        let mut bytes = vec![0; start.len()];
        let mut stream = tokenizer.stream(false);
        bytes.extend(plain.iter().map(|id| stream.push(*id).map_or(0, |text| text.len() as u32)));
        if let (Some(rest), Some(last)) = (stream.finish(), bytes.last_mut()) {
            *last += rest.len() as u32;
        }
        let mut ids = start.clone();
        ids.extend(plain);
        ids.truncate(count * context);
        bytes.truncate(count * context);
        Ok(Windows { context, count, start, ids, bytes })
    }

    /// Tokens of a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// How many windows there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Refuses the windows of another tokenizer, if they are not the same: what one model says of the text says
    /// nothing of the other then.
    pub fn check_same(&self, reference: &Windows) -> Result<()> {
        if self == reference {
            return Ok(());
        }
        let differ = self.ids.iter().zip(&reference.ids).position(|(a, b)| a != b);
        let what = match differ {
            Some(at) => format!(
                "token {at} of the text is {} for the model and {} for the reference",
                self.ids[at], reference.ids[at]
            ),
            None => format!(
                "each window begins with {:?} for the model and with {:?} for the reference",
                self.start, reference.start
            ),
        };
        Err(Error::Input { what: format!("the vocabularies of model and reference differ: {what}") })
    }

    /// The ids of a window, as the model reads them.
    pub fn ids(&self, window: usize) -> Option<Vec<u32>> {
        let from = window.checked_mul(self.context).filter(|_| window < self.count)?;
        let mut ids = self.ids.get(from..from + self.context)?.to_vec();
        ids[..self.start.len()].copy_from_slice(&self.start);
        Some(ids)
    }

    /// Positions of a window whose prediction of the next token counts.
    pub fn counted(&self) -> Range<usize> {
        self.shape().first()..self.context - 1
    }

    /// Bytes of text that the id at a position stands for.
    pub(crate) fn bytes(&self, window: usize, position: usize) -> u64 {
        self.bytes.get(window * self.context + position).map_or(0, |bytes| u64::from(*bytes))
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape { context: self.context, count: self.count }
    }
}

/// Sizes of an evaluation, without its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) context: usize,
    pub(crate) count: usize,
}

impl Shape {
    /// The first position that counts.
    fn first(self) -> usize {
        self.context / 2
    }

    /// Tokens of a window that the model must read: nobody asks what it expects after the last one.
    fn read(self) -> usize {
        self.context - 1
    }

    /// Rows of logits that a pass of so many tokens returns. Half of what is read counts, so with more the passes
    /// would not take turns any better.
    pub(crate) fn rows(self, tokens: usize) -> usize {
        tokens.div_ceil(2)
    }

    /// Windows side by side: as many as begin in one pass, and one to begin while another ends.
    pub(crate) fn side_by_side(self, tokens: usize) -> usize {
        tokens.div_ceil(self.first()).max(2).min(self.count).max(1)
    }

    /// Tokens of key/value cache for them, and where that is too much: for one window at a time, which takes half
    /// as many passes again. With half the tokens a pass it would be twice as many.
    pub(crate) fn caches(self, tokens: usize) -> [usize; 2] {
        [self.side_by_side(tokens).saturating_mul(self.context), self.context]
    }
}

/// Some consecutive tokens of a window in a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) window: usize,
    pub(super) range: Range<usize>,
    /// Whether they count; either all of them do, or none.
    pub(super) counted: bool,
    /// Whether the window is read with them.
    pub(super) last: bool,
}

/// Which tokens go through the model when. Windows end in their order, for the older one always goes first.
#[derive(Debug)]
pub(super) struct Schedule {
    shape: Shape,
    tokens: usize,
    rows: usize,
    side_by_side: usize,
    /// Windows that have begun, and how many tokens of each are read.
    begun: VecDeque<(usize, usize)>,
    next: usize,
}

impl Schedule {
    /// With passes of `tokens` tokens and room for `room` tokens of cache, at least one window.
    pub(super) fn new(shape: Shape, tokens: usize, room: usize) -> Schedule {
        let tokens = tokens.max(1);
        let side_by_side = shape.side_by_side(tokens).min(room / shape.context).max(1);
        Schedule { shape, tokens, rows: shape.rows(tokens), side_by_side, begun: VecDeque::new(), next: 0 }
    }
}

impl Iterator for Schedule {
    type Item = Vec<Part>;

    /// The next pass; `None` when all is read.
    fn next(&mut self) -> Option<Vec<Part>> {
        let (first, read) = (self.shape.first(), self.shape.read());
        let (mut tokens, mut rows, mut parts) = (self.tokens, self.rows, Vec::new());
        let mut number = 0;
        while tokens > 0 {
            if number == self.begun.len() {
                if number == self.side_by_side || self.next == self.shape.count {
                    break;
                }
                self.begun.push_back((self.next, 0));
                self.next += 1;
            }
            let (window, fed) = self.begun[number];
            number += 1;
            let counted = fed >= first;
            let take = if counted { (read - fed).min(rows) } else { first - fed }.min(tokens);
            if take == 0 {
                continue;
            }
            tokens -= take;
            rows -= if counted { take } else { 0 };
            self.begun[number - 1].1 += take;
            parts.push(Part { window, range: fed..fed + take, counted, last: fed + take == read });
        }
        self.begun.retain(|(_, fed)| *fed < read);
        (!parts.is_empty()).then_some(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_read_once_and_in_order() {
        for (context, count) in [(8, 1), (9, 3), (16, 7), (64, 5)] {
            let shape = Shape { context, count };
            for tokens in [1, 2, 3, 7, 8, 20, 64, 1000] {
                for room in shape.caches(tokens) {
                    let (mut fed, mut ended, mut open) = (vec![0; count], Vec::new(), 0_usize);
                    for parts in Schedule::new(shape, tokens, room) {
                        assert!(parts.iter().map(|p| p.range.len()).sum::<usize>() <= tokens);
                        let rows = parts.iter().filter(|p| p.counted).map(|p| p.range.len()).sum::<usize>();
                        assert!(rows <= shape.rows(tokens));
                        for part in &parts {
                            open += usize::from(part.range.start == 0);
                            assert_eq!(part.range.start, fed[part.window]);
                            assert_eq!(part.counted, part.range.start >= context / 2);
                            assert!(part.counted || part.range.end <= context / 2);
                            fed[part.window] = part.range.end;
                        }
                        assert!(open * context <= room, "{open} windows of {context} in {room}");
                        ended.extend(parts.iter().filter(|p| p.last).map(|p| p.window));
                        open -= parts.iter().filter(|p| p.last).count();
                    }
                    assert!(fed.iter().all(|&fed| fed == context - 1), "{fed:?}");
                    assert_eq!(ended, (0..count).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn passes_are_full() {
        // Two windows of 512 in turn: one begins while the other ends.
        let shape = Shape { context: 512, count: 20 };
        assert_eq!((shape.side_by_side(512), shape.caches(512)), (2, [1024, 512]));
        assert_eq!(Schedule::new(shape, 512, 1024).count(), 21);
        // Eight at a time.
        let shape = Shape { context: 128, count: 80 };
        assert_eq!(shape.side_by_side(512), 8);
        assert!(Schedule::new(shape, 512, 1024).count() <= 22);
        assert_eq!(Schedule::new(Shape { context: 512, count: 1 }, 1, 512).count(), 511);
    }
}
