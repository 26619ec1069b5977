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
        /// When it is interrupted at the latest, if the model says so.
        timeout: Option<Duration>,
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
    /// List a folder.
    List {
        /// Its path; the workspace when none.
        path: Option<String>,
        /// How many folders deep; 1 when none.
        depth: Option<u32>,
    },
    /// Find lines in files.
    Search {
        /// A regular expression, as grep's extended ones.
        pattern: String,
        /// Where to look; the workspace when none.
        path: Option<String>,
        /// Which files' names; all when none.
        glob: Option<String>,
    },
    /// Fetch an address.
    Fetch {
        /// The address.
        url: String,
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
    timeout: Option<u64>,
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

#[derive(Deserialize)]
struct List {
    path: Option<String>,
    depth: Option<u32>,
}

#[derive(Deserialize)]
struct Search {
    pattern: String,
    path: Option<String>,
    glob: Option<String>,
}

#[derive(Deserialize)]
struct Fetch {
    url: String,
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
            "python" => fields(name, input).map(|Python { code, timeout }| Self::Python {
                code,
                timeout: timeout.map(Duration::from_secs),
            })?,
            "read" => fields(name, input).map(|Read { path }| Self::Read { path })?,
            "write" => fields(name, input).map(|Write { path, content }| Self::Write { path, content })?,
            "edit" => fields(name, input).map(|Edit { path, old, new }| Self::Edit { path, old, new })?,
            "list" => fields(name, input).map(|List { path, depth }| Self::List { path, depth })?,
            "search" => {
                fields(name, input).map(|Search { pattern, path, glob }| Self::Search { pattern, path, glob })?
            }
            "fetch" => fields(name, input).map(|Fetch { url }| Self::Fetch { url })?,
            other => return Err(InvalidInput::Tool(other.to_owned())),
        };
        match parsed
            .arguments()
            .into_iter()
            .find(|(_, argument)| argument.contains('\0'))
        {
            Some((what, _)) => Err(InvalidInput::Nul(what)),
            None => Ok(parsed),
        }
    }

    /// What becomes an argument of a program, by its name.
    fn arguments(&self) -> Vec<(&'static str, &str)> {
        fn given<'a>(what: &'static str, argument: Option<&'a String>) -> Option<(&'static str, &'a str)> {
            argument.map(|argument| (what, argument.as_str()))
        }
        match self {
            Self::Bash { command, .. } => vec![("command", command)],
            Self::Python { code, .. } => vec![("code", code)],
            Self::Read { path } | Self::Write { path, .. } | Self::Edit { path, .. } => vec![("path", path)],
            Self::List { path, .. } => given("path", path.as_ref()).into_iter().collect(),
            Self::Search { pattern, path, glob } => {
                let optional = [given("path", path.as_ref()), given("glob", glob.as_ref())];
                std::iter::once(("pattern", pattern.as_str()))
                    .chain(optional.into_iter().flatten())
                    .collect()
            }
            Self::Fetch { url } => vec![("url", url)],
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
        for tool in crate::executor::native::tool::definitions(["bash", "python", "files", "fetch"]).unwrap() {
            let required = tool.input_schema["required"].as_array().unwrap().clone();
            let input: Value = required
                .iter()
                .map(|name| (name.as_str().unwrap().to_owned(), json!("x")))
                .collect();
            assert!(parse(&tool.name, input).is_ok(), "{}", tool.name);
            let empty = parse(&tool.name, json!({}));
            assert_eq!(empty.is_err(), !required.is_empty(), "{}", tool.name);
            assert!(
                empty.map_or_else(|error| error.contains("missing field"), |_| true),
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
