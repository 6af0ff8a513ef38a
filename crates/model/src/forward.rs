//! The one forward that runs every architecture.

mod block;
mod regime;
mod walk;

use crate::adapter::{Adapters, LowRank};
use crate::arch::Role;
use crate::rope::Table;
use crate::scratch::{self, Scratch};
use crate::{Binding, Bound, Config, Error, Result, Sequence};
use airllm_kernels::{Columns, KvFormat, Matrix, Ops, Regime};
use airllm_stream::Weights;
use std::sync::Arc;

pub use walk::Walk;

/// A model on a device: its configuration, where its tensors are, and the memory a pass needs.
///
/// It holds no weights. They flow past in [`forward`](Model::forward).
pub struct Model<D: Ops> {
    config: Config,
    binding: Binding,
    device: Arc<D>,
    max_tokens: usize,
    scratch: Scratch<D>,
    ordered: D::Buf,
    adapters: Option<Adapters<D>>,
    /// Tables, hidden states and logits on their way between host and device.
    host: Vec<f32>,
}

/// Some tokens of one sequence, to be run through the model in one pass.
pub struct Span<'a, D: Ops> {
    /// The tokens, at least one. They follow those that `seq` holds.
    pub ids: &'a [u32],
    /// The sequence. After the pass it holds these tokens too.
    pub seq: &'a mut Sequence<D>,
    /// The prompt's whole length, as far as it is known; 0 where it is not.
    ///
    /// Only rotary scalings that depend on the length look at it: a position's frequencies are those of this
    /// length, or of the position's own (its index and one) where that is more. So a prompt that is run in
    /// several passes gets the frequencies of its whole length, and each token generated after it those of
    /// its own. (The first Qwen's stay those of the prompt.)
    pub rope_len: usize,
    /// Which rows of logits are wanted.
    pub logits: Want,
}

/// Which logits of a span are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// None: the tokens only go into the cache.
    None,
    /// Those of the last token.
    Last,
    /// Those of every token.
    All,
}

/// What is called with the hidden states `[tokens of all spans, hidden]`: number 0 is the embedding,
/// number `i` the output of layer `i - 1`, before any final norm.
pub type Observer<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// What is called with each matrix before it is multiplied, and with the rows `[n, cols]` that it will be
/// multiplied with, in the order of its columns.
pub type Inputs<'a> = dyn FnMut(&Bound, &[f32]) -> Result<()> + 'a;

impl<D: Ops> Model<D> {
    /// A model that runs up to `max_tokens` tokens a pass. Takes
    /// [`activation_bytes`](crate::activation_bytes) of the device at once.
    pub fn new(device: Arc<D>, config: Config, binding: Binding, max_tokens: usize) -> Result<Self> {
        if max_tokens == 0 {
            return Err(Error::Input("a pass cannot be of 0 tokens".into()));
        }
        let scratch = Scratch::new(&*device, &config, max_tokens)?;
        let ordered = scratch::ordered(&*device, &config, max_tokens)?;
        Ok(Self { config, binding, device, max_tokens, scratch, ordered, adapters: None, host: Vec::new() })
    }

