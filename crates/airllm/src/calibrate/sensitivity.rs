//! How much a model suffers from rounding each of its matrices, in one pass over its weights.
//!
//! A branch is a copy of the hidden states of some windows that leaves the unchanged model where one matrix was
//! rounded, and goes on through the unchanged layers behind it. At the end each branch's distributions are compared
//! with the unchanged ones: the divergence that this matrix alone causes. All branches flow along with the one pass,
//! so the weights are read once, however many matrices there are.

use super::differ::{divergences, relative};
use super::layers::{Factors, Layers};
use super::state::{Keep, State};
use super::text::Samples;
use crate::Result;
use crate::progress::Meter;
use airllm_format::{Calibration, NumFormat, Sensitivity, TensorSensitivity, Together, WidthError};
use airllm_model::Binding;
use airllm_model::arch::Role;
use airllm_stream::TensorId;
use std::collections::{BTreeMap, HashMap};

/// What matrices can be rounded to, widest first.
pub(crate) const WIDTHS: [NumFormat; 6] =
    [NumFormat::Q8, NumFormat::Q6, NumFormat::Q5, NumFormat::Q4, NumFormat::Q3, NumFormat::Q2];

/// What a matrix is rounded to for its branch: coarse enough to be seen, fine enough that divergence is still
/// quadratic in the error.
const BRANCH: NumFormat = NumFormat::Q3;

/// What all matrices are rounded to at once, to see how far divergences add up.
const TOGETHER: [NumFormat; 3] = [NumFormat::Q4, NumFormat::Q3, NumFormat::Q2];

/// Tokens whose distributions are compared, where there are few branches.
const COMPARED: usize = 2048;

/// Fewer of them say too little.
const LEAST_COMPARED: usize = 128;

/// The shortest beginning of a window that is compared, if the window has as many tokens.
const LEAST_WINDOW: usize = 64;

/// Bytes of hidden states that all branches together may take: of models with many matrices, fewer tokens are
/// compared. No budget has a say in this, so that results do not depend on it.
const BRANCHES: usize = 2 << 30;

/// Rows that tell the error of a whole matrix well enough.
const TELLING: usize = 1024;

/// The formats that a matrix may have, widest first: those that are no narrower than its floor and less than what it
/// has.
pub(crate) fn widths(own: NumFormat, floor: NumFormat, cols: usize) -> Vec<NumFormat> {
    let less = |format: &NumFormat| *format <= floor && format.row_bytes(cols) < own.row_bytes(cols);
    WIDTHS.into_iter().filter(less).collect()
}

/// The one of a matrix's formats that is nearest to `wanted`, not narrower.
fn nearest(widths: &[NumFormat], wanted: NumFormat) -> Option<NumFormat> {
    widths.iter().rev().find(|format| **format <= wanted).or(widths.first()).copied()
}

/// One matrix, or those of all experts of a layer that do the same.
pub(crate) struct Branch {
    pub(crate) ids: Vec<TensorId>,
    /// Hidden states of the compared windows.
    pub(crate) x: Vec<f32>,
    /// Relative squared error in the output of the layer.
    pub(crate) output: f64,
}

/// What was found out about a matrix.
pub(crate) struct Found {
    pub(crate) id: TensorId,
    pub(crate) floor: NumFormat,
    pub(crate) format: NumFormat,
    pub(crate) widths: Vec<WidthError>,
    /// Its part of what its branch suffers.
    pub(crate) share: f64,
}

/// Matrices in other formats than their own.
type Rounded = HashMap<TensorId, (NumFormat, Vec<u8>)>;

struct Measuring<'a, 'b> {
    layers: &'b mut Layers<'a>,
    source: Binding,
    /// All windows, those first whose beginnings are compared.
    windows: Vec<&'b [u32]>,
    compared: Vec<&'b [u32]>,
    branches: Vec<Branch>,
    together: Vec<(NumFormat, Vec<f32>)>,
    found: Vec<Found>,
    /// Embedding rounded for its branch and for each of `together`: they meet it again where it is the head too.
    embeds: Vec<(NumFormat, Rounded)>,
}

