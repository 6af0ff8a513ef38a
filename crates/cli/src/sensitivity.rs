//! `airllm sensitivity`: what rounding does to which matrix, in tables.

pub mod grid;
#[cfg(test)]
pub mod tests;

use crate::args::{self, Common};
use crate::exit::Result;
use crate::output::table;
use crate::progress::Bars;
use crate::{heatmap, model, output};
use airllm::{Cancel, NumFormat, Sensitivity, Size, TensorSensitivity};
use grid::{Block, Cell, Grid};
use std::sync::Arc;

pub fn run(common: &Common, args: &args::Sensitivity, cancel: &Cancel) -> Result<()> {
    let bars = Arc::new(Bars::new());
    let builder = model::weights(model::builder(common, cancel, &bars), &args.weights)?;
    let checkpoint = model::find(&builder, common, args.target.as_deref())?;
    let sensitivity = builder.sensitivity(&checkpoint)?;
    bars.clear();
    if let Some(file) = &args.svg {
        output::file(file, heatmap::svg(&sensitivity, checkpoint.name()).as_bytes())?;
    }
    if common.json { output::json(&sensitivity) } else { output::line(report(&sensitivity).trim_end()) }
}

/// All of it: divergences by layer and role, shares of the parts, errors by width, and what came of all
/// matrices at once.
pub fn report(sensitivity: &Sensitivity) -> String {
    let it = &sensitivity.calibration;
    let (grid, formats) = (Grid::of(sensitivity), kl_formats(sensitivity));
    let mut text = format!(
        "calibration: {}, {} tokens, read in {} windows of {}\n\nmean KL divergence with one matrix alone in {formats}",
        it.name, it.tokens, it.windows, it.context
    );
    text += &divergences(&grid);
    text += &format!("\nwhere it comes from (matrices in {formats})\n");
    text += &parts(&grid);
    text += "\nrelative squared error of the products with the inputs, by width (means over weights); \
             behind, of the layer's output\n";
    text += &errors(sensitivity);
    if !sensitivity.together.is_empty() {
        text += "\nall matrices rounded at once, nats per token\n";
        text += &together(sensitivity);
    }
    text
}

/// What a selection gave to the matrices of a sensitivity: `formats` are theirs, in the same order.
///
/// How many matrices and what share of the weights got each format, which roles they have, the bits per weight
/// with all scales, and the mean KL divergence to expect.
pub fn chosen(sensitivity: &Sensitivity, formats: &[NumFormat]) -> String {
    let pairs = || sensitivity.tensors.iter().zip(formats.iter().copied());
    let mut used: Vec<NumFormat> = formats.to_vec();
    used.sort();
    used.dedup();
    let weights: u64 = pairs().map(|(tensor, _)| tensor.weights()).sum();
    let row = |name: &str, of: &dyn Fn(NumFormat) -> bool| {
        let mine = || pairs().filter(|(_, format)| of(*format));
        let count: u64 = mine().map(|(tensor, _)| tensor.weights()).sum();
        let bytes: u64 = mine().map(|(tensor, format)| bytes(tensor, format)).sum();
        vec![
            name.to_owned(),
            mine().count().to_string(),
            percent(count as f64, weights as f64),
            Size(bytes).to_string(),
            format!("{:.3}", 8.0 * bytes as f64 / count.max(1) as f64),
        ]
    };
    let mut rows: Vec<_> = used.iter().map(|&f| row(f.name(), &|format| format == f)).collect();
    rows.push(row("all", &|_| true));
    let mut text = table(&["format", "matrices", "of weights", "size", "bits/weight"], &rows);

    let mut roles: Vec<&str> = Vec::new();
    pairs().for_each(|(tensor, _)| {
        if !roles.contains(&tensor.role()) {
            roles.push(tensor.role())
        }
    });
    let head: Vec<&str> = std::iter::once("matrices").chain(used.iter().map(|f| f.name())).collect();
    let rows = roles.iter().map(|&role| {
        let count = |f: &NumFormat| pairs().filter(|(t, format)| t.role() == role && format == f).count();
        let count = |f| Some(count(f)).filter(|n| *n > 0).map_or("-".to_owned(), |n| n.to_string());
        std::iter::once(role.to_owned()).chain(used.iter().map(count)).collect()
    });
    text += &format!("\n{}", table(&head, &rows.collect::<Vec<_>>()));
    if let Some(sum) = pairs().map(|(tensor, format)| tensor.loss(format)).sum::<Option<f64>>() {
        let expected = digits(sensitivity.expected(sum));
        text += &format!("\nexpected mean KL divergence  {expected} nats per token\n");
    }
    text
}

