//! Error-compensated rounding of 256 weights of a row: a block of the formats in planes.

#![allow(clippy::needless_range_loop, reason = "loops over lanes become vectors")]

use crate::feedback::{Part, Products, SPAN, Span};
use crate::planes::{Block, GROUP, GROUPS, Group, Kind, stored};
use half::f16;

pub(crate) type Row = [f32; SPAN];

/// What `d` is tried to be, over the one that fits best before errors are fed back.
const STEPS: [f32; 3] = [1.0, 0.92, 1.08];

/// How 256 weights are rounded, and what that leaves.
#[derive(Clone)]
pub(crate) struct Rounded {
    d: f16,
    /// Scales in steps of `d`.
    scales: Group,
    /// Codes, zero being 0.
    codes: Row,
    /// Weights less what they are rounded to.
    pub(crate) errors: Row,
    /// What is left of each column after the feedback of all before it.
    left: Row,
    /// `Σ D·left²`, with the relative `D`.
    loss: f32,
}

/// Rounds weights of a row that errors of columns before have moved. Dispatched, it uses the vectors that the processor
/// has; no result depends on which.
pub(crate) struct Round<'a> {
    pub(crate) kind: Kind,
    pub(crate) span: &'a Span,
    pub(crate) weights: &'a Row,
    pub(crate) moved: &'a Row,
}

impl pulp::WithSimd for Round<'_> {
    type Output = Rounded;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Rounded {
        Rounded::new(self.kind, self.span, self.weights, self.moved)
    }
}

/// Improves what was rounded, all other columns being as they are. Of `slope`, `e·H` without the part of the errors of these
/// columns is asked for.
pub(crate) struct Polish<'a> {
    pub(crate) kind: Kind,
    pub(crate) span: &'a Span,
    pub(crate) rounded: &'a mut Rounded,
    pub(crate) slope: &'a mut Row,
}

impl pulp::WithSimd for Polish<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let products = &self.span.whole;
        for j in 0..SPAN {
            add(self.slope, self.rounded.errors[j], &products.rows[j]);
        }
        self.rounded.improve(self.kind, products, self.slope);
    }
}

impl Rounded {
    /// As the formats store it.
    pub(crate) fn block(&self) -> Block {
        let mut codes = [[0f32; GROUP]; GROUPS];
        codes.as_flattened_mut().copy_from_slice(&self.codes);
        Block::new(self.d, self.scales, codes)
    }

    #[inline(always)]
    fn new(kind: Kind, span: &Span, weights: &Row, moved: &Row) -> Rounded {
        let mut wanted = [[0f32; GROUP]; GROUPS];
        let mut importance = [[0f32; GROUP]; GROUPS];
        for (k, to) in wanted.as_flattened_mut().iter_mut().enumerate() {
            *to = weights[k] + moved[k];
        }
        importance.as_flattened_mut().copy_from_slice(&span.importance);
        let fit = kind.fit(&wanted, &importance);
        let nothing = f32::INFINITY;
        let mut best = Rounded {
            d: fit.d,
            scales: [0.0; GROUP],
            codes: [0.0; SPAN],
            errors: *weights,
            left: *moved,
            loss: nothing,
        };
        if fit.d != f16::ZERO {
            for step in STEPS {
                best.attempt(kind, span, weights, moved, &fit.scales, stored(fit.d.to_f32() * step));
            }
        }
        if best.loss == nothing {
            return best;
        }
        let mut more = best.clone();
        let mut slope = more.slope(span);
        more.improve(kind, &span.ahead, &mut slope);
        more.settle(span, moved);
        if more.loss < best.loss { more } else { best }
    }

    /// Computes `left` and `loss` from `errors`.
    #[inline(always)]
    fn settle(&mut self, span: &Span, moved: &Row) {
        self.left = *moved;
        for j in 0..SPAN {
            self.left[j] += self.errors[j];
            // `U` is 0 up to column `j`.
            add(&mut self.left[j / 8 * 8..], self.errors[j], &span.rows[j][j / 8 * 8..]);
        }
        let mut sum = [0f32; 8];
        for k in (0..SPAN).step_by(8) {
            for l in 0..8 {
                sum[l] += span.importance[k + l] * (self.left[k + l] * self.left[k + l]);
            }
        }
        self.loss = sum.iter().sum();
    }

