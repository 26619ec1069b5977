//! `hothouse config`: what the parts of Hothouse would read, merged and without secrets.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use common::config::{self, Settings};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::globals::Globals;
use crate::{exit, output};

/// Options of `hothouse config`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Read the configuration as the servers would and say what is wrong with it, or show it
    Check {
        /// Configuration file; the environment is read on top of it
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Checks every part, even when the first is wrong.
#[expect(clippy::unused_async, reason = "every command is called in the same way")]
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Action::Check { file } = args.action;
    let file = file.as_deref();
    let parts = [
        ("api", read::<api::Config>(file)),
        ("worker", read::<worker::Config>(file)),
        ("scheduler", read::<scheduler::Config>(file)),
    ];
    let mut good = Map::new();
    let mut code = ExitCode::SUCCESS;
    for (part, settings) in parts {
        match settings {
            Ok(settings) => {
                good.insert(part.to_owned(), settings);
            }
            Err(error) => {
                output::note(format_args!("{part}: {error:#}"));
                code = exit::FAILED.into();
            }
        }
    }
    let good = Value::Object(good);
    if globals.json {
        output::json(&good)?;
    } else {
        let mut lines = Vec::new();
        flatten("", &good, &mut lines);
        lines.iter().try_for_each(output::line)?;
    }
    Ok(code)
}

fn read<S: Settings + Serialize>(file: Option<&Path>) -> anyhow::Result<Value> {
    let settings: S = config::load(file, config::environment())?;
    Ok(serde_json::to_value(settings)?)
}

/// One line a setting: `api.http.address = "127.0.0.1:8080"`.
fn flatten(name: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = if name.is_empty() {
                    field.clone()
                } else {
                    format!("{name}.{field}")
                };
                flatten(&name, value, lines);
            }
        }
        Value::Null => {}
        value => lines.push(format!("{name} = {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_setting_is_a_line() {
        let mut lines = Vec::new();
        flatten(
            "",
            &json!({"api": {"http": {"port": 1, "file": null}, "name": "x"}}),
            &mut lines,
        );
        assert_eq!(lines, ["api.http.port = 1", "api.name = \"x\""]);
    }
}
