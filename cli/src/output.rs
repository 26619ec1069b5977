//! Printing: answers go to the standard output, remarks to the standard error.
//!
//! Tables, colours and progress are for a terminal. Anything else gets one record a line, its fields apart by tabs; with
//! `--json`, one JSON document a line.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

/// Columns of the terminal that the last column of a table has at least.
const LAST_COLUMN_MIN: u16 = 24;

/// Prints one line.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints one JSON document as one line.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(value).map_err(io::Error::from)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()
}

/// Prints text as it is and lets it be seen at once.
pub(crate) fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints text to the standard error as it is.
pub(crate) fn error_text(text: &str) {
    // Nobody is left to tell when the error output itself is gone.
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Makes a remark on the standard error.
pub(crate) fn note(text: impl Display) {
    error_text(&format!("hothouse: {text}\n"));
}

/// Prints rows: a table on a terminal, else lines of fields apart by tabs, without a header.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> io::Result<()> {
    if !io::stdout().is_terminal() {
        for row in rows {
            line(row.map(|field| clean(&field)).join("\t"))?;
        }
        return Ok(());
    }
    let longest = rows
        .iter()
        .filter_map(|row| row.last())
        .map(|field| field.chars().count());
    let longest = u16::try_from(longest.max().unwrap_or(0)).unwrap_or(u16::MAX);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    for row in rows {
        table.add_row(row.map(|field| clean(&field)));
    }
    // Only the last column may be broken: the others are ids and words that people copy.
    for column in table.column_iter_mut().take(N.saturating_sub(1)) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    // Nor into single letters, where the terminal is too narrow for the rest: then its lines are.
    if let Some(last) = table.column_iter_mut().last() {
        last.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(
            longest.min(LAST_COLUMN_MIN),
        )));
    }
    line(table)
}

/// Prints records: each as one JSON line, or the named fields of each as a table.
pub(crate) fn records<const N: usize>(is_json: bool, records: &[Value], fields: [&str; N]) -> io::Result<()> {
    if is_json {
        return records.iter().try_for_each(json);
    }
    let header = fields.map(|field| field.trim_end_matches("_at").replace('_', " ").to_uppercase());
    let rows = records
        .iter()
        .map(|record| fields.map(|name| field(record, name)))
        .collect();
    table(header.each_ref().map(String::as_str), rows)
}

/// Prints one record: as a JSON line, or one field a line.
pub(crate) fn record(is_json: bool, record: &Value) -> io::Result<()> {
    if is_json {
        return json(record);
    }
    let Some(fields) = record.as_object() else {
        return line(record);
    };
    let present = fields.iter().filter(|(_, value)| !is_empty(value));
    table(
        ["FIELD", "VALUE"],
        present.map(|(name, _)| [name.clone(), field(record, name)]).collect(),
    )
}

/// A field of a record as a person reads it; nothing for one that is absent.
pub(crate) fn field(record: &Value, name: &str) -> String {
    match record.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Text of others made safe for a terminal: a control character could move the cursor or change the title.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// A line that turns while something is waited for; silent where the standard error is no terminal.
pub(crate) fn spinner() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar over so many steps; silent where the standard error is no terminal.
pub(crate) fn bar(steps: u64, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(steps)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(what)
}

/// A length of time for people: `12 ms`, `3.4 s`, `2m 10s`.
pub(crate) fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0 => format!("{} ms", length.as_millis()),
        1..60 => format!("{:.1} s", length.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let told = [0, 12, 3400, 130_000, 7_260_000, 180_000_000].map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(told, ["0 ms", "12 ms", "3.4 s", "2m 10s", "2h 1m", "2d 2h"]);
    }
}
