//! The tools that an agent may have, as the model sees them.

use serde_json::{Value, json};

use crate::model::ToolDefinition;

/// An agent names a tool that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no tool {0:?}; there are: bash, python, files (read, write, edit, list, search), fetch")]
pub struct UnknownTool(pub String);

/// The definitions of an agent's tools, in a fixed order. `files` stands for `read`, `write`,
/// `edit`, `list` and `search`.
///
/// # Errors
/// [`UnknownTool`] names the first that does not exist.
pub fn definitions<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Result<Vec<ToolDefinition>, UnknownTool> {
    let all = all();
    let mut wanted = vec![false; all.len()];
    for name in names {
        let name = name.as_ref();
        let matches = |tool: &ToolDefinition| match name {
            "files" => matches!(tool.name.as_str(), "read" | "write" | "edit" | "list" | "search"),
            name => tool.name == name,
        };
        if !all.iter().any(matches) {
            return Err(UnknownTool(name.to_owned()));
        }
        for (tool, wanted) in all.iter().zip(&mut wanted) {
            *wanted |= matches(tool);
        }
    }
    Ok(all
        .into_iter()
        .zip(wanted)
        .filter_map(|(tool, wanted)| wanted.then_some(tool))
        .collect())
}

fn all() -> Vec<ToolDefinition> {
    let mut tools = programs();
    tools.extend(of_files());
    tools.push(tool(
        "fetch",
        "Fetches an address over HTTP and answers with status, type and text. Only hosts that this agent may reach.",
        &json!({"url": text("The address, http or https.")}),
        &["url"],
    ));
    tools
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn programs() -> Vec<ToolDefinition> {
    vec![
        tool(
            "bash",
            "Runs a command with bash in the workspace of this conversation and answers with what it printed and its \
             exit code. Files stay from one call to the next; the shell does not, so neither directory nor variables \
             are kept. There is no terminal: do not start what waits for input.",
            &json!({
                "command": text("The command."),
                "timeout": {"type": "integer", "minimum": 1, "description": "Seconds after which it is killed."},
            }),
            &["command"],
        ),
        tool(
            "python",
            "Runs Python 3 in the workspace of this conversation and answers with what it printed and its exit code. \
             Print what you want to see. Variables and imports stay from one call to the next until your answer, files \
             stay after it.",
            &json!({
                "code": text("The program."),
                "timeout": {"type": "integer", "minimum": 1, "description": "Seconds after which it is interrupted."},
            }),
            &["code"],
        ),
    ]
}

fn of_files() -> Vec<ToolDefinition> {
    let path = || text("Path of the file, relative to the workspace.");
    vec![
        tool(
            "read",
            "Answers with the content of a text file.",
            &json!({"path": path()}),
            &["path"],
        ),
        tool(
            "write",
            "Writes a text file, with its folders, and replaces what was there.",
            &json!({"path": path(), "content": text("The whole new content.")}),
            &["path", "content"],
        ),
        tool(
            "edit",
            "Replaces one passage of a text file. Fails, and changes nothing, unless the passage occurs exactly once.",
            &json!({
                "path": path(),
                "old": text("The passage, exactly as it is in the file, spaces and line breaks included."),
                "new": text("What stands there afterwards."),
            }),
            &["path", "old", "new"],
        ),
        tool(
            "list",
            "Lists what is in a folder, one entry a line: type (d folder, f file, l link), bytes, path. At most 1000.",
            &json!({
                "path": text("Path of the folder, relative to the workspace, which is the default."),
                "depth": {"type": "integer", "minimum": 1, "maximum": 10, "description": "How many folders deep; 1."},
            }),
            &[],
        ),
        tool(
            "search",
            "Finds lines in text files below a folder and answers with file, line number and line. At most 300.",
            &json!({
                "pattern": text("An extended regular expression, as for grep -E."),
                "path": text("Path of the folder or file, relative to the workspace, which is the default."),
                "glob": text("Only files whose name matches, such as *.rs."),
            }),
            &["pattern"],
        ),
    ]
}

fn tool(name: &str, description: &str, properties: &Value, required: &[&str]) -> ToolDefinition {
    ToolDefinition {
        name: name.to_owned(),
        description: description.to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tools: &[&str]) -> Result<Vec<String>, UnknownTool> {
        Ok(definitions(tools)?.into_iter().map(|tool| tool.name).collect())
    }

    #[test]
    fn an_agents_tools_are_offered_once_and_in_one_order() {
        assert_eq!(
            names(&["files", "python", "edit", "python"]).unwrap(),
            ["python", "read", "write", "edit", "list", "search"]
        );
        assert_eq!(names(&[]).unwrap(), Vec::<String>::new());
        assert_eq!(names(&["bash", "telnet"]), Err(UnknownTool("telnet".to_owned())));
    }

    #[test]
    fn what_is_required_is_described() {
        for tool in all() {
            let schema = &tool.input_schema;
            for name in schema["required"].as_array().unwrap() {
                assert!(
                    schema["properties"][name.as_str().unwrap()]["description"].is_string(),
                    "{tool:?}"
                );
            }
        }
    }
}
