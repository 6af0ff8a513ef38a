//! The model a program works with.

use crate::engine::{Engine, Step};
use crate::generate::Start;
use crate::physics::Limits;
use crate::{
    Answer, Builder, Cancel, ChatFormat, Checkpoint, Error, Forecast, Generate, Generation, Prompt, Result,
};
use airllm_model::{Config, Want};
use airllm_text::Tokenizer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, TryLockError};

/// A language model that is ready to run.
///
/// Its weights stay on the disk, but for what the memory budget holds. One generation runs at a time;
/// several prompts of one generation share each pass over the weights.
///
/// ```no_run
/// use airllm::{AutoModel, Generation};
///
/// let model = AutoModel::from_pretrained("Qwen/Qwen2.5-72B-Instruct")?;
/// for piece in model.generate("为什么天空是蓝色的？", &Generation::default())? {
///     print!("{}", piece?);
/// }
/// # Ok::<(), airllm::Error>(())
/// ```
pub struct AutoModel {
    engine: Mutex<Box<dyn Engine>>,
    config: Config,
    tokenizer: Result<Tokenizer, String>,
    dir: PathBuf,
    eos: Vec<u32>,
    limit: Option<usize>,
    active: usize,
    cancel: Cancel,
    forecast: Forecast,
}

/// What an [`AutoModel`] is made of.
pub(crate) struct Parts {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) config: Config,
    pub(crate) tokenizer: Result<Tokenizer, String>,
    pub(crate) dir: PathBuf,
    pub(crate) eos: Vec<u32>,
    pub(crate) limit: Option<usize>,
    /// The most sequences under way.
    pub(crate) active: usize,
    pub(crate) cancel: Cancel,
    pub(crate) forecast: Forecast,
}

/// Scores of every token of the vocabulary after each token of a text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Logits {
    /// Tokens of the text.
    pub rows: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// `[rows, vocab]`.
    pub values: Vec<f32>,
}

impl Logits {
    /// The scores of what follows token `row`.
    pub fn row(&self, row: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.vocab).nth(row)
    }
}

/// Hidden states of some consecutive tokens, as they pass by.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Hidden<'a> {
    /// 0 for the embedding, `i` for the output of layer `i - 1`.
    pub number: usize,
    /// Position of the first token.
    pub first: usize,
    /// `[tokens, hidden]`.
    pub values: &'a [f32],
}

impl AutoModel {
    /// Finds a model by folder or hub id, and makes it ready with the choices of [`Builder::default`].
    pub fn from_pretrained(model: &str) -> Result<AutoModel> {
        Builder::default().from_pretrained(model)
    }

    /// Chooses budgets, bits, folders and more before a model is loaded.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(parts: Parts) -> AutoModel {
        let Parts { engine, config, tokenizer, dir, eos, limit, active, cancel, forecast } = parts;
        AutoModel { engine: Mutex::new(engine), config, tokenizer, dir, eos, limit, active, cancel, forecast }
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folder, or the GGUF file, it runs from: the checkpoint's, or that of its shards, which has copies of the checkpoint's
    /// configuration and tokenizer.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where everything lives, and how fast that was expected to be.
    pub fn plan(&self) -> &Forecast {
        &self.forecast
    }