/// The formats that matrices were rounded to alone: "q3", or "q4 or q3" where floors forbid it to some.
pub fn kl_formats(sensitivity: &Sensitivity) -> String {
    let mut formats: Vec<NumFormat> = sensitivity.tensors.iter().map(|tensor| tensor.kl_format).collect();
    formats.sort();
    formats.dedup();
    formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(" or ")
}

/// Divergences by layer and role, after their unit.
fn divergences(grid: &Grid) -> String {
    // A power of a thousand under which the median cell has one to three digits before the point.
    let cells = grid.rows.iter().flat_map(|row| row.cells.iter().chain([&row.all]));
    let mut cells: Vec<f64> = cells.map(|cell| cell.kl).filter(|kl| *kl > 0.0).collect();
    cells.sort_by(f64::total_cmp);
    let median = cells.get(cells.len() / 2).copied().unwrap_or(1.0);
    let thousands = (median.log10() / 3.0).floor().clamp(-6.0, 0.0) as i32;
    let unit = 1000f64.powi(thousands);
    let unit_name = if thousands == 0 {
        "nats per token".to_owned()
    } else {
        format!("1e{} nats per token", 3 * thousands)
    };

    let number = |cell: &Cell| if cell.tensors == 0 { "-".to_owned() } else { digits(cell.kl / unit) };
    let line = |name: &str, cells: &[Cell], attention: &Cell, feed_forward: &Cell, all: &Cell| {
        let name = name.strip_prefix("layer.").unwrap_or(name).to_owned();
        let cells = cells.iter().chain([attention, feed_forward, all]).map(number);
        std::iter::once(name).chain(cells).collect::<Vec<String>>()
    };
    let row = |row: &grid::Row| {
        let [attention, feed_forward] = blocks(grid, row);
        line(row.name, &row.cells, &attention, &feed_forward, &row.all)
    };
    let mut rows: Vec<_> = grid.rows.iter().map(row).collect();
    let column = |i: usize| Cell::sum(grid.rows.iter().map(|row| &row.cells[i]));
    let columns: Vec<Cell> = (0..grid.roles.len()).map(column).collect();
    let [attention, feed_forward] =
        [Block::Attention, Block::FeedForward].map(|block| in_layers(grid, block));
    let all = Cell::sum(grid.rows.iter().map(|row| &row.all));
    rows.push(line("all", &columns, &attention, &feed_forward, &all));
    let head: Vec<&str> = std::iter::once("layer")
        .chain(grid.roles.iter().copied())
        .chain(["attention", "feed-forward", "all"])
        .collect();
    format!(", {unit_name}\n{}", table(&head, &rows))
}

fn blocks(grid: &Grid, row: &grid::Row) -> [Cell; 2] {
    [Block::Attention, Block::FeedForward].map(|block| grid.block(row, block))
}

fn in_layers(grid: &Grid, block: Block) -> Cell {
    Cell::sum(&grid.layers().map(|row| grid.block(row, block)).collect::<Vec<_>>())
}

