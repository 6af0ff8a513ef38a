//! A checkpoint one layer at a time: what its matrices are multiplied with, and what rounding them does.
//!
//! Memory is one layer, the sums of products of its inputs, and hidden states of the text. None of it grows with
//! the number of layers.

use crate::lift::{Lifted, Scratch, TensorPlan, UnitPlan};
use crate::{Cancel, Error, Result};
use airllm_format::{NumFormat, Repo};
use airllm_kernels::Cpu;
use airllm_model::arch::Role;
use airllm_model::{Binding, Config, Inputs, Walk, bind};
use airllm_quant::{Compensated, Feedback, Hessian, compensate, unpack_row};
use airllm_stream::{Catalog, Held, TensorId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Part of the mean square of the inputs that is added to all of them (Frantar et al. 2022 take the same).
const DAMPING: f64 = 0.01;

/// Rows that are rounded together: enough that the factor is read seldom, few enough to be little memory.
const ROWS: usize = 512;

/// What matrices of a layer are multiplied with: by unit, and by the role that stands for all with the same
/// inputs.
pub(crate) type Sums = BTreeMap<(usize, Role), Hessian>;

/// The same, ready for rounding, with the number of inputs.
pub(crate) type Factors = BTreeMap<(usize, Role), (Feedback, u64)>;

/// What all work on a checkpoint's layers needs.
pub(crate) struct Layers<'a> {
    pub(crate) config: &'a Config,
    repo: &'a Repo,
    /// The tensors at the checkpoint's own precision.
    pub(crate) plans: Arc<Vec<UnitPlan>>,
    pub(crate) catalog: Catalog,
    walk: Walk<Cpu>,
    pub(crate) held: Held<'a, Cpu>,
    /// Units of each layer: itself, and its experts.
    units: Vec<Range<usize>>,
    threads: usize,
    memory: u64,
    cancel: Cancel,
}