    /// Rounds columns in order under `d`, the scale of each group chosen when its turn comes. Kept if better than
    /// what is there.
    #[inline(always)]
    fn attempt(&mut self, kind: Kind, span: &Span, weights: &Row, moved: &Row, fitted: &Group, d: f16) {
        let mut new = Rounded { d, loss: 0.0, ..self.clone() };
        for k in 0..SPAN {
            new.left[k] = weights[k] + moved[k];
        }
        for g in 0..GROUPS {
            let (weights, wanted) = (group(weights, g), group(&new.left, g));
            let step = d.to_f32();
            // A scale without a sign is not far from what fits; one with a sign may turn around.
            if kind.search().least < 0.0 {
                let lanes = Lanes::<16>::new(kind, &span.parts[g], &weights, &wanted, step, fitted[g]);
                new.take(&lanes, lanes.best(fitted[g]), g, &weights);
            } else {
                let lanes = Lanes::<8>::new(kind, &span.parts[g], &weights, &wanted, step, fitted[g]);
                new.take(&lanes, lanes.best(fitted[g]), g, &weights);
            }
            if new.loss >= self.loss {
                return;
            }
            let after = (g + 1) * GROUP;
            for k in after - GROUP..after {
                add(&mut new.left[after..], new.errors[k], &span.rows[k][after..]);
            }
        }
        if new.loss < self.loss {
            *self = new;
        }
    }

    /// Takes a group from a lane.
    #[inline(always)]
    fn take<const L: usize>(&mut self, lanes: &Lanes<L>, lane: usize, g: usize, weights: &Group) {
        self.scales[g] = lanes.least + lane as f32;
        self.loss += lanes.loss[lane];
        for i in 0..GROUP {
            let k = g * GROUP + i;
            self.codes[k] = lanes.codes[i][lane];
            self.errors[k] = weights[i] - lanes.scale[lane] * lanes.codes[i][lane];
            self.left[k] = lanes.left[i][lane];
        }
    }

    /// Half of how much the loss falls for each column that is rounded to more.
    #[inline(always)]
    fn slope(&self, span: &Span) -> Row {
        let mut weighted = self.left;
        for k in 0..SPAN {
            weighted[k] *= span.importance[k];
        }
        let mut slope = weighted;
        for j in 0..SPAN {
            let mut sum = [0f32; 8];
            for k in (j / 8 * 8..SPAN).step_by(8) {
                for l in 0..8 {
                    sum[l] += span.rows[j][k + l] * weighted[k + l];
                }
            }
            slope[j] += sum.iter().sum::<f32>();
        }
        slope
    }

    /// Changes `d`, groups, and codes one at a time, where that lowers the loss.
    #[inline(always)]
    fn improve(&mut self, kind: Kind, products: &Products, slope: &mut Row) {
        self.refit(products, slope);
        self.regroup(kind, products, slope);
        if self.sweep(kind, products, slope) {
            self.sweep(kind, products, slope);
        }
    }

    /// `by` is added to what column `j` is rounded to.
    #[inline(always)]
    fn shift(&mut self, products: &Products, slope: &mut Row, j: usize, by: f32) {
        self.errors[j] -= by;
        add(slope, -by, &products.rows[j]);
    }

    /// The `d` of least loss for the scales and codes.
    #[inline(always)]
    fn refit(&mut self, products: &Products, slope: &mut Row) {
        let (mut parts, mut moved) = ([0f32; SPAN], [0f32; SPAN]);
        for j in 0..SPAN {
            parts[j] = self.scales[j / GROUP] * self.codes[j];
            if parts[j] != 0.0 {
                add(&mut moved, parts[j], &products.rows[j]);
            }
        }
        let (mut cross, mut power) = (0f32, 0f32);
        for j in 0..SPAN {
            cross += parts[j] * slope[j];
            power += parts[j] * moved[j];
        }
        if power <= 0.0 {
            return;
        }
        let step = self.d.to_f32();
        let d = stored(step + cross / power);
        let by = d.to_f32() - step;
        if by * (by * power - 2.0 * cross) < 0.0 {
            self.d = d;
            for j in 0..SPAN {
                self.errors[j] -= by * parts[j];
                slope[j] -= by * moved[j];
            }
        }
    }

