//! `airllm sensitivity --svg`: which matrices suffer from rounding, as a picture.

use crate::sensitivity::grid::{Cell, Grid, is_layer};
use crate::sensitivity::{digits, kl_formats};
use airllm::Sensitivity;
use std::fmt::Write;

/// Colours from the least to the largest value, `[red, green, blue]`; each is darker than the one before.
const COLOURS: [[f64; 3]; 5] =
    [[255., 246., 214.], [253., 205., 122.], [240., 122., 62.], [184., 32., 66.], [72., 4., 72.]];

const LEFT: f64 = 64.0;
const TOP: f64 = 100.0;
const RIGHT: f64 = 24.0;
/// Below the cells: the legend.
const BOTTOM: f64 = 76.0;
/// Rows that are at least so high show their numbers.
const NUMBERS: f64 = 14.0;

/// The picture, a document of its own: layers down, roles across, embedding and head above and below them;
/// colours by the logarithm of the mean KL divergence per weight. The experts of a layer share a cell.
pub fn svg(sensitivity: &Sensitivity, model: &str) -> String {
    let grid = Grid::of(sensitivity);
    let scale = Scale::of(grid.rows.iter().flat_map(|row| match is_layer(row.name) {
        true => &row.cells[..],
        false => std::slice::from_ref(&row.all),
    }));
    let longest = grid.roles.iter().map(|role| role.chars().count()).max().unwrap_or(0);
    let columns = grid.roles.len().max(1);
    let (wide, high) =
        ((longest as f64 * 7.0 + 10.0).max(50.0), (900.0 / grid.rows.len().max(1) as f64).clamp(7.0, 20.0));
    let inner = (wide * columns as f64).max(420.0);
    let wide = inner / columns as f64;
    let (width, height) = (LEFT + inner + RIGHT, TOP + high * grid.rows.len() as f64 + BOTTOM);

    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" \
         width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#222222\">\n"
    );
    let it = &sensitivity.calibration;
    let measure =
        format!("mean KL divergence per million weights, one matrix alone in {}", kl_formats(sensitivity));
    let calibration = format!("calibration: {}, {} tokens", it.name, it.tokens);
    // Writing to a string does not fail.
    let _ = writeln!(out, "<title>Sensitivity of {}</title>", escape(model));
    let _ = writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>");
    let title = fitted(&format!("Sensitivity of {model}"), width - 28.0, 8.5);
    label(&mut out, (14.0, 24.0), "font-size=\"15\" font-weight=\"bold\"", &title);
    label(&mut out, (14.0, 44.0), "", &fitted(&measure, width - 28.0, 5.8));
    label(&mut out, (14.0, 60.0), "", &fitted(&calibration, width - 28.0, 5.8));
    for (i, role) in grid.roles.iter().enumerate() {
        let x = LEFT + wide * (i as f64 + 0.5);
        label(&mut out, (x, TOP - 8.0), "text-anchor=\"middle\"", role);
    }
    let each = (11.0 / high).ceil().max(1.0) as usize;
    let mut layers = 0;
    for (i, row) in grid.rows.iter().enumerate() {
        let y = TOP + high * i as f64;
        let layer = is_layer(row.name);
        if !layer || layers % each == 0 {
            let name = row.name.strip_prefix("layer.").unwrap_or(row.name);
            label(&mut out, (LEFT - 8.0, y + high / 2.0 + 4.0), "text-anchor=\"end\"", name);
        }
        layers += usize::from(layer);
        match layer {
            false => cell(&mut out, &scale, [LEFT, y, inner, high], &row.all, row.name),
            true => grid.roles.iter().zip(&row.cells).enumerate().for_each(|(j, (role, it))| {
                let place = [LEFT + wide * j as f64, y, wide, high];
                cell(&mut out, &scale, place, it, &format!("{} {role}", row.name));
            }),
        }
    }
    legend(&mut out, &scale, [LEFT, height - BOTTOM + 24.0, inner]);
    out + "</svg>\n"
}