impl<'a> Layers<'a> {
    /// `plans` are those of the checkpoint at its own precision. A call takes up to `batch` windows of
    /// `context` tokens; sums of products take up to `memory` bytes.
    pub(crate) fn new(
        repo: &'a Repo,
        config: &'a Config,
        plans: Vec<UnitPlan>,
        (batch, context): (usize, usize),
        (threads, memory): (usize, u64),
        cancel: &Cancel,
    ) -> Result<Layers<'a>> {
        let catalog = Lifted::new(plans.clone(), config, repo.files().len(), "checkpoint").catalog;
        let binding = bind(config, &catalog)?;
        let device = Arc::new(Cpu::new(threads));
        let plans = Arc::new(plans);
        let (of_fetch, mut scratch) = (plans.clone(), Scratch::default());
        let fetch = move |id: TensorId, rows: Range<usize>, out: &mut [u8]| -> airllm_stream::Result<()> {
            Ok(of_fetch[id.unit].tensors[id.tensor].rows(repo.source(), rows, &mut scratch, out)?)
        };
        let held = Held::new(device.clone(), catalog.clone(), Box::new(fetch));
        let walk = Walk::new(device, config.clone(), binding, batch, context)?;
        let mut units: Vec<Range<usize>> = Vec::new();
        for (index, unit) in plans.iter().enumerate().filter(|(_, unit)| unit.name.starts_with("layer.")) {
            match units.last_mut() {
                Some(units) if unit.on_demand => units.end = index + 1,
                _ => units.push(index..index + 1),
            }
        }
        let cancel = cancel.clone();
        Ok(Layers { config, repo, plans, catalog, walk, held, units, threads, memory, cancel })
    }

    /// The binding of tensors whose matrices have the formats that `format` says, and their own where it says
    /// nothing.
    pub(crate) fn binding(&self, format: impl Fn(TensorId) -> Option<NumFormat>) -> Result<Binding> {
        let mut catalog = self.catalog.clone();
        for (unit, tensors) in catalog.units.iter_mut().enumerate() {
            for (tensor, it) in tensors.tensors.iter_mut().enumerate() {
                it.format = format(TensorId { unit, tensor }).unwrap_or(it.format);
            }
        }
        Ok(bind(self.config, &catalog)?)
    }

    pub(crate) fn plan(&self, id: TensorId) -> &TensorPlan {
        &self.plans[id.unit].tensors[id.tensor]
    }

    /// All tensors of a unit that may be rounded.
    pub(crate) fn matrices(&self, unit: usize) -> impl Iterator<Item = TensorId> + use<> {
        let plans = self.plans.clone();
        let may = move |tensor: &usize| {
            let plan = &plans[unit].tensors[*tensor];
            !plan.decl.is_vector() && plan.decl.floor >= NumFormat::Q8
        };
        (0..self.plans[unit].tensors.len()).filter(may).map(move |tensor| TensorId { unit, tensor })
    }

    /// Units of a layer.
    pub(crate) fn units(&self, layer: usize) -> Range<usize> {
        self.units[layer].clone()
    }

    /// Holds a layer at the checkpoint's own precision, in place of what was held; experts only as far as
    /// they fit.
    pub(crate) fn hold(&mut self, layer: usize) -> Result<()> {
        self.held.clear();
        let units = self.units(layer);
        let bytes: u64 =
            self.plans[units.clone()].iter().flat_map(|u| &u.tensors).map(TensorPlan::bytes).sum();
        for unit in units {
            if self.plans[unit].on_demand && bytes > self.memory {
                continue;
            }
            for tensor in 0..self.plans[unit].tensors.len() {
                self.cancel.check()?;
                self.held.load(TensorId { unit, tensor })?;
            }
        }
        Ok(())
    }

    /// Holds what makes logits, as far as it fits.
    pub(crate) fn hold_head(&mut self) -> Result<()> {
        self.held.clear();
        let (last, tied) = (self.plans.len() - 1, self.config.tied);
        let embed = self.matrices(0).filter(|_| tied);
        let ids = (0..self.plans[last].tensors.len()).map(|tensor| TensorId { unit: last, tensor });
        for id in ids.chain(embed).collect::<Vec<_>>() {
            if self.plan(id).bytes() <= self.memory {
                self.held.load(id)?;
            }
        }
        Ok(())
    }

    /// Runs a layer over the hidden states of all windows, in place.
    pub(crate) fn run(
        &mut self,
        binding: &Binding,
        layer: usize,
        windows: &[&[u32]],
        x: &mut [f32],
        mut inputs: Option<&mut Inputs<'_>>,
    ) -> Result<()> {
        let (hidden, most) = (self.config.hidden, self.walk.windows());
        let mut rest = x;
        for batch in windows.chunks(most) {
            self.cancel.check()?;
            let tokens: usize = batch.iter().map(|ids| ids.len()).sum();
            let (now, after) = rest.split_at_mut((tokens * hidden).min(rest.len()));
            let inputs = inputs.as_mut().map(|inputs| &mut **inputs as &mut Inputs<'_>);
            self.walk.layer(binding, &mut self.held, layer, batch, now, inputs)?;
            rest = after;
        }
        Ok(())
    }

    /// Hidden states of all windows' embeddings.
    pub(crate) fn embed(&mut self, binding: &Binding, windows: &[&[u32]]) -> Result<Vec<f32>> {
        let (mut all, mut x) = (Vec::new(), Vec::new());
        for batch in windows.chunks(self.walk.windows()) {
            self.walk.embed(binding, &mut self.held, batch, &mut x)?;
            all.extend_from_slice(&x);
        }
        Ok(all)
    }

    /// Logits of some windows, no more than a call takes.
    pub(crate) fn logits(
        &mut self,
        binding: &Binding,
        windows: &[&[u32]],
        x: &[f32],
    ) -> Result<Vec<Vec<f32>>> {
        self.cancel.check()?;
        Ok(self.walk.logits(binding, &mut self.held, windows, x)?)
    }

    /// The most windows of a call.
    pub(crate) fn batch(&self) -> usize {
        self.walk.windows()
    }

    /// Sums of products for the matrices of some units, with nothing in them yet.
    fn sums(&self, units: Range<usize>) -> Sums {
        let widths = units.flat_map(|unit| self.matrices(unit)).filter_map(|id| {
            let decl = &self.plan(id).decl;
            (self.key(id).1 == decl.role).then_some(((id.unit, decl.role), decl.cols()))
        });
        let widths: Vec<_> = widths.collect();
        // In diagonal blocks where the whole squares are too much memory.
        let total = |width: usize| widths.iter().map(|(_, cols)| Hessian::bytes(*cols, width)).sum::<u64>();
        let mut width = widths.iter().map(|(_, cols)| *cols).max().unwrap_or(0);
        while width > 256 && total(width) > self.memory {
            width = (width / 2).next_multiple_of(256);
        }
        widths.into_iter().map(|(key, cols)| (key, Hessian::new(cols, width))).collect()
    }

    /// Runs a held layer over all windows, in place, and sums up what its matrices are multiplied with.
    pub(crate) fn observe(
        &mut self,
        binding: &Binding,
        layer: usize,
        windows: &[&[u32]],
        x: &mut [f32],
    ) -> Result<Factors> {
        let (mut sums, threads) = (self.sums(self.units(layer)), self.threads);
        let mut inputs = adding(&mut sums, threads);
        let done = self.run(binding, layer, windows, x, Some(&mut inputs));
        drop(inputs);
        done.map_err(|error| self.blame(layer, error))?;
        self.factors(sums)
    }

    /// The same for the head, from the hidden states of some windows.
    pub(crate) fn observe_head(
        &mut self,
        binding: &Binding,
        windows: &[&[u32]],
        x: &[f32],
    ) -> Result<Factors> {
        let threads = self.threads;
        let unit = self.plans.len() - 1;
        let mut sums = self.sums(unit..unit + 1);
        let mut inputs = adding(&mut sums, threads);
        let mut rest = x;
        for batch in windows.chunks(self.batch()) {
            let tokens: usize = batch.iter().map(|ids| ids.len()).sum();
            let (now, after) = rest.split_at((tokens * self.config.hidden).min(rest.len()));
            self.cancel.check()?;
            self.walk.head_inputs(binding, &mut self.held, batch, now, &mut inputs)?;
            rest = after;
        }
        drop(inputs);
        self.factors(sums)
    }

    fn factors(&self, sums: Sums) -> Result<Factors> {
        let mut factors = Factors::new();
        for (key, sum) in sums {
            self.cancel.check()?;
            // An expert that no token went to has nothing to go by.
            let tokens = sum.tokens();
            if tokens > 0 {
                factors.insert(key, (sum.factor(DAMPING, self.threads).map_err(wrong)?, tokens));
            }
        }
        Ok(factors)
    }

    /// What stands for the inputs of a tensor: another one that has the same, unless one of both has its columns in
    /// an order of its own.
    pub(crate) fn key(&self, id: TensorId) -> (usize, Role) {
        let role = self.plan(id).decl.role;
        let other = self.config.input_of(role);
        let orders =
            || self.plans[id.unit].tensors.iter().filter(|it| it.decl.is_order).map(|it| it.decl.role);
        (id.unit, if orders().any(|its| its == role || its == other) { role } else { other })
    }

    /// Says which weight of a layer is no number, where that is what is behind an error.
    fn blame(&self, layer: usize, error: Error) -> Error {
        // Whoever adds up inputs refuses them so.
        if !matches!(error, Error::Model(airllm_model::Error::Input(_))) {
            return error;
        }
        let ids = self.units(layer).flat_map(|unit| {
            (0..self.plans[unit].tensors.len()).map(move |tensor| TensorId { unit, tensor })
        });
        ids.map(|id| self.look_for_broken(id)).find_map(Result::err).unwrap_or(error)
    }

    /// Reads all rows of a tensor, and refuses what is no finite number.
    fn look_for_broken(&self, id: TensorId) -> Result<()> {
        let plan = self.plan(id);
        let (mut packed, mut weights) = (vec![0; plan.row_bytes()], vec![0.0; plan.decl.cols()]);
        let mut scratch = Scratch::default();
        for row in 0..plan.decl.rows() {
            self.cancel.check()?;
            plan.rows(self.repo.source(), row..row + 1, &mut scratch, &mut packed)?;
            unpack_row(plan.to, &packed, &mut weights).map_err(|error| plan.bad_row(row, error))?;
            if let Some((column, number)) = weights.iter().enumerate().find(|(_, number)| !number.is_finite())
            {
                return Err(plan.bad_row(row, format!("column {column} is {number}")).into());
            }
        }
        Ok(())
    }

    /// Rounds a tensor to `format`, every so-manieth row of it, and says what that did. The packed rows are
    /// appended to `out`.
    ///
    /// # Errors
    /// [`Malformed`](airllm_format::Error::Malformed) for weights that are no numbers, with tensor and row.
    pub(crate) fn round(
        &self,
        id: TensorId,
        format: NumFormat,
        factors: &Factors,
        every: usize,
        out: &mut Vec<u8>,
    ) -> Result<Compensated> {
        let plan = self.plan(id);
        let (rows, cols, from) = (plan.decl.rows(), plan.decl.cols(), plan.row_bytes());
        let feedback = factors.get(&self.key(id));
        let (mut packed, mut weights, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
        let mut sum = Compensated::default();
        let chosen: Vec<usize> = (0..rows).step_by(every.max(1)).collect();
        for block in chosen.chunks(ROWS) {
            self.cancel.check()?;
            weights.resize(block.len() * cols, 0.0);
            // Neighbours are read together.
            let runs = if every > 1 { block.chunks(1) } else { block.chunks(block.len()) };
            for (run, weights) in
                runs.zip(weights.chunks_mut(if every > 1 { cols } else { block.len() * cols }))
            {
                packed.resize(run.len() * from, 0);
                plan.rows(self.repo.source(), run[0]..run[0] + run.len(), &mut scratch, &mut packed)?;
                let rows = packed.chunks_exact(from.max(1)).zip(weights.chunks_exact_mut(cols.max(1)));
                for (row, (packed, weights)) in run.iter().zip(rows) {
                    unpack_row(plan.to, packed, weights).map_err(|error| plan.bad_row(*row, error))?;
                }
            }
            let at = out.len();
            out.resize(at + block.len() * format.row_bytes(cols), 0);
            let done = match feedback {
                Some((feedback, _)) => compensate(format, &weights, feedback, &mut out[at..], self.threads),
                None => nearest(format, &weights, cols, &mut out[at..]),
            };
            let done = done.map_err(|error| match error {
                airllm_quant::Error::Row { row, error } => plan.bad_row(block[row], error),
                other => plan.bad_row(block[0], other),
            })?;
            sum.error += done.error;
            sum.energy += done.energy;
        }
        Ok(sum)
    }
}

/// Adds what matrices are multiplied with to the sums of those that stand for them.
fn adding(
    sums: &mut Sums,
    threads: usize,
) -> impl FnMut(&airllm_model::Bound, &[f32]) -> airllm_model::Result<()> {
    move |bound, x| {
        if let Some(sum) = sums.get_mut(&(bound.id.unit, bound.role)) {
            sum.add(x, threads).map_err(|error| airllm_model::Error::Input(error.to_string()))?;
        }
        Ok(())
    }
}

/// What is wrong with the inputs of a matrix.
fn wrong(error: airllm_quant::Error) -> crate::Error {
    crate::Error::Input { what: format!("calibrating: {error}") }
}

/// Rounding to nearest, for tensors whose inputs are not known.
fn nearest(
    format: NumFormat,
    weights: &[f32],
    cols: usize,
    out: &mut [u8],
) -> airllm_quant::Result<Compensated> {
    let mut sum = Compensated::default();
    let mut back = vec![0.0f32; cols];
    let rows = weights.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(format.row_bytes(cols).max(1)));
    for (row, (weights, out)) in rows.enumerate() {
        airllm_quant::pack_row(format, weights, out)
            .map_err(|error| airllm_quant::Error::Row { row, error: Box::new(error) })?;
        unpack_row(format, out, &mut back)?;
        for (w, b) in weights.iter().zip(&back) {
            sum.error += f64::from(w - b).powi(2);
            sum.energy += f64::from(*w).powi(2);
        }
    }
    Ok(sum)
}
