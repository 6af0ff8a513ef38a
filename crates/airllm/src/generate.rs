//! The loop that turns prompts into answers, one pass over the weights for all of them at a time.

use crate::engine::{Engine, Step};
use crate::physics::{Counters, Limits, LogitsHash, Stretch};
use crate::{Cancel, Error, FinishReason, Physics, Prompt, Result, Sampler, Stops};
use airllm_model::Want;
use airllm_text::{Detokenizer, Tokenizer};
use std::collections::VecDeque;
use std::fmt;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// What one new token adds to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Which prompt is answered, counted from 0.
    pub prompt: usize,
    /// The token; `None` where an answer ends without one (an interruption).
    pub id: Option<u32>,
    /// The text that is certain now. May be empty: characters are never split, and what may become a
    /// stop string is held back.
    pub text: String,
    /// Why the answer ends, with its last piece.
    pub finish: Option<FinishReason>,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One prompt and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Tokens of the prompt.
    pub prompt_ids: Vec<u32>,
    /// New tokens, with the end-of-sequence token that ended the answer, if one did.
    pub ids: Vec<u32>,
    /// Their text, without special tokens and without the stop string; empty for a model that has no
    /// tokenizer.
    pub text: String,
    /// Why the answer ended; `None` while it goes on.
    pub finish: Option<FinishReason>,
}

/// Times of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// Seconds in passes that read prompts.
    pub prompt_s: f64,
    /// Seconds from the start to the first new token; 0 if there was none.
    pub first_token_s: f64,
    /// Seconds in passes that only decoded.
    pub decode_s: f64,
    /// Seconds from the start to now, or to the end.
    pub total_s: f64,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Answering {
    /// Answers that have ended.
    pub done: usize,
    /// Answers in all.
    pub of: usize,
    /// Sequences under way.
    pub active: usize,
    /// New tokens of all answers.
    pub tokens: usize,
    /// New tokens that are still expected: up to what each answer may have, but no more than answers had so far on
    /// average.
    pub tokens_left: f64,
    /// Time since the run began.
    pub elapsed: Duration,
}

impl Answering {
    /// New tokens a second, all answers together.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.tokens as f64 / seconds } else { 0.0 }
    }

    /// Time left at the rate so far; `None` while nothing can be said.
    pub fn left(&self) -> Option<Duration> {
        let rate = self.rate();
        if rate > 0.0 { Duration::try_from_secs_f64(self.tokens_left / rate).ok() } else { None }
    }
}

/// Answers in the making: an iterator of [`Piece`]s. Dropping it stops the work.
///
/// Each answer is what its prompt would get alone, whatever runs beside it.
pub struct Generate<'a> {
    engine: MutexGuard<'a, Box<dyn Engine>>,
    rows: Vec<Row>,
    /// The most sequences under way.
    active: usize,
    /// Tokens of key/value cache that are not given to a sequence.
    room: usize,
    switch: Option<usize>,
    cancel: Cancel,
    end_when: Cancel,
    limits: Limits,
    pieces: VecDeque<Piece>,
    failed: bool,
    hash: LogitsHash,
    start: Instant,
    first_token: Option<Duration>,
    end: Option<Duration>,
    prompts: Stretch,
    decode: Stretch,
}

/// What a new [`Generate`] is made of.
pub(crate) struct Start<'a> {
    pub(crate) engine: MutexGuard<'a, Box<dyn Engine>>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    pub(crate) vocab: usize,
    /// See [`Rotary::switch`](airllm_model::rope::Rotary::switch).
    pub(crate) switch: Option<usize>,
    pub(crate) eos: &'a [u32],
    /// Tokens a sequence may have; `None` for no limit but the cache.
    pub(crate) limit: Option<usize>,
    /// Tokens of key/value cache.
    pub(crate) room: usize,
    /// The most sequences under way.
    pub(crate) active: usize,
    pub(crate) cancel: Cancel,
    pub(crate) limits: Limits,
}