/// The range of values that are drawn, per million weights.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn of<'a>(cells: impl Iterator<Item = &'a Cell>) -> Scale {
        let values = cells.map(value).filter(|value| *value > 0.0);
        let (least, most) = values.fold((f64::INFINITY, 0f64), |(a, b), value| (a.min(value), b.max(value)));
        Scale { least, most }
    }

    /// Where a value lies, from 0 to 1; `None` for 0, which has no logarithm.
    fn place(&self, value: f64) -> Option<f64> {
        let range = (self.most / self.least).ln();
        (value > 0.0).then(|| if range > 0.0 { (value / self.least).ln() / range } else { 1.0 })
    }

    fn value(&self, place: f64) -> f64 {
        self.least * (self.most / self.least).powf(place)
    }
}

fn value(cell: &Cell) -> f64 {
    cell.per_weight() * 1e6
}

/// The colour of a place from 0 to 1, and one for text upon it.
fn colour(place: Option<f64>) -> (String, &'static str) {
    let Some(place) = place else { return ("#eeeeee".to_owned(), "#222222") };
    let at = place.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let low = (at as usize).min(COLOURS.len() - 2);
    let part = at - low as f64;
    let mix = |i: usize| (COLOURS[low][i] * (1.0 - part) + COLOURS[low + 1][i] * part).round() as u8;
    (format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2)), if place > 0.55 { "#ffffff" } else { "#222222" })
}

fn cell(out: &mut String, scale: &Scale, [x, y, wide, high]: [f64; 4], cell: &Cell, name: &str) {
    if cell.tensors == 0 {
        return;
    }
    let value = value(cell);
    let (fill, ink) = colour(scale.place(value));
    let experts = match cell.tensors {
        1 => String::new(),
        count => format!(", {count} matrices"),
    };
    let tip = format!(
        "{name}: {value:.3e} nats per token and million weights; {:.3e} of {} weights{experts}",
        cell.kl, cell.weights
    );
    let (w, h) = (wide - 1.0, high - 1.0);
    let _ = write!(
        out,
        "<g><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{fill}\"/>"
    );
    if high >= NUMBERS {
        let (x, y) = (x + wide / 2.0, y + high / 2.0 + 3.0);
        let style = format!("text-anchor=\"middle\" font-size=\"9\" fill=\"{ink}\"");
        label(out, (x, y), &style, &digits(value));
    }
    let _ = writeln!(out, "<title>{}</title></g>", escape(&tip));
}

/// A strip of the colours with numbers at its ends and at powers of ten.
fn legend(out: &mut String, scale: &Scale, [x, y, wide]: [f64; 3]) {
    if scale.most <= 0.0 {
        return label(out, (x, y + 12.0), "", "no divergence was measured");
    }
    const STEPS: usize = 64;
    let step = wide / STEPS as f64;
    for i in 0..STEPS {
        let (fill, _) = colour(Some(i as f64 / (STEPS - 1) as f64));
        let (x, w) = (x + step * i as f64, step + 0.5);
        let _ =
            writeln!(out, "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{w:.2}\" height=\"12\" fill=\"{fill}\"/>");
    }
    let tick = |out: &mut String, place: f64, style: &str, text: &str| {
        let x = x + wide * place;
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"1\" height=\"4\" fill=\"#222222\"/>",
            x - 0.5,
            y + 12.0
        );
        label(out, (x, y + 27.0), style, text);
    };
    let ends = if scale.most > scale.least { &[0.0, 1.0][..] } else { &[1.0] };
    for &place in ends {
        let style = if place == 0.0 { "text-anchor=\"start\"" } else { "text-anchor=\"end\"" };
        tick(out, place, style, &digits(scale.value(place)));
    }
    let (low, high) = (scale.least.log10().ceil() as i32, scale.most.log10().floor() as i32);
    for power in low..=high {
        // Not where the number would run into those of the ends.
        let place = scale.place(10f64.powi(power)).unwrap_or(0.0);
        if (0.12..0.88).contains(&place) {
            tick(out, place, "text-anchor=\"middle\"", &format!("1e{power}"));
        }
    }
    label(out, (x, y - 6.0), "", "nats per token and million weights; grey: none");
}

fn label(out: &mut String, (x, y): (f64, f64), style: &str, text: &str) {
    let space = if style.is_empty() { "" } else { " " };
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\"{space}{style}>{}</text>", escape(text));
}

/// As much of a text as `room` has space for, where a character takes about `each`.
fn fitted(text: &str, room: f64, each: f64) -> String {
    let most = (room / each).max(1.0) as usize;
    match text.chars().count() <= most {
        true => text.to_owned(),
        false => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// Text as XML has it.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(' '),
            // Characters that XML 1.0 does not have at all.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