/// Measures it all, and goes on where an interrupted run has kept its state.
pub(crate) fn measure(
    layers: &mut Layers<'_>,
    samples: &Samples,
    mut keep: Option<Keep>,
    meter: &mut Meter<'_>,
) -> Result<Sensitivity> {
    let (count, tokens) = compared(layers, samples);
    // They are from all over the text.
    let every = samples.windows.len().div_ceil(count);
    let (chosen, others): (Vec<_>, Vec<_>) =
        samples.windows.iter().enumerate().partition(|(i, _)| i % every == 0);
    let windows = chosen.iter().chain(&others).map(|(_, ids)| &ids[..]).collect();
    let compared = chosen.iter().map(|(_, ids)| &ids[..ids.len().min(tokens)]).collect();
    let source = layers.binding(|_| None)?;
    let mut measuring = Measuring {
        layers,
        source,
        windows,
        compared,
        branches: Vec::new(),
        together: Vec::new(),
        found: Vec::new(),
        embeds: Vec::new(),
    };
    let mut x = measuring.embedding()?;
    let (mut done, count) = (0, measuring.layers.config.layers);
    if let Some(state) = keep.as_ref().and_then(Keep::read).filter(|state| measuring.fits(state, x.len())) {
        done = state.layers;
        x = state.x;
        (measuring.branches, measuring.together) = (state.branches, state.together);
        measuring.found = state.found;
    }
    for layer in 0..count {
        let units = measuring.layers.units(layer);
        let plans = measuring.layers.plans.clone();
        let bytes = plans[units.clone()].iter().flat_map(|unit| &unit.tensors).map(|t| t.bytes()).sum();
        if layer < done {
            meter.resume(&plans[units.start].name, bytes);
            continue;
        }
        measuring.layer(layer, &mut x)?;
        meter.add(&plans[units.start].name, bytes);
        if let Some(keep) = keep.as_mut().filter(|keep| keep.is_due()) {
            keep.write(layer + 1, &x, &measuring.branches, &measuring.together, &measuring.found)?;
        }
    }
    let sensitivity = measuring.head(x, samples)?;
    if let Some(keep) = keep {
        keep.remove();
    }
    Ok(sensitivity)
}

/// How many windows are compared, and how many tokens of the beginning of each.
fn compared(layers: &Layers<'_>, samples: &Samples) -> (usize, usize) {
    let units = 0..layers.plans.len();
    let dense = units.clone().filter(|unit| !layers.plans[*unit].on_demand);
    // Experts that do the same are one branch.
    let experts = units.filter(|unit| layers.plans[*unit].name.ends_with(".expert.0"));
    let branches =
        dense.chain(experts).map(|unit| layers.matrices(unit).count()).sum::<usize>() + TOGETHER.len();
    let most = BRANCHES / (branches * layers.config.hidden * size_of::<f32>());
    let tokens = most.clamp(LEAST_COMPARED, COMPARED);
    let window = (tokens / 4).max(LEAST_WINDOW).min(samples.context);
    ((tokens / window).max(1), window)
}

