//! Which tensor gets how many bits: the least loss within a number of bytes.
//!
//! Each tensor has a few [`Choice`]s, and takes one; bytes and losses add up. That is the multiple-choice
//! knapsack problem. It is solved for all budgets at once: [`frontier`] finds the points `(bytes, loss)` that
//! nothing beats, and a budget picks one of them. So more bytes never do worse, whatever was rounded on the way.
//!
//! Two methods put points on the frontier:
//!
//! - *The hull.* Start where every tensor is smallest; take the steps to wider formats in the order of what they gain
//!   a byte. Every point on this way is the best for its bytes (it minimises `loss + λ · bytes` for some `λ`), and
//!   lines between neighbours bound from below what any assignment can reach: [`Frontier::bound`].
//! - *The states between.* Dynamic programming, tensor by tensor, over all sums that nothing beats. Models have few
//!   distinct shapes, so many sums coincide; where there are too many all the same, bytes are cut into equal
//!   buckets, and the least loss of each stays, beside what is nearest to the hull. The buckets depend on the
//!   tensors, not on a budget.
//!
//! [`Frontier::slack`] says how far from the optimum that can be, as a number of bytes. For models of 70B
//! and 8x7B with made-up sensitivities, the loss is within 0.25 % of the bound at any size from 2.5 to 6 bits per
//! weight, 0.07 % on average.
//!
//! ```
//! use airllm_format::NumFormat::{Q2, Q4};
//! use airllm_quant::select::{Choice, frontier};
//!
//! let tensor = |narrow: f64, wide: f64| {
//!     vec![Choice { format: Q2, bytes: 23, loss: narrow }, Choice { format: Q4, bytes: 45, loss: wide }]
//! };
//! let frontier = frontier(&[tensor(0.5, 0.1), tensor(0.2, 0.1)])?;
//! assert_eq!(frontier.within(70)?.choices, [1, 0]);
//! assert_eq!(frontier.reaching(0.25)?.bytes, 90);
//! assert_eq!(frontier.within(40).unwrap_err().to_string(), "40 bytes are too few: the smallest possible size is 46");
//! # Ok::<(), airllm_quant::select::SelectError>(())
//! ```

mod hull;
mod states;
#[cfg(test)]
mod tests;

use airllm_format::NumFormat;
use hull::Hull;
use states::States;

/// The most states that are kept between two tensors.
const STATES: usize = 1 << 14;

/// The most states that are remembered over all tensors; five bytes each.
const REMEMBERED: usize = 1 << 24;

/// One way to store a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The format.
    pub format: NumFormat,
    /// Bytes of the tensor in it.
    pub bytes: u64,
    /// What the model loses by it: finite, from 0 on, in any unit that adds up over tensors.
    pub loss: f64,
}

/// Why there is no selection.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// A tensor cannot be stored at all.
    #[error("tensor {tensor} has no format to be stored in")]
    Empty {
        /// Its index.
        tensor: usize,
    },
    /// A tensor has too many choices.
    #[error("tensor {tensor} has {found} choices, at most 256 can be told apart")]
    TooMany {
        /// Its index.
        tensor: usize,
        /// How many it has.
        found: usize,
    },
    /// A loss is not a number to add up.
    #[error("the loss of tensor {tensor} in {format} is {loss}, expected a finite number from 0 on")]
    Loss {
        /// The tensor's index.
        tensor: usize,
        /// The format of the choice.
        format: NumFormat,
        /// The loss.
        loss: f64,
    },
    /// The sum of bytes or losses is beyond all numbers.
    #[error("the tensors up to {tensor} together are larger, or lose more, than can be counted")]
    Overflow {
        /// The index of the first tensor that is too much.
        tensor: usize,
    },
    /// The budget is below what the smallest choices take.
    #[error("{budget} bytes are too few: the smallest possible size is {smallest}")]
    Budget {
        /// The bytes that were granted.
        budget: u64,
        /// The bytes of the smallest choices.
        smallest: u64,
    },
    /// The loss asked for is below what the best choices have.
    #[error("a loss of {wanted} cannot be reached: the least possible is {least}")]
    Quality {
        /// The loss that was asked for.
        wanted: f64,
        /// The loss of the best choices.
        least: f64,
    },
}

/// An assignment of choices to tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// For each tensor, the index of its choice.
    pub choices: Vec<usize>,
    /// The sum of their bytes.
    pub bytes: u64,
    /// The sum of their losses.
    pub loss: f64,
}

/// The best assignments, for all budgets.
#[derive(Debug, Clone)]
pub struct Frontier {
    /// Bytes ascending, losses descending, both strictly.
    points: Vec<Point>,
    hull: Hull,
    states: States,
    /// For each tensor, the indices of its useful choices as they were given.
    useful: Vec<Vec<usize>>,
    slack: u64,
}

/// A point of the frontier, and where its choices are written.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    bytes: u64,
    loss: f64,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Origin {
    /// So many steps along the hull.
    Hull(usize),
    /// The state after the last tensor.
    State(u32),
}

/// The choices that can be of use, as indices, the smallest first: each has less loss than all that are
/// not larger. A wider format that loses more than a narrower one, by bad luck in rounding, is not among them.
pub fn useful(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&choices[a], &choices[b]);
        a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss))
    });
    let mut least = f64::INFINITY;
    order.retain(|&i| {
        let better = choices[i].loss < least;
        least = least.min(choices[i].loss);
        better
    });
    order
}

