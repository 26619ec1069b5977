//! What `up` and `down` say while they work: one line for each step, with a spinner on a terminal.

use std::time::Instant;

use indicatif::ProgressBar;

use crate::output;

/// One step that is under way. Dropping it without [`Step::done`] removes the spinner and prints nothing.
#[derive(Debug)]
pub(crate) struct Step {
    title: &'static str,
    started: Instant,
    spinner: ProgressBar,
}

impl Step {
    /// Begins a step.
    pub(crate) fn begin(title: &'static str) -> Self {
        let spinner = output::spinner();
        spinner.set_message(title);
        Self {
            title,
            started: Instant::now(),
            spinner,
        }
    }

    /// Says what it is doing now. Without a terminal each is a line of its own.
    pub(crate) fn now(&self, message: &str) {
        if self.spinner.is_hidden() {
            say(&format!("  {:<12} {message}", self.title));
        } else {
            self.spinner
                .set_message(format!("{:<12} {}", self.title, output::clean(message)));
        }
    }

    /// Ends the step with what came of it, and how long it took.
    pub(crate) fn done(self, outcome: &str) {
        self.spinner.finish_and_clear();
        say(&format!(
            "\u{2713} {:<12} {outcome} ({})",
            self.title,
            output::duration(self.started.elapsed())
        ));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.spinner.finish_and_clear();
    }
}

/// Prints one line.
pub(crate) fn say(text: &str) {
    // Whoever closed the output wants to hear no more; that is no reason to stop serving.
    drop(output::line(text));
}