    /// Rounds each group anew, all other columns staying as they are.
    #[inline(always)]
    fn regroup(&mut self, kind: Kind, products: &Products, slope: &mut Row) {
        let step = self.d.to_f32();
        for g in 0..GROUPS {
            let part = &products.parts[g];
            let (off, now) = part.off(&group(slope, g));
            let mut wanted = off;
            for i in 0..GROUP {
                wanted[i] += step * self.scales[g] * self.codes[g * GROUP + i];
            }
            let lanes = Lanes::<8>::new(kind, part, &wanted, &wanted, step, self.scales[g]);
            let lane = lanes.best(self.scales[g]);
            // Only what is better by more than the errors of this arithmetic.
            if lanes.loss[lane] >= now * 0.9999 {
                continue;
            }
            for i in 0..GROUP {
                let (k, code) = (g * GROUP + i, lanes.codes[i][lane]);
                let by = lanes.scale[lane] * code - step * self.scales[g] * self.codes[k];
                self.codes[k] = code;
                if by != 0.0 {
                    self.shift(products, slope, k, by);
                }
            }
            self.scales[g] = lanes.least + lane as f32;
        }
    }

    /// Rounds each column anew, all others staying as they are. True if one has changed.
    #[inline(always)]
    fn sweep(&mut self, kind: Kind, products: &Products, slope: &mut Row) -> bool {
        let (least, most) = kind.ends();
        let mut changed = false;
        for j in 0..SPAN {
            let scale = self.d.to_f32() * self.scales[j / GROUP];
            let power = products.rows[j][j];
            // By less than half a step: nothing to gain.
            if slope[j].abs() <= 0.5001 * scale.abs() * power || power <= 0.0 || scale == 0.0 {
                continue;
            }
            let code = (self.codes[j] + slope[j] / (power * scale)).round_ties_even().clamp(least, most);
            let by = scale * (code - self.codes[j]);
            if by * (by * power - 2.0 * slope[j]) < 0.0 {
                self.codes[j] = code;
                self.shift(products, slope, j, by);
                changed = true;
            }
        }
        changed
    }
}

/// A group rounded under several scales, one a lane.
struct Lanes<const L: usize> {
    /// The first lane's scale in steps, the others following one by one.
    least: f32,
    scale: [f32; L],
    codes: [[f32; L]; GROUP],
    /// What is left of each column after the feedback of those before it.
    left: [[f32; L]; GROUP],
    loss: [f32; L],
}

impl<const L: usize> Lanes<L> {
    /// Rounds columns in order under `L` scales around `middle`. `wanted` is what the weights should be, were
    /// there no errors in the group.
    #[inline(always)]
    fn new(kind: Kind, part: &Part, weights: &Group, wanted: &Group, step: f32, middle: f32) -> Lanes<L> {
        const ROUND: f32 = 12_582_912.0;
        let (from, to) = kind.ends();
        let search = kind.search();
        let lanes = L as f32;
        let least = (middle - lanes / 2.0).clamp(search.least, search.most + 1.0 - lanes);
        let (mut scale, mut inverse) = ([0f32; L], [0f32; L]);
        for l in 0..L {
            scale[l] = step * (least + l as f32);
            inverse[l] = if scale[l] == 0.0 { 0.0 } else { 1.0 / scale[l] };
        }
        let (mut codes, mut left, mut loss) = ([[0f32; L]; GROUP], [[0f32; L]; GROUP], [0f32; L]);
        for i in 0..GROUP {
            left[i] = [wanted[i]; L];
        }
        for i in 0..GROUP {
            let mut error = [0f32; L];
            for l in 0..L {
                let code = ((left[i][l] * inverse[l]).clamp(from, to) + ROUND) - ROUND;
                let rounded = scale[l] * code;
                codes[i][l] = code;
                left[i][l] -= rounded;
                loss[l] += part.importance[i] * (left[i][l] * left[i][l]);
                error[l] = weights[i] - rounded;
            }
            for k in i + 1..GROUP {
                for l in 0..L {
                    left[k][l] += error[l] * part.rows[i][k];
                }
            }
        }
        Lanes { least, scale, codes, left, loss }
    }

    /// The lane of least loss; that of `middle` if no other has less.
    #[inline(always)]
    fn best(&self, middle: f32) -> usize {
        let mut best = (middle - self.least) as usize;
        for l in 0..L {
            if self.loss[l] < self.loss[best] {
                best = l;
            }
        }
        best
    }
}

/// A group of a row.
#[inline(always)]
fn group(row: &Row, g: usize) -> Group {
    let mut group = [0f32; GROUP];
    group.copy_from_slice(&row[g * GROUP..][..GROUP]);
    group
}

/// Adds `by · row`.
#[inline(always)]
fn add(to: &mut [f32], by: f32, row: &[f32]) {
    for (to, v) in to.iter_mut().zip(row) {
        *to += by * v;
    }
}