struct Row {
    answer: Answer,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// How many of them the sequence holds.
    fed: usize,
    /// The length that rotary frequencies are taken from at least: that of the prompt, or of what was read
    /// anew.
    rope_len: usize,
    /// Number of the sequence, while there is one.
    seq: Option<usize>,
    /// Tokens that the sequence needs room for.
    capacity: usize,
    /// The most new tokens.
    most: usize,
    /// Ids that end the answer.
    eos: Vec<u32>,
    sampler: Sampler,
    text: Option<Detokenizer>,
    stops: Stops,
}

impl Start<'_> {
    /// What a prompt needs to be continued, before it is begun; `seed` where its options have none.
    fn row(&self, prompt: &Prompt, seed: u64) -> Result<Row> {
        let Prompt { ids, options } = prompt;
        let limit = self.limit.map_or(self.room, |limit| limit.min(self.room));
        let refuse = || Error::Context { prompt: ids.len(), new: options.max_new_tokens, context: limit };
        if ids.is_empty() {
            let what = "the prompt has no tokens: give at least one".to_owned();
            return Err(Error::Input { what });
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab) {
            let what = format!("the prompt has token id {id}, the model has {} ids", self.vocab);
            return Err(Error::Input { what });
        }
        let left = limit.checked_sub(ids.len()).ok_or_else(refuse)?;
        let most = options.max_new_tokens.min(left);
        if most == 0 && options.max_new_tokens > 0 {
            return Err(refuse());
        }
        let mut sampler = Sampler::new(options, self.vocab, seed)?;
        sampler.observe(ids);
        Ok(Row {
            tokens: ids.clone(),
            fed: 0,
            rope_len: ids.len(),
            seq: None,
            capacity: ids.len() + most,
            most,
            eos: if options.ignore_eos { Vec::new() } else { [self.eos, &options.stop_ids].concat() },
            sampler,
            text: self.tokenizer.map(|t| t.stream(true)),
            stops: Stops::new(options.stop.iter().cloned()),
            answer: Answer { prompt_ids: ids.clone(), ids: Vec::new(), text: String::new(), finish: None },
        })
    }
}

impl<'a> Generate<'a> {
    pub(crate) fn new(start: Start<'a>) -> Result<Self> {
        // One seed for all rows, so that each gets what it would get alone.
        let seed = random_seed();
        let rows: Vec<Row> =
            start.prompts.iter().map(|prompt| start.row(prompt, seed)).collect::<Result<_>>()?;
        let mut generate = Generate {
            active: start.active.min(start.engine.max_tokens()).max(1),
            engine: start.engine,
            rows,
            room: start.room,
            switch: start.switch,
            cancel: start.cancel,
            end_when: Cancel::new(),
            limits: start.limits,
            pieces: VecDeque::new(),
            failed: false,
            hash: LogitsHash::default(),
            start: Instant::now(),
            first_token: None,
            end: None,
            prompts: Stretch::default(),
            decode: Stretch::default(),
        };
        for row in 0..generate.rows.len() {
            if generate.rows[row].most == 0 {
                generate.end_row(row, None, FinishReason::Length);
            }
        }
        Ok(generate)
    }

    /// A flag that ends these answers alone, as interrupted, once the pass under way is over. The model goes
    /// on, unlike after [`Builder::cancel`](crate::Builder::cancel).
    pub fn end_when(&mut self, flag: &Cancel) {
        self.end_when = flag.clone();
    }

    /// The answers as far as they have come, in the order of the prompts.
    pub fn answers(&self) -> impl ExactSizeIterator<Item = &Answer> {
        self.rows.iter().map(|row| &row.answer)
    }

    /// The answer to prompt `number`, counted from 0, as far as it has come.
    pub fn answer(&self, number: usize) -> Option<&Answer> {
        self.rows.get(number).map(|row| &row.answer)
    }

