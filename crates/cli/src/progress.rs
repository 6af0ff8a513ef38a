//! Bars on standard error, where that is a terminal.

use airllm::{Answering, Evaluating, Progress, Size, Stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

/// What a bar shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Stage(Stage),
    Evaluating,
    Answering,
}

/// Shows the progress of downloads, preparations, evaluations and of many answers. Without a terminal nothing is drawn; the end of a
/// long stage is logged at -v.
pub struct Bars {
    shown: Mutex<Option<(Work, ProgressBar)>>,
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
        self.draw(Work::Stage(progress.stage), progress.done, progress.total, message);
    }

    /// Draws how far an evaluation has come. Without a terminal each pass is logged at -v.
    pub fn evaluating(&self, now: &Evaluating) {
        let left = now.left().map(|left| format!(", {} left", time(left))).unwrap_or_default();
        let soon = || "no window counted yet".to_owned();
        let perplexity = now.perplexity.map_or_else(soon, |perplexity| format!("perplexity {perplexity:.4}"));
        let message = format!("{} of {} windows{left}, {perplexity}", now.windows, now.of_windows);
        if self.terminal {
            self.draw(Work::Evaluating, now.read as u64, now.of_read as u64, message);
        } else {
            tracing::info!("{message}");
        }
    }

    /// Draws how many answers have ended. Without a terminal each end is logged at -v.
    pub fn answering(&self, now: &Answering, ended: bool) {
        let left = now.left().map(|left| format!(", {} left", time(left))).unwrap_or_default();
        let message = format!("{} at once, {:.2} tokens/s{left}", now.active, now.rate());
        if self.terminal {
            self.draw(Work::Answering, now.done as u64, now.of as u64, message);
        } else if ended {
            tracing::info!("{} of {} answers, {message}", now.done, now.of);
        }
    }

    fn draw(&self, work: Work, done: u64, total: u64, message: String) {
        let Ok(mut shown) = self.shown.lock() else { return };
        if shown.as_ref().is_none_or(|(old, _)| *old != work) {
            if let Some((_, old)) = shown.take() {
                old.finish_and_clear();
            }
            *shown = Some((work, bar(work)));
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

fn bar(work: Work) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = match work {
        Work::Evaluating => "{prefix} [{bar:30}] {pos}/{len} tokens, {msg}",
        Work::Answering => "{prefix} [{bar:30}] {pos}/{len}, {msg}",
        Work::Stage(Stage::Wait) => "{prefix} {spinner}",
        Work::Stage(_) => "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(match work {
        Work::Evaluating => "evaluating".to_owned(),
        Work::Answering => "answering".to_owned(),
        Work::Stage(stage) => stage.to_string(),
    });
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
