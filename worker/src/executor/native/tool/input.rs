//! The inputs of the tools, typed.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::ToolCall;

/// What a call asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolInput {
    /// Run a command.
    Bash {
        /// The command.
        command: String,
        /// When it is killed at the latest, if the model says so.
        timeout: Option<Duration>,
    },
    /// Run a Python program.
    Python {
        /// The program.
        code: String,
    },
    /// Read a file.
    Read {
        /// Its path.
        path: String,
    },
    /// Write a file.
    Write {
        /// Its path.
        path: String,
        /// Its new content.
        content: String,
    },
    /// Replace a passage of a file: see [`super::super::edit::apply`].
    Edit {
        /// Its path.
        path: String,
        /// The passage.
        old: String,
        /// What stands there afterwards.
        new: String,
    },
}

/// An input that does not fit its tool; the Display is for the model.
#[derive(Debug, thiserror::Error)]
pub enum InvalidInput {
    /// There is no such tool.
    #[error("there is no tool {0:?}")]
    Tool(String),
    /// A field is missing or has the wrong type.
    #[error("the input does not fit the tool {tool}: {source}")]
    Fields {
        /// The tool.
        tool: String,
        /// Which field, and what is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A path or a program contains a NUL character, which no system takes.
    #[error("{0} contains a NUL character")]
    Nul(&'static str),
}

#[derive(Deserialize)]
struct Bash {
    command: String,
    timeout: Option<u64>,
}

#[derive(Deserialize)]
struct Python {
    code: String,
}

#[derive(Deserialize)]
struct Read {
    path: String,
}

#[derive(Deserialize)]
struct Write {
    path: String,
    content: String,
}

#[derive(Deserialize)]
struct Edit {
    path: String,
    old: String,
    new: String,
}

impl ToolInput {
    /// What `call` asks for.
    ///
    /// # Errors
    /// [`InvalidInput`], in words for the model.
    pub fn parse(call: &ToolCall) -> Result<Self, InvalidInput> {
        fn fields<T: for<'de> Deserialize<'de>>(tool: &str, input: &Value) -> Result<T, InvalidInput> {
            T::deserialize(input).map_err(|source| InvalidInput::Fields {
                tool: tool.to_owned(),
                source,
            })
        }
        let (name, input) = (call.name.as_str(), &call.input);
        let parsed = match name {
            "bash" => {
                let Bash { command, timeout } = fields(name, input)?;
                Self::Bash {
                    command,
                    timeout: timeout.map(Duration::from_secs),
                }
            }
            "python" => fields(name, input).map(|Python { code }| Self::Python { code })?,
            "read" => fields(name, input).map(|Read { path }| Self::Read { path })?,
            "write" => fields(name, input).map(|Write { path, content }| Self::Write { path, content })?,
            "edit" => fields(name, input).map(|Edit { path, old, new }| Self::Edit { path, old, new })?,
            other => return Err(InvalidInput::Tool(other.to_owned())),
        };
        let (what, argument) = match &parsed {
            Self::Bash { command, .. } => ("command", command),
            Self::Python { code } => ("code", code),
            Self::Read { path } | Self::Write { path, .. } | Self::Edit { path, .. } => ("path", path),
        };
        if argument.contains('\0') {
            Err(InvalidInput::Nul(what))
        } else {
            Ok(parsed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(name: &str, input: Value) -> Result<ToolInput, String> {
        let call = ToolCall {
            id: "c".to_owned(),
            name: name.to_owned(),
            input,
        };
        ToolInput::parse(&call).map_err(|error| error.to_string())
    }

    #[test]
    fn every_offered_tool_has_a_typed_input() {
        for tool in crate::executor::native::tool::definitions(["bash", "python", "files"]).unwrap() {
            let required = tool.input_schema["required"].as_array().unwrap().clone();
            let input: Value = required
                .iter()
                .map(|name| (name.as_str().unwrap().to_owned(), json!("x")))
                .collect();
            assert!(parse(&tool.name, input).is_ok(), "{}", tool.name);
            assert!(
                parse(&tool.name, json!({})).unwrap_err().contains("missing field"),
                "{}",
                tool.name
            );
        }
    }

    #[test]
    fn a_timeout_is_in_seconds() {
        let input = parse("bash", json!({"command": "ls", "timeout": 90})).unwrap();
        let expected = ToolInput::Bash {
            command: "ls".to_owned(),
            timeout: Some(Duration::from_secs(90)),
        };
        assert_eq!(input, expected);
    }

    #[test]
    fn what_does_not_fit_is_said_in_words() {
        assert_eq!(parse("telnet", json!({})).unwrap_err(), "there is no tool \"telnet\"");
        assert_eq!(
            parse("bash", json!({"command": "a\0b"})).unwrap_err(),
            "command contains a NUL character"
        );
        assert!(
            parse("bash", json!({"command": 7}))
                .unwrap_err()
                .contains("does not fit the tool bash")
        );
        assert!(parse("bash", json!({"command": "ls", "timeout": -1})).is_err());
    }
}