    /// How far the run has come.
    pub fn progress(&self) -> Answering {
        let (mut done, mut ended, mut tokens) = (0, 0, 0);
        for row in &self.rows {
            tokens += row.answer.ids.len();
            if row.answer.finish.is_some() {
                done += 1;
                ended += row.answer.ids.len();
            }
        }
        let usual = if done > 0 { ended as f64 / done as f64 } else { f64::INFINITY };
        let left = |row: &Row| match row.answer.finish {
            Some(_) => 0.0,
            // One that has more than the others may end at any token.
            None => ((row.most as f64).min(usual) - row.answer.ids.len() as f64).max(1.0),
        };
        Answering {
            done,
            of: self.rows.len(),
            active: self.rows.iter().filter(|row| row.seq.is_some()).count(),
            tokens,
            tokens_left: self.rows.iter().map(left).sum(),
            elapsed: self.end.unwrap_or_else(|| self.start.elapsed()),
        }
    }

    /// What the run moved so far, how fast, and what held it back.
    pub fn physics(&self) -> Physics {
        Physics::of(self.prompts, self.decode, &self.limits, &self.hash)
    }

    /// How long things took so far.
    pub fn timings(&self) -> Timings {
        Timings {
            prompt_s: self.prompts.time.as_secs_f64(),
            first_token_s: self.first_token.unwrap_or_default().as_secs_f64(),
            decode_s: self.decode.time.as_secs_f64(),
            total_s: self.end.unwrap_or_else(|| self.start.elapsed()).as_secs_f64(),
        }
    }

    /// A picture of who was busy when, `width` columns wide; see [`Builder::timeline`](crate::Builder::timeline).
    pub fn gantt(&self, width: usize) -> String {
        self.engine.timeline().gantt(width)
    }

    /// Who was busy when, in the format of chrome://tracing and Perfetto.
    pub fn chrome_trace(&self) -> String {
        self.engine.timeline().chrome_trace(&self.engine.units())
    }

    /// One pass over the weights: decoding rows get their next token, others read on in their prompts.
    fn step(&mut self) -> Result<()> {
        self.admit()?;
        self.rewind()?;
        let (chosen, reads_prompt) = self.choose();
        let steps: Vec<Step<'_>> = chosen
            .iter()
            .filter_map(|&(row, take)| {
                let Row { tokens, fed, seq, rope_len, .. } = &self.rows[row];
                let want = if fed + take == tokens.len() { Want::Last } else { Want::None };
                Some(Step { seq: (*seq)?, ids: &tokens[*fed..fed + take], prompt: *rope_len, want })
            })
            .collect();
        let (before, begin) = (self.counters(), Instant::now());
        let logits = self.engine.forward(&steps, None)?;
        let (after, time) = (self.counters(), begin.elapsed());
        let stretch = if reads_prompt { &mut self.prompts } else { &mut self.decode };
        let tokens = chosen.iter().map(|(_, take)| *take as u64).sum();
        stretch.add(time, tokens, before, after);
        for ((row, take), logits) in chosen.into_iter().zip(logits) {
            self.rows[row].fed += take;
            if !logits.is_empty() {
                self.hash.add(&logits);
                let id = self.rows[row].sampler.next(&logits)?;
                self.first_token.get_or_insert_with(|| self.start.elapsed());
                self.take_token(row, id);
            }
        }
        Ok(())
    }

    /// Opens sequences for rows that wait, as far as the cache has room.
    fn admit(&mut self) -> Result<()> {
        let mut active = self.rows.iter().filter(|row| row.seq.is_some()).count();
        for row in &mut self.rows {
            let waits = row.seq.is_none() && row.answer.finish.is_none();
            if waits && row.capacity <= self.room && active < self.active {
                row.seq = Some(self.engine.open(row.capacity)?);
                self.room -= row.capacity;
                active += 1;
            }
        }
        Ok(())
    }

    /// Empties the caches of rows whose next token changes what the cache should hold of all earlier ones.
    /// They read what they have anew.
    fn rewind(&mut self) -> Result<()> {
        let Some(limit) = self.switch else { return Ok(()) };
        for row in &mut self.rows {
            let crosses = (1..=limit).contains(&row.fed) && row.tokens.len() > limit && row.rope_len <= limit;
            let Some(seq) = row.seq.filter(|_| crosses) else { continue };
            self.engine.close(seq);
            row.seq = Some(self.engine.open(row.capacity)?);
            (row.fed, row.rope_len) = (0, row.tokens.len());
        }
        Ok(())
    }