    /// Adds low-rank products to matrices, in place of those added before. Takes
    /// [`adapter_bytes`](crate::adapter_bytes) of the device.
    pub fn adapt(&mut self, additions: &[LowRank]) -> Result<()> {
        self.adapters = match additions {
            [] => None,
            _ => Some(Adapters::new(&*self.device, &self.binding, additions, self.max_tokens)?),
        };
        Ok(())
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The most tokens, of all spans together, that a pass takes.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// An empty sequence with room for `capacity` tokens, whose keys and values are stored as `format`.
    pub fn sequence(&self, format: KvFormat, capacity: usize) -> Result<Sequence<D>> {
        Sequence::new(&*self.device, &self.config, format, capacity)
    }

    /// Runs the tokens of all spans through the model in one pass over the weights.
    ///
    /// Spans lie side by side without padding, and each attends to its own sequence alone, so that a
    /// span's result does not depend on the others, bit for bit. Returns for each span the logits it
    /// wanted, `[rows, vocab]`, rows one after the other. Where it fails the sequences hold what they
    /// held before, and `weights` starts its pass anew.
    pub fn forward<W: Weights<D>>(
        &mut self,
        weights: &mut W,
        spans: &mut [Span<'_, D>],
        observer: Option<&mut Observer<'_>>,
    ) -> Result<Vec<Vec<f32>>> {
        let tokens = self.check(spans)?;
        if tokens == 0 {
            return Ok(Vec::new());
        }
        let mut pass = Pass {
            config: &self.config,
            binding: &self.binding,
            device: &*self.device,
            ordered: &mut self.ordered,
            adapters: &mut self.adapters,
            host: &mut self.host,
            weights,
            tokens,
            regimes: regime::of_spans(spans),
            observer,
            inputs: None,
        };
        match pass.run(spans, &mut self.scratch) {
            Ok(logits) => {
                for span in spans {
                    span.seq.grow(span.ids.len());
                }
                Ok(logits)
            }
            Err(error) => {
                // Whatever stands in the way of a restart is what broke this pass, or comes again.
                let _ = pass.weights.restart();
                Err(error)
            }
        }
    }

    /// Refuses what cannot be run; the number of tokens otherwise.
    fn check(&self, spans: &[Span<'_, D>]) -> Result<usize> {
        for (index, span) in spans.iter().enumerate() {
            let (len, capacity) = (span.seq.len(), span.seq.capacity());
            if span.ids.is_empty() {
                return Err(Error::Input(format!("span {index} has no tokens")));
            }
            if span.ids.len() > capacity - len {
                return Err(Error::Cache { span: index, capacity, len, more: span.ids.len() });
            }
            if span.seq.layers.len() != self.config.layers {
                return Err(Error::Input(format!(
                    "the cache of sequence {index} is for {} layers, the model has {}",
                    span.seq.layers.len(),
                    self.config.layers
                )));
            }
        }
        self.check_ids(spans)
    }

    /// Refuses ids that are none, and more tokens than there is room for; the number of tokens otherwise.
    fn check_ids(&self, spans: &[Span<'_, D>]) -> Result<usize> {
        let mut tokens = 0_usize;
        for (index, span) in spans.iter().enumerate() {
            let vocab = self.config.vocab;
            if let Some(at) = span.ids.iter().position(|&id| id as usize >= vocab) {
                return Err(Error::Input(format!(
                    "token {at} of span {index} has id {}, the vocabulary has {vocab} ids",
                    span.ids[at]
                )));
            }
            tokens = tokens.saturating_add(span.ids.len());
        }
        if tokens > self.max_tokens {
            return Err(Error::Input(format!(
                "{tokens} tokens were given for one pass, {} are the most",
                self.max_tokens
            )));
        }
        Ok(tokens)
    }
}

/// One pass: what every step of it needs.
struct Pass<'a, 'o, D: Ops, W: Weights<D>> {
    config: &'a Config,
    binding: &'a Binding,
    device: &'a D,
    /// Inputs in the order of a matrix's columns.
    ordered: &'a mut D::Buf,
    adapters: &'a mut Option<Adapters<D>>,
    host: &'a mut Vec<f32>,
    weights: &'a mut W,
    tokens: usize,
    /// What each token is.
    regimes: Vec<Regime>,
    observer: Option<&'a mut Observer<'o>>,
    /// Who looks at what matrices are multiplied with.
    inputs: Option<&'a mut Inputs<'o>>,
}

impl<D: Ops, W: Weights<D>> Pass<'_, '_, D, W> {
    fn run(&mut self, spans: &mut [Span<'_, D>], scratch: &mut Scratch<D>) -> Result<Vec<Vec<f32>>> {
        self.table(spans, scratch)?;
        self.embed(spans, scratch)?;
        self.observe(0, &scratch.x)?;
        for layer in 0..self.config.layers {
            self.attention(layer, spans, scratch).map_err(|error| error.in_layer(layer))?;
            self.feed_forward(layer, scratch).map_err(|error| error.in_layer(layer))?;
            self.observe(layer + 1, &scratch.x)?;
        }
        self.head(spans, scratch)
    }

    /// Cosines and sines of every token, for all layers.
    fn table(&mut self, spans: &[Span<'_, D>], s: &mut Scratch<D>) -> Result<()> {
        let tables = [
            (Some(&self.config.rotary), &mut s.table),
            (self.config.local_rotary.as_ref(), &mut s.local_table),
        ];
        for (rotary, buf) in tables {
            let Some(rotary) = rotary else { continue };
            let mut table = Table::new(rotary);
            self.host.clear();
            for span in spans {
                for position in span.seq.len()..span.seq.len() + span.ids.len() {
                    table.push(position, span.rope_len, self.host);
                }
            }
            self.device.write(buf, 0, bytemuck::cast_slice(self.host))?;
        }
        Ok(())
    }

    fn embed(&mut self, spans: &[Span<'_, D>], s: &mut Scratch<D>) -> Result<()> {
        let embed = need(self.binding.embed(), Role::Embed)?;
        let ids: Vec<u32> = spans.iter().flat_map(|span| span.ids).copied().collect();
        let device = self.device;
        self.weights.gather(embed.id, &ids, |data| -> Result<()> {
            Ok(device.decode(embed.matrix(data, ids.len()), &mut s.x)?)
        })?;
        if self.config.embed_scale != 1.0 {
            device.scale_rows(&mut s.x, &vec![self.config.embed_scale; ids.len()], self.config.hidden)?;
        }
        Ok(())
    }

    /// Final norm and projection to the vocabulary, of the wanted rows alone.
    fn head(&mut self, spans: &[Span<'_, D>], s: &mut Scratch<D>) -> Result<Vec<Vec<f32>>> {
        let (device, hidden, vocab) = (self.device, self.config.hidden, self.config.vocab);
        let (norm, head) = self.of_head().map(|(norm, head)| (*norm, *head))?;

        // Which rows of the hidden state are wanted, and where the logits of each go.
        let mut results = Vec::with_capacity(spans.len());
        let (mut rows, mut places, mut first) = (Vec::new(), Vec::new(), 0);
        let mut regimes = Vec::new();
        for (index, span) in spans.iter().enumerate() {
            let n = span.ids.len();
            let wanted = match span.logits {
                Want::None => 0,
                Want::Last => 1,
                Want::All => n,
            };
            rows.extend((first + n - wanted..first + n).map(|row| row as u32));
            regimes.extend_from_slice(&self.regimes[first + n - wanted..first + n]);
            places.extend((0..wanted).map(|row| (index, row * vocab)));
            results.push(vec![0.0; wanted * vocab]);
            first += n;
        }
        if rows.is_empty() {
            self.weights.skip(norm.id)?;
            self.weights.skip(head.id)?;
            return Ok(results);
        }

        device.gather(&s.x, &rows, hidden, &mut s.h)?;
        self.final_norm(rows.len(), s)?;

        let all = places.len() * vocab;
        if all <= s.logit_numbers {
            // They fit the device: the host waits for it once.
            let runs = regime::runs(regimes);
            self.weights.rows(head.id, |stripe| -> Result<()> {
                let out = Columns { stride: vocab, first: stripe.first };
                for &run in &runs {
                    device.matmul(head.matrix(stripe.data, stripe.count), &s.x, run, &mut s.logits, out)?;
                }
                Ok(())
            })?;
            self.host.resize(all, 0.0);
            device.read(&s.logits, 0, bytemuck::cast_slice_mut(self.host))?;
            for (row, &(span, at)) in self.host.chunks_exact(vocab).zip(&places) {
                results[span][at..at + vocab].copy_from_slice(row);
            }
        } else {
            self.logits_in_chunks(&head, &places, &regimes, &mut results, s)?;
        }
        self.adapt_logits(&head, &places, &mut results, s)?;
        let cap = self.config.logit_cap;
        if cap > 0.0 {
            results.iter_mut().flatten().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(results)
    }

    /// Logits that do not fit the device go to the host in chunks, because all rows must meet a stripe of the
    /// head while it is here. The first chunk needs no copy of its inputs.
    fn logits_in_chunks(
        &mut self,
        head: &Bound,
        places: &[(usize, usize)],
        regimes: &[Regime],
        results: &mut [Vec<f32>],
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let (device, hidden) = (self.device, self.config.hidden);
        let host = &mut *self.host;
        self.weights.rows(head.id, |stripe| -> Result<()> {
            let count = stripe.count;
            let most = (s.logit_numbers / count.max(1)).max(1);
            for (chunk, places) in places.chunks(most).enumerate() {
                let lo = chunk * most;
                let x = if lo == 0 {
                    &s.x
                } else {
                    let picked: Vec<u32> = (lo..lo + places.len()).map(|row| row as u32).collect();
                    device.gather(&s.x, &picked, hidden, &mut s.h)?;
                    &s.h
                };
                let out = Columns { stride: count, first: 0 };
                for run in regime::runs(regimes[lo..lo + places.len()].iter().copied()) {
                    device.matmul(head.matrix(stripe.data, count), x, run, &mut s.logits, out)?;
                }
                host.resize(places.len() * count, 0.0);
                device.read(&s.logits, 0, bytemuck::cast_slice_mut(host))?;
                for (row, &(span, at)) in host.chunks_exact(count).zip(places) {
                    let at = at + stripe.first;
                    results[span][at..at + count].copy_from_slice(row);
                }
            }
            Ok(())
        })
    }

    /// The final norm, and the matrix behind it.
    fn of_head(&self) -> Result<(&Bound, &Bound)> {
        let norm = need(self.binding.head(Role::FinalNorm), Role::FinalNorm)?;
        let tied = || self.binding.embed().filter(|_| self.config.tied);
        Ok((norm, need(self.binding.head(Role::Head).or_else(tied), Role::Head)?))
    }

    /// Normalises the rows in `h` to `x`, where the head meets them.
    fn final_norm(&mut self, rows: usize, s: &mut Scratch<D>) -> Result<()> {
        let (norm, head) = self.of_head().map(|(norm, head)| (*norm, *head))?;
        self.normalise(&norm, rows, &s.h, &mut s.x)?;
        self.look(&head, rows, &s.x)
    }

    /// What adapters add to the logits of the rows in `x`; `places` says where each row's logits are.
    fn adapt_logits(
        &mut self,
        head: &Bound,
        places: &[(usize, usize)],
        results: &mut [Vec<f32>],
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let (device, vocab, hidden) = (self.device, self.config.vocab, self.config.hidden);
        let Some(adapters) = self.adapters else { return Ok(()) };
        let host = &mut *self.host;
        let most = (s.logit_numbers / vocab).max(1);
        for (chunk, places) in places.chunks(most).enumerate() {
            let rows: Vec<u32> = (0..places.len()).map(|row| (chunk * most + row) as u32).collect();
            device.gather(&s.x, &rows, hidden, &mut s.h)?;
            adapters.products(device, head.id, (rows.len(), &s.h, &mut s.logits), |y| {
                host.resize(places.len() * vocab, 0.0);
                device.read(y, 0, bytemuck::cast_slice_mut(host))?;
                for (row, &(span, at)) in host.chunks_exact(vocab).zip(places) {
                    results[span][at..at + vocab].iter_mut().zip(row).for_each(|(logit, add)| *logit += add);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn normalise(&mut self, weight: &Bound, n: usize, x: &D::Buf, y: &mut D::Buf) -> Result<()> {
        let (device, eps) = (self.device, self.config.norm_eps);
        self.weights.rows(weight.id, |stripe| -> Result<()> {
            Ok(device.rms_norm(x, stripe.data, eps, n, weight.cols, y)?)
        })
    }

    /// Shows whoever wants to see it what a matrix is multiplied with.
    fn look(&mut self, w: &Bound, n: usize, x: &D::Buf) -> Result<()> {
        if let Some(inputs) = &mut self.inputs {
            self.host.resize(n * w.cols, 0.0);
            self.device.read(x, 0, bytemuck::cast_slice_mut(self.host))?;
            inputs(w, self.host)?;
        }
        Ok(())
    }

    fn observe(&mut self, number: usize, x: &D::Buf) -> Result<()> {
        if let Some(observer) = &mut self.observer {
            self.host.resize(self.tokens * self.config.hidden, 0.0);
            self.device.read(x, 0, bytemuck::cast_slice_mut(self.host))?;
            observer(number, self.host);
        }
        Ok(())
    }
}

impl Bound {
    /// `rows` packed rows of it, for a verb.
    fn matrix<V>(&self, data: V, rows: usize) -> Matrix<V> {
        Matrix { data, format: self.format, rows, cols: self.cols }
    }
}

fn need(bound: Option<&Bound>, role: Role) -> Result<&Bound> {
    bound.ok_or_else(|| Error::Binding {
        unit: "model".into(),
        tensor: role.name().into(),
        expected: "a tensor of this role, as the forward needs one".into(),
        found: "nothing".into(),
    })
}
