//! One decoder layer: what a family has of it is done, in the one order that all families share.

use super::{Pass, need, regime};
use crate::arch::Role;
use crate::route::{Routed, route};
use crate::scratch::Scratch;
use crate::{Bound, Error, Latent, Moe, Result, Span, sequence};
use airllm_kernels::{Attend, Columns, Ops, Place, Regime, Rope, Tokens};
use airllm_stream::{Rows, TensorId, Weights};

impl<D: Ops, W: Weights<D>> Pass<'_, '_, D, W> {
    pub(super) fn attention(
        &mut self,
        layer: usize,
        spans: &mut [Span<'_, D>],
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let (device, c) = (self.device, self.config);
        self.norm(layer, Role::AttnNorm, &s.x, &mut s.h)?;
        match c.latent {
            None => self.queries_keys_values(layer, s)?,
            Some(latent) => self.latent_keys_values(layer, latent, s)?,
        }
        self.scale_by_position(spans, s)?;

        let mut first = 0;
        for span in spans {
            let (n, start) = (span.ids.len(), span.seq.len());
            let runs = regime::of_span(span, first);
            let cache = span.seq.format();
            let [key, value] = sequence::rows(c, cache);
            let (keys, values) = span.seq.layer(layer);
            device.store(&s.k, first, n, key, keys, start)?;
            device.store(&s.v, first, n, value, values, start)?;
            let shape = Attend {
                first,
                n,
                start,
                regime: Regime::Token,
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                value_dim: c.value_dim,
                scale: c.score_scale,
                softcap: c.score_cap,
                window: c.windows[layer],
                alibi: c.alibi,
                cache,
            };
            for run in runs {
                let start = start + run.first - first;
                let part = Attend { first: run.first, n: run.n, start, regime: run.regime, ..shape };
                device.attend(&s.a, keys, values, &mut s.b, part)?;
            }
            first += n;
        }

        self.linear(layer, Role::O, Some(Role::OBias), &s.b, &mut s.h)?;
        self.norm_rows(layer, Role::PostAttnNorm, &mut s.h, 1)?;
        device.add(&mut s.x, &s.h, self.tokens * c.hidden)?;
        Ok(())
    }

    /// Queries to `a`, keys to `k`, values to `v`, each from the hidden state.
    fn queries_keys_values(&mut self, layer: usize, s: &mut Scratch<D>) -> Result<()> {
        let c = self.config;
        self.linear(layer, Role::Q, Some(Role::QBias), &s.h, &mut s.a)?;
        self.norm_rows(layer, Role::QNorm, &mut s.a, c.heads)?;
        self.linear(layer, Role::K, Some(Role::KBias), &s.h, &mut s.k)?;
        self.norm_rows(layer, Role::KNorm, &mut s.k, c.kv_heads)?;
        self.linear(layer, Role::V, Some(Role::VBias), &s.h, &mut s.v)?;
        self.turn(layer, &mut s.a, (c.heads, c.head_dim), (&s.table, &s.local_table))?;
        self.turn(layer, &mut s.k, (c.kv_heads, c.head_dim), (&s.table, &s.local_table))
    }

    /// The same from latents. A key head is what turns, one for all heads, followed by what does not.
    fn latent_keys_values(&mut self, layer: usize, latent: Latent, s: &mut Scratch<D>) -> Result<()> {
        let (device, c) = (self.device, self.config);
        if self.binding.layer(layer, Role::QDown).is_some() {
            self.linear(layer, Role::QDown, None, &s.h, &mut s.c)?;
            self.norm_rows(layer, Role::QDownNorm, &mut s.c, 1)?;
            self.linear(layer, Role::Q, None, &s.c, &mut s.a)?;
        } else {
            self.linear(layer, Role::Q, None, &s.h, &mut s.a)?;
        }
        self.turn(layer, &mut s.a, (c.heads, c.head_dim), (&s.table, &s.local_table))?;

        self.linear(layer, Role::KvDown, None, &s.h, &mut s.c)?;
        self.norm_rows(layer, Role::KvDownNorm, &mut s.c, 1)?;
        self.linear(layer, Role::KRope, None, &s.h, &mut s.v)?;
        self.turn(layer, &mut s.v, (1, latent.turning), (&s.table, &s.local_table))?;
        let still = c.head_dim - latent.turning;
        let columns = |stride, first| Columns { stride, first };
        let rows = self.tokens * c.kv_heads;
        let turning = Place {
            rows,
            repeat: c.kv_heads,
            width: latent.turning,
            from: columns(latent.turning, 0),
            to: columns(c.head_dim, 0),
        };
        device.place(&s.v, &mut s.k, turning)?;
        self.linear(layer, Role::K, None, &s.c, &mut s.b)?;
        let to = columns(c.head_dim, latent.turning);
        device.place(&s.b, &mut s.k, Place { rows, repeat: 1, width: still, from: columns(still, 0), to })?;
        self.linear(layer, Role::V, None, &s.c, &mut s.v)
    }

    fn turn(
        &self,
        layer: usize,
        x: &mut D::Buf,
        (heads, head_dim): (usize, usize),
        (table, local): (&D::Buf, &D::Buf),
    ) -> Result<()> {
        let c = self.config;
        let (table, rotary) = match &c.local_rotary {
            Some(rotary) if c.windows[layer] > 0 => (local, rotary),
            _ => (table, &c.rotary),
        };
        let shape = Rope { n: self.tokens, heads, head_dim, rotary: rotary.dim, kind: c.rope };
        if rotary.dim > 0 {
            self.device.rope(x, table, shape)?;
        }
        Ok(())
    }

    /// Queries beyond the length of the training get the logarithm of their position to its base (Qwen 1).
    fn scale_by_position(&self, spans: &[Span<'_, D>], s: &mut Scratch<D>) -> Result<()> {
        let Some(base) = self.config.log_n else { return Ok(()) };
        let positions = spans.iter().flat_map(|span| span.seq.len()..span.seq.len() + span.ids.len());
        let factor = |position: usize| match position + 1 > base {
            true => (((position + 1) as f64).ln() / (base as f64).ln()) as f32,
            false => 1.0,
        };
        let factors: Vec<f32> = positions.map(factor).collect();
        if factors.iter().any(|&factor| factor != 1.0) {
            self.device.scale_rows(&mut s.a, &factors, self.config.query_dim())?;
        }
        Ok(())
    }

    pub(super) fn feed_forward(&mut self, layer: usize, s: &mut Scratch<D>) -> Result<()> {
        let c = self.config;
        self.norm(layer, Role::MlpNorm, &s.x, &mut s.h)?;
        if let Some(moe) = c.moe.as_ref().filter(|moe| moe.is_sparse(layer)) {
            return self.experts(layer, moe, s);
        }
        self.linear(layer, Role::Gate, Some(Role::GateBias), &s.h, &mut s.a)?;
        self.linear(layer, Role::Up, Some(Role::UpBias), &s.h, &mut s.b)?;
        self.device.gated(&mut s.a, &s.b, self.tokens * c.inner, c.activation)?;
        self.linear(layer, Role::Down, Some(Role::DownBias), &s.a, &mut s.h)?;
        self.norm_rows(layer, Role::PostMlpNorm, &mut s.h, 1)?;
        self.device.add(&mut s.x, &s.h, self.tokens * c.hidden)?;
        Ok(())
    }

    /// Each token goes through the experts that its router chooses, and through the shared one.
    ///
    /// The experts' weights are asked for as soon as the router has spoken, so that they arrive while the
    /// shared one computes. A token's sum is made in the order of the experts' numbers, whoever else is in
    /// the pass.
    fn experts(&mut self, layer: usize, moe: &Moe, s: &mut Scratch<D>) -> Result<()> {
        let (device, c) = (self.device, self.config);
        self.linear(layer, Role::Router, None, &s.h, &mut s.scores)?;
        let mut scores = vec![0.0; self.tokens * moe.experts];
        device.read(&s.scores, 0, bytemuck::cast_slice_mut(&mut scores))?;
        let bias = self.router_bias(layer, moe, s)?;
        let routed = route(moe, &scores, &bias);
        let units: Vec<usize> = routed
            .iter()
            .map(|routed| Ok(self.expert(layer, routed.expert, Role::Gate)?.id.unit))
            .collect::<Result<_>>()?;
        self.weights.request(&units)?;

        if moe.shared > 0 {
            self.shared_expert(layer, moe, s)?;
        }
        for (Routed { expert, rows, weights }, unit) in routed.into_iter().zip(units) {
            device.gather(&s.h, &rows, c.hidden, &mut s.c)?;
            let n = rows.len();
            let runs = regime::runs(rows.iter().map(|&row| self.regimes[row as usize]));
            self.demand(layer, expert, Role::Gate, &runs, &s.c, &mut s.a)?;
            self.demand(layer, expert, Role::Up, &runs, &s.c, &mut s.b)?;
            device.gated(&mut s.a, &s.b, n * moe.inner, c.activation)?;
            self.demand(layer, expert, Role::Down, &runs, &s.a, &mut s.c)?;
            device.scatter_add(&s.c, &rows, &weights, c.hidden, &mut s.x)?;
            self.weights.done(unit)?;
        }
        Ok(())
    }

    fn shared_expert(&mut self, layer: usize, moe: &Moe, s: &mut Scratch<D>) -> Result<()> {
        let (device, c) = (self.device, self.config);
        self.linear(layer, Role::SharedGate, None, &s.h, &mut s.a)?;
        self.linear(layer, Role::SharedUp, None, &s.h, &mut s.b)?;
        device.gated(&mut s.a, &s.b, self.tokens * moe.shared, c.activation)?;
        self.linear(layer, Role::SharedDown, None, &s.a, &mut s.c)?;
        let mut weights = vec![1.0_f32; self.tokens];
        if self.binding.layer(layer, Role::SharedRouter).is_some() {
            self.linear(layer, Role::SharedRouter, None, &s.h, &mut s.scores)?;
            device.read(&s.scores, 0, bytemuck::cast_slice_mut(&mut weights))?;
            weights.iter_mut().for_each(|w| *w = 1.0 / (1.0 + (-*w).exp()));
        }
        let rows: Vec<u32> = (0..self.tokens as u32).collect();
        Ok(device.scatter_add(&s.c, &rows, &weights, c.hidden, &mut s.x)?)
    }

    /// What is added to scores for the choice of experts; empty where there is no such thing.
    fn router_bias(&mut self, layer: usize, moe: &Moe, s: &mut Scratch<D>) -> Result<Vec<f32>> {
        let Some(bias) = self.binding.layer(layer, Role::RouterBias) else { return Ok(Vec::new()) };
        let mut numbers = vec![0.0_f32; moe.experts];
        let device = self.device;
        device.write(&mut s.scores, 0, bytemuck::cast_slice(&numbers))?;
        self.weights.rows(bias.id, |stripe| -> Result<()> {
            Ok(device.add_bias(&mut s.scores, stripe.data, 1, moe.experts)?)
        })?;
        device.read(&s.scores, 0, bytemuck::cast_slice_mut(&mut numbers))?;
        Ok(numbers)
    }

    fn expert(&self, layer: usize, expert: usize, role: Role) -> Result<&Bound> {
        self.binding.expert(layer, expert, role).ok_or_else(|| Error::Binding {
            unit: format!("layer.{layer}.expert.{expert}"),
            tensor: role.name().into(),
            expected: "a tensor of this role, as the forward needs one".into(),
            found: "nothing".into(),
        })
    }

    /// `y = x · Wᵀ` with a matrix of a requested expert.
    fn demand(
        &mut self,
        layer: usize,
        expert: usize,
        role: Role,
        runs: &[Tokens],
        x: &D::Buf,
        y: &mut D::Buf,
    ) -> Result<()> {
        let w = *self.expert(layer, expert, role)?;
        self.product(&w, Flow::Requested, runs, x, y)
    }

    /// `y = x · Wᵀ + bias`, stripe by stripe as the matrix flows past.
    fn linear(
        &mut self,
        layer: usize,
        role: Role,
        bias: Option<Role>,
        x: &D::Buf,
        y: &mut D::Buf,
    ) -> Result<()> {
        let (device, n) = (self.device, self.tokens);
        let w = need(self.binding.layer(layer, role), role)?;
        let runs = regime::runs(self.regimes.iter().copied());
        self.product(w, Flow::Passing, &runs, x, y)?;
        if let Some(bias) = bias.and_then(|bias| self.binding.layer(layer, bias)) {
            self.weights.rows(bias.id, |stripe| -> Result<()> {
                Ok(device.add_bias(y, stripe.data, n, bias.cols)?)
            })?;
        }
        Ok(())
    }

    /// `y = x · Wᵀ` for the rows of all runs, which follow each other, and what adapters add to it.
    fn product(&mut self, w: &Bound, flow: Flow, runs: &[Tokens], x: &D::Buf, y: &mut D::Buf) -> Result<()> {
        let device = self.device;
        let n = runs.last().map_or(0, |run| run.end());
        if let Some(order) = w.order {
            let ordered = &mut *self.ordered;
            flow.lease(self.weights, order, |stripe| {
                Ok(device.reorder(x, stripe.data, n, w.cols, ordered)?)
            })?;
        }
        if self.inputs.is_some() {
            self.look_at_input(w, n, x)?;
        }
        let input = if w.order.is_some() { &*self.ordered } else { x };
        flow.lease(self.weights, w.id, |stripe| {
            let out = Columns { stride: w.rows, first: stripe.first };
            for &run in runs {
                device.matmul(w.matrix(stripe.data, stripe.count), input, run, y, out)?;
            }
            Ok(())
        })?;
        match self.adapters {
            Some(adapters) => adapters.apply(device, w.id, n, x, y),
            None => Ok(()),
        }
    }

    /// As [`look`](Self::look), in the order of the matrix's columns.
    fn look_at_input(&mut self, w: &Bound, n: usize, x: &D::Buf) -> Result<()> {
        if w.order.is_none() {
            return self.look(w, n, x);
        }
        self.host.resize(n * w.cols, 0.0);
        self.device.read(self.ordered, 0, bytemuck::cast_slice_mut(self.host))?;
        match &mut self.inputs {
            Some(inputs) => inputs(w, self.host),
            None => Ok(()),
        }
    }

    fn norm(&mut self, layer: usize, role: Role, x: &D::Buf, y: &mut D::Buf) -> Result<()> {
        let weight = need(self.binding.layer(layer, role), role)?;
        self.normalise(weight, self.tokens, x, y)
    }

    /// Normalises in place, `parts` parts of each token by themselves, where the family has such a norm.
    fn norm_rows(&mut self, layer: usize, role: Role, x: &mut D::Buf, parts: usize) -> Result<()> {
        let Some(weight) = self.binding.layer(layer, role) else { return Ok(()) };
        let (device, eps, rows) = (self.device, self.config.norm_eps, self.tokens * parts);
        self.weights.rows(weight.id, |stripe| -> Result<()> {
            Ok(device.rms_norm_rows(x, stripe.data, eps, rows, weight.cols)?)
        })
    }
}

/// How a tensor comes by: in every pass, or because it was requested.
#[derive(Clone, Copy)]
enum Flow {
    Passing,
    Requested,
}

impl Flow {
    fn lease<D: Ops, W: Weights<D>>(
        self,
        weights: &mut W,
        id: TensorId,
        f: impl FnMut(Rows<D::View<'_>>) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Passing => weights.rows(id, f),
            Self::Requested => weights.demand(id, f),
        }
    }
}
