//! The report of a measurement, for people and for programs.

use std::env;
use std::io;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::latency::Samples;
use super::machine::Machine;
use crate::client::Client;
use crate::output;

/// What was measured, on what, and whether the measurement is true.
#[derive(Debug)]
pub(super) struct Report {
    command: String,
    machine: Machine,
    findings: Vec<(&'static str, String, Value)>,
    is_sound: bool,
}

impl Report {
    /// An empty report on this machine, for the command line that runs.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(super) async fn new(client: &Client) -> anyhow::Result<Self> {
        // Before anything is measured: a server that is not there is one sentence, not a bad result.
        client.get_outside("/healthz").await?;
        Ok(Self::on(Machine::look(client).await))
    }

    /// An empty report on a machine, for the command line that runs.
    pub(super) fn on(machine: Machine) -> Self {
        Self {
            command: command_line(env::args()),
            machine,
            findings: Vec::new(),
            is_sound: true,
        }
    }

    /// Adds a number.
    pub(super) fn number(&mut self, name: &'static str, value: f64, unit: &str) {
        self.findings.push((
            name,
            format!("{value:.1} {unit}"),
            json!({"value": value, "unit": unit}),
        ));
    }

    /// The value of a number that was added.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        let (_, _, value) = self.findings.iter().find(|(found, _, _)| *found == name)?;
        value.get("value")?.as_f64()
    }

    /// Adds the percentiles of latencies; none when there are no samples, which says so.
    pub(super) fn latencies(&mut self, name: &'static str, samples: Samples) {
        let Some(summary) = samples.summary() else {
            self.findings.push((name, "not measured".to_owned(), Value::Null));
            return;
        };
        let text = format!(
            "p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, max {:.2} ms of {}",
            summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms, summary.count
        );
        self.findings.push((name, text, json!(summary)));
    }

    /// Adds a remark that is not a measurement.
    pub(super) fn remark(&mut self, name: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.findings.push((name, text.clone(), text.into()));
    }

    /// Adds a check of what was measured; one that fails makes the whole unsound.
    pub(super) fn check(&mut self, name: &'static str, holds: bool, text: impl Into<String>) {
        self.is_sound &= holds;
        let text = text.into();
        let verdict = if holds { "yes" } else { "NO" };
        self.findings.push((
            name,
            format!("{verdict}: {text}"),
            json!({"holds": holds, "detail": text}),
        ));
    }

    /// Did every check hold?
    pub(super) fn is_sound(&self) -> bool {
        self.is_sound
    }

    /// Prints it.
    pub(super) fn print(&self, is_json: bool) -> io::Result<()> {
        if is_json {
            return output::json(&self.to_json());
        }
        let findings = self.findings.iter().map(|(name, text, _)| (*name, text.as_str()));
        let machine = self.machine.lines();
        let lines = [("command", self.command.as_str())].into_iter();
        let lines = lines.chain(machine.iter().map(|(name, text)| (*name, text.as_str())));
        let lines: Vec<_> = lines.chain(findings).collect();
        let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, text) in lines {
            output::line(format_args!("{name:<width$}  {text}"))?;
        }
        Ok(())
    }

    fn to_json(&self) -> impl Serialize {
        let findings: Map<String, Value> = self
            .findings
            .iter()
            .map(|(name, _, value)| (name.replace([' ', '→'], "_"), value.clone()))
            .collect();
        json!({"command": self.command, "machine": self.machine, "findings": findings, "sound": self.is_sound})
    }
}

/// The command line as it was given, without the value of `--key`.
fn command_line(words: impl Iterator<Item = String>) -> String {
    let mut line = vec!["hothouse".to_owned()];
    let mut words = words.skip(1);
    while let Some(word) = words.next() {
        if word == "--key" {
            words.next();
        } else if !word.starts_with("--key=") {
            line.push(word);
        }
    }
    line.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_stands_in_a_report() {
        for words in [
            "x bench submit --key hh_secret --seconds 5",
            "x --key=hh_secret bench submit --seconds 5",
        ] {
            let told = command_line(words.split(' ').map(str::to_owned));
            assert_eq!(told, "hothouse bench submit --seconds 5");
        }
    }
}
