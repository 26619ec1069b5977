//! What `up` says while it works: a line for each step, with a spinner on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One step that is under way. Dropping it without [`Step::done`] removes the spinner and prints nothing.
#[derive(Debug)]
pub(crate) struct Step {
    title: &'static str,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Begins a step.
    pub(crate) fn begin(title: &'static str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:<10} {msg} {elapsed}") {
                spinner.set_style(style);
            }
            spinner.set_prefix(title);
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        Self { title, started: Instant::now(), spinner }
    }

    /// Says what it is doing now.
    pub(crate) fn now(&self, message: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(message.to_owned()),
            None => line(&format!("  {:<10} {message}", self.title)),
        }
    }

    /// Ends the step with what came of it, and how long it took.
    pub(crate) fn done(self, outcome: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        line(&format!("\u{2713} {:<10} {outcome} ({seconds:.1} s)", self.title));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// Prints one line on the standard output.
pub(crate) fn line(text: &str) {
    // Whoever closed the output wants to hear no more; that is no reason to stop serving.
    drop(writeln!(std::io::stdout(), "{text}"));
}