    /// The model's tokenizer. A model without one still runs on ids.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().map_err(|what| Error::Input { what: what.clone() })
    }

    /// The model's chat format. Give its [`stops`](ChatFormat::stops) to the
    /// [`Generation`](Generation::stop_ids).
    pub fn chat(&self) -> Result<ChatFormat> {
        ChatFormat::of(&Checkpoint::open(&self.dir, None)?)
    }

    /// Continues a prompt: an iterator over pieces of the answer.
    pub fn generate(&self, prompt: &str, options: &Generation) -> Result<Generate<'_>> {
        self.generate_many(&[prompt], options)
    }

    /// Continues several prompts side by side. Each answer is what its prompt would get alone, and ends
    /// on its own; prompts that the key/value cache has no room for wait for others to end.
    pub fn generate_many<S: AsRef<str>>(&self, prompts: &[S], options: &Generation) -> Result<Generate<'_>> {
        let tokenizer = self.tokenizer()?;
        let encode = |prompt: &S| Ok(tokenizer.encode(prompt.as_ref(), options.add_special_tokens)?);
        let prompts = prompts.iter().map(encode).collect::<Result<_>>()?;
        self.generate_ids(prompts, options)
    }

    /// Continues prompts given as token ids, to which nothing is added.
    pub fn generate_ids(&self, prompts: Vec<Vec<u32>>, options: &Generation) -> Result<Generate<'_>> {
        options.validate()?;
        self.answer(prompts.into_iter().map(|ids| Prompt::new(ids, options.clone())).collect())
    }

    /// Continues many prompts, each in a way of its own: one pass over the weights serves all sequences that are under
    /// way. As soon as one ends, the next prompt takes its place, and is read in the pass in which it joins. What
    /// an answer is does not depend on the others. [`Builder::answering`] makes room for them.
    ///
    /// ```no_run
    /// use airllm::{AutoModel, Generation, Prompt};
    ///
    /// let builder = AutoModel::builder().ram(8_000_000_000);
    /// let checkpoint = builder.find("org/name")?;
    /// let tokenizer = checkpoint.tokenizer()?;
    /// let prompt = |(seed, text): (u64, &str)| -> airllm::Result<Prompt> {
    ///     let options = Generation::default().temperature(0.8).seed(seed);
    ///     Ok(Prompt::new(tokenizer.encode(text, true)?, options))
    /// };
    /// let texts = [(1, "Why is the sky blue?"), (2, "Why is it dark at night?")];
    /// let prompts = texts.into_iter().map(prompt).collect::<airllm::Result<Vec<_>>>()?;
    ///
    /// let model = builder.answering(&prompts).load(&checkpoint)?;
    /// let mut run = model.answer(prompts)?;
    /// while let Some(piece) = run.next() {
    ///     let piece = piece?;
    ///     if piece.finish.is_some() && let Some(answer) = run.answer(piece.prompt) {
    ///         println!("{}: {}", texts[piece.prompt].1, answer.text);
    ///     }
    /// }
    /// # Ok::<(), airllm::Error>(())
    /// ```
    pub fn answer(&self, prompts: Vec<Prompt>) -> Result<Generate<'_>> {
        Generate::new(Start {
            engine: self.engine()?,
            prompts,
            tokenizer: self.tokenizer.as_ref().ok(),
            vocab: self.config.vocab,
            switch: self.config.rotary.switch(),
            eos: &self.eos,
            limit: self.limit,
            room: self.forecast.context,
            active: self.active,
            cancel: self.cancel.clone(),
            limits: Limits {
                disk: self.forecast.disk_measured.then_some(self.forecast.hardware.disk),
                memory: self.forecast.hardware.memory,
                gpu: self.forecast.hardware.gpu,
                beside: self.forecast.beside(),
                plan: Arc::new(self.forecast.plan.clone()),
            },
        })
    }

    /// The whole answer to a prompt at once.
    pub fn complete(&self, prompt: &str, options: &Generation) -> Result<Answer> {
        let mut generate = self.generate(prompt, options)?;
        for piece in generate.by_ref() {
            piece?;
        }
        let answer = generate.answers().next().cloned();
        answer.ok_or_else(|| Error::Input { what: "there was no prompt".to_owned() })
    }

    /// The logits after every token of a text.
    pub fn forward(&self, ids: &[u32]) -> Result<Logits> {
        self.run(ids, None)
    }

    /// [`forward`](Self::forward), with the hidden states: `each` is called with those of the embedding
    /// and of every layer, for some tokens at a time.
    pub fn forward_with(&self, ids: &[u32], each: &mut dyn FnMut(Hidden<'_>)) -> Result<Logits> {
        self.run(ids, Some(each))
    }

    fn run(&self, ids: &[u32], mut each: Option<&mut dyn FnMut(Hidden<'_>)>) -> Result<Logits> {
        let room = self.room();
        if ids.len() > room {
            return Err(Error::Context { prompt: ids.len(), new: 0, context: room });
        }
        let vocab = self.config.vocab;
        let mut engine = self.engine()?;
        let mut logits = Logits { rows: ids.len(), vocab, values: Vec::with_capacity(ids.len() * vocab) };
        if ids.is_empty() {
            return Ok(logits);
        }
        let seq = engine.open(ids.len())?;
        let mut first = 0;
        let result = ids.chunks(engine.max_tokens()).try_for_each(|part| {
            self.cancel.check()?;
            let step = Step { seq, ids: part, prompt: ids.len(), want: Want::All };
            let rows = match &mut each {
                None => engine.forward(&[step], None),
                Some(each) => {
                    let mut observe = |number: usize, values: &[f32]| each(Hidden { number, first, values });
                    engine.forward(&[step], Some(&mut observe))
                }
            };
            // A pass that was broken off because of the cancel flag is no error of its own.
            let rows = rows.or_else(|error| self.cancel.check().and(Err(error)))?;
            rows.into_iter().for_each(|rows| logits.values.extend(rows));
            first += part.len();
            Ok(())
        });
        engine.close(seq);
        result.map(|()| logits)
    }

    /// Tokens that a sequence may have.
    pub(crate) fn room(&self) -> usize {
        self.limit.map_or(self.forecast.context, |limit| limit.min(self.forecast.context))
    }

    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    pub(crate) fn engine(&self) -> Result<MutexGuard<'_, Box<dyn Engine>>> {
        match self.engine.try_lock() {
            Ok(engine) => Ok(engine),
            Err(TryLockError::WouldBlock) => Err(Error::Busy),
            Err(TryLockError::Poisoned(_)) => Err(Error::Poisoned),
        }
    }
}

impl std::fmt::Debug for AutoModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AutoModel")
            .field("dir", &self.dir)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