/// The choices of a tensor: those of its widths `(format, bytes, loss)` that are not narrower than its floor,
/// in the same order.
pub fn choices(widths: impl IntoIterator<Item = (NumFormat, u64, f64)>, floor: NumFormat) -> Vec<Choice> {
    let size = |format: NumFormat| format.row_bytes(1 << 13);
    let wide = widths.into_iter().filter(|(format, ..)| size(*format) >= size(floor));
    wide.map(|(format, bytes, loss)| Choice { format, bytes, loss }).collect()
}

/// Finds the best assignments for all budgets.
///
/// # Errors
/// [`SelectError::Empty`], [`SelectError::TooMany`], [`SelectError::Loss`] and [`SelectError::Overflow`] for what
/// cannot be weighed, each with the index of the tensor.
pub fn frontier(tensors: &[Vec<Choice>]) -> Result<Frontier, SelectError> {
    frontier_of(tensors, STATES.min(REMEMBERED / tensors.len().max(1)))
}

/// The choices of least loss within `budget` bytes.
///
/// # Errors
/// As [`frontier`] and [`Frontier::within`].
pub fn select(tensors: &[Vec<Choice>], budget: u64) -> Result<Selection, SelectError> {
    frontier(tensors)?.within(budget)
}

/// [`frontier`] with so many states between two tensors, at least one.
fn frontier_of(tensors: &[Vec<Choice>], cap: usize) -> Result<Frontier, SelectError> {
    let (mut bytes, mut loss) = (0u64, 0f64);
    for (tensor, choices) in tensors.iter().enumerate() {
        match choices.len() {
            0 => return Err(SelectError::Empty { tensor }),
            1..=256 => {}
            found => return Err(SelectError::TooMany { tensor, found }),
        }
        if let Some(bad) = choices.iter().find(|choice| !(choice.loss.is_finite() && choice.loss >= 0.0)) {
            return Err(SelectError::Loss { tensor, format: bad.format, loss: bad.loss });
        }
        let most = choices.iter().map(|choice| choice.bytes).max().unwrap_or_default();
        bytes = bytes.checked_add(most).ok_or(SelectError::Overflow { tensor })?;
        loss += choices.iter().map(|choice| choice.loss).fold(0.0, f64::max);
        if !loss.is_finite() {
            return Err(SelectError::Overflow { tensor });
        }
    }
    let useful: Vec<Vec<usize>> = tensors.iter().map(|choices| self::useful(choices)).collect();
    let steps: Vec<Vec<(u64, f64)>> = (useful.iter().zip(tensors))
        .map(|(useful, choices)| useful.iter().map(|&i| (choices[i].bytes, choices[i].loss)).collect())
        .collect();

    let (hull, on_hull) = Hull::of(&steps);
    let (states, between, lost) = States::of(&steps, cap.max(1));
    // Within a budget between two points of the hull, the lower one is at hand; it is the best for its bytes.
    let gap = on_hull.windows(2).map(|pair| pair[1].bytes - pair[0].bytes - 1).max().unwrap_or(0);
    let points = merged(on_hull, between);
    Ok(Frontier { points, hull, states, useful, slack: lost.min(gap) })
}

/// The points of both that nothing beats.
fn merged(a: Vec<Point>, b: Vec<Point>) -> Vec<Point> {
    let mut all = [a, b].concat();
    // The sort is stable: of equal points that of the hull stays.
    all.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut least = f64::INFINITY;
    all.retain(|point| {
        let better = point.loss < least;
        least = least.min(point.loss);
        better
    });
    all
}

impl Frontier {
    /// The least loss within `budget` bytes.
    ///
    /// # Errors
    /// [`SelectError::Budget`] where the smallest choices take more.
    pub fn within(&self, budget: u64) -> Result<Selection, SelectError> {
        let smallest = self.points.first().map_or(0, |point| point.bytes);
        match self.points.partition_point(|point| point.bytes <= budget).checked_sub(1) {
            Some(index) => Ok(self.selection(&self.points[index])),
            None => Err(SelectError::Budget { budget, smallest }),
        }
    }

    /// The fewest bytes that lose `loss` at most.
    ///
    /// # Errors
    /// [`SelectError::Quality`] where the best choices lose more.
    pub fn reaching(&self, loss: f64) -> Result<Selection, SelectError> {
        // Losses fall along the points; NaN is reached by none.
        match self.points.iter().position(|point| point.loss <= loss) {
            Some(index) => Ok(self.selection(&self.points[index])),
            None => {
                let least = self.points.last().map_or(0.0, |point| point.loss);
                Err(SelectError::Quality { wanted: loss, least })
            }
        }
    }

    /// How many bytes the optimum may be ahead: no assignment within `budget - slack` loses less than
    /// [`within(budget)`](Self::within). 0 where all is exact.
    pub fn slack(&self) -> u64 {
        self.slack
    }

    /// What no assignment within `budget` bytes can lose less than, as far as is known without looking at all
    /// of them: the lower convex hull. Infinite where nothing fits.
    pub fn bound(&self, budget: u64) -> f64 {
        self.hull.bound(budget)
    }

    /// The points `(bytes, loss)`, bytes ascending and losses descending, both strictly. Never empty.
    pub fn points(&self) -> impl ExactSizeIterator<Item = (u64, f64)> {
        self.points.iter().map(|point| (point.bytes, point.loss))
    }

    fn selection(&self, point: &Point) -> Selection {
        let taken = match point.origin {
            Origin::Hull(steps) => self.hull.choices(steps),
            Origin::State(state) => self.states.choices(state),
        };
        let choices = self.useful.iter().zip(taken).map(|(useful, taken)| useful[taken]).collect();
        Selection { choices, bytes: point.bytes, loss: point.loss }
    }
}