/// Shares of weights and of divergence, of the parts of a model and of its first and last layers.
fn parts(grid: &Grid) -> String {
    let all = Cell::sum(grid.rows.iter().map(|row| &row.all));
    let others = grid.rows.iter().filter(|row| !grid::is_layer(row.name));
    let mut parts: Vec<(String, Cell)> = others.map(|row| (row.name.to_owned(), row.all)).collect();
    parts.push(("attention".into(), in_layers(grid, Block::Attention)));
    parts.push(("feed-forward".into(), in_layers(grid, Block::FeedForward)));
    let (first, last) = (grid.layers().next(), grid.layers().next_back());
    for (name, row) in [("first layer", first), ("last layer", last)] {
        parts.extend(row.map(|row| (name.to_owned(), row.all)));
    }
    let rows = parts.iter().filter(|(_, cell)| cell.tensors > 0).map(|(name, cell)| {
        let ratio = cell.per_weight() / all.per_weight();
        vec![
            name.clone(),
            percent(cell.weights as f64, all.weights as f64),
            percent(cell.kl, all.kl),
            if ratio.is_finite() { digits(ratio) } else { "-".to_owned() },
        ]
    });
    table(&["part", "of weights", "of divergence", "per weight, mean = 1"], &rows.collect::<Vec<_>>())
}

/// For each role the mean error by width, and that of the layer's output.
fn errors(sensitivity: &Sensitivity) -> String {
    let mut formats: Vec<NumFormat> =
        sensitivity.tensors.iter().flat_map(|tensor| &tensor.widths).map(|width| width.format).collect();
    formats.sort();
    formats.dedup();
    let mut roles: Vec<&str> = Vec::new();
    for tensor in &sensitivity.tensors {
        if !roles.contains(&tensor.role()) {
            roles.push(tensor.role());
        }
    }
    let rows = roles.iter().map(|&role| {
        let mean = |of: &dyn Fn(&TensorSensitivity) -> Option<f64>| {
            let (mut sum, mut weights) = (0.0, 0.0);
            for tensor in sensitivity.tensors.iter().filter(|tensor| tensor.role() == role) {
                if let Some(value) = of(tensor) {
                    sum += value * tensor.weights() as f64;
                    weights += tensor.weights() as f64;
                }
            }
            if weights > 0.0 { digits(sum / weights) } else { "-".to_owned() }
        };
        let by_width = formats.iter().map(|&format| mean(&|t| Some(t.width(format)?.error)));
        std::iter::once(role.to_owned())
            .chain(by_width.collect::<Vec<_>>())
            .chain([mean(&|t| Some(t.output))])
            .collect()
    });
    let output = format!("output in {}", kl_formats(sensitivity));
    let head = std::iter::once("role").chain(formats.iter().map(|format| format.name())).chain([&output[..]]);
    table(&head.collect::<Vec<_>>(), &rows.collect::<Vec<_>>())
}

/// Sums of parts beside what was measured.
fn together(sensitivity: &Sensitivity) -> String {
    let rows = sensitivity.together.iter().map(|point| {
        let ratio = point.measured / point.sum;
        let ratio = if ratio.is_finite() { format!("{ratio:.2}") } else { "-".to_owned() };
        vec![point.format.name().to_owned(), digits(point.sum), digits(point.measured), ratio]
    });
    table(&["format", "sum of their own", "measured", "ratio"], &rows.collect::<Vec<_>>())
}

/// Bytes of a matrix in a format.
fn bytes(tensor: &TensorSensitivity, format: NumFormat) -> u64 {
    match tensor.width(format) {
        Some(width) => width.bytes,
        None => {
            let cols = tensor.shape.last().copied().unwrap_or(0);
            tensor.weights() / cols.max(1) as u64 * format.row_bytes(cols) as u64
        }
    }
}

fn percent(part: f64, all: f64) -> String {
    if all > 0.0 { format!("{:.1} %", 100.0 * part / all) } else { "-".to_owned() }
}

/// Three digits; two and an exponent where the point would be far away.
pub fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        x if !(0.00995..1e5).contains(&x) => format!("{value:.1e}"),
        x if x < 0.0995 => format!("{value:.4}"),
        x if x < 0.995 => format!("{value:.3}"),
        x if x < 9.995 => format!("{value:.2}"),
        x if x < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