    /// Which rows get how many tokens in the next pass, and whether any of them reads its prompt.
    ///
    /// Rows that decode come first: they need one token each, and there are never more rows than
    /// tokens in a pass. What is left goes to prompts.
    fn choose(&self) -> (Vec<(usize, usize)>, bool) {
        let mut left = self.engine.max_tokens();
        let mut chosen = Vec::new();
        let mut reads_prompt = false;
        for prompts in [false, true] {
            for (number, row) in self.rows.iter().enumerate().filter(|(_, row)| row.seq.is_some()) {
                let unread = row.tokens.len() - row.fed;
                let reads = unread > 1 || row.fed < row.answer.prompt_ids.len();
                if reads == prompts && left > 0 {
                    let take = unread.min(left);
                    left -= take;
                    reads_prompt |= prompts;
                    chosen.push((number, take));
                }
            }
        }
        chosen.sort_unstable();
        (chosen, reads_prompt)
    }

    /// Adds a token to an answer, and ends the answer if it is the last one.
    fn take_token(&mut self, number: usize, id: u32) {
        let row = &mut self.rows[number];
        row.answer.ids.push(id);
        row.tokens.push(id);
        let text = row.text.as_mut().and_then(|text| text.push(id)).unwrap_or_default();
        let (text, stopped) = row.stops.push(&text);
        row.answer.text.push_str(&text);
        let finish = if stopped || row.eos.contains(&id) {
            Some(FinishReason::Stop)
        } else if row.answer.ids.len() >= row.most {
            Some(FinishReason::Length)
        } else {
            None
        };
        self.pieces.push_back(Piece { prompt: number, id: Some(id), text, finish: None });
        if let Some(finish) = finish {
            let last = self.pieces.pop_back();
            self.end_row(number, last, finish);
        }
    }

    /// Ends an answer: what was held back is certain now.
    fn end_row(&mut self, number: usize, last: Option<Piece>, finish: FinishReason) {
        let row = &mut self.rows[number];
        let mut held = row.text.take().and_then(Detokenizer::finish).unwrap_or_default();
        held = row.stops.push(&held).0 + &row.stops.finish();
        row.answer.text.push_str(&held);
        row.answer.finish = Some(finish);
        row.sampler.release();
        if let Some(seq) = row.seq.take() {
            self.engine.close(seq);
            self.room += row.capacity;
        }
        let mut piece = last.unwrap_or(Piece { prompt: number, id: None, text: String::new(), finish: None });
        piece.text.push_str(&held);
        piece.finish = Some(finish);
        self.pieces.push_back(piece);
        if self.rows.iter().all(|row| row.answer.finish.is_some()) {
            self.end = Some(self.start.elapsed());
        }
    }

    fn interrupt(&mut self) {
        for number in 0..self.rows.len() {
            if self.rows[number].answer.finish.is_none() {
                self.end_row(number, None, FinishReason::Interrupted);
            }
        }
    }

    fn counters(&self) -> Counters {
        let (stats, flops) = (self.engine.stats(), self.engine.work().flops);
        Counters {
            read: stats.bytes_read,
            leased: stats.bytes_leased,
            uploaded: stats.bytes_uploaded,
            passes: stats.passes,
            wait_ns: stats.wait_ns,
            flops,
            hits: stats.demand_hits,
            misses: stats.demand_misses,
        }
    }
}

impl Iterator for Generate<'_> {
    type Item = Result<Piece>;

    /// The next piece of any answer; `None` when all have ended. After an error there is no more.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
            }
            if self.failed || self.rows.iter().all(|row| row.answer.finish.is_some()) {
                return None;
            }
            if self.cancel.is_stopped() || self.end_when.is_stopped() {
                self.interrupt();
                continue;
            }
            match self.step() {
                Ok(()) => {}
                // A pass that was broken off because of the cancel flag is no error.
                Err(_) if self.cancel.is_stopped() => self.interrupt(),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Drop for Generate<'_> {
    fn drop(&mut self) {
        for row in &mut self.rows {
            if let Some(seq) = row.seq.take() {
                self.engine.close(seq);
            }
        }
    }
}

/// A seed that differs from run to run: the standard library's hasher is keyed by the system.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
