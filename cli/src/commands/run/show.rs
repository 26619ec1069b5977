//! Showing a program's events as if it ran here: its output is passed on, anything else is a remark.

use std::io;

use indicatif::ProgressBar;

use crate::client::Event;
use crate::output;
use crate::watch::Seen;

/// Shows events until the program ends.
#[derive(Debug)]
pub(super) struct Show {
    /// Turns until the first output.
    spinner: ProgressBar,
    is_silent: bool,
    /// Where the output of the attempt under way begins.
    has_output: bool,
}

impl Show {
    /// With `is_silent`, the events are only waited through.
    pub(super) fn new(is_silent: bool) -> Self {
        let spinner = if is_silent {
            ProgressBar::hidden()
        } else {
            output::spinner()
        };
        spinner.set_message("submitted");
        Self {
            spinner,
            is_silent,
            has_output: false,
        }
    }

    /// Shows one event, or what the job waits for.
    pub(super) fn seen(&mut self, seen: Seen<'_>) -> io::Result<()> {
        match seen {
            _ if self.is_silent => Ok(()),
            Seen::Event(event) => self.event(event),
            Seen::WaitsFor(reason) => {
                let remark = format!("waiting: {reason}");
                if self.spinner.is_hidden() {
                    output::note(remark);
                } else {
                    self.spinner.set_message(remark);
                }
                Ok(())
            }
        }
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event.kind.as_str() {
            "stdout" => {
                self.begin_output();
                output::text(event.text("text"))?;
            }
            "stderr" => {
                self.begin_output();
                output::error_text(event.text("text"));
            }
            "queued" => self.spinner.set_message("queued"),
            "started" => self.spinner.set_message("starting"),
            "status" if event.text("phase").ends_with("_cut") => self.remark(&output::clean(event.text("detail"))),
            "status" => self.spinner.set_message(output::clean(event.text("phase"))),
            "retrying" => self.remark("the attempt failed; trying again"),
            "attempt_reset" if self.has_output => self.remark("a new attempt begins; the output so far was of another"),
            "resume_gap" => self.remark("a part of the output was lost with the machine that held it"),
            _ => {}
        }
        Ok(())
    }

    /// Clears what is not output.
    pub(super) fn finish(&self) {
        self.spinner.finish_and_clear();
    }

    fn begin_output(&mut self) {
        if !self.has_output {
            self.has_output = true;
            self.spinner.finish_and_clear();
        }
    }

    fn remark(&self, text: &str) {
        self.spinner.suspend(|| output::note(text));
    }
}