impl<'b> Measuring<'_, 'b> {
    /// Whether a kept state is of this measurement.
    fn fits(&self, state: &State, numbers: usize) -> bool {
        let compared = self.numbers();
        let there =
            |id: &TensorId| self.layers.plans.get(id.unit).is_some_and(|unit| id.tensor < unit.tensors.len());
        state.layers <= self.layers.config.layers
            && state.x.len() == numbers
            && state.branches.iter().all(|it| it.x.len() == compared && it.ids.iter().all(there))
            && state.found.iter().all(|it| there(&it.id))
            && state.together.iter().map(|(format, _)| *format).eq(TOGETHER)
            && state.together.iter().all(|(_, x)| x.len() == compared)
    }

    /// What of the hidden states of all windows belongs to the compared tokens.
    fn beginnings(&self, x: &[f32]) -> Vec<f32> {
        let hidden = self.layers.config.hidden;
        let (mut rest, mut all) = (x, Vec::with_capacity(self.numbers()));
        for (window, compared) in self.windows.iter().zip(&self.compared) {
            all.extend_from_slice(&rest[..compared.len() * hidden]);
            rest = &rest[window.len() * hidden..];
        }
        all
    }

    /// Numbers of the compared windows' hidden states.
    fn numbers(&self) -> usize {
        self.compared.iter().map(|ids| ids.len()).sum::<usize>() * self.layers.config.hidden
    }

    /// The format of a matrix in each of [`TOGETHER`]; nothing where it cannot be rounded.
    fn together(&self, id: TensorId) -> Vec<NumFormat> {
        let plan = self.layers.plan(id);
        let formats = widths(plan.to, plan.decl.floor, plan.decl.cols());
        TOGETHER.iter().filter_map(|wanted| nearest(&formats, *wanted)).collect()
    }

    /// Rounds a matrix to all its widths; what it is then in those that a branch needs. `None` where it cannot be
    /// rounded to anything.
    fn round(&mut self, id: TensorId, factors: &Factors) -> Result<Option<Rounds>> {
        let plan = self.layers.plan(id);
        let (rows, cols) = (plan.decl.rows(), plan.decl.cols());
        let (own, floor) = (plan.to, plan.decl.floor);
        let formats = widths(own, floor, cols);
        let Some(branch) = nearest(&formats, BRANCH) else { return Ok(None) };
        let kept = self.together(id);
        let mut found = Found { id, floor, format: branch, widths: Vec::new(), share: 0.0 };
        if own.is_foreign() {
            found.widths.push(WidthError { format: own, bytes: plan.bytes(), error: 0.0 });
        }
        let mut rounds = HashMap::new();
        for format in formats {
            let whole = format == branch || kept.contains(&format);
            let every = if whole { 1 } else { rows.div_ceil(TELLING) };
            let mut bytes = Vec::new();
            let done = self.layers.round(id, format, factors, every, &mut bytes)?;
            let error = if done.energy > 0.0 { done.error / done.energy } else { 0.0 };
            found.widths.push(WidthError { format, bytes: (format.row_bytes(cols) * rows) as u64, error });
            if format == branch {
                found.share = done.error;
            }
            if whole {
                rounds.insert(format, bytes);
            }
        }
        Ok(Some(Rounds { found, rounds, together: kept }))
    }

    /// Embeds the text, and the compared windows once more for every rounding of the embedding.
    fn embedding(&mut self) -> Result<Vec<f32>> {
        let windows = self.windows.clone();
        let x = self.layers.embed(&self.source, &windows)?;
        let compared = self.beginnings(&x);
        let ids: Vec<TensorId> = self.layers.matrices(0).collect();
        let mut rounds = Vec::new();
        for id in ids {
            rounds.extend(self.round(id, &Factors::new())?);
        }
        for (index, format) in TOGETHER.into_iter().enumerate() {
            let rounded: Rounded = rounds.iter().map(|it| it.at(it.together[index])).collect();
            let x = self.embedded(&rounded)?;
            self.together.push((format, x));
            self.embeds.push((format, rounded));
        }
        for it in rounds {
            let rounded = Rounded::from([it.at(it.found.format)]);
            let branch = self.embedded(&rounded)?;
            let output = relative(&branch, &compared, None);
            self.branches.push(Branch { ids: vec![it.found.id], x: branch, output });
            self.embeds.push((it.found.format, rounded));
            self.found.push(it.found);
        }
        Ok(x)
    }

    fn embedded(&mut self, rounded: &Rounded) -> Result<Vec<f32>> {
        let binding = self.put(rounded)?;
        let windows = self.compared.clone();
        let x = self.layers.embed(&binding, &windows)?;
        self.layers.held.clear();
        Ok(x)
    }

    /// Puts matrices in place of the model's own.
    fn put(&mut self, rounded: &Rounded) -> Result<Binding> {
        for (id, (_, bytes)) in rounded {
            self.layers.held.put(*id, bytes)?;
        }
        self.layers.binding(|id| rounded.get(&id).map(|(format, _)| *format))
    }

    /// Takes the text and all branches through a layer, and sets off its own branches.
    fn layer(&mut self, layer: usize, x: &mut [f32]) -> Result<()> {
        let (windows, compared) = (self.windows.clone(), self.compared.clone());
        let before = self.beginnings(x);
        self.layers.hold(layer)?;
        let factors = self.layers.observe(&self.source, layer, &windows, x)?;
        for branch in &mut self.branches {
            self.layers.run(&self.source, layer, &compared, &mut branch.x, None)?;
        }
        // Experts that do the same are one branch.
        let mut groups: BTreeMap<(Role, bool), Vec<Rounds>> = BTreeMap::new();
        for unit in self.layers.units(layer) {
            let ids: Vec<TensorId> = self.layers.matrices(unit).collect();
            for id in ids {
                let key = (self.layers.plan(id).decl.role, self.layers.plans[unit].on_demand);
                if let Some(mut rounds) = self.round(id, &factors)? {
                    rounds.found.share *= factors.get(&self.layers.key(id)).map_or(0.0, |f| f.1 as f64);
                    groups.entry(key).or_default().push(rounds);
                }
            }
        }
        let after = &self.beginnings(x);
        for rounds in groups.values() {
            let rounded: Rounded = rounds.iter().map(|it| it.at(it.found.format)).collect();
            let branch = self.branch(layer, &rounded, before.clone())?;
            let output = relative(&branch, after, Some(&before));
            let ids = rounds.iter().map(|it| it.found.id).collect();
            self.branches.push(Branch { ids, x: branch, output });
        }
        for (index, _) in TOGETHER.into_iter().enumerate() {
            let all = groups.values().flatten();
            let rounded: Rounded = all.map(|it| it.at(it.together[index])).collect();
            let x = std::mem::take(&mut self.together[index].1);
            self.together[index].1 = self.branch(layer, &rounded, x)?;
        }
        self.found.extend(groups.into_values().flatten().map(|it| it.found));
        self.layers.held.clear();
        Ok(())
    }

    /// Runs the compared windows through a held layer with other matrices.
    fn branch(&mut self, layer: usize, rounded: &Rounded, mut x: Vec<f32>) -> Result<Vec<f32>> {
        let compared = self.compared.clone();
        self.with(rounded, |layers, binding| layers.run(binding, layer, &compared, &mut x, None))?;
        Ok(x)
    }

    /// Has other matrices in place of the model's own while `f` runs; what was held before is held again then.
    fn with<T>(
        &mut self,
        rounded: &Rounded,
        f: impl FnOnce(&mut Layers<'_>, &Binding) -> Result<T>,
    ) -> Result<T> {
        let held: Vec<TensorId> = rounded.keys().copied().filter(|id| self.layers.held.holds(*id)).collect();
        let binding = self.put(rounded)?;
        let done = f(self.layers, &binding)?;
        rounded.keys().for_each(|id| self.layers.held.drop_tensor(*id));
        held.into_iter().try_for_each(|id| self.layers.held.load(id))?;
        Ok(done)
    }

    /// Compares the distributions at the end of all branches.
    fn head(mut self, x: Vec<f32>, samples: &Samples) -> Result<Sensitivity> {
        let windows = self.windows.clone();
        let unit = self.layers.plans.len() - 1;
        let ids: Vec<TensorId> = self.layers.matrices(unit).collect();
        self.layers.hold_head()?;
        let mut rounds = Vec::new();
        if !ids.is_empty() {
            let factors = self.layers.observe_head(&self.source, &windows, &x)?;
            for id in ids {
                rounds.extend(self.round(id, &factors)?);
            }
        }
        // The distributions of one window at a time: vocabularies are large.
        let mut heads: Vec<(Rounded, Vec<f64>)> = Vec::new();
        let tied = self.layers.config.tied;
        let embeds = std::mem::take(&mut self.embeds);
        let (together, branch) = embeds.split_at(TOGETHER.len().min(embeds.len()));
        let at_head = |embed: Option<&Rounded>, rounded: Rounded| -> Rounded {
            embed
                .filter(|_| tied)
                .into_iter()
                .flatten()
                .map(|(id, it)| (*id, it.clone()))
                .chain(rounded)
                .collect()
        };
        let mut ends: Vec<Vec<f32>> = Vec::new();
        for (index, (_, x)) in std::mem::take(&mut self.together).into_iter().enumerate() {
            let rounded = rounds.iter().map(|it| it.at(it.together[index])).collect();
            heads.push((at_head(together.get(index).map(|(_, it)| it), rounded), Vec::new()));
            ends.push(x);
        }
        let mut owners = Vec::new();
        for (index, it) in std::mem::take(&mut self.branches).into_iter().enumerate() {
            heads.push((at_head(branch.get(index).map(|(_, it)| it), Rounded::new()), Vec::new()));
            ends.push(it.x);
            owners.push((it.ids, it.output));
        }
        let x = self.beginnings(&x);
        for it in &rounds {
            heads.push((Rounded::from([it.at(it.found.format)]), Vec::new()));
            ends.push(x.clone());
            owners.push((vec![it.found.id], 0.0));
        }
        let mut at = 0;
        for ids in self.compared.clone() {
            let here = at..at + ids.len() * self.layers.config.hidden;
            let theirs = self.logits(&Rounded::new(), ids, &x[here.clone()])?;
            for ((rounded, kls), end) in heads.iter_mut().zip(&ends) {
                let ours = self.logits(rounded, ids, &end[here.clone()])?;
                kls.extend(divergences(&ours, &theirs, self.layers.config.vocab, ids)?);
            }
            at = here.end;
        }
        self.found.extend(rounds.into_iter().map(|it| it.found));
        let means: Vec<f64> =
            heads.iter().map(|(_, kls)| kls.iter().sum::<f64>() / kls.len().max(1) as f64).collect();
        self.report(samples, &owners, &means)
    }

    fn logits(&mut self, rounded: &Rounded, ids: &[u32], x: &[f32]) -> Result<Vec<f32>> {
        let mut logits = self.with(rounded, |layers, binding| layers.logits(binding, &[ids], x))?;
        Ok(logits.pop().unwrap_or_default())
    }

    fn report(
        mut self,
        samples: &Samples,
        owners: &[(Vec<TensorId>, f64)],
        means: &[f64],
    ) -> Result<Sensitivity> {
        let (together, alone) = means.split_at(TOGETHER.len());
        // The part of each matrix of what its branch suffers.
        let shares: HashMap<TensorId, f64> = self.found.iter().map(|found| (found.id, found.share)).collect();
        let mut parts: HashMap<TensorId, (f64, f64)> = HashMap::new();
        for ((ids, output), kl) in owners.iter().zip(alone) {
            let of = |id: &TensorId| shares.get(id).copied().unwrap_or_default();
            // An expert that no token of the text went to is taken for one of the others: other texts will need it.
            let used = ids.iter().filter(|id| of(id) > 0.0).count().max(1);
            let mean = ids.iter().map(of).sum::<f64>() / used as f64;
            for id in ids {
                let share = if of(id) > 0.0 { of(id) / mean } else { 1.0 };
                let part = if mean > 0.0 { share / used as f64 } else { 1.0 / ids.len() as f64 };
                parts.insert(*id, (kl * part, output * part));
            }
        }
        self.found.sort_by_key(|found| found.id);
        let rounded: Vec<Vec<NumFormat>> = self.found.iter().map(|found| self.together(found.id)).collect();
        let tensors: Vec<TensorSensitivity> = self
            .found
            .into_iter()
            .map(|found| {
                let plan = self.layers.plan(found.id);
                let (kl, output) = parts.get(&found.id).copied().unwrap_or_default();
                TensorSensitivity {
                    unit: self.layers.plans[found.id.unit].name.clone(),
                    name: plan.entry.clone(),
                    shape: plan.decl.shape.clone(),
                    floor: found.floor,
                    kl,
                    kl_format: found.format,
                    output,
                    widths: found.widths,
                }
            })
            .collect();
        let sum = |index: usize| -> f64 {
            tensors.iter().zip(&rounded).filter_map(|(it, formats)| it.loss(formats[index])).sum()
        };
        let mut together: Vec<Together> = TOGETHER
            .into_iter()
            .zip(together)
            .enumerate()
            // Where nothing has a format as wide, the next says the same.
            .filter(|(index, _)| {
                let next = index + 1;
                next == TOGETHER.len() || rounded.iter().any(|formats| formats[*index] != formats[next])
            })
            .map(|(index, (format, measured))| Together { format, sum: sum(index), measured: *measured })
            .collect();
        together.sort_by(|a, b| a.sum.total_cmp(&b.sum));
        let calibration = Calibration {
            name: samples.name.clone(),
            xxh3: samples.hash.clone(),
            tokens: samples.tokens() as u64,
            windows: samples.windows.len() as u64,
            context: samples.context as u64,
        };
        Ok(Sensitivity { calibration, together, tensors })
    }
}

/// A matrix rounded.
struct Rounds {
    found: Found,
    rounds: HashMap<NumFormat, Vec<u8>>,
    /// Its format in each of [`TOGETHER`].
    together: Vec<NumFormat>,
}

impl Rounds {
    fn at(&self, format: NumFormat) -> (TensorId, (NumFormat, Vec<u8>)) {
        (self.found.id, (format, self.rounds.get(&format).cloned().unwrap_or_default()))
    }
}
