//! Bars on standard error, where that is a terminal.

use airllm::{Evaluating, Progress, Size, Stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

/// Shows the progress of downloads, preparations and evaluations. Without a terminal nothing is drawn; the end of a
/// long stage is logged at -v.
pub struct Bars {
    /// What is shown; no stage where a text is evaluated.
    shown: Mutex<Option<(Option<Stage>, ProgressBar)>>,
    terminal: bool,
}

impl Bars {
    pub fn new() -> Bars {
        Bars { shown: Mutex::new(None), terminal: std::io::stderr().is_terminal() }
    }

    /// Draws one report.
    pub fn show(&self, progress: &Progress<'_>) {
        if !self.terminal {
            if progress.total > 0 && progress.done >= progress.total {
                let (stage, bytes) = (progress.stage, Size(progress.total));
                tracing::info!("{stage}: {bytes} done at {}/s", Size(progress.rate() as u64));
            }
            return;
        }
        let left = progress.left().map(|left| format!(", {} left", time(left))).unwrap_or_default();
        let message = format!("{}/s{left} ({})", Size(progress.rate() as u64), progress.item);
        self.draw(Some(progress.stage), progress.done, progress.total, message);
    }

    /// Draws how far an evaluation has come. Without a terminal each pass is logged at -v.
    pub fn evaluating(&self, now: &Evaluating) {
        let left = now.left().map(|left| format!(", {} left", time(left))).unwrap_or_default();
        let soon = || "no window counted yet".to_owned();
        let perplexity = now.perplexity.map_or_else(soon, |perplexity| format!("perplexity {perplexity:.4}"));
        let message = format!("{} of {} windows{left}, {perplexity}", now.windows, now.of_windows);
        if self.terminal {
            self.draw(None, now.read as u64, now.of_read as u64, message);
        } else {
            tracing::info!("{message}");
        }
    }

    fn draw(&self, stage: Option<Stage>, done: u64, total: u64, message: String) {
        let Ok(mut shown) = self.shown.lock() else { return };
        if shown.as_ref().is_none_or(|(old, _)| *old != stage) {
            if let Some((_, old)) = shown.take() {
                old.finish_and_clear();
            }
            *shown = Some((stage, bar(stage)));
        }
        let Some((_, bar)) = shown.as_ref() else { return };
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(message);
        if total > 0 && done >= total {
            bar.finish_and_clear();
        }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        if let Ok(mut shown) = self.shown.lock()
            && let Some((_, bar)) = shown.take()
        {
            bar.finish_and_clear();
        }
    }
}

fn bar(stage: Option<Stage>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = match stage {
        None => "{prefix} [{bar:30}] {pos}/{len} tokens, {msg}",
        Some(Stage::Wait) => "{prefix} {spinner}",
        Some(_) => "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(stage.map_or("evaluating".to_owned(), |stage| stage.to_string()));
    bar
}

/// Hours, minutes and seconds, the largest two that are not zero.
fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times() {
        let time = |seconds| super::time(std::time::Duration::from_secs(seconds));
        assert_eq!(time(7), "7 s");
        assert_eq!(time(100), "1 min 40 s");
        assert_eq!(time(7300), "2 h 1 min");
    }
}
